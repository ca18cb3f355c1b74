"""The options of a mount: the one table that flags, `-o` lists, `S3VOL_*`, TOML files and docs/options.md come from.

`MountOptions` is the table: a frozen dataclass whose fields carry parser, group, help and the default as people read
it. An option exists in all those places or in none. How values get into it is `s3vol.layers`.

Rejected: a TOML-only configuration; docker and fstab speak `-o`.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from s3vol import units
from s3vol.types import GIB, MIB

VARIABLE_PREFIX = "S3VOL_"

_METAVARS: Mapping[Callable[[str], Any], str] = {
    units.parse_size: "SIZE",
    units.parse_duration: "TIME",
    units.parse_count: "N",
    units.parse_replicas: "N",
    units.parse_mask: "OCTAL",
    units.parse_user: "USER",
    units.parse_group: "GROUP",
    units.parse_path: "PATH",
    units.parse_label: "NAME",
    units.parse_url: "URL",
    units.parse_text: "TEXT",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table as flags, files and documentation see it."""

    name: str  # with hyphens
    parse: Callable[[str], Any]
    group: str
    help: str
    shown: str  # the default, as text for people
    alias: str = ""  # a second name, which is understood wherever the first is

    @property
    def is_flag(self) -> bool:
        """True for a switch that takes no value on the command line."""
        return self.parse is units.parse_flag

    @property
    def metavar(self) -> str:
        """What stands for the value in a usage text; empty for a switch."""
        return "|".join(self.parse.words) if isinstance(self.parse, units.Choice) else _METAVARS.get(self.parse, "")

    @property
    def variable(self) -> str:
        """Name of the environment variable."""
        return variable(self.name)


def variable(name: str) -> str:
    """Name of the environment variable of an option."""
    return VARIABLE_PREFIX + name.upper().replace("-", "_")


def _about(parse: Callable[[str], Any], group: str, help: str, shown: str = "", alias: str = "") -> Mapping[str, Any]:
    return {"parse": parse, "group": group, "help": help, "shown": shown, "alias": alias}


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "", socket.gethostname().partition(".")[0]) or "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """Everything that can be set for one mount. None means "decided when mounting", as the help text says.

    Sizes are in bytes, times in seconds.
    """

    mode: str = field(
        default="shared",
        metadata=_about(
            units.Choice(("shared", "readonly")),
            "Contract",
            "Access mode, the same on all nodes of a volume: `shared` for files that replicas share, `readonly` for "
            "images, models and data sets.",
        ),
    )
    close: str = field(
        default="remote",
        metadata=_about(
            units.Choice(("remote", "local")),
            "Contract",
            "When close() returns: `remote`, when the bucket holds the content; `local`, when the journal on this "
            "machine does.",
        ),
    )
    fsync: str = field(
        default="remote",
        metadata=_about(
            units.Choice(("remote", "local")), "Contract", "When fsync() returns: the same choice as for close()."
        ),
    )
    attr_ttl: float = field(
        default=1.0,
        metadata=_about(
            units.parse_duration,
            "Contract",
            "How long names and attributes are believed without asking. open() always asks.",
            "1s",
        ),
    )
    timeout: float = field(
        default=60.0,
        metadata=_about(
            units.parse_duration,
            "Contract",
            "How long an operation waits for an endpoint that does not answer, before it fails with EIO.",
            "60s",
        ),
    )
    drain_timeout: float = field(
        default=60.0,
        metadata=_about(
            units.parse_duration,
            "Contract",
            "How long umount and SIGTERM wait for data to be published. What is left then stays in the journal, and is "
            "said.",
            "60s",
        ),
    )
    node: str = field(
        default=_host(),
        metadata=_about(
            units.parse_label,
            "Contract",
            "Name of this machine in the names of conflict copies.",
            "the host name to its first dot",
        ),
    )
    cache_dir: Path | None = field(
        default=None,
        metadata=_about(
            units.parse_path,
            "Cache",
            "Where chunks and journal live; each source gets a directory of its own in it.",
            "`/var/cache/s3vol` for root, else `$XDG_CACHE_HOME/s3vol`",
        ),
    )
    cache_size: int = field(
        default=10 * GIB,
        metadata=_about(
            units.parse_size, "Cache", "Most disk space that the cache takes. Unpublished data is never evicted.", "10G"
        ),
    )
    cache_free: int = field(
        default=GIB,
        metadata=_about(
            units.parse_size, "Cache", "Free space that is left on the cache's disk, whatever `cache-size` says.", "1G"
        ),
    )
    memory: int = field(
        default=128 * MIB,
        metadata=_about(
            units.parse_size, "Cache", "Memory for content on its way; half as much again awaits readers.", "128M"
        ),
    )
    dirty_max: int = field(
        default=2 * GIB,
        metadata=_about(units.parse_size, "Cache", "Most unpublished data; beyond it writers wait.", "2G"),
    )
    dirty_age: float = field(
        default=300.0,
        metadata=_about(
            units.parse_duration, "Cache", "Age at which unpublished data is forced out and writers wait.", "5m"
        ),
    )
    publish_delay: float = field(
        default=1.0,
        metadata=_about(
            units.parse_duration,
            "Cache",
            "With `close=local`: how long a closed file is left alone before it is published, so that its rename or "
            "removal stays local.",
            "1s",
        ),
    )
    journal_age: float = field(
        default=5.0,
        metadata=_about(
            units.parse_duration, "Cache", "Data that nobody synced is on the local disk within this time.", "5s"
        ),
    )
    readahead: int = field(
        default=32 * MIB,
        metadata=_about(
            units.parse_size,
            "Cache",
            "Most that is fetched ahead of a sequential reader; several at once share a quarter of `memory`.",
            "32M",
        ),
    )
    uploads: int = field(default=8, metadata=_about(units.parse_count, "Cache", "Uploads at a time."))
    downloads: int = field(default=8, metadata=_about(units.parse_count, "Cache", "Downloads at a time."))
    endpoint: str | None = field(
        default=None,
        metadata=_about(
            units.parse_url,
            "Endpoint",
            "URL of an S3 server that is not AWS, for example `https://minio.example:9000`.",
            "`AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, the profile's, or AWS",
        ),
    )
    region: str | None = field(
        default=None,
        metadata=_about(
            units.parse_text, "Endpoint", "Region of the bucket.", "`AWS_REGION`, the profile's, or `us-east-1`"
        ),
    )
    profile: str | None = field(
        default=None,
        metadata=_about(
            units.parse_text,
            "Endpoint",
            "Profile in the AWS configuration that credentials come from.",
            "`AWS_PROFILE`, or the AWS chain",
        ),
    )
    ca_bundle: Path | None = field(
        default=None,
        metadata=_about(
            units.parse_path,
            "Endpoint",
            "PEM file with the authorities to trust for https.",
            "`AWS_CA_BUNDLE`, or the system's",
        ),
    )
    verify_tls: bool = field(
        default=True,
        metadata=_about(units.parse_flag, "Endpoint", "Check the certificate of an https endpoint."),
    )
    anonymous: bool = field(
        default=False, metadata=_about(units.parse_flag, "Endpoint", "Sign nothing: for public buckets.")
    )
    addressing: Literal["auto", "path", "virtual"] = field(
        default="auto",
        metadata=_about(
            units.Choice(("auto", "path", "virtual")),
            "Endpoint",
            "Where the bucket's name goes in a request: into the path, or into the host name. `auto` is `path` with "
            "an endpoint, `virtual` with AWS.",
        ),
    )
    sse: Literal["aes256", "aws:kms"] | None = field(
        default=None,
        metadata=_about(
            units.Choice(("aes256", "aws:kms")), "Endpoint", "Encryption that the server is asked for.", "the bucket's"
        ),
    )
    sse_kms_key: str | None = field(
        default=None,
        metadata=_about(units.parse_text, "Endpoint", "Key for `sse=aws:kms`.", "the account's"),
    )
    sse_c_key: Path | None = field(
        default=None,
        metadata=_about(
            units.parse_path,
            "Endpoint",
            "File with a key of 32 bytes, as they are or in base64, that all objects are encrypted with (SSE-C). Only "
            "who has it can read them; https only.",
            "no key",
        ),
    )
    checksum: Literal["off", "sha256"] = field(
        default="off",
        metadata=_about(
            units.Choice(("off", "sha256")),
            "Endpoint",
            "`sha256`: the store keeps a checksum of each object that goes as one PUT, and a file that is read whole "
            "in one request is checked against it. A file's first read takes a millisecond of processor time more.",
        ),
    )
    connections: int = field(
        default=64, metadata=_about(units.parse_count, "Endpoint", "Requests at a time, of all kinds.")
    )
    kubo: str = field(
        default="http://127.0.0.1:5001",
        metadata=_about(units.parse_url, "IPFS", "RPC of this machine's Kubo, for a source `ipfs://VOLUME`."),
    )
    cluster: str = field(
        default="http://127.0.0.1:9094",
        metadata=_about(units.parse_url, "IPFS", "REST of the IPFS-Cluster peer that belongs to this Kubo."),
    )
    cluster_url: str | None = field(
        default=None,
        metadata=_about(
            units.parse_url, "IPFS", "The same peer as other nodes reach it, for their `heads=peers`.", "`cluster`"
        ),
    )
    cluster_login: Path | None = field(
        default=None,
        metadata=_about(
            units.parse_path, "IPFS", "File with `USER:PASSWORD` for the REST of all peers of the cluster.", "no login"
        ),
    )
    heads: str = field(
        default="peers",
        metadata=_about(
            units.Choice(("peers", "local")),
            "IPFS",
            "Where open() asks what other nodes have published: `peers`, each one's own Cluster peer; `local`, this "
            "node's, which may be late.",
        ),
    )
    commit_interval: float = field(
        default=5.0,
        metadata=_about(
            units.parse_duration,
            "IPFS",
            "Within this time changes are published that neither close() nor fsync() has published.",
            "5s",
        ),
    )
    retention: float = field(
        default=3600.0,
        metadata=_about(
            units.parse_duration,
            "IPFS",
            "How long content that nobody shows any more is kept at least, for slow readers on other nodes.",
            "1h",
        ),
    )
    replicas: int = field(
        default=1,
        metadata=_about(
            units.parse_replicas,
            "IPFS",
            "On how many nodes data is before `remote` close() and fsync() return. `sync=replicas:N` is the same.",
            alias="sync",
        ),
    )
    copies: int | None = field(
        default=None,
        metadata=_about(units.parse_count, "IPFS", "On how many nodes each block is kept.", "on all"),
    )
    uid: int | None = field(
        default=None, metadata=_about(units.parse_user, "Mount", "Owner of files that carry none.", "who mounts")
    )
    gid: int | None = field(
        default=None, metadata=_about(units.parse_group, "Mount", "Group of files that carry none.", "of who mounts")
    )
    umask: int = field(
        default=0o022,
        metadata=_about(units.parse_mask, "Mount", "Permission bits that files without attributes do not get.", "022"),
    )
    allow_other: bool = field(
        default=False,
        metadata=_about(
            units.parse_flag,
            "Mount",
            "Let other users in; permissions are always checked. For others than root this needs `user_allow_other` in "
            "`/etc/fuse.conf`.",
        ),
    )
    dev: bool = field(default=False, metadata=_about(units.parse_flag, "Mount", "Honour device files. Root only."))
    suid: bool = field(
        default=False,
        metadata=_about(units.parse_flag, "Mount", "Honour set-user-ID and set-group-ID bits. Root only."),
    )
    exec: bool = field(default=True, metadata=_about(units.parse_flag, "Mount", "Allow programs to be run."))
    fsname: str | None = field(
        default=None,
        metadata=_about(
            units.parse_text, "Mount", "Name of the file system in the mount table and in df(1).", "the source's URL"
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about(
            units.Choice(("debug", "info", "warning", "error")), "Log", "Least severe message that is written."
        ),
    )
    log_format: str = field(
        default="text",
        metadata=_about(units.Choice(("text", "json")), "Log", "A line of text or a JSON object for each message."),
    )
    log_file: Path | None = field(
        default=None,
        metadata=_about(
            units.parse_path,
            "Log",
            "Where messages go. At 8 MiB the file becomes FILE.1 and a new one is begun.",
            "beside the volume's cache directory, ending in `.log`; with `--foreground` stderr",
        ),
    )

    @property
    def read_only(self) -> bool:
        """True when nothing may be written."""
        return self.mode == "readonly"


@dataclass(frozen=True, slots=True)
class Short:
    """A second way to say one value of an option. `no` is None where only the bare word makes sense."""

    name: str
    stands_for: str
    yes: str
    no: str | None
    help: str


SHORTS = (
    Short("write-back", "close", "local", "remote", "Short for `close=local`: fast, and asynchronous."),
    Short("read-only", "mode", "readonly", "shared", "Short for `mode=readonly`."),
    Short("ro", "mode", "readonly", None, "The same, as mount(8) says it."),
    Short("nodev", "dev", "no", None, "The default, as mount(8) says it."),
    Short("nosuid", "suid", "no", None, "The default, as mount(8) says it."),
    Short("noexec", "exec", "no", None, "Programs on the mount cannot be run, as mount(8) says it."),
)


def _row(item: dataclasses.Field[Any]) -> Option:
    shown = item.metadata["shown"]
    if not shown:
        shown = ("yes" if item.default else "no") if isinstance(item.default, bool) else str(item.default)
    return Option(
        name=item.name.replace("_", "-"),
        parse=item.metadata["parse"],
        group=item.metadata["group"],
        help=item.metadata["help"],
        shown=shown,
        alias=item.metadata["alias"],
    )


OPTIONS: Mapping[str, Option] = {row.name: row for row in map(_row, dataclasses.fields(MountOptions))}
ALIASES: Mapping[str, str] = {row.alias: row.name for row in OPTIONS.values() if row.alias}
"""Options by their second name."""
