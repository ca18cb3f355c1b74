"""The volume driver's daemon on a node, as an administrator sets it up, and the cable to the bucket if there is one.

The daemon reads /etc/s3vol/plugin.toml and a credentials file of the node, and nothing of this machine's environment.
The bucket is on the tests' MinIO, reached through a relay, so that a test cuts one node off without disturbing others.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3vol import mounts
from tests.docker.node import Node, Process
from tests.docker.tap import Tap, post
from tests.support.minio import ACCESS_KEY, REGION, SECRET_KEY, Minio, wait_for

SOCKET = "/run/docker/plugins/s3vol.sock"
BEHIND = "/run/s3vol/behind.sock"
"""Where the driver listens when a tap has its usual place."""
MOUNTS = "/var/lib/s3vol/mounts/"
START_S = 30.0
IDLE_S = 60.0
PORT = 9000
_CREDENTIALS = f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"


class Cable:
    """The way from a network namespace to MinIO: whole, silent, or cut."""

    def __init__(self, node: Node, minio: Minio, address: str = "127.0.0.1") -> None:
        self.endpoint = f"http://{address}:{PORT}"
        self._arguments = [str(node.init), address, str(PORT), str(minio.port)]
        self._process: subprocess.Popen[str] | None = None

    def connect(self) -> None:
        """Whole."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.docker.relay", *self._arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n"

    def cut(self) -> None:
        """The server is down: connections are refused."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """The server hangs: connections are accepted, and nobody answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Cut for a while."""
        self.cut()
        try:
            yield
        finally:
            self.connect()


class Plugin:
    """The daemon `s3vol-plugin` on one node. `tap` is there when it was asked for.

    `login` is that of a cluster, where the registry is in IPFS and there is no `endpoint`.
    """

    def __init__(
        self, node: Node, source: str, endpoint: str = "", *, login: str = "", tapped: bool = False, **settings: object
    ) -> None:
        self.node = node
        self._tapped = tapped
        self._source = source
        self._servers = {"endpoint": endpoint, "region": REGION} if endpoint else {}
        self._secret = login or _CREDENTIALS
        self._settings = settings
        self._process: Process | None = None
        self._tap: Tap | None = None

    @property
    def log_path(self) -> Path:
        """What the daemon wrote, in all its lives."""
        return self.node.folder / "s3vol-plugin.log"

    @property
    def log(self) -> str:
        """The same, as text."""
        return self.log_path.read_text(errors="replace")

    @property
    def tap(self) -> Tap:
        """The record of dockerd's calls."""
        assert self._tap is not None, "Plugin(tapped=True) has one"
        return self._tap

    @property
    def socket(self) -> Path:
        """The driver's own socket, seen from outside, past the tap."""
        return self.node.path(BEHIND if self._tapped else SOCKET)

    @property
    def process(self) -> Process:
        """The daemon."""
        assert self._process is not None
        return self._process

    def configure(self, **defaults: str) -> None:
        """Write the settings file and the credentials. `defaults` are options of every volume."""
        etc = self.node.path("etc/s3vol")
        (etc / "credentials.d").mkdir(parents=True, exist_ok=True, mode=0o700)
        key = etc / "credentials.d/test"
        key.write_text(self._secret)
        key.chmod(0o600)
        rows: dict[str, object] = {"source": self._source, "credentials": "test", **self._settings}
        if self._tapped:
            rows["socket"] = BEHIND
        every = {**self._servers, **defaults}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in rows.items()) + "\n[defaults]\n"
        (etc / "plugin.toml").write_text(text + "".join(f"{name} = {json.dumps(v)}\n" for name, v in every.items()))

    def launch(self) -> None:
        """Start the daemon without waiting for it."""
        if self._process is not None:
            self._process.wait(START_S)
        environment = {
            name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "S3VOL_", "XDG_"))
        }
        environment |= {"HOME": "/root", "AWS_EC2_METADATA_DISABLED": "true", "PYTHONWARNINGS": "default"}
        self._process = self.node.start([sys.executable, "-m", "s3vol_plugin"], self.log_path, environment)

    def start(self) -> Plugin:
        """Start the daemon; returns when it answers."""
        self.launch()
        wait_for(self._answers, START_S, "s3vol-plugin")
        if self._tapped:
            self._tap = self._tap or Tap(self.node.path(SOCKET), self.socket)
            self._tap.listen()
        return self

    def _answers(self) -> bool:
        if not self.process.alive():
            raise AssertionError(f"s3vol-plugin ended: {self.log[-3000:]}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            return post(self.socket, "Plugin.Activate", b"", 5.0)[0] == 200
        return False

    def stop(self) -> None:
        """SIGTERM: mounts stay."""
        self.close()
        self.process.end()

    def kill(self) -> None:
        """SIGKILL of the daemon alone."""
        self.close()
        self.process.end(signal.SIGKILL)

    def close(self) -> None:
        """Let go of what is outside of the machine."""
        if self._tap is not None:
            self._tap.close()

    def ask(self, verb: str, body: Mapping[str, object] | None = None, timeout_s: float = 130.0) -> dict[str, Any]:
        """One call at the driver's own socket; None as body is none. Raises as `tap.post`."""
        data = b"" if body is None else json.dumps(body).encode()
        reply: dict[str, Any] = json.loads(post(self.socket, f"VolumeDriver.{verb}", data, timeout_s)[1])
        return reply

    def timed_ask(self, verb: str, body: Mapping[str, object] | None = None) -> tuple[float, dict[str, Any]]:
        """Seconds that a call takes, and its reply."""
        begin = time.monotonic()
        reply = self.ask(verb, body)
        return time.monotonic() - begin, reply

    def status(self, name: str) -> dict[str, Any]:
        """`Status` of a volume."""
        found: dict[str, Any] = self.ask("Get", {"Name": name})["Volume"]["Status"]
        return found

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`s3vol ARGUMENTS` on this node, whatever its status."""
        return self.node.run(sys.executable, "-m", "s3vol", *arguments)

    def mountpoint(self, name: str) -> str:
        """Where a volume is mounted on this node; "" when it is not."""
        return str(self.ask("Get", {"Name": name})["Volume"].get("Mountpoint", ""))

    def worker(self, name: str) -> int:
        """Process id (from outside) of the mount process of a volume."""
        point = self.mountpoint(name)
        assert point, f"{name} is not mounted"
        found = self.node.find("s3vol", "mount", point)
        assert len(found) == 1, found
        return found[0]

    def mounted(self) -> list[str]:
        """Mount points of volumes on this node, dead ones too."""
        return [path for path in self.node.mounts(mounts.TYPE) if path.startswith(MOUNTS)]

    def await_idle(self, timeout_s: float = IDLE_S) -> None:
        """Wait until nothing is mounted and no mount process runs."""

        def idle() -> bool:
            return not self.mounted() and not self.node.find("-m", "s3vol", "mount")

        try:
            wait_for(idle, timeout_s, "no volume mounted")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.mounted()} {self.log[-3000:]}") from None
