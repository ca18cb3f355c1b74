"""What an administrator sees when something goes wrong: one line in the log for each event, and `s3vol status`."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest

from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Mounted
from tests.kernel.rig import Bucket
from tests.support.hostile import REQUEST_ID, Fault, hostile
from tests.support.minio import Minio

pytestmark = [pytest.mark.kernel, pytest.mark.minio]


def events(here: Mounted) -> list[dict[str, Any]]:
    """Everything that was logged; each line is one event."""
    return [json.loads(line) for line in here.log.splitlines()]


def troubles(here: Mounted) -> list[dict[str, Any]]:
    """Those that somebody should look at."""
    return [event for event in events(here) if event["level"] in ("warning", "error", "critical")]


def test_an_error_is_one_line_with_operation_path_and_request(
    bucket: Bucket, mount: MountFactory, minio: Minio
) -> None:
    with hostile(minio.port) as proxy:
        here = mount("a", "--log-format", "json", AWS_ENDPOINT_URL=proxy.endpoint)
        (here.path / "d").mkdir()
        bucket.client.put_object(Bucket=bucket.name, Key="d/theirs", Body=b"body")
        refused = {"PUT": "/d/ours", "GET": "/d/theirs"}
        proxy.harm(
            lambda request: (
                Fault.SKEWED  # refused at once: nothing depends on how long repeating takes
                if request.target.partition("?")[0].endswith(refused.get(request.method, "\0"))
                else Fault.NONE
            )
        )
        fd = os.open(here.path / "d" / "ours", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"body")
        with pytest.raises(OSError, match="Permission denied"):
            os.fsync(fd)
        with pytest.raises(OSError, match="Permission denied"):
            (here.path / "d" / "theirs").read_bytes()
        proxy.heal()
        os.close(fd)  # before any child process exists: its copy would be closed too
        here.flush()
        endpoint = here.status()["endpoint"]
    said = {(event["op"], event["path"], event.get("request_id")) for event in troubles(here)}
    asked = {("fsync", "d/ours", REQUEST_ID), ("open", "d/theirs", REQUEST_ID)}
    assert asked <= said <= asked | {("publish", "d/ours", REQUEST_ID)}
    assert len([event for event in troubles(here) if event["op"] == "fsync"]) == 1
    assert REQUEST_ID in endpoint["last_error"]


def test_a_conflict_is_one_line_and_counted(bucket: Bucket, mount: MountFactory) -> None:
    here = mount("a", "--log-format", "json")
    (here.path / "f").write_bytes(b"first")
    fd = os.open(here.path / "f", os.O_WRONLY)
    bucket.client.put_object(Bucket=bucket.name, Key="f", Body=b"theirs")
    os.write(fd, b"ours!")
    for _ in range(2):
        with pytest.raises(OSError) as refused:  # noqa: PT011  # the errno is compared below
            os.fsync(fd)
        assert refused.value.errno == errno.ESTALE
    with pytest.raises(OSError):  # noqa: PT011  # as before
        os.close(fd)
    (event,) = troubles(here)
    (copy,) = [key for key in bucket.all_keys() if key != "f"]
    assert (event["op"], event["path"], event["kept_as"]) == ("publish", "f", copy)
    assert bucket.read(copy) == b"ours!"
    assert here.status()["conflicts"] == 1
    assert "1 conflicts, 0 quarantined" in here.node.check("status", str(here.path))
