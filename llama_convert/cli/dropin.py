"""Rewrites the options of other tools and earlier versions before the command line is parsed."""

from __future__ import annotations

import os

COMMANDS = ("convert", "shard", "verify", "inspect", "diff", "help", "explain")
_COMPLETION = ("--install-completion", "--show-completion")
_GLOBAL = ("-h", "--help", "--version", *_COMPLETION)
_ALIASES = {"version": "--version", "-V": "--version"}
_TRUE = ("true", "1", "yes")
_FALSE = ("false", "0", "no")


def rewrite_legacy_options(arguments: list[str]) -> list[str]:
    """The command line with the options that the parser knows.

    - Underscores in names of options become dashes.
    - ``convert`` is added where no command is named.
    - ``--safe_serialization`` and ``--instruct`` lose their value, True or False, which transformers' script
      takes.
    - ``--tensors`` without a pattern becomes ``--tensors=*``.
    - ``version`` becomes ``--version``.

    Example:
        >>> rewrite_legacy_options(["--input_dir", "SRC", "--instruct", "False"])
        ['convert', '--input-dir', 'SRC', '--no-instruct']
    """
    result = [with_dashes(argument) for argument in arguments]
    if "--" in arguments:
        end = arguments.index("--")
        result[end:] = arguments[end:]
    result = _tensors_with_pattern(_flags_without_value(result))
    if result and result[0] in _ALIASES:
        result[0] = _ALIASES[result[0]]
    first = result[0] if result else "--help"
    is_command = first in COMMANDS or first.partition("=")[0] in _GLOBAL
    if not is_command and (first.startswith("-") or os.path.exists(first)):
        result.insert(0, "convert")
    return result


def names_a_shell(arguments: list[str]) -> bool:
    """Whether completion is requested for a shell by name, not for the shell that runs the command."""
    first = arguments[0] if arguments else ""
    return first.startswith(tuple(f"{option}=" for option in _COMPLETION)) or (
        first in _COMPLETION and len(arguments) > 1
    )


def with_dashes(argument: str) -> str:
    """The argument; if it is an option, with dashes in place of underscores in its name."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _flags_without_value(arguments: list[str]) -> list[str]:
    """The arguments with ``--flag True`` as ``--flag``, and ``--flag False`` as ``--no-flag``."""
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


def _tensors_with_pattern(arguments: list[str]) -> list[str]:
    """The arguments with ``--tensors=*`` where an option, a path or nothing follows ``--tensors``."""
    result: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        has_pattern = following and not following.startswith("-") and not os.path.exists(following)
        result.append("--tensors=*" if argument == "--tensors" and not has_pattern else argument)
    return result
