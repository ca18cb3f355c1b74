"""What the mount process and its commands do at the edges: odd streams, names, signals, and other mounts."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from s3vol import mounts
from tests.kernel.harness import COMMAND, Node
from tests.kernel.rig import Bucket
from tests.support.minio import ACCESS_KEY, SECRET_KEY, Minio, wait_for

pytestmark = pytest.mark.kernel

NOT_TEXT = os.fsdecode(b"not text \xff\xfe")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A machine without any endpoint: for `file:` and `memory:`."""
    with Node(tmp_path / "node") as made:
        yield made


@contextlib.contextmanager
def ended(node: Node, path: Path) -> Iterator[None]:
    """Inside, something may be mounted by a process in the background."""
    try:
        yield
    finally:
        node.run("umount", "--force", "--drain-timeout", "1s", str(path))
        while mounts.find_mount(str(path)):
            mounts.unmount(str(path), lazy=True)


def pid_of(node: Node) -> int:
    """The process of the only mount."""
    (record,) = (node.folder / "run").glob("*.json")
    pid: int = json.loads(record.read_text())["pid"]
    return pid


# The end.


def test_a_notification_that_is_stuck_at_the_end_leaves_no_dead_mount(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kernel.stuck", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        mount = mounts.find_mount(str(tmp_path))
        assert mount is not None
        with subprocess.Popen(["cat", str(tmp_path / "f")], stderr=subprocess.DEVNULL) as reader:
            try:
                assert process.wait(20) == 0
                assert reader.wait(20) != 0
                assert mounts.find_mount(str(tmp_path)) is None
            finally:
                cut_off(mount)
                mounts.unmount(str(tmp_path), lazy=True)
                process.kill()


def cut_off(mount: mounts.Mount) -> None:
    """Abort a connection, also where nobody has mounted its control directory: else a failed test cannot be killed."""
    script = f"mount -t fusectl none {mount.connection.parent}; echo 1 > {mount.connection}/abort"
    subprocess.run(["unshare", "-m", "sh", "-c", script], stderr=subprocess.DEVNULL, timeout=30, check=False)


def test_a_connection_that_somebody_cuts_off_leaves_no_dead_mount(node: Node) -> None:
    here = node.mount("memory:")
    mount = mounts.find_mount(str(here.path))
    assert mount is not None
    cut_off(mount)
    assert here.wait() == 0
    assert mounts.find_mount(str(here.path)) is None


def test_a_signal_that_was_ignored_from_the_start_does_not_unmount(node: Node) -> None:
    """As for nohup(1), and for what a shell's script has started with `&`."""

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    here = node.mount("memory:", preexec=nohup)
    os.kill(here.pid, signal.SIGHUP)
    os.kill(here.pid, signal.SIGINT)
    assert here.status()["state"] == "serving"
    assert "draining" not in here.log
    assert here.terminate() == 0


@pytest.mark.minio
def test_a_mount_command_that_is_terminated_mounts_nothing_later(minio: Minio, bucket: Bucket, tmp_path: Path) -> None:
    node = Node(tmp_path / "node", minio.environment)
    path = tmp_path / "mnt"
    path.mkdir()
    minio.pause()
    try:
        with (
            ended(node, path),
            subprocess.Popen(
                [*COMMAND, "mount", f"s3://{bucket.name}", str(path)], env=node.environment, stderr=subprocess.DEVNULL
            ) as command,
        ):
            children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
            wait_for(lambda: bool(children.read_text()), 30, "the mount process")
            child = int(children.read_text())
            wait_for(lambda: os.getsid(child) == child, 30, "the mount process")
            handle = os.pidfd_open(child)
            try:
                command.send_signal(signal.SIGTERM)
                assert command.wait(30) != 0
                assert not Path(f"/proc/{child}").exists()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                os.close(handle)
    finally:
        minio.resume()


# Other mounts and links.


def test_a_mount_that_hangs_is_shown_and_ended_by_a_link_to_it_too_with_all_who_wait_for_it(node: Node) -> None:
    here = node.mount("memory:")
    (here.path / "f").write_bytes(b"x")
    link = node.folder / "link"
    link.symlink_to("mnt/")
    os.kill(here.pid, signal.SIGSTOP)
    with subprocess.Popen(["cat", str(here.path / "f")], stderr=subprocess.DEVNULL) as reader:
        try:
            stat = Path(f"/proc/{reader.pid}/stat")
            wait_for(lambda: stat.read_text().split()[1:3] in (["(cat)", "S"], ["(cat)", "D"]), 30, "who waits")
            values = json.loads(node.check("status", "--json", str(link), timeout_s=20))
            assert values["state"] == "silent"
            done = node.run("umount", "--force", "--drain-timeout", "1s", str(link), timeout_s=60)
            assert done.returncode == 3, done.stderr
            assert not mounts.find_mount(str(here.path))
            assert reader.wait(20) != 0
        finally:
            reader.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(here.pid, signal.SIGCONT)


@pytest.mark.parametrize("how", [(), ("--force",)])
def test_what_another_has_mounted_over_a_mount_is_not_unmounted(node: Node, how: tuple[str, ...]) -> None:
    here = node.mount("memory:")
    subprocess.run(["mount", "-t", "tmpfs", "another", str(here.path)], check=True, timeout=30)
    try:
        done = node.run("umount", *how, "--drain-timeout", "1s", str(here.path))
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "tmpfs is mounted there" in done.stderr
        top = mounts.find_mount(str(here.path))
        assert top is not None
        assert top.type == "tmpfs"
    finally:
        subprocess.run(["umount", str(here.path)], timeout=30, check=False)
    here.umount()


# Streams, names, working directories.


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&- >&-", "<&- >&- 2>&-", ">/dev/full"])
def test_a_mount_in_the_background_needs_no_streams(node: Node, streams: str) -> None:
    path = node.folder / "mnt"
    path.mkdir()
    command = shlex.join([*COMMAND, "mount", "memory:", str(path)])
    with ended(node, path):
        done = subprocess.run(["sh", "-c", f"{command} {streams}"], env=node.environment, timeout=60, check=False)
        assert done.returncode == 0, streams
        (path / "f").write_text("served")
        pid = pid_of(node)
        assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
        node.check("umount", str(path))


@pytest.mark.parametrize("foreground", [False, True])
def test_a_mount_point_that_is_no_text_is_mounted_and_shown(node: Node, foreground: bool) -> None:
    node.environment["PYTHONIOENCODING"] = "utf-8:strict"  # as in any locale with UTF-8 but C.UTF-8
    path = node.folder / NOT_TEXT
    path.mkdir()
    with ended(node, path):
        if foreground:
            node.mount("memory:", name=NOT_TEXT)
        else:
            _run_bytes(node, "mount", "memory:", str(path))
        assert os.fsencode(path) in _run_bytes(node, "status")
        log = json.loads(_run_bytes(node, "status", "--json", str(path)))["log"]
        if log:
            assert "serving memory: on" in Path(log).read_text()
        _run_bytes(node, "umount", str(path))


def _run_bytes(node: Node, *words: str) -> bytes:
    """Standard output of a command that must succeed."""
    done = subprocess.run([*COMMAND, *words], env=node.environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.minio
def test_files_that_the_environment_names_relative_to_here_are_found_from_the_background(
    minio: Minio, bucket: Bucket, tmp_path: Path
) -> None:
    node = Node(tmp_path / "node", minio.environment)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        node.environment.pop(name)
    node.environment["AWS_SHARED_CREDENTIALS_FILE"] = "credentials"
    node.environment["S3VOL_RUNTIME_DIR"] = "run"
    path = node.folder / "mnt"
    path.mkdir()
    (node.folder / "credentials").write_text(
        f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    with ended(node, path):
        run = partial(
            subprocess.run,
            env=node.environment,
            cwd=node.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        done = run([*COMMAND, "mount", f"s3://{bucket.name}", str(path)])
        assert done.returncode == 0, done.stderr
        status = run([*COMMAND, "status", str(path)])
        assert status.returncode == 0, status.stderr
        assert run([*COMMAND, "umount", str(path)]).returncode == 0
