"""`make posix`: what public test programs find on s3vol, s3fs and rclone, on the same MinIO, in one run.

Each judge (tests/judges) runs on the local disk first, then on each mount; a judge that the disk fails is not shown.
Each judge, and each call that pjdfstest is about, gets a bucket of its own and a fresh mount, so that a file system
that dies has failed there only; the checks that could not run because it had died count as failed. The peers run as
their manuals say for programs that rewrite files: s3fs with its defaults, rclone with
`--vfs-cache-mode full`. One that is not installed is left out, and said.

This compares what is right, not how fast: there are no times in it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from s3vol import __version__
from tests.judges.base import Judge, Verdict
from tests.judges.fsx import fsx
from tests.judges.pjdfstest import by_call
from tests.judges.programs import SLOW_STRESSORS, STRESSORS, fio, git, ping_pong, sqlite, stress_ng
from tests.support.minio import ACCESS_KEY, SECRET_KEY, Minio, wait_for

JUDGES: Mapping[str, tuple[Judge, ...]] = {
    "pjdfstest": by_call(),
    "fsx, 6 seeds x 2,000": (fsx(*range(1, 7), operations=2000),),
    "fio --verify, read and write": (fio("sync", size_mib=4),),
    "fio --verify, mmap": (fio("mmap", size_mib=4),),
    "stress-ng --verify": (stress_ng(4, stressors=tuple(name for name in STRESSORS if name not in SLOW_STRESSORS)),),
    "git, fsck --strict": (git,),
    "SQLite, rollback journal": (sqlite("delete", rounds=10),),
    "SQLite, WAL": (sqlite("wal", rounds=10),),
    "ping_pong -rw": (ping_pong,),
}

Mounter = Callable[[Minio, str, Path], AbstractContextManager[Path]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A file system to judge. `version` is its own words; `mount` gives a place where it is mounted."""

    name: str
    version: str
    mount: Mounter


def clean_environment() -> dict[str, str]:
    """Nothing of the machine's own configuration; rclone does not even start with AWS_CA_BUNDLE in it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3VOL_", "RCLONE_"))}


@contextlib.contextmanager
def _process(command: list[str], point: Path, environment: Mapping[str, str], folder: Path) -> Iterator[Path]:
    """A mount whose process stays in the foreground, until the block ends."""
    point.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: process.poll() is not None or os.path.ismount(point), 60, command[0])
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended: {(folder / 'log').read_text()[-2000:]}")
        yield point
    finally:
        subprocess.run(["fusermount3", "-u", str(point)], stderr=subprocess.DEVNULL, check=False)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            subprocess.run(["fusermount3", "-uz", str(point)], stderr=subprocess.DEVNULL, check=False)


def s3vol(*options: str) -> Mounter:
    """s3vol of this checkout."""

    def mount(server: Minio, bucket: str, folder: Path) -> AbstractContextManager[Path]:
        environment = clean_environment() | server.environment | {"S3VOL_RUNTIME_DIR": str(folder / "run")}
        words = ["--foreground", "--cache-dir", str(folder / "cache"), "-o", "allow_other,dev,suid", *options]
        command = [sys.executable, "-m", "s3vol", "mount", *words, f"s3://{bucket}", str(folder / "mnt")]
        return _process(command, folder / "mnt", environment, folder)

    return mount


def s3fs(server: Minio, bucket: str, folder: Path) -> AbstractContextManager[Path]:
    """Debian's s3fs."""
    secrets = folder / "passwd"
    secrets.write_text(f"{ACCESS_KEY}:{SECRET_KEY}\n")
    secrets.chmod(0o600)
    options = f"passwd_file={secrets},url={server.endpoint},use_path_request_style,allow_other,dev,suid"
    command = ["s3fs", bucket, str(folder / "mnt"), "-f", "-o", options]
    return _process(command, folder / "mnt", clean_environment(), folder)


def rclone(server: Minio, bucket: str, folder: Path) -> AbstractContextManager[Path]:
    """Debian's rclone."""
    settings = {"TYPE": "s3", "PROVIDER": "Minio", "ENDPOINT": server.endpoint}
    settings |= {"ACCESS_KEY_ID": ACCESS_KEY, "SECRET_ACCESS_KEY": SECRET_KEY}
    environment = clean_environment() | {f"RCLONE_CONFIG_PEER_{name}": value for name, value in settings.items()}
    environment["RCLONE_CONFIG"] = os.devnull
    options = ["--allow-other", "--vfs-cache-mode", "full", "--cache-dir", str(folder / "cache")]
    command = ["rclone", "mount", f"peer:{bucket}", str(folder / "mnt"), *options]
    return _process(command, folder / "mnt", environment, folder)


def subjects() -> list[Subject]:
    """What can be judged on this machine."""
    found = [Subject("s3vol", __version__, s3vol()), Subject("s3vol --write-back", __version__, s3vol("--write-back"))]
    for name, mount in (("s3fs", s3fs), ("rclone", rclone)):
        if shutil.which(name) is None:
            print(f"posix: {name} is not installed, and left out", file=sys.stderr)
            continue
        said = subprocess.run([name, "--version"], env=clean_environment(), capture_output=True, text=True, check=True)
        version = re.search(r"\b[vV]?(\d+\.\d[\w.]*)", said.stdout)
        found.append(Subject(name, version[1] if version else "", mount))
    return found


def judged(judge: Judge, subject: Subject, server: Minio, scratch: Path, disk: Verdict) -> tuple[Verdict, bool]:
    """The verdict on a fresh mount, and whether the file system was alive at the end."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="") as name:  # short: sockets have paths of 108 bytes at most
        folder = Path(name)
        folder.chmod(0o755)
        with subject.mount(server, server.new_bucket("posix"), folder) as point:
            try:
                (point / "j").mkdir()
                found = judge(point / "j")
            except OSError as error:
                found = Verdict(disk.executed, disk.executed, str(error))
            try:
                os.listdir(point)  # a stat(2) could be answered from the kernel's memory
                alive = True
            except OSError:
                alive = False
    return found, alive


@dataclass(slots=True)
class Cell:
    """What the table says: checks passed, of those that the disk passes, and how often the file system died."""

    passed: int = 0
    wanted: int = 0
    deaths: int = 0

    def add(self, found: Verdict, disk: Verdict, *, alive: bool) -> None:
        """One more part of the judge."""
        wanted = disk.executed - disk.failed
        self.passed += len((found.executed - found.failed) & wanted)
        self.wanted += len(wanted)
        self.deaths += not alive

    def __str__(self) -> str:
        """For the table."""
        died = {0: "", 1: "; it died once"}.get(self.deaths, f"; it died {self.deaths} times")
        return f"{self.passed} of {self.wanted}{died}"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="judges whose name has this in it")
    parser.add_argument("--verbose", action="store_true", help="name what failed, on stderr")
    arguments = parser.parse_args()
    chosen = subjects()
    print(f"{date.today()}, Linux {platform.release()}: " + ", ".join(f"{s.name} {s.version}" for s in chosen) + "\n")
    print("| checks passed | " + " | ".join(subject.name for subject in chosen) + " |")
    print("|---" * (len(chosen) + 1) + "|", flush=True)
    with tempfile.TemporaryDirectory(prefix="posix-") as name, Minio() as server:
        scratch = Path(name)
        scratch.chmod(0o755)
        for title, judges in JUDGES.items():
            if arguments.only not in title:
                continue
            cells = {subject.name: Cell() for subject in chosen}
            for judge in judges:
                (disk_folder := scratch / "disk").mkdir()
                disk = judge(disk_folder)
                shutil.rmtree(disk_folder)
                for subject in chosen:
                    found, alive = judged(judge, subject, server, scratch, disk)
                    cells[subject.name].add(found, disk, alive=alive)
                    if arguments.verbose and found.failed:
                        print(f"{title} on {subject.name}: {', '.join(sorted(found.failed))}", file=sys.stderr)
            print(f"| {title} | " + " | ".join(map(str, cells.values())) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
