"""The options in force for a volume on this node: its own over the node's defaults, and whose login goes where.

Theory of operation. `[defaults]` serve volumes of all kinds, so rows that say nothing to a volume's kind of store are
left out. A volume in IPFS is on daemons of this node: which ones is mostly the node's own affair, and a volume that
names a cluster of its own names it for all nodes.

The login of a cluster is a secret that is sent as it is, to whatever is behind the URL. So that of the node goes to the
node's own cluster only; a volume that names another one names its login too, or is opened without any.

Rejected: recording what was in force with the volume (machines differ in where their daemons listen).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from s3vol.config import OPTIONS
from s3vol.store.settings import Source, parse_source
from s3vol_plugin import credentials as named
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

IPFS, S3 = "IPFS", "Endpoint"
"""Groups of rows (s3vol.config) that are for one kind of store only."""

LOGIN = "cluster-login"


def foreign(kind: str) -> str:
    """The group of rows that mean nothing to a kind of store."""
    return S3 if kind == "ipfs" else IPFS


def in_force(settings: Settings, source: Source, options: Mapping[str, str], credentials: str) -> dict[str, str]:
    """Rows of the mount options table, as text. `credentials` is what the volume names, or "".

    Raises UsageError for a login that this node has no file of.
    """
    useless = foreign(source.kind)
    defaults = {name: text for name, text in _plain(settings.defaults).items() if not _is_of(name, useless)}
    own = _plain(options)
    login = defaults.pop(LOGIN, "")
    values = {**defaults, **own}
    if source.kind == "ipfs" and (file := _login(settings, own, credentials, login)):
        values[LOGIN] = str(file)
    return values


def _is_of(name: str, group: str) -> bool:
    return name in OPTIONS and OPTIONS[name].group == group


def _plain(options: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-").lower(): text for name, text in options.items()}


def keys_of(settings: Settings, volume: Volume) -> str:
    """Name of the file with the AWS keys for a volume; "" for what the machine has. None are for a volume in IPFS."""
    if parse_source(volume.source).kind == "ipfs":
        return ""
    if volume.credentials or parse_source(settings.source).kind == "ipfs":  # then the node's are a cluster's login
        return volume.credentials
    return settings.credentials


def _login(settings: Settings, own: Mapping[str, str], credentials: str, default: str) -> Path | None:
    """The file with the login for the cluster of a volume."""
    elsewhere = "cluster" in own and not same_server(own["cluster"], of_node(settings, "cluster"))
    if not credentials and not elsewhere and parse_source(settings.source).kind == "ipfs":
        credentials = settings.credentials  # those of the registry: the same cluster
    if credentials:
        return named.login_file(settings.credentials_directory, credentials)
    return Path(default) if default and not elsewhere else None


def of_node(settings: Settings, name: str) -> str:
    """A row as this node has it for volumes that do not say."""
    return _plain(settings.defaults).get(name) or OPTIONS[name].shown


def same_server(one: str, other: str) -> bool:
    """True for two ways to write one URL."""
    return canonical(one) == canonical(other)


def canonical(url: str) -> str:
    """A server's URL in one form."""
    return url.strip().rstrip("/").lower()
