"""The volume driver's registry in the pinset of real clusters, and its look at the daemons before a volume is made."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from s3vol.errors import Denied, S3volError, Unavailable, UsageError
from s3vol_plugin.access import open_registry
from s3vol_plugin.making import prepare
from s3vol_plugin.options import load_settings, parse_options
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume
from tests.support.ipfs import Swarm
from tests.support.ipfs_config import PASSWORD, USER

pytestmark = pytest.mark.ipfs

ROUNDS = 5
AGREED_S = 30.0

Machine = Callable[[int], Path]


@pytest.fixture
def machine(swarm: Swarm, tmp_path: Path) -> Machine:
    """Makes the settings file of the driver on a node: all have one registry that no other test has."""
    login = tmp_path / "swarm"
    login.write_text(f"{USER}:{PASSWORD}\n")
    login.chmod(0o600)
    source = f"ipfs://volumes-{uuid.uuid4().hex[:8]}"

    def configure(number: int) -> Path:
        node = swarm.nodes[number]
        rows = {"source": source, "node": f"n{number}", "credentials": "swarm", "credentials-directory": str(tmp_path)}
        servers = {"cluster": node.cluster_url, "kubo": node.kubo_url}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in rows.items()) + "[defaults]\n"
        file = tmp_path / f"n{number}.toml"
        file.write_text(text + "".join(f"{name} = {json.dumps(value)}\n" for name, value in servers.items()))
        return file

    return configure


def volume(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`s3vol volume WORDS` on a node."""
    command = [sys.executable, "-m", "s3vol", "volume", words[0], "--config", str(file), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert PASSWORD not in done.stdout + done.stderr
    return done


def test_a_volume_made_on_one_node_is_known_on_all_and_removed_and_brought_back(machine: Machine) -> None:
    nodes = [machine(number) for number in range(3)]
    made = volume(nodes[0], "create", "-o", "replicas=2", "docs")
    assert (made.returncode, made.stderr) == (0, "")
    shown = json.loads(volume(nodes[1], "inspect", "docs").stdout)
    assert (shown["source"], shown["options"], shown["created_by"]) == ("ipfs://docs", {"replicas": "2"}, "n0")
    assert volume(nodes[2], "create", "-o", "replicas=2", "docs").returncode == 0, "the same again is the same volume"
    other = volume(nodes[2], "create", "docs")
    assert other.returncode == 2
    assert "exists already" in other.stderr
    assert volume(nodes[2], "rm", "docs").returncode == 0
    assert "docs" not in volume(nodes[1], "ls").stdout
    assert volume(nodes[1], "undelete", "docs").returncode == 0
    assert "ipfs://docs" in volume(nodes[0], "ls").stdout
    assert "empty it in a container" in volume(nodes[0], "rm", "--data", "--yes", "docs").stderr
    assert "written through a mount only" in volume(nodes[0], "import", "docs", "/etc").stderr


async def test_nodes_that_create_one_name_at_once_agree_on_one_of_the_volumes(machine: Machine) -> None:
    every = [load_settings(machine(number), {}) for number in range(3)]

    async def create(settings: Settings, registry: BucketRegistry, name: str, made: list[Volume]) -> None:
        made.append(await registry.create(parse_options(name, {"uid": settings.node[1:]}, settings)))

    async with open_registry(every[0]) as one, open_registry(every[1]) as two, open_registry(every[2]) as three:
        stores = zip(every, (one, two, three), strict=True)
        registries = [BucketRegistry(store, settings.node, None) for settings, store in stores]
        for number in range(ROUNDS):
            made: list[Volume] = []
            async with trio.open_nursery() as nursery:
                for settings, registry in zip(every, registries, strict=True):
                    nursery.start_soon(create, settings, registry, f"docs-{number}", made)
            name = f"docs-{number}"
            with trio.fail_after(AGREED_S):  # mostly at once; on a machine under load a peer may be late
                while len({str(await registry.find(name)) for registry in registries}) > 1:  # noqa: ASYNC110 - no event
                    await trio.sleep(0.1)
            assert await registries[0].find(name) in made


async def refusal(settings: Settings) -> S3volError:
    """What a volume is refused with, in one line."""
    with pytest.raises(S3volError) as caught:
        await prepare(parse_options("docs", None, settings), {}, settings)
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)
    return caught.value


async def test_daemons_that_are_not_as_they_should_be_are_found_before_a_volume_is_made(
    machine: Machine, swarm: Swarm
) -> None:
    settings = load_settings(machine(0), {})
    await prepare(parse_options("docs", None, settings), {}, settings)

    def but(**changed: str) -> Settings:
        return dataclasses.replace(settings, defaults={**settings.defaults, **changed})

    nobody = "http://127.0.0.1:9"
    said = await refusal(but(cluster=nobody))
    assert isinstance(said, Unavailable)
    assert f"IPFS-Cluster at {nobody}" in str(said)
    said = await refusal(but(kubo=nobody))
    assert "is Kubo running, is the option kubo= its RPC?" in str(said)
    said = await refusal(but(kubo=swarm.nodes[1].kubo_url))
    assert isinstance(said, UsageError)
    assert "have to name a pair" in str(said)
    said = await refusal(dataclasses.replace(settings, credentials=""))
    assert isinstance(said, Denied)
    assert "wants another user and password" in str(said)
