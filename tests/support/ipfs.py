"""Real Kubo and IPFS-Cluster daemons for tests: N pairs on a private network, started, killed, cut off and rejoined.

Theory of operation. A `Node` is one Kubo and one Cluster peer in a folder of their own; a `Swarm` is N nodes that know
each other's addresses and share a swarm key, so that no order of starting matters. Everything is in network namespaces
(netns.py): the test process moves into one that has only `lo` before the first test. Two ways to place nodes there:

* beside the test process, each on a loopback address of its own: the test reaches every API with ordinary clients, so
  stores and clients are tested inside the test process;
* `apart`, each on a machine of its own: APIs that have to be protected are on the machine's own loopback, as on real
  hosts, and `s3vol mount` is started there by the prefix `enter`, in a process of its own. The test process reaches
  what real nodes show each other (Cluster's REST), and Kubo by `Node.rpc`, which enters the machine for one request.

Daemons end with the test process, however it ends (setpriv --pdeathsig), and are killed by their own process ids.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from tests.support import ipfs_binaries
from tests.support.ipfs_config import PASSWORD, REST_PORT, RPC_PORT, USER, cluster_config, kubo_config
from tests.support.minio import wait_for
from tests.support.netns import Host, Machine, cut

T = TypeVar("T")

# A healthy start of three nodes takes 3 s. On a machine under load a peer may not reach another in the 3 s that Cluster
# tries it, and it tries again only every 30 s.
START_S = 120.0
END_S = 20.0
_GOSSIP_S = 20.0  # a record comes to all in 50 ms, on a machine under load in 700
_STARTS = 3
_CALL_S = 30.0
_METRICS = ("ping", "freespace", "tag:group")  # without one of these a peer gets no pin
_subnets = itertools.count(1)


class Daemon:
    """One program: started, stopped, killed. What it printed is in `log`."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._environment = dict(environment)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running daemon's process id."""
        assert self._process is not None, f"{self._command[-2:]} is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """True between start and end. Raises when the daemon ended by itself."""
        if self._process is None:
            return False
        status = self._process.poll()
        assert status is None, f"{self._command} ended with {status}: {self.log.read_text(errors='replace')[-2000:]}"
        return True

    def start(self) -> None:
        """Start the process; does not wait until it serves."""
        assert self._process is None, f"{self._command[-2:]} is running already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Nothing when it is not running."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_S)


class Node:
    """A Kubo and its Cluster peer. `machine` is None beside the test process."""

    def __init__(self, number: int, folder: Path, address: str, machine: Host | None, *, open_rpc: bool) -> None:
        self.number = number
        self.folder = folder
        self.address = address
        self.machine = machine
        # On a machine of its own Kubo's RPC is on that machine's loopback, where nothing else reaches it.
        self.rpc_host = "127.0.0.1" if machine and not open_rpc else address
        self.peer_id = ""
        """Of the Cluster peer."""
        self.kubo_id = ""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IPFS_", "CLUSTER_"))}
        self._environment = {
            **kept,
            "HOME": str(folder),
            "IPFS_PATH": str(folder / "kubo"),
            "IPFS_CLUSTER_PATH": str(folder / "cluster"),
            "IPFS_TELEMETRY": "off",
            "LIBP2P_FORCE_PNET": "1",  # without a swarm key a daemon refuses to start
            "GOLOG_LOG_LEVEL": "error",
        }
        self.kubo = self._daemon(ipfs_binaries.KUBO, "kubo.log")
        self.cluster = self._daemon(ipfs_binaries.CLUSTER, "cluster.log")

    def _daemon(self, program: ipfs_binaries.Program, log: str) -> Daemon:
        bound_to_us = ["setpriv", "--pdeathsig", "KILL", "--"]
        command = [*self.enter, *bound_to_us, ipfs_binaries.ensure(program), "daemon"]
        return Daemon(command, self._environment, self.folder / log)

    @property
    def enter(self) -> list[str]:
        """The beginning of a command that runs where this node is."""
        return self.machine.enter if self.machine else []

    def move(self, machine: Host) -> None:
        """Be on another machine of the same address, with all that was written. Nothing runs meanwhile."""
        assert machine.address == self.address
        self.machine = machine
        self.kubo = self._daemon(ipfs_binaries.KUBO, "kubo.log")
        self.cluster = self._daemon(ipfs_binaries.CLUSTER, "cluster.log")

    @property
    def kubo_url(self) -> str:
        """Kubo's RPC, as a program on this node's machine names it."""
        return f"http://{self.rpc_host}:{RPC_PORT}"

    @property
    def cluster_url(self) -> str:
        """Cluster's REST, as any node names it; without credentials."""
        return f"http://{self.address}:{REST_PORT}"

    def initialise(self, swarm_key: str, secret: str) -> list[subprocess.Popen[bytes]]:
        """Begin to make both repositories; returns the processes that do it (Cluster's sleeps for a second)."""
        repository = self.folder / "kubo"
        repository.mkdir(parents=True)
        (repository / "swarm.key").write_text(f"/key/swarm/psk/1.0.0/\n/base16/\n{swarm_key}\n")
        environment = {**self._environment, "CLUSTER_SECRET": secret}
        kubo, cluster = ipfs_binaries.ensure(ipfs_binaries.KUBO), ipfs_binaries.ensure(ipfs_binaries.CLUSTER)
        commands = (
            [kubo, "init", "--profile=test,unixfs-v1-2025"],
            [cluster, "init", "--consensus", "crdt", "--datastore", "leveldb"],
        )
        with (self.folder / "init.log").open("ab") as log:
            return [subprocess.Popen(words, stdout=log, stderr=log, env=environment) for words in commands]

    def read_identity(self) -> None:
        """Take the ids that `initialise` has made."""
        self.kubo_id = _load(self.folder / "kubo/config")["Identity"]["PeerID"]
        self.peer_id = _load(self.folder / "cluster/identity.json")["id"]

    def configure(self, others: list[Node], *, disable_repinning: bool) -> None:
        """Write both configurations: addresses, the other nodes', and what is said at the top of this file."""
        path = self.folder / "kubo/config"
        path.write_text(json.dumps(kubo_config(_load(path), self, others)))
        path = self.folder / "cluster/service.json"
        path.write_text(json.dumps(cluster_config(_load(path), self, others, disable_repinning)))

    def start(self) -> None:
        """Start what is not running; `Swarm.await_ready` waits."""
        for daemon in (self.kubo, self.cluster):
            if not daemon.running:
                daemon.start()

    def kill(self) -> None:
        """SIGKILL for both: the crash of the daemons. What they wrote stays."""
        self.kubo.kill()
        self.cluster.kill()

    def wipe(self) -> None:
        """Kill both, and delete their repositories."""
        self.kill()
        for repository in ("kubo", "cluster"):
            shutil.rmtree(self.folder / repository)

    def stop(self) -> None:
        """SIGTERM for both."""
        self.cluster.stop()
        self.kubo.stop()

    def _call(self, work: Callable[[], T]) -> T:
        return self.machine.call(work) if self.machine else work()

    def rpc(self, command: str, *words: str, **options: str) -> bytes:
        """One request to Kubo: `rpc("block/stat", cid, offline="true")`. Raises ApiError, OSError."""
        query = urlencode([*(("arg", word) for word in words), *options.items()])
        return self._call(lambda: request(self.rpc_host, RPC_PORT, "POST", f"/api/v0/{command}?{query}"))

    def add_block(self, body: bytes) -> str:
        """Store a raw block, unpinned; returns its CID."""
        cid: str = json.loads(
            self._call(lambda: request(self.rpc_host, RPC_PORT, "POST", "/api/v0/block/put", file=body))
        )["Key"]
        return cid

    def rest(self, method: str, path: str, *, login: str = f"{USER}:{PASSWORD}") -> list[Any]:
        """One request to Cluster; the values of its answer, one a line. Raises ApiError, OSError."""
        body = self._call(lambda: request(self.address, REST_PORT, method, path, login=login))
        return [json.loads(line) for line in body.decode().splitlines()]

    def pinned(self, cid: str) -> int:
        """How many peers say that they hold this pin."""
        (info,) = self.rest("GET", f"/pins/{cid}")
        return sum(peer["status"] == "pinned" for peer in info["peer_map"].values())

    def has_record(self, cid: str) -> bool:
        """True when this peer knows that the block is to be pinned, by whichever peer that was asked."""
        try:
            self.rest("GET", f"/allocations/{cid}")
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return False
        return True

    def lacks(self, others: list[Node]) -> str:
        """Why this node is not ready: both daemons answer, know all of `others`, and may be given pins. Else ""."""
        if not (self.kubo.running and self.cluster.running):
            return "a daemon is not running"
        try:
            known = {peer["Peer"] for peer in json.loads(self.rpc("swarm/peers"))["Peers"] or ()}
            told = {peer["id"]: peer["error"] or peer["ipfs"]["error"] for peer in self.rest("GET", "/peers")}
            measured = {name: {row["peer"] for row in self._metric(name)} for name in _METRICS}
        except (OSError, http.client.HTTPException, ApiError) as error:
            return f"no answer: {error}"
        peers = {self.peer_id, *(node.peer_id for node in others)}
        parts = {
            "Kubo without": {node.kubo_id for node in others} - known,
            "Cluster without": peers - {peer for peer, error in told.items() if not error},
            **{f"no metric {name} of": peers - found for name, found in measured.items()},
        }
        lacking = [f"{what} {', '.join(sorted(ids))}" for what, ids in parts.items() if ids]
        errors = [f"{peer}: {error}" for peer, error in told.items() if error]
        return "; ".join([*lacking, *errors]) if lacking else ""

    def _metric(self, name: str) -> list[Any]:
        (rows,) = self.rest("GET", f"/monitor/metrics/{name}")
        return [row for row in rows or () if row["valid"]]


class ApiError(Exception):
    """A daemon answered, and not with 2xx."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body.decode(errors='replace')[:500]}")
        self.status = status


def request(host: str, port: int, method: str, path: str, *, login: str = "", file: bytes | None = None) -> bytes:
    """One HTTP request; the body of the answer. Raises ApiError, OSError."""
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    body = None
    if file is not None:
        headers["Content-Type"] = "multipart/form-data; boundary=-"
        body = b'---\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + file + b"\r\n-----\r\n"
    connection = http.client.HTTPConnection(host, port, timeout=_CALL_S)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise ApiError(answer.status, said)
    return said


def _load(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


class Swarm:
    """N nodes. `with Swarm(3) as swarm` starts them, waits until they know each other, and ends and removes all."""

    def __init__(
        self,
        count: int,
        *,
        apart: bool = False,
        open_rpc: bool = False,
        disable_repinning: bool = True,
        hosts: Sequence[Host] = (),
    ) -> None:
        """`open_rpc`: nodes that are apart show Kubo's RPC to the test process, and to each other. `hosts` are machines
        that are there already, one for each node."""
        self.folder = Path(tempfile.mkdtemp(prefix="s3vol-ipfs-"))
        self._disable_repinning = disable_repinning
        subnet = next(_subnets)
        self.nodes: list[Node] = []
        for number in range(count):
            machine = hosts[number] if hosts else Machine() if apart else None
            address = machine.address if machine else f"127.0.{subnet}.{number + 1}"
            folder = self.folder / f"node{number}"
            folder.mkdir()
            self.nodes.append(Node(number, folder, address, machine, open_rpc=open_rpc))

    def _others(self, node: Node) -> list[Node]:
        return [other for other in self.nodes if other is not node]

    def start(self) -> Swarm:
        """Make the repositories and start everything; returns when all nodes are ready, and hear each other."""
        try:
            for _ in range(_STARTS - 1):
                if self._start():
                    return self
                for node in self.nodes:
                    node.wipe()
            assert self._start(), f"of {_STARTS} starts none made peers that hear each other"
        except BaseException:
            self.remove()
            raise
        return self

    def _start(self) -> bool:
        self._initialise()
        for node in self.nodes:
            node.start()
        self.await_ready()
        return self._hear()

    def _hear(self) -> bool:
        """True when what each node pins, and what it unpins, has come to all.

        IPFS-Cluster 1.1.6 fetches the records that others announce over bitswap, one after the other. If bitswap loses
        the request, a peer that has no record yet hears nothing of the others from then on, though all are connected
        and their metrics arrive: 3 of 110 starts, on two cores with ten busy processes, where three peers made their
        first pins at once. So it is one peer after the other here.
        """
        try:
            for node in self.nodes:
                cid = node.add_block(secrets.token_bytes(32))
                node.rest("POST", f"/pins/{cid}")
                self._await_record(cid, known=True)
                node.rest("DELETE", f"/pins/{cid}")
                self._await_record(cid, known=False)
        except TimeoutError:
            return False
        return True

    def _await_record(self, cid: str, *, known: bool) -> None:
        wait_for(lambda: all(node.has_record(cid) is known for node in self.nodes), _GOSSIP_S, "gossip")

    def _initialise(self) -> None:
        swarm_key, secret = secrets.token_hex(32), secrets.token_hex(32)
        making = [process for node in self.nodes for process in node.initialise(swarm_key, secret)]
        failed = [process.args for process in making if process.wait(START_S) != 0]
        assert not failed, f"{failed}: see init.log in {self.folder}"
        for node in self.nodes:
            node.read_identity()
        for node in self.nodes:
            node.configure(self._others(node), disable_repinning=self._disable_repinning)

    def await_ready(self) -> None:
        """Return when every running node knows all other running ones and may be given pins."""
        running = [node for node in self.nodes if node.kubo.running and node.cluster.running]
        for node in running:
            self._await_ready(node, [other for other in running if other is not node])

    def _await_ready(self, node: Node, others: list[Node]) -> None:
        try:
            wait_for(lambda: not node.lacks(others), START_S, f"node{node.number}")
        except TimeoutError as error:
            logs = [daemon.log.read_text(errors="replace")[-1000:] for daemon in (node.kubo, node.cluster)]
            raise TimeoutError(f"{error}: {node.lacks(others)}; {logs}") from None

    @contextlib.contextmanager
    def cut(self, *groups: list[int]) -> Iterator[None]:
        """Within this block nodes of one group reach no node of another. Only with `apart`."""
        machines = [[self._machine(number) for number in group] for group in groups]
        with cut(*machines):
            yield

    def _machine(self, number: int) -> Machine:
        machine = self.nodes[number].machine
        assert isinstance(machine, Machine), "only nodes with machines of their own can be cut off"
        return machine

    def remove(self) -> None:
        """Kill everything and delete the folders."""
        for node in self.nodes:
            node.kill()
            if node.machine:
                node.machine.close()
        shutil.rmtree(self.folder)

    def __enter__(self) -> Swarm:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.remove()
