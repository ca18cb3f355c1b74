"""A swarm without any bucket: three machines, each with dockerd, driver, a Kubo and its IPFS-Cluster peer.

The daemons of IPFS are in the network of their machine (netns.Host): Kubo's RPC is on its loopback, Cluster's REST on
the cable, behind a password. A crash ends them with everything else there.
"""

from __future__ import annotations

from pathlib import Path

from tests.docker.engine import Engine
from tests.docker.plugin import Plugin
from tests.docker.swarmsite import DrivenSwarm
from tests.support import ipfs, ipfs_config
from tests.support.netns import Host

SIZE = 3


class IpfsSwarmSite(DrivenSwarm):
    """`start` at the beginning, `tidy` after each test, `close` at the end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, SIZE)
        self._ipfs: ipfs.Swarm | None = None

    @property
    def ipfs(self) -> ipfs.Swarm:
        """The daemons of IPFS, in the order of the engines."""
        assert self._ipfs is not None, "not started"
        return self._ipfs

    def start(self) -> IpfsSwarmSite:
        """Boot, start daemons of IPFS, drivers, then dockerds, and join them."""
        self.open()
        hosts = [Host.of_process(engine.node.init, self.address(engine)) for engine in self.engines]
        self._ipfs = ipfs.Swarm(SIZE, hosts=hosts).start()
        for engine, node in zip(self.engines, self.ipfs.nodes, strict=True):
            plugin = Plugin(engine.node, "ipfs://volumes", login=f"{ipfs_config.USER}:{ipfs_config.PASSWORD}\n")
            plugin.configure(**{"cluster": node.cluster_url, "cluster-url": node.cluster_url})
            plugin.start()
            self.plugins.append(plugin)
        self.form()
        return self

    def close(self) -> None:
        """All of it, gone."""
        if self._ipfs is not None:
            self._ipfs.remove()
        super().close()

    def crash(self, engine: Engine) -> None:
        """SIGKILL of everything on a machine; its network is gone as well."""
        node = self.ipfs.nodes[self.engines.index(engine)]
        node.kill()
        engine.node.crash()
        if node.machine is not None:
            node.machine.close()

    def reboot(self, engine: Engine) -> None:
        """A machine comes back with its disks."""
        number = self.engines.index(engine)
        self.boot(engine)
        node = self.ipfs.nodes[number]
        node.move(Host.of_process(engine.node.init, self.address(engine)))
        node.start()
        self.ipfs.await_ready()
        self.plugins[number].start()
        engine.start()
        self.await_ready()

    def tidy(self) -> None:
        """As DrivenSwarm.tidy, with all machines and daemons running."""
        for engine, node in zip(self.engines, self.ipfs.nodes, strict=True):
            if not engine.node.running:
                self.reboot(engine)
            node.start()
        self.ipfs.await_ready()
        super().tidy()
