"""The tokenizer: the ids of every text, as Meta's code has them.

The original is run by tiktoken or sentencepiece, tokenizer.json by the library `tokenizers`; nothing here is
shared with the converter.  Texts can only sample a tokenizer, so all tokens and all merges are compared too.
"""

from __future__ import annotations

import json
import re
import struct
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import sentencepiece
import tiktoken
from tokenizers import Tokenizer

from llama_convert.errors import InputError
from llama_convert.verify.corpus import CORPUS
from llama_convert.verify.report import Finding

Ids = list[int]
Json = dict[str, Any]
Numbers = np.ndarray[Any, np.dtype[np.int64]]

# Meta's llama-models, `llama3/tokenizer.py`: `pat_str` and `num_reserved_special_tokens`.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_SPECIAL = 256

# Llama 3's special tokens by their distance from the first; releases name some of these, and move none.
SPECIAL_NAMES = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|finetune_right_pad_id|>": 4,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
    "<|python_tag|>": 10,
}
NAMED_BY_ALL = [name for name, offset in SPECIAL_NAMES.items() if offset in (0, 1, 6, 7, 9)]
_RESERVED = re.compile(r"<\|reserved_special_token_(\d+)\|>")

SPACE = "▁"
"""How sentencepiece writes a space."""

_UNORDERED = re.compile(rf"{SPACE}+|{SPACE}<.*", re.DOTALL)
"""Pieces that are merged earlier or later than their ids say: Llama 2's runs of spaces, which come last, and
what Code Llama adds, such as `▁<PRE>`."""
_MARK = re.compile(rf"{SPACE}?<[^<>]+>")
"""A piece of sentencepiece that may also be a special token, as `▁<PRE>` and `<step>` are."""

_GUARD_TASK = "Check if there is unsafe content in"
"""What every chat template of Llama Guard asks.  Its published tokenizers leave the BOS to the template."""

_SHOWN = 10


@dataclass
class TokenizerCheck:
    """What one look at a tokenizer says."""

    findings: list[Finding]
    summary: str
    """What was looked at."""
    measures: dict[str, Any] = field(default_factory=dict)
    """How many tokens, merges and texts."""


def compare_tokenizers(original: Path, folder: Path, vocab_size: int | None = None) -> TokenizerCheck:
    """Meta's `tokenizer.model` against the tokenizer.json and the configs of `folder`.

    Any token, merge or special token that differs is found, whether or not a text shows it; how text is
    normalised, cut and decoded is found out with texts: a hard corpus, and every token's own.
    `vocab_size` is the embedding's rows; without it, config.json says them.
    """
    try:
        return _compare(_open(original), _read(folder / "tokenizer.json"), folder, vocab_size)
    except InputError as error:
        return TokenizerCheck([Finding.of(error)], f"tokenizer.json was not compared with {original.name}")


def check_tokenizer(folder: Path, vocab_size: int | None = None) -> TokenizerCheck | None:
    """The tokenizer of a Hugging Face folder by itself; None where there is none.

    A tokenizer.model in the folder is the original.  Without one, the original is what the vocabulary
    implies: Llama 3's ids are tiktoken's ranks, and sentencepiece's scores fall as merges go on.  Since ids
    rise with the merges, two swapped ids still show; not so for single characters, which no merge makes.
    """
    original = _original_in(folder)
    if (folder / "tokenizer.json").is_file():
        if original is None:
            return _check_alone(folder, vocab_size)
        return compare_tokenizers(original, folder, vocab_size)
    if original is None:
        return None
    check = check_original(original, vocab_size)
    message = f"there is no tokenizer.json, only {original.name}"
    hint = "`convert --model_size tokenizer_only` writes one."
    check.findings.append(
        Finding("TOKENIZER_MISSING", message, file="tokenizer.json", hint=hint, warning=True)
    )
    return check


def check_original(path: Path, vocab_size: int | None = None) -> TokenizerCheck:
    """Meta's `tokenizer.model` by itself: whole, as large as the embedding, in order, no text lost."""
    try:
        original = _open(path)
    except InputError as error:
        return TokenizerCheck([Finding.of(error)], f"{path.name} was not read")
    findings = [
        *_size(original.n_words, vocab_size),
        *_order_of_parts(original),
        *_round_trips(original),
    ]
    summary = f"{original.n_words:,} tokens of {original.source}, and {len(CORPUS)} texts there and back"
    measures = {"tokens": original.n_words, "texts": len(CORPUS)}
    return TokenizerCheck([replace(finding, file=path.name) for finding in findings], summary, measures)


# ----------------------------------------------------------------------------------------- the original


@dataclass(frozen=True)
class Original:
    """A tokenizer as Meta's code runs it, its tokens by the names that tokenizer.json has for them."""

    source: str
    kind: Literal["tiktoken", "sentencepiece"]
    names: list[str]
    """Of the ids from 0 on.  Ids beyond have names that the file does not say."""
    n_words: int
    special: Collection[int]
    bos: int
    order: Mapping[str, float | None]
    """The words that are joined and made by joining: the lower, the earlier; None where nothing is known."""
    texts: list[str]
    """What the tokens spell, as far as they spell characters."""
    encode: Callable[[str], Ids]
    decode: Callable[[Ids], str]


def _original_in(folder: Path) -> Path | None:
    """Meta's file, where downloads have it."""
    paths = (folder / "tokenizer.model", folder / "original" / "tokenizer.model")
    return next((path for path in paths if path.is_file()), None)


def _open(path: Path) -> Original:
    """Open a `tokenizer.model` with the library that Meta's code opens it with.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        # The tag of a protocol buffer's first piece; no line of base64 begins so.
        if data.startswith(b"\n"):
            return _sentencepiece(data, f"{path.name} (sentencepiece)")
        return _tiktoken(_ranks(data), f"{path.name} (tiktoken)")
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except (ValueError, RuntimeError) as error:
        message = f"neither sentencepiece nor tiktoken can read it: {_short(str(error))}"
    raise InputError("TOKENIZER_UNREADABLE", message, file=path)


def _ranks(data: bytes) -> dict[bytes, int]:
    """Lines of a token in base64 and its rank."""
    lines = (line.split() for line in data.splitlines() if line)
    return {b64decode(token, validate=True): int(rank) for token, rank in lines}


def _tiktoken(ranks: Mapping[bytes, int], source: str) -> Original:
    """Llama 3's tokenizer.  A ValueError says that the ranks are not all from 0 on, or lack a byte."""
    tokens = sorted(ranks, key=ranks.__getitem__)
    if [ranks[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("its ranks are not those from 0 on, each once")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:  # tiktoken would abort on a text that has this byte
        raise ValueError(f"there is no token for the byte 0x{lacking[0]:02X}")
    encoding = tiktoken.Encoding("", pat_str=PATTERN, mergeable_ranks=dict(ranks), special_tokens={})
    names = [token.decode("latin-1").translate(_LETTERS) for token in tokens]
    texts = (token.decode(errors="ignore") for token in tokens)
    return Original(
        source=source,
        kind="tiktoken",
        names=names,
        n_words=len(tokens) + N_SPECIAL,
        special=range(len(tokens), len(tokens) + N_SPECIAL),
        bos=len(tokens),
        order={name: rank for rank, name in enumerate(names)},
        texts=[text for text, token in zip(texts, tokens, strict=True) if text.encode() == token],
        encode=encoding.encode_ordinary,
        decode=encoding.decode,
    )


def _gpt2_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: its own where that can be seen, else the next from U+0100 on."""
    seen = [byte for byte in range(256) if chr(byte).isprintable() and byte != 0x20]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(0x100 + n) for n, byte in enumerate(unseen)}


_LETTERS = _gpt2_letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}
_BYTE_PIECES = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""The bytes as sentencepiece's pieces."""

# `ModelProto.SentencePiece.Type`
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def _sentencepiece(model: bytes, source: str) -> Original:
    """The tokenizer of LLaMA 1, Llama 2 and Code Llama; the library raises a RuntimeError if it is none."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    names = [processor.id_to_piece(number) for number in range(processor.vocab_size())]
    types = list(_piece_types(processor.serialized_model_proto()))
    normal = {name: number for number, name in enumerate(names) if types[number] == _NORMAL}
    return Original(
        source=source,
        kind="sentencepiece",
        names=names,
        n_words=len(names),
        special=[number for number, kind in enumerate(types) if kind in (_UNKNOWN, _CONTROL)],
        bos=processor.bos_id(),
        order={name: -processor.get_score(number) for name, number in normal.items()},
        # The space before a text comes by itself.
        texts=[name.removeprefix(SPACE).replace(SPACE, " ") for name in normal],
        encode=processor.encode,
        decode=processor.decode,
    )


def _piece_types(model: bytes) -> Iterator[int]:
    """The type of each piece of a serialised model, since the library does not tell "user defined".

    A piece is field 1 of the model; in it are a text, a score of four bytes and, unless it is normal, a type.
    """
    position = 0
    while model[position : position + 1] == b"\n":
        size, position = _read_varint(model, position + 1)
        length, text = _read_varint(model, position + 1)
        position += size
        kind = model[text + length + 5 : position]
        yield kind[1] if kind else _NORMAL


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, seven bits to a byte, and the place after it."""
    value = shift = 0
    while data[position] & 0x80:
        value |= (data[position] & 0x7F) << shift
        shift, position = shift + 7, position + 1
    return value | data[position] << shift, position + 1


# -------------------------------------------------------------------------------------- tokenizer.json


@dataclass(frozen=True)
class Written:
    """What a tokenizer.json says."""

    path: Path
    vocab: dict[str, int]
    added: dict[str, Json]
    """The added tokens by their names."""
    options: Json
    """Of the BPE model."""
    merges: Numbers
    """Each merge as one number, which takes a twentieth of its memory; `pairs` spells them out."""
    unknown: list[str]
    """Merges of what is no token."""

    @property
    def ids(self) -> dict[str, int]:
        """Every token's id by its name; what is said of an added token counts."""
        return self.vocab | {name: token["id"] for name, token in self.added.items()}

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The merges, best first."""
        names = list(self.vocab)
        for left, right in zip(*(side.tolist() for side in np.divmod(self.merges, len(names))), strict=True):
            yield names[left], names[right]


def _read(path: Path) -> Written:
    """Read a tokenizer.json of the kind that all Llamas have.

    Raises:
        InputError: there is none, or it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        other = _original_in(path.parent)
        message = "there is no tokenizer.json" + (f", only {other.name}" if other else "")
        raise InputError("TOKENIZER_MISSING", message, file=path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("TOKENIZER_UNREADABLE", f"is not JSON: {_short(str(error))}", file=path) from None
    try:
        model, vocab = content["model"], content["model"]["vocab"]
        added = {token["content"]: token for token in content["added_tokens"]}
        ids = (*vocab.values(), *(token["id"] for token in added.values()))
        if model.get("type", "BPE") == "BPE" and all(isinstance(number, int) for number in ids):
            options = {name: value for name, value in model.items() if name not in ("vocab", "merges")}
            return Written(path, vocab, added, options, *_coded(vocab, model["merges"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise InputError("TOKENIZER_FORM", "is not a BPE tokenizer with a vocabulary and merges", file=path)


def _coded(vocab: Collection[str], merges: Iterable[Any]) -> tuple[Numbers, list[str]]:
    """Merges by the places of their parts in the vocabulary, and those that have none.

    There are two spellings: ``"a b"``, and from `tokenizers` 0.20 on ``["a", "b"]``.
    """
    places = {name: place for place, name in enumerate(vocab)}
    unknown: list[str] = []

    def codes() -> Iterator[int]:
        for merge in merges:
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            if left in places and right in places:
                yield places[left] * len(places) + places[right]
            else:
                unknown.append(f"{left} {right}")

    return np.fromiter(codes(), np.int64), unknown


def _load(path: Path) -> Tokenizer:
    """Open a tokenizer.json with the library that transformers opens it with.

    Raises:
        InputError: the library refuses it.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        message = f"the library `tokenizers` refuses it: {_short(str(error))}"
        raise InputError("TOKENIZER_UNREADABLE", message, file=path) from None


# ------------------------------------------------------------------------- a folder without its original


def _check_alone(folder: Path, vocab_size: int | None) -> TokenizerCheck:
    try:
        written = _read(folder / "tokenizer.json")
        unnumbered = list(_numbering(written.ids))
        if unnumbered:
            return TokenizerCheck(unnumbered, f"the ids of {len(written.ids):,} tokens")
        implied = _implied(written)
    except InputError as error:
        return TokenizerCheck([Finding.of(error)], "tokenizer.json was not read")
    check = _compare(implied, written, folder, vocab_size)
    check.findings += _order_of_bytes(written.ids)
    return check


def _numbering(ids: Mapping[str, int]) -> Iterator[Finding]:
    """Whether each id from 0 on is some one token's."""
    held = Counter(ids.values())
    twice = [Wrong(f"{name!r} (id {number})") for name, number in ids.items() if held[number] > 1]
    gaps = [Wrong(str(number)) for number in range(max(held, default=0)) if number not in held]
    yield from _group("TOKEN_TWICE", "token", "with an id that another has", twice)
    yield from _group("TOKEN_GAP", "id", "without a token", gaps)


def _implied(written: Written) -> Original:
    """The tokenizer that a tokenizer.json should be, by its own tokens, ids and merges.

    Raises:
        InputError: it is no Llama's.
    """
    words = sorted(written.vocab, key=written.vocab.__getitem__)
    try:
        if len(_BYTE_PIECES.keys() & written.vocab) > 128:
            return _implied_sentencepiece(words, written)
        return _implied_tiktoken([word for word in words if word not in written.added], written)
    except (ValueError, RuntimeError) as error:
        message = f"is not a Llama's: {_short(str(error))}"
        raise InputError("TOKENIZER_FORM", message, file=written.path) from None


def _implied_tiktoken(words: Sequence[str], written: Written) -> Original:
    if not set().union(*words) <= _BYTES.keys():
        raise ValueError("its tokens are made of neither bytes nor sentencepiece's pieces")
    ranks = {bytes(_BYTES[letter] for letter in word): written.vocab[word] for word in words}
    total = len(written.ids)
    special = range(len(words), min(total, len(words) + N_SPECIAL))
    return replace(_tiktoken(ranks, "its ids taken for ranks"), n_words=total, special=special)


def _implied_sentencepiece(words: Sequence[str], written: Written) -> Original:
    """A model of the pieces `words`, whose scores fall in the order in which merges first make them."""
    lacking = [name for name in ("<unk>", "<s>", "</s>", *_BYTE_PIECES) if name not in written.vocab]
    if lacking:
        raise ValueError(f"it has no token {lacking[0]!r}")
    made: dict[str, int] = {}
    for left, right in written.pairs():
        made.setdefault(left + right, len(made))

    def type_of(word: str) -> int:
        if word in _BYTE_PIECES:
            return _BYTE
        if word in written.added and word not in made:
            return _UNKNOWN if word == "<unk>" else _CONTROL
        return _NORMAL

    pieces = ((word, -float(made.get(word, len(made))), type_of(word)) for word in words)
    original = _sentencepiece(_model_proto(pieces), "the order of its merges")
    return replace(
        original,
        n_words=len(written.ids),
        special=[written.vocab[name] for name in ("<unk>", "<s>", "</s>")],
        order={word: None if _UNORDERED.fullmatch(word) else written.vocab[word] for word in original.order},
    )


def _model_proto(pieces: Iterable[tuple[str, float, int]]) -> bytes:
    """A sentencepiece model of the Llama form, of each piece's text, score and type."""

    def message(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        return message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([0x18, kind])

    trainer = b"\x18\x02" + _varint(35 << 3) + b"\x01"  # model_type BPE, byte_fallback
    normalizer = b"\x18\x01\x20\x00"  # add_dummy_prefix, no remove_extra_whitespaces
    return b"".join(
        [*(message(1, piece(*each)) for each in pieces), message(2, trainer), message(3, normalizer)]
    )


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def _order_of_bytes(ids: Mapping[str, int]) -> Iterator[Finding]:
    """Tokens of one byte stand in the order of the bytes, or in that of their letters, as Llama 3's do.

    A tokenizer of another make may have them in any order; only a few out of place are a fault.
    """
    values = _BYTE_PIECES if _BYTE_PIECES.keys() <= ids.keys() else _BYTES
    found = sorted(values, key=ids.__getitem__)
    orders = (sorted(values, key=values.__getitem__), sorted(values))
    changes = ([pair for pair in zip(found, right, strict=True) if pair[0] != pair[1]] for right in orders)
    misplaced = min(changes, key=len)
    if len(misplaced) <= 16:
        yield from _moved([(name, ids[holder], ids[name]) for holder, name in misplaced])


# --------------------------------------------------------------------------------------- the comparison


def _compare(original: Original, written: Written, folder: Path, vocab_size: int | None) -> TokenizerCheck:
    configs, ids = Configs(folder), written.ids
    measures = {"tokens": len(ids), "merges": len(written.merges), "texts": 0}
    lacking = sum(name not in ids for name in original.names)
    if 2 * lacking > len(original.names):
        of = f"{lacking:,} of the {len(original.names):,} tokens of {original.source}"
        other = Finding("TOKENIZER_OTHER", f"is another tokenizer: it lacks {of}", file="tokenizer.json")
        return TokenizerCheck([other], f"{len(ids):,} tokens against {original.source}", measures)
    merges = list(_merges(original, written))
    findings = [
        *_size(
            max(ids.values()) + 1,
            configs["config.json"].get("vocab_size") if vocab_size is None else vocab_size,
        ),
        *_vocabulary(original, written),
        *merges,
        *_special(original, written),
        *configs.findings(original, ids),
    ]
    try:
        running = _Running(original, written, _load(written.path), merges_differ=bool(merges))
        findings += running.findings(guard=configs.is_guard)
        measures["texts"] = running.texts
    except InputError as error:
        findings.append(Finding.of(error))
    counts = f"{len(ids):,} tokens, {len(written.merges):,} merges and {measures['texts']:,} texts"
    return TokenizerCheck(findings, f"{counts} against {original.source}", measures)


def _size(words: int, rows: int | None) -> Iterator[Finding]:
    """Every id needs its row of the embedding."""
    if rows is not None and words != rows:
        yield Finding(
            "TOKENIZER_SIZE",
            f"{words:,} tokens, but the embedding has {rows:,} rows",
            file="tokenizer.json",
            expected=str(rows),
            found=str(words),
            hint="It belongs to another checkpoint." if words > rows else "The other rows are never used.",
            warning=words < rows,
        )


def _vocabulary(original: Original, written: Written) -> Iterator[Finding]:
    """Every name that is missing, too many, another's, or at another id."""
    ids, names = written.ids, original.names
    unnamed = range(len(names), original.n_words)
    missing = {name: number for number, name in enumerate(names) if name not in ids}
    present = {name: number for number, name in enumerate(names) if name in ids}
    extra = {number: name for name, number in ids.items() if name not in present and number not in unnamed}
    renamed = {number: (name, extra[number]) for name, number in missing.items() if number in extra}
    yield from _moved([(name, number, ids[name]) for name, number in present.items() if ids[name] != number])
    yield from _group(
        "TOKEN_RENAMED",
        "token",
        "with another name",
        [
            Wrong(f"{new!r} for {old!r}", f"{old!r} at id {number}", repr(new))
            for number, (old, new) in renamed.items()
        ],
    )
    lost = [f"{name!r} (id {number})" for name, number in missing.items() if number not in renamed]
    lost += [f"id {number}" for number in sorted(set(unnamed) - set(ids.values()))]
    yield from _group("TOKEN_MISSING", "token", "missing", map(Wrong, lost))
    for added in (False, True):
        # Whoever trains a model on may add tokens after all others; the embedding's size says if that is so.
        surplus = [
            Wrong(f"{name!r} (id {number})")
            for number, name in extra.items()
            if number not in renamed and added == (number >= original.n_words and name in written.added)
        ]
        yield from _group("TOKEN_EXTRA", "token", "that the original has not", surplus, warning=added)


def _moved(moved: Sequence[tuple[str, int, int]]) -> Iterator[Finding]:
    """Tokens that have another id, given as name, right and wrong id."""
    wrong = [
        Wrong(f"{name!r} {found} for {right}", f"{name!r} at id {right}", str(found))
        for name, right, found in moved
    ]
    hint = _move_hint({right: found for _, right, found in moved})
    yield from _group("TOKEN_IDS", "token", "with another id", wrong, hint=hint)


def _move_hint(to: Mapping[int, int]) -> str | None:
    """What kind of move takes each id to the other."""
    swaps = [f"{a} and {b}" for a, b in to.items() if a < b and to.get(b) == a]
    if 2 * len(swaps) == len(to):
        return f"ids {_list(swaps)} are swapped"
    shifts = {b - a for a, b in to.items()}
    if len(shifts) == 1:
        return f"from id {min(to)} on, ids are shifted by {shifts.pop():+d}"
    return "the same ids in another order" if to.keys() == set(to.values()) else None


# ---------------------------------------------------------------------------------------------- merges


def _merges(original: Original, written: Written) -> Iterator[Finding]:
    """Merges are every way to join two words into one, the earliest made first.

    For one word, the order among its merges is not compared: none of the originals knows one.
    """
    words = list(original.order)
    numbers = {word: number for number, word in enumerate(words)}
    surplus = list(written.unknown)

    def known() -> Iterator[tuple[str, str]]:
        for left, right in written.pairs():
            if left in numbers and right in numbers and left + right in numbers:
                yield left, right
            elif left + right not in written.added:  # which is cut out of the text before it could be made
                surplus.append(f"{left} {right}")

    def codes(pairs: Iterable[tuple[str, str]]) -> Numbers:
        """Pairs as numbers, which take little memory."""
        return np.fromiter((numbers[a] * len(numbers) + numbers[b] for a, b in pairs), np.int64)

    def parts(code: int) -> list[str]:
        return [words[number] for number in divmod(code, len(words))]

    found, wanted = codes(known()), codes(_ways(numbers))
    lost = wanted[np.isin(wanted, found, invert=True)]
    first_lost = [Wrong(repr(" ".join(parts(code)))) for code in lost[:_SHOWN].tolist()]
    hint = "Words are left in pieces." if len(found) else "No word is made of its letters."
    yield from _group("MERGE_MISSING", "merge", "missing", first_lost, total=len(lost), hint=hint)
    yield from _group(
        "MERGE_EXTRA", "merge", "that the original has not", [Wrong(repr(each)) for each in surplus]
    )
    yield from _merge_order(original, ("".join(parts(code)) for code in found.tolist()))


def _ways(words: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every way to join two of the words into one."""
    for whole in words:
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in words and right in words:
                yield left, right


def _merge_order(original: Original, wholes: Iterable[str]) -> Iterator[Finding]:
    """Whether the words come in the original's order, in which merges make them.

    Sorted, only the words that are out of place change places.
    """
    found: list[tuple[float, str]] = []
    for whole in wholes:
        rank = original.order[whole]
        if rank is not None and (not found or found[-1][1] != whole):
            found.append((rank, whole))
    right = sorted(found, key=lambda pair: pair[0])
    wrong = [(a, b) for (rank, a), (other, b) in zip(found, right, strict=True) if rank != other]
    hint = "Merges are in another order, or ids are."
    if len(wrong) == 2:
        ids = sorted(original.names.index(name) for name, _ in wrong)
        hint = f"the ids {ids[0]} and {ids[1]}, or their merges, are swapped"
    yield from _group(
        "MERGE_ORDER",
        "word",
        "made out of turn",
        [Wrong(repr(name), f"{instead!r} made first", repr(name)) for name, instead in wrong],
        hint=hint,
    )


# -------------------------------------------------------------------------------------- special tokens


def _special(original: Original, written: Written) -> Iterator[Finding]:
    """Special tokens are cut out of the text, and can be left out of the answer; no others are."""
    names = {number: name for name, number in written.ids.items() if number in original.special}
    tokens = {name: written.added.get(name) for _, name in sorted(names.items())}
    faults: list[tuple[str, Callable[[Json], bool]]] = [
        ("added but not special", lambda token: token.get("special") is not True),
        ("that want or take the spaces around them", lambda token: any(map(token.get, _FITTED))),
    ]
    yield from _group(
        "TOKEN_SPECIAL",
        "special token",
        "not among the added tokens",
        [Wrong(repr(name)) for name, token in tokens.items() if token is None],
        hint="It is not cut out of the text.",
    )
    for message, is_wrong in faults:
        wrong = [Wrong(repr(name)) for name, token in tokens.items() if token and is_wrong(token)]
        yield from _group("TOKEN_SPECIAL", "token", message, wrong)
    ordinary = [
        Wrong(repr(name))
        for name, token in written.added.items()
        if token["id"] < len(original.names)
        and name not in tokens
        and not (original.kind == "sentencepiece" and _MARK.fullmatch(name))
    ]
    yield from _group("TOKEN_SPECIAL", "ordinary token", "cut out of the text as special ones are", ordinary)
    if original.kind == "tiktoken":
        yield from _special_names(len(original.names), written.ids)
    else:
        yield from _group(
            "TOKEN_NORMALIZED",
            "special token",
            "looked for only after spaces were rewritten, and not found within words",
            [Wrong(repr(name)) for name, token in tokens.items() if token and token.get("normalized")],
            hint="Early published files are so; `normalized` is to be false.",
            warning=True,
        )


_FITTED = ("lstrip", "rstrip", "single_word")


def _special_names(first: int, ids: Mapping[str, int]) -> Iterator[Finding]:
    """The names that Llama 3's releases agree on; tokenizer.model has none, so others are no error."""
    right = {name: first + offset for name, offset in SPECIAL_NAMES.items() if name in ids}
    reserved = {int(match[1]): n for name, n in ids.items() if (match := _RESERVED.fullmatch(name))}
    in_turn = zip(sorted(reserved), sorted(reserved.values()), strict=True)
    right |= {f"<|reserved_special_token_{number}|>": n for number, n in in_turn}
    yield from _moved([(name, number, ids[name]) for name, number in right.items() if ids[name] != number])
    yield from _group(
        "TOKEN_RENAMED",
        "special token",
        "of every Llama 3 missing by name",
        [Wrong(repr(name)) for name in NAMED_BY_ALL if name not in ids],
        hint="Right only if the checkpoint was trained with names of its own.",
        warning=True,
    )


# ------------------------------------------------------------------------------------------- the texts


class _Running:
    """Both tokenizers at work on the same texts."""

    def __init__(
        self, original: Original, written: Written, library: Tokenizer, *, merges_differ: bool
    ) -> None:
        self.original, self.written, self.library = original, written, library
        self.merges_differ = merges_differ
        self.texts = 0
        self.ids = written.ids
        self.names = {number: name for name, number in self.ids.items()}
        longest_first = sorted(written.added, key=len, reverse=True)
        self.cut = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def findings(self, *, guard: bool) -> Iterator[Finding]:
        """All that texts show."""
        yield from self._loaded()
        yield from self._encoded()
        yield from self._begun(guard)
        yield from self._decoded()

    def _loaded(self) -> Iterator[Finding]:
        """What the library makes of ids and limits.

        It gives added tokens the ids of their names in the vocabulary, or the next free ones, whatever the
        file says.
        """
        given = {name: self.library.token_to_id(name) for name in self.written.added}
        yield from _moved(
            [
                (name, self.ids[name], found)
                for name, found in given.items()
                if found not in (None, self.ids[name])
            ]
        )
        limits = [name for name in ("truncation", "padding") if getattr(self.library, name) is not None]
        hint = "transformers ignores it, other programs do not."
        self.library.no_truncation()
        self.library.no_padding()
        yield from _group(
            "TOKENIZER_LIMITS", "limit", "on texts", map(Wrong, limits), hint=hint, warning=True
        )

    def _encoded(self) -> Iterator[Finding]:
        """Texts with other ids, those with the same likely cause in one finding."""
        special = [self.names[number] for number in self.original.special if number in self.names]
        first: dict[str, list[Wrong]] = {}
        counts: Counter[str] = Counter()
        for text in (*CORPUS, *special, *self.original.texts):
            expected = self._expected(text)
            if expected is None:
                continue
            self.texts += 1
            found = self._encode(text)
            if found != expected:
                cause = self._cause(text, expected, found)
                counts[cause] += 1
                if counts[cause] <= _SHOWN:
                    first.setdefault(cause, []).append(_misread(text, expected, found))
        for cause, wrong in first.items():
            said = f"of {self.texts:,} with other ids"
            yield from _group("TOKENIZER_IDS", "text", said, wrong, total=counts[cause], hint=cause)

    def _expected(self, text: str) -> Ids | None:
        """The original's ids, with those of the special tokens that transformers cuts out of a text.

        None for text around a special token of sentencepiece's: whether a space is put before what follows
        is for transformers to say, and its versions differ.
        """
        marks = list(self.cut.finditer(text))
        if marks and self.original.kind == "sentencepiece":
            return [self.ids[text]] if marks[0][0] == text else None
        ids: Ids = []
        position = 0
        for mark in marks:
            ids += [*self.original.encode(text[position : mark.start()]), self.ids[mark[0]]]
            position = mark.end()
        return ids + self.original.encode(text[position:])

    def _encode(self, text: str, *, begin: bool = False) -> Ids:
        try:
            return list(self.library.encode(text, add_special_tokens=begin).ids)
        except Exception:  # as where the unknown token is unknown; the library raises nothing narrower
            return []

    def _cause(self, text: str, expected: Ids, found: Ids) -> str:
        """The likeliest reason for other ids, from what both sides spell."""
        names, options = self.original.names, self.written.options
        want = [names[number] if number < len(names) else self.names[number] for number in expected]
        got = [self.names.get(number, "") for number in found]
        spelled, instead = "".join(want), "".join(got)
        llama3 = self.original.kind == "tiktoken"
        space = _LETTERS[0x20] if llama3 else SPACE
        place = " before a space" if text.startswith((" ", SPACE)) else ""
        causes = (
            (want == got, "tokens have other ids"),
            (not self.ids.keys() >= set(want), "tokens are missing or have other names"),
            (not got, "the library finds no tokens at all"),
            (text in self.written.added, "the name of a special token is not cut out of the text"),
            (
                not options.get("byte_fallback") and not _BYTE_PIECES.keys().isdisjoint(want),
                "the byte fallback is lost",
            ),
            (space + instead == spelled, f"the dummy prefix space is missing{place}"),
            (space + spelled == instead, "a space is put before the text that is not in it"),
            (spelled != instead, "the normalizer rewrites the text"),
            (self.merges_differ, "merges are missing or wrong"),
            (
                llama3 and len(want) == 1 and not options.get("ignore_merges"),
                "ignore_merges is lost: a word is cut",
            ),
            (bool(options.get("dropout")), "dropout leaves merges out by chance"),
        )
        return next((cause for holds, cause in causes if holds), "the pre-tokenizer cuts the text elsewhere")

    def _begun(self, guard: bool) -> Iterator[Finding]:
        """Whether the BOS, and nothing else, comes before every text."""
        plain = {text: self._encode(text) for text in CORPUS}
        begun = {text: self._encode(text, begin=True) for text in CORPUS}
        wrong = [text for text in CORPUS if begun[text] != [self.original.bos, *plain[text]]]
        absent = begun == plain
        hint = f"the post-processor puts {'no BOS there' if absent else 'other tokens there'}"
        if absent and guard:
            hint = "Published tokenizers of Llama Guard are so; the chat template puts it there."
        yield from _group(
            "TOKENIZER_BOS",
            "text",
            f"of {len(CORPUS)} not begun with the BOS alone, id {self.original.bos}",
            [_misread(text, [self.original.bos, *plain[text]], begun[text]) for text in wrong],
            hint=hint,
            warning=absent and guard,
        )

    def _decoded(self) -> Iterator[Finding]:
        """Whether the same ids are the same text."""
        wrong, hints = [], set()
        for text in CORPUS:
            ids = self.original.encode(text)
            expected, found = self.original.decode(ids), self.library.decode(ids, skip_special_tokens=False)
            if expected != found:
                wrong.append(
                    Wrong(_shown(expected), f"{_short(str(ids))} as {_shown(expected)}", _shown(found))
                )
                hints.add(_decoder_hint(expected, found))
        hint = hints.pop() if len(hints) == 1 else "the decoder is another"
        yield from _group(
            "TOKENIZER_DECODE", "text", f"of {len(CORPUS)} decoded to another", wrong, hint=hint
        )


def _misread(text: str, expected: Ids, found: Ids) -> Wrong:
    return Wrong(_shown(text), f"{_shown(text)} as {_short(str(expected))}", _short(str(found)))


def _decoder_hint(expected: str, found: str) -> str:
    if found == " " + expected:
        return "the decoder leaves the dummy prefix space"
    if found.strip() == expected.strip():
        return "the decoder strips spaces that are the text's own"
    if "\ufffd" in found or "<0x" in found:
        return "the decoder does not put bytes together"
    return "the decoder is another"


# ------------------------------------------------------------------------------------------ the configs


class Configs:
    """What other files of a folder say about its tokenizer."""

    FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")

    def __init__(self, folder: Path) -> None:
        self.unreadable: list[Finding] = []
        self._content = {name: self._read(folder / name) for name in self.FILES}
        self.templates = list(self._templates(folder))

    def __getitem__(self, name: str) -> Json:
        return self._content[name]

    def _read(self, path: Path) -> Json:
        """What a file says, which is nothing where there is none."""
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            return content
        self.unreadable.append(Finding("CONFIG_UNREADABLE", "is not a JSON object", file=path.name))
        return {}

    def _templates(self, folder: Path) -> Iterator[tuple[str, str]]:
        """Chat templates, after the file that each is in."""
        inline = self["tokenizer_config.json"].get("chat_template")
        for template in inline if isinstance(inline, list) else [inline]:
            text = template.get("template") if isinstance(template, dict) else template
            if isinstance(text, str):
                yield "tokenizer_config.json", text
        for path in (
            folder / "chat_template.jinja",
            *sorted(folder.glob("additional_chat_templates/*.jinja")),
        ):
            if path.is_file():
                yield path.name, path.read_text(encoding="utf-8", errors="replace")

    @property
    def is_guard(self) -> bool:
        """Whether this is a Llama Guard, whose chat template is its task."""
        return any(_GUARD_TASK in template for _, template in self.templates)

    def findings(self, original: Original, ids: Mapping[str, int]) -> Iterator[Finding]:
        """What contradicts the tokenizer."""
        yield from self.unreadable
        yield from self._roles(ids)
        yield from self._begin(original.bos, ids)
        yield from self._end(original, ids)
        yield from self._descriptions(ids)
        for file, template in self.templates:
            yield from _template(file, template, ids, llama3=original.kind == "tiktoken")

    def _named(self, role: str) -> Iterator[tuple[str, str]]:
        """The tokens that files name for a role, after the files."""
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            token = self[file].get(role)
            name = token.get("content") if isinstance(token, dict) else token
            if isinstance(name, str):
                yield file, name

    def _numbered(self, role: str) -> Iterator[tuple[str, int]]:
        """The ids that files give for a role, after the files."""
        for file in ("config.json", "generation_config.json"):
            value = self[file].get(role)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int):
                    yield file, number

    def _roles(self, ids: Mapping[str, int]) -> Iterator[Finding]:
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            for file, name in self._named(role):
                if name not in ids:
                    message = f"{role} is {name!r}, which tokenizer.json does not have"
                    yield Finding("TOKEN_ROLE", message, file=file)

    def _begin(self, bos: int, ids: Mapping[str, int]) -> Iterator[Finding]:
        named = [
            (file, f"bos_token {name!r} is", ids[name])
            for file, name in self._named("bos_token")
            if name in ids
        ]
        numbered = [(file, "bos_token_id is", number) for file, number in self._numbered("bos_token_id")]
        for file, said, number in (*numbered, *named):
            if number != bos:
                message = f"{said} {number}, but the BOS is {bos}"
                yield Finding("BOS_ID", message, file=file, expected=str(bos), found=str(number))
        if self["tokenizer_config.json"].get("add_bos_token") is False:
            message = "add_bos_token is false, and transformers puts no BOS before a text"
            yield Finding("TOKENIZER_BOS", message, file="tokenizer_config.json", warning=self.is_guard)

    def _end(self, original: Original, ids: Mapping[str, int]) -> Iterator[Finding]:
        """What ends a text is a special token; what the tokenizer calls the end does end it."""
        special = {n for name, n in ids.items() if n >= len(original.names) or _MARK.fullmatch(name)}
        special.update(original.special)
        stops = {number: file for file, number in self._numbered("eos_token_id")}
        for number, file in stops.items():
            if number not in special:
                name = next((repr(name) for name, found in ids.items() if found == number), "no token")
                message = f"eos_token_id {number} is {name}, not a special token"
                yield Finding("EOS_ID", message, file=file, expected="a special token", found=name)
        for file, name in self._named("eos_token"):
            if stops and name in ids and ids[name] not in stops:
                message = f"eos_token is {name!r}, id {ids[name]}, at which generation does not stop"
                found, expected = str(ids[name]), _list(sorted(stops))
                yield Finding("EOS_ID", message, file=file, expected=expected, found=found)

    def _descriptions(self, ids: Mapping[str, int]) -> Iterator[Finding]:
        """`added_tokens_decoder` repeats tokenizer.json; versions of transformers differ where it does."""
        described = self["tokenizer_config.json"].get("added_tokens_decoder")
        tokens = described.items() if isinstance(described, dict) else ()
        named = [(number, str(token.get("content"))) for number, token in tokens if isinstance(token, dict)]
        wrong = [
            Wrong(f"{name!r} {number}", f"{name!r} at id {ids.get(name, 'none')}", number)
            for number, name in named
            if str(ids.get(name)) != number
        ]
        said = "in added_tokens_decoder contrary to tokenizer.json"
        for finding in _group("TOKEN_DESCRIBED", "token", said, wrong):
            yield replace(finding, file="tokenizer_config.json")


def _template(file: str, template: str, ids: Mapping[str, int], *, llama3: bool) -> Iterator[Finding]:
    """Whether a chat template is Jinja, and the special tokens it writes are there."""
    from jinja2 import TemplateSyntaxError

    try:
        _jinja().parse(template)
    except TemplateSyntaxError as error:
        message = f"the chat template is not Jinja: line {error.lineno}: {error.message}"
        yield Finding("CHAT_TEMPLATE", message, file=file)
    absent = [repr(name) for name in SPECIAL_NAMES if name in template and name not in ids]
    if llama3 and absent:
        message = f"the chat template writes {_list(absent)}, which tokenizer.json does not have"
        yield Finding("CHAT_TEMPLATE", message, file=file)


def _jinja() -> Any:
    """Jinja with the tags that transformers adds: loop controls, and ``generation`` around an answer."""
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (as the base class has it)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Environment(extensions=["jinja2.ext.loopcontrols", Generation])


# -------------------------------------------------------------------------------- Meta's file by itself


def _order_of_parts(original: Original) -> Iterator[Finding]:
    """A word is made of words made before it, in every published file.

    Single characters are there from the start, and where sentencepiece is not in order no place is known.
    """
    at_hand = re.compile(rf".|{_UNORDERED.pattern}" if original.kind == "sentencepiece" else ".", re.DOTALL)
    order = {name: 0 if at_hand.fullmatch(name) else rank or 0 for name, rank in original.order.items()}
    ready: dict[str, float] = {}
    for left, right in _ways(order):
        ready[left + right] = min(ready.get(left + right, np.inf), max(order[left], order[right]))
    early = [name for name, rank in ready.items() if rank > order[name] and not at_hand.fullmatch(name)]
    wrong = [Wrong(f"{name!r} (id {original.names.index(name)})") for name in early]
    hint = "Ids are swapped, or the file is not Meta's."
    yield from _group("TOKEN_ORDER", "token", "made before its parts", wrong, hint=hint)


def _round_trips(original: Original) -> Iterator[Finding]:
    wrong = []
    for text in CORPUS:
        expected = text.replace(SPACE, " ") if original.kind == "sentencepiece" else text
        found = original.decode(original.encode(text))
        if found != expected:
            wrong.append(Wrong(_shown(text), _shown(expected), _shown(found)))
    said = f"of {len(CORPUS)} not the same after encoding and decoding"
    yield from _group("TOKENIZER_DECODE", "text", said, wrong)


# -------------------------------------------------------------------------------------------- wording


class Wrong(NamedTuple):
    """One of several things that are wrong in the same way."""

    shown: str
    expected: str | None = None
    found: str | None = None


def _group(
    code: str,
    noun: str,
    said: str,
    wrong: Iterable[Wrong],
    *,
    total: int | None = None,
    hint: str | None = None,
    warning: bool = False,
) -> Iterator[Finding]:
    """One finding for all that is wrong, if anything is: how many, the first ten, and the first in full.

    `total` is how many there are where `wrong` is but the first of them.
    """
    each = list(wrong)
    if each:
        total = total or len(each)
        message = f"{total:,} {noun}{'s' * (total != 1)} {said}: {_list([one.shown for one in each], total)}"
        expected, found = each[0].expected, each[0].found
        yield Finding(
            code, message, "tokenizer.json", expected=expected, found=found, hint=hint, warning=warning
        )


def _list(items: Sequence[object], total: int | None = None) -> str:
    """The first ten, and how many more there are."""
    more = (total or len(items)) - len(items[:_SHOWN])
    return ", ".join(map(str, items[:_SHOWN])) + (f" and {more:,} more" if more else "")


def _shown(text: str) -> str:
    return _short(repr(text), 40)


def _short(text: str, limit: int = 60) -> str:
    """The beginning and the end of a long text."""
    return text if len(text) <= limit else f"{text[: limit - 14]} … {text[-11:]}"
