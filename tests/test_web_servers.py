"""Web servers that do not serve a checkpoint: refused after a bounded number of requests and bytes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("aiohttp")

from llama_convert import convert, inspect
from llama_convert.stores import retry
from tests import synthetic
from tests.run import Run, llama_convert
from tests.stores import Exchange, Fault, Loopback, RangeServer
from tests.synthetic import LLAMA2

Answer = Callable[[Exchange, str], None]
MOST_REQUESTS = 400


class Hostile(Loopback):
    """Answers as a function says, by the request's path."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        super().__init__()

    def answer(self, exchange: Exchange, fault: Fault | None) -> None:
        self._answer(exchange, urlsplit(exchange.path).path)


def send(exchange: Exchange, status: int, body: Iterator[bytes] | bytes = b"", **headers: str) -> None:
    """An answer; without a length if its body is an iterator, which then ends with the connection."""
    exchange.send_response_only(status)
    for name, value in headers.items():
        exchange.send_header(name.replace("_", "-"), value)
    if isinstance(body, bytes):
        exchange.send_header("Content-Length", str(len(body)))
        body = iter([body])
    else:
        exchange.send_header("Connection", "close")
        exchange.close_connection = True
    exchange.end_headers()
    exchange.send_body(body, None, None)


def partial(exchange: Exchange, total: str = "1000000") -> None:
    """What a range request asks for, of a file of zeros."""
    first, last = map(int, (exchange.headers.get("Range") or "bytes=0-0").removeprefix("bytes=").split("-"))
    send(exchange, 206, bytes(last - first + 1), Content_Range=f"bytes {first}-{last}/{total}")


def endless() -> Iterator[bytes]:
    return itertools.repeat(b"<a href='x'>x</a>" * 1000)


def page(exchange: Exchange, path: str) -> None:
    send(exchange, 200, b"<html>Sign in</html>", Content_Type="text/html")


def every_path(exchange: Exchange, path: str) -> None:
    partial(exchange)


def every_rank(exchange: Exchange, path: str) -> None:
    if path.endswith((".pth", "params.json")):
        partial(exchange, "100")
    else:
        send(exchange, 404)


def to_itself(exchange: Exchange, path: str) -> None:
    send(exchange, 302, Location=path)


def to_another(exchange: Exchange, path: str) -> None:
    send(exchange, 307, Location=f"{path}x")


def never_ends(exchange: Exchange, path: str) -> None:
    send(exchange, 200, endless())


def part_never_ends(exchange: Exchange, path: str) -> None:
    send(exchange, 206, endless(), Content_Range="bytes 0-0/1000000")


def without_length(exchange: Exchange, path: str) -> None:
    send(exchange, 200, iter([b"{}"]))


def of_unknown_size(exchange: Exchange, path: str) -> None:
    if "no-such-file" in path:
        send(exchange, 404)
    else:
        partial(exchange, "*")


def only_zeros(exchange: Exchange, path: str) -> None:
    """A file of a size that no disk has."""
    if path.endswith("params.json"):
        partial(exchange, str(10**17))
    else:
        send(exchange, 404)


def index_of_many(exchange: Exchange, path: str) -> None:
    names = {str(number): f"model-{number}.safetensors" for number in range(10_000)}
    content = json.dumps({"weight_map": names}).encode()
    if path.endswith(".index.json"):
        first, last = map(int, exchange.headers["Range"].removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        send(exchange, 206, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(content)}")
    else:
        send(exchange, 404)


REFUSED: dict[str, tuple[Answer, str]] = {
    "a page for every path": (page, "only sends whole files"),
    "a part for every path": (every_path, "files that do not exist"),
    "every rank": (every_rank, "more than 256 rank files"),
    "a redirect to itself": (to_itself, "redirects too many times"),
    "a redirect to another": (to_another, "redirects too many times"),
    "an answer that never ends": (never_ends, "only sends whole files"),
    "a part that never ends": (part_never_ends, "ShortResponseError"),
    "no length": (without_length, "only sends whole files"),
    "a size that is not known": (of_unknown_size, "does not report the file's size"),
    "a size that no disk has": (only_zeros, ""),
    "an index of many files": (index_of_many, "Names 10,000 files"),
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.001)


def assert_refused(run: Run, words: str) -> None:
    assert run.exit_code in (3, 4), run.stderr
    assert words in run.stderr
    assert "internal error" not in run.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    answer, words = REFUSED[name]
    with Hostile(answer) as server:
        assert_refused(llama_convert("convert", f"{server.url}/model", tmp_path / "out"), words)
        assert server.requests.total() < MOST_REQUESTS
        server.clear()
        assert_refused(llama_convert("inspect", f"{server.url}/model"), words)
        assert server.requests.total() < MOST_REQUESTS
        assert server.sent.total() < 64 << 20
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer", [page, every_path, to_itself, never_ends, part_never_ends, without_length])
def test_a_file(answer: Answer) -> None:
    with Hostile(answer) as server:
        assert_refused(llama_convert("inspect", f"{server.url}/model.safetensors"), "")
        assert server.requests.total() < 20


def test_names_and_queries(tmp_path: Path) -> None:
    """A query, as signed URLs have it, goes with every request of a folder or a file."""
    synthetic.make(tmp_path / "a/meta", LLAMA2)
    with RangeServer(tmp_path) as server:
        result = inspect(f"{server.url}/a/meta/?token=1")
        assert result.ok
        assert result.parameters == inspect(tmp_path / "a/meta").parameters
        assert inspect(f"{server.url}/a/meta/consolidated.00.pth?token=1").parameters.total
        assert all(request.path.endswith("?token=1") for request in server.log)
        convert(f"{server.url}/a/meta?token=1", tmp_path / "out")


def test_an_empty_file(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "meta", LLAMA2)
    (tmp_path / "meta/LICENSE").touch()
    (tmp_path / "meta/tokenizer.model").touch()

    def empty(exchange: Exchange, path: str) -> None:
        status = HTTPStatus.OK if path.endswith("LICENSE") else HTTPStatus.NOT_FOUND
        send(exchange, status)

    with RangeServer(tmp_path) as server:  # answers 416
        run = llama_convert("inspect", f"{server.url}/meta")
        assert "internal error" not in run.stderr
        assert run.exit_code == 1  # of the tokenizer
    with Hostile(empty) as server:
        assert_refused(llama_convert("inspect", f"{server.url}/meta"), "LICENSE")
