"""Commands with two helps: ``--help`` shows the options that most users need, ``--help-all`` shows all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand

_SHOW_ALL = "llama_convert.show_all_options"
"""Key in the context's `meta`."""


class Command(TyperCommand):
    """A command whose ``--help`` lists the options in `common` only."""

    common: tuple[str, ...] = ()
    """Names of parameters, in the order of the help; empty for all."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; of the options only the common ones, unless ``--help-all`` was given."""
        if not self.common or ctx.meta.get(_SHOW_ALL):
            super().format_help(ctx, formatter)
        else:
            with self._only_common():
                super().format_help(ctx, formatter)

    @contextmanager
    def _only_common(self) -> Iterator[None]:
        """Hide the other options, and put all that are left into one panel."""
        parameters = self.params
        settings = [(each, vars(each).copy()) for each in parameters]
        arguments = [each for each in parameters if each.param_type_name == "argument"]
        by_name = {each.name: each for each in parameters}
        shown = [by_name[name] for name in (*self.common, "help_all")]
        for each in shown:
            each.rich_help_panel = None  # type: ignore[attr-defined]
        self.params = [*arguments, *shown]
        try:
            yield
        finally:
            self.params = parameters
            for each, attributes in settings:
                vars(each).update(attributes)


def command_class(*common: str) -> type[Command]:
    """A `Command` with these common options.

    Args:
        common: names of parameters of the command's function.
    """
    return type("Command", (Command,), {"common": common})


def print_all_help(ctx: typer.Context, wanted: bool) -> None:
    """Callback of ``--help-all``: print the help with all options, and exit."""
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_SHOW_ALL] = True
        ctx.get_help()  # prints it
        raise typer.Exit
