"""HTML reports of `verify` and `inspect`: one file each, without scripts and without network access.

A report is built in two steps.  ``*_page`` turns a result into a `Page`: titles, tables, findings and figures
as plain data.  `render` puts a `Page` into the template, which escapes every string.
"""

from llama_convert.html_report.comparison_page import comparison_page
from llama_convert.html_report.inspection_page import inspection_page
from llama_convert.html_report.rendering import is_report, render
from llama_convert.html_report.run_info import RunInfo, current_run, inspect_command, verify_command
from llama_convert.html_report.verification_page import verification_page
from llama_convert.inspection.records import Comparison, Inspection
from llama_convert.verification.report import VerifyReport

__all__ = [
    "RunInfo",
    "current_run",
    "inspect_command",
    "is_report",
    "render_comparison",
    "render_inspection",
    "render_verification",
    "verify_command",
]


def render_verification(report: VerifyReport, run: RunInfo | None = None) -> bytes:
    """The HTML report of a verification, in UTF-8.

    Args:
        report: the result of `verify`.
        run: how it was computed; without it the page has no "Reproduce" section.
    """
    return render(verification_page(report, run))


def render_inspection(result: Inspection, run: RunInfo | None = None) -> bytes:
    """The HTML report of `inspect` on one checkpoint; arguments as `render_verification`."""
    return render(inspection_page(result, run))


def render_comparison(result: Comparison, run: RunInfo | None = None) -> bytes:
    """The HTML report of `inspect` on two checkpoints; arguments as `render_verification`."""
    return render(comparison_page(result, run))
