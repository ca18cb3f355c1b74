"""`s3vol status`: the mounts of this machine, asked through their control sockets."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from typing import Any

from s3vol import mounts, runtime
from s3vol.commands import reach
from s3vol.control import Client, NotServing
from s3vol.errors import S3volError
from s3vol.status import record_values, render

_ANSWER_S = 3.0  # a status needs no I/O: a process that does not answer by then hangs


def run(args: argparse.Namespace) -> int:
    """Print one mount, or all of them. A mount that is named and is none is an error."""
    if args.mountpoint:
        one = ask(reach.find(args.mountpoint))
        print(json.dumps(one, indent=2) if args.json else render([one]).rstrip())
    else:
        every = [ask(record) for record in _present()]
        print(json.dumps(every, indent=2) if args.json else render(every).rstrip())
    return 0


def _present() -> list[runtime.Record]:
    """All records of mounts; those of a dead process whose mount is gone as well are cleaned away."""
    mounted = {mount.path for mount in mounts.mount_table()}
    found = []
    for record in runtime.records(os.environ):
        if record.alive or record.mountpoint in mounted:
            found.append(record)
        else:
            runtime.forget(record)
    return found


def ask(record: runtime.Record) -> Mapping[str, Any]:
    """The values of one mount, or what is known of it when it does not answer."""
    if not record.alive:
        return record_values(record, "dead")
    try:
        with Client(record.socket, timeout_s=_ANSWER_S) as client:
            answer = client.ask("status", timeout_s=_ANSWER_S)
    except NotServing:
        return record_values(record, "silent")
    except S3volError as error:
        return record_values(record, "silent") | {"error": str(error)}
    return {name: value for name, value in answer.items() if name != "event"}
