"""A file that is rewritten again and again while two machines use its volume: what do their repositories hold?

Theory of operation. The first machine rewrites one file whole and closes it: one commit, and the former content is
garbage. The second machine rewrites small files all the time, because collection waits for the heads of all writers,
and reads one that never changes. Both mounts collect in the background as they always do: segments and commits are
given up, then Kubo's own collection runs. After each commit the size of both repositories is noted; now and then the
second machine reads the rewritten file.

Whatever was closed last is held by its SHA-256. At the end both unmount, and `s3vol gc` and Kubo's collection run until
nothing is left to remove; then all files are read by machines whose caches are empty, so that each byte comes from
Kubo.

The retention must be longer than the other machine takes to copy 64 MiB: what goes before it was copied leaves a pin
that waits for it, for two minutes, and Kubo's collection waits with it.

Sizes are counted from what the repositories held before; daemons that had other volumes do not disturb.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.ipfs.site import Site
from tests.support.minio import wait_for

SETTLE_S = 300.0  # garbage goes in seconds; the rest is for a machine under load, and a pin that waits for its time-out
SMALL_FILES, SMALL_BYTES = 20, 4096


@dataclass(frozen=True, slots=True)
class Plan:
    """`pauses`: after each look at the rewritten file, wait until the first repository is below `bound_bytes`.

    `spare_bytes` may be left at the end beside the files: for commits, segments and the tree, 4 KiB on the disk each.
    """

    commits: int
    file_bytes: int
    kept_bytes: int
    bound_bytes: int
    look_every: int = 10
    retention: str = "4s"
    spare_bytes: int = 2 << 20
    pauses: bool = False

    @property
    def needed_bytes(self) -> int:
        """What must be in a repository: each file once."""
        return self.file_bytes + self.kept_bytes + SMALL_FILES * SMALL_BYTES


@dataclass(slots=True)
class Course:
    """What was seen: `sizes[node][commit]`, and `left[node]` after the last collection. All in bytes."""

    sizes: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    left: Sequence[int] = ()
    small_commits: int = 0  # of the second machine
    read_back: int = 0  # files that were compared, each time they were read


def digest(body: bytes) -> str:
    """SHA-256."""
    return hashlib.sha256(body).hexdigest()


class _Repository:
    """Kubo's repository of one machine, from now on."""

    def __init__(self, site: Site, number: int) -> None:
        self._node = site.swarm.nodes[number]
        self.collect()
        self._before = self._now()

    def _now(self) -> int:
        return int(json.loads(self._node.rpc("repo/stat"))["RepoSize"])

    @property
    def used_bytes(self) -> int:
        """More than before."""
        return self._now() - self._before

    def collect(self) -> None:
        """`ipfs repo gc`. Raises AssertionError when Kubo says that something went wrong."""
        said = self._node.rpc("repo/gc", **{"stream-errors": "true"}).splitlines()
        errors = [row["Error"] for row in map(json.loads, said) if row.get("Error")]
        assert not errors, errors


class _Neighbour:
    """The second machine's programs, in a thread until `stop`. `digests` is what it closed last, by name."""

    def __init__(self, path: Path, kept: str) -> None:
        self._path, self._kept = path, kept
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.digests: dict[str, str] = {}
        self.commits = 0
        self.error: BaseException | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                name, body = f"small{self.commits % SMALL_FILES}", os.urandom(SMALL_BYTES)
                (self._path / name).write_bytes(body)
                self.digests[name] = digest(body)
                self.commits += 1
                assert digest((self._path / "kept").read_bytes()) == self._kept
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Wait for the end. Raises what went wrong."""
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


def churn(site: Site, plan: Plan, say: Callable[[int, int], None] = lambda commit, used_bytes: None) -> Course:
    """Run it on the first two machines. Raises AssertionError for a file that is not what was closed."""
    course = Course()
    repositories = [_Repository(site, number) for number in (0, 1)]
    one, two = (site.mount(number, "--retention", plan.retention) for number in (0, 1))
    kept = os.urandom(plan.kept_bytes)
    (one.path / "kept").write_bytes(kept)
    expected = {"kept": digest(kept)}
    neighbour = _Neighbour(two.path, expected["kept"])
    try:
        for commit in range(1, plan.commits + 1):
            body = os.urandom(plan.file_bytes)
            (one.path / "changing").write_bytes(body)
            expected["changing"] = digest(body)
            for sizes, repository in zip(course.sizes, repositories, strict=True):
                sizes.append(repository.used_bytes)
            say(commit, course.sizes[0][-1])
            if commit % plan.look_every == 0:
                assert digest((two.path / "changing").read_bytes()) == expected["changing"]
                course.read_back += 1
                if plan.pauses:
                    _await_below(repositories[0], plan.bound_bytes)
    finally:
        neighbour.stop()
    expected |= neighbour.digests
    course.small_commits = neighbour.commits
    _await_below(repositories[0], plan.bound_bytes)
    for mount in (one, two):
        mount.umount()
    _collect_all(site, plan, repositories)
    course.left = [repository.used_bytes for repository in repositories]
    course.read_back += _read_all(site, expected)
    return course


def _await_below(repository: _Repository, bound_bytes: int) -> None:
    wait_for(lambda: repository.used_bytes < bound_bytes, SETTLE_S, f"a repository below {bound_bytes} bytes")


def _collect_all(site: Site, plan: Plan, repositories: Sequence[_Repository]) -> None:
    """Until only what is needed is left: each writer waits for the heads of the other one."""

    def collected() -> bool:
        for number, repository in enumerate(repositories):
            site.node(number).check("gc", site.source, "--retention", plan.retention)
            repository.collect()
        return all(repository.used_bytes < plan.needed_bytes + plan.spare_bytes for repository in repositories)

    wait_for(collected, SETTLE_S, "repositories that hold what is needed only")
    for number in (0, 1):
        site.node(number).check("fsck", site.source)


def _shows(path: Path, expected: Mapping[str, str]) -> bool:
    return {*os.listdir(path)} == {*expected}


def _read_all(site: Site, expected: Mapping[str, str]) -> int:
    """Read every file on both machines, with caches that are empty; how many."""
    for number in (0, 1):
        mount = site.mount(number, "--read-only", cache="-empty")
        # A head that takes longer than 10 s to come, on a machine under load, is left out and asked for again.
        wait_for(partial(_shows, mount.path, expected), SETTLE_S, f"all names on machine {number}")
        assert {name: digest((mount.path / name).read_bytes()) for name in expected} == expected
        mount.umount()
    return 2 * len(expected)
