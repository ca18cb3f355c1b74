"""Keys, metadata values and ETags on the wire."""

from __future__ import annotations

import io
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3vol.errors import MetadataTooLarge, Rejected
from s3vol.store import s3_wire as wire
from s3vol.store.base import Capabilities

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=[chr(c) for c in (*range(32), 127)]))


@given(TEXT)
def test_any_text_survives_a_header(text: str) -> None:
    sent = wire.encode_value(text)
    assert sent.isascii()
    assert sent.isprintable()
    assert sent == sent.strip()  # HTTP trims
    assert wire.decode_value(sent) == text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)).filter(lambda text: "=?" not in text))
def test_plain_text_is_sent_as_it_is(text: str) -> None:
    assert wire.encode_value(text) == text


@given(TEXT.filter(lambda text: len(text) > 20))
def test_encoded_words_keep_to_75_characters(text: str) -> None:
    sent = wire.encode_value(text)
    if sent != text:
        assert all(len(word) <= 75 for word in sent.split(" "))


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("=?UTF-8?q?=C3=A9=E6=BC=A2?=", "é漢"),  # MinIO
        ("=?UTF-8?B?w6k=?=", "é"),  # AWS
        ("=?utf-8?Q?a_b?=", "a b"),
        ("=?UTF-8?q?=C3?= =?UTF-8?q?=A9?=", "é"),
        ("=?UTF-8?q?=C3?=", "=?UTF-8?q?=C3?="),  # half a character: not ours to repair
        ("=?ISO-8859-1?q?=E9?=", "=?ISO-8859-1?q?=E9?="),
        ("=?UTF-8?b?!!?=", "=?UTF-8?b?!!?="),
        ("x =?UTF-8?q?a?=", "x =?UTF-8?q?a?="),
        ("Ã©", "é"),  # raw UTF-8 that an HTTP client read as Latin-1
        ("é", "é"),
    ],
)
def test_what_others_wrote_is_read_in_their_form(sent: str, text: str) -> None:
    assert wire.decode_value(sent) == text


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\x00", "\x01", "a\x7f"])
def test_a_control_character_in_a_value_is_refused(value: str) -> None:
    with pytest.raises(Rejected):
        wire.encode_value(value)


@pytest.mark.parametrize("name", ["a b", "a:b", "a/b", "é", "", "a\n", "a,b", "(a)", "a@b", "a=b"])
def test_a_name_that_is_no_header_is_refused(name: str) -> None:
    with pytest.raises(Rejected):
        wire.encode_metadata({name: "v"}, Capabilities())


def test_a_foreign_name_that_is_a_header_is_kept() -> None:
    assert wire.encode_metadata({"A!b~c": "v"}, Capabilities()) == {"a!b~c": "v"}


def test_the_limit_counts_what_is_sent() -> None:
    room = 2048 - len("x-amz-meta-v")
    assert wire.encode_metadata({"v": "x" * room}, Capabilities())
    for value in ("x" * (room + 1), "é" * (room // 2)):
        with pytest.raises(MetadataTooLarge):
            wire.encode_metadata({"v": value}, Capabilities())


@pytest.mark.parametrize("key", ["a/", "a\nb", "a\tb", "\x01", "a\x7f"])
def test_keys_that_obstore_alters_are_not_plain(key: str) -> None:
    assert not wire.is_plain_key(key)


@pytest.mark.parametrize("key", ["a", "a/b c", "é", "x%41", "a?b", "<&>", "...", "a\u2028"])
def test_other_keys_are_plain(key: str) -> None:
    assert wire.is_plain_key(key)


def test_the_alias_of_a_directory_marker_is_refused() -> None:
    for key in ("a__XLDIR__", "a/b__XLDIR__", "b__XLDIR__/c"):
        with pytest.raises(Rejected):
            wire.check_alias(key)
    wire.check_alias("a__XLDIR__b")


@pytest.mark.parametrize(("sent", "etag"), [('"abc"', "abc"), ("abc", "abc"), ('W/"abc"', "abc"), (None, "")])
def test_etags_have_no_quotes_inside(sent: str | None, etag: str) -> None:
    assert wire.bare(sent) == etag


@pytest.mark.parametrize("buffer", [b"0123456789", bytearray(b"0123456789"), memoryview(b"x0123456789x")[1:11]])
def test_any_buffer_is_a_file_without_a_copy(buffer: bytes) -> None:
    file = wire.as_file(buffer)
    assert file.read(4) == b"0123"
    assert file.tell() == 4
    assert file.read() == b"456789"
    assert file.read(1) == b""
    assert file.seek(-3, io.SEEK_END) == 7
    assert file.read(2) == b"78"
    assert file.seek(0) == 0
    assert len(file.read()) == 10


def test_who_sends_a_buffer_in_blocks_is_given_all_of_it_in_few() -> None:
    whole = bytes(range(256)) * 4096 + b"end"
    blocks = list(iter(partial(wire.as_file(whole).read, 16 << 10), b""))
    assert b"".join(blocks) == whole
    assert [len(block) for block in blocks] == [256 << 10] * 4 + [3]
