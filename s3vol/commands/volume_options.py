"""`s3vol volume options`: the options of a volume and the settings of a node, for a terminal or as a document."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from s3vol.config import Option
from s3vol_plugin import option_table as table

_HEAD = """\
# Options of a volume

What `docker volume create -d s3vol -o KEY=VALUE`, `driver_opts` in a compose file and `s3vol volume create -o` take.
Hyphens and underscores are the same, a switch is `yes`, `no`, `true`, `false`, `1`, `0` or a bare word, and values in
YAML stand in quotes. A key that does not exist is an error, not a warning. Without any option a volume is where the
registry is, under its own name: in its bucket, or in IPFS.

This page is written by `s3vol volume options --markdown`.

"""
_ROWS = """
## Options of its mount

These mean what they mean to `s3vol mount` ([options.md](options.md)); what is not set comes from `[defaults]` on each
node. The short forms (`ro`, `read-only`, `write-back`, `noexec`) are there as well, `path` and `subdir` for `prefix`,
`url` for `endpoint`, `flush-interval` for `dirty-age`, `sync` for `replicas` (`sync=replicas:2`).

"""
_SETTINGS = """
## Settings of a node

In `/etc/s3vol/plugin.toml`, or the file that `S3VOL_PLUGIN_CONFIG` names; a variable such as `S3VOL_PLUGIN_SOURCE` is
stronger than the file. The options of a mount stand in `[defaults]` there (`S3VOL_PLUGIN_CACHE_SIZE` as a variable);
each volume's own are laid over them.

```toml
source = "s3://swarm"
credentials = "default"

[defaults]
endpoint = "https://minio.example:9000"
cache-size = "20G"
```

"""


def markdown() -> str:
    """docs/volume-options.md."""
    lines = [_HEAD + "## What and where", "", *_rows(table.OWN.values())]
    lines += [_ROWS + ", ".join(f"`{name}`" for name in table.ROWS) + ".", ""]
    lines += ["## What cannot be set", "", "| Option | Why |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in (*table.TAKEN.items(), *table.MISSING.items())]
    lines += [f"| `{name}={word}` | {reason} |" for (name, word), reason in table.MISSING_VALUES.items()]
    lines += [
        "| `secret-key`, `access-key`, `token`, `password` | everybody who may use docker could read it; "
        "`credentials=NAME` names a file |",
    ]
    return "\n".join(lines) + "\n" + _SETTINGS + "\n".join(_rows(table.SETTINGS.values())) + "\n"


def plain() -> str:
    """For a terminal."""
    lines: list[str] = []
    for row in (*table.OWN.values(), *table.ROWS.values()):
        lines.append(f"  -o {row.name}={row.metavar or ('yes|no' if row.is_flag else 'TEXT')}")
        text = f"{row.help} Default: {row.shown}.".replace("`", "")
        lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def _rows(rows: Iterable[Option]) -> list[str]:
    lines = ["| Option | Value | Default | Meaning |", "|---|---|---|---|"]
    for row in rows:
        words = (row.metavar or "TEXT").split("|")
        value = "switch" if row.is_flag else " or ".join(f"`{word}`" for word in words)
        shown = row.shown if "`" in row.shown or " " in row.shown else f"`{row.shown}`"
        lines.append(f"| `{row.name}` | {value} | {shown} | {row.help} |")
    return lines
