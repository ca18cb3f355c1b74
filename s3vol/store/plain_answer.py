"""The head of an HTTP answer, if it is as plain as nearly all are: HTTP/1.1, one known length, nothing to discuss.

Theory of operation. One regular expression says whether a head is made of nothing but valid lines (RFC 9112); what it
accepts can be taken apart without further checks. Everything that needs thought is not plain, and h11's to judge:
chunks, bodies that end with their connection, interim answers, older versions, folded lines, lengths that contradict
each other.

h11 looks at each of the twenty headers of an S3 server's answer with several regular expressions. Together with telling
it of the request that was a third of a small request's processor time here (2-core VM, 2,000 HEADs under cProfile).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD_MAX_BYTES = 64 << 10  # S3 allows 8 KiB of headers; proxies add theirs

_END = b"\r\n\r\n"
_LAX_END = re.compile(rb"\n\r?\n")  # what h11 takes for the end of a head
_PLAIN = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
    rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)
_LENGTH = re.compile(r"[0-9]{1,18}")
_BODILESS = frozenset({204, 304})  # RFC 9112, 6.3


@dataclass(frozen=True, slots=True)
class Head:
    """A plain head: `body_bytes` follow it. Header names are in lower case; values of one name are joined."""

    status: int
    headers: dict[str, str]
    head_bytes: int
    body_bytes: int
    closes: bool  # the server's last answer on this connection


def is_complete(received: bytes) -> bool:
    """True when all of a head is here, or more than a head may have."""
    return _END in received or len(received) > HEAD_MAX_BYTES or _LAX_END.search(received) is not None


def parse(received: bytes, method: str) -> Head | None:
    """The head that `received` begins with, of an answer to a request of this method. None: not plain."""
    end = received.find(_END) + len(_END)
    found = _PLAIN.fullmatch(received, 0, end)
    if found is None:
        return None
    headers: dict[str, str] = {}
    for line in received[:end].decode("latin-1").split("\r\n")[1:-2]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    status, length = int(found[1]), headers.get("content-length")
    closes = "close" in headers.get("connection", "").lower()
    bodiless = method == "HEAD" or status in _BODILESS
    if "transfer-encoding" in headers or not (bodiless if length is None else _LENGTH.fullmatch(length)):
        return None
    return Head(status, headers, end, 0 if bodiless else int(length or 0), closes)
