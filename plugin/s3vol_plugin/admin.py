"""The administrator's socket of the daemon: what `s3vol plugin status` and a metrics collector ask (s3vol.control).

It is not the plugin's socket: who may talk to dockerd's plugins may not forget records, and a question here must
not wait behind dockerd's. Operations:

* `status`: the daemon, and the volumes that are used on this node.
* `volumes`: all volumes of the registry's copy, with their Status here.
* `metrics`: `{"text": ...}` in Prometheus' text format.
* `refresh`: read the registry and compare with the kernel now.
* `drain` (`timeout_s`): wait until all that is mounted here has published all; with progress. Nothing is unmounted that
  is in use.
* `forget` (`name`): drop the record of a volume that is not served here, whatever its journal holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from s3vol.control import Operation, Peer
from s3vol.errors import UsageError
from s3vol_plugin.node import Node
from s3vol_plugin.report import daemon_status, metrics, used_here, volume_status
from s3vol_plugin.upkeep import Upkeep

_POLL_S = 0.5
_DRAIN_S = 300.0

Values = Mapping[str, Any]


def operations(node: Node, upkeep: Upkeep) -> Mapping[str, Operation]:
    """The operations by name."""

    async def status(request: Values, peer: Peer) -> Values:
        return {"daemon": daemon_status(node), "volumes": used_here(node)}

    async def volumes(request: Values, peer: Peer) -> Values:
        return {"volumes": [{"name": one.name, **volume_status(node, one)} for one in node.names.all()]}

    async def text(request: Values, peer: Peer) -> Values:
        return {"text": metrics(node)}

    async def refresh(request: Values, peer: Peer) -> Values:
        await node.registry.refresh()
        await upkeep.reconcile()
        return {"daemon": daemon_status(node)}

    async def drain(request: Values, peer: Peer) -> Values:
        return await _drain(node, peer, _seconds(request))

    async def forget(request: Values, peer: Peer) -> Values:
        return {"forgotten": await _forget(node, str(request.get("name", "")))}

    return {
        "status": status,
        "volumes": volumes,
        "metrics": text,
        "refresh": refresh,
        "drain": drain,
        "forget": forget,
    }


def _seconds(request: Values) -> float:
    try:
        return float(request.get("timeout_s", _DRAIN_S))
    except (TypeError, ValueError):
        raise UsageError("timeout_s: must be a number of seconds") from None


async def _drain(node: Node, peer: Peer, timeout_s: float) -> Values:
    """What is left, by volume, when all is published or the time is over."""
    left: dict[str, Mapping[str, int]] = {}
    with trio.move_on_after(timeout_s):
        while True:
            left = await _unpublished(node)
            if not left:
                break
            peer.report(volumes=left)
            await trio.sleep(_POLL_S)
    return {"unpublished": left}


async def _unpublished(node: Node) -> dict[str, Mapping[str, int]]:
    found: dict[str, Mapping[str, int]] = {}
    for record in node.state.all():
        status = await node.workers.status(record.volume.uuid)
        files, size_bytes = status.get("dirty_files", 0), status.get("dirty_bytes", 0)
        if files or size_bytes:
            found[record.volume.name] = {"files": files, "bytes": size_bytes}
    return found


async def _forget(node: Node, name: str) -> int:
    records = node.state.named(name)
    if not records:
        raise UsageError(f"volume {name}: is not used on this node")
    for record in records:
        async with node.lock(record.volume.uuid):
            if node.workers.get(record.volume.uuid) is not None:
                raise UsageError(f"volume {name}: is mounted on this node; stop its containers first")
            await node.drop(record.volume)
    return len(records)
