"""One pass over one ModelVersion: what a state of its workload and pods makes of conditions, records and children."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from unit.operator_world import NAMESPACE, SPEC, START, mlmodel, summary

from mlplatform import api, contract
from mlplatform.actions import Create, Delete, Patch, Ref
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
        "spec": {"runPolicy": {"suspend": False, **spec}, "pytorchReplicaSpecs": {"Master": {"replicas": 1}}},
        "status": {"startTime": stamp(START), "conditions": held},
    }


def pod(owner: str = "uid-job", **status: Any) -> Object:
    reference = {"uid": owner, "controller": True}
    metadata = {"name": f"{JOB}-master-0", "namespace": NAMESPACE, "uid": "uid-pod", "ownerReferences": [reference]}
    return {"metadata": {**metadata, "creationTimestamp": stamp(START)}, "status": status}


def running(since: float = 0) -> Object:
    state = {"running": {"startedAt": stamp(START + timedelta(minutes=since))}}
    return {"containerStatuses": [{"name": "pytorch", "restartCount": 0, "state": state}]}


def ended(code: int, message: str = "", reason: str = "", restarts: int = 0) -> Object:
    terminated = {
        "exitCode": code,
        "message": message,
        "reason": reason,
        "startedAt": stamp(START),
        "finishedAt": stamp(NOW),
    }
    return {"containerStatuses": [{"name": "pytorch", "restartCount": restarts, "state": {"terminated": terminated}}]}


def halted(reason: str = "Suspended", **spec: Any) -> Object:
    """A PyTorchJob that the operator has stopped."""
    job = workload(suspend=True, **spec)
    return {**job, "metadata": {**job["metadata"], "annotations": {contract.ANNOTATION_HALTED: reason}}}


def labelled(job: Object, queue: str) -> Object:
    return {**job, "metadata": {**job["metadata"], "labels": {contract.LABEL_QUEUE: queue}}}


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


DAY = 24 * 60
QUEUED = {**SPEC, "scheduling": {"queue": "team-a"}}
MOVED = mlmodel(spec={**SPEC, "scheduling": {"nodeSelector": {"a": "b"}}})
TOO_MUCH = {"class": "OOMKilled", "message": "too much", "nextAction": "more", "stage": "train"}
SUSPENDED = {"type": "Trained", "status": "Unknown", "reason": "Suspended", "lastTransitionTime": stamp(START)}
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
        deletes: Whether it is deleted.
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
    deletes: bool = False
    look: float | None = None
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
        events=["TrainingStarted"],
    ),
    Case(
        "it runs, and its deadline is the only thing to wait for",
        gathered(workload("Running"), pod(**running())),
        "Unknown",
        "Running",
        look=20,
    ),
    Case(
        "none of its containers runs yet: no time counts",
        gathered(
            workload(), pod(phase="Pending"), version=version({"stages": [{"name": "train", "outcome": "Running"}]})
        ),
        "Unknown",
        "Running",
        minutes=600,
    ),
    Case(
        "its container has run for a while only",
        gathered(workload("Running"), pod(**running(since=9))),
        "Unknown",
        "Running",
        look=29,
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
        events=["TrainingSuspended"],
    ),
    Case(
        "suspended while it runs: its pods go",
        gathered(workload("Running"), pod(**running()), model=mlmodel(spec={**SPEC, "suspend": True})),
        "Unknown",
        "Running",
        halts=True,
        look=20,
    ),
    Case(
        "suspended, and let in by a queue that would resume it at once: only what is gone stays stopped",
        gathered(labelled(workload("Running"), "team-a"), model=mlmodel(spec={**SPEC, "suspend": True})),
        "Unknown",
        "Running",
        deletes=True,
    ),
    Case(
        "a suspension made it end: that is no failure of its own",
        gathered(
            halted(),
            {
                **pod(**ended(143)),
                "metadata": {**pod()["metadata"], "deletionTimestamp": stamp(NOW), "deletionGracePeriodSeconds": 30},
            },
            model=mlmodel(spec={**SPEC, "suspend": True}),
        ),
        "Unknown",
        "Suspended",
        events=["TrainingSuspended"],
    ),
    Case(
        "somebody else has suspended it: theirs to resume",
        gathered(workload(suspend=True)),
        "Unknown",
        "Queued",
        f"PyTorchJob {JOB} was suspended by somebody else",
        events=["TrainingQueued"],
    ),
    Case(
        "it waits for its queue",
        gathered(labelled(workload(suspend=True), "team-a"), model=mlmodel(spec=QUEUED)),
        "Unknown",
        "Queued",
        "Kueue's queue team-a",
        events=["TrainingQueued"],
    ),
    Case(
        "its pods wait for a node where nobody wants them any more: they are made anew",
        gathered(workload(), pod(phase="Pending"), model=MOVED),
        "Unknown",
        "Running",
        deletes=True,
    ),
    Case(
        "what works is not moved",
        gathered(workload(), pod(**running()), model=MOVED),
        "Unknown",
        "Running",
        look=20,
    ),
    Case(
        "it waits in another queue than it should",
        gathered(labelled(workload(suspend=True), "team-b"), model=mlmodel(spec=QUEUED)),
        "Unknown",
        "Queued",
        deletes=True,
        events=["TrainingQueued"],
    ),
    Case(
        "stopped by a release that left no mark on it: the condition says who did it",
        gathered(workload(suspend=True), version=version({"conditions": [SUSPENDED]})),
        "Unknown",
        "Resuming",
        halts=False,
    ),
    Case(
        "another version is wanted by now: this one stops holding GPUs",
        gathered(workload("Running"), pod(**running()), model=mlmodel(spec={**SPEC, "gates": []})),
        "Unknown",
        "Running",
        halts=True,
        look=20,
    ),
    Case(
        "wanted again: it goes on from its checkpoint",
        gathered(halted("Superseded")),
        "Unknown",
        "Resuming",
        halts=False,
    ),
    Case(
        "without its MLModel nothing is started",
        gathered(model=None),
        "Unknown",
        "ModelMissing",
        "no MLModel adult",
        outcome=None,
    ),
    Case(
        "an MLModel that has become unusable does not stop what it asked for before",
        gathered(workload("Running"), pod(**running()), model=mlmodel(spec={**SPEC, "novel": 1})),
        "Unknown",
        "Running",
        look=20,
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
        look=10 + DAY,
        events=["TrainingFailed"],
    ),
    Case(
        "its restarts are used up: the cause, and that another try would end the same way",
        gathered(workload("Running"), pod(**ended(137, reason=OOM, restarts=3))),
        "False",
        "OOMKilled",
        "the restarts that spec.training.maxRestarts allows (3) are used up. Raise spec.training.resources.memory",
        ready="False",
        outcome="Failed",
        failure="OOMKilled",
        halts=True,
        look=10 + DAY,
        events=["TrainingFailed"],
    ),
    Case(
        "one restart is left",
        gathered(workload("Running"), pod(**ended(137, reason=OOM, restarts=2))),
        "Unknown",
        "Retrying",
        failure="OOMKilled",
        events=["TrainingRetrying"],
    ),
    Case(
        "its controller has given up: the pod says why",
        gathered(workload("Failed", message="backoff limit"), pod(**ended(137, reason=OOM))),
        "False",
        "OOMKilled",
        ready="False",
        outcome="Failed",
        failure="OOMKilled",
        look=10 + DAY,
        events=["TrainingFailed"],
    ),
    Case(
        "its controller has given up and the pods are gone: what was seen of them last",
        gathered(
            workload("Failed", message="backoff limit"),
            version=version({"stages": [{"name": "train", "outcome": "Running", "lastFailure": TOO_MUCH}]}),
        ),
        "False",
        "OOMKilled",
        "too much",
        ready="False",
        outcome="Failed",
        failure="OOMKilled",
        look=10 + DAY,
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
        minutes=12.01,
        look=10 + DAY,
        events=["TrainingFailed"],
    ),
    Case(
        "the deadline passes: the operator ends it, for nobody else does",
        gathered(workload("Running"), pod(**running())),
        "False",
        "DeadlineExceeded",
        "longer than its deadline of 20m",
        ready="False",
        outcome="Failed",
        failure="DeadlineExceeded",
        halts=True,
        minutes=20,
        look=20 + DAY,
        events=["TrainingFailed"],
    ),
    Case(
        "long after its deadline it still waits for its image: that is no work, and it goes on when the image is there",
        gathered(workload(), pod(**waiting("ErrImagePull", "manifest unknown"))),
        "False",
        "ImagePull",
        "manifest unknown",
        ready="False",
        failure="ImagePull",
        minutes=600,
        events=["TrainingBlocked"],
    ),
    Case(
        "it had finished when nobody looked for an hour: a summary is judged before any deadline",
        gathered(workload("Running"), pod(**reported())),
        "True",
        "Succeeded",
        outcome="Succeeded",
        creates=f"{NAME}-audit",
        deletes=True,
        minutes=600,
        events=["Trained", "AuditingStarted"],
    ),
    Case(
        "a second before the deadline it is not late",
        gathered(workload("Running"), pod(**running())),
        "Unknown",
        "Running",
        minutes=19.98,
        look=20,
    ),
    Case(
        "it succeeded and reported: the next stage begins",
        gathered(workload("Succeeded"), pod(**reported())),
        "True",
        "Succeeded",
        outcome="Succeeded",
        creates=f"{NAME}-audit",
        deletes=True,
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
        "run the stage again: kubectl mlmodel retry adult -n default",
        ready="False",
        outcome="Failed",
        failure="ReportLost",
        look=10 + DAY,
        minutes=12.01,
        events=["TrainingFailed"],
    ),
    Case(
        "a clock that jumped has the job end in the future: that holds up nothing",
        gathered(workload("Succeeded")),
        "False",
        "ReportLost",
        ready="False",
        outcome="Failed",
        failure="ReportLost",
        look=10 + DAY,
        minutes=7.9,
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
    assert [w.ref.name for w in result.cleanup if isinstance(w, Delete)] == [JOB] * case.deletes, case.reason
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
    assert held.cleanup == [Delete(Ref.to(workload()))], "what has done its work need not be suspended"


FAILED = {"name": "train", "outcome": "Failed", "finishedAt": stamp(NOW), "lastFailure": TOO_MUCH}


def asked(retry: str, record: Object, *children: Object) -> Plan:
    """A pass over a version that has this record and whose retry annotation says this."""
    seen = version({"stages": [record], "failure": TOO_MUCH})
    seen["metadata"]["annotations"] = {contract.ANNOTATION_RETRY: retry}
    return plan(gathered(*children, version=seen))


def test_another_attempt_begins_when_the_workload_of_the_last_one_is_gone() -> None:
    waits = asked("train/2", FAILED, workload("Failed"))
    assert waits.cleanup == [Delete(Ref.to(workload()))]
    assert waits.writes == []
    assert found(waits, "Trained") == (
        "Unknown",
        "Starting",
        f"PyTorchJob {JOB} of the attempt before is being deleted",
    )
    record = waits.status["stages"][0]
    assert (record["outcome"], record["attempt"]) == ("Running", 2)

    begins = asked("train/2", record)
    [made] = [write.manifest for write in begins.writes if isinstance(write, Create)]
    assert made["metadata"]["annotations"] == {contract.ANNOTATION_ATTEMPT: "2"}
    assert begins.cleanup == []

    goes_on = asked("train/2", record, made)
    assert (goes_on.writes, goes_on.cleanup) == ([], [])
    assert found(goes_on, "Trained")[:2] == ("Unknown", "Running")


@pytest.mark.parametrize(
    ("reason", "retry", "record"),
    [
        ("the attempt that it asks for has failed, too", "train/2", {**FAILED, "attempt": 2}),
        ("it asks for another stage", "audit/2", FAILED),
        ("it asks for nothing that can be read", "train", FAILED),
        ("what has passed is not tried again", "train/2", {**FAILED, "outcome": "Succeeded"}),
    ],
)
def test_a_retry_that_stays_there_asks_for_nothing_more(reason: str, retry: str, record: Object) -> None:
    result = asked(retry, record)
    assert result.status["stages"][0].get("attempt", 1) == record.get("attempt", 1), reason
    assert [name_of(w.manifest) for w in result.writes if isinstance(w, Create)] in ([], [f"{NAME}-audit"]), reason


@pytest.mark.parametrize(
    ("reason", "ttl", "minutes", "deleted"),
    [
        ("a day is not over", "24h", DAY, False),
        ("it is over", "24h", 10 + DAY, True),
        ("a shorter time was set", "90s", 11.5, True),
        ("for ever", "0", 100 * DAY, False),
    ],
)
def test_the_workload_of_a_stage_that_failed_goes_after_a_while(
    reason: str, ttl: str, minutes: float, *, deleted: bool
) -> None:
    snapshot = gathered(workload("Failed"), version=version({"stages": [FAILED], "failure": TOO_MUCH}))
    result = plan_version(snapshot, Settings(failed_workloads_ttl=ttl), START + timedelta(minutes=minutes))
    assert result.cleanup == [Delete(Ref.to(workload()))] * deleted, reason
    assert result.status["failure"] == TOO_MUCH, reason
    assert (result.look_again is None) == (deleted or ttl == "0"), reason


def test_what_has_worked_is_on_record_when_its_workload_is_made_anew() -> None:
    record = {"name": "train", "outcome": "Running", "workedSeconds": 300, "workedUntil": stamp(NOW)}
    again = plan(gathered(version=version({"stages": [record]})))
    assert again.status["stages"] == [{**record, "attempt": 1}]
    assert [name_of(w.manifest) for w in again.writes if isinstance(w, Create)] == [JOB]


def test_a_model_in_a_queue_has_its_workloads_created_suspended() -> None:
    [made] = [w.manifest for w in plan(gathered(model=mlmodel(spec=QUEUED))).writes if isinstance(w, Create)]
    assert made["metadata"]["labels"][contract.LABEL_QUEUE] == "team-a"
    assert made["spec"]["runPolicy"]["suspend"] is True


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
