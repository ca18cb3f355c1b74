"""A real MinIO for tests: found or built, started on loopback, stopped, killed, paused and brought back.

Theory of operation. The object store under test is the program that users run, because a fake says what its author
believed. One server costs 0.5 s and 120 MB, so tests share one and take a bucket each; tests of failures start their
own. Every wait polls a condition under a deadline. All clients made here carry explicit credentials and a loopback
endpoint, so that nothing ever asks the machine's own AWS configuration.

`python -m tests.support.minio --ensure` finds or builds the binary and prints its path.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "s3vol-test"
SECRET_KEY = "s3vol-test-secret"
REGION = "us-east-1"
GO_PACKAGE = "github.com/minio/minio@latest"
IMAGE = "minio/minio:latest"

START_S = 30.0  # a healthy start takes 0.5 s; this is for a machine under load
_POLL_S = 0.02
_REPOSITORY = Path(__file__).resolve().parents[2]


class MinioMissing(RuntimeError):
    """No way to a MinIO on this machine; the message says what was tried."""


def required() -> bool:
    """True where a missing MinIO must fail the run instead of skipping tests (CI, S3VOL_REQUIRE_MINIO=1)."""
    return os.environ.get("S3VOL_REQUIRE_MINIO", "") not in ("", "0") or os.environ.get("CI", "") not in ("", "0")


def _cache_bin() -> Path:
    root = os.environ.get("S3VOL_TOOLS_DIR")
    return (Path(root) if root else _REPOSITORY / ".cache") / "bin"


def find_binary() -> str | None:
    """Path of a MinIO server binary: PATH, the cache directory, ~/go/bin."""
    places = (_cache_bin() / "minio", Path.home() / "go" / "bin" / "minio")
    return shutil.which("minio") or next((str(path) for path in places if os.access(path, os.X_OK)), None)


def _build(say: Callable[[str], None]) -> str | None:
    go = shutil.which("go")
    if go is None:
        say("no `go` to build MinIO with")
        return None
    target = _cache_bin()
    target.mkdir(parents=True, exist_ok=True)
    # The last MinIO asks for a newer Go than some machines have; GOTOOLCHAIN=auto lets `go` fetch it.
    environment = os.environ | {"GOBIN": str(target), "GOTOOLCHAIN": "auto"}
    done = subprocess.run([go, "install", GO_PACKAGE], env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        say(f"`go install {GO_PACKAGE}` failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return str(target / "minio")


def _copy_from_image(say: Callable[[str], None]) -> str | None:
    docker = shutil.which("docker")
    if docker is None:
        say("no `docker` to take MinIO's image with")
        return None
    target = _cache_bin()
    target.mkdir(parents=True, exist_ok=True)
    made = subprocess.run([docker, "create", IMAGE], capture_output=True, text=True, timeout=600)
    if made.returncode != 0:
        say(f"`docker create {IMAGE}` failed: {made.stderr.strip().splitlines()[-1:]}")
        return None
    container = made.stdout.strip()
    try:
        copy = [docker, "cp", f"{container}:/usr/bin/minio", str(target / "minio")]
        done = subprocess.run(copy, capture_output=True, text=True, timeout=600)
    finally:
        subprocess.run([docker, "rm", container], capture_output=True, timeout=60)
    if done.returncode != 0:
        say(f"`docker cp` failed: {done.stderr.strip()}")
        return None
    return str(target / "minio")


def ensure_binary() -> str:
    """`find_binary`, else built by Go, else copied out of the container image. Raises MinioMissing."""
    tried: list[str] = ["not on PATH, in the cache directory or in ~/go/bin"]
    found = find_binary() or _build(tried.append) or _copy_from_image(tried.append)
    if found is None:
        raise MinioMissing("no MinIO server: " + "; ".join(tried))
    return found


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], deadline_s: float, what: str) -> None:
    """Poll until `condition` holds; TimeoutError names `what`."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {deadline_s:g} s")
        time.sleep(_POLL_S)


def _thread_states(pid: int) -> set[str]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


class Minio:
    """One MinIO server process on 127.0.0.1 with a data directory of its own."""

    def __init__(
        self, directory: Path | None = None, *, port: int | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self._binary = ensure_binary()
        self._owned = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="s3vol-minio-"))
        self.port = port or free_port()
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._own_client: S3Client | None = None

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`, or https where `certs` holds a `public.crt` and a `private.key`."""
        return f"{'https' if self._has_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The running server's process id."""
        assert self._process is not None, "MinIO is not running"
        return self._process.pid

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.directory / "server.log"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a client process that must reach this server and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @property
    def certs(self) -> Path:
        """Where the server looks for its certificate."""
        return self.directory / "certs"

    @property
    def authority(self) -> Path:
        """The certificate that clients of https must trust: it has signed itself."""
        return self.certs / "public.crt"

    @property
    def _has_tls(self) -> bool:
        return self.authority.exists()

    def start(self) -> Minio:
        """Start, and return when the server answers its health check."""
        assert self._process is None, "MinIO is running already"
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        command = [self._binary, "server", str(data), "--address", f"127.0.0.1:{self.port}", "--quiet"]
        command += ["--console-address", "127.0.0.1:0", "--certs-dir", str(self.certs)]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MINIO_", "AWS_"))},
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "HOME": str(self.directory),
            **self._environment,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # ^C in a terminal is not for the server: what gets it tidies up with it
            )
        try:
            wait_for(self._healthy, START_S, f"MinIO on port {self.port}")
        except BaseException:
            self.kill()
            raise
        return self

    def _healthy(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"MinIO exited with {self._process.returncode}: {self.log.read_text()[-2000:]}")
        try:
            if self._has_tls:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return True
            # It calls itself ready before it knows its users; until then it answers 503 to S3 requests.
            return b" 200 " in self._first_line("/minio/health/ready") and b" 503 " not in self._first_line("/")
        except OSError:
            return False

    def _first_line(self, path: str) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
            peer.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            return peer.recv(64)

    def stop(self) -> None:
        """SIGTERM, and wait for the exit (SIGKILL after 10 s). Data stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: the crash of the server. Data stay."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a paused process would not see SIGTERM
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)

    def restart(self) -> None:
        """Stop (if running) and start on the same port and data."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections are accepted and nobody answers. Returns when every thread stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        wait_for(lambda: _thread_states(self.pid) == {"T"}, 5.0, "MinIO to stand still")

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Kill, and delete the data directory if this object made it."""
        self.kill()
        if self._owned:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Minio:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def client(
        self, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, *, verify: str | None = None, **config: Any
    ) -> S3Client:
        """A boto3 client for this server: path style, explicit credentials, one attempt per call."""
        import boto3
        from botocore.config import Config

        if verify is None and self._has_tls:
            verify = str(self.authority)
        options: dict[str, Any] = {"s3": {"addressing_style": "path"}, "retries": {"total_max_attempts": 1}}
        make: Any = boto3.session.Session().client
        made: S3Client = make(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            verify=verify,
            config=Config(**(options | config)),
        )
        return made

    def new_bucket(self, prefix: str = "test") -> str:
        """Create an empty bucket with a fresh name."""
        name = f"{prefix}-{uuid.uuid4().hex[:12]}"
        self._own_client = self._own_client or self.client()
        wait_for(lambda: self._created(name), START_S, f"bucket {name}")
        return name

    def _created(self, name: str) -> bool:
        """Create a bucket; False while the server, though healthy, answers 503: it does on a machine under load."""
        from botocore.exceptions import ClientError

        assert self._own_client is not None
        try:
            self._own_client.create_bucket(Bucket=name)
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 503:
                return False
            if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":  # made by an attempt that said 503
                raise
        return True


@contextlib.contextmanager
def paused(server: Minio) -> Iterator[None]:
    """The server does not answer within this block."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


def main() -> int:
    """Find or build the binary and print its path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ensure", action="store_true", help="find or build the server and print its path")
    parser.parse_args()
    try:
        print(ensure_binary())
    except MinioMissing as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
