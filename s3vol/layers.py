"""How a value gets from a flag, an `-o` list, the environment or a file into the options of a mount.

Theory of operation. One place where values are written is a `Layer`: raw text per option. `resolve` lays the layers
over each other, the first one wins: flags and `-o`, then the environment, then TOML, then the table's defaults. Every
complaint names the place that the bad value was written in.

Short forms (`write-back`, `read-only`, `ro`) are rewritten to the option they stand for inside their own layer. So
`--write-back` on the command line beats `close = "remote"` of a file, and both in one place contradict each other.

Rejected: argparse types and defaults. Three of the four places are not argparse's.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3vol import units
from s3vol.config import ALIASES, OPTIONS, SHORTS, VARIABLE_PREFIX, MountOptions, variable
from s3vol.errors import UsageError

_OTHER_VARIABLES = frozenset({"S3VOL_CONFIG", "S3VOL_RUNTIME_DIR", "S3VOL_FAILPOINT"})
PLUGIN_PREFIX = f"{VARIABLE_PREFIX}PLUGIN_"
"""Variables of the volume driver; no mount reads them."""

_SURELY_MEANT = 0.8  # difflib ratio from which an unknown variable is taken for a misspelt option (one letter in five)
_SHORTS = {short.name: short for short in SHORTS}
_VARIABLES = {variable(name): name for name in (*OPTIONS, *ALIASES, "write-back", "read-only")}

MOUNT_WORDS = frozenset(
    # What mount(8), fstab(5) and systemd.mount(5) put into an option list for themselves, not for the file system.
    {
        *("rw", "auto", "noauto", "defaults", "_netdev", "nofail", "user", "nouser", "users", "owner", "group"),
        *("relatime", "norelatime", "strictatime", "nostrictatime", "atime", "noatime", "diratime", "nodiratime"),
        *("lazytime", "nolazytime", "async", "default_permissions", "loud", "silent"),
    }
)
_MOUNT_PREFIXES = ("x-", "X-", "comment=", "uhelper=", "helper=", "subtype=")


def unknown(name: str, place: str, names: Iterable[str] = (*OPTIONS, *ALIASES, *_SHORTS)) -> UsageError:
    """The error for an option that does not exist; names the nearest one."""
    found = difflib.get_close_matches(name.replace("_", "-").lower(), list(names), n=1)
    return UsageError(f"{place}: unknown option{f'; did you mean {found[0]}?' if found else ''}")


@dataclass(frozen=True, slots=True)
class Layer:
    """Raw values written in one place. `place` puts an option's name into that place's own words, for messages."""

    values: Mapping[str, str]
    place: Callable[[str], str]


def _parse(parse: Callable[[str], Any], raw: str, place: str) -> Any:
    try:
        return parse(raw)
    except ValueError as error:
        shown = re.sub(r"//[^/]*@", "//***@", raw)  # a URL with a password must not go from a terminal into a log
        raise UsageError(f"{place}: {shown!r}: {error}") from None


def _values(layer: Layer) -> dict[str, Any]:
    """Parsed values by option name, short forms replaced. Raises UsageError for what is unknown or contradicts."""
    found: dict[str, tuple[Any, str]] = {}
    for given, raw in layer.values.items():
        name, text, place = given.replace("_", "-").lower(), raw, layer.place(given)
        name = ALIASES.get(name, name)
        if short := _SHORTS.get(name):
            value = short.yes if _parse(units.parse_flag, raw, place) else short.no
            if value is None:
                raise UsageError(f"{place}: {raw!r}: takes no value")
            name, text = short.stands_for, value
        elif name not in OPTIONS:
            raise unknown(given, place)
        parsed = _parse(OPTIONS[name].parse, text, place)
        if name in found and found[name][0] != parsed:
            raise UsageError(f"{place}: contradicts {found[name][1]}")
        found[name] = (parsed, place)
    return {name: parsed for name, (parsed, _) in found.items()}


def resolve(layers: Sequence[Layer]) -> MountOptions:
    """The options of a mount; the first layer that has a value wins. Layers that are covered are checked as well."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in _values(layer).items():
            merged.setdefault(name.replace("-", "_"), value)
    return MountOptions(**merged)


def parse_list(text: str, *, ignore: frozenset[str] = frozenset()) -> dict[str, str]:
    """Raw values of an `-o` list as mount(8) writes it; a comma inside a value is written `\\,`.

    Words that mount(8) and fstab keep for themselves, and those in `ignore`, are left out.
    """
    values: dict[str, str] = {}
    for word in (part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", text)):
        if not word or word in MOUNT_WORDS | ignore or word.startswith(_MOUNT_PREFIXES):
            continue
        name, separator, value = word.partition("=")
        row = OPTIONS.get(ALIASES.get(name, name.replace("_", "-")))
        if not separator and row is not None and not row.is_flag:
            raise UsageError(f"-o {name}: needs a value; write {name}={row.metavar}")
        values[name] = value if separator else "yes"
    return values


def environment_layers(environment: Mapping[str, str]) -> list[Layer]:
    """The `S3VOL_*` variables that name an option. One that nearly does raises UsageError: it is a typing error."""
    values: dict[str, str] = {}
    for given, raw in sorted(environment.items()):
        if not given.startswith(VARIABLE_PREFIX) or given.startswith(PLUGIN_PREFIX) or given in _OTHER_VARIABLES:
            continue
        if given in _VARIABLES:
            values[_VARIABLES[given]] = raw
        elif near := difflib.get_close_matches(given, _VARIABLES, n=1, cutoff=_SURELY_MEANT):
            raise UsageError(f"environment {given}: unknown option; did you mean {near[0]}?")
    return [Layer(values, lambda name: f"environment {variable(name)}")]


def config_files(environment: Mapping[str, str]) -> list[Path]:
    """The files that are read when none is named, the stronger one first. They need not exist."""
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME") or "/", ".config")
    return [Path(home) / "s3vol" / "config.toml", Path("/etc/s3vol/config.toml")]


def file_layers(path: Path, names: Sequence[str], *, required: bool) -> list[Layer]:
    """Layers of a TOML file for a source that is known by `names` (URL, bucket), the section `[default]` last.

    Raises UsageError for a missing file (when `required`), bad TOML, and an unknown key or bad value in any section.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise UsageError(f"{path}: no such configuration file") from None
        return []
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not TOML
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    layers = {section: _section(path, section, table) for section, table in content.items()}
    return [layers[name] for name in (*names, "default") if name in layers]


def _section(path: Path, section: str, table: Any) -> Layer:
    if not isinstance(table, dict):
        raise UsageError(f'{path}: {section} is outside a section; put it under [default] or ["s3://bucket"]')
    for key, value in table.items():
        row = OPTIONS.get(key.replace("_", "-").lower())
        if isinstance(value, int) and row is not None and row.parse is units.parse_mask:
            # 0o077 arrives as 63, and the mask 063 would let others read.
            raise UsageError(f'{path} [{section}] {key}: write the mask as text, for example {key} = "022"')
    values = {
        key: ("yes" if value else "no") if isinstance(value, bool) else str(value) for key, value in table.items()
    }
    layer = Layer(values, lambda name: f"{path} [{section}] {name}")
    _values(layer)  # a typing error in another volume's section is said now, not on the day it is mounted
    return layer
