"""The CRDs' rules say what `api.problems` says, so `kubectl apply` and the Accepted condition agree."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crds
import pytest
import yaml

from mlplatform import api, contract

EXAMPLE = Path(__file__).parents[2] / "examples/adult-income/mlmodel.yaml"


@dataclass(frozen=True)
class Case:
    reason: str
    path: str
    value: object
    message: str


BROKEN = [
    Case("no rows are left to train on", "data.split", {"validation": 0.5, "test": 0.5}, "validation + test must be less than 1"),
    Case("a default takes part in the sum", "data.split", {"validation": 0.85}, "validation + test must be less than 1"),
    Case("the label would be audited against itself", "data.sensitiveAttributes", ["sex", "income"], "contains the label"),
    Case("bounds without groups compare nothing", "data.sensitiveAttributes", [], "needs data.sensitiveAttributes"),
    Case("one process cannot be two workers", "training.strategy", "single", "single is one process"),
    Case("a task that is no import path", "training.task", "tabluar", "neither a built-in task (tabular) nor package.module:Class"),
    Case("no time to train", "training.deadline", "0s", "must be longer than 0s"),
    Case("no time to become ready", "rollout.maxDuration", "0s", "must be longer than 0s"),
    Case("the reference must be measured", "optimization.candidates", ["int8-dynamic"], "must contain fp32"),
    Case("bounds in the wrong order", "serving.replicas", {"min": 3}, "max is below min"),
    Case("an unknown group metric", "fairness.metrics", {"equal_odds_difference": 0.1}, "unknown metric"),
    Case("steps must rise", "rollout.steps", [50, 25], "must rise"),
    Case("a step twice is a step too many", "rollout.steps", [25, 25], "must rise"),
    Case("a gate needs a bound", "gates", [{"metric": "roc_auc"}], "give min or max"),
    Case("a gate nothing can pass", "gates", [{"metric": "roc_auc", "min": 0.9, "max": 0.1}], "min is above max"),
    Case("a metric that the task does not report", "gates", [{"metric": "roc_acu", "min": 0.5}], "task tabular reports no such metric"),
]  # fmt: skip

SOUND = [
    Case("the example itself", "suspend", False, ""),
    Case("no gates", "gates", ..., ""),
    Case("no fairness bounds and no groups", "fairness", {"minGroupSize": 10}, ""),
    Case("a task of one's own reports metrics of its own", "training.task", "mine.ranking:Task", ""),
    Case("one process", "training", {"strategy": "single"}, ""),
    Case("no steps: all traffic at once", "rollout.steps", [], ""),
    Case("one step", "rollout.steps", [10], ""),
    Case("a gate from above", "gates", [{"metric": "log_loss", "max": 0.4}], ""),
]


def changed(case: Case) -> dict[str, Any]:
    """The example's spec with the case's field replaced, as the API server would store it."""
    spec = copy.deepcopy(yaml.safe_load(EXAMPLE.read_text())["spec"])
    *parents, leaf = case.path.split(".")
    node = spec
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = case.value
    if case.value is ...:
        del node[leaf]
    filled: dict[str, Any] = crds.with_defaults(crds.schema("mlmodels", "spec"), spec)
    return filled


@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.reason)
def test_a_broken_rule_is_found_by_the_server_and_by_the_operator(case: Case) -> None:
    spec = changed(case)
    (message,) = crds.broken_rules(crds.schema("mlmodels", "spec"), spec)
    assert case.message in message, case.reason
    assert len(api.problems(api.decode(api.MLModelSpec, spec), "adult-income")) == 1, case.reason


@pytest.mark.parametrize("case", SOUND, ids=lambda c: c.reason)
def test_a_sound_spec_passes_both(case: Case) -> None:
    spec = changed(case)
    assert crds.broken_rules(crds.schema("mlmodels", "spec"), spec) == [], case.reason
    assert api.problems(api.decode(api.MLModelSpec, spec), "adult-income") == [], case.reason


def test_a_version_never_changes() -> None:
    schema = crds.schema("modelversions", "spec")
    old = {"model": "m", "sequence": 1, **changed(SOUND[0])}
    new = copy.deepcopy(old)
    assert crds.broken_rules(schema, new, old) == []
    new["training"]["hyperparameters"]["dropout"] = 0.2
    (message,) = crds.broken_rules(schema, new, old)
    assert message == "a version never changes; change its MLModel, which makes a new version"


@pytest.mark.parametrize(
    ("before", "after", "broken"),
    [("Running", "Failed", 0), ("Running", "Succeeded", 0), ("Failed", "Running", 1), ("Succeeded", "Failed", 1)],
)
def test_a_stage_that_has_ended_stays_so(before: str, after: str, broken: int) -> None:
    old, new = ({"stages": [{"name": "train", "outcome": outcome}]} for outcome in (before, after))
    assert len(crds.broken_rules(crds.schema("modelversions", "status"), new, old)) == broken


@pytest.mark.parametrize(
    ("words", "rules"),
    [
        (contract.TASK_METRICS["tabular"], 1),
        (contract.FAIRNESS_METRICS, 1),
    ],
    ids=["task metrics", "fairness metrics"],
)
def test_the_rules_know_the_contracts_words(words: tuple[str, ...], rules: int) -> None:
    """A metric added to the contract must be added to the rule, its message and the field's description."""
    listed = f"[{', '.join(repr(word) for word in words)}]"
    found = [
        rule
        for _, node in crds.walk(crds.schema("mlmodels", "spec"), "spec")
        for rule in node.get("x-kubernetes-validations", [])
        if listed in rule["rule"]
    ]
    assert len(found) == rules, f"no rule lists {listed}"
    assert all(", ".join(words) in rule["message"] for rule in found)
