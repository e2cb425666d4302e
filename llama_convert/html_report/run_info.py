"""How a result was computed: what someone needs to compute it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version

from llama_convert import __version__
from llama_convert.checkpoints.checklist import CHECKLIST
from llama_convert.checkpoints.manifest import MANIFEST
from llama_convert.checkpoints.suggestions import command
from llama_convert.errors import LlamaConvertError
from llama_convert.formats.files import read_small
from llama_convert.html_report.page import Command, Facts, Section
from llama_convert.inspection.records import Comparison, Inspection
from llama_convert.redaction import redact
from llama_convert.stores.filesystem import is_url
from llama_convert.verification.options import VerifyOptions
from llama_convert.verification.report import Check, Status, VerifyReport

_MAX_BYTES = 4 << 20
_DEFAULTS = VerifyOptions()


@dataclass(frozen=True)
class RunInfo:
    """How a result was computed."""

    command: str
    """The command line, quoted for a shell."""
    date: datetime
    versions: Mapping[str, str]
    """Of llama-convert, Python and torch."""
    platform: str
    checksums: Mapping[str, str]
    """SHA-256 of each folder's manifest and checklist, by path; these files list the weights' checksums."""
    device: str | None = None
    """Where the forward passes ran; None if none did."""
    compute_dtype: str | None = None

    @property
    def section(self) -> Section:
        """The page's section."""
        facts = [
            ("Date", self.date.strftime("%Y-%m-%d %H:%M %Z").strip()),
            ("Versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())),
            ("Platform", self.platform),
        ]
        if self.device:
            facts.append(("Device", self.device))
        if self.compute_dtype:
            facts.append(("Compute dtype", self.compute_dtype))
        facts += [(f"SHA-256 of {file}", checksum) for file, checksum in self.checksums.items()]
        return Section("Reproduce", [Command(self.command), Facts(facts)])


def current_run(
    result: VerifyReport | Inspection | Comparison,
    command: str,
    options: VerifyOptions | None = None,
    *,
    date: datetime | None = None,
) -> RunInfo:
    """How a result was computed in this process.

    Args:
        result: what was computed.
        command: the command line that computes it.
        options: those of a verification.
        date: when; now by default.
    """
    has_forward_pass = isinstance(result, VerifyReport) and any(
        check.check is Check.LOGITS and check.status is not Status.SKIPPED for check in result.checks
    )
    return RunInfo(
        command=command,
        date=date or datetime.now().astimezone(),
        versions=_versions(),
        platform=platform(),
        checksums=dict(_checksums(result)),
        device=_device(options.device) if options and has_forward_pass else None,
        compute_dtype=options.dtype if options and has_forward_pass else None,
    )


def verify_command(report: VerifyReport, options: VerifyOptions) -> str:
    """The command line of a verification; options that have their default are left out."""
    words: list[object] = ["verify", _printed(report.path)]
    if report.source is not None:
        words += ["--source", _printed(report.source)]
    if options.checks is not None:
        words += ["--check", ",".join(check.value for check in options.checks)]
    for name, value, default in (
        ("--device", options.device, _DEFAULTS.device),
        ("--dtype", options.dtype, _DEFAULTS.dtype),
        ("--positions", options.n_positions, _DEFAULTS.n_positions),
        ("--prompt", options.prompt, _DEFAULTS.prompt),
        ("--max-new-tokens", options.max_new_tokens, _DEFAULTS.max_new_tokens),
        ("--llama-version", options.llama_version, _DEFAULTS.llama_version),
        ("--config-from", options.config_from, _DEFAULTS.config_from),
        ("--tokenizer", options.tokenizer, _DEFAULTS.tokenizer),
    ):
        if value != default:
            words += [name, value]
    if options.checksums is not None:
        words.append("--checksums" if options.checksums else "--no-checksums")
    return command(*words)


def inspect_command(
    result: Inspection | Comparison, *, tensors: str | None, stats: bool, config_from: Path | None = None
) -> str:
    """The command line of an inspection."""
    folders = (result,) if isinstance(result, Inspection) else (result.a, result.b)
    words = ["inspect", *(_printed(folder.path) for folder in folders)]
    words += ["--tensors", tensors] if tensors else []
    words += ["--config-from", str(config_from)] if config_from else []
    return command(*words, *(["--stats"] if stats else []))


def _printed(path: object) -> str:
    """A path, or its URL."""
    return redact(str(path))


def _versions() -> dict[str, str]:
    versions = {"llama-convert": __version__, "Python": python_version()}
    with suppress(PackageNotFoundError):
        versions["torch"] = version("torch")
    return versions


def _device(name: str) -> str:
    """The device that an option means, with the name of a GPU."""
    import torch

    from llama_convert.verification.streamed_model import pick_device

    device = pick_device(name)
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _checksums(result: VerifyReport | Inspection | Comparison) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of the small files that list checksums of weights, where they are local."""
    locations: list[Path | str | None]
    if isinstance(result, VerifyReport):
        locations = [result.path, result.source]
    elif isinstance(result, Inspection):
        locations = [result.path]
    else:
        locations = [result.a.path, result.b.path]
    for folder in (Path(each) for each in dict.fromkeys(locations) if each and not is_url(each)):
        for name in (MANIFEST, CHECKLIST):
            with suppress(LlamaConvertError):
                content = read_small(folder / name, _MAX_BYTES)
                yield str(folder / name), hashlib.sha256(content).hexdigest()
