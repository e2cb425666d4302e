"""State dicts inside training checkpoints: the right one is found, and what is next to it is never read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_convert.errors import InputError
from llama_convert.formats.pickle_objects import Pairs, StorageRecord, TensorRecord
from llama_convert.formats.state_dict import WRAPPER_KEYS, find_state_dict
from llama_convert.formats.torch_reader import read_torch_checkpoint
from tests.limits import cpu_limit
from tests.test_torch_legacy import Evil, container, memo, text
from tests.test_torch_zip import with_pickle
from tests.torch_files import as_bytes, read, refused

Saved = dict[str, torch.Tensor]


def layers() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2)).bfloat16()


def trained() -> tuple[Saved, Any, Any]:
    """A state dict, and the state of an optimizer and of a scheduler after a step."""
    model = layers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.ones(3, 4).bfloat16()).sum().backward()
    optimizer.step()
    scheduler.step()
    return model.state_dict(), optimizer.state_dict(), scheduler.state_dict()


STATE, OPTIMIZER, SCHEDULER = trained()
TRAINING = {
    "alone": (STATE, ""),
    "model": ({"model": STATE}, "model"),
    "with an optimizer": (
        {
            "optimizer": OPTIMIZER,
            "lr_scheduler": SCHEDULER,
            "model": STATE,
            "step": 3,
            "name": "run",
            "loss": 0.5,
        },
        "model",
    ),
    "nanoGPT": (
        {
            "model": STATE,
            "optimizer": OPTIMIZER,
            "model_args": {"n_layer": 2, "bias": False},
            "best_val_loss": torch.tensor(2.5),
            "config": {"compile": True},
        },
        "model",
    ),
    "Lightning": (
        {
            "epoch": 0,
            "pytorch-lightning_version": "2.5",
            "state_dict": STATE,
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {},
            "optimizer_states": [OPTIMIZER],
            "lr_schedulers": [SCHEDULER],
        },
        "state_dict",
    ),
    "DeepSpeed": (
        {
            "module": STATE,
            "optimizer": None,
            "param_shapes": [{name: tensor.shape for name, tensor in STATE.items()}],
            "sparse_tensor_module_names": set(),
            "ds_config": {"dtype": torch.bfloat16},
        },
        "module",
    ),
    "twice": ({"model": {"module": STATE, "version": 1}, "step": 3}, "model.module"),
    "an empty one": ({"model": {}, "state_dict": STATE}, "state_dict"),
    "settings under a key": ({"model": {"dim": 8}, "module": STATE}, "module"),
    "one dict under two keys": ({"model": STATE, "state_dict": STATE}, "model"),
    "devices and generators": (
        {"model": STATE, "device": torch.device("cuda", 0), "rng": torch.get_rng_state()},
        "model",
    ),
    "large dimensions": (
        {"model": STATE, "x": torch.ones(1).expand(1 << 21), "y": torch.ones((1,) * 20)},
        "model",
    ),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", TRAINING)
def test_training_checkpoints(tmp_path: Path, name: str, *, zipped: bool) -> None:
    content, keys = TRAINING[name]
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    found = read_torch_checkpoint(tmp_path / "x.pt")
    assert ".".join(found.wrapper_keys) == keys
    assert list(found.tensors) == list(STATE)
    for tensor_name, tensor in STATE.items():
        assert as_bytes(read(found.tensors[tensor_name])) == as_bytes(tensor)


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ({"model": STATE, "ema": dict(STATE)}, "INPUT_AMBIGUOUS", "ema, model"),
        (
            {"model": {"module": STATE, "ema": dict(STATE)}},
            "INPUT_AMBIGUOUS",
            "model.ema, model.module",
        ),
        ({"student": STATE}, "INPUT_PICKLE", "student: Not a tensor but a dict"),
        ({"a": {"b": STATE}, "model": {}}, "INPUT_PICKLE", "a: Not a tensor but a dict"),
        ({"model": {}}, "INPUT_PICKLE", "model: Not a tensor but a dict"),
        ({"model": STATE | {"n": 3}}, "INPUT_PICKLE", "n: Not a tensor but a int"),
        ({"model": STATE | {3: torch.ones(1)}}, "INPUT_PICKLE", "not a name but a int"),
        ({"model": torch.ones(1)} | {"n": 3}, "INPUT_PICKLE", "n: Not a tensor but a int"),
        ({"model": [STATE]}, "INPUT_PICKLE", "model: Not a tensor but a list"),
        ({"optimizer": OPTIMIZER}, "INPUT_PICKLE", "optimizer: Not a tensor"),
    ],
)
def test_other_objects_are_refused(tmp_path: Path, content: Any, code: str, words: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    error = refused(tmp_path / "x.pt")
    assert error.code == code
    assert words in str(error)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, exec, os.mkdir], ids=lambda f: f.__name__)
def test_objects_in_skipped_entries_are_not_constructed(
    tmp_path: Path, function: Any, *, zipped: bool
) -> None:
    marker = tmp_path / "marker"
    arguments = {"system": f"touch {marker}", "exec": f"open({str(marker)!r}, 'w')", "mkdir": str(marker)}
    evil = Evil(function, arguments[function.__name__])
    for entry in ({"optimizer": evil}, {"optimizer": {"state": [(evil,)]}}):
        torch.save({"model": STATE} | entry, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        assert refused(tmp_path / "x.pt").code == "INPUT_PICKLE_OBJECT"
        assert not marker.exists()


# Without files.

TENSOR = TensorRecord(StorageRecord("0", None, 4), None, 0, (1,), (1,))  # type: ignore[arg-type]
JUNK = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.just(TENSOR),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.tuples(st.sampled_from(["a", "b", "optimizer", "state"]), inner), max_size=3).map(Pairs)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    keys=st.lists(st.sampled_from(WRAPPER_KEYS), max_size=4),
    names=st.lists(st.text("abc", min_size=1), min_size=1, max_size=5),
    junk=st.lists(
        st.lists(st.tuples(st.sampled_from(["x", "y", "optimizer"]), JUNK), max_size=3), min_size=4
    ),
)
def test_any_wrapping_is_removed(
    keys: list[str], names: list[str], junk: list[list[tuple[str, Any]]]
) -> None:
    state = content = Pairs((name, TENSOR) for name in names)
    for key, others in zip(reversed(keys), junk, strict=False):
        content = Pairs([*others, (key, content)])
    found = find_state_dict(content, Path("x"))
    assert found.items is state
    assert found.keys == tuple(keys)


def test_a_key_twice() -> None:
    """Python's dict would keep the last."""
    inner = Pairs([("a", TENSOR)])
    with pytest.raises(InputError, match="twice"):
        find_state_dict(Pairs([("model", inner), ("model", Pairs(inner))]), Path("x"))


def test_a_dict_that_contains_itself() -> None:
    content = Pairs([("a", TENSOR)])
    content.append(("model", content))
    assert find_state_dict(content, Path("x")).items is content


MODEL = text(b"model")
EACH_KEY = b"".join(text(key.encode()) + b"h\0" for key in WRAPPER_KEYS)
BOMBS = {
    "deep": memo(b"}", *[MODEL + b"}"] * 150_000, b"s" * 150_000),
    "many keys": memo(b"}(", *[MODEL + b"}"] * 100_000, b"u"),
    "a graph": memo(b"}q\0", *[b"}(" + EACH_KEY + b"uq\0"] * 20_000),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("zipped", [True, False])
def test_bombs(tmp_path: Path, name: str, *, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    if zipped:
        with_pickle(path, BOMBS[name])
    else:
        path.write_bytes(container(BOMBS[name], []))
    with cpu_limit(10.0):
        refused(path)


def test_a_wide_graph_is_visited_once() -> None:
    inner = Pairs([("a", TENSOR)])
    for _ in range(3):
        inner = Pairs([(key, inner) for key in WRAPPER_KEYS] + [("n", 0)] * 100_000)
    with cpu_limit(5.0):
        assert find_state_dict(inner, Path("x")).keys == ("model",) * 3


def test_skipped_storages_must_be_complete(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"optimizer": torch.ones(8), "model": STATE}, path, _use_new_zipfile_serialization=False)
    os.truncate(path, path.stat().st_size - 1)
    assert refused(path).code == "INPUT_TRUNCATED"
