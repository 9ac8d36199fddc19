"""Pods that do not come: what refuses them is asked for, told, and forgotten once they are there."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import pytest
from unit.operator_world import NAMESPACE, START, Fake, Operator, mlmodel, play, run

from mlplatform import contract
from mlplatform.actions import Ref
from mlplatform.cluster import Cluster, ClusterError, Forbidden
from mlplatform.inquiry import AGAIN, PATIENCE, ROLL, Inquiry, refusal
from mlplatform.snapshot import Object, condition, stamp

QUOTA = "exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2"
ACCOUNT = 'error looking up service account default/mlplatform-jobs: serviceaccount "mlplatform-jobs" not found'
SECURITY = (
    'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
    '(container "init-pytorch" must set securityContext.allowPrivilegeEscalation=false)'
)


def failing(fake: Fake, kind: str = "ModelVersion", of: str = "") -> tuple[str, str, Object]:
    """Status and reason of `Ready`, and `status.failure`."""
    name = of or (fake.names(kind)[0])
    obj = fake.one(kind, name)
    ready = condition(obj, "Ready")
    return ready["status"], ready["reason"], obj["status"].get("failure") or {}


@dataclass(frozen=True)
class Case:
    reason: str
    kind: str
    words: str
    why: str
    contains: tuple[str, ...]
    begins: int = 0
    stage: str = "train"


CASES = [
    Case("a quota, training", "PyTorchJob", QUOTA, "PodsRefused", (f"its pods are refused: {QUOTA}", "Raise the namespace's quota")),
    Case("a quota, a later stage", "Job", QUOTA, "PodsRefused", (QUOTA,), begins=60, stage="audit"),
    Case("Pod Security refuses the worker's init container", "PyTorchJob", SECURITY, "PodsRefused", (SECURITY, "docs/deployment.md")),
    Case(
        "a namespace that is not set up for models",
        "PyTorchJob",
        ACCOUNT,
        "NamespaceNotSetUp",
        ("namespace 'default' is not set up for models: it has no ServiceAccount 'mlplatform-jobs'", "modelNamespaces"),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_a_stage_whose_pods_are_refused_says_so_until_they_come(case: Case) -> None:
    fake = Fake()
    fake.refused[case.kind] = case.words
    fake.apply(mlmodel())
    operator = Operator(fake)
    run(fake, operator, START + timedelta(seconds=case.begins + 45))
    status, why, failure = failing(fake)
    assert (status, why, failure["class"], failure["stage"]) == ("False", case.why, case.why, case.stage), case.reason
    for part in case.contains:
        assert part in f"{failure['message']} {failure['nextAction']}", case.reason
    writes = len(fake.log)
    run(fake, operator, fake.now + timedelta(minutes=5))
    assert len(fake.log) == writes, "told once"
    fake.refused.clear()
    run(fake, operator, fake.now + timedelta(seconds=25))
    assert failing(fake)[::2] == ("Unknown", {}), "and gone by itself"


def test_a_version_whose_serving_pods_are_refused_says_so_until_they_come() -> None:
    fake = Fake()
    fake.refused["InferenceService"] = QUOTA
    play([(0, lambda f: f.apply(mlmodel())), (200, lambda _: None)], fake)
    operator = Operator(fake)
    run(fake, operator, fake.now + timedelta(seconds=1))
    model = fake.one("MLModel", "adult")
    assert model["status"]["failure"]["class"] == "PodsRefused"
    assert f"its pods are refused: {QUOTA}" in condition(model, "RolloutPassed")["message"]
    fake.refused.clear()
    run(fake, operator, fake.now + timedelta(seconds=60))
    assert failing(fake, "MLModel", "adult")[::2] == ("True", {})


@dataclass
class Asked:
    """A cluster that counts what it is asked."""

    words: str = ""
    times: int = 0
    error: ClusterError | None = None
    seen: list[Ref] = field(default_factory=list)

    def get(self, ref: Ref) -> Object:
        self.times += 1
        self.seen.append(ref)
        if self.error:
            raise self.error
        conditions = [{"type": "ReplicaFailure", "status": "True", "message": self.words}] if self.words else []
        return {"status": {"conditions": conditions}}


SERVICE: Object = {
    "kind": "InferenceService",
    "metadata": {"name": "v1", "namespace": NAMESPACE, "uid": "u", "creationTimestamp": stamp(START)},
    "spec": {"predictor": {"minReplicas": 1}},
}
POD: Object = {"metadata": {"name": "p"}, "status": {"phase": "Running"}}


def test_it_is_asked_only_while_pods_are_missing_or_have_been_changed() -> None:
    cluster = Asked()
    inquiry = Inquiry(cast("Cluster", cluster))

    def ask(seconds: float, *pods: Object, changed: float | None = None, well: bool = True) -> str:
        inquiry.due = None
        service = json.loads(json.dumps(SERVICE))
        if changed is not None:
            time = stamp(START + timedelta(seconds=changed))
            service["metadata"]["managedFields"] = [
                {"manager": "somebody"},
                {"manager": contract.MANAGER, "time": time},
            ]
        return asyncio.run(inquiry.predictor(service, pods, START + timedelta(seconds=seconds), well=well))

    ask(1)
    assert (cluster.times, inquiry.due) == (0, START + PATIENCE), "pods need a moment"
    for second in range(20, 600, 20):
        ask(second, POD)
    assert (cluster.times, inquiry.due, bool(inquiry)) == (0, None, False), (
        "not while all is well, nor by a new process"
    )
    cluster.words = QUOTA
    assert ask(600) == QUOTA
    assert inquiry.due == START + timedelta(seconds=600) + AGAIN
    ask(601)
    assert cluster.times == 1, "not at every wake-up"
    cluster.words = ""
    assert ask(621, POD) == "", "asked again though the pod is there: the answer was not well"
    assert ask(641, POD) == ""
    assert (cluster.times, inquiry.due, bool(inquiry)) == (2, None, False)
    cluster.words = QUOTA
    assert ask(701, POD, changed=700) == QUOTA, "the pods of a changed one may be refused beside the old ones"
    cluster.words = ""
    assert ask(730, POD, changed=700) == ""
    assert inquiry.due == START + timedelta(seconds=730) + AGAIN
    assert ask(701 + ROLL.total_seconds(), POD, changed=700) == ""
    assert (cluster.times, inquiry.due, bool(inquiry)) == (4, None, False)
    cluster.words = QUOTA
    assert ask(1500, POD, well=False) == QUOTA, "a process before this one has told of something"
    assert {ref.name for ref in cluster.seen} == {"v1-predictor"}
    cluster.words = ""
    assert ask(1600, POD) == ""
    cluster.error = Forbidden("cannot get resource deployments")
    assert ask(2000) == "", "an older role does not stop the model"


def event(seconds: float, message: str = QUOTA, why: str = "FailedCreatePod", **times: Any) -> Object:
    when = stamp(START + timedelta(seconds=seconds))
    return {"reason": why, "message": message, **(times or {"lastTimestamp": when})}


@pytest.mark.parametrize(
    ("reason", "events", "pods", "started", "words"),
    [
        ("nothing was said", [], [], None, ""),
        ("the newest counts", [event(10, "old"), event(90), event(20, "older")], [], None, QUOTA),
        ("others are about something else", [event(90, why="FailedMount")], [], None, ""),
        (
            "the pod before has yet to go",
            [event(90, 'object is being deleted: pods "a-0" already exists')],
            [],
            None,
            "",
        ),
        ("an event of the newer kind", [event(0, eventTime=stamp(START))], [], None, QUOTA),
        ("and one that was repeated", [event(0, series={"lastObservedTime": stamp(START)})], [], None, QUOTA),
        ("the master came at the same second", [event(90)], [91], None, QUOTA),
        ("all pods came later: another is on its way", [event(90)], [100], None, ""),
        ("it was suspended since, and has just begun anew", [event(90)], [], 200, ""),
    ],
)
def test_refusal(reason: str, events: list[Object], pods: list[float], started: float | None, words: str) -> None:
    made = [{"metadata": {"creationTimestamp": stamp(START + timedelta(seconds=second))}} for second in pods]
    status = {} if started is None else {"startTime": stamp(START + timedelta(seconds=started))}
    assert refusal(events, {"status": status}, made) == words, reason
