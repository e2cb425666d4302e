"""The *values* level: what the bytes themselves tell, without anything to compare them with.

Checksums that files carry (a manifest, ``checklist.chk``, the CRC-32s in a zip), copies that ranks hold, and
numbers that no trained model has.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import xxhash

from llama_convert.checkpoints.gather import Bytes, SourceFiles, as_float32, read_rows, row_blocks
from llama_convert.checkpoints.huggingface import HuggingFaceCheckpoint
from llama_convert.checkpoints.manifest import MANIFEST, file_matches, read_manifest
from llama_convert.checkpoints.stored import StoredWeight, matrix_shape
from llama_convert.dtypes import BFLOAT16, FLOAT16, FLOAT32
from llama_convert.errors import LlamaConvertError
from llama_convert.llama.weights import EMBEDDING, HEAD, LLAMA, Weight
from llama_convert.verification.context import Context, Outcome
from llama_convert.verification.report import Finding, at_most

BLOCK_SIZE = 4 << 20
WORKERS = 2
_SAMPLED_ROWS = 16
"""Rows of each block that count towards the root mean square."""
_FAR = 16.0
"""A root mean square so many times its neighbours' is worth a look; trained layers stay within about 5."""

_EXPONENTS = {FLOAT16: (np.uint16, 0x7FFF, 0x7C00), BFLOAT16: (np.uint16, 0x7FFF, 0x7F80),
              FLOAT32: (np.uint32, 0x7FFFFFFF, 0x7F800000)}  # fmt: skip
"""For each dtype its bits as a number, the mask that takes the sign away, and the bits of infinity."""


@dataclass(frozen=True)
class Scan:
    """What one pass over a weight tells."""

    weight: Weight
    stored: StoredWeight
    digest: str
    """XXH3-128 of its bytes."""
    nonfinite: int
    first_nonfinite: tuple[int, int] | None
    zero_rows: int
    rms: float
    """Root mean square of a sample of rows."""


def look_at_values(context: Context) -> Outcome:
    """One pass over the output's weights, and the checksums its files carry."""
    output, _ = context.opened()
    checked = ["NaN, infinities, dead rows"]
    total = sum(stored.nbytes for stored in output.weights.values())
    with context.progress(total, "read"), SourceFiles() as files:
        scans, findings = scan_all(output.weights, files, context.observer.advance)
        if not findings:
            files.check_the_rest(BLOCK_SIZE)
        rounded = dict(files.rounded)
    findings += implausible(scans)
    if isinstance(output, HuggingFaceCheckpoint):
        findings += _untied(output, scans)
        wrong, there = check_manifest(output.folder, scans)
        checked += ["the manifest's digests"] if there else ["no manifest"]
    else:
        checked += ["CRC-32s, copies on all ranks alike"]
        findings += [
            Finding("RANKS_REPLICAS", "copies on the ranks differ by rounding", file, name, warning=True)
            for name, file in rounded.items()
        ]
        wrong, agreeing = check_checklist(output.folder.path)
        checked += [f"{agreeing} MD5s of checklist.chk"] if agreeing or wrong else ["no checklist.chk"]
    return "; ".join(checked), at_most(findings + wrong), {"norms": norms(scans)}


def _untied(checkpoint: HuggingFaceCheckpoint, scans: Sequence[Scan]) -> list[Finding]:
    """A tied model's files may hold the LM head once more; then it must be the embedding."""
    digests = {scan.weight.kind: scan.digest for scan in scans}
    if not checkpoint.config.tied or HEAD not in digests or digests[HEAD] == digests.get(EMBEDDING):
        return []
    message = '"tie_word_embeddings" is true, but the files hold an LM head that is not the embedding'
    hint = "transformers would pass over the LM head; should it be false?"
    return [Finding("CONFIG_TENSORS_DISAGREE", message, "config.json", "lm_head.weight", hint=hint)]


def scan_all(
    weights: dict[Weight, StoredWeight], files: SourceFiles, progress: Callable[[int], None]
) -> tuple[list[Scan], list[Finding]]:
    """A pass over every weight, several at a time; what cannot be read whole is found wrong."""
    scans: list[Scan] = []
    findings: list[Finding] = []

    def work(item: tuple[Weight, StoredWeight]) -> Scan | Finding:
        try:
            return _scan(*item, files, progress)
        except LlamaConvertError as error:
            return Finding.of(error)

    with ThreadPoolExecutor(WORKERS) as pool:
        for result in pool.map(work, weights.items()):
            if isinstance(result, Scan):
                scans.append(result)
            else:
                findings.append(result)
    return scans, findings


def _scan(weight: Weight, stored: StoredWeight, files: SourceFiles, progress: Callable[[int], None]) -> Scan:
    digest = xxhash.xxh3_128()
    nonfinite, first, zero_rows = 0, None, 0
    squares, sampled = 0.0, 0
    code, mask, infinity = _EXPONENTS[stored.dtype]
    for start, stop in row_blocks(stored, BLOCK_SIZE):
        block: Bytes = np.empty(
            (stop - start, matrix_shape(stored.shape)[1] * stored.dtype.itemsize), np.uint8
        )
        read_rows(files, stored, start, stop, block)
        digest.update(block.data)
        magnitudes = block.view(code) & code(mask)
        if magnitudes.max() >= infinity:
            places = np.argwhere(magnitudes >= infinity)
            nonfinite += len(places)
            first = first or (start + int(places[0][0]), int(places[0][1]))
        maybe_zero = np.flatnonzero(magnitudes[:, 0] == 0)
        zero_rows += int((~magnitudes[maybe_zero].any(axis=1)).sum())
        step = max(1, len(block) // _SAMPLED_ROWS)
        sample = as_float32(np.ascontiguousarray(block[::step]), stored.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            squares += float(np.square(sample, dtype=np.float64).sum())
        sampled += sample.size
        progress(block.nbytes)
    rms = (squares / sampled) ** 0.5
    return Scan(weight, stored, digest.hexdigest(), nonfinite, first, zero_rows, rms)


def _file_of(stored: StoredWeight, row: int, column: int) -> str:
    """The name of the file that an element lies in."""
    for piece in stored.pieces:
        slab = piece.slab
        if 0 <= row - piece.row < slab.rows and 0 <= column - piece.column < slab.columns:
            return slab.file.name
    raise ValueError(f"{stored.name} has no element [{row}, {column}]")


def implausible(scans: Sequence[Scan]) -> list[Finding]:
    """Numbers that no trained model has."""
    findings = []
    for scan in scans:
        stored, (rows, _) = scan.stored, matrix_shape(scan.stored.shape)
        file = _file_of(stored, 0, 0)
        if scan.first_nonfinite:
            row, column = scan.first_nonfinite
            file = _file_of(stored, row, column)
            place = f"[{column}]" if len(stored.shape) < 2 else f"[{row}, {column}]"
            overflow = "values beyond 65504 overflowed: use --dtype bf16" if stored.dtype == FLOAT16 else None
            message = f"{scan.nonfinite} values are NaN or infinite, the first at {place}"
            findings.append(Finding("VALUES_NONFINITE", message, file, stored.name, hint=overflow))
        elif scan.zero_rows == rows:
            message = "holds nothing but zeros"
            findings.append(
                Finding("VALUES_ZERO", message, file, stored.name, hint="a placeholder, or never written?")
            )
        elif scan.zero_rows and scan.weight.kind not in (EMBEDDING, HEAD):  # words never used may be zero
            message = f"{scan.zero_rows} of {rows} rows are zero"
            findings.append(Finding("VALUES_DEAD_ROWS", message, file, stored.name, warning=True))
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
                        _file_of(scan.stored, 0, 0),
                        scan.stored.name,
                        warning=True,
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
    findings = []
    said: dict[str, Any] = manifest.get("tensors", {})
    found = {scan.stored.name: scan.digest for scan in scans}
    wrong = [name for name in found if name in said and said[name] != found[name]]
    if len(wrong) > 1 and len(wrong) == len(found):
        hint = "the manifest is stale: it is of another conversion"
        message = f"none of the {len(found)} tensors has the digest that was written down"
        findings.append(Finding("MANIFEST_STALE", message, MANIFEST, hint=hint))
        wrong = []
    for scan in scans:
        name = scan.stored.name
        if name in wrong:
            findings.append(
                Finding(
                    "MANIFEST_DIFFERS",
                    "its bytes are not those that were written",
                    _file_of(scan.stored, 0, 0),
                    name,
                    expected=said[name],
                    found=scan.digest,
                    hint="damaged or replaced since, or the manifest is stale",
                )
            )
    for name in sorted(set(said) - set(found)) + sorted(set(found) - set(said) if said else []):
        where = "was written, and is not here" if name in said else "is here, and was not written"
        findings.append(Finding("MANIFEST_DIFFERS", where, MANIFEST, name, hint="the manifest is stale?"))
    for name, entry in manifest.get("files", {}).items():
        findings += _check_file(folder / name, entry)
    return findings, True


def _check_file(file: Path, said: dict[str, Any]) -> list[Finding]:
    try:
        if file.is_file() and file_matches(file, said):
            return []
    except LlamaConvertError as error:
        return [Finding.of(error)]
    message = "is not what was written" if file.exists() else "was written, and is not here"
    hint = "changed since the conversion, or the manifest is stale" if file.exists() else None
    return [Finding("MANIFEST_DIFFERS", message, file.name, hint=hint)]


_CHECKLIST_LINE = re.compile(r"([0-9a-fA-F]{32}) [ *](?:\./)?(.+)")


def check_checklist(folder: Path) -> tuple[list[Finding], int]:
    """The MD5 of every file that ``checklist.chk`` names; how many agree."""
    checklist = folder / "checklist.chk"
    if not checklist.is_file():
        return [], 0
    findings, jobs = [], []
    for number, line in enumerate(checklist.read_text("utf-8", errors="replace").splitlines(), start=1):
        match = _CHECKLIST_LINE.fullmatch(line.strip())
        if match is None or "/" in match[2] or match[2] == "..":
            if line.strip():
                message = f"line {number} is malformed: {line.strip()!r:.60}"
                findings.append(Finding("INPUT_CHECKLIST", message, checklist.name, warning=True))
        elif (folder / match[2]).is_file():
            jobs.append((folder / match[2], match[1].lower()))
        elif match[2] == "tokenizer.model" and (folder.parent / match[2]).is_file():
            jobs.append((folder.parent / match[2], match[1].lower()))
        else:
            findings.append(
                Finding("INPUT_CHECKLIST", "the checklist names it, and it is not here", match[2])
            )
    with ThreadPoolExecutor(WORKERS) as pool:
        digests = list(pool.map(lambda job: _md5(job[0]), jobs))
    agreeing = 0
    for (file, said), digest in zip(jobs, digests, strict=True):
        agreeing += digest == said
        if digest != said:
            findings.append(
                Finding(
                    "INPUT_CHECKLIST",
                    "its MD5 is not the one in checklist.chk",
                    file.name,
                    expected=said,
                    found=digest,
                    hint="damaged: download it again; or the list is wrong, as some of Meta's first were",
                )
            )
    return findings, agreeing


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def norms(scans: Sequence[Scan]) -> list[dict[str, Any]]:
    """The root mean square of each weight, in the order of the model."""
    order = {kind: place for place, kind in enumerate(LLAMA)}
    ordered = sorted(scans, key=lambda scan: (order[scan.weight.kind], scan.weight.layer or 0))
    return [{"tensor": scan.stored.name, "rms": scan.rms} for scan in ordered]
