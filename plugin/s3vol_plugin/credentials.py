"""Credentials by name: files of this node that only root can read, never values in an option.

dockerd prints the options of a volume to everybody who may talk to it, a swarm keeps them in its log, and Portainer
shows them. So a volume says `credentials=prod`, and each node has `prod` in its directory: an AWS credentials file with
the section `[default]`, or for a volume in IPFS one line `USER:PASSWORD`, the login of its cluster. It is checked where
a volume is created; that another node lacks it is that node's error, when it mounts.

Rejected: reading swarm secrets (no plugin can), and credentials in the registry (whoever may list it would have them).
"""

from __future__ import annotations

import configparser
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from s3vol.errors import UsageError
from s3vol.units import parse_label

_MAX_BYTES = 64 << 10
_SECTION = "default"


@dataclass(frozen=True, slots=True)
class Keys:
    """What a file holds. Never printed."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def path_of(directory: Path, name: str) -> Path:
    """The file of a name. Raises UsageError for what is no plain name: no path can be made of it."""
    try:
        return directory / parse_label(name)
    except ValueError as error:
        raise UsageError(f"credentials {name[:80]!r}: {error}") from None


def read(directory: Path, name: str) -> Keys:
    """The keys of a name. Raises UsageError, which says what to do with which file and never what is in it."""
    text, what = _text(directory, name, "an AWS credentials file")
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
        section = parser[_SECTION]
        keys = Keys(
            section["aws_access_key_id"].strip(),
            section["aws_secret_access_key"].strip(),
            section.get("aws_session_token"),
        )
    except (configparser.Error, KeyError):  # their texts quote lines of the file
        keys = None
    if keys is None or not keys.access_key or not keys.secret_key:
        raise UsageError(f"{what}: needs a section [{_SECTION}] with aws_access_key_id and aws_secret_access_key")
    return keys


def login_file(directory: Path, name: str) -> Path:
    """The file of a name that holds a login, after a look at it. Raises UsageError as `read`."""
    text, what = _text(directory, name, "one line USER:PASSWORD")
    user, colon, password = text.strip().partition(":")
    if not (user and colon and password) or "\n" in text.strip():
        raise UsageError(f"{what}: needs one line USER:PASSWORD, the login of IPFS-Cluster's REST")
    return path_of(directory, name)


def _text(directory: Path, name: str, wanted: str) -> tuple[str, str]:
    """What the file of a name holds, and how errors call it."""
    path = path_of(directory, name)
    what = f"credentials {name!r}: {path}"
    try:
        return _read_guarded(path, what), what
    except FileNotFoundError:
        raise UsageError(f"{what}: is not on this node; put {wanted} there, mode 0600") from None
    except OSError as error:
        raise UsageError(f"{what}: cannot be read: {error.strerror}") from None


def _read_guarded(path: Path, what: str) -> str:
    """The text of a file that nobody else can read or write. Checked on the file that is then read."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{what}: is not a file")
        if found.st_uid not in (0, os.geteuid()):
            raise UsageError(f"{what}: belongs to user {found.st_uid}; `chown root` it")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise UsageError(f"{what}: others can read it; `chmod 600` it")
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{what}: is larger than {_MAX_BYTES} bytes, so it is no credentials file")
    return data.decode("utf-8", "replace")
