"""Cost as work grows: does one operation cost the same when there is a hundred times more of everything?

Four charts, each over a quantity that grows tenfold from point to point: files in one directory, open files, the
length of a sparse file, and inodes that the mount knows. Drawn is the time of one operation, beside it the processor
time of the mount process for it (which a busy machine disturbs less), and for inodes the memory of the mount process
for each. Flat is good; the goal for memory is GOAL_INODE_BYTES.

Directories and open files use objects that were put without a file system. A sparse file is removed before it is
closed: publishing it would send all its zeros. Mounts have a long `attr-ttl`: else the time of a longer measurement
holds more requests that only ask whether something is still the same. Inodes are known through a source on the local
disk (file://), because what they cost is the same for every store, and a million objects would take half an hour to
put.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from s3vol_bench import svg, usage
from s3vol_bench.endpoint import Room
from s3vol_bench.rows import TINY
from s3vol_bench.targets.base import Ground, Launch, Mounted, Target, mounted
from s3vol_bench.targets.plain import Plain

GOAL_INODE_BYTES = 1024
_ASKED = 500  # operations behind one point: processor time is counted in ticks of 10 ms
_BLOCK_BYTES = 4096
_PER_FOLDER = 1000
_OTHER_FILES = 64  # that this process has open beside


@dataclass(frozen=True, slots=True)
class Extent:
    """How far each quantity grows."""

    files: Sequence[int] = (1000, 10_000, 100_000)
    open_files: Sequence[int] = (10, 100, 1000, 10_000)
    sparse_gib: Sequence[int] = (1, 10, 100)
    inodes: Sequence[int] = (10_000, 100_000, 1_000_000)


FULL = Extent()
QUICK = Extent((100, 1000, 10_000), (10, 100, 1000), (1, 10, 100), (1000, 10_000, 100_000))


@dataclass(slots=True)
class Chart:
    """Lines over one growing quantity: `lines[name]` is pairs of quantity and value."""

    title: str
    x_name: str
    unit: str
    lines: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, line: str, x: int, value: float) -> None:
        """One more point."""
        self.lines.setdefault(line, []).append((x, value))


@dataclass(frozen=True, slots=True)
class Pair:
    """The chart of an operation's time, and that of the processor time of a mount process for it."""

    time: Chart
    processor: Chart

    @staticmethod
    def of(title: str, x_name: str) -> Pair:
        """Two empty charts."""
        return Pair(Chart(title, x_name, "µs"), Chart(f"{title}: processor time of the mount", x_name, "µs"))

    def measure(self, line: str, x: int, pid: int, work: Callable[[], None], count: int) -> None:
        """Run `work`, which is `count` operations, and add a point to both."""
        before, began_s = usage.of(pid), time.perf_counter()
        work()
        self.time.add(line, x, (time.perf_counter() - began_s) / count * 1e6)
        used = usage.of(pid).since(before)
        self.processor.add(line, x, (used.user_s + used.system_s) / count * 1e6)


@dataclass(frozen=True, slots=True)
class Growth:
    """The measurements, on mounts of one target."""

    room: Room
    target: Target
    scratch: Path
    extent: Extent
    say: Callable[[str], None]

    def run(self) -> list[Chart]:
        """All charts. Raises BenchError, OSError."""
        pairs = [self._directory(), self._open_files(), self._sparse()]
        return [chart for pair in pairs for chart in (pair.time, pair.processor)] + self._inodes()

    @contextlib.contextmanager
    def _mount(self, below: str, target: Target | None = None) -> Iterator[Mounted]:
        folder = self.scratch / "growth"
        folder.mkdir()
        try:
            with mounted(target or self.target, Ground(self.room.endpoint, below, folder / "m", folder)) as mount:
                yield mount
        finally:
            shutil.rmtree(folder)

    def _put(self, below: str, first: int, last: int) -> None:
        self.say(f"putting {last - first} objects")
        Plain(self.room.endpoint, below, TINY, b"x").put_numbered(first, last)

    def _directory(self) -> Pair:
        pair = Pair.of("One directory with many files", "files in the directory")
        done = 0
        for files in self.extent.files:
            self._put("directory/d/", done, files)
            done = files
            self.say(f"a directory with {files} files")
            with self._mount("directory/") as mount:
                self._ask_directory(pair, mount, files)
        self.room.clean("directory/")
        return pair

    def _ask_directory(self, pair: Pair, mount: Mounted, files: int) -> None:
        folder = mount.path / "d"
        names = random.sample(range(files), min(_ASKED, files))
        new = [folder / f"new-{number}" for number in range(_ASKED)]

        def stat() -> None:
            for number in names:
                os.stat(folder / f"f{number}")

        def create() -> None:
            for path in new:
                path.touch(exist_ok=False)

        def delete() -> None:
            for path in new:
                path.unlink()

        def read() -> None:
            with os.scandir(folder) as entries:
                for entry in entries:
                    entry.stat()

        pair.measure("ls -l, cold, for each entry", files, mount.pid, read, files)
        pair.measure("stat", files, mount.pid, stat, len(names))
        pair.measure("create an empty file", files, mount.pid, create, len(new))
        pair.measure("delete", files, mount.pid, delete, len(new))

    def _open_files(self) -> Pair:
        pair = Pair.of("Many open files", "open files")
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        points = [count for count in self.extent.open_files if count < hard - _OTHER_FILES]
        self._put("open/d/", 0, points[-1])
        handles: list[int] = []
        with self._mount("open/") as mount:
            try:
                for count in points:
                    self.say(f"{count} open files")
                    first = len(handles)

                    def open_more(first: int = first, count: int = count) -> None:
                        handles.extend(os.open(mount.path / f"d/f{n}", os.O_RDONLY) for n in range(first, count))

                    def read() -> None:
                        for file in random.choices(handles, k=_ASKED):
                            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                            os.pread(file, 1, 0)

                    pair.measure("open", count, mount.pid, open_more, count - first)
                    for file in handles:
                        os.pread(file, 1, 0)
                    pair.measure("read from one of them", count, mount.pid, read, _ASKED)
            finally:
                for file in handles:
                    os.close(file)
        self.room.clean("open/")
        return pair

    def _sparse(self) -> Pair:
        pair = Pair.of("A sparse file", "length in GiB")
        with self._mount("sparse/") as mount:
            for gib in self.extent.sparse_gib:
                self.say(f"a sparse file of {gib} GiB")
                path = mount.path / f"sparse-{gib}"
                file = os.open(path, os.O_RDWR | os.O_CREAT)
                try:
                    self._ask_sparse(pair, mount.pid, file, gib)
                finally:
                    path.unlink()
                    os.close(file)
        self.room.clean("sparse/")
        return pair

    def _ask_sparse(self, pair: Pair, pid: int, file: int, gib: int) -> None:
        os.ftruncate(file, gib << 30)
        block = random.randbytes(_BLOCK_BYTES)
        places = [random.randrange((gib << 30) // _BLOCK_BYTES) * _BLOCK_BYTES for _ in range(_ASKED)]

        def write() -> None:
            for place in places:
                os.pwrite(file, block, place)

        def read() -> None:
            for place in places:
                os.pread(file, _BLOCK_BYTES, place)

        pair.measure("write 4 KiB at random", gib, pid, write, len(places))
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        pair.measure("read it back", gib, pid, read, len(places))

    def _inodes(self) -> list[Chart]:
        pair = Pair.of("Inodes that the mount knows", "known inodes")
        memory = Chart("Memory of the mount for each inode", "known inodes", "bytes")
        source = self.scratch / "inodes"
        target = replace(self.target, launch=lambda ground: _on_disk(self.target.launch(ground), ground, source))
        self.say(f"making {self.extent.inodes[-1]} files on the local disk")
        _make_files(source, self.extent.inodes[-1])
        with self._mount("inodes/", target) as mount:
            before_bytes, known = usage.resident_bytes(mount.pid), 0
            for count in self.extent.inodes:
                self.say(f"{count} known inodes")
                pair.measure("learn one", count, mount.pid, partial(_look, mount.path, known, count), count - known)
                known = count
                memory.add("memory", count, (usage.resident_bytes(mount.pid) - before_bytes) / count)
                memory.add("goal", count, GOAL_INODE_BYTES)
        shutil.rmtree(source)
        return [pair.time, pair.processor, memory]


def _on_disk(launch: Launch, ground: Ground, source: Path) -> Launch:
    """The same mount of another source."""
    given = f"s3://{ground.endpoint.bucket}/{ground.prefix}"
    return replace(launch, command=[f"file://{source}" if word == given else word for word in launch.command])


def _folders(first: int, last: int) -> Iterator[tuple[str, int]]:
    """Directories and how many files are in each, for the files from `first` to `last`."""
    for start in range(first, last, _PER_FOLDER):
        yield f"d{start // _PER_FOLDER}", min(_PER_FOLDER, last - start)


def _make_files(source: Path, count: int) -> None:
    for folder, files in _folders(0, count):
        (source / folder).mkdir(parents=True)
        for number in range(files):
            (source / folder / f"f{number}").touch()


def _look(root: Path, first: int, last: int) -> None:
    for folder, _ in _folders(first, last):
        with os.scandir(root / folder) as entries:
            for entry in entries:
                entry.stat()


def markdown(charts: Sequence[Chart], head: str) -> str:
    """A table for each chart."""
    parts = [f"# s3vol: cost as work grows, {head}"]
    for chart in charts:
        names = list(chart.lines)
        parts.append(f"## {chart.title}")
        lines = [f"| {chart.x_name} | " + " | ".join(f"{name} {chart.unit}".strip() for name in names) + " |"]
        lines.append("|" + "---|" * (len(names) + 1))
        for number, (x, _) in enumerate(chart.lines[names[0]]):
            lines.append(f"| {x:,} | " + " | ".join(f"{chart.lines[name][number][1]:,.1f}" for name in names) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def drawings(charts: Sequence[Chart]) -> list[tuple[str, str]]:
    """Title and drawing of each."""
    return [
        (
            chart.title,
            svg.curves([svg.Line(name, line) for name, line in chart.lines.items()], chart.unit, chart.x_name),
        )
        for chart in charts
    ]


def save(charts: Sequence[Chart], about: dict[str, object], file: Path) -> None:
    """As JSON."""
    file.write_text(json.dumps({"about": about, "charts": [asdict(chart) for chart in charts]}, indent=1) + "\n")
