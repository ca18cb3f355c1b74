"""`s3vol umount`: publish, unmount, and wait until the mount process is gone.

Theory of operation. The way without `--force`: ask the process to drain while it still serves; say that the end is near
(`end`), so that its last drain knows our deadline; unmount; and read from the same connection what was left when the
process was done. A mount that is busy stays a mount, and what was published until then is published.

`--force` never waits for anything without a bound, and never looks at the mount point, where a stat() would hang:
a short drain, then a lazy unmount (the path is free, whoever still uses it), then SIGTERM twice, which journals and
ends; what does not end is cut off from the kernel through sysfs, and killed. The next mount publishes the journal.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
import time

from s3vol import mounts, runtime, units
from s3vol.commands import reach
from s3vol.control import Client, NotServing
from s3vol.errors import PosixError, S3volError, UsageError

DONE, FAILED, LEFT = 0, 1, 3

_CONNECT_S = 3.0
_DRAIN_S = 60.0  # default of --drain-timeout
_FORCED_DRAIN_S = 5.0
_EXIT_S = 45.0  # beyond the deadline: a request on its way (25 s at most), and 5 s for each of two steps of the end
_FORCED_STEPS = (  # signal, and how long its effect is waited for
    (signal.SIGTERM, 1.0),  # drain; it has just had its time
    (signal.SIGTERM, 8.0),  # only the journal
    (signal.SIGKILL, 10.0),
)


def run(args: argparse.Namespace) -> int:
    """Unmount; returns 0, or 3 when data is left in the journal. Raises S3volError when it is still mounted."""
    path = mounts.canonical(args.mountpoint)
    mount = mounts.find_mount(path)
    record = runtime.find_record(path, os.environ)
    if (mount is None or mount.type != mounts.TYPE) and (record is None or not record.alive):
        if record:
            runtime.forget(record)
        raise UsageError(f"{args.mountpoint}: no s3vol mount")
    if mount is not None and mount.type != mounts.TYPE:
        raise UsageError(
            f"{args.mountpoint}: {mount.type} is mounted there, over s3vol or in its place; unmount that first"
        )
    deadline_s = _FORCED_DRAIN_S if args.force else _DRAIN_S
    if args.drain_timeout is not None:
        try:
            deadline_s = units.parse_duration(args.drain_timeout)
        except ValueError as error:
            raise UsageError(f"--drain-timeout: {args.drain_timeout!r}: {error}") from None
    unmounting = _Unmounting(path, mount, record, deadline_s)
    return unmounting.forcibly() if args.force else unmounting.properly(args.mountpoint)


class _Unmounting:
    """One attempt. `record` is None for a mount that nobody has recorded (another user's)."""

    def __init__(self, path: str, mount: mounts.Mount | None, record: runtime.Record | None, deadline_s: float) -> None:
        self._path = path
        self._mount = mount
        self._record = record if record and record.alive else None
        self._dead = record if record and not record.alive else None
        self._deadline_s = deadline_s

    def properly(self, given: str) -> int:
        """Drain, unmount, wait."""
        if self._record is None:
            self._unmount(given)
            if self._dead:
                runtime.forget(self._dead)
                return self._say_left(None)
            return DONE
        with self._connected(given) as client:
            began_s = time.monotonic()
            client.send("drain", deadline_s=self._deadline_s)
            self._follow(client, _EXIT_S)
            self._deadline_s = max(0.0, self._deadline_s - (time.monotonic() - began_s))  # one for both drains
            client.send("end", deadline_s=self._deadline_s)
            next(client.events(timeout_s=_CONNECT_S))  # from here on the process knows that we wait for its end
            self._unmount(given)
            left = self._follow(client, _EXIT_S)
        self._await_exit(_EXIT_S)
        return self._say_left(left)

    def _connected(self, given: str) -> Client:
        """A connection to a process that answers: one that hangs is found out now, not at the end of a drain."""
        assert self._record is not None
        try:
            client = Client(self._record.socket, timeout_s=_CONNECT_S)
            try:
                client.ask("status", timeout_s=_CONNECT_S)
            except BaseException:
                client.close()
                raise
        except NotServing:
            raise S3volError(
                f"{given}: the mount process (pid {self._record.pid}) does not answer; use --force"
            ) from None
        return client

    def _follow(self, client: Client, slack_s: float) -> tuple[int, int]:
        """Show progress until the answer, at most `slack_s` after the deadline: files and bytes that are left."""
        line = reach.ProgressLine("publishing")
        try:
            for values in client.events(timeout_s=self._deadline_s + slack_s):
                line.show(values)
        finally:
            line.end()
        return int(values["files"]), int(values["bytes"])

    def _unmount(self, given: str) -> None:
        try:
            mounts.unmount(self._path)
        except PosixError as error:
            if error.errno != errno.EBUSY:
                raise
            raise S3volError(
                f"{given}: is in use, and still mounted; `fuser -vm {given}` shows by whom, and --force unmounts it"
            ) from None

    def _say_left(self, left: tuple[int, int] | None) -> int:
        """Exit status, and a line when data is left; None: the process could not say how much."""
        if left == (0, 0):
            return DONE
        how_much = f"{left[0]} files with {units.format_bytes(left[1])} are" if left else "what was not published is"
        print(
            f"s3vol: unmounted; {how_much} in the journal of this machine's cache, and mounting the source again "
            "publishes it",
            file=sys.stderr,
        )
        return LEFT

    def forcibly(self) -> int:
        """Unmount whatever the state of the process is."""
        left = self._drain_briefly() if self._record else None
        if self._mount:
            mounts.cut_off(self._mount)  # who waits in the kernel for an answer gets an error, the process among them
        if self._record is None:
            if self._dead:
                runtime.forget(self._dead)
            return self._say_left(left) if self._dead else DONE
        for number, wait_s in _FORCED_STEPS:
            if self._signalled(number, wait_s):
                runtime.forget(self._record)
                return self._say_left(left)
        raise S3volError(f"{self._path}: unmounted, but pid {self._record.pid} does not end")

    def _drain_briefly(self) -> tuple[int, int] | None:
        assert self._record is not None
        try:
            with Client(self._record.socket, timeout_s=_CONNECT_S) as client:
                client.send("drain", deadline_s=self._deadline_s)
                return self._follow(client, _CONNECT_S)
        except S3volError as error:
            print(f"s3vol: could not drain: {error}", file=sys.stderr)
            return None

    def _signalled(self, number: signal.Signals, wait_s: float) -> bool:
        """Send a signal to the mount process, if it is still the one of the record; True when it is gone."""
        assert self._record is not None
        try:
            handle = os.pidfd_open(self._record.pid)
        except ProcessLookupError:
            return True
        try:
            if not self._record.alive:  # asked after the handle was opened: the number cannot be reused any more
                return True
            signal.pidfd_send_signal(handle, number)
            return bool(select.select([handle], [], [], wait_s)[0])
        except ProcessLookupError:
            return True
        finally:
            os.close(handle)

    def _await_exit(self, wait_s: float) -> None:
        """Return when the process is gone: then the cache directory can be used by the next mount."""
        assert self._record is not None
        end = time.monotonic() + wait_s
        while self._record.alive:
            if time.monotonic() > end:
                raise S3volError(
                    f"{self._path}: unmounted, but pid {self._record.pid} has not ended within {wait_s:g} s"
                )
            time.sleep(0.02)
