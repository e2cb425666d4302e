"""Write the HTML page of ``verify --report``, without destroying a file that is not such a page."""

from __future__ import annotations

import os
from pathlib import Path

from llama_convert.conversion.atomic_file import write_atomically
from llama_convert.conversion.disk import output_error
from llama_convert.errors import ConflictError, UsageError
from llama_convert.verification.report import VerifyReport


def check_page_file(file: Path) -> None:
    """Refuse a path that no page may be written to, before hours are spent on what it would show.

    Raises:
        UsageError: its folder does not exist.
        ConflictError: it exists, and is neither an earlier page nor an empty file.
    """
    if not file.parent.is_dir():
        raise UsageError("BAD_REPORT", f"--report {file}: there is no such folder")
    if os.path.lexists(file):
        from llama_convert.verification.html_report import is_page

        if not is_page(file):
            raise _conflict(file)


def write_page(report: VerifyReport, file: Path) -> None:
    """Write a verification as an HTML page.

    Raises:
        ConflictError: as `check_page_file`.
        OutputError: the file cannot be written.
    """
    from llama_convert.verification.html_report import is_page, render_page

    try:
        write_atomically(file, render_page(report), may_replace=is_page)
    except FileExistsError:
        raise _conflict(file) from None
    except OSError as error:
        raise output_error("cannot be written", error, file) from error


def _conflict(file: Path) -> ConflictError:
    message = "Exists and is not a report of llama-convert verify."
    hint = "Choose another file for --report, or remove this one."
    return ConflictError("OUTPUT_EXISTS", message, file=file, hint=hint)
