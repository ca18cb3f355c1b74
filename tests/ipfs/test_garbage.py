"""Garbage of a file that is rewritten goes, through mounts that work meanwhile, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ipfs.churn import Plan, churn
from tests.ipfs.site import Site
from tests.support.ipfs import Swarm

pytestmark = [pytest.mark.ipfs, pytest.mark.kernel]

MIB = 1 << 20


@pytest.mark.timeout(900)
def test_a_repository_stays_small_over_twenty_commits_of_a_changing_file(swarm: Swarm, tmp_path: Path) -> None:
    plan = Plan(
        commits=20,
        file_bytes=8 * MIB,
        kept_bytes=8 * MIB,
        bound_bytes=64 * MIB,
        look_every=5,
        pauses=True,
        spare_bytes=16 * MIB,  # IPFS-Cluster may leave the pin of a segment that went while it was copied
    )
    site = Site(swarm, tmp_path)
    try:
        course = churn(site, plan)
    finally:
        site.close()
    rewritten_bytes = plan.commits * plan.file_bytes
    assert max(course.sizes[0]) < plan.bound_bytes + plan.look_every * plan.file_bytes < rewritten_bytes
