"""What a user says about a store: its source and the settings of the connection. Values and parsing, no I/O.

A source is one of `BUCKET`, `s3://BUCKET/PREFIX`, `ipfs://VOLUME/PREFIX`, `file:///DIRECTORY`, `memory:`. Everything
else is refused with a line that names what was given and what would do: a source that is guessed wrongly mounts the
wrong data.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote

from s3vol.config import MountOptions
from s3vol.errors import UsageError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ATTEMPT_S = 20.0
_CONNECT_S = 5.0
_ATTEMPTS = 3  # so many fit into `timeout` when none is answered; the last may end a third of it late
_FORMS = "BUCKET, s3://BUCKET/PREFIX, ipfs://VOLUME/PREFIX, file:///DIRECTORY or memory:"
_VOLUME = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
)  # Docker's rule, so that any volume of Docker has a name there


@dataclass(frozen=True, slots=True)
class Source:
    """Where a volume's objects are. `prefix` is empty or ends in `/`; `directory` is set for `file` only.

    `bucket` is the volume's name for `ipfs`.
    """

    kind: Literal["s3", "ipfs", "file", "memory"]
    bucket: str = ""
    prefix: str = ""
    directory: str = ""

    @property
    def url(self) -> str:
        """The source in one canonical form."""
        if self.kind in ("s3", "ipfs"):
            return f"{self.kind}://{self.bucket}/{self.prefix}".rstrip("/")
        return f"file://{self.directory}" if self.kind == "file" else "memory:"


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How to reach a store. None means: as the AWS configuration (environment, profile) says.

    `timeout_s` bounds a call with all its attempts; `attempt_timeout_s` bounds the silence within one attempt, so that
    a slow link is no failure; `connect_timeout_s` bounds making a connection.
    """

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    anonymous: bool = False  # sign nothing: public buckets
    timeout_s: float = 60.0
    attempt_timeout_s: float = _ATTEMPT_S
    connect_timeout_s: float = _CONNECT_S
    connections: int = 64  # calls in flight; each holds one thread and one connection
    ca_bundle: str | None = None  # PEM file
    verify_tls: bool = True
    addressing: Literal["auto", "path", "virtual"] = "auto"  # auto: path for an endpoint that was given
    sse: Literal["aes256", "aws:kms"] | None = None
    sse_kms_key: str | None = None
    sse_c_key: str | None = None  # file
    checksum: Literal["off", "sha256"] = "off"


def store_settings(options: MountOptions) -> StoreSettings:
    """The store's part of a mount's options. Keys are none of them.

    A change that was sent is waited for, however long its attempt may be silent (s3_client); so a shorter `timeout`
    makes attempts shorter too. With the default of 60 s they have their usual length.
    """
    longest_s = options.timeout / _ATTEMPTS
    return StoreSettings(
        endpoint=options.endpoint,
        region=options.region,
        profile=options.profile,
        anonymous=options.anonymous,
        timeout_s=options.timeout,
        attempt_timeout_s=min(_ATTEMPT_S, longest_s),
        connect_timeout_s=min(_CONNECT_S, longest_s),
        connections=options.connections,
        ca_bundle=str(options.ca_bundle) if options.ca_bundle else None,
        verify_tls=options.verify_tls,
        addressing=options.addressing,
        sse=options.sse,
        sse_kms_key=options.sse_kms_key,
        sse_c_key=str(options.sse_c_key) if options.sse_c_key else None,
        checksum=options.checksum,
    )


@dataclass(frozen=True, slots=True)
class IpfsSettings:
    """How a volume in IPFS is reached and kept. `copies` None: on every peer. `url` is how others reach our peer."""

    kubo: str
    cluster: str
    url: str
    login_file: Path | None = None
    ask_writers: bool = True  # heads=peers
    commit_interval_s: float = 5.0
    retention_s: float = 3600.0
    replicas: int = 1
    copies: int | None = None
    node: str = "node"
    timeout_s: float = 60.0


def ipfs_settings(options: MountOptions) -> IpfsSettings:
    """The part of a mount's options for a volume in IPFS."""
    return IpfsSettings(
        kubo=options.kubo,
        cluster=options.cluster,
        url=options.cluster_url or options.cluster,
        login_file=options.cluster_login,
        ask_writers=options.heads == "peers",
        commit_interval_s=options.commit_interval,
        retention_s=options.retention,
        replicas=options.replicas,
        copies=options.copies,
        node=options.node,
        timeout_s=options.timeout,
    )


def parse_source(text: str) -> Source:
    """The source that `text` names. Raises UsageError."""
    scheme, colon, rest = text.partition(":")
    if not colon:
        if "/" in text:
            hint = f"file://{text}" if text.startswith("/") else f"s3://{text}"
            raise UsageError(f"source {text!r}: did you mean {hint}? A source is {_FORMS}")
        return Source("s3", bucket=_check_bucket(text, text))
    if scheme == "s3" and rest.startswith("//"):
        bucket, _, prefix = rest[2:].partition("/")
        return Source("s3", bucket=_check_bucket(bucket, text), prefix=_check_prefix(prefix, text))
    if scheme == "ipfs" and rest.startswith("//"):
        volume, _, prefix = rest[2:].partition("/")
        return Source("ipfs", bucket=_check_volume(volume, text), prefix=_check_prefix(prefix, text))
    if scheme == "file":
        return Source("file", directory=_check_directory(rest, text))
    if text == "memory:":
        return Source("memory")
    if scheme in ("http", "https"):
        raise UsageError(f"source {text!r}: an endpoint is given by --endpoint; a source is {_FORMS}")
    raise UsageError(f"source {text!r}: a source is {_FORMS}")


def _check_bucket(bucket: str, text: str) -> str:
    if not _BUCKET.fullmatch(bucket) or ".." in bucket or _is_address(bucket):
        rule = "3 to 63 lower-case letters, digits, dots and hyphens, beginning and ending with a letter or digit"
        raise UsageError(f"source {text!r}: {bucket!r} is no bucket name ({rule})")
    return bucket


def _check_volume(volume: str, text: str) -> str:
    if not _VOLUME.fullmatch(volume):
        raise UsageError(
            f"source {text!r}: {volume!r} is no name of a volume (letters, digits, dots, hyphens and underscores, "
            "at most 128, beginning with a letter or digit)"
        )
    return volume


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _check_prefix(prefix: str, text: str) -> str:
    prefix = prefix.removesuffix("/")
    if not prefix:
        return ""
    if any(part in ("", ".", "..") for part in prefix.split("/")) or not prefix.isprintable():
        raise UsageError(
            f"source {text!r}: the prefix has an empty, `.` or `..` component, or an unprintable character"
        )
    if len(prefix.encode()) > 512:  # half of a key's 1,024 bytes is left to the paths below it
        raise UsageError(f"source {text!r}: the prefix is longer than 512 bytes")
    return prefix + "/"


def _check_directory(rest: str, text: str) -> str:
    path = unquote(rest.removeprefix("//"))
    if not rest.startswith("///") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise UsageError(f"source {text!r}: a directory is given as file:///ABSOLUTE/PATH")
    return str(PurePosixPath(path))
