"""HTTP on the event loop: what becomes of connections. The servers are written out, byte by byte."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from s3vol.errors import Rejected, Unavailable
from s3vol.store.connections import Address, Connections
from s3vol.types import MIB
from tests.support.tls import certificate

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: a\r\nETag: b\r\n\r\nok"
HEADERS = {"host": "localhost"}

Peer = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def serving(
    peer: Peer, *, timeout_s: float = 5.0, idle_max: int = 4, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Connections, list[trio.SocketStream]]]:
    """Connections to a server that treats each one with `peer`; and those that came."""
    came: list[trio.SocketStream] = []

    async def treat(stream: trio.SocketStream) -> None:
        came.append(stream)
        try:
            async with stream:
                await peer(stream)
        except trio.BrokenResourceError:
            pass  # the client has gone

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, treat, [listener])
        address = Address("127.0.0.1", listener.socket.getsockname()[1], tls)
        connections = Connections(address, connect_timeout_s=5.0, timeout_s=timeout_s, idle_max=idle_max)
        yield connections, came
        connections.close()
        nursery.cancel_scope.cancel()


async def request_of(stream: trio.abc.ReceiveStream) -> bytes:
    """One request, as far as its head; b"" at the end of the connection."""
    text = b""
    while b"\r\n\r\n" not in text:
        more = await stream.receive_some()
        if not more:
            return b""
        text += more
    return text


async def polite(stream: trio.SocketStream) -> None:
    """Answers every request."""
    while await request_of(stream):
        await stream.send_all(OK)


async def test_one_connection_serves_one_request_after_the_other() -> None:
    async with serving(polite) as (connections, came):
        for _ in range(3):
            reply = await connections.exchange("ask", "GET", "/", HEADERS)
            assert (reply.status, reply.body, reply.headers["etag"]) == (200, b"ok", "a, b")
        assert len(came) == 1


async def test_requests_at_the_same_time_have_connections_of_their_own_and_few_are_kept() -> None:
    async with serving(polite, idle_max=2) as (connections, came):

        async def ask() -> None:
            await connections.exchange("ask", "GET", "/", HEADERS)

        for expected in (5, 8):  # two of the first five were kept
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(ask)
            assert len(came) == expected


async def test_a_connection_that_the_server_closed_while_it_was_idle_costs_no_failed_request() -> None:
    async def once(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(OK)

    async with serving(once) as (connections, came):
        for expected in range(1, 4):
            assert (await connections.exchange("ask", "GET", "/", HEADERS)).status == 200
            assert len(came) == expected
            await came[-1].aclose()  # in case our side was quicker than the server


@pytest.mark.parametrize("farewell", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", b"HTTP/1.0 200 OK\r\n\r\nok"])
async def test_a_body_may_end_with_its_connection(farewell: bytes) -> None:
    async def closing(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(farewell)

    async with serving(closing) as (connections, came):
        for expected in (1, 2):
            assert (await connections.exchange("ask", "GET", "/", HEADERS)).body == b"ok"
            assert len(came) == expected


async def test_an_answer_in_chunks_and_one_behind_a_continue_are_answers() -> None:
    async def chunked(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await stream.send_all(b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n")

    async with serving(chunked) as (connections, _):
        assert (await connections.exchange("ask", "GET", "/", HEADERS)).body == b"ok"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", OK[:-1], b"garbage\r\n\r\n"])
async def test_an_answer_that_breaks_off_is_no_answer(sent: bytes) -> None:
    async def breaking(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(sent)

    async with serving(breaking) as (connections, came):
        for expected in (1, 2):
            with pytest.raises(Unavailable, match=r"^ask: the connection broke: "):
                await connections.exchange("ask", "GET", "/", HEADERS)
            assert len(came) == expected


async def test_a_refusal_that_comes_before_the_body_was_read_is_heard() -> None:
    async def refusing(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with serving(refusing) as (connections, _):
        headers = {**HEADERS, "content-length": "100000"}
        assert (await connections.exchange("ask", "PUT", "/", headers, bytes(100_000))).status == 403


@pytest.mark.parametrize("value", ["a\nb: c", "a\rb", "a\r\n\r\nGET / HTTP/1.1", "text/é"])
async def test_a_header_that_is_no_line_of_ascii_is_refused_and_cannot_bring_another_one(value: str) -> None:
    async with serving(polite) as (connections, _):
        with pytest.raises(Rejected, match="ask: HTTP cannot carry it"):
            await connections.exchange("ask", "GET", "/", {**HEADERS, "x": value})
        assert (await connections.exchange("ask", "GET", "/", HEADERS)).body == b"ok"


async def test_a_request_arrives_as_it_was_given() -> None:
    got: list[bytes] = []

    async def listening(stream: trio.SocketStream) -> None:
        got.append(await request_of(stream))
        await stream.send_all(OK)

    async with serving(listening) as (connections, _):
        await connections.exchange("ask", "PUT", "/a?b", {"host": "h", "content-length": "4"}, b"body")
    assert got == [b"PUT /a?b HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody"]


async def test_silence_has_an_end_and_its_connection_is_not_used_again() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await trio.sleep_forever()

    async with serving(silent, timeout_s=0.05) as (connections, came):
        for expected in (1, 2):
            with pytest.raises(Unavailable, match=r"^ask: no answer within 0.05 s"):
                await connections.exchange("ask", "GET", "/", HEADERS)
            assert len(came) == expected


async def test_the_answer_to_a_cancelled_request_is_never_taken_for_the_answer_to_another() -> None:
    answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nold", OK]
    asked, go_on = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        while await request_of(stream):
            asked.set()
            answer = answers.pop(0)
            await go_on.wait()
            await stream.send_all(answer)

    async with serving(slow) as (connections, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connections.exchange, "ask", "GET", "/old", HEADERS)
            await asked.wait()
            nursery.cancel_scope.cancel()
        go_on.set()
        assert (await connections.exchange("ask", "GET", "/", HEADERS)).body == b"ok"


async def test_a_port_where_nobody_listens_is_said() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = Address("127.0.0.1", listener.socket.getsockname()[1])
    await listener.aclose()
    connections = Connections(address, connect_timeout_s=5.0, timeout_s=5.0, idle_max=1)
    with pytest.raises(Unavailable, match=r"^ask: cannot connect: .*refused"):
        await connections.exchange("ask", "GET", "/", HEADERS)


async def test_a_success_that_came_before_the_body_was_taken_is_no_success() -> None:
    async def hasty(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(OK)

    async with serving(hasty) as (connections, _):
        with pytest.raises(Unavailable):
            await connections.exchange("ask", "PUT", "/", {**HEADERS, "content-length": str(32 * MIB)}, bytes(32 * MIB))


async def test_a_connection_in_use_at_the_close_is_closed_after_it() -> None:
    asked, answer, gone = trio.Event(), trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        while await request_of(stream):
            asked.set()
            await answer.wait()
            await stream.send_all(OK)
        gone.set()

    async with serving(slow) as (connections, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connections.exchange, "ask", "GET", "/", HEADERS)
            await asked.wait()
            connections.close()
            answer.set()
        with trio.fail_after(5):
            await gone.wait()


async def test_a_head_whose_lines_end_with_lf_is_a_head() -> None:
    async def lax(stream: trio.SocketStream) -> None:
        while await request_of(stream):
            await stream.send_all(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok")

    async with serving(lax) as (connections, _):
        for _ in range(2):
            assert (await connections.exchange("ask", "GET", "/", HEADERS)).body == b"ok"


class _Gathering(trio.abc.Stream):
    """What is sent goes out together with what is sent next, at `flush`."""

    def __init__(self, inner: trio.SocketStream) -> None:
        self._inner = inner
        self._held: bytes | None = None

    def gather(self) -> None:
        self._held = b""

    async def flush(self) -> None:
        held, self._held = self._held or b"", None
        await self._inner.send_all(held)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._held is None:
            await self._inner.send_all(data)
        else:
            self._held += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize("surplus", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"])
async def test_what_tls_took_behind_an_answer_is_not_taken_for_the_next_one(surplus: bytes, tmp_path: Path) -> None:
    chain = certificate(tmp_path / "public.crt", tmp_path / "private.key")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(chain, tmp_path / "private.key")
    trusting = ssl.create_default_context(cafile=str(chain))

    async def talkative(stream: trio.SocketStream) -> None:
        gathering = _Gathering(stream)
        tls = trio.SSLStream(gathering, ours, server_side=True, https_compatible=True)
        while await request_of(tls):
            gathering.gather()
            await tls.send_all(OK)
            if surplus:
                await tls.send_all(surplus)
            await gathering.flush()

    async with serving(talkative, tls=trusting) as (connections, came):
        for _ in range(2):
            assert (await connections.exchange("ask", "GET", "/", HEADERS)).body == b"ok"
        assert len(came) == (2 if surplus else 1)
