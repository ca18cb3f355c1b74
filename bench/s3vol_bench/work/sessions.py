"""The sessions: which steps there are, in which order, on how many mounts, and what each needs from the ones before.

A session is what one target does before the next one has its turn: at most about 20 s, so that a slow minute of the
machine hits all targets. `stages` are its mounts; each one but the first is made anew, with an empty cache, after all
that was written is in the bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from s3vol_bench.rows import BY_NAME
from s3vol_bench.work import listing, programs, scattered, small, stream
from s3vol_bench.work.place import Outcome, Place

PREPARE = "prepare"  # a step that is no row


@dataclass(frozen=True, slots=True)
class Step:
    """One row, or the preparation of others."""

    row: str
    work: Callable[[Place], Outcome]
    needs: tuple[str, ...] = ()  # rows of this session that have to come before


@dataclass(frozen=True, slots=True)
class Session:
    """Steps, mount by mount. `shared`: works on the tree that the run has put into the bucket, and changes nothing."""

    name: str
    stages: tuple[tuple[Step, ...], ...]
    shared: bool = False
    most_repeats: int = 1000  # for what takes long and varies little

    def only(self, wanted: frozenset[str]) -> Session:
        """This session with these rows, and those that they need."""
        steps = [step for stage in self.stages for step in stage]
        kept: set[str] = set()
        for step in reversed(steps):  # what a step needs comes before it
            if step.row in wanted or step.row in kept:
                kept |= {step.row, *step.needs}
        stages = tuple(tuple(step for step in stage if step.row in kept) for stage in self.stages)
        return replace(self, stages=tuple(stage for stage in stages if stage))


def _matrix(work: Callable[..., Outcome], direction: str) -> tuple[Step, ...]:
    return tuple(
        Step(
            f"{direction}-{jobs}j-{'direct' if direct else 'buffered'}-{block}",
            partial(work, jobs=jobs, direct=direct, block=block),
            (f"write-{jobs}j-{'direct' if direct else 'buffered'}-{block}",) if direction == "read" else (),
        )
        for jobs in (1, 4)
        for direct in (0, 1)
        for block in ("256k", "1m")
    )


SESSIONS: Sequence[Session] = (
    Session(
        "small",
        (
            (
                Step("create-1", small.create_1),
                Step("create-8", small.create_8),
                Step("one-byte", small.one_byte),
                Step("create-empty-100", partial(small.create_empty, count=100)),
                Step("create-empty-1000", partial(small.create_empty, count=1000)),
                Step("create-empty-10000", partial(small.create_empty, count=10_000)),
                Step("stat-warm", small.stat_warm, ("create-1",)),
                Step("untar", programs.untar),
                Step("git", programs.git),
                Step("sqlite", programs.sqlite),
            ),
            (
                Step("stat-cold", small.stat_cold, ("create-1", "create-8")),
                Step("read-small-cold-1", small.read_cold_1, ("create-1",)),
                Step("read-small-cold-8", small.read_cold_8, ("create-8",)),
                Step("rename", small.rename, ("create-1",)),
                Step("rename-directory", small.rename_directory, ("create-8",)),
                Step("delete-1", small.delete_1, ("create-1",)),
                Step("delete-8", small.delete_8, ("rename-directory",)),
            ),
        ),
    ),
    Session(
        "stream",
        (
            (
                Step("write-1", stream.write_1),
                Step("write-4", stream.write_4),
                Step("write-direct", stream.write_direct),
                Step("write-5m", stream.write_5m),
            ),
            (
                Step("read-cold-1", stream.read_cold_1, ("write-1",)),
                Step("read-cold-4", stream.read_cold_4, ("write-4",)),
                Step("read-direct", stream.read_direct, ("write-direct",)),
                Step("read-5m", stream.read_5m, ("write-5m",)),
                Step("read-cached", stream.read_cold_1, ("read-cold-1",)),
            ),
        ),
    ),
    Session("matrix", (_matrix(stream.matrix_write, "write"), _matrix(stream.matrix_read, "read"))),
    Session(
        "random",
        (
            (
                Step(PREPARE, scattered.prepare),
                Step("randread-4k", scattered.randread_4k, (PREPARE,)),
                Step("randread-256k", scattered.randread_256k, (PREPARE,)),
                Step("randwrite-4k", scattered.randwrite_4k, (PREPARE,)),
                Step("randwrite-256k", scattered.randwrite_256k, (PREPARE,)),
                Step("mix-4r1w", scattered.mix_4r1w),
                Step("mix-2r2w", scattered.mix_2r2w),
                Step("mix-1r4w", scattered.mix_1r4w),
                Step("append-fsync", scattered.append_fsync),
            ),
            (
                Step("ttfb", scattered.first_byte, (PREPARE,)),
                Step("randread-4k-cold", scattered.randread_4k, (PREPARE,)),
            ),
        ),
    ),
    Session("listing", ((Step("mount", listing.mount), Step("list", listing.list_all)),), True, 2),
)

assert {step.row for session in SESSIONS for stage in session.stages for step in stage} == {PREPARE, *BY_NAME}


def planned(wanted: frozenset[str]) -> list[Session]:
    """The sessions that these rows need."""
    return [session for session in (one.only(wanted) for one in SESSIONS) if session.stages]
