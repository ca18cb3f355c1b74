"""HTTP/1.1 on the event loop: trio carries; what an answer means is seen at once (plain_answer.py) or said by h11.

Theory of operation. An exchange takes an idle connection or makes one, sends head and body in one piece, and reads the
answer to its end. Only a connection that both sides leave between two exchanges goes back to the idle ones; on any
error, cancellation included, it is closed, and with it an answer that nobody waits for any more. An idle connection on
which something can be read is not used: the server has closed it. A server that restarted thus costs no failed
request, but for the moment between the look and the request, which is an error like every other.

A request's head is written here: h11 would look at each of our fifteen headers with two regular expressions, and what
could be wrong with them was refused before (s3_wire), but for line breaks. An answer whose head is plain is read here
as well; for any other h11 is told of the request, and gets what has come so far.

The connection used last is used next, so that those of a burst grow old; an old one is not used, for what is between
us and the server (NAT, load balancers) may have forgotten it without a word.

A large body of known length is received where it is to stay, in aligned memory, so that the processor moves each byte
once before the cache has it, and sent from where it is. The kernel is told to wake us for
a quarter of a megabyte. While such a body moves, time-outs count silence: a slow link is no failure, a dead one is.
That is for connections without TLS, whose records would hold up the loop one by one: see `carries_large`.

Rejected: threads with a client that blocks. The way into a thread and back costs 250 µs of processor time where the
request takes 190 itself (obstore, PUT of 4 KiB), most of it for handing over the interpreter's lock. httpx: layers on
the same h11 and trio that small requests do not need.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import h11
import trio

from s3vol.errors import Denied, Rejected, S3volError, Unavailable
from s3vol.store import edge, plain_answer
from s3vol.store.aligned import BLOCK_BYTES, AlignedBuffers
from s3vol.store.base import Buffer

_READ_BYTES = 64 << 10
_BODY_MAX_BYTES = 64 << 20  # a page of a listing with metadata has 2 MiB at most; more is a server that ignores Range
_HOST = [("host", "server")]
LARGE_BYTES = 128 << 10
"""Bodies over this are received in place, and sent piece by piece."""

_WAKE_BYTES = 256 << 10  # on loopback as few wake-ups as with 2 MiB; over a network no later than the next request
_IDLE_MAX_S = 30.0  # less than what load balancers keep an idle connection for (AWS: 60 s)


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer: status, headers with lower-case names, body. One that was received in place is in `placed`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    placed: memoryview | None = None

    @property
    def content(self) -> bytes | memoryview:
        """The body, wherever it is."""
        return self.body if self.placed is None else self.placed

    @property
    def date(self) -> str:
        """The server's clock, as it says."""
        return self.headers.get("date", "")

    def error(self, what: str) -> S3volError:
        """What an answer other than 2xx means."""
        return edge.judge(edge.answer_of_body(self.status, self.body.decode("utf-8", "replace"), self.date), what)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is. `tls` None: plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class _Line:
    """One connection, between two exchanges or in one."""

    def __init__(self, stream: trio.abc.Stream, carrier: trio.socket.SocketType) -> None:
        self.stream = stream
        self.idle_since_s = 0.0
        self._socket = carrier
        self._readable = select.poll()
        self._readable.register(carrier.fileno(), select.POLLIN)

    def is_silent(self) -> bool:
        """True when the server has neither closed the connection nor said anything unasked."""
        return not self._readable.poll(0) and not self._has_unread()

    def _has_unread(self) -> bool:
        """True when TLS took more from the socket than the last answer: the socket alone does not tell.

        `pending` counts what is decrypted. Records that came in the same piece are where trio keeps them, and nothing
        that is public shows them (trio 0.34).
        """
        stream = self.stream
        return isinstance(stream, trio.SSLStream) and bool(stream.pending() or stream._incoming.pending)

    @property
    def is_plain(self) -> bool:
        """True without TLS."""
        return isinstance(self.stream, trio.SocketStream)

    async def receive_into(self, body: memoryview, early: bytes, silence_s: float) -> None:
        """Fill `body` with what has come and what comes. Raises TooSlowError after `silence_s` without anything."""
        body[: len(early)] = early
        at = len(early)
        wake_bytes = 0
        try:
            while at < len(body):
                if wake_bytes != min(_WAKE_BYTES, len(body) - at):
                    wake_bytes = min(_WAKE_BYTES, len(body) - at)
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake_bytes)
                with trio.fail_after(silence_s):
                    got = await self._socket.recv_into(body[at:])
                if not got:
                    raise h11.RemoteProtocolError(f"closed after {at} of {len(body)} bytes")
                at += got
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    async def send_from(self, body: memoryview, silence_s: float) -> None:
        """Send `body` as it is. Raises TooSlowError when the server takes nothing for `silence_s`."""
        for at in range(0, len(body), _WAKE_BYTES):
            with trio.fail_after(silence_s):
                await self.stream.send_all(body[at : at + _WAKE_BYTES])

    def close(self) -> None:
        """At once, without a farewell."""
        self._socket.close()


class Connections:
    """Connections to one server. Used on one event loop; no more than `idle_max` are kept."""

    def __init__(self, address: Address, *, connect_timeout_s: float, timeout_s: float, idle_max: int) -> None:
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._idle_max = idle_max
        self._idle: list[_Line] = []
        self._closed = False
        self._memory = AlignedBuffers()

    @property
    def carries_large(self) -> bool:
        """True when large bodies are received in place and sent in pieces; else they are better not moved here."""
        return self._address.tls is None

    async def exchange(
        self,
        what: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer = b"",
        *,
        in_place: bool = False,
    ) -> Reply:
        """Send a request and read the answer. Raises Unavailable, Denied for a certificate nobody vouches for,
        Rejected for headers that are not one line of ASCII each.

        `what` is the operation in words, for errors. `in_place`: a large body may come as `Reply.placed`. When
        cancelled, the server may or may not have seen the request.
        """
        line = self._take() or await self._connect(what)
        try:
            with trio.fail_after(self._timeout_s) as scope:
                refused = await self._send(line, scope, method, target, headers, body)
                reply, goes_on = await self._receive(line, scope, method, refused, in_place)
            if refused is not None and reply.status < 300:
                raise refused  # who did not take all of the body cannot have kept it
        except trio.TooSlowError:
            line.close()
            raise Unavailable(f"{what}: no answer within {self._timeout_s:g} s") from None
        except ValueError as error:
            line.close()
            raise Rejected(f"{what}: HTTP cannot carry it: {error}") from error
        except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
            line.close()
            raise Unavailable(f"{what}: the connection broke: {error}") from error
        except BaseException:
            line.close()
            raise
        if goes_on and not self._closed:
            self._keep(line)
        else:
            line.close()
        return reply

    def _take(self) -> _Line | None:
        fresh_s = trio.current_time() - _IDLE_MAX_S
        while self._idle:
            line = self._idle.pop()
            if line.idle_since_s > fresh_s and line.is_silent():
                return line
            line.close()
        return None

    def _keep(self, line: _Line) -> None:
        line.idle_since_s = trio.current_time()
        self._idle.append(line)
        if len(self._idle) > self._idle_max:
            self._idle.pop(0).close()

    async def _connect(self, what: str) -> _Line:
        address = self._address
        try:
            with trio.fail_after(self._connect_timeout_s):
                plain = await trio.open_tcp_stream(address.host, address.port)
                if address.tls is None:
                    return _Line(plain, plain.socket)
                try:
                    secured = trio.SSLStream(plain, address.tls, server_hostname=address.host, https_compatible=True)
                    await secured.do_handshake()
                except BaseException:
                    plain.socket.close()
                    raise
                return _Line(secured, plain.socket)
        except trio.TooSlowError:
            raise Unavailable(f"{what}: no connection within {self._connect_timeout_s:g} s") from None
        except (OSError, trio.BrokenResourceError) as error:
            reason = error.__cause__ or error
            if isinstance(reason, BaseExceptionGroup):
                reason = edge.first_error(reason)  # of several addresses
            if isinstance(reason, ssl.SSLCertVerificationError):
                said = reason.verify_message
                raise Denied(f"{what}: the server's TLS certificate is not trusted: {said}") from error
            raise Unavailable(f"{what}: cannot connect: {reason}") from error

    def close(self) -> None:
        """Close what is idle; exchanges in progress go on."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    async def _send(
        self,
        line: _Line,
        scope: trio.CancelScope,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer,
    ) -> trio.BrokenResourceError | None:
        """Send a request. When the server does not want all of it, that is returned: it may have answered, and closed.

        The deadline of `scope` goes while a large body moves, for as long as it moves.
        """
        head, view = _head(method, target, headers), memoryview(body).cast("B")
        try:
            if len(view) > LARGE_BYTES:
                await line.stream.send_all(head)
                scope.deadline = math.inf
                await line.send_from(view, self._timeout_s)
                scope.deadline = trio.current_time() + self._timeout_s
            else:
                await line.stream.send_all(b"".join((head, view)))
        except trio.BrokenResourceError as error:
            scope.deadline = trio.current_time() + self._timeout_s
            return error
        return None

    async def _receive(
        self,
        line: _Line,
        scope: trio.CancelScope,
        method: str,
        refused: trio.BrokenResourceError | None,
        in_place: bool,
    ) -> tuple[Reply, bool]:
        """Read an answer; and whether the connection is good for another exchange. `refused`: what broke while sending.

        The deadline of `scope` goes while a large body moves, for as long as it moves.
        """
        try:
            received = b""
            while not plain_answer.is_complete(received):
                more = bytes(await line.stream.receive_some(_READ_BYTES))
                received += more
                if not more:
                    break
            head = plain_answer.parse(received, method)
            if head is None or len(received) - head.head_bytes > head.body_bytes:
                return await _by_h11(line.stream, method, received)
            early = received[head.head_bytes :]
            goes_on = not head.closes and refused is None
            if in_place and line.is_plain and LARGE_BYTES < head.body_bytes <= BLOCK_BYTES and head.status < 300:
                scope.deadline = math.inf
                place = self._memory.take(head.body_bytes)
                await line.receive_into(place, early, self._timeout_s)
                return Reply(head.status, head.headers, b"", place), goes_on
            return Reply(head.status, head.headers, await _rest(line.stream, early, head.body_bytes)), goes_on
        except trio.BrokenResourceError as error:
            raise refused or error from None


async def _rest(stream: trio.abc.Stream, early: bytes, length: int) -> bytes:
    """A body of known length, of which some is here."""
    if len(early) == length:
        return early
    if length > _BODY_MAX_BYTES:
        raise h11.RemoteProtocolError(f"an answer of more than {_BODY_MAX_BYTES} bytes")
    pieces, came = [early], len(early)
    while came < length:
        piece = bytes(await stream.receive_some(min(_READ_BYTES, length - came)))
        if not piece:
            raise h11.RemoteProtocolError(f"closed after {came} of {length} bytes")
        pieces.append(piece)
        came += len(piece)
    return b"".join(pieces)


async def _by_h11(stream: trio.abc.Stream, method: str, received: bytes) -> tuple[Reply, bool]:
    """An answer that is not plain, of which some is here."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=plain_answer.HEAD_MAX_BYTES)
    http.send(h11.Request(method=method, target="/", headers=_HOST))  # what the answer means depends on the method
    http.send(h11.EndOfMessage())
    http.receive_data(received)
    response: h11.Response | None = None
    content: list[bytes] = []
    length = 0
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            content.append(bytes(event.data))
            length += len(event.data)
            if length > _BODY_MAX_BYTES:
                raise h11.RemoteProtocolError(f"an answer of more than {_BODY_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            break
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("closed without an answer")
    goes_on = http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]
    return Reply(response.status_code, _headers(response), b"".join(content)), goes_on


def _head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """A request's head. ValueError for a line break in it: what follows one would be a header, or a request."""
    text = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if text.count("\n") != len(headers) + 1 or text.count("\r") != len(headers) + 1:
        raise ValueError("a line break in a header")
    return f"{text}\r\n".encode("ascii")


def _headers(response: h11.Response) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in response.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found
