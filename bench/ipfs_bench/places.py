"""What is measured side by side: the same two machines with a volume in IPFS, and with a bucket on MinIO.

Everything is on one real machine, in a network namespace that has only `lo`: two Kubo daemons with their Cluster
peers, and one MinIO. So "another machine" means another mount process, another cache and, in IPFS, another Kubo that
has to fetch the blocks; it does not mean a wire.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Protocol

from tests.ipfs.site import Site
from tests.kernel.harness import Mounted, Node
from tests.support.ipfs import Swarm
from tests.support.minio import Minio

IPFS, MINIO = "ipfs", "minio"
_numbers = itertools.count()


class Volume(Protocol):
    """A new volume that two machines mount."""

    def mount(self, number: int, *options: str, cache: str = "") -> Mounted:
        """The volume on a machine; with a name, with a cache of that name."""
        ...

    def close(self) -> None:
        """Nothing is mounted any more."""
        ...


class _Bucket:
    def __init__(self, server: Minio, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._source = f"s3://{server.new_bucket('bench')}"
        self._nodes: dict[str, Node] = {}

    def mount(self, number: int, *options: str, cache: str = "") -> Mounted:
        name = f"node{number}{cache}"
        if name not in self._nodes:
            self._nodes[name] = Node(self._folder / name, self._server.environment)
        return self._nodes[name].mount(self._source, *options)

    def close(self) -> None:
        for node in self._nodes.values():
            node.close()


class Places:
    """Makes volumes of both kinds."""

    def __init__(self, swarm: Swarm, server: Minio, scratch: Path) -> None:
        self.swarm = swarm
        self.server = server
        self._scratch = scratch

    def folder(self) -> Path:
        """A new empty folder with a short name: sockets have paths of 108 bytes at most."""
        made = self._scratch / f"v{next(_numbers)}"
        made.mkdir()
        return made

    def site(self) -> Site:
        """A new volume in IPFS."""
        return Site(self.swarm, self.folder())

    def volume(self, kind: str) -> Volume:
        """A new volume of a kind."""
        return self.site() if kind == IPFS else _Bucket(self.server, self.folder())
