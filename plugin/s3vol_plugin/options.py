"""From what a user writes to what a volume is, and from plugin.toml to the settings of a node.

Theory of operation. `docker volume create -o`, compose's `driver_opts` and `s3vol volume create -o` end here, as raw
text by key. Hyphens and underscores are the same, aliases and short forms become the row that they stand for, and
every key is either taken or answered by one line that says why not. What a record holds is then free of this machine:
users and groups are numbers, and what equals the node's default endpoint is left out.

Options can be read by everybody who may talk to dockerd, so a key that sounds like a secret is refused, and its value
never repeated.

Rejected: passing unknown keys on to the mount (an error on another node, an hour later), and recording the node's
defaults with each volume (a MinIO that moves would be moved volume by volume).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import time
import tomllib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3vol import layers, units
from s3vol.config import Option
from s3vol.errors import UsageError
from s3vol.store.settings import Source, parse_source
from s3vol_plugin import credentials, records
from s3vol_plugin import option_table as table
from s3vol_plugin.layering import foreign, of_node, same_server
from s3vol_plugin.settings import Settings
from s3vol_plugin.volume import Volume, timestamp

CONFIG = Path("/etc/s3vol/plugin.toml")
PREFIX = layers.PLUGIN_PREFIX
_CONFIG_VARIABLE = f"{PREFIX}CONFIG"

_SECRET = re.compile(r"secret|access-?key|passw|token|key-?id|private-?key")
_ANONYMOUS = re.compile(r"[0-9a-f]{64}")
_SERVERS = ("endpoint", "cluster", "kubo")  # rows that are recorded only where they differ from the node's
_NOT_IN_IPFS = {
    "create-bucket": "option create-bucket: a volume in IPFS is made by its first change; leave it out",
    "on-remove": "option on-remove: a volume in IPFS is kept; empty it before you remove it, and its space is freed",
}
_PASSWORD_IN_URL = re.compile(r"//[^/]*@")


def parse_options(name: str, opts: Mapping[str, str] | None, settings: Settings) -> Volume:
    """What a new volume is. Raises UsageError, in one line, for anything that is not exactly right.

    Reads this machine's users and groups, and the credentials file that is named; asks no store.
    """
    records.key_of(name)
    if not settings.allow_anonymous and _ANONYMOUS.fullmatch(name):
        raise UsageError("volume without a name: not allowed here; name it, as in `-v NAME:/path`")
    own, rows = _sort_out(opts or {})
    mode = rows.get("mode", "shared")
    if own.get("on-remove") == "delete" and mode == "readonly":
        raise UsageError("option on-remove: a read-only volume does not delete what it may not write")
    source = _source(name, own, parse_source(settings.source))
    _check_rows(rows, source.kind)
    in_ipfs = source.kind == "ipfs"
    servers = _daemons(rows, settings) if in_ipfs else _endpoint(rows, own, settings)
    if own.get("create-bucket") and "bucket" not in own:
        raise UsageError("option create-bucket: needs bucket=NAME; the registry's own bucket is there")
    if in_ipfs and (own.get("create-bucket") or own.get("on-remove") == "delete"):
        raise UsageError(_NOT_IN_IPFS["create-bucket" if own.get("create-bucket") else "on-remove"])
    named = own.get("credentials", "")
    if named:
        look = credentials.login_file if in_ipfs else credentials.read
        look(settings.credentials_directory, named)
    volume = Volume(
        name=name,
        uuid=uuid.uuid4().hex,
        source=source.url,
        created_at=timestamp(time.time()),
        created_by=settings.node,
        options={**{key: text for key, text in rows.items() if key not in _SERVERS}, **servers},
        credentials=named,
        on_remove="delete" if own.get("on-remove") == "delete" else "retain",
        share=own.get("share", False),
        sticky=own.get("sticky", False),
    )
    return replace(volume, uuid=_same_everywhere(volume)) if in_ipfs else volume


def _same_everywhere(volume: Volume) -> str:
    """The uuid of a volume in IPFS: whoever makes the same volume makes the same record.

    A pinset holds no condition between the halves of a partition, and its volumes are merged when the halves meet
    again: then the record must be one as well, for what a node has not published yet is found by uuid.
    """
    kept = [volume.name, volume.source, sorted(volume.options.items()), volume.credentials, volume.share, volume.sticky]
    return hashlib.blake2b(json.dumps(kept).encode(), digest_size=16).hexdigest()


def wants_bucket(opts: Mapping[str, str] | None) -> bool:
    """True when the bucket is to be made if it is missing. Raises as parse_options."""
    return bool(_sort_out(opts or {})[0].get("create-bucket"))


def _sort_out(opts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of the volume's own rows, and texts of mount options."""
    own: dict[str, Any] = {}
    rows: dict[str, str] = {}
    places: dict[str, str] = {}
    for given, text in _flattened(opts):
        name, value = _understood(given, text)
        if not name or name in table.IGNORED:
            continue
        target: dict[str, Any] = own if name in table.OWN else rows
        found = _parsed(table.OWN[name] if name in table.OWN else table.ROWS[name], value, given)
        if name in target and target[name] != found:
            raise UsageError(f"option {given}: contradicts {places[name]}")
        target[name], places[name] = found, given
    return own, rows


def _flattened(opts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Keys and texts, those within `o=` included."""
    flat: list[tuple[str, str]] = []
    for given, text in opts.items():
        if not isinstance(text, str):
            raise UsageError(f"option {given}: the value must be text; write it in quotes")
        if given == "o":
            words = (part.replace("\\,", ",").strip() for part in re.split(r"(?<!\\),", text))
            flat += [(key, value) for key, _, value in (word.partition("=") for word in words if word)]
        else:
            flat.append((given.strip(), text))
    return flat


def _understood(given: str, text: str) -> tuple[str, str]:
    """The row that a key stands for, and its text; "" for what is already so. Raises UsageError for all other keys."""
    key = given.strip().replace("_", "-").lower()
    name = table.ALIASES.get(key, key)
    if short := table.SHORT_FORMS.get(name):
        said = short.yes if _switch(given, text) else short.no
        if said is None and name != "ro":
            raise UsageError(f"option {given}: takes no value")
        if said is None:
            return "", ""
        if short.stands_for in table.TAKEN:  # nodev, nosuid
            return "", ""
        return short.stands_for, said
    if name in table.TAKEN:
        return _taken(name, given, text)
    if reason := table.MISSING.get(name):
        raise UsageError(f"option {given}: not in this version: {reason}")
    if reason := table.MISSING_VALUES.get((name, text.strip().lower())):
        raise UsageError(f"option {given}={text.strip()}: not in this version: {reason}")
    if name in table.OWN:
        return _own(name, given, text)
    if name in table.ROWS or name in table.IGNORED:
        return name, text
    raise _unknown(given, key)


def _taken(name: str, given: str, text: str) -> tuple[str, str]:
    if name in ("dev", "suid") and not _switch(given, text):
        return "", ""
    raise UsageError(f"option {given}: cannot be set for a volume: {table.TAKEN[name]}")


def _own(name: str, given: str, text: str) -> tuple[str, str]:
    """Rows of a volume that stand for others, or for what is so anyway."""
    if name in ("access", "consistency"):
        _parsed(table.OWN[name], text, given)
        return "", ""
    if name == "preempt":
        if _switch(given, text):
            raise UsageError(
                f"option {given}: not in this version: {table.OWN[name].help.partition(': ')[2].rstrip('.')}"
            )
        return "", ""
    if name == "cache-mode":
        return "close", "local" if _parsed(table.OWN[name], text, given) == "writeback" else "remote"
    return name, text


def _switch(given: str, text: str) -> bool:
    """A switch may be a bare word: `-o ro` arrives with an empty value."""
    return bool(_checked(units.parse_flag, text or "yes", given))


def _parsed(row: Option, text: str, given: str) -> Any:
    """The value of a row of the volume, or the text of a mount option in a form that means the same everywhere."""
    if not text.strip() and not row.is_flag:
        raise UsageError(f"option {given}: needs a value; write {given}={row.metavar or 'TEXT'}")
    if row.is_flag:
        value = _switch(given, text)
        return value if row.name in table.OWN else ("yes" if value else "no")
    value = _checked(row.parse, text, given)
    if row.name in table.OWN:
        return value
    if row.name == "ca-bundle" and not text.strip().startswith("/"):
        raise UsageError(f"option {given}: {text!r}: must be an absolute path, the same on all nodes")
    if text.strip().endswith("\\") or not text.strip().isprintable():
        raise UsageError(f"option {given}: must not end in a backslash or hold control characters")
    plain = isinstance(row.parse, units.Choice) or row.name in ("uid", "gid", "replicas", *_SERVERS)
    return str(value) if plain else text.strip()


def _checked(parse: Callable[[str], Any], text: str, given: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"option {given}: {_shown(given, text)}: {error}") from None


def _shown(given: str, text: str) -> str:
    """A value as errors repeat it: without a password, and not where keys may stand for the name of their file."""
    return "***" if given.strip().lower().endswith("credentials") else repr(_PASSWORD_IN_URL.sub("//***@", text)[:200])


def _unknown(given: str, key: str) -> UsageError:
    if _SECRET.search(key):
        return UsageError(
            f"option {given[:80]}: everybody who may use docker could read it; put the keys into a file in "
            "/etc/s3vol/credentials.d on each node, and write credentials=NAME"
        )
    near = difflib.get_close_matches(key, [*table.NAMES, *table.ALIASES], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"option {given[:80]!r}: unknown option; {hint}Valid are {', '.join(sorted(table.NAMES))}")


def _check_rows(rows: Mapping[str, str], kind: str) -> None:
    """Raise UsageError for a row that says nothing to this kind of store."""
    useless = foreign(kind)
    for name in rows:
        if table.ROWS[name].group == useless:
            what = "a volume in a bucket, and this one is in IPFS" if kind == "ipfs" else "a volume with backend=ipfs"
            raise UsageError(f"option {name}: is for {what}")


def _daemons(rows: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The daemons of IPFS as they are recorded: nothing for those of the node."""
    found = {}
    for name in ("cluster", "kubo"):
        given = rows.get(name, "")
        if given and not same_server(given, of_node(settings, name)):
            _check_allowed(name, given, settings)
            found[name] = given
    return found


def _check_allowed(name: str, given: str, settings: Settings) -> None:
    if settings.allowed_endpoints and not any(same_server(given, url) for url in settings.allowed_endpoints):
        raise UsageError(f"option {name}: {given}: not one of the endpoints that plugin.toml allows")


def _endpoint(rows: Mapping[str, str], own: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """The endpoint as it is recorded: nothing for that of the node."""
    given = rows.get("endpoint", "")
    if not given or same_server(given, settings.defaults.get("endpoint", "")):
        return {}
    _check_allowed("endpoint", given, settings)
    if "bucket" not in own:
        raise UsageError("option endpoint: needs bucket=NAME as well: without it a volume is in the registry's bucket")
    return {"endpoint": given}


def _source(name: str, own: Mapping[str, Any], root: Source) -> Source:
    """Where the objects of a volume are."""
    bucket, prefix = own.get("bucket", ""), own.get("prefix", "")
    backend = own.get("backend") or ("s3" if bucket else root.kind)
    if backend == "ipfs":
        return parse_source(f"ipfs://{bucket or name}/{prefix}")
    if backend != "s3" and bucket:
        raise UsageError(f"option bucket: there are no buckets with backend={backend}")
    if backend == "file" and root.kind != "file":
        raise UsageError("option backend: file is possible where the registry is a directory, and this one is not")
    if backend == "s3" and root.kind != "s3" and not bucket:
        raise UsageError("option backend: s3 needs bucket=NAME, for the registry is not in a bucket")
    if root.kind == "memory" and not bucket:
        return root
    try:
        below = prefix or ("" if bucket else table.parse_prefix(name))
    except ValueError as error:
        raise UsageError(f"volume {name}: {error}; choose another name, or give a prefix") from None
    if backend == "file":
        if "%" in below:
            raise UsageError("option prefix: must not hold a % where the registry is a directory")
        return parse_source(f"{root.url.rstrip('/')}/{below}")
    if bucket:
        return parse_source(f"s3://{bucket}/{below}")
    return parse_source(f"s3://{root.bucket}/{root.prefix}{below}")


def load_settings(path: Path | None, environment: Mapping[str, str]) -> Settings:
    """Settings of this node, from `S3VOL_PLUGIN_*` over the TOML file over what is built in.

    `path` None is `S3VOL_PLUGIN_CONFIG`, or /etc/s3vol/plugin.toml. A file that is missing says nothing, unless it was
    named by the variable. Raises UsageError for what is unknown or wrong, and when no source is set anywhere.
    """
    named = environment.get(_CONFIG_VARIABLE)
    file = path or Path(named or CONFIG)
    values: dict[str, Any] = {}
    defaults: dict[str, str] = {}
    _read_file(file, values, defaults, required=bool(named) and path is None)
    _read_environment(environment, values, defaults)
    if "source" not in values:
        raise UsageError(
            f'no registry of volumes: write source = "s3://BUCKET" into {file}, or set {PREFIX}SOURCE; '
            "the same on all nodes"
        )
    return Settings(**{name.replace("-", "_"): value for name, value in values.items()}, defaults=defaults)


def _read_file(file: Path, values: dict[str, Any], defaults: dict[str, str], *, required: bool) -> None:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if required:
            raise UsageError(f"{file}: no such file; {_CONFIG_VARIABLE} names it") from None
        return
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for key, value in content.items():
        if key == "defaults" and isinstance(value, dict):
            for name, item in value.items():
                _set_default(name, _as_text(item), f"{file} [defaults] {name}", defaults)
        elif isinstance(value, dict):
            raise UsageError(f"{file} [{key}]: unknown section; there is [defaults]")
        else:
            _set(key, _as_text(value), f"{file} {key}", values)


def _read_environment(environment: Mapping[str, str], values: dict[str, Any], defaults: dict[str, str]) -> None:
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable == _CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(PREFIX).lower().replace("_", "-")
        place = f"environment {variable}"
        if name in table.SETTINGS:
            _set(name, text, place, values)
        else:
            _set_default(name, text, place, defaults)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _set(key: str, text: str, place: str, values: dict[str, Any]) -> None:
    name = key.replace("_", "-")
    if name not in table.SETTINGS:
        raise layers.unknown(key, place, table.SETTINGS)
    value = _at(place, table.SETTINGS[name].parse, text)
    values[name] = parse_source(value).url if name == "source" else value


def _set_default(key: str, text: str, place: str, defaults: dict[str, str]) -> None:
    name = table.ALIASES.get(key.replace("_", "-").lower(), key.replace("_", "-").lower())
    if short := table.SHORT_FORMS.get(name):
        said = short.yes if _at(place, units.parse_flag, text) else short.no
        if said is None:
            raise UsageError(f"{place}: takes no value")
        name, text = short.stands_for, said
    if _SECRET.search(name) and name not in table.NODE_ROWS:
        raise UsageError(f"{place}: keys are in a file of the credentials directory; write credentials = NAME")
    if name not in table.NODE_ROWS:
        reason = table.TAKEN.get(name)
        raise UsageError(f"{place}: cannot be set: {reason}") if reason else layers.unknown(key, place, table.NODE_ROWS)
    value = _at(place, table.NODE_ROWS[name].parse, text)
    if name == "allow-other":
        return
    defaults[name] = str(value) if name in ("uid", "gid", "replicas", "cluster-url", *_SERVERS) else text.strip()


def _at(place: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{place}: {_shown(place, text)}: {error}") from None
