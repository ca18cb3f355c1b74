"""What doctor says of an IPFS volume: one line for each finding, and none for a swarm that is as it should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3vol.commands.doctor_ipfs import Facts, datastore_of, judge, report
from s3vol.store.ipfs.base import KuboInfo, Peer, RepoStat

SETTINGS = {
    "datastore": "flatfs",
    "sync": "true",
    "storage_max": "10GB",
    "gc_period": "1h",
    "api_authorizations": "false",
    "api": "/ip4/127.0.0.1/tcp/5001,/unix/run/kubo.sock",
    "gateway": "",
    "routing": "none",
}
PEERS = [Peer(f"id{number}", f"node{number}", "1.1.6", f"kubo{number}") for number in range(3)]
GOOD = Facts(
    volume="docs",
    kubo_url="http://127.0.0.1:5001",
    cluster_url="http://10.0.0.1:9094",
    kubo=KuboInfo("kubo0", "0.43.0", SETTINGS),
    repo=RepoStat(10, 1000, 10_000_000_000),
    peer=PEERS[0],
    peers=PEERS,
    datastore="leveldb",
    pins_scanned=5,
    pins_total=5,
)


def kubo(version: str = "0.43.0", peer_id: str = "kubo0", **settings: str) -> Facts:
    """The good swarm with another Kubo."""
    return replace(GOOD, kubo=KuboInfo(peer_id, version, {**SETTINGS, **settings}))


def test_a_swarm_as_it_should_be_gives_no_finding() -> None:
    assert judge(GOOD) == ([], [])
    assert report(GOOD, [], [])[-1] == "result       ok"


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (replace(GOOD, datastore="pebble"), "datastore is pebble, which loses acknowledged pins"),
        (kubo(sync="false"), "does not fsync blocks"),
        (kubo(version="0.25.0"), "Kubo 0.25.0 is too old"),
        (kubo(api_authorizations="true"), "asks for credentials"),
        (kubo(api="/ip4/0.0.0.0/tcp/5001"), "RPC listens on /ip4/0.0.0.0/tcp/5001"),
        (kubo(api="/dns/kubo/tcp/5001"), "RPC listens on /dns/kubo"),
        (kubo(peer_id="other"), "pins on another Kubo"),
        (replace(GOOD, open_rest=True), "asks for no password"),
        (replace(GOOD, peer=replace(PEERS[0], kubo_id="")), "does not reach its Kubo"),
        (replace(GOOD, peers=[*PEERS, Peer("id3", "node3", "1.1.6", error="dial backoff")]), "node3 does not answer"),
        (replace(GOOD, peers=[*PEERS, Peer("id3", "node3", "1.1.6")]), "node3 does not reach its Kubo"),
        (replace(GOOD, under_replicated=["s3vol/docs/a", "b", "c", "d"]), "4 pins have fewer copies"),
    ],
)
def test_what_breaks_a_promise_is_a_problem(facts: Facts, line: str) -> None:
    problems, advice = judge(facts)
    assert len(problems) == 1
    assert line in problems[0]
    assert advice == []
    assert report(facts, problems, advice)[-1] == "result       problems found"


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (replace(GOOD, datastore=None), "nobody could look which datastore"),
        (kubo(datastore="badgerds", sync=""), "datastore is badgerds: whether it fsyncs"),
        (kubo(version="0.42.1"), "older than 0.43"),
        (kubo(gateway="/ip4/0.0.0.0/tcp/8080"), "gateway listens on"),
        (kubo(routing="auto"), "Routing.Type is not `none`"),
        (replace(GOOD, open_rest=True, cluster_url="http://127.0.0.1:9094"), "asks for no password"),
        (replace(GOOD, unguarded_ports=[9097]), "port 9097 is open, the pinning service"),
        (replace(GOOD, peer=PEERS[0], peers=PEERS[:1]), "this peer is alone"),
        (replace(GOOD, peers=[*PEERS, Peer("id3", "node3", "1.0.8", "kubo3")]), "different versions"),
        (replace(GOOD, repo=RepoStat(10, 95, 100)), "the repository holds 95 bytes"),
        (replace(GOOD, pins_total=9), "4 of 9 pins were not looked at"),
    ],
)
def test_what_is_worth_knowing_is_advice(facts: Facts, line: str) -> None:
    problems, advice = judge(facts)
    assert problems == []
    assert len(advice) == 1
    assert line in advice[0]


def write_peer(folder: Path, service: Any, peer_id: str = "id0") -> Path:
    folder.mkdir()
    (folder / "identity.json").write_text(json.dumps({"id": peer_id}))
    (folder / "service.json").write_text(service if isinstance(service, str) else json.dumps(service))
    return folder


def test_the_datastore_is_read_where_the_files_are_this_peers(tmp_path: Path) -> None:
    other = write_peer(tmp_path / "other", {"datastore": {"pebble": {}}}, peer_id="id9")
    broken = write_peer(tmp_path / "broken", "{")
    ours = write_peer(tmp_path / "ours", {"datastore": {"leveldb": {}}})
    assert datastore_of("id0", [tmp_path / "none", other, broken, ours]) == "leveldb"
    assert datastore_of("id0", [other, broken]) is None
