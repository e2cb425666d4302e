"""Suggests a correction for an invalid command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llama_convert.checkpoints.suggestions import command, nearest
from llama_convert.cli.dropin import COMMANDS, with_dashes

_EXTRA = re.compile(r"[Uu]nexpected extra argument.* \((.+)\)$")
_SYNONYMS = {
    "--force": "--overwrite",
    "--format": "--to",
    "--type": "--dtype",
    "--precision": "--dtype",
    "--tp": "--mp",
    "--ranks": "--mp",
    "--shard-size": "--max-shard-size",
    "--original": "--source",
    "--out": "--output",
    "--dest": "--output",
}
"""Options of similar tools, by their names here."""
_CUTOFF = 0.7
"""Min similarity of a mistyped option, as `difflib` measures it."""


def corrected_command(corrections: Mapping[str, str]) -> str | None:
    """The command line with some arguments replaced; None if it has none of them.

    Args:
        corrections: the arguments to replace, with their replacements. Paths match in any spelling.
    """
    typed = sys.argv[1:]
    corrected = [_replace(argument, corrections) for argument in typed]
    return command(*corrected) if corrected != typed else None


def _replace(argument: str, corrections: Mapping[str, str]) -> str:
    """The replacement of an argument, or of the name and the value in ``--option=value``."""
    name, equals, value = argument.partition("=")
    if equals and name.startswith("--"):
        return f"{_replace(name, corrections)}={_replace(value, corrections)}"
    path = Path(argument).expanduser()
    for wrong, right in corrections.items():
        if wrong == with_dashes(argument) or Path(wrong) == path:
            return right
    return argument


def usage_message(message: str) -> str:
    """The parser's message as one sentence, without its own suggestion."""
    if extra := _EXTRA.search(message):
        return f"Unexpected argument: {extra[1]}."
    for suggestion in (" (Possible options", " Did you mean"):
        message = message.partition(suggestion)[0]
    return f"{message.rstrip('.')}."


def usage_hint(error: Any) -> str:
    """What to do about an error of the command-line parser: a corrected command, or which help to read.

    Args:
        error: one of Click's exceptions.
    """
    context = getattr(error, "ctx", None)
    if context is None:
        return command("--help")
    if hasattr(error, "possibilities") and (hint := _option_hint(error.option_name, context)):
        return hint
    if context.parent is None and error.message.startswith("No such command"):
        typed = sys.argv[1]
        close = get_close_matches(typed, COMMANDS, n=1) or [str(nearest(Path(typed)) or "")]
        return (corrected_command({typed: close[0]}) if close[0] else None) or command("--help")
    extra = _EXTRA.search(error.message)
    if context.info_name == "verify" and extra and extra[1] in sys.argv:
        return command("verify", context.params["path"], "--source", extra[1])
    return command(*context.command_path.split()[1:], "--help")


def _option_hint(option: str, context: Any) -> str | None:
    """For an unknown option: the command that has it, or the command line with the most similar option."""
    options = _options(context.command)
    synonym = _SYNONYMS.get(option)
    if synonym in options:
        return corrected_command({option: synonym})
    siblings = context.parent.command.commands if context.parent else {}
    owners = [name for name, sibling in siblings.items() if option in _options(sibling)]
    if owners:
        return f"{option} is an option of {' and '.join(owners)}. Run: {command(owners[0], '--help')}"
    names = [name.strip("-") for name in options]
    close = get_close_matches(option.strip("-"), names, n=1, cutoff=_CUTOFF)
    return corrected_command({option: f"--{close[0]}"}) if close else None


def _options(of: Any) -> list[str]:
    """Names of a command's options, with their dashes."""
    return [
        name
        for parameter in of.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name[0] == "-"
    ]
