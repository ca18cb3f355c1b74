"""`s3vol plugin ... --managed`: the volume driver as a plugin that dockerd itself runs.

The directory comes from `make plugin` (plugin/managed). The plugin reads the settings file and the credentials of the
host, as the service does; `docker plugin set s3vol S3VOL_PLUGIN_...=` overrides them. dockerd is given it by the
`docker` command, the one program that packs it the way dockerd wants it; the engine is always named by its socket, so
that a context or a variable of the user leads to no other.

dockerd keeps its records of volumes when the plugin goes, under a driver that nobody has any more; seen with dockerd
20.10: these names cannot be used then, and after a restart of dockerd `docker run -v NAME:...` makes a local volume
without a word. A record goes when the driver says that there is no such volume. So before it is removed the plugin runs
for a moment on an empty registry, in memory, and dockerd is asked for each volume. The bucket is not touched.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from s3vol.commands.plugin_settings import choose, write
from s3vol.errors import NotFound, S3volError, UsageError
from s3vol_plugin import checkup
from s3vol_plugin.docker_api import Docker
from s3vol_plugin.options import PREFIX
from s3vol_plugin.settings import Settings

NAME = "s3vol"
_DOCKER_S = 300.0  # packing and unpacking 120 MB on a slow disk; enabling waits for the driver's socket
_HOST_DIRECTORIES = (Path("/var/lib/s3vol"), Path("/var/cache/s3vol"))


def run(args: argparse.Namespace) -> int:
    """Install, uninstall or show. Returns 1 when `status` has something to say."""
    docker = Docker(Path(args.docker_socket) if args.docker_socket else Settings(source="").docker_socket)
    if args.action == "status":
        return _status(docker)
    return _install(args, docker) if args.action == "install" else _uninstall(docker)


def _install(args: argparse.Namespace, docker: Docker) -> int:
    directory = Path(args.directory or "dist/plugin").absolute()
    if not (directory / "config.json").exists():
        raise UsageError(f"{directory}: is no plugin; `make plugin` builds one in dist/plugin, or name it: --directory")
    choice = choose(args, Path("/"))
    for path in _HOST_DIRECTORIES:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # dockerd binds them into the plugin, and makes none
    write(choice, Path("/"))
    _docker(docker, "plugin", "create", NAME, str(directory))
    try:
        _docker(docker, "plugin", "enable", NAME)
    except S3volError:
        _docker(docker, "plugin", "rm", "--force", NAME)
        raise
    print(f"dockerd runs the plugin {NAME}; `docker volume create -d {NAME} NAME` makes a volume")
    return 0


def _uninstall(docker: Docker) -> int:
    for container in docker.containers():
        for name, driver in container.volumes.items():
            if driver.partition(":")[0] == NAME:
                raise S3volError(f"volume {name}: is used by container {container.name}; remove that container first")
    names = [volume.name for volume in docker.volumes() if volume.driver.partition(":")[0] == NAME]
    if docker.ask("GET", f"/plugins/{NAME}/json").get("Enabled"):  # dockerd refuses to disable it twice
        _docker(docker, "plugin", "disable", "--force", NAME)
    left = _forget(docker, names) if names else []
    _docker(docker, "plugin", "rm", "--force", NAME)
    print(f"removed; {', '.join(map(str, _HOST_DIRECTORIES))} and /etc/s3vol are left")
    if left:
        raise S3volError(
            f"dockerd still has records of {', '.join(left)}, and finds no driver for them until it is installed again"
        )
    return 0


def _forget(docker: Docker, names: Sequence[str]) -> Sequence[str]:
    """Make dockerd forget these volumes, by a plugin that knows none; it is disabled before and after.

    Returns those that dockerd still has.
    """
    try:
        _docker(docker, "plugin", "set", NAME, f"{PREFIX}SOURCE=memory:")
        _docker(docker, "plugin", "enable", NAME)
    except S3volError:  # it is broken, which may be why it is uninstalled
        return names
    left = []
    for name in names:
        try:
            docker.volume(name)
            left.append(name)
        except NotFound:
            continue
        except S3volError:  # the plugin must not stay on its empty registry
            left.append(name)
    _docker(docker, "plugin", "disable", "--force", NAME)
    return left


def _status(docker: Docker) -> int:
    try:
        plugin = docker.ask("GET", f"/plugins/{NAME}/json")
    except NotFound:
        raise S3volError(f"dockerd has no plugin {NAME}; `s3vol plugin install --managed` gives it one") from None
    enabled = bool(plugin.get("Enabled"))
    volumes = [volume for volume in docker.volumes() if volume.driver.partition(":")[0] == checkup.DRIVER]
    print(f"plugin       {plugin.get('Name')} {'enabled' if enabled else 'disabled'}")
    for line in (plugin.get("Settings") or {}).get("Env") or []:
        print(f"  {line}")
    print(f"volumes      {len(volumes)}")
    if not enabled:
        print(f"PROBLEM      the plugin is disabled: docker plugin enable {NAME}")
    return 0 if enabled else 1


def _docker(docker: Docker, *words: str) -> None:
    """Run the `docker` command. Raises S3volError with its own line."""
    program = shutil.which("docker")
    if program is None:
        raise S3volError("the docker command is missing: install the package docker.io (or docker-cli)")
    command: Sequence[str] = [program, "--host", f"unix://{docker.socket}", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_DOCKER_S, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["failed"])[-1]
        raise S3volError(f"docker {' '.join(words[:2])}: {said}")
