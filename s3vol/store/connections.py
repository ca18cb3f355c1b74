"""HTTP/1.1 on the event loop: h11 decides, trio carries.

Theory of operation. An exchange takes an idle connection or makes one, sends head and body in one piece, and reads the
answer to its end. Only a connection that both sides leave between two exchanges goes back to the idle ones; on any
error, cancellation included, it is closed, and with it an answer that nobody waits for any more. An idle connection on
which something can be read is not used: the server has closed it. A server that restarted thus costs no failed
request, but for the moment between the look and the request, which is an error like every other.

h11 judges answers. It is told the method of a request only, and its head is written here: h11 would look at each of our
fifteen headers with two regular expressions, a quarter of a small request's processor time, and what could be wrong
with them was refused before (s3_wire), but for line breaks.

The connection used last is used next, so that those of a burst grow old; an old one is not used, for what is between
us and the server (NAT, load balancers) may have forgotten it without a word.

A large body of known length does not pass through h11: it is received where it is to stay, in aligned memory, so that
the processor moves each byte once before the cache has it. The kernel is told to wake us for a quarter of a megabyte.
That is for connections without TLS, whose records would come one by one: see `receives_large`.

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
from s3vol.store import edge
from s3vol.store.aligned import BLOCK_BYTES, AlignedBuffers
from s3vol.store.base import Buffer

_READ_BYTES = 64 << 10
_HEAD_MAX_BYTES = 64 << 10  # S3 allows 8 KiB of headers; proxies add theirs
_BODY_MAX_BYTES = 64 << 20  # a page of a listing with metadata has 2 MiB at most; more is a server that ignores Range
_HOST = [("host", "server")]
_LARGE_BYTES = 128 << 10  # bodies over this are received in place
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
        self.http = _new_http()
        self.idle_since_s = 0.0
        self._socket = carrier
        self._readable = select.poll()
        self._readable.register(carrier.fileno(), select.POLLIN)

    def is_silent(self) -> bool:
        """True when the server has neither closed the connection nor said anything unasked."""
        return not self._readable.poll(0)

    @property
    def is_plain(self) -> bool:
        """True without TLS."""
        return isinstance(self.stream, trio.SocketStream)

    async def receive_into(self, body: memoryview, silence_s: float) -> None:
        """Fill `body` with what comes. Raises TooSlowError after `silence_s` without anything.

        h11 does not see it, and has to be replaced.
        """
        early, _ = self.http.trailing_data
        if len(early) > len(body):
            raise h11.RemoteProtocolError("more came than was announced")
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

    def close(self) -> None:
        """At once, without a farewell."""
        self._socket.close()

    def begin_anew(self) -> bool:
        """Be ready for another exchange; False when one side said that it closes."""
        http = self.http
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
        return http.their_state is h11.IDLE


def _new_http() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_MAX_BYTES)


class Connections:
    """Connections to one server. Used on one event loop; no more than `idle_max` are kept."""

    def __init__(self, address: Address, *, connect_timeout_s: float, timeout_s: float, idle_max: int) -> None:
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._idle_max = idle_max
        self._idle: list[_Line] = []
        self._memory = AlignedBuffers()

    @property
    def receives_large(self) -> bool:
        """True when large bodies are received in place; else they are better not asked for here."""
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
                reply = await self._converse(line, scope if in_place else None, method, target, headers, body)
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
        self._give_back(line)
        return reply

    def _take(self) -> _Line | None:
        fresh_s = trio.current_time() - _IDLE_MAX_S
        while self._idle:
            line = self._idle.pop()
            if line.idle_since_s > fresh_s and line.is_silent():
                return line
            line.close()
        return None

    def _give_back(self, line: _Line) -> None:
        if not line.begin_anew():
            line.close()
            return
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
        while self._idle:
            self._idle.pop().close()

    async def _converse(
        self,
        line: _Line,
        in_place: trio.CancelScope | None,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Buffer,
    ) -> Reply:
        """One exchange. `in_place`: its scope, whose deadline goes when a large body comes, for as long as it comes."""
        http = line.http
        http.send(h11.Request(method=method, target="/", headers=_HOST))  # what the answer means depends on the method
        http.send(h11.EndOfMessage())
        refused: trio.BrokenResourceError | None = None
        try:
            await line.stream.send_all(b"".join((_head(method, target, headers), body)))
        except trio.BrokenResourceError as error:
            refused = error  # the server may have answered and closed before it had read everything: look
        response: h11.Response | None = None
        content: list[bytes] = []
        length = 0
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                try:
                    http.receive_data(bytes(await line.stream.receive_some(_READ_BYTES)))
                except trio.BrokenResourceError as error:
                    raise refused or error from None
            elif isinstance(event, h11.Response):
                response = event
                large_bytes = _large_bytes(response) if in_place and line.is_plain else 0
                if in_place and large_bytes:
                    in_place.deadline = math.inf
                    place = self._memory.take(large_bytes)
                    await line.receive_into(place, self._timeout_s)
                    if not _closes(response):
                        line.http = _new_http()
                    return Reply(response.status_code, _headers(response), b"", place)
            elif isinstance(event, h11.Data):
                content.append(bytes(event.data))
                length += len(event.data)
                if length > _BODY_MAX_BYTES:
                    raise h11.RemoteProtocolError(f"an answer of more than {_BODY_MAX_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage) and response is not None:
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("closed without an answer")
        return Reply(response.status_code, _headers(response), b"".join(content))


def _large_bytes(response: h11.Response) -> int:
    """The length of a body that is to be received in place; 0 when it is not."""
    headers = dict(response.headers)  # h11 refuses a length that is none, and several that differ
    if response.status_code not in (200, 206) or b"transfer-encoding" in headers:
        return 0
    length = int(headers.get(b"content-length", b"0"))
    return length if _LARGE_BYTES < length <= BLOCK_BYTES else 0


def _closes(response: h11.Response) -> bool:
    """True when the server says that this was its last answer here (RFC 9112, 9.3)."""
    tokens = b",".join(value for name, value in response.headers if name == b"connection").lower()
    return response.http_version < b"1.1" or b"close" in [token.strip() for token in tokens.split(b",")]


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
