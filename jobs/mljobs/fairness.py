"""Group rates, their differences and the uncertainty of both, from counts alone.

Called by audit for the intervals and by optimize for each candidate's point estimates. The
definitions are fairlearn's; audit reports fairlearn's own point estimates, and a unit
test holds the two together. Every rate depends on the rows only through how many of each group
fall in each cell of (positive or not, predicted or not), so a bootstrap of the rows is a
multinomial draw of these counts: thousands of draws cost milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
"""A difference is the largest, over these rates, of the highest group's less the lowest group's."""


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
        differences: Per fairness metric; a metric is absent if fewer than two groups are large enough.
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


def difference(rates: dict[str, Floats], assessed: dict[str, npt.NDArray[np.bool_]], metric: str) -> Floats | None:
    """The metric over the assessed groups, ``(…)``; None if fewer than two are assessed for any of its rates."""
    spans = [
        np.nanmax(rates[name][..., assessed[name]], -1) - np.nanmin(rates[name][..., assessed[name]], -1)
        for name in RATES_OF[metric]
        if assessed[name].sum() > 1
    ]
    return np.max(spans, axis=0) if spans else None


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
    """Rates and differences with percentile bootstrap intervals.

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
        point, spread = difference(rates, assessed, metric), difference(drawn, assessed, metric)
        if point is not None and spread is not None:
            low, high = np.quantile(spread, ends)
            differences[metric] = Interval(float(point), float(low), float(high))
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
    """The differences without intervals; a metric is absent if fewer than two groups are large enough."""
    _, counts = cells(groups, positive, predicted)
    rates, assessed = rates_of(counts), large_enough(counts, smallest)
    found = {metric: difference(rates, assessed, metric) for metric in RATES_OF}
    return {metric: float(value) for metric, value in found.items() if value is not None}
