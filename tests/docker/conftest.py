"""Fixtures of the docker suite. Engines are shared, for a start costs seconds; each test leaves them as it found them.

Nothing here skips: a machine without Docker, or where namespaces may not be made, fails.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.docker.site import Site
from tests.docker.swarmsite import SwarmSite
from tests.support.minio import Minio


@pytest.fixture(scope="session")
def _site(tmp_path_factory: pytest.TempPathFactory, minio: Minio) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), minio)
    try:
        yield site.open()
    finally:
        site.close()


@pytest.fixture
def site(_site: Site) -> Iterator[Site]:
    """The shared machine: dockerd and driver run, no container, nothing mounted."""
    _site.plugin.tap.forget()
    yield _site
    _site.tidy()


@pytest.fixture(scope="module")
def _swarm(tmp_path_factory: pytest.TempPathFactory, minio: Minio) -> Iterator[SwarmSite]:
    swarm = SwarmSite(tmp_path_factory.mktemp("swarm"), minio)
    try:
        yield swarm.start()
    finally:
        swarm.close()


@pytest.fixture
def swarm(_swarm: SwarmSite) -> Iterator[SwarmSite]:
    """Two machines in a swarm: both run, no service, nothing mounted."""
    yield _swarm
    _swarm.tidy()
