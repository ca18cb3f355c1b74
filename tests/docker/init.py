"""Process 1 of a node: makes its namespaces look like a machine's, says so, and reaps orphans until it is killed.

Run by `node.py` as `unshare … python init.py HOSTNAME FOLDER`, with nothing of the tests imported: it has to be up in
milliseconds. What a machine keeps over a reboot (/var/lib, /var/cache, changes in /etc) is in FOLDER; /run is empty.
Docker's containers are orphans here (their shims leave dockerd on purpose), so somebody has to wait for them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def _let_go() -> None:
    """Take out the copies of other programs' FUSE mounts: one that is held here would never end there."""
    rows = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for left, right in reversed(rows):
        if right.startswith("fuse."):
            subprocess.run(["umount", "-l", left.split()[4]], check=False, stderr=subprocess.DEVNULL)


def _furnish(folder: Path) -> None:
    _let_go()
    for name in ("etc", "etc.work", "lib", "cache"):
        (folder / name).mkdir(exist_ok=True)
    layers = f"lowerdir=/etc,upperdir={folder / 'etc'},workdir={folder / 'etc.work'}"
    _mount("-t", "overlay", "-o", layers, "overlay", "/etc")
    _mount("--bind", folder / "lib", "/var/lib")
    _mount("--bind", folder / "cache", "/var/cache")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/docker/plugins").mkdir(parents=True)
    boot_id = folder / "boot_id"
    boot_id.write_text(f"{os.urandom(16).hex()}\n")  # a node that is started again has booted again
    _mount("--bind", boot_id, "/proc/sys/kernel/random/boot_id")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def main() -> None:
    """Furnish, then wait for children for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    socket.sethostname(sys.argv[1])
    _furnish(Path(sys.argv[2]))
    print("up", flush=True)
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()
