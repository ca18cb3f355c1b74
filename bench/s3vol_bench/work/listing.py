"""A tree of many files that another client has put into the bucket, seen for the first time; and the start of a mount.

The tree is put once a run, without a file system, and every target lists the same one; its own format keeps JuiceFS
out of this session. On the local disk the same tree is made of files.
"""

from __future__ import annotations

import subprocess

from s3vol_bench.errors import BenchError
from s3vol_bench.usage import Usage
from s3vol_bench.work.place import Outcome, Place, Timed

FOLDERS = 100
CONTENT = b"x"


def paths(files: int) -> list[str]:
    """Of the tree."""
    return [f"d{number % FOLDERS:02}/f{number // FOLDERS:05}" for number in range(files)]


def list_all(place: Place) -> Outcome:
    """`ls -lR` of all of it."""
    place.drop_caches()
    done, timed = place.clock(
        lambda: subprocess.run(["ls", "-lR", str(place.path)], capture_output=True, text=True, check=False),
        place.sizes.listed_files,
    )
    found = sum(line.startswith("-") for line in done.stdout.splitlines())
    if done.returncode != 0 or found != place.sizes.listed_files:
        raise BenchError(f"ls showed {found} of {place.sizes.listed_files} files: {done.stderr[:200]}")
    return Outcome(timed.seconds, timed)


def mount(place: Place) -> Outcome:
    """How long the mount took that this session works on."""
    return Outcome(place.mount_s, Timed(place.mount_s, Usage()))
