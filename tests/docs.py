"""The documents: README and pages, their examples, and their computed parts.

`python -m tests.docs` renews the computed parts.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import typer

from llama_convert import convert
from llama_convert.cli.app import app
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.releases import RELEASES, Release, Size
from llama_convert.llama.weights import huggingface_weights
from llama_convert.units import format_size
from tests import plant
from tests.peers import ROOT
from tests.run import llama_convert
from tests.schema import schema

README = ROOT / "README.md"
PAGES = ROOT / "llama_convert" / "docs"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PART = "<!-- computed: {} -->\n{}<!-- end of computed part -->\n"
_ANYTHING = "(?s:.*?)"


@dataclass(frozen=True)
class Document:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The text without code blocks."""
        return _FENCE.sub("", self.text)

    def code(self, *languages: str) -> list[str]:
        """The code blocks in these languages."""
        return [body for language, body in _FENCE.findall(self.text) if language in languages]

    @property
    def languages(self) -> set[str]:
        return {language for language, _ in _FENCE.findall(self.text)}

    def commands(self, *languages: str) -> list[str]:
        """The lines of these code blocks, with continuation lines joined and comments removed."""
        lines = "\n".join(self.code(*languages)).replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]

    @property
    def anchors(self) -> set[str]:
        """The anchors of the headings, as GitHub makes them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    @property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)]+)\)", self.prose)

    def section(self, title: str) -> str:
        """The text under a heading, up to the next heading of any level."""
        _, found, rest = self.text.partition(f"# {title}\n")
        assert found, f"{self.name} has no section {title!r}"
        return rest.partition("\n#")[0]

    def first_column(self, title: str) -> set[str]:
        """The code words in the first column of the tables in a section."""
        cells = [line.split(" | ")[0] for line in self.section(title).splitlines() if line.startswith("|")]
        return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def documents() -> list[Document]:
    """The README and every page."""
    return [Document(README), *map(Document, sorted(PAGES.glob("*.md")))]


def page(topic: str) -> Document:
    """A page by its topic."""
    return Document(PAGES / f"{topic}.md")


def commands_of_the_app() -> dict[str, Any]:
    """Every command of the command line, by name."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def reference(command: str) -> Iterator[str]:
    """Usage, arguments and options of a command, as `--help` describes them."""
    parameters = commands_of_the_app()[command].params
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    options = [each for each in parameters if each.param_type_name == "option"]
    usage = ["llama-convert", command, *(["[OPTIONS]"] if options else []), *(_usage(a) for a in arguments)]
    yield from ("```text", " ".join(usage), "```", "", "| argument | |", "|---|---|")
    for argument in arguments:
        yield f"| `{argument.metavar or argument.human_readable_name}` | {_escaped(argument.help or '')} |"
    if not options:
        return
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(option)
    yield from ("", "| option | default | |", "|---|---|---|")
    for panel, members in panels.items():
        yield f"| **{panel}** | | |"
        for option in members:
            yield f"| {_names(option)} | {_default(option)} | {_escaped(option.help or '')} |"


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.human_readable_name
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    takes = "" if option.is_flag else f" `{option.metavar or option.type.name.upper()}`"
    return _escaped(names + takes)


def _default(option: Any) -> str:
    if option.default in (None, False) or callable(option.default) or not option.show_default:
        return ""
    return f"`{option.opts[0]}`" if option.default is True else f"`{option.default}`"


def _escaped(text: str) -> str:
    """Rich's markup, as Markdown."""
    return text.replace("\\[", "[").replace("|", "\\|")


def _config(release: Release, size: Size) -> LlamaConfig:
    return LlamaConfig(
        dim=size.dim,
        n_layers=size.n_layers,
        n_heads=size.n_heads,
        n_kv_heads=size.n_kv_heads,
        head_dim=size.dim // size.n_heads,
        ffn_dim=size.ffn_dim,
        vocab_size=128256 if release.tokenizer == "tiktoken" else 32000,
        norm_eps=size.norm_eps[0],
        rope_theta=release.rope_theta,
        rope_scaling=None,
        context_length=release.context_length,
        tied=release.tied,
    )


def sizes() -> Iterator[str]:
    """Parameters, disk and memory of each released size, at two bytes per parameter."""
    rows: dict[tuple[int, int], tuple[list[str], int]] = {}
    for release in sorted(RELEASES, key=lambda release: release.version):
        for size in release.sizes:
            config = _config(release, size)
            weights = [weight.shape(config) for weight in huggingface_weights(config)]
            elements = [shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in weights]
            layer = sum(elements[1:10])
            names, _ = rows.setdefault((sum(elements), layer), ([], 0))
            names.append(f"{release.version} {size.label}".replace("code", "Code"))
    yield "| model | parameters | output size, and all the disk `convert` needs | one layer in float32 |"
    yield "|---|---|---|---|"
    for (total, layer), (names, _) in sorted(rows.items()):
        label = ", ".join(names)
        yield f"| {label} | {total:,} | {format_size(2 * total)} | {format_size(4 * layer)} |"


def failure() -> Iterator[str]:
    """What `verify` prints about a conversion with three wrong tensors; times are fixed."""
    source, output = "Llama-3.1-8B-Instruct", "llama-3.1-8b-hf"
    with TemporaryDirectory() as folder, chdir(folder), mock.patch.dict(os.environ, COLUMNS="80"):
        shutil.copytree(ROOT / "fixtures" / "llama3.1-mp2", source)
        convert(source, output)
        plant.rewrite(Path(output), plant.swapped((plant.gate(0), plant.up(0))))
        plant.rewrite(Path(output), plant.each([plant.q(1)], lambda weight: plant.unpermuted(weight, 16)))
        run = llama_convert("verify", output, "--source", source, "--check", "values,weights,logits")
    assert run.exit_code == 1
    fixed = re.sub(r" *\d+\.\d s(?=  )", lambda time: "0.1 s".rjust(len(time[0])), run.stdout)
    yield from ("```text", *fixed.splitlines(), "```")


def fields(definition: dict[str, Any]) -> Iterator[str]:
    """The fields of an object of the JSON output, as the schema describes them."""
    yield from ("| field | type | |", "|---|---|---|")
    for name, field in definition["properties"].items():
        yield f"| `{name}` | {_type(field)} | {field['description']} |"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        options = [each for each in field["anyOf"] if each != {"type": "null"}]
        if len(options) > 1:
            return "object"
        return f"{_type(options[0])} or null"
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    names = field["type"] if isinstance(field["type"], list) else [field["type"]]
    texts = [f"array of {_type(field['items'])}" if name == "array" else name for name in names]
    values = ", ".join(f"`{value}`" for value in field.get("enum", ()) if isinstance(value, str))
    return " or ".join(texts) + (f": {values}" if values else "")


def parts() -> dict[str, Callable[[], Iterator[str]]]:
    """The computed parts, by the name in their marker."""
    references = {f"reference of {name}": partial(reference, name) for name in commands_of_the_app()}
    objects = {
        f"fields of {name}": partial(fields, part)
        for name, part in schema()["$defs"].items()
        if "required" in part
    }
    return references | objects | {"sizes": sizes, "a failed verification": failure}


def renewed(text: str) -> str:
    """The text with each computed part as it is now."""
    for name, compute in parts().items():
        for found in re.findall(_PART.format(re.escape(name), _ANYTHING), text):
            text = text.replace(found, _PART.format(name, "".join(f"{line}\n" for line in compute())))
    return text


def marked() -> list[str]:
    """The names in all markers of computed parts."""
    return [name for each in documents() for name in re.findall(r"<!-- computed: (.+?) -->", each.text)]


if __name__ == "__main__":
    for document in documents():
        document.path.write_text(renewed(document.text), encoding="utf-8")
