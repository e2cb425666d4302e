"""Old commands keep working: what is typed is rewritten into today's spelling before it is parsed."""

from __future__ import annotations

import os

COMMANDS = ("convert", "shard", "verify", "inspect", "diff", "help", "explain")
_COMPLETION = ("--install-completion", "--show-completion")
_GLOBAL = ("-h", "--help", "--version", *_COMPLETION)
_ALSO = {"version": "--version", "-V": "--version"}
_TRUE = ("true", "1", "yes")
_FALSE = ("false", "0", "no")


def modernise(arguments: list[str]) -> list[str]:
    """The command line in today's spelling.

    Options may be written with underscores; ``convert`` is understood where no command is named; and the
    Hugging Face script's ``--safe_serialization`` and ``--instruct`` may be followed by True or False.
    ``--tensors`` may stand alone: then all are meant.  ``version`` may be a command.
    """
    result = [dashes(argument) for argument in arguments]
    if "--" in arguments:
        end = arguments.index("--")
        result[end:] = arguments[end:]
    result = _all_tensors(_flags(result))
    if result and result[0] in _ALSO:
        result[0] = _ALSO[result[0]]
    first = result[0] if result else "--help"
    is_command = first in COMMANDS or first.partition("=")[0] in _GLOBAL
    if not is_command and (first.startswith("-") or os.path.exists(first)):
        result.insert(0, "convert")
    return result


def names_a_shell(arguments: list[str]) -> bool:
    """Whether completion is wanted for a shell that is named, not for the one that runs this."""
    first = arguments[0] if arguments else ""
    return first.startswith(tuple(f"{option}=" for option in _COMPLETION)) or (
        first in _COMPLETION and len(arguments) > 1
    )


def dashes(argument: str) -> str:
    """An option's name in today's spelling."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _flags(arguments: list[str]) -> list[str]:
    """Flags that once took a value, without it."""
    result: list[str] = []
    rest = iter(range(len(arguments)))
    for position in rest:
        name, _, value = arguments[position].partition("=")
        if name not in ("--instruct", "--safe-serialization"):
            result.append(arguments[position])
            continue
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        if not value and following.lower() in _TRUE + _FALSE:
            value = following
            next(rest)
        result.append(name.replace("--", "--no-", 1) if value.lower() in _FALSE else name)
    return result


def _all_tensors(arguments: list[str]) -> list[str]:
    """``--tensors`` with its pattern; ``*`` where none follows, but another option, a path or nothing."""
    result: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        alone = not following or following.startswith("-") or os.path.exists(following)
        result.append("--tensors=*" if argument == "--tensors" and alone else argument)
    return result
