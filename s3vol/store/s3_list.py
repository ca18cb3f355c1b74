"""Listings of S3: the query of one page, and its XML as values. Pure functions.

Theory of operation. MinIO adds every object's metadata to a page when asked for `metadata=true`; botocore parses
that away, so the request is signed by hand (store/s3_client.py) and its answer read here. A foreign metadata name with
a character that XML knows (`&`, `!`, ...) makes such a page malformed: the caller then asks again without metadata.
`encoding-type=url` always: a control character in a key would break the page as well. A server that does not know it
does not repeat it in the page either; decoding its keys would show `a+b` as `a b`, which is another object.

A cursor is the store's continuation token, or the name to go on behind where the page was cut here. The latter is for
pages of one entry: MinIO ends a delimited listing after its first folded prefix when asked for one key at a time
(measured; a page of two is right), so two are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from s3vol.store import s3_wire as wire
from s3vol.store.base import Page
from s3vol.types import ObjectInfo

_META = "x-amz-meta-"
_TOKEN = "t:"
_AFTER = "a:"
_LAST = "\U0010ffff"  # sorts behind every key that begins with the same prefix
_MIN_KEYS = 2


def query(
    prefix: str, *, delimiter: bool, cursor: str | None, start_after: str | None, limit: int, metadata: bool
) -> str:
    """The query string of one page, encoded and in the order that the signature wants."""
    fields = {
        "encoding-type": "url",
        "list-type": "2",
        "max-keys": str(max(limit, _MIN_KEYS)),
        "prefix": prefix,
    }
    if delimiter:
        fields["delimiter"] = "/"
    if metadata:
        fields["metadata"] = "true"
    if cursor is not None and cursor.startswith(_TOKEN):
        fields["continuation-token"] = cursor.removeprefix(_TOKEN)
    elif cursor is not None:
        fields["start-after"] = cursor.removeprefix(_AFTER)
    elif start_after is not None:
        fields["start-after"] = _after(start_after, prefix) if delimiter else start_after
    return "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(fields.items()))


def _after(name: str, prefix: str) -> str:
    # A name within a folded prefix is behind that entry: the store must skip the whole of it.
    slash = name.find("/", len(prefix)) if name.startswith(prefix) else -1
    return name if slash < 0 else name[: slash + 1] + _LAST


def parse(body: bytes, root: str, *, limit: int, wanted_metadata: bool) -> Page:
    """A page, with `root` taken off its keys. Raises ElementTree.ParseError for a malformed one."""
    tree = ElementTree.fromstring(body)
    _strip_namespaces(tree)
    if tree.tag != "ListBucketResult":
        raise ElementTree.ParseError(f"expected ListBucketResult, found {tree.tag}")
    skip = len(root)
    encoded = tree.findtext("EncodingType") == "url"
    objects = [_object(node, skip, encoded, wanted_metadata) for node in tree.iterfind("Contents")]
    objects = [info for info in objects if info.key]  # the marker of `root` itself
    prefixes = [name for node in tree.iterfind("CommonPrefixes") if (name := _name(node, "Prefix", encoded)[skip:])]
    cursor = None
    if tree.findtext("IsTruncated") == "true":
        token = tree.findtext("NextContinuationToken")
        if not token:
            raise ElementTree.ParseError("a truncated page without NextContinuationToken")
        cursor = _TOKEN + token
    return _cut(Page(tuple(objects), tuple(prefixes), cursor), root, limit)


def _cut(page: Page, root: str, limit: int) -> Page:
    names = sorted([info.key for info in page.objects] + list(page.prefixes))
    if len(names) <= limit:
        return page
    last = names[limit - 1]
    return Page(
        tuple(info for info in page.objects if info.key <= last),
        tuple(name for name in page.prefixes if name <= last),
        _AFTER + root + (last + _LAST if last in page.prefixes else last),
    )


def _strip_namespaces(tree: ElementTree.Element) -> None:
    if "}" not in tree.tag:
        return
    for node in tree.iter():
        node.tag = node.tag.rpartition("}")[2]


def _name(node: ElementTree.Element, tag: str, encoded: bool) -> str:
    text = node.findtext(tag) or ""
    return unquote_plus(text, errors="surrogateescape") if encoded else text


def _object(node: ElementTree.Element, skip: int, encoded: bool, wanted_metadata: bool) -> ObjectInfo:
    found = node.find("UserMetadata") if wanted_metadata else None
    content_type = ""
    metadata: dict[str, str] | None = None
    if found is not None:
        entries = dict(_entries(found))
        content_type = entries.get("content-type", "")
        metadata = dict(
            wire.decode_metadata(name[len(_META) :], value) for name, value in entries.items() if name.startswith(_META)
        )
    return ObjectInfo(
        key=_name(node, "Key", encoded)[skip:],
        size=int(node.findtext("Size") or 0),
        etag=wire.bare(node.findtext("ETag")),
        modified_ns=_seconds(node.findtext("LastModified") or "") * 1_000_000_000,
        metadata=metadata,
        content_type=content_type,
    )


def _entries(node: ElementTree.Element) -> Iterator[tuple[str, str]]:
    for entry in node:
        yield entry.tag.lower(), entry.text or ""


def _seconds(text: str) -> int:
    # `2026-11-21T08:06:28.077Z`: a listing has milliseconds, HEAD has seconds; both must agree.
    return int(datetime.fromisoformat(text[:19] + "+00:00").timestamp())
