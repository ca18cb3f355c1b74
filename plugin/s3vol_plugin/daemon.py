"""`s3vol-plugin`: the driver's rooms put together, and their beginning and end.

Theory of operation. The order is chosen for dockerd, which may be starting at the same time and waits for us: first
the socket, so that a question waits instead of being refused; then the records of this node and the registry's copy
from disk; from here on questions are answered. The bucket, the processes of an earlier run and dockerd itself come
after that, in the background.

The end leaves all mounts alone: the mount processes are nobody's children, and the next run finds them. Only where
the end of the daemon is the end of its container too (a managed plugin has 10 s, then everything in it is killed)
they are ended as well, by `--stop-mounts`: what they cannot publish in that time is in their journals.

One daemon a state directory: the second one is refused by a lock, before it takes the first one's socket away.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from s3vol import __version__, control, logs, runtime
from s3vol.errors import S3volError, UsageError
from s3vol.store.edge import first_error
from s3vol_plugin.access import open_registry
from s3vol_plugin.admin import operations
from s3vol_plugin.announce import announce
from s3vol_plugin.docker_api import Docker
from s3vol_plugin.driver import Driver
from s3vol_plugin.http import Portal, make_app
from s3vol_plugin.kernel import LinuxKernel
from s3vol_plugin.late import LateStore
from s3vol_plugin.making import prepare
from s3vol_plugin.node import Node
from s3vol_plugin.notify import Systemd
from s3vol_plugin.options import load_settings, parse_options
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.removal import delete_objects
from s3vol_plugin.server import Server, listening
from s3vol_plugin.settings import Settings
from s3vol_plugin.state import State, boot_id
from s3vol_plugin.upkeep import Upkeep
from s3vol_plugin.workers import MountWorkers

FAILED, USAGE = 1, 2
STOP_MOUNTS = "S3VOL_PLUGIN_STOP_MOUNTS"
_STOP_S = 8.0  # dockerd kills a managed plugin 10 s after SIGTERM (moby v20.10 plugin/manager_linux.go)
_STOP_DRAIN_S = 5.0
_POLL_S = 0.1

log = logging.getLogger("s3vol.plugin")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM. Returns the exit status: 2 for settings that cannot be used, 1 for other failures."""
    args = _parser().parse_args(argv)
    environment = {name: text for name, text in os.environ.items() if name != STOP_MOUNTS}
    stop_mounts = args.stop_mounts or os.environ.get(STOP_MOUNTS, "") in ("1", "yes", "true")
    try:
        settings = load_settings(args.config, environment)
        logs.configure(args.log_level, args.log_format, None)
        with _alone(settings.state_directory), listening(settings.socket, environment) as listener:
            state = State(settings.volumes_directory, boot_id())
            trio.run(_serve, settings, state, listener, stop_mounts)
    except S3volError as error:
        return _failed(error)
    except BaseExceptionGroup as group:
        first = first_error(group)
        if not isinstance(first, S3volError):
            raise
        return _failed(first)
    return 0


def _failed(error: S3volError) -> int:
    print(f"s3vol-plugin: {error}", file=sys.stderr)
    return USAGE if isinstance(error, UsageError) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="s3vol-plugin", description="The Docker volume driver of s3vol.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (/etc/s3vol/plugin.toml)")
    parser.add_argument(
        "--stop-mounts", action="store_true", help=f"at the end, end the mount processes too (or {STOP_MOUNTS}=1)"
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--version", action="version", version=f"s3vol-plugin {__version__}")
    return parser


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the lock of the state directory. Raises UsageError when another daemon has it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"state directory {directory}: {error.strerror}; set `state-directory`") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UsageError(f"state directory {directory}: another s3vol-plugin is using it") from None
    try:
        yield
    finally:
        os.close(lock)


async def _serve(settings: Settings, state: State, listener: socket.socket, stop_mounts: bool) -> None:
    systemd = Systemd(os.environ)
    store = LateStore(settings.source, lambda: open_registry(settings))
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as tasks:
            registry = BucketRegistry(store, settings.node, settings.state_directory / "registry.json")
            kernel = LinuxKernel()
            workers = MountWorkers(settings, kernel=kernel)
            node = Node(settings, registry, workers, kernel, state, tasks)
            driver = Driver(
                node,
                lambda name, options: parse_options(name, options, settings),
                lambda volume: delete_objects(volume, registry=registry, settings=settings),
                lambda volume, given: prepare(volume, given, settings),
            )
            docker = Docker(settings.docker_socket)
            upkeep = Upkeep(node, docker)
            driver.on_activate = upkeep.reconcile_soon
            server = _begin(node, driver, tasks, listener)
            tasks.start_soon(_serve_admin, settings, node, upkeep)
            tasks.start_soon(upkeep.run)
            tasks.start_soon(_announce, upkeep, docker)
            tasks.start_soon(systemd.feed, Path(listener.getsockname()))
            systemd.tell("READY=1", f"STATUS=registry {settings.source}, node {settings.node}")
            log.info("s3vol-plugin %s serves %s at %s", __version__, settings.source, listener.getsockname())
            async for number in signals:
                if number != signal.SIGHUP:
                    break
                log.info("credentials are read again")
                store.renew()
                upkeep.reconcile_soon()
            systemd.tell("STOPPING=1")
            log.info("ending; mounts %s", "are ended too" if stop_mounts else "stay")
            if stop_mounts:
                upkeep.recover_no_more()
                await _stop_mounts(node)
            await trio.to_thread.run_sync(server.stop)
            tasks.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await store.aclose()


def _begin(node: Node, driver: Driver, tasks: trio.Nursery, listener: socket.socket) -> Server:
    """From here on dockerd is answered."""
    token = trio.lowlevel.current_trio_token()

    def add(name: str) -> None:
        node.counters[name] += 1

    def count(name: str) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(add, name)

    server = Server(make_app(driver, Portal(tasks), count), listener)
    server.start()
    return server


async def _announce(upkeep: Upkeep, docker: Docker) -> None:
    await upkeep.recovered.wait()
    await announce(docker)


async def _serve_admin(settings: Settings, node: Node, upkeep: Upkeep) -> None:
    """Answer administrators until cancelled."""
    path = settings.admin_socket
    try:
        runtime.make_directory(path.parent)
        listener = control.listen(path)
    except OSError as error:
        raise S3volError(f"admin socket {path}: {error.strerror}; set `admin-socket`") from None
    made = path.stat()
    try:
        await control.serve(listener, operations(node, upkeep), trio.Event())
    finally:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == made.st_ino:
                path.unlink()


async def _gone(node: Node, uuid: str) -> None:
    while node.workers.get(uuid) is not None:  # noqa: ASYNC110  # nothing tells of an end that was asked for
        await trio.sleep(_POLL_S)


async def _stop_mounts(node: Node) -> None:
    """End all mount processes of this node, with what they can publish in _STOP_S. What is in use is ended as well."""

    async def stop(uuid: str) -> None:
        record, worker = node.state.get(uuid), node.workers.get(uuid)
        if record is None or worker is None:
            return
        try:
            await node.stop(record.volume, drain_s=_STOP_DRAIN_S)
        except S3volError as error:
            log.warning("%s; its process is ended", error, extra={"volume": record.volume.name})
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
            await _gone(node, uuid)

    with trio.move_on_after(_STOP_S):
        async with trio.open_nursery() as nursery:
            for record in node.state.all():
                nursery.start_soon(stop, record.volume.uuid)
