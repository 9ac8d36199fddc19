"""Whether a rollout advances, holds, promotes or rolls back: each policy, and their order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from mlplatform import rollout
from mlplatform.rollout import Move, Record, View

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
READY = View(
    candidate="m-2 (v2)",
    stable="m-1 (v1)",
    weight=5,
    steps=(5, 25, 50),
    interval=timedelta(minutes=1),
    max_duration=timedelta(hours=1),
    ready=True,
    serving=True,
    trouble="",
    started_at=NOW - timedelta(minutes=10),
    step_started_at=NOW - timedelta(minutes=1),
    now=NOW,
)
HOUR = timedelta(hours=1)
NOT_READY: dict[str, Any] = {"ready": False, "serving": False, "trouble": "image cannot be pulled"}


@dataclass(frozen=True)
class Case:
    """A view and the verdict about it."""

    reason: str
    view: dict[str, Any]
    move: Move
    weight: int
    why: str
    contains: str = ""


CASES = [
    Case(
        "ready pods get the first step at once", {"weight": 0, "step_started_at": NOW}, Move.ADVANCE, 5, "Progressing"
    ),
    Case("a step that has been held is followed by the next", {}, Move.ADVANCE, 25, "Progressing", "step 2 of 4"),
    Case(
        "a step lasts its interval", {"step_started_at": NOW - timedelta(seconds=59)}, Move.HOLD, 5, "Progressing", "5%"
    ),
    Case("after the last step comes promotion", {"weight": 50}, Move.PROMOTE, 100, "StepsPassed", "5%, 25%, 50%"),
    Case(
        "without steps promotion is at once",
        {"weight": 0, "steps": ()},
        Move.PROMOTE,
        100,
        "StepsPassed",
        "pods are ready",
    ),
    Case("a weight set by hand between steps goes on to the next", {"weight": 30}, Move.ADVANCE, 50, "Progressing"),
    Case(
        "a weight set by hand above all steps is promoted in its time", {"weight": 80}, Move.PROMOTE, 100, "StepsPassed"
    ),
    Case(
        "no weight before the pods are ready",
        {**NOT_READY, "weight": 0},
        Move.HOLD,
        0,
        "WaitingForPods",
        "image cannot",
    ),
    Case("fewer pods than needed hold the step", {"ready": False}, Move.HOLD, 5, "WaitingForPods"),
    Case(
        "no pod at all: its traffic goes back meanwhile",
        NOT_READY,
        Move.HOLD,
        0,
        "CandidateNotReady",
        "back to m-1 (v1)",
    ),
    Case(
        "not ready for too long is given up, with the cause",
        {**NOT_READY, "weight": 0, "started_at": NOW - HOUR, "step_started_at": NOW - HOUR},
        Move.ROLLBACK,
        0,
        "NotReadyInTime",
        "image cannot be pulled",
    ),
    Case(
        "not ready at a step for too long is given up, too",
        {"ready": False, "started_at": NOW - 3 * HOUR, "step_started_at": NOW - 2 * HOUR, "unready_since": NOW - HOUR},
        Move.ROLLBACK,
        0,
        "NotReadyInTime",
    ),
    Case(
        "a moment without a pod in a step longer than maxDuration is no reason to give up",
        {"ready": False, "started_at": NOW - 3 * HOUR, "step_started_at": NOW - 2 * HOUR, "unready_since": NOW},
        Move.HOLD,
        5,
        "WaitingForPods",
    ),
    Case(
        "back without traffic, it has maxDuration to recover, however long the rollout has lasted",
        {**NOT_READY, "weight": 0, "started_at": NOW - 9 * HOUR, "step_started_at": NOW - HOUR / 2, "setbacks": 1},
        Move.HOLD,
        0,
        "WaitingForPods",
    ),
    Case(
        "its last pod lost in a step longer than maxDuration: its time begins now",
        {**NOT_READY, "started_at": NOW - 3 * HOUR, "step_started_at": NOW - 2 * HOUR},
        Move.HOLD,
        0,
        "CandidateNotReady",
    ),
    Case(
        "its last pod lost under traffic again and again",
        {**NOT_READY, "setbacks": 2},
        Move.ROLLBACK,
        0,
        "Unstable",
        "3 times: image cannot be pulled",
    ),
    Case(
        "a ready one may take longer than that",
        {"started_at": NOW - timedelta(hours=2)},
        Move.ADVANCE,
        25,
        "Progressing",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_verdict(case: Case) -> None:
    verdict = rollout.decide(replace(READY, **case.view))
    assert (verdict.move, verdict.weight, verdict.reason) == (case.move, case.weight, case.why), case.reason
    assert case.contains in verdict.message, case.reason


# For each two neighbours in the chain a view about which both have an opinion.
OVERLAPS = [
    ("a candidate that is given up is not merely held back", {**NOT_READY, "setbacks": 2}),
    ("traffic is protected before waiting for pods", NOT_READY),
    ("pods are waited for before a step is held", {"ready": False, "step_started_at": NOW}),
    ("a step is held before moving on", {"step_started_at": NOW}),
]


@pytest.mark.parametrize(("pair", "overlap"), list(zip(pairwise(rollout.POLICIES), OVERLAPS, strict=True)))
def test_order_of_the_policies(pair: tuple[Any, Any], overlap: tuple[str, dict[str, Any]]) -> None:
    reason, changes = overlap
    view = replace(READY, **changes)
    earlier, later = (policy(view) for policy in pair)
    assert earlier, reason
    assert later, reason
    assert earlier != later, f"{reason}: the view must tell the two apart"
    assert rollout.decide(view) == earlier, reason


def test_messages_stay_the_same_while_nothing_changes() -> None:
    held = replace(READY, step_started_at=NOW)
    later = replace(held, now=NOW + timedelta(seconds=30))
    assert rollout.decide(held).message == rollout.decide(later).message


def test_eta() -> None:
    assert rollout.eta(READY) == READY.step_started_at + timedelta(minutes=3), "this step and two more"
    assert rollout.eta(replace(READY, weight=0, step_started_at=NOW)) == NOW + timedelta(minutes=3), "three steps ahead"
    assert rollout.eta(replace(READY, ready=False)) is None, "nobody knows when pods get ready"


@pytest.mark.parametrize(("weight", "step"), [(0, 0), (4, 0), (5, 1), (24, 1), (25, 2), (50, 3), (99, 3), (100, 4)])
def test_step_of(weight: int, step: int) -> None:
    assert rollout.step_of(weight, (5, 25, 50)) == step


def test_record_survives_the_annotation() -> None:
    record = Record(
        version="m-2",
        previous="m-1",
        started_at="2026-01-01T00:00:00.000Z",
        step_started_at="2026-01-01T00:01:00.000Z",
        outcome="Promoted",
        setbacks=1,
    )
    assert Record.from_json(record.to_json()) == record


SOUND = '{"version": "m-1", "startedAt": "2026-01-01T00:00:00Z", "stepStartedAt": "2026-01-01T00:00:00Z"'


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ("", "there is none"),
        ("{", "cut JSON"),
        ("[]", "another kind of value"),
        ('{"version": 3}', "a scalar of another type"),
        ('{"version": "m-1"}', "a field is missing"),
        (f'{SOUND}, "outcome": "Held"}}', "an outcome that nobody here would ever record"),
        (f'{SOUND}, "finishedAt": "yesterday"}}', "a time that is none"),
        (f'{SOUND}, "finishedAt": "2026-01-01T00:00:00"}}', "a time without a zone compares with none"),
    ],
)
def test_a_damaged_record_is_none(damaged: str, reason: str) -> None:
    assert Record.from_json(damaged) is None, reason


def test_a_record_of_a_newer_release_can_be_read() -> None:
    found = Record.from_json(f'{SOUND}, "novel": "x"}}')
    assert found is not None
    assert found.version == "m-1"
