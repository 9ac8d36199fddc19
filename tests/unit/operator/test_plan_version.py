"""One pass over one ModelVersion: what a state of its workload and pods makes of conditions, records and children."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from unit.operator_world import NAMESPACE, SPEC, START, mlmodel, summary

from mlplatform import api
from mlplatform.actions import Create, Patch
from mlplatform.contract import Failure, FailureClass, Stage, Summary
from mlplatform.plan import Plan, plan_version
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, VersionSnapshot, name_of, stamp
from mlplatform.stages import PIPELINE

MODEL = mlmodel()
NAME = api.version_name("adult", api.decode(api.MLModelSpec, SPEC))
NOW = START + timedelta(minutes=10)
JOB = f"{NAME}-train"


def version(status: Object | None = None, **spec: Any) -> Object:
    sections = {key: SPEC[key] for key in ("data", "training", "gates", "fairness")}
    return {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "ModelVersion",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "uid-v", "generation": 1},
        "spec": {"model": "adult", "sequence": 1, **sections, **spec},
        "status": status or {},
    }


def workload(*conditions: str, reason: str = "", message: str = "", **spec: Any) -> Object:
    """A PyTorchJob that started at START, with these conditions True."""
    held = [
        {"type": c, "status": "True", "reason": reason, "message": message, "lastTransitionTime": stamp(NOW)}
        for c in conditions
    ]
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": JOB, "namespace": NAMESPACE, "uid": "uid-job", "creationTimestamp": stamp(START)},
        "spec": {"runPolicy": {"suspend": False, **spec}},
        "status": {"startTime": stamp(START), "conditions": held},
    }


def pod(owner: str = "uid-job", **status: Any) -> Object:
    reference = {"uid": owner, "controller": True}
    metadata = {"name": f"{JOB}-master-0", "namespace": NAMESPACE, "uid": "uid-pod", "ownerReferences": [reference]}
    return {"metadata": metadata, "status": status}


def ended(code: int, message: str = "", reason: str = "") -> Object:
    terminated = {"exitCode": code, "message": message, "reason": reason, "finishedAt": stamp(NOW)}
    return {"containerStatuses": [{"name": "pytorch", "state": {"terminated": terminated}}]}


def reported(**changes: Any) -> Object:
    said = summary(Stage.TRAIN, NAME, **changes)
    return ended(1 if said.failure else 0, said.to_json())


def waiting(reason: str, message: str) -> Object:
    container = {"name": "pytorch", "image": "x:1", "state": {"waiting": {"reason": reason, "message": message}}}
    return {"containerStatuses": [container]}


def plan(snapshot: VersionSnapshot, minutes: float = 10) -> Plan:
    return plan_version(snapshot, Settings(), START + timedelta(minutes=minutes))


def gathered(job: Object | None = None, *pods: Object, **changes: Any) -> VersionSnapshot:
    children = {Stage.TRAIN: job} if job else {}
    fields = {"version": version(), "model": MODEL, "children": children, "pods": {Stage.TRAIN: pods}, **changes}
    return VersionSnapshot(**fields)


def found(result: Plan, kind: str) -> tuple[str, str, str]:
    c = next(c for c in result.status["conditions"] if c["type"] == kind)
    return c["status"], c["reason"], c["message"]


MISSING = Failure(FailureClass.DATA_MISSING, "no files at s3://datasets/none/", "Upload them.")
OOM = "OOMKilled"


@dataclass(frozen=True)
class Case:
    """What is seen of training, and what follows.

    Attributes:
        reason: What it shows.
        snapshot: What is seen.
        status: Of the condition Trained.
        why: Its reason.
        contains: Part of its message.
        ready: Status of the condition Ready.
        outcome: Of the stage's record; None when there is none.
        failure: ``status.failure.class``.
        creates: Stage whose workload is created.
        halts: Whether the PyTorchJob is suspended (True) or resumed (False).
        look: When time alone may change this, in minutes from the start.
        minutes: The time now.
        events: Reasons of the events.
    """

    reason: str
    snapshot: VersionSnapshot
    status: str
    why: str
    contains: str = ""
    ready: str = "Unknown"
    outcome: str | None = "Running"
    failure: str | None = None
    creates: str | None = None
    halts: bool | None = None
    look: float | None = 20
    minutes: float = 10
    events: list[str] = field(default_factory=list)


CASES = [
    Case(
        "nothing there yet: training begins",
        gathered(),
        "Unknown",
        "Starting",
        JOB,
        outcome=None,
        creates=JOB,
        look=None,
        events=["TrainingStarted"],
    ),
    Case(
        "it runs, and its deadline is the only thing to wait for", gathered(workload("Running")), "Unknown", "Running"
    ),
    Case(
        "the add-on is not installed: which one, and nothing is created",
        gathered(missing=frozenset({"PyTorchJob"})),
        "False",
        "AddOnMissing",
        "install the Kubeflow Training Operator",
        ready="False",
        outcome=None,
        look=10.25,
        events=["TrainingBlocked"],
    ),
    Case(
        "suspended before it began: nothing is created",
        gathered(model=mlmodel(spec={**SPEC, "suspend": True})),
        "Unknown",
        "Suspended",
        outcome=None,
        look=None,
        events=["TrainingSuspended"],
    ),
    Case(
        "suspended while it runs: its pods go, and nobody counts the time",
        gathered(workload("Running"), model=mlmodel(spec={**SPEC, "suspend": True})),
        "Unknown",
        "Running",
        halts=True,
    ),
    Case(
        "another version is wanted by now: this one stops holding GPUs",
        gathered(workload("Running"), model=mlmodel(spec={**SPEC, "gates": []})),
        "Unknown",
        "Running",
        halts=True,
    ),
    Case(
        "wanted again: it goes on from its checkpoint",
        gathered(workload(suspend=True)),
        "Unknown",
        "Resuming",
        halts=False,
        look=None,
    ),
    Case(
        "without its MLModel nothing is started",
        gathered(model=None),
        "Unknown",
        "ModelMissing",
        "no MLModel adult",
        outcome=None,
        look=None,
    ),
    Case(
        "an MLModel that has become unusable does not stop what it asked for before",
        gathered(workload("Running"), model=mlmodel(spec={**SPEC, "novel": 1})),
        "Unknown",
        "Running",
    ),
    Case(
        "an image that cannot be pulled blocks: a person must act, and it goes on by itself after that",
        gathered(workload(), pod(**waiting("ErrImagePull", "manifest unknown"))),
        "False",
        "ImagePull",
        "manifest unknown",
        ready="False",
        failure="ImagePull",
        events=["TrainingBlocked"],
    ),
    Case(
        "a crash that is being retried is no failure yet, but is on record should its pod go",
        gathered(workload("Restarting"), pod(**ended(137, reason=OOM))),
        "Unknown",
        "Retrying",
        "more memory than its limit",
        failure="OOMKilled",
        events=["TrainingRetrying"],
    ),
    Case(
        "no room on any node",
        gathered(
            workload(),
            pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]),
        ),
        "Unknown",
        "Unschedulable",
        "no node has room: 0/1",
        failure="Unschedulable",
        events=["TrainingUnschedulable"],
    ),
    Case(
        "a failure that no retry mends ends it at once, and takes the other pods' GPUs away",
        gathered(workload("Restarting"), pod(**reported(failure=MISSING))),
        "False",
        "DataMissing",
        "no files at s3://datasets/none/. Upload them.",
        ready="False",
        outcome="Failed",
        failure="DataMissing",
        halts=True,
        look=None,
        events=["TrainingFailed"],
    ),
    Case(
        "retries are used up: the pod says why",
        gathered(workload("Failed", message="backoff limit"), pod(**ended(137, reason=OOM))),
        "False",
        "OOMKilled",
        ready="False",
        outcome="Failed",
        failure="OOMKilled",
        look=None,
        events=["TrainingFailed"],
    ),
    Case(
        "retries are used up and the pods are gone: what was seen of them last",
        gathered(
            workload("Failed", message="backoff limit"),
            version=version(
                {"failure": {"class": "OOMKilled", "message": "too much", "nextAction": "more", "stage": "train"}}
            ),
        ),
        "False",
        "OOMKilled",
        "too much",
        ready="False",
        outcome="Failed",
        failure="OOMKilled",
        look=None,
        events=["TrainingFailed"],
    ),
    Case(
        "retries are used up, and its pods have not been seen yet: their cause must not be lost",
        gathered(workload("Failed", message="backoff limit")),
        "Unknown",
        "ReadingReport",
        look=12,
    ),
    Case(
        "the MLModel is being deleted: nothing is made that would have to go as well",
        gathered(model={**MODEL, "metadata": {**MODEL["metadata"], "deletionTimestamp": stamp(NOW)}}),
        "Unknown",
        "ModelMissing",
        outcome=None,
        look=None,
    ),
    Case(
        "retries are used up and nobody knows why: the controller's words",
        gathered(workload("Failed", message="PyTorchJob has failed because 1 Master replica(s) failed.")),
        "False",
        "Crashed",
        "1 Master replica(s) failed",
        ready="False",
        outcome="Failed",
        failure="Crashed",
        look=None,
        minutes=12.01,
        events=["TrainingFailed"],
    ),
    Case(
        "the deadline passes: the operator ends it, for nobody else does",
        gathered(workload("Running")),
        "False",
        "DeadlineExceeded",
        "longer than its deadline of 20m",
        ready="False",
        outcome="Failed",
        failure="DeadlineExceeded",
        halts=True,
        look=None,
        minutes=20,
        events=["TrainingFailed"],
    ),
    Case(
        "the deadline passes over something that held the pods up: that is said too",
        gathered(workload(), pod(**waiting("ErrImagePull", "manifest unknown"))),
        "False",
        "DeadlineExceeded",
        "manifest unknown",
        ready="False",
        outcome="Failed",
        failure="DeadlineExceeded",
        halts=True,
        look=None,
        minutes=21,
        events=["TrainingFailed"],
    ),
    Case(
        "a second before the deadline it is not late",
        gathered(workload("Running")),
        "Unknown",
        "Running",
        minutes=19.98,
    ),
    Case(
        "it succeeded and reported: the next stage begins",
        gathered(workload("Succeeded"), pod(**reported())),
        "True",
        "Succeeded",
        outcome="Succeeded",
        creates=f"{NAME}-audit",
        look=None,
        events=["Trained", "AuditingStarted"],
    ),
    Case(
        "the job's end may be seen before its pod's",
        gathered(workload("Succeeded")),
        "Unknown",
        "ReadingReport",
        look=12,
    ),
    Case(
        "no pod is left to report: said, with the way out",
        gathered(workload("Succeeded")),
        "False",
        "ReportLost",
        "mlplatform.dev/retrain",
        ready="False",
        outcome="Failed",
        failure="ReportLost",
        look=None,
        minutes=12.01,
        events=["TrainingFailed"],
    ),
    Case(
        "the report of an earlier workload of the same name does not count",
        gathered(workload("Succeeded"), pod(owner="uid-of-a-deleted-job", **reported())),
        "Unknown",
        "ReadingReport",
        look=12,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_training(case: Case) -> None:
    result = plan(case.snapshot, case.minutes)
    status, why, message = found(result, "Trained")
    assert (status, why) == (case.status, case.why), case.reason
    assert case.contains in message, case.reason
    assert found(result, "Ready")[0] == case.ready, case.reason
    outcomes = {s["name"]: s["outcome"] for s in result.status.get("stages", ())}
    assert outcomes.get("train") == case.outcome, case.reason
    assert result.status.get("failure", {}).get("class") == case.failure, case.reason
    assert [name_of(w.manifest) for w in result.writes if isinstance(w, Create)] == [case.creates] * bool(case.creates)
    patches = [w.body["spec"]["runPolicy"]["suspend"] for w in result.cleanup if isinstance(w, Patch)]
    assert patches == ([] if case.halts is None else [case.halts]), case.reason
    assert result.look_again == (None if case.look is None else START + timedelta(minutes=case.look)), case.reason
    started = [write.event for write in result.writes if write.event]
    assert [event.reason for event in [*result.events, *started]] == case.events, case.reason


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_a_second_look_says_the_same_and_posts_nothing(case: Case) -> None:
    first = plan(case.snapshot, case.minutes)
    seen = {**case.snapshot.version, "status": first.status}
    again = plan(replace(case.snapshot, version=seen), case.minutes)
    assert again.status == first.status, case.reason
    assert again.events == [], case.reason


def test_what_has_failed_stays_failed_though_its_pods_and_its_job_are_gone() -> None:
    failed = plan(gathered(workload(), pod(**reported(failure=MISSING))))
    later = plan(gathered(version=version(failed.status)), minutes=600)
    assert later.status == failed.status
    assert not later.writes
    assert later.events == []


def test_what_has_passed_is_never_judged_again() -> None:
    passed = plan(gathered(workload("Succeeded"), pod(**reported())))
    later = plan(gathered(version=version(passed.status)), minutes=600)
    assert found(later, "Trained") == found(passed, "Trained")
    assert [name_of(w.manifest) for w in later.writes if isinstance(w, Create)] == [f"{NAME}-audit"]


def test_a_pod_that_did_the_work_is_believed_before_its_controller() -> None:
    told = gathered(workload("Running"), pod(**reported()))
    passed = plan(told)
    assert found(passed, "Trained")[0] == "True"
    assert [name_of(w.manifest) for w in passed.writes if isinstance(w, Create)] == [f"{NAME}-audit"]
    suspended = {**MODEL, "spec": {**MODEL["spec"], "suspend": True}}
    held = plan(gathered(workload("Running"), pod(**reported()), model=suspended))
    assert found(held, "Trained")[0] == "True"
    assert held.cleanup == [], "a job that has nothing left to do need not be suspended, and would later be resumed"


def test_what_is_told_does_not_alternate_with_the_kubelets_words() -> None:
    cause, back_off = waiting("ErrImagePull", "manifest unknown"), waiting("ImagePullBackOff", "Back-off pulling image")
    status: Object = {}
    for container in (back_off, cause, back_off, cause, back_off):
        before = status
        status = plan(gathered(workload(), pod(**container), version=version(status))).status
        told = next(c for c in status["conditions"] if c["type"] == "Trained")["message"]
        assert before in ({}, status) or "manifest unknown" in told
    assert "manifest unknown" in told
    assert before == status, "since the cause is known, nothing has changed"


def test_later_stages_say_what_they_wait_for() -> None:
    result = plan(gathered(workload("Running")))
    for kind in ("Audited", "Optimized", "Packaged"):
        assert found(result, kind) == ("Unknown", "NotReached", "comes after train")


def test_a_batch_job_that_fails_for_good_is_stopped_but_kept_for_its_log() -> None:
    passed = plan(gathered(workload("Succeeded"), pod(**reported())))
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{NAME}-audit",
            "namespace": NAMESPACE,
            "uid": "uid-audit",
            "creationTimestamp": stamp(NOW),
        },
        "spec": {"parallelism": 1},
        "status": {"startTime": stamp(NOW)},
    }
    failure = Failure(FailureClass.STORE_ACCESS, "403 from the store", "Correct the Secret.")
    died = pod("uid-audit", **ended(1, Summary(Stage.AUDIT, NAME, failure=failure).to_json()))
    result = plan(
        VersionSnapshot(
            version=version(passed.status), model=MODEL, children={Stage.AUDIT: job}, pods={Stage.AUDIT: (died,)}
        )
    )
    assert found(result, "Audited")[:2] == ("False", "StoreAccess")
    assert [w.body["spec"] for w in result.cleanup if isinstance(w, Patch)] == [{"parallelism": 0}]


def test_a_job_past_its_own_deadline_says_what_held_it_up() -> None:
    passed = plan(gathered(workload("Succeeded"), pod(**reported())))
    condition = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "lastTransitionTime": stamp(NOW)}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{NAME}-audit",
            "namespace": NAMESPACE,
            "uid": "uid-audit",
            "creationTimestamp": stamp(NOW),
        },
        "spec": {},
        "status": {"startTime": stamp(NOW), "conditions": [condition]},
    }
    stuck = pod("uid-audit", **waiting("ErrImagePull", "manifest unknown"))
    result = plan(
        VersionSnapshot(
            version=version(passed.status), model=MODEL, children={Stage.AUDIT: job}, pods={Stage.AUDIT: (stuck,)}
        )
    )
    assert found(result, "Audited")[1] == "DeadlineExceeded"
    assert "manifest unknown" in found(result, "Audited")[2]
    assert result.status["failure"]["nextAction"].startswith("Correct the image's name")


def test_a_spec_that_does_not_fit_the_schema_is_refused() -> None:
    result = plan(gathered(version=version(novel=1)))
    assert found(result, "Accepted")[:2] == ("False", "SpecInvalid")
    assert "spec.novel: unknown field" in found(result, "Accepted")[2]
    assert not result.writes
    assert [event.reason for event in result.events] == ["SpecInvalid"]


def test_a_spec_that_cannot_be_read_any_more_keeps_what_has_ended() -> None:
    passed = [{"name": s.name.value, "outcome": "Succeeded"} for s in PIPELINE]
    trained = {
        "type": "Trained",
        "status": "True",
        "reason": "Succeeded",
        "message": "m",
        "lastTransitionTime": stamp(NOW),
    }
    before = {"stages": passed, "storageUri": "s3://x/", "metrics": {"roc_auc": 0.9}, "conditions": [trained]}
    result = plan(gathered(version=version(before, novel=1)))
    assert {key: result.status[key] for key in ("stages", "storageUri", "metrics")} == {
        key: before[key] for key in ("stages", "storageUri", "metrics")
    }
    assert found(result, "Trained")[0] == "True"
    assert found(result, "Ready")[:2] == ("False", "SpecInvalid")


def test_a_status_written_by_a_newer_release_can_be_read() -> None:
    record = {"name": "train", "outcome": "Failed", "novel": {"x": 1}}
    failure = {"class": "Crashed", "message": "m", "nextAction": "", "stage": "train", "novel": 1}
    result = plan(gathered(version=version({"stages": [record], "failure": failure})))
    assert result.status["stage"] == "Failed"
    assert result.status["failure"] == {k: v for k, v in failure.items() if k != "novel"}
