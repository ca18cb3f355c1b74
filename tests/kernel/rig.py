"""Parts that kernel tests need beside a mount: the bucket as others see it, s3fs, small disks, cgroups, traces."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.minio import ACCESS_KEY, SECRET_KEY, Minio, wait_for

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Bucket:
    """A fresh bucket, seen by another client than s3vol."""

    name: str
    client: S3Client

    def all_keys(self, prefix: str = "") -> list[str]:
        """All keys but s3vol's own."""
        found: list[str] = []
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
            found += [row["Key"] for row in page.get("Contents", []) if not row["Key"].startswith(".s3vol/")]
        return found

    def link(self, key: str) -> str:
        """The body of the hard link that has a name here; empty for an ordinary object."""
        link_id = self.client.head_object(Bucket=self.name, Key=key)["Metadata"].get("s3vol-link")
        return f".s3vol/links/{link_id}" if link_id else ""

    def bodies(self) -> list[str]:
        """All bodies of hard links; each has a record beside it."""
        page = self.client.list_objects_v2(Bucket=self.name, Prefix=".s3vol/links/")
        keys = {row["Key"] for row in page.get("Contents", [])}
        bodies = [key for key in keys if not key.endswith(".names")]
        assert keys == {*bodies, *(f"{key}.names" for key in bodies)}
        return bodies

    def read(self, key: str) -> bytes:
        """The whole body."""
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def uploads(self, key: str) -> list[str]:
        """Ids of unfinished multipart uploads of exactly this key (MinIO forgets the others after a restart)."""
        answer = self.client.list_multipart_uploads(Bucket=self.name, Prefix=key)
        return [row["UploadId"] for row in answer.get("Uploads", [])]


@dataclass
class S3fs:
    """Debian's s3fs on the same bucket: the other reader and writer of our headers."""

    bucket: str
    server: Minio
    folder: Path
    _mounted: list[Path] = field(default_factory=list)

    def mount(self) -> Path:
        """Mount the bucket; unmounted by `close`."""
        place = self.folder / "s3fs"
        place.mkdir()
        secrets = self.folder / "passwd-s3fs"
        secrets.write_text(f"{ACCESS_KEY}:{SECRET_KEY}\n")
        secrets.chmod(0o600)
        options = (
            f"passwd_file={secrets},url={self.server.endpoint},use_path_request_style,allow_other,enable_noobj_cache"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            ["s3fs", self.bucket, str(place), "-o", options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        self._mounted.append(place)
        wait_for(lambda: os.path.ismount(place), 10, "s3fs")
        return place

    def close(self) -> None:
        """Unmount; s3fs exits by itself."""
        for place in self._mounted:
            subprocess.run(["fusermount3", "-u", str(place)], check=True, timeout=60)


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """An ext4 of its own of this size, mounted at `folder` by a loop device."""
    folder.mkdir()
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True, timeout=60)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)
        image.unlink()


@dataclass
class MemoryCgroup:
    """A cgroup with a memory limit, in either version of the interface."""

    folder: Path

    def add(self, pid: int) -> None:
        """Put a process into it; memory that it touches from now on counts."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """How many processes the kernel killed for going over the limit."""
        for name in ("memory.oom_control", "memory.events"):
            if (self.folder / name).exists():
                found = re.search(r"^oom_kill (\d+)$", (self.folder / name).read_text(), re.M)
                return int(found[1]) if found else 0
        raise FileNotFoundError(f"no memory events in {self.folder}")


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[MemoryCgroup]:
    """A new memory cgroup; its processes must have ended before the block does."""
    v1 = Path("/sys/fs/cgroup/memory")
    root, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    group = root / f"s3vol-{uuid.uuid4().hex[:8]}"
    if limit == "memory.max":
        (root / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    try:
        (group / limit).write_text(str(limit_bytes))
        yield MemoryCgroup(group)
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text().strip(), 30, "the cgroup's processes")
        group.rmdir()


def tools_folder() -> Path:
    """Where `tools/bootstrap` puts what is not a package of the system."""
    return Path(os.environ.get("S3VOL_TOOLS_DIR") or _REPOSITORY / ".cache")


def tool(name: str) -> str:
    """Path of a test program that `tools/bootstrap test` installs."""
    path = os.pathsep.join([f"{tools_folder()}/bin", os.environ.get("PATH", ""), str(Path.home() / ".cargo/bin")])
    found = shutil.which(name, path=path)
    assert found, f"{name} is missing: run tools/bootstrap test"
    return found


class Trace:
    """An strace of a running process and its threads."""

    def __init__(self, pid: int, calls: str, log: Path) -> None:
        self._log = log
        command = ["strace", "-f", "-y", "-s", "0", "-e", f"trace={calls}", "-o", str(log), "-p", str(pid)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        assert "attached" in self._process.stderr.readline()

    def text(self) -> str:
        """Everything that was traced until now; ends the trace."""
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=30)
        return self._log.read_text()
