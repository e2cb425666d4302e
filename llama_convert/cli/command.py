"""Commands with two helps: ``--help`` shows the options that most users need, ``--help-all`` shows all."""

from __future__ import annotations

import shutil
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

_SHOW_ALL = "llama_convert.show_all_options"
"""Key in the context's `meta`."""
_WIDE = 80
"""Columns from which the table of options fits."""
_NUMBER = typer.main.get_click_type(annotation=int, parameter_info=typer.models.OptionInfo())


class Command(TyperCommand):
    """A command whose ``--help`` lists the options in `common` only."""

    common: tuple[str, ...] = ()
    """Names of parameters, in the order of the help; empty for all."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; of the options only the common ones, unless ``--help-all`` was given."""
        parameters = self.params
        attributes = [(each, vars(each).copy()) for each in parameters]
        try:
            if self.common and not ctx.meta.get(_SHOW_ALL):
                self._keep_common()
            if shutil.get_terminal_size().columns < _WIDE:
                self._narrow()
            super().format_help(ctx, formatter)
        finally:
            self.params = parameters
            for each, values in attributes:
                vars(each).update(values)

    def _keep_common(self) -> None:
        """Keep the common options only, in one panel."""
        by_name = {each.name: each for each in self.params}
        shown = [by_name[name] for name in (*self.common, "help_all")]
        for each in shown:
            each.rich_help_panel = None  # type: ignore[attr-defined]
        self.params = [*(each for each in self.params if each.param_type_name == "argument"), *shown]

    def _narrow(self) -> None:
        """Leave out ranges, and name ``--no-...`` in the description: the table has columns for them."""
        for each in self.params:
            if isinstance(each, TyperOption):
                if each.secondary_opts:
                    each.help = f"{each.help} Opposite: {', '.join(each.secondary_opts)}."
                    each.secondary_opts = []
                if hasattr(each.type, "min"):
                    each.type = _NUMBER


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
