"""Assembly: makes the parts of a chunk cache and wires them. No behaviour of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from s3vol.cache.background import Background
from s3vol.cache.base import CacheSettings
from s3vol.cache.bodies import Shelf
from s3vol.cache.budget import ByteBudget
from s3vol.cache.cachedir import CacheDirectory
from s3vol.cache.conflict import ConflictKeeper
from s3vol.cache.content import CachedContent
from s3vol.cache.disk import DataFiles
from s3vol.cache.fetch import Fetcher
from s3vol.cache.guard import Guard
from s3vol.cache.held import Held
from s3vol.cache.journal import Journal
from s3vol.cache.ledger import Ledger
from s3vol.cache.loader import Loader
from s3vol.cache.publish import Publisher
from s3vol.cache.reader import Reader
from s3vol.cache.registry import Registry
from s3vol.cache.saver import Saver
from s3vol.cache.sender import Sender
from s3vol.cache.space import Space
from s3vol.cache.writeback import WriteBack
from s3vol.cache.writer import Writer
from s3vol.store.base import Store
from s3vol.types import Event, Health, WriteError


@dataclass(frozen=True, slots=True)
class Parts:
    """What a ChunkCache consists of."""

    directory: CacheDirectory
    files: DataFiles
    journal: Journal
    registry: Registry
    ledger: Ledger
    space: Space
    budget: ByteBudget
    fetcher: Fetcher
    saver: Saver
    sender: Sender
    publisher: Publisher
    writeback: WriteBack
    tasks: Background
    reader: Reader
    writer: Writer


def assemble(
    store: Store,
    settings: CacheSettings,
    directory: CacheDirectory,
    files: DataFiles,
    journal: Journal,
    cache_id: str,
    first_content_id: int,
    events: trio.MemorySendChannel[Event] | None,
    health: Health,
) -> Parts:
    """Wire a cache around an open directory and journal."""
    ledger = Ledger()
    budget = ByteBudget(settings.memory_bytes)
    saver = Saver(files, journal, ledger)
    tell = _teller(events, health)

    def forget(content: CachedContent) -> None:
        space.lru.forget_all(content)
        ledger.update(content)
        journal.enqueue(saver.record_gone(content))

    def conflicted(content: CachedContent) -> None:
        registry.refresh(content)
        forget(content)
        if not content.refs:
            registry.idle(content)

    def moved(content: CachedContent) -> None:
        registry.refresh(content)
        writeback.filled(content)
        if not content.refs:
            registry.idle(content)

    def filled(content: CachedContent) -> None:
        writeback.filled(content)

    registry = Registry(files, first_content_id, forget)
    space = Space(directory, files, journal, settings, health, registry.drop)
    held = Held(settings.memory_bytes // 16)  # at the default 2,000 open files of 4 KiB
    shelf = Shelf(settings.memory_bytes // 16 * 7)  # about what two sequential readers have before them
    tasks = Background()
    fetcher = Fetcher(store, files, space, budget, shelf, held, settings, health, tasks, filled)
    sender = Sender(store, files, fetcher, journal, ledger, budget, settings, health, cache_id)
    guard = Guard(store)
    keeper = ConflictKeeper(store, sender, guard, budget, settings, health, cache_id, conflicted, tell)
    publisher = Publisher(
        store, files, sender, guard, saver, keeper, journal, ledger, budget, settings, health, cache_id, moved
    )
    writeback = WriteBack(publisher, saver, sender, ledger, settings, health, tell)
    reader = Reader(files, space, fetcher, Loader(files, budget, shelf), publisher, tasks, settings, health)
    writer = Writer(
        files,
        journal,
        registry,
        ledger,
        space,
        saver,
        sender,
        publisher,
        fetcher,
        writeback,
        tasks,
        settings,
        health,
    )
    return Parts(
        directory,
        files,
        journal,
        registry,
        ledger,
        space,
        budget,
        fetcher,
        saver,
        sender,
        publisher,
        writeback,
        tasks,
        reader,
        writer,
    )


def _teller(events: trio.MemorySendChannel[Event] | None, health: Health) -> Callable[[WriteError], None]:
    def tell(event: WriteError) -> None:
        if events is None:
            return
        try:
            events.send_nowait(event)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            health.count("events_dropped")  # a frontend that does not listen; the error itself is in health and log

    return tell
