"""The stage `audit`: measures the model on the test split, overall and by group.

Run as ``python -m mljobs.audit`` in a batch Job. It measures; the operator judges, by the
gates and bounds of the specification.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import torch

from mljobs import audit_page, data, trained
from mljobs.cpu import cpu_limit
from mljobs.report import Job, run, say
from mlplatform.contract import Stage, Summary

PAGE: Final = "audit/report.html"
LISTED: Final = 20
"""Groups that the summary lists as not assessed; the report lists all."""


def main(job: Job) -> Summary:
    """Measures; returns the summary."""
    torch.set_num_threads(cpu_limit())
    found = trained.load(job)
    scores = trained.scores(found.objective, found.model, found.inputs)
    metrics = found.objective.evaluate(found.targets, scores)
    say(f"test_rows={len(scores)} " + " ".join(f"{name}={value:.4f}" for name, value in metrics.items()))
    attributes = {
        name: found.objective.compare(data.groups(found.test, name), found.targets, scores, job.spec.fairness)
        for name in job.spec.data.sensitive_attributes
    }
    for name, result in attributes.items():
        differences = " ".join(
            f"{metric}={value['value']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
            for metric, value in result["differences"].items()
        )
        say(
            f"{name}: {differences or 'no differences: fewer than two groups are large enough, or every row gets one answer'}"
        )
    beside = found.objective.constant(found.targets, scores)
    if beside and not beside["better"]:
        same = beside.get("instead") or f"to answer {beside['answer']!r} for every row"
        say(f"no better than {same}")
    left_out = [f"{name}={group}" for name, result in attributes.items() for group in result["notAssessed"]]
    details = {
        "fairness": by_metric(attributes),
        "notAssessed": left_out[:LISTED],
        **({"constant": beside} if beside else {}),
    }
    report = {
        "sample": found.sample,
        "testRows": len(scores),
        **found.objective.about,
        "gates": [asdict(gate) for gate in job.spec.gates],
        "bounds": job.spec.fairness.metrics,
        "minGroupSize": job.spec.fairness.min_group_size,
        "confidence": job.spec.fairness.confidence,
        "attributes": attributes,
        "notAssessed": left_out,
        "page": PAGE,
    }
    job.write(PAGE, audit_page.render(job.version, metrics, report, found.objective).encode())
    return job.finish(report, metrics, details)


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
