"""The stage `audit`: measures the model on the test split, overall and by group.

Run as ``python -m mljobs.audit`` in a batch Job. It measures; the operator judges, by the
gates and bounds of the specification.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from fairlearn.metrics import (
    MetricFrame,
    count,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from sklearn.metrics import accuracy_score

from mljobs import audit_page, data, fairness, trained
from mljobs.cpu import cpu_limit
from mljobs.report import Job, run, say
from mljobs.tasks.tabular import THRESHOLD
from mlplatform.api import Fairness
from mlplatform.contract import Stage, Summary

PAGE: Final = "audit/report.html"
LISTED: Final = 20
"""Groups that the summary lists as not assessed; the report lists all."""
FRAME_METRICS: Final = {
    "count": count,
    "accuracy": accuracy_score,
    "selection_rate": selection_rate,
    "true_positive_rate": true_positive_rate,
    "false_positive_rate": false_positive_rate,
}


def main(job: Job) -> Summary:
    """Measures; returns the summary."""
    torch.set_num_threads(cpu_limit())
    found = trained.load(job)
    scores = trained.probabilities(found.model, found.inputs)
    metrics = found.task.evaluate(found.positive, scores)
    say(f"test_rows={len(scores)} " + " ".join(f"{name}={value:.4f}" for name, value in metrics.items()))
    predicted = scores >= THRESHOLD
    attributes = {
        name: audit_attribute(data.groups(found.test, name), found.positive, predicted, job.spec.fairness)
        for name in job.spec.data.sensitive_attributes
    }
    for name, result in attributes.items():
        differences = " ".join(
            f"{metric}={value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
            for metric, value in result["differences"].items()
        )
        say(f"{name}: {differences or 'fewer than two groups are large enough'}")
    left_out = [f"{name}={group}" for name, result in attributes.items() for group in result["notAssessed"]]
    details = {"fairness": by_metric(attributes), "notAssessed": left_out[:LISTED]}
    report = {
        "sample": found.sample,
        "testRows": len(scores),
        "positiveClass": found.classes[1],
        "threshold": THRESHOLD,
        "gates": [asdict(gate) for gate in job.spec.gates],
        "bounds": job.spec.fairness.metrics,
        "minGroupSize": job.spec.fairness.min_group_size,
        "confidence": job.spec.fairness.confidence,
        "attributes": attributes,
        "notAssessed": left_out,
        "page": PAGE,
    }
    job.write(PAGE, audit_page.render(job.version, metrics, report).encode())
    return job.finish(report, metrics, details)


def audit_attribute(
    groups: npt.NDArray[np.str_], positive: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], asked: Fairness
) -> dict[str, Any]:
    """Rates by group and their differences for one sensitive attribute.

    Point estimates are fairlearn's (`MetricFrame`), taken over the groups that are large enough; the intervals
    are the bootstrap's.

    Returns:
        ``{groups: {<group>: {count, …, <rate>: {value, low, high}}}, differences: {<metric>: {value, low, high}},
        notAssessed: {<group>: [<rate>, …]}}``
    """
    frame = MetricFrame(metrics=FRAME_METRICS, y_true=positive, y_pred=predicted, sensitive_features=groups)
    table = frame.by_group
    result = fairness.assess(groups, positive, predicted, asked.min_group_size, asked.confidence)
    rows: dict[str, Any] = {}
    for i, name in enumerate(result.names):
        rows[name] = {
            "count": int(table.loc[name, "count"]),
            "accuracy": float(table.loc[name, "accuracy"]),
            "denominators": {rate: int(result.denominators[rate][i]) for rate in fairness.RATES},
            **{rate: finite(asdict(result.rates[rate][i])) for rate in fairness.RATES},
        }
    differences = {}
    for metric, interval in result.differences.items():
        names = np.array(result.names)
        spans = [
            float(np.ptp(table.loc[names[result.assessed[rate]], rate].to_numpy(dtype=float)))
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


def by_metric(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """``{<metric>: {<attribute>: {value, low, high}}}`` for the summary, its ends rounded to 4 digits.

    The value is what the operator compares with the bound: rounded, it could pass one that it exceeds.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for attribute, result in attributes.items():
        for metric, interval in result["differences"].items():
            ends = {key: round(interval[key], 4) for key in ("low", "high")}
            found.setdefault(metric, {})[attribute] = {"value": interval["value"], **ends}
    return found


if __name__ == "__main__":
    sys.exit(run(Stage.AUDIT, main))
