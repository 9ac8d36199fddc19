"""The API's types: reading, mistakes named by path, names that are hashes of inputs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlplatform import api, contract

EXAMPLE = Path(__file__).parents[2] / "examples/adult-income/mlmodel.yaml"


def example() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())["spec"]
    return loaded


def changed(path: str, value: object) -> dict[str, Any]:
    """The example's spec with the field at a dotted path replaced, or removed where the value is `...`."""
    spec = copy.deepcopy(example())
    *parents, leaf = path.split(".")
    node = spec
    for parent in parents:
        node = node.setdefault(parent, {})
    if value is ...:
        del node[leaf]
    else:
        node[leaf] = value
    return spec


@dataclass(frozen=True)
class Case:
    reason: str
    path: str
    value: object
    message: str


DECODE_ERRORS = [
    Case("a typo is caught and the right name offered", "training.epoch", 3, "spec.training.epoch: unknown field (did you mean epochs?)"),
    Case("a string is not a number", "training.epochs", "five", "spec.training.epochs: expected an integer, got a string 'five'"),
    Case("a boolean is not an integer, though Python says so", "training.epochs", True, "expected an integer, got a boolean True"),
    Case("an enum lists its values", "training.strategy", "fspd", "'fspd' is not one of fsdp, ddp, single (did you mean fsdp?)"),
    Case("a required field is named", "data.uri", ..., "spec.data.uri: required"),
    Case("a list is not an object", "gates", {"metric": "roc_auc"}, "spec.gates: expected a list, got an object"),
    Case("an item's path has its index", "gates", [{"metric": "roc_auc", "low": 1}], "spec.gates[0].low: unknown field"),
    Case("a duration says how to write it", "rollout.interval", "1 minute", "spec.rollout.interval: '1 minute' is not a duration; write it like 90s"),
    Case("null where an object belongs", "data", None, "spec.data: expected an object, got null"),
]  # fmt: skip


@pytest.mark.parametrize("case", DECODE_ERRORS, ids=lambda c: c.reason)
def test_decode_names_the_mistake(case: Case) -> None:
    with pytest.raises(api.SpecError) as error:
        api.decode(api.MLModelSpec, changed(case.path, case.value))
    assert case.message in str(error.value), case.reason


@pytest.mark.parametrize(
    ("reason", "path", "value", "refused"),
    [
        ("a later CRD's default of an object", "serving.novel", {}, False),
        ("with defaults in it", "novel", {"jobs": {"labels": {}}, "queue": ""}, False),
        ("of a list", "gates", [{"metric": "roc_auc", "min": 0.8, "novel": []}], False),
        ("of a word", "training.novel", "", False),
        ("a field that is taken back", "training.novel", None, False),
        ("a later field that asks for something", "serving.novel", {"queue": "teams"}, True),
        ("a list with something in it", "novel", [{}], True),
        ("no may be another answer than none", "training.novel", False, True),
        ("so may nought", "training.novel", 0, True),
    ],
)
def test_an_unknown_field_that_asks_for_nothing_is_none(reason: str, path: str, value: object, refused: bool) -> None:  # noqa: FBT001  a table's
    """While an upgrade replaces the operator, the new CRDs already fill in their defaults."""
    spec = changed(path, value)
    if refused:
        with pytest.raises(api.SpecError, match="unknown field"):
            api.decode(api.MLModelSpec, spec)
        return
    found = api.decode(api.MLModelSpec, spec)
    assert "novel" not in json.dumps(api.encode(found)), reason


PROBLEMS = [
    Case("nothing at the URI's place", "data.uri", " ", "spec.data.uri: empty"),
    Case("no rows are left to train on", "data.split", {"validation": 0.5, "test": 0.5}, "must be less than 1"),
    Case("the label would be audited against itself", "data.sensitiveAttributes", ["income"], "contains the label, which cannot be audited"),
    Case("bounds without groups compare nothing", "data.sensitiveAttributes", [], "needs spec.data.sensitiveAttributes"),
    Case("one process cannot be two workers", "training.strategy", "single", "single is one process"),
    Case("the reference must be measured", "optimization.candidates", ["int8-dynamic"], "must contain fp32"),
    Case("bounds in the wrong order", "serving.replicas", {"min": 3, "max": 1}, "max is below min"),
    Case("an unknown group metric", "fairness.metrics", {"equal_odds_difference": 0.1}, "unknown metric; known: demographic"),
    Case("steps must rise", "rollout.steps", [50, 25], "must rise"),
    Case("100 is implied", "rollout.steps", [50, 100], "100 follows by itself"),
    Case("a gate needs a bound", "gates", [{"metric": "roc_auc"}], "give min or max"),
    Case("a gate on a metric the task does not report", "gates", [{"metric": "roc_acu", "min": 0.5}], "it reports roc_auc, "),
    Case("a task that is no import path", "training.task", "tabluar", "neither a built-in task (tabular, text, causal-lm, ranking) nor package.module:Class"),
]  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda c: c.reason)
def test_problems_name_cause_and_fix(case: Case) -> None:
    found = api.problems(api.decode(api.MLModelSpec, changed(case.path, case.value)), "adult-income")
    assert any(case.message in problem for problem in found), (case.reason, found)


def test_the_example_has_no_problems() -> None:
    assert api.problems(api.decode(api.MLModelSpec, example()), "adult-income") == []


@pytest.mark.parametrize(
    ("length", "sound"),
    [(contract.MODEL_NAME_LIMIT, True), (contract.MODEL_NAME_LIMIT + 1, False)],
)
def test_a_name_leaves_room_for_its_children(length: int, sound: bool) -> None:  # noqa: FBT001  a table's column
    found = api.problems(api.decode(api.MLModelSpec, example()), "m" * length)
    assert (found == []) is sound


def test_the_longest_name_gives_valid_children() -> None:
    version = api.version_name("m" * contract.MODEL_NAME_LIMIT, api.decode(api.MLModelSpec, example()))
    for child in (f"{version}-train-worker-99", f"{version}-predictor", f"isvc.{version}-predictor"):
        assert len(child) <= 63, child


def test_encode_is_the_inverse_of_decode() -> None:
    spec = api.decode(api.MLModelSpec, example())
    assert api.decode(api.MLModelSpec, api.encode(spec)) == spec
    assert api.decode(api.MLModelSpec, api.canonical(spec)) == spec


NAME_CASES: list[tuple[str, Callable[[dict[str, Any]], object], bool]] = [
    ("data shapes the model", lambda s: s["data"].update(label="other"), True),
    ("training shapes the model", lambda s: s["training"].update(seed=8), True),
    ("a gate decides whether a version may serve", lambda s: s["gates"].append({"metric": "f1", "min": 0.1}), True),
    ("a fairness bound likewise", lambda s: s["fairness"].update(minGroupSize=51), True),
    ("candidates shape the artifact", lambda s: s["optimization"].update(candidates=["fp32"]), True),
    ("serving never retrains", lambda s: s["serving"].update(replicas={"min": 2, "max": 3}), False),
    ("a rollout never retrains", lambda s: s["rollout"].update(steps=[10]), False),
    ("auto is what a target is by default", lambda s: s["data"].update(target="auto"), False),
    ("another target is another model", lambda s: s["data"].update(target="binary"), True),
    (
        "the metric that was watched by default is the first of classes",
        lambda s: s["training"]["earlyStopping"].pop("metric"),
        False,
    ),
    ("another metric is not", lambda s: s["training"]["earlyStopping"].update(metric="val_f1"), True),
    ("a default written out is the same spec", lambda s: s["training"].update(activationCheckpointing=False), False),
]


@pytest.mark.parametrize(("reason", "mutate", "renamed"), NAME_CASES, ids=[case[0] for case in NAME_CASES])
def test_a_version_is_named_by_what_shapes_it(
    reason: str,
    mutate: Callable[[dict[str, Any]], object],
    renamed: bool,  # noqa: FBT001  a table's column
) -> None:
    spec = example()
    before, content = (
        api.version_name("m", api.decode(api.MLModelSpec, spec)),
        api.content(api.decode(api.MLModelSpec, spec)),
    )
    mutate(spec)
    after = api.decode(api.MLModelSpec, spec)
    assert (api.version_name("m", after) != before) is renamed, reason
    assert (api.content(after) != content) is renamed, reason


def test_a_retrain_trigger_makes_a_new_version() -> None:
    spec = api.decode(api.MLModelSpec, example())
    assert api.version_name("m", spec, "2026-01-01") != api.version_name("m", spec)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2h", 7200), ("0s", 0)],
)
def test_durations(text: str, seconds: int) -> None:
    value = api.parse_duration(text)
    assert value == timedelta(seconds=seconds)
    assert api.parse_duration(api.format_duration(value)) == value


@pytest.mark.parametrize("text", ["", "10", "m", "1d", "1m2h", "-5s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(api.SpecError, match="is not a duration"):
        api.parse_duration(text)


@pytest.mark.parametrize("text", ["99999999h", "999999999m", "87600h1s"])
def test_a_duration_stays_one_that_can_be_added_to_a_date(text: str) -> None:
    with pytest.raises(api.SpecError, match="is longer than 87600h"):
        api.parse_duration(text)
