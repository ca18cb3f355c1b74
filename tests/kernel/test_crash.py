"""What a crash may not lose: kill -9 with data pending, and the order in which bytes reach the disk."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.rig import Bucket, Trace
from tests.support.minio import Minio

pytestmark = [pytest.mark.kernel, pytest.mark.minio]


def _fill(folder: Path, count: int) -> dict[str, bytes]:
    """Create `count` files of mixed sizes, closed; returns what was acknowledged."""
    bodies = {}
    for i in range(count):
        body = os.urandom((i * 7919) % 60_000 + 1)
        (folder / f"file-{i:04d}").write_bytes(body)
        bodies[f"file-{i:04d}"] = body
    return bodies


def test_write_back_acknowledges_from_the_journal_and_kill_9_loses_nothing(
    bucket: Bucket, mount: MountFactory, minio: Minio
) -> None:
    first = mount("a", "--write-back")
    (first.path / "d").mkdir()
    bodies = {f"file-{i:04d}": os.urandom((i * 7919) % 60_000 + 1) for i in range(300)}
    fds = {name: os.open(first.path / "d" / name, os.O_WRONLY | os.O_CREAT, 0o640) for name in bodies}
    minio.pause()  # from here on nothing reaches the bucket: what close() acknowledges can only be in the journal
    try:
        for name, fd in fds.items():
            os.write(fd, bodies[name])
            os.close(fd)
        first.kill()
    finally:
        minio.resume()
    missing = [name for name in bodies if f"d/{name}" not in bucket.all_keys()]
    assert missing, "nothing was pending, so the test would prove nothing"
    second = mount("a", "--write-back")
    assert {name: (second.path / "d" / name).read_bytes() for name in bodies} == bodies
    second.flush()
    assert {name: bucket.read(f"d/{name}") for name in bodies} == bodies
    assert second.status()["dirty_files"] == 0


def test_kill_9_in_the_middle_of_a_large_upload_leaves_no_half_file_and_no_orphan_upload(
    bucket: Bucket, mount: MountFactory
) -> None:
    first = mount("a", "--write-back")
    body = os.urandom(100 << 20)
    (first.path / "big").write_bytes(body)
    first.kill()
    if "big" in bucket.all_keys():
        assert bucket.read("big") == body
    second = mount("a", "--write-back")
    digest = hashlib.sha256((second.path / "big").read_bytes()).digest()
    assert digest == hashlib.sha256(body).digest()
    second.flush()
    assert hashlib.sha256(bucket.read("big")).digest() == hashlib.sha256(body).digest()
    assert bucket.uploads("big") == []


def test_by_default_a_closed_file_is_in_the_bucket(bucket: Bucket, mount: MountFactory) -> None:
    here = mount("a")
    for name, body in _fill(here.path, 30).items():
        assert bucket.read(name) == body
    here.kill()
    assert len(bucket.all_keys()) == 30


def test_by_default_an_fsynced_file_is_in_the_bucket_before_it_is_closed(bucket: Bucket, mount: MountFactory) -> None:
    here = mount("a")
    fd = os.open(here.path / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"first part")
    os.fsync(fd)
    assert bucket.read("f") == b"first part"
    here.kill()
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    assert bucket.read("f") == b"first part"


@dataclass(frozen=True)
class Call:
    """One system call of a trace: where in the log it began and ended, and the file it worked on."""

    name: str
    path: str
    began: int
    ended: int


def _calls(log: str) -> list[Call]:
    """The successful calls of an `strace -f -y` log; calls cut in two by other threads are put together."""
    open_calls: dict[str, tuple[str, str, int]] = {}
    calls: list[Call] = []
    for at, line in enumerate(log.splitlines()):
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if found := re.match(r"<\.\.\. (\w+) resumed>", rest):
            name, text, began = open_calls.pop(pid, (found[1], "", at))
            text += rest
        elif found := re.match(r"(\w+)\(", rest):
            name, text, began = found[1], rest, at
            if rest.endswith("<unfinished ...>"):
                open_calls[pid] = (name, text, began)
                continue
        else:
            continue
        result = re.search(r"\) += (-?\d+)(?:<([^>]*)>)?", text)
        if result and int(result[1]) >= 0:
            path = result[2] if name == "openat" else (re.search(r"\(\d+<([^>]*)>", text) or ["", ""])[1]
            calls.append(Call(name, path or "", began, at))
    return calls


def test_fsync_puts_data_on_disk_before_the_journal_record_and_the_directory_too(
    mount: MountFactory, tmp_path: Path
) -> None:
    """The argument for a loss of power, at the level of system calls.

    A disk may drop everything that was not synced. So an acknowledged fsync must have, in this order: the new data
    file's name (fsync of its directory) and its bytes (fdatasync), both finished before the record that points at
    them is written to the journal, and that record synced before the program gets its answer.
    """
    here = mount("a", "--fsync", "local", "--close", "local")
    trace = Trace(here.pid, "openat,write,pwrite64,pwritev,pwritev2,fsync,fdatasync", tmp_path / "trace")
    second = os.open(here.path / "g", os.O_WRONLY | os.O_CREAT)
    os.write(second, b"x" * 100_000)
    os.fsync(second)
    calls = _calls(trace.text())
    os.close(second)
    data = [c for c in calls if re.search(r"/data/.*[0-9a-f]+$", c.path) and c.name.startswith(("pwrite", "write"))]
    assert data, "no write to a data file in the trace"
    path = data[-1].path
    synced = [c for c in calls if c.path == path and c.name in ("fdatasync", "fsync") and c.began > data[-1].ended]
    assert synced, "the data file was not synced after its last write"
    records = [c for c in calls if c.path.endswith("-wal") and "write" in c.name and c.began > synced[0].ended]
    assert records, "no journal record was written after the data was on the disk"
    durable = [c for c in calls if c.path.endswith("-wal") and "sync" in c.name and c.began > records[-1].ended]
    assert durable, "the journal record was not synced before fsync() returned"
    folder = os.path.dirname(path)
    born = [c for c in calls if c.name == "openat" and c.path == path]
    named = [c for c in calls if c.path == folder and c.name == "fsync" and born and c.began > born[0].ended]
    assert named, "the data file's directory was not synced after the file was made"
    assert named[0].ended < records[-1].began
