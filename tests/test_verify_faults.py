"""Every way to get a conversion wrong that we could think of: planted, found, and called by its name.

Each fault is planted in the output of a right conversion.  All checks together must name the tensor or the
file and hint at the cause; `--check logits` by itself must see whatever changes what the model computes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from llama_convert.conversion.convert import convert
from llama_convert.conversion.options import ConvertOptions
from llama_convert.findings import Finding
from llama_convert.verification.options import VerifyOptions, parse_checks
from llama_convert.verification.report import VerifyReport
from llama_convert.verification.verify import verify
from tests import plant
from tests.plant import EMBED, HEAD, NORM, Change, Model, down, gate, k, norms, o, q, up, v
from tests.synthetic import LLAMA2, LLAMA3

SHAPES = {
    "mha": LLAMA2.but(n_layers=3, ranks=4, dtype=torch.float32),
    "gqa": LLAMA3.but(n_layers=3, ranks=2),
    "tied": LLAMA3.but(n_layers=2, tied=True),
    "small numbers": LLAMA3.but(n_layers=2),
}
MODELS = {
    name: Model(shape.n_layers, shape.head_dim, shape.ranks, shape.embedding_cut)
    for name, shape in SHAPES.items()
}
HEAD_DIM = LLAMA2.head_dim
CONFIG, INDEX, MANIFEST = "config.json", "model.safetensors.index.json", "llama-convert.json"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small products are quickest so, and two test processes do not wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each shape's source and its right conversion."""
    folder = tmp_path_factory.mktemp("right")
    for name, shape in SHAPES.items():
        plant.make(folder / name, shape, scale=1e-3 if name == "small numbers" else 1.0)
        convert(folder / name, folder / f"{name}-out", ConvertOptions(max_shard_size="40KB"))
    plant.make(folder / "other", SHAPES["gqa"], seed=1)
    convert(folder / "other", folder / "other-out", ConvertOptions(max_shard_size="40KB"))
    return folder


Plant = Callable[[Path, Path], object]
"""Given the output's copy and the folder of all that is right."""


@dataclass(frozen=True)
class Seen:
    """A finding that must exist: check, code, tensor or file, and part of its message, values or hint."""

    level: str
    code: str
    where: str | None
    says: str = ""
    warning: bool = False

    def fits(self, finding: Finding) -> bool:
        place = self.where in (finding.tensor, finding.file)
        kind = (finding.code, finding.is_warning) == (self.code, self.warning)
        values = f"expected {finding.expected}, got {finding.found}"
        return kind and place and self.says in f"{finding.message} {values}; {finding.hint}"


@dataclass(frozen=True)
class Fault:
    base: str
    plant: Plant
    seen: tuple[Seen, ...]
    alone: Seen | None
    """What ``--check logits`` by itself must find; None if it cannot, and the table says why."""


def weights(*changes: Change) -> Plant:
    def do(out: Path, _: Path) -> None:
        for change in changes:
            plant.rewrite(out, change)

    return do


def config(**changes: Any) -> Plant:
    return lambda out, _: plant.edit_config(out, **changes)


def differ(tensor: str, says: str) -> Seen:
    return Seen("weights", "WEIGHTS_DIFFER", tensor, says)


def logits(where: str | None = None, says: str = "") -> Seen:
    return Seen("logits", "LOGITS_DIFFER", where, says)


def layer(number: int, *more: int) -> Seen:
    first = f"Outputs diverge at layer {number}"
    return logits(
        f"model.layers.{number}", first + (f" and {len(more)} more of" if more else ": relative error")
    )


def nonfinite(base: str, tensor: str, value: str, place: tuple[int, ...], alone: Seen) -> Fault:
    return Fault(
        base,
        weights(plant.each([tensor], lambda w: plant.with_value(w, float(value), *place))),
        (
            Seen(
                "values", "VALUES_NONFINITE", tensor, f"1 value is NaN or infinite, the first at {[*place]}."
            ),
            differ(tensor, "1 element is NaN or infinite."),
        ),
        alone,
    )


def header(file: str, change: Callable[[dict[str, Any]], object]) -> Plant:
    return lambda out, _: plant.edit_header(plant.shards(out)[1] if file == "" else out / file, change)


def index(change: Callable[[dict[str, Any]], object]) -> Plant:
    return lambda out, _: plant.edit_index(out, change)


unpermuted = partial(plant.unpermuted, head_dim=HEAD_DIM)
permuted = partial(plant.permuted, head_dim=HEAD_DIM)
ALL = Model(3, HEAD_DIM, 4, 1)
NOT_PERMUTED = "Q/K weights were not permuted (still in Meta's RoPE order)."


def swap_blocks(count: int, axis: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: plant.blocks(weight, count, [0, 2, 1, *range(3, count)], axis)


WEIGHTS = {
    "Q unpermuted in one layer": Fault(
        "gqa", weights(plant.each([q(1)], unpermuted)), (differ(q(1), NOT_PERMUTED),), layer(1)
    ),
    "Q and K unpermuted in one layer": Fault(
        "gqa",
        weights(plant.each([q(1), k(1)], unpermuted)),
        (differ(q(1), NOT_PERMUTED), differ(k(1), NOT_PERMUTED)),
        layer(1),
    ),
    "Q and K unpermuted": Fault(
        "mha",
        weights(plant.each(ALL.all_layers(q, k), unpermuted)),
        (differ(q(0), NOT_PERMUTED), differ(k(2), NOT_PERMUTED)),
        layer(0, 1, 2),
    ),
    "Q and K permuted twice": Fault(
        "gqa",
        weights(plant.each(ALL.all_layers(q, k), permuted)),
        (differ(q(0), "Q/K weights were permuted twice."), differ(k(2), "Q/K weights were permuted twice.")),
        layer(0, 1, 2),
    ),
    "K unpermuted": Fault(
        "gqa",
        weights(plant.each(ALL.all_layers(k), unpermuted)),
        (differ(k(0), NOT_PERMUTED),),
        layer(0, 1, 2),
    ),
    "K permuted as if it had Q's width": Fault(
        "gqa",
        weights(plant.each([k(1)], lambda w: plant.permuted(unpermuted(w), HEAD_DIM // 2))),
        (
            differ(
                k(1), f"Q/K weights were permuted for heads of {HEAD_DIM // 2} rows instead of {HEAD_DIM}."
            ),
        ),
        layer(1),
    ),
    "gate and up swapped": Fault(
        "gqa",
        weights(plant.swapped((gate(2), up(2)))),
        (
            differ(gate(2), f"It contains the values of {up(2)}"),
            differ(up(2), f"contains the values of {gate(2)}"),
        ),
        layer(2),
    ),
    "norms swapped": Fault(
        "mha",
        weights(plant.swapped(norms(1))),
        (
            differ(norms(1)[0], f"contains the values of {norms(1)[1]}"),
            differ(norms(1)[1], f"contains the values of {norms(1)[0]}"),
        ),
        layer(1),
    ),
    "layers swapped": Fault(
        "gqa",
        weights(plant.swapped(*((kind(1), kind(2)) for kind in (q, k, v, o, gate, up, down)))),
        (
            differ(o(1), f"It contains the values of {o(2)}"),
            differ(q(2), f"It contains the values of {q(1)}"),
        ),
        layer(1, 2),
    ),
    "one layer stands in for another": Fault(
        "gqa",
        weights(lambda s: s.update({kind(2): s[kind(1)] for kind in (q, k, v, o, gate, up, down)})),
        (differ(v(2), f"It contains the values of {v(1)}"),),
        layer(2),
    ),
    "ranks swapped where rows are cut": Fault(
        "mha",
        weights(plant.each([v(1), gate(0)], swap_blocks(4))),
        (differ(v(1), "Ranks 1 and 2 are swapped."), differ(gate(0), "Ranks 1 and 2 are swapped.")),
        layer(0, 1),
    ),
    "ranks swapped where columns are cut": Fault(
        "mha",
        weights(plant.each([o(2), down(1)], swap_blocks(4, 1))),
        (differ(o(2), "Ranks 1 and 2 are swapped."), differ(down(1), "Ranks 1 and 2 are swapped.")),
        layer(1, 2),
    ),
    "ranks of Q and K swapped": Fault(
        "mha",
        weights(plant.each([q(1), k(1)], swap_blocks(4))),
        (differ(q(1), "Ranks 1 and 2 are swapped."), differ(k(1), "Ranks 1 and 2 are swapped.")),
        layer(1),
    ),
    "ranks of the embedding swapped": Fault(
        "mha",
        weights(plant.each([EMBED], swap_blocks(4, 1))),
        (differ(EMBED, "Ranks 1 and 2 are swapped."),),
        logits(EMBED, "Embeddings differ"),
    ),
    "ranks of the LM head swapped": Fault(
        "mha",
        weights(plant.each([HEAD], swap_blocks(4))),
        (differ(HEAD, "Ranks 1 and 2 are swapped."),),
        logits(HEAD, "Final norm or LM head differs"),
    ),
    "ranks in the order 0, 1, 10, 2": Fault(
        "mha",
        weights(plant.each([gate(1)], lambda w: plant.blocks(w, 4, [0, 3, 1, 2]))),
        (differ(gate(1), "Ranks are in the order 0, 3, 1, 2."),),
        layer(1),
    ),
    "rows joined as columns": Fault(
        "mha",
        weights(plant.each([v(1)], lambda w: plant.joined_on_the_wrong_axis(w, 4, 0))),
        (differ(v(1), "Ranks were concatenated along dim 1 instead of dim 0."),),
        layer(1),
    ),
    "rows of Q joined as columns": Fault(
        "mha",
        weights(plant.each([q(1)], lambda w: permuted(plant.joined_on_the_wrong_axis(unpermuted(w), 4, 0)))),
        (differ(q(1), "Ranks were concatenated along dim 1 instead of dim 0."),),
        layer(1),
    ),
    "columns joined as rows": Fault(
        "mha",
        weights(plant.each([down(1)], lambda w: plant.joined_on_the_wrong_axis(w, 4, 1))),
        (differ(down(1), "Ranks were concatenated along dim 0 instead of dim 1."),),
        layer(1),
    ),
    "transposed": Fault(
        "gqa", weights(plant.each([o(1)], lambda w: w.T)), (differ(o(1), "It is transposed."),), layer(1)
    ),
    "KV heads swapped": Fault(
        "gqa",
        weights(plant.each([k(1), v(1)], swap_blocks(4))),
        (differ(k(1), "Heads 1 and 2 are swapped."), differ(v(1), "Heads 1 and 2 are swapped.")),
        layer(1),
    ),
    "KV heads dealt out over the ranks in turn": Fault(
        "gqa",
        weights(plant.each([k(1), v(1)], lambda w: plant.blocks(w, 4, [2, 0, 3, 1]))),
        (differ(k(1), "Heads are in the order 2, 0, 3, 1."), differ(v(1), "in the order 2, 0, 3, 1.")),
        layer(1),
    ),
    "Q heads swapped, and O's columns with them": Fault(
        "gqa",
        weights(
            plant.each([q(1)], lambda w: plant.blocks(w, 8, [0, 1, 2, 4, 3, 5, 6, 7])),
            plant.each([o(1)], lambda w: plant.blocks(w, 8, [0, 1, 2, 4, 3, 5, 6, 7], 1)),
        ),
        (differ(q(1), "Heads 3 and 4 are swapped."), differ(o(1), "Heads 3 and 4 are swapped.")),
        layer(1),
    ),
    "two rows swapped": Fault(
        "gqa",
        weights(plant.each([gate(1)], lambda w: plant.blocks(w, 96, [*range(90), 91, 90, *range(92, 96)]))),
        (differ(gate(1), "Rows 90 and 91 are swapped."),),
        layer(1),
    ),
    "lowest mantissa bit flipped": Fault(
        "gqa",
        weights(plant.each([gate(1)], lambda w: plant.with_flipped_bit(w, 5, 7, 0))),
        (
            differ(gate(1), "Bit 0 (mantissa) of one element is flipped"),
            differ(
                gate(1),
                "1 of 6,144 elements differ from layers.1.feed_forward.w1.weight in the source, "
                "the first at [5, 7].",
            ),
            Seen("values", "MANIFEST_DIFFERS", gate(1), "Damaged, or trained or replaced"),
        ),
        layer(1),  # 2^-8 of one of 6,144 elements: five times the limit
    ),
    "highest mantissa bit flipped": Fault(
        "gqa",
        weights(plant.each([gate(1)], lambda w: plant.with_flipped_bit(w, 5, 7, 6))),
        (differ(gate(1), "Bit 6 (mantissa) of one element is flipped"),),
        layer(1),
    ),
    "lowest mantissa bit of float32 flipped": Fault(
        "mha",
        weights(plant.each([gate(1)], lambda w: plant.with_flipped_bit(w, 5, 7, 0))),
        (
            differ(gate(1), "Bit 0 (mantissa) of one element is flipped"),
            Seen("values", "MANIFEST_DIFFERS", gate(1), "Damaged, or trained or replaced"),
        ),
        None,  # 2^-23 of one element: below what sums in another order do
    ),
    "exponent bit flipped": Fault(
        "gqa",
        weights(plant.each([down(2)], lambda w: plant.with_flipped_bit(w, 3, 3, 9))),
        (differ(down(2), "Bit 9 (exponent) of one element is flipped"),),
        layer(2),
    ),
    "sign bit flipped": Fault(
        "gqa",
        weights(plant.each([v(0)], lambda w: plant.with_flipped_bit(w, 3, 3, 15))),
        (differ(v(0), "Bit 15 (sign) of one element is flipped"),),
        layer(0),
    ),
    "two bits of one element flipped": Fault(
        "gqa",
        weights(
            plant.each([gate(1)], lambda w: plant.with_flipped_bit(w, 5, 7, 6)),
            plant.each([gate(1)], lambda w: plant.with_flipped_bit(w, 5, 7, 8)),
        ),
        (differ(gate(1), "2 bits of one element are flipped"),),
        layer(1),
    ),
    "four elements": Fault(
        "gqa",
        weights(*(plant.each([v(1)], lambda w, c=c: plant.with_value(w, 0.5, c, c)) for c in range(4))),
        (differ(v(1), "Only 4 elements differ. The file was probably damaged"),),
        layer(1),
    ),
    "trained further": Fault(
        "gqa",
        weights(plant.each([gate(1)], lambda w: w + 0.001 * torch.randn(w.shape).to(w.dtype))),
        (differ(gate(1), "The values are close."),),
        layer(1),
    ),
    "NaN": nonfinite("gqa", v(2), "nan", (4, 9), layer(2)),
    "NaN in a norm": nonfinite("mha", norms(1)[0], "nan", (9,), layer(1)),
    "infinity": nonfinite("gqa", o(0), "-inf", (4, 9), layer(0)),
    "NaN in the LM head": nonfinite("gqa", HEAD, "nan", (4, 9), logits(HEAD)),
    "dead row": Fault(
        "gqa",
        weights(plant.each([up(1)], lambda w: plant.with_value(w, 0.0, 11))),
        (
            Seen("values", "VALUES_ZERO_ROWS", up(1), "1 of 96 rows are zero", warning=True),
            differ(up(1), "Row 11 is zero; the other rows match."),
        ),
        layer(1),
    ),
    "dead row of the LM head": Fault(
        "gqa",
        weights(plant.each([HEAD], lambda w: plant.with_value(w, 0.0, 11))),
        (differ(HEAD, "Row 11 is zero; the other rows match."),),
        logits(HEAD),
    ),
    "rows of another model": Fault(
        "gqa",
        weights(plant.each([down(1)], lambda w: torch.cat([w[:40], w[40:43] * 1.5, w[43:]]))),
        (differ(down(1), "Rows 40 to 42 differ; the other rows match."),),
        layer(1),
    ),
    "nothing but zeros": Fault(
        "gqa",
        weights(plant.each([up(1)], torch.zeros_like)),
        (
            Seen("values", "VALUES_ZERO", up(1), "a placeholder or was never written."),
            differ(up(1), "Every element is 0."),
        ),
        layer(1),
    ),
    "scaled": Fault(
        "gqa",
        weights(plant.each([down(1)], lambda w: w * 32)),
        (
            Seen("values", "VALUES_SCALE", down(1), "Root mean square", warning=True),
            differ(down(1), "32 times its value in the source"),
        ),
        layer(1),
    ),
    "embedding shuffled": Fault(
        "gqa",
        weights(plant.each([EMBED], lambda w: w[torch.randperm(len(w))])),
        (differ(EMBED, "Rows are in another order."),),
        logits(EMBED),
    ),
    "LM head shifted by one": Fault(
        "gqa",
        weights(plant.each([HEAD], plant.shifted)),
        (differ(HEAD, "Rows are shifted by 1."),),
        logits(HEAD),
    ),
    "LM head shifted, its first row lost": Fault(
        "gqa",
        weights(plant.each([HEAD], lambda w: torch.cat([w[1:], torch.ones_like(w[:1])]))),
        (differ(HEAD, "Rows are shifted by -1."),),
        logits(HEAD),
    ),
    "final norm left at one": Fault(
        "gqa",
        weights(plant.each([NORM], torch.ones_like)),
        (differ(NORM, "Every element is 1."),),
        logits(HEAD),
    ),
    "tied model's embedding shifted": Fault(
        "tied",
        weights(plant.each([EMBED], plant.shifted)),
        (differ(EMBED, "Rows are shifted by 1."),),
        logits(EMBED),
    ),
    "through half precision": Fault(
        "mha",
        weights(plant.each([gate(1), v(1)], plant.through_half)),
        (
            differ(gate(1), "Values were first rounded to float16."),
            differ(v(1), "Values were first rounded to float16."),
        ),
        layer(1),
    ),
    "bfloat16 through half precision": Fault(
        "small numbers",
        weights(plant.each([gate(1)], plant.through_half)),
        (differ(gate(1), "Values were first rounded to float16."),),
        None,  # only numbers below 2^-17 change, and those hardly count
    ),
    "truncated to bfloat16": Fault(
        "mha",
        weights(plant.each([gate(1)], lambda w: plant.truncated_to_bfloat16(w).float())),
        (differ(gate(1), "Values were first truncated to bfloat16 instead of rounded."),),
        layer(1),
    ),
}


def convert_anew(name: str, dtype: str, change: Change | None = None) -> Plant:
    def do(out: Path, right: Path) -> None:
        shutil.rmtree(out)
        convert(right / name, out, ConvertOptions(dtype=dtype))
        if change:
            plant.rewrite(out, change)

    return do


SHARD = "model-00002-of-00006.safetensors"


def replace_shard(out: Path, right: Path) -> None:
    shutil.copy(right / "other-out" / SHARD, out / SHARD)


FILES = {
    "cut off to bfloat16 instead of rounded": Fault(
        "mha",
        lambda out, right: (
            convert_anew("mha", "bf16")(out, right),
            plant.rewrite(
                out,
                lambda state: state.update(
                    {up(1): plant.truncated_to_bfloat16(plant.tensors(right / "mha-out")[up(1)])}
                ),
            ),
        ),
        (differ(up(1), "Values were truncated to bfloat16 instead of rounded."),),
        None,  # twice the error of rounding, which the limit allows for
    ),
    "shards of two models": Fault(
        "gqa",
        replace_shard,
        (
            differ(up(0), "a shard of another model"),
            Seen("values", "MANIFEST_DIFFERS", up(0), "Damaged, or trained or replaced"),
        ),
        layer(0),
    ),
    "another model": Fault(
        "gqa",
        lambda out, right: [shutil.copy(file, out) for file in plant.shards(right / "other-out")],
        (
            differ(q(0), "from another model"),
            Seen("values", "MANIFEST_STALE", MANIFEST, "weights are newer than this manifest"),
        ),
        layer(0, 1, 2),
    ),
    "file cut short": Fault(
        "gqa",
        lambda out, _: os.truncate(out / SHARD, (out / SHARD).stat().st_size - 100),
        (Seen("structure", "INPUT_SAFETENSORS", SHARD, "truncated"),),
        Seen("logits", "INPUT_SAFETENSORS", SHARD),
    ),
    "file cut within its header": Fault(
        "gqa",
        lambda out, _: os.truncate(out / SHARD, 20),
        (Seen("structure", "INPUT_SAFETENSORS", SHARD, "length of its header is"),),
        Seen("logits", "INPUT_SAFETENSORS", SHARD),
    ),
    "file empty": Fault(
        "gqa",
        lambda out, _: os.truncate(out / SHARD, 0),
        (Seen("structure", "INPUT_SAFETENSORS", SHARD, "The file is empty"),),
        Seen("logits", "INPUT_SAFETENSORS", SHARD),
    ),
    "file missing": Fault(
        "gqa",
        lambda out, _: (out / SHARD).unlink(),
        (Seen("structure", "INPUT_NOT_FOUND", SHARD),),
        Seen("logits", "INPUT_NOT_FOUND", SHARD),
    ),
    "bytes appended": Fault(
        "gqa",
        lambda out, _: (out / SHARD).write_bytes((out / SHARD).read_bytes() + b"\0" * 8),
        (Seen("structure", "INPUT_SAFETENSORS", SHARD, "longer than its header"),),
        Seen("logits", "INPUT_SAFETENSORS", SHARD),
    ),
    "tensors overlap": Fault(
        "gqa",
        header(SHARD, lambda h: overlap(h)),
        (Seen("structure", "INPUT_SAFETENSORS", SHARD, "Overlaps the previous tensor"),),
        Seen("logits", "INPUT_SAFETENSORS", SHARD),
    ),
    "hole between tensors": Fault(
        "gqa",
        header(SHARD, lambda h: h.pop(min(h.keys() - {"__metadata__"}, key=lambda n: h[n]["data_offsets"]))),
        (Seen("structure", "INPUT_SAFETENSORS", SHARD, "There is a gap before this tensor"),),
        Seen("logits", "INPUT_SAFETENSORS", SHARD),
    ),
    "tensor missing": Fault(
        "gqa",
        weights(lambda state: state.pop(up(1))),
        (
            Seen("structure", "TENSOR_MISSING", up(1), "is in no file"),
            Seen(
                "structure", "INDEX_MISMATCH", up(1), "The tensor is not in model-00004-of-00006.safetensors"
            ),
            Seen("weights", "TENSOR_MISSING", up(1), "The source has this tensor"),
        ),
        Seen("logits", "INDEX_MISMATCH", up(1)),
    ),
    "tensor too many": Fault(
        "gqa",
        header(SHARD, lambda h: h.update({"extra.bias": h.pop(min(h.keys() - {"__metadata__"}))})),
        (Seen("structure", "TENSOR_UNKNOWN", "extra.bias", "Not a Llama tensor"),),
        Seen("logits", "INDEX_MISMATCH", "extra.bias"),
    ),
    "layer too many": Fault(
        "gqa",
        config(num_hidden_layers=2),
        (
            Seen("structure", "TENSOR_UNKNOWN", q(2), "num_hidden_layers in config.json is only 2"),
            Seen("structure", "CONFIG_DIFFERS", CONFIG, "num_hidden_layers differs"),
        ),
        Seen("logits", "CONFIG_DIFFERS", CONFIG, "num_hidden_layers differs"),
    ),
    "row too few": Fault(
        "gqa",
        weights(plant.each([gate(1)], lambda w: w[:-1])),
        (Seen("structure", "TENSOR_SHAPE", gate(1), "does not match config.json"),),
        Seen("logits", "INDEX_MISMATCH", INDEX, '"total_size"'),
    ),
    "index names the wrong file": Fault(
        "gqa",
        index(lambda content: content["weight_map"].update({up(0): "model-00001-of-00006.safetensors"})),
        (Seen("structure", "INDEX_MISMATCH", up(0), "The index has another file"),),
        None,  # each tensor is where its file says; all are found
    ),
    "index names a tensor that is not there": Fault(
        "gqa",
        index(lambda content: content["weight_map"].update({"extra.bias": SHARD})),
        (Seen("structure", "INDEX_MISMATCH", "extra.bias", f"is not in {SHARD}"),),
        None,  # nothing is computed from it
    ),
    "index lacks a tensor": Fault(
        "gqa",
        index(lambda content: content["weight_map"].pop(up(1))),
        (Seen("structure", "INDEX_MISMATCH", up(1), "The index has another file"),),
        None,  # it is in its file
    ),
    "index names a file that is missing": Fault(
        "gqa",
        index(lambda content: content["weight_map"].update({up(0): "model-00009.safetensors"})),
        (Seen("structure", "INPUT_NOT_FOUND", "model-00009.safetensors"),),
        None,  # it is in another file
    ),
    "index leads out of the folder": Fault(
        "gqa",
        index(lambda content: content["weight_map"].update({up(0): "../x.safetensors"})),
        (Seen("structure", "INDEX_VALUE", INDEX, "Invalid file name"),),
        None,  # the files are read as they are
    ),
    "index gives a wrong size": Fault(
        "gqa",
        index(lambda content: content["metadata"].update(total_size=1)),
        (Seen("structure", "INDEX_MISMATCH", INDEX, '"total_size" does not match'),),
        None,  # all tensors are there
    ),
    "index is no JSON": Fault(
        "gqa",
        lambda out, _: (out / INDEX).write_text("{"),
        (Seen("structure", "INDEX_JSON", INDEX),),
        None,  # the files are read as they are
    ),
    "index beside a single file": Fault(
        "tied",
        lambda out, right: (
            convert_anew("tied", "auto")(out, right),
            shutil.copy(right / "tied-out" / INDEX, out),
        ),
        (Seen("structure", "INDEX_STALE", INDEX, "Ignored by transformers"),),
        None,  # transformers passes over it as well
    ),
    "file of an earlier conversion": Fault(
        "gqa",
        lambda out, right: shutil.copy(right / "gqa-out" / SHARD, out / "model-00002-of-00007.safetensors"),
        (Seen("structure", "FILE_NOT_INDEXED", "model-00002-of-00007.safetensors", "left over"),),
        None,  # transformers passes over it as well
    ),
    "tensor in two files": Fault(
        "gqa",
        lambda out, right: (
            shutil.copy(out / SHARD, out / "model-00000.safetensors"),
            plant.edit_index(out, lambda c: c["weight_map"].update({up(0): "model-00000.safetensors"})),
        ),
        (Seen("structure", "TENSOR_DUPLICATE", up(0)),),
        None,  # both are the same
    ),
    "tensor of integers": Fault(
        "gqa",
        header(SHARD, lambda h: h[up(0)].update(dtype="I16")),
        (Seen("structure", "TENSOR_DTYPE", up(0), "Unsupported dtype int16"),),
        Seen("logits", "TENSOR_DTYPE", up(0)),
    ),
    "config.json missing": Fault(
        "gqa",
        lambda out, _: (out / CONFIG).unlink(),
        (Seen("structure", "CONFIG_MISSING", CONFIG, "Not found"),),
        Seen("logits", "CONFIG_MISSING", CONFIG),
    ),
    "manifest edited": Fault(
        "gqa",
        lambda out, _: plant.edit_json(out / MANIFEST, lambda content: content.update(release="Llama 9")),
        (Seen("values", "MANIFEST_VALUE", MANIFEST, "it was edited or damaged"),),
        None,  # nothing is computed from it
    ),
    "manifest of a later version": Fault(
        "gqa",
        lambda out, _: plant.edit_json(out / MANIFEST, lambda content: content.update(schema=2)),
        (Seen("values", "MANIFEST_VALUE", MANIFEST, "Unsupported schema number"),),
        None,  # nothing is computed from it
    ),
    "file changed since": Fault(
        "gqa",
        lambda out, _: (out / "generation_config.json").write_text("{}"),
        (
            Seen(
                "values",
                "MANIFEST_DIFFERS",
                "generation_config.json",
                "Checksum does not match llama-convert.json",
            ),
        ),
        None,  # nothing is computed from it
    ),
    "file lost since": Fault(
        "gqa",
        lambda out, _: (out / "generation_config.json").unlink(),
        (
            Seen(
                "values",
                "MANIFEST_DIFFERS",
                "generation_config.json",
                "Listed in llama-convert.json, but missing",
            ),
        ),
        None,  # nothing is computed from it
    ),
}


def overlap(content: dict[str, Any]) -> None:
    entries = sorted(
        (entry for name, entry in content.items() if name != "__metadata__"),
        key=lambda entry: entry["data_offsets"],
    )
    second = next(entry for entry in entries[1:])
    second["data_offsets"] = [offset - 2 for offset in second["data_offsets"]]


def scaling(**changes: Any) -> dict[str, Any]:
    return {
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3", **changes,
        }
    }  # fmt: skip


def setting(base: str, changes: dict[str, Any], says: str, *, computes: bool = True) -> Fault:
    """A hyper-parameter that can be read, and is not the source's."""
    at = [Seen(level, "CONFIG_DIFFERS", CONFIG, says, not computes) for level in ("structure", "logits")]
    return Fault(base, config(**changes), (at[0],), at[1] if computes else None)


def refused(changes: dict[str, Any], says: str, code: str = "UNSUPPORTED_MODEL") -> Fault:
    """One that no Llama has."""
    at = [Seen(level, code, CONFIG, says) for level in ("structure", "logits")]
    return Fault("gqa", config(**changes), (at[0],), at[1])


CONFIGS = {
    "rope_theta": setting(
        "mha", {"rope_theta": 500000.0}, "rope_theta differs from the source. expected 10000, got 500000"
    ),
    "rope_theta left out": setting(
        "gqa", {"rope_theta": ...}, "rope_theta differs from the source. expected 500000, got 10000"
    ),
    "rope scaling missing": setting(
        "gqa",
        {"rope_scaling": None},
        "rope_scaling differs from the source. expected llama3, factor 8, from 8192, got none",
    ),
    "rope scaling too many": setting("mha", scaling(), "rope_scaling differs"),
    "rope factor": setting("gqa", scaling(factor=32.0), "factor differs from the source. expected 8, got 32"),
    "low_freq_factor": setting(
        "gqa", scaling(low_freq_factor=2.0), "low_freq_factor differs from the source. expected 1, got 2"
    ),
    "high_freq_factor": setting(
        "gqa", scaling(high_freq_factor=8.0), "high_freq_factor differs from the source. expected 4, got 8"
    ),
    "original context": setting(
        "gqa",
        scaling(original_max_position_embeddings=4096),
        "original_max_position_embeddings differs",
    ),
    "rms_norm_eps": setting(
        "gqa", {"rms_norm_eps": 1e-6}, "rms_norm_eps differs from the source. expected 1e-05, got 1e-06"
    ),
    "rms_norm_eps of LLaMA 1": setting("mha", {"rms_norm_eps": 1e-5 * 1.1}, "rms_norm_eps differs"),
    "max_position_embeddings": setting(
        "gqa", {"max_position_embeddings": 2048}, "max_position_embeddings differs", computes=False
    ),
    "num_key_value_heads": Fault(
        "gqa",
        config(num_key_value_heads=8),
        (
            Seen("structure", "TENSOR_SHAPE", k(0), '"num_key_value_heads" to 4'),
            Seen("structure", "CONFIG_DIFFERS", CONFIG, "num_key_value_heads differs"),
        ),
        Seen("logits", "TENSOR_SHAPE", k(0), '"num_key_value_heads" to 4'),
    ),
    "num_key_value_heads left out": Fault(
        "gqa",
        config(num_key_value_heads=...),
        (Seen("structure", "TENSOR_SHAPE", k(0), '"num_key_value_heads" to 4'),),
        Seen("logits", "TENSOR_SHAPE", k(0)),
    ),
    "num_attention_heads": Fault(
        "mha",
        config(num_attention_heads=4, num_key_value_heads=4, head_dim=16),
        (
            Seen(
                "structure", "CONFIG_DIFFERS", CONFIG, "head_dim differs from the source. expected 8, got 16"
            ),
            Seen(
                "structure",
                "CONFIG_DIFFERS",
                CONFIG,
                "num_attention_heads differs from the source. expected 8, got 4",
            ),
        ),
        Seen("logits", "CONFIG_DIFFERS", CONFIG, "num_attention_heads differs"),
    ),
    "head_dim": Fault(
        "gqa",
        config(head_dim=16),
        (
            Seen(
                "structure",
                "TENSOR_SHAPE",
                q(0),
                "The shape does not match config.json (in 3 layers). expected [128, 64], got [64, 64]",
            ),
            Seen(
                "structure", "CONFIG_DIFFERS", CONFIG, "head_dim differs from the source. expected 8, got 16"
            ),
        ),
        Seen("logits", "TENSOR_SHAPE", q(0)),
    ),
    "vocab_size": Fault(
        "gqa",
        config(vocab_size=95),
        (
            Seen(
                "structure",
                "TENSOR_SHAPE",
                EMBED,
                "The shape does not match config.json. expected [95, 64], got [96, 64]",
            ),
            Seen(
                "structure",
                "CONFIG_DIFFERS",
                CONFIG,
                "vocab_size differs from the source. expected 96, got 95",
            ),
        ),
        Seen("logits", "TENSOR_SHAPE", EMBED),
    ),
    "intermediate_size": Fault(
        "gqa",
        config(intermediate_size=64),
        (Seen("structure", "TENSOR_SHAPE", gate(0), "(in 3 layers)"),),
        Seen("logits", "TENSOR_SHAPE", gate(0)),
    ),
    "tied, and is not": Fault(
        "gqa",
        config(tie_word_embeddings=True),
        (
            Seen(
                "structure",
                "CONFIG_DIFFERS",
                CONFIG,
                "tie_word_embeddings differs from the source. expected False, got True",
            ),
            Seen("structure", "CONFIG_TENSORS_DISAGREE", HEAD, 'Set "tie_word_embeddings" to false'),
        ),
        Seen("logits", "CONFIG_TENSORS_DISAGREE", HEAD, "differs from model.embed_tokens.weight"),
    ),
    "not tied, and is": Fault(
        "tied",
        config(tie_word_embeddings=False),
        (
            Seen("structure", "TENSOR_MISSING", HEAD, '"tie_word_embeddings" to true'),
            Seen(
                "structure",
                "CONFIG_DIFFERS",
                CONFIG,
                "tie_word_embeddings differs from the source. expected True, got False",
            ),
        ),
        Seen("logits", "TENSOR_MISSING", HEAD, '"tie_word_embeddings" to true'),
    ),
    "torch_dtype": Fault(
        "gqa",
        config(torch_dtype="float16"),
        (Seen("structure", "CONFIG_TENSORS_DISAGREE", CONFIG, '"torch_dtype" does not match the weights'),),
        None,  # both sides compute in what they are told to
    ),
    "hidden_act": refused({"hidden_act": "gelu"}, "\"hidden_act\" is 'gelu' (another activation"),
    "attention_bias": refused({"attention_bias": True}, '"attention_bias" is True'),
    "mlp_bias": refused({"mlp_bias": True}, '"mlp_bias" is True'),
    "model_type": refused({"model_type": "mistral"}, "\"model_type\" is 'mistral'"),
    "quantised": refused({"quantization_config": {"bits": 4}}, "quantized"),
    "rope_type": refused({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
    "odd head_dim": refused({"head_dim": 7}, "RoPE rotates pairs", "CONFIG_VALUE"),
}

FAULTS = WEIGHTS | FILES | CONFIGS


def look(out: Path, source: Path | None, *levels: str, dtype: str = "fp32") -> VerifyReport:
    return verify(out, source, VerifyOptions(checks=parse_checks(levels), dtype=dtype, device="cpu"))


def findings(report: VerifyReport, level: str) -> list[Finding]:
    return [finding for one in report.checks if one.check.value == level for finding in one.findings]


def assert_seen(report: VerifyReport, seen: Seen) -> None:
    assert any(map(seen.fits, findings(report, seen.level))), (seen, findings(report, seen.level))


def assert_shown(report: VerifyReport) -> None:
    """At least one error is not explained by another finding, and no cause is itself explained by one."""
    errors = [(one.check.value, finding) for one in report.checks for finding in one.errors]
    assert any(finding.explained_by is None for _, finding in errors)
    explained = {(check, f.code, f.message, f.tensor) for check, f in errors if f.explained_by}
    for _, finding in errors:
        if cause := finding.explained_by:
            assert (cause.check, cause.code, cause.message, cause.tensor) not in explained


@pytest.fixture
def planted(request: pytest.FixtureRequest, right: Path, tmp_path: Path) -> tuple[Fault, Path, Path]:
    """A fault, the output that has it, and its source."""
    fault = FAULTS[request.param]
    out = Path(shutil.copytree(right / f"{fault.base}-out", tmp_path / "out"))
    fault.plant(out, right)
    return fault, out, right / fault.base


each_fault = pytest.mark.parametrize("planted", FAULTS, indirect=True)


@each_fault
def test_named_by_all_checks(planted: tuple[Fault, Path, Path]) -> None:
    fault, out, source = planted
    report = look(out, source)
    for seen in fault.seen:
        assert_seen(report, seen)
    assert not report.ok
    assert_shown(report)


@each_fault
def test_seen_by_running_alone(planted: tuple[Fault, Path, Path]) -> None:
    fault, out, source = planted
    report = look(out, source, "logits")
    assert report.ok == (fault.alone is None), findings(report, "logits")
    if fault.alone:
        assert_seen(report, fault.alone)
        assert_shown(report)
