"""Stores over the loopback: S3 (by moto), plain HTTP, and faults on the way to either"""

from __future__ import annotations

import logging
import os
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from email.message import Message
from email.utils import formatdate
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK = 1 << 18

Fault = Literal["403", "500", "503", "reset", "truncate", "hang", "stall", "lost"]
"""What happens to a request instead of its answer:

403, 500, 503   that status, after the request's body has been read; nothing is done
reset           the connection is reset without an answer; nothing is done
truncate        GET: the right Content-Length, half of the body, end of connection
                PUT, POST: half of the request's body is read, then as reset
hang            GET: the right Content-Length, half of the body, then as stall
                PUT, POST: as stall
stall           nothing for `stall_seconds`, then as reset; nothing is done
lost            what was asked is done, then as reset
"""

Plan = Callable[[str, str, Message, int], "Fault | None"]
"""Says the fault of a request by its method, path (with query), headers and number, from 1"""

_STATUS_CODES = {"403": "AccessDenied", "500": "InternalError", "503": "SlowDown"}
_UPLOADS = ("PUT", "POST")
# what concerns one connection only; a body that came in chunks is chunked anew
_HOP_BY_HOP = {"connection", "keep-alive", "expect", "proxy-connection", "transfer-encoding", "te", "upgrade"}


def fail(fault: Fault, *, count: int | None = None, method: str | None = None, path: str = "") -> Plan:
    """A plan that fails the first `count` requests (None: all) of `method` whose path contains `path`"""
    lock = threading.Lock()
    left = [float("inf") if count is None else count]

    def plan(method_: str, path_: str, headers: Message, number: int) -> Fault | None:
        if method not in (None, method_) or path not in path_:
            return None
        with lock:
            left[0] -= 1
            return fault if left[0] >= 0 else None

    return plan


class Request(NamedTuple):
    """A request as it came, and the fault it met"""

    method: str
    path: str
    range: str | None
    fault: Fault | None


class Loopback:
    """An HTTP server on a free port of the loopback that counts, and fails where its plan says

    `sent` and `received` are bytes of bodies by method, errors' bodies included; what a client has received
    is counted. When `close` returns, no
    connection is open.
    """

    def __init__(self, plan: Plan | None = None, stall_seconds: float = 60) -> None:
        self.plan = plan
        self.stall_seconds = stall_seconds
        self.log: list[Request] = []
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        """Where it answers, without a final slash"""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> Counter[str]:
        """How many requests came, by method"""
        with self.lock:
            return Counter(request.method for request in self.log)

    def clear(self) -> None:
        """Forget what was counted; the numbers of requests start again from 1"""
        with self.lock:
            self.log.clear()
            self.sent.clear()
            self.received.clear()

    def admit(self, exchange: Exchange) -> Fault | None:
        """Count a request and ask the plan for its fault"""
        with self.lock:
            method, path, headers = exchange.command, exchange.path, exchange.headers
            fault = self.plan(method, path, headers, len(self.log) + 1) if self.plan else None
            self.log.append(Request(method, path, headers.get("Range"), fault))
            return fault

    def answer(self, exchange: Exchange, fault: Fault | None) -> None:
        """Answer a request, up to the fault that is left to the body or to the answer"""
        raise NotImplementedError

    def close(self) -> None:
        """Stop; stalled requests and kept connections end at once"""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_connections()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    """The listening side of a Loopback"""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, owner: Loopback) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), Exchange)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.owner.lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # without the parent's shutdown(), which would send an orderly end before a reset
        with self.owner.lock:
            self._open.discard(request)
        self.close_request(request)

    def cut_connections(self) -> None:
        with self.owner.lock:
            for connection in self._open:
                with suppress(OSError):  # it may have ended meanwhile
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away, and connections cut by a fault


class Exchange(BaseHTTPRequestHandler):
    """One connection's requests and answers"""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_any(self) -> None:
        owner = self.server.owner
        fault = owner.admit(self)
        if fault in _STATUS_CODES:
            self.refuse(int(fault), _STATUS_CODES[fault])
        elif fault == "reset":
            self.reset()
        elif fault == "stall" or (fault == "hang" and self.command in _UPLOADS):
            owner.closing.wait(owner.stall_seconds)
            self.reset()
        elif fault == "truncate" and self.command in _UPLOADS:
            self.read_half()
            self.reset()
        else:
            owner.answer(self, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815

    @property
    def chunked(self) -> bool:
        """Whether the request's body comes in chunks"""
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def body(self) -> Iterator[bytes]:
        """The request's body, in blocks of bounded size"""
        length = int(self.headers.get("Content-Length", 0))
        for block in _chunks(self.rfile) if self.chunked else _blocks(self.rfile, length):
            with self.server.owner.lock:
                self.server.owner.received[self.command] += len(block)
            yield block

    def read_half(self) -> None:
        """Read half of the request's body; of one in chunks, the first block"""
        half = int(self.headers.get("Content-Length", 0)) // 2
        for block in self.body():
            half -= len(block)
            if half <= 0:
                return

    def refuse(self, status: int, code: str) -> None:
        """Read the request's body and answer with an error as S3 words it"""
        for _ in self.body():
            pass
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.send_body([text], len(text), None)

    def send_body(self, blocks: Iterable[bytes], length: int | None, fault: Fault | None) -> None:
        """Send the answer's body, or with `truncate` and `hang` half of its `length`; nothing for HEAD"""
        if self.command == "HEAD":
            return
        cut = fault in ("truncate", "hang")
        left = (length or 0) // 2
        for block in blocks:
            piece = block[:left] if cut else block
            with self.server.owner.lock:  # before the client can have them
                self.server.owner.sent[self.command] += len(piece)
            self.wfile.write(piece)
            left -= len(piece)
            if cut and left <= 0:
                break
        if fault == "hang":
            self.server.owner.closing.wait(self.server.owner.stall_seconds)
        if cut:
            self.close_connection = True

    def reset(self) -> None:
        """End the connection with a reset"""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def _blocks(stream: BufferedIOBase | Any, length: int) -> Iterator[bytes]:
    """`length` bytes of a stream; fewer if it ends before"""
    while length > 0:
        block = stream.read(min(BLOCK, length))
        if not block:
            return
        length -= len(block)
        yield block


def _chunks(stream: BufferedIOBase | Any) -> Iterator[bytes]:
    """The bytes of a body with `Transfer-Encoding: chunked`; trailers are read and dropped"""
    while size := int(stream.readline().split(b";")[0], 16):
        yield from _blocks(stream, size)
        stream.readline()
    while stream.readline().strip():
        pass


class FaultyProxy(Loopback):
    """Passes requests on to another server, headers unchanged, in bounded memory"""

    def __init__(self, target: str, plan: Plan | None = None, stall_seconds: float = 60) -> None:
        """`target` is the other server's URL; what stands after its port is not used"""
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 80)
        super().__init__(plan, stall_seconds)

    def answer(self, exchange: Exchange, fault: Fault | None) -> None:
        connection = HTTPConnection(*self._target)
        try:
            self._ask(connection, exchange)
            if fault == "lost":
                connection.getresponse().read()
                exchange.reset()
            else:
                self._pass_back(connection, exchange, fault)
        except (ConnectionError, HTTPException):
            exchange.reset()
        finally:
            connection.close()

    def _ask(self, connection: HTTPConnection, exchange: Exchange) -> None:
        connection.putrequest(exchange.command, exchange.path, skip_host=True, skip_accept_encoding=True)
        for name, value in exchange.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                connection.putheader(name, value)
        if exchange.chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(exchange.body(), encode_chunked=exchange.chunked)

    def _pass_back(self, connection: HTTPConnection, exchange: Exchange, fault: Fault | None) -> None:
        response = connection.getresponse()
        length = response.length
        exchange.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                exchange.send_header(name, value)
        if length is None:  # the end of the connection is the end of the body
            exchange.send_header("Connection", "close")
        exchange.end_headers()
        exchange.send_body(iter(lambda: response.read(BLOCK), b""), length, fault)


class RangeServer(Loopback):
    """Serves the files of a folder by GET and HEAD, and ranges of them

    With `ranges=False` it answers a request for a range with 200 and the whole file. A folder is 404, or
    with `listings=True` an HTML page of links. With `validators=False` it sends neither ETag nor
    Last-Modified. It keeps to If-Match.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan | None = None,
        stall_seconds: float = 60,
        *,
        ranges: bool = True,
        listings: bool = False,
        validators: bool = True,
    ) -> None:
        self._folder = folder.resolve()
        self._ranges, self._listings, self._validators = ranges, listings, validators
        super().__init__(plan, stall_seconds)

    def answer(self, exchange: Exchange, fault: Fault | None) -> None:
        path = (self._folder / unquote(urlsplit(exchange.path).path).lstrip("/")).resolve()
        if exchange.command not in ("GET", "HEAD"):
            exchange.refuse(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowed")
        elif fault == "lost":
            exchange.reset()
        elif not path.is_relative_to(self._folder):
            exchange.refuse(HTTPStatus.NOT_FOUND, "NotFound")
        elif path.is_file():
            self._send_file(exchange, path, fault)
        elif path.is_dir() and self._listings:
            self._send_listing(exchange, path, fault)
        else:
            exchange.refuse(HTTPStatus.NOT_FOUND, "NotFound")

    def _send_file(self, exchange: Exchange, path: Path, fault: Fault | None) -> None:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            etag = f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
            if exchange.headers.get("If-Match", etag) not in (etag, "*"):
                exchange.refuse(HTTPStatus.PRECONDITION_FAILED, "PreconditionFailed")
                return
            wanted = _range(exchange.headers.get("Range"), stat.st_size) if self._ranges else None
            if wanted is not None and not wanted:
                exchange.refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "InvalidRange")
                return
            part = range(stat.st_size) if wanted is None else wanted
            exchange.send_response_only(HTTPStatus.OK if wanted is None else HTTPStatus.PARTIAL_CONTENT)
            exchange.send_header("Content-Type", "application/octet-stream")
            exchange.send_header("Content-Length", str(len(part)))
            if self._ranges:
                exchange.send_header("Accept-Ranges", "bytes")
            if wanted is not None:
                exchange.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{stat.st_size}")
            if self._validators:
                exchange.send_header("ETag", etag)
                exchange.send_header("Last-Modified", formatdate(stat.st_mtime, usegmt=True))
            exchange.end_headers()
            file.seek(part.start)
            exchange.send_body(_blocks(file, len(part)), len(part), fault)

    def _send_listing(self, exchange: Exchange, path: Path, fault: Fault | None) -> None:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
        links = "".join(f'<a href="{quote(name)}">{name}</a>\n' for name in names)
        page = f"<html><body>\n{links}</body></html>\n".encode()
        exchange.send_response_only(HTTPStatus.OK)
        exchange.send_header("Content-Type", "text/html")
        exchange.send_header("Content-Length", str(len(page)))
        exchange.end_headers()
        exchange.send_body([page], len(page), fault)


def _range(header: str | None, size: int) -> range | None:
    """The bytes of a file that a Range header asks for: None for all, empty if there are none of them"""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    return range(int(first), min(int(last) + 1, size) if last else size)


class ObjectStore:
    """An empty S3 bucket on the loopback, by moto; signatures are not checked, and nothing outlives `close`

    All of a process's stores are one, as moto has it, so that a new one empties those before it.
    """

    def __init__(self, bucket: str = "bucket") -> None:
        import boto3  # type: ignore[import-untyped]
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
        self.bucket = bucket
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint_url = f"http://{host}:{port}"
        self._client: Any = boto3.client("s3", endpoint_url=self.endpoint_url, **_KEYS)
        self.clear()

    @property
    def url(self) -> str:
        """The bucket, for s3fs"""
        return f"s3://{self.bucket}"

    def environment(self, endpoint_url: str | None = None) -> dict[str, str]:
        """The variables with which s3fs and boto3 find the store, or a proxy of it at `endpoint_url`"""
        return {
            "AWS_ACCESS_KEY_ID": _KEYS["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": _KEYS["aws_secret_access_key"],
            "AWS_DEFAULT_REGION": _KEYS["region_name"],
            "AWS_ENDPOINT_URL": endpoint_url or self.endpoint_url,
            # the machine's own settings must not come in
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def options(self, endpoint_url: str | None = None) -> dict[str, Any]:
        """The same as options of `fsspec.filesystem("s3", **options)`; listings are not cached"""
        return {
            "key": _KEYS["aws_access_key_id"],
            "secret": _KEYS["aws_secret_access_key"],
            "client_kwargs": {"region_name": _KEYS["region_name"]},
            "endpoint_url": endpoint_url or self.endpoint_url,
            "use_listings_cache": False,
        }

    def put(self, folder: Path, prefix: str = "") -> None:
        """Store a folder's files, at any depth, under their names after `prefix`"""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                self._client.upload_file(str(path), self.bucket, _join(prefix, name))

    def get(self, prefix: str, folder: Path) -> None:
        """Write the objects under `prefix` into a folder"""
        for key in self.keys(prefix):
            path = folder / key.removeprefix(_join(prefix, ""))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._client.download_file(self.bucket, key, str(path))

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of the objects in the folder `prefix`, sorted"""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=_join(prefix, "")
        )
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def unfinished(self) -> list[str]:
        """The keys of the multipart uploads that were neither completed nor aborted"""
        uploads = self._client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        return sorted(upload["Key"] for upload in uploads)

    def clear(self) -> None:
        """Leave nothing but the empty bucket"""
        self._reset()
        self._client.create_bucket(Bucket=self.bucket)

    def close(self) -> None:
        """Stop the server; the objects are gone"""
        self._reset()
        self._client.close()
        self._server.stop()

    def _reset(self) -> None:
        connection = HTTPConnection("127.0.0.1", urlsplit(self.endpoint_url).port)
        connection.request("POST", "/moto-api/reset")
        connection.getresponse().read()
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


def _join(prefix: str, name: str) -> str:
    return f"{prefix.strip('/')}/{name}" if prefix.strip("/") else name
