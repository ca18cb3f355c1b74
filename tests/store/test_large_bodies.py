"""Large bodies, received in place and sent in pieces: whole, or not at all, and the connection goes on when it can."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio
import trio.testing

from s3vol.errors import Unavailable
from s3vol.store.aligned import BLOCK_BYTES, is_aligned
from s3vol.store.connections import Connections, Reply
from tests.store.test_connections import HEADERS, OK, Peer, request_of, serving

BODY = random.Random(1).randbytes(3_000_001)


def head(length: int = len(BODY), *more: str) -> bytes:
    """Of an answer."""
    return "\r\n".join(["HTTP/1.1 206 Partial Content", f"Content-Length: {length}", *more, "", ""]).encode()


async def ask(connections: Connections) -> Reply:
    """As who wants a large body."""
    return await connections.exchange("ask", "GET", "/", HEADERS, in_place=True)


def answering(*pieces: bytes) -> Peer:
    """A server that sends these, with a pause after each so that they arrive one by one, to every request."""

    async def answer(stream: trio.SocketStream) -> None:
        while await request_of(stream):
            for piece in pieces:
                await stream.send_all(piece)
                await trio.sleep(0.001)

    return answer


@pytest.mark.parametrize("cut", [0, 1, 70_000, len(BODY) - 1])
async def test_a_large_body_lies_at_a_page_however_it_comes_and_the_connection_is_used_again(cut: int) -> None:
    async with serving(answering(head() + BODY[:cut], BODY[cut:])) as (connections, came):
        for _ in range(3):
            reply = await ask(connections)
            assert hashlib.sha256(reply.content).digest() == hashlib.sha256(BODY).digest()
            assert reply.placed is not None
            assert is_aligned(reply.placed, 4096)
        assert len(came) == 1


async def test_small_and_large_answers_take_turns_on_a_connection() -> None:
    answers = [OK, head() + BODY, OK, OK, head() + BODY, OK]

    async def mixed(stream: trio.SocketStream) -> None:
        while await request_of(stream):
            await stream.send_all(answers.pop(0))

    async with serving(mixed) as (connections, came):
        lengths = [len((await ask(connections)).content) for _ in range(6)]
        assert lengths == [2, len(BODY), 2, 2, len(BODY), 2]
        assert len(came) == 1


@pytest.mark.parametrize("kept_bytes", [0, 200_000, len(BODY) - 1])
async def test_a_large_body_that_ends_early_is_no_answer(kept_bytes: int) -> None:
    async def breaking(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(head() + BODY[:kept_bytes])

    async with serving(breaking) as (connections, came):
        for expected in (1, 2):
            with pytest.raises(Unavailable, match=r"^ask: the connection broke: closed after \d+ of 3000001 bytes"):
                await ask(connections)
            assert len(came) == expected


async def test_what_comes_beyond_the_announced_length_is_not_taken_for_the_next_answer() -> None:
    async with serving(answering(head() + BODY + OK)) as (connections, came):
        for expected in (1, 2):
            assert (await ask(connections)).content == BODY
            assert len(came) == expected


async def test_a_large_body_may_be_the_last_of_its_connection() -> None:
    async with serving(answering(head(len(BODY), "Connection: foo, Close") + BODY)) as (connections, came):
        for expected in (1, 2):
            assert len((await ask(connections)).content) == len(BODY)
            assert len(came) == expected


async def test_a_body_in_chunks_and_one_that_is_larger_than_a_block_are_read_like_small_ones() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    async with serving(answering(chunked)) as (connections, _):
        reply = await ask(connections)
        assert (reply.placed, reply.body == BODY) == (None, True)
    huge = bytes(BLOCK_BYTES + 1)
    async with serving(answering(head(len(huge)) + huge)) as (connections, _):
        reply = await ask(connections)
        assert (reply.placed, len(reply.body)) == (None, len(huge))


async def test_a_large_body_may_take_longer_than_the_time_out_but_not_fall_silent() -> None:
    async def slow(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(head())
        for at in range(0, len(BODY), 300_000):
            await stream.send_all(BODY[at : at + 300_000])
            await trio.sleep(0.06)

    async with serving(slow, timeout_s=0.5) as (connections, _):
        began_s = trio.current_time()
        reply = await ask(connections)
        assert reply.content == BODY
        assert trio.current_time() - began_s > 0.5

    async def silent(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await stream.send_all(head() + BODY[:1_000_000])
        await trio.sleep_forever()

    async with serving(silent, timeout_s=0.1) as (connections, came):
        for expected in (1, 2):
            with pytest.raises(Unavailable, match=r"^ask: no answer within 0.1 s"):
                await ask(connections)
            assert len(came) == expected


async def test_the_rest_of_a_cancelled_large_body_is_not_taken_for_another_answer() -> None:
    begun, go_on = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        while await request_of(stream):
            if begun.is_set():
                await stream.send_all(OK)
                continue
            await stream.send_all(head() + BODY[:1_000_000])
            begun.set()
            await go_on.wait()
            await stream.send_all(BODY[1_000_000:])

    async with serving(slow) as (connections, came):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, connections)
            await begun.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        go_on.set()
        assert (await ask(connections)).body == b"ok"
        assert len(came) == 2


async def test_who_does_not_ask_for_it_gets_a_large_body_as_bytes() -> None:
    async with serving(answering(head() + BODY)) as (connections, _):
        reply = await connections.exchange("ask", "GET", "/", HEADERS)
        assert (reply.placed, reply.body == BODY) == (None, True)


async def test_a_large_body_may_be_taken_slowly_but_not_be_left_lying() -> None:
    body = bytes(48 << 20)  # more than the sockets of both sides hold

    async def slow(stream: trio.SocketStream) -> None:
        left = len(body) - len((await request_of(stream)).partition(b"\r\n\r\n")[2])
        pause_at = left
        while left:
            left -= len(await stream.receive_some(left))
            if left < pause_at - (4 << 20):
                pause_at = left
                await trio.sleep(0.2)
        await stream.send_all(OK)

    async with serving(slow, timeout_s=1.0) as (connections, came):
        began_s = trio.current_time()
        reply = await connections.exchange("send", "PUT", "/", HEADERS, body)
        assert reply.status == 200
        assert trio.current_time() - began_s > 1.0
        assert len(came) == 1

    async def deaf(stream: trio.SocketStream) -> None:
        await request_of(stream)
        await trio.sleep_forever()

    async with serving(deaf, timeout_s=0.1) as (connections, _):
        with pytest.raises(Unavailable, match=r"^send: no answer within 0.1 s"):
            await connections.exchange("send", "PUT", "/", HEADERS, body)
