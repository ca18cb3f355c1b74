"""The files that make the volume driver a service of a machine: written, compared, removed. No service is touched.

The unit files are shipped as they are meant to run (a package of a distribution can take them from `systemd/`); the one
thing that is replaced is the path of the program, so that an installation in a virtual environment works as well. A
settings file that exists is the administrator's and never changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from s3vol.errors import S3volError

UNITS = ("s3vol-plugin.socket", "s3vol-plugin.service")
UNIT_DIRECTORY = Path("etc/systemd/system")
SETTINGS = Path("etc/s3vol/plugin.toml")
CREDENTIALS = Path("etc/s3vol/credentials.d")
_SHIPPED_PROGRAM = "/usr/bin/s3vol-plugin"


@dataclass(frozen=True, slots=True)
class Choice:
    """What the first settings file says: where the registry is, and how it is reached."""

    source: str
    endpoint: str = ""
    credentials: str = ""


def unit_texts(program: Path) -> Mapping[str, str]:
    """The unit files by name, starting `program`. Raises S3volError when its path cannot stand in a unit file."""
    if not re.fullmatch(r"/[A-Za-z0-9/._+@-]+", str(program)):
        raise S3volError(f"{program}: systemd wants a path without blanks, quotes or `%`; install s3vol elsewhere")
    folder = resources.files("s3vol_plugin") / "systemd"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in UNITS}
    return {name: text.replace(_SHIPPED_PROGRAM, str(program)) for name, text in texts.items()}


def settings_text(choice: Choice) -> str:
    """A first settings file, every other setting in it as a comment."""

    def line(name: str, value: str, meant: str) -> str:
        return f"{name} = {_quoted(value)}" if value else f"# {name} = {_quoted(meant)}"

    in_ipfs = choice.source.startswith("ipfs:")
    servers = [
        line("kubo", "", "http://127.0.0.1:5001"),
        line("cluster", "", "http://10.0.0.1:9094"),
        line("cluster-url", "", "http://10.0.0.1:9094") + "  # the same peer, as the other nodes reach it",
    ]
    if not in_ipfs:
        servers = [line("endpoint", choice.endpoint, "https://minio.example:9000")]
    otherwise = "no login for Cluster's REST" if in_ipfs else "the machine's own AWS configuration or role"
    return "\n".join(
        [
            "# Settings of the s3vol volume driver on this node (docs/docker.md). Apart from `node`, and addresses of",
            "# this machine, they are the same on all nodes.",
            "# After a change: systemctl restart s3vol-plugin (mounted volumes stay mounted).",
            "",
            "# Where the registry of volumes is, and below it the volumes that are created without a bucket.",
            f"source = {_quoted(choice.source)}",
            "",
            f"# A file in /etc/s3vol/credentials.d; without it, {otherwise}.",
            line("credentials", choice.credentials, "default"),
            "",
            "# Name of this machine in the registry; without it, the host name up to its first dot.",
            '# node = "node1"',
            "",
            "# What every volume's own options are laid over: docs/options.md has them all.",
            "[defaults]",
            *servers,
            '# cache-size = "10G"',
            "",
        ]
    )


def _quoted(text: str) -> str:
    """A string of TOML; JSON's own escapes of characters beyond U+FFFF are none."""
    return json.dumps(text, ensure_ascii=False)


def write_units(root: Path, program: Path) -> Sequence[Path]:
    """Write the unit files below `root`; returns those that were not there with this content already."""
    changed = []
    for name, text in unit_texts(program).items():
        path = root / UNIT_DIRECTORY / name
        if _content(path) != text:
            _write(path, text, 0o644)
            changed.append(path)
    return changed


def write_settings(root: Path, choice: Choice) -> Path:
    """Write the first settings file and the directory of the credentials."""
    _write(root / SETTINGS, settings_text(choice), 0o644)
    make_credentials_directory(root)
    return root / SETTINGS


def make_credentials_directory(root: Path) -> Path:
    """The directory that only root may look into."""
    path = root / CREDENTIALS
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise S3volError(f"{path}: {error.strerror}") from None
    return path


def installed_units(root: Path) -> Sequence[Path]:
    """The unit files that are there."""
    return [path for name in UNITS if (path := root / UNIT_DIRECTORY / name).exists()]


def remove_units(root: Path) -> Sequence[Path]:
    """Remove them; returns what was removed. Settings, credentials, state and cache stay."""
    found = installed_units(root)
    for path in found:
        try:
            path.unlink()
        except OSError as error:
            raise S3volError(f"{path}: {error.strerror}") from None
    return found


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file as a whole: systemd may be reading it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise S3volError(f"{path}: {error.strerror}; `s3vol plugin install` needs root") from None
