"""``llama-convert convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llama_convert.cli import options as cli

if TYPE_CHECKING:
    from llama_convert.errors import UsageError


def convert_command(
    source: cli.Source = None,
    destination: cli.Destination = None,
    to: cli.To = "hf",
    dtype: cli.Dtype = "auto",
    output: cli.Output = None,
    max_shard_size: cli.MaxShardSize = "5GB",
    mp: cli.Ranks = None,
    embedding_axis: cli.EmbeddingAxis = None,
    checklist: cli.Checklist = True,
    compare_checklist: cli.CompareChecklist = False,
    resume: cli.Resume = True,
    overwrite: cli.Overwrite = False,
    strict: cli.Strict = False,
    dry_run: cli.DryRun = False,
    verify: cli.Verify = False,
    llama_version: cli.LlamaVersion = None,
    instruct: cli.Instruct = None,
    config_from: cli.ConfigFrom = None,
    tokenizer: cli.TokenizerPath = None,
    chat_template: cli.ChatTemplate = None,
    special_tokens: cli.SpecialTokens = None,
    input_dir: cli.InputDir = None,
    output_dir: cli.OutputDir = None,
    model_size: cli.ModelSize = None,
    num_shards: cli.NumShards = None,
    safe_serialization: cli.SafeSerialization = True,
    push_to_hub: cli.PushToHub = False,
    array_task: cli.ArrayTask = None,
    finish: cli.Finish = False,
    scheduler: cli.Scheduler = None,
    fsync: cli.Fsync = True,
    workers: cli.Workers = None,
    block_size: cli.BlockSize = "1MiB",
    quiet: cli.Quiet = False,
    verbose: cli.Verbose = False,
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
    help_all: cli.HelpAll = False,
) -> None:
    """Convert a checkpoint from Meta to Hugging Face format, or with `--to meta` back.

    Release, size, number of ranks and data type are detected from the files.
    The output is complete or absent. Run an interrupted command again to resume.

    [bold]Examples[/bold]

      llama-convert convert Llama3.1-8B-Instruct llama-3.1-8b-instruct

      llama-convert convert Llama-2-70b llama-2-70b-fp16 --dtype fp16 --verify

      llama-convert convert my-fine-tuned-70b Llama-70B --to meta --mp 8

      llama-convert --input_dir LLaMA --output_dir llama-7b --model_size 7B
    """
    from llama_convert.cli.errors import handle_errors, stderr_console

    console = stderr_console()
    with handle_errors(as_json=as_json, debug=debug):
        import time

        from llama_convert.checkpoints.shards import DEFAULT_SHARD_SIZE
        from llama_convert.checkpoints.suggestions import existing_folder, tokenizer_named
        from llama_convert.cli.distributed import open_executor
        from llama_convert.cli.hub import upload
        from llama_convert.cli.progress import ConsoleObserver
        from llama_convert.cli.result import show_result
        from llama_convert.conversion.convert import convert
        from llama_convert.conversion.execute import DEFAULT_WORKERS
        from llama_convert.conversion.options import ConvertOptions, parse_format
        from llama_convert.errors import UsageError
        from llama_convert.extras import require
        from llama_convert.units import parse_size

        start = time.monotonic()
        source = only_value("SRC", {"SRC": source, "--input-dir": input_dir})
        destination = only_value("DST", {"DST": destination, "--output": output, "--output-dir": output_dir})
        if source is None or destination is None:
            raise _missing(source, to)
        observer = ConsoleObserver(console, quiet=quiet, verbose=verbose)
        if not safe_serialization:
            observer.warning("Ignoring --safe_serialization False: only safetensors are written.")
        if push_to_hub:
            require("hub", "--push-to-hub")
        if verify and model_size == "tokenizer_only":
            message = "--verify needs weights, and --model-size tokenizer_only writes none."
            raise UsageError("BAD_USAGE", message)
        layout = parse_format(to)
        _refuse_options_of_the_other_format(
            layout,
            {
                "--mp": mp is not None,
                "--embedding-axis": embedding_axis is not None,
                "--no-checklist": not checklist,
                "--max-shard-size": max_shard_size != DEFAULT_SHARD_SIZE,
                "--model-size": model_size is not None,
                "--num-shards": num_shards is not None,
                "--instruct": instruct is not None,
                "--chat-template": chat_template is not None,
                "--special-tokens": bool(special_tokens),
            },
        )
        options = ConvertOptions(
            to=layout,
            mp=mp or 1,
            embedding_axis=embedding_axis,
            checklist=checklist,
            compare_checklist=compare_checklist,
            dtype=dtype,
            max_shard_size=max_shard_size,
            llama_version=llama_version,
            model_size=model_size,
            num_shards=num_shards,
            instruct=instruct,
            config_from=config_from and existing_folder(config_from),
            tokenizer=tokenizer and tokenizer_named(tokenizer),
            chat_template=chat_template and chat_template.expanduser(),
            special_tokens=tuple(name for names in special_tokens or [] for name in names.split(",") if name),
            resume=resume,
            overwrite=overwrite,
            strict=strict,
            dry_run=dry_run,
            array_task=array_task,
            finish=finish,
            fsync=fsync,
            workers=workers or DEFAULT_WORKERS,
            block_size=parse_size(block_size),
        )
        with open_executor(scheduler) as executor:
            result = convert(source, destination, options, observer, executor)
        show_result(
            "convert", result, options, observer, start=start, verify=verify, quiet=quiet, as_json=as_json
        )
        if push_to_hub and isinstance(result.destination, Path) and not dry_run:
            upload(result.destination, observer)


def only_value(name: str, values: dict[str, str | None]) -> str | None:
    """The value of an argument that can be given in several ways; None if it is not given.

    Args:
        name: the argument, for the message.
        values: what was given, by the argument or option.

    Raises:
        UsageError: two values differ.
    """
    from llama_convert.errors import UsageError
    from llama_convert.redaction import redact_url

    given = {option: value for option, value in values.items() if value}
    if len(set(given.values())) > 1:
        listed = " and ".join(
            redact_url(value if option == name else f"{option} {value}") for option, value in given.items()
        )
        raise UsageError("BAD_USAGE", f"{name} is given more than once: {listed}.")
    return next(iter(given.values()), None)


def _refuse_options_of_the_other_format(to: str, given: dict[str, bool]) -> None:
    """Refuse options that have no effect on this format.

    Args:
        to: the format of the output.
        given: whether each of them was given.

    Raises:
        UsageError: one of them only applies to the other format.
    """
    from llama_convert.errors import UsageError

    meta = ("--mp", "--embedding-axis", "--no-checklist")
    for option, is_given in given.items():
        if is_given and (option in meta) != (to == "meta"):
            output, hint = (
                ("Meta", "Add --to meta.") if option in meta else ("Hugging Face", f"Remove {option}.")
            )
            raise UsageError("BAD_USAGE", f"{option} only applies to {output} output.", hint=hint)


def _missing(source: str | None, to: str) -> UsageError:
    """The error for a missing argument; suggests a name for DST."""
    from llama_convert.checkpoints.suggestions import command
    from llama_convert.errors import UsageError
    from llama_convert.redaction import redact_url

    if source is None:
        return UsageError("BAD_USAGE", "SRC is missing.", hint=command("convert", "SRC", "DST"))
    options = ("--to", to) if to != "hf" else ()
    name = Path(redact_url(source)).expanduser().resolve().name
    return UsageError(
        "BAD_USAGE", "DST is missing.", hint=command("convert", source, f"{name}-{to}", *options)
    )
