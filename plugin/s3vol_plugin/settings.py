"""Settings of the volume driver on one node: paths, and where the registry of volumes is. A value, no I/O."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "", socket.gethostname().partition(".")[0]) or "node"


@dataclass(frozen=True, slots=True)
class Settings:
    """`source` holds the registry, and below it, under their names, the volumes that are created without a bucket.

    `defaults` are rows of the options table (raw text) that every volume's own options are laid over. Times in
    seconds.
    """

    source: str
    node: str = field(default_factory=_host)
    defaults: Mapping[str, str] = field(default_factory=dict)
    credentials: str = ""
    socket: Path = Path("/run/docker/plugins/s3vol.sock")
    admin_socket: Path = Path("/run/s3vol/plugin.sock")
    docker_socket: Path = Path("/run/docker.sock")
    state_directory: Path = Path("/var/lib/s3vol")
    mount_directory: Path | None = None  # None: `mounts` in the state directory
    cache_directory: Path = Path("/var/cache/s3vol/volumes")
    runtime_directory: Path = Path("/run/s3vol")
    credentials_directory: Path = Path("/etc/s3vol/credentials.d")
    allow_anonymous: bool = True  # volumes without a name, as `docker run -v /data` makes them
    allowed_endpoints: tuple[str, ...] = ()  # empty: any
    heal: bool = True  # mount again inside running containers after a mount process died

    @property
    def registry_place(self) -> str:
        """The registry in words: where, and at which server if one is set."""
        server = self.defaults.get("cluster" if self.source.startswith("ipfs:") else "endpoint")
        return " at ".join(filter(None, (self.source, server)))

    @property
    def volumes_directory(self) -> Path:
        """One JSON record a volume that is used here, named by uuid."""
        return self.state_directory / "volumes"

    @property
    def mounts_directory(self) -> Path:
        """One directory a mounted volume, named by uuid: mode 000, so that nothing lands on this disk unmounted."""
        return self.mount_directory or self.state_directory / "mounts"

    def mountpoint(self, uuid: str) -> Path:
        """Where a volume is mounted on this node."""
        return self.mounts_directory / uuid
