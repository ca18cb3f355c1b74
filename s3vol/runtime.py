"""The runtime directory: which mounts this user has on this machine, and where to talk to them.

Each mount owns two files there, named by a hash of its mount point: `HASH.json`, a record of who serves it, and
`HASH.sock`, its control socket (s3vol.control). The record is written before the mount appears and removed after it is
gone, so a crash leaves a record behind, never a mount that nobody knows of. A process is recognised by its id and its
start time: ids are reused.

Rejected: a pid file in the cache directory (two mounts may share nothing but the machine), and asking the mount table
only (it knows neither the process nor a mount that died half-way).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from s3vol.errors import S3volError

_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Record:
    """Who serves a mount point. `started` is in clock ticks since boot, as in /proc/PID/stat."""

    mountpoint: str
    source: str
    pid: int
    started: int
    version: str
    log: str
    directory: str  # where this record is
    device: str = ""  # `major:minor` of the mount, once it serves

    @property
    def socket(self) -> Path:
        """The control socket."""
        return Path(self.directory) / f"{_name(self.mountpoint)}.sock"

    @property
    def path(self) -> Path:
        """The file of this record."""
        return Path(self.directory) / f"{_name(self.mountpoint)}.json"

    @property
    def alive(self) -> bool:
        """True while the process that wrote this record runs."""
        return process_started(self.pid) == self.started


def _name(mountpoint: str) -> str:
    return hashlib.blake2b(os.fsencode(mountpoint), digest_size=8).hexdigest()


def process_started(pid: int) -> int | None:
    """Start time of a running process in clock ticks since boot; None when there is none (a zombie is none)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything; proc_pid_stat(5) counts from 3
    return None if fields[0] in "ZX" else int(fields[19])


def runtime_directory(environment: Mapping[str, str]) -> Path:
    """`S3VOL_RUNTIME_DIR`, else /run/s3vol for root, else in XDG_RUNTIME_DIR, else in the user's cache."""
    if given := environment.get("S3VOL_RUNTIME_DIR"):
        return Path(given).absolute()
    if os.geteuid() == 0:
        return Path("/run/s3vol")
    if session := environment.get("XDG_RUNTIME_DIR"):
        return Path(session) / "s3vol"
    home = environment.get("XDG_CACHE_HOME") or os.path.join(environment.get("HOME") or "/", ".cache")
    return Path(home) / "s3vol" / "run"


def search_path(environment: Mapping[str, str]) -> list[Path]:
    """Where records are looked for: the own directory, and for root those of the users that are logged in."""
    own = runtime_directory(environment)
    if os.geteuid() != 0 or environment.get("S3VOL_RUNTIME_DIR"):
        return [own]
    return [own, *sorted(Path("/run/user").glob("*/s3vol"))]


def make_directory(directory: Path) -> None:
    """Create the runtime directory for this user only. Raises S3volError when it is not ours to use."""
    try:
        directory.mkdir(mode=_MODE, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        raise S3volError(f"runtime directory {directory}: {error.strerror}; set S3VOL_RUNTIME_DIR") from None
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise S3volError(f"runtime directory {directory}: other users can write there; set S3VOL_RUNTIME_DIR")


@contextlib.contextmanager
def registered(record: Record) -> Iterator[None]:
    """Write the record, and remove it and the socket at the end."""
    make_directory(Path(record.directory))
    write(record)
    try:
        yield
    finally:
        forget(record)


def write(record: Record) -> None:
    """Put a record in the place of what was recorded of its mount point. Raises OSError."""
    temporary = record.path.with_suffix(f".{record.pid}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({name: value for name, value in asdict(record).items() if name != "directory"}, file)
    os.replace(temporary, record.path)


def forget(record: Record) -> None:
    """Remove the files of a mount that is gone, unless another process has taken them over."""
    current = _read(record.path)
    if current is None or (current.pid, current.started) == (record.pid, record.started):
        record.socket.unlink(missing_ok=True)
        record.path.unlink(missing_ok=True)


def _read(path: Path) -> Record | None:
    try:
        return Record(directory=str(path.parent), **json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # gone meanwhile, or not a record of this version
        return None


def records(environment: Mapping[str, str]) -> list[Record]:
    """All records, dead ones included, by mount point."""
    found = (_read(path) for directory in search_path(environment) for path in directory.glob("*.json"))
    return sorted((record for record in found if record), key=lambda record: record.mountpoint)


def find_record(mountpoint: str, environment: Mapping[str, str]) -> Record | None:
    """The record of one mount point (canonical path)."""
    return next((record for record in records(environment) if record.mountpoint == mountpoint), None)
