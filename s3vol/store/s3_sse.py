"""Server-side encryption: which headers go with which request. Pure, but for reading the key file.

Theory of operation. With SSE-S3 and SSE-KMS the store has the key: what makes an object (PUT, beginning of an upload)
asks for it, and everything else is as without. With SSE-C the key travels with every request that touches content:
made and read objects, each part, and twice with a copy, for the source and for the target. The store keeps a hash of it
and forgets it.

A customer's key is a file, never an option's value: command lines, tables of mounts and records of volumes can be read
by others. It is sent over https only; S3 refuses it otherwise, when it has been seen by everybody on the way.

Rejected: one key for reading and another for writing (a rotation would need every object to say which).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from s3vol.errors import UsageError
from s3vol.store.settings import StoreSettings

if TYPE_CHECKING:
    from obstore.store import S3Config

_SSE = "x-amz-server-side-encryption"
_CUSTOMER = f"{_SSE}-customer"
KEY_BYTES = 32  # AES-256, the only one that S3 has
_FILE_MAX_BYTES = 1024
_HEADER: Mapping[Literal["aes256", "aws:kms"], Literal["AES256", "aws:kms"]] = {
    "aes256": "AES256",
    "aws:kms": "aws:kms",
}


@dataclass(frozen=True, slots=True)
class Encryption:
    """What is asked for; empty values mean: nothing, the bucket's own rule holds. At most one of the two is set."""

    sse: Literal["aes256", "aws:kms"] | None = None
    kms_key: str = ""
    customer_key: bytes = field(default=b"", repr=False)

    @property
    def asked(self) -> bool:
        """True when there is any."""
        return self.sse is not None or bool(self.customer_key)

    def making(self) -> dict[str, Any]:
        """For what makes an object: put_object, create_multipart_upload."""
        if self.sse is None:
            return self.touching()
        key = {"SSEKMSKeyId": self.kms_key} if self.kms_key else {}
        return {"ServerSideEncryption": _HEADER[self.sse], **key}

    def touching(self) -> dict[str, Any]:
        """For what reads an object or adds to an upload: head, get, upload_part."""
        return self._customer("") if self.customer_key else {}

    def copying(self) -> dict[str, Any]:
        """For upload_part_copy, whose source and target are both ours."""
        return self.touching() | self._customer("CopySource") if self.customer_key else {}

    def _customer(self, prefix: str) -> dict[str, Any]:
        return {f"{prefix}SSECustomerAlgorithm": "AES256", f"{prefix}SSECustomerKey": self.customer_key}

    def headers(self, *, making: bool = False) -> dict[str, str]:
        """The same for what is sent as it is (s3_light)."""
        if self.customer_key:
            key, digest = self.customer_key, hashlib.md5(self.customer_key, usedforsecurity=False).digest()
            return {
                f"{_CUSTOMER}-algorithm": "AES256",
                f"{_CUSTOMER}-key": base64.b64encode(key).decode(),
                f"{_CUSTOMER}-key-md5": base64.b64encode(digest).decode(),
            }
        if self.sse is None or not making:
            return {}
        found: dict[str, str] = {_SSE: _HEADER[self.sse]}
        return found | ({f"{_SSE}-aws-kms-key-id": self.kms_key} if self.kms_key else {})

    def fast(self) -> S3Config:
        """The same for obstore, which adds what each request needs."""
        if self.customer_key:
            text = base64.b64encode(self.customer_key).decode()
            return {"server_side_encryption": "sse-c", "sse_customer_key_base64": text}
        if self.sse is None:
            return {}
        found: S3Config = {"server_side_encryption": _HEADER[self.sse]}
        if self.kms_key:
            found["sse_kms_key_id"] = self.kms_key
        return found


def encryption(settings: StoreSettings) -> Encryption:
    """The encryption that the settings ask for. Reads the key file. Raises UsageError."""
    if settings.sse_kms_key and settings.sse != "aws:kms":
        raise UsageError(f"sse-kms-key {settings.sse_kms_key!r}: is for sse=aws:kms only")
    if settings.sse_c_key is None:
        return Encryption(settings.sse, settings.sse_kms_key or "")
    if settings.sse:
        raise UsageError(f"sse={settings.sse} and sse-c-key: an object has one kind of encryption; give one of them")
    return Encryption(customer_key=_read_key(settings.sse_c_key))


def check_transport(asked: Encryption, endpoint: str) -> None:
    """Raise UsageError when a customer's key would travel in clear."""
    if asked.customer_key and not endpoint.startswith("https://"):
        raise UsageError(f"endpoint {endpoint}: sse-c-key would be sent in clear text; use an https endpoint")


def _read_key(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo must not hang the start
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"sse-c-key {path}: is no regular file")
            if status.st_mode & 0o077:
                raise UsageError(f"sse-c-key {path}: other users can read it; `chmod 600 {path}`")
            text = file.read(_FILE_MAX_BYTES)
    except OSError as error:
        raise UsageError(f"sse-c-key {path}: {error.strerror}") from None
    if len(text) == KEY_BYTES:
        return text
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        made = f"`(umask 077; head -c {KEY_BYTES} /dev/urandom | base64 > {path})` makes one"
        raise UsageError(f"sse-c-key {path}: is no key: {KEY_BYTES} bytes, or the same in base64; {made}")
    return key
