"""Which volume a name means, answered fast: from the registry's copy and this node's records. The bucket is asked only
for a name that is in neither.

dockerd asks for names before nearly everything it does, also for names of other drivers' volumes: `docker run -v
x:/d` asks all drivers for `x`. And "there is no such volume" is final for dockerd: it drops what it knew of the
volume, and `docker run` then makes a local one of that name without a word. So there are three answers, never two:
this volume, none, and "it cannot be known", which is the error Unavailable and becomes a connection that is closed
without a reply.

Memory alone never says "none" while the bucket answers: another node may have made the volume a moment ago, and a
service that finds it by name (`external: true`) would write to a local one. A HEAD of its record decides.

A volume that is used here stays known by this node's record although the registry has lost it: dockerd must be able
to give it back.

When the bucket does not answer, a name that the copy does not hold is none, and every lookup that failed is not
repeated for SILENT_S: else each `docker run` with a local volume would wait for our bucket.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from s3vol.errors import Corrupt, S3volError, Unavailable
from s3vol_plugin.base import Registry, Workers
from s3vol_plugin.state import State
from s3vol_plugin.volume import Volume, is_name

FRESH_S = 5.0  # a listing of all volumes that is older than this makes the next one come soon
LOOKUP_S = 2.0  # the longest that a question may wait for the bucket
SILENT_S = 5.0

log = logging.getLogger(__name__)


class Names:
    """The volumes that dockerd may ask this node for."""

    def __init__(self, registry: Registry, state: State, workers: Workers) -> None:
        self._registry = registry
        self._state = state
        self._workers = workers
        self._silent_until_s = 0.0
        self.on_stale: Callable[[], None] = lambda: None  # called when an old copy was used; must not block

    def known(self, name: str) -> Volume | None:
        """From memory. The registry first: a name that was removed and made anew elsewhere is the new volume.

        Raises Corrupt when the registry's record cannot be read and the volume is not used here.
        """
        try:
            return self._registry.get(name) or self._used(name)
        except Corrupt:
            if (used := self._used(name)) is not None:
                return used
            raise

    def all(self) -> Sequence[Volume]:
        """From memory, by name. Raises Unavailable when this node never had a copy of the registry."""
        if self._registry.age_s is None:
            raise Unavailable("the registry of volumes was never read on this node")
        if self._registry.age_s > FRESH_S:
            self.on_stale()
        found = {record.volume.name: record.volume for record in self._state.all() if self._alive(record.volume.uuid)}
        found.update((volume.name, volume) for volume in self._registry.all())
        return [found[name] for name in sorted(found)]

    async def all_or_ask(self) -> Sequence[Volume]:
        """As `all`, after up to LOOKUP_S for the first copy. Raises Unavailable."""
        if self._registry.age_s is None:
            await self._bounded(self._registry.refresh)
        return self.all()

    async def find(self, name: str) -> Volume | None:
        """The volume of a name; asks the bucket, for LOOKUP_S at most, when memory does not hold it.

        Raises Unavailable, or Corrupt, when it cannot be known.
        """
        if not is_name(name):
            return None
        if (volume := self.known(name)) is not None:
            return volume
        await self._bounded(lambda: self._registry.find(name))
        if self._registry.age_s is None and self.known(name) is None and self._silent:
            raise Unavailable(f"volume {name}: the registry of volumes was never read on this node")
        return self.known(name)

    @property
    def _silent(self) -> bool:
        return trio.current_time() < self._silent_until_s

    async def _bounded(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Ask, unless the last question failed just now. Failing is not an error here: memory answers then."""
        if self._silent:
            return
        failure = f"no answer within {LOOKUP_S:g} s"
        with trio.move_on_after(LOOKUP_S):
            try:
                await ask()
                return
            except S3volError as error:
                failure = str(error)
        self._silent_until_s = trio.current_time() + SILENT_S
        log.warning("the registry of volumes does not answer: %s", failure)

    def _used(self, name: str) -> Volume | None:
        records = self._state.named(name)
        return next((record.volume for record in records if self._alive(record.volume.uuid)), None)

    def _alive(self, uuid: str) -> bool:
        record = self._state.get(uuid)
        return record is not None and (bool(record.refs) or self._workers.get(uuid) is not None)
