"""Options of volumes in IPFS: what they mean, what they refuse, and where the login of a cluster goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from s3vol.config import OPTIONS
from s3vol.errors import UsageError
from s3vol.store.settings import parse_source
from s3vol_plugin import records, removal
from s3vol_plugin.access import mount_options, peer_of
from s3vol_plugin.invocation import arguments, environment
from s3vol_plugin.options import load_settings, parse_options
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume, decode, encode

PASSWORD = "hunter2"
OTHER = "http://10.0.0.9:9094"


@pytest.fixture
def node(tmp_path: Path) -> Settings:
    """A node whose registry is in the pinset, and whose cluster has a login."""
    for name in ("swarm", "other"):
        file = tmp_path / name
        file.write_text(f"{name}:{PASSWORD}\n")
        file.chmod(0o600)
    return Settings(
        source="ipfs://volumes",
        node="n1",
        credentials="swarm",
        credentials_directory=tmp_path,
        state_directory=tmp_path / "state",
        cache_directory=tmp_path / "cache",
        defaults={"cluster": "http://10.0.0.1:9094", "cluster-url": "http://10.0.0.1:9094", "region": "eu"},
    )


def made(node: Settings, opts: Mapping[str, str] | None = None, name: str = "docs", **changes: Any) -> Volume:
    """The volume of these options."""
    return parse_options(name, opts, dataclasses.replace(node, **changes))


def refused(node: Settings, opts: Mapping[str, str], **changes: Any) -> str:
    """The one line that these options are answered with."""
    with pytest.raises(UsageError) as caught:
        made(node, opts, **changes)
    said = str(caught.value)
    assert "\n" not in said
    assert PASSWORD not in said
    return said


def words(node: Settings, volume: Volume) -> dict[str, str]:
    """The options of a volume's mount command."""
    given = arguments(node, volume, root=True)
    return dict(given[at + 1].split("=", 1) for at, word in enumerate(given) if word == "-o")


def test_the_short_form_is_a_volume_of_that_name_on_the_node_s_own_daemons(node: Settings) -> None:
    volume = made(node, {"backend": "ipfs"})
    assert (volume.source, dict(volume.options), volume.credentials) == ("ipfs://docs", {}, "")
    assert made(node).source == "ipfs://docs", "where the registry is in IPFS, volumes are"
    assert made(node, {"backend": "ipfs"}, source="s3://swarm", credentials="").source == "ipfs://docs"
    assert decode(encode(volume), "x") == volume
    usual = peer_of(volume, dataclasses.replace(node, defaults={}))
    assert (usual.cluster, usual.kubo) == (OPTIONS["cluster"].shown, OPTIONS["kubo"].shown)


def test_options_say_which_daemons_it_is_on_and_how_it_is_kept(node: Settings) -> None:
    given = {"cluster": f"{OTHER}/", "kubo": "http://10.0.0.9:5001", "replicas": "2", "heads": "local", "uid": "33"}
    volume = made(node, {"backend": "ipfs", **given, "cache-size": "1G"})
    assert dict(volume.options) == {**given, "cluster": OTHER, "cache-size": "1G"}
    found = peer_of(volume, node)
    assert (found.cluster, found.kubo, found.replicas, found.ask_writers) == (OTHER, given["kubo"], 2, False)


def test_replicas_may_be_said_as_what_a_sync_waits_for(node: Settings) -> None:
    assert made(node, {"sync": "replicas:2"}).options == made(node, {"replicas": "2"}).options == {"replicas": "2"}
    assert "contradicts" in refused(node, {"sync": "replicas:2", "replicas": "3"})
    assert "not a positive number; write for example 2, or replicas:2" in refused(node, {"sync": "all"})


def test_daemons_that_are_the_node_s_own_are_not_recorded(node: Settings) -> None:
    given = {"cluster": "http://10.0.0.1:9094/", "kubo": OPTIONS["kubo"].shown}
    assert made(node, {"backend": "ipfs", **given}).options == {}


def test_bucket_and_prefix_name_a_volume_in_ipfs_and_a_directory_in_it(node: Settings) -> None:
    assert made(node, {"backend": "ipfs", "bucket": "Docs_1", "prefix": "a/b"}).source == "ipfs://Docs_1/a/b"
    assert made(node, {"prefix": "a"}).source == "ipfs://docs/a"
    assert made(node, {"bucket": "media"}).source == "s3://media", "a bucket is a bucket unless backend=ipfs is said"
    assert made(node, name="f" * 64).source == f"ipfs://{'f' * 64}", "volumes without a name have such names"


def test_whoever_makes_the_same_volume_makes_the_same_record(node: Settings) -> None:
    one = made(node, {"backend": "ipfs", "uid": "33"})
    assert made(dataclasses.replace(node, node="n2"), {"uid": "33"}).uuid == one.uuid
    assert made(node, {"uid": "34"}).uuid != one.uuid
    assert made(node, {"uid": "33"}, name="other").uuid != one.uuid
    assert made(node, {"bucket": "media"}).uuid != made(node, {"bucket": "media"}).uuid


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        ({"endpoint": "http://minio:9000"}, "option endpoint: is for a volume in a bucket"),
        ({"region": "eu"}, "option region: is for a volume in a bucket"),
        ({"sse": "aes256"}, "option sse: is for a volume in a bucket"),
        ({"bucket": "media", "backend": "s3", "replicas": "2"}, "option replicas: is for a volume with backend=ipfs"),
        ({"cluster-url": OTHER}, "another one on each node"),
        ({"cluster-login": "/etc/shadow"}, "write credentials=NAME"),
        ({"create-bucket": "yes", "bucket": "abc", "backend": "ipfs"}, "made by its first change"),
        ({"on-remove": "delete"}, "a volume in IPFS is kept"),
        ({"cluster": f"http://u:{PASSWORD}@x"}, "must not hold credentials"),
        ({"cluster": "ftp://x"}, "not the URL of a server"),
        ({"kubo": "/ip4/127.0.0.1/tcp/5001"}, "not the URL of a server"),
        ({"bucket": "a/b", "backend": "ipfs"}, "write bucket=NAME"),
        ({"bucket": "_x", "backend": "ipfs"}, "is no name of a volume"),
        ({"prefix": "../x"}, "`..` component"),
        ({"credentials": "nosuch"}, "put one line USER:PASSWORD there"),
    ],
)
def test_what_cannot_be_is_answered_by_a_line_that_says_why(node: Settings, opts: Mapping[str, str], says: str) -> None:
    assert says in refused(node, opts)


def test_only_allowed_servers_can_be_named(node: Settings) -> None:
    given = {"cluster": OTHER}
    assert "not one of" in refused(node, given, allowed_endpoints=("http://10.0.0.8:9094",))
    assert made(node, given, allowed_endpoints=(OTHER,)).options == given
    assert made(node, {"cluster": node.defaults["cluster"]}, allowed_endpoints=(OTHER,)).options == {}


def test_a_login_is_a_file_in_the_mount_s_command_and_nowhere_its_content(node: Settings) -> None:
    volume = made(node, {"credentials": "other"})
    given = words(node, volume)
    assert given["cluster-login"] == str(node.credentials_directory / "other")
    everything = f"{arguments(node, volume, root=True)} {environment(node, volume, {})} {encode(volume)!r} {volume}"
    assert PASSWORD not in everything


def test_the_node_s_login_goes_to_the_node_s_cluster_only(node: Settings) -> None:
    own = str(node.credentials_directory / "swarm")
    assert words(node, made(node))["cluster-login"] == own
    assert words(node, made(node, {"cluster": node.defaults["cluster"]}))["cluster-login"] == own
    assert "cluster-login" not in words(node, made(node, {"cluster": OTHER}))
    assert peer_of(made(node, {"cluster": OTHER}), node).login_file is None
    named = made(node, {"cluster": OTHER, "credentials": "other"})
    assert words(node, named)["cluster-login"] == str(node.credentials_directory / "other")


def test_beside_a_registry_in_a_bucket_the_node_s_login_is_an_option_of_the_node(node: Settings) -> None:
    beside = dataclasses.replace(
        node, source="s3://swarm", credentials="keys", defaults={**node.defaults, "cluster-login": "/etc/login"}
    )
    volume = made(beside, {"backend": "ipfs"})
    assert words(beside, volume)["cluster-login"] == "/etc/login"
    assert "cluster-login" not in words(beside, made(beside, {"backend": "ipfs", "cluster": OTHER}))
    assert "AWS_SHARED_CREDENTIALS_FILE" not in environment(beside, volume, {})


def test_a_node_s_defaults_for_other_kinds_of_store_are_left_out(node: Settings) -> None:
    assert "region" not in words(node, made(node))
    bucket = made(node, {"bucket": "media"})
    assert words(node, bucket)["region"] == "eu"
    assert not {"cluster", "cluster-url", "cluster-login"} & set(words(node, bucket))
    assert "AWS_SHARED_CREDENTIALS_FILE" not in environment(node, bucket, {}), "the node's credentials are a login"
    assert mount_options(bucket, node).region == "eu"


@pytest.mark.parametrize("text", ["", "user", "user:", ":x", "a:b\nc:d", "[default]\naws_access_key_id = a:b\n"])
def test_a_login_file_of_another_form_is_named_and_never_quoted(node: Settings, text: str) -> None:
    (node.credentials_directory / "other").write_text(text)
    said = refused(node, {"credentials": "other"})
    assert "needs one line USER:PASSWORD" in said
    assert str(node.credentials_directory / "other") in said


def test_a_login_file_that_others_can_read_is_refused(node: Settings) -> None:
    (node.credentials_directory / "other").chmod(0o644)
    assert "others can read it; `chmod 600` it" in refused(node, {"credentials": "other"})


def test_settings_of_a_node_say_where_its_daemons_are(tmp_path: Path) -> None:
    file = tmp_path / "plugin.toml"
    file.write_text(
        'source = "ipfs://volumes"\ncredentials = "swarm"\n'
        '[defaults]\ncluster = "http://10.0.0.1:9094/"\ncluster_url = "http://10.0.0.1:9094/"\nreplicas = 2\n'
    )
    found = load_settings(file, {})
    assert found.source == "ipfs://volumes"
    assert found.defaults == {"cluster": "http://10.0.0.1:9094", "cluster-url": "http://10.0.0.1:9094", "replicas": "2"}
    assert found.registry_place == "ipfs://volumes at http://10.0.0.1:9094"


def test_objects_of_a_volume_in_ipfs_are_not_deleted_by_s3vol(node: Settings) -> None:
    with pytest.raises(UsageError, match="empty it in a container"):
        removal.check_deletable(made(node))
    removal.check_deletable(made(node, {"bucket": "media"}))


def test_a_volume_of_ipfs_is_no_neighbour_of_one_at_another_cluster(node: Settings) -> None:
    one = made(node)
    assert parse_source(one.source).kind == "ipfs"
    assert records.overlap(one, made(node, {"bucket": "docs", "backend": "ipfs"}, name="other")) == "equal"
    assert records.overlap(one, made(node, {"cluster": OTHER, "bucket": "docs", "backend": "ipfs"})) == ""
