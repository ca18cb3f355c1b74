"""From a source and settings to a composed Store: the one place where backends meet decorators.

Theory of operation. The order, from inside: backend, trace (sees every attempt), limit (a slot is held by an attempt,
not by the pause before the next one), retry (its deadline covers waiting for a slot).

An S3 source is checked before it is believed: one signed listing tells a wrong endpoint, key, secret, bucket, region or
clock from each other, which the bodyless answers of HEAD cannot, and each becomes one line that names the input and the
way out. What may pass by itself (503 while a server starts, silence) is retried like any call; a refused connection is
not, because somebody who mistyped a port should not wait a minute for the answer. Then the probe runs, unless the
caller knows the capabilities from before.

Rejected: checking with HeadBucket (a bare 403 for four different mistakes).
"""

from __future__ import annotations

import re
from pathlib import Path

import botocore.exceptions

from s3vol.errors import S3volError, UsageError
from s3vol.store import edge
from s3vol.store.base import Capabilities, Store
from s3vol.store.connections import Reply
from s3vol.store.decorator import Call
from s3vol.store.file import FileStore
from s3vol.store.limit import LimitStore
from s3vol.store.memory import MemoryStore
from s3vol.store.probe import probe
from s3vol.store.retry import RetryStore
from s3vol.store.s3 import S3Store
from s3vol.store.s3_client import Client, connect
from s3vol.store.settings import Source, StoreSettings, parse_source
from s3vol.store.trace import TraceStore
from s3vol.types import Health

__all__ = ["Source", "StoreSettings", "compose", "open_s3", "open_store", "parse_source"]

_SLACK_S = 5.0
"""The retry's cut of an attempt comes this much after the clients' own time-outs, whose messages say more."""


async def open_store(
    source: Source,
    settings: StoreSettings,
    *,
    health: Health | None = None,
    capabilities: Capabilities | None = None,
) -> Store:
    """The store of a source, ready for use; the caller closes it. `capabilities` skips the probe.

    Raises UsageError for what the user can correct, Unavailable when the store does not answer within `timeout_s`.
    """
    health = health or Health()
    if source.kind == "ipfs":
        raise UsageError(f"source {source.url}: a volume in IPFS is for mount, doctor, fsck, gc and export only")
    if source.kind == "memory":
        return compose(MemoryStore(), settings, health)
    if source.kind == "file":
        return compose(await FileStore.open(Path(source.directory)), settings, health)
    return compose(await open_s3(source, settings, capabilities=capabilities), settings, health)


def compose(backend: Store, settings: StoreSettings, health: Health) -> Store:
    """The backend within trace, limit and retry."""
    slots = max(1, settings.connections // 2)  # half for reads, half for changes: neither can starve the other
    limited = LimitStore(TraceStore(backend, health), reads=slots, writes=slots)
    return _retrying(limited, settings, health)


def _retrying(inner: Store, settings: StoreSettings, health: Health) -> RetryStore:
    attempt_s = settings.connect_timeout_s + settings.attempt_timeout_s + _SLACK_S
    return RetryStore(inner, timeout_s=settings.timeout_s, attempt_timeout_s=attempt_s, health=health)


async def open_s3(source: Source, settings: StoreSettings, *, capabilities: Capabilities | None = None) -> S3Store:
    """The bare S3 backend, checked and probed. Raises as open_store."""
    client = await connect(source, settings)
    try:
        store = S3Store(client, source, capabilities or Capabilities())
        retry = _retrying(store, settings, Health())
        await retry.around(Call("list", source.prefix), lambda: _check(client, source))
        if capabilities is None:
            store = store.with_capabilities(await retry.around(Call("list", source.prefix), lambda: probe(store)))
    except BaseException:
        client.close()
        raise
    return store


async def _check(client: Client, source: Source) -> None:
    """Raise UsageError unless the bucket can be listed; retryable errors as they are."""
    what = f"list {source.url}"

    def ask() -> Reply:
        try:
            return client.signed_get("list-type=2&max-keys=1")
        except botocore.exceptions.ConnectionError as error:
            reason = _reason(error)
            doubt = "is the server running, is this its URL?"
            if "proxy" in reason:
                doubt = "the proxy is from HTTP_PROXY or HTTPS_PROXY, and NO_PROXY names hosts that need none"
            if "CERTIFICATE" in reason:
                doubt = "--ca-bundle FILE names the authorities to trust"
            raise UsageError(f"endpoint {client.endpoint}: cannot connect ({reason}); {doubt}") from error

    reply = await client.read(what, ask)
    if reply.status != 200:
        raise explain(reply, client, source)
    if b"<ListBucketResult" not in reply.body[:1024]:
        raise UsageError(f"endpoint {client.endpoint}: answers, but not as S3 does; is this the port of a console?")


# As urllib3 shows its own.
_OBJECTS = re.compile(r"<[^>]*>: |(AWSHTTPS?Connection)?\([^()]*(object at 0x|port=)[^()]*\): ")


def _reason(error: botocore.exceptions.ConnectionError) -> str:
    inner = str(error.kwargs.get("error", error))
    return _OBJECTS.sub("", " ".join(inner.split()))


def explain(reply: Reply, client: Client, source: Source) -> S3volError:
    """What a refused listing means to the user; a retryable error stays one."""
    answer = edge.answer_of_body(reply.status, reply.body.decode("utf-8", "replace"), reply.date)
    error = edge.judge(answer, source.url)
    if error.retryable and answer.status >= 429:
        return error
    where = f"bucket {source.bucket!r} at {client.endpoint}"
    region = reply.headers.get("x-amz-bucket-region", "")
    if region and region != client.region:
        return UsageError(f"{where}: is in region {region}, not {client.region}; set --region {region}")
    told = {
        "NoSuchBucket": f"{where}: does not exist; create it, or check the name",
        "InvalidAccessKeyId": f"{where}: the access key is not known there; check AWS_ACCESS_KEY_ID or the profile",
        "SignatureDoesNotMatch": f"{where}: the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile",
        "AccessDenied": f"{where}: these credentials may not list it; allow s3:ListBucket, or use others",
    }
    if answer.code in told:
        return UsageError(told[answer.code])
    if not answer.code:
        line = reply.body[:200].decode("utf-8", "replace").strip().partition("\n")[0]
        return UsageError(f"endpoint {client.endpoint}: answers {answer.status}, but not as S3 does: {line!r}")
    return UsageError(str(error))
