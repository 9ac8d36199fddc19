"""From what the kubelet says about pods to a cause and a next action."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mlplatform import failures
from mlplatform.contract import Failure, FailureClass, Stage, Summary
from mlplatform.failures import Gravity
from mlplatform.snapshot import Object


def pod(status: Object, name: str = "v-train-master-0") -> Object:
    return {"metadata": {"name": name, "namespace": "team-a", "uid": name}, "status": status}


def waiting(reason: str, message: str = "") -> Object:
    return {"name": "pytorch", "image": "registry/x:1", "state": {"waiting": {"reason": reason, "message": message}}}


def ended(code: int, message: str = "", reason: str = "Error", key: str = "state", name: str = "pytorch") -> Object:
    terminated = {"exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-01-01T00:01:00Z"}
    return {"name": name, "image": "registry/x:1", key: {"terminated": terminated}}


def said(reason: FailureClass, **details: str) -> str:
    return Summary(Stage.TRAIN, "v", details=details, failure=Failure(reason, f"it was {reason}", "do this")).to_json()


NO_TORCHRUN = (
    "failed to create containerd task: runc create failed: unable to start container process: error during container "
    'init: exec: "torchrun": executable file not found in $PATH'
)


@dataclass(frozen=True)
class Case:
    """A pod's status and what it means."""

    reason: str
    status: Object
    gravity: Gravity | None
    class_: str = ""
    contains: tuple[str, ...] = ()
    exit_code: int | None = None
    last_log: str = ""


CASES = [
    Case("a pod that runs has nothing wrong", {"containerStatuses": [{"name": "c", "state": {"running": {}}}]}, None),
    Case("a pod without status has nothing wrong", {}, None),
    Case("a container that ended well has nothing wrong", {"containerStatuses": [ended(0)]}, None),
    Case(
        "an image that is not there blocks, and the message has its name and the registry's words",
        {"containerStatuses": [waiting("ErrImagePull", "manifest unknown")]},
        Gravity.BLOCKED,
        "ImagePull",
        ("registry/x:1", "manifest unknown", "pull secret"),
    ),
    Case(
        "between two pulls the reason is ImagePullBackOff: the same condition, so it does not flap",
        {"containerStatuses": [waiting("ImagePullBackOff", "Back-off")]},
        Gravity.BLOCKED,
        "ImagePull",
    ),
    Case(
        "an init container's image counts as well",
        {"initContainerStatuses": [waiting("ErrImagePull", "denied")]},
        Gravity.BLOCKED,
        "ImagePull",
    ),
    Case(
        "a missing Secret is named with its namespace, and how to get it there",
        {"containerStatuses": [waiting("CreateContainerConfigError", 'secret "mlplatform-store" not found')]},
        Gravity.BLOCKED,
        "NamespaceNotSetUp",
        ("namespace 'team-a' is not set up for models: it has no Secret 'mlplatform-store'", "modelNamespaces"),
    ),
    Case(
        "any other configuration error keeps the kubelet's words",
        {
            "containerStatuses": [
                waiting("CreateContainerConfigError", "container has runAsNonRoot and image runs as root")
            ]
        },
        Gravity.BLOCKED,
        "ContainerConfig",
        ("runs as root",),
    ),
    Case(
        "too little memory",
        {"containerStatuses": [ended(137, reason="OOMKilled")]},
        Gravity.CRASHED,
        "OOMKilled",
        ("more memory than its limit", "batchSize"),
        exit_code=137,
    ),
    Case(
        "a container that was restarted tells it in lastState",
        {"containerStatuses": [ended(137, reason="OOMKilled", key="lastState") | {"state": {"running": {}}}]},
        Gravity.CRASHED,
        "OOMKilled",
        exit_code=137,
    ),
    Case(
        "a failure that the stage understood and that no retry mends is final",
        {"containerStatuses": [ended(1, said(FailureClass.DATA_MISSING))]},
        Gravity.FINAL,
        "DataMissing",
        ("it was DataMissing", "do this"),
        exit_code=1,
    ),
    Case(
        "a failure that the stage understood and that a retry may mend is left to the workload",
        {"containerStatuses": [ended(1, said(FailureClass.OOM_KILLED))]},
        Gravity.CRASHED,
        "OOMKilled",
        exit_code=1,
    ),
    Case(
        "a crash leaves the end of its log",
        {"containerStatuses": [ended(2, "Traceback\nZeroDivisionError\n")]},
        Gravity.CRASHED,
        "Crashed",
        ("exit code 2",),
        exit_code=2,
        last_log="Traceback\nZeroDivisionError",
    ),
    Case(
        "JSON that is no summary is a log like any other",
        {"containerStatuses": [ended(2, '{"stage": "train"}')]},
        Gravity.CRASHED,
        "Crashed",
        exit_code=2,
        last_log='{"stage": "train"}',
    ),
    Case(
        "a long log is cut at its beginning",
        {"containerStatuses": [ended(2, "x" * 5000 + "end")]},
        Gravity.CRASHED,
        "Crashed",
        exit_code=2,
        last_log="x" * (failures.LAST_LOG_LIMIT - 3) + "end",
    ),
    Case(
        "a crash says why in the message, not only in the log's tail",
        {"containerStatuses": [ended(2, "Traceback\nZeroDivisionError: division by zero\n=====\n")]},
        Gravity.CRASHED,
        "Crashed",
        ("ended with exit code 2 (Error): ZeroDivisionError: division by zero. The end of its log is in",),
        exit_code=2,
        last_log="Traceback\nZeroDivisionError: division by zero\n=====",
    ),
    Case(
        "an init container that fails says why as well",
        {"initContainerStatuses": [ended(1, "RuntimeError: No model found in s3://m/x", name="storage-initializer")]},
        Gravity.CRASHED,
        "Crashed",
        ("container storage-initializer ended with exit code 1 (Error): RuntimeError: No model found in s3://m/x",),
        exit_code=1,
        last_log="RuntimeError: No model found in s3://m/x",
    ),
    Case(
        "a crash of ours keeps the end of its traceback, for its pod will be gone",
        {"containerStatuses": [ended(1, said(FailureClass.CRASHED, lastLog="line 7, in f"))]},
        Gravity.CRASHED,
        "Crashed",
        exit_code=1,
        last_log="line 7, in f",
    ),
    Case(
        "a container that was killed and said nothing has no log to be sent to",
        {"containerStatuses": [ended(137)]},
        Gravity.CRASHED,
        "Crashed",
        ("exit code 137", "kubectl logs -f v-train-master-0 -n team-a"),
        exit_code=137,
    ),
    Case(
        "an image without the program cannot start, now or ever: its name, and which field names it",
        {"containerStatuses": [ended(128, NO_TORCHRUN, reason="StartError")]},
        Gravity.FINAL,
        "CannotStart",
        (
            "image 'registry/x:1' cannot start: exec: \"torchrun\": executable file not found in $PATH",
            "spec.training.image",
        ),
        exit_code=128,
    ),
    Case(
        "a shell says the same by exit code 127",
        {"containerStatuses": [ended(127, "sh: 1: torchrun: not found")]},
        Gravity.FINAL,
        "CannotStart",
        ("cannot start: sh: 1: torchrun: not found",),
        exit_code=127,
        last_log="sh: 1: torchrun: not found",
    ),
    Case(
        "a start that failed of something else is tried again",
        {"containerStatuses": [ended(128, "failed to mount /sys/fs/cgroup", reason="StartError")]},
        Gravity.CRASHED,
        "Crashed",
        ("exit code 128 (StartError): failed to mount",),
        exit_code=128,
        last_log="failed to mount /sys/fs/cgroup",
    ),
    Case(
        "a limit of memory that is too small even to start in",
        {"containerStatuses": [ended(128, "container init was OOM-killed (memory limit too low?)", "StartError")]},
        Gravity.CRASHED,
        "OOMKilled",
        exit_code=128,
    ),
    Case(
        "an evicted pod, in the kubelet's words",
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        Gravity.DISRUPTED,
        "Preempted",
        ("(Evicted: The node was low on resource: memory.)", "uses up no restart"),
    ),
    Case(
        "a pod that made way for another: the condition's reason and message, not how its container took it",
        {
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "PreemptionByScheduler",
                    "message": "default-scheduler: preempting to accommodate a higher priority pod",
                }
            ],
            "containerStatuses": [ended(143)],
        },
        Gravity.DISRUPTED,
        "Preempted",
        ("(PreemptionByScheduler: default-scheduler: preempting to accommodate a higher priority pod)",),
    ),
    Case(
        "a pod that its node would not have",
        {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"},
        Gravity.DISRUPTED,
        "Preempted",
        ("OutOfcpu: Node didn't have enough resource: cpu",),
    ),
    Case(
        "no room is no failure yet, but worth saying",
        {
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
            ]
        },
        Gravity.PENDING,
        "Unschedulable",
        ("0/1 nodes", "capacity"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_sighting(case: Case) -> None:
    found = failures.worst([pod(case.status)], "train")
    if case.gravity is None:
        assert found is None, case.reason
        return
    assert found, case.reason
    failure = found.failure
    assert (found.gravity, failure.class_, failure.stage, failure.pod) == (
        case.gravity,
        case.class_,
        "train",
        "v-train-master-0",
    ), case.reason
    assert (failure.exit_code, failure.last_log) == (case.exit_code, case.last_log), case.reason
    for part in case.contains:
        assert part in failures.sentence(failure), case.reason
    assert failure.next_action, "every failure names a next action"


def test_the_gravest_of_several_pods_counts() -> None:
    crashed = pod({"containerStatuses": [ended(1, "peer closed the connection")]}, "worker-0")
    final = pod({"containerStatuses": [ended(1, said(FailureClass.DATA_INVALID))]}, "master-0")
    found = failures.worst([crashed, final])
    assert found
    assert found.failure.pod == "master-0", "the worker only lost its peer; the master knows why"


def test_who_waits_for_the_master_is_no_cause_while_that_does_not_run() -> None:
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    waits = pod({"initContainerStatuses": [ended(1, "nslookup: can't resolve", name="init-pytorch")]}, "worker-0")
    found = failures.worst([waits, pod({"conditions": [told]}, "master-0")])
    assert found
    assert found.failure.class_ == "Unschedulable"
    assert failures.worst([waits, pod({"phase": "Pending"}, "master-0")]) is None, "its image is being pulled, say"
    runs = pod({"containerStatuses": [{"name": "pytorch", "state": {"running": {}}}]}, "master-0")
    found = failures.worst([waits, runs])
    assert found
    assert "init-pytorch ended with exit code 1" in found.failure.message, "the master is there, and is not found"


@pytest.mark.parametrize(("finished", "counts"), [("00:00:59", True), ("00:01:00", False), ("00:01:20", False)])
def test_a_container_that_ended_with_its_pod_did_not_fail(finished: str, *, counts: bool) -> None:
    status = {"containerStatuses": [ended(143)]}
    status["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = f"2026-01-01T{finished}Z"
    leaving = pod(status)
    leaving["metadata"] |= {"deletionTimestamp": "2026-01-01T00:01:30Z", "deletionGracePeriodSeconds": 30}
    assert (failures.worst([leaving]) is not None) == counts


def test_a_disruption_comes_before_what_it_does_to_the_others() -> None:
    echo = pod({"containerStatuses": [ended(1, "RuntimeError: Broken pipe")]}, "master-0")
    evicted = pod({"phase": "Failed", "reason": "Evicted"}, "worker-0")
    found = failures.worst([echo, evicted])
    assert found
    assert found.failure.pod == "worker-0"


def test_a_cause_comes_before_its_echo() -> None:
    def crash(message: str) -> Object:
        failure = Failure(FailureClass.CRASHED, message, "Read the log.")
        return {"containerStatuses": [ended(1, Summary(Stage.TRAIN, "v", failure=failure).to_json())]}

    echo = pod(crash("RuntimeError: [pair.cc:553] Connection closed by peer [10.0.0.7]:18115."), "master-0")
    cause = pod(crash("could not write checkpoints/step-66/1.pt: No space left on device"), "worker-0")
    found = failures.worst([echo, cause])
    assert found
    assert "No space left" in found.failure.message


def test_success_needs_a_summary_without_failure_and_exit_code_0() -> None:
    good = Summary(Stage.TRAIN, "v", metrics={"roc_auc": 0.9}).to_json()
    cases = {
        "a crash": ended(1, good),
        "no summary": ended(0, "done"),
        "an understood failure": ended(0, said(FailureClass.DATA_MISSING)),
        "still running": {"name": "c", "state": {"running": {}}},
    }
    for reason, container in cases.items():
        assert failures.succeeded([pod({"containerStatuses": [container]})]) is None, reason
    found = failures.succeeded([pod({}), pod({"containerStatuses": [ended(0, good)]}, "second")])
    assert found
    assert found.summary.metrics == {"roc_auc": 0.9}


def test_a_pod_on_its_way_out_takes_no_traffic() -> None:
    live = pod({"conditions": [{"type": "Ready", "status": "True"}]})
    assert failures.ready(live)
    assert not failures.ready({**live, "metadata": {**live["metadata"], "deletionTimestamp": "now"}})
    assert not failures.ready(pod({"conditions": [{"type": "Ready", "status": "False"}]}))
