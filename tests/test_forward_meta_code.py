"""Our reading of ranks is Meta's: their own Transformer runs the same files, one process a rank.

llama-models and fairscale load and compute; nothing of theirs is written down here.  They do it in float32 on
the CPU, so that what is left between the two is rounding.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llama_convert.llama.config import LlamaConfig, RopeScaling
from llama_convert.llama.forward import huggingface_forward, meta_forward
from tests import synthetic
from tests.peers import ROOT, Peer, PeerError
from tests.synthetic import Shape, State
from tests.test_fixtures import CONFIGS

# Each process runs this.  From outside, it gives Meta's code float32 (their loader leaves bfloat16 as the
# default) and, for Llama 2, the class of fairscale's that meta-llama/llama has in VocabParallelEmbedding's
# place: llama-models knows only Llama 3's cut of the embedding.
META = """
import json
from datetime import timedelta
from pathlib import Path

import torch
from fairscale.nn.model_parallel import initialize, layers
from llama_models.checkpoint import maybe_reshard_state_dict
from llama_models.llama3 import model as llama3
from llama_models.llama3.args import ModelArgs

torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo",
    store=torch.distributed.FileStore(meeting, n_processes),
    rank=number,
    world_size=n_processes,
    timeout=timedelta(seconds=600),
)
try:
    initialize.initialize_model_parallel(n_processes)
    params = json.loads(Path(folder, "params.json").read_text()) | changes
    args = ModelArgs(**params, max_batch_size=1, max_seq_len=512)
    state = maybe_reshard_state_dict(sorted(Path(folder).glob("*.pth")), args.n_kv_heads)
    state.pop("rope.freqs", None)  # Llama 2's files have it, no code reads it
    torch.set_default_dtype(torch.float32)
    llama3.VocabParallelEmbedding = getattr(layers, embedding)
    model = llama3.Transformer(args)
    model.load_state_dict(state, strict=True)

    said, logits = [], []

    def hear(tokens):
        logits.append(model(torch.tensor([tokens]), len(said))[0])
        said.extend(tokens)

    for chunk in chunks:
        hear(chunk)
    for _ in range(n_more):
        hear([int(logits[-1][-1].argmax())])
    torch.save(torch.cat(logits), f"{answers}.{number}")
    result = said
finally:
    initialize.destroy_model_parallel()
    torch.distributed.destroy_process_group()
"""


@dataclass
class Answer:
    said: list[int]
    logits: Tensor


class Processes:
    """Interpreters that see Meta's packages, started as they are needed and kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs = count()
        self._peers: list[Peer] = []

    def run(
        self,
        folder: Path,
        n_processes: int,
        chunks: list[list[int]],
        n_more: int = 0,
        changes: dict[str, Any] | None = None,
        embedding: str = "VocabParallelEmbedding",
    ) -> Answer:
        """Let Meta's code read `chunks` one after the other, then say the likeliest token `n_more` times."""
        run = next(self._runs)
        while len(self._peers) < n_processes:
            self._peers.append(Peer("meta"))

        def one(number: int) -> list[int] | PeerError:
            try:
                said: list[int] = self._peers[number].run(
                    META,
                    folder=folder,
                    meeting=self._folder / f"meeting-{run}",
                    answers=self._folder / f"logits-{run}",
                    number=number,
                    n_processes=n_processes,
                    chunks=chunks,
                    n_more=n_more,
                    changes=changes or {},
                    embedding=embedding,
                )
            except PeerError as error:  # one that stops stops the others: show them all
                return error
            return said

        with ThreadPoolExecutor(n_processes) as pool:
            all_said = list(pool.map(one, range(n_processes)))
        errors = [str(said) for said in all_said if isinstance(said, PeerError)]
        assert not errors, "\n".join(errors)
        logits = [torch.load(self._folder / f"logits-{run}.{number}") for number in range(n_processes)]
        for number in range(1, n_processes):
            assert all_said[number] == all_said[0]
            assert torch.equal(logits[number], logits[0])
        assert isinstance(all_said[0], list)
        return Answer(all_said[0], logits[0])

    def close(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Peer.close, self._peers))


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("meta"))
    yield processes
    processes.close()


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest logit."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype == torch.float32
    return float((one - other).abs().max() / other.abs().max())


ROUNDING = 1e-5
ROUNDING_OF_A_TEXT_BY_HEART = 1e-4  # at once or word by word, Meta's code itself differs by 1e-5
CLEARLY_MORE = 1e-2

# Words of every rank, and enough of them for Llama 3.1's scaling to be seen.
TOKENS = torch.randint(0, 96, (160,), generator=torch.Generator().manual_seed(7))

SHAPES = {
    "llama2-with-llama3s-cut": Shape(
        ffn_dim=192,
        vocab_size=96,
        embedding_cut=0,
        dtype=torch.float32,
        params={"vocab_size": 96, "multiple_of": 64, "rope_theta": 10000.0},
    ),
    "llama3": Shape(
        n_kv_heads=4,
        ffn_dim=224,
        vocab_size=96,
        embedding_cut=0,
        dtype=torch.float32,
        params={
            "vocab_size": 96,
            "multiple_of": 32,
            "ffn_dim_multiplier": 1.3,
            "rope_theta": 500000.0,
        },
    ),
}
SHAPES["llama2"] = SHAPES["llama2-with-llama3s-cut"].but(embedding_cut=1)
SHAPES["llama2-70b"] = SHAPES["llama2"].but(n_kv_heads=4)
SHAPES["llama3.1"] = SHAPES["llama3"].but(params=SHAPES["llama3"].params | {"use_scaled_rope": True})
SHAPES["llama3.1-405b-mp16"] = SHAPES["llama3.1"].but(n_kv_heads=2, kv_repeats=2)
SHAPES["llama3.1-bf16"] = SHAPES["llama3.1"].but(dtype=torch.bfloat16)
SHAPES["llama3.2"] = SHAPES["llama3.1"].but(tied=True)

CASES = [
    *[("llama2-with-llama3s-cut", n) for n in (1, 2, 4)],
    *[("llama3", n) for n in (1, 2, 4)],
    *[("llama2", n) for n in (1, 2, 4)],
    ("llama2-70b", 4),
    *[("llama3.1", n) for n in (1, 2, 4)],
    ("llama3.1-405b-mp16", 4),
    ("llama3.1-bf16", 2),
    ("llama3.2", 1),
    ("llama3.2", 2),
]
EMBEDDINGS = ("VocabParallelEmbedding", "ParallelEmbedding")  # by the axis that they cut


@dataclass
class Case:
    shape: Shape
    config: LlamaConfig
    whole: State
    ranks: list[State]
    folder: Path


def make(folder: Path, name: str, n_ranks: int) -> Case:
    shape = SHAPES[name].but(ranks=n_ranks)
    whole = synthetic.weights(shape, seed=n_ranks)
    ranks = synthetic.cut(shape, whole)
    config = LlamaConfig(
        dim=shape.dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        ffn_dim=shape.ffn_dim,
        vocab_size=shape.vocab_size,
        norm_eps=1e-5,
        rope_theta=shape.params["rope_theta"],
        rope_scaling=RopeScaling() if shape.params.get("use_scaled_rope") else None,
        context_length=512,
        tied=shape.tied,
    )
    return Case(shape, config, whole, ranks, synthetic.write(folder, shape, ranks))


@pytest.mark.parametrize(("name", "n_ranks"), CASES)
def test_ranks_mean_what_metas_code_makes_of_them(
    meta: Processes, tmp_path: Path, name: str, n_ranks: int
) -> None:
    """And so do the merged weights, by the other reading: Meta's code and Hugging Face's layout agree."""
    case = make(tmp_path, name, n_ranks)
    embedding = EMBEDDINGS[case.shape.embedding_cut]
    theirs = meta.run(case.folder, n_ranks, [TOKENS.tolist()], embedding=embedding).logits
    assert theirs.abs().max() > 1
    assert difference(meta_forward(case.config, case.ranks, TOKENS), theirs) < ROUNDING
    merged = synthetic.huggingface(case.shape, case.whole)
    assert difference(huggingface_forward(case.config, merged, TOKENS), theirs) < ROUNDING


@pytest.mark.parametrize(("n_ranks", "n_processes"), [(4, 1), (4, 2), (1, 2)])
def test_ranks_match_what_metas_loader_merges_or_splits(
    meta: Processes, tmp_path: Path, n_ranks: int, n_processes: int
) -> None:
    case = make(tmp_path, "llama3.1", n_ranks)
    theirs = meta.run(case.folder, n_processes, [TOKENS.tolist()]).logits
    assert difference(meta_forward(case.config, case.ranks, TOKENS), theirs) < ROUNDING


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_positions_are_those_of_metas_cache(meta: Processes, tmp_path: Path, n_ranks: int) -> None:
    """A text heard in pieces, each from its start_pos on."""
    case = make(tmp_path, "llama3.1", n_ranks)
    pieces = [piece.tolist() for piece in torch.split(TOKENS, [24, 1, 1, 60, 1, 73])]
    theirs = meta.run(case.folder, n_ranks, pieces).logits
    assert difference(meta_forward(case.config, case.ranks, TOKENS), theirs) < ROUNDING


def halves_first(weight: Tensor, shape: Shape) -> Tensor:
    """Rows of each head as Hugging Face has them."""
    heads = weight.view(-1, shape.head_dim // 2, 2, shape.dim)
    return heads.transpose(1, 2).reshape(weight.shape)


def test_faults_are_seen(meta: Processes, tmp_path: Path) -> None:
    case = make(tmp_path, "llama3.1", 2)
    theirs = meta.run(case.folder, 2, [TOKENS.tolist()]).logits
    assert difference(meta_forward(case.config, case.ranks, TOKENS), theirs) < ROUNDING

    def swapped(part: str) -> list[State]:
        return [
            {name: (there if part in name else here)[name] for name in here}
            for here, there in zip(case.ranks, reversed(case.ranks), strict=True)
        ]

    def reordered(part: str) -> list[State]:
        return [
            {name: halves_first(rank[name], case.shape) if part in name else rank[name] for name in rank}
            for rank in case.ranks
        ]

    wrong = {
        "ranks in the wrong order": (case.config, case.ranks[::-1]),
        "one weight's ranks in the wrong order": (case.config, swapped("layers.0.attention.wq")),
        "rows in Hugging Face's order": (case.config, reordered("layers.1.attention.wk")),
        "RoPE not scaled": (replace(case.config, rope_scaling=None), case.ranks),
        "RoPE with Llama 2's theta": (replace(case.config, rope_theta=10000.0), case.ranks),
    }
    differences = {
        fault: difference(meta_forward(config, ranks, TOKENS), theirs)
        for fault, (config, ranks) in wrong.items()
    }
    unseen = {fault: found for fault, found in differences.items() if found < CLEARLY_MORE}
    assert not unseen, differences


def test_files_in_the_wrong_order_are_seen(meta: Processes, tmp_path: Path) -> None:
    """The same from Meta's side: what their code reads is what our reading is given."""
    case = make(tmp_path / "right", "llama3.1", 2)
    wrong = synthetic.write(tmp_path / "wrong", case.shape, case.ranks[::-1])
    theirs = meta.run(wrong, 2, [TOKENS.tolist()]).logits
    assert difference(meta_forward(case.config, case.ranks, TOKENS), theirs) > CLEARLY_MORE
    assert difference(meta_forward(case.config, case.ranks[::-1], TOKENS), theirs) < ROUNDING


STORIES = LlamaConfig(64, 5, 8, 4, 8, 172, 512, 1e-5, 1e4, None, 512, tied=False)


def says_what_it_should(
    meta: Processes,
    folder: Path,
    config: LlamaConfig,
    expected: dict[str, Any],
    embedding_cut: int,
    rounding: float,
) -> None:
    """Meta's code finds each word of the text likeliest, with our logits, and says it word by word."""
    prompt, text = expected["prompt_ids"], expected["greedy_ids"]
    ranks = [torch.load(path) for path in sorted(folder.glob("*.pth"))]
    # What their code does not read in the file: how many words the tokenizer has, and Llama 2's theta.
    changes = {"vocab_size": config.vocab_size, "rope_theta": config.rope_theta}
    embedding = EMBEDDINGS[embedding_cut]

    theirs = meta.run(folder, len(ranks), [text], changes=changes, embedding=embedding).logits
    assert theirs.argmax(-1)[len(prompt) - 1 : -1].tolist() == text[len(prompt) :]
    assert difference(meta_forward(config, ranks, torch.tensor(text)), theirs) < rounding

    n_more = 24 if len(ranks) > 2 else len(text) - len(prompt)  # four wait for each other long on two cores
    said = meta.run(folder, len(ranks), [prompt], n_more, changes, embedding).said
    assert said == text[: len(prompt) + n_more]


@pytest.mark.parametrize(("n_ranks", "embedding_cut"), [(1, 0), (2, 0), (4, 0), (4, 1)])
def test_a_trained_model(
    meta: Processes, stories260k: Path, tmp_path: Path, n_ranks: int, embedding_cut: int
) -> None:
    shape = Shape(n_kv_heads=4, ranks=n_ranks, embedding_cut=embedding_cut)
    whole = torch.load(stories260k / "consolidated.00.pth")
    synthetic.write(tmp_path, shape, synthetic.cut(shape, whole))
    shutil.copy(stories260k / "params.json", tmp_path)
    expected = json.loads((stories260k / "expected.json").read_text())
    says_what_it_should(meta, tmp_path, STORIES, expected, embedding_cut, ROUNDING)


@pytest.mark.parametrize("name", ["llama2-mp2", "llama3.1-mp2"])
def test_the_fixtures(meta: Processes, name: str) -> None:
    """Not llama3.2-tied: llama-models 0.3.0 stretches RoPE by 8 whatever the release."""
    folder = ROOT / "fixtures" / name
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    embedding_cut = int(name == "llama2-mp2")
    says_what_it_should(meta, folder, CONFIGS[name], expected, embedding_cut, ROUNDING_OF_A_TEXT_BY_HEART)
