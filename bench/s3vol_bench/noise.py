"""What differs beyond the noise: an exact rank test and a least effect, for a handful of repeats.

The test. Five values of one run against five of another: under "nothing changed" each of the C(10, 5) = 252 ways to
deal the ten values to the two runs is equally likely. The share of them whose rank sum is at least as extreme as what
was seen is the exact one-sided p (Mann and Whitney). It assumes nothing of the distribution, which for times has a
long tail. With five repeats p can be as small as 1/252; with three 1/20, so three repeats prove little and say so.

A row has changed if p is at most ALPHA and the medians differ by at least LEAST. At ALPHA = 0.02 one of fifty rows
that did not change would pass the test alone; the least effect removes most of these. Both are stated wherever a
verdict is.

Rejected: Student's t (five values with a tail), and a correction for the number of rows (with five repeats and fifty
rows no change however large could pass it).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

ALPHA = 0.02
LEAST = 0.05


def p_less(these: Sequence[float], those: Sequence[float]) -> float:
    """Exact one-sided p that `these` are not smaller than `those`; small when they are."""
    values = [*these, *those]
    ranks = _ranks(values)
    seen = sum(ranks[: len(these)])
    deals = list(itertools.combinations(ranks, len(these)))
    return sum(sum(deal) <= seen + 1e-9 for deal in deals) / len(deals)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(values)
    first = {value: order.index(value) + 1 for value in set(values)}
    return [first[value] + (values.count(value) - 1) / 2 for value in values]


def least_p(one: int, other: int) -> float:
    """The smallest p that this many repeats can give."""
    return p_less([0.0] * one, [1.0] * other)


def change(old: Sequence[float], new: Sequence[float]) -> tuple[float, bool]:
    """The ratio of the medians, new to old, and whether it is beyond the noise."""
    ratio = statistics.median(new) / statistics.median(old)
    p = p_less(new, old) if ratio < 1 else p_less(old, new)
    return ratio, p <= ALPHA and max(ratio, 1 / ratio) >= 1 + LEAST
