"""What a mount is going to be, checked as far as this machine can check it, before anything is made.

Everything that can be refused without the endpoint is refused here, in the process that the user started, with a line
that names the input and the way out. Nothing is created: neither cache directory nor log nor record.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from s3vol import layers, mounts, runtime
from s3vol.cache.base import CacheSettings
from s3vol.config import MountOptions
from s3vol.errors import S3volError, UsageError
from s3vol.fs.base import FsSettings
from s3vol.store.settings import Source, parse_source
from s3vol_fuse.session import MountPoint

_DEVICE = Path("/dev/fuse")
_FUSE_CONF = Path("/etc/fuse.conf")


@dataclass(frozen=True, slots=True)
class Plan:
    """A mount that nothing on this machine forbids."""

    source: Source
    options: MountOptions
    point: MountPoint

    @property
    def cache_root(self) -> Path:
        """Where the volumes' cache directories are."""
        return cache_root(self.options)

    def cache_directory(self, endpoint: str) -> Path:
        """This volume's own: a name for people, and a hash of what makes it this volume."""
        return cache_directory(self.source, self.options, endpoint)

    def log_file(self, endpoint: str) -> Path:
        """Where the mount process in the background writes."""
        return self.options.log_file or self.cache_directory(endpoint).with_name(
            volume_name(self.source.url, endpoint) + ".log"
        )


def cache_root(options: MountOptions) -> Path:
    """Where the volumes' cache directories are."""
    if options.cache_dir:
        return options.cache_dir
    if os.geteuid() == 0:
        return Path("/var/cache/s3vol")
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3vol"
    except RuntimeError:  # neither $HOME nor an entry in the list of users
        raise UsageError("this user has no home directory for the cache; set --cache-dir") from None


def cache_directory(source: Source, options: MountOptions, endpoint: str) -> Path:
    """The cache directory of a volume's mount on this machine."""
    return cache_root(options) / volume_name(source.url, endpoint)


def volume_name(url: str, endpoint: str) -> str:
    """`my-bucket-data-0123456789abcdef`: equal for equal URL and endpoint, whatever the credentials and options."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", url.partition(":")[2]).strip("-")[:60] or "memory"
    return f"{slug}-{hashlib.blake2b(f'{url} {endpoint}'.encode(), digest_size=8).hexdigest()}"


def load_options(args: argparse.Namespace, source: Source) -> MountOptions:
    """Options for a source from flags, `-o`, environment and files, in this order. Raises UsageError."""
    names = [args.source, source.url, *([f"s3://{source.bucket}", source.bucket] if source.bucket else [])]
    found = [
        layers.Layer(args.given, lambda name: f"--{name}"),
        layers.Layer(layers.parse_list(",".join(args.lists)), lambda name: f"-o {name}"),
        *layers.environment_layers(os.environ),
    ]
    named = args.config or os.environ.get("S3VOL_CONFIG")
    if named:
        found += layers.file_layers(Path(named), names, required=True)
    else:
        for path in layers.config_files(os.environ):
            found += layers.file_layers(path, names, required=False)
    return layers.resolve(found)


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan for `s3vol mount`. Raises UsageError for bad input, S3volError for what the machine lacks."""
    source = parse_source(args.source)
    options = load_options(args, source)
    point = MountPoint(
        path=_check_mountpoint(args.mountpoint),
        source=options.fsname or source.url,
        read_only=options.read_only,
        allow_other=options.allow_other,
        dev=options.dev,
        suid=options.suid,
        exec=options.exec,
    )
    plan = Plan(source, options, point)
    _check_apart(plan)
    _check_rights(options)
    _check_fuse()
    return plan


def _check_mountpoint(given: str) -> str:
    path = mounts.canonical(given)
    mounted = mounts.find_mount(path)
    if mounted and mounted.type.startswith("fuse"):
        record = runtime.find_record(path, os.environ)
        how = "a dead mount of" if record and not record.alive else "already a mount of"
        raise UsageError(f"mount point {given}: {how} {mounted.source} is there; `s3vol umount {given}` first")
    try:
        status = os.stat(path)
    except OSError as error:
        hint = f"create it with `mkdir -p {given}`" if isinstance(error, FileNotFoundError) else error.strerror
        raise UsageError(f"mount point {given}: {'does not exist; ' if error.errno == 2 else ''}{hint}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"mount point {given}: is not a directory")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise UsageError(f"mount point {given}: fusermount3 mounts only on a directory that you may write to")
    return path


def _check_apart(plan: Plan) -> None:
    """Nothing that the mount needs may be inside it: it would wait for itself."""
    point = Path(plan.point.path)
    needed = {"cache directory": plan.cache_root, "runtime directory": runtime.runtime_directory(os.environ)}
    if plan.options.log_file:
        needed["log file"] = plan.options.log_file
    for what, path in needed.items():
        if _real(path).is_relative_to(point):
            raise UsageError(f"{what} {path}: is in the mount point {point}, so the mount would wait for itself")
    if plan.source.kind == "file":
        directory = _real(Path(plan.source.directory))
        if directory.is_relative_to(point) or point.is_relative_to(directory):
            raise UsageError(f"source {plan.source.url}: must not contain the mount point {point} or be inside it")
        if _real(plan.cache_root).is_relative_to(directory):
            raise UsageError(f"cache directory {plan.cache_root}: is in the source, where it would be files of its own")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _check_rights(options: MountOptions) -> None:
    if os.geteuid() == 0:
        return
    for name in ("dev", "suid"):
        if getattr(options, name):
            raise UsageError(f"option {name}: only root may ask for it")
    if options.allow_other and not _others_allowed():
        raise UsageError(f"option allow-other: only root may, or everybody with user_allow_other in {_FUSE_CONF}")


def _others_allowed() -> bool:
    try:
        lines = _FUSE_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)


def _check_fuse() -> None:
    if not _DEVICE.exists():
        raise S3volError(
            f"{_DEVICE} is missing: load the kernel module (`modprobe fuse`); a container needs "
            "`--device /dev/fuse --cap-add SYS_ADMIN`"
        )
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        raise S3volError("fusermount3 is missing: install the package fuse3")
    if os.geteuid() == 0 and not os.access(_DEVICE, os.R_OK | os.W_OK):
        raise S3volError(f"{_DEVICE} may not be opened: a container needs `--device /dev/fuse --cap-add SYS_ADMIN`")


def warnings(plan: Plan) -> list[str]:
    """What is allowed, and perhaps not meant."""
    said = []
    with contextlib.suppress(PermissionError), os.scandir(plan.point.path) as inside:  # to mount it need not be listed
        if any(inside):
            said.append(f"{plan.point.path} is not empty; what is in it is hidden while mounted")
    if plan.source.kind == "memory":
        said.append("memory: forgets everything when it is unmounted")
    return said


def cache_settings(options: MountOptions, directory: Path) -> CacheSettings:
    """The cache's part of the options."""
    return CacheSettings(
        directory=directory,
        size_bytes=options.cache_size,
        free_floor_bytes=options.cache_free,
        memory_bytes=options.memory,
        dirty_max_bytes=options.dirty_max,
        dirty_age_s=options.dirty_age,
        publish_delay_s=options.publish_delay,
        journal_age_s=options.journal_age,
        uploads=options.uploads,
        downloads=options.downloads,
        readahead_max_bytes=options.readahead,
        timeout_s=options.timeout,
        node=options.node,
    )


def fs_settings(options: MountOptions) -> FsSettings:
    """The file system's part of the options."""
    return FsSettings(
        mode=options.mode,
        close_remote=options.close == "remote",
        fsync_remote=options.fsync == "remote",
        uid=os.getuid() if options.uid is None else options.uid,
        gid=os.getgid() if options.gid is None else options.gid,
        umask=options.umask,
        attr_ttl_s=options.attr_ttl,
        timeout_s=options.timeout,
        node=options.node,
    )
