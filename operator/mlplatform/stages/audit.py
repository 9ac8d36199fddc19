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
    missed = [*_untrained(summary, spec), *gate_misses(spec.gates, summary.metrics, "the test split")]
    unfair = list(_fairness_misses(summary, spec))
    if blocking := [*missed, *(unfair if spec.fairness.on_failure == "block" else [])]:
        return blocked(blocking, "GateFailed")
    if unfair:
        warning = "; ".join(miss.message for miss in unfair)
        return Verdict(passed=True, reason="PassedWithWarning", message=f"{warning} (fairness.onFailure is warn)")
    parts = [
        headline(summary.metrics, spec.training.task, [gate.metric for gate in spec.gates]),
        _fairest(summary, spec),
    ]
    return Verdict(
        passed=True, reason="Succeeded", message="; ".join(part for part in parts if part) or "no gates to pass"
    )


def _untrained(summary: Summary, spec: api.ModelVersionSpec) -> Iterator[Miss]:
    """The gate that is there without a word: a model is better than one answer for every row, or its metric has a gate of its own."""
    found = summary.details.get("constant")
    if not found or found["better"] or found["metric"] in {gate.metric for gate in spec.gates}:
        return
    metric = found["metric"]
    instead = found.get("instead")
    if found["always"]:
        says = f"the model answers {_answer(found)} for every row of the test split"
    else:
        right = f", and right in {number(found['right'])} of them" if "right" in found else ""
        says = (
            f"{metric} of the test split is {number(summary.metrics[metric])}: no better than "
            f"{instead or f'to answer {_answer(found)} for every row'}, which is {number(found['floor'])}{right}"
        )
    more = "rows" if instead else f"columns that tell {', '.join(spec.data.predicted)}, or rows"
    yield Miss(
        says,
        f"Look at what it learned from (kubectl mlmodel data {spec.model}): add {more}; take out "
        "spec.training.epochs, batchSize and optimizer where they train it too little. A gate of your own on "
        f"{metric} in spec.gates replaces this one.",
    )


def _answer(constant: Object) -> str:
    """What is answered for every row, in words."""
    answer = constant["answer"]
    return repr(answer) if isinstance(answer, str) else f"{answer:.6g}"


def _fairness_misses(summary: Summary, spec: api.ModelVersionSpec) -> Iterator[Miss]:
    constant = summary.details.get("constant") or {}
    for metric, bound in spec.fairness.metrics.items():
        assessed = summary.details.get("fairness", {}).get(metric, {})
        for attribute in spec.data.sensitive_attributes:
            found = assessed.get(attribute)
            if found is None and constant.get("always"):
                yield Miss(
                    f"{metric} by {attribute} is not shown: every row of the test split is answered {_answer(constant)}, "
                    "which would pass any bound",
                    f"Train a model that tells rows apart, or take {metric} out of spec.fairness.metrics.",
                )
            elif found is None:
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
