"""Readahead: windows for those who read in order, nothing for those who do not."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from s3vol.cache.readahead import Readahead, Share
from s3vol.types import GIB, KIB, MIB

MAX = 32 * MIB


def test_the_window_doubles_up_to_the_maximum_and_each_byte_is_fetched_once() -> None:
    ahead, wanted = Readahead(), []
    for at in range(0, 512 * MIB, 128 * KIB):
        found = ahead.note(at, at + 128 * KIB, GIB, MAX)
        if found:
            wanted.append(found)
    assert wanted[0][0] == 128 * KIB
    assert all(first[1] == second[0] for first, second in pairwise(wanted))
    sizes = [end - start for start, end in wanted]
    assert max(sizes) <= MAX + MIB
    assert wanted[-1][1] >= 512 * MIB
    assert len(wanted) < 50


def test_what_follows_the_first_read_is_fetched_at_once_if_that_is_large_and_with_the_second_if_it_is_small() -> None:
    assert Readahead().note(0, MIB, GIB, MAX) == (MIB, 5 * MIB)
    assert Readahead().note(0, 128 * KIB, GIB, MAX) == (128 * KIB, 2 * MIB)
    ahead = Readahead()
    assert ahead.note(0, 16 * KIB, GIB, MAX) is None
    assert not ahead.sequential
    assert ahead.note(16 * KIB, 48 * KIB, GIB, MAX) == (48 * KIB, 2 * MIB)


@given(st.lists(st.integers(2, 1000), unique=True, max_size=50))
def test_a_random_reader_prefetches_nothing(places: list[int]) -> None:
    ahead = Readahead()
    for place in places:
        assert ahead.note(place * 4 * MIB, place * 4 * MIB + 4096, 5000 * MIB, MAX) is None


def test_two_readers_of_one_file_do_not_disturb_each_other() -> None:
    ahead, second = Readahead(), 0
    for at in range(0, 64 * MIB, MIB):
        ahead.note(at, at + MIB, GIB, MAX)
        second += ahead.note(512 * MIB + at, 513 * MIB + at, GIB, MAX) is not None
    assert second > 3


def test_requests_of_one_kernel_readahead_may_arrive_in_any_order() -> None:
    ahead = Readahead()
    order = [0, 256, 128, 384, 640, 512, 768, 1024, 896]
    found = [ahead.note(at * KIB, (at + 128) * KIB, GIB, MAX) for at in order]
    assert any(found[1:])


@given(st.lists(st.tuples(st.integers(0, 100 * MIB), st.integers(1, MIB)), max_size=60), st.integers(1, 100 * MIB))
def test_nothing_beyond_the_limit_is_wanted(reads: list[tuple[int, int]], limit: int) -> None:
    ahead = Readahead()
    for start, length in reads:
        found = ahead.note(start, start + length, limit, MAX)
        assert found is None or (start < found[1] <= limit and found[0] < found[1])


def test_a_maximum_of_zero_turns_it_off() -> None:
    ahead = Readahead()
    assert all(ahead.note(at, at + 4096, GIB, 0) is None for at in range(0, MIB, 4096))


def test_readers_at_once_share_what_may_wait_for_them_and_one_alone_has_all_of_it() -> None:
    share = Share(32 * MIB, 32 * MIB)
    assert share.window_bytes == 32 * MIB
    for reader in range(4):
        share.begun(reader, 0.1 * reader)
    assert share.window_bytes == 8 * MIB
    share.begun(1, 1.15)  # the first one has begun nothing for more than a second
    assert share.window_bytes == 32 * MIB // 3
    share.begun(1, 5.0)
    assert share.window_bytes == 32 * MIB
    for reader in range(100):
        share.begun(reader, 5.0)
    assert share.window_bytes == MIB


def test_readahead_that_is_turned_off_stays_off_whoever_reads() -> None:
    share = Share(0, 32 * MIB)
    share.begun(1, 0.0)
    assert share.window_bytes == 0
