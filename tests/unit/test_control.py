"""The control socket, both sides; and the records of the runtime directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol import control, runtime
from s3vol.control import Client, NotServing, Operation, Peer
from s3vol.errors import NoSpace, S3volError
from s3vol.runtime import Record


@contextlib.asynccontextmanager
async def served(path: Path, **operations: Operation) -> AsyncIterator[None]:
    """A control server at `path` for the time of the block."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.serve, control.listen(path), operations, stop)
        yield
        stop.set()
        nursery.cancel_scope.deadline = trio.current_time() + 5


def ask(path: Path, op: str, **arguments: Any) -> list[Mapping[str, Any]]:
    """All events of one request; runs in a thread."""
    with Client(path, timeout_s=5) as client:
        client.send(op, **arguments)
        return list(client.events(timeout_s=5))


async def echo(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
    return {"heard": request.get("word")}


async def test_a_request_is_answered_with_the_values_of_its_operation(tmp_path: Path) -> None:
    async with served(tmp_path / "s", echo=echo):
        events = await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "echo", word="héllo\n"))
    assert events == [{"event": "done", "heard": "héllo\n"}]


async def test_the_newest_progress_is_shown_before_the_answer(tmp_path: Path) -> None:
    shown = trio.Event()

    async def work(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        for files in range(3, 0, -1):
            peer.report(files=files)
        await shown.wait()
        return {}

    def follow() -> list[Mapping[str, Any]]:
        with Client(tmp_path / "s", timeout_s=5) as client:
            client.send("work")
            events = client.events(timeout_s=5)
            first = next(events)
            trio.from_thread.run_sync(shown.set)
            return [first, *events]

    async with served(tmp_path / "s", work=work):
        events = await trio.to_thread.run_sync(follow)
    assert events == [{"event": "progress", "files": 1}, {"event": "done"}]


async def test_an_error_of_an_operation_is_raised_at_the_client(tmp_path: Path) -> None:
    async def full(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        raise NoSpace("the disk is full")

    async with served(tmp_path / "s", full=full):
        with pytest.raises(S3volError, match="the disk is full"):
            await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "full"))


async def test_a_fault_in_an_operation_is_answered_and_the_server_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        raise ZeroDivisionError("fault")

    async with served(tmp_path / "s", broken=broken, echo=echo):
        with pytest.raises(S3volError, match="ZeroDivisionError: fault"):
            await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "broken"))
        assert await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "echo", word=1))
    assert "control request failed" in caplog.text


@pytest.mark.parametrize("line", [b"\n", b"nonsense\n", b"[]\n", b'{"op": "unknown"}\n', b'{"op": ["x"]}\n', b"\xff\n"])
async def test_what_is_no_request_is_refused_and_the_server_goes_on(tmp_path: Path, line: bytes) -> None:
    def send() -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(tmp_path / "s"))
            peer.sendall(line)
            answer: dict[str, Any] = json.loads(peer.makefile().readline())
            return answer

    async with served(tmp_path / "s", echo=echo):
        answer = await trio.to_thread.run_sync(send)
        assert await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "echo"))
    assert answer["event"] == "error"


async def test_an_endless_line_ends_its_connection_only(tmp_path: Path) -> None:
    def flood() -> bytes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(5)
            peer.connect(str(tmp_path / "s"))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(100):
                    peer.sendall(b"x" * control.REQUEST_MAX_BYTES)
                return peer.recv(1)
            return b""

    async with served(tmp_path / "s", echo=echo):
        assert await trio.to_thread.run_sync(flood) == b""
        assert await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "echo"))


async def test_a_client_that_goes_away_is_noticed_and_does_not_cancel_the_work(tmp_path: Path) -> None:
    finished = trio.Event()

    async def work(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        await peer.gone.wait()
        await trio.lowlevel.checkpoint()
        finished.set()
        return {"nobody": "hears this"}

    def leave() -> None:
        with Client(tmp_path / "s", timeout_s=5) as client:
            client.send("work")

    async with served(tmp_path / "s", work=work, echo=echo):
        await trio.to_thread.run_sync(leave)
        with trio.fail_after(5):
            await finished.wait()
        assert await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "echo"))


async def test_a_server_that_stops_still_answers_what_it_was_asked(tmp_path: Path) -> None:
    asked, stop = trio.Event(), trio.Event()
    answers: list[Mapping[str, Any]] = []

    async def work(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        asked.set()
        await stop.wait()
        return {"left": 3}

    async def client() -> None:
        answers.extend(await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "work")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.serve, control.listen(tmp_path / "s"), {"work": work}, stop)
        nursery.start_soon(client)
        await asked.wait()
        stop.set()
    assert answers == [{"event": "done", "left": 3}]


async def test_requests_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    def talk() -> list[Any]:
        with Client(tmp_path / "s", timeout_s=5) as client:
            for word in "abc":
                client.send("echo", word=word)
            return [event["heard"] for _ in "abc" for event in client.events(timeout_s=5)]

    async with served(tmp_path / "s", echo=echo):
        assert await trio.to_thread.run_sync(talk) == ["a", "b", "c"]


async def test_the_socket_is_for_its_owner_only_and_replaces_a_stale_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    async with served(tmp_path / "s", echo=echo):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert await trio.to_thread.run_sync(lambda: ask(tmp_path / "s", "echo"))


async def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    async with served(folder / "s", echo=echo):
        assert await trio.to_thread.run_sync(lambda: ask(folder / "s", "echo"))


def test_a_socket_without_a_listener_is_not_serving(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    for path in (tmp_path / "s", tmp_path / "none", tmp_path / "no" / "directory"):
        with pytest.raises(NotServing):
            Client(path, timeout_s=1)


def test_a_process_that_is_silent_is_not_serving(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "s"))
        mute.listen(1)
        with Client(tmp_path / "s", timeout_s=1) as client, pytest.raises(NotServing, match="does not answer"):
            client.ask("status", timeout_s=0.05)


# Records.


def record(tmp_path: Path, mountpoint: str = "/mnt", pid: int | None = None) -> Record:
    pid = os.getpid() if pid is None else pid
    started = runtime.process_started(pid) or 0
    return Record(mountpoint, "s3://bucket", pid, started, "1.0", "", str(tmp_path / "run"))


def test_a_record_is_there_for_the_time_of_the_mount(tmp_path: Path) -> None:
    mine = record(tmp_path)
    environment = {"S3VOL_RUNTIME_DIR": str(tmp_path / "run")}
    with runtime.registered(mine):
        assert runtime.find_record("/mnt", environment) == mine
        assert runtime.find_record("/other", environment) is None
        assert stat.S_IMODE(mine.path.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert runtime.records(environment) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_a_process_is_recognised_by_its_start_time_too(tmp_path: Path) -> None:
    mine = record(tmp_path)
    assert mine.alive
    reused = Record(mine.mountpoint, mine.source, mine.pid, mine.started - 1, "1.0", "", mine.directory)
    assert not reused.alive


def test_a_process_that_ended_is_dead_even_while_nobody_waited_for_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        theirs = record(tmp_path, pid=child.pid)
        assert theirs.alive
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert not theirs.alive
    assert not theirs.alive


def test_a_record_that_another_process_took_over_is_left_alone(tmp_path: Path) -> None:
    mine = record(tmp_path)
    with runtime.registered(mine):
        runtime.forget(Record(mine.mountpoint, mine.source, 1, 1, "1.0", "", mine.directory))
        assert mine.path.exists()


def test_what_is_no_record_is_no_mount(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "a.json").write_text("{")
    (folder / "b.json").write_text('{"pid": 1}')
    (folder / "c.json").write_bytes(b"\xff")
    assert runtime.records({"S3VOL_RUNTIME_DIR": str(folder)}) == []


def test_a_runtime_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(S3volError, match="other users can write there"):
        runtime.make_directory(folder)


def test_mount_points_that_are_not_utf_8_have_records(tmp_path: Path) -> None:
    mine = record(tmp_path, mountpoint=os.fsdecode(b"/mnt/\xff"))
    with runtime.registered(mine):
        assert runtime.find_record(mine.mountpoint, {"S3VOL_RUNTIME_DIR": mine.directory}) == mine


async def test_a_control_socket_is_made_without_changing_what_other_threads_create(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[int] = []
    umask = os.umask

    def note(mask: int) -> int:
        masks.append(mask)
        return umask(mask)

    monkeypatch.setattr(os, "umask", note)
    async with control.listen(tmp_path / "s"):
        assert (stat.S_IMODE((tmp_path / "s").stat().st_mode), masks) == (0o600, [])
