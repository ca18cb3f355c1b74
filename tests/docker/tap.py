"""Between dockerd and the driver: a relay of HTTP over unix sockets that writes down each call, and can spoil one.

dockerd's own questions are how its behaviour is seen: how many Mounts a `docker run` makes, which ID an Unmount has. A
call that is to be spoiled is closed without a reply, before or after the driver saw it: what a crash between
request and reply looks like.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal

FOREVER_S = 600.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request of dockerd. `reply` is None when the connection ended without one; times in seconds."""

    verb: str
    request: dict[str, Any]
    reply: dict[str, Any] | None
    took_s: float
    at_s: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """The volume that was asked about."""
        return str(self.request.get("Name", ""))


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float = FOREVER_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def post(path: Path, verb: str, body: bytes, timeout_s: float = FOREVER_S) -> tuple[int, bytes]:
    """One call, as dockerd makes it. Raises OSError or http.client.HTTPException when there is no reply."""
    connection = UnixConnection(path, timeout_s)
    try:
        headers = {"Accept": "application/vnd.docker.plugins.v1.2+json", "Host": ""}
        connection.request("POST", f"/{verb}", body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        verb = self.path.strip("/").removeprefix("VolumeDriver.")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = not self.server.tap.relay(self, verb, body)

    def address_string(self) -> str:
        return "dockerd"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the calls are the record."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, tap: Tap) -> None:
        self.tap = tap
        self._peers: set[socket.socket] = set()  # changed by the thread that accepts and by handlers: set's own steps
        super().__init__(str(path), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._peers.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._peers.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End all connections."""
        for peer in list(self._peers):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A dockerd that was killed has hung up: no news."""


class Tap:
    """Listens at `front` and relays to `back`. The list of calls grows until `forget`."""

    def __init__(self, front: Path, back: Path) -> None:
        self._front = front
        self._back = back
        self._calls: list[Call] = []
        self._guard = threading.Lock()  # the list of calls, and what is to be spoiled: handlers are threads
        self._spoils: list[tuple[str, str]] = []
        self._server: _Server | None = None
        self._thread = threading.Thread()

    def listen(self) -> None:
        """Begin to accept, as a driver does that has just started."""
        assert self._server is None
        self._front.unlink(missing_ok=True)
        self._server = _Server(self._front, self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuse connections and end those that there are, as the death of a driver does. The socket file stays."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.hang_up()
            self._thread.join()

    def relay(self, handler: BaseHTTPRequestHandler, verb: str, body: bytes) -> bool:
        """Pass one call on; False when the connection has to be closed without a reply."""
        begin = time.monotonic()
        spoiled = self._take_spoil(verb)
        status, answer = 0, b""
        if spoiled != "before":
            with contextlib.suppress(OSError, http.client.HTTPException):
                full = verb if verb.startswith("Plugin.") else f"VolumeDriver.{verb}"
                status, answer = post(self._back, full, body)
        replied = bool(status) and not spoiled
        self._note(verb, body, answer if replied else None, time.monotonic() - begin)
        if replied:
            handler.send_response(status)
            handler.send_header("Content-Type", "application/vnd.docker.plugins.v1.2+json")
            handler.send_header("Content-Length", str(len(answer)))
            handler.end_headers()
            handler.wfile.write(answer)
        return replied

    def _note(self, verb: str, body: bytes, answer: bytes | None, took_s: float) -> None:
        call = Call(verb, json.loads(body or b"{}"), None if answer is None else json.loads(answer or b"{}"), took_s)
        with self._guard:
            self._calls.append(call)

    def _take_spoil(self, verb: str) -> str:
        with self._guard:
            found = next((spoil for spoil in self._spoils if spoil[0] == verb), None)
            if found is None:
                return ""
            self._spoils.remove(found)
            return found[1]

    def spoil(self, verb: str, moment: Literal["before", "after"] = "before") -> None:
        """Close the next call of this verb without a reply: before the driver sees it, or after it has answered."""
        with self._guard:
            self._spoils.append((verb, moment))

    def calls(self, verb: str = "", name: str | None = None) -> list[Call]:
        """The calls so far: of one verb, about one volume."""
        with self._guard:
            return [call for call in self._calls if verb in ("", call.verb) and name in (None, call.name)]

    def count(self, verb: str, name: str | None = None) -> int:
        """How many calls of one verb were made."""
        return len(self.calls(verb, name))

    def forget(self) -> None:
        """Begin to count anew, and spoil nothing any more."""
        with self._guard:
            self._calls.clear()
            self._spoils.clear()

    @contextlib.contextmanager
    def counting(self) -> Iterator[Tap]:
        """Count from here."""
        self.forget()
        yield self
