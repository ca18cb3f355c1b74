"""What a mount says about itself, for programs and for people. Pure: values in, values or text out.

The values are one JSON object, flat but for `cache`, `endpoint`, `capabilities` and `counters`; names carry units.
`state` is `serving`, `draining`, `silent` (the process runs and does not answer) or `dead` (it does not run; what it
had journaled is published by the next mount of the same source).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from s3vol.runtime import Record
from s3vol.types import Health
from s3vol.units import format_bytes, format_seconds

_RECENT_S = 30.0  # an endpoint is called troubled for this long after its last failure, unless a call worked since


def endpoint_values(health: Health, url: str, now_s: float) -> dict[str, Any]:
    """How the endpoint has been doing. Times are ages in seconds, None where there was none."""
    error_age_s = now_s - health.last_error_at_s if health.last_error else None
    ok_at_s = health.gauges.get("store.ok_at_s", 0.0)
    troubled = error_age_s is not None and error_age_s < _RECENT_S and ok_at_s < health.last_error_at_s
    return {
        "url": url,
        "ok": not troubled,
        "last_ok_s": round(now_s - ok_at_s, 3) if ok_at_s else None,
        "last_error": health.last_error,
        "last_error_s": None if error_age_s is None else round(error_age_s, 3),
        "errors": health.counts.get("store.errors", 0),
        "retries": health.counts.get("store.retries", 0),
    }


def record_values(record: Record, state: str) -> dict[str, Any]:
    """What is known of a mount without asking its process."""
    return {
        "mountpoint": record.mountpoint,
        "source": record.source,
        "state": state,
        "pid": record.pid,
        "version": record.version,
        "log": record.log,
    }


def render(mounts: Sequence[Mapping[str, Any]]) -> str:
    """A block of lines for each mount."""
    if not mounts:
        return "no mounts\n"
    return "\n".join("\n".join(_block(values)) + "\n" for values in mounts)


def _block(values: Mapping[str, Any]) -> list[str]:
    uptime = f", up {format_seconds(values['uptime_s'])}" if "uptime_s" in values else ""
    lines = [
        f"{values['source']} on {values['mountpoint']}",
        _line("state", f"{values['state']}{uptime} (pid {values['pid']}, s3vol {values['version']})"),
    ]
    if values["state"] == "dead":
        lines.append(_line("", "`s3vol umount --force` takes the mount away; mounting again publishes what is left"))
    if "cache" in values:
        cache = values["cache"]
        durable = f"close={values['close']}, fsync={values['fsync']}"
        used = f"{format_bytes(cache['used_bytes'])} of {format_bytes(cache['size_bytes'])}"
        lines += [
            _line("mode", f"{values['mode']}, {durable}"),
            _line("cache", f"{used} in {cache['directory']}"),
            _line("dirty", _dirty(values)),
        ]
        lines.append(_line("trouble", f"{values['conflicts']} conflicts, {values['quarantined']} quarantined"))
        lines += [_line("warning", text) for text in values["warnings"]]
        lines.append(_line("endpoint", _endpoint(values["endpoint"])))
        missing = [name for name, able in values["capabilities"].items() if able is False and name in _WANTED]
        if missing:
            lines.append(_line("lacks", ", ".join(missing)))
    lines.append(_line("log", values["log"] or "the terminal"))
    return lines


_WANTED = ("conditional_create", "conditional_replace", "conditional_complete", "copy_part", "list_metadata")


def _line(name: str, text: str) -> str:
    return f"  {name:<10}{text}"


def _dirty(values: Mapping[str, Any]) -> str:
    if not values["dirty_files"]:
        return "nothing"
    age = format_seconds(values["oldest_dirty_s"])
    return f"{values['dirty_files']} files, {format_bytes(values['dirty_bytes'])}, the oldest for {age}"


def _endpoint(endpoint: Mapping[str, Any]) -> str:
    text = f"{endpoint['url']} {'ok' if endpoint['ok'] else 'TROUBLED'}, {endpoint['retries']} retries"
    if endpoint["last_error"]:
        text += f"; last error {format_seconds(endpoint['last_error_s'])} ago: {endpoint['last_error']}"
    return text
