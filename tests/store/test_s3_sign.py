"""Signatures of S3 requests: AWS's published examples, and agreement with botocore's signer."""

from __future__ import annotations

import hashlib
from datetime import datetime
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from s3vol.store.s3_sign import Keys, Request, sign

EXAMPLE_KEYS = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EXAMPLE_S = 1369353600.0  # 2013-05-24T00:00:00Z
HOST = "examplebucket.s3.amazonaws.com"
EMPTY = hashlib.sha256(b"").hexdigest()

EXAMPLES = {
    "get": (
        Request("GET", HOST, "/test.txt", "", {"range": "bytes=0-9"}, EMPTY),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "put": (
        Request(
            "PUT",
            HOST,
            "/test%24file.text",
            "",
            {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
        ),
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "list": (
        Request("GET", HOST, "/", "max-keys=2&prefix=J", {}, EMPTY),
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
}


@pytest.mark.parametrize(("request_", "signature"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_the_examples_of_the_documentation_get_their_signatures(request_: Request, signature: str) -> None:
    signed = sign(request_, EXAMPLE_KEYS, "us-east-1", EXAMPLE_S)
    assert signed["authorization"].endswith(f"Signature={signature}")


TOKENS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda name: f"x-amz-meta-{name}")
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40).map(str.strip)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
SEGMENTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)


@example(path="/bucket/0", query="a=0&a-=0", headers={}, body=b"", token=None)  # by name: `=` is behind `-`
@given(
    path=SEGMENTS.map(lambda key: "/bucket/" + quote(key, safe="/-_.~")),
    query=st.dictionaries(NAMES, SEGMENTS, max_size=3).map(
        lambda fields: "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(fields.items()))
    ),
    headers=st.dictionaries(TOKENS, VALUES, max_size=5),
    body=st.binary(max_size=50),
    token=st.none() | st.just("a/session+token="),
)
def test_every_request_is_signed_as_botocore_does(
    path: str, query: str, headers: dict[str, str], body: bytes, token: str | None
) -> None:
    url = f"http://example.com:9000{path}" + (f"?{query}" if query else "")
    theirs = AWSRequest("PUT", url, headers=headers, data=body)
    S3SigV4Auth(Credentials("access", "secret", token), "s3", "eu-west-1").add_auth(theirs)
    digest = hashlib.sha256(body).hexdigest()
    sent = {name: value for name, value in theirs.headers.items() if name.startswith("x-amz-meta-")}
    at_s = datetime.strptime(f"{theirs.headers['X-Amz-Date']}+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    asked = Request("PUT", "example.com:9000", path, query, sent, digest)
    ours = sign(asked, Keys("access", "secret", token), "eu-west-1", at_s)
    assert ours["authorization"] == theirs.headers["Authorization"]
