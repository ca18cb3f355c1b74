"""The bucket format, as pure functions: path and key, attributes and metadata headers (docs/format.md).

Theory of operation. Attributes travel in the headers that s3fs writes, so that s3fs, rclone and GeeseFS agree with us:
`mode` (decimal, the full st_mode), `uid`, `gid`, `mtime`, `ctime`, `atime` (`SECS.NNNNNNNNN`), `rdev`, `xattr`
(URL-encoded JSON of base64 values). What others wrote is read in their forms too: rclone's octal mode and trimmed
fractions. Headers that we do not know are kept as they are when an object is published again: they are somebody's.

Rejected: our own single header with everything packed (smaller, and unreadable for every other tool).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import stat
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from s3vol.errors import MetadataTooLarge, NameTooLong, Rejected
from s3vol.types import NONCE, ObjectInfo, Version

RESERVED = ".s3vol/"
"""Ours, and invisible in a mount."""

ROOT_ATTRIBUTES = ".s3vol/root"
"""Carries the attributes of the mount's root, which has no marker of its own."""

ORPHANS = ".s3vol/orphans/"
"""Bytes of unlinked files that are still open somewhere: `orphans/<node>/<random>`."""

INTENTS = ".s3vol/intents/"
"""Directory renames under way: `intents/<id>.json`."""

NAME_MAX_BYTES = 255  # POSIX NAME_MAX on every Linux file system; MinIO refuses longer components
KEY_MAX_BYTES = 1024  # S3: object key length
METADATA_MAX_BYTES = 2048  # S3 and MinIO: all user metadata, names with their prefix included
META_PREFIX = "x-amz-meta-"

TOMBSTONE = "s3vol-tombstone"
"""Metadata name of an object that stands for "renamed away": readers treat it as absent."""

LINK = "s3vol-link"
"""Metadata name of a hard link's stub; the value is the id of the body under `.s3vol/links/`."""

LINK_NAME = "s3vol-link-name"
"""Metadata name of a stub: the token that stands for this name in the record of the link."""

LINK_PATH = "s3vol-link-path"
"""Metadata name of a body: the URL-encoded path by which it was changed last, when it fits. For people, and for the
place of a conflict copy; names may have moved since."""

LINK_FROM = "s3vol-link-from"
"""Metadata name of a body that has not changed since it was moved: ETag and nonce that the object had at its name."""

LINK_COUNT = "s3vol-link-count"
"""Metadata name of a link's record: how many names there are."""

LINK_BUSY = "s3vol-link-busy"
"""Metadata name of a link's record in which something is under way."""

LINKS = ".s3vol/links/"
"""Hard links: the body `links/<id>` with the attributes, and the record of its names `links/<id>.names`."""

_RECORD_ENDING = ".names"

_NS = 1_000_000_000
_NONCE_RESERVE_BYTES = 80  # header name and value of the nonce that a publish adds
_LINK_PATH_MAX_BYTES = 512  # leaves three quarters of the metadata to attributes
_LINK_ID = re.compile(r"[0-9a-f]{16}")
_FILE_TYPES = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}


@dataclass(frozen=True, slots=True)
class Owner:
    """What objects without attributes get: the mount's uid, gid and umask."""

    uid: int
    gid: int
    umask: int


@dataclass(frozen=True, slots=True)
class Posix:
    """Attributes as stored with an object; size and inode number are not."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    rdev: int = 0


def check_name(name: bytes) -> str:
    """A directory entry's name as text. Raises NameTooLong, Rejected for what no object key can hold faithfully."""
    if len(name) > NAME_MAX_BYTES:
        raise NameTooLong(f"name of {len(name)} bytes: at most {NAME_MAX_BYTES} are possible")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise Rejected(f"name {name!r} is not UTF-8: an object key cannot hold it") from None
    if text.endswith("__XLDIR__"):
        raise Rejected(f"name {text!r}: MinIO would take the ending __XLDIR__ for a directory marker")
    return text


def check_key(key: str, max_bytes: int = KEY_MAX_BYTES) -> str:
    """The key itself. Raises NameTooLong when it is over `max_bytes`: 1,024 less the volume's prefix."""
    length = len(key.encode())
    if length > max_bytes:
        raise NameTooLong(f"path of {length} bytes: an object key has room for {max_bytes}")
    return key


def is_path(key: str) -> bool:
    """True when `key` (without a trailing `/`) can be shown as a path: no empty, `.` or `..` component, no NUL."""
    parts = key.removesuffix("/").split("/")
    return "\0" not in key and all(
        p not in ("", ".", "..") and len(p.encode("utf-8", "surrogatepass")) <= NAME_MAX_BYTES for p in parts
    )


def is_reserved(key: str) -> bool:
    """True for s3vol's own objects."""
    return key.startswith(RESERVED)


def parent_key(key: str) -> str:
    """The key of the directory that holds `key` (ending in `/`; "" for the root)."""
    folder, slash, _ = key.removesuffix("/").rpartition("/")
    return folder + slash


def name_of(key: str) -> str:
    """The last component of a key."""
    return key.removesuffix("/").rpartition("/")[2]


def marker_key(directory: str) -> str:
    """The object that carries a directory's attributes, by the directory's key."""
    return directory or ROOT_ATTRIBUTES


def is_tombstone(info: ObjectInfo) -> bool:
    """True for an object that stands for "renamed away". Its metadata must be known."""
    return TOMBSTONE in (info.metadata or {})


@dataclass(frozen=True, slots=True)
class Link:
    """What a stub says: the id of the body, and the token of this one name."""

    id: str
    token: str

    @property
    def key(self) -> str:
        """Where the body is."""
        return body_key(self.id)


def body_key(link_id: str) -> str:
    """The object that holds content and attributes of a hard link."""
    return LINKS + link_id


def record_key(link_id: str) -> str:
    """The object that lists the names of a hard link."""
    return f"{LINKS}{link_id}{_RECORD_ENDING}"


def body_id(key: str) -> str | None:
    """The id of the link whose body is at `key`; None for every other key."""
    return key[len(LINKS) :] if key.startswith(LINKS) and not key.endswith(_RECORD_ENDING) else None


def record_id(key: str) -> str | None:
    """The id of the link whose record is at `key`; None for every other key."""
    return key[len(LINKS) : -len(_RECORD_ENDING)] if key.startswith(LINKS) and key.endswith(_RECORD_ENDING) else None


def is_link_id(text: str) -> bool:
    """True for what `.s3vol/links/` names its bodies and records by."""
    return _LINK_ID.fullmatch(text) is not None


def stub(link: Link) -> tuple[bytes, dict[str, str]]:
    """Body and metadata of the object at a name of a hard link (docs/rfcs/0004 says why it is not empty)."""
    return f"s3vol hard link {link.id} {link.token}\n".encode(), {LINK: link.id, LINK_NAME: link.token}


def link_of(info: ObjectInfo) -> Link | None:
    """What the object says if it is a stub. Its metadata must be known.

    Tools that write through s3fs headers keep all of them: a stub that got a content of its own is an ordinary file.
    """
    meta = info.metadata or {}
    link = Link(meta.get(LINK, ""), meta.get(LINK_NAME, ""))
    if not is_link_id(link.id) or info.size != len(stub(link)[0]):
        return None
    return link


def without_link(meta: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a file without the headers of a stub, and of a body."""
    return {name: value for name, value in meta.items() if name not in (LINK, LINK_NAME, LINK_PATH, LINK_FROM)}


def with_origin(meta: Mapping[str, str], version: Version) -> dict[str, str]:
    """Metadata of a body that is a copy of this version; without the origin when the headers are full."""
    return _if_it_fits(meta, LINK_FROM, f"{version.etag} {version.nonce}")


def is_body_of(info: ObjectInfo, version: Version) -> bool:
    """True when this body has the content and the attributes of that version of a file that became a link."""
    return (info.metadata or {}).get(LINK_FROM) == f"{version.etag} {version.nonce}"


def with_path(meta: Mapping[str, str], path: str) -> dict[str, str]:
    """Metadata of a body with the path by which it is known; without it when that is long, or the headers are full."""
    text = urllib.parse.quote(path)
    return _if_it_fits(meta, LINK_PATH, text) if 0 < len(text) <= _LINK_PATH_MAX_BYTES else dict(meta)


def _if_it_fits(meta: Mapping[str, str], name: str, value: str) -> dict[str, str]:
    more = {**meta, name: value}
    return more if metadata_bytes(more) + _NONCE_RESERVE_BYTES <= METADATA_MAX_BYTES else dict(meta)


def visible_key(key: str, meta: Mapping[str, str]) -> str:
    """Where people look for the object: `key` itself, and for the body of a hard link one of its names."""
    link_id = body_id(key)
    if link_id is None:
        return key
    path = urllib.parse.unquote(meta.get(LINK_PATH, ""))
    return path if is_path(path) and not is_reserved(path) else f"hard-link-{link_id}"


def says_the_same(headers: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """True when two objects differ in nothing but when, and by which write, they got their headers."""
    passing = {NONCE, "ctime"}
    return {n: v for n, v in headers.items() if n not in passing} == {
        n: v for n, v in others.items() if n not in passing
    }


def without_nonce(meta: Mapping[str, str]) -> dict[str, str]:
    """Metadata as a content carries it: what the next publish keeps."""
    return {name: value for name, value in meta.items() if name != NONCE}


def conflict_key(key: str, node: str, at_s: float, max_bytes: int = KEY_MAX_BYTES) -> str:
    """Where content goes that lost to another writer: beside its file, shortened to fit the limits of names.

    Where the path is so long that even the ending does not fit, it is in a directory further up.
    """
    suffix = (
        f".s3vol-conflict-{node}-" + time.strftime("%Y%m%dT%H%M%S", time.gmtime(at_s)) + f"{at_s % 1:.3f}"[1:] + "Z"
    )
    folder, _, name = key.rpartition("/")
    folder = f"{folder}/" if folder else ""
    while folder and len(f"{folder}{suffix}".encode()) >= max_bytes:
        folder = parent_key(folder)
    room = min(NAME_MAX_BYTES, max_bytes - len(folder.encode())) - len(suffix.encode())
    return folder + name.encode()[: max(room, 1)].decode("utf-8", "ignore") + suffix


def stable_ino(key: str) -> int:
    """Inode number of a key: the same at each mount and on each node. 63 bits, never 0 or 1 (the root)."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
    return number if number > 1 else number + 2


def format_ns(at_ns: int) -> str:
    """`SECS.NNNNNNNNN`: s3fs reads the fraction as a whole number of nanoseconds, so all nine digits are written."""
    return f"{at_ns // _NS}.{at_ns % _NS:09d}"


def parse_ns(text: str) -> int | None:
    """Nanoseconds of `SECS`, `SECS.FRACTION` (any number of digits), or None."""
    seconds, _, fraction = text.strip().partition(".")
    if not seconds.removeprefix("-").isdecimal() or (fraction and not fraction.isdecimal()):
        return None
    return int(seconds) * _NS + int(fraction[:9].ljust(9, "0") or "0")


def parse_mode(text: str) -> int | None:
    """st_mode of s3fs and GeeseFS (decimal) or rclone (octal).

    The same header holds both radices. A leading 0 is octal; a decimal number whose type bits exist is decimal (or
    has none and is a plain permission); the rest is read as octal: `100644` is over 65,535, `40755` has no valid type.
    """
    text = text.strip()
    if not text.isdecimal():
        return None
    if not text.startswith("0") and (value := int(text)) <= 0xFFFF:
        kind = stat.S_IFMT(value)
        if kind in _FILE_TYPES or (kind == 0 and value <= 0o7777):
            return value
    try:
        value = int(text, 8)
    except ValueError:
        return None
    return value if value <= 0xFFFF and (stat.S_IFMT(value) in _FILE_TYPES or stat.S_IFMT(value) == 0) else None


def decode_attr(info: ObjectInfo, owner: Owner, *, is_dir: bool) -> Posix:
    """Attributes of an object of any writer; what is missing or unreadable comes from `owner` and Last-Modified."""
    meta = info.metadata or {}
    mode = parse_mode(meta.get("mode", ""))
    if mode is None:
        mode = (0o777 if is_dir else 0o666) & ~owner.umask
    kind = stat.S_IFMT(mode)
    if is_dir or kind in (0, stat.S_IFDIR):
        mode = stat.S_IMODE(mode) | (stat.S_IFDIR if is_dir else stat.S_IFREG)

    def number(name: str, default: int) -> int:
        text = meta.get(name, "").strip()
        return int(text) if _is_number(text) else default

    def moment(name: str, default: int) -> int:
        found = parse_ns(meta.get(name, ""))
        return default if found is None else found

    mtime_ns = moment("mtime", info.modified_ns)
    return Posix(
        mode=mode,
        uid=number("uid", owner.uid),
        gid=number("gid", owner.gid),
        mtime_ns=mtime_ns,
        ctime_ns=moment("ctime", max(mtime_ns, info.modified_ns) if "mtime" in meta else info.modified_ns),
        atime_ns=moment("atime", mtime_ns),
        rdev=number("rdev", 0),
    )


def encode_attr(posix: Posix, kept: Mapping[str, str], *, with_atime: bool = False) -> dict[str, str]:
    """Metadata for a publish: the attributes, over the headers that were there before (`kept`)."""
    meta = dict(kept)
    meta.update(
        mode=str(posix.mode),
        uid=str(posix.uid),
        gid=str(posix.gid),
        mtime=format_ns(posix.mtime_ns),
        ctime=format_ns(posix.ctime_ns),
    )
    if with_atime or "atime" in meta:
        meta["atime"] = format_ns(posix.atime_ns)
    if stat.S_ISCHR(posix.mode) or stat.S_ISBLK(posix.mode):
        meta["rdev"] = str(posix.rdev)
    return meta


def decode_xattr(meta: Mapping[str, str]) -> dict[bytes, bytes]:
    """Extended attributes from the `xattr` header of s3fs; a value that is not base64 is taken as it is."""
    result: dict[bytes, bytes] = {}
    for name, value in (_xattr_table(meta) or {}).items():
        if isinstance(value, str):
            try:
                result[name.encode()] = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                result[name.encode()] = value.encode()
    return result


def unreadable(meta: Mapping[str, str]) -> list[str]:
    """Names of the attribute headers that are there and that the decoders above pass over."""
    found = [name for name in ("mtime", "ctime", "atime") if name in meta and parse_ns(meta[name]) is None]
    found += [name for name in ("uid", "gid", "rdev") if name in meta and not _is_number(meta[name])]
    if "mode" in meta and parse_mode(meta["mode"]) is None:
        found.append("mode")
    return sorted(found if _xattr_table(meta) is not None else [*found, "xattr"])


def _xattr_table(meta: Mapping[str, str]) -> dict[str, object] | None:
    """The JSON of the `xattr` header; None when it is none, or cannot be names and values in bytes."""
    try:
        found = json.loads(urllib.parse.unquote(meta.get("xattr") or "{}"))
        json.dumps(found, ensure_ascii=False).encode()  # escapes can stand for what is no UTF-8
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_number(text: str) -> bool:
    return text.strip().isdecimal() and int(text) < 1 << 32


def encode_xattr(values: Mapping[bytes, bytes]) -> str:
    """The `xattr` header of s3fs: URL-encoded JSON of name to base64. Raises Rejected for a name that is not UTF-8."""
    try:
        table = {name.decode(): base64.b64encode(value).decode() for name, value in sorted(values.items())}
    except UnicodeDecodeError:
        raise Rejected("extended attribute name is not UTF-8") from None
    return urllib.parse.quote(json.dumps(table, separators=(",", ":")), safe="")


def metadata_bytes(meta: Mapping[str, str]) -> int:
    """Size of user metadata as S3 counts it: full header names and values."""
    return sum(len(META_PREFIX) + len(name.encode()) + len(value.encode()) for name, value in meta.items())


def check_metadata(meta: Mapping[str, str], *, reserve_bytes: int = _NONCE_RESERVE_BYTES) -> None:
    """Raise MetadataTooLarge when `meta` and a nonce of up to `reserve_bytes` do not fit into the 2,048 bytes."""
    size = metadata_bytes(meta)
    if size + reserve_bytes > METADATA_MAX_BYTES:
        raise MetadataTooLarge(f"attributes take {size} bytes; an object carries {METADATA_MAX_BYTES - reserve_bytes}")
