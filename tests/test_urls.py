"""Checkpoints by URL: an object store (moto's S3) and a web server, with faults on the way; bit-exact."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch

pytest.importorskip("moto")
pytest.importorskip("s3fs")
pytest.importorskip("aiohttp")

from llama_convert import ConvertOptions, convert, inspect, shard, verify
from llama_convert.conversion.sealed_json import sealed
from llama_convert.errors import ConflictError, InputError, OutputError, UsageError
from llama_convert.formats.files import remote_files
from llama_convert.stores import filesystem, retry
from llama_convert.stores.filesystem import printable
from tests import large, synthetic
from tests.peers import ROOT
from tests.run import llama_convert
from tests.stores import Fault, FaultyProxy, ObjectStore, RangeServer, fail
from tests.synthetic import LLAMA2

Files = dict[str, bytes]
SHAPE = LLAMA2.but(ranks=2)
SMALL = ConvertOptions(max_shard_size="20KB")
FIXTURE = ROOT / "fixtures/llama2-mp2"


def read(folder: Path) -> Files:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def proxied() -> Iterator[tuple[ObjectStore, FaultyProxy]]:
    """A store, and a way to it that can fail; the environment leads there."""
    with (
        ObjectStore() as store,
        FaultyProxy(store.endpoint_url, stall_seconds=20) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in store.environment(proxy.url).items():
            patch.setenv(name, value)
        patch.setattr(retry, "_FIRST_PAUSE", 0.01)
        filesystem.open_filesystem.cache_clear()
        yield store, proxy
        filesystem.open_filesystem.cache_clear()


@pytest.fixture
def store(proxied: tuple[ObjectStore, FaultyProxy]) -> ObjectStore:
    proxied[0].clear()
    proxied[1].plan = None
    proxied[1].clear()
    return proxied[0]


@pytest.fixture
def proxy(proxied: tuple[ObjectStore, FaultyProxy], store: ObjectStore) -> FaultyProxy:
    return proxied[1]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, and what a conversion here makes of it."""
    folder = tmp_path_factory.mktemp("local")
    synthetic.make(folder / "meta", SHAPE)
    (folder / "meta/tokenizer.model").write_bytes((FIXTURE / "tokenizer.model").read_bytes())
    (folder / "meta/LICENSE").write_text("as it is")
    state = synthetic.weights(LLAMA2.but(vocab_size=600))
    shape = LLAMA2.but(ranks=2, vocab_size=600)
    synthetic.write(folder / "meta", shape, synthetic.cut(shape, state))
    convert(folder / "meta", folder / "hf", SMALL)
    convert(folder / "hf", folder / "back", ConvertOptions(to="meta", mp=2))
    return folder


def there(store: ObjectStore, prefix: str, tmp_path: Path) -> Files:
    store.get(prefix, tmp_path / "got")
    return read(tmp_path / "got")


class TestSources:
    """Reading."""

    def test_convert(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        store.put(local / "meta", "models/meta")
        convert("s3://bucket/models/meta", tmp_path / "out", SMALL)
        assert read(tmp_path / "out") == read(local / "hf")
        convert("s3://bucket/models/meta", tmp_path / "out", SMALL)  # up to date

    def test_back_and_shards(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        store.put(local / "hf", "hf")
        convert("s3://bucket/hf/", tmp_path / "back", ConvertOptions(to="meta", mp=2))
        assert read(tmp_path / "back") == read(local / "back")
        shard("s3://bucket/hf", tmp_path / "files", max_shard_size="30KB")
        shard(local / "hf", tmp_path / "same", max_shard_size="30KB")
        assert read(tmp_path / "files") == read(tmp_path / "same")

    def test_inspect_and_verify(self, store: ObjectStore, local: Path) -> None:
        store.put(local / "meta", "meta")
        store.put(local / "hf", "hf")
        here, far = inspect(local / "meta"), inspect("s3://bucket/meta")
        assert (far.parameters, far.kinds, far.release) == (here.parameters, here.kinds, here.release)
        assert inspect("s3://bucket/hf/model-00001-of-00012.safetensors").parameters
        assert verify("s3://bucket/hf", "s3://bucket/meta").ok
        assert not remote_files

    def test_messages_name_the_url(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        store.put(local / "meta", "meta")
        run = llama_convert("convert", "s3://bucket/meta", tmp_path / "out", "--max-shard-size", "20KB")
        assert run.exit_code == 0
        content = (local / "meta/consolidated.01.pth").read_bytes()
        weight = synthetic.read(local / "meta")[1]["layers.0.attention.wo.weight"]
        place = content.index(weight.view(torch.uint8).numpy().tobytes()) + 3
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad/consolidated.01.pth").write_bytes(
            content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        )
        store.put(tmp_path / "bad", "meta")
        run = llama_convert("convert", "s3://bucket/meta", tmp_path / "no", "--json")
        assert run.exit_code == 3
        assert run.json["code"] == "INPUT_CRC"
        assert run.json["file"] == "s3://bucket/meta/consolidated.01.pth"
        assert "s3://bucket/meta/consolidated.01.pth" in run.stderr
        assert "/tmp" not in run.json["message"]
        assert not (tmp_path / "no").exists()

    def test_results_and_exceptions_name_the_url(self, store: ObjectStore, local: Path) -> None:
        store.put(local / "meta", "models/meta")
        assert str(inspect("s3://bucket/models/meta").path) == "s3://bucket/models/meta"
        report = verify("s3://bucket/models/meta", local / "meta")
        assert (report.path, report.source) == ("s3://bucket/models/meta", local / "meta")
        store.put(local / "hf", "models/empty/below")
        with pytest.raises(InputError) as refused:
            convert("s3://bucket/models/empty", "s3://bucket/out")
        assert refused.value.file == "s3://bucket/models/empty"
        assert "/llama-convert-" not in f"{refused.value} {vars(refused.value)}"

    @pytest.mark.parametrize("fault", ["500", "503", "reset", "truncate"])
    def test_a_fault_now_and_then(
        self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path, fault: Fault
    ) -> None:
        """Every third answer."""
        store.put(local / "meta", "meta")

        def plan(method: str, path: str, headers: Any, number: int) -> Fault | None:
            return fault if method == "GET" and number % 3 == 0 else None

        proxy.plan = plan
        convert("s3://bucket/meta", tmp_path / "out", SMALL)
        assert read(tmp_path / "out") == read(local / "hf")

    def test_a_stall(
        self,
        store: ObjectStore,
        proxy: FaultyProxy,
        local: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(filesystem, "READ_TIMEOUT", 1)
        filesystem.open_filesystem.cache_clear()
        store.put(local / "meta", "meta")
        proxy.plan = fail("stall", count=1, method="GET", path="consolidated.01")
        convert("s3://bucket/meta", tmp_path / "out", SMALL)
        filesystem.open_filesystem.cache_clear()
        assert read(tmp_path / "out") == read(local / "hf")

    @pytest.mark.parametrize("fault", ["500", "reset", "truncate"])
    def test_faults_without_end(
        self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path, fault: Fault
    ) -> None:
        """Exit 4, one line, no secret; and then it goes on from there."""
        store.put(local / "meta", "meta")
        proxy.plan = fail(fault, method="GET", path="consolidated.01")
        run = llama_convert(
            "convert", "s3://bucket/meta", tmp_path / "out", "--max-shard-size", "20KB", "--json"
        )
        assert run.exit_code == 4
        assert run.json["code"] == "INPUT_IO"
        assert "after 6 attempts" in run.json["message"]
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in run.stderr + run.stdout
        proxy.plan = None
        run = llama_convert("convert", "s3://bucket/meta", tmp_path / "out", "--max-shard-size", "20KB")
        assert run.exit_code == 0
        assert read(tmp_path / "out") == read(local / "hf")

    def test_forbidden(self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path) -> None:
        store.put(local / "meta", "meta")
        proxy.plan = fail("403")
        with pytest.raises(InputError, match="Permission denied") as refused:
            convert("s3://bucket/meta", tmp_path / "out")
        assert refused.value.code == "INPUT_PERMISSION"

    def test_nothing_there(self, store: ObjectStore, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="s3://bucket/nowhere: Not found"):
            convert("s3://bucket/nowhere", tmp_path / "out")

    def test_a_source_that_changes(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        store.put(local / "hf", "hf")
        name, changed = "model-00002-of-00012.safetensors", tmp_path / "changed"

        from llama_convert.observer import Observer

        class Meddler(Observer):
            lock = Lock()

            def advance(self, count: int) -> None:
                with self.lock:  # called from several threads
                    if not changed.exists():
                        changed.mkdir()
                        (changed / name).write_bytes((local / "hf" / name).read_bytes()[::-1])
                        store.put(changed, "hf")

        with pytest.raises(InputError, match="Changed while it was read"):
            shard("s3://bucket/hf", tmp_path / "out", max_shard_size="30KB", observer=Meddler())

    def test_inspect_fetches_little(self, store: ObjectStore, proxy: FaultyProxy, tmp_path: Path) -> None:
        """Of three gigabytes, some hundred kilobytes."""
        folder = large.make(tmp_path / "1B", large.SHAPES["3.2-1B"], fill=False)
        with RangeServer(folder) as server:
            seen = inspect(server.url)
            assert seen.parameters.total > 1e9
            assert server.sent["GET"] < 2 << 20

    def test_workers_read_it_too(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        store.put(local / "meta", "meta")
        for share in ("1/2", "2/2"):
            run = llama_convert(
                "convert",
                "s3://bucket/meta",
                tmp_path / "out",
                "--max-shard-size",
                "20KB",
                "--array-task",
                share,
            )
            assert run.exit_code == 0, run.stderr
        assert read(tmp_path / "out") == read(local / "hf")


class TestWeb:
    """A server that answers ranges, and lists nothing."""

    def test_convert(self, local: Path, tmp_path: Path) -> None:
        with RangeServer(local / "meta") as server:
            convert(server.url, tmp_path / "out", SMALL)
        assert read(tmp_path / "out") == read(local / "hf")

    def test_back(self, local: Path, tmp_path: Path) -> None:
        with RangeServer(local / "hf") as server:
            convert(f"{server.url}/", tmp_path / "out", ConvertOptions(to="meta", mp=2))
        ours, theirs = read(tmp_path / "out"), read(local / "back")
        assert {name: ours[name] for name in ours if name.endswith((".pth", "params.json"))} == {
            name: theirs[name] for name in theirs if name.endswith((".pth", "params.json"))
        }

    @pytest.mark.parametrize("fault", ["500", "reset", "truncate"])
    def test_faults(self, local: Path, tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.01)

        def plan(method: str, path: str, headers: Any, number: int) -> Fault | None:
            return fault if method == "GET" and number % 4 == 3 else None

        with RangeServer(local / "meta", plan) as server:
            convert(server.url, tmp_path / "out", SMALL)
        assert read(tmp_path / "out") == read(local / "hf")

    def test_no_ranges(self, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Refused: it would send everything for each header."""
        monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.01)
        with (
            RangeServer(local / "meta", ranges=False) as server,
            pytest.raises(InputError, match="whole files"),
        ):
            convert(server.url, tmp_path / "out")

    def test_it_cannot_be_written_to(self, local: Path) -> None:
        with RangeServer(local) as server, pytest.raises(UsageError, match="cannot be written to"):
            convert(local / "meta", f"{server.url}/out")


class TestTargets:
    """Writing."""

    def test_convert(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        result = convert(local / "meta", "s3://bucket/made/hf", SMALL)
        assert result.destination == "s3://bucket/made/hf"
        assert there(store, "made/hf", tmp_path) == read(local / "hf")
        assert not store.unfinished()

    def test_from_and_to(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        store.put(local / "hf", "hf")
        options = ConvertOptions(to="meta", mp=2, checklist=False)
        convert("s3://bucket/hf", "s3://bucket/back", options)
        convert(local / "hf", tmp_path / "back", options)
        assert there(store, "back", tmp_path) == read(tmp_path / "back")

    def test_again_is_up_to_date(self, store: ObjectStore, proxy: FaultyProxy, local: Path) -> None:
        convert(local / "meta", "s3://bucket/hf", SMALL)
        proxy.clear()
        assert convert(local / "meta", "s3://bucket/hf", SMALL).finalized
        assert not proxy.requests["PUT"]
        with pytest.raises(ConflictError):
            convert(local / "meta", "s3://bucket/hf", ConvertOptions(dtype="fp32"))

    def test_a_verification_is_recorded(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        run = llama_convert(
            "convert", local / "meta", "s3://bucket/hf", "--max-shard-size", "100KB", "--verify"
        )
        assert run.exit_code == 0, run.stderr
        llama_convert("convert", local / "meta", tmp_path / "hf", "--max-shard-size", "100KB", "--verify")
        assert there(store, "hf", tmp_path) == read(tmp_path / "hf")
        assert b"compared it with its source: **pass**" in read(tmp_path / "hf")["README.md"]

    def test_config_comes_last(self, store: ObjectStore, proxy: FaultyProxy, local: Path) -> None:
        convert(local / "meta", "s3://bucket/hf", SMALL)
        written = [entry.path for entry in proxy.log if entry.method in ("PUT", "POST")]
        names = [path.partition("?")[0].rpartition("/")[2] for path in written]
        weights = [place for place, name in enumerate(names) if name.startswith("model-")]
        for name in ("config.json", "model.safetensors.index.json", "llama-convert.json"):
            assert names.index(name) > max(weights)
        assert names.index("llama-convert.json") > names.index("config.json")

    @pytest.mark.parametrize(
        "fault", ["reset", *(pytest.param(status, marks=pytest.mark.slow) for status in ("500", "503"))]
    )
    def test_a_fault_now_and_then(
        self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path, fault: Fault
    ) -> None:
        def plan(method: str, path: str, headers: Any, number: int) -> Fault | None:
            return fault if number % 5 == 4 else None

        proxy.plan = plan
        convert(local / "meta", "s3://bucket/hf", SMALL)
        proxy.plan = None
        assert there(store, "hf", tmp_path) == read(local / "hf")

    def test_resumes(self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path) -> None:
        """Files that are there are not sent again."""
        proxy.plan = fail("403", method="PUT", path="model-00009")
        options = ConvertOptions(max_shard_size="20KB", workers=1)
        with pytest.raises(OutputError) as failed:
            convert(local / "meta", "s3://bucket/hf", options)
        assert vars(failed.value)["resumable"]
        assert "hf/config.json" not in set(store.keys())
        assert "hf/model-00009-of-00012.safetensors" not in set(store.keys())
        proxy.plan = None
        proxy.clear()
        convert(local / "meta", "s3://bucket/hf", options)
        paths = [entry.path.partition("?")[0] for entry in proxy.log if entry.method in ("PUT", "POST")]
        sent = {path.rpartition("/")[2] for path in paths}
        assert "model-00003-of-00012.safetensors" not in sent
        assert "model-00009-of-00012.safetensors" in sent
        assert there(store, "hf", tmp_path) == read(local / "hf")

    def test_another_plan_clears_away(
        self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path
    ) -> None:
        proxy.plan = fail("403", method="PUT", path="model-00009")
        with pytest.raises(OutputError):
            convert(local / "meta", "s3://bucket/hf", SMALL)
        proxy.plan = None
        convert(local / "meta", "s3://bucket/hf", ConvertOptions(max_shard_size="60KB"))
        convert(local / "meta", tmp_path / "hf", ConvertOptions(max_shard_size="60KB"))
        assert there(store, "hf", tmp_path) == read(tmp_path / "hf")

    def test_a_refused_source_leaves_nothing(self, store: ObjectStore, tmp_path: Path) -> None:
        synthetic.make(tmp_path / "meta", LLAMA2)
        file = tmp_path / "meta/consolidated.00.pth"
        content = bytearray(file.read_bytes())
        weight = synthetic.read(tmp_path / "meta", mmap=False)[0]["output.weight"]
        content[content.index(weight.view(torch.uint8).numpy().tobytes()) + 9] ^= 1
        file.write_bytes(content)
        with pytest.raises(InputError):
            convert(tmp_path / "meta", "s3://bucket/hf", SMALL)
        assert store.keys() == []

    def test_the_source_itself(self, store: ObjectStore, local: Path) -> None:
        store.put(local / "hf", "hf")
        before = store.keys()
        for there in ("s3://bucket/hf", "s3://bucket/hf/", "s3a://bucket/hf"):
            with pytest.raises(UsageError) as refused:
                shard("s3://bucket/hf", there, max_shard_size="60KB", options=ConvertOptions(overwrite=True))
            assert refused.value.code == "OUTPUT_IS_INPUT"
        with pytest.raises(UsageError, match="local folder"):
            convert(local / "meta", f"file://{local / 'meta'}", ConvertOptions(overwrite=True))
        assert store.keys() == before

    @pytest.mark.parametrize("number", [1, 4, pytest.param(9, marks=pytest.mark.slow)])
    def test_failing_in_its_last_clean_up(
        self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path, number: int
    ) -> None:
        """The output is complete: the same command says so, and clears up; another one is refused."""
        deletes = itertools.count(1)

        def plan(method: str, path: str, headers: Any, _: int) -> Fault | None:
            return "403" if method == "DELETE" and next(deletes) >= number else None

        proxy.plan = plan
        with pytest.raises(OutputError):
            convert(local / "meta", "s3://bucket/hf", SMALL)
        proxy.plan = None
        with pytest.raises(ConflictError):
            convert(local / "meta", "s3://bucket/hf", ConvertOptions(dtype="fp32"))
        assert convert(local / "meta", "s3://bucket/hf", SMALL).finalized
        assert there(store, "hf", tmp_path) == read(local / "hf")

    def test_malformed_lines_and_lists(
        self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path
    ) -> None:
        """Correctly sealed, and ignored; a list of what others have there moves nothing."""
        proxy.plan = fail("403", method="PUT", path="model-00009")
        with pytest.raises(OutputError):
            convert(local / "meta", "s3://bucket/hf", SMALL)
        proxy.plan = None
        store.get("hf/.llama-convert", tmp_path / "staged")
        lines = [7, [], {}, {"name": "x"}, {"complete": "x"}, {"name": [1], "digests": 1}]
        for journal in (tmp_path / "staged").glob(".journal*"):
            journal.write_bytes(journal.read_bytes() + b"".join(map(sealed, lines)))
        store.put(tmp_path / "staged", "hf/.llama-convert")
        convert(local / "meta", "s3://bucket/hf", SMALL)
        assert there(store, "hf", tmp_path) == read(local / "hf")
        (tmp_path / "planted/.llama-convert").mkdir(parents=True)
        (tmp_path / "planted/thesis.tex").write_bytes(b"years of work")
        said = {"thesis.tex": [13, "0" * 32], "nothing": [1, "x"], "../x": [1, "x"]}
        for form in ({"plan": "", "files": [*said], "older": [*said]}, {"files": said}, {"files": 7}, [said]):
            (tmp_path / "planted/.llama-convert/.finalizing").write_bytes(sealed(form))
            store.put(tmp_path / "planted", "planted")
            with pytest.raises(ConflictError, match=r"holds thesis\.tex"):
                convert(local / "meta", "s3://bucket/planted", SMALL)
            assert "planted/thesis.tex" in store.keys("planted")

    def test_other_files_stay(self, store: ObjectStore, local: Path) -> None:
        store.put(local / "hf", "hf")
        before = store.keys()
        with pytest.raises(ConflictError, match="holds"):
            convert(local / "meta", "s3://bucket/hf", ConvertOptions(dtype="fp16"))
        assert store.keys() == before

    def test_killed(self, store: ObjectStore, proxy: FaultyProxy, local: Path, tmp_path: Path) -> None:
        """In mid-run: no model, and the next run makes it whole."""
        command = [sys.executable, "-m", "llama_convert", "convert", str(local / "meta"), "s3://bucket/hf"]
        for pause in (0.9, 1.3):
            process = subprocess.Popen([*command, "--max-shard-size", "20KB", "-q"], cwd=ROOT)
            time.sleep(pause)
            process.kill()
            process.wait()
        if "hf/llama-convert.json" not in set(store.keys()):
            subprocess.run([*command, "--max-shard-size", "20KB", "-q"], cwd=ROOT, check=True)
        assert {k: v for k, v in there(store, "hf", tmp_path).items() if k[0] != "."} == read(local / "hf")

    @pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
    def test_shares(self, store: ObjectStore, local: Path, tmp_path: Path, order: tuple[int, ...]) -> None:
        """Each sends its files; the last one publishes."""
        store.put(local / "meta", "meta")
        for place, number in enumerate(order):
            options = ConvertOptions(max_shard_size="20KB", array_task=f"{number}/3")
            result = convert("s3://bucket/meta", "s3://bucket/hf", options)
            assert result.finalized == (place == 2)
            assert ("hf/config.json" in set(store.keys())) == (place == 2)
        assert there(store, "hf", tmp_path) == read(local / "hf")
        again = ConvertOptions(max_shard_size="20KB", array_task="1/3")
        assert convert("s3://bucket/meta", "s3://bucket/hf", again).finalized

    def test_an_executor(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
            result = convert(local / "meta", "s3://bucket/hf", SMALL, executor=executor)
        assert result.finalized
        assert there(store, "hf", tmp_path) == read(local / "hf")

    def test_finish(self, store: ObjectStore, local: Path) -> None:
        options = ConvertOptions(max_shard_size="20KB", array_task="1/2")
        convert(local / "meta", "s3://bucket/hf", options)
        with pytest.raises(OutputError, match="are not written yet"):
            convert(local / "meta", "s3://bucket/hf", ConvertOptions(max_shard_size="20KB", finish=True))

    def test_an_object_that_is_replaced(self, store: ObjectStore, local: Path, tmp_path: Path) -> None:
        """Of the same size, at the same time: the store's version distinguishes it from what was sent."""
        one, two = (ConvertOptions(max_shard_size="20KB", array_task=f"{number}/2") for number in (1, 2))
        convert(local / "meta", "s3://bucket/hf", one)
        name = next(key for key in store.keys("hf") if key.startswith("hf/model"))
        size = len((local / "hf" / Path(name).name).read_bytes())
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / Path(name).name).write_bytes(bytes(size))
        store.put(tmp_path / "other", "hf")
        assert not convert(local / "meta", "s3://bucket/hf", two).finalized
        assert convert(local / "meta", "s3://bucket/hf", one).finalized
        assert there(store, "hf", tmp_path) == read(local / "hf")

    def test_many_parts(self, store: ObjectStore, tmp_path: Path) -> None:
        """A file larger than what is sent at once."""
        shape = LLAMA2.but(dim=512, ffn_dim=2048, n_heads=8, n_kv_heads=8, vocab_size=20000, n_layers=1)
        synthetic.make(tmp_path / "meta", shape)
        convert(tmp_path / "meta", "s3://bucket/big")
        convert(tmp_path / "meta", tmp_path / "big")
        assert (tmp_path / "big/model.safetensors").stat().st_size > 40 << 20
        assert there(store, "big", tmp_path) == read(tmp_path / "big")
        convert("s3://bucket/big", "s3://bucket/meta", ConvertOptions(to="meta", checklist=False))
        convert(tmp_path / "big", tmp_path / "back", ConvertOptions(to="meta", checklist=False))
        store.get("meta", tmp_path / "got-back")
        assert read(tmp_path / "got-back") == read(tmp_path / "back")


@pytest.mark.parametrize(
    ("page", "meant"),
    [("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"), ("a/b/tree/main/original", "a/b/original")],
)
def test_a_page_of_the_hub(page: str, meant: str) -> None:
    run = llama_convert("inspect", f"https://huggingface.co/{page}")
    assert run.exit_code == 2
    assert run.stderr.endswith(f"hint: Pass the repository instead: hf://{meant}\n")


def test_no_such_scheme(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        convert("nonsense://x/y", tmp_path / "out")
    assert refused.value.code == "BAD_URL"


def test_no_secret_is_printable() -> None:
    assert printable("https://me:secret@host/a/b?X-Amz-Signature=secret#c") == "https://host/a/b"


def test_the_manifest_is_the_same(local: Path, store: ObjectStore, tmp_path: Path) -> None:
    """Wherever the source lies."""
    store.put(local / "meta", "meta")
    convert("s3://bucket/meta", tmp_path / "out", SMALL)
    assert json.loads((tmp_path / "out/llama-convert.json").read_text()) == json.loads(
        (local / "hf/llama-convert.json").read_text()
    )
