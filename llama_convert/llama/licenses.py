"""What Meta's licence of each release asks of whoever passes its weights on.

Sources: section 1.b of the community licences, as they lie beside the weights: of Llama 2, Meta Llama 3,
Llama 3.1, 3.2 and 3.3.  Code Llama and Llama Guard came under the licence of the release they were made from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class License:
    """A licence of Meta's, and the words it asks for."""

    name: str
    hub: str
    """What the Hub's model cards call it."""
    url: str | None = None
    notice: str | None = None
    """To be kept in all copies, within a text file called "Notice"."""
    display: str | None = None
    """To be displayed prominently wherever the weights, or what was made of them, are made available."""
    prefix: str | None = None
    """What the name of a model that was made from it is to begin with."""
    policy: str | None = None
    """Where its acceptable use policy stands."""


def _community(word: str, *, hub: str, path: str, display: str, prefix: str) -> License:
    return License(
        name=f"{word} Community License",
        hub=hub,
        url=f"{path}/license/",
        notice=f"{word} is licensed under the {word} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        display=display,
        prefix=prefix,
        policy=f"{path}/use-policy/",
    )


_SITE = "https://www.llama.com"
LLAMA_1 = License("LLaMA's licence, for research that is not commercial", "other")
LLAMA_2 = License(
    "LLAMA 2 Community License",
    "llama2",
    "https://ai.meta.com/llama/license/",
    "Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    policy="https://ai.meta.com/llama/use-policy/",
)
LLAMA_3 = _community(
    "Meta Llama 3",
    hub="llama3",
    path="https://llama.meta.com/llama3",
    display="Built with Meta Llama 3",
    prefix="Llama 3",
)
LLAMA_3_1, LLAMA_3_2, LLAMA_3_3 = (
    _community(
        f"Llama {version}",
        hub=f"llama{version}",
        path=f"{_SITE}/llama{version.replace('.', '_')}",
        display="Built with Llama",
        prefix="Llama",
    )
    for version in ("3.1", "3.2", "3.3")
)

_LICENCES = {
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

NOTICES = frozenset(licence.notice for licence in _LICENCES.values() if licence.notice)
"""The notice of every license that has one."""


def license_of(version: str, size: str | None) -> License:
    """The licence of a release's weights, and of what is made from them.

    Args:
        version: the release's, as ``--llama_version`` takes it.
        size: such as ``8B``; None for a shape that Meta never released.
    """
    return _LICENCES.get((version, size)) or _LICENCES[version, None]
