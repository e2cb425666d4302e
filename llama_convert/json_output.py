"""The JSON that ``--json`` prints and `to_json` returns.

Every record becomes a dictionary here, key by key, so that no rename in Python changes the output.
``docs/output.schema.json`` describes all of it.  A key has one type in all commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from llama_convert.json_metrics import Json, metrics
from llama_convert.redaction import redact_url

if TYPE_CHECKING:
    from llama_convert.conversion.cast import CastCounts
    from llama_convert.conversion.options import ConvertResult
    from llama_convert.errors import LlamaConvertError
    from llama_convert.findings import Finding, RootCause
    from llama_convert.inspection import records
    from llama_convert.inspection.records import Comparison, Inspection, Mismatch, ValueDifference
    from llama_convert.inspection.stats import Histogram, Stats
    from llama_convert.llama.releases import DetectedRelease
    from llama_convert.verification.report import CheckReport, FileIdentity, VerifyReport

SCHEMA = 2
"""Version of the output. It changes when a key is removed or renamed, or its meaning changes."""


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of everything that ``--json`` prints."""
    return (files("llama_convert") / "docs" / "output.schema.json").read_text(encoding="utf-8")


def to_json(result: ConvertResult | VerifyReport | Inspection | Comparison) -> Json:
    """What ``--json`` prints of a result, as plain data, without the keys of `envelope`.

    Args:
        result: of `llama_convert.convert`, `shard`, `verify` or `inspect`.

    Raises:
        TypeError: it is none of these.
    """
    for name, of_class in _RESULTS.items():
        if type(result).__name__ == name:
            return of_class(result)
    raise TypeError(f"not a result of llama-convert: {type(result).__name__}")


def envelope(command: str | None, exit_code: int, content: Json) -> Json:
    """The whole output of a command.

    Args:
        command: its name; None if the command line has none.
        exit_code: of the process.
        content: the keys of this command, or of `error`.
    """
    return {
        "schema": SCHEMA,
        "command": command,
        "ok": exit_code == 0,
        "exit_code": exit_code,
        **{key: value for key, value in content.items() if key != "ok"},
    }


def error(
    code: str,
    message: str,
    *,
    known: LlamaConvertError | None,
    hint: str | None,
    resumable: bool,
    saved: str | None,
) -> Json:
    """An error that ended the command.

    Args:
        code: its error code.
        message: what is wrong.
        known: the error, if this package raised it.
        hint: what to do.
        resumable: whether the same command resumes.
        saved: what was saved, as a sentence.
    """
    return {
        "code": code,
        "message": message,
        "file": str(known.file) if known and known.file else None,
        "tensor": known.tensor if known else None,
        "expected": known.expected if known else None,
        "found": known.found if known else None,
        "hint": hint,
        "resumable": resumable,
        "saved": saved,
    }


# Records of several commands.


def finding(one: Finding) -> Json:
    """A problem that `verify` or `inspect` found."""
    return {
        "code": one.code,
        "severity": one.severity,
        "message": one.message,
        "file": one.file,
        "tensor": one.tensor,
        "expected": one.expected,
        "found": one.found,
        "hint": one.hint,
        "explained_by": root_cause(one.explained_by) if one.explained_by else None,
    }


def root_cause(cause: RootCause) -> Json:
    """The finding that explains another one."""
    return {
        "check": cause.check,
        "code": cause.code,
        "message": cause.message,
        "tensor": cause.tensor,
    }


def findings(every: Iterable[Finding]) -> list[Json]:
    """As `finding`, each of them."""
    return [finding(one) for one in every]


def release(
    title: str, version: str, size: str | None, evidence: Iterable[str], alternatives: Iterable[str]
) -> Json:
    """A release of Meta's; the alternatives are versions."""
    return {
        "title": title,
        "version": version,
        "size": size,
        "evidence": list(evidence),
        "alternatives": list(alternatives),
    }


def release_of(detected: DetectedRelease) -> Json:
    """The release that a checkpoint was detected as."""
    return release(
        detected.title,
        detected.release.version,
        detected.size.label if detected.size else None,
        detected.evidence,
        (other.version for other in detected.alternatives),
    )


def sized_files(sizes: Mapping[str, int]) -> list[Json]:
    """Files by name, with their sizes."""
    return [{"name": name, "bytes": size} for name, size in sizes.items()]


# convert and shard


def conversion(result: ConvertResult, *, dry_run: bool, report: VerifyReport | None) -> Json:
    """What `convert` or `shard` did.

    Args:
        result: of the conversion.
        dry_run: whether nothing was to be written.
        report: of ``--verify``.
    """
    return {
        "dry_run": dry_run,
        **converted(result),
        "verification": verification(report) if report else None,
    }


def converted(result: ConvertResult) -> Json:
    """What a conversion did, without the options it was given."""
    return {
        "source": redact_url(str(result.source)),
        "destination": redact_url(str(result.destination)),
        "finalized": result.finalized,
        "release": release(result.release, result.version, result.size, result.evidence, result.alternatives),
        "instruct": result.instruct,
        "dtype": result.dtype,
        "files": sized_files(result.files),
        "casts": [cast(name, counts) for name, counts in result.casts.items()],
        "warnings": list(result.warnings),
    }


def cast(tensor: str, counts: CastCounts) -> Json:
    """What a change of dtype did to one tensor."""
    return {
        "tensor": tensor,
        "elements": counts.elements,
        "overflowed": counts.overflowed,
        "underflowed": counts.underflowed,
        "max_overflowed": counts.max_overflowed,
    }


# verify


def verification(report: VerifyReport) -> Json:
    """What `verify` found."""
    return {
        "ok": report.ok,
        "path": str(report.path),
        "format": report.format,
        "source": str(report.source) if report.source else None,
        "source_format": report.source_format,
        "release": release_of(report.detected) if report.detected else None,
        "checks": [check(each) for each in report.checks],
        "official_files": [official_file(one) for one in report.files],
        "completions": completions(report.completions) if report.completions else None,
    }


def check(report: CheckReport) -> Json:
    """One check of a verification."""
    return {
        "check": report.check.value,
        "status": report.status.value,
        "summary": report.summary,
        "seconds": report.seconds,
        "metrics": metrics(report.check.value, report.measures),
        "findings": findings(report.findings),
        "hint": report.hint,
    }


_IN_SOURCE = "source: "


def official_file(identity: FileIdentity) -> Json:
    """Whether a file is an official one."""
    return {
        "checkpoint": "source" if identity.file.startswith(_IN_SOURCE) else "output",
        "file": identity.file.removeprefix(_IN_SOURCE),
        "bytes": identity.size,
        "verdict": identity.verdict.replace(" ", "_"),
        "message": identity.message,
        "provenance": identity.provenance,
        "algorithm": identity.algorithm,
        "checksum": identity.digest,
    }


def completions(texts: Mapping[str, str]) -> Json:
    """What source and output generate after the prompt; None if one cannot be run, or does not exist."""
    return {"source": texts.get("source"), "output": texts.get("output")}


# inspect


def inspection(result: records.Inspection) -> Json:
    """Everything that `inspect` reports about one checkpoint."""
    return {
        "ok": result.ok,
        "path": str(result.path),
        "format": result.format,
        "single_file": result.single_file,
        "release": inspected_release(result.release) if result.release else None,
        "config": config(result.config) if result.config else None,
        "raw_config": result.raw_config,
        "rank_count": result.ranks,
        "kv_repeats": result.kv_repeats,
        "parameters": parameters(result.parameters),
        "dtypes": [dtype_count(one) for one in result.dtypes],
        "kinds": [kind(one) for one in result.kinds],
        "files": [inspected_file(one) for one in result.files],
        "bytes": result.bytes,
        "tokenizer": tokenizer(result.tokenizer) if result.tokenizer else None,
        "checksums": list(result.checksums),
        "shared_storages": [list(names) for names in result.shared],
        "conversion": planned_conversion(result.conversion) if result.conversion else None,
        "findings": findings(result.findings),
        "tensors": [tensor(one) for one in result.tensors],
    }


def inspected_release(found: records.Release) -> Json:
    """The release that a checkpoint was detected as."""
    from llama_convert.llama.releases import RELEASES

    versions = {row.title: row.version for row in RELEASES}
    alternatives = (versions.get(title, title) for title in found.alternatives)
    return release(found.title, found.version, found.size, found.evidence, alternatives)


def config(values: Mapping[str, Any]) -> Json:
    """Hyper-parameters, by the names of `LlamaConfig`."""
    scaling = values["rope_scaling"]
    return {
        "dim": values["dim"],
        "n_layers": values["n_layers"],
        "n_heads": values["n_heads"],
        "n_kv_heads": values["n_kv_heads"],
        "head_dim": values["head_dim"],
        "ffn_dim": values["ffn_dim"],
        "vocab_size": values["vocab_size"],
        "norm_eps": values["norm_eps"],
        "rope_theta": values["rope_theta"],
        "rope_scaling": scaling
        and {
            "factor": scaling["factor"],
            "low_freq_factor": scaling["low_freq_factor"],
            "high_freq_factor": scaling["high_freq_factor"],
            "original_context_length": scaling["original_context_length"],
        },
        "context_length": values["context_length"],
        "tied": values["tied"],
    }


def parameters(counts: records.Parameters) -> Json:
    """Numbers of parameters."""
    return {
        "total": counts.total,
        "embedding": counts.embedding,
        "all_layers": counts.layers,
        "per_layer": counts.per_layer,
        "final_norm": counts.norm,
        "lm_head": counts.head,
        "other": counts.other,
        "complete": counts.whole,
    }


def dtype_count(count: records.DtypeCount) -> Json:
    """Tensors of one dtype."""
    return {"dtype": count.dtype, "tensor_count": count.tensors, "bytes": count.bytes}


def kind(one: records.WeightGroup) -> Json:
    """Tensors of one kind, shape and dtype."""
    return {
        "name": one.name,
        "tensor_count": one.count,
        "shape": list(one.shape),
        "dtype": one.dtype,
        "sharded_dim": one.sharded_dim,
        "copies": one.copies,
    }


def inspected_file(file: records.File) -> Json:
    """A file of the checkpoint's folder."""
    return {"name": file.name, "bytes": file.bytes, "role": file.role, "tensor_count": file.tensors}


def tokenizer(one: records.Tokenizer) -> Json:
    """The tokenizer next to the weights."""
    return {"file": one.file, "kind": one.kind, "vocab_size": one.vocab_size, "special": one.special}


def planned_conversion(plan: records.Conversion) -> Json:
    """What `convert` would write with default options."""
    return {
        "files": sized_files(plan.files),
        "bytes": plan.bytes,
        "dtype": plan.dtype,
        "peak_memory_bytes": plan.peak_memory,
    }


def tensor(one: records.Tensor) -> Json:
    """One tensor of a checkpoint."""
    return {
        "name": one.name,
        "meta_name": one.meta_name,
        "huggingface_name": one.huggingface_name,
        "shape": list(one.shape),
        "dtype": one.dtype,
        "bytes": one.bytes,
        "stored_in": list(one.files),
        "stats": stats(one.stats) if one.stats else None,
    }


def stats(values: Stats) -> Json:
    """Statistics of a tensor's values."""
    return {
        "elements": values.elements,
        "nan": values.nan,
        "inf": values.inf,
        "zeros": values.zeros,
        "near_zero": values.near_zero,
        "min": values.min,
        "max": values.max,
        "absmax": values.absmax,
        "p999": values.p999,
        "mean": values.mean,
        "std": values.std,
        "histogram": histogram(values.histogram) if values.histogram else None,
    }


def histogram(bins: Histogram) -> Json:
    """How a tensor's finite values are distributed."""
    return {"edges": list(bins.edges), "counts": list(bins.counts)}


# inspect A B


def comparison(result: Comparison) -> Json:
    """How two checkpoints differ."""
    return {
        "ok": result.ok,
        "same": result.same,
        "checkpoint_a": inspection(result.a),
        "checkpoint_b": inspection(result.b),
        "differences": [
            *differences("config", result.config),
            *differences("shape", result.shapes),
            *differences("dtype", result.dtypes),
            *differences("tokenizer", result.tokenizer),
        ],
        "only_in_a": list(result.only_in_a),
        "only_in_b": list(result.only_in_b),
        "compared": result.compared,
        "value_differences": [value_difference(one) for one in result.values],
        "findings": findings(result.findings),
    }


_TOKENIZER = {"words": "vocab_size", "content (XXH3-128)": "xxh3_128"}


def differences(of: str, every: Iterable[Mismatch]) -> list[Json]:
    """Settings, shapes, dtypes or properties of the tokenizer that differ; values as text."""
    return [
        {
            "kind": of,
            "name": _TOKENIZER.get(one.name, one.name) if of == "tokenizer" else one.name,
            "a": text_of(one.a),
            "b": text_of(one.b),
        }
        for one in every
    ]


def text_of(value: Any) -> str | None:
    """A value as text: strings as they are, other values as JSON; None stays None."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, default=vars)


def value_difference(one: ValueDifference) -> Json:
    """How the values of one tensor differ."""
    return {
        "tensor": one.name,
        "elements": one.elements,
        "different_elements": one.different,
        "max_difference": one.max_difference,
        "mean_difference": one.mean_difference,
        "relative_difference": one.relative_difference,
        "cosine_similarity": one.cosine_similarity,
    }


_RESULTS: dict[str, Callable[[Any], Json]] = {
    "ConvertResult": converted,
    "VerifyReport": verification,
    "Inspection": inspection,
    "Comparison": comparison,
}
