"""The clients of the daemons without daemons: what they refuse, and answers that real daemons give seldom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import cbrrr
import pytest
import trio

from s3vol.errors import Denied, NoSpace, NotFound, Rejected, S3volError, Unavailable, UsageError
from s3vol.store.ipfs import car
from s3vol.store.ipfs.base import Block, PinOptions
from s3vol.store.ipfs.cid import raw_cid
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.kubo import Kubo, multiaddr, settings

CID = raw_cid(b"x")
WAIT_S = 30.0
Canned = Callable[[bytes], str]


@pytest.fixture
async def canned(nursery: trio.Nursery) -> AsyncIterator[Canned]:
    """`canned(answer)` is the address of a server that gives this answer to every request and hangs up."""
    scope = trio.CancelScope()

    async def answer(answer: bytes, stream: trio.SocketStream) -> None:
        async with stream:
            got = b""
            while not got.endswith((b"\r\n\r\n", b"0\r\n\r\n")) or b"\r\n\r\n" not in got:
                got += await stream.receive_some()
            await stream.send_all(answer)

    listeners: list[trio.SocketListener] = []

    async def serve(listener: trio.SocketListener, body: bytes) -> None:
        with scope:
            await trio.serve_listeners(partial(answer, body), [listener])

    opened = await trio.open_tcp_listeners(0, host="127.0.0.1")

    def start(body: bytes) -> str:
        (listener,) = opened
        listeners.append(listener)
        nursery.start_soon(serve, listener, body)
        return f"http://127.0.0.1:{listener.socket.getsockname()[1]}"

    yield start
    scope.cancel()
    for listener in opened:
        await listener.aclose()


def http(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def chunked(lines: bytes, *, trailer: str = "") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Stream-Error\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\nX-Stream-Error: %b\r\n\r\n" % (len(lines), lines, trailer.encode())


ROW = (
    b'{"cid":"bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe","name":"n","metadata":null,"allocations":null,\
"replication_factor_min":-1,"replication_factor_max":-1}\n'
)
FOREIGN = b'{"cid":"QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn","name":"theirs"}\n'


async def test_a_listing_is_believed_when_its_trailer_says_that_it_is_whole(canned: Canned) -> None:
    peer = ClusterPeer(canned(chunked(ROW + FOREIGN)))
    (record,) = await peer.records("n", timeout_s=WAIT_S)
    assert (record.cid, record.metadata, record.allocations) == (CID, {}, ())
    await peer.aclose()


async def test_a_listing_that_breaks_off_is_no_short_listing(canned: Canned) -> None:
    peer = ClusterPeer(canned(chunked(ROW, trailer="datastore closed")))
    with pytest.raises(Unavailable, match="broken off: datastore closed"):
        await peer.records("n", timeout_s=WAIT_S)
    await peer.aclose()


async def test_a_connection_that_ends_within_a_listing_is_unavailable(canned: Canned) -> None:
    peer = ClusterPeer(canned(chunked(ROW)[:-40]))
    with pytest.raises(Unavailable):
        await peer.records("n", timeout_s=WAIT_S)
    await peer.aclose()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        ("404 Not Found", b'{"code":404,"message":"pin is not part of the pinset"}', NotFound),
        ("404 Not Found", b"<html>nginx</html>", Rejected),
        ("401 Unauthorized", b'{"code":401,"message":"Unauthorized"}', Denied),
        ("400 Bad Request", b'{"code":400,"message":"error decoding Cid"}', Rejected),
        ("500 Internal Server Error", b'{"code":500,"message":"not enough peers"}', Unavailable),
        ("502 Bad Gateway", b"<html>nginx</html>", Unavailable),
        ("307 Temporary Redirect", b"", Rejected),
        ("200 OK", b'{"cut', Unavailable),
    ],
)
async def test_answers_of_cluster_become_kinds(
    canned: Canned, status: str, body: bytes, kind: type[S3volError]
) -> None:
    peer = ClusterPeer(canned(http(status, body)))
    with pytest.raises(kind) as caught:
        await peer.status(CID, timeout_s=WAIT_S)
    assert type(caught.value) is kind
    await peer.aclose()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (
            "500 Internal Server Error",
            b'{"Message":"write x: no space left on device","Code":0,"Type":"error"}',
            NoSpace,
        ),
        ("500 Internal Server Error", b'{"Message":"context deadline exceeded","Code":0,"Type":"error"}', Unavailable),
        ("500 Internal Server Error", b'{"Message":"something new","Code":0,"Type":"error"}', Unavailable),
        ("400 Bad Request", b'{"Message":"argument","Code":1,"Type":"error"}', Rejected),
        ("403 Forbidden", b"403 - Forbidden", Denied),
        ("404 Not Found", b"404 page not found", Rejected),
        ("200 OK", b'{"cut', Unavailable),
    ],
)
async def test_answers_of_kubo_become_kinds(canned: Canned, status: str, body: bytes, kind: type[S3volError]) -> None:
    kubo = Kubo(canned(http(status, body)))
    with pytest.raises(kind) as caught:
        await kubo.pins(timeout_s=WAIT_S)
    assert type(caught.value) is kind
    await kubo.aclose()


@pytest.mark.parametrize(
    "body",
    [
        b'{"Root":{"Cid":{"/":"%s"},"PinErrorMsg":"ipld: could not find bafy"}}\n',
        b'{"Root":{"Cid":{"/":"bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"},"PinErrorMsg":""}}\n',
        b"",
    ],
)
async def test_an_import_is_believed_only_when_it_names_the_pinned_root(canned: Canned, body: bytes) -> None:
    kubo = Kubo(canned(http("200 OK", body)))
    with pytest.raises(Unavailable):
        await kubo.load([Block(CID, b"x")], CID, timeout_s=WAIT_S)
    await kubo.aclose()


async def test_an_error_within_garbage_collection_is_an_error(canned: Canned) -> None:
    kubo = Kubo(canned(http("200 OK", b'{"Key":{"/":"a"}}\n{"Error":"permission denied"}\n')))
    with pytest.raises(Unavailable, match="permission denied"):
        await kubo.collect(timeout_s=WAIT_S)
    await kubo.aclose()


async def test_a_body_that_ends_early_is_unavailable(canned: Canned) -> None:
    kubo = Kubo(canned(http("200 OK", b"x" * 100)[:-50]))
    with pytest.raises(Unavailable):
        await kubo.get(CID, timeout_s=WAIT_S)
    await kubo.aclose()


async def test_metadata_beside_an_update_are_refused() -> None:
    peer = ClusterPeer("http://127.0.0.1:9094")
    with pytest.raises(Rejected, match="drops metadata"):
        await peer.pin(CID, PinOptions("n", {"a": "1"}, update=CID), timeout_s=WAIT_S)
    await peer.aclose()


async def test_metadata_beyond_an_address_line_are_refused() -> None:
    peer = ClusterPeer("http://127.0.0.1:9094")
    with pytest.raises(Rejected):
        await peer.pin(CID, PinOptions("n", {"a": "1" * 70_000}), timeout_s=WAIT_S)
    await peer.aclose()


@pytest.mark.parametrize("url", ["", "127.0.0.1:9094", "ftp://h", "http://", "http://h:port", "http://user:secret@h"])
def test_an_address_of_no_use_is_named_and_shows_no_password(url: str) -> None:
    with pytest.raises(UsageError, match=r"cluster=.*give the REST address") as caught:
        ClusterPeer(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match=r"kubo=.*give the address"):
        Kubo(url)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:5001", "/ip4/127.0.0.1/tcp/5001/http"),
        ("http://kubo", "/dns/kubo/tcp/5001/http"),
        ("https://[::1]:443/", "/ip6/::1/tcp/443/https"),
    ],
)
def test_kubo_is_addressed_in_the_words_of_its_library(url: str, address: str) -> None:
    assert multiaddr(url) == address


@pytest.mark.parametrize(
    ("spec", "kind", "sync"),
    [
        ({"type": "flatfs", "sync": False}, "flatfs", "false"),
        ({"type": "measure", "child": {"type": "flatfs", "sync": True}}, "flatfs", "true"),
        ({"mounts": [{"mountpoint": "/"}, {"mountpoint": "/blocks", "child": {"type": "flatfs"}}]}, "flatfs", "false"),
        ({"type": "badgerds", "syncWrites": True}, "badgerds", ""),
        ({}, "", ""),
    ],
)
def test_the_datastore_of_blocks_is_found_in_the_configuration(spec: object, kind: str, sync: str) -> None:
    found = settings({"Datastore": {"Spec": spec}})
    assert (found["datastore"], found["sync"]) == (kind, sync)


def test_an_archive_is_a_header_and_blocks_with_their_lengths() -> None:
    blocks = [Block(raw_cid(body), body) for body in (b"", b"small", b"x" * 200, b"y" * (1 << 20))]
    whole = b"".join(car.archive(blocks, blocks[-1].cid))

    def varint(offset: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = whole[offset]
            value |= (byte & 0x7F) << shift
            offset, shift = offset + 1, shift + 7
            if byte < 0x80:
                return value, offset

    length, offset = varint(0)
    assert cbrrr.decode_dag_cbor(whole[offset : offset + length]) == {
        "roots": [cbrrr.CID(blocks[-1].cid)],
        "version": 1,
    }
    offset += length
    for block in blocks:
        length, offset = varint(offset)
        assert whole[offset : offset + length] == block.cid + block.body
        offset += length
    assert offset == len(whole)


def test_an_archive_comes_in_few_pieces_and_copies_no_large_body() -> None:
    small = [Block(raw_cid(b"%d" % number), b"%d" % number) for number in range(1000)]
    large = Block(raw_cid(b"l"), b"l" * (1 << 20))
    pieces = list(car.archive([*small, large], large.cid))
    assert len(pieces) <= 4
    assert any(piece is large.body for piece in pieces)
