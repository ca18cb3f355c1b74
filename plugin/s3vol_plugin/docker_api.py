"""HTTP to a process behind a unix socket: dockerd's API, and the driver's own socket as dockerd would ask it.

Theory of operation. Synchronous, one connection a request, so that a thread that is given up on leaves nothing behind
but itself. `timeout_s` bounds each silence: dockerd answers all that is asked here in one piece, so it bounds the call.
dockerd must never be asked on the way of a call that dockerd waits for (docs/docker.md: a driver and an engine that
wait for each other is how whole nodes have stopped); whoever calls this does so in the background or from a command.

Paths carry no API version: dockerd then answers with its own, and nothing here has changed since 1.24.

Rejected: the `docker` package (a dependency for eight requests), and the `docker` command, which is often not installed
where dockerd is, and reads contexts and variables that name another engine.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from s3vol.errors import NotFound, Rejected, S3volError, Unavailable

TIMEOUT_S = 20.0  # with a driver of its own that is down, dockerd answers `GET /volumes` after 15 s
_ANSWER_MAX_BYTES = 64 << 20


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket. The path goes through /proc/self/fd: a socket's address holds 107 bytes at most."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect, as HTTPConnection does it for TCP."""
        directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(self.timeout)
            peer.connect(f"/proc/self/fd/{directory}/{self._path.name}")
        except BaseException:
            peer.close()
            raise
        finally:
            os.close(directory)
        self.sock = peer


def request(
    path: Path, method: str, target: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
) -> tuple[int, Any]:
    """Status and decoded JSON (text where it is none) of one request. Raises Unavailable, naming the socket."""
    connection = _Connection(path, timeout_s)
    try:
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        connection.request(method, target, data, headers)
        answer = connection.getresponse()
        content = answer.read(_ANSWER_MAX_BYTES).decode(errors="replace")
        status = answer.status
    except TimeoutError:
        raise Unavailable(f"{path}: no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from None
    except http.client.HTTPException as error:
        raise Unavailable(f"{path}: closed without an answer ({type(error).__name__})") from None
    finally:
        connection.close()
    try:
        return status, json.loads(content)
    except ValueError:
        return status, content.strip()


@dataclass(frozen=True, slots=True)
class DockerVolume:
    """A volume as dockerd lists it. `status` is what its driver says of it, {} in a list."""

    name: str
    driver: str
    mountpoint: str
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Container:
    """A container and the named volumes that it refers to, running or not."""

    id: str
    name: str
    running: bool
    volumes: Mapping[str, str]  # name to driver


@dataclass(frozen=True, slots=True)
class Docker:
    """One dockerd. Raises Unavailable when it does not answer, NotFound for 404, Rejected with its own line else."""

    socket: Path
    timeout_s: float = TIMEOUT_S

    def ask(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> Any:
        """The decoded answer."""
        status, answer = request(self.socket, method, target, body, timeout_s=self.timeout_s)
        if status < 400:
            return answer
        said = answer.get("message") if isinstance(answer, dict) else answer
        line = f"dockerd: {method} {target.partition('?')[0]}: {str(said).strip().splitlines()[0] if said else status}"
        raise (NotFound if status == 404 else Rejected if status < 500 else S3volError)(line)

    def info(self) -> Mapping[str, Any]:
        """`docker info`."""
        return dict(self.ask("GET", "/info"))

    def volume_drivers(self) -> Sequence[str]:
        """The drivers that this dockerd has loaded, and a swarm's scheduler knows of."""
        return [str(name) for name in (self.info().get("Plugins") or {}).get("Volume") or []]

    def volumes(self) -> Sequence[DockerVolume]:
        """`docker volume ls`: asks every driver that is loaded, and loads those that are not."""
        return [_volume(item) for item in self.ask("GET", "/volumes").get("Volumes") or []]

    def volume(self, name: str) -> DockerVolume:
        """`docker volume inspect`."""
        return _volume(self.ask("GET", f"/volumes/{quote(name, safe='')}"))

    def remove_volume(self, name: str) -> None:
        """`docker volume rm`."""
        self.ask("DELETE", f"/volumes/{quote(name, safe='')}")

    def containers(self) -> Sequence[Container]:
        """All containers, with the volumes that they refer to."""
        return [_container(item) for item in self.ask("GET", "/containers/json?" + urlencode({"all": "1"}))]

    def kick(self) -> None:
        """Make dockerd load the driver, so that a swarm's scheduler learns of it without a first use.

        Listing volumes does that; the node tells its manager within 20 s.
        """
        self.volumes()


def _volume(item: Mapping[str, Any]) -> DockerVolume:
    return DockerVolume(
        str(item.get("Name", "")),
        str(item.get("Driver", "")),
        str(item.get("Mountpoint") or ""),
        dict(item.get("Status") or {}),
    )


def _container(item: Mapping[str, Any]) -> Container:
    mounts = [mount for mount in item.get("Mounts") or [] if mount.get("Type") == "volume" and mount.get("Name")]
    names = item.get("Names") or [str(item.get("Id", ""))[:12]]
    return Container(
        id=str(item.get("Id", "")),
        name=str(names[0]).lstrip("/"),
        running=item.get("State") == "running",
        volumes={str(mount["Name"]): str(mount.get("Driver") or "") for mount in mounts},
    )


@contextlib.contextmanager
def told_as(what: str) -> Iterator[None]:
    """Put `what` before the line of an error of this module, keeping its kind."""
    try:
        yield
    except S3volError as error:
        raise type(error)(f"{what}: {error}") from None
