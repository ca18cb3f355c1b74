"""A volume: its name, where its objects are, how it is mounted. The value, and its form as JSON.

The same JSON is the record in the bucket (`.s3vol/volumes/<name>.json`, docs/format.md) that makes all nodes agree,
and the core of the record that a node keeps of the volumes it has mounted. It never holds a secret: credentials are
named, and each node has the file of that name.

A name comes from anybody who may talk to dockerd, and dockerd passes on anything: `../../x`, newlines, 300 bytes. What
`is_name` refuses never becomes part of a path or a key. Directories and processes are named by `uuid`, never by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

from s3vol.errors import Corrupt

SCHEMA = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # dockerd's own rule for the local driver, with an upper bound
_UUID = re.compile(r"[0-9a-f]{32}")


def is_name(name: str) -> bool:
    """True for what may name a volume; Docker's anonymous names (64 hexadecimal digits) are among them."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume of the registry.

    `source` is the canonical URL that `s3vol mount` takes, `options` are rows of the options table as raw text by
    their hyphened name. `share` says that another volume may write to the same source, `sticky` that dockerd may not
    remove it. `created_at` and `removed_at` are RFC 3339 in UTC; a volume with `removed_at` is a tombstone. It can be
    undeleted, unless `deletion` of its objects has begun; `deletion` is never set on a volume that is there. `clearing`
    is a nonce on a tombstone whose time is over and whose record is being deleted in this moment.
    """

    name: str
    uuid: str
    source: str
    created_at: str
    created_by: str
    options: Mapping[str, str] = field(default_factory=dict)
    credentials: str = ""
    on_remove: Literal["retain", "delete"] = "retain"
    share: bool = False
    sticky: bool = False
    removed_at: str = ""
    removed_by: str = ""
    deletion: Literal["", "begun", "done"] = ""
    clearing: str = ""

    @property
    def removed(self) -> bool:
        """True for a tombstone."""
        return bool(self.removed_at)

    @property
    def deleting(self) -> bool:
        """True for a tombstone whose objects are to be deleted and are not all gone: nobody may write there."""
        return self.removed and self.on_remove == "delete" and self.deletion != "done"


def encode(volume: Volume) -> bytes:
    """JSON of a volume, with the schema's version."""
    return json.dumps({"schema": SCHEMA, **asdict(volume)}, indent=1, sort_keys=True).encode() + b"\n"


def decode(data: bytes, what: str) -> Volume:
    """The volume of a JSON record. Raises Corrupt, naming `what`, for anything that is not exactly one.

    Unknown keys of a later minor addition are kept out; an unknown schema is refused, for its rules are not known.
    """
    try:
        values: dict[str, Any] = json.loads(data)
        schema = values["schema"]
        if schema != SCHEMA:
            raise Corrupt(f"{what}: schema {schema!r}; this version of s3vol reads {SCHEMA}")
        volume = Volume(**{item.name: values[item.name] for item in fields(Volume) if item.name in values})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{what}: is not a volume record: {error}") from None
    texts = (volume.name, volume.uuid, volume.source, volume.created_at, volume.created_by, volume.credentials)
    valid = (
        all(isinstance(text, str) for text in (*texts, volume.removed_at, volume.removed_by, volume.clearing))
        and is_name(volume.name)
        and _UUID.fullmatch(volume.uuid)
        and volume.on_remove in ("retain", "delete")
        and volume.deletion in ("", "begun", "done")
        and isinstance(volume.share, bool)
        and isinstance(volume.sticky, bool)
        and isinstance(volume.options, dict)
        and all(isinstance(k, str) and isinstance(v, str) for k, v in volume.options.items())
    )
    if not valid:
        raise Corrupt(f"{what}: is not a volume record: a value has the wrong form")
    return volume


def timestamp(at_s: float) -> str:
    """RFC 3339 in UTC, in whole seconds: what dockerd reads as CreatedAt."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
