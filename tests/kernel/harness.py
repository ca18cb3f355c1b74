"""Mounts for tests: `s3vol mount` as a user runs it, in a process of its own, with everything it writes in one folder.

Theory of operation. The mount process is started with `--foreground`, so that it is this process's child: its id is
known without asking, its exit status is seen, and a kill hits it and nothing else. `close` always ends in a state
without process and without mount, whatever the test left behind: umount, then SIGKILL of that one process, then a lazy
unmount.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3vol import mounts

START_S = 60.0  # a mount takes about 0.6 s; this is for a machine under load
END_S = 90.0
COMMAND = (sys.executable, "-m", "s3vol")


def environment_for(folder: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of an s3vol process: none of the machine's own AWS or s3vol settings, all paths in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3VOL_", "XDG_"))}
    return {
        **kept,
        "HOME": str(folder / "home"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "home/.cache"),
        "S3VOL_RUNTIME_DIR": str(folder / "run"),
        "S3VOL_CACHE_DIR": str(folder / "cache"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "PYTHONWARNINGS": "default",
        **extra,
    }


class Failed(AssertionError):
    """An s3vol command ended with another status than expected."""

    def __init__(self, command: Sequence[str], status: int | None, output: str) -> None:
        super().__init__(f"`s3vol {' '.join(command)}` ended with {status}: {output.strip()[-4000:]}")
        self.status = status
        self.output = output


class Node:
    """One machine of a swarm, as far as s3vol sees it: a cache, a runtime directory, mount points."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, *, enter: Sequence[str] = ()
    ) -> None:
        """`enter` is the beginning of every command: it puts a process elsewhere, and leaves its id as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.enter = tuple(enter)
        self.environment = environment_for(folder, environment or {})
        self._mounted: list[Mounted] = []

    def run(self, *command: str, timeout_s: float = END_S) -> subprocess.CompletedProcess[str]:
        """Run an s3vol command to its end, whatever its status."""
        return subprocess.run(
            [*self.enter, *COMMAND, *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def check(self, *command: str, timeout_s: float = END_S) -> str:
        """Run an s3vol command that has to succeed; returns its standard output."""
        done = self.run(*command, timeout_s=timeout_s)
        if done.returncode != 0:
            raise Failed(command, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def mount(
        self,
        source: str,
        *options: str,
        name: str = "mnt",
        environment: Mapping[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
    ) -> Mounted:
        """Mount `source` on a directory of this name; returns when it serves. `preexec` runs in the new process."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        mounted = Mounted(self, source, path, options, {**self.environment, **(environment or {})}, preexec)
        self._mounted.append(mounted)
        mounted.await_serving()
        return mounted

    def close(self) -> None:
        """End every mount of this node."""
        while self._mounted:
            self._mounted.pop().close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Mounted:
    """One mount and its process."""

    def __init__(
        self,
        node: Node,
        source: str,
        path: Path,
        options: Sequence[str],
        environment: Mapping[str, str],
        preexec: Callable[[], None] | None,
    ) -> None:
        self.node = node
        self.source = source
        self.path = path
        self.log_path = node.folder / f"{path.name}.log"
        self._command = ["mount", "--foreground", *options, source, str(path)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*node.enter, *COMMAND, *self._command],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=preexec,
            )

    @property
    def pid(self) -> int:
        """Id of the mount process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the mount process wrote, in all its mounts on this path."""
        return self.log_path.read_text(errors="replace")

    def await_serving(self) -> None:
        """Return when the process says that it serves. Raises Failed when it ends instead."""
        assert self._process.stdout is not None
        watchdog = time.monotonic() + START_S
        os.set_blocking(self._process.stdout.fileno(), False)
        said = b""
        while b"\n" not in said:
            said += self._process.stdout.read() or b""
            if self._process.poll() is not None:
                raise Failed(self._command, self._process.returncode, self.log)
            if time.monotonic() > watchdog:
                self.close()
                raise Failed(self._command, None, f"not serving within {START_S:g} s: {self.log}")
            time.sleep(0.01)

    def alive(self) -> bool:
        """True while the mount process runs."""
        return self._process.poll() is None

    def wait(self, timeout_s: float = END_S) -> int:
        """Exit status of the mount process, when it ends by itself."""
        return self._process.wait(timeout_s)

    def umount(self, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """`s3vol umount`, and wait for the end of the process. `status` is what the command must end with."""
        done = self.node.run("umount", *options, str(self.path))
        if done.returncode != status:
            raise Failed(["umount", *options], done.returncode, done.stdout + done.stderr + self.log)
        if status in (0, 3):
            self.wait()
        return done

    def kill(self) -> None:
        """The crash of the mount process; its dead mount is taken away, so that the path can be used again."""
        self._process.kill()
        self._process.wait(END_S)
        mounts.unmount(str(self.path), lazy=True)

    def terminate(self, timeout_s: float = END_S) -> int:
        """SIGTERM; returns the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def flush(self, *path: str) -> None:
        """`s3vol flush`."""
        self.node.check("flush", str(self.path), *path)

    def status(self) -> dict[str, Any]:
        """`s3vol status --json` of this mount."""
        values: dict[str, Any] = json.loads(self.node.check("status", "--json", str(self.path)))
        return values

    def close(self) -> None:
        """No process and no mount are left, whatever happened."""
        if self.alive():
            with contextlib.suppress(Exception):  # what a test left broken may not keep the next from running
                self.node.run("umount", "--force", "--drain-timeout", "1s", str(self.path), timeout_s=40)
        if self.alive():
            self._process.kill()
            self._process.wait(END_S)
        if mounts.find_mount(str(self.path)):
            mounts.unmount(str(self.path), lazy=True)
        assert self._process.stdout is not None
        self._process.stdout.close()
