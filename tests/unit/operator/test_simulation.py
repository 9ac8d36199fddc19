"""A model's life in a cluster in memory: what comes of it, and that a restart at any write changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from unit.operator_world import SPEC, Fake, Operator, Scenario, mlmodel, outcome, play, retried, without_data

from mlplatform import api
from mlplatform.contract import ANNOTATION_ROLLBACK
from mlplatform.snapshot import annotations_of


def changed(**sections: Any) -> Callable[[Fake], None]:
    """Someone edits the MLModel's spec."""
    return lambda fake: fake.apply(mlmodel(spec={**SPEC, **sections}))


def annotated(**annotations: str) -> Callable[[Fake], None]:
    """Someone annotates the MLModel."""
    return lambda fake: fake.apply(mlmodel(spec=SPEC, **{f"mlplatform.dev/{k}": v for k, v in annotations.items()}))


def never_ready(fake: Fake) -> None:
    """The second version's pods will not get ready."""
    changed(**SECOND)(fake)
    fake.unready.add(name_of(**SECOND))


def asked_back(start: str, end: str) -> Callable[[Fake], None]:
    """What `kubectl mlmodel rollback` does."""

    def deed(fake: Fake) -> None:
        model = fake.one("MLModel", "adult")
        asked = {**annotations_of(model), ANNOTATION_ROLLBACK: str(api.WayBack(start, end))}
        fake.put({**model, "metadata": {**model["metadata"], "annotations": asked}})

    return deed


def unready(version: str) -> Callable[[Fake], None]:
    """A version's serving pods break."""
    return lambda fake: fake.unready.add(version)


def mended(version: str) -> Callable[[Fake], None]:
    """They work again."""
    return lambda fake: fake.unready.discard(version)


def both_unready(fake: Fake) -> None:
    """The second and the third version's pods break."""
    fake.unready |= {V2, V3}


def both_mended(fake: Fake) -> None:
    """They work again."""
    fake.unready -= {V2, V3}


def without_room(fake: Fake) -> None:
    """More replicas are asked for than the cluster has room for."""
    changed(**SECOND, **MORE)(fake)
    fake.unready.update(f"{version}-predictor-{i}" for version in (V1, V2) for i in (1, 2))


def name_of(trigger: str = "", **sections: Any) -> str:
    """Name of the version that a spec makes."""
    return api.version_name("adult", api.decode(api.MLModelSpec, {**SPEC, **sections}), trigger)


def nothing(_fake: Fake) -> None:
    """Time passes."""


SECOND = {"gates": [{"metric": "roc_auc", "min": 0.9}]}
THIRD = {"gates": [{"metric": "roc_auc", "min": 0.85}]}
FAILS = {"gates": [{"metric": "roc_auc", "min": 0.95}]}
MORE = {"serving": {"replicas": {"min": 3, "max": 3}}}
WARM = {"rollout": {**SPEC["rollout"], "keepWarm": "10m"}}
MEMORY = {"serving": {"resources": {"memory": "4Gi"}}}
V1, V2, V3 = name_of(), name_of(**SECOND), name_of(**THIRD)
RETRAINED = name_of("monday")
READY = dict.fromkeys(("Accepted", "VersionReady", "Serving", "RolloutPassed", "Ready"), "True")


@dataclass(frozen=True)
class Life:
    """A scenario and what must be true at its end.

    Attributes:
        reason: What it shows.
        scenario: What people do, and when.
        weights: How traffic is split at the end.
        conditions: Statuses that differ from all True.
        decisions: `status.history`, newest first, as ``(version, decision)``.
        stage: `status.stage`.
    """

    reason: str
    scenario: Scenario
    weights: dict[str, int]
    decisions: list[tuple[str, str]]
    conditions: dict[str, str] | None = None
    stage: str = "Serving"


FIRST = [(V1, "Promoted")]
BACK = {"RolloutPassed": "False", "Ready": "False", "Stalled": "True"}
LIVES = [
    Life(
        "a second version takes over step by step, and the first one's pods go when they need not be kept warm",
        [(0, changed()), (400, changed(**SECOND)), (800, nothing)],
        {V2: 100},
        [(V2, "Promoted"), *FIRST],
    ),
    Life(
        "a version that fails its gate serves nobody, and the stable one goes on",
        [(0, changed()), (400, changed(**FAILS)), (800, nothing)],
        {V1: 100},
        FIRST,
        {"VersionReady": "False", "RolloutPassed": "Unknown", "Ready": "False", "Stalled": "True"},
        "Failed",
    ),
    Life(
        "a version whose pods never get ready is given up after maxDuration",
        [(0, changed()), (400, never_ready), (1200, nothing)],
        {V1: 100},
        [(V2, "RolledBack"), *FIRST],
        {"RolloutPassed": "False", "Ready": "False", "Stalled": "True"},
        "RolledBack",
    ),
    Life(
        "a newer spec in the middle of a rollout takes its traffic back first",
        [(0, changed()), (400, changed(**SECOND)), (550, changed(**THIRD)), (1000, nothing)],
        {V3: 100},
        [(V3, "Promoted"), (V2, "Superseded"), *FIRST],
    ),
    Life(
        "taking the change back in the middle of a rollout ends it at the version that serves",
        [(0, changed()), (400, changed(**SECOND)), (550, changed()), (1000, nothing)],
        {V1: 100},
        [(V2, "Superseded"), *FIRST],
    ),
    Life(
        "an older spec brings its version back without training it again",
        [(0, changed()), (400, changed(**SECOND)), (800, changed()), (900, nothing)],
        {V1: 100},
        [(V1, "Promoted"), (V2, "Promoted"), *FIRST],
    ),
    Life(
        "a change of serving or rollout moves no traffic and trains nothing",
        [
            (0, changed()),
            (400, changed(rollout={"steps": [50]}, serving={"replicas": {"min": 1, "max": 3}})),
            (800, nothing),
        ],
        {V1: 100},
        FIRST,
    ),
    Life(
        "recreate moves everything at once, as soon as the pods are ready",
        [
            (0, changed(rollout={"strategy": "recreate"})),
            (400, changed(**SECOND, rollout={"strategy": "recreate"})),
            (560, nothing),
        ],
        {V2: 100},
        [(V2, "Promoted"), *FIRST],
    ),
    Life(
        "suspended in the middle of training: the job stops; resumed, it goes on",
        [(0, changed()), (20, changed(suspend=True)), (300, changed()), (700, nothing)],
        {V1: 100},
        FIRST,
    ),
    Life(
        "the stable version dies in the middle of a rollout: who is ready takes everything, and nothing is promoted",
        [(0, changed()), (400, changed(**SECOND)), (545, unready(V1)), (700, nothing)],
        {V2: 100},
        FIRST,
        {"Serving": "False", "RolloutPassed": "Unknown", "Ready": "False"},
        "RollingOut",
    ),
    Life(
        "the stable version comes back: the rollout goes on where it was",
        [(0, changed()), (400, changed(**SECOND)), (545, unready(V1)), (700, mended(V1)), (800, nothing)],
        {V2: 100},
        [(V2, "Promoted"), *FIRST],
    ),
    Life(
        "the stable version dies after its rollout, while the one before is warm: that one stands in",
        [(0, changed()), (400, changed(**SECOND)), (590, unready(V2)), (900, nothing)],
        {V1: 100},
        [(V2, "Promoted"), *FIRST],
        {"Serving": "False", "Ready": "False"},
        "Degraded",
    ),
    Life(
        "it comes back, and has its traffic again; the other one's pods go when they need not be kept warm",
        [(0, changed()), (400, changed(**SECOND)), (590, unready(V2)), (900, mended(V2)), (1000, nothing)],
        {V2: 100},
        [(V2, "Promoted"), *FIRST],
    ),
    Life(
        "it dies when nobody else has pods: the traffic stays",
        [(0, changed()), (400, changed(**SECOND)), (800, unready(V2)), (900, nothing)],
        {V2: 100},
        [(V2, "Promoted"), *FIRST],
        {"Serving": "False", "Ready": "False"},
        "Degraded",
    ),
    Life(
        "a version that was rolled back does not stand in: somebody has decided against it",
        [(0, changed()), (400, changed(**SECOND)), (545, asked_back(V2, V1)), (565, unready(V1)), (600, nothing)],
        {V1: 100},
        [(V2, "RolledBack"), *FIRST],
        {**BACK, "Serving": "False"},
        "RolledBack",
    ),
    Life(
        "neither of the two in a rollout has a pod: a third one that is warm stands in, and the rollout goes on after that",
        [
            (0, changed()),
            (400, changed(**SECOND)),
            (590, changed(**THIRD, **WARM)),
            (750, both_unready),
            (800, nothing),
        ],
        {V1: 100},
        [(V2, "Promoted"), *FIRST],
        {"Serving": "False", "RolloutPassed": "Unknown", "Ready": "False"},
        "RollingOut",
    ),
    Life(
        "when both are back the rollout ends as it would have",
        [
            (0, changed()),
            (400, changed(**SECOND)),
            (590, changed(**THIRD, **WARM)),
            (750, both_unready),
            (800, both_mended),
            (900, nothing),
        ],
        {V3: 100},
        [(V3, "Promoted"), (V2, "Promoted"), *FIRST],
    ),
    Life(
        "who stands in is asked for: it takes over step by step, once the stable version is back",
        [
            (0, changed()),
            (400, changed(**SECOND)),
            (590, unready(V2)),
            (700, changed()),
            (760, mended(V2)),
            (765, nothing),
        ],
        {V2: 95, V1: 5},
        [(V2, "Promoted"), *FIRST],
        {"RolloutPassed": "Unknown", "Ready": "Unknown"},
        "RollingOut",
    ),
    Life(
        "more replicas than there is room for, asked for in the middle of a rollout, roll nothing back",
        [(0, changed()), (400, changed(**SECOND)), (545, without_room), (1300, nothing)],
        {V2: 100},
        [(V2, "Promoted"), *FIRST],
    ),
    Life(
        "more memory after a rollback tries the version again",
        [(0, changed()), (400, never_ready), (1000, mended(V2)), (1010, changed(**SECOND, **MEMORY)), (1200, nothing)],
        {V2: 100},
        [(V2, "Promoted"), (V2, "RolledBack"), *FIRST],
    ),
    Life(
        "a retrain annotation that is taken off again asks for nothing",
        [(0, changed()), (400, annotated(retrain="monday")), (800, changed()), (1000, nothing)],
        {RETRAINED: 100},
        [(RETRAINED, "Promoted"), *FIRST],
    ),
    Life(
        "somebody goes back after a retrain, while the pods of the version before are warm",
        [
            (0, changed()),
            (400, annotated(retrain="monday")),
            (600, asked_back(RETRAINED, V1)),
            (610, changed()),
            (900, nothing),
        ],
        {V1: 100},
        [(RETRAINED, "RolledBack"), (RETRAINED, "Promoted"), *FIRST],
        BACK,
        "RolledBack",
    ),
    Life(
        "and long after they have gone: they are started first",
        [(0, changed()), (400, changed(**SECOND)), (800, asked_back(V2, V1)), (1000, nothing)],
        {V1: 100},
        [(V2, "RolledBack"), (V2, "Promoted"), *FIRST],
        BACK,
        "RolledBack",
    ),
    Life(
        "in the middle of a rollout it ends that at once",
        [(0, changed()), (400, changed(**SECOND)), (545, asked_back(V2, V1)), (1000, nothing)],
        {V1: 100},
        [(V2, "RolledBack"), *FIRST],
        BACK,
        "RolledBack",
    ),
    Life(
        "what was gone back from is tried again once it is asked for anew",
        [
            (0, changed()),
            (400, changed(**SECOND)),
            (800, asked_back(V2, V1)),
            (1000, changed(**THIRD)),
            (1300, changed(**SECOND)),
            (1500, nothing),
        ],
        {V2: 100},
        [(V2, "Promoted"), (V3, "Promoted"), (V2, "RolledBack"), (V2, "Promoted"), *FIRST],
    ),
    Life(
        "a stage that failed for want of its data is tried again, once, and the version serves after all",
        [(0, without_data), (200, retried), (600, nothing)],
        {V1: 100},
        FIRST,
    ),
    Life(
        "a spec that cannot be used leaves what serves alone",
        [(0, changed()), (400, changed(data={**SPEC["data"], "uri": " "})), (500, nothing)],
        {V1: 100},
        FIRST,
        {"Accepted": "False", "Ready": "False", "Stalled": "True"},
        "Invalid",
    ),
]


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.reason)
def test_what_comes_of_it(life: Life) -> None:
    fake = play(life.scenario)
    status = fake.one("MLModel", "adult")["status"]
    assert fake.weights() == life.weights, life.reason
    assert {c["type"]: c["status"] for c in status["conditions"]} == READY | (life.conditions or {}), life.reason
    assert [(d["version"], d["decision"]) for d in status["history"]] == life.decisions, life.reason
    assert status["stage"] == life.stage, life.reason


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.reason)
def test_a_restart_before_any_write_comes_to_the_same(life: Life) -> None:
    fake = Fake(forks=[])
    expected = outcome(play(life.scenario, fake))
    # The lives begin alike: one is enough to crash in the part that they share.
    begins_at = 0 if life is LIVES[0] else len(life.scenario) - 1
    for fork in (fork for fork in fake.forks or () if fork.played >= begins_at):
        assert outcome(play(life.scenario, fork)) == expected, (
            f"{life.reason}: restarted before write {len(fork.log) + 1}"
        )


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.reason)
def test_an_idle_operator_writes_nothing_and_neither_does_a_new_one(life: Life) -> None:
    fake = play(life.scenario)
    before = len(fake.log), len(fake.events)
    Operator(fake).settle()
    assert (len(fake.log), len(fake.events)) == before, fake.log[before[0] :]
