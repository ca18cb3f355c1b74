"""The control socket of a mount: JSON lines over a unix socket, the server's and the client's side.

A request is one line, `{"op": "flush", "path": "a/b"}`. The answer is any number of `{"event": "progress", ...}` lines
and then one `{"event": "done", ...}` or `{"event": "error", "message": ..., "status": 1}`. Requests on one connection
are answered one after the other. Who may connect is decided by the file system: the socket is mode 0600 in a directory
of mode 0700.

Progress is a value, not a queue: only the newest is sent, at most every PROGRESS_S, so a slow reader holds up nobody.
A client that goes away does not cancel what it asked for (a publish is better finished), but an operation may watch
`peer.gone`.

A unix socket's path holds 107 bytes at most and a runtime directory may be longer, so both sides go through
/proc/self/fd of the opened directory.

Rejected: HTTP (nothing here needs it), and D-Bus (not in containers).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from s3vol.errors import S3volError

PROGRESS_S = 0.2
REQUEST_MAX_BYTES = 64 * 1024  # a path has 4,096 at most
_BACKLOG = 16

log = logging.getLogger(__name__)


class NotServing(S3volError):
    """Nobody listens on the control socket, or not in time."""


@dataclass(slots=True)
class Peer:
    """The other end of a request that is being answered."""

    gone: trio.Event = field(default_factory=trio.Event)
    _newest: Mapping[str, Any] | None = None

    def report(self, **values: Any) -> None:
        """Set the progress that is sent next. Never blocks."""
        self._newest = values

    def take(self) -> Mapping[str, Any] | None:
        """The progress that was not sent yet, if any."""
        newest, self._newest = self._newest, None
        return newest


class Operation(Protocol):
    """What answers one kind of request: returns the values of `done`, raises S3volError."""

    def __call__(self, request: Mapping[str, Any], peer: Peer) -> Awaitable[Mapping[str, Any]]: ...


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


# The server.


def listen(path: Path) -> trio.SocketListener:
    """A listening socket at `path`, mode 0600; a stale one is replaced. Must run inside trio. Raises OSError."""
    server = trio.socket.from_stdlib_socket(_bind(path))
    return trio.SocketListener(server)


def _bind(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(server.fileno(), 0o600)  # what bind() makes takes its mode from here; a umask would be all threads'
        with _reachable(path) as name:
            server.bind(name)
        server.listen(_BACKLOG)
        server.setblocking(False)
    except BaseException:
        server.close()
        raise
    return server


async def serve(listener: trio.SocketListener, operations: Mapping[str, Operation], stop: trio.Event) -> None:
    """Answer requests until `stop`, and then those that are being answered. Closes the listener.

    What goes wrong on one connection ends that connection only.
    """

    async def talk(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await _converse(stream, operations, stop)
        except Exception:  # the control socket must not take the mount down
            log.exception("control connection failed")

    async with trio.open_nursery() as conversations, trio.open_nursery() as accepting:
        accepting.start_soon(partial(trio.serve_listeners, talk, [listener], handler_nursery=conversations))
        await stop.wait()
        accepting.cancel_scope.cancel()


async def _converse(stream: trio.SocketStream, operations: Mapping[str, Operation], stop: trio.Event) -> None:
    sender, requests = trio.open_memory_channel[bytes](1)
    peer = Peer()
    reading = trio.CancelScope()

    async def read() -> None:
        with sender, reading:
            rest = b""
            while (data := await _receive(stream)) and len(rest) < REQUEST_MAX_BYTES:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    await sender.send(line)
            peer.gone.set()

    async def stop_reading() -> None:
        await stop.wait()
        reading.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(stop_reading)
        async for line in requests:
            await _answer(stream, line, peer, operations)
        nursery.cancel_scope.cancel()


async def _receive(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some(REQUEST_MAX_BYTES))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return b""


async def _answer(stream: trio.SocketStream, line: bytes, peer: Peer, operations: Mapping[str, Operation]) -> None:
    replies: list[Mapping[str, Any]] = []
    finished = trio.Event()

    async def perform() -> None:
        replies.append(await _perform(line, peer, operations))
        finished.set()

    # One task sends, and nothing cancels it between two lines: a line cut in half would garble the next one.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(perform)
        while not finished.is_set():
            with trio.move_on_after(PROGRESS_S):
                await finished.wait()
            if (values := peer.take()) is not None:
                await _send(stream, {"event": "progress", **values}, peer)
    await _send(stream, replies[0], peer)


async def _perform(line: bytes, peer: Peer, operations: Mapping[str, Operation]) -> Mapping[str, Any]:
    try:
        request = json.loads(line)
        operation = operations[request["op"]]
    except (ValueError, KeyError, TypeError):
        return {"event": "error", "message": f"not a request: {line[:200]!r}", "status": 2}
    try:
        return {"event": "done", **await operation(request, peer)}
    except S3volError as error:
        return {"event": "error", "message": str(error), "status": 1}
    except Exception as error:  # the control socket must not take the mount down
        log.exception("control request failed", extra={"op": request["op"]})
        return {"event": "error", "message": f"{type(error).__name__}: {error}", "status": 1}


async def _send(stream: trio.SocketStream, values: Mapping[str, Any], peer: Peer) -> None:
    try:
        await stream.send_all(json.dumps(values).encode() + b"\n")
    except trio.BrokenResourceError:  # the client is gone; what it asked for goes on
        peer.gone.set()


# The client: plain blocking sockets, because the command line has nothing else to do meanwhile.


class Client:
    """A connection to the mount process behind a control socket. Raises NotServing when there is none."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(timeout_s)
            with _reachable(path) as name:
                self._socket.connect(name)
        except OSError as error:
            self._socket.close()
            raise NotServing(f"control socket {path}: {error.strerror or error}") from None
        self._lines = self._socket.makefile("rb")

    def send(self, op: str, **arguments: Any) -> None:
        """Send a request; read the answer with `events`."""
        try:
            self._socket.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
        except OSError as error:
            raise NotServing(f"the mount process does not answer: {error.strerror or error}") from None

    def events(self, *, timeout_s: float) -> Iterator[Mapping[str, Any]]:
        """Progress as it comes, and last what has `"event": "done"`.

        `timeout_s` is the longest silence. Raises S3volError with the message of `error`, NotServing when the process
        is silent or ends without an answer.
        """
        self._socket.settimeout(timeout_s)
        while True:
            try:
                line = self._lines.readline()
            except OSError as error:
                raise NotServing(f"the mount process does not answer: {error.strerror or error}") from None
            if not line:
                raise NotServing("the mount process ended before it answered")
            values = json.loads(line)
            if values["event"] == "error":
                raise S3volError(values["message"])
            yield values
            if values["event"] == "done":
                return

    def ask(self, op: str, *, timeout_s: float, **arguments: Any) -> Mapping[str, Any]:
        """Send a request and return the values of `done`."""
        self.send(op, **arguments)
        *_, last = self.events(timeout_s=timeout_s)
        return last

    def interrupt(self) -> None:
        """Make a call that waits in another thread raise NotServing there."""
        with contextlib.suppress(OSError):  # the other end is gone: it does so anyway
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
