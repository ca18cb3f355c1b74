"""Records of the registry as pure functions: keys, what a listing and its bodies say, which sources get in each
other's way. What may become of the record of a removed volume is in tombstones.py.

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
from dataclasses import dataclass, field

from s3vol.errors import Corrupt, UsageError
from s3vol.layout import RESERVED
from s3vol.store.settings import Source, parse_source
from s3vol.types import ObjectInfo
from s3vol_plugin import volume as volumes
from s3vol_plugin.layering import same_server
from s3vol_plugin.volume import Volume

FOLDER = f"{RESERVED}volumes/"
"""Where records are, below the registry's source."""

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
    servers = ((one.options.get(name, ""), other.options.get(name, "")) for name in ("endpoint", "cluster"))
    if not all(same_server(*pair) for pair in servers):
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
