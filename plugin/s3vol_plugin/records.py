"""Records of the registry as pure functions: keys, what a listing and its bodies say, which sources get in each
other's way, what may become of a tombstone.

Theory of operation. A record is one object, `.s3vol/volumes/<name>.json`, and everything that makes it valid is in it:
a copy under another name, or with the uuid of another volume, is refused like a damaged one, because two volumes of one
uuid would share a mount point. A record that is refused harms nobody but itself.

Sources get in each other's way when both volumes can write. Two names for the same objects are as safe as two nodes,
but seldom meant, so the newer one must say `share=yes`. One source inside the other never is: the outer volume would
show the inner one's `.s3vol/`, and a rename of a directory above would tear the inner one off its prefix. A read-only
volume harms nobody, so it may overlap anything: two stacks that read one bucket of models, a backup that reads all.

Rejected: judging sources by name of the bucket only (volumes without a bucket of their own share one by design).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from s3vol.errors import Corrupt, Unavailable, UsageError
from s3vol.layout import RESERVED
from s3vol.store.settings import Source, parse_source
from s3vol.types import ObjectInfo
from s3vol.units import format_seconds
from s3vol_plugin import volume as volumes
from s3vol_plugin.volume import Volume

FOLDER = f"{RESERVED}volumes/"
"""Where records are, below the registry's source."""

UNDELETE_S = 7 * 86400.0
"""How long a removed volume can be brought back, by the store's clock."""

CLEAR_WITHIN_S = 20.0
"""A tombstone is deleted within this time after it was marked, or not by this mark."""

CLEAR_GUARD_S = 120.0
"""A marked tombstone of less than this age, by the store's clock, may still be deleted; nobody replaces it."""

RECORD_MAX_BYTES = 64 << 10  # a record has some hundred bytes; a stranger's object of this name is not read into memory
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it was read. `modified_ns` is Last-Modified: when the record became this, by the store's clock."""

    volume: Volume
    etag: str
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that cannot be read; `error` names it and the way out."""

    name: str
    etag: str
    error: str


@dataclass(frozen=True, slots=True)
class Listed:
    """What a listing of the registry shows: records by volume name, and keys that are none."""

    records: Mapping[str, ObjectInfo]
    foreign: tuple[str, ...] = field(default_factory=tuple)


def key_of(name: str) -> str:
    """The key of a volume's record. Raises UsageError for what is no name: it never becomes part of a key."""
    if not volumes.is_name(name):
        raise UsageError(
            f"volume {name[:80]!r}: a name is 1 to 128 letters, digits, `_`, `.` and `-`, and begins with one of "
            "the first two"
        )
    return f"{FOLDER}{name}{_SUFFIX}"


def sort_out(objects: Iterable[ObjectInfo]) -> Listed:
    """The records among the objects of a listing."""
    records, foreign = {}, []
    for info in objects:
        name = info.key.removeprefix(FOLDER).removesuffix(_SUFFIX)
        if volumes.is_name(name) and info.key == key_of(name):
            records[name] = info
        elif info.key != FOLDER:  # a marker of the folder is what S3 browsers make
            foreign.append(info.key)
    return Listed(records, tuple(foreign))


def read(body: bytes, info: ObjectInfo, name: str) -> Entry:
    """The record `name` of an object's body. Raises Corrupt, naming the key and the way out."""
    key = key_of(name)
    try:
        if info.size > RECORD_MAX_BYTES:
            raise Corrupt(f"record {key}: has {info.size} bytes; at most {RECORD_MAX_BYTES} are possible")
        found = volumes.decode(body, f"record {key}")
        if found.name != name:
            raise Corrupt(f"record {key}: says that it is of volume {found.name!r}")
        _check_source(found, key)
    except Corrupt as error:
        raise Corrupt(
            f"{error}; repair it, or delete this object with an S3 tool and create the volume again"
        ) from None
    return Entry(found, info.etag, info.modified_ns)


def _check_source(volume: Volume, key: str) -> None:
    try:
        canonical = parse_source(volume.source).url
    except UsageError as error:
        raise Corrupt(f"record {key}: {error}") from None
    if canonical != volume.source:
        raise Corrupt(f"record {key}: source {volume.source!r} is not in its canonical form {canonical!r}")


def doubled(entries: Iterable[Entry]) -> dict[str, str]:
    """Names whose record has the uuid of another volume, and that volume's name; the older record keeps it."""
    owners: dict[str, str] = {}
    found: dict[str, str] = {}
    for entry in sorted(entries, key=lambda entry: (entry.modified_ns, entry.volume.name)):
        owner = owners.setdefault(entry.volume.uuid, entry.volume.name)
        if owner != entry.volume.name:
            found[entry.volume.name] = owner
    return found


def writable(volume: Volume) -> bool:
    """True unless the volume is mounted read-only everywhere."""
    return volume.options.get("mode") != "readonly"


def relation(one: Source, other: Source) -> str:
    """How the objects of two sources at one endpoint overlap: "", "equal", "inside" or "around"."""
    if (one.kind, one.bucket) != (other.kind, other.bucket) or one.kind == "memory":
        return ""
    left, right = (
        f"{item.directory.rstrip('/')}/" if item.kind == "file" else f"/{item.prefix}" for item in (one, other)
    )
    if left == right:
        return "equal"
    if left.startswith(right):
        return "inside"
    return "around" if right.startswith(left) else ""


def overlap(one: Volume, other: Volume) -> str:
    """How the objects of two volumes overlap: "", "equal", "inside" or "around"."""
    if any(one.options.get(name, "") != other.options.get(name, "") for name in ("endpoint", "cluster")):
        return ""
    return relation(parse_source(one.source), parse_source(other.source))


def obstacle(volume: Volume, other: Volume) -> UsageError | None:
    """Why `volume` cannot be made beside `other`; None when it can."""
    how = overlap(volume, other)
    if not how or other.name == volume.name or (other.removed and not other.deleting):
        return None
    if other.deleting:
        return UsageError(
            f"volume {volume.name}: objects of the removed volume {other.name} at {other.source} are being deleted; "
            f"wait, or finish that with `s3vol volume delete {other.name}`"
        )
    if not (writable(volume) and writable(other)):
        return None
    if how == "equal":
        if volume.share:
            return None
        return UsageError(
            f"volume {volume.name}: volume {other.name} has the same source {other.source}; "
            "say share=yes if both are to write there, or read-only=yes"
        )
    where = f"is {'inside that of' if how == 'inside' else 'around that of'} volume {other.name}, {other.source}"
    return UsageError(f"volume {volume.name}: source {volume.source} {where}; choose another prefix, or read-only=yes")


def registry_obstacle(volume: Volume, registry: Source) -> UsageError | None:
    """Why `volume` would lay hands on the registry itself: its source is around the registry's."""
    around = not volume.options.get("endpoint") and relation(parse_source(volume.source), registry) == "around"
    if not around or not writable(volume):
        return None
    return UsageError(
        f"volume {volume.name}: source {volume.source} is around the registry of volumes, {registry.url}; "
        "containers could change it; choose another prefix, or read-only=yes"
    )


def bury(volume: Volume, node: str, at: str, *, delete: bool) -> Volume:
    """The tombstone of a volume. With `delete` its objects are going to be deleted: nobody can bring it back."""
    return replace(volume, removed_at=at, removed_by=node, on_remove="delete" if delete else "retain")


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
