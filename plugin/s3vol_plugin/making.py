"""What a new volume needs before there is a record of it: a bucket, where that was asked for, or daemons of IPFS.

Looked after first, because a record without them is a volume that cannot be mounted; an empty bucket that a refused
record leaves behind harms nobody, and the next try finds it. A volume in IPFS itself is made by its first change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from s3vol.store.ipfs import mounting
from s3vol.store.settings import parse_source
from s3vol_plugin.access import make_bucket_of, peer_of
from s3vol_plugin.options import wants_bucket
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

log = logging.getLogger(__name__)


async def prepare(volume: Volume, given: Mapping[str, str], settings: Settings) -> None:
    """Make what `given`, the options of a new volume, ask for. Raises UsageError, and as a store does."""
    if parse_source(volume.source).kind == "ipfs":
        await mounting.check(peer_of(volume, settings))
    elif wants_bucket(given) and await make_bucket_of(volume, settings):
        log.info("bucket created", extra={"volume": volume.name, "source": volume.source})
