"""One machine as a user has it: dockerd, the driver, and a bucket that both the test and the driver see."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.docker.engine import Engine
from tests.docker.images import BUSYBOX
from tests.docker.node import Node
from tests.docker.plugin import Cable, Plugin
from tests.kernel.rig import Bucket
from tests.support.minio import Minio, wait_for

SETTLE_S = 60.0


def fresh(stem: str = "vol") -> str:
    """A volume's name that no other test has."""
    return f"{stem}-{uuid.uuid4().hex[:8]}"


class Site:
    """A node with engine, tapped driver and bucket. `tidy` after each test, `close` at the end."""

    def __init__(self, folder: Path, minio: Minio, name: str = "node1") -> None:
        self.minio = minio
        self.bucket = Bucket(minio.new_bucket(), minio.client())
        self.node = Node(name, folder)
        self.engine = Engine(self.node)
        self._boot()

    def _boot(self) -> None:
        self.node.boot()
        self.cable = Cable(self.node, self.minio)
        self.plugin = Plugin(self.node, f"s3://{self.bucket.name}", self.cable.endpoint, tapped=True)

    def open(self) -> Site:
        """Start all of it, the driver before dockerd."""
        self.cable.connect()
        self.plugin.configure()
        self.plugin.start()
        self.engine.start()
        if not self.engine.docker("image", "ls", "-q", BUSYBOX):
            self.engine.load_images()
        return self

    def crash(self) -> None:
        """Power off, as by a plug that is pulled."""
        self.plugin.close()
        self.cable.cut()
        self.node.crash()

    def reboot(self) -> None:
        """Power off and on; returns when dockerd answers."""
        self.crash()
        self._boot()
        self.open()

    def close(self) -> None:
        """All of it, gone."""
        with contextlib.suppress(Exception):
            self.plugin.close()
        self.cable.cut()
        self.node.close()

    def tidy(self) -> None:
        """After a test: everything runs again, no container and no local volume is left, nothing is mounted.

        When that cannot be had, the machine is set up anew, so that a test that fails is the only one, and this raises.
        """
        try:
            self._settle()
        except Exception:
            self._renew()
            raise

    def _settle(self) -> None:
        if not self.plugin.process.alive():
            self.plugin.start()
        if not self.engine.alive():
            self.engine.start()
        self.engine.remove_containers()
        if local := self.engine.volumes("local"):
            self.engine.docker("volume", "rm", *local)
        self.plugin.await_idle()
        records = self.node.folder / "lib/s3vol/volumes"
        wait_for(lambda: not any(records.glob("*.json")), SETTLE_S, "the driver to forget what it does not serve")

    def _renew(self) -> None:
        """Power off and on, without anything that the driver, its caches, and dockerd remember."""
        self.crash()
        for left in ("lib/s3vol", "cache/s3vol", "lib/docker"):
            shutil.rmtree(self.node.folder / left, ignore_errors=True)
        self.engine = Engine(self.node)
        self._boot()
        self.open()

    @property
    def docker(self) -> Engine:
        """The engine; reads well in tests."""
        return self.engine

    def create(self, name: str | None = None, *options: str) -> str:
        """`docker volume create` with this driver; returns the name."""
        name = name or fresh()
        words = [word for option in options for word in ("-o", option)]
        assert self.engine.docker("volume", "create", "-d", "s3vol", *words, name) == name
        return name

    def objects(self, volume: str) -> dict[str, bytes]:
        """Content of the files of a volume in the bucket, by path in the volume."""
        keys = [key for key in self.bucket.all_keys() if key.startswith(f"{volume}/")]
        files = [key for key in keys if not key.endswith("/") and "/.s3vol/" not in f"/{key}"]
        return {key.removeprefix(f"{volume}/"): self.bucket.read(key) for key in files}

    def refs(self, volume: str) -> int:
        """How many uses the driver counts on this node."""
        return int(self.plugin.status(volume).get("refs", 0))

    def await_unused(self, volume: str) -> None:
        """Wait until no use is counted and nothing is mounted."""
        wait_for(lambda: self.refs(volume) == 0, SETTLE_S, f"{volume} is not counted as used")
        self.plugin.await_idle()

    def on_host_disk(self) -> list[str]:
        """What lies on this node's own disk where volumes are mounted, or in a local volume: has to be nothing.

        Seen from outside of the machine's mount namespace, so what is hidden below a mount is seen too.
        """
        return on_host_disk(self.node)


def on_host_disk(node: Node) -> list[str]:
    """As `Site.on_host_disk`."""
    below = (node.folder / "lib/s3vol/mounts").glob("*/*")
    local = (node.folder / "lib/docker/volumes").glob("*/_data")
    return [str(path.relative_to(node.folder)) for path in (*below, *local)]


@contextlib.contextmanager
def within(limit_s: float, what: str) -> Iterator[None]:
    """The block has to end in time."""
    begin = time.monotonic()
    yield
    took_s = time.monotonic() - begin
    assert took_s < limit_s, f"{what} took {took_s:.2f} s"
