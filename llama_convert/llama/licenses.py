"""The license of each release, and what it requires of those who redistribute the weights.

Sources: section 1.b of the community licenses of Llama 2, Meta Llama 3, Llama 3.1, 3.2 and 3.3, which are
distributed with the weights.  Code Llama and Llama Guard have the license of the release they derive from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class License:
    """A license of Meta, and the texts that it requires."""

    name: str
    hub: str
    """Value of ``license`` in model cards on the Hub."""
    url: str | None = None
    notice: str | None = None
    """Text of the "Notice" file that all copies must contain."""
    display: str | None = None
    """Text to display prominently where the weights or derivatives are distributed."""
    prefix: str | None = None
    """Required beginning of the names of derived models."""
    policy: str | None = None
    """URL of the acceptable use policy."""


def _community_license(title: str, *, hub: str, path: str, display: str, prefix: str) -> License:
    return License(
        name=f"{title} Community License",
        hub=hub,
        url=f"{path}/license/",
        notice=f"{title} is licensed under the {title} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        display=display,
        prefix=prefix,
        policy=f"{path}/use-policy/",
    )


_SITE = "https://www.llama.com"
LLAMA_1 = License("LLaMA license (non-commercial research)", "other")
LLAMA_2 = License(
    "LLAMA 2 Community License",
    "llama2",
    "https://ai.meta.com/llama/license/",
    "Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    policy="https://ai.meta.com/llama/use-policy/",
)
LLAMA_3 = _community_license(
    "Meta Llama 3",
    hub="llama3",
    path="https://llama.meta.com/llama3",
    display="Built with Meta Llama 3",
    prefix="Llama 3",
)
LLAMA_3_1, LLAMA_3_2, LLAMA_3_3 = (
    _community_license(
        f"Llama {version}",
        hub=f"llama{version}",
        path=f"{_SITE}/llama{version.replace('.', '_')}",
        display="Built with Llama",
        prefix="Llama",
    )
    for version in ("3.1", "3.2", "3.3")
)

_LICENSES = {
    ("1", None): LLAMA_1,
    ("2", None): LLAMA_2,
    ("code", None): LLAMA_2,
    ("Guard-1", None): LLAMA_2,
    ("3", None): LLAMA_3,
    ("Guard-2", None): LLAMA_3,
    ("3.1", None): LLAMA_3_1,
    ("Guard-3", None): LLAMA_3_1,
    ("Guard-3", "1B"): LLAMA_3_2,  # made from Llama 3.2 1B
    ("3.2", None): LLAMA_3_2,
    ("3.3", None): LLAMA_3_3,
}

NOTICES = frozenset(each.notice for each in _LICENSES.values() if each.notice)
"""The notices of all licenses that require one."""


def license_of(version: str, size: str | None) -> License:
    """The license of the weights of a release.

    Args:
        version: a value of ``--llama-version``.
        size: for example ``8B``; None for a shape that Meta did not release.
    """
    return _LICENSES.get((version, size)) or _LICENSES[version, None]
