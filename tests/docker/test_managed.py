"""The managed plugin on a real dockerd, as `make plugin` builds it and `s3vol plugin install --managed` installs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docker.engine import Engine
from tests.docker.node import Node
from tests.docker.plugin import Cable
from tests.docker.site import fresh
from tests.kernel.rig import Bucket
from tests.support.minio import ACCESS_KEY, SECRET_KEY, Minio, wait_for

pytestmark = pytest.mark.docker

BUILD = Path(__file__).parents[2] / "tools" / "build-plugin"
BACK_S = 45.0  # dockerd starts a plugin that was killed within a second, and that mounts again within two
_SOURCE_DATE_EPOCH = "1600000000"


@dataclass(frozen=True)
class Managed:
    """A machine whose dockerd runs the plugin."""

    node: Node
    engine: Engine
    cable: Cable
    bucket: Bucket

    def cli(self, *words: str) -> tuple[int, str]:
        """`s3vol plugin WORDS --managed` there; status, and what it said."""
        done = self.node.run(sys.executable, "-m", "s3vol", "plugin", *words, "--managed")
        return done.returncode, done.stdout + done.stderr

    def daemon(self) -> int:
        """Process id of the driver inside the plugin."""
        (pid,) = self.node.find("-m", "s3vol_plugin")
        return pid

    def volume(self, *options: str) -> str:
        """A new volume's name."""
        name = fresh()
        self.engine.docker("volume", "create", "-d", "s3vol", *(word for o in options for word in ("-o", o)), name)
        return name

    def await_content(self, container: str, path: str, content: str) -> None:
        """Wait until a file can be read in a container, and is what it must be."""

        def there() -> bool:
            done = self.engine.run("exec", container, "cat", path)
            return done.returncode == 0 and done.stdout == content

        wait_for(there, BACK_S, f"{path} in {container}")

    def object(self, key: str) -> bytes | None:
        """An object of the bucket; None when there is none."""
        try:
            return self.bucket.read(key)
        except self.bucket.client.exceptions.NoSuchKey:
            return None


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built plugin."""
    target = tmp_path_factory.mktemp("plugin") / "plugin"
    built = subprocess.run(
        [str(BUILD), str(target)],
        capture_output=True,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": _SOURCE_DATE_EPOCH},
        timeout=300,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return target


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory, minio: Minio, directory: Path) -> Iterator[Managed]:
    """The plugin, installed and enabled."""
    node = Node("managed", tmp_path_factory.mktemp("managed"))
    node.boot()
    cable = Cable(node, minio)
    try:
        cable.connect()
        _write_credentials(node)
        engine = Engine(node).start()
        engine.load_images()
        machine = Managed(node, engine, cable, Bucket(minio.new_bucket(), minio.client()))
        where = ["--registry", f"s3://{machine.bucket.name}", "--endpoint", cable.endpoint, "--credentials", "test"]
        status, said = machine.cli("install", "--directory", str(directory), *where)
        assert status == 0, said
        yield machine
        engine.stop()
    finally:
        cable.cut()
        node.close()


def _write_credentials(node: Node) -> None:
    folder = node.path("etc/s3vol/credentials.d")
    folder.mkdir(parents=True, mode=0o700)
    (folder / "test").write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    (folder / "test").chmod(0o600)


def test_the_directory_holds_no_development_tools_and_times_of_its_inputs(directory: Path) -> None:
    packages = {path.name for path in directory.rglob("*packages/*")}
    assert {"s3vol", "s3vol_fuse", "s3vol_plugin", "pyfuse3"} <= packages
    assert not {"pytest", "mypy", "hypothesis", "ruff"} & packages
    assert {int(path.lstat().st_mtime) for path in directory.rglob("*")} == {int(_SOURCE_DATE_EPOCH)}


def test_a_container_s_data_outlives_a_restart_by_hand_and_the_plugin_s_crash(managed: Managed) -> None:
    engine, volume = managed.engine, managed.volume()
    engine.sleeper("site", "-v", f"{volume}:/d", "--volume-driver", "s3vol")
    engine.sh("site", "echo closed > /d/a")
    assert managed.object(f"{volume}/a") == b"closed\n"
    engine.docker("plugin", "disable", "-f", "s3vol")
    assert managed.node.find("-m", "s3vol", "mount") == []
    engine.docker("plugin", "enable", "s3vol")
    managed.await_content("site", "/d/a", "closed\n")
    engine.sh("site", "echo after > /d/b")
    os.kill(managed.daemon(), signal.SIGKILL)  # dockerd kills its mount processes, and starts it again
    managed.await_content("site", "/d/b", "after\n")
    engine.docker("rm", "-f", "site")
    read = engine.docker("run", "--rm", "-v", f"{volume}:/d", "s3vol-busybox:1", "cat", "/d/a", "/d/b")
    assert read == "closed\nafter"
    engine.docker("volume", "rm", volume)


def test_the_journal_outlives_the_kill_10_seconds_after_a_sigterm_that_was_not_heard(managed: Managed) -> None:
    engine, volume = managed.engine, managed.volume("close=local")
    # The file is open before the server is gone: opening one asks the server.
    script = (
        "exec 3>/d/a; touch /open; until [ -e /go ]; do sleep 0.1; done; echo journaled >&3; exec 3>&-; touch /done"
    )
    command = ["sh", "-ec", f"{script}; sleep 1d"]
    engine.sleeper("writer", "-v", f"{volume}:/d", "--volume-driver", "s3vol", command=command)
    wait_for(lambda: engine.run("exec", "writer", "ls", "/open").returncode == 0, BACK_S, "the open file")
    with managed.cable.down():
        engine.sh("writer", "touch /go; until [ -e /done ]; do sleep 0.1; done")
        os.kill(managed.daemon(), signal.SIGSTOP)
        engine.docker("plugin", "disable", "-f", "s3vol")
        assert managed.node.find("-m", "s3vol_plugin") == managed.node.find("-m", "s3vol", "mount") == []
        assert managed.object(f"{volume}/a") in (None, b"")
    engine.docker("plugin", "enable", "s3vol")
    managed.await_content("writer", "/d/a", "journaled\n")
    wait_for(lambda: managed.object(f"{volume}/a") == b"journaled\n", BACK_S, "the journal in the bucket")
    engine.docker("rm", "-f", "writer")
    engine.docker("volume", "rm", volume)


def test_plugin_and_mounts_outlive_a_dockerd_with_live_restore(
    managed: Managed,
) -> None:
    engine, volume = managed.engine, managed.volume()
    engine.restart(live_restore=True)
    engine.sleeper("live", "-v", f"{volume}:/d", "--volume-driver", "s3vol")
    before = managed.daemon()
    for number, end in enumerate((engine.kill, engine.stop)):
        end()
        assert managed.daemon() == before
        engine.start()
        engine.sh("live", f"echo {number} >> /d/a")
    assert managed.daemon() == before
    assert engine.sh("live", "cat /d/a") == "0\n1"
    engine.docker("rm", "-f", "live")
    assert "in use" in engine.refused("plugin", "disable", "s3vol")
    engine.docker("volume", "rm", volume)
    engine.docker("plugin", "disable", "s3vol")
    engine.docker("plugin", "enable", "s3vol")


def test_status_says_what_dockerd_runs_and_uninstall_refuses_while_it_is_used(managed: Managed) -> None:
    engine, volume = managed.engine, managed.volume()
    status, said = managed.cli("status")
    assert status == 0
    assert re.search(r"^plugin +s3vol:latest enabled$", said, re.MULTILINE)
    engine.sleeper("user", "-v", f"{volume}:/d", "--volume-driver", "s3vol")
    status, said = managed.cli("uninstall")
    assert (status, f"volume {volume}: is used by container user" in said) == (1, True), said
    engine.docker("rm", "-f", "user")
    status, said = managed.cli("uninstall")
    assert status == 0, said
    assert engine.docker("plugin", "ls", "-q") == ""
    assert managed.object(f".s3vol/volumes/{volume}.json") is not None
    # A record that dockerd had kept would refuse every use of the name, and any other driver's volume of it
    assert engine.docker("volume", "create", volume) == volume
    engine.docker("volume", "rm", volume)
    status, said = managed.cli("status")
    assert (status, len(said.splitlines())) == (1, 1), said
