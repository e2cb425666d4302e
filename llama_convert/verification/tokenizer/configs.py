"""What other files of a folder say about its tokenizer."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from jinja2 import Environment, TemplateSyntaxError

from llama_convert.errors import InputError
from llama_convert.findings import Finding, severity_of
from llama_convert.formats.files import MAX_TOKENIZER_JSON, read_small
from llama_convert.formats.strict_json import MAX_LISTS_OF_TOKENIZER, JsonError, parse_json
from llama_convert.verification.tokenizer.original import Original
from llama_convert.verification.tokenizer.vocabulary import MARK
from llama_convert.verification.tokenizer.wording import Wrong, group, listed, short
from llama_convert.verification.tokenizer.written import Json

T = TypeVar("T")

_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_MAX_TEMPLATE = 1 << 20
_GUARD_TASK = "Check if there is unsafe content in"
"""What every chat template of Llama Guard asks.  Its published tokenizers leave the BOS to the template."""
_JINJA = Environment(extensions=["jinja2.ext.loopcontrols"])
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""The tags that transformers adds to Jinja."""
_MARKS = re.compile(r"<\|\w+\|>")
"""How Llama 3 spells special tokens."""


class _Said(NamedTuple):
    """An id that a file gives under a key."""

    file: str
    key: str
    shown: str
    number: int


class Configs:
    """The files of a folder that say something about the tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.unreadable: list[Finding] = []
        self._content = {name: self._read(folder / name) for name in _FILES}
        self.templates = list(self._templates(folder))
        """Chat templates, after the file that each is in."""

    def _read(self, path: Path) -> Json:
        """What a file says, which is nothing where there is none."""
        data = self._content_of(path, MAX_TOKENIZER_JSON)
        if data is None:
            return {}
        try:
            content = parse_json(data, max_lists=MAX_LISTS_OF_TOKENIZER)
        except JsonError as error:
            self.unreadable.append(Finding("CONFIG_UNREADABLE", str(error), file=path.name, hint=error.hint))
            return {}
        if isinstance(content, dict):
            return content
        self.unreadable.append(Finding("CONFIG_UNREADABLE", "is not a JSON object", file=path.name))
        return {}

    def _content_of(self, path: Path, most: int) -> bytes | None:
        """The bytes of a small file; None where there is none, or it cannot be read."""
        try:
            return read_small(path, most)
        except InputError as error:
            if os.path.lexists(path):
                message = f"cannot be read: {error.message}"
                self.unreadable.append(Finding("CONFIG_UNREADABLE", message, file=path.name, hint=error.hint))
            return None

    def _templates(self, folder: Path) -> Iterator[tuple[str, str]]:
        inline = self._content["tokenizer_config.json"].get("chat_template")
        for template in inline if isinstance(inline, list) else [inline]:
            text = template.get("template") if isinstance(template, dict) else template
            if isinstance(text, str):
                yield "tokenizer_config.json", text
        for pattern in ("chat_template.jinja", "additional_chat_templates/*.jinja"):
            for path in sorted(folder.glob(pattern)):
                if (data := self._content_of(path, _MAX_TEMPLATE)) is not None:
                    yield path.name, data.decode("utf-8", errors="replace")

    @property
    def vocab_size(self) -> int | None:
        """The embedding's rows by config.json."""
        rows = self._content["config.json"].get("vocab_size")
        return rows if isinstance(rows, int) else None

    @property
    def is_guard(self) -> bool:
        """Whether this is a Llama Guard, whose chat template is its task."""
        return any(_GUARD_TASK in template for _, template in self.templates)

    def findings(self, original: Original, ids: Mapping[str, int]) -> Iterator[Finding]:
        """What contradicts the tokenizer."""
        yield from self.unreadable
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            yield from self._role(role, original, ids)
        if self._content["tokenizer_config.json"].get("add_bos_token") is False:
            message = "add_bos_token is false, and transformers puts no BOS before a text"
            yield Finding(
                "TOKENIZER_BOS",
                message,
                file="tokenizer_config.json",
                severity=severity_of(warning=self.is_guard),
            )
        yield from self._descriptions(ids)
        for file, template in self.templates:
            written = _MARKS.findall(template) if original.kind == "tiktoken" else []
            yield from _template(file, template, [mark for mark in written if mark not in ids])

    def _role(self, role: str, original: Original, ids: Mapping[str, int]) -> Iterator[Finding]:
        """The BOS is the tokenizer's; what ends a text is special; what is called the end does end it."""
        numbered = list(self._values(f"{role}_id", int))
        said = [_Said(file, f"{role}_id", str(number), number) for file, number in numbered]
        absent: defaultdict[str, list[str]] = defaultdict(list)
        for file, name in self._values(role, str):
            if name in ids:
                said.append(_Said(file, role, f"{name!r}, id {ids[name]}", ids[name]))
            else:
                absent[file].append(repr(name))
        for file, names in absent.items():
            message = f"{role} is {listed(names)}, which tokenizer.json does not have"
            yield Finding("TOKEN_ROLE", message, file=file)
        if role == "bos_token":
            yield from _contrary("BOS_ID", said, {original.bos}, "not the BOS")
        elif role == "eos_token":
            special = {n for name, n in ids.items() if n >= len(original.names) or MARK.fullmatch(name)}
            yield from _contrary("EOS_ID", said, special | set(original.special), "not a special token")
            stops = {number for _, number in numbered}
            yield from _contrary("EOS_ID", said if stops else [], stops, "where generation does not stop")

    def _values(self, key: str, kind: type[T]) -> Iterator[tuple[str, T]]:
        """What files give for a role, after the files."""
        for file, content in self._content.items():
            value = content.get(key)
            for each in value if isinstance(value, list) else [value]:
                each = each.get("content") if isinstance(each, dict) else each
                if isinstance(each, kind):
                    yield file, each

    def _descriptions(self, ids: Mapping[str, int]) -> Iterator[Finding]:
        """`added_tokens_decoder` repeats tokenizer.json; versions of transformers differ where it does."""
        described = self._content["tokenizer_config.json"].get("added_tokens_decoder")
        tokens = described.items() if isinstance(described, dict) else ()
        named = [(number, str(token.get("content"))) for number, token in tokens if isinstance(token, dict)]
        wrong = [
            Wrong(f"{name!r} {number}", f"{name!r} at id {ids.get(name, 'none')}", number)
            for number, name in named
            if str(ids.get(name)) != number
        ]
        said = "in added_tokens_decoder contrary to tokenizer.json"
        for finding in group("TOKEN_DESCRIBED", "token", said, wrong):
            yield replace(finding, file="tokenizer_config.json")


def _contrary(code: str, said: Iterable[_Said], right: Collection[int], but: str) -> Iterator[Finding]:
    """What files say where the id is none of the right ones: a finding for each file and key."""
    wrong: defaultdict[tuple[str, str], list[_Said]] = defaultdict(list)
    for each in said:
        if each.number not in right:
            wrong[each.file, each.key].append(each)
    for (file, key), those in wrong.items():
        message = f"{key} is {listed([each.shown for each in those])}, {but}"
        expected, found = listed(sorted(right)), listed([each.number for each in those])
        yield Finding(code, message, file=file, expected=expected, found=found)


def _template(file: str, template: str, absent: list[str]) -> Iterator[Finding]:
    """Whether a chat template is Jinja, and the special tokens it writes are there."""
    try:
        _JINJA.parse(_GENERATION.sub("", template))
    except TemplateSyntaxError as error:
        message = f"the chat template is not Jinja: line {error.lineno}: {short(error.message)}"
        yield Finding("CHAT_TEMPLATE", message, file=file)
    except (RecursionError, ValueError):
        message = "the chat template is not Jinja: nested too deeply, or a number is too long"
        yield Finding("CHAT_TEMPLATE", message, file=file)
    if absent:
        names = listed([repr(name) for name in dict.fromkeys(absent)])
        message = f"the chat template writes {names}, which tokenizer.json does not have"
        yield Finding("CHAT_TEMPLATE", message, file=file)
