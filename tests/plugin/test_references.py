"""Counts by ID, and what follows from them: decided without I/O."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from s3vol_plugin.references import QUIET_S, Step, leaked, next_step, returned, taken

IDS = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(st.booleans(), IDS)))
def test_each_id_is_counted_and_never_below_nothing(calls: list[tuple[bool, str]]) -> None:
    refs: dict[str, int] = {}
    expected = {"a": 0, "b": 0, "c": 0}
    for mount, identity in calls:
        refs = (taken if mount else returned)(refs, identity)
        expected[identity] = expected[identity] + 1 if mount else max(expected[identity] - 1, 0)
    assert refs == {identity: count for identity, count in expected.items() if count}


def test_counts_leak_only_when_the_kernel_shows_no_use_and_dockerd_can_no_longer_be_about_to_bind() -> None:
    assert leaked({"a": 1}, in_use=False, quiet_s=QUIET_S)
    assert not leaked({"a": 1}, in_use=True, quiet_s=QUIET_S)
    assert not leaked({"a": 1}, in_use=False, quiet_s=QUIET_S - 1)
    assert not leaked({}, in_use=False, quiet_s=QUIET_S)


def test_what_is_used_is_served_and_what_is_unused_is_not_for_ever() -> None:
    for refs, serving, in_use, dirty, quiet_s in itertools.product(
        ({}, {"a": 1}), (True, False), (True, False), (True, False), (0.0, QUIET_S)
    ):
        step = next_step(refs, serving=serving, in_use=in_use, dirty=dirty, quiet_s=quiet_s)
        if in_use:
            assert step is (Step.KEEP if serving else Step.RECOVER)
        elif refs and quiet_s:
            assert step is Step.ASK
        elif refs:
            assert step is (Step.KEEP if serving else Step.RECOVER)
        elif serving:
            assert step is Step.RETIRE
        else:
            assert step is (Step.RECOVER if dirty else Step.FORGET)
