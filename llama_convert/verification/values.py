"""The *values* level: what the bytes themselves tell, without anything to compare them with.

Checksums that files carry (a manifest, ``checklist.chk``, the CRC-32s in a zip), copies that ranks hold, and
numbers that no trained model has.
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
from llama_convert.checkpoints.manifest import MANIFEST, file_matches, promised_files, read_manifest
from llama_convert.checkpoints.manifest_check import STALE, agreement
from llama_convert.checkpoints.meta import MetaCheckpoint
from llama_convert.checkpoints.row_reader import as_float32, row_blocks, rows_of
from llama_convert.checkpoints.source_files import SourceFiles
from llama_convert.checkpoints.stored_weight import StoredWeight, matrix_shape
from llama_convert.checkpoints.value_scan import ValueScan, magnitudes
from llama_convert.dtypes import FLOAT16
from llama_convert.errors import LlamaConvertError
from llama_convert.findings import Finding, at_most
from llama_convert.llama.weights import EMBEDDING, HEAD, LLAMA, Weight
from llama_convert.verification.context import Context, Outcome
from llama_convert.worker_threads import interruptible_threads

BLOCK_SIZE = 4 << 20
WORKERS = 2
_SAMPLED_ROWS = 16
"""Rows of each block that count towards the root mean square."""
_REMOVE = f"Remove {MANIFEST}, README.md and NOTICE: they describe other weights."
_OTHER_FILES = f"Weights were added, removed or renamed after {MANIFEST} was written."
_FAR = 16.0
"""A root mean square so many times its neighbours' is worth a look; trained layers stay within about 5."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a weight tells."""

    weight: Weight
    stored: StoredWeight
    digest: str
    """XXH3-128 of its bytes."""
    oddities: ValueScan
    zero_rows: int
    rms: float
    """Root mean square of a sample of rows."""


def check_values(context: Context) -> Outcome:
    """One pass over the output's weights, and the checksums its files carry."""
    output, _ = context.opened()
    checked = ["NaN, infinities, dead rows"]
    total = sum(stored.nbytes for stored in output.weights.values())
    with context.progress(total, "Reading"), SourceFiles() as files:
        scans, findings = scan_all(output.weights, files, context.observer.advance)
        if not findings:
            files.check_the_rest(BLOCK_SIZE)
        rounded = dict(files.rounded)
    findings += implausible(scans)
    if isinstance(output, MetaCheckpoint):
        checked += ["CRC-32s, copies on all ranks alike"]
        findings += [
            Finding(
                "RANKS_REPLICAS", "copies on the ranks differ by rounding", file, name, severity="warning"
            )
            for name, file in rounded.items()
        ]
    wrong, there = check_manifest(context.output.folder, scans)
    is_stale = any(finding.code == "MANIFEST_STALE" for finding in wrong)
    findings += wrong
    if isinstance(output, MetaCheckpoint) and not is_stale:  # its checklist.chk was copied along
        wrong, agreeing = check_checklist(output.folder.path)
        findings += wrong
        checked += [f"{agreeing} MD5s of checklist.chk"] if agreeing or wrong else ["no checklist.chk"]
    checked += ["the manifest's digests"] if there else ["no manifest"]
    return "; ".join(checked), at_most(findings), {"norms": norms(scans)}


def scan_all(
    weights: dict[Weight, StoredWeight], files: SourceFiles, progress: Callable[[int], None]
) -> tuple[list[Scan], list[Finding]]:
    """A pass over every weight, several at a time; what cannot be read whole is found wrong."""
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
    oddities, zero_rows = ValueScan(), 0
    squares, sampled = 0.0, 0
    for start, stop in row_blocks(stored, BLOCK_SIZE):
        if stopped.is_set():
            break
        block = rows_of(files, stored, start, stop)
        digest.update(block.data)
        oddities = oddities.and_of(block, stored.dtype, start)
        maybe_zero = np.flatnonzero(magnitudes(block[:, : stored.dtype.itemsize].copy(), stored.dtype) == 0)
        zero_rows += int((~magnitudes(block[maybe_zero], stored.dtype).any(axis=1)).sum())
        step = max(1, len(block) // _SAMPLED_ROWS)
        sample = as_float32(np.ascontiguousarray(block[::step]), stored.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            squares += float(np.square(sample, dtype=np.float64).sum())
        sampled += sample.size
        progress(block.nbytes)
    rms = (squares / max(sampled, 1)) ** 0.5
    return Scan(weight, stored, digest.hexdigest(), oddities, zero_rows, rms)


def implausible(scans: Sequence[Scan]) -> list[Finding]:
    """Numbers that no trained model has."""
    findings = []
    for scan in scans:
        stored, (rows, _) = scan.stored, matrix_shape(scan.stored.shape)
        file = stored.file_of(0, 0).name
        if scan.oddities.first:
            row, column = scan.oddities.first
            file = stored.file_of(row, column).name
            place = f"[{column}]" if len(stored.shape) < 2 else f"[{row}, {column}]"
            overflow = "values beyond 65504 overflowed: use --dtype bf16" if stored.dtype == FLOAT16 else None
            message = f"{scan.oddities.nonfinite} values are NaN or infinite, the first at {place}"
            findings.append(Finding("VALUES_NONFINITE", message, file, stored.name, hint=overflow))
        elif scan.oddities.is_zero:
            message = "holds nothing but zeros"
            findings.append(
                Finding("VALUES_ZERO", message, file, stored.name, hint="a placeholder, or never written?")
            )
        elif scan.zero_rows and scan.weight.kind not in (EMBEDDING, HEAD):  # words never used may be zero
            message = f"{scan.zero_rows} of {rows} rows are zero"
            findings.append(Finding("VALUES_DEAD_ROWS", message, file, stored.name, severity="warning"))
    return findings + _far_from_neighbours(scans)


def _far_from_neighbours(scans: Sequence[Scan]) -> list[Finding]:
    by_kind = defaultdict(list)
    for scan in scans:
        if scan.weight.layer is not None:
            by_kind[scan.weight.kind].append(scan)
    findings = []
    for of_kind in by_kind.values():
        for place, scan in enumerate(of_kind):
            around = [other.rms for other in of_kind[max(0, place - 2) : place + 3] if other is not scan]
            usual = median(around) if len(around) > 1 else 0.0
            if usual > 0 and not usual / _FAR <= scan.rms <= usual * _FAR:
                findings.append(
                    Finding(
                        "VALUES_SCALE",
                        f"its root mean square is {scan.rms:.3g}, that of the layers around it {usual:.3g}",
                        scan.stored.file_of(0, 0).name,
                        scan.stored.name,
                        severity="warning",
                    )
                )
    return findings


def check_manifest(folder: Path, scans: Sequence[Scan]) -> tuple[list[Finding], bool]:
    """Whether files and tensors are what ``llama-convert.json`` says was written, if there is one."""
    try:
        manifest = read_manifest(folder)
    except LlamaConvertError as error:
        return [Finding.of(error)], True
    if manifest is None:
        return [], False
    found = {scan.stored.name: scan.digest for scan in scans}
    if found and agreement(folder, manifest, found).is_stale:
        return [Finding("MANIFEST_STALE", STALE, MANIFEST, hint=_REMOVE)], True
    said: dict[str, str] = manifest["tensors"]
    findings = [
        Finding(
            "MANIFEST_DIFFERS",
            f"Checksum does not match {MANIFEST}.",
            scan.stored.file_of(0, 0).name,
            scan.stored.name,
            expected=said[scan.stored.name],
            found=scan.digest,
            hint=f"Damaged, or trained or replaced after the conversion. If that was intended: {_REMOVE}",
        )
        for scan in scans
        if said.get(scan.stored.name, scan.digest) != scan.digest
    ]
    known = set(said.values())  # a tied LM head has the bytes of the embedding, which alone is listed
    extra = {name for name, digest in found.items() if name not in said and digest not in known}
    for name in sorted(set(said) - set(found) | extra) if said else []:
        message = "Listed, but in no file." if name in said else "Not listed, but in a file."
        findings.append(Finding("MANIFEST_DIFFERS", message, MANIFEST, name, hint=_OTHER_FILES))
    for name, entry in promised_files(manifest).items():
        findings += _check_file(folder / name, entry)
    return findings, True


def _check_file(file: Path, said: dict[str, Any]) -> list[Finding]:
    try:
        if file.is_file() and file_matches(file, said):
            return []
    except LlamaConvertError as error:
        return [Finding.of(error)]
    if not file.exists():
        return [Finding("MANIFEST_DIFFERS", f"Listed in {MANIFEST}, but missing.", file.name)]
    message = f"Checksum does not match {MANIFEST}."
    hint = "Changed after the conversion: restore the file, or convert again."
    return [Finding("MANIFEST_DIFFERS", message, file.name, hint=hint)]


def check_checklist(folder: Path) -> tuple[list[Finding], int]:
    """The MD5 of every file that ``checklist.chk`` names; how many agree."""
    try:
        checklist = read_checklist(folder)
        digests = md5_of_all(list(checklist.said), workers=WORKERS) if checklist else []
    except LlamaConvertError as error:
        return [Finding.of(error)], 0
    if checklist is None:
        return [], 0
    findings = [
        Finding("INPUT_CHECKLIST", line, CHECKLIST, severity="warning") for line in checklist.malformed
    ]
    for name in checklist.absent:
        findings.append(Finding("INPUT_CHECKLIST", "the checklist names it, and it is not here", name))
    agreeing = 0
    for (file, said), digest in zip(checklist.said.items(), digests, strict=True):
        agreeing += digest == said
        if digest != said:
            other = checklist.named(digest)
            findings.append(
                Finding(
                    "INPUT_CHECKLIST",
                    "its MD5 is " + (f"that of {other}" if other else "not the one in checklist.chk"),
                    file.name,
                    expected=said,
                    found=digest,
                    hint="damaged: download it again; or the list is wrong, as some of Meta's first were",
                )
            )
    return findings, agreeing


def norms(scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """The root mean square of each weight, in the order of the model."""
    order = {kind: place for place, kind in enumerate(LLAMA)}
    ordered = sorted(scans, key=lambda scan: (order[scan.weight.kind], scan.weight.layer or 0))
    return [{"tensor": scan.stored.name, "rms": scan.rms} for scan in ordered]
