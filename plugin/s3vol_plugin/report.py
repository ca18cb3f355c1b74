"""What the driver says about itself: the Status of a volume, the daemon's status, Prometheus text. Values, no I/O.

dockerd shows Status in `docker volume inspect`. It must be an object, and CreatedAt must be RFC 3339 or absent:
anything else is a decoding error for dockerd, which it takes for "there is no such volume".

`docker volume inspect` shows as Options what the caller of its own node gave, which may be nothing; so Status tells
what is really in force. Nothing here is secret: credentials are named, and an option whose name sounds like a
secret is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import trio

from s3vol import __version__
from s3vol_plugin.node import Facts, Node
from s3vol_plugin.volume import Volume

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_SECRET = re.compile(r"key|secret|token|pass", re.IGNORECASE)
_FROM_MOUNT = ("dirty_bytes", "dirty_files", "oldest_dirty_s", "conflicts", "quarantined")


def redacted(options: Mapping[str, str]) -> dict[str, str]:
    """Options as they may be logged and shown."""
    return {name: "***" if _SECRET.search(name) else value for name, value in options.items()}


def created_at(volume: Volume) -> dict[str, str]:
    """`{"CreatedAt": ...}`, or {} when it is not a date that dockerd can decode."""
    return {"CreatedAt": volume.created_at} if _RFC_3339.fullmatch(volume.created_at) else {}


def volume_status(node: Node, volume: Volume) -> dict[str, Any]:
    """The Status of a volume on this node. Ages and durations in seconds."""
    record, facts = node.state.get(volume.uuid), node.facts(volume.uuid)
    serving = node.workers.get(volume.uuid) is not None
    age_s = node.registry.age_s
    return {
        "state": _state(facts, serving),
        "uuid": volume.uuid,
        "source": volume.source,
        "options": redacted(volume.options),
        "credentials": volume.credentials,
        "on_remove": volume.on_remove,
        "created_by": volume.created_by,
        "node": node.settings.node,
        "nodes": sorted({holder.node for holder in facts.holders} | ({node.settings.node} if serving else set())),
        "refs": sum(record.refs.values()) if record else 0,
        "in_use": facts.uses,
        "heals": record.heals if record else 0,
        "unpublished": bool(record and record.dirty and not serving),
        **{name: facts.status.get(name, 0) for name in _FROM_MOUNT},
        "backend": _backend(facts.status),
        "registry_age_s": None if age_s is None else round(age_s, 1),
        "last_error": facts.last_error,
        "version": __version__,
    }


def _state(facts: Facts, serving: bool) -> str:
    if facts.recovering:
        return "recovering"
    if not serving:
        return "degraded" if facts.last_error else "idle"
    return "degraded" if facts.status.get("endpoint", {}).get("ok") is False else "mounted"


def _backend(status: Mapping[str, Any]) -> str:
    endpoint = status.get("endpoint")
    if not endpoint:
        return "unknown"
    return "ok" if endpoint.get("ok") else f"down: {endpoint.get('last_error') or 'no answer'}"


def daemon_status(node: Node) -> dict[str, Any]:
    """The daemon as a whole, for `s3vol plugin status`."""
    age_s, down_s = node.registry.age_s, node.registry_down_since_s
    return {
        "version": __version__,
        "node": node.settings.node,
        "source": node.settings.source,
        "socket": str(node.settings.socket),
        "ready": node.adopted.is_set(),
        "registry_age_s": None if age_s is None else round(age_s, 1),
        "registry_error": node.registry_error,
        "registry_down_s": None if down_s is None else round(trio.current_time() - down_s, 1),
        "volumes": len(node.registry.all()),
        "used_here": len(node.state.all()),
        "counters": dict(sorted(node.counters.items())),
    }


def used_here(node: Node) -> list[dict[str, Any]]:
    """The volumes that this node has records of."""
    return [{"name": one.volume.name, **volume_status(node, one.volume)} for one in node.state.all()]


def metrics(node: Node) -> str:
    """Prometheus text exposition format 0.0.4."""
    return "".join(line + "\n" for line in _metrics(node))


def _metrics(node: Node) -> Iterator[str]:
    daemon = daemon_status(node)
    yield from _family("build_info", "gauge", "Version of the driver.", [({"version": __version__}, 1)])
    yield from _family("volumes", "gauge", "Volumes in the registry.", [({}, daemon["volumes"])])
    if daemon["registry_age_s"] is not None:
        yield from _family(
            "registry_age_seconds", "gauge", "Age of the copy of the registry.", [({}, daemon["registry_age_s"])]
        )
    volumes = used_here(node)
    for name, help_text in _GAUGES.items():
        samples = [({"volume": values["name"]}, values[name]) for values in volumes]
        yield from _family(f"volume_{_METRIC_NAMES.get(name, name)}", "gauge", help_text, samples)
    states = [({"volume": values["name"], "state": values["state"]}, 1) for values in volumes]
    yield from _family("volume_state", "gauge", "State of a volume that is used on this node.", states)
    for name, count in daemon["counters"].items():
        yield from _family(f"{name}_total", "counter", _COUNTERS.get(name, "Calls."), [({}, count)])


_GAUGES = {
    "refs": "Uses that dockerd has counted.",
    "in_use": "Places outside of the driver's mount point where the kernel shows the mount.",
    "dirty_bytes": "Bytes that are not published yet.",
    "dirty_files": "Files that are not published yet.",
    "oldest_dirty_s": "Age of the oldest byte that is not published.",
    "conflicts": "Conflict copies written.",
    "heals": "Mounts put back into running containers.",
}
_METRIC_NAMES = {"oldest_dirty_s": "oldest_dirty_seconds"}
_COUNTERS = {
    "heals": "Mounts put back into running containers.",
    "heals_failed": "Containers that kept a dead mount.",
    "recoveries": "Mount processes that ended and were started again.",
    "hang_ups": "Questions of dockerd that could not be answered, and were not.",
    "errors": "Calls of dockerd that were answered with an error.",
}


def _family(name: str, kind: str, help_text: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    if samples:
        yield f"# HELP s3vol_plugin_{name} {help_text}"
        yield f"# TYPE s3vol_plugin_{name} {kind}"
    for labels, value in samples:
        shown = ",".join(f'{key}="{_quoted(text)}"' for key, text in labels.items())
        yield f"s3vol_plugin_{name}{{{shown}}} {value}" if shown else f"s3vol_plugin_{name} {value}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
