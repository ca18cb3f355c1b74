"""Machines and the cable between them: dockerds that are joined to one swarm.

Theory of operation. A bridge in a namespace of its own connects the nodes; it may not be in this machine's namespace,
where another Docker's firewall would drop the packets. Nodes have no default route: with one, each task waits 20 s for
a registry that does not answer. A node that crashed comes back with the same addresses and disks by `boot`.

What is asked again and again until something happens is asked at dockerd's socket: a docker client is 50 ms of
processor time, and a test that polls with it takes half of a small machine away from what it waits for.

A worker that is silent for three heartbeats is down. The heartbeat is 2 s here instead of 5.

One manager only: the crash of a node is always the crash of a worker. Two managers cannot outvote a dead one, and a
third costs what no test here needs.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.docker.engine import Engine
from tests.docker.node import Node
from tests.docker.tap import UnixConnection
from tests.support.minio import wait_for

BRIDGE_ADDRESS = "10.77.0.1"
CONVERGE_S = 90.0
HEARTBEAT = "2s"
ASK_S = 30.0


def _in(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", "-t", str(pid), "-n", "--", *command], check=True, capture_output=True)


class Swarm:
    """Engines, of which the first is the manager, not started yet; `form` joins them."""

    def __init__(self, folder: Path, size: int = 2) -> None:
        self.hub = Node("hub", folder / "hub")
        self.engines = [Engine(Node(f"node{number + 1}", folder / f"node{number + 1}")) for number in range(size)]
        self.manager, self.worker = self.engines[:2]

    def address(self, engine: Engine) -> str:
        """A node's address on the bridge."""
        return f"10.77.0.{11 + self.engines.index(engine)}"

    def open(self) -> None:
        """Boot the hub and all machines, and connect them. Dockerds are not started."""
        self.hub.boot()
        pid = self.hub.init
        _in(pid, "ip", "link", "add", "br0", "type", "bridge")
        _in(pid, "ip", "addr", "add", f"{BRIDGE_ADDRESS}/24", "dev", "br0")
        _in(pid, "ip", "link", "set", "br0", "up")
        for engine in self.engines:
            self.boot(engine)

    def boot(self, engine: Engine) -> None:
        """Boot a machine and plug in its cable."""
        engine.node.boot()
        port = f"v{self.engines.index(engine)}"
        hub, here = str(self.hub.init), str(engine.node.init)
        ends = ["eth0", "netns", here, "type", "veth", "peer", "name", port, "netns", hub]
        subprocess.run(["ip", "link", "add", *ends], check=True, capture_output=True)
        _in(engine.node.init, "ip", "addr", "add", f"{self.address(engine)}/24", "dev", "eth0")
        _in(engine.node.init, "ip", "link", "set", "eth0", "up")
        _in(self.hub.init, "ip", "link", "set", port, "master", "br0")
        _in(self.hub.init, "ip", "link", "set", port, "up")

    def form(self) -> None:
        """Start all dockerds and join them to one swarm."""
        for engine in self.engines:
            engine.launch()
        for engine in self.engines:
            engine.await_ready()
            engine.load_images()
        self.manager.docker("swarm", "init", "--advertise-addr", self.address(self.manager))
        self.manager.docker("swarm", "update", "--dispatcher-heartbeat", HEARTBEAT)
        token = self.manager.docker("swarm", "join-token", "-q", "worker")
        for engine in self.engines[1:]:
            engine.docker("swarm", "join", "--token", token, f"{self.address(self.manager)}:2377")

    def close(self) -> None:
        """All of it, gone."""
        for node in (*(engine.node for engine in self.engines), self.hub):
            node.close()

    def ask(
        self, engine: Engine, path: str, filters: Mapping[str, Sequence[str]] | None = None, *, every: bool = False
    ) -> Any:
        """What an engine's API answers to GET; `every`: containers that do not run as well."""
        connection = UnixConnection(engine.node.path("run/docker.sock"), ASK_S)
        try:
            query = f"filters={quote(json.dumps(filters or {}))}&all={int(every)}"
            connection.request("GET", f"{path}?{query}", headers={"Host": "docker"})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
        finally:
            connection.close()
        assert reply.status == 200, f"{path}: {answer}"
        return answer

    def tasks(self, service: str) -> dict[str, str]:
        """Node name of each running task, by container id."""
        names = {node["ID"]: node["Description"]["Hostname"] for node in self.ask(self.manager, "/nodes")}
        wanted = self.ask(self.manager, "/tasks", {"service": [service], "desired-state": ["running"]})
        running: list[Mapping[str, Any]] = [task for task in wanted if task["Status"]["State"] == "running"]
        return {task["Status"]["ContainerStatus"]["ContainerID"]: names[task["NodeID"]] for task in running}

    def await_tasks(
        self, service: str, count: int, *, on: str | None = None, without: str = "", timeout_s: float = CONVERGE_S
    ) -> dict[str, str]:
        """Wait until a service runs so many tasks (all on that node, none on the other); returns `tasks`."""
        found: dict[str, str] = {}

        def converged() -> bool:
            found.clear()
            found.update(self.tasks(service))
            placed = set(found.values())
            return len(found) == count and (on is None or placed == {on}) and without not in placed

        try:
            wait_for(converged, timeout_s, f"{count} tasks of {service}")
        except TimeoutError as error:
            raise AssertionError(
                f"{error}: {self.manager.run('service', 'ps', '--no-trunc', service).stdout}"
            ) from None
        return dict(found)

    def engine_of(self, node: str) -> Engine:
        """The engine of a node's name."""
        return next(engine for engine in self.engines if engine.node.name == node)
