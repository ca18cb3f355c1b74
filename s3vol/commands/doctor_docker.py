"""`s3vol doctor --docker [SOURCE]`: what is wrong with the volume driver on this node.

The facts of this node are the driver's own room (s3vol_plugin.checkup). The registry, SOURCE or that of this node's
settings, adds what only the bucket knows: volumes that this node's driver has not heard of, records that are damaged,
and the server's clock. Each part that cannot be asked is a finding, and the others are examined nevertheless.
"""

from __future__ import annotations

import argparse
import dataclasses
import email.utils
import http.client
import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio

from s3vol.commands.plugin_settings import node_settings
from s3vol.errors import S3volError
from s3vol.store.edge import first_error
from s3vol.store.settings import parse_source
from s3vol_plugin import checkup
from s3vol_plugin.access import open_registry
from s3vol_plugin.registry import BucketRegistry
from s3vol_plugin.settings import Settings

_REGISTRY_S = 20.0
_CLOCK_S = 5.0
_AWS = "https://s3.amazonaws.com"


@dataclass(frozen=True, slots=True)
class Registered:
    """What the registry says: names of volumes, and a line for each record that cannot be read."""

    names: Sequence[str] = ()
    findings: Sequence[str] = ()


def run(args: argparse.Namespace) -> int:
    """Print a line for each finding; returns 1 when there are any."""
    settings = node_settings()
    if args.source is not None:
        defaults = {**settings.defaults, **args.given}
        settings = dataclasses.replace(settings, source=parse_source(args.source).url, defaults=defaults)
    registered = _registered(settings)
    facts = checkup.gather(settings, registered=registered.names, skew_s=_skew_s(settings))
    findings = [*checkup.judge(facts), *registered.findings]
    if args.json:
        print(json.dumps({**dataclasses.asdict(facts), "findings": findings}, indent=2, default=str))
    else:
        print("\n".join(findings or ["ok: the driver answers, dockerd knows it, nothing is shadowed, dead or leaked"]))
    return 1 if findings else 0


def _registered(settings: Settings) -> Registered:
    if not settings.source:
        return Registered(findings=["this node has no settings of the driver: `s3vol plugin install` makes them"])
    try:
        return trio.run(_read, settings)
    except ExceptionGroup as group:
        error = first_error(group)
        if not isinstance(error, S3volError):
            raise
        return _unread(settings, error)
    except S3volError as error:
        return _unread(settings, error)


def _unread(settings: Settings, error: S3volError) -> Registered:
    return Registered(findings=[f"the registry {settings.source} cannot be read: {error}"])


async def _read(settings: Settings) -> Registered:
    """The registry as it is now; nothing of it is kept. Raises S3volError."""
    with trio.move_on_after(_REGISTRY_S):
        async with open_registry(settings) as store:
            registry = BucketRegistry(store, settings.node, None)
            await registry.refresh()
            return Registered([volume.name for volume in registry.all()], [bad.error for bad in registry.damaged])
    raise S3volError(f"no answer within {_REGISTRY_S:g} s")


def _skew_s(settings: Settings) -> float | None:
    """How far this clock is ahead of the S3 server's, by the Date of any answer; None when it does not say."""
    if parse_source(settings.source or "memory:").kind != "s3":
        return None
    url = urlsplit(settings.defaults.get("endpoint") or _AWS)
    try:
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=settings.defaults.get("ca-bundle"))
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.netloc, timeout=_CLOCK_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(url.netloc, timeout=_CLOCK_S)
        try:
            connection.request("HEAD", "/")
            date = connection.getresponse().headers["Date"]
        finally:
            connection.close()
        return time.time() - (email.utils.parsedate_to_datetime(date).timestamp() + 0.5)  # whole seconds, cut off
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        return None
