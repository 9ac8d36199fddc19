"""Group rates, their differences and the uncertainty of both, from counts alone.

Called by audit for the intervals and by optimize for each candidate's point estimates. The
definitions are fairlearn's; audit reports fairlearn's own point estimates, and a unit
test holds the two together. Every rate depends on the rows only through how many of each group
fall in each cell of (positive or not, predicted or not), so a bootstrap of the rows (Efron 1979,
"Bootstrap methods: another look at the jackknife") is a multinomial draw of these counts: thousands
of draws cost milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

DRAWS: Final = 2000
SEED: Final = 7

RATES: Final = ("selection_rate", "true_positive_rate", "false_positive_rate")
RATES_OF: Final = {
    "demographic_parity_difference": ("selection_rate",),
    "equalized_odds_difference": ("true_positive_rate", "false_positive_rate"),
}
"""A difference is the largest, over these rates, of the highest group's less the lowest group's.

Equalized odds is Hardt, Price and Srebro 2016, "Equality of opportunity in supervised learning".
"""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Assessment:
    """What can be said about one sensitive attribute.

    Attributes:
        names: The groups, in order.
        denominators: Per rate, ``(groups,)``: the rows that the rate is a share of.
        rates: Per rate, one interval a group; NaN where the denominator is 0.
        differences: Per fairness metric; a metric is absent if one of its rates has fewer than two groups
            large enough.
        assessed: Per rate, ``(groups,)``: whether the denominator reaches the smallest size.
    """

    names: list[str]
    denominators: dict[str, Counts]
    rates: dict[str, list[Interval]]
    differences: dict[str, Interval]
    assessed: dict[str, npt.NDArray[np.bool_]]

    def left_out(self) -> list[str]:
        """Groups that at least one rate was not assessed for."""
        return [name for i, name in enumerate(self.names) if not all(flags[i] for flags in self.assessed.values())]


def cells(groups: npt.NDArray[np.str_], positive: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> tuple[
    list[str], Counts
]:  # fmt: skip
    """The groups' names and their counts ``(groups, 2, 2)``: by positive or not, then predicted or not."""
    names, codes = np.unique(groups, return_inverse=True)
    flat = np.bincount(codes * 4 + positive * 2 + predicted, minlength=len(names) * 4)
    return names.tolist(), flat.reshape(-1, 2, 2)


def fractions(counts: Counts) -> tuple[dict[str, Counts], dict[str, Counts]]:
    """Numerators and denominators of each rate, ``(…, groups)``, of counts ``(…, groups, 2, 2)``."""
    numerators = {
        "selection_rate": counts[..., :, 1].sum(-1),
        "true_positive_rate": counts[..., 1, 1],
        "false_positive_rate": counts[..., 0, 1],
    }
    denominators = {
        "selection_rate": counts.sum((-1, -2)),
        "true_positive_rate": counts[..., 1, :].sum(-1),
        "false_positive_rate": counts[..., 0, :].sum(-1),
    }
    return numerators, denominators


def rates_of(counts: Counts) -> dict[str, Floats]:
    """Each rate, ``(…, groups)``; NaN where its denominator is 0."""
    numerators, denominators = fractions(counts)
    return {
        name: np.divide(
            numerators[name],
            denominators[name],
            out=np.full(numerators[name].shape, np.nan),
            where=denominators[name] > 0,
        )
        for name in RATES
    }


def difference(rates: dict[str, Floats], assessed: dict[str, npt.NDArray[np.bool_]], metric: str) -> float | None:
    """The metric over the assessed groups; None if fewer than two are assessed for any of its rates.

    Half of equalized odds is not equalized odds: a bound on it would pass whatever the other half is.
    """
    if any(assessed[name].sum() < 2 for name in RATES_OF[metric]):  # noqa: PLR2004  a comparison takes two
        return None
    return max(float(np.ptp(rates[name][assessed[name]])) for name in RATES_OF[metric])


def distance(
    drawn: dict[str, Floats], rates: dict[str, Floats], assessed: dict[str, npt.NDArray[np.bool_]], metric: str
) -> Floats:
    """The farthest that each draw can have moved the metric, ``(draws,)``.

    A metric D is the largest range (highest less lowest group) over its rates. With rates a instead of b each range
    moves by at most the range of a - b, since a_i - a_j = (b_i - b_j) + ((a - b)_i - (a - b)_j), and the largest of
    several numbers moves by no more than the one that moves most. So |D(a) - D(b)| ≤ max over rates of range(a - b).

    Args:
        drawn: Per rate, ``(draws, groups)``; NaN where a draw holds none of the rows that the rate is a share of.
        rates: Per rate, ``(groups,)``: what was drawn from.
        assessed: Per rate, ``(groups,)``; at least two of each.
        metric: One of `RATES_OF`.
    """
    # A group that a draw misses altogether counts as unmoved.
    moved = [np.nan_to_num(drawn[name] - rates[name])[:, assessed[name]] for name in RATES_OF[metric]]
    spans: Floats = np.max([np.ptp(groups, axis=-1) for groups in moved], axis=0)
    return spans


def large_enough(counts: Counts, smallest: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Per rate, which groups' denominators reach `smallest` rows (at least one)."""
    _, denominators = fractions(counts)
    return {name: denominators[name] >= max(smallest, 1) for name in RATES}


def assess(
    groups: npt.NDArray[np.str_],
    positive: npt.NDArray[np.bool_],
    predicted: npt.NDArray[np.bool_],
    smallest: int,
    confidence: float,
) -> Assessment:
    """Rates with percentile bootstrap intervals, and differences with intervals of their own kind.

    A difference is at least 0 and resampling widens it: where the groups are equal, every draw is above the truth, and
    percentiles of the draws miss it always. The deviations of the rates have no such bias, and `distance` carries
    their quantile c over to the difference: value ± c covers the truth at least as often as `confidence` says (about
    as often where the groups are equal, more often otherwise), but for the bootstrap's own error: up to four points
    less in simulations of two groups of 60 rows.

    Args:
        groups: ``(rows,)`` group names.
        positive: ``(rows,)`` true labels.
        predicted: ``(rows,)`` decisions.
        smallest: Groups whose denominator is below are left out of that rate's comparison.
        confidence: Coverage of the intervals, e.g. 0.95.
    """
    names, counts = cells(groups, positive, predicted)
    rates, assessed = rates_of(counts), large_enough(counts, smallest)
    total = counts.sum()
    draws = np.random.default_rng(SEED).multinomial(total, (counts / total).ravel(), size=DRAWS)
    drawn = rates_of(draws.reshape(DRAWS, *counts.shape))
    ends = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    differences = {}
    for metric in RATES_OF:
        if (point := difference(rates, assessed, metric)) is not None:
            c = float(np.quantile(distance(drawn, rates, assessed, metric), confidence))
            differences[metric] = Interval(point, max(0.0, point - c), min(1.0, point + c))
    intervals = {
        name: [
            _interval(float(rates[name][i]), drawn[name][:, i], ends) for i in range(len(names))
        ]
        for name in RATES
    }  # fmt: skip
    return Assessment(names, fractions(counts)[1], intervals, differences, assessed)


def _interval(value: float, draws: Floats, ends: Floats) -> Interval:
    known = draws[~np.isnan(draws)]
    low, high = np.quantile(known, ends) if len(known) else (np.nan, np.nan)
    return Interval(value, float(low), float(high))


def point_estimates(
    groups: npt.NDArray[np.str_], positive: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], smallest: int
) -> dict[str, float]:
    """The differences without intervals; a metric is absent if one of its rates has fewer than two groups large enough."""
    _, counts = cells(groups, positive, predicted)
    rates, assessed = rates_of(counts), large_enough(counts, smallest)
    found = {metric: difference(rates, assessed, metric) for metric in RATES_OF}
    return {metric: value for metric, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Means:
    """Rates that are means over a group's rows, and the differences made of them.

    Attributes:
        values: Per rate, ``(rows,)``.
        rates_of: Per fairness metric: the rates of which it is the largest range over the groups.
        greatest: What no rate exceeds.
    """

    values: Mapping[str, npt.NDArray[Any]]
    rates_of: Mapping[str, Sequence[str]]
    greatest: float = math.inf

    def differences(self, groups: npt.NDArray[np.str_], smallest: int) -> dict[str, float]:
        """The metrics over the groups that are large enough; none if fewer than two are."""
        names, codes = np.unique(groups, return_inverse=True)
        large = np.bincount(codes) >= max(smallest, 1)
        if large.sum() < 2:  # noqa: PLR2004  a comparison takes two
            return {}
        means = {
            rate: np.array([values[codes == code].mean() for code in range(len(names))])
            for rate, values in self.values.items()
        }
        return {metric: max(float(np.ptp(means[r][large])) for r in rates) for metric, rates in self.rates_of.items()}

    def assess(self, groups: npt.NDArray[np.str_], smallest: int, confidence: float) -> Assessment:
        """Means and differences with intervals.

        A group's means are drawn from the normal distribution with the covariance of its rows, which they tend to: rows
        drawn anew, as for two classes, would cost memory by rows and rates. `distance` carries the draws over to the
        differences.

        Args:
            groups: ``(rows,)`` group names.
            smallest: Groups with fewer rows are left out of the comparison.
            confidence: Coverage of the intervals, e.g. 0.95.
        """
        names, codes = np.unique(groups, return_inverse=True)
        counts = np.bincount(codes)
        large = counts >= max(smallest, 1)
        generator = np.random.default_rng(SEED)
        width = NormalDist().inv_cdf((1 + confidence) / 2)
        rates: dict[str, list[Interval]] = {rate: [] for rate in self.values}
        drawn = {rate: np.zeros((DRAWS, len(names))) for rate in self.values}
        for i in range(len(names)):
            mine = np.array([values[codes == i] for values in self.values.values()], dtype=np.float64)
            covariance = np.atleast_2d(np.cov(mine, bias=True)) / counts[i]
            draws = generator.multivariate_normal(np.zeros(len(mine)), covariance, size=DRAWS, check_valid="ignore")
            for k, rate in enumerate(self.values):
                value, spread = float(mine[k].mean()), width * math.sqrt(covariance[k, k])
                low = max(0.0, value - spread) if self.greatest == 1 else value - spread
                rates[rate].append(Interval(value, low, min(self.greatest, value + spread)))
                drawn[rate][:, i] = draws[:, k]
        differences = {}
        for metric, value in self.differences(groups, smallest).items():
            moved = np.max([np.ptp(drawn[rate][:, large], axis=1) for rate in self.rates_of[metric]], axis=0)
            c = float(np.quantile(moved, confidence))
            differences[metric] = Interval(value, max(0.0, value - c), min(self.greatest, value + c))
        return Assessment(
            names.tolist(),
            dict.fromkeys(self.values, counts),
            rates,
            differences,
            dict.fromkeys(self.values, large),
        )
