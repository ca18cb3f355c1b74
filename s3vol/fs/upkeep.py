"""Work on the volume as a whole: publish some or all of it, drain, clean up after crashes.

Theory of operation. Publishing many files runs some side by side; one that fails does not stop the others, and its
error is raised at the end. What an earlier mount left behind (orphans, tombstones, unfinished renames) is cleared at
the start and then every minute; the bucket stays correct without it, only names and space are taken meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf

import trio

from s3vol import layout
from s3vol.cache.base import Content, State
from s3vol.errors import S3volError
from s3vol.fs.base import Progress
from s3vol.fs.context import Mount
from s3vol.fs.fileio import FileIO
from s3vol.fs.links import Links
from s3vol.fs.orphans import Orphans
from s3vol.fs.rename import Rename
from s3vol.fs.tree import TreeRename
from s3vol.parallel import for_each
from s3vol.store.base import Unpublished

PARALLEL = 16  # the cache bounds uploads itself; this only keeps them busy
SWEEP_S = 60.0
_NOTHING = Unpublished()
LINKS_SWEEP_S = 3600.0  # one request for each 500 links; what is left behind there only takes space


class Upkeep:
    """flush_path, drain, start and the periodic sweep."""

    def __init__(
        self, mount: Mount, files: FileIO, orphans: Orphans, rename: Rename, tree: TreeRename, links: Links
    ) -> None:
        self._mount = mount
        self._files = files
        self._orphans = orphans
        self._rename = rename
        self._tree = tree
        self._links = links
        self._links_swept_s = -inf

    async def flush_path(self, path: str | None, progress: Callable[[Progress], None]) -> None:
        """Publish a file, what is below a directory, or (None) all. Raises the first error after all were tried."""
        key = (path or "").strip("/")
        pending = [c for c in self._mount.cache.pending() if not key or _is_at_or_below(c.key, key)]
        if key:  # a link has names anywhere: it is published with every path
            pending += [c for c in self._mount.cache.pending() if layout.body_id(c.key) is not None]
        errors = await self._publish(pending, progress)
        if errors:
            raise errors[0]
        await self._mount.published()

    async def drain(self, deadline_s: float, progress: Callable[[Progress], None]) -> Progress:
        """Publish everything for at most `deadline_s`, then journal the rest. Returns what is left.

        What the store has taken over and not published yet is in its own journal, and counts as well.
        """
        with trio.move_on_after(deadline_s):
            await self._publish(list(self._mount.cache.pending()), progress)
            with suppress(S3volError):  # as for a file that cannot be published: what is left says it
                await self._mount.published()
        await self._mount.cache.sync_all()
        self._links.rest()
        await self._mount.cache.sync_notes()
        left = _count(self._mount.cache.pending(), self._mount.store.unpublished)
        progress(left)
        return left

    async def start(self) -> None:
        """Before the first request: clear what a crash left. An endpoint that is down is no reason not to mount."""
        if self._mount.readonly:
            return
        await self._sweep(first=True)

    async def run(self) -> None:
        """For as long as the mount lives: finish what others left behind, repeat what failed here."""
        while not self._mount.readonly:
            await trio.sleep(SWEEP_S)
            await self._sweep(first=False)

    async def _sweep(self, *, first: bool) -> None:
        # Nothing of this is on the data path, and all of it is tried again: an error is counted, not raised.
        works = [self._rename.clear_tombstones, self._finish_renames]
        if not first or self._links.crashed:  # a mount waits for what its predecessor left, not for a look at all links
            works.append(self._finish_links)
        for work in [self._orphans.clear, *works] if first else works:
            try:
                await work()
            except S3volError as error:
                self._mount.health.count("sweep_errors")
                self._mount.health.last_error = f"clearing what was left behind: {error}"

    async def _finish_renames(self) -> None:
        finished = await self._tree.finish_left_behind()
        if finished:
            self._mount.health.count("renames_finished", finished)

    async def _finish_links(self) -> None:
        await self._links.finish_in_doubt()
        now_s = trio.current_time()
        if self._links.crashed or now_s - self._links_swept_s > LINKS_SWEEP_S:
            finished = await self._links.sweep()
            self._links_swept_s = now_s
            if finished:
                self._mount.health.count("links_finished", finished)

    async def _publish(self, contents: list[Content], progress: Callable[[Progress], None]) -> list[S3volError]:
        errors: list[S3volError] = []

        async def one(content: Content) -> None:
            try:
                await self._publish_one(content)
            except S3volError as error:
                errors.append(error)
            progress(_count(c for c in contents if c.state is State.DIRTY))

        progress(_count(contents))
        await for_each(contents, one, limit=PARALLEL)
        return errors

    async def _publish_one(self, content: Content) -> None:
        inode = self._mount.inodes.at(content.key)
        if inode is not None:
            await self._files.commit(inode, content, remote=True)
        elif content.state is State.DIRTY:
            try:
                await self._mount.cache.publish(content)
            finally:
                self._mount.learned.changed(content.key)


def _is_at_or_below(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}/")


def _count(contents: Iterable[Content], taken: Unpublished = _NOTHING) -> Progress:
    found = list(contents)
    return Progress(len(found) + taken.names, sum(content.blocks_bytes for content in found) + taken.bytes)
