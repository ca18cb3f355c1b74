"""The options table and the layers that fill it: who wins, and what is said about a mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3vol import units
from s3vol.cli import parse
from s3vol.config import OPTIONS, SHORTS, MountOptions
from s3vol.errors import UsageError
from s3vol.layers import (
    MOUNT_WORDS,
    Layer,
    config_files,
    environment_layers,
    file_layers,
    parse_list,
    resolve,
)


def flags(**values: str) -> Layer:
    return Layer(values, lambda name: f"--{name.replace('_', '-')}")


def from_list(text: str) -> Layer:
    return Layer(parse_list(text), lambda name: f"-o {name}")


def complaint(*layers: Layer) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(layers)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_any_value_every_option_has_its_default() -> None:
    assert resolve([]) == MountOptions()


def test_a_flag_beats_the_environment_beats_a_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[default]\ncache-size = "1G"\ntimeout = 10\nuploads = 2\n')
    layers = [
        flags(cache_size="3G"),
        *environment_layers({"S3VOL_CACHE_SIZE": "2G", "S3VOL_TIMEOUT": "20s"}),
        *file_layers(file, ["bucket"], required=True),
    ]
    options = resolve(layers)
    assert (options.cache_size, options.timeout, options.uploads) == (3 << 30, 20.0, 2)
    assert options.downloads == MountOptions().downloads


def test_the_section_of_the_source_beats_the_default_section(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[default]\nuploads = 2\nclose = "local"\n["s3://b/p"]\nuploads = 3\n[b]\nuploads = 4\ndownloads = 5\n'
    )
    options = resolve(file_layers(file, ["s3://b/p", "b"], required=True))
    assert (options.uploads, options.downloads, options.close) == (3, 5, "local")
    assert resolve(file_layers(file, ["other"], required=True)).uploads == 2


def test_a_short_form_on_the_command_line_beats_the_long_one_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[default]\nclose = "remote"\nread-only = true\n')
    options = resolve([flags(write_back="yes"), *file_layers(file, [], required=True)])
    assert options.close == "local"
    assert options.read_only


def test_a_short_form_and_its_opposite_in_one_place_contradict() -> None:
    assert complaint(flags(write_back="yes", close="remote")) == "--close: contradicts --write-back"
    assert resolve([flags(write_back="yes", close="local")]).close == "local"


def test_a_second_name_is_understood_in_every_place(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[default]\nsync = "replicas:4"\n')
    places = [flags(sync="replicas:1"), from_list("sync=replicas:2"), *environment_layers({"S3VOL_SYNC": "replicas:3"})]
    places += file_layers(file, [], required=True)
    assert [resolve(places[at:]).replicas for at in range(len(places))] == [1, 2, 3, 4]
    assert resolve([from_list("replicas=2,sync=replicas:2")]).replicas == 2
    assert complaint(from_list("replicas=3,sync=replicas:2")) == "-o sync: contradicts -o replicas"
    assert "write for example 2, or replicas:2" in complaint(from_list("sync=all"))
    assert parse(["mount", "--sync", "replicas:2", "ipfs://docs", "/mnt"]).given == {"replicas": "replicas:2"}


def test_hyphens_and_underscores_are_the_same_in_every_place(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[default]\nallow_other = true\nattr-ttl = 2.5\n")
    options = resolve([from_list("cache_size=1M,dirty-max=2M"), *file_layers(file, [], required=True)])
    assert (options.cache_size, options.dirty_max) == (1 << 20, 2 << 20)
    assert options.allow_other
    assert options.attr_ttl == 2.5


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (flags(cach_size="1G"), "--cach-size: unknown option; did you mean cache-size?"),
        (flags(xyzzy="1"), "--xyzzy: unknown option"),
        (flags(cache_size="lots"), "--cache-size: 'lots': not a size; write for example 512M or 10G"),
        (flags(timeout="-1"), "--timeout: '-1': not a duration; write for example 500ms, 30s or 5m"),
        (flags(umask="9"), "--umask: '9': not an octal mask; write for example 022"),
        (flags(mode="exclusiv"), "--mode: 'exclusiv': must be one of shared, readonly"),
        (flags(uid="nobody-of-this-name"), "--uid: 'nobody-of-this-name': no such user on this machine"),
        (flags(uploads="0"), "--uploads: '0': not a positive number"),
        (flags(node="a/b"), "--node: 'a/b': may hold letters, digits, dots, hyphens and underscores only, at most 63"),
        (
            flags(endpoint="minio:9000"),
            "--endpoint: 'minio:9000': not the URL of a server; write for example https://minio.example:9000",
        ),
        (from_list("alow_other"), "-o alow_other: unknown option; did you mean allow-other?"),
        (from_list("ro=no"), "-o ro: 'no': takes no value"),
    ],
)
def test_a_mistake_is_one_line_that_names_place_value_and_way_out(layer: Layer, message: str) -> None:
    assert complaint(layer) == message


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    said = complaint(flags(endpoint="https://me:secret@minio:9000"))
    assert said.endswith("must not hold credentials; they come from the AWS configuration")
    assert "secret" not in said


def test_an_option_of_a_list_without_its_value_is_named() -> None:
    with pytest.raises(UsageError, match="-o cache_size: needs a value; write cache_size=SIZE"):
        parse_list("allow_other,cache_size")


def test_a_covered_layer_is_checked_all_the_same() -> None:
    assert "environment S3VOL_UPLOADS" in complaint(flags(uploads="3"), *environment_layers({"S3VOL_UPLOADS": "x"}))


def test_a_misspelt_variable_is_an_error_and_a_foreign_one_is_not() -> None:
    with pytest.raises(UsageError, match=r"S3VOL_CACHE_SIZ: unknown option; did you mean S3VOL_CACHE_SIZE\?"):
        environment_layers({"S3VOL_CACHE_SIZ": "1G"})
    foreign = {"S3VOL_RUNTIME_DIR": "/x", "S3VOL_FAILPOINT": "x", "S3VOL_REQUIRE_MINIO": "1", "PATH": "/bin"}
    assert resolve(environment_layers(foreign)) == MountOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uploads = 3", "uploads is outside a section"),
        ("[default]\nuplods = 3", "[default] uplods: unknown option; did you mean uploads?"),
        ("[another]\nuploads = 'x'", "[another] uploads: 'x': not a positive number"),
        ("[default", "cannot be read"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_section(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        file_layers(file, [], required=False)
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    assert file_layers(tmp_path / "none.toml", [], required=False) == []
    with pytest.raises(UsageError, match="no such configuration file"):
        file_layers(tmp_path / "none.toml", [], required=True)


def test_the_user_s_file_comes_before_the_system_s() -> None:
    assert config_files({"XDG_CONFIG_HOME": "/x"}) == [Path("/x/s3vol/config.toml"), Path("/etc/s3vol/config.toml")]
    assert config_files({"HOME": "/h"})[0] == Path("/h/.config/s3vol/config.toml")


def test_what_fstab_says_to_mount_is_not_said_to_us() -> None:
    text = "rw,noauto,nofail,_netdev,user,x-systemd.automount,x-mount.mkdir=0755,comment=mine,defaults,noatime"
    assert parse_list(text) == {}
    assert not MOUNT_WORDS & {*OPTIONS, *(short.name for short in SHORTS)}


def test_a_comma_in_a_value_is_escaped() -> None:
    assert parse_list(r"profile=a\,b,ro") == {"profile": "a,b", "ro": "yes"}


def test_words_can_be_left_out_of_a_list() -> None:
    assert parse_list("dev,suid,uploads=2", ignore=frozenset({"dev", "suid"})) == {"uploads": "2"}


def test_mount_s_words_for_devices_and_programs_are_understood() -> None:
    options = resolve([from_list("dev,suid,noexec")])
    assert (options.dev, options.suid, options.exec) == (True, True, False)
    default = MountOptions()
    assert (default.dev, default.suid, default.exec) == (False, False, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("4096", 4096), ("512K", 512 << 10), ("1.5g", 3 << 29), ("10GiB", 10 << 30), ("2 TB", 2 << 40)],
)
def test_sizes_are_powers_of_1024(text: str, value: int) -> None:
    assert units.parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("30", 30), ("500ms", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("1.5d", 129600)]
)
def test_durations_are_seconds_unless_they_say_otherwise(text: str, value: float) -> None:
    assert units.parse_duration(text) == value


def outcome(work: Callable[[], object], *kinds: type[Exception]) -> str | None:
    """What the exception says when one of these kinds was raised; any other goes through."""
    try:
        work()
    except kinds as error:
        return str(error)
    return None


@given(st.text())
@example("~nobody-of-this-name/x")
def test_no_text_makes_a_parser_fail_in_another_way_than_it_promises(text: str) -> None:
    for row in OPTIONS.values():
        assert outcome(partial(row.parse, text), ValueError) != ""


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.text(max_size=8)))
def test_any_values_resolve_or_are_refused_in_one_line(values: Mapping[str, str]) -> None:
    said = outcome(lambda: resolve([Layer(values, lambda name: f"--{name}")]), UsageError)
    assert said is None or "\n" not in said


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_bytes_are_shown_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert units.format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (185, "3m05s"), (7620, "2h07m"), (352800, "4d02h")]
)
def test_spans_are_shown_in_two_units(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text
