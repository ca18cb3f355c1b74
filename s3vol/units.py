"""Option values as people write them: sizes, durations, switches, masks, users.

Each parser takes text and returns the value, or raises ValueError saying what would have been right; the caller knows
where the text was written and says so.
"""

from __future__ import annotations

import grp
import pwd
import re
from dataclasses import dataclass
from pathlib import Path

from s3vol.types import GIB, KIB, MIB

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_SIZES = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d|)", re.ASCII)
_DURATIONS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TRUE = {"1", "yes", "true", "on"}
_FALSE = {"0", "no", "false", "off"}


def parse_size(text: str) -> int:
    """Bytes of `4096`, `512K`, `10G`, `1.5GiB`; units are powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError("not a size; write for example 512M or 10G")
    return int(float(found["number"]) * _SIZES[found["unit"].upper()])


def parse_duration(text: str) -> float:
    """Seconds of `30`, `30s`, `500ms`, `5m`, `2h`, `1d`."""
    found = _DURATION.fullmatch(text.strip())
    if not found:
        raise ValueError("not a duration; write for example 500ms, 30s or 5m")
    return float(found["number"]) * _DURATIONS[found["unit"]]


def parse_flag(text: str) -> bool:
    """yes/no, true/false, on/off, 1/0."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("not a switch; write yes or no")
    return word in _TRUE


def parse_count(text: str) -> int:
    """A positive whole number."""
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or int(text) < 1:
        raise ValueError("not a positive number")
    return int(text)


def parse_replicas(text: str) -> int:
    """A positive whole number, also as `replicas:N`."""
    try:
        return parse_count(text.strip().removeprefix("replicas:"))
    except ValueError:
        raise ValueError("not a positive number; write for example 2, or replicas:2") from None


def parse_mask(text: str) -> int:
    """Permission bits in octal."""
    if not re.fullmatch(r"(0o|0)?[0-7]{1,4}", text.strip()):
        raise ValueError("not an octal mask; write for example 022")
    return int(text.strip(), 8)


def parse_user(text: str) -> int:
    """A user's number, from a number or a name of this machine."""
    try:
        return int(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else pwd.getpwnam(text.strip()).pw_uid
    except KeyError:
        raise ValueError("no such user on this machine") from None


def parse_group(text: str) -> int:
    """A group's number, from a number or a name of this machine."""
    try:
        return int(text) if re.fullmatch(r"[0-9]{1,9}", text.strip()) else grp.getgrnam(text.strip()).gr_gid
    except KeyError:
        raise ValueError("no such group on this machine") from None


def parse_text(text: str) -> str:
    """Any printable text but none."""
    if not text.strip() or not text.isprintable():
        raise ValueError("must not be empty or hold control characters")
    return text.strip()


def parse_url(text: str) -> str:
    """An http or https URL of a server: no user, no path."""
    found = re.fullmatch(r"https?://(?P<host>[^\s/?#]+)/?", text.strip())
    if not found:
        raise ValueError("not the URL of a server; write for example https://minio.example:9000")
    if "@" in found["host"]:
        raise ValueError("must not hold credentials; they come from the AWS configuration")
    return text.strip().rstrip("/")


def parse_label(text: str) -> str:
    """A word that can be part of a file name on any system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text.strip()):
        raise ValueError("may hold letters, digits, dots, hyphens and underscores only, at most 63")
    return text.strip()


def parse_path(text: str) -> Path:
    """A path, made absolute here: the mount process works in `/`."""
    try:
        return Path(parse_text(text)).expanduser().absolute()
    except RuntimeError:  # `~NAME` of nobody
        raise ValueError("no such user's home on this machine") from None


@dataclass(frozen=True, slots=True)
class Choice:
    """Parser of one of a few words."""

    words: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """The word in lower case."""
        word = text.strip().lower()
        if word not in self.words:
            raise ValueError(f"must be one of {', '.join(self.words)}")
        return word


def format_bytes(count: float) -> str:
    """`0 B`, `12.3 KiB`, `4.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """`0s`, `59s`, `3m05s`, `2h07m`, `4d02h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
