"""Plain heads of answers: what is taken apart here is what h11 would have said."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3vol.store.plain_answer import HEAD_MAX_BYTES, Head, is_complete, parse

OK = b"HTTP/1.1 200 OK\r\n"


def by_h11(head: bytes, method: str) -> tuple[int, list[tuple[bytes, bytes]], int] | None:
    """Status, headers and length of the body as h11 sees them; None: an error, or no length."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    http.receive_data(head + b"b" * 100)
    try:
        response = http.next_event()
        if not isinstance(response, h11.Response):
            return None
        length = 0
        while isinstance(event := http.next_event(), h11.Data):
            length += len(event.data)
    except h11.RemoteProtocolError:
        return None
    return response.status_code, list(response.headers), length if isinstance(event, h11.EndOfMessage) else -1


def test_a_head_of_an_s3_server_is_plain() -> None:
    head = b'HTTP/1.1 206 Some\r\nContent-Length: 5\r\nETag: "e"\r\nx-amz-meta-a:  b \r\nx-amz-meta-a: c\r\n\r\n'
    assert parse(head + b"body", "GET") == Head(
        206, {"content-length": "5", "etag": '"e"', "x-amz-meta-a": "b, c"}, len(head), 5, closes=False
    )


@pytest.mark.parametrize(
    ("method", "head", "body_bytes"),
    [
        ("HEAD", OK + b"Content-Length: 70\r\n\r\n", 0),
        ("HEAD", OK + b"\r\n", 0),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n", 0),
        ("GET", b"HTTP/1.1 304\r\nContent-Length: 70\r\n\r\n", 0),
        ("GET", b"HTTP/1.1 404 \r\nContent-Length: 070\r\n\r\n", 70),
    ],
)
def test_an_answer_without_a_body_has_none_whatever_length_it_names(method: str, head: bytes, body_bytes: int) -> None:
    found = parse(head, method)
    assert found is not None
    assert (found.head_bytes, found.body_bytes) == (len(head), body_bytes)


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close"])
def test_the_last_answer_of_a_connection_says_so(value: bytes) -> None:
    found = parse(OK + b"Connection: " + value + b"\r\nContent-Length: 0\r\n\r\n", "GET")
    assert found is not None
    assert found.closes


@pytest.mark.parametrize(
    "head",
    [
        b"",
        OK,
        OK + b"\r\n",  # a body that ends with its connection
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        OK + b"Content-Length: +1\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        OK + b"Content-Length: \xb2\r\n\r\n",
        OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"A: b\r\n folded\r\nContent-Length: 1\r\n\r\n",
        OK + b"A b: c\r\nContent-Length: 1\r\n\r\n",
        OK + b"A: b\rContent-Length: 2\r\nContent-Length: 1\r\n\r\n",
        OK + b"A: b\nContent-Length: 2\r\nContent-Length: 1\r\n\r\n",
        OK + b"A: \0\r\nContent-Length: 1\r\n\r\n",
        OK + b": b\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 1\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n",
        b"junk\r\n\r\n",
    ],
)
def test_what_needs_thought_is_not_plain(head: bytes) -> None:
    assert parse(head, "GET") is None


def test_a_head_is_complete_at_its_empty_line_or_when_it_is_too_long() -> None:
    assert not is_complete(OK + b"A: b\r\n")
    assert is_complete(OK + b"\r\nbody")
    assert is_complete(b"a" * (HEAD_MAX_BYTES + 1))


LINES = st.one_of(
    st.tuples(
        st.sampled_from(
            [b"Content-Length", b"content-length", b"Connection", b"X-A", b"ETag", b"Transfer-Encoding", b""]
        ),
        st.sampled_from([b":", b": ", b" :", b":\t"]),
        st.one_of(st.sampled_from([b"1", b"12", b"0", b"close", b"chunked", b"-1", b""]), st.binary(max_size=6)),
    ).map(b"".join),
    st.binary(max_size=12),
)


@given(
    st.sampled_from(["GET", "HEAD", "PUT"]),
    st.sampled_from([OK, b"HTTP/1.1 204 \r\n", b"HTTP/1.1 416\r\n", b"HTTP/1.1 304 x\xe9\r\n", b"HTTP/1.1 100 Go\r\n"]),
    st.lists(LINES, max_size=5),
)
@example("GET", OK, [b"Content-Length: 1", b"Content-Length: 1"])
@example("GET", b"HTTP/1.1 204 \r\n", [b"Content-Length:"])
@example("HEAD", OK, [b"Content-Length: " + b"9" * 5000])
def test_a_plain_head_is_what_h11_says_that_it_is(method: str, status: bytes, lines: list[bytes]) -> None:
    head = status + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    found = parse(head, method)
    if found is None or found.body_bytes > 100:
        return
    told = by_h11(head[: found.head_bytes], method)
    assert told is not None
    joined: dict[str, str] = {}
    for name, value in told[1]:
        key, text = name.decode(), value.decode("latin-1")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    assert (found.status, found.headers, found.body_bytes) == (told[0], joined, told[2])
