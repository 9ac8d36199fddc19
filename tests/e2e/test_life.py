"""The life of one model: served, replaced while the operator dies again and again, gated, deleted.

The tests look at one model, in this order, because a version takes a minute.
pytest runs files by name and a file from top to bottom: this one is the last to
use the model, for it ends with its deletion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from e2e.scenario import (
    NAMESPACE,
    PROMPT_SECONDS,
    STAGE_SECONDS,
    Model,
    Object,
    Platform,
    ask_until,
    condition,
    find_condition,
    stages,
)

from benchmarks.load import Outcome
from local.access import AccessError
from local.demo import PEOPLE, ROUTE_SECONDS, weights
from mlplatform import contract
from mlplatform.contract import Stage


def test_a_model_is_trained_audited_packaged_and_served(model: Model) -> None:
    # Given a model that was applied, when it is ready
    served = model.get()
    version = served["status"]["latestVersion"]
    story = stages(model.version_reaches(version, "is ready", lambda v: condition(v, "Ready") == "True", 10))

    # Then every stage ran once, measured something and left its report in the store
    assert list(story) == [str(stage) for stage in Stage]
    assert {stage["outcome"] for stage in story.values()} == {"Succeeded"}
    assert story["train"]["details"]["worldSize"] == 2, "two pods trained together"
    assert 0.6 < story["audit"]["metrics"]["roc_auc"] < 1
    assert story["audit"]["details"]["fairness"]["demographic_parity_difference"]["sex"]["value"] <= 0.9
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", stage["digest"]) for stage in story.values())

    # And it answers in every dialect, naming the version that answered
    answer = model.answers()
    assert answer.status == 200, answer.body
    assert answer.body["prediction"] in {"<=50K", ">50K"}
    assert 0.5 <= answer.body["confidence"] <= 1
    assert answer.body["model_version"] == version
    assert model.answers(headers={contract.HEADER_VERSION: version}).status == 200
    columns = [
        {
            "name": name,
            "shape": [1],
            "datatype": "FP64" if isinstance(value, (int, float)) else "BYTES",
            "data": [value],
        }
        for name, value in PEOPLE[0].items()
    ]
    assert model.asks(f"/v1/models/{model.name}:predict", {"instances": [PEOPLE[0]]}) == 200
    assert model.asks(f"/v2/models/{model.name}/infer", {"inputs": columns}) == 200
    assert model.asks("/health") == 200


def test_a_change_that_is_refused_changes_nothing_that_serves(model: Model) -> None:
    # Given a model that serves under load, when a gate on a metric that does not exist is applied
    sound, stable = model.spec, model.becomes_ready()["status"]["stable"]
    with model.under_load() as load:
        with pytest.raises(AccessError, match=r"spec\.gates"):
            model.is_changed(gates=[{"metric": "roc_acu", "min": 0.6}])

        # Then the API server refuses it, and when a value comes that none of its rules can judge
        model.spec = sound
        model.is_changed(rollout={"interval": "90000h"})
        refused = model.fails("Accepted", PROMPT_SECONDS)

        # Then the status says so, the stable version is the same, and no request is lost
        assert refused["status"]["stable"] == stable
        assert "spec.rollout.interval" in find_condition(refused, "Ready")["message"]
        assert load.wait_for(load.outcome.total + 40)
    assert (load.outcome.failed, load.outcome.failures) == (0, [])
    assert set(load.outcome.by_version) == {stable["version"]}

    # And when it is corrected, the model is ready again without another version
    model.is_applied(sound)
    assert model.becomes_ready()["status"]["latestVersion"] == stable["version"]


@dataclass
class Replacement:
    """What was seen while a second version took over and the operator was killed in every stage.

    Attributes:
        before: The first version.
        after: The second.
        known: The children before.
        started: Reasons of the events about the second one.
        ended: The children at the end, by ``kind/name``.
        splits: Every split of the traffic, in order.
        outcome: What became of the requests.
    """

    before: str
    after: str
    known: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    splits: list[dict[str, int]] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    story: dict[str, Object] = field(default_factory=dict)


_STARTED = {
    "train": "TrainingStarted",
    "audit": "AuditingStarted",
    "optimize": "OptimizingStarted",
    "package": "PackagingStarted",
}
"""The event that a stage's workload was made."""


@pytest.fixture(scope="module")
def replacement(model: Model, platform: Platform) -> Replacement:
    """Applies a second version under load and kills the operator in each stage and in the rollout."""
    before, known = model.get()["status"]["stable"]["version"], set(model.children())
    with model.under_load() as load, model.weights_recorded() as splits:
        model.is_changed(training={"hyperparameters": {"hidden": [16], "dropout": 0.0}})
        seen = Replacement(before, model.gets_a_version(other_than=before), known)
        for stage in _STARTED:
            model.stage_starts(stage, seen.after)
            platform.kill_operator()
        platform.wait(
            "virtualservices",
            lambda route: weights(route).get(seen.after) == 25,
            f"{seen.after} takes 25 %",
            STAGE_SECONDS,
            field_selector=f"metadata.name={model.name}",
        )
        platform.kill_operator()
        model.becomes_ready(STAGE_SECONDS)
        assert load.wait_for(load.outcome.total + 40), "the load went on after the promotion"
        seen.splits = list(splits)
    seen.outcome = load.outcome
    seen.ended = model.children()
    about = f"involvedObject.uid={seen.ended[f'modelversions/{seen.after}']}"
    events = platform.cluster.get("events", "-n", NAMESPACE, "--field-selector", about)
    seen.started = [event["reason"] for event in events["items"]]
    seen.story = stages(model.version_reaches(seen.after, "is ready", lambda v: condition(v, "Ready") == "True", 10))
    return seen


@pytest.mark.parametrize("stage", _STARTED)
def test_an_operator_killed_during_a_stage_repeats_nothing(stage: str, replacement: Replacement) -> None:
    # Given an operator that was killed while the stage ran, then the same workload went on to its end
    assert replacement.started.count(_STARTED[stage]) <= 1, "it was not made anew"
    assert replacement.story[stage]["outcome"] == "Succeeded"
    # And when that was on record, the workload went
    assert not [name for name in replacement.ended if name.endswith(f"/{replacement.after}-{stage}")]


def test_an_operator_killed_during_the_rollout_moves_the_weights_on(replacement: Replacement) -> None:
    # Given an operator that was killed at 25 %, then no step was repeated, skipped or taken back
    moved = [split.get(replacement.after, 0) for split in replacement.splits]
    assert [weight for weight in moved if weight] == [25, 50, 100]
    assert all(sum(split.values()) == 100 for split in replacement.splits), replacement.splits


def test_no_version_appears_that_nobody_asked_for(replacement: Replacement) -> None:
    # Given five operators killed, then there is one version more, that which was applied
    versions = {name for name in replacement.ended if name.startswith("modelversions/")}
    assert versions - replacement.known == {f"modelversions/{replacement.after}"}


def test_a_version_is_promoted_under_load_without_a_failed_request(replacement: Replacement) -> None:
    # Given requests all the while, then both versions answered them, nobody else, and none failed
    outcome = replacement.outcome
    assert (outcome.failed, outcome.failures) == (0, [])
    assert set(outcome.by_version) == {replacement.before, replacement.after}


def test_the_decision_is_recorded(replacement: Replacement, model: Model) -> None:
    # Given a promotion, then the history says what replaced what, and the latest comes first
    latest, first = model.get()["status"]["history"][:2]
    assert (latest["version"], latest["decision"], latest["previous"]) == (
        replacement.after, "Promoted", replacement.before,
    )  # fmt: skip
    assert first["version"] == replacement.before


@dataclass
class Gated:
    """What was seen of a version whose training pod was killed and whose quality is not enough."""

    version: str
    stable: str
    outcome: Outcome
    killed: str
    model: Object
    story: dict[str, Object]


@pytest.fixture(scope="module")
def gated(replacement: Replacement, model: Model, platform: Platform) -> Gated:
    """Applies a version with a gate out of reach, under load, and kills its training pod after a checkpoint."""
    with model.under_load(5) as load:
        model.is_changed(
            gates=[{"metric": "roc_auc", "min": 0.9999}],
            training={"epochs": 60, "checkpoint": {"everySteps": 5, "keep": 2}},
        )
        version = model.gets_a_version(other_than=replacement.after)
        model.stage_starts("train", version)
        victim = f"{version}-train-master-0"
        platform.wait(
            "pods",
            lambda pod: pod["status"].get("phase") == "Running",
            f"{victim} runs",
            STAGE_SECONDS,
            field_selector=f"metadata.name={victim}",
        )
        model.log_says(victim, r"^checkpoint step=")
        platform.kubectl("delete", "pod", victim, "-n", NAMESPACE, "--grace-period=0", "--force")
        failed = model.fails("VersionReady", 2 * STAGE_SECONDS)
        story = stages(model.version_reaches(version, "has failed", lambda v: condition(v, "Ready") == "False", 10))
    return Gated(version, replacement.after, load.outcome, victim, failed, story)


def test_a_killed_training_pod_resumes_from_its_checkpoint(gated: Gated) -> None:
    # Given a training pod that was killed after a checkpoint, then training went on from there and ended
    train = gated.story["train"]
    assert train["outcome"] == "Succeeded"
    assert train["details"]["resumedFromStep"] > 0, train["details"]
    assert train["details"]["worldSize"] == 2


def test_a_version_that_misses_its_gate_is_not_served(gated: Gated, model: Model) -> None:
    # Given a gate that the version misses, then the audit failed and says by how much and what to do
    assert gated.story["audit"]["outcome"] == "Failed"
    assert "optimize" not in gated.story, "nothing after the gate ran"
    failure = gated.model["status"]["failure"]
    assert failure["class"] == "GateFailed"
    assert "roc_auc" in failure["message"]
    assert "0.9999" in failure["message"]
    assert failure["nextAction"]
    # And the stable version served all the while, and still does
    assert (gated.outcome.failed, gated.outcome.failures) == (0, [])
    assert set(gated.outcome.by_version) == {gated.stable}
    assert gated.model["status"]["stable"]["version"] == gated.stable
    assert model.answers().body["model_version"] == gated.stable


def test_the_plugin_says_what_failed_and_who_serves(gated: Gated, model: Model, platform: Platform) -> None:
    # Given a failed version, when a user asks, then cause, next action and the serving version are there
    words = platform.kubectl("mlmodel", "status", model.name, "-n", NAMESPACE)
    assert "GateFailed in audit" in words
    assert _letters(gated.model["status"]["failure"]["nextAction"]) in _letters(words)
    assert f"v{gated.model['status']['stable']['sequence']} keeps serving" in words


def _letters(text: str) -> str:
    """Without the blanks, the line ends and the frame that the plugin lays a text out with."""
    return re.sub(r"[\s│|]+", "", text)


def test_a_deleted_model_leaves_nothing_behind(gated: Gated, model: Model) -> None:
    # Given a model with three versions, one of which serves
    target = model.target()
    assert gated.stable in str(model.children())

    # When it is deleted
    model.is_deleted()

    # Then everything that it brought along goes with it
    model.is_gone()
    assert model.children() == {}

    # And the gateway knows its host no longer, once the mesh has told it
    ask_until(target, lambda answer: answer.status == 404, ROUTE_SECONDS)
