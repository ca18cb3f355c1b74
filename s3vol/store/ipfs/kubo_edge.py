"""Where the exceptions of ipfshttpclient end: a table from what it raises to the kinds of `s3vol.errors`.

Theory of operation. Kubo answers nearly every failure with status 500 and a sentence, so sentences are judged first and
the status after them. A sentence that is not known means "try again": a daemon that is stopping, or whose repository is
locked, says many things.

All of ipfshttpclient is imported here, because the way matters: without its patch of requests, which warns with
urllib3 2 and which nothing here needs.
"""

from __future__ import annotations

import os

from s3vol.errors import Denied, NoSpace, NotFound, Rejected, S3volError, Unavailable

os.environ.setdefault("PY_IPFS_HTTP_CLIENT_PATCH_REQUESTS", "no")

# After that line: the environment is read by the import.
from ipfshttpclient.exceptions import Error as TheirError
from ipfshttpclient.exceptions import StatusError
from ipfshttpclient.http import ClientSync

__all__ = ["ClientSync", "TheirError", "translate"]

# Sentences of Kubo 0.43; the first that is found decides.
_KIND_BY_SENTENCE: tuple[tuple[str, type[S3volError]], ...] = (
    ("block was not found locally", NotFound),
    ("no space left on device", NoSpace),
    ("context deadline exceeded", Unavailable),
    ("produced block is over", Rejected),
    ("invalid path", Rejected),
    ("invalid cid", Rejected),
)

_KIND_BY_STATUS: dict[int, tuple[type[S3volError], str]] = {
    400: (Rejected, ""),
    401: (Denied, "something that wants a password answers here: check the option kubo="),
    403: (
        Denied,
        "Kubo asks for credentials (API.Authorizations), which IPFS-Cluster cannot give: protect it by loopback",
    ),
    404: (Rejected, "this is no Kubo RPC: check the option kubo="),
    405: (Rejected, "this is no Kubo RPC: check the option kubo="),
}


def _status(error: StatusError) -> int:
    return int(getattr(getattr(error.original, "response", None), "status_code", 0))


def translate(error: Exception, what: str) -> S3volError:
    """The s3vol error for an exception of ipfshttpclient, or of requests while a body is read."""
    if isinstance(error, StatusError):
        status = _status(error)
        sentence = str(error)
        for part, kind in _KIND_BY_SENTENCE:
            if part in sentence:
                return kind(f"{what}: {sentence}")
        kind, advice = _KIND_BY_STATUS.get(status, (Unavailable, ""))
        return kind(f"{what}: {advice or sentence} ({status})" if status else f"{what}: {sentence}")
    return Unavailable(f"{what}: {_last_words(error)}; is Kubo running, is the option kubo= its RPC?")


def _last_words(error: Exception) -> str:
    # Chains of four libraries are wrapped into one text; what the system said is at its end.
    text = str(error).partition("\n")[0].strip()
    return text.rpartition("object at 0x")[2].partition(">: ")[2].rstrip("')") or text or type(error).__name__
