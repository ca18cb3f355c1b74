"""A mount behind a network that breaks everything that can be broken, with programs at work.

What holds whatever happens: no wrong byte is read; what close() acknowledged is in the bucket; everything else is the
old or the new file, whole; errors are EIO or ESTALE; no call takes longer than --timeout and what one attempt may add.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from s3vol.layout import TOMBSTONE
from tests.kernel.conftest import MountFactory
from tests.kernel.harness import Failed, Mounted
from tests.kernel.rig import Bucket
from tests.kernel.workload import Worker
from tests.support.hostile import APPLIED, Fault, Hostile, Request, at_random, hostile
from tests.support.minio import Minio, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.minio]

TIMEOUT_S = 6.0
TIMEOUT = ("--timeout", f"{TIMEOUT_S:g}s")
MARGIN_S = 10.0  # for a machine that is busy with something else
MEMORY_BYTES = 512 << 20
BIG_BYTES = 66 << 20

SHORT = {
    Fault.RESET: 0.02,
    Fault.CUT_REQUEST: 0.02,
    Fault.ERROR: 0.02,
    Fault.SLOW_DOWN: 0.02,
    Fault.GATEWAY: 0.01,
    Fault.DELAY: 0.02,
    Fault.LOSE_REPLY: 0.03,
    Fault.ERROR_APPLIED: 0.02,
    Fault.CUT_HEAD: 0.02,
    Fault.TRUNCATE: 0.02,
    Fault.CLOSE: 0.05,
}
LONG = {Fault.STALL: 0.01, Fault.STALL_REPLY: 0.01, Fault.DRIP: 0.01}
LIES = {Fault.WRONG_ETAG: 0.05}


@pytest.fixture
def proxy(minio: Minio) -> Iterator[Hostile]:
    """A proxy to this module's MinIO, harmless until told otherwise."""
    with hostile(minio.port) as running:
        yield running


def _work(jobs: list[Callable[[float], None]], seconds: float) -> None:
    threads = [threading.Thread(target=job, args=(seconds,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
        assert not thread.is_alive(), "a call hangs"


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def _in_bucket(bucket: Bucket, folder: str) -> dict[str, bytes]:
    """Name to body; a tombstone is no file."""
    found = {}
    for key in bucket.all_keys(folder):
        answer = bucket.client.get_object(Bucket=bucket.name, Key=key)
        if TOMBSTONE not in answer["Metadata"]:
            found[key.removeprefix(folder)] = answer["Body"].read()
    return found


def _check(
    here: Mounted, bucket: Bucket, workers: list[Worker], *, bound_s: float, proxy: Hostile | None = None
) -> None:
    """After healing: what the ledgers allow is what there is, here and in the bucket, and nothing is pending."""
    unknown = _unknown_uploads(proxy) if proxy else Counter[str]()
    here.flush()
    assert here.status()["dirty_files"] == 0
    for worker in workers:
        worker.check(worker.read_mounted, "at last")
        worker.check(_in_bucket(bucket, f"{worker.root.name}/").get, "in the bucket")
        assert not worker.problems, "\n".join(worker.problems) + "\n" + here.log[-4000:]
        slowest_s, what = worker.slowest
        assert slowest_s < bound_s, f"{what} took {slowest_s:.1f} s"
    assert _peak_bytes(here.pid) < MEMORY_BYTES
    try:
        wait_for(lambda: _no_uploads(bucket, unknown), 30, "unfinished uploads to be aborted")
    except TimeoutError as error:
        raise AssertionError("\n".join([str(error), *_left(bucket, proxy.log if proxy else [])])) from error


def _left(bucket: Bucket, log: list[tuple[Request, Fault]]) -> Iterator[str]:
    """The uploads that are left, each with what became of the requests for its key."""
    for row in bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []):
        yield f"{row['Key']} {row['UploadId']}"
        path = f"/{bucket.name}/{row['Key']}?"
        yield from (f"  {request}: {fault.value}" for request, fault in log if request.target.startswith(path))


def _rage(
    seed: int, odds: dict[Fault, float], seconds: float, bucket: Bucket, mount: MountFactory, proxy: Hostile
) -> None:
    here = mount("a", *TIMEOUT, AWS_ENDPOINT_URL=proxy.endpoint)
    there = mount("b", *TIMEOUT, "--cache-size", "32M", AWS_ENDPOINT_URL=proxy.endpoint)
    big = os.urandom(1 << 20) * (BIG_BYTES >> 20)
    workers = [Worker(here.path / f"w{i}", 100 * seed + i, big=big if i == 0 else b"") for i in range(3)]
    for worker in workers:
        worker.root.mkdir()
    proxy.harm(at_random(seed, odds))
    _work([worker.run for worker in workers], seconds)
    _work([partial(worker.read_elsewhere, there.path) for worker in workers], seconds / 3)
    proxy.heal()
    assert proxy.done(*odds), "nothing was broken, so the test would prove nothing"
    _check(here, bucket, workers, bound_s=TIMEOUT_S + MARGIN_S, proxy=proxy)


@pytest.mark.parametrize(
    ("seed", "odds"),
    [(1, SHORT), (2, SHORT), (3, SHORT | LONG), (4, SHORT | LIES)],
    ids=["short-1", "short-2", "long-3", "lies-4"],
)
def test_no_byte_is_wrong_or_lost_behind_a_hostile_network(
    seed: int, odds: dict[Fault, float], bucket: Bucket, mount: MountFactory, proxy: Hostile
) -> None:
    _rage(seed, odds, 5, bucket, mount, proxy)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 112))
def test_no_byte_is_wrong_or_lost_behind_a_network_that_is_hostile_for_a_minute(
    seed: int, bucket: Bucket, mount: MountFactory, proxy: Hostile
) -> None:
    _rage(seed, SHORT | LONG | LIES, 60, bucket, mount, proxy)


def _no_uploads(bucket: Bucket, unknown: Counter[str] | None = None) -> bool:
    """True when no upload is left but those whose id never arrived (`unknown`, by key): only the store knows them."""
    rows = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
    return Counter(row["Key"] for row in rows) <= (unknown or Counter())


def _unknown_uploads(proxy: Hostile) -> Counter[str]:
    begun = [request.target.partition("?")[0] for request in proxy.done(*APPLIED) if request.begins_upload]
    return Counter(target.split("/", 2)[2] for target in begun)


def test_an_upload_that_could_not_be_aborted_is_aborted_when_the_network_is_back(
    bucket: Bucket, mount: MountFactory, proxy: Hostile
) -> None:
    here = mount("a", "--timeout", "3s", AWS_ENDPOINT_URL=proxy.endpoint)
    body = bytearray(os.urandom(1 << 20) * 66)
    (here.path / "big").write_bytes(body)
    with open(here.path / "big", "r+b", buffering=0) as file:
        file.write(b"changed")
        body[:7] = b"changed"

        def parts_and_aborts(request: Request) -> Fault:
            return Fault.SLOW_DOWN if "uploadId=" in request.target else Fault.NONE

        proxy.harm(parts_and_aborts)
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(file.fileno())
        assert not _no_uploads(bucket), "nothing was left behind, so the test would prove nothing"
        proxy.heal()
    here.flush()
    assert bucket.read("big") == body
    wait_for(lambda: _no_uploads(bucket), 30, "the upload to be aborted")


def test_a_server_killed_and_restarted_while_files_are_published_loses_and_tears_nothing(
    bucket: Bucket, mount: MountFactory, minio: Minio
) -> None:
    here = mount("a", "--timeout", "20s")
    big = os.urandom(1 << 20) * (BIG_BYTES >> 20)
    workers = [Worker(here.path / f"w{i}", 500 + i, big=big if i == 0 else b"") for i in range(3)]
    for worker in workers:
        worker.root.mkdir()

    def kill_and_restart(seconds: float) -> None:
        for _ in range(2):
            time.sleep(seconds / 4)
            minio.kill()
            time.sleep(0.5)
            minio.start()

    _work([kill_and_restart, *(worker.run for worker in workers)], 8)
    _check(here, bucket, workers, bound_s=20 + MARGIN_S)


def test_a_clock_that_is_off_is_named_in_one_clear_line(bucket: Bucket, mount: MountFactory, proxy: Hostile) -> None:
    here = mount("a", *TIMEOUT, AWS_ENDPOINT_URL=proxy.endpoint)
    proxy.harm(lambda _: Fault.SKEWED)
    with pytest.raises(PermissionError):
        (here.path / "new").write_bytes(b"body")
    message = "this machine's clock is 20 minutes behind the store's; set the clock (NTP)"
    assert message in here.log
    assert message in here.status()["endpoint"]["last_error"]
    with pytest.raises(Failed) as refused:
        mount("b", *TIMEOUT, AWS_ENDPOINT_URL=proxy.endpoint)
    assert refused.value.status == 2
    said = [line for line in refused.value.output.splitlines() if "clock" in line]
    assert len(said) == 1
    assert message in said[0]
    proxy.heal()
    (here.path / "new").write_bytes(b"body")
    assert bucket.read("new") == b"body"
