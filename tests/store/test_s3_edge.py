"""What foreign exceptions become: by table."""

from __future__ import annotations

import errno
import socket
import time
from email.utils import formatdate

import botocore.exceptions as aws
import pytest
import urllib3.exceptions
from botocore.parsers import ResponseParserError
from obstore import exceptions as obs

from s3vol.errors import (
    Denied,
    MetadataTooLarge,
    NameTooLong,
    NoSpace,
    NotFound,
    PreconditionFailed,
    QuotaExceeded,
    Rejected,
    S3volError,
    Unavailable,
)
from s3vol.store.edge import Answer, judge, translate

ANSWERS: list[tuple[int, str, type[S3volError]]] = [
    (404, "NoSuchKey", NotFound),
    (404, "NoSuchUpload", NotFound),
    (400, "InvalidPart", NotFound),
    (404, "NoSuchBucket", S3volError),
    (404, "", Unavailable),
    (412, "PreconditionFailed", PreconditionFailed),
    (412, "", PreconditionFailed),
    (304, "", PreconditionFailed),
    (409, "ConditionalRequestConflict", Unavailable),
    (409, "OperationAborted", Unavailable),
    (403, "AccessDenied", Denied),
    (403, "InvalidAccessKeyId", Denied),
    (403, "SignatureDoesNotMatch", Denied),
    (403, "RequestTimeTooSkewed", Denied),
    (403, "", Denied),
    (401, "", Denied),
    (400, "ExpiredToken", Denied),
    (400, "MetadataTooLarge", MetadataTooLarge),
    (400, "KeyTooLongError", NameTooLong),
    (400, "XMinioInvalidObjectName", Rejected),
    (400, "InvalidArgument", Rejected),
    (400, "EntityTooSmall", Rejected),
    (400, "IncompleteBody", Unavailable),
    (400, "BadDigest", Unavailable),
    (400, "XAmzContentSHA256Mismatch", Unavailable),
    (400, "XMinioAdminBucketQuotaExceeded", QuotaExceeded),
    (507, "XMinioStorageFull", NoSpace),
    (507, "", NoSpace),
    (500, "InternalError", Unavailable),
    (502, "", Unavailable),
    (503, "SlowDown", Unavailable),
    (503, "", Unavailable),
    (429, "", Unavailable),
    (408, "", Unavailable),
    (501, "NotImplemented", Rejected),
    (301, "PermanentRedirect", Rejected),
]


@pytest.mark.parametrize(("status", "code", "kind"), ANSWERS)
def test_an_answer_becomes_one_kind(status: int, code: str, kind: type[S3volError]) -> None:
    error = judge(Answer(status, code), "put a/b")
    assert type(error) is kind
    assert str(error).startswith("put a/b: ")
    assert error.retryable == (kind is Unavailable)


@pytest.mark.parametrize(("status", "code", "kind"), [row for row in ANSWERS if row[0] != 304])
def test_both_clients_lead_to_the_same_kind(status: int, code: str, kind: type[S3volError]) -> None:
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
    text = f"Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: {status} X: {body}"
    text += "\n\nDebug source:\nstatus code: 999 <Code>Wrong</Code>"
    assert type(translate(obs.GenericError(text), "put k")) is kind
    response = {"Error": {"Code": code or str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    assert type(translate(aws.ClientError(response, "PutObject"), "put k")) is kind  # type: ignore[arg-type]  # a partial response is what botocore really gives


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (obs.AlreadyExistsError("Object at location k already exists"), PreconditionFailed),
        (obs.PreconditionError("Request precondition failure"), PreconditionFailed),
        (obs.PermissionDeniedError("no"), Denied),
        (obs.UnauthenticatedError("no"), Denied),
        (obs.UnauthenticatedError("for path External AWS credential provider: timed out"), Unavailable),
        (obs.NotSupportedError("no"), Rejected),
        (obs.GenericError("Generic S3 error: HTTP error: error sending request"), Unavailable),
        (obs.GenericError("HTTP error\n\nDebug source: invalid peer certificate: UnknownIssuer"), Denied),
        (aws.EndpointConnectionError(endpoint_url="http://x"), Unavailable),
        (aws.ConnectTimeoutError(endpoint_url="http://x"), Unavailable),
        (aws.ReadTimeoutError(endpoint_url="http://x"), Unavailable),
        (aws.ConnectionClosedError(endpoint_url="http://x"), Unavailable),
        (aws.ResponseStreamingError(error="cut"), Unavailable),
        (aws.IncompleteReadError(actual_bytes=1, expected_bytes=2), Unavailable),
        (aws.SSLError(endpoint_url="https://x", error=OSError("certificate verify failed")), Denied),
        (aws.SSLError(endpoint_url="https://x", error=OSError("unexpected EOF")), Unavailable),
        (aws.NoCredentialsError(), Denied),
        (aws.ParamValidationError(report="bad"), Rejected),
        (ResponseParserError("html"), Unavailable),
        (urllib3.exceptions.ProtocolError("cut"), Unavailable),
        (urllib3.exceptions.ReadTimeoutError(None, "/", "slow"), Unavailable),  # type: ignore[arg-type]  # no pool needed
        (ValueError("Could not parse path"), Rejected),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Unavailable),
        (socket.gaierror(-2, "Name or service not known"), Unavailable),
        (OSError(errno.ENOSPC, "full"), NoSpace),
        (OSError(errno.EDQUOT, "quota"), QuotaExceeded),
        (OSError(errno.ENAMETOOLONG, "long"), NameTooLong),
        (PermissionError(errno.EACCES, "no"), Denied),
        (FileNotFoundError(errno.ENOENT, "gone"), Unavailable),
        (RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."), Unavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_an_exception_becomes_one_kind(error: Exception, kind: type[S3volError]) -> None:
    ours = translate(error, "get k")
    assert type(ours) is kind


def test_a_missing_key_and_a_missing_bucket_are_told_apart_although_obstore_raises_the_same() -> None:
    def raised(code: str) -> FileNotFoundError:
        return FileNotFoundError(f"Object at location k not found: status code: 404 Not Found: <Code>{code}</Code>")

    assert isinstance(translate(raised("NoSuchKey"), "get k"), NotFound)
    gone = translate(raised("NoSuchBucket"), "get k")
    assert gone is not None
    assert not isinstance(gone, NotFound)
    assert "bucket is gone" in str(gone)


def test_a_panic_of_the_rust_client_is_a_refusal_and_not_the_end_of_the_process() -> None:
    panic = type("PanicException", (BaseException,), {})
    assert isinstance(translate(panic("request valid: InvalidHeaderValue"), "put k"), Rejected)


def test_a_programming_error_is_not_translated() -> None:
    assert translate(TypeError("oops"), "get k") is None
    assert translate(KeyboardInterrupt(), "get k") is None


@pytest.mark.parametrize(("offset_s", "words"), [(1200, "20 minutes behind"), (-1800, "30 minutes ahead of")])
def test_a_wrong_clock_is_named_with_the_difference(offset_s: float, words: str) -> None:
    date = formatdate(time.time() + offset_s, usegmt=True)
    assert words in str(judge(Answer(403, "RequestTimeTooSkewed", server_date=date), "list"))


def test_the_servers_clock_is_asked_for_when_the_client_hides_it() -> None:
    error = obs.PermissionDeniedError("status code: 403 Forbidden: <Code>RequestTimeTooSkewed</Code>")
    date = formatdate(time.time() + 3600, usegmt=True)
    assert "60 minutes behind" in str(translate(error, "get k", server_date=lambda: date))
    assert "NTP" in str(translate(error, "get k"))
