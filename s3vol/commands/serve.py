"""The mount process: store, cache and file system put together, served, and taken down in the opposite order.

Nothing is half-done on a failure: the cache directory and the log are made after the endpoint has accepted us, the
mount appears last, and each step is undone by the block that made it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from s3vol import __version__, control, logs, mounts, runtime
from s3vol.cache.base import ContentCache
from s3vol.cache.chunkcache import ChunkCache
from s3vol.commands.daemon import Ready
from s3vol.commands.plan import Plan, cache_settings, fs_settings
from s3vol.errors import S3volError, UsageError
from s3vol.fs.base import FileSystem
from s3vol.fs.filesystem import S3Fs
from s3vol.status import endpoint_values
from s3vol.store.base import Store
from s3vol.store.edge import first_error
from s3vol.store.open import compose, open_s3, open_store
from s3vol.store.settings import ipfs_settings, store_settings
from s3vol.types import Event, Health, WriteError
from s3vol_fuse.admin import operations
from s3vol_fuse.session import Session

DONE, LEFT = 0, 3

EVENTS = 4096  # invalidations on their way to the kernel; they are hints, and beyond this many the oldest do not matter
_FAREWELL_S = 2.0  # for the last answers on the control socket

log = logging.getLogger("s3vol.mount")


@dataclass(slots=True)
class _Life:
    """What the status of this process is made of."""

    plan: Plan
    record: runtime.Record
    store: Store
    endpoint: str
    cache: ContentCache
    fs: FileSystem
    session: Session
    health: Health
    began_s: float = field(default_factory=time.time)

    def status(self) -> Mapping[str, Any]:
        """Values of `s3vol status --json`."""
        options, cache, now_s = self.plan.options, self.cache.status(), time.time()
        return {
            "mountpoint": self.record.mountpoint,
            "source": self.record.source,
            "state": "draining" if self.session.draining else "serving",
            "pid": self.record.pid,
            "version": self.record.version,
            "log": self.record.log,
            "uptime_s": round(now_s - self.began_s, 1),
            "mode": options.mode,
            "close": options.close,
            "fsync": options.fsync,
            "cache": {
                "directory": cache.directory,
                "used_bytes": cache.used_bytes,
                "size_bytes": cache.size_bytes,
                "in_flight_bytes": cache.in_flight_bytes,
            },
            "dirty_bytes": cache.dirty_bytes,
            "dirty_files": cache.dirty_files,
            "oldest_dirty_s": round(cache.oldest_dirty_s, 1),
            "conflicts": cache.conflicts,
            "quarantined": cache.quarantined,
            "warnings": sorted(self.health.warnings.values()),
            "endpoint": endpoint_values(self.health, self.endpoint, now_s),
            "capabilities": dataclasses.asdict(self.store.capabilities),
            "files": {name: value for name, value in self.fs.status().items() if name not in ("counts", "mode")},
            "counters": dict(sorted(self.health.counts.items())),
        }


def serve(plan: Plan, ready: Ready, *, foreground: bool) -> int:
    """Mount, call `ready`, and serve until the end. Returns 0, or 3 when data is left in the journal."""
    try:
        return trio.run(_serve, plan, ready, foreground)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def _serve(plan: Plan, ready: Ready, foreground: bool) -> int:
    health = Health()
    async with _opened_store(plan, health) as (store, endpoint):
        _check_able(plan, store)
        file = plan.options.log_file if foreground else plan.log_file(endpoint)
        _begin_log(plan, file)
        log.info("s3vol %s, %s at %s: %s", __version__, store.url, endpoint, store.capabilities)
        sender, events = trio.open_memory_channel[Event](EVENTS)
        async with sender, events, _opened_volume(plan, store, endpoint, sender, health) as (cache, fs):
            session = Session(fs, plan.point, drain_timeout_s=plan.options.drain_timeout)
            record = _record(plan, file)
            life = _Life(plan, record, store, endpoint, cache, fs, session, health)
            with runtime.registered(record):
                await _live(life, events, lambda: ready(_greeting(record), file))
    left = session.left
    return LEFT if left.files or left.bytes else DONE


@contextlib.asynccontextmanager
async def _opened_store(plan: Plan, health: Health) -> AsyncIterator[tuple[Store, str]]:
    """The composed store, and the endpoint that it really talks to."""
    settings = store_settings(plan.options)
    if plan.source.kind == "ipfs":
        # Imported here: its libraries take 0.3 s, and only this kind of source needs them.
        from s3vol.store.ipfs.mounting import journal_directory, mounted

        ipfs = ipfs_settings(plan.options)
        directory = journal_directory(plan.cache_directory(ipfs.cluster))
        async with mounted(plan.source, ipfs, directory, health) as volume:
            yield compose(volume, settings, health), ipfs.cluster
        return
    if plan.source.kind == "s3":
        backend = await open_s3(plan.source, settings)
        store, endpoint = compose(backend, settings, health), backend.client.endpoint
    else:
        store, endpoint = await open_store(plan.source, settings, health=health), "this machine"
    try:
        yield store, endpoint
    finally:
        await store.aclose()


@contextlib.asynccontextmanager
async def _opened_volume(
    plan: Plan, store: Store, endpoint: str, events: trio.MemorySendChannel[Event], health: Health
) -> AsyncIterator[tuple[ContentCache, FileSystem]]:
    """Cache (journal replayed) and file system, with what they do in the background."""
    settings = cache_settings(plan.options, plan.cache_directory(endpoint))
    volume = f"{plan.source.url} at {endpoint}"
    async with ChunkCache.open(store, settings, volume=volume, events=events, health=health) as cache:
        fs = S3Fs(store, cache, fs_settings(plan.options), events, health)
        async with trio.open_nursery() as nursery:
            await nursery.start(cache.serve)
            await fs.start()
            nursery.start_soon(fs.run)
            yield cache, fs
            nursery.cancel_scope.cancel()


def _check_able(plan: Plan, store: Store) -> None:
    able = store.capabilities
    if not (plan.options.read_only or (able.conditional_create and able.conditional_replace)):
        raise UsageError(
            f"source {store.url}: these credentials may not write, or the endpoint ignores If-Match, so that writers "
            "would overwrite each other; mount with --read-only (`s3vol doctor` says more)"
        )


def _begin_log(plan: Plan, file: Path | None) -> None:
    try:
        logs.configure(plan.options.log_level, plan.options.log_format, file)
    except OSError as error:
        raise UsageError(f"log file {file}: {error.strerror}; set --log-file") from None


def _record(plan: Plan, file: Path | None) -> runtime.Record:
    pid = os.getpid()
    return runtime.Record(
        mountpoint=plan.point.path,
        source=plan.source.url,
        pid=pid,
        started=runtime.process_started(pid) or 0,
        version=__version__,
        log=str(file) if file else "",
        directory=str(runtime.runtime_directory(os.environ)),
    )


def _record_device(record: runtime.Record) -> None:
    """Complete the record: after a crash this tells whose dead mount is still seen in another namespace."""
    mounted = mounts.find_mount(record.mountpoint)
    if mounted is None:  # somebody was quick to unmount
        return
    try:
        runtime.write(dataclasses.replace(record, device=mounted.device))
    except OSError as error:
        log.warning("%s: %s; the device is not recorded", record.path, error.strerror)


def _greeting(record: runtime.Record) -> str:
    return f"{record.source} is mounted on {record.mountpoint} (pid {record.pid})"


async def _live(life: _Life, events: trio.MemoryReceiveChannel[Event], ready: Callable[[], None]) -> None:
    """Serve the kernel and the control socket until the mount is gone."""
    listener = _listen(life.record)
    stop = trio.Event()

    async def greet() -> None:
        await life.session.serving()
        _record_device(life.record)
        ready()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.serve, listener, operations(life.fs, life.session, life.status), stop)
        nursery.start_soon(greet)
        await life.session.run(events, _note)
        stop.set()
        nursery.cancel_scope.deadline = trio.current_time() + _FAREWELL_S  # who waits for the end reads how it went


def _listen(record: runtime.Record) -> trio.SocketListener:
    try:
        return control.listen(record.socket)
    except OSError as error:
        raise S3volError(f"control socket {record.socket}: {error.strerror}; set S3VOL_RUNTIME_DIR") from None


def _note(event: Event) -> None:
    """Write errors that nobody waited for: the program has closed the file long ago, so the log must say it.

    A conflict was said by the cache, where the copy was made.
    """
    if isinstance(event, WriteError) and event.conflict_key is None:
        where = {"op": "publish", "path": event.key}
        log.error("%s", event.message, extra=where | ({"request_id": event.request_id} if event.request_id else {}))
