"""Settings of the tokenizer in other files of its folder, and chat templates."""

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
from llama_convert.verification.tokenizer.grouping import Problem, group, listed, short
from llama_convert.verification.tokenizer.tokenizer_json import Json
from llama_convert.verification.tokenizer.tokenizer_model import Original
from llama_convert.verification.tokenizer.vocabulary import MARK

T = TypeVar("T")

_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_MAX_TEMPLATE = 1 << 20
_GUARD_TASK = "Check if there is unsafe content in"
"""Text in every chat template of Llama Guard, whose official tokenizers leave the BOS to the template."""
_JINJA = Environment(extensions=["jinja2.ext.loopcontrols"])
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags that transformers adds to Jinja."""
_MARKS = re.compile(r"<\|\w+\|>")
"""The form of names of special tokens in Llama 3."""


class _Setting(NamedTuple):
    """A token id in a file, under a key."""

    file: str
    key: str
    shown: str
    number: int


class Configs:
    """The files of a folder with settings of the tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.unreadable: list[Finding] = []
        self._content = {name: self._read(folder / name) for name in _FILES}
        self.templates = list(self._templates(folder))
        """Chat templates: name of the file, and the template."""

    def _read(self, path: Path) -> Json:
        """The content of a JSON file; empty if the file is missing or unreadable."""
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
        self.unreadable.append(Finding("CONFIG_UNREADABLE", "Not a JSON object.", file=path.name))
        return {}

    def _content_of(self, path: Path, most: int) -> bytes | None:
        """The bytes of a small file; None if it is missing or unreadable."""
        try:
            return read_small(path, most)
        except InputError as error:
            if os.path.lexists(path):
                message = f"Cannot be read: {error.message}"
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
        """The vocabulary size in config.json."""
        rows = self._content["config.json"].get("vocab_size")
        return rows if isinstance(rows, int) else None

    @property
    def is_guard(self) -> bool:
        """Whether this is a Llama Guard, recognized by its chat template."""
        return any(_GUARD_TASK in template for _, template in self.templates)

    def findings(self, original: Original, ids: Mapping[str, int]) -> Iterator[Finding]:
        """Settings that contradict the tokenizer."""
        yield from self.unreadable
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            yield from self._role(role, original, ids)
        if self._content["tokenizer_config.json"].get("add_bos_token") is False:
            message = "add_bos_token is false, so transformers adds no BOS."
            yield Finding(
                "TOKENIZER_BOS",
                message,
                file="tokenizer_config.json",
                severity=severity_of(warning=self.is_guard),
            )
        yield from self._descriptions(ids)
        for file, template in self.templates:
            used = _MARKS.findall(template) if original.kind == "tiktoken" else []
            yield from _template(file, template, [name for name in used if name not in ids])

    def _role(self, role: str, original: Original, ids: Mapping[str, int]) -> Iterator[Finding]:
        """Findings on a role: BOS is the tokenizer's, EOS is a special token at which generation stops."""
        numbered = list(self._values(f"{role}_id", int))
        settings = [_Setting(file, f"{role}_id", str(number), number) for file, number in numbered]
        absent: defaultdict[str, list[str]] = defaultdict(list)
        for file, name in self._values(role, str):
            if name in ids:
                settings.append(_Setting(file, role, f"{name!r} (id {ids[name]})", ids[name]))
            else:
                absent[file].append(repr(name))
        for file, names in absent.items():
            message = f"{role} is {listed(names)}, which is not in tokenizer.json."
            yield Finding("TOKEN_ROLE", message, file=file)
        if role == "bos_token":
            yield from _wrong_ids("BOS_ID", settings, {original.bos}, "not the BOS")
        elif role == "eos_token":
            special = {n for name, n in ids.items() if n >= len(original.names) or MARK.fullmatch(name)}
            yield from _wrong_ids("EOS_ID", settings, special | set(original.special), "not a special token")
            stops = {number for _, number in numbered}
            what = "at which generation does not stop"
            yield from _wrong_ids("EOS_ID", settings if stops else [], stops, what)

    def _values(self, key: str, kind: type[T]) -> Iterator[tuple[str, T]]:
        """The values of a key in all files, each after the name of its file."""
        for file, content in self._content.items():
            value = content.get(key)
            for each in value if isinstance(value, list) else [value]:
                each = each.get("content") if isinstance(each, dict) else each
                if isinstance(each, kind):
                    yield file, each

    def _descriptions(self, ids: Mapping[str, int]) -> Iterator[Finding]:
        """Entries of `added_tokens_decoder` that contradict tokenizer.json.

        Versions of transformers differ in which of both they read.
        """
        described = self._content["tokenizer_config.json"].get("added_tokens_decoder")
        tokens = described.items() if isinstance(described, dict) else ()
        named = [(number, str(token.get("content"))) for number, token in tokens if isinstance(token, dict)]
        problems = [
            Problem(f"{name!r} (id {number})", f"{name!r} at id {ids.get(name, 'none')}", number)
            for number, name in named
            if str(ids.get(name)) != number
        ]
        what = "in added_tokens_decoder that differ from tokenizer.json"
        for finding in group("ADDED_TOKENS_MISMATCH", "token", what, problems):
            yield replace(finding, file="tokenizer_config.json")


def _wrong_ids(
    code: str, settings: Iterable[_Setting], correct: Collection[int], what: str
) -> Iterator[Finding]:
    """A finding for each file and key with ids that are not correct."""
    wrong: defaultdict[tuple[str, str], list[_Setting]] = defaultdict(list)
    for each in settings:
        if each.number not in correct:
            wrong[each.file, each.key].append(each)
    for (file, key), of_key in wrong.items():
        message = f"{key} is {listed([each.shown for each in of_key])}, {what}."
        expected, found = listed(sorted(correct)), listed([each.number for each in of_key])
        yield Finding(code, message, file=file, expected=expected, found=found)


def _template(file: str, template: str, absent: list[str]) -> Iterator[Finding]:
    """Findings if a chat template is not valid Jinja, or uses special tokens that do not exist."""
    try:
        _JINJA.parse(_GENERATION.sub("", template))
    except TemplateSyntaxError as error:
        message = f"The chat template is not valid Jinja: line {error.lineno}: {short(error.message)}"
        yield Finding("CHAT_TEMPLATE_INVALID", message, file=file)
    except (RecursionError, ValueError):
        message = "The chat template is not valid Jinja: nested too deeply, or a number is too long."
        yield Finding("CHAT_TEMPLATE_INVALID", message, file=file)
    if absent:
        names = listed([repr(name) for name in dict.fromkeys(absent)])
        message = f"The chat template uses {names}, which tokenizer.json does not have."
        yield Finding("CHAT_TEMPLATE_INVALID", message, file=file)
