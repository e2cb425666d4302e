"""Checks the wording of documents, of the package's messages and help texts, and of the tests' names.

`python -m tests.style` is part of `make lint`.  A line is exempt from one rule if it ends in a comment that
quotes the match: `<!-- style: told -->` in Markdown, `# style: told` in Python.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.docs import documents
from tests.peers import ROOT

PACKAGE = ROOT / "llama_convert"
GITHUB = ROOT / ".github"


@dataclass(frozen=True)
class Rule:
    """Wording to avoid."""

    pattern: str
    """A regular expression, without regard to case."""
    instead: str
    unless: str = r"(?!)"
    """A line that matches this is exempt."""


RULES = (
    # one term for one concept
    Rule(r"(both|each|either|the two|the other) sides?", "source and output"),
    Rule(r"(Meta|Face)'s (own )?(layout|form)", "Meta format, Hugging Face format"),
    Rule(r"a file a \w+", "one file per"),
    Rule(r"words?", "token, vocabulary size"),
    Rule(r"cuts?", "split, sharded along dim N"),
    Rule(r"anew", "re-read, re-created, again"),
    Rule(r"(rows? that|they) turn", "permute"),
    Rule(r"reorder(s|ed|ing)?", "permute"),
    Rule(r"(takes?|took|taken|taking) for", "detect, assume"),
    Rule(r"(is|are) (the source's|another's|another)", "matches, differs from"),
    Rule(r"digest(ed|ing)", "checksum, hash, verify"),
    Rule(r"(hold|holds|held|holding)\b[^.:;|]{0,60}\bagainst", "compare with, verify against"),
    Rule(r"(go|goes|going|gone|went) on (from|with)", "resume"),
    Rule(r"(stands?|stood|standing|lies|lay)", "exists, is in"),
    Rule(r"beside", "next to"),
    Rule(r"publish(es|ed|ing)?", "finalize", unless=r"Hub|checksum|SHA-256|MD5|PyPI"),
    Rule(r"foreign", "unofficial"),
    Rule(r"vanish(es|ed)?", "underflow to zero"),
    Rule(r"(?<!at )least", "min"),
    Rule(r"largest", "max"),
    Rule(r"(?<!standard )deviations?", "standard deviation"),
    Rule(r"far", "remote", unless=r"so far|as far as|too far"),
    Rule(r"elsewhere", "remote, in another place"),
    Rule(r"(remarks?|odd|oddity|oddities)", "warning, note"),
    Rule(r"(hardness|how hard)", "perplexity"),
    Rule(r"(speaks?|spoke|spoken|babbles?)", "generates, perplexity"),
    Rule(r"continuations?", "completion"),
    Rule(r"(says?|said)", "generates, states, contains"),
    Rule(r"not run", "skipped"),
    Rule(r"stopped", "interrupted"),
    # mannerisms
    Rule(r"(told|tells?)", "reports, detects, shows"),
    Rule(r"(whoever|somebody|nobody)", "the subject: a user, a process, another run"),
    Rule(r"of (its|their) own", "own, separate, custom"),
    Rule(r"be it", "whether"),
    Rule(r"(lest|whence)", "so that not, from where"),
    Rule(r"such as", "for example"),
    Rule(r"(licence|quantis\w+|neighbour\w*|behaviour\w*|colour\w*|unrecognis\w+|optimis\w+)", "US spelling"),
)
_COMPILED = [(re.compile(rf"\b(?:{rule.pattern})\b", re.IGNORECASE), rule) for rule in RULES]

_NOT_PROSE = re.compile(
    r"^```.*?^```$"  # code blocks
    r"|<!-- computed: .*?<!-- end of computed part -->"  # help texts: checked in the modules
    r"|`[^`\n]+`"  # names, commands, quoted messages
    r"|\]\([^)]*\)"  # targets of links
    r"|^#+ [A-Z_]+$",  # error codes
    re.MULTILINE | re.DOTALL,
)
_EXEMPT = re.compile(r"(?:<!--|#) style: (.+?)(?: -->|$)")


@dataclass(frozen=True)
class Fault:
    """One place that breaks a rule."""

    file: Path
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.message}"


def faults_of_text(text: str, line: str) -> Iterator[str]:
    """What is wrong with a piece of prose in a line of a file."""
    exempt = {match.lower() for match in _EXEMPT.findall(line)}
    for pattern, rule in _COMPILED:
        for match in pattern.finditer(text):
            if match[0].lower() not in exempt and not re.search(rule.unless, text):
                yield f"'{match[0]}': use {rule.instead}"


def faults_of_document(file: Path) -> Iterator[Fault]:
    """Wording to avoid in a Markdown file; code is not prose."""
    text = file.read_text(encoding="utf-8")
    prose = _NOT_PROSE.sub(lambda match: "\n" * match[0].count("\n") or " ", text)
    for number, (piece, line) in enumerate(zip(prose.split("\n"), text.split("\n"), strict=True), start=1):
        for message in faults_of_text(_EXEMPT.sub("", piece), line):
            yield Fault(file, number, message)


def faults_of_strings(file: Path) -> Iterator[Fault]:
    """Wording to avoid, and more than one semicolon, in the strings of a module that a user can see."""
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node, text in _visible_strings(ast.parse(source)):
        line = lines[node.lineno - 1]
        for message in faults_of_text(text, line):
            yield Fault(file, node.lineno, message)
        if text.count(";") > 1 and ";" not in _EXEMPT.findall(line):
            yield Fault(file, node.lineno, "more than one semicolon in a message")


def _visible_strings(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Strings of several words, and the docstrings of commands: help texts.  No other docstrings."""
    hidden = set(_other_docstrings(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            hidden |= set(node.values)
            text = "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in hidden:
            text = node.value
        else:
            continue
        if re.search(r"[a-z] \w|\w [a-z]", text):
            yield node, text


def _other_docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        is_command = isinstance(node, ast.FunctionDef) and node.name.endswith("_command")
        for each in body if isinstance(body, list) and not is_command else []:
            if isinstance(each, ast.Expr):
                yield each.value


def faults_of_test_names(file: Path) -> Iterator[Fault]:
    """Wording to avoid in the names of a module's tests."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name.lower().startswith("test"):
            for message in faults_of_text(node.name.replace("_", " "), ""):
                yield Fault(file, node.lineno, message)


def all_faults() -> Iterator[Fault]:
    """Everything that is wrong."""
    for file in [*(document.path for document in documents()), *sorted(GITHUB.rglob("*.md"))]:
        yield from faults_of_document(file)
    for file in sorted(PACKAGE.rglob("*.py")):
        yield from faults_of_strings(file)
    for file in sorted((ROOT / "tests").glob("*.py")):
        yield from faults_of_test_names(file)


if __name__ == "__main__":
    found = list(all_faults())
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
