"""The parts of the README that are computed; `python -m tests.readme` renews them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import typer

from llama_convert.cli.app import app
from llama_convert.llama.config import LlamaConfig
from llama_convert.llama.releases import RELEASES, Release, Size
from llama_convert.llama.weights import huggingface_weights
from llama_convert.units import format_size
from tests.peers import ROOT

README = ROOT / "README.md"
COMMANDS = ("convert", "shard", "verify", "inspect")
_PART = "<!-- computed: {} -->\n{}<!-- until here -->\n"
_ANYTHING = "(?s:.*?)"


def options(command: str) -> Iterator[str]:
    """What `--help` says of each option, a row each, in its panels."""
    panels: dict[str, list[Any]] = {}
    for option in typer.main.get_command(app).commands[command].params:  # type: ignore[attr-defined]
        if option.param_type_name == "option":
            panels.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(option)
    yield "| option | default | |"
    yield "|---|---|---|"
    for panel, members in panels.items():
        yield f"| **{panel}** | | |"
        for option in members:
            yield f"| {_names(option)} | {_default(option)} | {_escaped(option.help or '')} |"


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
    """What each size takes, in the two bytes a weight that it was released in."""
    rows: dict[tuple[int, int], tuple[list[str], int]] = {}
    for release in sorted(RELEASES, key=lambda release: release.version):
        for size in release.sizes:
            config = _config(release, size)
            weights = [weight.shape(config) for weight in huggingface_weights(config)]
            elements = [shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in weights]
            layer = sum(elements[1:10])
            names, _ = rows.setdefault((sum(elements), layer), ([], 0))
            names.append(f"{release.version} {size.label}".replace("code", "Code"))
    yield "| | parameters | the output, and all the disk `convert` needs | one layer in float32 |"
    yield "|---|---|---|---|"
    for (total, layer), (names, _) in sorted(rows.items()):
        label = ", ".join(names)
        yield f"| {label} | {total:,} | {format_size(2 * total)} | {format_size(4 * layer)} |"


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    **{f"options of {name}": partial(options, name) for name in COMMANDS},
    "sizes": sizes,
}


def renewed(text: str) -> str:
    """The README with each computed part as it is now."""
    for name, compute in PARTS.items():
        whole = _PART.format(name, "".join(f"{line}\n" for line in compute()))
        found = re.findall(_PART.format(name, _ANYTHING), text)
        assert len(found) == 1, f"README.md has {len(found)} places for {name!r}"
        text = text.replace(found[0], whole)
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
