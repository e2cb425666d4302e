"""Prints what a conversion did, and verifies it if ``--verify`` was given."""

from __future__ import annotations

import shlex
import time

import typer

from llama_convert.cli.errors import print_json, stderr_console
from llama_convert.cli.progress import format_seconds
from llama_convert.cli.terminal import page, print_message
from llama_convert.cli.verify_report import VerifyDisplay, print_results
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
    start: float,
    verify: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print a result, after verifying it if ``verify``.

    Args:
        command: ``convert`` or ``shard``.
        result: what was done.
        options: what was asked for.
        observer: receives the summary.
        start: `time.monotonic` when the command began.
        verify: verify the output against its source.
        quiet: print only what is wrong.
        as_json: print JSON on stdout.

    Raises:
        typer.Exit: with code 1, the verification failed.
    """
    seconds = time.monotonic() - start
    report = None
    if options.dry_run:
        if not as_json:
            for name, size in result.files.items():
                page().print(f"{size:>15,}  {name}", soft_wrap=True)
    elif verify and result.finalized:
        from llama_convert.conversion.verification_record import record_verification
        from llama_convert.verification.options import VerifyOptions
        from llama_convert.verification.verify import verify as run_verify

        asked = VerifyOptions(
            llama_version=options.llama_version,
            tokenizer=options.tokenizer,
            config_from=options.config_from,
        )
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
        if not result.is_up_to_date:  # the conversion reports that itself
            observer.note(_summary(result, options, seconds))
        if result.finalized and not (verify or options.model_size):
            words = ["llama-convert", "verify", str(result.destination), "--source", str(result.source)]
            words += ["--config-from", str(options.config_from)] if options.config_from else []
            words += ["--tokenizer", str(options.tokenizer)] if options.tokenizer else []
            words += ["--llama-version", options.llama_version] if options.llama_version else []
            print_message(stderr_console(), f"Verify it with: {shlex.join(words)}", one_line=True)


def _summary(result: ConvertResult, options: ConvertOptions, seconds: float) -> str:
    """One line: files, bytes, time, warnings and path."""
    n_files, n_warnings = len(result.files), len(result.warnings)
    files = f"{n_files} file{'s' * (n_files != 1)}"
    size = format_size(sum(result.files.values()))
    warnings = f", with {n_warnings} warning{'s' * (n_warnings != 1)}" if n_warnings else ""
    if options.dry_run:
        return f"Dry run: would write {files}, about {size}{warnings}: {result.destination}"
    if not result.finalized:
        return (
            f"Wrote {files}, {size}, in {format_seconds(seconds)}{warnings}. The output is not complete yet."
        )
    return f"Wrote {files}, {size}, in {format_seconds(seconds)}{warnings}: {result.destination}"
