"""What a conversion did, for people or for programs; and, if asked, whether it is right."""

from __future__ import annotations

import shlex

import typer

from llama_convert.cli.errors import print_json, stderr_console
from llama_convert.cli.verify_report import page, print_report
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.observer import Observer
from llama_convert.units import format_size


def show_result(
    command: str,
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
    envelope = {
        "ok": True,
        "exit_code": 0,
        "command": command,
        "dry_run": options.dry_run,
        **result.to_json(),
    }
    if options.dry_run:
        if not as_json:
            for name, size in result.files.items():
                page().print(f"{size:>15,}  {name}", soft_wrap=True)
    elif verify and result.published:
        from llama_convert.conversion.verification_record import record_verification
        from llama_convert.verification.options import VerifyOptions
        from llama_convert.verification.verify import verify as run_verify

        asked = VerifyOptions(llama_version=options.llama_version, tokenizer=options.tokenizer)
        report = run_verify(result.destination, result.source, asked, observer)
        result.files |= record_verification(result.destination, report.abstract)
        envelope |= result.to_json() | {"ok": report.ok, "exit_code": int(not report.ok)}
        envelope["verify"] = report.to_json()
        if not as_json:
            print_report(report, quiet=quiet)
    if as_json:
        print_json(envelope)
    if not envelope["ok"]:
        raise typer.Exit(1)
    if not (quiet or as_json):
        observer.note(_summary(result, options))
        if result.published and not (verify or options.model_size):
            words = ["llama-convert", "verify", str(result.destination), "--source", str(result.source)]
            words += ["--tokenizer", str(options.tokenizer)] if options.tokenizer else []
            words += ["--llama-version", options.llama_version] if options.llama_version else []
            stderr_console().print(
                f"Verify it with: {shlex.join(words)}"
            )  # as one line, however long, so that it can be copied


def _summary(result: ConvertResult, options: ConvertOptions) -> str:
    count = len(result.warnings)
    warned = f", with {count} warning{'s' * (count > 1)}" if count else ""
    if options.dry_run:
        total = format_size(sum(result.files.values()))
        return f"Dry run{warned}: {len(result.files)} files, about {total}, would be written."
    return f"done{warned}" + (f": {result.destination}" if result.published else ", and not published yet")
