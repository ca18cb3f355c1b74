"""Tombstones: what may become of the record of a volume that was removed. Pure.

Theory of operation. A volume that is removed leaves its record as a tombstone: its name and its source stay known, and
for `UNDELETE_S` it can be brought back. If its objects are to be deleted as well, the tombstone says how far that is
(`deletion`: begun, done), and from `begun` on nobody brings it back. A tombstone whose time is over is marked
(`clearing`) and then deleted; while the mark is young, its delete may still be on the way, so nobody writes there.

Each function takes the record as it is now and returns what it becomes, None where it is right already; the registry
writes that under the condition that the record is still the one that was looked at.
"""

from __future__ import annotations

from dataclasses import replace

from s3vol.errors import Unavailable, UsageError
from s3vol.units import format_seconds
from s3vol_plugin.records import Entry
from s3vol_plugin.volume import Volume

UNDELETE_S = 7 * 86400.0
"""How long a removed volume can be brought back, by the store's clock."""

CLEAR_WITHIN_S = 20.0
"""A tombstone is deleted within this time after it was marked, or not by this mark."""

CLEAR_GUARD_S = 120.0
"""A marked tombstone of less than this age, by the store's clock, may still be deleted; nobody replaces it."""


def bury(volume: Volume, node: str, at: str, *, delete: bool) -> Volume:
    """The tombstone of a volume. With `delete` its objects are going to be deleted: nobody can bring it back."""
    return replace(volume, removed_at=at, removed_by=node, on_remove="delete" if delete else "retain")


def remove(entry: Entry, volume: Volume, node: str, at: str) -> Volume | None:
    """The tombstone of `volume`. Raises UsageError when the record is another volume's by now."""
    _check_same(entry, volume)
    return None if entry.volume.removed else bury(entry.volume, node, at, delete=volume.on_remove == "delete")


def begin_deletion(entry: Entry, volume: Volume) -> Volume | None:
    """Objects are being deleted. Raises UsageError when the volume is there (again), is another one by now, or when
    all are gone: what is at its source since then is somebody else's."""
    _check_same(entry, volume)
    if not entry.volume.removed:
        raise UsageError(f"volume {volume.name}: is not removed; `s3vol volume rm --data {volume.name}` does both")
    if entry.volume.deletion == "done":
        raise UsageError(f"volume {volume.name}: its data is deleted already")
    return None if entry.volume.deletion else replace(entry.volume, on_remove="delete", deletion="begun")


def give_up_deletion(entry: Entry, volume: Volume) -> Volume | None:
    """What it was before a deletion that has not deleted anything. Raises UsageError when it is another volume's."""
    _check_same(entry, volume)
    back = replace(entry.volume, on_remove=volume.on_remove, deletion="")
    return back if entry.volume.deletion == "begun" else None


def finish_deletion(entry: Entry, volume: Volume) -> Volume | None:
    """All objects are gone. Raises UsageError when the record is another volume's by now."""
    _check_same(entry, volume)
    return replace(entry.volume, deletion="done") if entry.volume.deletion == "begun" else None


def _check_same(entry: Entry, volume: Volume) -> None:
    if entry.volume.uuid != volume.uuid:
        raise UsageError(f"volume {volume.name}: is another volume by now, created by {entry.volume.created_by}")


def revive(entry: Entry, now_ns: int) -> Volume:
    """The volume of a tombstone. Raises UsageError when there is nothing to bring back, or it is too late."""
    volume = entry.volume
    if not volume.removed:
        raise UsageError(f"volume {volume.name}: is there, it was not removed")
    if volume.deletion:
        raise UsageError(f"volume {volume.name}: its data was deleted when it was removed; create it anew")
    if expired(entry, now_ns):
        raise UsageError(
            f"volume {volume.name}: was removed more than {format_seconds(UNDELETE_S)} ago; its objects are still at "
            f"{volume.source}: create it again with its options"
        )
    return replace(volume, removed_at="", removed_by="")


def expired(tombstone: Entry, now_ns: int) -> bool:
    """True when a removed volume can no longer be brought back. Both times are the store's."""
    return bool(tombstone.volume.clearing) or now_ns - tombstone.modified_ns > UNDELETE_S * 1e9


def may_clear(entry: Entry, now_ns: int) -> bool:
    """True when nobody needs this record any more. Both times are the store's.

    One whose objects are still to be deleted is needed. What somebody else has marked is left to him for a while.
    """
    if not entry.volume.removed or entry.volume.deleting or not expired(entry, now_ns):
        return False
    return not (entry.volume.clearing and _guarded(entry, now_ns))


def _guarded(entry: Entry, now_ns: int) -> bool:
    return now_ns - entry.modified_ns < CLEAR_GUARD_S * 1e9


def may_replace(tombstone: Entry, volume: Volume, now_ns: int) -> None:
    """Raise UsageError when a new volume must not take the name of a removed one, Unavailable when not now."""
    old = tombstone.volume
    if old.clearing and _guarded(tombstone, now_ns):
        raise Unavailable(
            f"volume {volume.name}: the record of a volume that was removed long ago is being deleted; try again in "
            f"{format_seconds(CLEAR_GUARD_S)}"
        )
    if old.deleting:
        raise UsageError(
            f"volume {volume.name}: was removed on {old.removed_at} and its objects are being deleted by "
            f"{old.removed_by}; wait, or finish that with `s3vol volume delete {volume.name}`"
        )
    if old.deletion or old.source != volume.source or expired(tombstone, now_ns):
        return
    raise UsageError(
        f"volume {volume.name}: was removed on {old.removed_at} and its data is still there; bring it back with "
        f"`s3vol volume undelete {volume.name}`, or delete its data with `s3vol volume delete {volume.name}`"
    )
