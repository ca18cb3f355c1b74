"""Who uses a volume on this node: counts by container-mount, and what follows from them. Pure.

dockerd names each use with an ID. The same ID comes twice at a time (`docker cp` into a running container), comes
again after a crash of dockerd without an Unmount in between, and an Unmount may be lost. So neither a set nor one
number is right: each ID is counted, and the counts are a hint of when to look. The truth is the kernel's: a file
system that no mount namespace has but ours is used by nobody, once the time is over in which dockerd may still be
about to bind what it was told.

Rejected: believing the counts (one lost Unmount keeps a mount until the next boot), and believing the mount tables
alone (between the answer to Mount and the bind mount of the container nothing is to be seen there).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

QUIET_S = (
    180.0  # dockerd waits 120 s for the answer to Mount (moby v20.10 volume/drivers/proxy.go), then binds or gives up
)

Refs = Mapping[str, int]


def taken(refs: Refs, identity: str) -> dict[str, int]:
    """One more use by `identity`."""
    return {**refs, identity: refs.get(identity, 0) + 1}


def returned(refs: Refs, identity: str) -> dict[str, int]:
    """One use less by `identity`; one that is not counted changes nothing."""
    left = {**refs, identity: refs.get(identity, 0) - 1}
    return {name: count for name, count in left.items() if count > 0}


def leaked(refs: Refs, *, in_use: bool, quiet_s: float) -> bool:
    """True when counts are left over: the kernel shows no use, and the last Mount was answered `quiet_s` ago."""
    return bool(refs) and not in_use and quiet_s >= QUIET_S


class Step(enum.Enum):
    """What is to be done about a volume of this node."""

    KEEP = "keep"
    ASK = "ask"  # the counts look left over: clear them, unless Docker runs a container with the volume
    RETIRE = "retire"  # nobody uses it: publish, unmount
    RECOVER = "recover"  # somebody uses it, or the journal may hold data, and no process serves it
    FORGET = "forget"  # nothing is left of it here


def next_step(refs: Refs, *, serving: bool, in_use: bool, dirty: bool, quiet_s: float) -> Step:
    """The step for one volume.

    `serving`: a process serves it. `in_use`: the kernel shows its mount, alive or dead, outside of our own mount
    point. `dirty`: its journal here may hold data that is not published.
    """
    if leaked(refs, in_use=in_use, quiet_s=quiet_s):
        return Step.ASK
    if refs or in_use:
        return Step.KEEP if serving else Step.RECOVER
    if serving:
        return Step.RETIRE
    return Step.RECOVER if dirty else Step.FORGET
