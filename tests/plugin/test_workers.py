"""Mount processes of volumes: started and proved, found again, stopped without loss, and nothing left on a failure."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from s3vol import mounts, runtime
from s3vol.control import Client
from s3vol.errors import S3volError, UsageError
from s3vol_plugin import mountpoint
from s3vol_plugin.base import Left
from s3vol_plugin.invocation import label
from s3vol_plugin.process import Process, mounting
from tests.plugin.containers import Bind, Container, ended
from tests.plugin.rig import (
    DEADLINE_S,
    DRAIN_S,
    Rig,
    command,
    command_line_of,
    create,
    environment_of,
    open_files,
    rig_in,
    until,
    with_settings,
)
from tests.support.minio import SECRET_KEY, Minio

pytestmark = pytest.mark.kernel


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A node without any endpoint."""
    with rig_in(tmp_path) as made:
        yield made


async def test_a_volume_is_mounted_served_and_unmounted_and_leaves_no_trace(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    worker = rig.workers.get(volume.uuid)
    assert worker is not None
    mount = mounts.find_mount(str(rig.point(volume)))
    assert mount is not None
    assert (mount.type, mount.source, mount.device) == ("fuse.s3vol", label(rig.settings, volume), worker.device)
    assert {"nosuid", "nodev"} <= mount.flags
    (rig.point(volume) / "f").write_bytes(b"content")
    status = await rig.workers.status(volume.uuid)
    assert (status["state"], status["pid"]) == ("serving", pid)
    assert await rig.start(volume) == pid
    assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)
    assert (rig.left(), mounting(rig.point(volume))) == ([], [])
    assert rig.workers.get(volume.uuid) is None
    assert await rig.workers.status(volume.uuid) == {}
    assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)
    await rig.start(volume)
    assert (rig.point(volume) / "f").read_bytes() == b"content"
    await rig.workers.stop(volume, drain_s=DRAIN_S)


async def test_the_process_holds_nothing_of_the_driver(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    shared = open_files("self") & open_files(pid)
    assert {name for name in shared if name.startswith(("pipe:", "socket:"))} == set()
    assert environment_of(pid).count(b"S3VOL_RUNTIME_DIR=") == 1
    await rig.workers.stop(volume, drain_s=DRAIN_S)


async def test_ten_starts_at_once_make_one_process(rig: Rig) -> None:
    volume, pids = rig.volume(), set[int]()

    async def start() -> None:
        pids.add(await rig.start(volume))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(start)
    assert len(pids) == 1
    assert len(mounting(rig.point(volume))) == 1
    await rig.workers.stop(volume, drain_s=DRAIN_S)


# Failures leave nothing.


async def test_the_mount_command_s_own_line_is_the_error_and_nothing_is_left(rig: Rig) -> None:
    volume = rig.volume(source=f"file://{rig.folder / 'none'}")
    with pytest.raises(S3volError) as caught:
        await rig.start(volume)
    assert str(caught.value).startswith("file://")
    assert "\n" not in str(caught.value)
    assert (rig.left(), mounting(rig.point(volume))) == ([], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache_size": "big"}, "not a size"),
        ({"cachesize": "1G"}, "did you mean cache-size?"),
        ({"node": "a\\"}, "backslash"),
        ({"region,allow-other": "1"}, "unknown option"),
    ],
)
async def test_a_bad_option_is_a_usage_error(rig: Rig, options: dict[str, str], said: str) -> None:
    volume = rig.volume(**options)
    with pytest.raises(UsageError, match=said):
        await rig.start(volume)
    assert rig.left() == []


async def test_a_volume_s_option_cannot_move_the_cache_or_the_name(rig: Rig) -> None:
    volume = rig.volume(cache_dir="/nowhere", log_file="/nowhere/log", fsname="proc", uploads="3")
    await rig.start(volume)
    status = await rig.workers.status(volume.uuid)
    assert Path(status["cache"]["directory"]).parent == rig.folder / "cache" / volume.uuid
    assert status["log"] == str(rig.folder / "cache" / f"{volume.uuid}.log")
    await rig.workers.stop(volume, drain_s=DRAIN_S)


async def test_an_endpoint_that_accepts_and_never_answers_fails_in_time_and_leaves_no_process(rig: Rig) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    rig.environment |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
    rig.restart()
    volume = rig.volume(source="s3://bucket", endpoint=f"http://127.0.0.1:{port}")
    began_s = trio.current_time()
    with pytest.raises(S3volError, match="was not mounted in time; see "):
        await rig.workers.start(volume, deadline_s=3.0)
    assert trio.current_time() - began_s < 15
    assert (rig.left(), mounting(rig.point(volume))) == ([], [])
    await listeners[0].aclose()


async def test_a_cancelled_start_leaves_no_process(rig: Rig) -> None:
    volume = rig.volume()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.start, volume)
            await until(lambda: bool(mounting(rig.point(volume))), "the mount process")
            scope.cancel()
    assert (rig.left(), mounting(rig.point(volume))) == ([], [])
    await rig.start(volume)
    await rig.workers.stop(volume, drain_s=DRAIN_S)


async def test_a_directory_with_files_below_the_mount_is_refused_and_kept(rig: Rig) -> None:
    volume = rig.volume()
    point = rig.point(volume)
    point.mkdir(parents=True)
    (point / "lost").write_text("written while nothing was mounted")
    with pytest.raises(S3volError, match="holds 'lost'"):
        await rig.start(volume)
    assert (point / "lost").read_text() == "written while nothing was mounted"


async def test_a_link_in_the_place_of_the_mount_directory_is_not_followed(rig: Rig) -> None:
    volume = rig.volume()
    point = rig.point(volume)
    point.parent.mkdir(parents=True)
    (rig.folder / "elsewhere").mkdir()
    point.symlink_to(rig.folder / "elsewhere")
    with pytest.raises(S3volError, match="must be a directory of ours"):
        await rig.start(volume)
    assert mounts.find_mount(str(rig.folder / "elsewhere")) is None


async def test_the_directory_below_a_mount_is_mode_000(rig: Rig) -> None:
    path = mountpoint.prepare(rig.settings.mounts_directory, "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    mountpoint.remove(path)
    assert not path.exists()


# Credentials.


@pytest.mark.minio
async def test_named_credentials_are_a_file_that_only_this_process_is_told_of(
    rig: Rig, minio: Minio, bucket: str
) -> None:
    rig.environment |= minio.environment | {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong"}
    folder = rig.settings.credentials_directory
    folder.mkdir()
    keys = f"aws_access_key_id={minio.environment['AWS_ACCESS_KEY_ID']}\naws_secret_access_key={SECRET_KEY}\n"
    (folder / "prod").write_text(f"[default]\n{keys}")
    (folder / "prod").chmod(0o600)
    with_settings(rig, credentials="prod")
    volume = rig.volume(source=f"s3://{bucket}/a")
    pid = await rig.start(volume)
    (rig.point(volume) / "f").write_bytes(b"x")
    assert SECRET_KEY.encode() not in command_line_of(pid) + environment_of(pid)
    assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)
    assert minio.client().get_object(Bucket=bucket, Key="a/f")["Body"].read() == b"x"


@pytest.mark.parametrize("name", ["../secret", "none", "a/b", ".x"])
async def test_credentials_that_are_not_there_are_a_usage_error(rig: Rig, name: str) -> None:
    (rig.folder / "secret").write_text("[default]\n")
    rig.settings.credentials_directory.mkdir()
    with_settings(rig, credentials=name)
    with pytest.raises(UsageError, match="credentials"):
        await rig.start(rig.volume())
    assert rig.left() == []


# The driver ends, the mounts go on.


async def test_a_new_driver_finds_the_processes_of_the_old_one(rig: Rig) -> None:
    one, two = rig.volume("one"), rig.volume("two")
    pids = {await rig.start(one), await rig.start(two)}
    rig.restart()
    assert rig.workers.get(one.uuid) is None
    assert {worker.pid for worker in await rig.workers.adopt()} == pids
    assert await rig.start(one) in pids
    for volume in (one, two):
        assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)
    assert rig.left() == []


async def test_adopting_takes_dead_mounts_away_and_their_records(rig: Rig) -> None:
    volume = rig.volume()
    await rig.start(volume)
    await rig.crash(volume)
    assert await mountpoint.examine(rig.point(volume)) is mountpoint.Answer.DEAD
    rig.restart()
    assert await rig.workers.adopt() == []
    assert rig.left() == []
    assert runtime.records({"S3VOL_RUNTIME_DIR": str(rig.settings.runtime_directory)}) == []


async def test_a_process_that_a_killed_driver_was_starting_is_waited_for_and_used(rig: Rig) -> None:
    volume = rig.volume()
    script = (
        "import sys, trio; from tests.plugin.rig import Rig; from pathlib import Path\n"
        "rig = Rig(Path(sys.argv[1]), {})\n"
        "trio.run(rig.start, rig.volume())"
    )
    driver = await trio.lowlevel.open_process([sys.executable, "-c", script, str(rig.folder)])
    await until(lambda: bool(mounting(rig.point(volume))), "the mount process")
    driver.kill()
    await driver.wait()
    pid = await rig.start(volume)

    def alone() -> bool:
        return [process.pid for process in mounting(rig.point(volume))] == [pid]

    await until(alone, "the end of the command that started it")
    await rig.workers.stop(volume, drain_s=DRAIN_S)


async def test_an_end_that_nobody_asked_for_is_told_and_one_that_was_asked_for_is_not(rig: Rig) -> None:
    one, two = rig.volume("one"), rig.volume("two")
    await rig.start(one)
    sender, ended_here = trio.open_memory_channel[str](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.workers.watch, sender)
        await rig.start(two)
        await rig.workers.stop(one, drain_s=DRAIN_S)
        await rig.crash(two)
        with trio.fail_after(10):
            assert await ended_here.receive() == two.uuid
        await rig.start(one)
        await rig.crash(one)
        with trio.fail_after(10):
            assert await ended_here.receive() == one.uuid
        nursery.cancel_scope.cancel()


async def test_a_crash_is_repaired_by_the_next_start(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    (rig.point(volume) / "f").write_bytes(b"before")
    await rig.crash(volume)
    assert await rig.workers.status(volume.uuid) == {}
    assert await rig.start(volume) != pid
    assert (rig.point(volume) / "f").read_bytes() == b"before"
    await rig.workers.stop(volume, drain_s=DRAIN_S)


# Stopping.


async def test_a_busy_volume_stays_mounted_and_is_watched_still(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    with create(rig.point(volume) / "f") as file:
        with pytest.raises(S3volError, match="is in use, and still mounted"):
            await rig.workers.stop(volume, drain_s=DRAIN_S)
        file.write(b"goes on")
    assert await rig.start(volume) == pid
    sender, ended_here = trio.open_memory_channel[str](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.workers.watch, sender)
        await rig.crash(volume)
        with trio.fail_after(10):
            assert await ended_here.receive() == volume.uuid
        nursery.cancel_scope.cancel()


async def test_a_volume_that_a_container_has_is_not_stopped(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    with Container(Bind(rig.point(volume), rig.folder / "c")) as container:
        with pytest.raises(S3volError, match=f"process {container.pid} has it at {rig.folder}/c"):
            await rig.workers.stop(volume, drain_s=DRAIN_S)
        container.shell(f"echo still > {rig.folder}/c/f")
    assert await rig.start(volume) == pid
    assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)


async def test_a_volume_unmounted_by_hand_under_a_container_is_mounted_again_from_there(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    with Container(Bind(rig.point(volume), rig.folder / "c", read_only=True)) as container:
        command("umount", rig.point(volume))
        assert rig.workers.get(volume.uuid) is None
        rig.restart()
        await rig.workers.adopt()
        assert await rig.start(volume) == pid
        (rig.point(volume) / "f").write_text("written here")  # although the container's is read-only
        assert container.shell(f"cat {rig.folder}/c/f") == "written here"
    assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)


async def test_another_volume_that_is_given_the_device_number_of_a_stopped_one_is_not_taken_for_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, other = rig.volume(), rig.volume("other")
    unmount = mounts.unmount

    def unmount_and_mount_other(path: str) -> None:
        unmount(path)
        trio.from_thread.run(rig.start, other)

    for _ in range(20):  # the number is the kernel's to give, and whoever mounts beside us may be quicker
        await rig.start(volume)
        stopped = rig.workers.get(volume.uuid)
        assert stopped is not None
        with monkeypatch.context() as patch:
            patch.setattr(mounts, "unmount", unmount_and_mount_other)
            await rig.workers.stop(volume, drain_s=DRAIN_S)
        worker = rig.workers.get(other.uuid)
        assert worker is not None
        assert mounts.find_mount(str(rig.point(volume))) is None
        await rig.workers.stop(other, drain_s=DRAIN_S)
        if worker.device == stopped.device:
            return
    pytest.fail("the number went to somebody else each time, so nothing was proved")


async def test_a_start_waits_for_the_process_that_is_ending(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    file = create(rig.point(volume) / "f")
    command("umount", "-l", rig.point(volume))
    assert rig.workers.get(volume.uuid) is None
    with pytest.raises(S3volError, match=f"its earlier mount process {pid} is still publishing"):
        await rig.workers.start(volume, deadline_s=1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.start, volume)
        await trio.sleep(0.3)
        file.close()
    worker = rig.workers.get(volume.uuid)
    assert worker is not None
    assert worker.pid != pid
    await rig.workers.stop(volume, drain_s=DRAIN_S)


@pytest.mark.minio
async def test_what_cannot_be_published_in_time_is_counted_and_published_by_the_next_start(tmp_path: Path) -> None:
    with Minio() as minio, rig_in(tmp_path, minio.environment) as rig:
        bucket = minio.new_bucket()
        volume = rig.volume(source=f"s3://{bucket}", close="local", fsync="local")
        await rig.start(volume)
        with create(rig.point(volume) / "f") as file:
            minio.kill()
            file.write(b"late" * 1000)
        assert await rig.workers.stop(volume, drain_s=1.0) == Left(1, 4000)
        assert rig.left() == []
        minio.start()
        await rig.start(volume)
        assert (rig.point(volume) / "f").read_bytes() == b"late" * 1000
        assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)
        assert minio.client().get_object(Bucket=bucket, Key="f")["Body"].read() == b"late" * 1000


async def test_a_process_that_hangs_is_ended_in_bounded_time_and_something_may_be_left(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    os.kill(pid, signal.SIGSTOP)
    assert (await rig.workers.status(volume.uuid))["state"] == "silent"
    assert await mountpoint.examine(rig.point(volume)) is mountpoint.Answer.SILENT
    began_s = trio.current_time()
    left = await rig.workers.stop(volume, drain_s=DRAIN_S)
    assert trio.current_time() - began_s < 30
    assert left.files >= 1
    ended(pid)
    assert rig.left() == []


async def test_a_cancelled_stop_leaves_the_volume_mounted_or_ending(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    with trio.move_on_after(0.001):
        await rig.workers.stop(volume, drain_s=DRAIN_S)
    worker = rig.workers.get(volume.uuid)
    assert worker is not None or not Process(pid, runtime.process_started(pid) or 0).alive
    await rig.workers.start(volume, deadline_s=DEADLINE_S)
    assert await rig.workers.stop(volume, drain_s=DRAIN_S) == Left(0, 0)


async def test_interrupting_a_question_ends_its_thread(rig: Rig) -> None:
    volume = rig.volume()
    pid = await rig.start(volume)
    os.kill(pid, signal.SIGSTOP)
    try:
        with trio.fail_after(2.0), trio.move_on_after(0.2):
            await rig.workers.status(volume.uuid)
    finally:
        os.kill(pid, signal.SIGCONT)
    record = next(iter(runtime.records({"S3VOL_RUNTIME_DIR": str(rig.settings.runtime_directory)})))
    with Client(record.socket, timeout_s=5) as client:
        assert client.ask("status", timeout_s=5)["pid"] == pid
    await rig.workers.stop(volume, drain_s=DRAIN_S)
