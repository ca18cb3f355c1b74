"""Opening a volume: the journal and the cluster are put in agreement before anything is served.

Theory of operation. Three things may disagree after a crash: what the journal says was published, what it says was
about to be (the intent), and what the register says. The register has the intent: it was published. It has less: the
intent may still arrive, so its numbers are not used again, and the next publication is made above all of them. It has
more than the journal knows: this journal is an old copy, and going on with it would use numbers twice; it goes on as a
new writer, and what the old one published is merged like anybody's. So does a clone of a machine, whose intent has
the number of what the other one published: the register has another commit then.

Then the published state is loaded from Kubo, where it is pinned, the changes of the journal are made again on top, and
only then other heads are merged: what others did meanwhile was not known to whoever made those changes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import trio

from s3vol.errors import Corrupt, S3volError, Unavailable
from s3vol.store.base import Capabilities
from s3vol.store.ipfs import state as states
from s3vol.store.ipfs.base import EVERYWHERE, Blocks, Cluster
from s3vol.store.ipfs.fetch import Fetcher
from s3vol.store.ipfs.heads import SCAN_S, Connect, Head, Heads
from s3vol.store.ipfs.journal import Journal, Loaded, Published, new_identity, new_writer, put_fact
from s3vol.store.ipfs.nodes import Nodes
from s3vol.store.ipfs.publish import Publisher
from s3vol.store.ipfs.refresh import Refresher
from s3vol.store.ipfs.segments import Keeping, Segments
from s3vol.store.ipfs.state import State
from s3vol.store.ipfs.store import IPFS_CAPABILITIES, IpfsStore, Parts
from s3vol.store.ipfs.volume import Volume
from s3vol.types import Health

log = logging.getLogger(__name__)

JOURNAL = "ipfs-journal"
_QUIET_S = 30.0
"""A node that changed nothing publishes its merges, and looks for others', this often: collection waits for it."""

_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """One mount of a volume. `url` is this node's Cluster peer as other nodes reach it; `replicas` is for `sync`."""

    name: str
    directory: Path
    node: str = "node"
    url: str = ""
    commit_interval_s: float = 5.0
    replicas: int = 1
    replication_min: int = EVERYWHERE
    replication_max: int = EVERYWHERE
    timeout_s: float = 60.0
    head_timeout_s: float = 10.0
    scan_s: float = SCAN_S


class OpenVolume:
    """A volume in use. `run` publishes in the background; without it, `sync` and `aclose` do."""

    def __init__(self, parts: Parts, heads: Heads, blocks: Blocks, cluster: Cluster, health: Health) -> None:
        self.parts = parts
        self.heads = heads
        self.blocks = blocks
        self.cluster = cluster
        self.health = health
        self._closed = False

    def view(self, prefix: str = "", *, capabilities: Capabilities = IPFS_CAPABILITIES) -> IpfsStore:
        """A store on a prefix, that does not close the volume."""
        return IpfsStore(self.parts, prefix, capabilities=capabilities)

    def store(self, prefix: str = "") -> IpfsStore:
        """The store that closes the volume when it is closed."""
        return IpfsStore(self.parts, prefix, close=self.aclose)

    async def run(self) -> None:
        """Publish what changes, `commit_interval_s` after the first change, until cancelled."""
        pause_s = _PAUSE_S
        publisher = self.parts.publisher
        while True:
            with trio.move_on_after(_QUIET_S):
                await publisher.wanted.wait()
                await trio.sleep(self.parts.commit_interval_s)
            publisher.wanted = trio.Event()
            try:
                await self.parts.refresher.refresh()
                await publisher.look()
                await publisher.publish()
            except S3volError as error:  # what is not published is in the journal; `sync` tells who waits for it
                self.health.count("ipfs.publish_failures")
                self.health.last_error = f"publishing {self.parts.name}: {error}"
                publisher.wanted.set()
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                pause_s = _PAUSE_S

    async def aclose(self) -> None:
        """Publish what is left, if that is possible now, and close. What is not published stays in the journal."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.parts.publisher.behind:
                await self.parts.publisher.publish()
        except S3volError as error:
            kept = "the last changes are not published: they are in the journal, and the next mount publishes them"
            log.warning("ipfs://%s: %s (%s)", self.parts.name, kept, error)
        finally:
            with trio.CancelScope(shield=True):
                await self.parts.journal.aclose()
                await self.heads.aclose()
                await self.blocks.aclose()
                await self.cluster.aclose()


async def open_volume(
    blocks: Blocks, cluster: Cluster, settings: VolumeSettings, *, connect: Connect | None = None, health: Health
) -> OpenVolume:
    """Open a volume, which is made by its first change. `connect` None: heads are read at the local peer.

    Raises UsageError, Unavailable when a daemon does not answer or the state of the journal is not to be had.
    """
    peer = await cluster.identity(timeout_s=settings.timeout_s)
    path = settings.directory / JOURNAL
    journal, loaded = await trio.to_thread.run_sync(Journal.open, path, settings.name, settings.node)
    try:
        heads = Heads(
            blocks,
            cluster,
            settings.name,
            connect=connect,
            url=settings.url,
            timeout_s=settings.timeout_s,
            scan_s=settings.scan_s,
        )
        loaded = await _agree(loaded, heads, journal, settings)
        return await _build(blocks, cluster, journal, loaded, heads, peer.id, settings, health)
    except BaseException:
        await journal.aclose()
        raise


async def _agree(loaded: Loaded, heads: Heads, journal: Journal, settings: VolumeSettings) -> Loaded:
    """Decide what was published. See the module's docstring."""
    register = await heads.own(loaded.writer)
    told = register.sequence if register else 0
    known = max((one.sequence for one in (loaded.published, loaded.intent) if one), default=0)
    if told > known or (register and _is_anothers(register, loaded)):
        writer = new_writer(settings.node)
        await journal.write(*new_identity(writer))
        # Not the intent: its number may stand for other changes in what the register leads to, and would hide them.
        return replace(loaded, writer=writer, published=None, intent=None, segments=[], commits=[])
    if loaded.intent and told == loaded.intent.sequence:
        # The next intent replaces this one, and collection removes what was published before.
        await journal.write(put_fact("published", loaded.intent))
        return replace(loaded, published=loaded.intent, base=loaded.intent)
    return replace(loaded, register_lost=loaded.published is not None and told < loaded.published.sequence)


def _is_anothers(register: Head, loaded: Loaded) -> bool:
    """True when it has what this journal never made: a clone of this machine has published under our name."""
    made = {commit.cid for commit in loaded.commits}
    made |= {one.commit for one in (loaded.published, loaded.intent) if one}
    agreed = loaded.published.sequence if loaded.published else 0
    return register.sequence > agreed and register.commit not in made


async def _build(
    blocks: Blocks,
    cluster: Cluster,
    journal: Journal,
    loaded: Loaded,
    heads: Heads,
    peer_id: str,
    settings: VolumeSettings,
    health: Health,
) -> OpenVolume:
    keeping = Keeping(
        settings.name,
        loaded.writer,
        peer_id,
        replication_min=settings.replication_min,
        replication_max=settings.replication_max,
        timeout_s=settings.timeout_s,
    )
    segments = Segments(blocks, cluster, journal, loaded, keeping)
    await segments.recover()
    fetcher = Fetcher(blocks, segments.staged, timeout_s=settings.timeout_s)
    nodes = Nodes()
    try:
        state = await _load_state(loaded.base, fetcher, nodes)
    except (Unavailable, Corrupt):
        if loaded.published is not None:
            raise
        # The base of an old copy, which its writer has collected since. The changes are then made on nothing.
        loaded = replace(loaded, base=None)
        state = states.nothing(nodes)
    volume = Volume(nodes, state, loaded.writer, loaded.number)
    volume.on_conflicts = partial(_say, health)
    heads_fetcher = Fetcher(blocks, segments.staged, timeout_s=settings.head_timeout_s)
    publisher = Publisher(
        blocks, cluster, journal, volume, segments, heads, keeping, loaded, replicas=settings.replicas
    )
    refresher = Refresher(settings.name, volume, heads, heads_fetcher, publisher.note_merge, health.warnings)
    await publisher.register()
    await publisher.replay(loaded, partial(refresher.merge, again=True))
    await refresher.refresh()
    parts = Parts(
        settings.name,
        volume,
        journal,
        segments,
        publisher,
        refresher,
        fetcher,
        loaded.uploads,
        settings.commit_interval_s,
    )
    return OpenVolume(parts, heads, blocks, cluster, health)


def _say(health: Health, names: Sequence[str]) -> None:
    """Nothing was discarded, and somebody should look."""
    health.count("ipfs.conflicts", len(names))
    for name in names:
        log.warning("two nodes changed the same file; the other content is kept as %s", name, extra={"key": name})


async def _load_state(published: Published | None, fetcher: Fetcher, nodes: Nodes) -> State:
    if published is None:
        return states.nothing(nodes)
    for body in (await fetcher.tree(published.tree, nodes)).values():
        nodes.keep(body)
    return State(published.tree, MappingProxyType(dict(published.clock)))
