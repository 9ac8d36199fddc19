"""How long a stage has worked and how often it was restarted, from what its pods say and what is on record of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from unit.operator_world import START

from mlplatform import api
from mlplatform.plan import work
from mlplatform.snapshot import Object, stamp

NOW = 1000


def at(seconds: float) -> str:
    return stamp(START + timedelta(seconds=seconds))


def pod(
    *runs: tuple[float, float | None], name: str = "master-0", created: float = 0, restarts: int = 0, **metadata: Any
) -> Object:
    """A pod whose container ran then, the last time last, and failed each time that it ended."""
    seen = [
        {"running": {"startedAt": at(begin)}}
        if end is None
        else {"terminated": {"exitCode": 1, "startedAt": at(begin), "finishedAt": at(end)}}
        for begin, end in runs[-2:]
    ]
    state = {"state": seen[-1], **({"lastState": seen[-2]} if len(seen) > 1 else {})} if seen else {}
    container = {"name": "pytorch", "restartCount": restarts, **state}
    meta = {"name": name, "uid": f"uid-{name}-{created}", "creationTimestamp": at(created), **metadata}
    return {"metadata": meta, "status": {"containerStatuses": [container]}}


def evicted(when: float, *runs: tuple[float, float | None], **fields: Any) -> Object:
    found = pod(*runs, **fields)
    told = {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": at(when)}
    return {**found, "status": {**found["status"], "conditions": [told]}}


def ended_well(begin: float, end: float, **fields: Any) -> Object:
    found = pod((begin, end), **fields)
    found["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] = 0
    return found


WAITS = pod(name="worker-0")


def record(**fields: Any) -> api.StageStatus:
    return api.StageStatus(name="train", outcome="Running", **fields)


@dataclass(frozen=True)
class Time:
    """What is seen in one pass after the other, and what has been worked then."""

    reason: str
    passes: list[list[Object]]
    seconds: float
    open: bool = True
    gang: int = 1


TIMES = [
    Time("no container has run", [[pod()]], 0, open=False),
    Time("one runs", [[pod((900, None))]], 100),
    Time("several at once count once", [[pod((900, None)), pod((950, None), name="worker-0")]], 100),
    Time("one has ended, the other goes on", [[pod((900, None)), pod((850, 940), name="worker-0")]], 150),
    Time("all have ended", [[pod((100, 200)), pod((150, 260), name="worker-0")]], 160, open=False),
    Time("the pause between two runs is none", [[pod((100, 200), (300, 350))]], 150, open=False),
    Time(
        "a run that is seen again counts once",
        [[pod((100, 200))], [pod((100, 200))], [pod((100, 200), (900, None))]],
        200,
    ),
    Time("it ran when it was seen, and has ended since", [[pod((100, None))], [pod((100, 400))]], 300, open=False),
    Time("a whole run was missed", [[pod((100, None))], [pod((100, 200), (300, 400))]], 200, open=False),
    Time("its pod is gone: until another took its place", [[pod((100, None))], [pod(created=400)]], 300, open=False),
    Time("its pod is gone, and none has come", [[pod((100, None))], []], 900, open=False),
    Time("the other pod is gone", [[pod((100, None)), pod((100, None), name="worker-0")], [pod((100, None))]], 900),
    Time(
        "the other has no node yet: who waits for it does not work", [[pod((100, None)), WAITS]], 0, open=False, gang=2
    ),
    Time(
        "the other has come at last",
        [[pod((100, None)), WAITS], [pod((100, None)), pod((900, None), name="worker-0")]],
        100,
        gang=2,
    ),
    Time(
        "the other was taken away and made anew: until then they worked",
        [
            [pod((100, None)), pod((100, None), name="worker-0")],
            [pod((100, None)), pod(name="worker-0", created=500)],
            [pod((100, None)), pod((900, None), name="worker-0", created=500)],
        ],
        500,
        gang=2,
    ),
    Time(
        "the other has done its part",
        [[pod((100, None)), ended_well(100, 200, name="worker-0")]],
        900,
        gang=2,
    ),
    Time("what could not start has not run", [[pod((-1.7e9, 500))]], 0, open=False),
]


@pytest.mark.parametrize("case", TIMES, ids=lambda case: case.reason)
def test_only_work_is_counted(case: Time) -> None:
    now, found = START + timedelta(seconds=NOW), record()
    for pods in case.passes:
        found = work.timed(found, pods, case.gang, now)
        assert work.timed(found, pods, case.gang, now) == found, f"{case.reason}: a second look adds nothing"
    assert work.spent(found, now).total_seconds() == case.seconds, case.reason
    assert bool(found.working_since) == case.open, case.reason


def test_a_pod_that_went_with_a_suspension_ran_no_longer_than_that() -> None:
    running = work.timed(record(), [pod((100, None))], 1, START + timedelta(seconds=200))
    found = work.timed(running, [], 1, START + timedelta(seconds=300))
    assert work.spent(found, START + timedelta(days=1)) == timedelta(seconds=200)


@pytest.mark.parametrize("worker_ends", [None, 101, 110], ids=["runs on", "a second later", "after ten"])
def test_a_stage_has_worked_until_it_had_done_its_work(worker_ends: int | None) -> None:
    both = [pod((0, None)), pod((0, worker_ends))]
    found = work.timed(record(), both, 2, START + timedelta(seconds=200))
    found = work.closed(found, stamp(START + timedelta(seconds=100)))
    assert (found.worked_seconds, found.working_since) == (100, ""), "whatever the others did after that"
    assert found.worked_until == stamp(START + timedelta(seconds=100))


@dataclass(frozen=True)
class Budget:
    """What is seen in one pass after the other, and how many restarts that makes."""

    reason: str
    passes: list[list[Object]]
    restarts: int
    gang: int = 1


CRASHED, RUNS = (10, 20), (30, None)
BUDGETS = [
    Budget("it runs", [[pod(RUNS)]], 0),
    Budget("it has failed, and is not restarted yet", [[pod(CRASHED)]], 1),
    Budget("it was restarted", [[pod(CRASHED)], [pod(CRASHED, RUNS, restarts=1)]], 1),
    Budget("it was restarted twice while nobody looked", [[pod(CRASHED, RUNS, restarts=2)]], 2),
    Budget(
        "one death restarts every pod: that is one",
        [[pod(CRASHED, RUNS, restarts=1), pod(CRASHED, RUNS, restarts=1, name="worker-0")]],
        1,
    ),
    Budget("an eviction is none", [[evicted(20, (10, 20))]], 0),
    Budget(
        "nor is its echo in the other pod",
        [
            [evicted(20, (10, 20)), pod((10, 21), name="worker-0")],
            [pod(RUNS, created=25), pod((10, 21), RUNS, name="worker-0", restarts=1)],
        ],
        0,
    ),
    Budget(
        "a failure after an eviction is one",
        [
            [evicted(20, (10, 20)), pod((10, 21), name="worker-0")],
            [pod((30, 40), created=25), pod((10, 21), (30, 41), name="worker-0", restarts=1)],
        ],
        1,
    ),
    Budget(
        "what was used up before a pod was replaced stays used up",
        [[pod(CRASHED, RUNS, restarts=2)], [evicted(50, CRASHED, RUNS, restarts=2)], [pod((70, 80), created=60)]],
        3,
    ),
    Budget(
        "and where nobody saw how it was replaced",
        [[pod(CRASHED, RUNS, restarts=2)], [pod((70, 80), created=60)]],
        3,
    ),
    Budget(
        "a pod that waits in vain for one without a node fails, and is none",
        [[pod(CRASHED), WAITS], [pod(CRASHED, (30, 40), restarts=1), WAITS]],
        0,
        gang=2,
    ),
    Budget(
        "however often that was",
        [[pod(CRASHED, (30, 40), restarts=99), WAITS], [pod(CRASHED, (30, 40), restarts=200), WAITS]],
        0,
        gang=2,
    ),
    Budget("what is beyond all that may be allowed is not counted", [[pod(CRASHED, restarts=5000)]], 101),
    Budget(
        "what fails when the other has come is one",
        [[pod(CRASHED), WAITS], [pod(CRASHED, (30, 40), restarts=1), pod((25, None), name="worker-0")]],
        1,
        gang=2,
    ),
    Budget(
        "a pod that somebody deletes is none",
        [
            [
                pod((10, 70), deletionTimestamp=at(100), deletionGracePeriodSeconds=30),
                pod((10, 71), name="worker-0"),
            ],
            [pod((90, None), created=85), pod((10, 71), (90, None), name="worker-0", restarts=1)],
        ],
        0,
    ),
]


@pytest.mark.parametrize("case", BUDGETS, ids=lambda case: case.reason)
def test_only_failures_of_its_own_are_counted(case: Budget) -> None:
    now, found = START + timedelta(seconds=NOW), record()
    for pods in case.passes:
        found = work.counted(found, pods, case.gang, now)
        assert work.counted(found, pods, case.gang, now) == found, f"{case.reason}: a second look adds nothing"
    assert len(found.restarts) == case.restarts, case.reason


def test_restarts_of_a_container_that_waits_for_the_master_are_none() -> None:
    waits = pod(created=0)
    waits["status"]["initContainerStatuses"] = [{"name": "init-pytorch", "restartCount": 9, "state": {}}]
    assert work.counted(record(), [waits], 1, START).restarts == ()
