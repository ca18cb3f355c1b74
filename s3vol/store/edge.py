"""Where foreign exceptions end: tables from what clients of object stores raise to the kinds of `s3vol.errors`.

Theory of operation. An HTTP answer is judged by the S3 error code in its body first, by its status second: 404 alone
may be a missing key, a missing bucket, or a reverse proxy whose backend is down, and only the first of these may
become NotFound. obstore and botocore wrap the same answers in different classes, so both are reduced to an `Answer`
and judged by one table; what never reached HTTP (time-outs, broken connections) is judged by exception type.
A message says what was tried, why it failed, and for refusals what to check; it never holds a credential.

Rejected: matching on exception classes alone. obstore reports a missing bucket and a missing key as the same
FileNotFoundError, a refused If-Match and a missing key as the same PreconditionError, and 416 and 507 as GenericError.
"""

from __future__ import annotations

import errno
import html
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime

import botocore.exceptions as aws
import urllib3.exceptions
from botocore.parsers import ResponseParserError
from obstore import exceptions as obs

from s3vol.errors import (
    Corrupt,
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


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that was no success. `status` 0: there was none."""

    status: int
    code: str = ""  # S3 error code; empty where the body had none (HEAD, proxies)
    message: str = ""
    server_date: str = ""  # Date header, where the client shows it
    request_id: str = ""  # the store's name for it: what its operator looks for in a log


_KIND_BY_CODE: dict[str, type[S3volError]] = {
    "NoSuchKey": NotFound,
    "NoSuchUpload": NotFound,
    "NoSuchVersion": NotFound,
    # Parts that were acknowledged are gone: MinIO was killed within a Complete. The upload is worth nothing any more.
    "InvalidPart": NotFound,
    "NoSuchBucket": S3volError,
    "PreconditionFailed": PreconditionFailed,
    # Two conditional writes met: nothing was applied, the same call may work (AWS, 409).
    "ConditionalRequestConflict": Unavailable,
    "OperationAborted": Unavailable,
    "SlowDown": Unavailable,
    "SlowDownRead": Unavailable,
    "SlowDownWrite": Unavailable,
    "TooManyRequests": Unavailable,
    "RequestTimeout": Unavailable,
    "InternalError": Unavailable,
    "ServiceUnavailable": Unavailable,
    "XMinioServerNotInitialized": Unavailable,
    # Ambiguous on MinIO: a cut connection, or one of the three faces of a full drive (the others are 500 and 507).
    "IncompleteBody": Unavailable,
    # The body was damaged on its way: sending it again helps.
    "BadDigest": Unavailable,
    "XAmzContentChecksumMismatch": Unavailable,
    "XAmzContentSHA256Mismatch": Unavailable,
    "AccessDenied": Denied,
    "AllAccessDisabled": Denied,
    "AccountProblem": Denied,
    "ExpiredToken": Denied,
    "InvalidAccessKeyId": Denied,
    "InvalidToken": Denied,
    "RequestTimeTooSkewed": Denied,
    "SignatureDoesNotMatch": Denied,
    "AuthorizationHeaderMalformed": Denied,
    "XMinioStorageFull": NoSpace,
    "QuotaExceeded": QuotaExceeded,
    "XMinioAdminBucketQuotaExceeded": QuotaExceeded,
    "KeyTooLongError": NameTooLong,
    "MetadataTooLarge": MetadataTooLarge,
}

_KIND_BY_STATUS: dict[int, type[S3volError]] = {
    304: PreconditionFailed,
    401: Denied,
    403: Denied,
    404: Unavailable,  # without an S3 code: a proxy that lost its backend, not a missing key
    408: Unavailable,
    409: Unavailable,
    412: PreconditionFailed,
    425: Unavailable,
    429: Unavailable,
    501: Rejected,
    507: NoSpace,
}

_ADVICE: dict[str, str] = {
    "AccessDenied": "the policy of this access key does not allow it",
    "AuthorizationHeaderMalformed": "check the region",
    "ExpiredToken": "the session token has expired",
    "InvalidAccessKeyId": "the store does not know this access key; check AWS_ACCESS_KEY_ID or the profile",
    "InvalidToken": "check AWS_SESSION_TOKEN",
    "NoSuchBucket": "the bucket is gone",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "XMinioStorageFull": "the store's drives are full",
    "XMinioAdminBucketQuotaExceeded": "the bucket's quota is used up",
}


def judge(answer: Answer, what: str) -> S3volError:
    """The error for an answer. `what` is the operation in words: `put a/b`."""
    error = _judged(answer, what)
    error.request_id = answer.request_id
    return error


def _judged(answer: Answer, what: str) -> S3volError:
    if _is_about_keys(answer):
        said = f"{answer.message} ({answer.status} {answer.code})"
        return S3volError(f"{what}: {said}; check the options sse, sse-kms-key and sse-c-key")
    kind = _KIND_BY_CODE.get(answer.code) or _KIND_BY_STATUS.get(answer.status)
    if kind is None:
        kind = Unavailable if answer.status >= 500 or answer.status == 0 else Rejected
    shown = " ".join(str(part) for part in (answer.status or "", answer.code) if part)
    if answer.code == "RequestTimeTooSkewed":
        return kind(f"{what}: {_skew(answer)} ({shown})")
    reason = _ADVICE.get(answer.code) or answer.message
    if answer.status == 404 and not answer.code:
        reason = "404 without an S3 error: a proxy in front of the store may have lost it"
    if answer.status in (301, 307, 308):
        reason = f"the bucket is in another region or at another endpoint: {answer.message}".rstrip(": ")
    return kind(f"{what}: {reason} ({shown})" if reason else f"{what}: {shown}")


def _is_about_keys(answer: Answer) -> bool:
    """True when encryption is in the way. No refusal of the request as such: the probe must not take it for a "no"."""
    if answer.code.startswith(("kms:", "KMS.")):
        return True
    return answer.code in ("InvalidRequest", "InvalidArgument", "NotImplemented") and "ncrypt" in answer.message


def _skew(answer: Answer) -> str:
    try:
        behind_s = parse_date(answer.server_date) - time.time()
    except ValueError:
        return "this machine's clock and the store's differ by more than 15 minutes; set the clock (NTP)"
    side = "behind" if behind_s > 0 else "ahead of"
    return f"this machine's clock is {abs(behind_s) / 60:.0f} minutes {side} the store's; set the clock (NTP)"


def parse_date(text: str) -> float:
    """Seconds since the epoch of a Date header (RFC 9110) or an S3 timestamp. Raises ValueError."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return datetime.fromisoformat(text.removesuffix("Z") + "+00:00").timestamp()


_OBSTORE_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_REQUEST_ID = re.compile(r"<RequestId>([^<]*)</RequestId>")
_SERVER_TIME = re.compile(r"<ServerTime>([^<]*)</ServerTime>")


def answer_of_body(status: int, body: str, server_date: str = "") -> Answer:
    """The answer with this status and XML error body."""

    def field(pattern: re.Pattern[str]) -> str:
        found = pattern.search(body)
        return html.unescape(found.group(1)) if found else ""

    found = (field(_CODE), field(_MESSAGE), field(_SERVER_TIME) or server_date, field(_REQUEST_ID))
    return Answer(status, *found)


def answer_of(error: BaseException) -> Answer | None:
    """The HTTP answer inside an exception of obstore or botocore, or None if there was none."""
    if isinstance(error, aws.ClientError):
        meta = error.response.get("ResponseMetadata", {})
        found = error.response.get("Error", {})
        status = int(meta.get("HTTPStatusCode", 0))
        code = str(found.get("Code", ""))
        # botocore invents codes where the body had none: the status itself, or its reason phrase.
        if code.isdecimal() or code in ("NotFound", "Forbidden", "BadRequest", "Unknown"):
            code = ""
        date = str(meta.get("HTTPHeaders", {}).get("date", ""))
        return Answer(status, code, str(found.get("Message", "")), date, str(meta.get("RequestId", "")))
    if isinstance(error, (obs.BaseError, FileNotFoundError)):
        text = str(error).partition("Debug source:")[0]
        status_match = _OBSTORE_STATUS.search(text)
        return answer_of_body(int(status_match.group(1)), text) if status_match else None
    return None


_KIND_BY_TYPE: tuple[tuple[type[BaseException], type[S3volError]], ...] = (
    # obstore, where no HTTP status was found in the text
    (obs.AlreadyExistsError, PreconditionFailed),
    (obs.PreconditionError, PreconditionFailed),
    (obs.NotModifiedError, PreconditionFailed),
    (obs.PermissionDeniedError, Denied),
    (obs.UnauthenticatedError, Denied),
    (obs.NotSupportedError, Rejected),
    (obs.InvalidPathError, Rejected),
    (obs.BaseError, Unavailable),
    # botocore: what never became an HTTP answer
    (aws.NoCredentialsError, Denied),
    (aws.PartialCredentialsError, Denied),
    (aws.CredentialRetrievalError, Unavailable),
    (aws.TokenRetrievalError, Unavailable),
    (aws.ParamValidationError, Rejected),
    (ResponseParserError, Unavailable),
    (aws.FlexibleChecksumError, Corrupt),
    (aws.HTTPClientError, Unavailable),
    (aws.BotoCoreError, Unavailable),
    (urllib3.exceptions.HTTPError, Unavailable),
    (UnicodeError, Rejected),
    (ValueError, Rejected),
)

_KIND_BY_ERRNO: dict[int, type[S3volError]] = {
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
    errno.ENAMETOOLONG: NameTooLong,
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: QuotaExceeded,
    errno.EINVAL: Rejected,
    errno.EISDIR: Rejected,
    errno.ENOTDIR: Rejected,
}


def translate(error: BaseException, what: str, *, server_date: Callable[[], str] = lambda: "") -> S3volError | None:
    """The s3vol error for a foreign exception, or None for one that is not the store's (a programming error).

    `server_date` is asked when the store complains about our clock and the exception does not show its own.
    """
    if isinstance(error, S3volError):
        return error
    answer = answer_of(error)
    if answer is not None:
        if answer.code == "RequestTimeTooSkewed" and not answer.server_date:
            answer = replace(answer, server_date=server_date())
        return judge(answer, what)
    reason = _first_line(error)
    if type(error) is RuntimeError and "credentials" in reason.lower():  # botocore's, when renewed keys have expired
        return Unavailable(f"{what}: {reason}")
    if _is_panic(error):
        return Rejected(f"{what}: the S3 client cannot express this request: {reason}")
    if isinstance(error, (obs.BaseError, aws.BotoCoreError)) and "certificate" in str(error).lower():
        return Denied(f"{what}: the server's TLS certificate is not trusted: {reason}")
    if isinstance(error, obs.UnauthenticatedError) and "credential provider" in str(error):
        return Unavailable(f"{what}: the credentials could not be renewed: {reason}")
    if isinstance(error, FileNotFoundError) and error.errno == errno.ENOENT:  # of the chain: a key is told by an answer
        return Unavailable(f"{what}: the credentials could not be renewed: {reason}")
    for kind, ours in _KIND_BY_TYPE:
        if isinstance(error, kind):
            return ours(f"{what}: {reason}")
    if isinstance(error, OSError):
        return _KIND_BY_ERRNO.get(error.errno or 0, Unavailable)(f"{what}: {reason}")
    return None


def _is_panic(error: BaseException) -> bool:
    # pyo3 makes this class at run time, below BaseException, and exports it nowhere.
    return type(error).__name__ == "PanicException"


def _first_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0].strip()
    return text or type(error).__name__


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of the errors of tasks that failed together: the callers know kinds, not groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
