"""Listing pages: the query, and XML as values."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from s3vol.store import s3_list
from s3vol.store.base import Page
from tests.support.canned import LIST_START

METADATA = (
    b"<UserMetadata><X-Amz-Meta-Mode>33188</X-Amz-Meta-Mode><content-type>text/plain</content-type>"
    b"<X-Amz-Meta-Content-Type>mine</X-Amz-Meta-Content-Type><X-Amz-Meta-Name>=?UTF-8?q?=C3=A9?=</X-Amz-Meta-Name>"
    b"<cache-control>no-cache</cache-control><X-Amz-Meta-Empty></X-Amz-Meta-Empty></UserMetadata>"
)


def entry(more: bytes = b"") -> bytes:
    return (
        b"<Contents><Key>p/a+b%2Fc</Key><LastModified>2026-11-21T08:06:28.977Z</LastModified>"
        b"<ETag>&#34;49f6&#34;</ETag><Size>7</Size>" + more + b"</Contents>"
    )


def page(*inside: bytes, limit: int = 1000, wanted: bool = True, root: str = "p/") -> Page:
    return s3_list.parse(
        LIST_START + b"".join(inside) + b"</ListBucketResult>", root, limit=limit, wanted_metadata=wanted
    )


def fields(**changes: object) -> dict[str, str]:
    options: dict[str, object] = {
        "delimiter": True,
        "cursor": None,
        "start_after": None,
        "limit": 10,
        "metadata": False,
    }
    text = s3_list.query("a b/", **(options | changes))  # type: ignore[arg-type]  # the table above has the types
    assert text.split("&") == sorted(text.split("&")), "the signature wants the names in order"
    return dict(item.split("=", 1) for item in text.split("&"))


def test_user_metadata_is_separated_from_system_headers() -> None:
    (info,) = page(entry(METADATA)).objects
    assert info.key == "a b/c"
    assert (info.size, info.etag) == (7, "49f6")
    assert info.metadata == {"mode": "33188", "content-type": "mine", "name": "é", "empty": ""}
    assert info.content_type == "text/plain"


def test_last_modified_is_cut_to_whole_seconds_as_head_reports_it() -> None:
    (info,) = page(entry()).objects
    assert info.modified_ns == 1795248388 * 1_000_000_000


def test_metadata_that_did_not_come_is_not_empty_metadata() -> None:
    assert page(entry()).objects[0].metadata is None
    assert page(entry(METADATA), wanted=False).objects[0].metadata is None
    assert page(entry(b"<UserMetadata/>")).objects[0].metadata == {}


def test_a_page_without_a_namespace_is_read_too() -> None:
    assert s3_list.parse(b"<ListBucketResult/>", "", limit=9, wanted_metadata=True) == Page((), ())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html></html>",
        LIST_START + b"<X-Amz-Meta-a&b>",
        LIST_START + b"<IsTruncated>true</IsTruncated></ListBucketResult>",
    ],
)
def test_what_is_no_page_is_an_error_and_never_an_empty_directory(body: bytes) -> None:
    with pytest.raises(ElementTree.ParseError):
        s3_list.parse(body, "", limit=9, wanted_metadata=True)


def test_the_marker_of_the_root_itself_is_not_shown() -> None:
    marker = b"<Contents><Key>p%2F</Key><LastModified>2026-11-21T08:06:28Z</LastModified><Size>0</Size></Contents>"
    assert page(marker) == Page((), ())


def test_the_cursor_carries_the_token() -> None:
    more = page(b"<IsTruncated>true</IsTruncated><NextContinuationToken>x/y=</NextContinuationToken>")
    found = fields(cursor=more.next_cursor)
    assert found["continuation-token"] == "x%2Fy%3D"
    assert "start-after" not in found


def test_two_keys_are_asked_for_where_one_is_wanted() -> None:
    assert fields(limit=1)["max-keys"] == "2"
    assert fields(limit=7)["max-keys"] == "7"


def test_a_page_that_is_too_long_is_cut_and_goes_on_behind_the_cut() -> None:
    folded = b"<CommonPrefixes><Prefix>p%2Fa%2F</Prefix></CommonPrefixes>"
    cut = page(folded, entry(), limit=1)
    assert [info.key for info in cut.objects] == ["a b/c"]
    assert cut.prefixes == ()
    assert fields(cursor=cut.next_cursor)["start-after"] == "p%2Fa%20b%2Fc"
    other = b"<Contents><Key>p%2Fb</Key><LastModified>2026-11-21T08:06:28Z</LastModified><Size>0</Size></Contents>"
    cut = page(folded, other, limit=1)
    assert cut.prefixes == ("a/",)
    assert fields(cursor=cut.next_cursor)["start-after"].startswith("p%2Fa%2F%F4%8F")


@pytest.mark.parametrize(
    ("start_after", "sent"),
    [
        ("a b/x", "a%20b%2Fx"),
        ("a b/", "a%20b%2F"),
        ("a b/d/", "a%20b%2Fd%2F%F4%8F%BF%BF"),
        ("a b/d/x", "a%20b%2Fd%2F%F4%8F%BF%BF"),
    ],
)
def test_starting_within_a_folded_prefix_skips_the_whole_of_it(start_after: str, sent: str) -> None:
    assert fields(start_after=start_after)["start-after"] == sent


def test_without_delimiter_the_start_is_taken_as_it_is() -> None:
    assert fields(start_after="a b/d/", delimiter=False)["start-after"] == "a%20b%2Fd%2F"
