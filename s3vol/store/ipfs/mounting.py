"""IPFS for one process: clients of both daemons, and on them a volume with its publisher in the background, or the
store of small objects that is in the pinset.

Theory of operation. The login of Cluster's REST is in a file, since everybody can read options; it is the same for all
peers, because with `heads=peers` each node asks the others. The volume is closed after its publisher has ended, and
publishes then what is left.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import trio

from s3vol.errors import Unavailable, UsageError
from s3vol.store.base import Store
from s3vol.store.ipfs.acquaintance import Acquaintance
from s3vol.store.ipfs.base import EVERYWHERE, Blocks, Cluster
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.collect import EVERY_S, Collector
from s3vol.store.ipfs.heads import Connect
from s3vol.store.ipfs.kubo import Kubo
from s3vol.store.ipfs.opening import OpenVolume, VolumeSettings, open_volume
from s3vol.store.ipfs.pinset import PinsetStore
from s3vol.store.settings import IpfsSettings, Source
from s3vol.types import Health

_CHECK_S = 10.0  # both daemons answer in milliseconds, or not at all


def journal_directory(cache: Path) -> Path:
    """Where a mount's journal is: beside its cache directory, which holds nothing else."""
    return cache.with_name(f"{cache.name}.volume")


def read_login(file: Path | None) -> tuple[str, str] | None:
    """User and password in a file that only its owner reads. Raises UsageError."""
    if file is None:
        return None
    try:
        text = file.read_text().strip()
        others = stat.S_IMODE(file.stat().st_mode) & 0o077
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is no text"
        raise UsageError(f"option cluster-login: {file}: {reason}") from None
    user, colon, password = text.partition(":")
    if not (user and colon and password) or "\n" in text:
        raise UsageError(f"option cluster-login: {file}: must hold one line USER:PASSWORD")
    if others:
        raise UsageError(f"option cluster-login: {file}: others may read it; `chmod 600 {file}`")
    return user, password


def clients(settings: IpfsSettings) -> tuple[Blocks, Cluster, Connect | None]:
    """Clients of this node's daemons, and with heads=peers a maker of those for other nodes' peers."""
    login = read_login(settings.login_file)
    cluster = ClusterPeer(settings.cluster, login=login)
    others = Acquaintance(cluster, partial(ClusterPeer, login=login), has_login=login is not None)
    return Kubo(settings.kubo), cluster, others.meet if settings.ask_writers else None


async def check(settings: IpfsSettings) -> None:
    """Both daemons answer, let us in and belong together. Raises UsageError, and Unavailable or Denied as they do."""
    blocks, cluster, _ = clients(settings)
    try:
        await _check_pair(blocks, cluster)
    finally:
        await _close(blocks, cluster)


async def _check_pair(blocks: Blocks, cluster: Cluster) -> None:
    peer = await cluster.identity(timeout_s=_CHECK_S)
    kubo = await blocks.info(timeout_s=_CHECK_S)
    if not peer.kubo_id:
        raise Unavailable(f"IPFS-Cluster at {cluster.url} does not reach its own Kubo; is that one running?")
    if peer.kubo_id != kubo.peer_id:
        raise UsageError(
            f"IPFS-Cluster at {cluster.url} works with another Kubo than the one at {blocks.url}: the options cluster "
            "and kubo have to name a pair"
        )


async def _close(blocks: Blocks, cluster: Cluster) -> None:
    with trio.CancelScope(shield=True):
        await blocks.aclose()
        await cluster.aclose()


async def open_pinset(source: Source, settings: IpfsSettings) -> PinsetStore:
    """The store of small objects of that name, on daemons that were checked. Raises as `check`."""
    if source.prefix:
        raise UsageError(
            f"source {source.url}: what is kept in the pinset has a name only; write ipfs://{source.bucket}"
        )
    blocks, cluster, _ = clients(settings)
    try:
        await _check_pair(blocks, cluster)
    except BaseException:
        await _close(blocks, cluster)
        raise
    return PinsetStore(source.bucket, blocks, cluster, timeout_s=settings.timeout_s)


@contextlib.asynccontextmanager
async def opened(source: Source, settings: IpfsSettings, directory: Path, health: Health) -> AsyncIterator[OpenVolume]:
    """The open volume, with nothing in the background. Raises UsageError, Unavailable, Denied."""
    copies = settings.copies or EVERYWHERE
    volume_settings = VolumeSettings(
        name=source.bucket,
        directory=directory,
        node=settings.node,
        url=settings.url,
        commit_interval_s=settings.commit_interval_s,
        replicas=settings.replicas,
        replication_min=copies,
        replication_max=copies,
        timeout_s=settings.timeout_s,
    )
    blocks, cluster, connect = clients(settings)
    try:
        volume = await open_volume(blocks, cluster, volume_settings, connect=connect, health=health)
    except BaseException:
        await _close(blocks, cluster)
        raise
    try:
        yield volume
    finally:
        await volume.aclose()


def rounds_s(retention_s: float) -> float:
    """How often a mount collects: what is kept too long is a sixth of what is kept by intention."""
    return min(EVERY_S, max(retention_s / 6, 1.0))


@contextlib.asynccontextmanager
async def mounted(source: Source, settings: IpfsSettings, directory: Path, health: Health) -> AsyncIterator[Store]:
    """The open volume as a store, which publishes and collects in the background. Raises as `opened`."""
    async with opened(source, settings, directory, health) as volume, trio.open_nursery() as nursery:
        nursery.start_soon(volume.run)
        nursery.start_soon(Collector(volume, retention_s=settings.retention_s).run, rounds_s(settings.retention_s))
        yield volume.store(source.prefix)
        nursery.cancel_scope.cancel()
