"""The *values* check: checksums, copies on the ranks, and values that no trained model has.

Needs no source.  The checksums are those of the manifest, of ``checklist.chk``, and the CRC-32s in a zip
file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import numpy as np
import xxhash

from llama_convert.checkpoints.checklist import CHECKLIST, md5_of_all, read_checklist
from llama_convert.checkpoints.manifest import MANIFEST, file_matches, read_manifest, recorded_files
from llama_convert.checkpoints.manifest_check import STALE, match_manifest
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.row_reader import as_float32, row_blocks, rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.checkpoints.value_scan import ValueScan, abs_bits
from llama_convert.dtypes import FLOAT16
from llama_convert.errors import LlamaConvertError
from llama_convert.findings import Finding
from llama_convert.llama.weights import EMBEDDING, HEAD, LLAMA, Weight
from llama_convert.verification.context import Context
from llama_convert.verification.report import Outcome
from llama_convert.worker_threads import interruptible_threads

BLOCK_SIZE = 4 << 20
WORKERS = 2
_SAMPLED_ROWS = 16
"""Rows of each block from which the root mean square is computed."""
_REMOVE = f"Remove {MANIFEST}, README.md and NOTICE: they describe other weights."
_OTHER_FILES = f"Weights were added, removed or renamed after {MANIFEST} was written."
_CHECKSUM_CODES = ("MANIFEST_DIFFERS", "INPUT_CHECKLIST")
_MAX_SCALE = 16.0
"""Max ratio of a root mean square to that of nearby layers.  In trained models it is at most about 5."""


@dataclass(frozen=True)
class Scan:
    """The result of one pass over a weight."""

    weight: Weight
    stored: StoredWeight
    digest: str
    """XXH3-128 of its bytes."""
    values: ValueScan
    zero_rows: int
    rms: float
    """Root mean square of a sample of rows."""


def check_values(context: Context) -> Outcome:
    """Read all weights of the output once, and verify the checksums that its files contain."""
    output, _ = context.opened()
    checked = ["NaN, infinities, zero rows, scale"]
    total = sum(stored.nbytes for stored in output.weights.values())
    with context.progress(total, "Reading"), SourceFiles() as files:
        scans, findings = scan_all(output.weights, files, context.observer.advance)
        if not findings:
            files.check_partly_read(BLOCK_SIZE)
        rounded = dict(files.rounded)
    findings += implausible(scans)
    if isinstance(output, MetaCheckpoint):
        checked += ["CRC-32 of every storage", "replicas on all ranks"]
        message = "Replicas on the ranks differ by rounding."
        findings += [
            Finding("RANKS_REPLICAS", message, file, name, severity="warning")
            for name, file in rounded.items()
        ]
    from_manifest, has_manifest = check_manifest(context.output.folder, scans)
    is_stale = any(finding.code == "MANIFEST_STALE" for finding in from_manifest)
    findings += from_manifest
    checksums = ["manifest"] if has_manifest else []
    if (
        isinstance(output, MetaCheckpoint) and not is_stale
    ):  # a stale manifest came with a copied checklist.chk
        from_checklist, matching = check_checklist(output.folder.path, context)
        findings += from_checklist
        if matching or from_checklist:
            checksums += [f"checklist.chk ({matching} files)"]
    n_mismatches = sum(each.code in _CHECKSUM_CODES and not each.is_warning for each in findings)
    if n_mismatches:
        verified = f"{n_mismatches} checksum{'s do' if n_mismatches > 1 else ' does'} not match"
    else:
        verified = f"checksums match: {', '.join(checksums)}" if checksums else "no checksums to verify"
    summary = f"{len(output.weights)} tensors read; {verified}"
    return Outcome(summary, findings, {"norms": norms(scans)}, f"Checked {', '.join(checked)}")


def scan_all(
    weights: dict[Weight, StoredWeight], files: SourceFiles, progress: Callable[[int], None]
) -> tuple[list[Scan], list[Finding]]:
    """Read every weight once, several in parallel; a weight that cannot be read is a finding."""
    scans: list[Scan] = []
    findings: list[Finding] = []

    def work(item: tuple[Weight, StoredWeight]) -> Scan | Finding:
        try:
            return _scan(*item, files, progress, stop)
        except LlamaConvertError as error:
            return Finding.of(error)

    with interruptible_threads(WORKERS) as (pool, stop):
        for result in pool.map(work, weights.items()):
            if isinstance(result, Scan):
                scans.append(result)
            else:
                findings.append(result)
    return scans, findings


def _scan(
    weight: Weight,
    stored: StoredWeight,
    files: SourceFiles,
    progress: Callable[[int], None],
    stopped: Event,
) -> Scan:
    digest = xxhash.xxh3_128()
    values, zero_rows = ValueScan(), 0
    squares, sampled = 0.0, 0
    for start, stop in row_blocks(stored, BLOCK_SIZE):
        if stopped.is_set():
            break
        block = rows_of(files, stored, start, stop)
        digest.update(block.data)
        values = values.with_block(block, stored.dtype, start)
        maybe_zero = np.flatnonzero(abs_bits(block[:, : stored.dtype.itemsize].copy(), stored.dtype) == 0)
        zero_rows += int((~abs_bits(block[maybe_zero], stored.dtype).any(axis=1)).sum())
        step = max(1, len(block) // _SAMPLED_ROWS)
        sample = as_float32(np.ascontiguousarray(block[::step]), stored.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            squares += float(np.square(sample, dtype=np.float64).sum())
        sampled += sample.size
        progress(block.nbytes)
    rms = (squares / max(sampled, 1)) ** 0.5
    return Scan(weight, stored, digest.hexdigest(), values, zero_rows, rms)


def implausible(scans: Sequence[Scan]) -> list[Finding]:
    """Findings for values that no trained model has."""
    findings = []
    for scan in scans:
        stored, (rows, _) = scan.stored, matrix_shape(scan.stored.shape)
        file = stored.file_of(0, 0).name
        if scan.values.first:
            row, column = scan.values.first
            file = stored.file_of(row, column).name
            place = f"[{column}]" if len(stored.shape) < 2 else f"[{row}, {column}]"
            overflow = "Values above 65504 overflowed. Convert with --dtype bf16."
            count = scan.values.nonfinite
            are = "values are" if count > 1 else "value is"
            message = f"{count} {are} NaN or infinite, the first at {place}."
            hint = overflow if stored.dtype == FLOAT16 else None
            findings.append(Finding("VALUES_NONFINITE", message, file, stored.name, hint=hint))
        elif scan.values.is_zero:
            hint = "The tensor is a placeholder or was never written."
            findings.append(Finding("VALUES_ZERO", "All values are zero.", file, stored.name, hint=hint))
        elif scan.zero_rows and scan.weight.kind not in (
            EMBEDDING,
            HEAD,
        ):  # rows of unused tokens may be zero
            message = f"{scan.zero_rows} of {rows} rows are zero."
            findings.append(Finding("VALUES_ZERO_ROWS", message, file, stored.name, severity="warning"))
    return findings + _out_of_scale(scans)


def _out_of_scale(scans: Sequence[Scan]) -> list[Finding]:
    """A warning for each weight whose scale differs much from that of nearby layers."""
    by_kind = defaultdict(list)
    for scan in scans:
        if scan.weight.layer is not None:
            by_kind[scan.weight.kind].append(scan)
    findings = []
    for of_kind in by_kind.values():
        for place, scan in enumerate(of_kind):
            around = [other.rms for other in of_kind[max(0, place - 2) : place + 3] if other is not scan]
            usual = median(around) if len(around) > 1 else 0.0
            if usual > 0 and not usual / _MAX_SCALE <= scan.rms <= usual * _MAX_SCALE:
                findings.append(
                    Finding(
                        "VALUES_SCALE",
                        "Root mean square is out of range of nearby layers.",
                        scan.stored.file_of(0, 0).name,
                        scan.stored.name,
                        expected=f"about {usual:.3g}",
                        found=f"{scan.rms:.3g}",
                        severity="warning",
                    )
                )
    return findings


def check_manifest(folder: Path, scans: Sequence[Scan]) -> tuple[list[Finding], bool]:
    """Compare files and tensors with the checksums in ``llama-convert.json``.

    Returns:
        Findings, and whether there is a manifest.
    """
    try:
        manifest = read_manifest(folder)
    except LlamaConvertError as error:
        return [Finding.of(error)], True
    if manifest is None:
        return [], False
    found = {scan.stored.name: scan.digest for scan in scans}
    if found and match_manifest(folder, manifest, found).is_stale:
        return [Finding("MANIFEST_STALE", STALE, MANIFEST, hint=_REMOVE)], True
    recorded: dict[str, str] = manifest["tensors"]
    findings = [
        Finding(
            "MANIFEST_DIFFERS",
            f"Checksum does not match {MANIFEST}.",
            scan.stored.file_of(0, 0).name,
            scan.stored.name,
            expected=recorded[scan.stored.name],
            found=scan.digest,
            hint=f"Damaged, or trained or replaced after the conversion. If that was intended: {_REMOVE}",
        )
        for scan in scans
        if recorded.get(scan.stored.name, scan.digest) != scan.digest
    ]
    known = set(recorded.values())  # a tied LM head has the bytes of the embedding, which alone is listed
    extra = {name for name, digest in found.items() if name not in recorded and digest not in known}
    for name in sorted(set(recorded) - set(found) | extra) if recorded else []:
        message = "Listed, but not in any file." if name in recorded else "In a file, but not listed."
        findings.append(Finding("MANIFEST_DIFFERS", message, MANIFEST, name, hint=_OTHER_FILES))
    for name, entry in recorded_files(manifest).items():
        findings += _check_file(folder / name, entry)
    return findings, True


def _check_file(file: Path, entry: dict[str, Any]) -> list[Finding]:
    try:
        if file.is_file() and file_matches(file, entry):
            return []
    except LlamaConvertError as error:
        return [Finding.of(error)]
    if not file.exists():
        return [Finding("MANIFEST_DIFFERS", f"Listed in {MANIFEST}, but missing.", file.name)]
    message = f"Checksum does not match {MANIFEST}."
    hint = "Changed after the conversion: restore the file, or convert again."
    return [Finding("MANIFEST_DIFFERS", message, file.name, hint=hint)]


def check_checklist(folder: Path, context: Context) -> tuple[list[Finding], int]:
    """Compare files with the MD5s in ``checklist.chk``.

    Returns:
        Findings, and the number of files that match.
    """
    try:
        checklist = read_checklist(folder)
        if checklist is None:
            return [], 0
        files = list(checklist.md5s)
        with context.progress(
            sum(file.stat().st_size for file in files if file.exists()), "Computing checksums"
        ):
            digests = md5_of_all(files, workers=WORKERS, progress=context.observer.advance)
    except LlamaConvertError as error:
        return [Finding.of(error)], 0
    findings = [
        Finding("INPUT_CHECKLIST", line, CHECKLIST, severity="warning") for line in checklist.malformed
    ]
    for name in checklist.missing:
        findings.append(Finding("INPUT_CHECKLIST", f"Listed in {CHECKLIST}, but missing.", name))
    matching = 0
    for (file, expected), found in zip(checklist.md5s.items(), digests, strict=True):
        matching += found == expected
        if found != expected:
            other = checklist.file_with(found)
            message = f"MD5 is that of {other}." if other else f"MD5 does not match {CHECKLIST}."
            hint = "Download the file again. Some of Meta's first checklists were wrong."
            findings.append(Finding("INPUT_CHECKLIST", message, file.name, None, expected, found, hint))
    return findings, matching


def norms(scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """The root mean square of each weight, in model order."""
    order = {kind: place for place, kind in enumerate(LLAMA)}
    ordered = sorted(scans, key=lambda scan: (order[scan.weight.kind], scan.weight.layer or 0))
    return [{"tensor": scan.stored.name, "rms": scan.rms} for scan in ordered]
