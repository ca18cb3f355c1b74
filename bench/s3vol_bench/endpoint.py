"""The bucket that is measured: its connection as boto3 has it, our prefix in it, and removing everything below it.

Theory of operation. A run owns one prefix with a random name, found empty at the start; nothing outside is written or
read. Where the bucket keeps versions, every version and marker below the prefix is removed as well: else a benchmark
would go on costing money. Where it locks objects by default nothing could be removed, so such a bucket is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from s3vol.errors import UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

_BATCH = 1000  # of DeleteObjects
_POOL = 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How to reach one bucket. `prefix` ends in `/`."""

    url: str
    region: str
    bucket: str
    prefix: str
    access_key: str
    secret_key: str
    session_token: str | None = None
    path_style: bool = True
    ca_bundle: str | None = None
    verify_tls: bool = True

    @property
    def environment(self) -> Mapping[str, str]:
        """What makes a child process use these credentials and no others."""
        token = {"AWS_SESSION_TOKEN": self.session_token} if self.session_token else {}
        bundle = {"AWS_CA_BUNDLE": self.ca_bundle} if self.ca_bundle else {}
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            **token,
            **bundle,
        }

    def client(self) -> S3Client:
        """A boto3 client; it may be used by several threads."""
        make: Any = boto3.session.Session().client
        made: S3Client = make(
            "s3",
            endpoint_url=self.url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            aws_session_token=self.session_token,
            verify=self.ca_bundle or self.verify_tls,
            config=Config(
                s3={"addressing_style": "path" if self.path_style else "virtual"},
                max_pool_connections=_POOL,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        return made


class Room:
    """Our prefix in the bucket."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.client = endpoint.client()
        self._versioned = False

    def enter(self) -> None:
        """Check that we may write and remove here. Raises UsageError with one line."""
        bucket, key = self.endpoint.bucket, f"{self.endpoint.prefix}probe"
        where = f"bucket {bucket!r} at {self.endpoint.url}"
        if self._locks():
            raise UsageError(f"{where}: locks new objects by default, so that a benchmark could not be removed again")
        self._versioned = self._keeps_versions()
        if self.listed(""):
            raise UsageError(f"{where}: {self.endpoint.prefix} is not empty; a benchmark needs a prefix of its own")
        try:
            self.client.put_object(Bucket=bucket, Key=key, Body=b"s3vol")
            self.client.delete_object(Bucket=bucket, Key=key)
        except (ClientError, BotoCoreError) as error:
            needed = "s3:PutObject, s3:GetObject and s3:DeleteObject"
            raise UsageError(f"{where}: may not be written ({_reason(error)}); a benchmark needs {needed}") from None
        self.clean("")

    def _locks(self) -> bool:
        try:
            found = self.client.get_object_lock_configuration(Bucket=self.endpoint.bucket)
        except (ClientError, BotoCoreError):  # there is no such configuration, or no right to see it
            return False
        return bool(found["ObjectLockConfiguration"].get("Rule"))

    def _keeps_versions(self) -> bool:
        try:
            return bool(self.client.get_bucket_versioning(Bucket=self.endpoint.bucket).get("Status"))
        except (ClientError, BotoCoreError):
            return False

    def listed(self, below: str) -> dict[str, tuple[int, str]]:
        """Size and ETag of every object below a path of ours, by its path relative to it."""
        whole = self.endpoint.prefix + below
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.endpoint.bucket, Prefix=whole)
        return {
            row["Key"].removeprefix(whole): (row["Size"], row["ETag"].strip('"'))
            for page in pages
            for row in page.get("Contents", [])
        }

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """An object, or a range of it. Raises botocore's errors."""
        more: Any = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        reply = self.client.get_object(Bucket=self.endpoint.bucket, Key=self.endpoint.prefix + path, **more)
        return reply["Body"].read()

    def clean(self, below: str) -> None:
        """Remove every object, version and unfinished upload below a path of ours. Raises botocore's errors."""
        bucket, whole = self.endpoint.bucket, self.endpoint.prefix + below
        batch: list[ObjectIdentifierTypeDef] = []
        for one in self._everything(whole):
            batch.append(one)
            if len(batch) == _BATCH:
                self.client.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
                batch = []
        if batch:
            self.client.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        for upload in self.client.list_multipart_uploads(Bucket=bucket, Prefix=whole).get("Uploads", []):
            self.client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _everything(self, whole: str) -> Iterator[ObjectIdentifierTypeDef]:
        if not self._versioned:
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.endpoint.bucket, Prefix=whole)
            for listed in pages:
                for row in listed.get("Contents", []):
                    yield {"Key": row["Key"]}
            return
        versions = self.client.get_paginator("list_object_versions").paginate(Bucket=self.endpoint.bucket, Prefix=whole)
        for found in versions:
            for version in found.get("Versions", []):
                yield {"Key": version["Key"], "VersionId": version["VersionId"]}
            for marker in found.get("DeleteMarkers", []):
                yield {"Key": marker["Key"], "VersionId": marker["VersionId"]}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
