"""To whom the login of a cluster is shown: to its peers, wherever registers say that a writer is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from s3vol.errors import Unavailable
from s3vol.store.ipfs.acquaintance import Acquaintance, host_of
from s3vol.store.ipfs.base import Cluster, Peer
from tests.support.ipfs_memory import MemoryCluster, Network

ADDRESSES = (
    "/ip4/10.0.0.2/tcp/9096/p2p/12D3Koo",
    "/ip6/fd00::2/tcp/9096/p2p/12D3Koo",
    "/dns4/node2.example/tcp/9096/p2p/12D3Koo",
)


class Own(MemoryCluster):
    """The user's own peer, which knows one other."""

    def __init__(self, url: str = "http://10.0.0.1:9094") -> None:
        network = Network(1)
        super().__init__(network, network.nodes[0])
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    async def peers(self, *, timeout_s: float) -> Sequence[Peer]:
        await self._call("cluster.peers")
        return [Peer("self", "self", "1.1.6"), Peer("other", "other", "1.1.6", addresses=ADDRESSES)]


async def met(own: Own, url: str, *, has_login: bool = True) -> bool:
    """Whether a client with the login is made for a URL."""
    made: list[str] = []

    def make(url: str) -> Cluster:
        made.append(url)
        return own

    return await Acquaintance(own, make, has_login=has_login).meet(url) is not None and made == [url]


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.2:9094",
        "http://10.0.0.2:9999",
        "https://10.0.0.2",
        "http://[fd00::2]:1",
        "http://NODE2.example:9094",
    ],
)
async def test_peers_of_the_cluster_are_asked_with_the_login(url: str) -> None:
    assert await met(Own(), url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.3:9094", "http://127.0.0.1:9094", "http://10.0.0.2@10.0.0.3", "", "x", "http://["]
)
async def test_others_are_not_asked_whatever_a_register_says(url: str) -> None:
    assert not await met(Own(), url)


async def test_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lookup(host: str, port: None) -> list[tuple[object, ...]]:
        await trio.lowlevel.checkpoint()
        if host == "unknown":
            raise OSError("no such name")
        return [(0, 0, 0, "", ("10.0.0.2" if host == "good" else "10.6.6.6", 0))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", lookup)
    assert [await met(Own(), f"http://{name}:9094") for name in ("good", "bad", "unknown")] == [True, False, False]


async def test_a_login_that_came_by_https_never_goes_by_http() -> None:
    assert not await met(Own("https://10.0.0.1:9094"), "http://10.0.0.2:9094")
    assert await met(Own("https://10.0.0.1:9094"), "https://10.0.0.2:9094")


async def test_without_a_login_everybody_is_asked() -> None:
    assert await met(Own(), "http://10.0.0.3:9094", has_login=False)


async def test_nobody_is_asked_while_our_own_peer_is_silent() -> None:
    own = Own()
    own.node.up = False
    with pytest.raises(Unavailable):
        await own.peers(timeout_s=1.0)
    assert not await met(own, "http://10.0.0.2:9094")


def test_the_host_of_a_multiaddress() -> None:
    assert [host_of(text) for text in ADDRESSES] == ["10.0.0.2", "fd00::2", "node2.example"]
    assert [host_of(text) for text in ("", "/", "/unix/tmp/x", "10.0.0.1")] == [""] * 4
