"""Network namespaces made by tests: one that this process moves into, and machines that hang on it by a wire each.

Theory of operation. `isolate` moves the calling (main) thread into a new network namespace that has only `lo`. Threads
and processes started later are born there, so from then on this process and its daemons can reach nothing else: not
the network of the machine, not the Internet, whatever they try (IPFS-Cluster sends multicast that no option turns
off). It is done once, before a test starts, because a thread that is there already would stay outside.

A `Machine` is a further namespace with `lo` and one wire (veth) to this process's namespace, which forwards between the
machines and so is the switch. Loopback of a machine is its own, as on real hosts. `cut` makes the switch drop, without
a word, what goes from one group of machines to another; wires to the switch itself stay, so that a test can go on
asking both sides. Connections that were open stay open and starve, as they do in a real partition.

A namespace lives as long as a file descriptor of this process, and a wire as long as its namespaces: after SIGKILL of
the test runner nothing has to be cleaned up.

Rejected: `ip netns` (names that survive in /run/netns); packet filters (`ip rule` says the same with one tool fewer);
a relay from the outer loopback into a namespace (every byte twice through Python); setns per request (it must be
done in the thread that makes the socket: HTTP clients connect when they like).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.unshare and os.setns are of Python 3.12
_libc = ctypes.CDLL(None, use_errno=True)
_isolated = False
_numbers = itertools.count(1)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}; network namespaces need root")


def ip(*words: str, enter: Sequence[str] = ()) -> None:
    """Run an `ip` command that has to succeed."""
    done = subprocess.run([*enter, "ip", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"


def isolate() -> None:
    """Move this process into a namespace that has only `lo`, once. To be called from the main thread."""
    global _isolated
    assert threading.current_thread() is threading.main_thread()
    if _isolated:
        return
    _checked(_libc.unshare(_CLONE_NEWNET), "unshare")
    ip("link", "set", "lo", "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _isolated = True


def _in_new_thread(work: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _make_namespace() -> int:
    def make() -> int:
        _checked(_libc.unshare(_CLONE_NEWNET), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    return _in_new_thread(make)


class Host:
    """A network namespace in which others reach `address`: programs are started there, and work is done there."""

    def __init__(self, namespace: int, address: str) -> None:
        """Takes the file descriptor of a namespace; see also `of_process`."""
        self._fd = namespace
        self.address = address

    @classmethod
    def of_process(cls, pid: int, address: str) -> Host:
        """The namespace that a process is in, for as long as this object is not closed."""
        return cls(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY), address)

    @property
    def place(self) -> str:
        """A path of the namespace."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    @property
    def enter(self) -> list[str]:
        """The beginning of a command that runs on this machine. The command keeps the process id."""
        return ["nsenter", f"--net={self.place}", "--"]

    def call(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread of this machine: the sockets that it makes are there."""

        def enter_and_work() -> T:
            _checked(_libc.setns(self._fd, _CLONE_NEWNET), "setns")
            return work()

        return _in_new_thread(enter_and_work)

    def close(self) -> None:
        """Let the namespace go, with its wires, if its processes have ended. Again: nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Machine(Host):
    """A host of our own: its own loopback, and `address` on a wire to the switch."""

    def __init__(self) -> None:
        assert _isolated, "call isolate() first: wires are never made in the machine's own namespace"
        number = next(_numbers)
        super().__init__(_make_namespace(), f"10.0.{number // 250}.{number % 250 + 1}")
        self.wire = f"wire{number}"
        switch = "10.255.255.254"
        ip("link", "add", self.wire, "type", "veth", "peer", "name", "eth0", "netns", self.place)
        ip("addr", "add", f"{switch}/32", "dev", self.wire)
        ip("link", "set", self.wire, "up")
        ip("link", "set", "lo", "up", enter=self.enter)
        ip("addr", "add", f"{self.address}/32", "dev", "eth0", enter=self.enter)
        ip("link", "set", "eth0", "up", enter=self.enter)
        ip("route", "add", switch, "dev", "eth0", enter=self.enter)
        ip("route", "add", "default", "via", switch, enter=self.enter)
        ip("route", "add", self.address, "dev", self.wire)

    def close(self) -> None:
        """Take the wire away and let the namespace go; its processes must have ended."""
        with contextlib.suppress(AssertionError):
            ip("link", "del", self.wire)
        super().close()


def _walls(groups: Sequence[Sequence[Machine]]) -> Iterable[tuple[str, str]]:
    for ours, theirs in itertools.permutations(groups, 2):
        yield from ((here.wire, there.address) for here in ours for there in theirs)


@contextlib.contextmanager
def cut(*groups: Sequence[Machine]) -> Iterator[None]:
    """Within this block nothing passes from a machine of one group to a machine of another."""
    rules: list[tuple[str, ...]] = [("iif", wire, "to", address, "blackhole") for wire, address in _walls(groups)]
    done: list[tuple[str, ...]] = []
    try:
        for rule in rules:
            ip("rule", "add", *rule)
            done.append(rule)
        yield
    finally:
        for rule in done:
            ip("rule", "del", *rule)
