"""``llama-convert shard``."""

from __future__ import annotations

from pathlib import Path

from llama_convert.cli import options as cli


def shard_command(
    source: cli.AnySource = None,
    destination: cli.Destination = None,
    mp: cli.NewRanks = None,
    max_shard_size: cli.NewShardSize = None,
    output: cli.Output = None,
    embedding_axis: cli.EmbeddingAxis = None,
    checklist: cli.Checklist = True,
    compare_checklist: cli.CompareChecklist = False,
    resume: cli.Resume = True,
    overwrite: cli.Overwrite = False,
    strict: cli.Strict = False,
    dry_run: cli.DryRun = False,
    verify: cli.Verify = False,
    llama_version: cli.LlamaVersion = None,
    tokenizer: cli.TokenizerPath = None,
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
    """Reshard a checkpoint: the same format, with another number of ranks or another file size.

    Tokenizer, settings and license are copied. If there are more ranks than KV
    heads, neighboring ranks hold replicas, as in Meta's 405B with 16 ranks.

    [bold]Examples[/bold]

      llama-convert shard Llama3.1-70B Llama3.1-70B-mp4 --mp 4

      llama-convert shard llama-3.1-8b small-files --max-shard-size 2GB --verify
    """
    from llama_convert.cli.errors import handle_errors, stderr_console

    console = stderr_console()
    with handle_errors(as_json=as_json, debug=debug):
        import time

        from llama_convert.checkpoints.folders import is_huggingface
        from llama_convert.checkpoints.suggestions import command, tokenizer_named
        from llama_convert.cli.convert import only_value
        from llama_convert.cli.distributed import open_executor
        from llama_convert.cli.progress import ConsoleObserver
        from llama_convert.cli.result import show_result
        from llama_convert.conversion.convert import shard
        from llama_convert.conversion.execute import DEFAULT_WORKERS
        from llama_convert.conversion.options import ConvertOptions
        from llama_convert.errors import UsageError
        from llama_convert.redaction import redact_url
        from llama_convert.units import parse_size

        start = time.monotonic()
        destination = only_value("DST", {"DST": destination, "--output": output})
        if source is None:
            raise UsageError("BAD_USAGE", "SRC is missing.", hint=command("shard", "SRC", "DST", "--mp", "N"))
        if destination is None or (mp is None) == (max_shard_size is None):
            folder = Path(redact_url(source)).expanduser()
            name = destination or f"{folder.resolve().name}-resharded"
            options_given = ("--mp", str(mp)) if mp else ("--max-shard-size", max_shard_size or "2GB")
            if (mp is None) == (max_shard_size is None):
                options_given = ("--max-shard-size", "2GB") if is_huggingface(folder) else ("--mp", "2")
            hint = command("shard", source, name, *options_given)
            message = "Pass either --mp N or --max-shard-size SIZE." if destination else "DST is missing."
            raise UsageError("BAD_USAGE", message, hint=hint)
        observer = ConsoleObserver(console, quiet=quiet, verbose=verbose)
        options = ConvertOptions(
            embedding_axis=embedding_axis,
            checklist=checklist,
            compare_checklist=compare_checklist,
            resume=resume,
            overwrite=overwrite,
            strict=strict,
            dry_run=dry_run,
            llama_version=llama_version,
            tokenizer=tokenizer and tokenizer_named(tokenizer),
            array_task=array_task,
            finish=finish,
            fsync=fsync,
            workers=workers or DEFAULT_WORKERS,
            block_size=parse_size(block_size),
        )
        with open_executor(scheduler) as executor:
            result = shard(
                source,
                destination,
                mp=mp,
                max_shard_size=max_shard_size,
                options=options,
                observer=observer,
                executor=executor,
            )
        show_result(
            "shard", result, options, observer, start=start, verify=verify, quiet=quiet, as_json=as_json
        )
