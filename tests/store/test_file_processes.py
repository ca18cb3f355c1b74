"""The file store between processes, and after one of them was killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3vol.errors import PreconditionFailed
from s3vol.store.base import ABSENT
from s3vol.store.file import FileStore
from s3vol.store.file_control import CONTROL
from s3vol.types import NONCE

PROCESSES = 4

PRELUDE = """
import sys, trio
from pathlib import Path
from s3vol.errors import NotFound, PreconditionFailed
from s3vol.store.base import ABSENT, matches
from s3vol.store.file import FileStore

directory, me, use_xattrs = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"

async def run():
    store = await FileStore.open(directory, use_xattrs=use_xattrs)
    await main(store)
    await store.aclose()
"""

ADD = """
async def main(store):
    for _ in range(50):
        while True:
            info = await store.head("counter")
            try:
                count = int(bytes(await store.get("counter", 0, 20, if_match=info.etag)))
                await store.put("counter", b"%d" % (count + 1), metadata={}, condition=matches(info.etag))
                break
            except PreconditionFailed:
                pass
"""

CLAIM = """
async def main(store):
    for number in range(100):
        try:
            await store.put(f"claims/{number // 10}/{number}", me.encode(), metadata={}, condition=ABSENT)
            print(number, flush=True)
        except PreconditionFailed:
            pass
"""

COME_AND_GO = """
async def main(store):
    for _ in range(60):
        key = f"a/b/c/{me}"
        await store.put(key, b"x", metadata={}, condition=ABSENT)
        assert (await store.head(key)).size == 1
        await store.put("a/b/", b"", metadata={})
        await store.delete(key)
        await store.delete("a/b/")
"""

OVERWRITE = """
async def main(store):
    number = 0
    while True:
        number += 1
        body = (b"%08d" % number) * (number % 7 * 20_000)
        await store.put("d/k", body, metadata={"s3vol-write": f"{number:08}", "size": str(len(body))})
        upload = await store.create_upload("d/u", metadata={"s3vol-write": f"{number:08}", "size": str(len(body))})
        part = await store.upload_part("d/u", upload, 1, body)
        await store.complete_upload("d/u", upload, [part])
        print(number, flush=True)
"""


@contextmanager
def children(directory: Path, program: str, *, count: int, use_xattrs: bool) -> Iterator[list[subprocess.Popen[str]]]:
    script = PRELUDE + program + "\ntrio.run(run)\n"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(directory), str(number), str(use_xattrs)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for number in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run_to_the_end(directory: Path, program: str, *, use_xattrs: bool) -> list[str]:
    """Run the program in several processes at a time; what each printed."""
    with children(directory, program, count=PROCESSES, use_xattrs=use_xattrs) as processes:
        printed = [process.communicate(timeout=100)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * PROCESSES
    return printed


def kill_at_some_moment(child: subprocess.Popen[str], chance: random.Random) -> None:
    """After a few rounds, and then anywhere within the next (a round takes 5 ms)."""
    assert child.stdout is not None
    for _ in range(chance.randrange(1, 5)):
        assert child.stdout.readline(), "the child ended by itself"
    time.sleep(chance.uniform(0, 0.01))
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


both_modes = pytest.mark.parametrize("use_xattrs", [True, False], ids=["xattr", "sidecar"])


@both_modes
async def test_no_update_is_lost_between_processes(tmp_path: Path, use_xattrs: bool) -> None:
    store = await FileStore.open(tmp_path, use_xattrs=use_xattrs)
    await store.put("counter", b"0", metadata={})
    run_to_the_end(tmp_path, ADD, use_xattrs=use_xattrs)
    assert bytes(await store.get("counter", 0, 20)) == b"%d" % (50 * PROCESSES)
    await store.aclose()


async def test_each_name_is_created_by_one_process(tmp_path: Path) -> None:
    printed = run_to_the_end(tmp_path, CLAIM, use_xattrs=True)
    won = [int(line) for text in printed for line in text.split()]
    assert sorted(won) == list(range(100))
    for number, text in enumerate(printed):
        for line in text.split():
            assert (tmp_path / f"claims/{int(line) // 10}/{line}").read_text() == str(number)


@both_modes
async def test_directories_come_and_go_under_the_feet_of_other_processes(tmp_path: Path, use_xattrs: bool) -> None:
    run_to_the_end(tmp_path, COME_AND_GO, use_xattrs=use_xattrs)
    assert os.listdir(tmp_path) == [CONTROL]


@both_modes
async def test_a_killed_writer_leaves_one_whole_version_and_no_litter(tmp_path: Path, use_xattrs: bool) -> None:
    chance = random.Random(5)
    for _ in range(6):
        with children(tmp_path, OVERWRITE, count=1, use_xattrs=use_xattrs) as (child,):
            kill_at_some_moment(child, chance)
        store = await FileStore.open(tmp_path, use_xattrs=use_xattrs)
        for key in ("d/k", "d/u"):
            info = await store.head(key)
            body = bytes(await store.get(key, 0, 1 << 20))
            meta = info.metadata or {}
            assert len(body) == info.size == int(meta["size"])
            assert body == meta[NONCE].encode() * (len(body) // 8)
        with pytest.raises(PreconditionFailed, match="exists already"):
            await store.put("d/k", b"", metadata={}, condition=ABSENT)
        await store.aclose()
    assert os.listdir(tmp_path / CONTROL / "tmp") == []


async def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noting_fsync(fd: int) -> None:
        events.append("sync " + os.readlink(f"/proc/self/fd/{fd}").removeprefix(f"{tmp_path}/").partition("/")[0])
        fsync(fd)

    def noting_rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        events.append(f"rename to {target}")
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    store = await FileStore.open(tmp_path)
    await store.put("d/first", b"", metadata={})
    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    await store.put("d/k", b"content", metadata={"mode": "1"})
    assert events == [f"sync {CONTROL}", "rename to k", "sync d"]
    await store.aclose()
