"""Make dockerd forget the volumes of this driver on one node, and nothing else.

Theory of operation. dockerd keeps a record of each volume that it has seen, and has no call that drops only that:
`docker volume rm` asks the driver to remove the volume, which would remove it for all nodes. Records that stay cost 15
s each whenever dockerd starts without the driver, and volumes of these names cannot be made again (rexray#1357). But
dockerd drops a record when the driver says that there is no such volume. So for a moment a driver answers in our place
that knows none, and dockerd is asked about each. Nothing is asked of the registry, and no data is touched. Seen with
dockerd 20.10: a volume takes 25 ms, and the next start of dockerd waits for nothing. Until then dockerd keeps the
driver's address, and volume commands wait 15 s for it: nothing but a restart makes it forget that.

Which records there are, dockerd says after the same 15 s when no driver runs, and at once when one cannot list its
volumes. So such a driver answers for that; asked about a volume, it hangs up, which makes dockerd forget nothing.

Only for an uninstallation: the real driver must not run, and no container may refer to its volumes.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3vol.errors import NotFound, S3volError
from s3vol_plugin.docker_api import Docker

_Answers = Mapping[str, Mapping[str, Any] | None]  # None: hang up

_DRIVER: _Answers = {
    "/Plugin.Activate": {"Implements": ["VolumeDriver"]},
    "/VolumeDriver.Capabilities": {"Capabilities": {"Scope": "global"}},
}
_KNOWING_NONE: _Answers = {
    **_DRIVER,
    "/VolumeDriver.Get": {"Err": "no such volume"},
    "/VolumeDriver.List": {"Volumes": []},
}
_UNABLE: _Answers = {**_DRIVER, "/VolumeDriver.Get": None}
_OTHERWISE = {"Err": "s3vol is being uninstalled"}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Each answer ends its connection (HTTP/1.0): the next one may be another driver's."""

    server: _Server

    def do_POST(self) -> None:
        """Answer a call of the driver's protocol, or hang up."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.answers.get(self.path, _OTHERWISE)
        if answer is None:
            return
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: a unix socket's peer has no address, which the inherited one wants to print."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, answers: _Answers) -> None:
        self.answers = answers
        super().__init__(str(path), _Handler)


@contextlib.contextmanager
def _answering(path: Path, answers: _Answers) -> Iterator[None]:
    """A driver at `path` for a while. The socket is gone afterwards. Raises S3volError."""
    path.unlink(missing_ok=True)
    try:
        server = _Server(path, answers)
    except OSError as error:
        raise S3volError(f"{path}: {error.strerror or error}") from None
    os.chmod(path, 0o600)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        path.unlink(missing_ok=True)


def recorded(docker: Docker, path: Path, driver: str) -> Sequence[str]:
    """The volumes that dockerd has a record of, whether the driver runs or not. Raises S3volError."""
    with contextlib.nullcontext() if _is_served(path) else _answering(path, _UNABLE):
        return [volume.name for volume in docker.volumes() if volume.driver == driver]


def _is_served(path: Path) -> bool:
    """True when somebody listens there: the driver, or systemd for it."""
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(str(path)) == 0


def forget(docker: Docker, path: Path, names: Sequence[str]) -> Sequence[str]:
    """Make dockerd forget the volumes `names`; returns those that it still has. Raises S3volError."""
    left = []
    with _answering(path, _KNOWING_NONE):
        for name in names:
            try:
                docker.volume(name)
                left.append(name)
            except NotFound:
                continue
    return left
