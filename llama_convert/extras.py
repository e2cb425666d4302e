"""Optional dependencies: the packages of each extra, which of them are missing, and how to install them.

importlib.metadata is imported where it is used: it takes as long as all other imports of a short command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable
from importlib.util import find_spec

from llama_convert.errors import UsageError

EXTRAS = {
    "verify": {
        "jinja2": "3.1",
        "sentencepiece": "0.1.99",
        "tiktoken": "0.6",
        "tokenizers": "0.20",
        "torch": "2.6",
    },
    "report": {"jinja2": "3.1"},
    "hub": {"huggingface_hub": "0.23"},
    "dask": {"distributed": "2024.1"},
    "http": {"aiohttp": "3.9", "fsspec": "2024.2"},
    "s3": {"fsspec": "2024.2", "s3fs": "2024.2"},
    "gcs": {"fsspec": "2024.2", "gcsfs": "2024.2"},
    "hf": {"fsspec": "2024.2", "huggingface_hub": "0.23"},
}
"""The packages of each extra, by the names that they are imported by, with their oldest versions."""

_ONE_COMMAND_INSTALLERS = {
    "pipx_metadata.json": "pipx install --force",
    "uv-receipt.toml": "uv tool install --force",
}
"""Files in the environments of programs that install one command each, and how these add an extra."""


def missing_packages(extra: str, packages: Iterable[str] | None = None) -> list[str]:
    """The packages that are not installed or too old, with the required version. Imports none of them.

    Args:
        extra: a key of `EXTRAS`.
        packages: those of its packages to check; all by default.
    """
    oldest = EXTRAS[extra]
    found = {package: installed_version(package) for package in (oldest if packages is None else packages)}
    return [
        package if installed is None else f"{package} {oldest[package]} or newer, not {installed}"
        for package, installed in found.items()
        if installed is None or _numbers(installed) < _numbers(oldest[package])
    ]


def installed_version(package: str) -> str | None:
    """The version of a package that can be imported; None if it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(package) if find_spec(package) else None
    except (ImportError, ValueError):  # PackageNotFoundError, or find_spec's for an unusual module
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text.partition("+")[0])))


def extra_missing(extra: str, feature: str, missing: Iterable[str]) -> UsageError:
    """The error ``EXTRA_MISSING``, whose hint is the command that installs the extra.

    Args:
        extra: a key of `EXTRAS`.
        feature: what needs it, as the user typed it, for example ``--scheduler``.
        missing: names of the missing packages.
    """
    message = f"{feature} needs the extra [{extra}] (missing: {', '.join(missing)})."
    return UsageError("EXTRA_MISSING", message, hint=f"Run: {install_command(extra)}")


def require(extra: str, feature: str, packages: Iterable[str] | None = None) -> None:
    """Check that the packages of an extra are installed, before any work is done.

    Args:
        extra: a key of `EXTRAS`.
        feature: what needs it, as the user typed it, for example ``--scheduler``.
        packages: those of its packages to check; all by default.

    Raises:
        UsageError: ``EXTRA_MISSING``.
    """
    if missing := missing_packages(extra, packages):
        raise extra_missing(extra, feature, missing)


def install_command(extra: str) -> str:
    """The shell command that adds an extra to this installation, by the tool that made it."""
    for file, command in _ONE_COMMAND_INSTALLERS.items():
        if os.path.exists(os.path.join(sys.prefix, file)):
            return f"{command} {shlex.quote(_requirement(extra))}"
    command = "uv pip install" if (_recorded("INSTALLER") or "").strip() == "uv" else "pip install"
    return f"{command} {shlex.quote(_requirement(extra))}"


def _requirement(extra: str) -> str:
    """The installation with an extra: by name if it came from an index, else by its origin."""
    if not _recorded("INSTALLER"):
        return f".[{extra}]"  # a checkout that is not installed
    recorded = _recorded("direct_url.json")
    if recorded is None:
        return f"llama-convert[{extra}]"
    try:
        origin = json.loads(recorded)
        if "dir_info" in origin:
            return f".[{extra}]"
        vcs = origin.get("vcs_info")
        url = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"llama-convert[{extra}]"
    return f"llama-convert[{extra}] @ {url}"


def _recorded(file: str) -> str | None:
    """What the installer recorded about the installation in a file (PEP 376, PEP 610)."""
    from importlib import metadata

    try:
        return metadata.distribution("llama-convert").read_text(file)
    except metadata.PackageNotFoundError:
        return None
