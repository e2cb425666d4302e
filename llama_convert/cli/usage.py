"""What was probably meant by a command line that cannot be meant as it was typed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.suggestions import command, nearest
from llama_convert.cli.dropin import COMMANDS, dashes

_EXTRA = re.compile(r"unexpected extra argument.* \((.+)\)$")


def retyped(instead: Mapping[str, str]) -> str | None:
    """The command with other words in the place of some; None if none of these was typed."""
    typed = sys.argv[1:]
    meant = [_other(word, instead) for word in typed]
    return command(*meant) if meant != typed else None


def _other(word: str, instead: Mapping[str, str]) -> str:
    """What was meant by a word, or by the value in ``--option=value``."""
    name, equals, value = word.partition("=")
    if equals and name.startswith("--"):
        return f"{_other(name, instead)}={_other(value, instead)}"
    path = Path(word).expanduser()
    found = [meant for said, meant in instead.items() if said == dashes(word) or Path(said) == path]
    return found[0] if found else word


def likely(error: Any) -> str:
    """What to type instead of what Click refuses.

    Args:
        error: one of Click's errors, wherever Typer keeps them.
    """
    context = getattr(error, "ctx", None)
    if context is None:
        return command("--help")
    if hasattr(error, "possibilities") and (likely_option := _likely_option(error.option_name, context)):
        return likely_option
    if context.parent is None and error.message.startswith("No such command"):
        typed = sys.argv[1]
        close = get_close_matches(typed, COMMANDS, n=1) or [str(nearest(Path(typed)) or "")]
        return (retyped({typed: close[0]}) if close[0] else None) or command("--help")
    extra = _EXTRA.search(error.message)
    if context.info_name == "verify" and extra and extra[1] in sys.argv:
        return command("verify", context.params["path"], "--source", extra[1])
    return command(*context.command_path.split()[1:], "--help")


def _likely_option(option: str, context: Any) -> str | None:
    """The command with the option that is most like this one; or the other command that has it."""
    close = get_close_matches(option.strip("-"), [name.strip("-") for name in _options(context.command)], n=1)
    if close:
        return retyped({option: f"--{close[0]}"})
    siblings = context.parent.command.commands if context.parent else {}
    for name, other in siblings.items():
        if option in _options(other):
            return f"{option} is an option of {name}: {command(name, '--help')}"
    return None


def _options(of: Any) -> list[str]:
    return [
        name
        for parameter in of.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name[0] == "-"
    ]
