"""The life of a mount as its user sees it: commands, their one line on a mistake, their exit status, and the end."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3vol import mounts, runtime
from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Node
from tests.kernel.rig import Bucket
from tests.support.minio import SECRET_KEY, Minio, wait_for

pytestmark = pytest.mark.kernel

SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A machine without any endpoint: for `file:` and `memory:`."""
    with Node(tmp_path / "node") as made:
        yield made


@pytest.fixture
def minio_node(minio: Minio, tmp_path: Path) -> Iterator[Node]:
    """A machine that reaches the MinIO."""
    with Node(tmp_path / "node", minio.environment) as made:
        yield made


def mounted(path: Path) -> bool:
    return mounts.find_mount(str(path)) is not None


def made(node: Node) -> list[Path]:
    """The cache directories of a node."""
    return sorted(path for path in node.folder.glob("cache/*") if path.is_dir())


def refused(node: Node, *words: str, status: int = 2) -> str:
    """The one line of a command that must fail, and leave nothing behind."""
    before = made(node)
    done = node.run(*words)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), done.stdout) == (status, 1, ""), done.stderr
    assert lines[0].startswith("s3vol: ")
    assert made(node) == before
    return lines[0]


# Mounting.


@pytest.mark.parametrize("kind", ["memory:", "file"])
def test_a_mount_without_any_server_reads_back_what_was_written(node: Node, tmp_path: Path, kind: str) -> None:
    (tmp_path / "objects").mkdir()
    here = node.mount(kind if kind == "memory:" else f"file://{tmp_path / 'objects'}")
    (here.path / "d").mkdir()
    body = os.urandom(3_000_000)
    (here.path / "d/f").write_bytes(body)
    assert (here.path / "d/f").read_bytes() == body
    assert os.listdir(here.path) == ["d"]
    here.umount()
    assert not mounted(here.path)
    if kind == "file":
        again = node.mount(here.source)
        assert (again.path / "d/f").read_bytes() == body


@pytest.mark.minio
def test_what_is_written_is_an_object_and_a_second_node_reads_it(bucket: Bucket, mount: MountFactory) -> None:
    one, two = mount("one"), mount("two")
    body = os.urandom(2_000_000)
    (one.path / "f").write_bytes(body)
    assert bucket.read("f") == body
    assert (two.path / "f").read_bytes() == body
    one.umount()
    two.umount()
    assert not mounted(one.path)
    assert not one.alive()


@pytest.mark.minio
def test_mount_returns_when_it_serves_and_the_process_holds_nothing_of_the_terminal(
    minio_node: Node, bucket: Bucket
) -> None:
    path = minio_node.folder / "mnt"
    path.mkdir()
    said = minio_node.check("mount", f"s3://{bucket.name}", str(path))  # would not return if the pipe stayed open
    try:
        (path / "f").write_text("at once")
        status = json.loads(minio_node.check("status", "--json", str(path)))
        pid = status["pid"]
        assert said == f"s3://{bucket.name} is mounted on {path} (pid {pid})\n"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) == pid
        for number in (0, 1, 2):
            assert not os.readlink(f"/proc/{pid}/fd/{number}").startswith(("/dev/pts", "pipe:"))
        log = Path(status["log"])
        assert log.parent == minio_node.folder / "cache"
        for text in (Path(f"/proc/{pid}/cmdline").read_text(), log.read_text(), json.dumps(status)):
            assert SECRET_KEY not in text
    finally:
        minio_node.check("umount", str(path))
    assert not mounted(path)
    assert runtime.process_started(pid) is None
    assert bucket.read("f") == b"at once"
    assert json.loads(minio_node.check("status", "--json")) == []


@pytest.mark.minio
def test_bad_input_is_one_line_status_2_and_nothing_is_made(minio_node: Node, bucket: Bucket, minio: Minio) -> None:
    path = minio_node.folder / "mnt"
    path.mkdir()
    source = f"s3://{bucket.name}"
    (path.parent / "file").write_text("")
    assert "does not exist" in refused(minio_node, "mount", "s3://no-such-bucket-here", str(path))
    assert "is no bucket name" in refused(minio_node, "mount", "s3://No_Bucket", str(path))
    assert "cannot connect" in refused(minio_node, "mount", source, str(path), "--endpoint", "http://127.0.0.1:9")
    assert "not the URL" in refused(minio_node, "mount", source, str(path), "--endpoint", "127.0.0.1:9")
    assert "did you mean cache-size?" in refused(minio_node, "mount", source, str(path), "--cach-size", "1G")
    assert "did you mean cache-size?" in refused(minio_node, "mount", source, str(path), "-o", "cachesize=1G")
    assert "not a size" in refused(minio_node, "mount", source, str(path), "--cache-size", "big")
    assert "does not exist" in refused(minio_node, "mount", source, str(path / "none"))
    assert "not a directory" in refused(minio_node, "mount", source, str(path.parent / "file"))
    assert "wait for itself" in refused(minio_node, "mount", source, str(path), "--cache-dir", str(path / "cache"))
    assert "unexpected argument" in refused(minio_node, "mount", source, str(path), "more")
    assert "MOUNTPOINT".lower() in refused(minio_node, "mount", source)
    assert "no s3vol mount" in refused(minio_node, "umount", str(path))
    assert "no s3vol mount" in refused(minio_node, "status", str(path))
    assert "invalid choice" in refused(minio_node, "mont", source, str(path))
    minio_node.environment["AWS_SECRET_ACCESS_KEY"] = "not this one"
    said = refused(minio_node, "mount", source, str(path))
    assert "secret key is wrong" in said
    assert "not this one" not in said
    assert not mounted(path)


def test_a_file_source_must_not_hold_its_own_mount_point(node: Node) -> None:
    objects = node.folder / "objects"
    (objects / "inner").mkdir(parents=True)
    source = f"file://{objects}"
    for point in (objects / "inner", objects):
        assert "must not contain the mount point" in refused(node, "mount", source, str(point))


def test_the_same_mount_point_and_the_same_cache_are_refused_to_a_second_mount(node: Node) -> None:
    other = node.folder / "other"
    other.mkdir()
    (node.folder / "objects").mkdir()
    here = node.mount(f"file://{node.folder / 'objects'}")
    assert "already a mount of" in refused(node, "mount", "memory:", str(here.path))
    said = refused(node, "mount", here.source, str(other))
    assert f"in use by process {here.pid}" in said
    assert not mounted(other)


def test_a_dry_run_checks_and_mounts_nothing(node: Node) -> None:
    path = node.folder / "mnt"
    path.mkdir()
    node.check("mount", "--dry-run", "memory:", str(path))
    assert not mounted(path)


def test_a_read_only_mount_refuses_every_change(node: Node, tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    source = f"file://{tmp_path / 'objects'}"
    writer = node.mount(source)
    (writer.path / "f").write_text("here")
    writer.umount()
    reader = node.mount(source, "-o", "ro")
    assert (reader.path / "f").read_text() == "here"
    with pytest.raises(OSError, match="Read-only") as caught:
        (reader.path / "new").write_text("x")
    assert caught.value.errno == errno.EROFS
    assert reader.status()["mode"] == "readonly"


def test_a_mount_shows_dots_types_and_the_default_flags(node: Node) -> None:
    here = node.mount("memory:")
    (here.path / "d").mkdir()
    listed = subprocess.run(["ls", "-a", here.path], capture_output=True, text=True, check=True).stdout.split()
    assert listed == [".", "..", "d"]
    row = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(here.path) in line)
    source, _, kind, flags = row.split()[:4]
    assert (source, kind) == ("memory:", "fuse.s3vol")
    assert {"nosuid", "nodev", "default_permissions"} <= set(flags.split(","))
    assert os.statvfs(here.path).f_namemax == 255


@pytest.mark.parametrize("program", ["mount.s3vol", "mount.fuse.s3vol", "mount.fuse"])
def test_mount_8_s_helpers_take_options_as_fstab_has_them(node: Node, program: str) -> None:
    path = node.folder / "mnt"
    path.mkdir()
    lists = ["rw,noauto,user,_netdev,nofail,x-systemd.automount", f"cache_dir={node.folder / 'another'},uploads=2"]
    command = [str(SCRIPTS / program), "memory:", str(path), "-n", "-o", lists[0], "-v", "-o", lists[1]]
    if program == "mount.fuse":  # libfuse's own: finds us by the type, and knows nothing of x- options
        command = ["/sbin/mount.fuse", "memory:", str(path), "-t", "fuse.s3vol", "-o", f"rw,_netdev,{lists[1]}"]
    environment = {**node.environment, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    try:
        assert done.returncode == 0, done.stderr
        (path / "f").write_text("x")
        assert json.loads(node.check("status", "--json", str(path)))["cache"]["directory"].startswith(
            str(node.folder / "another")
        )
    finally:
        node.check("umount", str(path))


# Status, flush, doctor.


@pytest.mark.minio
def test_status_says_what_is_dirty_and_flush_publishes_it(bucket: Bucket, mount: MountFactory, minio: Minio) -> None:
    here = mount("a", "--write-back")
    fd = os.open(here.path / "f", os.O_WRONLY | os.O_CREAT)
    minio.pause()
    try:
        os.write(fd, b"x" * 100_000)
        os.close(fd)
        status = here.status()
        assert (status["dirty_files"], status["state"]) == (1, "serving")
        assert status["dirty_bytes"] >= 100_000
        text = here.node.check("status")
        assert f"s3://{bucket.name} on {here.path}" in text
        assert "1 files" in text
    finally:
        minio.resume()
    here.flush("f")
    assert bucket.read("f") == b"x" * 100_000
    assert here.status()["dirty_files"] == 0


@pytest.mark.minio
def test_doctor_shows_what_the_endpoint_can_do_and_finds_keys_that_are_no_path(
    minio_node: Node, bucket: Bucket
) -> None:
    source = f"s3://{bucket.name}"
    facts = json.loads(minio_node.check("doctor", "--json", source))
    assert facts["problems"] == []
    assert facts["capabilities"]["conditional_replace"] is True
    assert abs(facts["clock_skew_s"]) < 5
    assert facts["round_trip_ms"] > 0
    bucket.client.put_object(Bucket=bucket.name, Key="a", Body=b"")
    bucket.client.put_object(Bucket=bucket.name, Key="ok/" + "n" * 200, Body=b"")
    text = minio_node.check("doctor", source)
    assert "2 keys looked at, all; 0 are no path" in text
    assert text.endswith("result       ok\n")
    assert "does not exist" in refused(minio_node, "doctor", "s3://no-such-bucket-here")


def test_doctor_works_without_a_server_and_names_foreign_keys(node: Node, tmp_path: Path) -> None:
    assert "result       ok" in node.check("doctor", "memory:")
    (tmp_path / "objects").mkdir()
    assert "0 keys looked at, all" in node.check("doctor", f"file://{tmp_path / 'objects'}")


# The end.


@pytest.mark.minio
def test_a_busy_mount_stays_and_nothing_is_lost(bucket: Bucket, mount: MountFactory) -> None:
    here = mount("a", "--write-back")
    with open(here.path / "f", "wb", buffering=0) as file:
        file.write(b"first")
        done = here.umount(status=1)
        assert "is in use, and still mounted" in done.stderr
        assert mounted(here.path)
        file.write(b" and second")
    here.umount()
    assert bucket.read("f") == b"first and second"


@pytest.fixture
def heeded() -> Iterator[None]:
    """What is started here gets SIGINT, also when this process was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.minio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_unmounts_and_ends_with_0(
    bucket: Bucket, mount: MountFactory, heeded: None, number: signal.Signals
) -> None:
    here = mount("a", "--write-back")
    body = os.urandom(5_000_000)
    (here.path / "f").write_bytes(body)
    os.kill(here.pid, number)
    assert here.wait() == 0
    assert not mounted(here.path)
    assert bucket.read("f") == body


@pytest.mark.minio
def test_whoever_unmounts_the_process_drains_and_ends(bucket: Bucket, mount: MountFactory) -> None:
    here = mount("a", "--write-back")
    (here.path / "f").write_bytes(b"unmounted by fusermount3")
    subprocess.run(["fusermount3", "-u", str(here.path)], check=True, timeout=30)
    assert here.wait() == 0
    assert bucket.read("f") == b"unmounted by fusermount3"
    assert list((here.node.folder / "run").iterdir()) == []


@pytest.mark.minio
@pytest.mark.parametrize("how", ["umount", "signal"])
def test_what_cannot_be_published_in_time_is_told_kept_and_published_by_the_next_mount(
    bucket: Bucket, mount: MountFactory, minio: Minio, how: str
) -> None:
    here = mount("a", "--write-back", "--drain-timeout", "2s")
    fd = os.open(here.path / "f", os.O_WRONLY | os.O_CREAT)
    stop, start = (minio.pause, minio.resume) if how == "umount" else (minio.kill, minio.restart)
    stop()
    try:
        os.write(fd, b"late" * 1000)
        os.close(fd)
        began_s = time.monotonic()
        if how == "umount":
            done = here.umount("--drain-timeout", "2s", status=3)
            assert "1 files with" in done.stderr
            assert "mounting the source again publishes" in done.stderr
        else:
            assert here.terminate() == 3
            assert "1 files with" in here.log
        assert time.monotonic() - began_s < 40  # the time-out, and that of the request that hangs
        assert not mounted(here.path)
    finally:
        start()
    again = mount("a")
    assert (again.path / "f").read_bytes() == b"late" * 1000
    again.flush()
    assert bucket.read("f") == b"late" * 1000


@pytest.mark.minio
def test_a_second_signal_cuts_the_drain_short(mount: MountFactory, minio: Minio) -> None:
    here = mount("a", "--write-back", "--drain-timeout", "1h")
    fd = os.open(here.path / "f", os.O_WRONLY | os.O_CREAT)
    minio.kill()
    try:
        os.write(fd, b"pending")
        os.close(fd)
        os.kill(here.pid, signal.SIGTERM)
        wait_for(lambda: "SIGTERM: draining" in here.log, 10, "the first signal")
        assert here.alive()
        assert here.terminate(timeout_s=30) == 3
    finally:
        minio.restart()
    again = mount("a")
    assert (again.path / "f").read_bytes() == b"pending"


def test_a_killed_mount_is_shown_as_dead_and_umount_takes_it_away(node: Node, tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    here = node.mount(f"file://{tmp_path / 'objects'}")
    os.kill(here.pid, signal.SIGKILL)
    here.wait()
    assert [row["state"] for row in json.loads(node.check("status", "--json"))] == ["dead"]
    assert "a dead mount of" in refused(node, "mount", here.source, str(here.path))
    with pytest.raises(OSError, match="not connected"):
        os.listdir(here.path)
    here.umount(status=3)
    assert not mounted(here.path)
    assert json.loads(node.check("status", "--json")) == []


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_mount_process_that_hangs_is_named_and_force_ends_it(node: Node) -> None:
    here = node.mount("memory:")
    with stopped(here.pid):
        blocked = subprocess.Popen(["ls", str(here.path)], stderr=subprocess.DEVNULL)
        assert [row["state"] for row in json.loads(node.check("status", "--json"))] == ["silent"]
        began_s = time.monotonic()
        assert "does not answer; use --force" in here.umount(status=1).stderr
        assert time.monotonic() - began_s < 10
        here.umount("--force", "--drain-timeout", "1s", status=3)
        assert time.monotonic() - began_s < 40
    assert blocked.wait(10) != 0
    assert not mounted(here.path)
    assert not here.alive()


def test_force_unmounts_what_is_in_use(node: Node, tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    here = node.mount(f"file://{tmp_path / 'objects'}")
    (here.path / "f").write_bytes(b"read me")
    fd = os.open(here.path / "f", os.O_RDONLY)
    try:
        here.umount("--force")
        assert not mounted(here.path)
        with pytest.raises(OSError, match=r"not connected|aborted"):
            os.pread(fd, 1, 0)
    finally:
        with contextlib.suppress(OSError):  # close() flushes, and there is nobody to flush to
            os.close(fd)


def test_the_process_of_a_record_is_never_another_one(node: Node) -> None:
    """A process id that was given to somebody else is not signalled, and its mount counts as dead."""
    here = node.mount("memory:")
    here.kill()
    record = next((node.folder / "run").glob("*.json"))
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "pid": os.getpid()}))
    done = node.run("umount", "--force", str(here.path))
    assert done.returncode == 2, done.stderr
    wait_for(lambda: not record.exists(), 5, "the record")
