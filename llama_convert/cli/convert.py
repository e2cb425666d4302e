"""``llama-convert convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

_FILES, _RELEASE, _CHAT = "Output", "What the files are (told from the files when left out)", "Tokenizer and chat"
_COMPATIBLE = "Of the Hugging Face script"


def convert_command(
    source: Annotated[Optional[Path], typer.Argument(metavar="SRC", show_default=False, help="Meta's folder: params.json, consolidated.NN.pth.")] = None,
    destination: Annotated[Optional[Path], typer.Argument(metavar="DST", show_default=False, help="The folder to make.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (the source's own), bf16, fp16 or fp32.", rich_help_panel=_FILES)] = "auto",
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Bytes of tensors in one file at most, as 5GB or 500MB.", rich_help_panel=_FILES)] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that DST holds.", rich_help_panel=_FILES)] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Publish nothing if there was a warning (exit code 1).", rich_help_panel=_FILES)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.", rich_help_panel=_FILES)] = False,
    llama_version: Annotated[Optional[str], typer.Option(metavar="VERSION", show_default=False, help="1, 2, code, 3, 3.1, 3.2, 3.3, Guard-1, Guard-2 or Guard-3: chooses where the files allow several.", rich_help_panel=_RELEASE)] = None,
    instruct: Annotated[Optional[bool], typer.Option("--instruct/--no-instruct", show_default=False, help="A chat model or a base model; names that say Instruct or chat are taken as a hint.", rich_help_panel=_RELEASE)] = None,
    tokenizer: Annotated[Optional[Path], typer.Option(metavar="PATH", show_default=False, help="tokenizer.model, where it is not in SRC or one folder up.", rich_help_panel=_CHAT)] = None,
    chat_template: Annotated[Optional[Path], typer.Option(metavar="FILE", show_default=False, help="A Jinja chat template to store instead of ours.", rich_help_panel=_CHAT)] = None,
    special_tokens: Annotated[Optional[list[str]], typer.Option(metavar="NAMES", show_default=False, help="Names of Llama 3's special tokens from the first on, separated by commas.", rich_help_panel=_CHAT)] = None,
    input_dir: Annotated[Optional[Path], typer.Option(metavar="SRC", show_default=False, help="The same as SRC.", rich_help_panel=_COMPATIBLE)] = None,
    output_dir: Annotated[Optional[Path], typer.Option(metavar="DST", show_default=False, help="The same as DST.", rich_help_panel=_COMPATIBLE)] = None,
    model_size: Annotated[Optional[str], typer.Option(metavar="SIZE", show_default=False, help="Compared with the files; picks SRC/SIZE where SRC holds several; tokenizer_only converts just the tokenizer.", rich_help_panel=_COMPATIBLE)] = None,
    num_shards: Annotated[Optional[int], typer.Option(metavar="N", show_default=False, help="Compared with the number of rank files.", rich_help_panel=_COMPATIBLE)] = None,
    safe_serialization: Annotated[bool, typer.Option(help="Always so: only safetensors are written.", rich_help_panel=_COMPATIBLE)] = True,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Upload DST as a private repository of its name (extra [hub]).", rich_help_panel=_COMPATIBLE)] = False,
    workers: Annotated[Optional[int], typer.Option(min=1, max=256, show_default=False, help="Tensors in hand at a time.", rich_help_panel="Running")] = None,
    block_size: Annotated[str, typer.Option(metavar="SIZE", help="Bytes read at a time by each worker.", rich_help_panel="Running")] = "1MiB",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only warnings and errors.", rich_help_panel="Running")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel="Running")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel="Running")] = False,
) -> None:  # fmt: skip
    """Convert a Meta checkpoint to Hugging Face safetensors, config and tokenizer.

    [bold]Examples[/bold]

      llama-convert convert ~/.llama/checkpoints/Llama3.1-8B-Instruct llama-3.1-8b-instruct

      llama-convert convert Llama-2-70b llama-2-70b-fp16 --dtype fp16 --strict

      llama-convert --input_dir LLaMA --output_dir llama-7b --model_size 7B
    """
    from llama_convert.cli.outcome import outcome, print_json, talk

    console = talk()
    with outcome(as_json=as_json, debug=debug):
        from llama_convert.cli.hub import push, require_hub
        from llama_convert.cli.progress import ConsoleObserver
        from llama_convert.convert.execute import DEFAULT_WORKERS
        from llama_convert.convert.to_huggingface import ConvertOptions, convert
        from llama_convert.units import parse_size

        source, destination = _one("SRC", source, input_dir), _one("DST", destination, output_dir)
        observer = ConsoleObserver(console, quiet=quiet)
        if not safe_serialization:
            observer.warning("--safe_serialization False: only safetensors are written")
        if push_to_hub:
            require_hub()
        options = ConvertOptions(
            dtype=dtype,
            max_shard_size=max_shard_size,
            llama_version=llama_version,
            model_size=model_size,
            num_shards=num_shards,
            instruct=instruct,
            tokenizer=tokenizer,
            chat_template=chat_template,
            special_tokens=tuple(name for names in special_tokens or [] for name in names.split(",") if name),
            overwrite=overwrite,
            strict=strict,
            dry_run=dry_run,
            workers=workers or DEFAULT_WORKERS,
            block_size=parse_size(block_size),
        )
        result = convert(source.expanduser(), destination.expanduser(), options, observer)
        if push_to_hub and not dry_run:
            push(result.destination, observer)
        if as_json:
            print_json({"ok": True, "command": "convert", "dry_run": dry_run, **result.to_json()})
        elif dry_run:
            for name, size in result.files.items():
                typer.echo(f"{size:>15,}  {name}")
        elif not quiet:
            observer.note(f"done: {result.destination}")


def _one(name: str, positional: Path | None, option: Path | None) -> Path:
    """The folder given either as an argument or as an option."""
    from llama_convert.errors import UsageError

    flag = "--input-dir" if name == "SRC" else "--output-dir"
    if positional and option and positional != option:
        raise UsageError("BAD_USAGE", f"{name} is given twice: {positional} and {flag} {option}")
    chosen = positional or option
    if chosen is None:
        raise UsageError(
            "BAD_USAGE", f"{name} is missing", hint="llama-convert convert SRC DST; see llama-convert convert --help"
        )
    return chosen
