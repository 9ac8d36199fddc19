"""What the counts of a rollout so far say: harm, good enough, or nothing yet.

Called by `benchmarks.calibrate`, which measures how often it errs. Pure, and made anew of all counts at every look: what
`statistics` has is valid whenever one looks, so that nothing about earlier looks is to be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np

from mlplatform import statistics
from mlplatform.statistics import Arms, Floats, Interval

ALPHA: Final = 0.05
"""Of rollouts in which no guardrail is harmed, the share that is rolled back at most; likewise of bad ones that are promoted."""
MISROUTED: Final = 0.001
"""Likewise of rollouts whose traffic is split as it should be, the share in which that is doubted."""


class Word(StrEnum):
    """What the counts say."""

    HARM = "Harm"
    GOOD = "GoodEnough"
    OPEN = "Open"
    """Too little to tell, or neither."""
    MISROUTED = "Misrouted"
    """The traffic is not split as it was said to be, so that nothing else can be believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrail:
    """A share of requests that must not grow.

    Attributes:
        bad: What such a request is called, in the plural: ``errors``, ``answers slower than 300 ms``.
        margin: From how much more of them on, as a share of the stable version's, a candidate does harm.
        tolerance: How much more of them is still good enough.
        bound: Share of requests below which a candidate is good enough, as long as nothing shows that it is worse.
    """

    bad: str = "errors"
    margin: float = 0.1
    tolerance: float = 0.5
    bound: float = 0.01


class Evidence(NamedTuple):
    """For and against a candidate, by one guardrail.

    Attributes:
        harm: Log e-process against "no worse than by the margin", ``(…, intervals)``.
        good: Log e-process against "worse by the tolerance, and above the bound in the mean".
    """

    harm: Floats
    good: Floats


def weigh(guardrail: Guardrail, arms: Arms) -> Evidence:
    """The evidence after each interval.

    Args:
        guardrail: What is bad, and how much of it.
        arms: Counts ``(…, intervals)``.
    """
    return Evidence(
        statistics.log_worse(arms, guardrail.margin),
        statistics.log_good_enough(arms, guardrail.tolerance, guardrail.bound),
    )


def slower(arms: Sequence[Arms], guardrail: Guardrail) -> Evidence:
    """Of latency: "slower than the edge" of several neighbouring edges of a histogram, in one.

    A mean of e-values is one again: of the edges that an objective lies between none has to be chosen. Harm at any of
    them can win; good enough is a candidate that is so at the objective's own edge, the first one.

    Args:
        arms: By edge, the objective's first: requests, and those that took longer.
        guardrail: `bound` is the share that the objective allows.
    """
    weighed = [weigh(guardrail, each) for each in arms]
    return Evidence(statistics.log_mean(np.stack([each.harm for each in weighed])), weighed[0].good)


@dataclass(frozen=True, slots=True)
class Weighed:
    """A guardrail at the last look, with the figures that a person asks for.

    Attributes:
        guardrail: It.
        candidate: Requests.
        candidate_bad: Of these.
        stable: Requests of the stable version.
        stable_bad: Of these.
        ratio: How many times as often the candidate does badly; 95 % at every look.
        harm: Log evidence.
        good: Likewise.
    """

    guardrail: Guardrail
    candidate: int
    candidate_bad: int
    stable: int
    stable_bad: int
    ratio: Interval
    harm: float
    good: float

    @property
    def figures(self) -> str:
        """Both shares, in words."""
        return f"{_share(self.candidate_bad, self.candidate)} beside {_share(self.stable_bad, self.stable)} of the stable version"


@dataclass(frozen=True, slots=True)
class Finding:
    """What all guardrails say together.

    Attributes:
        word: In one word.
        message: In a sentence, with figures.
        weighed: Each guardrail.
    """

    word: Word
    message: str
    weighed: tuple[Weighed, ...]


def judge(
    counted: Sequence[tuple[Guardrail, Arms, Evidence]],
    weight: Floats,
    alpha: float = ALPHA,
    misrouted: float = MISROUTED,
) -> Finding:
    """Decides from everything so far.

    One guardrail that is harmed is enough; e-BH holds the share of false alarms among several (Wang & Ramdas 2022). Good
    enough is who is so by each.

    Args:
        counted: Each guardrail, its counts ``(intervals,)`` and the evidence made of them; one at least.
        weight: The candidate's share of the traffic in each interval, as it was said, between 0 and 1.
        alpha: Of errors, either way.
        misrouted: Of doubts about the traffic.
    """
    weighed = tuple(_weighed(*each, alpha) for each in counted)
    arms = counted[0][1]
    asked = int(np.sum(arms.candidate))
    if not asked:
        return Finding(Word.OPEN, "the candidate has had no request yet", weighed)
    if statistics.log_misrouted(arms.candidate, arms.stable, weight)[-1] >= np.log(1 / misrouted):
        return Finding(Word.MISROUTED, _misrouted(arms, weight), weighed)
    harmed = statistics.rejected(np.array([each.harm for each in weighed]), alpha)
    if len(harmed):
        return Finding(Word.HARM, "; ".join(_harm(weighed[i]) for i in harmed), weighed)
    needed = np.log(1 / alpha)
    missing = [each for each in weighed if each.good < needed]
    if not missing:
        return Finding(Word.GOOD, "; ".join(f"{each.guardrail.bad}: {each.figures}" for each in weighed), weighed)
    return Finding(Word.OPEN, "; ".join(_open(each, float(needed)) for each in missing), weighed)


def _weighed(guardrail: Guardrail, arms: Arms, evidence: Evidence, alpha: float) -> Weighed:
    return Weighed(
        guardrail,
        candidate=int(np.sum(arms.candidate)),
        candidate_bad=int(np.sum(arms.candidate_bad)),
        stable=int(np.sum(arms.stable)),
        stable_bad=int(np.sum(arms.stable_bad)),
        ratio=statistics.ratio_sequence(arms, alpha),
        harm=float(evidence.harm[-1]),
        good=float(evidence.good[-1]),
    )


def _misrouted(arms: Arms, weight: Floats) -> str:
    candidate, every = int(np.sum(arms.candidate)), int(np.sum(arms.candidate) + np.sum(arms.stable))
    meant = float(np.sum(np.asarray(weight) * (np.asarray(arms.candidate) + arms.stable)) / every)
    return (
        f"{_share(candidate, every)} reached the candidate, where the weights say {meant:.1%}: somebody changed them, "
        "requests are sent again, or a client stays with one version"
    )


def _harm(found: Weighed) -> str:
    low, high = float(found.ratio.low), float(found.ratio.high)
    return f"{found.guardrail.bad}: {found.figures}, {low:.2g} to {high:.2g} times as often (limit {1 + found.guardrail.margin:g})"


def _open(found: Weighed, needed: float) -> str:
    """What is known, and how many more requests of the candidate it would take if it goes on like this."""
    told = f"{found.guardrail.bad}: {found.figures}"
    if found.good <= 0:
        return f"{told}; neither good enough nor proven worse yet"
    more = found.candidate * (needed / found.good - 1)
    return f"{told}; good enough after about {_rounded(more):,} more requests of the candidate, if it goes on like this"


def _rounded(requests: float) -> int:
    """To two digits: it is a guess."""
    digits = max(0, len(str(int(requests))) - 2)
    return int(round(requests, -digits)) or 1


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} requests" + (f" ({part / whole:.2%})" if whole else "")
