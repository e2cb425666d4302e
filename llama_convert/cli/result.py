"""What a conversion did, for people or for programs; and, if asked, whether it is right."""

from __future__ import annotations

from pathlib import Path

import typer

from llama_convert.cli.outcome import print_json
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.observer import Observer


def show_result(
    command: str,
    source: str,
    result: ConvertResult,
    options: ConvertOptions,
    observer: Observer,
    *,
    verify: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print the result, having verified it if that was asked.

    Raises:
        typer.Exit: with code 1, the verification found something wrong.
    """
    envelope = {"ok": True, "command": command, "dry_run": options.dry_run, **result.to_json()}
    if options.dry_run:
        if not as_json:
            for name, size in result.files.items():
                typer.echo(f"{size:>15,}  {name}")
    elif verify and result.published:
        from llama_convert.checkpoints.locate import locate
        from llama_convert.checkpoints.open import is_huggingface
        from llama_convert.cli.report import print_report
        from llama_convert.stores.filesystem import is_url
        from llama_convert.verification.options import VerifyOptions
        from llama_convert.verification.run import verify as run_verify

        original: Path | str = source
        if not is_url(source) and not is_huggingface(Path(source).expanduser()):
            original = locate(Path(source).expanduser(), options.model_size).path
        asked = VerifyOptions(llama_version=options.llama_version, tokenizer=options.tokenizer)
        report = run_verify(result.destination, original, asked, observer)
        envelope |= {"ok": report.ok, "exit_code": 0 if report.ok else 1, "verify": report.to_json()}
        if not as_json:
            print_report(report, quiet=quiet)
    if as_json:
        print_json(envelope)
    if not envelope["ok"]:
        raise typer.Exit(1)
    if not (quiet or as_json or options.dry_run):
        observer.note(f"done: {result.destination}" if result.published else "done, and not published yet")
