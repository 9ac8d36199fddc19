"""What each stage's judge makes of a summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from mlplatform import api
from mlplatform.contract import Stage, Summary
from mlplatform.resources import KINDS
from mlplatform.snapshot import Object
from mlplatform.stages import PIPELINE
from mlplatform.stages.verdict import headline, number

JUDGES = {stage.name: stage.judge for stage in PIPELINE}


def spec(**sections: Any) -> api.ModelVersionSpec:
    data = {"uri": "s3://x/", "label": "y", "sensitiveAttributes": ["sex", "race"]}
    return api.decode(api.ModelVersionSpec, {"model": "m", "sequence": 1, "data": data, **sections})


def fairness(sex: float, race: float | None = 0.01) -> Object:
    measured = {"sex": {"value": sex, "low": sex - 0.02, "high": sex + 0.02}}
    if race is not None:
        measured["race"] = {"value": race, "low": 0.0, "high": 0.02}
    return {"fairness": {"demographic_parity_difference": measured}}


GATES = [{"metric": "roc_auc", "min": 0.88}, {"metric": "log_loss", "max": 0.3}]
CONSTANT = {"metric": "balanced_accuracy", "answer": "no", "floor": 0.5, "right": 0.8, "always": False, "better": False}
BOUND = {"metrics": {"demographic_parity_difference": 0.2}}
CANDIDATES = [{"name": "fp32", "metrics": {"roc_auc": 0.91}}, {"name": "int8-dynamic", "metrics": {"roc_auc": 0.87}}]


@dataclass(frozen=True)
class Case:
    """A summary and the verdict over it."""

    reason: str
    stage: Stage
    passed: bool
    why: str
    spec: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    details: Object = field(default_factory=dict)
    contains: tuple[str, ...] = ()


CASES = [
    Case(
        "training passes, whatever came of it: audit measures that",
        Stage.TRAIN,
        True,
        "Succeeded",
        metrics={"val_accuracy": 0.8, "val_roc_auc": 0.5},
        details={"epochs": 3},
        contains=("trained 3 epochs: val_roc_auc 0.5",),
    ),
    Case(
        "the metric that training was stopped by is its headline",
        Stage.TRAIN,
        True,
        "Succeeded",
        spec={"training": {"earlyStopping": {"metric": "val_accuracy"}}},
        metrics={"val_accuracy": 0.8, "val_roc_auc": 0.5},
        contains=("trained: val_accuracy 0.8",),
    ),
    Case(
        "gates that hold",
        Stage.AUDIT,
        True,
        "Succeeded",
        spec={"gates": GATES},
        metrics={"roc_auc": 0.88, "log_loss": 0.3},
        contains=("roc_auc 0.88", "log_loss 0.3"),
    ),
    Case("nothing to hold", Stage.AUDIT, True, "Succeeded", contains=("no gates to pass",)),
    Case(
        "a gate that does not hold: metric, value, bound, way out",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"gates": GATES},
        metrics={"roc_auc": 0.8612, "log_loss": 0.2},
        contains=("roc_auc of the test split is 0.8612, below the gate's min 0.88", "higher roc_auc"),
    ),
    Case(
        "several gates that do not hold are all named",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"gates": GATES},
        metrics={"roc_auc": 0.5, "log_loss": 0.9},
        contains=("below the gate's min 0.88; log_loss of the test split is 0.9, above the gate's max 0.3",),
    ),
    Case(
        "a gate on something that was not measured holds nothing",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"gates": GATES[:1]},
        metrics={"accuracy": 0.9},
        contains=("has no metric roc_auc", "(accuracy)"),
    ),
    Case(
        "not a number is below every bound",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"gates": GATES[:1]},
        metrics={"roc_auc": float("nan")},
        contains=("nan",),
    ),
    Case(
        "one class for every row fails without a gate, and says what to do",
        Stage.AUDIT,
        False,
        "GateFailed",
        metrics={"balanced_accuracy": 0.5, "accuracy": 0.8},
        details={"constant": {**CONSTANT, "always": True}},
        contains=(
            "the model answers 'no' for every row of the test split",
            "kubectl mlmodel data m",
            "replaces this one",
        ),
    ),
    Case(
        "no better than the commonest class",
        Stage.AUDIT,
        False,
        "GateFailed",
        metrics={"balanced_accuracy": 0.48, "accuracy": 0.7},
        details={"constant": CONSTANT},
        contains=(
            (
                "balanced_accuracy of the test split is 0.48: no better than to answer 'no' for every row, which is 0.5, and "
                "right in 0.8 of them"
            ),
        ),
    ),
    Case(
        "no better than the mean",
        Stage.AUDIT,
        False,
        "GateFailed",
        metrics={"r2": -0.2},
        details={"constant": {"metric": "r2", "answer": 31.25, "floor": 0.0, "always": False, "better": False}},
        contains=("r2 of the test split is -0.2: no better than to answer 31.25 for every row, which is 0",),
    ),
    Case(
        "a gate of the user's own on its metric replaces that one",
        Stage.AUDIT,
        True,
        "Succeeded",
        spec={"gates": [{"metric": "balanced_accuracy", "min": 0}]},
        metrics={"balanced_accuracy": 0.5},
        details={"constant": {**CONSTANT, "always": True}},
    ),
    Case(
        "better than that: nothing to say",
        Stage.AUDIT,
        True,
        "Succeeded",
        metrics={"balanced_accuracy": 0.6},
        details={"constant": {**CONSTANT, "better": True}},
    ),
    Case(
        "a difference between groups that all get one answer is not shown",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"fairness": BOUND, "gates": [{"metric": "balanced_accuracy", "min": 0}]},
        metrics={"balanced_accuracy": 0.5},
        details={"fairness": {}, "constant": {**CONSTANT, "always": True}},
        contains=(
            (
                "demographic_parity_difference by sex is not shown: every row of the test split is answered 'no', which would "
                "pass any bound"
            ),
        ),
    ),
    Case(
        "group differences within the bound",
        Stage.AUDIT,
        True,
        "Succeeded",
        spec={"fairness": BOUND},
        details=fairness(0.2),
        contains=("demographic_parity_difference 0.2 by sex (bound 0.2)",),
    ),
    Case(
        "group differences above the bound: value, interval, bound",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"fairness": BOUND},
        details=fairness(0.25),
        contains=("by sex is 0.25 (95% interval 0.23 to 0.27), above the bound 0.2", "spec.fairness.metrics"),
    ),
    Case(
        "a hair above the bound: as many digits as tell the two apart",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"fairness": BOUND, "gates": []},
        details=fairness(0.200004),
        contains=("is 0.200004 ", "above the bound 0.2"),
    ),
    Case(
        "the point decides, not the interval",
        Stage.AUDIT,
        True,
        "Succeeded",
        spec={"fairness": BOUND},
        details=fairness(0.19),
    ),
    Case(
        "an attribute that could not be assessed is not taken to be fair",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"fairness": BOUND},
        details=fairness(0.1, race=None),
        contains=("by race was not assessed", "minGroupSize"),
    ),
    Case(
        "every bound that was missed is told, gates first",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"fairness": BOUND, "gates": GATES[:1]},
        metrics={"roc_auc": 0.5},
        details=fairness(0.25),
        contains=("below the gate's min 0.88; demographic_parity_difference by sex is 0.25", "above the bound 0.2"),
    ),
    Case(
        "warn lets it pass, and says so",
        Stage.AUDIT,
        True,
        "PassedWithWarning",
        spec={"fairness": {**BOUND, "onFailure": "warn"}},
        details=fairness(0.25),
        contains=("0.25", "onFailure is warn"),
    ),
    Case(
        "warn is about fairness, not about gates",
        Stage.AUDIT,
        False,
        "GateFailed",
        spec={"fairness": {**BOUND, "onFailure": "warn"}, "gates": GATES[:1]},
        metrics={"roc_auc": 0.5},
        details=fairness(0.1),
    ),
    Case(
        "the selected candidate, with size and latency",
        Stage.OPTIMIZE,
        True,
        "Succeeded",
        details={"selected": "fp32", "candidates": [{"name": "fp32", "sizeBytes": 9, "latencyP99Ms": 1.5}]},
        contains=("fp32 (9 bytes, p99 1.5 ms)",),
    ),
    Case(
        "the selected candidate must pass the gates itself",
        Stage.OPTIMIZE,
        False,
        "GateFailed",
        spec={"gates": GATES[:1]},
        metrics={"roc_auc": 0.91},
        details={"selected": "int8-dynamic", "candidates": CANDIDATES},
        contains=("roc_auc of candidate int8-dynamic is 0.87",),
    ),
    Case(
        "none selected: why each was refused",
        Stage.OPTIMIZE,
        False,
        "GateFailed",
        details={"candidates": [{"name": "fp32", "reason": "roc_auc fell by 0.02"}]},
        contains=("no candidate could be selected (fp32: roc_auc fell by 0.02)", "maxMetricDrop"),
    ),
    Case(
        "one selected that was not measured",
        Stage.OPTIMIZE,
        False,
        "GateFailed",
        details={"selected": "pruned", "candidates": CANDIDATES},
    ),
    Case("an archive", Stage.PACKAGE, True, "Succeeded", details={"storageUri": "s3://m/x"}, contains=("s3://m/x",)),
    Case("no archive", Stage.PACKAGE, False, "ReportLost", contains=("did not say where the archive lies",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_verdict(case: Case) -> None:
    summary = Summary(case.stage, "v", metrics=case.metrics, details=case.details)
    verdict = JUDGES[case.stage](summary, spec(**case.spec))
    assert (verdict.passed, verdict.reason) == (case.passed, case.why), case.reason
    for part in case.contains:
        assert part in f"{verdict.message}. {verdict.next_action}", case.reason
    assert verdict.passed or verdict.next_action, "whoever is stopped learns what to do"


def test_the_pipeline_is_complete_and_in_order() -> None:
    assert [stage.name for stage in PIPELINE] == list(Stage)
    assert len({stage.condition for stage in PIPELINE}) == len(PIPELINE)
    assert {stage.kind for stage in PIPELINE} <= KINDS.keys()


@pytest.mark.parametrize(
    ("value", "text"), [(0.88, "0.88"), (0.90541, "0.9054"), (1.0, "1"), (0.0, "0"), (100.0, "100"), (12.5, "12.5")]
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_headline_follows_the_task_and_not_the_alphabet() -> None:
    metrics = {"accuracy": 0.8, "roc_auc": 0.9, "zeta": 1.0, "f1": 0.7}
    assert headline(metrics, "tabular") == "roc_auc 0.9, accuracy 0.8, f1 0.7"
    assert headline(metrics, "tabular", ["zeta"], limit=2) == "zeta 1, roc_auc 0.9"
    assert headline({"roc_auc": 0.9, "ndcg_at_10": 0.8}, "ranking", limit=1) == "ndcg_at_10 0.8"
    assert headline(metrics, "mine.tasks:Own", limit=1) == "roc_auc 0.9", "a task of the user's own, as tasks like it"
