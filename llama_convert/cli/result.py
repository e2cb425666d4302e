"""What a conversion did, for people or for programs; and, if asked, whether it is right."""

from __future__ import annotations

import shlex

import typer

from llama_convert.cli.errors import print_json, stderr_console
from llama_convert.cli.verify_report import VerifyDisplay, page, print_results
from llama_convert.conversion.options import ConvertOptions, ConvertResult
from llama_convert.json_output import conversion, envelope
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
    report = None
    if options.dry_run:
        if not as_json:
            for name, size in result.files.items():
                page().print(f"{size:>15,}  {name}", soft_wrap=True)
    elif verify and result.finalized:
        from llama_convert.conversion.verification_record import record_verification
        from llama_convert.verification.options import VerifyOptions
        from llama_convert.verification.verify import verify as run_verify

        asked = VerifyOptions(llama_version=options.llama_version, tokenizer=options.tokenizer)
        with VerifyDisplay(stderr_console(), quiet=quiet or as_json) as display:
            report = run_verify(result.destination, result.source, asked, display)
        result.files |= record_verification(result.destination, report.abstract)
        if not as_json:
            print_results(report, quiet=quiet)
    exit_code = int(report is not None and not report.ok)
    if as_json:
        content = conversion(result, dry_run=options.dry_run, report=report)
        print_json(envelope(command, exit_code, content))
    if exit_code:
        raise typer.Exit(exit_code)
    if not (quiet or as_json):
        observer.note(_summary(result, options))
        if result.finalized and not (verify or options.model_size):
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
    return f"done{warned}" + (f": {result.destination}" if result.finalized else ", and not published yet")
