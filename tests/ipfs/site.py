"""A new volume in IPFS, and the machines that mount it, each with its own Kubo, Cluster peer and cache."""

from __future__ import annotations

import uuid
from pathlib import Path

from tests.kernel.harness import Mounted, Node
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER


class Site:
    """One volume. `folder` takes what the mounts write."""

    def __init__(self, swarm: Swarm, folder: Path) -> None:
        self.swarm = swarm
        self.source = f"ipfs://v{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._nodes: dict[str, Node] = {}
        self._login = folder / "login"
        self._login.touch(0o600)
        self._login.write_text(f"{USER}:{PASSWORD}\n")

    def node(self, number: int, *, cache: str = "") -> Node:
        """A machine, whose s3vol knows the daemons that are there; with a name, one with a cache of that name."""
        name = f"node{number}{cache}"
        if name not in self._nodes:
            daemons = self.swarm.nodes[number]
            told = {
                "S3VOL_KUBO": daemons.kubo_url,
                "S3VOL_CLUSTER": daemons.cluster_url,
                "S3VOL_CLUSTER_LOGIN": str(self._login),
                "S3VOL_NODE": name,
            }
            self._nodes[name] = Node(self._folder / name, told, enter=daemons.enter)
        return self._nodes[name]

    def mount(self, number: int, *options: str, cache: str = "") -> Mounted:
        """The volume, mounted on a machine."""
        return self.node(number, cache=cache).mount(self.source, *options)

    def close(self) -> None:
        """Nothing is mounted any more."""
        for node in self._nodes.values():
            node.close()
