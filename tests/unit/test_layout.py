"""The bucket format: what other tools write is read, what we write they read."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3vol import layout
from s3vol.errors import MetadataTooLarge, NameTooLong, Rejected
from s3vol.types import NONCE, ObjectInfo

OWNER = layout.Owner(1000, 1001, 0o022)


def info(meta: dict[str, str], modified_s: int = 7) -> ObjectInfo:
    return ObjectInfo("a", 1, "e", modified_s * 10**9, meta)


def test_a_name_of_255_bytes_passes_and_one_of_256_does_not() -> None:
    assert layout.check_name(b"n" * 255) == "n" * 255
    with pytest.raises(NameTooLong):
        layout.check_name("é".encode() * 128)


def test_names_that_no_key_can_hold_faithfully_are_refused() -> None:
    for name in (b"\xff\xfe", b"dir__XLDIR__"):
        with pytest.raises(Rejected):
            layout.check_name(name)


def test_a_key_of_1024_bytes_passes_and_a_longer_one_does_not() -> None:
    assert layout.check_key("k" * 1024)
    with pytest.raises(NameTooLong):
        layout.check_key("k" * 1025)


@pytest.mark.parametrize("key", ["a", "a/b", "a/b/", "..a", "a b\n"])
def test_keys_that_are_paths(key: str) -> None:
    assert layout.is_path(key)


@pytest.mark.parametrize("key", ["a//b", "/a", "a/../b", ".", "a/./b", "a\0b", "a//", "x" * 256])
def test_keys_that_are_no_paths(key: str) -> None:
    assert not layout.is_path(key)


def test_parent_and_name_of_files_and_directories() -> None:
    assert [layout.parent_key(k) for k in ("a", "a/", "a/b", "a/b/")] == ["", "", "a/", "a/"]
    assert [layout.name_of(k) for k in ("a", "a/", "a/b", "a/b/")] == ["a", "a", "b", "b"]


def test_the_root_keeps_its_attributes_in_an_object_of_ours() -> None:
    assert layout.is_reserved(layout.marker_key(""))
    assert layout.marker_key("a/") == "a/"


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("33188", 0o100644),  # s3fs, GeeseFS
        ("16877", 0o040755),
        ("41471", 0o120777),
        ("100644", 0o100644),  # rclone
        ("40755", 0o040755),
        ("0644", 0o644),
        ("420", 0o644),
        ("", None),
        ("-1", None),
        ("rw", None),
        ("99999999", None),
    ],
)
def test_both_radices_of_the_mode_header_are_read(text: str, mode: int | None) -> None:
    assert layout.parse_mode(text) == mode


@pytest.mark.parametrize(
    ("text", "at_ns"),
    [
        ("12", 12 * 10**9),
        ("12.5", 12_500_000_000),
        ("12.000000001", 12_000_000_001),
        ("12.0000000019", 12_000_000_001),
        ("-3", -3 * 10**9),
        ("x", None),
        ("1.x", None),
        ("", None),
    ],
)
def test_times_are_read_with_any_number_of_digits(text: str, at_ns: int | None) -> None:
    assert layout.parse_ns(text) == at_ns


@given(st.integers(min_value=-(10**18), max_value=10**19))
def test_every_time_survives_its_header(at_ns: int) -> None:
    assert layout.parse_ns(layout.format_ns(at_ns)) == at_ns


def test_an_object_without_headers_belongs_to_the_mount() -> None:
    posix = layout.decode_attr(info({}), OWNER, is_dir=False)
    assert (posix.mode, posix.uid, posix.gid, posix.mtime_ns) == (stat.S_IFREG | 0o644, 1000, 1001, 7 * 10**9)
    assert layout.decode_attr(info({}), OWNER, is_dir=True).mode == stat.S_IFDIR | 0o755


def test_a_mode_that_contradicts_the_key_keeps_its_permissions_only() -> None:
    assert layout.decode_attr(info({"mode": str(0o040700)}), OWNER, is_dir=False).mode == stat.S_IFREG | 0o700
    assert layout.decode_attr(info({"mode": str(0o100600)}), OWNER, is_dir=True).mode == stat.S_IFDIR | 0o600


@given(
    st.builds(
        layout.Posix,
        mode=st.integers(0, 0o7777).map(lambda m: m | stat.S_IFREG),
        uid=st.integers(0, 2**32 - 1),
        gid=st.integers(0, 2**32 - 1),
        mtime_ns=st.integers(0, 2**62),
        ctime_ns=st.integers(0, 2**62),
        atime_ns=st.integers(0, 2**62),
    )
)
def test_attributes_survive_the_headers(posix: layout.Posix) -> None:
    meta = layout.encode_attr(posix, {"colour": "red"}, with_atime=True)
    assert meta["colour"] == "red"
    assert layout.decode_attr(info(meta), OWNER, is_dir=False) == posix


def test_a_device_carries_its_number() -> None:
    posix = layout.Posix(stat.S_IFCHR | 0o600, 0, 0, 1, 1, 1, rdev=0x103)
    assert layout.decode_attr(info(layout.encode_attr(posix, {})), OWNER, is_dir=False).rdev == 0x103


@given(st.dictionaries(st.text(min_size=1).map(lambda t: t.encode("utf-8", "replace")), st.binary(), max_size=4))
def test_extended_attributes_survive_the_header(values: dict[bytes, bytes]) -> None:
    assert layout.decode_xattr({"xattr": layout.encode_xattr(values)}) == values


@pytest.mark.parametrize("text", ["", "%", "[1]", "{not json", '{"user.a": 5}'])
def test_a_broken_xattr_header_is_no_attributes(text: str) -> None:
    assert layout.decode_xattr({"xattr": text}) == {}


def test_metadata_is_counted_as_s3_counts_it() -> None:
    layout.check_metadata({"v": "x" * (2048 - len("x-amz-meta-v") - 80)})
    with pytest.raises(MetadataTooLarge):
        layout.check_metadata({"v": "x" * (2048 - len("x-amz-meta-v") - 79)})


def test_a_conflict_name_fits_beside_its_file() -> None:
    key = "d/" + "é" * 127
    found = layout.conflict_key(key, "node", 1.25)
    assert found.startswith("d/é")
    assert len(layout.name_of(found).encode()) <= 255
    assert found.endswith(".s3vol-conflict-node-19700101T000001.250Z")


def test_a_conflict_name_that_does_not_fit_beside_its_file_is_further_up() -> None:
    ending = ".s3vol-conflict-node-19700101T000001.250Z"
    assert layout.conflict_key("a/bb/name", "node", 1.25, 6 + len(ending)) == f"a/bb/n{ending}"
    assert layout.conflict_key("a/bb/name", "node", 1.25, 5 + len(ending)) == f"a/nam{ending}"
    assert layout.conflict_key("a/bb/name", "node", 1.25, 2 + len(ending)) == f"na{ending}"


def test_the_number_of_a_key_is_always_the_same_and_never_the_roots() -> None:
    assert layout.stable_ino("a") == layout.stable_ino("a")
    assert layout.stable_ino("a") != layout.stable_ino("a/")
    assert 1 < layout.stable_ino("a") < 1 << 63


def test_a_tombstone_is_told_by_its_header() -> None:
    assert layout.is_tombstone(info({layout.TOMBSTONE: "x"}))
    assert not layout.is_tombstone(info({}))


def test_the_nonce_is_not_carried_over_to_the_next_publish() -> None:
    assert layout.without_nonce({NONCE: "n", "mode": "1"}) == {"mode": "1"}
