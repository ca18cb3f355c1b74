"""How keys, metadata and ETags look on the wire of S3: pure functions.

Theory of operation. A header carries printable ASCII only, and its ends are trimmed on the way. A metadata value that
this would change is written as RFC 2047 encoded words, which is what MinIO and AWS themselves answer when somebody
stored such a value, so text survives in both directions and other readers can decode it. A value that merely looks
like an encoded word is encoded too: decoding is then always right for what we wrote.

obstore normalises keys (it strips a trailing `/` and refuses control characters) and takes six metadata names for
system headers; `is_plain_key` and `is_plain_metadata` say what it can be trusted with. The rest goes through botocore.

Rejected: percent-encoding values (no other tool would decode them), and sending raw UTF-8 (obstore can, botocore
refuses, and hand-signed requests fail with SignatureDoesNotMatch on MinIO).
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from typing import IO, cast

from s3vol.errors import MetadataTooLarge, PreconditionFailed, Rejected, Unavailable
from s3vol.layout import metadata_bytes
from s3vol.store.base import Buffer, Capabilities
from s3vol.types import KIB

_NAME = re.compile(r"[0-9a-z!#$%&'*+.^_`|~-]+")  # RFC 9110 token, lower case
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PLAIN_VALUE = re.compile(r"[\x20-\x7e\t]*")
_WORD = r"=\?utf-8\?([qb])\?([^?\s]*)\?="
_WORDS = re.compile(rf"{_WORD}(?:\s+{_WORD})*", re.IGNORECASE)
_ONE_WORD = re.compile(_WORD, re.IGNORECASE)
_WORD_MAX_BYTES = 75 - len("=?UTF-8?q??=")  # RFC 2047, section 2
_Q_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!*+-/.,:;@%&()[]{}<>|~^'$#\"\\`")

_SEALED = re.compile(r"20(00|01)0f00[0-9a-f]{88}")  # DARE 2.0: header, 16 bytes, tag
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"

_ASKED_BYTES = 16 * KIB  # what urllib3 reads and sends at a time
_SENT_BYTES = 256 * KIB  # passes within the shortest time-out at 0.5 MB/s

_NOT_PLAIN_KEY = re.compile(r"[\x00-\x1f\x7f]")
_SYSTEM_NAMES = frozenset(
    {"cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "storage-class"}
)
"""obstore writes these metadata names, in any case, as system headers."""


def is_plain_key(key: str) -> bool:
    """True when obstore sends exactly this key."""
    return not key.endswith("/") and _NOT_PLAIN_KEY.search(key) is None


def is_plain_metadata(metadata: Mapping[str, str]) -> bool:
    """True when obstore writes all of these names as user metadata."""
    return _SYSTEM_NAMES.isdisjoint(metadata)


def check_alias(key: str) -> None:
    """Raise Rejected for a key that MinIO would store under another name (measured: `x__XLDIR__` is listed as `x/`)."""
    if "__XLDIR__" in key and any(part.endswith("__XLDIR__") for part in key.split("/")):
        raise Rejected(f"key {key!r}: MinIO takes the ending __XLDIR__ for a directory marker")


def encode_metadata(metadata: Mapping[str, str], caps: Capabilities) -> dict[str, str]:
    """Metadata as headers carry it. Raises Rejected for what none can, MetadataTooLarge."""
    encoded = {}
    for name, value in metadata.items():
        lower = name.lower()
        if not _NAME.fullmatch(lower):
            raise Rejected(f"metadata name {name!r} is no HTTP header name")
        encoded[lower] = encode_value(value)
    size_bytes = metadata_bytes(encoded)
    if size_bytes > caps.max_metadata_bytes:
        raise MetadataTooLarge(f"user metadata of {size_bytes} bytes: at most {caps.max_metadata_bytes} are possible")
    return encoded


def decode_metadata(name: str, value: str) -> tuple[str, str]:
    """One entry as the program sees it."""
    return name.lower(), decode_value(value)


def encode_value(text: str) -> str:
    """`text`, as encoded words if a header would change it. Raises Rejected for control characters."""
    if _CONTROL.search(text):
        raise Rejected(f"metadata value {text!r} has a control character: a header cannot carry it")
    if _PLAIN_VALUE.fullmatch(text) and text == text.strip() and "=?" not in text:
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Rejected(f"metadata value {text!r} is not UTF-8") from None
    return min(_words(text, "q"), _words(text, "b"), key=len)


def _words(text: str, form: str) -> str:
    words: list[str] = []
    word = ""
    start = 0
    for end in range(1, len(text) + 1):  # words break between characters, never inside one
        longer = _encode_word(text[start:end], form)
        if len(longer) > _WORD_MAX_BYTES:
            words.append(word)
            start = end - 1
            longer = _encode_word(text[start:end], form)
        word = longer
    words.append(word)
    return " ".join(f"=?UTF-8?{form}?{word}?=" for word in words)


def _encode_word(text: str, form: str) -> str:
    raw = text.encode()
    if form == "b":
        return base64.b64encode(raw).decode()
    return "".join(chr(byte) if byte in _Q_SAFE else "_" if byte == 0x20 else f"={byte:02X}" for byte in raw)


def decode_value(text: str) -> str:
    """The text of a header: encoded words decoded, raw UTF-8 that an HTTP client read as Latin-1 repaired."""
    if "=?" in text and _WORDS.fullmatch(text):
        try:
            return b"".join(_decode_word(*found.groups()) for found in _ONE_WORD.finditer(text)).decode()
        except (ValueError, binascii.Error):
            return text
    if not text.isascii():
        try:
            return text.encode("latin-1").decode()
        except UnicodeError:
            return text
    return text


def _decode_word(form: str, text: str) -> bytes:
    if form in "bB":
        return base64.b64decode(text, validate=True)
    return binascii.a2b_qp(text.encode(), header=True)


def bare(etag: str | None) -> str:
    """An ETag without quotes and weakness mark."""
    return (etag or "").removeprefix("W/").strip('"')


def told_etag(what: str, etag: str | None) -> str:
    """The ETag of what was written, without quotes. Raises Unavailable when the answer has none: whether it was
    written is then to be looked up, and the next If-Match would mean nothing."""
    found = bare(etag)
    if not found:
        raise Unavailable(f"{what}: the answer does not say which version was written")
    return found


def told_size(what: str, length: str | int | None, etag: str | None) -> int:
    """Bytes of an object, of which an answer to HEAD says `length`. Raises Unavailable when it says nothing.

    A proxy that compresses or re-frames answers takes Content-Length away; only of what is empty it may be left out.
    """
    if length is None and bare(etag) != EMPTY_MD5:
        raise Unavailable(f"{what}: the answer does not say how long the object is: does a proxy change answers?")
    return int(length or 0)


def check_version(what: str, if_match: str | None, etag: str | None) -> None:
    """Raise PreconditionFailed when the answer to a GET is of another version than the one that was asked for.

    A server that ignores If-Match, or a proxy that drops it, would else mix two versions into one file.
    """
    told = bare(etag)
    if if_match is not None and told not in ("", if_match) and not is_sealed(told):
        raise PreconditionFailed(f"{what}: has ETag {told}, not {if_match}, and the condition was ignored")


def is_sealed(etag: str) -> bool:
    """True for an ETag as MinIO's HEAD gives it of an encrypted directory marker, and of nothing else (measured)."""
    return _SEALED.fullmatch(etag) is not None


def unsealed(etag: str, *, size: int, sse: str) -> str:
    """The ETag that PUT and listings give of the same marker; an ETag that is not sealed as it is.

    With SSE-KMS and SSE-C that is the end of the sealed one. With SSE-S3 it is the body's MD5: a marker has no body.
    One that has is no directory's, and its ETag is compared with nothing.
    """
    if not is_sealed(etag):
        return etag
    return EMPTY_MD5 if sse == "AES256" and not size else etag[-len(EMPTY_MD5) :]


def quoted(etag: str) -> str:
    """An ETag as If-Match wants it (RFC 9110)."""
    return f'"{etag}"'


class _File(io.RawIOBase):
    """A buffer as a file, without copying it.

    Given bytes, http.client sends them by one `sendall`, whose time-out covers the whole body; given a file it sends
    blocks, and the time-out covers one block. A slow link is then no failure, and a dead one still is. Who asks for
    blocks of 16 KiB, as urllib3 does, is given larger ones: each is a way through the interpreter, which the event
    loop needs as well.
    """

    def __init__(self, buffer: Buffer) -> None:
        super().__init__()
        self._view = memoryview(buffer).cast("B")
        self._at = 0

    def __len__(self) -> int:
        return len(self._view)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes: the signature is computed first."""
        return True

    def readinto(self, target: Buffer) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer has no run-time name
        """Copy the next bytes into `target`."""
        piece = self._view[self._at : self._at + len(target)]
        memoryview(target)[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def read(self, size: int = -1) -> bytes:
        """The next bytes; more than `size` for who asks for blocks."""
        if size >= _ASKED_BYTES:
            size = max(size, _SENT_BYTES)
        piece = self._view[self._at :] if size < 0 else self._view[self._at : self._at + size]
        self._at += len(piece)
        return bytes(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; returns the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at


def as_file(buffer: Buffer) -> IO[bytes]:
    """The buffer as a file for botocore, not copied."""
    return cast("IO[bytes]", _File(buffer))
