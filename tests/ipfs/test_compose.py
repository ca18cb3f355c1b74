"""docker-compose.ipfs.yml: what docker-compose reads, and what its scripts make of real daemons on two machines.

The containers' images are not needed for it: both scripts are plain sh, and run here with the programs of the tests.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio

from s3vol.commands.doctor_ipfs import Facts, datastore_of, judge
from s3vol.errors import S3volError
from s3vol.store.ipfs.base import KuboInfo, RepoStat
from s3vol.store.ipfs.cluster import ClusterPeer
from s3vol.store.ipfs.kubo import settings
from tests.support import ipfs_binaries
from tests.support.ipfs import Daemon, request
from tests.support.minio import wait_for
from tests.support.netns import Machine

pytestmark = pytest.mark.ipfs

FILE = Path(__file__).parents[2] / "docker-compose.ipfs.yml"
WAIT_S = 60.0
KEYS = {"IPFS_SWARM_KEY": secrets.token_hex(32), "CLUSTER_SECRET": secrets.token_hex(32), "CLUSTER_PASSWORD": "secret"}


def service(name: str) -> str:
    """The text of one service."""
    found = re.search(rf"^  {name}:\n((?:    .*\n|\n)+)", FILE.read_text(), re.MULTILINE)
    assert found, f"no service {name}"
    return found[1]


def script(name: str) -> str:
    """What the service runs."""
    found = re.search(r"^      - \|\n((?:        .*\n)+)", service(name), re.MULTILINE)
    assert found, f"service {name} runs no script"
    return textwrap.dedent(found[1]).replace("$$", "$")


def environment(name: str, values: Mapping[str, str]) -> dict[str, str]:
    """The service's variables, with `values` put in."""
    block = re.search(r"^    environment:\n((?:      .*\n)+)", service(name), re.MULTILINE)
    assert block, f"service {name} has no environment"
    rows = re.findall(r'^      (\w+): "?(.*?)"?(?: #.*)?$', block[1], re.MULTILINE)
    return {key: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: values.get(found[1], ""), value) for key, value in rows}


def compose(*words: str, **values: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose")
    assert program, "docker-compose is missing: tools/bootstrap test installs it"
    command = [program, "-f", str(FILE), *words]
    return subprocess.run(command, env={**os.environ, **values}, capture_output=True, text=True, timeout=60)


def test_docker_compose_takes_the_file_and_asks_for_the_keys() -> None:
    done = compose("config", IPFS_ADDRESS="10.0.0.1", **KEYS)
    assert done.returncode == 0, done.stderr
    assert "/ip4/10.0.0.1/tcp/9094" in done.stdout
    missing = compose("config", IPFS_ADDRESS="10.0.0.1")
    assert missing.returncode != 0
    assert "the same on all machines" in missing.stderr


class Host:
    """A machine with the two services of the file."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine()
        self.folder = folder
        self.values = {**KEYS, "IPFS_ADDRESS": self.machine.address}
        folder.mkdir()
        self.kubo = self._daemon("kubo", {})
        self.cluster = self._daemon("cluster", {})

    def _daemon(self, name: str, more: Mapping[str, str]) -> Daemon:
        programs = {
            str(Path(ipfs_binaries.ensure(program)).parent) for program in (ipfs_binaries.KUBO, ipfs_binaries.CLUSTER)
        }
        places = {"IPFS_PATH": self.folder / "kubo", "IPFS_CLUSTER_PATH": self.folder / "cluster"}
        for place in places.values():
            place.mkdir(exist_ok=True)
        variables = {
            "PATH": ":".join([*sorted(programs), "/usr/bin", "/bin"]),
            "HOME": str(self.folder),
            **environment(name, {**self.values, **more}),
            **{key: str(place) for key, place in places.items()},
        }
        command = [*self.machine.enter, "setpriv", "--pdeathsig", "KILL", "--", "sh", "-ec", script(name)]
        return Daemon(command, variables, self.folder / f"{name}.log")

    def serves(self) -> bool:
        """True when both answer."""
        assert self.kubo.running
        assert self.cluster.running
        try:
            self.rpc("id")
            trio.run(self.facts)
        except (OSError, S3volError):
            return False
        return True

    def rpc(self, command: str) -> bytes:
        """One request to this machine's Kubo."""
        return self.machine.call(lambda: request("127.0.0.1", 5001, "POST", f"/api/v0/{command}"))

    def knows_another(self) -> bool:
        """True when Kubo and Cluster see the other machine's."""
        return (
            self.serves()
            and len(trio.run(self.facts).peers) == 2
            and bool(json.loads(self.rpc("swarm/peers"))["Peers"])
        )

    def name_peer(self, other: Host) -> None:
        """Start the Cluster peer again, with the other machine's peer in CLUSTER_PEERADDRESSES."""
        identity = json.loads((other.folder / "cluster/identity.json").read_text())["id"]
        self.cluster.stop()
        address = f"/ip4/{other.machine.address}/tcp/9096/p2p/{identity}"
        self.cluster = self._daemon("cluster", {"CLUSTER_PEERADDRESSES": address})
        self.cluster.start()

    async def facts(self) -> Facts:
        """What doctor would find."""
        url = f"http://{self.machine.address}:9094"
        peer, anonymous = ClusterPeer(url, login=("s3vol", KEYS["CLUSTER_PASSWORD"])), ClusterPeer(url)
        try:
            me = await peer.identity(timeout_s=WAIT_S)
            peers = await peer.peers(timeout_s=WAIT_S)
            with pytest.raises(S3volError, match="password"):
                await anonymous.identity(timeout_s=WAIT_S)
        finally:
            await peer.aclose()
            await anonymous.aclose()
        config = json.loads(self.rpc("config/show"))
        kubo = KuboInfo(json.loads(self.rpc("id"))["ID"], "0.43.0", settings(config))
        found = datastore_of(me.id, [self.folder / "cluster"])
        return Facts("docs", "", url, kubo, RepoStat(0, 0, 0), me, peers, datastore=found)

    def close(self) -> None:
        """Both ended, the machine gone."""
        self.cluster.kill()
        self.kubo.kill()
        self.machine.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    started: list[Host] = []
    try:
        for number in range(2):
            started.append(Host(tmp_path / f"host{number}"))
            started[-1].kubo.start()
            started[-1].cluster.start()
        yield started
    finally:
        for host in started:
            host.close()


def test_two_machines_with_this_file_are_a_swarm_that_doctor_finds_good(hosts: list[Host]) -> None:
    for host in hosts:
        wait_for(host.serves, WAIT_S, "the daemons")
    for host, other in zip(hosts, reversed(hosts), strict=True):
        host.name_peer(other)
    for host in hosts:
        wait_for(host.serves, WAIT_S, "the daemons")
        wait_for(host.knows_another, WAIT_S, "the other machine")
    for host in hosts:
        assert judge(trio.run(host.facts)) == ([], [])
