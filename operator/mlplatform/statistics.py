"""Evidence from counts that is valid at every look, whatever the traffic.

Called by `mlplatform.evidence`; `make calibrate` measures how often it errs. An e-process is what a bet against a hypothesis has
become: where the hypothesis holds it is 1 at most in the mean whenever one looks, so that it ever reaches 1/alpha in no more
than a share alpha of rollouts (Ville 1939; Ramdas, Grünwald, Vovk & Shafer 2023, arXiv 2210.01948). All of them are logarithms
here, and arrays: the last axis is time, and what lies before it are rollouts side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[Any]
"""Whole numbers, ``(…, intervals)``."""

POINTS: Final = 24
"""Of a grid of alternatives."""
LARGEST_RATIO: Final = 20.0
SMALLEST_SHARE: Final = 1e-3
"""The least rate that a bet for a good candidate is placed on, as a share of the bound."""
NEAREST: Final = 1.05
"""How far from a bound the first bet lies: one on the bound itself never wins."""
ROUNDING: Final = 1e-9
"""Evidence of nothing is 0 but for this."""
SHOWN_RATIOS: Final = np.geomspace(1 / 50, 50, 1001)
"""Among which a confidence sequence of a ratio is looked for."""


@dataclass(frozen=True, slots=True)
class Arms:
    """What the two versions of a rollout did in each interval.

    Attributes:
        candidate: Requests, ``(…, intervals)``.
        candidate_bad: Of these, the bad ones.
        stable: Requests of the version that it would replace.
        stable_bad: Of these, the bad ones.
    """

    candidate: Counts
    candidate_bad: Counts
    stable: Counts
    stable_bad: Counts


class Interval(NamedTuple):
    """A range of values that no look so far excludes.

    Attributes:
        low: Its lower end, ``(…,)``.
        high: Its upper end.
    """

    low: Floats
    high: Floats


def log_mean(values: Floats) -> Floats:
    """The logarithm of the mean over the first axis of what `values` are logarithms of."""
    found: Floats = special.logsumexp(values, axis=0) - np.log(len(values))
    return found


def log_ratio_evidence(arms: Arms, ratio: float, against: Floats) -> Floats:
    """Log e-process against "the candidate's rate is `ratio` times the stable one's".

    Given that an interval had so many bad outcomes, the share of them that fell on the candidate is binomial with
    q(r) = r·n_c / (r·n_c + n_s), whatever the rate was that moment: swings of load and of the base rate, and a ramp of the
    weights, cancel (Lindon & Malek 2022, arXiv 2011.03567). Of outcomes that are independent and no Poisson counts the
    true law is hypergeometric, which the binomial one dominates in convex order (Hoeffding 1963).

    Args:
        arms: The counts.
        ratio: r0, at the bound.
        against: The r that is bet on, ``(bets,)``; where all lie above r0 the evidence is against every smaller ratio,
            too, and likewise below.

    Returns:
        ``(…, intervals)``, after each interval.
    """
    bad = np.asarray(arms.candidate_bad) + arms.stable_bad
    total = np.cumsum(arms.candidate_bad, axis=-1)
    bound = _log_weighted(arms, ratio)
    return log_mean(
        np.stack(
            [
                total * np.log(each / ratio) - np.cumsum(bad * (_log_weighted(arms, each) - bound), axis=-1)
                for each in against
            ]
        )
    )


def _log_weighted(arms: Arms, ratio: float) -> Floats:
    """log(r·n_c + n_s); 0 where nobody asked."""
    weighted = ratio * np.asarray(arms.candidate, dtype=np.float64) + arms.stable
    return np.log(np.where(weighted > 0, weighted, 1.0))


def log_bound_evidence(requests: Counts, bad: Counts, bound: float, against: Floats) -> Floats:
    """Log e-process against "the mean rate of the requests so far is `bound` or more" (or "or less", bets lying above it).

    The rate may move: where bets lie on one side, the product over intervals is at most what it would be had each had the
    mean (log(1 - p + p·e^λ) is concave in p).

    Args:
        requests: ``(…, intervals)``.
        bad: Of these.
        bound: A rate between 0 and 1.
        against: The rates that are bet on, ``(bets,)``.

    Returns:
        ``(…, intervals)``, after each interval.
    """
    all_bad = np.cumsum(bad, axis=-1)
    good = np.cumsum(requests, axis=-1) - all_bad
    return log_mean(
        np.stack(
            [all_bad * np.log(each / bound) + good * (np.log1p(-each) - np.log1p(-bound)) for each in against],
        )
    )


def ratios_above(ratio: float) -> Floats:
    """Bets on a candidate that is worse."""
    return np.geomspace(ratio * NEAREST, max(LARGEST_RATIO, ratio * LARGEST_RATIO / 2), POINTS)


def ratios_below(ratio: float) -> Floats:
    """Bets on one that is not."""
    return np.geomspace(ratio / LARGEST_RATIO, ratio / NEAREST, POINTS)


def rates_below(bound: float) -> Floats:
    """Bets on a rate below a bound."""
    return np.geomspace(bound * SMALLEST_SHARE, bound / NEAREST, POINTS)


def log_worse(arms: Arms, margin: float) -> Floats:
    """Log e-process against "the candidate's rate is at most 1 + `margin` times the stable one's": evidence of harm."""
    return log_ratio_evidence(arms, 1 + margin, ratios_above(1 + margin))


def log_good_enough(arms: Arms, tolerance: float, bound: float) -> Floats:
    """Log e-process against "unacceptable": always worse by `tolerance` or more, and in the mean at `bound` or above.

    Either half is one against that; so is their mean, and what is smaller. Without the second a rollout in which nothing
    goes wrong would never end: a ratio learns from bad outcomes alone. The second counts only while the first does not
    speak for "worse": in quiet hours it finds every candidate below the bound, and does not say for how long.
    """
    relative = log_ratio_evidence(arms, 1 + tolerance, ratios_below(1 + tolerance))
    absolute = log_bound_evidence(arms.candidate, arms.candidate_bad, bound, rates_below(bound))
    counts = relative > -ROUNDING
    return log_mean(np.stack([relative, np.where(counts, absolute, -np.inf)]))


def log_misrouted(candidate: Counts, stable: Counts, weight: Floats) -> Floats:
    """Log e-process against "each request falls on the candidate with the share `weight`" (sample ratio mismatch).

    The same likelihood as of a ratio, with weights for requests and requests for bad outcomes: what is bet on are the
    odds, in both directions. A ramp needs no care (Fabijan et al. 2019 say what causes a mismatch).

    Args:
        candidate: Requests, ``(…, intervals)``.
        stable: Likewise.
        weight: The candidate's share between 0 and 1 that was configured, of the same shape.
    """
    weight = np.asarray(weight, dtype=np.float64)
    arms = Arms(weight, candidate, 1 - weight, stable)
    odds = np.exp(np.geomspace(0.01, np.log(LARGEST_RATIO), POINTS))
    return log_ratio_evidence(arms, 1.0, np.concatenate([1 / odds, odds]))


def log_odds_evidence(arms: Arms, odds: float, against: Floats) -> Floats:
    """As `log_ratio_evidence`, of the ratio of the odds and by the exact law: for outcomes that are common.

    Given both arms' requests and all outcomes of an interval, the candidate's are Fisher's noncentral hypergeometric
    (Fog 2008). Its time grows with the number of outcomes in an interval.

    Args:
        arms: The counts, ``(intervals,)``.
        odds: Their ratio at the bound.
        against: Those that are bet on, ``(bets,)``.

    Returns:
        ``(intervals,)``, after each interval.
    """
    logs = np.log([odds, *against])
    increments = np.zeros((len(against), len(arms.candidate)))
    for i, (n, x, m, y) in enumerate(
        zip(arms.candidate, arms.candidate_bad, arms.stable, arms.stable_bad, strict=True)
    ):
        possible = np.arange(max(0, x + y - m), min(n, x + y) + 1)
        ways = _log_choose(n, possible) + _log_choose(m, x + y - possible)
        bound, *alternatives = special.logsumexp(ways + logs[:, None] * possible, axis=1)
        increments[:, i] = x * (logs[1:] - logs[0]) - (np.array(alternatives) - bound)
    return log_mean(np.cumsum(increments, axis=-1))


def _log_choose(n: int, k: Counts) -> Floats:
    found: Floats = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    return found


def rejected(log_evidence: Floats, alpha: float) -> npt.NDArray[np.int64]:
    """Which of several hypotheses to reject together: e-BH (Wang & Ramdas 2022).

    However they depend on each other, the false ones among those rejected are a share of `alpha` at most in the mean.

    Args:
        log_evidence: One for each, ``(hypotheses,)``.
        alpha: The false discovery rate.

    Returns:
        Their numbers, the strongest first.
    """
    order = np.argsort(-log_evidence, kind="stable")
    count = np.arange(1, len(order) + 1)
    passing = np.flatnonzero(log_evidence[order] >= np.log(len(order) / (alpha * count)))
    return order[: passing[-1] + 1 if len(passing) else 0]


def rate_sequence(requests: Counts, bad: Counts, alpha: float) -> Interval:
    """A confidence sequence of a rate: with probability 1 - alpha it holds the rate at every look.

    The bound of a beta-binomial mixture (Robbins 1970; Howard et al. 2021, arXiv 1810.08240): what no bet spread evenly
    over all rates excludes.

    Args:
        requests: So far, ``(…,)``.
        bad: Of these.
        alpha: Between 0 and 1.
    """
    n, x = np.asarray(requests, dtype=np.float64), np.asarray(bad, dtype=np.float64)
    evidence = special.betaln(x + 1, n - x + 1) + np.log(alpha)

    def edge(low: Floats, high: Floats) -> Floats:
        """Between a rate that is excluded and one that is not, by halving; `low` is excluded."""
        for _ in range(60):
            middle = (low + high) / 2
            out = special.xlogy(x, middle) + special.xlog1py(n - x, -middle) < evidence
            low, high = np.where(out, middle, low), np.where(out, high, middle)
        return high

    best = np.divide(x, n, out=np.full(n.shape, 0.5), where=n > 0)
    return Interval(
        np.where(x > 0, edge(np.zeros(n.shape), best), 0.0), np.where(x < n, edge(np.ones(n.shape), best), 1.0)
    )


def ratio_sequence(arms: Arms, alpha: float) -> Interval:
    """A confidence sequence of the ratio of the rates, as far as `SHOWN_RATIOS` go.

    A ratio is in it as long as bets spread over all ratios have not won 1/alpha against it.

    Args:
        arms: The counts, ``(intervals,)``.
        alpha: Between 0 and 1.
    """
    bad = np.asarray(arms.candidate_bad) + arms.stable_bad
    total = np.sum(arms.candidate_bad)
    likelihood = np.array([total * np.log(each) - np.sum(bad * _log_weighted(arms, each)) for each in SHOWN_RATIOS])
    inside = SHOWN_RATIOS[likelihood > log_mean(likelihood) + np.log(alpha)]
    return Interval(np.asarray(inside[0]), np.asarray(inside[-1]))


def mean_sequence(count: Counts, mean: Floats, deviation: Floats, alpha: float, at: float = 1000.0) -> Interval:
    """An asymptotic confidence sequence of a mean: a normal mixture (Howard et al. 2021; Waudby-Smith et al. 2021).

    Args:
        count: Values so far, ``(…,)``.
        mean: Theirs.
        deviation: Their standard deviation.
        alpha: Between 0 and 1.
        at: The count at which it is to be narrowest.
    """
    n = np.asarray(count, dtype=np.float64)
    spread = -2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)
    rho = at / spread  # in units of the variance: n + rho is V + rho of one
    half = np.asarray(deviation) * np.sqrt((n + rho) * np.log((n + rho) / (alpha**2 * rho))) / n
    return Interval(np.asarray(mean) - half, np.asarray(mean) + half)


def requests_for_power(rate: float, other: float, share: float, alpha: float, power: float) -> int:
    """Requests of both arms that a fixed-horizon test of two proportions needs (two-sided; Fleiss, Levin & Paik 2003).

    Args:
        rate: Of the stable version.
        other: The candidate's, which is to be told from it.
        share: The candidate's share of the traffic.
        alpha: Of false alarms.
        power: The chance that it is told.
    """
    pooled = share * other + (1 - share) * rate
    z_alpha, z_power = stats.norm.isf(alpha / 2), stats.norm.isf(1 - power)
    under_null = np.sqrt(pooled * (1 - pooled) / (share * (1 - share)))
    under_other = np.sqrt(other * (1 - other) / share + rate * (1 - rate) / (1 - share))
    return int(np.ceil(((z_alpha * under_null + z_power * under_other) / (other - rate)) ** 2))


def requests_to_decide(rate: float, other: float, ratio: float, share: float, alpha: float) -> float:
    """Requests of both arms after which the evidence against a ratio is expected to suffice: log(1/alpha) by what each tells.

    Args:
        rate: Of the stable version.
        other: The candidate's.
        ratio: Of the hypothesis that is false then.
        share: The candidate's share of the traffic.
        alpha: Of errors.

    Returns:
        Infinite where the hypothesis is as true as what is so.
    """

    def fallen(ratio: float) -> float:
        return ratio * share / (ratio * share + 1 - share)

    true, bound = fallen(other / rate), fallen(ratio)
    told = special.rel_entr(true, bound) + special.rel_entr(1 - true, 1 - bound)
    bad = share * other + (1 - share) * rate
    return float(np.log(1 / alpha) / (told * bad)) if told else float("inf")


class Test(NamedTuple):
    """A test with a fixed horizon.

    Attributes:
        difference: Of the candidate's from the stable one's.
        statistic: Its z or t.
        p: Two-sided.
    """

    difference: float
    statistic: float
    p: float


def two_proportions(candidate: int, candidate_bad: int, stable: int, stable_bad: int) -> Test:
    """The z test of two proportions, which is looked at once."""
    difference = candidate_bad / candidate - stable_bad / stable
    pooled = (candidate_bad + stable_bad) / (candidate + stable)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / candidate + 1 / stable))
    z = float(difference / deviation) if deviation else 0.0
    return Test(difference, z, float(2 * stats.norm.sf(abs(z))))


def spent(kind: str, alpha: float, share: Floats) -> Floats:
    """How much of alpha the looks up to a share of the information may spend, one-sided (Lan & DeMets 1983).

    Args:
        kind: ``obrien-fleming`` or ``pocock``.
        alpha: Of one side.
        share: Of the information, between 0 and 1.
    """
    share = np.asarray(share, dtype=np.float64)
    if kind == "pocock":
        return np.asarray(alpha * np.log1p((np.e - 1) * share))
    return np.asarray(2 * stats.norm.sf(stats.norm.isf(alpha / 2) / np.sqrt(share)))


def group_sequential(shares: Floats, kind: str, alpha: float) -> Floats:
    """The z at each look beyond which a planned experiment ends, two-sided.

    Armitage, McPherson & Rowe's recursion (1969) over the density of what has not ended, as Jennison & Turnbull (2000,
    chapter 19) have it.

    Args:
        shares: Of the information at each look, rising, up to 1.
        kind: As of `spent`.
        alpha: Of all looks and both sides together.

    Returns:
        ``(looks,)``.
    """
    shares = np.asarray(shares, dtype=np.float64)
    allowed = 2 * np.diff(spent(kind, alpha / 2, shares), prepend=0.0)
    bounds: list[float] = []
    grid, density = np.zeros(1), np.ones(1)  # of the sum whose variance is the share
    before = 0.0
    for share, probability in zip(shares, allowed, strict=True):
        deviation = np.sqrt(share - before)

        def beyond(z: float, grid: Floats = grid, density: Floats = density, deviation: float = deviation, share: float = share) -> float:  # fmt: skip
            edge = z * np.sqrt(share)
            tails = stats.norm.sf((edge - grid) / deviation) + stats.norm.sf((edge + grid) / deviation)
            return float(np.sum(density * tails))

        bound = optimize.brentq(lambda z, allowed=probability: beyond(z) - allowed, 0.0, 40.0) if probability > 0 else 40.0  # fmt: skip
        bounds.append(float(bound))
        edge = min(bound, 12.0) * np.sqrt(share)
        nodes, weights = np.polynomial.legendre.leggauss(400)
        nodes, weights = nodes * edge, weights * edge
        density = weights * (stats.norm.pdf((nodes[:, None] - grid) / deviation) / deviation @ density)
        grid, before = nodes, float(share)
    return np.array(bounds)
