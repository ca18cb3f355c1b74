"""Make dockerd forget the volumes of this driver on one node, and nothing else.

Theory of operation. dockerd keeps a record of each volume that it has seen, and has no call that drops only that:
`docker volume rm` asks the driver to remove the volume, which would remove it for all nodes. Records that stay cost 15
s each whenever dockerd starts without the driver, and volumes of these names cannot be made again (rexray#1357). But
dockerd drops a record when the driver says that there is no such volume. So for a moment a driver answers in our place
that knows none, and dockerd is asked about each. Nothing is asked of the registry, and no data is touched. Seen with
dockerd 20.10: a volume takes 25 ms, and the next start of dockerd waits for nothing. Until then dockerd keeps the
driver's address, and volume commands wait 15 s for it: nothing but a restart makes it forget that.

Only for an uninstallation: the real driver must not run, and no container may refer to its volumes.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socketserver
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s3vol.errors import NotFound, S3volError
from s3vol_plugin.docker_api import Docker

_ANSWERS: Mapping[str, Mapping[str, Any]] = {
    "/Plugin.Activate": {"Implements": ["VolumeDriver"]},
    "/VolumeDriver.Capabilities": {"Capabilities": {"Scope": "global"}},
    "/VolumeDriver.Get": {"Err": "no such volume"},
    "/VolumeDriver.List": {"Volumes": []},
}
_OTHERWISE = {"Err": "s3vol is being uninstalled"}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer a call of the driver's protocol."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps(_ANSWERS.get(self.path, _OTHERWISE)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: a unix socket's peer has no address, which the inherited one wants to print."""


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def knowing_none(socket: Path) -> Iterator[None]:
    """A driver at `socket` that knows no volume. The socket is gone afterwards. Raises S3volError."""
    socket.unlink(missing_ok=True)
    try:
        server = _Server(str(socket), _Handler)
    except OSError as error:
        raise S3volError(f"{socket}: {error.strerror or error}") from None
    os.chmod(socket, 0o600)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        socket.unlink(missing_ok=True)


def forget(docker: Docker, socket: Path, names: Sequence[str]) -> Sequence[str]:
    """Make dockerd forget the volumes `names`; returns those that it still has. Raises S3volError."""
    left = []
    with knowing_none(socket):
        for name in names:
            try:
                docker.volume(name)
                left.append(name)
            except NotFound:
                continue
    return left
