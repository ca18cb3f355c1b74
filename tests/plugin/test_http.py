"""The driver behind its socket, asked by raw bytes as dockerd asks: what is answered, and what is not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol.errors import UsageError
from s3vol_plugin.http import Portal, make_app
from s3vol_plugin.notify import Systemd, answers
from s3vol_plugin.server import BODY_MAX_BYTES, Server, listening
from tests.plugin.fakes import Rig, rig, volume
from tests.plugin.rig import until

WEB = volume("web")
_ANSWER_S = 10.0


class Caller:
    """One connection of a dockerd."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(_ANSWER_S)
        self.socket.connect(str(path))

    def send(self, verb: str, body: bytes, *, headers: str = "Host: \r\n") -> None:
        """A request as dockerd 20.10 writes it: an empty Host, and no Content-Type."""
        self.socket.sendall(
            f"POST /{verb} HTTP/1.1\r\n{headers}User-Agent: Go-http-client/1.1\r\nContent-Length: {len(body)}\r\n"
            f"Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n".encode()
            + body
        )

    def receive(self) -> bytes:
        """Head and body of one reply; b"" when the connection was closed without one."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.socket.recv(65536)
            if not more:
                return data
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
        while len(body) < length:
            body += self.socket.recv(65536)
        return head + b"\r\n\r\n" + body

    def ask(self, verb: str, body: bytes, **how: Any) -> Mapping[str, Any] | None:
        """The reply's JSON with status 200; None when there was none."""
        self.send(verb, body, **how)
        reply = self.receive()
        if not reply:
            return None
        head, _, content = reply.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        values: Mapping[str, Any] = json.loads(content)
        return values

    def close(self) -> None:
        self.socket.close()


def call(path: Path, verb: str, body: bytes | Mapping[str, Any], **how: Any) -> Mapping[str, Any] | None:
    """One call on a connection of its own."""
    with contextlib.closing(Caller(path)) as caller:
        return caller.ask(verb, body if isinstance(body, bytes) else json.dumps(body).encode() + b"\n", **how)


class Served:
    """A driver that listens."""

    def __init__(self, it: Rig, path: Path, counts: list[str]) -> None:
        self.it, self.path, self.counts = it, path, counts

    async def call(self, verb: str, body: bytes | Mapping[str, Any] = b"", **how: Any) -> Mapping[str, Any] | None:
        return await trio.to_thread.run_sync(partial(call, self.path, verb, body, **how))


@contextlib.asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Served]:
    counts: list[str] = []
    async with rig(folder) as it:
        with listening(folder / "plugins/s3vol.sock", {}) as listener:
            server = Server(make_app(it.driver, Portal(it.tasks), counts.append), listener)
            server.start()
            try:
                yield Served(it, folder / "plugins/s3vol.sock", counts)
            finally:
                it.tasks.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(server.stop)


async def test_requests_of_dockerd_20_10_are_answered(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        it.it.registry.add(WEB)
        assert await it.call("Plugin.Activate") == {"Implements": ["VolumeDriver"], "Err": ""}
        assert await it.call("VolumeDriver.Capabilities", {}) == {"Capabilities": {"Scope": "global"}, "Err": ""}
        assert await it.call("VolumeDriver.List", {}) == {"Volumes": [{"Name": "web"}], "Err": ""}
        found = await it.call("VolumeDriver.Get", {"Name": "web"})
        assert found is not None
        assert found["Volume"]["Name"] == "web"
        assert await it.call("VolumeDriver.Get", {"Name": "no"}) == {"Err": "no such volume"}
        made = await it.call("VolumeDriver.Create", {"Name": "a", "Opts": None})
        assert made == {"Err": ""}
        mounted = await it.call("VolumeDriver.Mount", {"Name": "web", "ID": "c" * 64})
        assert mounted == {"Mountpoint": str(it.it.settings.mountpoint(WEB.uuid)), "Err": ""}
        assert it.it.refs(WEB.uuid) == {"c" * 64: 1}
        assert await it.call("VolumeDriver.Unmount", {"Name": "web", "ID": "c" * 64}) == {"Err": ""}


@pytest.mark.parametrize(
    "headers",
    ["Host: \r\n", "Host: plugin.moby.localhost\r\n", "Host: \r\nContent-Type: text/x\r\n", "Host: a b\r\n", ""],
)
async def test_host_and_content_type_are_not_looked_at(tmp_path: Path, headers: str) -> None:
    async with served(tmp_path) as it:
        it.it.registry.add(WEB)
        assert await it.call("VolumeDriver.Get", {"Name": "web"}, headers=headers)


async def test_a_question_that_cannot_be_answered_ends_the_connection_without_a_byte(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        it.it.registry.refused = True
        for verb in ("Get", "List", "Path"):
            assert await it.call(f"VolumeDriver.{verb}", {"Name": "web"}) is None
        assert it.counts == ["hang_ups"] * 3


async def test_an_unforeseen_failure_of_a_question_is_no_answer_and_of_an_order_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as it:
        monkeypatch.setattr(it.it.registry, "get", lambda name: 1 // 0)
        assert await it.call("VolumeDriver.Get", {"Name": "web"}) is None
        reply = await it.call("VolumeDriver.Mount", {"Name": "web", "ID": "c"})
        assert reply is not None
        assert "ZeroDivisionError" in reply["Err"]


async def test_a_repeated_request_without_a_body_is_never_no_such_volume(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        it.it.registry.add(WEB)
        for verb in ("Get", "Path"):
            assert await it.call(f"VolumeDriver.{verb}", b"") is None
        for verb in ("Create", "Mount", "Remove"):
            assert await it.call(f"VolumeDriver.{verb}", b"") == {"Err": "empty request (retry)"}
        assert await it.call("VolumeDriver.Unmount", b"") == {"Err": ""}
        assert await it.call("VolumeDriver.List", b"") == {"Volumes": [{"Name": "web"}], "Err": ""}


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"web"', b'{"Name": 1}', b'{"Name": "web", "Opts": {"a": 1}}', b"\xff", b"[" * 100_000]
)
async def test_what_is_no_request_is_refused_in_a_way_that_nothing_is_forgotten(tmp_path: Path, body: bytes) -> None:
    async with served(tmp_path) as it:
        it.it.registry.add(WEB)
        assert await it.call("VolumeDriver.Get", body) is None
        reply = await it.call("VolumeDriver.Create", body)
        assert reply is not None
        assert "not a request" in reply["Err"]


@pytest.mark.parametrize("text", [b"\x16\x03\x01nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
async def test_what_is_no_http_is_not_answered(tmp_path: Path, text: bytes) -> None:
    async with served(tmp_path) as it:

        def talk() -> bytes:
            with contextlib.closing(Caller(it.path)) as caller:
                caller.socket.sendall(text)
                return caller.receive()

        assert await trio.to_thread.run_sync(talk) == b""


async def test_a_request_over_a_mebibyte_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as it:

        def talk() -> bytes:
            with contextlib.closing(Caller(it.path)) as caller:
                caller.send("VolumeDriver.Create", b"")
                caller.receive()
                head = f"POST /VolumeDriver.Create HTTP/1.1\r\nHost: \r\nContent-Length: {BODY_MAX_BYTES + 1}\r\n\r\n"
                caller.socket.sendall(head.encode())
                return caller.receive()

        assert b" 413 " in (await trio.to_thread.run_sync(talk)).split(b"\r\n")[0]


async def test_a_connection_is_kept_and_used_again(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        it.it.registry.add(WEB)

        def talk() -> list[bool]:
            with contextlib.closing(Caller(it.path)) as caller:
                return [bool(caller.ask("VolumeDriver.Get", b'{"Name":"web"}\n')) for _ in range(5)]

        assert await trio.to_thread.run_sync(talk) == [True] * 5


async def test_questions_are_answered_while_a_hundred_mounts_wait(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        volumes = [volume(f"v{number}", number) for number in range(1, 101)]
        it.it.registry.add(WEB, *volumes)
        it.it.workers.start_s = 60
        callers = []

        def begin() -> None:
            for one in volumes:
                caller = Caller(it.path)
                caller.send("VolumeDriver.Mount", json.dumps({"Name": one.name, "ID": "c"}).encode())
                callers.append(caller)

        await trio.to_thread.run_sync(begin)
        await until(lambda: len(it.it.workers.started) == 100, "all mounts are under way")
        took_s = []
        for _ in range(10):  # the best of some: other tests may have the processor
            begin_s = time.monotonic()
            assert await it.call("VolumeDriver.Get", {"Name": "web"})
            took_s.append(time.monotonic() - begin_s)
        assert min(took_s) < 0.1
        for caller in callers:
            caller.close()


async def test_a_mount_whose_caller_hung_up_is_not_counted(tmp_path: Path) -> None:
    async with served(tmp_path) as it:
        it.it.registry.add(WEB)
        it.it.workers.start_s = 1.0
        caller = Caller(it.path)
        caller.send("VolumeDriver.Mount", b'{"Name": "web", "ID": "c1"}')
        await until(lambda: bool(it.it.workers.started), "the mount is under way")
        caller.close()
        await until(lambda: bool(it.it.workers.stopped), "the mount is undone")
        assert it.it.refs(WEB.uuid) == {}


async def test_the_end_of_the_loop_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "s"
    replies: list[object] = []
    with listening(path, {}) as listener:
        async with rig(tmp_path) as it:
            it.registry.add(WEB)
            it.workers.start_s = 1000
            server = Server(make_app(it.driver, Portal(it.tasks), lambda _: None), listener)
            server.start()
            body = {"Name": "web", "ID": "c"}
            waiting = threading.Thread(target=lambda: replies.append(call(path, "VolumeDriver.Mount", body)))
            waiting.start()
            await until(lambda: bool(it.workers.started), "the mount is under way")
        await trio.to_thread.run_sync(server.stop)
        await trio.to_thread.run_sync(waiting.join)
    assert replies == [None]
    assert not path.exists()


async def test_an_unknown_verb_is_not_found(tmp_path: Path) -> None:
    async with served(tmp_path) as it:

        def talk() -> bytes:
            with contextlib.closing(Caller(it.path)) as caller:
                caller.send("VolumeDriver.Fly", b"{}")
                return caller.receive()

        assert b" 404 " in (await trio.to_thread.run_sync(talk)).split(b"\r\n")[0]


# The socket.


def test_the_socket_is_for_root_only_and_goes_with_us(tmp_path: Path) -> None:
    path = tmp_path / "plugins/s3vol.sock"
    with listening(path, {}):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


def test_a_stale_socket_is_replaced_and_one_that_is_another_s_by_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "s3vol.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with listening(path, {}):
        path.unlink()
        path.write_text("another's")
    assert path.exists()


def test_a_socket_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"set `socket`"), listening(tmp_path / "file/s3vol.sock", {}):
        pass


_CHILD = """
import os, sys
from pathlib import Path
from s3vol_plugin.server import listening
with listening(Path("/nonexistent/s"), os.environ) as listener:
    print(listener.getsockname(), os.get_inheritable(3))
"""


def test_an_inherited_socket_is_used_and_not_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def pass_on() -> None:
            os.dup2(listener.fileno(), 3)

        environment = {**os.environ, "LISTEN_FDS": "1", "PYTHONPATH": ":".join(sys.path)}
        script = 'LISTEN_PID=$$ exec "$0" -c "$1"'
        done = subprocess.run(
            ["/bin/sh", "-c", script, sys.executable, _CHILD],
            pass_fds=(3, listener.fileno()),
            preexec_fn=pass_on,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == (f"{path} False\n", "")
    assert path.exists()


@pytest.mark.parametrize("environment", [{"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}])
def test_descriptors_for_another_process_are_not_taken(tmp_path: Path, environment: Mapping[str, str]) -> None:
    with listening(tmp_path / "s", environment) as listener:
        assert listener.getsockname() == str(tmp_path / "s")


# systemd.


@contextlib.contextmanager
def manager(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(_ANSWER_S)
        yield listener


async def test_the_watchdog_is_fed_while_the_driver_answers_itself(tmp_path: Path) -> None:
    with manager(tmp_path / "notify") as listener:
        systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
        async with served(tmp_path) as it:
            it.it.registry.silent = True  # a bucket that is down is no reason for a restart
            async with trio.open_nursery() as nursery:
                nursery.start_soon(systemd.feed, it.path)
                for _ in range(3):
                    assert await trio.to_thread.run_sync(listener.recv, 100) == b"WATCHDOG=1"
                nursery.cancel_scope.cancel()


def test_a_driver_that_does_not_answer_does_not_feed_the_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        assert not answers(tmp_path / "s", 0.1)
    assert not answers(tmp_path / "s", 0.1)


def test_without_systemd_nothing_is_told() -> None:
    Systemd({}).tell("READY=1")
    Systemd({"NOTIFY_SOCKET": "/nonexistent"}).tell("READY=1")
    assert Systemd({}).period_s == 0


def test_a_stop_that_a_worker_was_ahead_of_ends_as_well(tmp_path: Path) -> None:
    """The reading thread may close everything before the one that told it to has pulled the trigger."""
    with listening(tmp_path / "s.sock", {}) as listener:
        server = Server(lambda _environ, _start: [], listener)
        pull = server._trigger._physical_pull
        pulls: list[None] = []

        def pull_late() -> None:
            pull()
            pulls.append(None)
            if len(pulls) == 2:  # to accept no more, and to close
                server._thread.join(10)
                pull()

        server.start()
        server._trigger._physical_pull = pull_late
        server.stop()
        assert not server._thread.is_alive()
        assert len(pulls) == 2
