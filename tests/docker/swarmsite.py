"""A swarm as a user has it: machines with dockerd and driver. `SwarmSite` has two, and one bucket."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.docker.engine import Engine
from tests.docker.plugin import Cable, Plugin
from tests.docker.site import on_host_disk
from tests.docker.swarm import BRIDGE_ADDRESS, Swarm
from tests.kernel.rig import Bucket
from tests.support.minio import Minio, wait_for

REMOVED_S = 60.0
SERVICE = ("service", "create", "-d", "--no-resolve-image", "--restart-delay", "100ms", "--stop-grace-period", "1s")


def mount(volume: str, path: str, **options: str) -> tuple[str, str]:
    """The words of a service's mount."""
    extra = "".join(f",volume-opt={name}={value}" for name, value in options.items())
    return "--mount", f"type=volume,src={volume},dst={path},volume-driver=s3vol{extra}"


def fetch(engine: Engine, container: str, path: str) -> str:
    """What the web server of a container answers, asked from its own machine."""
    form = "{{.NetworkSettings.IPAddress}}"
    address = engine.docker("inspect", "--format", form, container)
    program = "import sys, urllib.request; print(end=urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"
    return engine.node.check(sys.executable, "-c", program, f"http://{address}/{path}")


class DrivenSwarm(Swarm):
    """Machines with dockerd and driver, whatever the volumes are in. Subclasses set up the drivers."""

    def __init__(self, folder: Path, size: int = 2) -> None:
        super().__init__(folder, size)
        self.folder = folder
        self.plugins: list[Plugin] = []

    def docker(self, *arguments: str) -> str:
        """`docker ARGUMENTS` at the manager."""
        return self.manager.docker(*arguments)

    def await_ready(self) -> None:
        """Wait until the manager sees all nodes."""

        def ready() -> bool:
            return {node["Status"]["State"] for node in self.ask(self.manager, "/nodes")} == {"ready"}

        wait_for(ready, REMOVED_S, "all nodes to be ready")

    def restart_engines(self) -> None:
        """Stop and start all dockerds."""
        for engine in self.engines:
            engine.restart()
        self.await_ready()

    def remove(self, service: str) -> None:
        """Remove a service and wait for the end of its containers and mounts."""
        self.docker("service", "rm", service)
        self._await_no_containers()

    def remove_stack(self, stack: str) -> None:
        """`stack rm`, and wait as well."""
        self.docker("stack", "rm", stack)
        self._await_no_containers()

    def _remove_containers(self, engine: Engine) -> None:
        def none() -> bool:
            found = [container["Id"] for container in self.ask(engine, "/containers/json", every=True)]
            if found:
                engine.run("rm", "-fv", *found)  # the swarm removes some of them in the same moment
            return not found

        wait_for(none, REMOVED_S, "all containers to be gone")

    def _await_no_containers(self) -> None:
        def none() -> bool:
            return not any(self.ask(engine, "/containers/json") for engine in self.engines)

        wait_for(none, REMOVED_S, "the service's containers to be gone")
        self.await_idle()

    def await_idle(self) -> None:
        """Wait until no volume is mounted anywhere."""
        for plugin in self.plugins:
            plugin.await_idle()

    def await_replaced(self, service: str, count: int, old: Mapping[str, str]) -> None:
        """Wait until a service runs so many tasks, and none of the old ones."""

        def replaced() -> bool:
            now = self.tasks(service)
            return len(now) == count and not set(now) & set(old)

        wait_for(replaced, REMOVED_S, f"{service} to have new tasks")

    def said(self, tasks: Mapping[str, str]) -> set[str]:
        """Names of the files that these containers say are written: the lines of their logs."""
        found: set[str] = set()
        for container, node in tasks.items():
            found |= set(self.engine_of(node).docker("logs", container).split())
        return {path.removeprefix("/data/") for path in found}

    def on_host_disk(self) -> list[str]:
        """What lies on any node's own disk below the volumes' mount points: has to be nothing."""
        return [f"{engine.node.name}: {path}" for engine in self.engines for path in on_host_disk(engine.node)]

    def tidy(self) -> None:
        """After a test: no service, no container, nothing mounted."""
        services = self.docker("service", "ls", "-q").split()
        if services:
            self.docker("service", "rm", *services)
        for engine in self.engines:
            self._remove_containers(engine)
        self.await_idle()


class SwarmSite(DrivenSwarm):
    """Both nodes have the driver and its announcement. `tidy` after each test, `close` at the end."""

    def __init__(self, folder: Path, minio: Minio) -> None:
        super().__init__(folder)
        self.bucket = Bucket(minio.new_bucket(), minio.client())
        self._minio = minio

    def start(self) -> SwarmSite:
        """Boot, start drivers, then dockerds, and join them."""
        self.open()
        self.cable = Cable(self.hub, self._minio, BRIDGE_ADDRESS)
        self.cable.connect()
        for engine in self.engines:
            plugin = Plugin(engine.node, f"s3://{self.bucket.name}", self.cable.endpoint)
            plugin.configure()
            plugin.start()
            self.plugins.append(plugin)
        self.form()
        return self

    def close(self) -> None:
        """All of it, gone."""
        with contextlib.suppress(AttributeError):
            self.cable.cut()
        super().close()

    def crash_worker(self) -> None:
        """SIGKILL of everything on node2; its network is gone as well."""
        self.worker.node.crash()

    def boot_worker(self) -> None:
        """node2 comes back with its disks."""
        self.boot(self.worker)
        self.plugins[1].start()
        self.worker.start()
        self.await_ready()

    def objects(self, volume: str) -> dict[str, bytes]:
        """Content of the files of a volume in the bucket, by path."""
        keys = [key for key in self.bucket.all_keys(f"{volume}/") if not key.endswith("/") and "/.s3vol/" not in key]
        return {key.removeprefix(f"{volume}/"): self.bucket.read(key) for key in keys}

    def read(self, volume: str, path: str) -> bytes | None:
        """Content of one file of a volume in the bucket; None when it is not there."""
        try:
            return self.bucket.read(f"{volume}/{path}")
        except self.bucket.client.exceptions.NoSuchKey:
            return None

    def tidy(self) -> None:
        """As DrivenSwarm.tidy, with both nodes running."""
        if not self.worker.node.running:
            self.boot_worker()
        super().tidy()
