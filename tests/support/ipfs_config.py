"""What the configurations of the daemons of tests/support/ipfs.py say: those that `init` wrote, changed.

Settings are those that docs ask of users: leveldb for Cluster (its default loses acknowledged pins on kill -9), CRDT
consensus (raft brings nothing and stops in the minority half), flatfs with `sync`, no proxy and no pinning service API,
passwords on REST, no `--enable-gc`. What is shortened is time: metrics, pings and rebroadcasts come every few seconds,
so that a start takes two seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.ipfs import Node

USER = "s3vol"
PASSWORD = "s3vol-test-secret"

RPC_PORT = 5001
SWARM_PORT = 4001
CLUSTER_PORT = 9096
REST_PORT = 9094


def _tcp(host: str, port: int) -> str:
    return f"/ip4/{host}/tcp/{port}"


def kubo_config(config: dict[str, Any], node: Node, others: list[Node]) -> dict[str, Any]:
    """Of a node that knows `others`."""
    config["Addresses"].update(API=_tcp(node.rpc_host, RPC_PORT), Gateway=[], Swarm=[_tcp(node.address, SWARM_PORT)])
    config["Routing"] = {"Type": "none"}
    config["Provide"] = {"Enabled": False}
    # a private network is TCP only
    config["Swarm"]["Transports"]["Network"] = dict.fromkeys(
        ("QUIC", "WebTransport", "WebRTCDirect", "Websocket"), False
    )
    config["Peering"] = {"Peers": [{"ID": o.kubo_id, "Addrs": [_tcp(o.address, SWARM_PORT)]} for o in others]}
    config["Datastore"]["Spec"]["mounts"][0]["sync"] = True
    return config


def cluster_config(config: dict[str, Any], node: Node, others: list[Node], disable_repinning: bool) -> dict[str, Any]:
    """Of a node that knows `others`."""
    config["cluster"].update(
        peername=f"node{node.number}",
        listen_multiaddress=[_tcp(node.address, CLUSTER_PORT)],
        mdns_interval="0s",
        monitor_ping_interval="1s",
        pubsub={**config["cluster"]["pubsub"], "heartbeat_interval": "1s"},  # else peers may be deaf for the first 10 s
        disable_repinning=disable_repinning,
        peer_addresses=[f"{_tcp(o.address, CLUSTER_PORT)}/p2p/{o.peer_id}" for o in others],
    )
    config["consensus"]["crdt"].update(trusted_peers=["*"], rebroadcast_interval="5s")
    config["ipfs_connector"]["ipfshttp"].update(
        node_multiaddress=_tcp(node.rpc_host, RPC_PORT), connect_swarms_delay="1s"
    )
    restapi = config["api"]["restapi"]
    restapi.update(http_listen_multiaddress=_tcp(node.address, REST_PORT), basic_auth_credentials={USER: PASSWORD})
    config["api"] = {"restapi": restapi}
    for informer in ("disk", "tags"):
        config["informer"][informer]["metric_ttl"] = "4s"
    return config
