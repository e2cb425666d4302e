"""Runs the levels of a verification, the cheapest first."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from llama_convert.errors import LlamaConvertError, OutputError, UsageError
from llama_convert.findings import Finding
from llama_convert.observer import Observer
from llama_convert.stores.mount import mounted
from llama_convert.verification.assumed_release import agreed
from llama_convert.verification.context import Context, Outcome, SkippedError, compute_dtype
from llama_convert.verification.inputs import Input, open_input
from llama_convert.verification.options import VerifyOptions
from llama_convert.verification.report import FileIdentity, Level, LevelReport, Status, VerifyReport


def verify(
    path: Path | str,
    source: Path | str | None = None,
    options: VerifyOptions | None = None,
    observer: Observer | None = None,
) -> VerifyReport:
    """Find any way in which a checkpoint is wrong.

    Args:
        path: a folder in Hugging Face's or in Meta's layout, or its URL.
        source: the folder it was made from, in either layout, or its URL.
        options: what to look at, and with what.
        observer: is told of progress.

    Raises:
        UsageError: an option cannot be meant so.
        InputError: one of the folders holds no checkpoint at all.
        OutputError: the machine could not read.
    """
    with ExitStack() as stack:
        here = stack.enter_context(mounted(path))
        there = stack.enter_context(mounted(source)) if source else None
        report = _verify(
            here.path, there.path if there else None, options or VerifyOptions(), observer or Observer()
        )
        report = here.display(report)
        return there.display(report) if there else report


def _verify(path: Path, source: Path | None, options: VerifyOptions, observer: Observer) -> VerifyReport:
    compute = compute_dtype(options.dtype)
    if options.device not in ("auto", "cpu"):  # to be told of now, not after an hour of the other levels
        from llama_convert.verification.streamed_model import pick_device

        pick_device(options.device)
    version, tokenizer = options.llama_version, options.tokenizer
    output = open_input(path, version, None if source else tokenizer)
    original = open_input(source, version, tokenizer) if source else None
    if original and version is None:
        output, original, notes = agreed(output, original)
        for note in notes:
            observer.note(note)
    context = Context(
        output=output,
        source=original,
        options=options,
        observer=observer,
        compute=compute,
    )
    levels = [_look(level, context) for level in Level if level in options.levels]
    return VerifyReport(
        path=context.output.folder,
        layout=context.output.layout,
        source=context.source.folder if context.source else None,
        source_layout=context.source.layout if context.source else None,
        release=next((side.release for side in reversed(context.sides) if side.release), None),
        levels=levels,
        files=_recognised(context) if Level.VALUES in options.levels else [],
        completions=_completions(context),
    )


def _look(level: Level, context: Context) -> LevelReport:
    began = time.monotonic()
    try:
        summary, findings, measures = _dispatch(level, context)
    except SkippedError as reason:
        return LevelReport(level, Status.SKIPPED, str(reason))
    except (OutputError, UsageError):
        raise
    except LlamaConvertError as error:
        summary, findings, measures = "stopped at the first thing wrong", [Finding.of(error)], {}
    failed = any(not finding.is_warning for finding in findings)
    status = Status.FAIL if failed else Status.PASS
    return LevelReport(level, status, summary, findings, time.monotonic() - began, measures)


def _dispatch(level: Level, context: Context) -> Outcome:
    """Each level's module is imported when its turn comes: only the last needs torch."""
    if level is Level.STRUCTURE:
        from llama_convert.verification.structure import check_structure

        return check_structure(context)
    if level is Level.VALUES:
        from llama_convert.verification.values import check_values

        return check_values(context)
    if level is Level.WEIGHTS:
        from llama_convert.verification.weights import check_weights

        return check_weights(context)
    if level is Level.TOKENIZER:
        from llama_convert.verification.tokenizer_check import check_tokenizer_files

        return check_tokenizer_files(context)
    from llama_convert.verification.logits import check_logits_level

    return check_logits_level(context)


def _recognised(context: Context) -> list[FileIdentity]:
    """Which of both sides' files are official by their published checksums, and which only look so."""
    if context.options.checksums is False:
        return []
    prefixes = zip(context.sides, ("", "source: "), strict=False)
    return [
        replace(identity, file=prefix + identity.file)
        for side, prefix in prefixes
        for identity in _identities(side, force=context.options.checksums is True)
    ]


def _identities(side: Input, *, force: bool) -> list[FileIdentity]:
    from llama_convert.verification.official_files import identify_file

    files = sorted(file for file in side.folder.iterdir() if file.is_file())
    if side.tokenizer and not side.tokenizer.parent.samefile(side.folder):
        files.append(side.tokenizer)
    identities = [identify_file(file, force=force) for file in files]
    # Settings are a few hundred bytes, whose number tells nothing but beside weights of an official size.
    large = any(i.verdict != "unknown" and _is_weighty(i) for i in identities)
    return [
        i
        for i in identities
        if force or i.verdict == "official" or (i.verdict != "unknown" and (large or _is_weighty(i)))
    ]


def _is_weighty(identity: FileIdentity) -> bool:
    return identity.size > 1 << 20 or identity.file.endswith(".model")


def _completions(context: Context) -> dict[str, str]:
    if context.options.prompt is None:
        return {}
    from llama_convert.verification.logits import completions

    return completions(context)
