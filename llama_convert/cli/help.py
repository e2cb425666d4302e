"""``llama-convert help`` and ``llama-convert explain``: show the documentation."""

from __future__ import annotations

from typing import Annotated

import typer


def _topics(incomplete: str) -> list[str]:
    """Shell completion of topics."""
    from llama_convert.cli.documentation import pages

    return [topic for topic in pages() if topic.startswith(incomplete)]


def _codes(incomplete: str) -> list[str]:
    """Shell completion of error codes."""
    from llama_convert.cli.documentation import pages

    return [code for code in pages()["error-codes"].headings if code.startswith(incomplete)]


Topic = Annotated[
    str | None,
    typer.Argument(
        metavar="TOPIC",
        autocompletion=_topics,
        show_default=False,
        help="The page to show. Lists all pages by default.",
    ),
]
Code = Annotated[
    str,
    typer.Argument(
        metavar="CODE",
        autocompletion=_codes,
        show_default=False,
        help="An error code, in upper or lower case.",
    ),
]


def help_command(topic: Topic = None) -> None:
    """Show a page of the documentation, or list the pages.

    [bold]Examples[/bold]

      llama-convert help

      llama-convert help getting-started
    """
    from llama_convert.cli.documentation import find_page, render
    from llama_convert.cli.errors import handle_errors

    with handle_errors(as_json=False, debug=False):
        if topic is None:
            _list_pages()
            return
        if topic == "json-schema":
            from llama_convert.json_output import schema_text

            typer.echo(schema_text(), nl=False)
            return
        page = find_page(topic)
        render(page.text)
        if page.related:
            typer.echo(f"\nSee also: llama-convert help {' | '.join(page.related)}")


def explain_command(code: Code) -> None:
    """Explain an error code: meaning, usual cause and remedy.

    [bold]Examples[/bold]

      llama-convert explain INPUT_CRC
    """
    from llama_convert.cli.documentation import find_code, render
    from llama_convert.cli.errors import handle_errors

    with handle_errors(as_json=False, debug=False):
        render(find_code(code))


def _list_pages() -> None:
    from llama_convert.cli.documentation import KINDS, pages

    typer.echo("Show a page:      llama-convert help TOPIC")
    typer.echo("Explain an error: llama-convert explain CODE")
    typer.echo("List options:     llama-convert COMMAND --help")
    known = pages().values()
    width = max(len(page.topic) for page in known)
    for kind in KINDS:
        typer.echo(f"\n{kind.capitalize()}s" if kind != "reference" else "\nReference")
        for page in known:
            if page.kind == kind:
                typer.echo(f"  {page.topic:{width}}  {page.title}")
