"""`s3vol volume`: the registry of volumes without docker and without the daemon, straight in its bucket.

What each verb does is the driver's own room (s3vol_plugin); here are arguments, questions and tables. Nothing is kept
on this machine: each run reads the registry anew.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from s3vol.commands import volume_options
from s3vol.commands.reach import ProgressLine
from s3vol.control import Client
from s3vol.errors import Denied, S3volError, UsageError
from s3vol.store.edge import first_error
from s3vol.store.settings import parse_source
from s3vol.units import format_bytes, format_seconds
from s3vol_plugin import access, removal
from s3vol_plugin.base import Holder
from s3vol_plugin.holders import HOLD_S
from s3vol_plugin.import_check import Report
from s3vol_plugin.import_mount import mounted
from s3vol_plugin.importing import Import
from s3vol_plugin.making import prepare
from s3vol_plugin.options import PREFIX, load_settings, parse_options
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

_SHOWN_LINES = 20  # of a list of problems; --json has them all

_DAEMON_S = 5.0
_CHANGING = ("create", "rm", "undelete", "import", "delete")

Verb = Callable[[argparse.Namespace, Settings, BucketRegistry], Awaitable[int]]


def run(args: argparse.Namespace) -> int:
    """Run one verb; returns its exit status."""
    if args.action == "options":
        print(volume_options.markdown() if args.markdown else volume_options.plain(), end="")
        return 0
    environment = dict(os.environ)
    if args.registry:
        environment[f"{PREFIX}SOURCE"] = args.registry
    settings = load_settings(Path(args.config) if args.config else None, environment)
    try:
        return trio.run(_run, _VERBS[args.action], args, settings)
    except BaseExceptionGroup as group:  # an interrupt is in one as well
        raise first_error(group) from None
    finally:
        if args.action in _CHANGING:
            _tell_daemon(settings)


def _tell_daemon(settings: Settings) -> None:
    """Have the driver of this node read the registry again, so that docker sees here what was changed here.

    Other nodes see it within half a minute, and so does this one when the daemon does not answer.
    """
    with contextlib.suppress(S3volError), Client(settings.admin_socket, timeout_s=_DAEMON_S) as client:
        client.ask("refresh", timeout_s=_DAEMON_S)


async def _run(verb: Verb, args: argparse.Namespace, settings: Settings) -> int:
    async with access.open_registry(settings) as store:
        return await verb(args, settings, BucketRegistry(store, settings.node, None))


async def _wanted(registry: BucketRegistry, name: str) -> Volume:
    volume = await registry.find(name)
    if volume is None:
        raise UsageError(f"volume {name}: no such volume; `s3vol volume ls` shows those there are")
    return volume


# Looking.


async def _ls(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    await registry.refresh()
    holders = await _holders(registry)
    volumes = sorted([*registry.all(), *(registry.removed() if args.all else ())], key=lambda volume: volume.name)
    broken = [dataclasses.asdict(damaged) for damaged in registry.damaged]
    if args.json:
        listed = [_values(volume, holders) for volume in volumes]
        print(json.dumps({"volumes": listed, "damaged": broken}, indent=2))
    else:
        rows = [("NAME", "SOURCE", "CREATED", "MOUNTED-ON")]
        rows += [(volume.name, volume.source, volume.created_at, _state(volume, holders)) for volume in volumes]
        print(_table(rows))
        for damaged in broken:
            print(f"s3vol: {damaged['error']}", file=sys.stderr)
    return 1 if broken else 0


async def _holders(registry: BucketRegistry) -> Mapping[str, Sequence[Holder]] | None:
    """By uuid; None for credentials that may only read: the store's clock cannot be asked then."""
    try:
        return await registry.all_holders()
    except Denied:
        return None


def _state(volume: Volume, holders: Mapping[str, Sequence[Holder]] | None) -> str:
    if volume.removed:
        gone = {"": "", "begun": ", its data is being deleted", "done": ", its data is deleted"}[volume.deletion]
        return f"(removed {volume.removed_at}{gone})"
    if holders is None:
        return "?"
    return ", ".join(sorted(holder.node for holder in holders.get(volume.uuid, ()))) or "-"


def _values(volume: Volume, holders: Mapping[str, Sequence[Holder]] | None) -> dict[str, Any]:
    nodes = None if holders is None else sorted(holder.node for holder in holders.get(volume.uuid, ()))
    return {**dataclasses.asdict(volume), "mounted_on": nodes}


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


async def _inspect(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    volume = await _wanted(registry, args.name)
    print(json.dumps(_values(volume, await _holders(registry)), indent=2))
    return 0


async def _mounts(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    await registry.refresh()
    names = {volume.uuid: volume.name for volume in (*registry.removed(), *registry.all())}
    found = sorted(
        (holder.node, names.get(uuid, f"(unknown, {uuid})"), holder.age_s)
        for uuid, holders in (await registry.all_holders()).items()
        for holder in holders
    )
    if args.json:
        print(json.dumps([{"node": node, "volume": name, "age_s": age_s} for node, name, age_s in found], indent=2))
    else:
        rows = [(node, name, f"{format_seconds(age_s)} ago") for node, name, age_s in found]
        print(_table([("NODE", "VOLUME", "LAST-WORD"), *rows]))
    return 0


# Changing.


async def _create(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    await _make(args, settings, registry)
    print(args.name)
    return 0


async def _make(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> Volume:
    """Create a volume. One that is there with the same options is that one, as for docker."""
    given = _options(args.options)
    wanted = parse_options(args.name, given, settings)
    await prepare(wanted, given, settings)
    made = await registry.create(wanted)
    differs = [
        name
        for name in ("source", "options", "credentials", "on_remove", "sticky")
        if getattr(made, name) != getattr(wanted, name)
    ]
    if differs:
        raise UsageError(
            f"volume {args.name}: exists already, created by {made.created_by} on {made.created_at}, with another "
            f"{' and '.join(differs).replace('_', '-')}; `s3vol volume inspect {args.name}` shows it"
        )
    return made


def _options(words: Sequence[str]) -> dict[str, str]:
    """As docker's `-o`: one KEY=VALUE each; a bare word is a switch."""
    found: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in found and key != "o":
            raise UsageError(f"-o {key}: is given twice")
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


async def _rm(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    volume = await _wanted(registry, args.name)
    delete = args.data or volume.on_remove == "delete"
    if args.data:
        removal.check_deletable(volume)
    await removal.check_free(volume, registry)
    if delete:
        _confirm(args, volume)
    # What was asked for here is not written into the record: a removal that comes to nothing leaves it as it was.
    await removal.remove(volume, registry=registry)
    if delete:
        return await _delete_objects(volume, settings, registry)
    print(f"removed {volume.name}; its objects are kept at {volume.source} (`s3vol volume undelete {volume.name}`)")
    return 0


async def _delete(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    await registry.refresh()
    volume = next((volume for volume in registry.removed() if volume.name == args.name), None)
    if volume is None:
        await _wanted(registry, args.name)
        raise UsageError(f"volume {args.name}: is not removed; `s3vol volume rm --data {args.name}` does both")
    if volume.deletion == "done":
        raise UsageError(f"volume {args.name}: its data is deleted already")
    removal.check_deletable(volume)
    await removal.check_free(volume, registry)
    _confirm(args, volume)
    return await _delete_objects(volume, settings, registry)


def _confirm(args: argparse.Namespace, volume: Volume) -> None:
    """Ask before something is deleted. Not in a thread, which Ctrl-C could not interrupt: nothing else goes on here."""
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"volume {volume.name}: would delete all objects at {volume.source}; add --yes if that is meant"
        )
    question = f"All objects at {volume.source} will be deleted, for good. Type the volume's name to go on: "
    try:
        said = input(question)
    except EOFError:  # Ctrl-D
        said = ""
    if said.strip() != volume.name:
        raise UsageError(f"volume {volume.name}: nothing was done")


async def _delete_objects(volume: Volume, settings: Settings, registry: BucketRegistry) -> int:
    line = ProgressLine(f"delete {volume.name}")
    try:
        done = await removal.delete_objects(
            volume,
            registry=registry,
            settings=settings,
            on_progress=lambda done: line.say(f"{done.objects} objects, {format_bytes(done.bytes)} deleted"),
        )
    finally:
        line.end()
    print(f"removed {volume.name}; {done.objects} objects, {format_bytes(done.bytes)} at {volume.source} are deleted")
    return 0


async def _undelete(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    volume = await registry.undelete(args.name)
    print(f"{volume.name} is back, with its objects at {volume.source}")
    return 0


# Importing.


async def _import(args: argparse.Namespace, settings: Settings, registry: BucketRegistry) -> int:
    if not await trio.Path(args.path).is_dir():
        raise UsageError(f"{args.path}: is no directory of this machine")
    if args.options and not args.create:
        raise UsageError("-o: is for --create; a volume that is there has its options")
    if args.create:
        _check_importable(parse_options(args.name, _options(args.options), settings))
    volume = await (_make(args, settings, registry) if args.create else _wanted(registry, args.name))
    _check_importable(volume)
    began_s = time.monotonic()
    async with _held(volume, settings), access.open_volume(volume, settings) as store:
        line = ProgressLine(f"import {volume.name}")
        run = Import(
            store,
            args.path,
            overwrite=args.replace_newer,
            reread=args.reread,
            linker=lambda: mounted(volume, settings),
            on_progress=lambda report: line.say(_progress(report, time.monotonic() - began_s)),
        )
        try:
            report = await run.run()
        except OSError as error:
            raise UsageError(f"{args.path}: {error.strerror}") from None
        except S3volError as error:
            raise type(error)(f"{error}; what was copied stays: run the import again to go on") from error
        finally:
            line.end()
    print(json.dumps(_summary(report), indent=2) if args.json else "\n".join(_lines(volume, report)))
    return 0 if report.complete else 1


def _check_importable(volume: Volume) -> None:
    if parse_source(volume.source).kind == "ipfs":
        raise UsageError(
            f"volume {volume.name}: is in IPFS, which is written through a mount only: copy with a container, "
            f"`docker run --rm -v DIRECTORY:/from -v {volume.name}:/to busybox cp -a /from/. /to/`"
        )


@asynccontextmanager
async def _held(volume: Volume, settings: Settings) -> AsyncIterator[None]:
    """Keep others from removing the volume meanwhile, under a name of our own: the driver here may hold it as well."""
    async with access.open_registry(settings) as store, trio.open_nursery() as nursery:
        registry = BucketRegistry(store, f"{settings.node[:40]}.import-{os.getpid()}", None)
        await registry.hold(volume)
        try:
            current = await registry.find(volume.name)
            if current is None or current.uuid != volume.uuid:
                raise UsageError(f"volume {volume.name}: was removed in this moment")
            nursery.start_soon(_keep_holding, registry, volume)
            nursery.start_soon(_heed_signals)
            yield
            nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(10.0, shield=True):
                await registry.release(volume)


async def _keep_holding(registry: BucketRegistry, volume: Volume) -> None:
    while True:
        await trio.sleep(HOLD_S)
        await registry.hold(volume)


async def _heed_signals() -> None:
    """What ends this process ends the mount for hard links first, as Ctrl-C does."""
    heeded = [it for it in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(it) is not signal.SIG_IGN]  # nohup
    with trio.open_signal_receiver(*heeded) as received:
        async for _ in received:
            raise KeyboardInterrupt


def _progress(report: Report, took_s: float) -> str:
    rate = report.bytes_copied / max(took_s, 0.001)
    return (
        f"{report.entries_done} of {len(report.scanned.items)} entries, {format_bytes(report.bytes_done)} of "
        f"{format_bytes(report.scanned.bytes)}, {format_bytes(rate)}/s"
    )


def _summary(report: Report) -> dict[str, Any]:
    return {
        "entries": len(report.scanned.items),
        "copied": len(report.copied),
        "replaced": report.replaced,
        "same": report.same,
        "kept": report.kept,
        "problems": report.problems,
        "verified": report.verified,
        "bytes": report.bytes_done,
        "bytes_copied": report.bytes_copied,
        "hard_linked_names": report.scanned.linked,
        "linked": report.linked,
        "hard_linked_names_apart": report.apart,
        "not_linked_because": report.no_links,
        "sockets_left_out": report.scanned.sockets,
        "access_control_lists_left_out": report.scanned.lists,
    }


def _lines(volume: Volume, report: Report) -> list[str]:
    scanned = report.scanned
    lines = [
        f"{len(report.copied) + len(report.replaced)} entries copied ({format_bytes(report.bytes_copied)}), "
        f"{report.same} were there already, {report.verified} of {len(scanned.items)} verified in {volume.source}"
    ]
    lines += _some("replaced, for the file is newer", report.replaced)
    lines += _some("KEPT, for the volume's is newer (--replace-newer takes the file)", report.kept)
    lines += _some("NOT COPIED", report.problems)
    if report.linked:
        one = len(report.linked) == 1
        lines.append("1 name was made as a hard link" if one else f"{len(report.linked)} names were made as hard links")
    if report.apart:
        because = f": {report.no_links}" if report.no_links else ""
        lines.append(f"{report.apart} names of files with hard links became files of their own{because}")
    if scanned.sockets:
        lines.append(f"{scanned.sockets} sockets were left out")
    if scanned.lists:
        lines.append(f"{scanned.lists} access control lists were left out; owner, group and mode are there")
    return lines


def _some(what: str, entries: Sequence[str]) -> list[str]:
    lines = [f"{what}: {entry}" for entry in entries[:_SHOWN_LINES]]
    if len(entries) > _SHOWN_LINES:
        lines.append(f"{what}: {len(entries) - _SHOWN_LINES} more (--json lists all)")
    return lines


_VERBS: Mapping[str, Verb] = {
    "ls": _ls,
    "create": _create,
    "inspect": _inspect,
    "rm": _rm,
    "undelete": _undelete,
    "mounts": _mounts,
    "import": _import,
    "delete": _delete,
}
