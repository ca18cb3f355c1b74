"""`s3vol doctor ipfs://VOLUME`: whether these daemons can keep what a mount promises.

Theory of operation. The daemons are asked; what they do not tell (which datastore Cluster uses) is read from
service.json where that file is this very peer's, which its identity.json proves; the peer may be on another machine,
and then it is said that nobody looked. Advice is a pure function of the facts. A problem is what makes a promise
impossible (acknowledged data lost in a crash, one Kubo filled and another one pinned) or lets strangers in.

Rejected: finding out by trying (a kill -9 of the daemon is what tells one datastore from another).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import trio

from s3vol.errors import Denied
from s3vol.store.edge import first_error
from s3vol.store.ipfs.base import Blocks, Cluster, KuboInfo, Peer, Pin, RepoStat
from s3vol.store.settings import IpfsSettings, Source

KUBO_OLDEST = (0, 26)  # pins have names since then
KUBO_TESTED = (0, 43)  # before: garbage collection beside `ipfs files` could block the daemon for good
CLUSTER_TESTED = (1, 1)
SAFE_DATASTORE = "leveldb"  # the only one of four that fsyncs; pebble, the default, lost 20 acknowledged pins of 20
SCAN_MAX_PINS = 500
FULL = 0.9  # StorageGCWatermark of Kubo: a daemon that collects by itself begins here
_TIMEOUT_S = 10.0
_ASKED_AT_ONCE = 8
_EXAMPLES = 3
_UNGUARDED = {9095: "the IPFS proxy (api.ipfsproxy)", 9097: "the pinning service API (api.pinsvcapi)"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. `datastore` is None where nobody could look; `open_rest`: Cluster's REST asks for no password."""

    volume: str
    kubo_url: str
    cluster_url: str
    kubo: KuboInfo
    repo: RepoStat
    peer: Peer
    peers: Sequence[Peer]
    datastore: str | None = None
    open_rest: bool = False
    unguarded_ports: Sequence[int] = ()
    pins_scanned: int = 0
    pins_total: int = 0
    under_replicated: Sequence[str] = field(default=())
    """Names of pins with fewer copies than they should have."""


def run(source: Source, settings: IpfsSettings, *, as_json: bool) -> int:
    """Print the report; returns 1 when there are problems. Raises what the daemons' clients raise."""
    try:
        facts = trio.run(_ask, source, settings)
    except ExceptionGroup as group:
        raise first_error(group) from None
    problems, advice = judge(facts)
    if as_json:
        print(json.dumps({**dataclasses.asdict(facts), "problems": problems, "advice": advice}, indent=2, default=str))
    else:
        print("\n".join(report(facts, problems, advice)))
    return 1 if problems else 0


async def _ask(source: Source, settings: IpfsSettings) -> Facts:
    # Imported here: their libraries take 0.3 s, and doctor is for other sources too.
    from s3vol.store.ipfs.cluster import ClusterPeer
    from s3vol.store.ipfs.mounting import clients

    blocks, cluster, _ = clients(settings)
    anonymous = ClusterPeer(settings.cluster)
    try:
        return await examine(source.bucket, blocks, cluster, anonymous)
    finally:
        for client in (blocks, cluster, anonymous):
            await client.aclose()


async def examine(
    volume: str, blocks: Blocks, cluster: Cluster, anonymous: Cluster, environment: Mapping[str, str] = os.environ
) -> Facts:
    """Ask both daemons. `anonymous` is the same peer without credentials. Raises what the clients raise."""
    peer = await cluster.identity(timeout_s=_TIMEOUT_S)
    peers = await cluster.peers(timeout_s=_TIMEOUT_S)
    pins = await cluster.records(f"s3vol/{volume}/", timeout_s=_TIMEOUT_S)
    scanned = pins[:SCAN_MAX_PINS]
    return Facts(
        volume=volume,
        kubo_url=blocks.url,
        cluster_url=cluster.url,
        kubo=await blocks.info(timeout_s=_TIMEOUT_S),
        repo=await blocks.stat(timeout_s=_TIMEOUT_S),
        peer=peer,
        peers=peers,
        datastore=await trio.to_thread.run_sync(datastore_of, peer.id, _folders(environment)),
        open_rest=await _answers(anonymous),
        unguarded_ports=[port for port in _UNGUARDED if await _listens(_host(cluster.url), port)],
        pins_scanned=len(scanned),
        pins_total=len(pins),
        under_replicated=await _short_of_copies(cluster, scanned, len(peers)),
    )


async def _answers(anonymous: Cluster) -> bool:
    try:
        await anonymous.identity(timeout_s=_TIMEOUT_S)
    except Denied:
        return False
    return True


async def _listens(host: str, port: int) -> bool:
    with trio.move_on_after(1.0):
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError:
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False


async def _short_of_copies(cluster: Cluster, pins: Sequence[Pin], peers: int) -> list[str]:
    short: list[str] = []
    asking = trio.CapacityLimiter(_ASKED_AT_ONCE)

    async def ask(pin: Pin) -> None:
        async with asking:
            rows = await cluster.status(pin.cid, timeout_s=_TIMEOUT_S)
        wanted = pin.replication_min if pin.replication_min > 0 else peers
        if sum(row.status == "pinned" for row in rows) < wanted:
            short.append(pin.name)

    async with trio.open_nursery() as nursery:
        for pin in pins:
            nursery.start_soon(ask, pin)
    return sorted(short)


def _folders(environment: Mapping[str, str]) -> list[Path]:
    home = Path(environment.get("HOME") or "/root")
    given = environment.get("IPFS_CLUSTER_PATH")
    return [Path(given)] if given else [home / ".ipfs-cluster"]


def datastore_of(peer_id: str, folders: Iterable[Path]) -> str | None:
    """The datastore that this peer's service.json names, None where no folder is that peer's."""
    for folder in folders:
        try:
            identity = json.loads((folder / "identity.json").read_text())
            service = json.loads((folder / "service.json").read_text())
        except (OSError, ValueError):
            continue
        if identity.get("id") == peer_id:
            return ", ".join(service.get("datastore", {})) or None
    return None


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _version(text: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _is_private(address: str) -> bool:
    """True for a multiaddress of this machine only: loopback or a unix socket."""
    parts = address.split("/")
    if "unix" in parts[:2]:
        return True
    return len(parts) > 2 and _is_loopback(parts[2])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _exposed(facts: Facts, setting: str) -> list[str]:
    return [word for word in facts.kubo.settings.get(setting, "").split(",") if word and not _is_private(word)]


@dataclass(frozen=True, slots=True)
class Problem:
    """A promise that cannot be kept."""

    line: str


@dataclass(frozen=True, slots=True)
class Advice:
    """Worth knowing."""

    line: str


def judge(facts: Facts) -> tuple[list[str], list[str]]:
    """Problems and advice."""
    rules = (_judge_durability, _judge_versions, _judge_exposure, _judge_peers, _judge_pins)
    found = [finding for rule in rules for finding in rule(facts)]
    problems = [finding.line for finding in found if isinstance(finding, Problem)]
    return problems, [finding.line for finding in found if isinstance(finding, Advice)]


def _judge_durability(facts: Facts) -> Iterator[Problem | Advice]:
    settings = facts.kubo.settings
    if facts.datastore is None:
        yield Advice(
            f"nobody could look which datastore Cluster uses (the service.json of {facts.peer.id} is not here, or "
            f"IPFS_CLUSTER_PATH names another folder): it must be {SAFE_DATASTORE} on every peer"
        )
    elif facts.datastore != SAFE_DATASTORE:
        yield Problem(
            f"Cluster's datastore is {facts.datastore}, which loses acknowledged pins when the peer is killed, and "
            "then heads go back on all nodes: `ipfs-cluster-service state export`, "
            f"`init --datastore {SAFE_DATASTORE}`, `state import`, on every peer"
        )
    if settings.get("sync") == "false":
        yield Problem(
            "Kubo does not fsync blocks: a power loss takes what fsync() promised; set `sync` to true at the flatfs in "
            "Datastore.Spec of Kubo's config and restart it"
        )
    elif settings.get("sync") != "true":
        kind = settings.get("datastore") or "of an unknown kind"
        yield Advice(f"Kubo's datastore is {kind}: whether it fsyncs blocks is not known here")
    if facts.repo.max_bytes and facts.repo.used_bytes > FULL * facts.repo.max_bytes:
        yield Advice(
            f"the repository holds {facts.repo.used_bytes} bytes of a StorageMax of {facts.repo.max_bytes}: Kubo must "
            "run without --enable-gc (s3vol collects); raise StorageMax or collect"
        )


def _judge_versions(facts: Facts) -> Iterator[Problem | Advice]:
    kubo = _version(facts.kubo.version)
    if kubo < KUBO_OLDEST:
        yield Problem(f"Kubo {facts.kubo.version} is too old: 0.26 is the oldest that can do what s3vol asks")
    elif kubo < KUBO_TESTED:
        yield Advice(f"Kubo {facts.kubo.version} is older than 0.43, with which s3vol is tested")
    if _version(facts.peer.version) < CLUSTER_TESTED:
        yield Advice(f"IPFS-Cluster {facts.peer.version} is older than 1.1, with which s3vol is tested")
    versions = sorted({peer.version for peer in facts.peers if peer.version})
    if len(versions) > 1:
        yield Advice(f"the peers run different versions of IPFS-Cluster: {', '.join(versions)}")


def _judge_exposure(facts: Facts) -> Iterator[Problem | Advice]:
    settings = facts.kubo.settings
    if settings.get("api_authorizations") == "true":
        yield Problem(
            "Kubo asks for credentials (API.Authorizations), which IPFS-Cluster cannot give: nothing will be pinned; "
            "remove them and protect the RPC by loopback"
        )
    for address in _exposed(facts, "api"):
        yield Problem(f"Kubo's RPC listens on {address}: who reaches it owns this node's data; bind it to 127.0.0.1")
    for address in _exposed(facts, "gateway"):
        yield Advice(f"Kubo's gateway listens on {address}: who reaches it may read every file of the volume")
    if facts.open_rest:
        line = "Cluster's REST asks for no password: set api.restapi.basic_auth_credentials in service.json"
        yield Advice(line) if _is_loopback(_host(facts.cluster_url)) else Problem(line)
    for port in facts.unguarded_ports:
        yield Advice(f"port {port} is open, {_UNGUARDED[port]}: s3vol does not use it; remove it from service.json")
    if settings.get("routing") not in ("none", ""):
        yield Advice("Kubo's Routing.Type is not `none`: without a swarm key, blocks are announced to the whole world")


def _judge_peers(facts: Facts) -> Iterator[Problem | Advice]:
    if not facts.peer.kubo_id:
        yield Problem("Cluster does not reach its Kubo: nothing is pinned here until it does")
    elif facts.peer.kubo_id != facts.kubo.peer_id:
        yield Problem(
            f"this Cluster peer pins on another Kubo ({facts.peer.kubo_id}) than kubo= names ({facts.kubo.peer_id}): "
            "name the two that belong together"
        )
    for peer in facts.peers:
        if peer.error:
            yield Problem(f"peer {peer.name or peer.id} does not answer: {peer.error}")
        elif not peer.kubo_id and peer.id != facts.peer.id:
            yield Problem(f"peer {peer.name or peer.id} does not reach its Kubo")
    if len(facts.peers) == 1:
        yield Advice("this peer is alone: there is one copy of everything")


def _judge_pins(facts: Facts) -> Iterator[Problem | Advice]:
    short = facts.under_replicated
    if short:
        yield Problem(
            f"{len(short)} pins have fewer copies than they should, for example {', '.join(short[:_EXAMPLES])}: look "
            "at `ipfs-cluster-ctl status`, then `ipfs-cluster-ctl recover`; those of the last seconds are on their way"
        )
    if facts.pins_scanned < facts.pins_total:
        yield Advice(f"{facts.pins_total - facts.pins_scanned} of {facts.pins_total} pins were not looked at")


def report(facts: Facts, problems: Sequence[str], advice: Sequence[str]) -> list[str]:
    """Lines for people."""
    settings = facts.kubo.settings
    used = f"{facts.repo.used_bytes} bytes in {facts.repo.blocks} blocks, StorageMax {settings.get('storage_max', '?')}"
    names = ", ".join(peer.name or peer.id for peer in facts.peers)
    copies = f"{facts.pins_scanned} looked at, {len(facts.under_replicated)} with too few copies"
    lines = [
        f"source       ipfs://{facts.volume}",
        f"kubo         {facts.kubo_url} ({facts.kubo.version}, {facts.kubo.peer_id})",
        f"blocks       {settings.get('datastore') or 'unknown'}, sync {settings.get('sync') or 'unknown'}; {used}",
        f"cluster      {facts.cluster_url} ({facts.peer.version}, {facts.peer.name or facts.peer.id})",
        f"pinset       {facts.datastore or 'datastore not known'}; {facts.pins_total} pins of this volume, {copies}",
        f"peers        {len(facts.peers)}: {names}",
    ]
    lines += [f"PROBLEM      {line}" for line in problems]
    lines += [f"advice       {line}" for line in advice]
    return [*lines, "result       " + ("problems found" if problems else "ok")]
