"""Trace: one event per call, counters, and the last error that matters."""

from __future__ import annotations

import logging

import pytest
import trio

from s3vol.errors import NotFound, PreconditionFailed, Unavailable
from s3vol.store.base import ABSENT
from s3vol.store.fault import FaultControls, FaultStore
from s3vol.store.memory import MemoryStore
from s3vol.store.trace import TraceStore
from s3vol.types import Health


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def controls() -> FaultControls:
    return FaultControls()


@pytest.fixture
def store(health: Health, controls: FaultControls) -> TraceStore:
    return TraceStore(FaultStore(MemoryStore(), controls), health, now_s=lambda: 1234.5)


async def test_each_call_is_one_event_with_its_fields(store: TraceStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="s3vol.store.trace"):
        await store.put("dir/key", b"12345", metadata={"secret": "hunter2"})
        with pytest.raises(NotFound):
            await store.head("nothing")
    put, head = caplog.records
    assert (vars(put)["operation"], vars(put)["key"], vars(put)["outcome"]) == ("put", "dir/key", "ok")
    assert vars(put)["body_bytes"] == 5
    assert vars(put)["duration_ms"] >= 0
    assert vars(head)["outcome"] == "NotFound"
    assert "dir/key" in put.getMessage()
    assert "hunter2" not in caplog.text
    assert "12345" not in caplog.text


async def test_a_cancelled_call_is_an_event_too(
    store: TraceStore, controls: FaultControls, caplog: pytest.LogCaptureFixture
) -> None:
    gate = controls.hold("head")
    with caplog.at_level(logging.DEBUG, logger="s3vol.store.trace"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.head, "k")
            await gate.entered.wait()
            nursery.cancel_scope.cancel()
    assert [vars(record)["outcome"] for record in caplog.records] == ["cancelled"]


async def test_calls_and_bytes_are_counted(store: TraceStore, health: Health) -> None:
    await store.put("k", b"12345", metadata={})
    await store.get("k", 0, 3)
    await store.list("")
    assert health.counts["store.calls"] == 3
    assert (health.counts["store.put"], health.counts["store.get"], health.counts["store.list"]) == (1, 1, 1)
    assert (health.counts["store.bytes_written"], health.counts["store.bytes_read"]) == (5, 3)


async def test_a_failure_is_kept_as_the_last_error(store: TraceStore, health: Health, controls: FaultControls) -> None:
    controls.fail_next("put", Unavailable("503 slow down"))
    with pytest.raises(Unavailable):
        await store.put("k", b"", metadata={})
    assert health.last_error == "put 'k': Unavailable: 503 slow down"
    assert health.last_error_at_s == 1234.5
    assert health.counts["store.errors"] == 1
    assert "store.ok_at_s" not in health.gauges


async def test_an_answer_that_is_no_success_is_not_an_error(store: TraceStore, health: Health) -> None:
    with pytest.raises(NotFound):
        await store.head("nothing")
    await store.put("k", b"", metadata={})
    with pytest.raises(PreconditionFailed):
        await store.put("k", b"", metadata={}, condition=ABSENT)
    assert health.last_error == ""
    assert health.gauges["store.ok_at_s"] == 1234.5
    assert "store.errors" not in health.counts
    assert (health.counts["store.NotFound"], health.counts["store.PreconditionFailed"]) == (1, 1)
