"""What is wrong with the volume driver on this node: facts gathered from outside, judged by a pure function.

Theory of operation. The facts come from where users meet them: dockerd's API, the driver's own socket asked as dockerd
asks it, the kernel's mount tables. Nothing is asked of the daemon's inside, so that a daemon that is wedged, or gone,
is examined by the same code. Every wait is bounded; what cannot be had is a fact too.

A finding is one line with its way out. Nothing is repaired here.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3vol.errors import S3volError
from s3vol_plugin.base import Usage
from s3vol_plugin.docker_api import Container, Docker, DockerVolume, request
from s3vol_plugin.invocation import LABEL
from s3vol_plugin.kernel import Namespace, find_usages, read_namespaces
from s3vol_plugin.settings import Settings

DRIVER = "s3vol"
SKEW_MAX_S = 60.0  # S3 refuses at 900 s; leases between nodes and tombstones are counted in minutes
_ANSWER_S = 5.0  # the driver answers these from memory, within 0.2 s
_STAT_S = 2.0


@dataclass(frozen=True, slots=True)
class Served:
    """A volume as the driver itself tells of it. `status` only for those that are mounted."""

    name: str
    mountpoint: str
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found on this node. An `..._error` is empty when its part answered; then its lists are complete."""

    socket: Path
    socket_error: str
    docker_socket: Path
    docker_error: str
    served: Sequence[Served] = ()
    drivers: Sequence[str] = ()
    volumes: Sequence[DockerVolume] = ()
    containers: Sequence[Container] = ()
    dead: Sequence[Usage] = ()
    silent: Sequence[Usage] = ()
    registered: Collection[str] = ()  # names in the bucket's registry, as far as somebody could read them
    skew_s: float | None = None

    @property
    def names(self) -> set[str]:
        """All names that are known to be volumes of this driver."""
        return {*self.registered, *(volume.name for volume in self.served)}


def gather(settings: Settings, *, registered: Collection[str] = (), skew_s: float | None = None) -> Facts:
    """Ask dockerd, the driver and the kernel. Raises nothing; blocks for half a minute at worst."""
    socket_error, served = "", list[Served]()
    try:
        served = ask_driver(settings.socket)
    except S3volError as error:
        socket_error = str(error)
    docker = Docker(settings.docker_socket)
    docker_error, drivers, volumes, containers = "", list[str](), list[DockerVolume](), list[Container]()
    try:
        drivers = list(docker.volume_drivers())  # before the list of volumes, which makes dockerd load the driver
        containers = list(docker.containers())
        volumes = list(docker.volumes())
    except S3volError as error:
        docker_error = str(error)
    dead, silent = examine_mounts(read_namespaces())
    return Facts(
        socket=settings.socket,
        socket_error=socket_error,
        docker_socket=settings.docker_socket,
        docker_error=docker_error,
        served=served,
        drivers=drivers,
        volumes=volumes,
        containers=containers,
        dead=dead,
        silent=silent,
        registered=registered,
        skew_s=skew_s,
    )


def ask_driver(socket: Path) -> list[Served]:
    """The volumes that the driver lists, with their status if they are mounted. Raises S3volError."""
    if not socket.exists():
        raise S3volError("does not exist")
    listed = _call(socket, "List", {}).get("Volumes") or []
    return [_served(socket, str(item["Name"]), str(item.get("Mountpoint") or "")) for item in listed]


def _served(socket: Path, name: str, mountpoint: str) -> Served:
    if not mountpoint:
        return Served(name, "")
    volume = _call(socket, "Get", {"Name": name}).get("Volume") or {}
    return Served(name, mountpoint, volume.get("Status") or {})


def _call(socket: Path, verb: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    status, answer = request(socket, "POST", f"/VolumeDriver.{verb}", body, timeout_s=_ANSWER_S)
    if status != 200 or not isinstance(answer, dict):
        raise S3volError(f"{socket}: answers {verb} with status {status}")
    return answer


def examine_mounts(namespaces: Iterable[Namespace]) -> tuple[list[Usage], list[Usage]]:
    """Mounts of volumes, here and in containers: those whose process is gone, and those that do not answer in 2 s."""
    dead, silent = [], []
    for usage in find_usages(namespaces, lambda mount: mount.source.startswith(LABEL)):
        alive = _alive(f"/proc/{usage.pid}/root{usage.mountpoint}")
        if alive is None:
            silent.append(usage)
        elif not alive:
            dead.append(usage)
    return dead, silent


def _alive(path: str) -> bool | None:
    """Whether a mount's process is there; None when it does not say: it may be waiting for its server.

    stat() in a thread of its own: on a mount that hangs it cannot be interrupted, and is left behind.
    """
    told: list[bool] = []

    def look() -> None:
        try:
            os.stat(path)
            told.append(True)
        except OSError as error:
            told.append(error.errno not in (errno.ENOTCONN, errno.ECONNABORTED))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(_STAT_S)
    return told[0] if told else None


def judge(facts: Facts) -> list[str]:
    """One line for each finding, with the way out; none when all is well."""
    return [
        *_reach(facts),
        *_shadows(facts),
        *(
            f"dead mount at {usage.mountpoint} of process {usage.pid}: the driver replaces it within a minute; if it "
            "stays: restart that container, or on the host itself: umount -l and restart the containers that use it"
            for usage in facts.dead
        ),
        *(
            f"mount at {usage.mountpoint} of process {usage.pid} does not answer: its server is down or slow, as "
            "`Status.backend` in `docker volume inspect` says; it goes on by itself"
            for usage in facts.silent
        ),
        *_leaks(facts),
        *_clock(facts),
    ]


def _reach(facts: Facts) -> Iterable[str]:
    if facts.socket_error == "does not exist":
        yield (
            f"socket {facts.socket} is missing: `s3vol plugin install`, or if it is installed: "
            "systemctl restart s3vol-plugin.socket s3vol-plugin.service"
        )
    elif facts.socket_error:
        yield (
            f"the driver does not answer ({facts.socket_error}): systemctl restart s3vol-plugin, which leaves mounted "
            "volumes alone"
        )
    if facts.docker_error:
        yield f"dockerd was not examined ({facts.docker_error}): run this as root where dockerd runs"
    elif not facts.socket_error and DRIVER not in facts.drivers:
        yield (
            f"dockerd has not announced the driver {DRIVER}, so that a swarm finds `missing plugin` on this node: "
            "`docker volume ls` makes it load the driver"
        )


def _shadows(facts: Facts) -> Iterable[str]:
    for volume in facts.volumes:
        if volume.driver == "local" and volume.name in facts.names:
            users = [container.name for container in facts.containers if container.volumes.get(volume.name) == "local"]
            used = f" by {', '.join(sorted(users))}" if users else ""
            yield (
                f"local volume {volume.name} shadows the s3vol volume of that name, and is used{used or ' by nobody'}: "
                f"what is written there stays on this node's disk in {volume.mountpoint}. "
                + (f"Remove {', '.join(sorted(users))}, copy" if users else "Copy")
                + f" what is missing into the s3vol volume, then `docker volume rm {volume.name}`"
            )


def _leaks(facts: Facts) -> Iterable[str]:
    if facts.docker_error:
        return
    used = {name for container in facts.containers if container.running for name in container.volumes}
    for volume in facts.served:
        references, in_use = volume.status.get("refs"), volume.status.get("in_use")
        if isinstance(references, int) and references > 0 and not in_use and volume.name not in used:
            yield (
                f"volume {volume.name} counts {references} references and nothing uses it: the driver lets it go "
                "within some minutes by itself; if it does not: systemctl restart s3vol-plugin"
            )


def _clock(facts: Facts) -> Iterable[str]:
    if facts.skew_s is not None and abs(facts.skew_s) > SKEW_MAX_S:
        yield (
            f"this node's clock differs from the S3 server's by {facts.skew_s:+.0f} s; at 900 s every request is "
            "refused: use NTP"
        )
