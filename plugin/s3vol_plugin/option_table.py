"""The options of a volume: the one table that `-o` keys, driver_opts, errors and docs/volume-options.md come from.

A volume has rows of its own, which say where its objects are and what becomes of them, and most rows of the mount
options table (s3vol/config.py). What the driver decides itself, and what this version cannot do, is in the table as
well, with the reason: a key that was silently ignored is a promise that nobody keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from s3vol import config, units
from s3vol.config import OPTIONS, SHORTS, Option

GROUP = "Volume"

ALIASES: Mapping[str, str] = {
    **config.ALIASES,
    "path": "prefix",
    "subdir": "prefix",
    "url": "endpoint",
    "flush-interval": "dirty-age",
}


def parse_prefix(text: str) -> str:
    """A path of keys, without slashes at its ends."""
    prefix = text.strip().strip("/")
    if not prefix:
        raise ValueError("must not be empty")
    parts = prefix.split("/")
    if any(part in ("", ".", "..") for part in parts) or not prefix.isprintable():
        raise ValueError("must not have an empty, `.` or `..` component, or control characters")
    if any(part.startswith(".s3vol") for part in parts):
        raise ValueError("names beginning with .s3vol are reserved")
    if any(part.endswith("__XLDIR__") for part in parts):
        raise ValueError("a name must not end in __XLDIR__, MinIO would take it for a directory marker")
    if len(prefix.encode()) > 512 or any(len(part.encode()) > 255 for part in parts):
        raise ValueError("is longer than 512 bytes, or a component is longer than 255")
    return prefix


def parse_bucket(text: str) -> str:
    """A bucket's name; the rules of S3 are the store's to check."""
    if "/" in text or ":" in text:
        raise ValueError("is more than a name; write bucket=NAME and prefix=PATH")
    return units.parse_text(text)


def _row(name: str, parse: object, help: str, shown: str) -> Option:
    assert callable(parse)
    return Option(name=name, parse=parse, group=GROUP, help=help, shown=shown)


OWN: Mapping[str, Option] = {
    row.name: row
    for row in (
        _row(
            "bucket",
            parse_bucket,
            "Bucket of the volume. It must exist, or say `create-bucket=yes`. With `backend=ipfs` the name of the "
            "volume in IPFS, which is made by its first change.",
            "that of the registry; with `backend=ipfs` the volume's name",
        ),
        _row(
            "prefix",
            parse_prefix,
            "Where in the bucket, or in the volume in IPFS, the volume is; without `bucket`, below the registry's "
            "source. `path` and `subdir` are other names for it.",
            "all of `bucket`; without `bucket`, the volume's name",
        ),
        _row(
            "backend",
            units.Choice(("s3", "file", "ipfs")),
            "Kind of store. `ipfs` is a volume in the IPFS daemons of the nodes ([ipfs.md](ipfs.md)). `file` is a "
            "directory below the registry's own, where that is a directory.",
            "`s3` with `bucket`, else that of the registry",
        ),
        _row(
            "credentials",
            units.parse_label,
            "Name of a file in `/etc/s3vol/credentials.d` on each node, root's, mode 0600: an AWS credentials file, or "
            "for `backend=ipfs` one line `USER:PASSWORD`, the login of IPFS-Cluster's REST. Keys themselves are no "
            "options, for everybody can read options.",
            "that of `plugin.toml`, or the machine's AWS configuration",
        ),
        _row(
            "on-remove",
            units.Choice(("retain", "delete")),
            "What becomes of the objects when the volume is removed: `retain` keeps them, and `s3vol volume undelete` "
            "brings the volume back for 7 days. A volume in IPFS is always kept.",
            "retain",
        ),
        _row(
            "share",
            units.parse_flag,
            "Allow the source to be that of another volume too. Two volumes that both write never have one source "
            "inside the other's; read-only volumes may overlap anything.",
            "no",
        ),
        _row(
            "sticky",
            units.parse_flag,
            "Docker cannot remove the volume: neither `docker volume rm`, nor `docker-compose down -v`, nor a click. "
            "`s3vol volume rm` does.",
            "no",
        ),
        _row("access", units.Choice(("shared",)), "`shared`: any number of nodes at a time.", "shared"),
        _row(
            "consistency",
            units.Choice(("close-to-open",)),
            "`close-to-open`: after close() on one node, open() on another sees it.",
            "close-to-open",
        ),
        _row(
            "cache-mode",
            units.Choice(("writethrough", "writeback")),
            "`writethrough` stands for `close=remote`, `writeback` for `close=local`.",
            "writethrough",
        ),
        _row(
            "create-bucket",
            units.parse_flag,
            "Make `bucket` if it does not exist. Not by itself, because a mistyped name would make one.",
            "no",
        ),
        _row("preempt", units.parse_flag, "Only `no`: there is no exclusive access to take.", "no"),
        _row("o", units.parse_text, "More options, comma-separated, as the `local` driver has it.", "none"),
    )
}

_DRIVER = "the driver sets it"
TAKEN: Mapping[str, str] = {
    "cache-dir": f"{_DRIVER}: each volume has its own; `cache-directory` in plugin.toml moves all",
    "log-file": f"{_DRIVER}; `log-level` can be set",
    "log-format": _DRIVER,
    "fsname": f"{_DRIVER}, and finds its mounts by it",
    "node": f"{_DRIVER}; `node` in plugin.toml names a node",
    "dev": "device files are never honoured on a volume",
    "suid": "set-user-ID bits are never honoured on a volume",
    "sse-c-key": "names a file of root's, which only an administrator may: [defaults] in plugin.toml",
    "profile": "depends on root's AWS configuration on each node; write credentials=NAME",
    "cluster-url": "is another one on each node: [defaults] in plugin.toml",
    "cluster-login": "names a file of root's; write credentials=NAME",
}
"""Rows of the mount options table that a volume cannot have, and why."""

MISSING: Mapping[str, str] = {
    "size": "there are no quotas; `cache-size` is the room on each node's disk, a bucket's quota is set on the server",
    "from": "volumes cannot be cloned; `s3vol volume import` copies a directory",
    "snapshot": "there are no snapshots; the bucket's versioning keeps old versions",
}
"""What other drivers have and this version has not."""

MISSING_VALUES: Mapping[tuple[str, str], str] = {
    ("access", "exclusive"): "volumes are shared: run one replica, and its successor on another node finds its data",
    ("consistency", "strict"): "only close-to-open is there",
    ("cache-mode", "off"): "everything goes through the cache; write writethrough",
    ("mode", "exclusive"): "volumes are shared or readonly",
}

IGNORED = frozenset({"allow-other", "rw"})
"""Always so: containers run as any user. `rw` is the default, as mount(8) says it."""

ROWS: Mapping[str, Option] = {name: row for name, row in OPTIONS.items() if name not in TAKEN and name not in IGNORED}
"""Rows of the mount options table that a volume may have."""

SHORT_FORMS = {short.name: short for short in SHORTS}
NAMES: Sequence[str] = (*OWN, *ROWS, *(name for name in SHORT_FORMS if name not in ("nodev", "nosuid")))
"""All valid keys."""

NODE_ROWS: Mapping[str, Option] = {
    name: row
    for name, row in OPTIONS.items()
    if name not in TAKEN or name in ("profile", "log-format", "sse-c-key", "cluster-url", "cluster-login")
}
"""Rows that `[defaults]` of plugin.toml may have."""


def _flag(name: str, help: str, shown: str) -> Option:
    return Option(name=name, parse=units.parse_flag, group="Node", help=help, shown=shown)


def _path(name: str, help: str, shown: str) -> Option:
    return Option(name=name, parse=units.parse_path, group="Node", help=help, shown=shown)


def _text(name: str, help: str, shown: str, parse: object = units.parse_text) -> Option:
    assert callable(parse)
    return Option(name=name, parse=parse, group="Node", help=help, shown=shown)


def parse_endpoints(text: str) -> tuple[str, ...]:
    """URLs of servers, comma-separated."""
    return tuple(units.parse_url(part) for part in text.split(",") if part.strip())


SETTINGS: Mapping[str, Option] = {
    row.name: row
    for row in (
        _text(
            "source",
            "Where the registry of volumes is, and below it, under their names, the volumes that are created without a "
            "bucket: `s3://BUCKET/PREFIX`. The same on all nodes. `ipfs://NAME` keeps the registry in the pinset of "
            "IPFS-Cluster, and such volumes are in IPFS.",
            "must be set",
        ),
        _text(
            "node",
            "Name of this machine in the registry; different on all nodes.",
            "the host name to its first dot",
            units.parse_label,
        ),
        _text(
            "credentials",
            "File in the credentials directory for the registry, and for volumes of its kind that name none.",
            "the machine's AWS configuration",
            units.parse_label,
        ),
        _path("socket", "Where dockerd looks for the driver.", "/run/docker/plugins/s3vol.sock"),
        _path("admin-socket", "Where `s3vol` asks the driver.", "/run/s3vol/plugin.sock"),
        _path("docker-socket", "Where dockerd is asked.", "/run/docker.sock"),
        _path("state-directory", "Records of this node.", "/var/lib/s3vol"),
        _path("mount-directory", "Where volumes are mounted.", "`mounts` in the state directory"),
        _path("cache-directory", "Caches and journals of the volumes.", "/var/cache/s3vol/volumes"),
        _path("runtime-directory", "Control sockets of the mounts.", "/run/s3vol"),
        _path("credentials-directory", "Credentials files, readable by root only.", "/etc/s3vol/credentials.d"),
        _flag("allow-anonymous", "Allow volumes without a name, as `docker run -v /data` makes them.", "yes"),
        _text(
            "allowed-endpoints",
            "The only servers that a volume may name: `endpoint`, `cluster`, `kubo`.",
            "any",
            parse_endpoints,
        ),
        _flag("heal", "Mount again inside running containers after a mount process died.", "yes"),
    )
}
