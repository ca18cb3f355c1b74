"""`s3vol plugin`: make the volume driver a service of this machine, take it away again, and show how it is.

Theory of operation. Two ways to run it: a service of systemd (the default: mounts outlive the daemon, upgrades do not
touch them), and dockerd's own managed plugin, for machines where nothing may be installed beside dockerd. Everything
that can be refused is refused before anything is changed.

Uninstalling must not cost anybody a volume: it refuses while containers refer to volumes or something is mounted, and
makes dockerd forget the volumes without removing them (s3vol_plugin.farewell). Settings, credentials, state and cache
stay on the disk, for the journal may hold what is not published yet.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from s3vol import mounts
from s3vol.commands import plugin_managed
from s3vol.commands.plugin_settings import choose, node_settings, write
from s3vol.errors import S3volError, UsageError
from s3vol_plugin import checkup, farewell, installation
from s3vol_plugin.docker_api import Docker
from s3vol_plugin.settings import Settings

_SYSTEMD_RUNS = Path("/run/systemd/system")  # sd_booted(3)
_SYSTEMCTL_S = 120.0  # a start waits for the daemon's READY, and that for at most TimeoutStartSec=90
_DOCKER_S = 20.0


def run(args: argparse.Namespace) -> int:
    """Install, uninstall or show. Returns 1 when `status` has something to say."""
    if args.managed:
        if args.root:
            raise UsageError("--root: is for unit files; a managed plugin lives in dockerd")
        return plugin_managed.run(args)
    root = Path(args.root or "/")
    if args.action == "status":
        return _status(root)
    return _install(args, root) if args.action == "install" else _uninstall(args, root)


def program() -> Path:
    """The daemon's program of this installation. Raises S3volError when there is none."""
    path = Path(sys.prefix) / "bin" / "s3vol-plugin"
    if not os.access(path, os.X_OK):
        raise S3volError(f"{path}: is missing; install s3vol with pip, so that its programs are made")
    return path


# --- install ----------------------------------------------------------------------------------------------------------


def _install(args: argparse.Namespace, root: Path) -> int:
    choice = choose(args, root)
    path = Path(args.program).absolute() if args.program else program()
    for written in installation.write_units(root, path):
        print(f"wrote {written}")
    write(choice, root)
    if root != Path("/"):
        return 0
    if not _SYSTEMD_RUNS.is_dir():
        print(
            f"systemd does not run here, so nothing was started: have your init run {path} as root before dockerd "
            "starts, and restart it when it ends"
        )
        return 0
    _systemctl("daemon-reload")
    _systemctl("enable", *installation.UNITS)
    _systemctl("start", installation.UNITS[0])
    _systemctl("restart", installation.UNITS[1])
    print("started; `docker volume create -d s3vol NAME` makes a volume, `s3vol plugin status` shows how it is")
    return 0


# --- uninstall --------------------------------------------------------------------------------------------------------


def _uninstall(args: argparse.Namespace, root: Path) -> int:
    if root != Path("/"):
        for path in installation.remove_units(root):
            print(f"removed {path}")
        return 0
    settings = node_settings()
    docker, names = Docker(settings.docker_socket, timeout_s=_DOCKER_S), list[str]()
    if settings.docker_socket.exists():
        names = [*farewell.recorded(docker, settings.socket, checkup.DRIVER)]
        _refuse_used(docker)
    _refuse_mounted(settings)
    _stop(settings)
    left = farewell.forget(docker, settings.socket, names) if names else []
    for path in installation.remove_units(root):
        print(f"removed {path}")
    if _SYSTEMD_RUNS.is_dir():
        _systemctl("daemon-reload")
    if left:
        raise S3volError(f"dockerd still has records of {', '.join(left)}: restart dockerd, then try again")
    if names:
        print(f"dockerd has forgotten {len(names)} volumes; they and their data are as they were, on all other nodes")
    print(
        f"{settings.state_directory}, {settings.cache_directory} and /etc/s3vol are left on this node; until dockerd "
        "is restarted it looks for the driver in vain, 15 s for each volume command"
    )
    return 0


def _refuse_used(docker: Docker) -> None:
    for container in docker.containers():
        for name, driver in container.volumes.items():
            if driver == checkup.DRIVER:
                raise S3volError(
                    f"volume {name}: is used by container {container.name}; remove that container (of a swarm: its "
                    "service) first, the data stays"
                )


def _refuse_mounted(settings: Settings) -> None:
    for mount in mounts.mount_table():
        if mount.type == mounts.TYPE and Path(mount.path).parent == settings.mounts_directory:
            raise S3volError(f"{mount.source}: is still mounted; `s3vol umount {mount.path}` publishes what is pending")


def _stop(settings: Settings) -> None:
    """Stop the daemon. Where systemd does not run, that is the administrator's to do. Raises S3volError."""
    if _SYSTEMD_RUNS.is_dir():
        found = [path.name for path in installation.installed_units(Path("/"))]
        if found:
            _systemctl("disable", "--now", *reversed(found))
        return
    try:
        checkup.ask_driver(settings.socket)
    except S3volError:
        return  # nobody serves it
    raise S3volError(f"{settings.socket}: the driver still runs, and systemd does not; stop s3vol-plugin first")


# --- status -----------------------------------------------------------------------------------------------------------


def _status(root: Path) -> int:
    """Lines about the driver on this node; 1 when there are findings."""
    settings = node_settings()
    facts = checkup.gather(settings)
    units = [path.name for path in installation.installed_units(root)]
    mounted = [volume for volume in facts.served if volume.mountpoint]
    print(f"units        {', '.join(units) or 'none installed'}{_activity(units)}")
    print(f"driver       {facts.socket_error or f'answers on {settings.socket}'}")
    print(f"dockerd      {facts.docker_error or _seen(facts)}")
    print(f"volumes      {len(facts.served)}, {len(mounted)} of them mounted here")
    for volume in mounted:
        print(f"  {volume.name:<30} {volume.status.get('state', '')} {volume.mountpoint}")
    findings = checkup.judge(facts)
    for line in findings:
        print(f"PROBLEM      {line}")
    print(f"result       {'problems found' if findings else 'ok'}")
    return 1 if findings else 0


def _seen(facts: checkup.Facts) -> str:
    return "knows the driver" if checkup.DRIVER in facts.drivers else "has not loaded the driver"


def _activity(units: Sequence[str]) -> str:
    if not units or not _SYSTEMD_RUNS.is_dir():
        return ""
    done = subprocess.run(
        ["systemctl", "is-active", *units], capture_output=True, text=True, timeout=_SYSTEMCTL_S, check=False
    )
    return f" ({', '.join(done.stdout.split())})"


def _systemctl(*words: str) -> None:
    """Run systemctl. Raises S3volError with its own line."""
    done = subprocess.run(
        ["systemctl", *words],
        capture_output=True,
        text=True,
        timeout=_SYSTEMCTL_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["failed"])[0]
        raise S3volError(f"systemctl {' '.join(words)}: {said}; `journalctl -u s3vol-plugin` says more")
