"""Mount processes that hang, end badly, or whose number is another one's by now."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from s3vol.errors import S3volError
from s3vol_plugin import launch
from s3vol_plugin.conversation import connected
from s3vol_plugin.process import Process
from s3vol_plugin.state import Record
from tests.plugin.fakes import rig, volume

WEB = volume("web")


@pytest.fixture
def thread() -> Iterator[int]:
    """The number of a thread that is not the first of its process."""
    ended, known = threading.Event(), threading.Event()
    found: list[int] = []

    def run() -> None:
        found.append(threading.get_native_id())
        known.set()
        ended.wait()

    runner = threading.Thread(target=run)
    runner.start()
    known.wait()
    try:
        yield found[0]
    finally:
        ended.set()
        runner.join()


async def test_a_process_whose_number_is_a_thread_s_by_now_has_ended(thread: int) -> None:
    gone = Process(thread, started=1)
    assert not gone.alive
    with trio.fail_after(5):
        await gone.ended()
        await gone.end()


async def test_a_process_that_cannot_be_ended_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(process: Process) -> None:
        await trio.lowlevel.checkpoint()
        raise S3volError(f"mount process {process.pid} does not end")

    monkeypatch.setattr(Process, "end", hang)
    monkeypatch.setattr(launch, "mounting", lambda point: [Process(1, 1), Process(2, 2)])
    with pytest.raises(S3volError, match="does not end"):
        await launch.undo(tmp_path / "point")


async def test_processes_that_are_silent_keep_no_thread_from_other_volumes(tmp_path: Path) -> None:
    path = tmp_path / "silent.sock"
    many = int(trio.to_thread.current_default_thread_limiter().total_tokens) + 1
    async with rig(tmp_path) as it:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(many)
            begun: list[trio.Event] = [trio.Event() for _ in range(many)]

            async def drain(event: trio.Event) -> None:
                async with connected(path) as conversation:
                    event.set()
                    await conversation.drain(60.0)

            async with trio.open_nursery() as nursery:
                for event in begun:
                    nursery.start_soon(drain, event)
                with trio.fail_after(10):
                    for event in begun:
                        await event.wait()
                    await it.state.save(Record(WEB))
                nursery.cancel_scope.cancel()
