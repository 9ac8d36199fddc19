"""Whether a rollout advances, holds, promotes or rolls back: each policy, and their order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlplatform import rollout
from mlplatform.rollout import Detour, Move, Record, View

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
READY = View(
    candidate="m-2 (v2)",
    stable="m-1 (v1)",
    weight=5,
    steps=(5, 25, 50),
    interval=timedelta(minutes=1),
    max_duration=timedelta(hours=1),
    pods=4,
    stable_pods=4,
    stable_ready=True,
    trouble="",
    stable_trouble="",
    started_at=NOW - timedelta(minutes=10),
    step_started_at=NOW - timedelta(minutes=1),
    now=NOW,
)
HOUR = timedelta(hours=1)
NOT_READY: dict[str, Any] = {"pods": 0, "trouble": "image cannot be pulled"}
TOO_FEW: dict[str, Any] = {"weight": 50, "pods": 1, "step_started_at": NOW}
"""Of the four pods that serve everything, half of the traffic needs two."""
LONG_AGO: dict[str, Any] = dict.fromkeys(("started_at", "step_started_at"), NOW - 9 * HOUR)
STABLE_GONE: dict[str, Any] = {"stable_pods": 0, "stable_ready": False, "stable_trouble": "no node has room"}
DETOUR = Detour(weight=5, since="2026-01-01T11:00:00Z")


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
    Case(
        "fewer pods than its weight needs hold the step", TOO_FEW, Move.HOLD, 50, "WaitingForPods", "1 of 2 pods ready"
    ),
    Case(
        "no weight before the pods of its share are ready",
        {"weight": 25, "pods": 1},
        Move.HOLD,
        25,
        "WaitingForPods",
        "(1 of 2 pods ready)",
    ),
    Case("its share of pods is enough for a step", {"pods": 1}, Move.ADVANCE, 25, "Progressing"),
    Case("and while it is held", {"pods": 1, "step_started_at": NOW}, Move.HOLD, 5, "Progressing"),
    Case(
        "promotion needs as many pods as the stable version has",
        {"weight": 50, "pods": 3},
        Move.HOLD,
        50,
        "WaitingForPods",
        "3 of 4 pods ready",
    ),
    Case(
        "pods for the next step that do not come for maxDuration are given up, and counted from the step's end",
        {"weight": 25, "pods": 1, "started_at": NOW - 9 * HOUR, "step_started_at": NOW - HOUR - timedelta(minutes=1)},
        Move.ROLLBACK,
        0,
        "NotReadyInTime",
        "1 of 2 pods ready",
    ),
    Case(
        "a stable version that has grown in a long step asks for more pods, and leaves time for them",
        {"weight": 50, "pods": 2, "stable_pods": 8, "interval": 9 * HOUR, "step_started_at": NOW - 8 * HOUR},
        Move.HOLD,
        50,
        "WaitingForPods",
        "2 of 4 pods ready",
    ),
    Case(
        "no stable pod: the candidate takes everything, and says why",
        STABLE_GONE,
        Move.DIVERT,
        100,
        "StableNotReady",
        "m-1 (v1) has no ready pod; m-2 (v2) takes all the traffic until it has, and is not promoted by that: no node",
    ),
    Case(
        "also before its first step, also with fewer pods than that needs",
        {**STABLE_GONE, "weight": 0, "pods": 1, "started_at": NOW - 9 * HOUR, "step_started_at": NOW - 9 * HOUR},
        Move.DIVERT,
        100,
        "StableNotReady",
    ),
    Case(
        "standing in is no step, however long it takes",
        {**STABLE_GONE, "weight": 100, "detour": DETOUR, "step_started_at": NOW - 9 * HOUR},
        Move.DIVERT,
        100,
        "StableNotReady",
    ),
    Case(
        "too few stable pods are not yet enough to go back to",
        {"stable_ready": False, "weight": 100, "detour": DETOUR},
        Move.DIVERT,
        100,
        "StableNotReady",
        "too few ready pods yet",
    ),
    Case(
        "enough of them are, and the rollout goes on where it was",
        {"weight": 100, "detour": DETOUR},
        Move.RETURN,
        5,
        "StableReady",
        "takes 5% of the traffic, as before",
    ),
    Case(
        "who stands in and loses its own pods sends everything back, where there are some",
        {**NOT_READY, "stable_ready": False, "weight": 100, "detour": DETOUR},
        Move.HOLD,
        0,
        "CandidateNotReady",
    ),
    Case(
        "without steps nothing is to be proven",
        {**STABLE_GONE, "steps": (), "weight": 0},
        Move.PROMOTE,
        100,
        "StepsPassed",
    ),
    Case(
        "neither has a pod: nothing moves, and nobody is given up",
        {**NOT_READY, **STABLE_GONE, "step_started_at": NOW - 9 * HOUR, "setbacks": 2},
        Move.HOLD,
        5,
        "NoReadyPods",
    ),
    Case(
        "neither has a pod, a third version has: that one stands in, and nobody is given up",
        {**NOT_READY, **STABLE_GONE, **LONG_AGO, "setbacks": 2, "stands_in": "m-0 (v0)"},
        Move.DIVERT,
        0,
        "StableNotReady",
        "m-0 (v0) takes all the traffic until one has, and is not promoted by that: no node has room",
    ),
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
        {**TOO_FEW, "started_at": NOW - 3 * HOUR, "step_started_at": NOW - 2 * HOUR, "unready_since": NOW - HOUR},
        Move.ROLLBACK,
        0,
        "NotReadyInTime",
    ),
    Case(
        "a moment without a pod in a step longer than maxDuration is no reason to give up",
        {**TOO_FEW, "started_at": NOW - 3 * HOUR, "step_started_at": NOW - 2 * HOUR, "unready_since": NOW},
        Move.HOLD,
        50,
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


# Of two policies that both have an opinion about a view, which decides.
NOBODY: dict[str, Any] = {**NOT_READY, **STABLE_GONE}
OVERLAPS = [
    ("_nobody_answers", "_give_up", "nobody is to blame where neither has a pod", {**NOBODY, "setbacks": 2}),
    ("_nobody_answers", "protect_traffic", "there is no better place for the traffic", NOBODY),
    (
        "protect_stable",
        "_give_up",
        "a candidate that stands in is not given up",
        {**TOO_FEW, **LONG_AGO, "stable_ready": False, "detour": DETOUR, "stable_pods": 3},
    ),
    ("_give_up", "protect_traffic", "who is given up is not merely held back", {**NOT_READY, "setbacks": 2}),
    ("protect_traffic", "_wait_for_pods", "traffic is protected before waiting for pods", NOT_READY),
    ("_wait_for_pods", "_hold_step", "pods are waited for before a step is held", TOO_FEW),
    ("_hold_step", "_move_on", "a step is held before moving on", {"step_started_at": NOW}),
]


@pytest.mark.parametrize(("first", "second", "reason", "changes"), OVERLAPS, ids=[row[2] for row in OVERLAPS])
def test_order_of_the_policies(first: str, second: str, reason: str, changes: dict[str, Any]) -> None:
    policies = {policy.__name__: policy for policy in rollout.POLICIES}
    view = replace(READY, **changes)
    earlier, later = policies[first](view), policies[second](view)
    assert earlier, reason
    assert later, reason
    assert earlier != later, f"{reason}: the view must tell the two apart"
    assert rollout.decide(view) == earlier, reason


def test_each_policy_has_its_place_in_the_chain() -> None:
    assert {name for row in OVERLAPS for name in row[:2]} == {policy.__name__ for policy in rollout.POLICIES}


def test_messages_stay_the_same_while_nothing_changes() -> None:
    held = replace(READY, step_started_at=NOW)
    later = replace(held, now=NOW + timedelta(seconds=30))
    assert rollout.decide(held).message == rollout.decide(later).message


ETAS: list[tuple[str, dict[str, Any], timedelta | None]] = [
    ("this step and two more", {"step_started_at": NOW}, timedelta(minutes=3)),
    ("nobody knows when pods get ready", {**TOO_FEW}, None),
    ("nor when the first step is taken", {"weight": 0, "step_started_at": NOW}, None),
    ("a step that should be over, and is not: a time in the past tells nothing", {}, None),
    ("nor when the stable version comes back", {"weight": 100, "detour": DETOUR, "step_started_at": NOW}, None),
]


@pytest.mark.parametrize(("reason", "changes", "ends"), ETAS, ids=[row[0] for row in ETAS])
def test_eta(reason: str, changes: dict[str, Any], ends: timedelta | None) -> None:
    assert rollout.eta(replace(READY, **changes)) == (NOW + ends if ends else None), reason


@pytest.mark.parametrize(
    ("weight", "pods", "needs"), [(5, 1, 1), (5, 0, 1), (5, 20, 1), (5, 21, 2), (50, 3, 2), (100, 3, 3), (25, 8, 2)]
)
def test_share(weight: int, pods: int, needs: int) -> None:
    assert rollout.share(weight, pods) == needs


def test_times_of_a_clock_that_jumped_begin_anew() -> None:
    ahead, now = "2026-01-01T17:00:00.000Z", "2026-01-01T12:00:00.000Z"
    record = Record(version="m-2", started_at=ahead, step_started_at=ahead, detour=Detour(weight=5, since=ahead))
    found = record.in_the_past(NOW)
    assert found.detour is not None
    assert (found.started_at, found.step_started_at, found.detour.since) == (now, now, now)
    assert found.in_the_past(NOW + HOUR) == found, "once"


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
        tried="0123abcd",
        detour=DETOUR,
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
        (f'{SOUND}, "detour": {{"weight": 5, "since": "soon"}}}}', "a time that is none, of a detour"),
        (f'{SOUND}, "finishedAt": "2026-01-01T00:00:00"}}', "a time without a zone compares with none"),
    ],
)
def test_a_damaged_record_is_none(damaged: str, reason: str) -> None:
    assert Record.from_json(damaged) is None, reason


def test_a_record_of_a_newer_release_can_be_read() -> None:
    found = Record.from_json(f'{SOUND}, "novel": "x"}}')
    assert found is not None
    assert found.version == "m-1"
