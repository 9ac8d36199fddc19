"""Audit: measure quality and fairness on the test split, and hold them against the bounds.

Listed in `stages.PIPELINE`; called by `mlplatform.plan`. The job measures, the
verdict is here: a bound in the spec and a number in the summary, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlplatform import api
from mlplatform.contract import Stage, Summary
from mlplatform.resources import job
from mlplatform.settings import Settings
from mlplatform.snapshot import Object
from mlplatform.stages.verdict import Miss, Verdict, blocked, gate_misses, headline, number, told_apart


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings, scheduling: api.Scheduling) -> Object:
    """The Job."""
    return job.render(version, spec, Stage.AUDIT, settings, scheduling)


def judge(summary: Summary, spec: api.ModelVersionSpec) -> Verdict:
    """Gates hold whatever `fairness.onFailure` says; group differences only where it says block. All misses are told."""
    missed = gate_misses(spec.gates, summary.metrics, "the test split")
    unfair = list(_fairness_misses(summary, spec))
    if blocking := [*missed, *(unfair if spec.fairness.on_failure == "block" else [])]:
        return blocked(blocking, "GateFailed")
    if unfair:
        warning = "; ".join(miss.message for miss in unfair)
        return Verdict(passed=True, reason="PassedWithWarning", message=f"{warning} (fairness.onFailure is warn)")
    parts = [headline(summary.metrics, [gate.metric for gate in spec.gates]), _fairest(summary, spec)]
    return Verdict(
        passed=True, reason="Succeeded", message="; ".join(part for part in parts if part) or "no gates to pass"
    )


def _fairness_misses(summary: Summary, spec: api.ModelVersionSpec) -> Iterator[Miss]:
    for metric, bound in spec.fairness.metrics.items():
        assessed = summary.details.get("fairness", {}).get(metric, {})
        for attribute in spec.data.sensitive_attributes:
            found = assessed.get(attribute)
            if found is None:
                yield Miss(
                    f"{metric} by {attribute} was not assessed: fewer than two groups "
                    f"have {spec.fairness.min_group_size} rows that count for each of its rates",
                    f"Give the test split more rows, lower spec.fairness.minGroupSize, or leave {attribute} out of "
                    "spec.data.sensitiveAttributes.",
                )
            elif not found["value"] <= bound:
                shown, limit = told_apart(found["value"], bound)
                yield Miss(
                    f"{metric} by {attribute} is {shown}{_interval(found, spec)}, above the bound {limit}",
                    f"Reduce the difference (data, features, a mitigating task), or move spec.fairness.metrics.{metric}.",
                )


def _fairest(summary: Summary, spec: api.ModelVersionSpec) -> str:
    """Each fairness metric's largest difference, with its bound."""
    parts = []
    for metric, bound in spec.fairness.metrics.items():
        assessed = summary.details.get("fairness", {}).get(metric, {})
        attribute = max(assessed, key=lambda name: assessed[name]["value"], default=None)
        if attribute is not None:
            parts.append(f"{metric} {number(assessed[attribute]['value'])} by {attribute} (bound {number(bound)})")
    return ", ".join(parts)


def _interval(found: Object, spec: api.ModelVersionSpec) -> str:
    if found.get("low") is None or found.get("high") is None:
        return ""
    share = number(100 * spec.fairness.confidence)
    return f" ({share}% interval {number(found['low'])} to {number(found['high'])})"
