"""Races: ``python -m tests.bench [convert] [verify] [--size 3.2-1B] [--rounds 5] [--only NAME]``.

Never part of the tests.  Checkpoints of real shapes are made in $BENCH_DIR, or where temporary files go.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests import large
from tests.bench.race import Contestant, race
from tests.run import llama_convert

OURS = [sys.executable, "-m", "llama_convert"]
HF_SCRIPT = (
    "import sys; from transformers.models.llama.convert_llama_weights_to_hf import write_model; "
    "write_model(sys.argv[2], sys.argv[1], num_shards=int(sys.argv[3]), llama_version='3', vocab_size=128256)"
)
HF_FORWARD = (
    "import sys, torch; from transformers import LlamaForCausalLM; "
    "model = LlamaForCausalLM.from_pretrained(sys.argv[1], torch_dtype=getattr(torch, sys.argv[2])); "
    "positions = torch.linspace(0, model.config.max_position_embeddings - 1, 64).long()[None]; "
    "torch.no_grad().__enter__(); model(torch.arange(64)[None], position_ids=positions)"
)


def converters(source: Path, out: Path, ranks: int) -> list[Contestant]:
    """Meta's layout to Hugging Face's."""
    copy = f"cp -r '{source}' '{out}' && sync '{out}'/*"
    script = [sys.executable, "-c", HF_SCRIPT, str(source), str(out), str(ranks)]
    return [
        Contestant("cp -r, sync", ["sh", "-c", copy]),
        Contestant("llama-convert", [*OURS, "convert", str(source), str(out), "--quiet"]),
        Contestant("transformers 4.45.2's script", script, "transformers-4.45"),
    ]


def verifiers(source: Path, out: Path) -> list[Contestant]:
    """Load the converted folder and run 64 positions; ours does so with both sides and compares."""

    def transformers(version: str, dtype: str) -> Contestant:
        command = [sys.executable, "-c", HF_FORWARD, str(out), dtype]
        return Contestant(f"transformers {version}, {dtype}", command, f"transformers-{version}")

    def ours(dtype: str) -> Contestant:
        options = ["--source", str(source), "--level", "logits", "--dtype", dtype, "--quiet"]
        return Contestant(f"verify --source, {dtype}", [*OURS, "verify", str(out), *options])

    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    fits = 2 * size < 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    dtypes = {"bfloat16": "bf16"} | ({"float32": "fp32"} if fits else {})
    theirs = [transformers(version, dtype) for version in ("4.45", "5") for dtype in dtypes]
    return [*theirs, ours("bf16"), ours("fp32")]


def main() -> None:
    """Make a checkpoint, let everybody work on it, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("races", nargs="*", choices=["convert", "verify"], default=["convert", "verify"])
    parser.add_argument("--size", choices=list(large.SHAPES), default="3.2-1B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="run only the contestants whose name holds this")
    arguments = parser.parse_args()
    shape = large.SHAPES[arguments.size]

    def run(title: str, contestants: list[Contestant], tidy: Callable[[], None] = lambda: None) -> None:
        words = arguments.only or [""]
        chosen = [one for one in contestants if any(word in one.name for word in words)]
        race(title, chosen, arguments.rounds, tidy)

    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        source, out = large.make(Path(place) / "meta", shape), Path(place) / "out"
        title = f"{arguments.size}: {sum(file.stat().st_size for file in source.iterdir()) / 1e9:.1f} GB"
        if "convert" in arguments.races:
            run(f"{title} converted", converters(source, out, shape.ranks), lambda: shutil.rmtree(out))
        if "verify" in arguments.races:
            llama_convert("convert", source, out, "--quiet")
            run(f"{title}, 64 positions run", verifiers(source, out))


if __name__ == "__main__":
    main()
