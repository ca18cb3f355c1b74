"""The rig itself: what tests of crashes and partitions rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.ipfs import ApiError, Node, Swarm
from tests.support.minio import wait_for
from tests.support.netns import Machine, ip

pytestmark = pytest.mark.ipfs


def post(node: Node, body: bytes, name: str) -> str:
    """A block of this node, pinned everywhere; its CID."""
    cid = node.add_block(body)
    node.rest("POST", f"/pins/{cid}?name={name}")
    return cid


def named(node: Node) -> set[str]:
    """Names in the pinset as this node has it."""
    return {pin["name"] for pin in node.rest("GET", "/allocations")}


def test_the_test_process_has_loopback_only() -> None:
    interfaces = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    names = {line.split(":")[0].strip() for line in interfaces}
    assert {name for name in names if not name.startswith("wire")} == {"lo"}


def test_a_block_of_one_node_comes_to_all_and_survives_a_crash_of_its_writer(swarm: Swarm) -> None:
    cid = post(swarm.nodes[0], b"one", "crash")
    wait_for(lambda: swarm.nodes[1].pinned(cid) == 3, 20, "three copies")
    swarm.nodes[0].kill()
    assert swarm.nodes[2].rpc("block/get", cid, offline="true") == b"one"
    swarm.nodes[0].start()
    swarm.await_ready()
    assert "crash" in named(swarm.nodes[0])
    assert swarm.nodes[0].rpc("block/get", cid, offline="true") == b"one"


def test_rest_asks_for_a_password(swarm: Swarm) -> None:
    with pytest.raises(ApiError, match="401"):
        swarm.nodes[0].rest("GET", "/id", login="s3vol:wrong")


@pytest.mark.soak  # test_swarm.py has a partition through the kernel
def test_halves_that_are_cut_off_write_on_and_rejoin() -> None:
    with Swarm(3, apart=True) as swarm:
        with swarm.cut([0], [1, 2]):
            lonely = post(swarm.nodes[0], b"lonely", "left")
            common = post(swarm.nodes[1], b"common", "right")
            wait_for(lambda: "right" in named(swarm.nodes[2]), 20, "the pin of the other in this half")
            with pytest.raises(ApiError):
                swarm.nodes[2].rpc("block/get", lonely, timeout="300ms")
            assert "right" not in named(swarm.nodes[0])
            assert "left" not in named(swarm.nodes[1])
        wait_for(lambda: all({"left", "right"} <= named(node) for node in swarm.nodes), 60, "one pinset")
        wait_for(lambda: all(swarm.nodes[1].pinned(cid) == 3 for cid in (lonely, common)), 60, "copies everywhere")


def test_nothing_is_left_of_a_swarm_whose_test_failed() -> None:
    pids: list[int] = []
    wires: list[str] = []

    def fail(swarm: Swarm) -> None:
        pids.extend(daemon.pid for node in swarm.nodes for daemon in (node.kubo, node.cluster))
        wires.extend(node.machine.wire for node in swarm.nodes if isinstance(node.machine, Machine))
        raise RuntimeError("a test fails")

    swarm = Swarm(1, apart=True)
    with pytest.raises(RuntimeError), swarm:
        fail(swarm)
    assert not swarm.folder.exists()
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []
    for wire in wires:
        with pytest.raises(AssertionError, match="does not exist"):
            ip("link", "show", wire)
