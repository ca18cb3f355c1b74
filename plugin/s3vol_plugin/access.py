"""The stores of the driver: that of the registry, and that of a volume, each opened with its own credentials.

A mount process opens its volume itself (`s3vol mount`); what is opened here is for what happens without a mount: the
registry, deleting the objects of a removed volume, importing. Both ways resolve options alike: the volume's own over
the node's defaults, and named credentials in the place of what the environment has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from s3vol import layers
from s3vol.config import MountOptions
from s3vol.store.base import Store
from s3vol.store.buckets import make_bucket
from s3vol.store.ipfs import mounting
from s3vol.store.open import compose, open_store
from s3vol.store.settings import IpfsSettings, Source, StoreSettings, ipfs_settings, parse_source, store_settings
from s3vol.types import Health
from s3vol_plugin import credentials
from s3vol_plugin.layering import in_force, keys_of
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume

_SILENCE_S = 10.0  # records are small, and a Mount is to be repeated soon on a new connection when packets were lost


@asynccontextmanager
async def open_registry(settings: Settings, *, health: Health | None = None) -> AsyncIterator[Store]:
    """The store that the registry is in: a bucket, a directory, or the pinset of this node's cluster.

    Raises UsageError for what the user can correct, Unavailable.
    """
    source = parse_source(settings.source)
    options = _resolve(settings, source)
    if source.kind == "ipfs":
        access = replace(store_settings(options), attempt_timeout_s=_SILENCE_S)
        pinset = await mounting.open_pinset(source, ipfs_settings(options))
        store: Store = compose(pinset, access, health or Health())
    else:
        access = replace(_with_keys(options, settings, settings.credentials), attempt_timeout_s=_SILENCE_S)
        store = await open_store(source, access, health=health)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def open_volume(volume: Volume, settings: Settings) -> AsyncIterator[Store]:
    """The store that the objects of a volume are in. Raises UsageError for what the user can correct, Unavailable."""
    store = await open_store(parse_source(volume.source), _access(volume, settings))
    try:
        yield store
    finally:
        await store.aclose()


async def make_bucket_of(volume: Volume, settings: Settings) -> bool:
    """Make a volume's bucket unless it is there; True when it was made. Raises UsageError, and as a store does."""
    return await make_bucket(parse_source(volume.source), _access(volume, settings))


def peer_of(volume: Volume, settings: Settings) -> IpfsSettings:
    """How the daemons of a volume in IPFS are reached here. Raises UsageError for a login that is not on this node."""
    return ipfs_settings(mount_options(volume, settings))


def mount_options(volume: Volume, settings: Settings) -> MountOptions:
    """The options that a volume is mounted with on this node. Raises UsageError for a record of a later version."""
    return _resolve(settings, parse_source(volume.source), volume)


def _resolve(settings: Settings, source: Source, volume: Volume | None = None) -> MountOptions:
    own = layers.Layer(volume.options if volume else {}, lambda name: f"option {name}")
    values = in_force(settings, source, own.values, volume.credentials if volume else "")
    return layers.resolve([own, layers.Layer(values, lambda name: f"plugin.toml [defaults] {name}")])


def _access(volume: Volume, settings: Settings) -> StoreSettings:
    return _with_keys(mount_options(volume, settings), settings, keys_of(settings, volume))


def _with_keys(options: MountOptions, settings: Settings, name: str) -> StoreSettings:
    found = store_settings(options)
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
