"""A run: every repeat of every session on every target, interleaved, each figure with its proof.

Theory of operation. The order is repeat, session, target; the targets begin with another one each time. So the figures
of a row on all targets come from the same half minute, five times over the whole run, and who goes first is not always
the same. A session that fails on a target leaves errors in its rows and the run goes on: one broken peer must not cost
the others their figures. Whatever a target wrote is removed from the bucket when its session ends, also on ^C.

A call on a file system that hangs cannot be interrupted; so a watchdog kills the mount process of a step that takes too
long, and the call ends with an error.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from s3vol_bench import promise
from s3vol_bench.endpoint import Room
from s3vol_bench.errors import BenchError, PromiseBroken
from s3vol_bench.result import DISK, PLAIN, Sample
from s3vol_bench.rows import BY_NAME, Promise, Sizes
from s3vol_bench.targets.base import Ground, Mounted, Target, drop_pages, mounted
from s3vol_bench.targets.filesystems import volume_name
from s3vol_bench.targets.plain import SHARED, Plain
from s3vol_bench.work import listing
from s3vol_bench.work.place import Outcome, Place
from s3vol_bench.work.sessions import PREPARE, Session, Step, planned

STEP_S = 300.0
_FAILURES = (BenchError, OSError, subprocess.SubprocessError, ClientError, BotoCoreError)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run."""

    rows: frozenset[str]
    sizes: Sizes
    repeats: int
    targets: Sequence[Target]
    budget_s: float = math.inf  # a repeat that would not fit is not begun; the first one always is
    with_disk: bool = True
    with_plain: bool = True


@dataclass(slots=True)
class Runner:
    """One run. `say` gets a line of progress before each session."""

    room: Room
    order: Order
    scratch: Path
    say: Callable[[str], None]
    samples: list[Sample] = field(default_factory=list)
    repeats: int = 0  # that were done
    _mounts: int = 0

    def run(self) -> list[Sample]:
        """All of it. What was measured stays in `samples` when this is interrupted."""
        pattern = self._pattern()
        pattern.write_bytes(os.urandom(promise.PATTERN_BYTES))
        sessions = planned(self.order.rows)
        names = [
            *([PLAIN] if self.order.with_plain else []),
            *(target.name for target in self.order.targets),
            *([DISK] if self.order.with_disk else []),
        ]
        turns = sum(min(session.most_repeats, self.order.repeats) for session in sessions)
        total, done = turns * len(names), 0
        began_s = time.monotonic()
        self._share(sessions)
        for repeat in range(self.order.repeats):
            took_s = time.monotonic() - began_s
            if repeat and took_s * (repeat + 1) / repeat > self.order.budget_s:
                break
            self.repeats = repeat + 1
            for session in sessions:
                if repeat >= session.most_repeats:
                    continue
                first = (repeat * 2) % len(names)
                for name in names[first:] + names[:first]:
                    done += 1
                    self.say(f"{done} of {total}: repeat {repeat + 1}, {session.name}, {name}")
                    self._turn(session, name, repeat)
        return self.samples

    def _pattern(self) -> Path:
        return self.scratch / "pattern"

    def _plain(self, below: str) -> Plain:
        return Plain(self.room.endpoint, below, self.order.sizes, self._pattern().read_bytes())

    def _share(self, sessions: Sequence[Session]) -> None:
        """The tree that every target lists: in the bucket, and on the local disk."""
        if not any(session.shared for session in sessions):
            return
        self.say(f"a tree of {self.order.sizes.listed_files} files for all")
        self._plain("").put_shared()
        for path in listing.paths(self.order.sizes.listed_files):
            file = self.scratch / DISK / SHARED / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(listing.CONTENT)

    def _turn(self, session: Session, name: str, repeat: int) -> None:
        if name == PLAIN:
            self._on_plain(session, repeat)
        elif name == DISK:
            self._on_disk(session, repeat)
        else:
            self._on_mounts(session, next(one for one in self.order.targets if one.name == name), repeat)

    def _on_plain(self, session: Session, repeat: int) -> None:
        below = f"{PLAIN}-{session.name}-{repeat}/"
        plain = self._plain(below)
        try:
            for step in (step for stage in session.stages for step in stage if step.row in plain.rows):
                try:
                    value = plain.rows[step.row]()
                except Exception as error:  # obstore has no common base of its errors
                    self._failed([step], PLAIN, repeat, str(error))
                else:
                    self._add(Sample(step.row, PLAIN, repeat, value))
        finally:
            self.room.clean(below)

    def _on_disk(self, session: Session, repeat: int) -> None:
        folder = self.scratch / DISK / (SHARED if session.shared else f"{session.name}-{repeat}")
        folder.mkdir(parents=True, exist_ok=True)
        place = self._place(folder, drop_caches=lambda: drop_pages(folder))
        try:
            for stage in session.stages:
                for step in stage:
                    if step.row != "mount":
                        self._step(step, DISK, repeat, place, prove=None)
        finally:
            if not session.shared:
                shutil.rmtree(folder)

    def _place(self, path: Path, **more: object) -> Place:
        base = Place(path, self.scratch / "inputs", self.order.sizes, self._pattern())
        base.scratch.mkdir(exist_ok=True)
        return replace(base, **more)  # type: ignore[arg-type]  # fields of Place by name

    def _on_mounts(self, session: Session, target: Target, repeat: int) -> None:
        if target.own_format and session.shared:
            return
        below = SHARED if session.shared else f"{target.name}-{session.name}-{repeat}/"
        waiting = [step for stage in session.stages for step in stage]
        try:
            self._mark(below)
            with self._grounds(target, below) as ground:
                for stage in session.stages:
                    with mounted(target, ground()) as mount:
                        for step in stage:
                            waiting.remove(step)
                            self._step(
                                step, target.name, repeat, self._on(mount), _Proof(self.room, target, mount, below)
                            )
        except _FAILURES as error:
            self._failed(waiting, target.name, repeat, _line(error))
        finally:
            if not session.shared:
                room, where = _stored(self.room, target, below)
                room.clean(where)
                if target.own_format:
                    self.room.clean(below)

    def _mark(self, below: str) -> None:
        """s3fs mounts a prefix only if there is a marker for it; all get one, so that all find the same."""
        where = self.room.endpoint
        self.room.client.put_object(
            Bucket=where.bucket, Key=where.prefix + below, Body=b"", ContentType="application/x-directory"
        )

    @contextlib.contextmanager
    def _grounds(self, target: Target, below: str) -> Iterator[Callable[[], Ground]]:
        """Makes fresh grounds for the mounts of one session; folders of earlier mounts are removed."""
        base = self.scratch / "mounts"

        def make() -> Ground:
            for old in (base / "g").glob("*"):
                shutil.rmtree(old)
            self._mounts += 1
            folder = base / "g" / str(self._mounts)
            folder.mkdir(parents=True)
            return Ground(self.room.endpoint, below, folder, base / "state")

        shutil.rmtree(base, ignore_errors=True)
        (base / "state").mkdir(parents=True)
        with target.prepare(make()) if target.prepare else contextlib.nullcontext():
            yield make

    def _on(self, mount: Mounted) -> Place:
        return self._place(mount.path, pid=mount.pid, drop_caches=lambda: drop_pages(mount.cache), mount_s=mount.took_s)

    def _step(self, step: Step, target: str, repeat: int, place: Place, prove: _Proof | None) -> None:
        """One figure. What it did is checked before anything else happens to the bucket."""
        watchdog = threading.Timer(STEP_S, prove.mount.kill) if prove else None
        if watchdog:
            watchdog.start()
        try:
            if prove:
                prove.begin()
            outcome = step.work(place)
        except _FAILURES as error:
            self._failed([step], target, repeat, _line(error))
            return
        finally:
            if watchdog:
                watchdog.cancel()
        broken, settled_s = self._proved(outcome, prove)
        if prove and not broken and step.row != PREPARE and BY_NAME[step.row].ends_in_fsync:
            broken = prove.target.fsync_does_nothing
        used = outcome.timed.usage
        self._add(
            Sample(
                step.row,
                target,
                repeat,
                outcome.value,
                broken,
                outcome.timed.seconds,
                outcome.timed.operations,
                used.user_s,
                used.system_s,
                used.peak_bytes,
                settled_s,
            )
        )

    def _proved(self, outcome: Outcome, prove: _Proof | None) -> tuple[str, float]:
        """What is wrong with the promise, if anything, and how long it took to be kept."""
        soon = prove is not None and prove.target.promise is Promise.SOON  # what is open need not be on its way yet
        try:
            if soon:
                outcome.release()
            return "", prove.kept(outcome) if prove else 0.0
        except _FAILURES as error:
            return _line(error), 0.0
        finally:
            if not soon:
                with contextlib.suppress(OSError):  # a broken mount says so in the next step
                    outcome.release()

    def _failed(self, steps: Sequence[Step], target: str, repeat: int, error: str) -> None:
        for step in steps:
            self._add(Sample(step.row, target, repeat, None, error))

    def _add(self, sample: Sample) -> None:
        if sample.row != PREPARE:
            self.samples.append(sample)


@dataclass(slots=True)
class _Proof:
    """How it is proved that a target kept its promise."""

    room: Room
    target: Target
    mount: Mounted
    below: str
    _before_bytes: int = 0

    def begin(self) -> None:
        """Before the step."""
        if self.target.own_format:
            self._before_bytes = promise.stored_bytes(*_stored(self.room, self.target, self.below))

    def kept(self, outcome: Outcome) -> float:
        """Seconds until everything was there; zero where it had to be there at once. Raises PromiseBroken."""
        if not outcome.expected:
            return 0.0
        room, below = _stored(self.room, self.target, self.below)
        if self.target.own_format:
            settled_s = self._unstaged()
            promise.check_growth(room, below, self._before_bytes, outcome.expected)
            return settled_s
        if self.target.promise is Promise.SOON:
            return promise.await_kept(room, below, outcome.expected)
        try:
            promise.check(room, below, outcome.expected)
        except PromiseBroken:
            with contextlib.suppress(PromiseBroken):
                promise.await_kept(room, below, outcome.expected, promise.LATE_S)
            raise
        return 0.0

    def _unstaged(self) -> float:
        stages = self.target.stages
        return promise.await_unstaged(lambda: stages(self.mount.cache)) if stages else 0.0


def _stored(room: Room, target: Target, below: str) -> tuple[Room, str]:
    """Where in the bucket the objects of a target are."""
    if not target.own_format:
        return room, below
    name = volume_name(Ground(room.endpoint, below, Path(), Path()))
    return Room(replace(room.endpoint, prefix="")), f"{name}/"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
