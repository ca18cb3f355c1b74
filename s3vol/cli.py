"""The command line: arguments to a subcommand, errors to one line and an exit status.

Exit statuses: 0 done; 1 failed; 2 bad input, nothing was done; 3 unmounted, but data is left in the journal.

`mount_helper` is what mount(8) runs for `mount -t s3vol` and `mount -t fuse.s3vol`. Where it is not installed, mount(8)
falls back to libfuse's mount.fuse, and that calls `s3vol SOURCE MOUNTPOINT -o ...` without a subcommand.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import NoReturn

from s3vol import __version__
from s3vol.config import ALIASES, OPTIONS, SHORTS
from s3vol.errors import S3volError, UsageError
from s3vol.layers import unknown

FAILED, USAGE, INTERRUPTED = 1, 2, 130

_COMMANDS = (
    "mount",
    "umount",
    "status",
    "flush",
    "doctor",
    "fsck",
    "gc",
    "export",
    "options",
    "plugin",
    "volume",
    "bench",
)
_FLAGS = (
    *OPTIONS,
    *ALIASES,
    *(short.name for short in SHORTS),
    "config",
    "foreground",
    "dry-run",
    "force",
    "json",
    "markdown",
    "help",
    "registry",
    "data",
    "replace-newer",
    "reread",
    "repair",
    "quick",
    "size",
    "repeats",
    "time",
    "rows",
    "targets",
    "scratch",
    "out",
    "goals",
    "stages",
    "growth",
    "list",
    "compare",
    "retire",
)
_EPILOG = "Options are described in docs/options.md; `s3vol options` prints them."


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints."""
        raise UsageError(f"{message} (`{self.prog} --help` shows what is possible)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="s3vol", description="Mount an S3 bucket as a POSIX file system that loses nothing.")
    parser.add_argument("--version", action="version", version=f"s3vol {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, epilog=_EPILOG, allow_abbrev=False)

    mount = command("mount", "Mount a source; returns when it can be used.")
    mount.add_argument("source", help="BUCKET, s3://BUCKET/PREFIX, ipfs://VOLUME/PREFIX, file:///DIRECTORY or memory:")
    mount.add_argument("mountpoint")
    mount.add_argument("-f", "--foreground", action="store_true", help="stay, and log to the terminal")
    mount.add_argument("--dry-run", action="store_true", help="check everything on this machine, and mount nothing")
    _add_options(mount)

    umount = command("umount", "Publish what is pending, unmount, and wait for the end of the mount process.")
    umount.add_argument("mountpoint")
    umount.add_argument("--force", action="store_true", help="also when it is busy, hangs, or its process is dead")
    umount.add_argument("--drain-timeout", metavar="TIME", help="publish for so long; the rest stays local (60s)")

    status = command("status", "Show the mounts of this machine, or one.")
    status.add_argument("mountpoint", nargs="?")
    status.add_argument("--json", action="store_true", help="for programs")

    flush = command("flush", "Return when everything, or one file or directory, is published.")
    flush.add_argument("mountpoint")
    flush.add_argument("path", nargs="?", help="in the mount: relative to it, or absolute")

    doctor = command("doctor", "Examine a source: what the endpoint can do, clocks, keys that are no path.")
    doctor.add_argument("source", nargs="?", help="as for mount; with --docker the registry, if it is another one")
    doctor.add_argument("--docker", action="store_true", help="examine the Docker volume driver on this node")
    doctor.add_argument("--json", action="store_true", help="for programs")
    _add_options(doctor)

    fsck = command("fsck", "Check what s3vol keeps in a source; exit status 0: clean, 1: something is left.")
    fsck.add_argument("source", help="as for mount; it may be mounted meanwhile")
    fsck.add_argument("--repair", action="store_true", help="put in order what nobody is working at")
    fsck.add_argument("--json", action="store_true", help="for programs")
    _add_options(fsck)

    _add_bench(command("bench", "Measure a source: s3vol, the bare endpoint, the local disk, and other file systems."))
    collect = command("gc", "Collect what a volume in IPFS needs no more; a mounted one does so by itself.")
    collect.add_argument("source", help="ipfs://VOLUME/PREFIX, as it was mounted here")
    collect.add_argument("--retire", metavar="WRITER", help="wait no longer for this writer, which is gone for good")
    _add_options(collect)

    export = command("export", "Make a tree of a volume in IPFS readable by all IPFS tools, and print its CID.")
    export.add_argument("source", help="ipfs://VOLUME, or ipfs://VOLUME/PATH of a file or directory in it")
    _add_options(export)

    _add_volume(command("volume", "The volumes of docker's s3vol driver, on all nodes; works without docker."))
    _add_plugin(command("plugin", "Make the Docker volume driver a service of this machine."))

    options = command("options", "Print every option of a mount.")
    options.add_argument("--markdown", action="store_true", help="as in docs/options.md")
    return parser


def _add_bench(bench: argparse.ArgumentParser) -> None:
    add = bench.add_argument
    add("source", nargs="?", help="BUCKET or s3://BUCKET/PREFIX; a prefix below it is written and removed")
    add("--quick", action="store_true", help="a first look in under three minutes: fewer figures, smaller")
    add("--size", metavar="WORD", help="tiny, quick, normal or long: how much work a figure is (normal)")
    add("--repeats", metavar="N", help="how often each figure is measured (5, or fewer where --time is over)")
    add("--time", metavar="TIME", help="begin no repeat that would not fit into it (11m, with --quick 150s)")
    add("--rows", metavar="NAME,NAME", help="only these figures; * stands for anything")
    add("--targets", metavar="NAME,NAME", help="only these file systems; * stands for anything")
    add(
        "--scratch",
        metavar="DIRECTORY",
        help="for caches and the local disk's figures (the system's for temporary files)",
    )
    add("--out", metavar="DIRECTORY", help="for the report (s3vol-bench-DATE-TIME here)")
    add("--stages", action="store_true", help="instead, show where the time of one operation goes (py-spy, as root)")
    add(
        "--growth",
        action="store_true",
        help="instead, measure cost as directories, files and inodes grow; with --quick less",
    )
    add("--goals", action="store_true", help="end with status 1 when s3vol misses a goal, too")
    add("--list", action="store_true", help="show the figures that there are")
    add("--compare", nargs=2, metavar=("OLD", "NEW"), help="of two results: what got worse beyond the noise")
    _add_options(bench)


def _add_volume(volume: argparse.ArgumentParser) -> None:
    verbs = volume.add_subparsers(dest="action", metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, help: str, *words: str, json: bool = False) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
        for word in words:
            made.add_argument(word)
        made.add_argument("--registry", metavar="SOURCE", help="where the registry is, instead of plugin.toml's source")
        made.add_argument("--config", metavar="FILE", help="settings of the node (/etc/s3vol/plugin.toml)")
        if json:
            made.add_argument("--json", action="store_true", help="for programs")
        return made

    def options(made: argparse.ArgumentParser) -> None:
        help = "as for `docker volume create`; `s3vol volume options` prints them"
        made.add_argument("-o", dest="options", action="append", default=[], metavar="KEY=VALUE", help=help)

    def careful(made: argparse.ArgumentParser) -> None:
        made.add_argument("--yes", action="store_true", help="delete objects without asking")

    verb("ls", "List the volumes.", json=True).add_argument("--all", action="store_true", help="removed ones as well")
    options(verb("create", "Create a volume.", "name"))
    verb("inspect", "Show one volume as JSON.", "name")
    rm = verb("rm", "Remove a volume that no node has mounted. Its objects stay (option on-remove).", "name")
    rm.add_argument("--data", action="store_true", help="delete its objects as well")
    careful(rm)
    verb("undelete", "Bring a removed volume back, within 7 days.", "name")
    careful(verb("delete", "Delete the objects of a removed volume.", "name"))
    verb("mounts", "Show which nodes have what mounted.", json=True)
    copy = verb("import", "Copy a directory of this machine into a volume; again, to go on.", "name", "path", json=True)
    copy.add_argument("--create", action="store_true", help="create the volume, with the options of -o")
    copy.add_argument("--replace-newer", action="store_true", help="replace what is newer in the volume, too")
    copy.add_argument("--reread", action="store_true", help="read everything back and compare it with the files")
    options(copy)
    verb("options", "Print every option of a volume.").add_argument(
        "--markdown", action="store_true", help="as in docs/volume-options.md"
    )


def _add_plugin(plugin: argparse.ArgumentParser) -> None:
    add = plugin.add_argument
    add("action", choices=("install", "uninstall", "status"))
    add("--managed", action="store_true", help="as a plugin that dockerd runs, instead of a service of systemd")
    add("--registry", metavar="SOURCE", help="where the registry of volumes is, for the first settings file")
    add("--endpoint", metavar="URL", help="of an S3 server that is not AWS, for the first settings file")
    add("--credentials", metavar="NAME", help="a file in /etc/s3vol/credentials.d, for the first settings file")
    add("--root", metavar="DIRECTORY", help="write files below it and start nothing: for packagers")
    add("--program", metavar="PATH", help="the daemon that the units start, if not that of this installation")
    add("--directory", metavar="DIRECTORY", help="of a managed plugin, as `make plugin` builds it (dist/plugin)")
    add("--docker-socket", metavar="PATH", help="of dockerd (/run/docker.sock)")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """All rows of the table as flags. Their values stay text: `s3vol.layers` knows where else they may come from."""
    parser.add_argument("-o", dest="lists", action="append", default=[], metavar="OPT,OPT", help="as for mount(8)")
    parser.add_argument("--config", metavar="FILE", help="TOML file, instead of the user's and the system's")
    groups = {row.group: parser.add_argument_group(row.group) for row in OPTIONS.values()}
    for row in OPTIONS.values():
        add = groups[row.group].add_argument
        help = f"{row.help} Default: {row.shown}.".replace("`", "").replace("%", "%%")
        if row.is_flag:
            _add_switch(add, row.name, help)
        else:
            flags = [f"--{name}" for name in (row.name, row.alias) if name]
            add(*flags, dest=_dest(row.name), metavar=row.metavar, help=help)
    shorts = parser.add_argument_group("Short forms")
    for short in SHORTS:
        if short.no is not None:
            _add_switch(shorts.add_argument, short.name, short.help.replace("`", ""))


def _add_switch(add: Callable[..., argparse.Action], name: str, help: str) -> None:
    add(f"--{name}", dest=_dest(name), action="store_const", const="yes", help=help)
    add(f"--no-{name}", dest=_dest(name), action="store_const", const="no", help=argparse.SUPPRESS)


def _dest(name: str) -> str:
    return f"option:{name}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of one command; `given` maps the flags of the options table that were used to their text.

    Raises UsageError; an unknown option is named together with its nearest neighbour.
    """
    args, rest = _parser().parse_known_args(argv)
    for word in rest:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            raise unknown(flag.lstrip("-"), flag, _FLAGS)
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r} (`s3vol {args.command} --help` shows what is possible)")
    args.given = {
        name.removeprefix("option:"): text
        for name, text in vars(args).items()
        if name.startswith("option:") and text is not None
    }
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) >= 2 and words[0] not in _COMMANDS and not words[0].startswith("-") and "-o" in words[2:]:
        # libfuse's mount.fuse adds dev and suid for everybody; who wants them says so to mount.s3vol.
        return _guarded(lambda: _run(parse(_from_mount(words, ignore=("dev", "suid")))))
    return _guarded(lambda: _run(parse(words)))


def mount_helper(argv: Sequence[str] | None = None) -> int:
    """`mount.s3vol SOURCE MOUNTPOINT [-sfnvrw] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`, as mount(8) calls it."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _guarded(lambda: _run(parse(_from_mount(words))))


def _from_mount(words: Sequence[str], ignore: Sequence[str] = ()) -> list[str]:
    """The arguments of `s3vol mount` for those of a mount helper. Raises UsageError."""
    parser = _Parser(prog="mount.s3vol", add_help=False, allow_abbrev=False)
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    for flag in ("-s", "-f", "-n", "-v", "-r", "-w"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-N", dest="namespace")
    parser.add_argument("-t", dest="type")
    parser.add_argument("-o", dest="lists", action="append", default=[])
    args, rest = parser.parse_known_args(words)
    if rest:
        raise UsageError(f"mount.s3vol: unexpected argument {rest[0]!r}")
    if args.namespace:
        raise UsageError("mount.s3vol: -N is not supported; enter the namespace with nsenter(1)")
    source = args.source.partition("#")[2] if args.source.startswith("s3vol#") else args.source
    kept = [word for text in args.lists for word in text.split(",") if word not in ignore]
    lists = ",".join([*kept, *(["ro"] if args.r else [])])
    fake = ["--dry-run"] if args.f else []
    return ["mount", *fake, *(["-o", lists] if lists else []), "--", source, args.mountpoint]


def _run(args: argparse.Namespace) -> int:
    command = importlib.import_module(f"s3vol.commands.{args.command}")
    if not gc.isenabled():  # `__main__` has kept it from looking through all modules
        gc.freeze()
        gc.enable()
    status: int = command.run(args)
    return status


def _guarded(work: Callable[[], int]) -> int:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths that are no text are printed as the bytes they are
    try:
        return work()
    except S3volError as error:
        print(f"s3vol: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away; nothing is to be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
