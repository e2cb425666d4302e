"""The stores that other tests read from and write to: what they answer, count, and fail"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto")
pytest.importorskip("s3fs")
pytest.importorskip("aiohttp")

import fsspec  # type: ignore[import-untyped]
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

from tests.limits import HANG
from tests.stores import Fault, FaultyProxy, Loopback, ObjectStore, RangeServer, fail

MB = 1 << 20
PART = 5 * MB
# what s3fs and fsspec let through of their libraries' errors
ERRORS = (OSError, ClientError, BotoCoreError)
DATA = os.urandom(3 * MB)


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "a.bin").write_bytes(DATA)
    (folder / "sub dir" / "b+c.txt").write_text("text")
    return folder


def s3(store: ObjectStore, proxy: FaultyProxy | None = None, *, attempts: int = 1) -> Any:
    """A file system on the store that makes so many attempts at each request"""
    options = store.options(proxy.url if proxy else None)
    config = {"retries": {"mode": "standard", "total_max_attempts": attempts}, "read_timeout": HANG}
    fs = fsspec.filesystem("s3", **options, config_kwargs=config, skip_instance_cache=True)
    fs.retries = 1
    return fs


def ask(
    server: Loopback, method: str, path: str, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


# ---- the object store


def test_a_folder_comes_back_as_it_was_put(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    store.put(folder, "there/and back")
    store.put(folder, "there/and backwards")
    assert store.keys("there/and back") == ["there/and back/a.bin", "there/and back/sub dir/b+c.txt"]
    store.get("there/and back", tmp_path / "copy")
    assert (tmp_path / "copy/a.bin").read_bytes() == DATA
    assert (tmp_path / "copy/sub dir/b+c.txt").read_text() == "text"
    assert not (tmp_path / "copy/backwards").exists()


def test_the_environment_alone_leads_to_the_store(store: ObjectStore, folder: Path) -> None:
    store.put(folder, "env")
    code = "import fsspec; print(fsspec.filesystem('s3').cat_file('bucket/env/sub dir/b+c.txt').decode())"
    environment = {**os.environ, **store.environment()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "text\n", done.stderr


def test_a_cleared_store_is_empty(store: ObjectStore, folder: Path) -> None:
    store.put(folder, "old")
    store.clear()
    assert store.keys() == []
    assert s3(store).ls("bucket") == []


# ---- the proxy in front of it


@pytest.fixture(scope="module")
def through(store: ObjectStore) -> Iterator[tuple[FaultyProxy, Any]]:
    """A proxy and a client through it that makes one attempt"""
    with FaultyProxy(store.endpoint_url, stall_seconds=0.5) as proxy:
        yield proxy, s3(store, proxy)


@pytest.fixture
def proxy(through: tuple[FaultyProxy, Any], store: ObjectStore) -> FaultyProxy:
    store.clear()
    through[0].plan = None
    through[0].clear()
    return through[0]


@pytest.fixture
def client(through: tuple[FaultyProxy, Any]) -> Any:
    return through[1]


def test_a_range_is_passed_on_and_its_bytes_counted(
    store: ObjectStore, proxy: FaultyProxy, client: Any, folder: Path
) -> None:
    store.put(folder, "ranges")
    assert client.cat_file("bucket/ranges/a.bin", start=1000, end=2500) == DATA[1000:2500]
    assert proxy.requests["GET"] == 1
    assert proxy.sent == {"GET": 1500}
    assert proxy.log[-1].range == "bytes=1000-2499"
    proxy.clear()
    assert client.info("bucket/ranges/a.bin")["size"] == len(DATA)
    assert proxy.requests == {"HEAD": 1}
    assert not proxy.sent


def test_a_multipart_upload_passes_and_shows_only_when_complete(
    store: ObjectStore, proxy: FaultyProxy, client: Any
) -> None:
    data = os.urandom(2 * PART + 1234)
    with client.open("bucket/multi/a.bin", "wb", block_size=PART) as file:
        for start in range(0, len(data), MB):
            file.write(data[start : start + MB])
        assert store.keys("multi") == []
        assert store.unfinished() == ["multi/a.bin"]
    assert proxy.requests["PUT"] == 3
    assert proxy.received["PUT"] >= len(data)
    assert store.keys("multi") == ["multi/a.bin"]
    assert store.unfinished() == []
    assert client.cat_file("bucket/multi/a.bin") == data


def test_an_aborted_upload_leaves_nothing(store: ObjectStore, proxy: FaultyProxy, client: Any) -> None:
    file = client.open("bucket/aborted/a.bin", "wb", block_size=PART)
    file.write(bytes(PART + 1))
    assert store.unfinished() == ["aborted/a.bin"]
    file.discard()
    file.closed = True  # or the file, when it is collected, tries to write what it has let go of
    assert proxy.requests["DELETE"] == 1
    assert store.keys("aborted") == store.unfinished() == []


def test_a_body_in_chunks_is_passed_on(proxy: FaultyProxy, client: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=HANG)
    for number in range(2):  # over one connection
        blocks = iter([b"one ", b"two " * 100_000, b"three"])
        connection.request("PUT", f"/bucket/chunks/{number}", body=blocks, encode_chunked=True)
        assert connection.getresponse().read() == b""
    connection.close()
    assert proxy.received["PUT"] == 2 * 400_009
    assert client.cat_file("bucket/chunks/1") == b"one " + b"two " * 100_000 + b"three"


FAULTS = ["403", "500", "503", "reset", "truncate", "hang", "stall", "lost"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_of_s3_meets_each_fault_of_a_read(
    store: ObjectStore, proxy: FaultyProxy, client: Any, folder: Path, fault: Fault
) -> None:
    store.put(folder, "faults")
    proxy.plan = fail(fault, method="GET")
    with pytest.raises(ERRORS):
        client.cat_file("bucket/faults/a.bin", start=0, end=MB)
    if fault in ("truncate", "hang"):
        assert proxy.sent["GET"] == MB // 2
    assert proxy.log[-1].fault == fault
    proxy.plan = None
    assert client.cat_file("bucket/faults/a.bin", start=0, end=MB) == DATA[:MB]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_of_s3_meets_each_fault_of_a_write(
    store: ObjectStore, proxy: FaultyProxy, client: Any, fault: Fault
) -> None:
    data = DATA[:MB]
    proxy.plan = fail(fault, method="PUT")
    with pytest.raises(ERRORS):
        client.pipe_file(f"bucket/written/{fault}", data)
    # what was done is done, though the client cannot know
    assert store.keys("written") == (["written/lost"] if fault == "lost" else [])
    if fault == "truncate":
        assert len(data) // 2 <= proxy.received["PUT"] / proxy.requests["PUT"] < len(data)


def test_the_second_attempt_passes(store: ObjectStore, proxy: FaultyProxy, folder: Path) -> None:
    store.put(folder, "again")
    proxy.plan = fail("503", count=1, path="/bucket/again")
    assert s3(store, proxy, attempts=3).cat_file("bucket/again/a.bin", start=0, end=10) == DATA[:10]
    assert [request.fault for request in proxy.log] == ["503", None]


# ---- plain HTTP


def get(server: RangeServer, start: int | None = None, end: int | None = None) -> Any:
    options: dict[str, Any] = {"skip_instance_cache": True}
    return fsspec.filesystem("http", **options).cat_file(f"{server.url}/a.bin", start, end)


def test_ranges_of_a_file(folder: Path) -> None:
    with RangeServer(folder) as server:
        assert get(server, 10, 2000) == DATA[10:2000]
        assert server.sent == {"GET": 1990}
        size = len(DATA)
        for header, part in [
            ("bytes=5-", DATA[5:]),
            ("bytes=-7", DATA[-7:]),
            (f"bytes={size - 3}-{size + 10}", DATA[-3:]),
        ]:
            status, headers, body = ask(server, "GET", "/a.bin", {"Range": header})
            assert (status, body) == (206, part)
            assert headers["Content-Range"] == f"bytes {size - len(part)}-{size - 1}/{size}"
        assert ask(server, "GET", "/a.bin", {"Range": f"bytes={size}-"})[0] == 416


def test_heads_and_versions(folder: Path) -> None:
    with RangeServer(folder) as server:
        status, headers, body = ask(server, "HEAD", "/a.bin")
        assert (status, headers["Content-Length"], body) == (200, str(len(DATA)), b"")
        assert ask(server, "GET", "/a.bin", {"If-Match": headers["ETag"]})[0] == 200
        os.utime(folder / "a.bin", (1, 1))
        assert ask(server, "GET", "/a.bin", {"If-Match": headers["ETag"]})[0] == 412
        assert ask(server, "HEAD", "/a.bin")[1]["ETag"] != headers["ETag"]
    with RangeServer(folder, validators=False) as server:
        assert not {"ETag", "Last-Modified"} & set(ask(server, "HEAD", "/a.bin")[1])


def test_a_server_that_does_not_know_ranges(folder: Path) -> None:
    with RangeServer(folder, ranges=False) as server:
        status, headers, body = ask(server, "GET", "/a.bin", {"Range": "bytes=0-9"})
        assert (status, len(body)) == (200, len(DATA))
        assert not {"Accept-Ranges", "Content-Range"} & set(headers)


def test_folders_and_what_is_not_there(folder: Path) -> None:
    with RangeServer(folder) as server:
        assert ask(server, "GET", "/sub%20dir/b+c.txt")[2] == b"text"
        for path in ("/", "/sub%20dir", "/nothing", "/../test_stores.py", "/%2e%2e/folder.txt"):
            assert ask(server, "GET", path)[0] == 404
    with RangeServer(folder, listings=True) as server:
        found = fsspec.filesystem("http", skip_instance_cache=True).find(server.url + "/")
        assert found == [f"{server.url}/a.bin", f"{server.url}/sub%20dir/b%2Bc.txt"]


@pytest.mark.parametrize("fault", ["500", "503", "reset", "truncate", "hang", "stall", "lost"])
def test_a_client_of_http_meets_each_fault(folder: Path, fault: Fault) -> None:
    with RangeServer(folder, fail(fault), stall_seconds=0.2) as server:
        with pytest.raises(ERRORS):
            get(server)
        if fault in ("truncate", "hang"):
            assert server.sent["GET"] == len(DATA) // 2
        server.plan = None
        assert ask(server, "GET", "/a.bin")[2] == DATA


def test_closing_ends_stalled_requests_and_kept_connections(folder: Path) -> None:
    server = RangeServer(folder, fail("stall", path="/a.bin"))
    port = server.port
    connections = [socket.create_connection(("127.0.0.1", port), timeout=HANG) for _ in range(2)]
    connections[0].sendall(b"GET /a.bin HTTP/1.1\r\nHost: a\r\n\r\n")
    while not server.log:
        pass
    server.close()
    for connection in connections:
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=HANG)
