"""What stands for a container in tests of mounts: a process in its own mount namespace, with volumes bound into it.

Its root file system is the machine's; the volumes are bound below a directory of its own as dockerd does it: private,
read-write or read-only, the whole volume or a directory of it. Every other s3vol mount is taken out of the namespace at
once: `unshare` copies them all, and a copy would keep mounts of other tests from ending.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.minio import wait_for

_SCRIPT = r"""
set -e
mount --make-rprivate /
while [ "$1" != -- ]; do
  mount --bind "$1" "$2"
  [ "$3" = rw ] || mount -o remount,bind,ro "$2"
  kept="$kept $2"; shift 3
done
shift
grep ' - fuse.s3vol ' /proc/self/mountinfo | while read -r _ _ _ _ path _; do
  case " $kept " in *" $path "*) ;; *) umount -l "$path" ;; esac
done
eval "$1"
echo ready
exec sleep 1000
"""
_START_S = 20.0


@dataclass(frozen=True)
class Bind:
    """A directory of this machine at `target` in the container."""

    source: Path
    target: Path
    read_only: bool = False


class Container:
    """A running one. `then` is shell that runs after the binds, in its namespace."""

    def __init__(self, *binds: Bind, then: str = ":") -> None:
        words = []
        for bind in binds:
            bind.target.mkdir(parents=True, exist_ok=True)
            words += [str(bind.source), str(bind.target), "ro" if bind.read_only else "rw"]
        command = ["unshare", "-m", "--propagation", "private", "bash", "-c", _SCRIPT, "container", *words, "--", then]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.kill()
            raise AssertionError("the container did not start")

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in its namespace."""
        command = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def shell(self, script: str) -> str:
        """Standard output of a script in its namespace; it has to succeed."""
        done = self.run("bash", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def table(self) -> Sequence[str]:
        """Lines of its mount table that are about s3vol."""
        return [line for line in Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines() if "fuse.s3vol" in line]

    def kill(self) -> None:
        """It is gone, with its namespace."""
        self._process.kill()
        self._process.wait(_START_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def ended(pid: int) -> None:
    """Return when a process that is no child of ours has ended."""
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid), _START_S, f"the end of {pid}")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
