"""The stores of the driver: that of the registry, and that of a volume, each opened with its own credentials.

A mount process opens its volume itself (`s3vol mount`); what is opened here is for what happens without a mount: the
registry, deleting the objects of a removed volume, importing. Both ways resolve options alike: the volume's own over
the node's defaults, and named credentials in the place of what the environment has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from s3vol import layers
from s3vol.config import MountOptions
from s3vol.store.base import Store
from s3vol.store.buckets import make_bucket
from s3vol.store.open import open_store
from s3vol.store.settings import StoreSettings, parse_source, store_settings
from s3vol.types import Health
from s3vol_plugin import credentials
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

_SILENCE_S = 10.0  # records are small, and a Mount is to be repeated soon on a new connection when packets were lost


@asynccontextmanager
async def open_registry(settings: Settings, *, health: Health | None = None) -> AsyncIterator[Store]:
    """The store that the registry is in. Raises UsageError for what the user can correct, Unavailable."""
    access = replace(_access(settings, {}, settings.credentials), attempt_timeout_s=_SILENCE_S)
    store = await open_store(parse_source(settings.source), access, health=health)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def open_volume(volume: Volume, settings: Settings) -> AsyncIterator[Store]:
    """The store that the objects of a volume are in. Raises UsageError for what the user can correct, Unavailable."""
    access = _access(settings, volume.options, volume.credentials or settings.credentials)
    store = await open_store(parse_source(volume.source), access)
    try:
        yield store
    finally:
        await store.aclose()


async def make_bucket_of(volume: Volume, settings: Settings) -> bool:
    """Make a volume's bucket unless it is there; True when it was made. Raises UsageError, and as a store does."""
    access = _access(settings, volume.options, volume.credentials or settings.credentials)
    return await make_bucket(parse_source(volume.source), access)


def mount_options(volume: Volume, settings: Settings) -> MountOptions:
    """The options that a volume is mounted with on this node. Raises UsageError for a record of a later version."""
    return _resolve(settings, volume.options)


def _resolve(settings: Settings, options: Mapping[str, str]) -> MountOptions:
    own = layers.Layer(options, lambda name: f"option {name}")
    return layers.resolve([own, layers.Layer(settings.defaults, lambda name: f"plugin.toml [defaults] {name}")])


def _access(settings: Settings, options: Mapping[str, str], name: str) -> StoreSettings:
    found = store_settings(_resolve(settings, options))
    if not name:
        return found
    keys = credentials.read(settings.credentials_directory, name)
    return replace(
        found,
        profile=None,
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        session_token=keys.session_token,
    )
