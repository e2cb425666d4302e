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
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
) -> None:
    """Convert a Meta checkpoint to Hugging Face safetensors, config and tokenizer; or the way back.

    Release, size, ranks and dtype are told from the files.  DST appears when
    all of it is complete; after a stop the same command goes on from there.

    [bold]Examples[/bold]

      llama-convert convert Llama3.1-8B-Instruct llama-3.1-8b-instruct

      llama-convert convert Llama-2-70b llama-2-70b-fp16 --dtype fp16 --verify

      llama-convert convert my-fine-tuned-70b Llama-70B --to meta --mp 8

      llama-convert --input_dir LLaMA --output_dir llama-7b --model_size 7B
    """
    from llama_convert.cli.errors import outcome, stderr_console

    console = stderr_console()
    with outcome(as_json=as_json, debug=debug):
        from llama_convert.checkpoints.shards import DEFAULT_SHARD_SIZE
        from llama_convert.checkpoints.suggestions import tokenizer_named
        from llama_convert.cli.distributed import workers_of
        from llama_convert.cli.hub import push, require_hub
        from llama_convert.cli.progress import ConsoleObserver
        from llama_convert.cli.result import show_result
        from llama_convert.conversion.convert import convert
        from llama_convert.conversion.execute import DEFAULT_WORKERS
        from llama_convert.conversion.options import ConvertOptions, parse_format
        from llama_convert.errors import UsageError
        from llama_convert.units import parse_size

        source, destination = _one("SRC", source, input_dir), _one("DST", destination, output_dir)
        if source is None or destination is None:
            raise _missing(source, to)
        observer = ConsoleObserver(console, quiet=quiet)
        if not safe_serialization:
            observer.warning("--safe_serialization False: only safetensors are written")
        if push_to_hub:
            require_hub()
        if verify and model_size == "tokenizer_only":
            raise UsageError("BAD_USAGE", "--verify needs weights; tokenizer_only writes none")
        layout = parse_format(to)
        _of_the_layout(
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
        with workers_of(scheduler) as executor:
            result = convert(source, destination, options, observer, executor)
        show_result("convert", result, options, observer, verify=verify, quiet=quiet, as_json=as_json)
        if push_to_hub and isinstance(result.destination, Path) and not dry_run:
            push(result.destination, observer)


def _of_the_layout(to: str, options: dict[str, bool]) -> None:
    """Refuse options that the other layout has: they would do nothing.

    Args:
        to: the layout that is written.
        options: which of them were given.

    Raises:
        UsageError: one of them is of the other layout alone.
    """
    from llama_convert.errors import UsageError

    meta = ("--mp", "--embedding-axis", "--no-checklist")
    for option, given in options.items():
        if given and (option in meta) != (to == "meta"):
            whose, written = ("Meta's", "Hugging Face's") if option in meta else ("Hugging Face's", "Meta's")
            hint = "--to meta --mp N writes rank files, --to hf safetensors; `shard` keeps SRC's layout"
            raise UsageError("BAD_USAGE", f"{option} is of {whose} layout; this writes {written}", hint=hint)


def _one(name: str, positional: str | None, option: str | None) -> str | None:
    """The folder given either as an argument or as an option; None if neither."""
    from llama_convert.errors import UsageError

    flag = "--input-dir" if name == "SRC" else "--output-dir"
    if positional and option and positional != option:
        raise UsageError("BAD_USAGE", f"{name} is given twice: {positional} and {flag} {option}")
    return positional or option


def _missing(source: str | None, to: str) -> UsageError:
    """What to tell of a folder that was not given."""
    from llama_convert.checkpoints.suggestions import command
    from llama_convert.errors import UsageError
    from llama_convert.redaction import redact_url

    if source is None:
        hint = "llama-convert convert SRC DST; see llama-convert convert --help"
        return UsageError("BAD_USAGE", "SRC is missing", hint=hint)
    said = ("--to", to) if to != "hf" else ()
    name = Path(redact_url(source)).expanduser().resolve().name
    hint = command("convert", source, f"{name}-{to}", *said)
    return UsageError("BAD_USAGE", "DST is missing", hint=hint)
