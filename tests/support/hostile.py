"""A hostile network: an HTTP proxy on loopback between s3vol and its store that does to requests what a test decides.

Theory of operation. Each connection has a thread. A request is read to its end, its fate is asked (`decide`, under one
lock, so that a seeded generator draws in order of arrival), and the fault is played: before anything reaches the store,
in the middle of the request, or after the store has applied it. Requests go on byte for byte, Host included, so
signatures hold; each has a connection of its own to the store. A stall ends when the proxy is healed or closed.

`log` is the ledger of what was done to whom, so that a test can tell which uncertainty it caused itself.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum
from time import time

_PIECE_BYTES = 256 << 10
_NO_LINGER = struct.pack("ii", 1, 0)  # close() sends RST
_DRIPS_S = 0.05


REQUEST_ID = "FA171FA171"
"""What every refusal of the proxy calls the request."""


class Fault(Enum):
    """What may happen to a request. The store has seen nothing of it, a part, or all (`APPLIED`)."""

    NONE = "passed on"
    RESET = "reset before the store sees it"
    CUT_REQUEST = "reset in the middle of the request"
    STALL = "never answered; the store sees nothing"
    ERROR = "500 InternalError"
    SLOW_DOWN = "503 SlowDown"
    GATEWAY = "502 with a page of HTML"
    SKEWED = "403 RequestTimeTooSkewed"
    DELAY = "answered late"
    LOSE_REPLY = "applied, then reset"
    STALL_REPLY = "applied, then silence"
    ERROR_APPLIED = "applied, then 503"
    CUT_HEAD = "applied, reset in the middle of the reply's headers"
    TRUNCATE = "applied, the reply's body ends early"
    DRIP = "applied, the reply trickles"
    WRONG_ETAG = "applied, another ETag in the reply"
    CLOSE = "answered, then the idle connection is closed without a word"


APPLIED = frozenset({Fault.LOSE_REPLY, Fault.STALL_REPLY, Fault.ERROR_APPLIED, Fault.CUT_HEAD, Fault.TRUNCATE})
"""The store has answered, and its client does not know what."""


@dataclass(frozen=True, slots=True)
class Request:
    """As it came from the client."""

    method: str
    target: str
    head: bytes  # with the empty line at its end
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.target}"

    @property
    def begins_upload(self) -> bool:
        """CreateMultipartUpload."""
        return self.method == "POST" and self.target.partition("?")[2].startswith("uploads")


Decide = Callable[[Request], Fault]


def at_random(seed: int, odds: Mapping[Fault, float]) -> Decide:
    """Each request meets each of these faults with this probability; the same seed draws the same sequence."""
    draw = random.Random(seed)
    faults, weights = list(odds), list(odds.values())
    faults.append(Fault.NONE)
    weights.append(1.0 - sum(weights))
    return lambda _: draw.choices(faults, weights)[0]


def _passed(_: Request) -> Fault:
    return Fault.NONE


class Hostile:
    """The running proxy. Faults begin with `decide` set and end with `heal`."""

    def __init__(self, port: int, *, delay_s: float = 0.3) -> None:
        self.log: list[tuple[Request, Fault]] = []
        self._store = ("127.0.0.1", port)
        self._delay_s = delay_s
        self._decide: Decide = _passed
        self._lock = threading.Lock()
        self._healed = threading.Event()
        self._closing = False
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    @property
    def endpoint(self) -> str:
        """What s3vol is told to talk to."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def harm(self, decide: Decide) -> None:
        """From now on each request meets what `decide` says."""
        with self._lock:
            self._healed.clear()
            self._decide = decide

    def heal(self) -> None:
        """From now on everything passes; what is stalled ends."""
        with self._lock:
            self._decide = _passed
            self._healed.set()

    def done(self, *faults: Fault) -> list[Request]:
        """The requests that met one of these faults."""
        with self._lock:
            return [request for request, fault in self.log if fault in faults]

    def close(self) -> None:
        """End all connections and threads."""
        self._closing = True
        self.heal()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for peer in self._open:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closing:
                near, _ = self._listener.accept()
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open.add(near)
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                self._threads.append(threading.Thread(target=self._serve, args=(near,)))
                self._threads[-1].start()

    def _serve(self, near: socket.socket) -> None:
        try:
            with near.makefile("rb") as stream:
                while (request := _read_request(near, stream.readline, stream.read)) is not None:
                    with self._lock:
                        fault = self._decide(request)
                        self.log.append((request, fault))
                    if not self._play(near, request, fault):
                        return
        except (OSError, ValueError):  # either side went away in the middle
            return
        finally:
            with self._lock:
                self._open.discard(near)
            near.close()

    def _play(self, near: socket.socket, request: Request, fault: Fault) -> bool:
        """Do it; False when the connection is over."""
        match fault:
            case Fault.RESET:
                return _reset(near)
            case Fault.CUT_REQUEST:
                with self._far() as far:
                    far.sendall(_half(request))
                    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                return _reset(near)
            case Fault.STALL:
                self._healed.wait()
                return _reset(near)
            case Fault.ERROR | Fault.SLOW_DOWN | Fault.GATEWAY | Fault.SKEWED:
                near.sendall(_refusal(request, fault))
                return True
            case Fault.DELAY:
                self._healed.wait(self._delay_s)
        reply = self._ask(request)
        head_bytes = reply.index(b"\r\n\r\n") + 4
        match fault:
            case Fault.LOSE_REPLY:
                return _reset(near)
            case Fault.STALL_REPLY:
                near.sendall(reply[: head_bytes + (len(reply) - head_bytes) // 2 - 1])
                self._healed.wait()
                return _reset(near)
            case Fault.ERROR_APPLIED:
                near.sendall(_refusal(request, Fault.SLOW_DOWN))
                return True
            case Fault.CUT_HEAD:
                near.sendall(reply[: head_bytes // 2])
                return _reset(near)
            case Fault.TRUNCATE:
                near.sendall(reply[: head_bytes + (len(reply) - head_bytes) // 2])
                return False
            case Fault.DRIP:
                for at in range(0, head_bytes, 8):
                    near.sendall(reply[at : min(at + 8, head_bytes)])
                    self._healed.wait(_DRIPS_S)
                near.sendall(reply[head_bytes:])
                return True
            case Fault.WRONG_ETAG:
                reply = re.sub(rb'(?im)^(ETag: "?)([0-9a-f]{32})', _other_etag, reply[:head_bytes]) + reply[head_bytes:]
        near.sendall(reply)
        return fault is not Fault.CLOSE

    def _far(self) -> socket.socket:
        far = socket.create_connection(self._store, timeout=60)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return far

    def _ask(self, request: Request) -> bytes:
        """The store's whole reply. OSError when it ends early."""
        with self._far() as far, far.makefile("rb") as stream:
            far.sendall(request.head)
            far.sendall(request.body)
            head = _read_head(stream.readline)
            while head.startswith(b"HTTP/1.1 100"):
                head = _read_head(stream.readline)
            if request.method == "HEAD" or head[9:12] in (b"204", b"304"):
                return head
            if _header(head, "transfer-encoding").lower() == "chunked":
                return head + _read_chunks(stream.readline, stream.read)
            length = int(_header(head, "content-length") or 0)
            body = stream.read(length)
            if len(body) != length:
                raise ConnectionResetError("the store hung up")
            return head + body


def _read_request(near: socket.socket, readline: Callable[[], bytes], read: Callable[[int], bytes]) -> Request | None:
    head = _read_head(readline, may_end=True)
    if not head:
        return None
    if _header(head, "expect"):
        near.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = re.sub(rb"(?im)^expect:.*\r\n", b"", head)
    length = int(_header(head, "content-length") or 0)
    body = read(length)
    if len(body) != length:
        return None
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    return Request(method, target, head, body)


def _read_head(readline: Callable[[], bytes], *, may_end: bool = False) -> bytes:
    lines = []
    while line := readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    if lines or not may_end:
        raise ConnectionResetError("ended within headers")
    return b""


def _read_chunks(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> bytes:
    pieces = []
    while line := readline():
        length = int(line.partition(b";")[0], 16)
        pieces += [line, read(length + 2)]
        if length == 0:
            return b"".join(pieces)
    raise ConnectionResetError("ended within chunks")


def _header(head: bytes, name: str) -> str:
    found = re.search(rb"(?im)^" + name.encode() + rb":[ \t]*(.*?)\r$", head)
    return found[1].decode("latin-1") if found else ""


def _other_etag(found: re.Match[bytes]) -> bytes:
    return found[1] + found[2][::-1]


def _half(request: Request) -> bytes:
    """So little that the store cannot take it for a whole request: one without a body ends with its head."""
    if not request.body:
        return request.head[: len(request.head) // 2]
    return request.head + request.body[: len(request.body) // 2]


def _reset(near: socket.socket) -> bool:
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    return False


def _refusal(request: Request, fault: Fault) -> bytes:
    status, code = {
        Fault.ERROR: ("500 Internal Server Error", "InternalError"),
        Fault.SLOW_DOWN: ("503 Slow Down", "SlowDown"),
        Fault.GATEWAY: ("502 Bad Gateway", ""),
        Fault.SKEWED: ("403 Forbidden", "RequestTimeTooSkewed"),
    }[fault]
    about = f"<Code>{code}</Code><Message>as a test asked</Message><RequestId>{REQUEST_ID}</RequestId>"
    text = f'<?xml version="1.0"?><Error>{about}</Error>'
    body = (text if code else "<html>no backend</html>").encode()
    kind = "application/xml" if code else "text/html"
    date = formatdate(time() + (20 * 60 if fault is Fault.SKEWED else 0), usegmt=True)
    head = f"HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if request.method == "HEAD" else body)


@contextlib.contextmanager
def hostile(port: int, *, delay_s: float = 0.3) -> Iterator[Hostile]:
    """A proxy to the store on this port, harmless until told otherwise. `delay_s` is what DELAY waits."""
    proxy = Hostile(port, delay_s=delay_s)
    try:
        yield proxy
    finally:
        proxy.close()
