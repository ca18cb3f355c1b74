"""Which volumes there are, on all nodes: records in the bucket, changed under conditions, and this node's copy of them.

Theory of operation. The bucket decides. A record is created under If-None-Match and changed under If-Match, so of any
number of nodes that create one name exactly one wins, and the others are told who. A 412 may be our own write whose
reply was lost: the record that is there then has our uuid, or is the tombstone that we meant. Removal replaces the
record by a tombstone and does not delete it: S3's DELETE knows no condition. A tombstone whose time is over goes in two
steps (`clear`): it is marked under If-Match, which of all nodes one does, and deleted right after; a marked one is
replaced by nobody before the delete has either arrived or never will.

Sources are not keys, so no single condition keeps two names from overlapping (`records`). `create` looks before and
looks again after: who then finds another volume in its way that is not younger withdraws. Two that meet within one
second of the store's clock both withdraw: an error that can be repeated, and no mixed data.

Questions are answered from the copy (`replica`). Making it true costs a listing, and one GET for each record whose ETag
is another. A record that is missing from a listing is asked for by its key before it is believed gone: removed volumes
leave tombstones, so this is rare, and an empty listing of a wrong bucket must not make dockerd forget all volumes.

One task asks at a time (`_asking`): the others wait for its answer, or take over if it is cancelled. `create` and
`undelete` need a listing that began after they did, so they wait for a running one and then ask themselves.

Rejected: one object with all volumes (every change conflicts with every other), and asking the bucket on each Get (a
backend that hangs would hang `docker ps`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from s3vol.errors import Corrupt, NotFound, PreconditionFailed, S3volError, Unavailable, UsageError
from s3vol.store.base import ABSENT, Condition, Store, matches
from s3vol.store.settings import parse_source
from s3vol.units import parse_label
from s3vol_plugin import reading, records, tombstones
from s3vol_plugin import volume as volumes
from s3vol_plugin.base import Holder
from s3vol_plugin.holders import IN_BUCKET, IN_PINSET, Holders, list_all
from s3vol_plugin.reading import TRIES
from s3vol_plugin.records import Damaged, Entry
from s3vol_plugin.replica import Replica
from s3vol_plugin.volume import Volume

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Asking:
    """A listing that is under way. `error` is set when it failed, `answered` when it did not."""

    done: trio.Event = field(default_factory=trio.Event)
    answered: bool = False
    error: S3volError | None = None


class BucketRegistry:
    """See the module's docstring; implements `s3vol_plugin.base.Registry`. The caller closes the store."""

    def __init__(self, store: Store, node: str, path: Path | None, *, now_s: Callable[[], float] = time.time) -> None:
        """`store` is opened on the registry's source, `path` is the copy's file (None: it is kept in memory only).

        Raises UsageError for a bad node name.

        `now_s` is this node's clock: for what people read, and for the copy's age; nothing is decided by it.
        """
        try:
            self._node = parse_label(node)
        except ValueError as error:
            raise UsageError(f"node {node!r}: {error}") from None
        self._store = store
        self._now_s = now_s
        self._source = parse_source(store.url)
        self._replica = Replica(path, store.url, now_s=now_s)
        self._holders = Holders(store, self._node, IN_PINSET if self._source.kind == "ipfs" else IN_BUCKET)
        self._asking: _Asking | None = None
        self._saving = trio.Lock()  # guards the file: a later document is never overtaken by an earlier one
        self._saved = self._replica.document() if self._replica.age_s is not None else b""
        self._save_error = ""
        self._foreign: tuple[str, ...] = ()

    # -- answers from memory

    @property
    def age_s(self) -> float | None:
        """See Registry.age_s."""
        return self._replica.age_s

    @property
    def damaged(self) -> Sequence[Damaged]:
        """Records that cannot be read, by name."""
        return [self._replica.damaged[name] for name in sorted(self._replica.damaged)]

    def get(self, name: str) -> Volume | None:
        """See Registry.get. Raises Corrupt for a damaged record that was never seen whole: nobody knows what it was."""
        entry = self._replica.entries.get(name)
        if entry is not None:
            return None if entry.volume.removed else entry.volume
        if name in self._replica.damaged:
            raise Corrupt(self._replica.damaged[name].error)
        return None

    def all(self) -> Sequence[Volume]:
        """See Registry.all."""
        return [volume for volume in self._volumes() if not volume.removed]

    def removed(self) -> Sequence[Volume]:
        """The tombstones, by name."""
        return [volume for volume in self._volumes() if volume.removed]

    def _volumes(self) -> list[Volume]:
        return [self._replica.entries[name].volume for name in sorted(self._replica.entries)]

    # -- asking the bucket

    async def refresh(self) -> None:
        """See Registry.refresh."""
        while (asking := self._asking) is not None:
            await asking.done.wait()
            if asking.error is not None:
                raise type(asking.error)(str(asking.error)) from asking.error
            if asking.answered:
                return
        await self._ask()

    async def relist(self) -> None:
        """As refresh, by a listing that begins after this call."""
        while self._asking is not None:
            await self._asking.done.wait()
        await self._ask()

    async def _ask(self) -> None:
        """List, read what changed, and take it over. No await between the test of `_asking` and here."""
        asking = self._asking = _Asking()
        try:
            mark = self._replica.begin()
            listed = records.sort_out(await list_all(self._store, records.FOLDER, delimiter=True))
            found = await reading.read_changed(self._store, self._known_etags(), listed.records)
            self._replica.commit(mark, found.read, found.gone)
            for damaged in found.damaged:
                self._replica.note_damaged(damaged)
            self._note_foreign(listed.foreign)
            asking.answered = True
        except S3volError as error:
            asking.error = error
            raise
        finally:
            self._asking = None
            asking.done.set()
        await self._save()

    def _known_etags(self) -> dict[str, str]:
        known = {name: entry.etag for name, entry in self._replica.entries.items()}
        return known | {name: damaged.etag for name, damaged in self._replica.damaged.items()}

    def _note_foreign(self, foreign: tuple[str, ...]) -> None:
        for key in set(foreign) - set(self._foreign):
            log.warning("%s: %r is no record of a volume", self._store.url, key)
        self._foreign = foreign

    async def find(self, name: str) -> Volume | None:
        """See Registry.find. Raises Corrupt for a damaged record."""
        if not volumes.is_name(name):
            return None
        entry = await self._take_over(name)
        return None if entry is None or entry.volume.removed else entry.volume

    async def _take_over(self, name: str) -> Entry | None:
        """Read a record and put it into the copy."""
        try:
            entry = await reading.read(self._store, name)
        except Corrupt as error:
            self._replica.note_damaged(Damaged(name, "", str(error)))
            raise
        self._replica.note(name, entry)
        await self._save()
        return entry

    # -- changing the bucket

    async def create(self, volume: Volume) -> Volume:
        """See Registry.create. Raises UsageError for a source that is in the way of another volume's."""
        key = records.key_of(volume.name)
        if error := records.registry_obstacle(volume, self._source):
            raise error
        await self.relist()
        current = self._known(volume.name)
        if current is not None and current.volume.removed:
            current = await self._take_over(volume.name)  # Last-Modified by the store's clock
        for _ in range(TRIES):
            if current is not None and not current.volume.removed:
                ours = current.volume == volume  # the reply to our write was lost
                return await self._settled(volume) if ours else current.volume
            self._check_room(volume)
            condition = ABSENT
            if current is not None:
                tombstones.may_replace(current, volume, await self._now_ns(current))
                condition = matches(current.etag)
            await _make_directory(volume)
            if await self._put(volume, condition):
                return await self._settled(volume)
            current = await self._take_over(volume.name)
        raise reading.restless(key)

    def _known(self, name: str) -> Entry | None:
        """The record in the copy. Raises Corrupt when the bucket's is damaged: nothing is written over it."""
        if name in self._replica.damaged:
            raise Corrupt(self._replica.damaged[name].error)
        return self._replica.entries.get(name)

    def _check_room(self, volume: Volume) -> None:
        for other in self._volumes():
            if error := records.obstacle(volume, other):
                raise error

    async def _now_ns(self, tombstone: Entry) -> int:
        """The store's clock, asked for only where it decides."""
        if tombstone.volume.deletion and not tombstone.volume.clearing:
            return tombstone.modified_ns
        return await self._holders.now_ns()

    async def _put(self, volume: Volume, condition: Condition) -> bool:
        """Write a record; False when the condition did not hold, or the reply to a first attempt was lost."""
        key = records.key_of(volume.name)
        body = volumes.encode(volume)
        try:
            etag = await self._store.put(key, body, metadata={}, content_type="application/json", condition=condition)
        except (PreconditionFailed, NotFound):
            return False
        self._replica.note(volume.name, Entry(volume, etag, int(self._now_s()) * 1_000_000_000))
        await self._save()
        return True

    async def _settled(self, volume: Volume) -> Volume:
        """Look again after creating `volume`: withdraw when another one is in its way that is not younger."""
        await self.relist()
        mine = await self._take_over(volume.name)  # Last-Modified by the store's clock
        if mine is None:
            raise Unavailable(f"volume {volume.name}: its record was deleted in this moment; try again")
        if mine.volume.removed:
            return volume  # by somebody already
        if mine.volume != volume:
            return mine.volume
        for entry in list(self._replica.entries.values()):
            error = records.obstacle(volume, entry.volume)
            if error and entry.modified_ns <= mine.modified_ns:
                buried = tombstones.bury(volume, self._node, self._now(), delete=True)
                withdrawn = replace(buried, deletion="done")
                await self._put(withdrawn, matches(mine.etag))
                raise error
        return volume

    async def remove(self, volume: Volume) -> None:
        """See Registry.remove. With `on_remove` delete nobody else gets its source before `finish_deletion`."""
        await self._change(volume.name, lambda entry: tombstones.remove(entry, volume, self._node, self._now()))

    async def begin_deletion(self, volume: Volume) -> Volume:
        """Note that objects of a removed volume are being deleted: from here on nobody brings it back.

        Returns the tombstone as it was before: with `deletion` where another run has begun already, or may have done so
        in this moment. Raises UsageError when the volume is there (again), is another one by now, or its objects are
        deleted.
        """
        before = volume

        def change(entry: Entry) -> Volume | None:
            nonlocal before
            before = entry.volume
            return tombstones.begin_deletion(entry, volume)

        await self._change(volume.name, change)
        return before

    async def give_up_deletion(self, before: Volume) -> None:
        """Make a tombstone what it was `before` a deletion that has not deleted anything."""
        await self._change(before.name, lambda entry: tombstones.give_up_deletion(entry, before))

    async def finish_deletion(self, volume: Volume) -> None:
        """Note that all objects of a removed volume are gone: its name and its source are free again."""
        await self._change(volume.name, lambda entry: tombstones.finish_deletion(entry, volume))

    async def undelete(self, name: str) -> Volume:
        """See Registry.undelete."""
        await self.relist()
        now_ns = await self._holders.now_ns()

        revived: Volume | None = None

        def change(entry: Entry) -> Volume | None:
            nonlocal revived
            if entry.volume == revived:
                return None  # our own write, whose reply was lost
            revived = tombstones.revive(entry, now_ns)
            self._check_room(revived)
            return revived

        return await self._change(name, change)

    async def _change(self, name: str, change: Callable[[Entry], Volume | None]) -> Volume:
        """Replace a record by what `change` makes of it (None: it is right already); returns what is there then.

        After a reply that was lost `change` is asked again, about our own write or about one of another node that looks
        the same.
        """
        key = records.key_of(name)
        for _ in range(TRIES):
            entry = await self._take_over(name)
            if entry is None or entry.volume.clearing:
                raise UsageError(f"volume {name}: no such volume; `s3vol volume ls --all` shows those there are")
            wanted = change(entry)
            if wanted is None:
                return entry.volume
            if await self._put(wanted, matches(entry.etag)):
                return wanted
        raise reading.restless(key)

    async def clear(self) -> None:
        """See Registry.clear."""
        removed = [entry for entry in self._replica.entries.values() if entry.volume.removed]
        if removed:
            now_ns = await self._holders.now_ns()
            for hint in removed:
                if not tombstones.may_clear(hint, now_ns):  # the copy may have this node's time of it
                    continue
                with contextlib.suppress(Corrupt):  # damaged since; said already, and left to people
                    entry = await self._take_over(hint.volume.name)
                    if entry is not None and tombstones.may_clear(entry, now_ns):
                        await self._clear(entry)
        await self._holders.clear()

    async def _clear(self, entry: Entry) -> None:
        """Delete one tombstone, unless somebody has changed it meanwhile."""
        name = entry.volume.name
        if not await self._put(replace(entry.volume, clearing=secrets.token_hex(8)), matches(entry.etag)):
            return
        with trio.move_on_after(tombstones.CLEAR_WITHIN_S):
            await self._store.delete(records.key_of(name))
            self._replica.note(name, None)
            log.info("record of a volume that was removed long ago: deleted", extra={"volume": name})
        await self._save()

    def _now(self) -> str:
        return volumes.timestamp(self._now_s())

    # -- who has it mounted

    async def holders(self, volume: Volume) -> Sequence[Holder]:
        """See Registry.holders."""
        return await self._holders.of(volume)

    async def all_holders(self) -> Mapping[str, Sequence[Holder]]:
        """The holders of all volumes, by uuid."""
        return await self._holders.all()

    async def hold(self, volume: Volume) -> None:
        """See Registry.hold."""
        await self._holders.hold(volume)

    async def release(self, volume: Volume) -> None:
        """See Registry.release."""
        await self._holders.release(volume)

    # -- the file

    async def _save(self) -> None:
        """Put the copy on disk. A full disk makes no answer wrong, so it is said once and not raised."""
        if self._replica.age_s is None:
            return  # a copy that never was whole would say "no such volume" after a restart
        async with self._saving:
            document = self._replica.document()
            changed = document != self._saved
            try:
                await trio.to_thread.run_sync(self._replica.write, document if changed else None)
            except OSError as error:
                if str(error) != self._save_error:
                    log.warning("copy of the registry: cannot be written: %s", error)
                self._save_error, self._saved = str(error), b""
            else:
                self._save_error, self._saved = "", document


async def _make_directory(volume: Volume) -> None:
    """A source that is a directory is made like a bucket's prefix: by itself."""
    source = parse_source(volume.source)
    if source.kind != "file":
        return
    try:
        await trio.to_thread.run_sync(functools.partial(os.makedirs, source.directory, exist_ok=True))
    except OSError as error:
        raise UsageError(f"volume {volume.name}: {source.url}: cannot be made: {error.strerror}") from None
