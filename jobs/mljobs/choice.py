"""Which candidate ships: a decision from measured numbers that a noisy clock does not flip.

Called by optimize; docs/adr/0013 says why. Candidates have a fixed order, smaller files first, then simpler forms. The
first of them ships, unless a later one is proven faster: the whole interval of their times' ratio lies beyond `TIE`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SIMPLEST_FIRST: Final = ("fp32", "int8-dynamic")
"""Every candidate there is. fp32 computes what was trained; what is quantised only comes close."""
TIE: Final = 0.05
"""Files and times that differ by no more than this share are equal: nobody would notice."""
CONFIDENCE: Final = 0.95
QUANTILES: Final = {"latency_p50": 0.5, "latency_p99": 0.99}
"""Of the objectives that are times."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One candidate's time as a share of another's, from rounds in which both were timed call by call.

    Attributes:
        name: The candidate that is later in the order.
        beside: The one that it would have to beat.
        ratio: The median over the rounds; below 1 `name` is the faster one.
        low: Of the interval that holds that median with `CONFIDENCE`.
        high: Likewise.
        rounds: How many.
    """

    name: str
    beside: str
    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def proven_faster(self) -> bool:
        """Whether `name` is faster by more than `TIE` even at the interval's worse end."""
        return self.high < 1 - TIE


@dataclass(frozen=True, slots=True)
class Choice:
    """What ships and why.

    Attributes:
        name: The candidate.
        comparisons: Of every pair; none where times do not decide.
        sentence: The reason in words.
    """

    name: str
    comparisons: tuple[Comparison, ...]
    sentence: str


def choose(sizes: Mapping[str, int], times: Mapping[str, Floats], objective: str) -> Choice:
    """Decides.

    Args:
        sizes: Bytes of each candidate that may ship; not empty.
        times: Each one's quantile of the objective in every round, ``(rounds,)``, the same rounds for all; not read if
            the objective is the size.
        objective: ``latency_p50``, ``latency_p99`` or ``size``.
    """
    first, *others = order(sizes)
    if not others:
        return Choice(first, (), f"{first} ships: it alone passed")
    if objective == "size":
        return Choice(first, (), f"{first} ships: {_advantage(first, others, sizes)} ({_bytes(first, others, sizes)})")
    pairs = {(a, b): compare(b, a, times) for a, b in combinations((first, *others), 2)}
    chosen, beaten, kept_from = first, [], []
    for name in others:
        found = pairs[chosen, name]
        words = f"(p{QUANTILES[objective] * 100:g} ratio {found.ratio:.2f}, {_interval(found)})"
        if found.proven_faster:
            beaten.append(f"proven more than {TIE:.0%} faster than {chosen} {words}")
            chosen = name
        else:
            kept_from.append(f"{name} is not proven more than {TIE:.0%} faster {words}")
    reasons = [*(beaten or [_advantage(first, others, sizes)]), *kept_from]
    return Choice(chosen, tuple(pairs.values()), f"{chosen} ships: {'; '.join(reasons)}")


def order(sizes: Mapping[str, int]) -> list[str]:
    """The candidates by size, smallest first; of those within `TIE` of the smallest, the simplest is next."""
    left = sorted(sizes, key=SIMPLEST_FIRST.index)
    found = []
    while left:
        smallest = min(sizes[name] for name in left)
        found.append(next(name for name in left if sizes[name] * (1 - TIE) <= smallest))
        left.remove(found[-1])
    return found


def compare(name: str, beside: str, times: Mapping[str, Floats]) -> Comparison:
    """The ratio of two candidates' times, round by round.

    What slows a round down slows both of its halves, so the ratio has little of it. Logarithms make either candidate's
    view of a ratio the mirror image of the other's.
    """
    ratios = np.log(times[name] / times[beside])
    low, high = median_interval(ratios, CONFIDENCE)
    return Comparison(name, beside, math.exp(np.median(ratios)), math.exp(low), math.exp(high), len(ratios))


def median_interval(values: Floats, confidence: float) -> tuple[float, float]:
    """The interval between two order statistics that holds the median with at least `confidence`.

    It asks nothing of the distribution (Thompson 1936, "On confidence ranges for the median"): of n independent values
    k or fewer lie below the median with the binomial probability of k heads in n throws.

    Args:
        values: ``(n,)``; fewer than 6 are too few for 95 %, and the interval is without bounds.
        confidence: Between 0 and 1.
    """
    n, tail, rank = len(values), 0.0, 0
    while (tail := tail + math.comb(n, rank) / 2**n) <= (1 - confidence) / 2:
        rank += 1
    if not rank:
        return -math.inf, math.inf
    ranked = np.sort(values)
    return float(ranked[rank - 1]), float(ranked[n - rank])


def _advantage(first: str, others: list[str], sizes: Mapping[str, int]) -> str:
    """What puts `first` before the others."""
    smaller = [sizes[first] < sizes[other] * (1 - TIE) for other in others]
    return (
        "smaller"
        if all(smaller)
        else "smaller or simpler"
        if any(smaller)
        else f"simpler, and within {TIE:.0%} in size"
    )


def _bytes(first: str, others: list[str], sizes: Mapping[str, int]) -> str:
    return ", ".join([f"{sizes[first]} bytes", *(f"{other} {sizes[other]}" for other in others)])


def _interval(found: Comparison) -> str:
    return f"{CONFIDENCE:.0%} interval {found.low:.2f} to {found.high:.2f}"
