"""`s3vol volume` as it is typed, and the deletion of objects below it: on a directory and a real MinIO."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from s3vol.cli import main
from s3vol.errors import Rejected, UsageError
from s3vol.mounts import mount_table
from s3vol.store.memory import MemoryBucket
from s3vol_plugin import import_mount, removal
from s3vol_plugin.access import open_registry
from s3vol_plugin.options import load_settings
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.volume import Volume
from tests.plugin.backends import KINDS, NamedMemoryStore, backend
from tests.support.minio import ACCESS_KEY, REGION, SECRET_KEY, Minio, wait_for


class Terminal:
    """A shell of one node: runs commands, and knows what they said."""

    def __init__(self, source: str, environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        self.source = source
        self.environment = {"S3VOL_PLUGIN_SOURCE": source, "S3VOL_PLUGIN_NODE": "n1", **environment}
        self._capsys = capsys

    def __call__(self, *words: str, status: int = 0) -> str:
        """What `s3vol volume WORDS` printed; on a failure the one line of its complaint."""
        found = main(["volume", *words])
        out, error = self._capsys.readouterr()
        assert found == status, out + error
        if status == 2:
            assert out == ""
            assert error.count("\n") == 1
        return out + error

    def registry(self, work: Callable[[BucketRegistry], Any], node: str = "n2") -> Any:
        """What another node does."""

        async def run() -> Any:
            async with open_registry(load_settings(None, self.environment)) as store:
                return await work(BucketRegistry(store, node, None))

        return trio.run(run)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.minio)])
def volume(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Terminal:
    """A node with an empty registry."""
    environment: dict[str, str] = {}
    if request.param == "s3":
        server: Minio = request.getfixturevalue("minio")
        source = f"s3://{server.new_bucket()}/vols"
        environment = {"S3VOL_PLUGIN_ENDPOINT": server.endpoint, "S3VOL_PLUGIN_REGION": REGION}
        environment |= {"S3VOL_PLUGIN_CREDENTIALS_DIRECTORY": str(tmp_path), "S3VOL_PLUGIN_CREDENTIALS": "test"}
        keys = tmp_path / "test"
        keys.write_text(f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n")
        keys.chmod(0o600)
    else:
        (tmp_path / "registry").mkdir()
        source = f"file://{tmp_path}/registry"
    terminal = Terminal(source, environment, capsys)
    for name, value in terminal.environment.items():
        monkeypatch.setenv(name, value)
    return terminal


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with two files."""
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    (root / "d/f").write_bytes(b"content")
    (root / "top").write_bytes(b"")
    return root


def test_a_volume_is_created_listed_inspected_removed_and_brought_back(volume: Terminal) -> None:
    assert volume("ls") == "NAME  SOURCE  CREATED  MOUNTED-ON\n"
    assert volume("create", "web", "-o", "cache-size=2G", "-o", "ro") == "web\n"
    assert volume("create", "web", "-o", "ro=1", "-o", "cache_size=2G") == "web\n"  # the same again is that one
    rows = volume("ls").splitlines()
    assert rows[1].split()[:2] == ["web", f"{volume.source}/web"]
    assert rows[1].endswith("-")
    shown = json.loads(volume("inspect", "web"))
    assert (shown["options"], shown["created_by"]) == ({"cache-size": "2G", "mode": "readonly"}, "n1")
    assert (shown["mounted_on"], shown["on_remove"]) == ([], "retain")
    assert "its objects are kept" in volume("rm", "web")
    assert json.loads(volume("ls", "--json")) == {"volumes": [], "damaged": []}
    assert "(removed " in volume("ls", "--all")
    assert "s3vol volume undelete web" in volume("create", "web", "-o", "ro", status=2)
    assert "web is back" in volume("undelete", "web")
    again = json.loads(volume("inspect", "web"))
    assert again == shown


@pytest.mark.parametrize("volume", ["file"], indirect=True)
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["create", "../x"], "a name is 1 to 128"),
        (["create", "web", "-o", "cache-sise=1G"], "did you mean cache-size?"),
        (["create", "web", "-o", "secret-key=hunter2"], "credentials=NAME"),
        (["create", "web", "-o", "uid=1", "-o", "uid=2"], "given twice"),
        (["inspect", "none"], "no such volume"),
        (["rm", "none"], "no such volume"),
        (["undelete", "none"], "no such volume"),
        (["delete", "none"], "no such volume"),
        (["import", "none", "/"], "no such volume"),
        (["import", "none", "/no/such/directory"], "is no directory"),
        (["import", "none", "/", "-o", "ro"], "is for --create"),
        (["import", "a", "/", "--rereed"], "did you mean reread?"),
        (["ls", "--registry", "/x"], "did you mean file:///x"),
        (["create"], "required: name"),
        (["burn", "web"], "invalid choice: 'burn'"),
    ],
)
def test_what_is_wrong_is_answered_in_one_line_and_nothing_is_made(
    volume: Terminal, words: list[str], says: str
) -> None:
    said = volume(*words, status=2)
    assert says in said
    assert "hunter2" not in said
    assert json.loads(volume("ls", "--all", "--json"))["volumes"] == []


def test_without_a_registry_it_is_said_where_to_write_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("S3VOL_PLUGIN_SOURCE", raising=False)
    assert main(["volume", "ls", "--config", str(tmp_path / "none.toml")]) == 2
    assert "no registry of volumes" in capsys.readouterr().err


def test_another_volume_of_the_name_is_not_taken_for_this_one(volume: Terminal) -> None:
    volume("create", "web")
    assert "exists already, created by n1" in volume("create", "web", "-o", "cache-size=1G", status=2)
    assert "with another on-remove" in volume("create", "web", "-o", "on-remove=delete", status=2)
    assert "same source" in volume("create", "other", "-o", "prefix=web", status=2)
    assert volume("create", "other", "-o", "prefix=web", "-o", "share=yes") == "other\n"


def test_a_volume_that_a_node_has_mounted_is_not_removed(volume: Terminal) -> None:
    volume("create", "web")
    found: Volume = volume.registry(lambda registry: registry.find("web"))
    volume.registry(lambda registry: registry.hold(found))
    for words in (["rm", "web"], ["rm", "web", "--data", "--yes"]):
        assert "is mounted on n2; stop the containers there first" in volume(*words, status=2)
    assert volume("ls").splitlines()[1].endswith("  n2")
    rows = volume("mounts").splitlines()
    assert rows[1].split()[:2] == ["n2", "web"]
    assert json.loads(volume("mounts", "--json"))[0]["volume"] == "web"
    volume.registry(lambda registry: registry.release(found))
    volume("rm", "web")


def test_a_damaged_record_is_named_and_the_others_are_listed(volume: Terminal) -> None:
    volume("create", "web")

    async def hurt(registry: BucketRegistry) -> None:
        async with open_registry(load_settings(None, volume.environment)) as store:
            await store.put(".s3vol/volumes/bad.json", b"?", metadata={})

    volume.registry(hurt)
    said = volume("ls", status=1)
    assert f"{volume.source}/web" in said
    assert "s3vol: record .s3vol/volumes/bad.json: is not a volume record" in said
    assert [row["name"] for row in json.loads(volume("ls", "--json", status=1))["damaged"]] == ["bad"]
    assert ".s3vol/volumes/bad.json" in volume("create", "bad", status=1)


def test_a_directory_is_imported_again_and_deleted(volume: Terminal, tree: Path) -> None:
    said = volume("import", "web", str(tree), "--create", "-o", "cache-size=1G")
    assert "4 entries copied (7 B), 0 were there already, 4 of 4 verified" in said
    said = volume("import", "web", str(tree), "--reread")
    assert "0 entries copied (0 B), 4 were there already, 4 of 4 verified" in said
    (tree / "d/f").write_bytes(b"changed")
    shown = json.loads(volume("import", "web", str(tree), "--json"))
    assert (shown["replaced"], shown["problems"], shown["verified"]) == (["d/f"], [], 4)
    assert json.loads(volume("mounts", "--json")) == []  # it does not hold the volume any longer
    assert "add --yes" in volume("rm", "web", "--data", status=2)
    assert "4 objects, 7 B" in volume("rm", "web", "--data", "--yes")
    assert "its data is deleted" in volume("ls", "--all")
    assert "its data was deleted" in volume("undelete", "web", status=2)
    assert "is deleted already" in volume("delete", "web", "--yes", status=2)
    assert volume("create", "web") == "web\n"
    assert "4 entries copied" in volume("import", "web", str(tree))


@pytest.mark.kernel
def test_hard_links_are_imported_as_such_where_a_mount_can_be_made_and_it_is_said_why_not(
    volume: Terminal, tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("state", "cache", "runtime"):
        monkeypatch.setenv(f"S3VOL_PLUGIN_{name.upper()}_DIRECTORY", str(tmp_path / name))
    os.link(tree / "d/f", tree / "same")
    said = volume("import", "web", str(tree), "--create")
    assert "4 entries copied (7 B), 0 were there already, 5 of 5 verified" in said
    assert "1 name was made as a hard link" in said.splitlines()
    shown, _ = json.JSONDecoder().raw_decode(volume("import", "web", str(tree), "--json"))  # progress comes after it
    assert (shown["same"], shown["linked"], shown["hard_linked_names"], shown["not_linked_because"]) == (5, [], 2, "")
    monkeypatch.setattr(import_mount, "_DEVICE", "/dev/none")
    said = volume("import", "other", str(tree), "--create")
    assert "5 entries copied (14 B), 0 were there already, 5 of 5 verified" in said
    why = "there is no /dev/none to mount the volume with"
    assert f"2 names of files with hard links became files of their own: {why}" in said.splitlines()


@pytest.mark.kernel
@pytest.mark.parametrize("volume", ["file"], indirect=True)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_import_that_is_ended_while_it_links_leaves_no_mount_and_the_next_one_finishes(
    volume: Terminal, tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sent: signal.Signals
) -> None:
    for name in ("state", "cache", "runtime"):
        monkeypatch.setenv(f"S3VOL_PLUGIN_{name.upper()}_DIRECTORY", str(tmp_path / name))
    for number in range(500):
        os.link(tree / "d/f", tree / f"{number}")
    imports = tmp_path / "state/imports"
    command = [sys.executable, "-m", "s3vol", "volume", "import", "web", str(tree), "--create"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list((tmp_path / "registry/web").glob("[0-9]*"))) > 20, 60.0, "the first links")
        process.send_signal(sent)
        out, error = process.communicate(timeout=60.0)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in error
    assert list(imports.iterdir()) == []
    assert not any(Path(mount.path).parent == imports for mount in mount_table())
    shown, _ = json.JSONDecoder().raw_decode(volume("import", "web", str(tree), "--json"))  # progress comes after it
    assert (shown["verified"], shown["copied"], shown["hard_linked_names_apart"]) == (504, 0, 0)
    assert 0 < len(shown["linked"]) < 500


def test_an_import_that_is_not_complete_says_so(volume: Terminal, tree: Path) -> None:
    (tree / "x__XLDIR__").write_bytes(b"")
    said = volume("import", "web", str(tree), "--create", status=1)
    assert "NOT COPIED: x__XLDIR__" in said
    assert "4 of 4 verified" in said


def test_data_of_a_removed_volume_is_kept_until_it_is_deleted(volume: Terminal, tree: Path) -> None:
    volume("import", "web", str(tree), "--create")
    assert "is not removed" in volume("delete", "web", "--yes", status=2)
    volume("rm", "web")
    volume("undelete", "web")
    assert "4 were there already" in volume("import", "web", str(tree))
    volume("rm", "web")
    volume("create", "taken", "-o", "prefix=web")
    assert "are those of volume taken too" in volume("delete", "web", "--yes", status=2)
    assert "4 were there already" in volume("import", "taken", str(tree))
    volume("rm", "taken")
    assert "4 objects" in volume("delete", "web", "--yes")


def test_a_deletion_asks_for_the_name(
    volume: Terminal, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    volume("import", "web", str(tree), "--create", "-o", "on-remove=delete")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "no")
    assert "nothing was done" in volume("rm", "web", status=2)
    monkeypatch.setattr("builtins.input", lambda question: "web")
    assert "4 objects" in volume("rm", "web")


@pytest.mark.minio
@pytest.mark.parametrize("volume", ["s3"], indirect=True)
def test_credentials_of_a_volume_are_those_of_its_file(minio: Minio, volume: Terminal, tree: Path) -> None:
    bucket = minio.new_bucket()
    keys = Path(volume.environment["S3VOL_PLUGIN_CREDENTIALS_DIRECTORY"]) / "bad"
    keys.write_text("[default]\naws_access_key_id=nobody\naws_secret_access_key=hunter2hunter2\n")
    keys.chmod(0o600)
    words = ["-o", f"bucket={bucket}", "-o", "credentials=bad"]
    said = volume("import", "web", str(tree), "--create", *words, status=2)
    assert "the access key is not known there" in said
    assert "hunter2" not in said
    assert "4 of 4 verified" in volume("import", "ok", str(tree), "--create", "-o", f"bucket={bucket}", "-o", "share=1")


@pytest.mark.parametrize("volume", ["s3"], indirect=True)
@pytest.mark.minio
def test_a_bucket_that_is_missing_is_made_on_demand_and_a_sticky_volume_goes_by_this_command(
    minio: Minio, volume: Terminal
) -> None:
    name = f"made-{uuid.uuid4().hex[:12]}"
    volume("create", "-o", f"bucket={name}", "-o", "create-bucket=yes", "-o", "sticky", "media")
    assert name in {bucket["Name"] for bucket in minio.client().list_buckets()["Buckets"]}
    assert json.loads(volume("inspect", "media"))["sticky"]
    assert "another sticky" in volume("create", "-o", f"bucket={name}", "media", status=2)
    volume("rm", "media")
    assert name in {bucket["Name"] for bucket in minio.client().list_buckets()["Buckets"]}


def test_the_verbs_are_in_the_help_and_the_start_loads_no_store() -> None:
    code = (
        "import sys; from s3vol.cli import parse; parse(['volume', 'ls']); "
        "sys.exit(any(name in sys.modules for name in ('trio', 'botocore', 's3vol_plugin')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Deleting objects.


@pytest.mark.parametrize("kind", KINDS)
async def test_emptying_a_store_spares_every_registry(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    async with backend(kind, tmp_path, request) as (_, open_one):
        store = await open_one("")
        spared = [".s3vol/volumes/a.json", ".s3vol/mounts/x/n1.json", "deep/.s3vol/volumes/b.json"]
        doomed = ["a", "b/", "b/c", ".s3vol/root", ".s3vol/intents/x.json", "x.s3vol/volumes/c", *map(str, range(30))]
        for key in (*spared, *doomed):
            await store.put(key, b"" if key.endswith("/") else b"1", metadata={})
        done = await removal.empty(store)
        assert (done.objects, done.kept) == (len(doomed), [])
        left = (await store.list("", delimiter=False)).objects
        assert sorted(info.key for info in left) == sorted(spared)


@pytest.mark.minio
async def test_objects_that_another_hides_are_found_as_well(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async with backend("s3", tmp_path, request) as (_, open_one):
        store = await open_one("web/")
        for key in ("a/b/c", "a/b", "a"):
            await store.put(key, b"1", metadata={})
        assert (await removal.empty(store)).objects == 3
        assert (await store.list("", delimiter=False)).objects == ()


async def test_keys_that_the_store_cannot_express_are_named() -> None:
    class Odd(NamedMemoryStore):
        async def delete(self, key: str) -> None:
            if key == "odd":
                raise Rejected("no path")
            await super().delete(key)

    store = Odd(MemoryBucket(), "")
    for key in ("odd", "even"):
        await store.put(key, b"", metadata={})
    done = await removal.empty(store)
    assert (done.objects, done.kept) == (1, ["odd"])


async def test_a_node_that_mounts_while_the_volume_is_removed_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket()
    one, two = (BucketRegistry(NamedMemoryStore(bucket, ""), node, None) for node in ("n1", "n2"))
    volume = Volume("web", uuid.uuid4().hex, "s3://memory/web", "2026-01-01T00:00:00Z", "n1", on_remove="delete")
    await one.create(volume)
    real = one.remove

    async def remove(doomed: Volume) -> None:
        await two.hold(doomed)  # between the question and the tombstone
        await real(doomed)

    monkeypatch.setattr(one, "remove", remove)  # the moment cannot be hit otherwise
    with pytest.raises(UsageError, match="is mounted on n2"):
        await removal.remove(volume, registry=one)
    assert await two.find("web") == volume
