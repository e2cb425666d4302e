"""``llama-convert shard``."""

from __future__ import annotations

from pathlib import Path

from llama_convert.cli import options as cli


def shard_command(
    source: cli.AnySource = None,
    destination: cli.Destination = None,
    mp: cli.Ranks = None,
    max_shard_size: cli.NewShardSize = None,
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
    as_json: cli.AsJson = False,
    debug: cli.Debug = False,
) -> None:
    """Cut a checkpoint anew in the layout it has: Meta's into other ranks, Hugging Face's into other files.

    Tokenizer, settings and licence are carried over.  Where ranks outnumber KV
    heads, neighbouring ranks hold copies, as in Meta's 405B in 16 ranks.

    [bold]Examples[/bold]

      llama-convert shard Llama3.1-70B Llama3.1-70B-mp4 --mp 4

      llama-convert shard llama-3.1-8b small-files --max-shard-size 2GB --verify
    """
    from llama_convert.cli.errors import outcome, stderr_console

    console = stderr_console()
    with outcome(as_json=as_json, debug=debug):
        from llama_convert.checkpoints.folders import is_huggingface
        from llama_convert.checkpoints.suggestions import command, tokenizer_named
        from llama_convert.cli.distributed import workers_of
        from llama_convert.cli.progress import ConsoleObserver
        from llama_convert.cli.result import show_result
        from llama_convert.conversion.convert import shard
        from llama_convert.conversion.execute import DEFAULT_WORKERS
        from llama_convert.conversion.options import ConvertOptions
        from llama_convert.errors import UsageError
        from llama_convert.units import parse_size

        if source is None:
            hint = "llama-convert shard SRC DST --mp N; see llama-convert shard --help"
            raise UsageError("BAD_USAGE", "SRC is missing", hint=hint)
        if destination is None or (mp is None) == (max_shard_size is None):
            here = Path(source).expanduser()
            wanted = ("--max-shard-size", "2GB") if is_huggingface(here) else ("--mp", "2")
            hint = command("shard", source, destination or f"{here.resolve().name}-cut", *wanted)
            message = "give either --mp N or --max-shard-size SIZE" if destination else "DST is missing"
            raise UsageError("BAD_USAGE", message, hint=hint)
        observer = ConsoleObserver(console, quiet=quiet)
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
        with workers_of(scheduler) as executor:
            result = shard(
                source,
                destination,
                mp=mp,
                max_shard_size=max_shard_size,
                options=options,
                observer=observer,
                executor=executor,
            )
        show_result("shard", result, options, observer, verify=verify, quiet=quiet, as_json=as_json)
