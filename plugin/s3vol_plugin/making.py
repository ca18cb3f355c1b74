"""What a new volume needs in its store before there is a record of it: a bucket, where that was asked for.

Made first, because a record without a bucket is a volume that cannot be mounted; an empty bucket that a refused record
leaves behind harms nobody, and the next try finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from s3vol_plugin.access import make_bucket_of
from s3vol_plugin.options import wants_bucket
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

log = logging.getLogger(__name__)


async def prepare(volume: Volume, given: Mapping[str, str], settings: Settings) -> None:
    """Make what `given`, the options of a new volume, ask for. Raises UsageError, and as a store does."""
    if wants_bucket(given) and await make_bucket_of(volume, settings):
        log.info("bucket created", extra={"volume": volume.name, "source": volume.source})
