"""The record of a hard link: which names it has, and which of them are being made or taken away. Pure.

Theory of operation. Each name of a link is a stub with a token of its own, and the record lists the tokens. A token
belongs to one stub at one path for its whole life: a rename makes a new stub with a new token. Before a stub is made
or taken away the record says so (`doing`: the token, its path, who and since when). So whatever a crash leaves is
decided by one question, to which everybody gets the same answer: is the stub with this token at that path? If it is,
the token stays; if not, it goes.

A record without names is dead, for ever: no name can be added, the body goes, and the record after it.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from s3vol import layout
from s3vol.errors import Corrupt, PosixError
from s3vol.types import ObjectInfo

NAMES_MAX = 4096  # 20 bytes each are rewritten with each change; ext4 has 65,000, busybox in an image needs 400


@dataclass(frozen=True, slots=True)
class Doing:
    """A name that is being made or taken away."""

    path: str
    by: str  # the mount that is at it
    at_s: int  # since when, seconds since the epoch


@dataclass(frozen=True, slots=True)
class Record:
    """Tokens of all names, and those that are in doubt."""

    names: frozenset[str] = frozenset()
    doing: Mapping[str, Doing] = field(default_factory=dict)

    @property
    def dead(self) -> bool:
        """True when the last name has gone."""
        return not self.names


@dataclass(frozen=True, slots=True)
class Count:
    """How many names a link has, and when that changed last."""

    names: int
    changed_ns: int


def encode(record: Record) -> bytes:
    """The object's body."""
    table = {"names": sorted(record.names), "doing": {token: asdict(it) for token, it in sorted(record.doing.items())}}
    return json.dumps(table, separators=(",", ":")).encode()


def metadata(record: Record, now_ns: int) -> dict[str, str]:
    """The object's headers: what stat() needs, so that a HEAD answers it."""
    meta = {layout.LINK_COUNT: str(len(record.names)), "ctime": layout.format_ns(now_ns)}
    return {**meta, layout.LINK_BUSY: "1"} if record.doing or record.dead else meta


def count_of(record: ObjectInfo | None) -> Count:
    """What the headers of a record say. Without a record there is one name at least."""
    meta = (record.metadata or {}) if record is not None else {}
    names = meta.get(layout.LINK_COUNT, "")
    return Count(int(names) if names.isdecimal() else 1, layout.parse_ns(meta.get("ctime", "")) or 0)


def parse(body: bytes, key: str) -> Record:
    """The record of an object's body. Corrupt when it is none: nothing may be guessed about names."""
    try:
        found = json.loads(body)
        doing = {
            str(token): Doing(str(it["path"]), str(it["by"]), int(it["at_s"])) for token, it in found["doing"].items()
        }
        return Record(frozenset(str(token) for token in found["names"]), doing)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Corrupt(f"{key}: not the record of a hard link; restore it, or copy the file under a new name") from None


def begin(record: Record, made: Mapping[str, Doing], left: Mapping[str, Doing]) -> Record:
    """Names that are going to be made or to be left. PosixError: EMLINK, and ENOENT when the link is dead."""
    if record.dead:
        raise PosixError(errno.ENOENT, "the last name of this file has gone")
    names = record.names | made.keys()
    if made and len(names) - len(left) > NAMES_MAX:
        raise PosixError(errno.EMLINK, f"a file has at most {NAMES_MAX} names")
    known = {token: it for token, it in left.items() if token in names}
    return Record(names, {**record.doing, **made, **known})


def settle(record: Record, here: Iterable[str], gone: Iterable[str]) -> Record:
    """It is known where these are. With the last name, what is being done stays: somebody takes the body away."""
    here, gone = set(here), set(gone)
    names = record.names - gone
    done = (here | gone) if names else here
    return Record(names, {token: it for token, it in record.doing.items() if token not in done})
