"""What `-o` means: each key is taken, or answered by one line that says why not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from s3vol import layers, units
from s3vol.commands.volume_options import markdown, plain
from s3vol.config import OPTIONS
from s3vol.errors import UsageError
from s3vol_plugin import credentials, option_table, records
from s3vol_plugin.access import mount_options
from s3vol_plugin.invocation import environment
from s3vol_plugin.options import load_settings, parse_options, wants_bucket
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume, decode, encode
from tests.plugin.rig import settings_in
from tests.support.minio import required

PAGE = Path(__file__).resolve().parents[2] / "docs" / "volume-options.md"
SETTINGS = Settings(source="s3://swarm/vols", node="n1", defaults={"endpoint": "http://minio:9000"})


def made(opts: Mapping[str, str] | None = None, name: str = "web", **changes: Any) -> Volume:
    """The volume of these options."""
    values = {name: getattr(SETTINGS, name) for name in ("source", "node", "defaults")}
    return parse_options(name, opts, Settings(**(values | changes)))


def refused(opts: Mapping[str, str], name: str = "web", **changes: Any) -> str:
    """The one line that these options are answered with."""
    with pytest.raises(UsageError) as caught:
        made(opts, name, **changes)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_bucket_is_made_only_where_it_is_asked_for_and_a_sticky_volume_says_so() -> None:
    wish = {"bucket": "media", "create_bucket": "yes", "sticky": ""}
    assert (wants_bucket(wish), wants_bucket({"bucket": "media"}), wants_bucket(None)) == (True, False, False)
    volume = made(wish)
    assert (volume.sticky, dict(volume.options), made().sticky) == (True, {}, False)
    assert decode(encode(volume), "x") == volume


@pytest.mark.parametrize("opts", [None, {}, {"access": "shared"}, {"consistency": "close-to-open"}, {"preempt": "no"}])
def test_without_options_a_volume_is_below_the_registry_s_source_under_its_name(opts: Mapping[str, str] | None) -> None:
    volume = made(opts)
    assert (volume.source, dict(volume.options), volume.credentials) == ("s3://swarm/vols/web", {}, "")
    assert (volume.on_remove, volume.share, volume.created_by, volume.removed) == ("retain", False, "n1", False)
    assert made().uuid != made().uuid
    assert decode(encode(volume), "x") == volume


@pytest.mark.parametrize(
    ("opts", "source"),
    [
        ({"prefix": "site/1"}, "s3://swarm/vols/site/1"),
        ({"path": "/site/"}, "s3://swarm/vols/site"),
        ({"subdir": "site"}, "s3://swarm/vols/site"),
        ({"bucket": "media"}, "s3://media"),
        ({"bucket": "media", "prefix": "site1"}, "s3://media/site1"),
        ({"bucket": "swarm", "prefix": "x"}, "s3://swarm/x"),
        ({"o": "bucket=media,prefix=a"}, "s3://media/a"),
    ],
)
def test_bucket_and_prefix_say_where_it_is(opts: Mapping[str, str], source: str) -> None:
    assert made(opts).source == source


@pytest.mark.parametrize(
    ("opts", "rows"),
    [
        ({"cache_size": "2G", "ATTR-TTL": "5s"}, {"cache-size": "2G", "attr-ttl": "5s"}),
        ({"write-back": "true"}, {"close": "local"}),
        ({"write_back": "0"}, {"close": "remote"}),
        ({"cache-mode": "writeback"}, {"close": "local"}),
        ({"cache-mode": "writethrough", "close": "remote"}, {"close": "remote"}),
        ({"ro": ""}, {"mode": "readonly"}),
        ({"ro": "1"}, {"mode": "readonly"}),
        ({"ro": "false"}, {}),
        ({"read-only": "yes"}, {"mode": "readonly"}),
        ({"flush-interval": "30s"}, {"dirty-age": "30s"}),
        ({"o": "ro,uid=33,nodev,nosuid,rw"}, {"mode": "readonly", "uid": "33"}),
        ({"uid": "root", "gid": "0", "umask": "077"}, {"uid": "0", "gid": "0", "umask": "077"}),
        ({"allow-other": "true", "allow_other": "1", "suid": "no", "dev": "false"}, {}),
        ({"verify-tls": "0", "exec": "no"}, {"verify-tls": "no", "exec": "no"}),
        ({"noexec": ""}, {"exec": "no"}),
        ({"endpoint": "HTTP://MINIO:9000/".lower()}, {}),
        ({"url": "https://s3.example/", "bucket": "media"}, {"endpoint": "https://s3.example"}),
    ],
)
def test_the_rest_are_rows_of_the_mount_options(opts: Mapping[str, str], rows: Mapping[str, str]) -> None:
    volume = made(opts)
    assert dict(volume.options) == rows
    mount_options(volume, SETTINGS)  # `s3vol mount` takes them all


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_row_of_the_mount_options_is_taken_ignored_or_refused_with_a_reason(name: str) -> None:
    row = OPTIONS[name]
    usual = "http://x" if row.parse is units.parse_url else "1"
    value = {"uid": "0", "gid": "0", "ca-bundle": "/ca.pem"}.get(
        name, row.parse.words[0] if hasattr(row.parse, "words") else usual
    )
    opts = {name: value, **({"backend": "ipfs"} if row.group == "IPFS" else {"bucket": "media"})}
    if name in option_table.TAKEN:
        assert "cannot be set for a volume" in refused(opts)
    else:
        assert (name in made(opts).options) == (name not in option_table.IGNORED)


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        ({"cache-sise": "1G"}, "did you mean cache-size? Valid are access, addressing"),
        ({"quite/else": "1"}, "unknown option; Valid are"),
        ({"cache-size": "much"}, "option cache-size: 'much': not a size"),
        ({"cache-size": ""}, "needs a value; write cache-size=SIZE"),
        ({"cache-dir": "/x"}, "the driver sets it"),
        ({"node": "x"}, "the driver sets it"),
        ({"log-file": "/x"}, "the driver sets it"),
        ({"profile": "prod"}, "credentials=NAME"),
        ({"dev": "yes"}, "never honoured"),
        ({"access": "exclusive"}, "option access=exclusive: not in this version"),
        ({"access": "both"}, "must be one of shared"),
        ({"preempt": "true"}, "not in this version"),
        ({"size": "10G"}, "not in this version: there are no quotas"),
        ({"snapshot": "x"}, "not in this version"),
        ({"from": "x"}, "s3vol volume import"),
        ({"sticky": "perhaps"}, "option sticky"),
        ({"backend": "file"}, "where the registry is a directory"),
        ({"consistency": "strict"}, "not in this version"),
        ({"cache-mode": "off"}, "not in this version"),
        ({"create-bucket": "true"}, "option create-bucket: needs bucket=NAME"),
        ({"write-back": "yes", "close": "remote"}, "option close: contradicts write-back"),
        ({"cache-size": "1G", "o": "cache_size=2G"}, "contradicts cache-size"),
        ({"prefix": "../x"}, "`..` component"),
        ({"prefix": "a//b"}, "empty"),
        ({"prefix": "a/.s3vol/volumes"}, "reserved"),
        ({"prefix": "x__XLDIR__"}, "__XLDIR__"),
        ({"prefix": "x" * 600}, "longer than"),
        ({"bucket": "media/site1"}, "write bucket=NAME and prefix=PATH"),
        ({"bucket": "Media"}, "no bucket name"),
        ({"endpoint": "http://other:1"}, "needs bucket=NAME"),
        ({"endpoint": "http://u:hunter2@other:1", "bucket": "abc"}, "must not hold credentials"),
        ({"endpoint": "169.254.169.254", "bucket": "abc"}, "not the URL of a server"),
        ({"ca-bundle": "ca.pem"}, "absolute path"),
        ({"on-remove": "delete", "ro": "1"}, "read-only volume does not delete"),
        ({"on-remove": "burn"}, "must be one of retain, delete"),
        ({"uid": "no-such-user-here"}, "no such user"),
        ({"credentials": "../../etc/shadow"}, "letters, digits"),
        ({"region": "eu\nx"}, "control characters"),
        ({"region": "a\\"}, "backslash"),
    ],
)
def test_what_cannot_be_is_answered_by_a_line_that_says_why(opts: Mapping[str, str], says: str) -> None:
    said = refused(opts)
    assert says in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "key",
    ["secret-key", "secret_key", "access-key", "AccessKey", "aws_secret_access_key", "password", "passwd", "token"],
)
def test_a_key_is_no_option_and_its_value_is_never_repeated(key: str) -> None:
    said = refused({key: "hunter2"})
    assert "credentials=NAME" in said
    assert "hunter2" not in said
    assert "hunter2" not in refused({"o": f"ro,{key}=hunter2"})


@pytest.mark.parametrize("name", ["../../x", "/abs", ".", "", "a\nb", "x" * 129, "a/b", "web\0", "ü"])
def test_a_hostile_name_is_refused(name: str) -> None:
    assert "a name is 1 to 128" in refused({}, name)


def test_a_name_that_no_key_can_hold_needs_a_prefix() -> None:
    assert "__XLDIR__" in refused({}, "x__XLDIR__")
    assert made({"prefix": "x"}, "x__XLDIR__").source == "s3://swarm/vols/x"


def test_volumes_without_a_name_can_be_denied() -> None:
    assert made({}, "a" * 64).source.endswith("a" * 64)
    assert "without a name" in refused({}, "a" * 64, allow_anonymous=False)
    made({}, "a" * 63, allow_anonymous=False)


def test_only_allowed_endpoints_can_be_named() -> None:
    allowed = ("https://s3.example",)
    assert made({"endpoint": "https://S3.example/", "bucket": "abc"}, allowed_endpoints=allowed).options
    assert "not one of" in refused({"endpoint": "http://169.254.169.254", "bucket": "abc"}, allowed_endpoints=allowed)
    assert made({"endpoint": "http://minio:9000"}, allowed_endpoints=allowed).source == "s3://swarm/vols/web"


def test_a_directory_as_the_registry_gives_directories_below_it(tmp_path: Path) -> None:
    root = f"file://{tmp_path}"
    assert made({}, source=root).source == f"{root}/web"
    assert made({"path": "a/b", "backend": "file"}, source=root).source == f"{root}/a/b"
    assert "..` component" in refused({"path": "../b"}, source=root)
    assert "needs bucket=NAME" in refused({"backend": "s3"}, source=root)
    assert "no buckets" in refused({"backend": "file", "bucket": "abc"}, source=root)
    assert "must not hold a %" in refused({"path": "a%41"}, source=root)
    assert made({"bucket": "media"}, source=root).source == "s3://media"


# Credentials.


def key_file(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "prod"
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


GOOD = "[default]\naws_access_key_id = AK\naws_secret_access_key = hunter2\n"


def test_named_credentials_are_checked_where_a_volume_is_created(tmp_path: Path) -> None:
    key_file(tmp_path, GOOD)
    assert made({"credentials": "prod"}, credentials_directory=tmp_path).credentials == "prod"
    keys = credentials.read(tmp_path, "prod")
    assert (keys.access_key, keys.secret_key, keys.session_token) == ("AK", "hunter2", None)
    assert "hunter2" not in repr(keys)
    assert "is not on this node; put an AWS credentials file there" in refused(
        {"credentials": "test"}, credentials_directory=tmp_path
    )


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (GOOD, 0o640, "others can read it; `chmod 600` it"),
        (GOOD, 0o604, "others can read it"),
        ("aws_secret_access_key = hunter2", 0o600, "needs a section [default]"),
        ("[prod]\naws_access_key_id = AK\naws_secret_access_key = hunter2\n", 0o600, "needs a section [default]"),
        ("[default]\naws_access_key_id =\naws_secret_access_key = hunter2\n", 0o600, "needs a section [default]"),
        ("[default]\n" + GOOD, 0o600, "needs a section"),
        ("x" * 70_000, 0o600, "larger than"),
    ],
)
def test_a_credentials_file_that_is_wrong_is_named_and_never_quoted(
    tmp_path: Path, text: str, mode: int, says: str
) -> None:
    path = key_file(tmp_path, text, mode)
    said = refused({"credentials": "prod"}, credentials_directory=tmp_path)
    assert says in said
    assert str(path) in said
    assert "hunter2" not in said


def test_a_credentials_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        if required():
            pytest.fail("only root can give a file away: run the tests as root")
        pytest.skip("OWNER OF CREDENTIALS NOT VERIFIED: only root can give a file away")
    os.chown(key_file(tmp_path, GOOD), 12345, 0)
    assert "belongs to user 12345" in refused({"credentials": "prod"}, credentials_directory=tmp_path)


def test_what_is_no_file_is_no_credentials_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "prod", 0o600)
    assert "is not a file" in refused({"credentials": "prod"}, credentials_directory=tmp_path)


# Settings of a node.


def test_settings_come_from_the_file_and_the_environment_is_stronger(tmp_path: Path) -> None:
    file = tmp_path / "plugin.toml"
    file.write_text(
        'source = "s3://swarm/"\nnode = "n7"\ncredentials = "prod"\nheal = false\n'
        'allowed-endpoints = ["https://a", "http://b:1"]\nstate_directory = "/srv/state"\n'
        '[defaults]\nendpoint = "http://minio:9000/"\ncache_size = "20G"\nwrite-back = true\n'
    )
    found = load_settings(file, {"S3VOL_PLUGIN_NODE": "n8", "S3VOL_PLUGIN_CACHE_SIZE": "1G", "S3VOL_NODE": "not ours"})
    assert (found.source, found.node, found.credentials, found.heal) == ("s3://swarm", "n8", "prod", False)
    assert found.allowed_endpoints == ("https://a", "http://b:1")
    assert found.state_directory == Path("/srv/state")
    assert found.defaults == {"endpoint": "http://minio:9000", "cache-size": "1G", "close": "local"}
    assert load_settings(tmp_path / "none.toml", {"S3VOL_PLUGIN_SOURCE": "bucket"}).source == "s3://bucket"
    assert load_settings(None, {"S3VOL_PLUGIN_CONFIG": str(file)}).node == "n7"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no registry of volumes"),
        ("source", "cannot be read"),
        ('source = "/abs"', "did you mean file:///abs"),
        ('sourc = "s3://abc"', "sourc: unknown option; did you mean source?"),
        ('source = "s3://abc"\n[default]\n', "[default]: unknown section; there is [defaults]"),
        ('source = "s3://abc"\n[defaults]\ncache-sise = "1G"', "did you mean cache-size?"),
        ('source = "s3://abc"\n[defaults]\ncache-size = "much"', "not a size"),
        ('source = "s3://abc"\n[defaults]\ncache-dir = "/x"', "cannot be set: the driver sets it"),
        ('source = "s3://abc"\n[defaults]\nsecret-key = "hunter2"', "credentials = NAME"),
        ('source = "s3://abc"\nnode = "a b"', "node: 'a b': may hold"),
        ('source = "s3://abc"\nheal = "maybe"', "not a switch"),
    ],
)
def test_settings_that_are_wrong_are_answered_with_their_place(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "plugin.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_settings(file, {})
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variable_that_is_none_is_said_and_no_mount_minds_those_of_the_driver() -> None:
    with pytest.raises(UsageError, match=r"environment S3VOL_PLUGIN_SORCE: unknown option"):
        load_settings(Path("/nonexistent"), {"S3VOL_PLUGIN_SOURCE": "abc", "S3VOL_PLUGIN_SORCE": "abc"})
    with pytest.raises(UsageError, match="no such file; S3VOL_PLUGIN_CONFIG names it"):
        load_settings(None, {"S3VOL_PLUGIN_CONFIG": "/nonexistent"})
    assert layers.environment_layers({"S3VOL_PLUGIN_ENDPOINT": "http://x"})[0].values == {}


def test_every_setting_of_the_table_is_a_setting() -> None:
    fields = set(Settings.__dataclass_fields__) - {"defaults"}
    assert {name.replace("-", "_") for name in option_table.SETTINGS} == fields
    for name, row in option_table.SETTINGS.items():
        if row.shown.startswith("/"):
            assert str(getattr(SETTINGS, name.replace("-", "_"))) == row.shown


# The page.


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == markdown(), "run `s3vol volume options --markdown > docs/volume-options.md`"


def test_every_key_is_on_the_page() -> None:
    text = PAGE.read_text()
    keys = [*option_table.NAMES, *option_table.ALIASES, *option_table.TAKEN, *option_table.MISSING]
    assert [key for key in keys if f"`{key}`" not in text] == []
    assert [name for name in (*option_table.OWN, *option_table.ROWS) if f"-o {name}=" not in plain()] == []


def test_a_word_of_an_option_is_the_same_in_capitals(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, "s3://memory")
    made = parse_options("web", {"mode": "ReadOnly"}, settings)
    assert made.options == {"mode": "readonly"}
    assert not records.writable(made)
    with pytest.raises(UsageError, match="a read-only volume does not delete"):
        parse_options("web", {"mode": "READONLY", "on-remove": "delete"}, settings)


@pytest.mark.parametrize("spelling", ["http://MINIO:9000", "http://minio:9000/"])
def test_two_spellings_of_one_server_are_one_server(tmp_path: Path, spelling: str) -> None:
    settings = settings_in(tmp_path, "s3://registry")
    options = {"bucket": "media", "endpoint": "http://minio:9000"}
    one = parse_options("one", options, settings)
    other = parse_options("other", {**options, "endpoint": spelling}, settings)
    assert records.overlap(one, other) == "equal"
    assert records.obstacle(other, one) is not None


def test_the_keys_of_a_volume_are_those_of_its_file_whatever_role_the_daemon_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path, "s3://registry")
    settings.credentials_directory.mkdir()
    file = settings.credentials_directory / "prod"
    file.write_text("[default]\naws_access_key_id=named\naws_secret_access_key=hunter2\n")
    file.chmod(0o600)
    (tmp_path / "token").write_text("token")
    base: Mapping[str, str] = {
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/machine",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    prod = parse_options("web", {"bucket": "media", "credentials": "prod"}, settings)
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, text in environment(settings, prod, base).items():
        monkeypatch.setenv(name, text)
    found = botocore.session.Session().get_credentials()
    assert found is not None
    assert found.method == "shared-credentials-file"
    assert found.access_key == "named"


def test_keys_in_the_place_of_the_name_of_their_file_are_not_repeated(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, "s3://registry")
    with pytest.raises(UsageError, match="option Credentials: ") as caught:
        parse_options("web", {"bucket": "media", "Credentials": "AKIA:hunter2"}, settings)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="CREDENTIALS: ") as caught:
        load_settings(None, {"S3VOL_PLUGIN_SOURCE": "s3://registry", "S3VOL_PLUGIN_CREDENTIALS": "AKIA:hunter2"})
    assert "hunter2" not in str(caught.value)
