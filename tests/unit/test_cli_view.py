"""What `kubectl mlmodel` makes of a model: outcomes, the end of a watch, numbers in words."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console
from unit import cli_objects as objects

from mlplatform import api
from mlplatform.cli import render
from mlplatform.cli.commands import reached
from mlplatform.cli.view import Outcome, duration, leading, milliseconds, model_view, number, size


def view(moment: str) -> Any:
    model, versions = objects.LIFE[moment]
    return model_view(model, versions, objects.NOW)


@dataclass(frozen=True)
class Moment:
    """A model's state and what the plugin must conclude."""

    reason: str
    model: dict[str, Any]
    versions: list[dict[str, Any]]
    outcome: Outcome
    message: str


ROLLED_BACK = replace(
    objects.SERVING_V1,
    observed_generation=2,
    latest_version=objects.V2,
    conditions=(
        objects.ACCEPTED,
        objects.condition("RolloutPassed", "False", "RolledBack", "v2 was not ready within rollout.maxDuration"),
    ),
)


def without(kind: str, reason: str, message: str) -> dict[str, Any]:
    """A model whose condition `kind` is False."""
    conditions = (
        objects.ACCEPTED,
        objects.condition(kind, "False", reason, message),
        objects.condition("Ready", "False", reason, message),
    )
    return objects.model(replace(objects.TRAINING_V1, conditions=conditions))


def refused(reason: str, message: str) -> api.MLModelStatus:
    """The first version serves; at the second spec the operator was refused a write."""
    conditions = (
        objects.ACCEPTED,
        objects.condition("VersionReady", "True", "PipelinePassed", generation=1),
        objects.condition("Ready", "False", reason, message, generation=2),
    )
    return replace(objects.SERVING_V1, observed_generation=2, conditions=conditions)


FAILED_THEN_REFUSED = replace(
    objects.FAILED_V2,
    conditions=(
        objects.ACCEPTED,
        objects.condition("VersionReady", "False", "TrainFailed", "train failed", generation=2),
        objects.condition("Ready", "False", "NameTaken", "Service adult-income belongs to somebody else", generation=3),
    ),
)

MOMENTS = [
    Moment(
        "a spec that the operator has not seen is not ready, though the last one was",
        objects.model(objects.SERVING_V1, generation=2),
        [objects.version(stages=objects.ALL_STAGES)],
        Outcome.PROGRESSING,
        "waiting for the operator to see this change",
    ),
    Moment(
        "a retrain request changes no generation, yet the old version is no answer to it",
        objects.model(objects.SERVING_V1, retrain="again"),
        [objects.version(stages=objects.ALL_STAGES)],
        Outcome.PROGRESSING,
        "waiting for the operator to see this change",
    ),
    Moment(
        "a version made for the retrain request is the answer",
        objects.model(objects.SERVING_V1, retrain="again"),
        [objects.version(stages=objects.ALL_STAGES, trigger="again")],
        Outcome.READY,
        "v1 serves all traffic",
    ),
    Moment(
        "a model of which nothing is known yet is in progress",
        *objects.LIFE["applied"],
        Outcome.PROGRESSING,
        "waiting for the operator to see this change",
    ),
    Moment(
        "Ready is about the stable version; while another one rolls out the user's wish is not met",
        objects.model(replace(objects.ROLLING_V2, conditions=(objects.ACCEPTED, objects.READY)), generation=2),
        [objects.version(), objects.version(objects.V2, 2)],
        Outcome.PROGRESSING,
        "v1 serves all traffic",
    ),
    Moment(
        "a failed version is a failure even while the stable one serves",
        *objects.LIFE["failed"],
        Outcome.FAILED,
        objects.OUT_OF_MEMORY.message,
    ),
    Moment(
        "the version's own failure counts before the model repeats it",
        objects.model(replace(objects.FAILED_V2, failure=None), generation=2),
        [objects.version(objects.V2, 2, (objects.failed(objects.TRAIN),), failure=objects.OUT_OF_MEMORY)],
        Outcome.FAILED,
        objects.OUT_OF_MEMORY.message,
    ),
    Moment(
        "a rejected spec is a failure with the condition's words",
        *objects.LIFE["rejected"],
        Outcome.FAILED,
        "spec.gates[0].metric: task tabular reports no 'roc_acu' (did you mean roc_auc?)",
    ),
    Moment(
        "a rejected spec is final although no version answers the retrain request beside it",
        objects.model(replace(objects.REJECTED, latest_version=objects.V1), retrain="again"),
        [objects.version()],
        Outcome.FAILED,
        "spec.gates[0].metric: task tabular reports no 'roc_acu' (did you mean roc_auc?)",
    ),
    Moment(
        "a version that was rolled back has failed",
        objects.model(ROLLED_BACK, generation=2),
        [objects.version(), objects.version(objects.V2, 2, objects.ALL_STAGES)],
        Outcome.FAILED,
        "v2 was not ready within rollout.maxDuration",
    ),
    Moment(
        "a failure of an earlier spec says nothing about the one just applied",
        objects.model(objects.FAILED_V2, generation=3),
        objects.LIFE["failed"][1],
        Outcome.PROGRESSING,
        "waiting for the operator to see this change",
    ),
    Moment(
        "what is tried again has not failed, though it has a cause to show",
        *objects.LIFE["retrying"],
        Outcome.PROGRESSING,
        "training v1",
    ),
    Moment(
        "an image that cannot be pulled yet has failed nothing: the stage goes on once it can be",
        *objects.LIFE["blocked"],
        Outcome.PROGRESSING,
        "v1: train is blocked: image cannot be pulled",
    ),
    Moment(
        "a missing add-on has failed nothing either",
        *objects.LIFE["without-add-on"],
        Outcome.PROGRESSING,
        objects.NO_TRAINER,
    ),
    Moment(
        "nor has a missing add-on of the rollout",
        without("RolloutPassed", "AddOnMissing", "the cluster does not serve InferenceService: install KServe"),
        [objects.version(stages=objects.ALL_STAGES)],
        Outcome.PROGRESSING,
        "the cluster does not serve InferenceService: install KServe",
    ),
    Moment(
        "a version whose spec this operator cannot read has failed",
        without("VersionReady", "SpecInvalid", "v1: spec.data.uri: expected a string"),
        [objects.version()],
        Outcome.FAILED,
        "v1: spec.data.uri: expected a string",
    ),
    Moment(
        "an operator that may not create the version has failed the wish",
        *objects.LIFE["refused"],
        Outcome.FAILED,
        objects.NOT_ALLOWED,
    ),
    Moment(
        "so has one that was refused at the second spec; the first version is no answer to it",
        objects.model(refused("Rejected", "admission webhook denied the request"), generation=2),
        [objects.version(stages=objects.ALL_STAGES)],
        Outcome.FAILED,
        "admission webhook denied the request",
    ),
    Moment(
        "so has one that was refused at a retrain request",
        objects.model(replace(refused("Forbidden", "403"), observed_generation=1), retrain="again"),
        [objects.version(stages=objects.ALL_STAGES)],
        Outcome.FAILED,
        "403",
    ),
    Moment(
        "a refusal counts for more than what an earlier version died of",
        objects.model(replace(FAILED_THEN_REFUSED, observed_generation=3), generation=3),
        objects.LIFE["failed"][1],
        Outcome.FAILED,
        "Service adult-income belongs to somebody else",
    ),
    Moment(
        "a stable version that lost its pods is an incident, no verdict on the wish",
        objects.model(
            replace(
                objects.SERVING_V1,
                conditions=(
                    objects.ACCEPTED,
                    objects.condition("Serving", "False", "NoReadyPods"),
                    objects.condition("Ready", "False", "NoReadyPods", "v1 has no ready pod"),
                ),
            )
        ),
        [objects.version(stages=objects.ALL_STAGES)],
        Outcome.PROGRESSING,
        "v1 has no ready pod",
    ),
    Moment(
        "a model that is ready before its version is heard of again: the two are watched apart",
        objects.LIFE["serving"][0],
        objects.LIFE["blocked"][1],
        Outcome.PROGRESSING,
        "v1 serves all traffic",
    ),
    Moment(
        "a suspended model says so instead of seeming stuck",
        objects.model(objects.TRAINING_V1, suspend=True),
        [objects.version()],
        Outcome.SUSPENDED,
        "spec.suspend is true: nothing new starts; what serves keeps serving",
    ),
]


@pytest.mark.parametrize("case", MOMENTS, ids=lambda case: case.reason)
def test_outcome(case: Moment) -> None:
    found = model_view(case.model, case.versions, objects.NOW)
    assert (found.outcome, found.message) == (case.outcome, case.message), case.reason


@dataclass(frozen=True)
class End:
    """A moment, a wish and the exit code (None: keep watching)."""

    reason: str
    moment: str
    until: str
    code: int | None


ENDS = [
    End("a running pipeline is no end", "training", "ready", None),
    End("a stage that is tried again is no end", "retrying", "ready", None),
    End("an image that cannot be pulled yet is no end", "blocked", "ready", None),
    End("who waits for a failure does not get a block for one", "blocked", "failed", None),
    End("a missing add-on is no end", "without-add-on", "ready", None),
    End("an operator that was refused ends the wait", "refused", "ready", 1),
    End("ready is the default end", "serving", "ready", 0),
    End("ready waits for the whole rollout", "rolling", "ready", None),
    End("a failure ends the wait for ready", "failed", "ready", 1),
    End("a rejected spec ends it too", "rejected", "ready", 1),
    End("who waits for a failure gets it as success", "failed", "failed", 0),
    End("who waits for a failure learns that it did not come", "serving", "failed", 1),
    End("a stage that has ended is reached", "optimizing", "audited", 0),
    End("a stage that runs is not", "optimizing", "optimized", None),
    End("a stage before the one that failed is reached by nobody", "failed", "audited", 1),
    End("all stages have ended when the model serves", "serving", "packaged", 0),
    End("accepted is reached before anything runs", "training", "accepted", 0),
    End("accepted is refused by a rejected spec", "rejected", "accepted", 1),
    End("nothing is known of a spec that nobody has seen", "applied", "accepted", None),
    End("the rollout is reached while it runs", "rolling", "rollout", 0),
    End("the rollout has not begun while stages run", "optimizing", "rollout", None),
    End("never goes on after success", "serving", "never", None),
    End("never goes on after failure", "failed", "never", None),
    End("deleted does not end on a model that is there", "serving", "deleted", None),
]


@pytest.mark.parametrize("case", ENDS, ids=lambda case: case.reason)
def test_until(case: End) -> None:
    assert reached(view(case.moment), case.until) == case.code, case.reason


@pytest.mark.parametrize("reason", ["Forbidden", "NameTaken", "Rejected", "InternalError"])
def test_a_refused_operator_is_told_with_the_next_action(reason: str) -> None:
    model = objects.model(refused(reason, "what was said"), generation=2)
    found = model_view(model, [objects.version(stages=objects.ALL_STAGES)], objects.NOW)
    assert found.failure is not None
    assert (found.failure.reason, found.failure.message) == (reason, "what was said")
    assert found.failure.next_action
    assert found.version is None, "the version that serves is not the one that was asked for"
    assert reached(found, "packaged") == 1, "its pipeline is not the one that was waited for"


def test_a_version_keeps_its_story_when_its_rollout_is_refused() -> None:
    status = refused("Forbidden", "may not apply VirtualService")
    ready, *_ = (c for c in status.conditions if c.type == "Ready")
    built = objects.condition("VersionReady", "True", "PipelinePassed", generation=2)
    status = replace(status, latest_version=objects.V2, conditions=(objects.ACCEPTED, built, ready))
    model = objects.model(status, generation=2)
    found = model_view(model, [objects.version(objects.V2, 2, objects.ALL_STAGES)], objects.NOW)
    assert found.outcome is Outcome.FAILED
    assert reached(found, "packaged") == 0, "the pipeline has ended all the same"


def test_what_is_held_up_says_what_it_waits_for() -> None:
    pulling, installing = view("blocked"), view("without-add-on")
    assert (pulling.failure.reason, pulling.failure.stage, pulling.stage) == ("ImagePull", "train", "Training")
    assert (installing.failure.reason, installing.failure.message) == ("AddOnMissing", objects.NO_TRAINER)
    assert "goes on by itself" in installing.failure.next_action


def test_the_time_that_a_rollout_still_takes_has_its_name() -> None:
    assert api.encode(view("rolling"))["traffic"]["remainingSeconds"] == 20


def test_stage_durations_run_up_to_now() -> None:
    stages = {stage.name: stage for stage in view("optimizing").version.stages}
    assert stages["train"].seconds == 48, "a stage that has ended keeps its duration"
    assert stages["optimize"].seconds == 59, "a running stage is measured up to now"
    assert stages["package"].seconds is None, "a stage that has not begun has none"


def test_verdicts_compare_with_the_versions_own_bounds() -> None:
    version = view("serving").version
    assert [(gate.metric, gate.value, gate.passed) for gate in version.gates] == [("roc_auc", 0.9131, True)]
    found = {(row.metric, row.attribute): (row.bound, row.passed) for row in version.fairness}
    assert found["demographic_parity_difference", "sex"] == (0.2, True)
    assert found["equalized_odds_difference", "sex"] == (0.15, True)


def test_a_measured_gap_above_its_bound_is_exceeded() -> None:
    raw = objects.version(stages=objects.ALL_STAGES)
    raw["spec"]["fairness"]["metrics"]["demographic_parity_difference"] = 0.15
    version = model_view(objects.model(objects.SERVING_V1), [raw], objects.NOW).version
    assert version is not None
    found = {(row.metric, row.attribute): row.passed for row in version.fairness}
    assert found["demographic_parity_difference", "sex"] is False
    assert found["demographic_parity_difference", "race"] is True


def test_fields_of_a_newer_operator_are_passed_over() -> None:
    raw = api.encode(objects.ROLLING_V2)
    raw["drift"] = {"psi": 0.2}
    raw["stable"]["pods"] = 3
    raw["history"][0]["evidence"] = ["…"]
    assert api.decode(api.MLModelStatus, raw, "status", unknown="skip") == objects.ROLLING_V2


def test_a_value_that_this_release_does_not_know_is_named_to_who_acts_on_it() -> None:
    raw = api.encode(objects.SERVING_V1)
    raw["history"][0]["decision"] = "Held"
    with pytest.raises(api.SpecError, match=r"status\.history\[0\]\.decision: 'Held' is not one of"):
        api.decode(api.MLModelStatus, raw, "status", unknown="skip")


NEWER = "Transmogrified"
"""No word of this release."""

WORDS = {(api.FailureStatus, "class_"), (api.Condition, "type"), (api.StageStatus, "name")}
"""Fields that are words though their type says only str."""


def words(cls: type, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Where JSON of this type holds a word of a fixed vocabulary; ``*`` stands for every item of a list."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        here, hint = (*path, api.json_name(f.name)), hints[f.name]
        inner = next((a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None)
        if typing.get_origin(hint) is typing.Literal or (cls, f.name) in WORDS:
            yield here
        elif isinstance(inner, type):
            yield from words(inner, (*here, "*") if typing.get_origin(hint) is tuple else here)


def put(node: Any, path: tuple[str, ...]) -> bool:
    """Puts the newer word at a path, of a list into its last item; False where the object has nothing there."""
    head, *rest = path
    if not rest:
        node[head] = NEWER
        return True
    inner = (node[-1] if node else None) if head == "*" else node.get(head)
    return inner is not None and put(inner, tuple(rest))


MODEL_WORDS = [*words(api.MLModelStatus, ("status",))]
VERSION_WORDS = [*words(api.ModelVersionStatus, ("status",)), *words(api.ModelVersionSpec, ("spec",))]


def test_every_enumeration_of_the_status_is_looked_at() -> None:
    assert ("status", "history", "*", "decision") in MODEL_WORDS
    assert {("status", "stages", "*", "outcome"), ("spec", "data", "format")} <= {*VERSION_WORDS}


@pytest.mark.parametrize(
    ("kind", "path"),
    # A stage's last failure is told while it is the version's, and is not looked for again.
    [*(("model", p) for p in MODEL_WORDS), *(("version", p) for p in VERSION_WORDS if "lastFailure" not in p)],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_a_word_of_a_newer_operator_hides_no_table(kind: str, path: tuple[str, ...]) -> None:
    """`status`, `watch` and `history`, as text and as JSON, at every moment that has such a word."""
    tried = [moment for moment in objects.LIFE if told_with(moment, kind, path)]
    assert tried, "no moment has it"


def told_with(moment: str, kind: str, path: tuple[str, ...]) -> bool:
    """Tells a moment with the newer word in it, and looks whether that is all there; False where it has no such word."""
    model, versions = copy.deepcopy(objects.LIFE[moment])
    latest = next((v for v in versions if v["metadata"]["name"] == model["status"].get("latestVersion")), None)
    if latest is not None:
        latest["spec"] = api.encode(api.decode(api.ModelVersionSpec, latest["spec"]))  # with the server's defaults
        latest["status"]["conditions"] = [api.encode(objects.READY)]
    target = model if kind == "model" else latest
    if target is None or not put(target, path):
        return False
    console = Console(file=io.StringIO(), width=200, highlight=False)

    seen = model_view(model, versions, objects.NOW)
    console.print(render.frame(seen))
    console.print(render.models_table([seen], wide=True, namespaces=True))
    console.print(render.history_table(seen))
    lines = "\n".join(render.facts(seen).values())
    shown = typing.cast("io.StringIO", console.file).getvalue()

    assert json.dumps(api.encode(seen))
    assert seen.version is None or f"v{seen.version.sequence}" in shown, "the rest of the picture is there"
    if path[-1] == "decision" or path[:3] == ("status", "stages", "*"):
        assert NEWER in shown, f"{moment}: the word itself stands in the table"
    if path[:3] == ("status", "stages", "*"):
        assert NEWER in lines, f"{moment}: and in the lines of `watch`"
    return True


@pytest.mark.parametrize(
    ("reason", "found", "expected"),
    [
        ("seconds alone", duration(48.9), "48s"),
        ("minutes keep two digits of seconds", duration(61), "1m 01s"),
        ("hours drop the seconds", duration(7380), "2h 03m"),
        ("days drop the minutes", duration(3 * 86400 + 4 * 3600), "3d 4h"),
        ("nothing has begun", duration(None), ""),
        ("bytes are whole", size(999), "999 B"),
        ("three digits below ten", size(1536), "1.50 KiB"),
        ("three digits below a hundred", size(73728), "72.0 KiB"),
        ("no decimals from a hundred on", size(249856), "244 KiB"),
        ("larger units follow", size(5 * 1024**2), "5.00 MiB"),
        ("the last unit takes the rest", size(5 * 1024**4), "5120 GiB"),
        ("an empty file has a size", size(0), "0 B"),
        ("scores have four decimals", number(0.91309), "0.9131"),
        ("a perfect score is a score", number(1.0), "1.0000"),
        ("counts have separators", number(34189.0), "34,189"),
        ("latencies keep three digits", milliseconds(0.25234), "0.252 ms"),
    ],
)
def test_numbers_in_words(reason: str, found: str, expected: str) -> None:
    assert found == expected, reason


@pytest.mark.parametrize(
    ("reason", "metrics", "shown"),
    [
        ("of classes", {"accuracy": 0.9, "f1": 0.8, "roc_auc": 0.95}, ["roc_auc", "accuracy"]),
        ("of a measured number", {"mae": 3.8, "r2": 0.98, "rmse": 4.8}, ["r2", "mae"]),
        (
            "of a task of one's own what comes first",
            {"coverage": 0.88, "pinball": 0.09, "width": 1.0},
            ["coverage", "pinball"],
        ),
        ("of none", {}, []),
    ],
)
def test_which_metrics_are_shown_first(reason: str, metrics: dict[str, float], shown: list[str]) -> None:
    assert leading(metrics) == shown, reason
