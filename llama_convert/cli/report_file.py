"""Write the HTML report of ``--report FILE`` without replacing a file that is not such a report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llama_convert.conversion.atomic_file import write_atomically
from llama_convert.conversion.disk import output_error
from llama_convert.errors import ConflictError, UsageError
from llama_convert.extras import require

if TYPE_CHECKING:
    from llama_convert.inspection.records import Comparison, Inspection
    from llama_convert.verification.options import VerifyOptions
    from llama_convert.verification.report import VerifyReport


def check_report_file(file: Path) -> None:
    """Refuse a path that no report can be written to, before the command computes anything.

    Raises:
        UsageError: its folder does not exist, or the extra [report] is not installed.
        ConflictError: it exists, and is neither a report nor an empty file.
    """
    require("report", "--report")
    if not file.parent.is_dir():
        raise UsageError("BAD_REPORT", f"--report {file}: There is no such folder.")
    if os.path.lexists(file):
        from llama_convert.html_report import is_report

        if not is_report(file):
            raise _conflict(file)


def write_verification(report: VerifyReport, options: VerifyOptions, file: Path) -> None:
    """Write the HTML report of a verification.

    Raises:
        ConflictError: as `check_report_file`.
        OutputError: the file cannot be written.
    """
    from llama_convert.html_report import current_run, render_verification, verify_command

    run = current_run(report, verify_command(report, options), options)
    _write(file, render_verification(report, run))


def write_inspection(
    result: Inspection | Comparison,
    file: Path,
    *,
    tensors: str | None,
    stats: bool,
    config_from: Path | None = None,
) -> None:
    """Write the HTML report of an inspection or a comparison; raises as `write_verification`.

    Args:
        result: what was found.
        file: where to write.
        tensors: the value of ``--tensors``.
        stats: whether ``--stats`` was given.
        config_from: the value of ``--config-from``.
    """
    from llama_convert.html_report import (
        current_run,
        inspect_command,
        render_comparison,
        render_inspection,
    )
    from llama_convert.inspection.records import Inspection

    run = current_run(result, inspect_command(result, tensors=tensors, stats=stats, config_from=config_from))
    if isinstance(result, Inspection):
        _write(file, render_inspection(result, run))
    else:
        _write(file, render_comparison(result, run))


def _write(file: Path, content: bytes) -> None:
    from llama_convert.html_report import is_report

    try:
        write_atomically(file, content, may_replace=is_report)
    except FileExistsError:
        raise _conflict(file) from None
    except OSError as error:
        raise output_error("cannot be written", error, file) from error


def _conflict(file: Path) -> ConflictError:
    message = "Exists and is not a report of llama-convert."
    hint = "Choose another file for --report, or remove this one."
    return ConflictError("OUTPUT_EXISTS", message, file=file, hint=hint)
