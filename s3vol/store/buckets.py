"""Making a bucket that is missing: for who asked for that in so many words.

Nothing else of s3vol makes a bucket, because a mistyped name would make one, and an empty one looks like data loss. A
bucket that is there, whoever made it, is left as it is: looked for first, so that credentials which may not make
buckets can name one that exists. Nothing ever removes a bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import botocore.exceptions

from s3vol.errors import UsageError
from s3vol.store.edge import answer_of_body
from s3vol.store.open import explain
from s3vol.store.s3_client import Client, connect
from s3vol.store.settings import Source, StoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CreateBucketConfigurationTypeDef

_THERE = ("BucketAlreadyOwnedByYou",)
_OF_OTHERS = ("BucketAlreadyExists",)
_US = "us-east-1"  # the one region of AWS that must not be named


async def make_bucket(source: Source, settings: StoreSettings) -> bool:
    """Make the bucket of a source unless it is there; True when it was made.

    Raises UsageError for what the user can correct, and what a store raises.
    """
    client = await connect(source, settings)
    try:
        what = f"bucket {source.bucket!r} at {client.endpoint}"
        reply = await client.read(what, client.signed_get, "list-type=2&max-keys=1")
        if reply.status == 200:
            return False
        answer = answer_of_body(reply.status, reply.body.decode("utf-8", "replace"), reply.date)
        if answer.code != "NoSuchBucket":
            raise explain(reply, client, source)
        return await client.change(what, _make, client, what)
    finally:
        client.close()


def _make(client: Client, what: str) -> bool:
    where = cast("CreateBucketConfigurationTypeDef", {"LocationConstraint": client.region})
    try:
        if client.region == _US or ".amazonaws." not in client.endpoint:
            client.slow.create_bucket(Bucket=client.bucket)
        else:
            client.slow.create_bucket(Bucket=client.bucket, CreateBucketConfiguration=where)
    except botocore.exceptions.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _THERE:  # another node was faster
            return False
        if code in _OF_OTHERS:
            raise UsageError(f"{what}: belongs to somebody else; choose another name") from None
        if code == "AccessDenied":
            raise UsageError(f"{what}: does not exist, and these credentials may not create it") from None
        raise
    return True
