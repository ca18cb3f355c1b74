"""`s3vol mount`: the plan, and the process that serves it."""

from __future__ import annotations

import argparse
import sys

from s3vol.commands import daemon
from s3vol.commands.plan import make_plan, warnings
from s3vol.commands.serve import serve
from s3vol.privacy import conceal


def run(args: argparse.Namespace) -> int:
    """Mount; ends this process when the mount serves, in the foreground returns when it has ended (3: data is left)."""
    conceal()
    plan = make_plan(args)
    for line in warnings(plan):
        print(f"s3vol: warning: {line}", file=sys.stderr)
    if args.dry_run:
        return 0
    if args.foreground:
        return daemon.in_foreground(lambda ready: serve(plan, ready, foreground=True))
    daemon.in_background(lambda ready: serve(plan, ready, foreground=False))
