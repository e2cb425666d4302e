"""Runs the checks of a verification, the cheapest first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from llama_convert.errors import LlamaConvertError, OutputError, UsageError
from llama_convert.extras import EXTRAS, install_command, missing_packages, require
from llama_convert.findings import Finding, at_most
from llama_convert.observer import Observer
from llama_convert.stores.location import Location
from llama_convert.stores.mount import mounted
from llama_convert.verification.context import Context, SkippedError, compute_dtype
from llama_convert.verification.explanations import explained
from llama_convert.verification.inputs import open_input, with_agreed_release
from llama_convert.verification.options import VerifyOptions
from llama_convert.verification.report import Check, CheckReport, Outcome, Status, VerifyReport

T = TypeVar("T")

_PACKAGES = {
    Check.TOKENIZER: ("jinja2", "sentencepiece", "tiktoken", "tokenizers"),
    Check.LOGITS: tuple(EXTRAS["verify"]),
}
"""Packages that a check needs, of the extra [verify]."""


def verify(
    path: Path | str,
    source: Path | str | None = None,
    options: VerifyOptions | None = None,
    observer: Observer | None = None,
) -> VerifyReport:
    """Check a checkpoint; arguments, result and errors are those of `llama_convert.verify`."""
    with ExitStack() as stack:
        options, observer = options or VerifyOptions(), observer or Observer()
        _require_extra(options)
        with observer.phase("Reading headers"):
            locations = [stack.enter_context(mounted(each)) for each in (path, source) if each]
            context = _open(locations[0].path, locations[1].path if source else None, options, observer)
        return _verify(context, locations)


def _open(path: Path, source_path: Path | None, options: VerifyOptions, observer: Observer) -> Context:
    compute = compute_dtype(options.dtype)
    if options.device not in ("auto", "cpu"):  # refused now, not after the other checks have run for an hour
        from llama_convert.verification.streamed_model import pick_device

        pick_device(options.device)
    version, of_source = options.llama_version, (options.tokenizer, options.config_from)
    output = open_input(path, version, *(() if source_path else of_source))
    source = open_input(source_path, version, *of_source) if source_path else None
    if source and version is None:
        output, source, notes = with_agreed_release(output, source)
        for note in notes:
            observer.note(note)
    return Context(output=output, source=source, options=options, observer=observer, compute=compute)


def _require_extra(options: VerifyOptions) -> None:
    """Refuse checks and options that were given by name but need packages that are not installed.

    Raises:
        UsageError: ``EXTRA_MISSING``.
    """
    for check in options.checks or ():
        require("verify", f"The {check.value} check", _PACKAGES.get(check, ()))
    for flag in options.of_forward_passes:
        require("verify", flag)


def _verify(context: Context, locations: Sequence[Location]) -> VerifyReport:
    """Run the checks; reports name the URLs of remote checkpoints, not the folders they are mounted to."""

    def displayed(value: T) -> T:
        for location in locations:
            value = location.display(value)
        return value

    source, options, observer = context.source, context.options, context.observer
    detected = next((each.detected for each in reversed(context.inputs) if each.detected), None)
    report = VerifyReport(
        path=context.output.folder,
        format=context.output.format,
        source=source.folder if source else None,
        source_format=source.format if source else None,
        release=detected.title if detected else None,
        detected=detected,
        checks=[],
    )
    observer.verification_started(displayed(report))
    for check in options.selected:
        observer.check_started(check)
        report.checks = explained([*report.checks, _run(check, context)])
        observer.check_finished(displayed(report.checks[-1]))
    if Check.VALUES in options.selected and options.checksums is not False:
        from llama_convert.verification.official_files import identify_files

        report.files = identify_files(context)
    if options.prompt is not None:
        from llama_convert.verification.completions import completions

        report.completions = completions(context, options.prompt)
    report.checks = [_shortened(each) for each in report.checks]
    return displayed(report)


def _run(check: Check, context: Context) -> CheckReport:
    start = time.monotonic()
    try:
        outcome = _outcome_of(check, context)
    except SkippedError as reason:
        return CheckReport(check, Status.SKIPPED, str(reason), hint=reason.hint)
    except (OutputError, UsageError):
        raise
    except LlamaConvertError as error:
        outcome = Outcome("Ended at the first error", [Finding.of(error)])
    failed = any(not finding.is_warning for finding in outcome.findings)
    status = Status.FAIL if failed else Status.PASS
    return CheckReport(check, status, seconds=time.monotonic() - start, **vars(outcome))


def _outcome_of(check: Check, context: Context) -> Outcome:
    """The outcome of a check, whose module is imported only now: it may need packages of an extra.

    Raises:
        SkippedError: one of them is not installed.
    """
    if missing := missing_packages("verify", _PACKAGES.get(check, ())):
        hint = f"Run: {install_command('verify')}"
        raise SkippedError(f"Needs the extra [verify] (missing: {', '.join(missing)})", hint)
    if check is Check.STRUCTURE:
        from llama_convert.verification.structure import check_structure

        return check_structure(context)
    if check is Check.VALUES:
        from llama_convert.verification.values import check_values

        return check_values(context)
    if check is Check.WEIGHTS:
        from llama_convert.verification.weights import check_weights

        return check_weights(context)
    if check is Check.TOKENIZER:
        from llama_convert.verification.tokenizer.check import check_tokenizer_files

        return check_tokenizer_files(context)
    from llama_convert.verification.logits import check_logits

    return check_logits(context)


def _shortened(report: CheckReport) -> CheckReport:
    """The report with the first findings of each kind, its errors counted before."""
    n_errors = sum(finding.explained_by is None for finding in report.errors)
    return replace(report, findings=at_most(report.findings), n_errors=n_errors)
