"""`s3vol options`: the options table, for a terminal or as docs/options.md."""

from __future__ import annotations

import argparse
import textwrap

from s3vol.config import OPTIONS, SHORTS, Option

_HEAD = """\
# Options

Every option can be written in five places; the first of these that has it wins:

1. a flag of `s3vol mount` and `s3vol doctor`: `--cache-size 20G`;
2. an `-o` list, there or in fstab(5): `-o cache-size=20G,allow_other` (hyphens and underscores are the same);
3. the environment: `S3VOL_CACHE_SIZE=20G`;
4. a TOML file, `--config FILE` or `S3VOL_CONFIG`; else `$XDG_CONFIG_HOME/s3vol/config.toml`, then
   `/etc/s3vol/config.toml`. In a file the section of the source, `["s3://bucket/prefix"]` or `["bucket"]`, is
   stronger than `[default]`:

   ```toml
   [default]
   cache-size = "20G"

   ["s3://bucket"]
   endpoint = "https://minio.example:9000"
   write-back = true
   ```

5. the default below.

Sizes are `4096`, `512K`, `10G` (powers of 1024); times are `500ms`, `30s`, `5m`, `2h`. A switch is a bare word in an
`-o` list, and has a `--no-` form as a flag. An option that does not exist is an error, not a warning. Words that
mount(8) and fstab(5) use for themselves (`auto`, `nofail`, `_netdev`, `user`, `x-systemd...`) are ignored in a list.

Credentials are no options: they come from the AWS chain (environment, profile, instance role) and appear neither in a
command line nor in a log nor in `s3vol status`.

This page is written by `s3vol options --markdown`.
"""
_VARIABLES = """
## Other variables

| Variable | Meaning |
|---|---|
| `S3VOL_CONFIG` | The TOML file to read, as `--config`. |
| `S3VOL_RUNTIME_DIR` | Where control sockets are: by default `/run/s3vol` for root, else `$XDG_RUNTIME_DIR/s3vol`. |
"""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    print(markdown() if args.markdown else plain(), end="")
    return 0


def _groups() -> dict[str, list[Option]]:
    groups: dict[str, list[Option]] = {}
    for row in OPTIONS.values():
        groups.setdefault(row.group, []).append(row)
    return groups


def markdown() -> str:
    """docs/options.md."""
    lines = [_HEAD]
    for group, rows in _groups().items():
        lines += [f"## {group}", "", "| Option | Value | Default | Meaning |", "|---|---|---|---|"]
        for row in rows:
            value = " or ".join(f"`{word}`" for word in row.metavar.split("|")) if row.metavar else "switch"
            shown = row.shown if "`" in row.shown or " " in row.shown else f"`{row.shown}`"
            lines.append(f"| `{row.name}` | {value} | {shown} | {row.help} |")
        lines.append("")
    lines += ["## Short forms", "", "| Option | Stands for | Meaning |", "|---|---|---|"]
    lines += [f"| `{short.name}` | `{short.stands_for}={short.yes}` | {short.help} |" for short in SHORTS]
    return "\n".join(lines) + "\n" + _VARIABLES


def plain() -> str:
    """For a terminal."""
    lines = []
    for group, rows in _groups().items():
        lines.append(f"{group}:")
        for row in rows:
            lines.append(f"  --{row.name} {row.metavar}".rstrip())
            text = f"{row.help} Default: {row.shown}.".replace("`", "")
            lines += textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    lines.append("Short forms:")
    lines += [f"  --{short.name}: {short.help}".replace("`", "") for short in SHORTS if short.no is not None]
    return "\n".join(lines) + "\n"
