"""A machine that a test may crash: processes in mount, network, name and process namespaces of their own.

Theory of operation. Process 1 of the process namespace (`init.py`) is this machine's power supply: when it is killed,
the kernel kills everything that runs there, containers and their shims included, before the namespaces and all their
mounts go away. So a test that fails leaves nothing behind, and the crash of a whole host is one SIGKILL. When the test
runner itself is killed, `unshare --kill-child` does the same. What a disk would keep is in `folder`; `boot` after
`crash` finds it again, with a new boot id.

From outside, `/proc/PID/root` is the machine's root directory: files, unix sockets and mounts of it are reached there.

Rejected: containers in a container (one more Docker, whose own bugs are tested then), and killing by walking process
trees (shims leave the tree by design).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.minio import wait_for

START_S = 20.0
RUN_S = 120.0
_INIT = Path(__file__).with_name("init.py")
_CGROUPS = Path("/sys/fs/cgroup")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class CommandFailed(AssertionError):
    """A command on a node ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"`{' '.join(command)}` ended with {status}: {output.strip()[-4000:]}")
        self.status = status
        self.output = output


class Process:
    """A long-running program on a node, and what it wrote."""

    def __init__(self, node: Node, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log_path = log
        with log.open("ab") as out:
            self._entered = subprocess.Popen(
                [*node.enter, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(environment)
            )
        wait_for(lambda: self._entered.poll() is not None or bool(_children(self._entered.pid)), START_S, command[0])
        # nsenter has to fork to enter a process namespace: the program is its child
        self.pid = next(iter(_children(self._entered.pid)), 0) if self._entered.poll() is None else 0

    @property
    def log(self) -> str:
        """Everything written so far."""
        return self.log_path.read_text(errors="replace")

    def alive(self) -> bool:
        """True while it runs."""
        return self._entered.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program itself."""
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = RUN_S) -> int:
        """Its exit status."""
        return self._entered.wait(timeout_s)

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 60.0) -> None:
        """Signal it and wait for its end; nothing when it has ended already."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                self.send(number)
        self.wait(timeout_s)


class Node:
    """One machine. `boot` and `crash` it as often as needed; `close` at the end."""

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.folder = folder
        self.cgroup = f"s3vol-test-{os.getpid()}-{name}"
        self.init = 0
        self._outer: subprocess.Popen[str] | None = None
        self._started: list[Process] = []

    def boot(self) -> None:
        """Start process 1. Nothing else runs then."""
        assert self._outer is None, f"{self.name} runs already"
        apart = ["unshare", "-m", "-n", "-u", "-i", "-p", "-f", "--kill-child", "--mount-proc"]
        with (self.folder / "init.log").open("ab") as log:
            self._outer = subprocess.Popen(
                [
                    *apart,
                    "--propagation",
                    "private",
                    sys.executable,
                    "-I",
                    "-S",
                    str(_INIT),
                    self.name,
                    str(self.folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._outer.stdout is not None
        said = self._outer.stdout.readline()
        assert said == "up\n", f"{self.name} did not come up; are you root?"
        (self.init,) = _children(self._outer.pid)

    def crash(self) -> None:
        """SIGKILL for everything that runs on this machine; its network and its mounts are gone when this returns."""
        outer, self._outer = self._outer, None
        if outer is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        outer.wait(RUN_S)  # unshare sees the end of process 1, which is the end of all
        assert outer.stdout is not None
        outer.stdout.close()
        self.init = 0
        while self._started:
            self._started.pop().wait()  # what had entered the machine ends with it

    def close(self) -> None:
        """Crash, and take away the control groups that a dockerd leaves behind."""
        self.crash()
        for top in _CGROUPS.glob(f"*/{self.cgroup}"):
            for group in sorted((path for path in [top, *top.rglob("*")] if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):  # an empty group that another thread of the kernel holds a moment
                    group.rmdir()

    @property
    def running(self) -> bool:
        """True between boot and crash."""
        return self._outer is not None

    @property
    def root(self) -> Path:
        """This machine's root directory, seen from outside."""
        return Path(f"/proc/{self.init}/root")

    def path(self, inside: str | Path) -> Path:
        """A path of this machine, seen from outside. Symbolic links in it lead to the outside."""
        return self.root / str(inside).lstrip("/")

    @property
    def enter(self) -> list[str]:
        """The beginning of a command that runs on this machine."""
        return ["nsenter", "-t", str(self.init), "-m", "-n", "-u", "-i", "-p", "-r", "-w", "--"]

    def start(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Process:
        """Start a program that goes on running; its output is appended to `log`."""
        process = Process(self, command, log, {**os.environ, **(environment or {})})
        self._started.append(process)
        return process

    def run(
        self, *command: str, timeout_s: float = RUN_S, stdin: bytes | IO[bytes] | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its status."""
        feed: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
        done = subprocess.run(
            [*self.enter, *command], capture_output=True, timeout=timeout_s, env={**os.environ, **environment}, **feed
        )
        return subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def check(self, *command: str, timeout_s: float = RUN_S) -> str:
        """Run a command that has to succeed; returns its standard output."""
        done = self.run(*command, timeout_s=timeout_s)
        if done.returncode != 0:
            raise CommandFailed(command, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def processes(self) -> dict[int, list[str]]:
        """Command lines of everything that runs here, by process id as seen from outside."""
        here = os.readlink(f"/proc/{self.init}/ns/pid")
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns/pid") == here:
                        found[int(entry.name)] = (entry / "cmdline").read_text().split("\0")[:-1]
        return found

    def find(self, *words: str) -> list[int]:
        """Processes of this namespace whose command line holds all `words`, each inside some argument."""
        table = self.processes().items()
        return [pid for pid, argv in table if all(any(word in item for item in argv) for word in words)]

    def mounts(self, kind: str = "fuse.s3vol") -> list[str]:
        """Mount points of this type in the machine's own mount namespace."""
        lines = Path(f"/proc/{self.init}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if line.partition(" - ")[2].split()[0] == kind]
