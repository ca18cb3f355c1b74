"""Deleting the objects of a removed volume: by the store, below the volume's prefix, and nothing else.

Theory of operation. A volume is removed by its record; whoever says so gets the objects deleted as well. That is a step
of its own, for it takes long and cannot be taken back. It begins by writing down that it began: from then on nobody
brings the volume back, and nobody gets its source. Only then is it looked whether another volume has these objects, so
that one which is just being created is seen here, or sees us. It lists and deletes page by page, and ends by writing
down that all is gone. A run that was interrupted is repeated with `s3vol volume delete`; that of a node that is only
slow goes on meanwhile. Whoever is first to end frees name and source, so each one asks before each page whether what
is listed is still the removed volume's.

It never goes through a mount point (a path can lead anywhere), never removes a bucket, and never touches a registry:
keys below `.s3vol/volumes/` and `.s3vol/mounts/`, wherever they are, belong to no volume. Listing goes on until a pass
finds nothing: on MinIO an object hides those below its name.

Rejected: DeleteObjects (answers 200 for a refusal, and says more only in a body that stores disagree on).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from s3vol.errors import Corrupt, Rejected, S3volError, UsageError
from s3vol.store.base import Store
from s3vol.store.edge import first_error
from s3vol.store.settings import parse_source
from s3vol_plugin import holders, records
from s3vol_plugin.access import open_volume
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

_AT_A_TIME = 16  # deletes of a page side by side: 1.5 to 3 thousand a second on a MinIO in the LAN
_PAGE_KEYS = 1000
_KEPT = (records.FOLDER, holders.FOLDER)


@dataclass(slots=True)
class Deleted:
    """What a deletion has done so far. `kept` are keys that the store cannot express, foreign ones as `a//b`."""

    objects: int = 0
    bytes: int = 0
    kept: list[str] = field(default_factory=list)


async def remove(volume: Volume, *, registry: BucketRegistry) -> None:
    """Turn a volume that nobody has mounted into a tombstone. Raises UsageError, naming the nodes that have it.

    Asked before and after: a node that mounts says so before it reads the record again, so one sees the other.
    """
    await check_free(volume, registry)
    await registry.remove(volume)
    try:
        await check_free(volume, registry)
    except S3volError:
        await registry.undelete(volume.name)
        raise


async def check_free(volume: Volume, registry: BucketRegistry) -> None:
    """Raise UsageError when some node has the volume mounted."""
    holding = await registry.holders(volume)
    if holding:
        nodes = ", ".join(sorted(holder.node for holder in holding))
        raise UsageError(f"volume {volume.name}: is mounted on {nodes}; stop the containers there first")


def check_deletable(volume: Volume) -> None:
    """Raise UsageError for a volume in IPFS: its blocks go when its files do, and its writers agree on that."""
    if parse_source(volume.source).kind == "ipfs":
        raise UsageError(
            f"volume {volume.name}: is in IPFS, where only files are deleted; empty it in a container, then remove it "
            "without its data"
        )


async def delete_objects(
    volume: Volume,
    *,
    registry: BucketRegistry,
    settings: Settings,
    on_progress: Callable[[Deleted], None] = lambda _: None,
) -> Deleted:
    """Delete all objects of a removed volume, and note that they are gone.

    Raises UsageError when the volume is not removed, is in IPFS, or another volume uses the same objects; nothing was
    deleted then. Any other error may come half-way; what is left is deleted by calling again.
    """
    check_deletable(volume)
    before = await registry.begin_deletion(volume)
    try:
        await _check_alone(before, registry)
    except S3volError:
        if not before.deletion:  # else another run has deleted some of them: nobody may bring that back
            await registry.give_up_deletion(before)
        raise
    async with open_volume(before, settings) as store:
        done = await empty(store, on_progress=on_progress, check=lambda: registry.begin_deletion(volume))
    if done.kept:
        raise S3volError(
            f"volume {volume.name}: {len(done.kept)} objects have keys that are no path, for example {done.kept[0]!r}; "
            f"delete them with an S3 tool, then `s3vol volume delete {volume.name}`"
        )
    await registry.finish_deletion(before)
    return done


async def _check_alone(volume: Volume, registry: BucketRegistry) -> None:
    """Raise UsageError when somebody else has its objects, Corrupt when that cannot be known."""
    await registry.relist()
    for damaged in registry.damaged:
        try:
            registry.get(damaged.name)
        except Corrupt as error:
            raise Corrupt(f"volume {volume.name}: its objects may be those of volume {damaged.name}: {error}") from None
    for other in registry.all():
        if other.name != volume.name and records.overlap(volume, other):
            raise UsageError(
                f"volume {volume.name}: its objects are those of volume {other.name} too, {other.source}; "
                "they are kept as long as that volume is there"
            )


async def empty(
    store: Store,
    *,
    on_progress: Callable[[Deleted], None] = lambda _: None,
    check: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
) -> Deleted:
    """Delete what a store holds, registries aside. Raises as the store does, and what `check` raises: it is called
    before the objects of a page are deleted."""
    done = Deleted()
    while await _pass(store, done, on_progress, check):
        pass
    return done


async def _pass(
    store: Store, done: Deleted, on_progress: Callable[[Deleted], None], check: Callable[[], Awaitable[object]]
) -> bool:
    """Go through the whole listing once; True when something was deleted."""
    before = done.objects
    cursor: str | None = None
    limit = trio.CapacityLimiter(_AT_A_TIME)

    async def delete(key: str, size_bytes: int) -> None:
        async with limit:
            try:
                await store.delete(key)
            except Rejected:
                if key not in done.kept:
                    done.kept.append(key)
                return
        done.objects += 1
        done.bytes += size_bytes

    while True:
        page = await store.list("", delimiter=False, cursor=cursor, limit=_PAGE_KEYS, metadata=False)
        found = [info for info in page.objects if not is_registry(info.key)]
        if found:
            await check()
        try:
            async with trio.open_nursery() as nursery:
                for info in found:
                    nursery.start_soon(delete, info.key, info.size)
        except ExceptionGroup as group:
            raise first_error(group) from None
        on_progress(done)
        if page.next_cursor is None:
            return done.objects > before
        cursor = page.next_cursor


def is_registry(key: str) -> bool:
    """True for a key of a registry of volumes, wherever it is."""
    return any(key.startswith(folder) or f"/{folder}" in key for folder in _KEPT)
