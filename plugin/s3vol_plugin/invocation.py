"""How `s3vol mount` is called for a volume: argument list and environment. Pure.

What a volume's record may say is laid over the node's defaults, and what the driver needs to find its mounts again over
both. Everything goes into `-o` lists, which anybody may read in `ps`; a secret is in none of them. Keys are in a file
of this node that only the environment names, and they replace what this process has of its own: keys in the environment
would be stronger than a file (the AWS chain), so that a volume would be opened with the wrong ones. The login of a
cluster is in a file as well, whose path is an option.

The environment's `S3VOL_*` are options of a mount too, and are not passed on: the same volume must be mounted alike
by all nodes, by its record and the node's defaults. `/etc/s3vol/config.toml` is read as for every mount.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from s3vol.config import OPTIONS, VARIABLE_PREFIX
from s3vol.errors import UsageError
from s3vol.layers import unknown
from s3vol.store.settings import parse_source
from s3vol_plugin import credentials as named
from s3vol_plugin.layering import in_force, keys_of
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

LABEL = "s3vol:"
"""What every name that `label` gives begins with."""

_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
_PASSED_ON = ("S3VOL_CONFIG", "S3VOL_FAILPOINT")


def label(settings: Settings, volume: Volume) -> str:
    """What mount tables call the file system of a volume, in every namespace and after the death of its process.

    `s3vol:NAME@HASH`: the name for people; the hash is of this volume on this node, because another node may run on the
    same machine, and another volume may have had the name.
    """
    whose = f"{volume.uuid} {settings.node} {settings.state_directory}"
    return f"{LABEL}{volume.name}@{hashlib.blake2b(whose.encode(), digest_size=4).hexdigest()}"


def arguments(settings: Settings, volume: Volume, *, root: bool) -> list[str]:
    """The command that mounts a volume. `root`: this process may let other users in.

    Raises UsageError for an unknown option, a value that a list cannot hold, a login that is not on this node.
    """
    source = parse_source(volume.source)
    values = {"node": settings.node, **in_force(settings, source, volume.options, volume.credentials)}
    values |= {
        "cache-dir": str(settings.cache_directory / volume.uuid),
        "log-file": str(log_file(settings, volume.uuid)),
        "fsname": label(settings, volume),
    }
    if root:
        values["allow-other"] = "yes"
    lists = [word for name, text in values.items() for word in ("-o", _listed(name, text))]
    point = settings.mountpoint(volume.uuid)
    return [sys.executable, "-m", "s3vol", "mount", *lists, "--", volume.source, str(point)]


def log_file(settings: Settings, uuid: str) -> Path:
    """Where the mount process of a volume writes."""
    return settings.cache_directory / f"{uuid}.log"


def environment(settings: Settings, volume: Volume, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a mount process, from that of this one.

    Raises UsageError for credentials that this node has no file of.
    """
    kept = {name: text for name, text in base.items() if name in _PASSED_ON or not name.startswith(VARIABLE_PREFIX)}
    kept["S3VOL_RUNTIME_DIR"] = str(settings.runtime_directory)
    credentials = keys_of(settings, volume)
    if credentials:
        for name in _KEYS:
            kept.pop(name, None)
        named.read(settings.credentials_directory, credentials)  # what is wrong with it is said now, and in one line
        kept["AWS_SHARED_CREDENTIALS_FILE"] = str(named.path_of(settings.credentials_directory, credentials))
        kept["AWS_PROFILE"] = "default"
    return kept


def _listed(name: str, text: str) -> str:
    if name not in OPTIONS:  # a name may come from anybody, and one with a comma would be more than one option
        raise unknown(name, f"option {name!r}")
    if text.endswith("\\"):  # it would escape the comma that comes after it
        raise UsageError(f"option {name}: {text!r}: must not end in a backslash")
    return f"{name}=" + text.replace(",", "\\,")
