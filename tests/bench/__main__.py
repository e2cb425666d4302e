"""Races: ``python -m tests.bench [RACE ...] [--size 3.2-1B] [--rounds 5] [--only NAME]``.

Never part of the tests.  Checkpoints of real shapes are made in $BENCH_DIR, or where temporary files go.  In
each race the first contestant is what the ratios are to.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import large
from tests.bench.race import Contestant, race
from tests.run import llama_convert
from tests.synthetic import Shape

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


@dataclass(frozen=True)
class Bytes:
    """What is raced on: one checkpoint in both layouts."""

    shape: Shape
    meta: Path
    huggingface: Path
    out: Path


def ours(name: str, command: str, *arguments: object) -> Contestant:
    return Contestant(name, [*OURS, command, *map(str, arguments), "--quiet"])


def copy(folder: Path, out: Path, *, sync: bool = True) -> Contestant:
    command = f"cp -r '{folder}' '{out}'" + (f" && sync '{out}'/*" if sync else "")
    return Contestant("cp -r, sync" if sync else "cp -r", ["sh", "-c", command])


def convert(on: Bytes) -> list[Contestant]:
    """Meta's layout to Hugging Face's, on disk when it is done."""
    script = [sys.executable, "-c", HF_SCRIPT, str(on.meta), str(on.out), str(on.shape.ranks)]
    savvy = [sys.executable, "-m", "tests.bench.savvy", str(on.meta), str(on.out)]
    return [
        copy(on.meta, on.out),
        ours("llama-convert", "convert", on.meta, on.out),
        Contestant("torch.load(mmap), permute, save_file", savvy),
        Contestant("transformers 4.45.2's script", script, "transformers-4.45"),
    ]


def scratch(on: Bytes) -> list[Contestant]:
    """The same into the page cache."""
    return [
        copy(on.meta, on.out, sync=False),
        ours("llama-convert --no-fsync", "convert", on.meta, on.out, "--no-fsync"),
    ]


def fp16(on: Bytes) -> list[Contestant]:
    """With a change of dtype."""
    return [
        copy(on.meta, on.out),
        ours("llama-convert --dtype fp16", "convert", on.meta, on.out, "--dtype", "fp16"),
    ]


def back(on: Bytes) -> list[Contestant]:
    """Hugging Face's layout to Meta's."""
    to_meta = (on.huggingface, on.out, "--to", "meta", "--mp", on.shape.ranks)
    return [
        copy(on.huggingface, on.out),
        ours("convert --to meta --no-checklist", "convert", *to_meta, "--no-checklist"),
        ours("convert --to meta", "convert", *to_meta),
    ]


def shard(on: Bytes) -> list[Contestant]:
    """The same layout, cut anew."""
    return [
        copy(on.huggingface, on.out),
        ours("shard --max-shard-size 1GB", "shard", on.huggingface, on.out, "--max-shard-size", "1GB"),
        ours("shard --mp 2 --no-checklist", "shard", on.meta, on.out, "--mp", 2, "--no-checklist"),
    ]


def spread(on: Bytes) -> list[Contestant]:
    """The same by several processes, in files of 500 MB."""
    small = ("convert", on.meta, on.out, "--max-shard-size", "500MB")
    line = " ".join(map(str, [*OURS, *small, "--quiet"]))
    dask = (
        "import sys; from distributed import LocalCluster; from llama_convert.cli import main\n"
        "if __name__ == '__main__':\n"
        "    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)\n"
        "    sys.argv += ['--scheduler', cluster.scheduler_address]\n"
        "    main()"
    )
    return [
        ours("one process", *small),
        Contestant("2 array tasks", ["sh", "-c", f"seq 2 | xargs -P 2 -I{{}} {line} --array-task {{}}/2"]),
        Contestant("Dask, 2 workers", [sys.executable, "-c", dask, *map(str, small), "--quiet"]),
    ]


def verify(on: Bytes) -> list[Contestant]:
    """Load the converted folder and run 64 positions; ours does so with both sides and compares."""

    def transformers(version: str, dtype: str) -> Contestant:
        command = [sys.executable, "-c", HF_FORWARD, str(on.huggingface), dtype]
        return Contestant(f"transformers {version}, {dtype}", command, f"transformers-{version}")

    size = sum(file.stat().st_size for file in on.huggingface.glob("*.safetensors"))
    fits = 2 * size < 0.8 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    dtypes = ["bfloat16", "float32"] if fits else ["bfloat16"]
    both = (on.huggingface, "--source", on.meta, "--check", "logits", "--dtype")
    return [
        *(transformers(version, dtype) for version in ("4.45", "5") for dtype in dtypes),
        *(ours(f"verify --source, {dtype}", "verify", *both, dtype) for dtype in ("bf16", "fp32")),
    ]


def start(on: Bytes) -> list[Contestant]:
    """How long it takes until anything is done."""
    sparse = on.meta.parent / "405B"
    if not sparse.exists():
        large.make(sparse, large.SHAPES["3.1-405B"], fill=False)
    return [
        Contestant("import typer, rich", [sys.executable, "-c", "import typer, rich.console, rich.table"]),
        Contestant("llama-convert --help", [*OURS, "--help"]),
        Contestant("llama-convert inspect", [*OURS, "inspect", str(on.huggingface)]),
        ours("convert --dry-run", "convert", on.meta, on.out, "--dry-run"),
        ours("convert --dry-run, 405B in 16 ranks", "convert", sparse, on.out, "--dry-run"),
    ]


RACES: dict[str, Callable[[Bytes], list[Contestant]]] = {
    race.__name__: race for race in (convert, scratch, fp16, back, shard, spread, start, verify)
}


def main() -> None:
    """Make a checkpoint, let everybody work on it, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("races", nargs="*", choices=[[], *RACES], help=f"of {', '.join(RACES)}; all")
    parser.add_argument("--size", choices=list(large.SHAPES), default="3.2-1B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="run only the contestants whose name holds this")
    arguments = parser.parse_args()
    shape = large.SHAPES[arguments.size]
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as place:
        without, source, converted = (Path(place) / name for name in ("without", "meta", "hf"))
        large.make(without, shape)  # and then once more with CRC-32s, which ours compare
        llama_convert("shard", without, source, "--mp", shape.ranks, "--no-checklist", "--quiet")
        shutil.rmtree(without)
        llama_convert("convert", source, converted, "--quiet")
        on = Bytes(shape, source, converted, Path(place) / "out")
        size = sum(file.stat().st_size for file in source.iterdir())
        for name in arguments.races or RACES:
            words = arguments.only or [""]
            chosen = [one for one in RACES[name](on) if any(word in one.name for word in words)]
            title = f"{name}: {arguments.size}, {shape.ranks} ranks, {size / 1e9:.1f} GB"
            race(title, chosen, arguments.rounds, lambda: shutil.rmtree(on.out, ignore_errors=True))


if __name__ == "__main__":
    main()
