"""How groups of rows compare, as the audit reports it: fairlearn's point estimates, with intervals.

Called by the objectives of `mljobs.tasks.targets`, which load this when there is something to compare: fairlearn brings
pandas along.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from fairlearn.metrics import (
    MetricFrame,
    false_positive_rate,
    mean_prediction,
    selection_rate,
    true_positive_rate,
)
from sklearn.metrics import accuracy_score, mean_absolute_error

from mljobs import fairness
from mlplatform.api import Fairness

FRAME_METRICS: Final = {
    "accuracy": accuracy_score,
    "selection_rate": selection_rate,
    "true_positive_rate": true_positive_rate,
    "false_positive_rate": false_positive_rate,
}


def of_two_classes(
    groups: npt.NDArray[np.str_], positive: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], asked: Fairness
) -> dict[str, Any]:
    """Rates by group and their differences for one sensitive attribute (`tasks.Objective.compare`).

    Point estimates are fairlearn's (`MetricFrame`), taken over the groups that are large enough; the intervals
    are the bootstrap's. Rows of one group that are alike in both go as one, with their number as its weight: a data frame of
    millions would not fit.
    """
    names, counts = fairness.cells(groups, positive, predicted)
    group, *outcome = np.nonzero(counts)
    weight = {"sample_weight": counts[counts > 0]}
    table = MetricFrame(
        metrics=FRAME_METRICS,
        y_true=outcome[0],
        y_pred=outcome[1],
        sensitive_features=np.array(names)[group],
        sample_params=dict.fromkeys(FRAME_METRICS, weight),
    ).by_group
    sizes = dict(zip(names, counts.sum(axis=(1, 2)).tolist(), strict=True))
    result = fairness.assess(groups, positive, predicted, asked.min_group_size, asked.confidence)
    rows: dict[str, Any] = {}
    for i, name in enumerate(result.names):
        rows[name] = {
            "count": sizes[name],
            "accuracy": float(table.loc[name, "accuracy"]),
            "denominators": {rate: int(result.denominators[rate][i]) for rate in fairness.RATES},
            **{rate: finite(asdict(result.rates[rate][i])) for rate in fairness.RATES},
        }
    differences = {}
    for metric, interval in result.differences.items():
        known = np.array(result.names)
        spans = [
            float(np.ptp(table.loc[known[result.assessed[rate]], rate].to_numpy(dtype=float)))
            for rate in fairness.RATES_OF[metric]
        ]
        differences[metric] = {**asdict(interval), "value": max(spans)}
    not_assessed = {
        name: [rate for rate in fairness.RATES if not result.assessed[rate][result.names.index(name)]]
        for name in result.left_out()
    }
    return {"groups": rows, "differences": differences, "notAssessed": not_assessed}


def finite(interval: Mapping[str, float]) -> dict[str, float] | None:
    """The interval as JSON: nothing where the group has no row that the rate could be a share of."""
    return None if math.isnan(interval["value"]) else dict(interval)


def of_classes(
    groups: npt.NDArray[np.str_],
    targets: npt.NDArray[np.integer[Any]],
    predicted: npt.NDArray[np.int64],
    means: fairness.Means,
    asked: Fairness,
) -> dict[str, Any]:
    """Likewise of several classes: accuracy, and the selection rate of each."""
    selected = means.rates_of["demographic_parity_difference"]
    metrics = {
        "accuracy": accuracy_score,
        **{name: partial(selection_rate, pos_label=code) for code, name in enumerate(selected)},
    }
    frame = MetricFrame(metrics=metrics, y_true=targets, y_pred=predicted, sensitive_features=groups)
    return _of_means(frame.by_group, groups, means, asked)


def of_numbers(
    groups: npt.NDArray[np.str_],
    targets: npt.NDArray[np.float64],
    predicted: npt.NDArray[np.float64],
    means: fairness.Means,
    asked: Fairness,
) -> dict[str, Any]:
    """Likewise of numbers: the mean prediction and the mean absolute error."""
    metrics = {"mean_prediction": mean_prediction, "mean_absolute_error": mean_absolute_error}
    frame = MetricFrame(metrics=metrics, y_true=targets, y_pred=predicted, sensitive_features=groups)
    return _of_means(frame.by_group, groups, means, asked)


def of_labels(groups: npt.NDArray[np.str_], means: fairness.Means, asked: Fairness) -> dict[str, Any]:
    """Likewise of several labels: the share of them that is told right, and the selection rate of each.

    Fairlearn has no metrics of several columns; all of these are means.
    """
    return _of_means(pd.DataFrame(dict(means.values)).groupby(groups).mean(), groups, means, asked)


def _of_means(
    table: pd.DataFrame, groups: npt.NDArray[np.str_], means: fairness.Means, asked: Fairness
) -> dict[str, Any]:
    result = means.assess(groups, asked.min_group_size, asked.confidence)
    size = next(iter(result.denominators.values()))
    rows: dict[str, Any] = {}
    for i, name in enumerate(result.names):
        rows[name] = {
            "count": int(size[i]),
            "denominators": {rate: int(size[i]) for rate in result.rates},
            **{rate: {**asdict(found[i]), "value": float(table[rate][name])} for rate, found in result.rates.items()},
        }
    large = np.array(result.names)[next(iter(result.assessed.values()))]
    differences = {
        metric: {
            **asdict(interval),
            "value": max(
                float(np.ptp(table.loc[large, rate].to_numpy(dtype=float))) for rate in means.rates_of[metric]
            ),
        }
        for metric, interval in result.differences.items()
    }
    return {
        "groups": rows,
        "differences": differences,
        "notAssessed": {name: list(means.values) for name in result.left_out()},
    }
