"""Programs as they are: tar, git, SQLite. Their input is made on the local disk first, from a fixed seed.

The source tree is files of 0.5 to 16 KiB, 12 to a directory, like a small project. SQLite runs with its defaults
(rollback journal, synchronous=FULL), one row a transaction.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from s3vol_bench.errors import BenchError
from s3vol_bench.promise import Expected
from s3vol_bench.work.place import Outcome, Place

_PER_FOLDER = 12
_SMALLEST_BYTES, _LARGEST_BYTES = 512, 16 << 10
_LIMIT_S = 300.0
_COMMITS = 5


def tree(files: int) -> dict[str, bytes]:
    """A source tree by path; the same for the same number of files."""
    chance = random.Random(files)
    return {
        f"d{number // _PER_FOLDER:03}/f{number:04}.c": chance.randbytes(chance.randint(_SMALLEST_BYTES, _LARGEST_BYTES))
        for number in range(files)
    }


def _run(*command: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    return done.stdout


def untar(place: Place) -> Outcome:
    """tar restores times and modes, so each file is written and its attributes changed."""
    files = tree(place.sizes.untar_files)
    archive = place.scratch / f"tree-{len(files)}.tar"
    if not archive.exists():
        with tarfile.open(archive, "w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.mode = len(content), 1_700_000_000, 0o644
                tar.addfile(entry, BytesIO(content))
    target = place.path / "untar"
    target.mkdir()
    _, timed = place.clock(lambda: _run("tar", "-xf", str(archive), folder=target), len(files))
    return Outcome(timed.seconds, timed, Expected({f"untar/{name}": content for name, content in files.items()}))


def _repository(place: Place) -> Path:
    folder = place.scratch / "repository"
    if folder.exists():
        return folder
    folder.mkdir()
    _run("git", "init", "-q", folder=folder)
    names = list(tree(place.sizes.untar_files).items())
    step = max(1, len(names) // _COMMITS)
    for begin in range(0, len(names), step):
        for name, content in names[begin : begin + step]:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        _run("git", "add", "-A", folder=folder)
        author = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")
        _run("git", *author, "commit", "-q", "-m", f"files {begin} and on", folder=folder)
    return folder


def git(place: Place) -> Outcome:
    """A clone into the mount, and the first status, which looks at every file."""
    source = _repository(place)

    def work() -> str:
        _run("git", "clone", "-q", "--no-local", str(source), "clone", folder=place.path)
        return _run("git", "status", "--porcelain", folder=place.path / "clone")

    changed, timed = place.clock(work)
    if changed:
        raise BenchError(f"git status shows changes after a clone: {changed.splitlines()[0]}")
    files = tree(place.sizes.untar_files)
    return Outcome(timed.seconds, timed, Expected({f"clone/{name}": content for name, content in files.items()}))


def sqlite(place: Place) -> Outcome:
    """The bucket is looked at while the database is open: what counts is the commit."""
    count, path = place.sizes.transactions, place.path / "bench.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text TEXT)")

        def work() -> None:
            for number in range(count):
                database.execute("INSERT INTO numbers VALUES (?, ?)", (number, "x" * 100))

        _, timed = place.clock(work, count)
        copy = place.scratch / "bench.sqlite"
        shutil.copyfile(path, copy)
        return Outcome(count / timed.seconds, timed, Expected({"bench.sqlite": copy.read_bytes()}), database.close)
    except sqlite3.Error as error:
        database.close()
        raise BenchError(f"sqlite: {error}") from None
