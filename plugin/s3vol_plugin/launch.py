"""Starting a mount process, and taking back what was started.

The command (`s3vol mount`) returns when its child serves, or prints one line and ends with the child. It and the child
keep our pipe as their standard error until then, so the end of that pipe is the end of starting. Both have the same
command line, by which the child is found when the command is killed: killing only the command would leave a child that
mounts a moment later.

Nothing of us goes along: a session of its own, `/` as working directory, no descriptor but the pipe, which the child
closes when it serves.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from s3vol.errors import S3volError, UsageError
from s3vol_plugin import mountpoint
from s3vol_plugin.process import END_S, Process, mounting

_USAGE = 2  # exit status of `s3vol mount` for bad input
_OUTPUT_MAX_BYTES = 64 * 1024  # of a traceback; the command says one line
_UNDO_S = 2 * END_S
_PREFIX = "s3vol: "


async def launch(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run the command until it returns, which is when the mount serves. Cancelled, the command is killed.

    Raises UsageError or S3volError with the command's own line.
    """
    try:
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise S3volError(f"{command[0]}: cannot be started: {error.strerror}") from None
    try:
        assert process.stderr is not None
        async with process.stderr:
            said = await _read(process.stderr)
        status = await process.wait()
    except BaseException:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        raise
    if status != 0:
        lines = said.decode(errors="replace").strip().splitlines() or [f"`s3vol mount` ended with status {status}"]
        kind = UsageError if status == _USAGE else S3volError
        raise kind(lines[-1].removeprefix(_PREFIX))


async def _read(stream: trio.abc.ReceiveStream) -> bytes:
    """All that comes, and the last _OUTPUT_MAX_BYTES of it."""
    said = b""
    async for data in stream:
        said = (said + data)[-_OUTPUT_MAX_BYTES:]
    return said


async def undo(point: Path) -> None:
    """End what still mounts or serves on `point`, take its mounts away, remove the directory. At most _UNDO_S.

    What was accepted by such a process is in its journal. Raises S3volError when a process does not end.
    """
    failed: list[S3volError] = []

    async def end(process: Process) -> None:
        try:
            await process.end()
        except S3volError as error:  # for the nursery would make a group of it, and leave the mount
            failed.append(error)

    with trio.move_on_after(_UNDO_S, shield=True):
        async with trio.open_nursery() as nursery:
            for process in await trio.to_thread.run_sync(mounting, point):
                nursery.start_soon(end, process)
        await trio.to_thread.run_sync(mountpoint.detach, point)
        mountpoint.remove(point)
    if failed:
        raise failed[0]
