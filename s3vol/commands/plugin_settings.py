"""The settings of the volume driver on this node, read, and made the first time. For all commands about the driver."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from s3vol.errors import UsageError
from s3vol.store.settings import parse_source
from s3vol_plugin import installation, options
from s3vol_plugin.settings import Settings


def node_settings() -> Settings:
    """The settings of the driver on this node; with an empty source where there are none. Raises UsageError."""
    if not (options.CONFIG.exists() or any(name.startswith(options.PREFIX) for name in os.environ)):
        return Settings(source="")
    return options.load_settings(None, os.environ)


def choose(args: argparse.Namespace, root: Path) -> installation.Choice | None:
    """What the first settings file is to say; None when there is one already. Asks on a terminal. Raises UsageError."""
    file = root / installation.SETTINGS
    if file.exists():
        if args.registry or args.endpoint or args.credentials:
            raise UsageError(f"{file}: exists already and is yours to edit; leave out the options")
        return None
    source = args.registry
    if source is None and sys.stdin.isatty():
        print("Where shall the registry of volumes be, and the volumes made without a bucket? For example s3://volumes")
        with contextlib.suppress(EOFError):  # Ctrl-D
            source = input("source: ").strip()
    if not source:
        raise UsageError(
            "there are no settings yet: say where the registry of volumes is with --registry s3://BUCKET"
            " (and --endpoint URL for a server that is not AWS), or ipfs://NAME"
        )
    found = parse_source(source)
    if found.kind == "memory":
        raise UsageError("--registry memory: forgets everything when the daemon ends; use a bucket")
    if found.kind == "ipfs" and args.endpoint:
        raise UsageError(f"--endpoint {args.endpoint}: {found.url} is on daemons of IPFS; leave it out")
    return installation.Choice(found.url, args.endpoint or "", args.credentials or "")


def write(choice: installation.Choice | None, root: Path) -> None:
    """Write the first settings file, and say what the administrator still has to write."""
    folder = installation.make_credentials_directory(root)
    if choice is None:
        return
    print(f"wrote {installation.write_settings(root, choice)}")
    if choice.credentials and not (folder / choice.credentials).exists():
        print(f"now write {folder / choice.credentials} (mode 0600): docs/docker.md, Credentials")
