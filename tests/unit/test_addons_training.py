"""The stand-in for the Training Operator: one look at a job and its children at a time."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from local.addons import training

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
IMAGE = "addons:1"
JSON = dict[str, Any]


def job(**changes: Any) -> JSON:
    """A job of a master and two workers; ``changes`` go to the spec, ``name`` and ``status`` to their places."""
    container = {"name": "pytorch", "image": "train:1", "env": [{"name": "A", "value": "b"}]}
    template = {"metadata": {"labels": {"l": "1"}, "annotations": {"a": "2"}}, "spec": {"containers": [container]}}
    replicas = {
        "Master": {"template": template},
        "Worker": {"replicas": 2, "template": copy.deepcopy(template)},
    }
    meta = {"name": changes.pop("name", "j"), "namespace": "n", "uid": "u1"}
    status = {"status": changes.pop("status")} if "status" in changes else {}
    kind = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob"}
    return {**kind, "metadata": meta, "spec": {"pytorchReplicaSpecs": replicas} | changes, **status}


def policy(kind: str) -> JSON:
    """``pytorchReplicaSpecs`` with one restart policy everywhere."""
    replicas = job()["spec"]["pytorchReplicaSpecs"]
    return {name: replica | {"restartPolicy": kind} for name, replica in replicas.items()}


def children(raw: JSON, **phases: str) -> list[JSON]:
    """All pods and Services of a job; ``phases`` by ``master_0``, ``worker_1``: ``<phase>[:<exit code or restarts>]``.

    A phase of ``gone`` leaves a pod out; ``deleting`` is a running one that is being deleted.
    """
    made = training.plan(raw, [], NOW, IMAGE).create
    result = []
    for item in copy.deepcopy(made):
        name = item["metadata"]["name"].removeprefix("j-").replace("-", "_")
        phase, _, number = phases.get(name, "Running").partition(":")
        item["metadata"]["uid"] = f"uid-{item['kind']}-{name}"
        if item["kind"] == "Pod":
            if phase == "gone":
                continue
            if phase == "deleting":
                phase, item["metadata"]["deletionTimestamp"] = "Running", "now"
            state = {"terminated": {"exitCode": int(number or 1)}} if phase == "Failed" else {}
            container = {"name": "pytorch", "state": state, "restartCount": int(number or 0) * (phase == "Running")}
            item["status"] = {"phase": phase, "containerStatuses": [container]}
        result.append(item)
    return result


def look(raw: JSON, **phases: str) -> training.Plan:
    return training.plan(raw, children(job(), **phases), NOW, IMAGE)


def conditions(status: JSON) -> dict[str, str]:
    return {item["type"]: item["status"] for item in status["conditions"]}


def names(items: list[JSON]) -> list[str]:
    return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in items)


def test_a_new_job_gets_a_pod_and_a_headless_service_a_replica() -> None:
    plan = training.plan(job(), [], NOW, IMAGE)
    replicas = ["j-master-0", "j-worker-0", "j-worker-1"]
    assert names(plan.create) == [f"{kind}/{name}" for kind in ("Pod", "Service") for name in replicas]
    assert conditions(plan.status) == {"Created": "True"}
    assert plan.status["startTime"] == "2026-01-01T12:00:00Z"


def test_a_pod_is_what_the_training_operator_makes() -> None:
    worker = next(
        item
        for item in training.plan(job(nprocPerNode="2"), [], NOW, IMAGE).create
        if item["kind"] == "Pod" and item["metadata"]["name"] == "j-worker-1"
    )
    prefix = "training.kubeflow.org/"
    assert worker["metadata"]["labels"] == {
        "l": "1",
        f"{prefix}job-name": "j",
        f"{prefix}operator-name": "pytorchjob-controller",
        f"{prefix}replica-type": "worker",
        f"{prefix}replica-index": "1",
    }
    assert worker["metadata"]["annotations"] == {"a": "2"}
    assert worker["spec"]["restartPolicy"] == "OnFailure"
    container = worker["spec"]["containers"][0]
    assert {item["name"]: item["value"] for item in container["env"]} == {
        "A": "b",
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "j-master-0",
        "MASTER_PORT": "23456",
        "PET_MASTER_ADDR": "j-master-0",
        "PET_MASTER_PORT": "23456",
        "WORLD_SIZE": "6",
        "RANK": "2",
        "PET_NODE_RANK": "2",
        "PET_NPROC_PER_NODE": "2",
        "PET_NNODES": "3",
    }
    assert container["ports"] == [{"name": "pytorchjob-port", "containerPort": 23456, "protocol": "TCP"}]
    (init,) = worker["spec"]["initContainers"]
    assert (init["name"], init["image"], init["command"][-1]) == ("init-pytorch", IMAGE, "j-master-0")
    owner = worker["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("PyTorchJob", "u1", True)


def test_only_the_master_has_the_role_label_and_no_init_container() -> None:
    pods = {item["metadata"]["name"]: item for item in training.plan(job(), [], NOW, IMAGE).create[::2]}
    assert pods["j-master-0"]["metadata"]["labels"]["training.kubeflow.org/job-role"] == "master"
    assert "initContainers" not in pods["j-master-0"]["spec"]
    assert "training.kubeflow.org/job-role" not in pods["j-worker-0"]["metadata"]["labels"]


def test_a_service_is_headless_and_selects_its_one_pod() -> None:
    service = next(item for item in training.plan(job(), [], NOW, IMAGE).create if item["kind"] == "Service")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"]["training.kubeflow.org/replica-type"] == "master"
    assert service["spec"]["selector"]["training.kubeflow.org/replica-index"] == "0"
    assert service["spec"]["ports"] == [{"name": "pytorchjob-port", "port": 23456}]


def test_a_job_that_is_as_it_should_be_is_left_alone() -> None:
    first = look(job())
    assert conditions(first.status) == {"Created": "True", "Running": "True"}
    assert first.status["replicaStatuses"] == {"Master": {"active": 1}, "Worker": {"active": 2}}
    later = training.plan(job(status=first.status), children(job()), NOW + timedelta(hours=1), IMAGE)
    assert (later.create, later.delete, later.again) == ([], [], None)
    assert later.status == first.status, "no change, no write: the times stay, too"


CASES = [
    ("the master decides success, whatever the workers do", "OnFailure", {"master_0": "Succeeded"}, "Succeeded", []),
    (
        "a master that runs makes the job run",
        "OnFailure",
        {"worker_0": "Pending", "worker_1": "Pending"},
        "Running",
        [],
    ),
    ("a failed pod is made anew under OnFailure", "OnFailure", {"worker_0": "Failed"}, "Restarting", ["worker-0"]),
    ("Never makes the first failure final", "Never", {"worker_0": "Failed"}, "Failed", []),
    (
        "ExitCode: a signal (128 and above) is retried",
        "ExitCode",
        {"worker_1": "Failed:137"},
        "Restarting",
        ["worker-1"],
    ),
    ("ExitCode: a code below 128 is permanent", "ExitCode", {"master_0": "Failed:1"}, "Failed", []),
    ("a pod that is being deleted is not active", "OnFailure", {"master_0": "deleting"}, "Created", []),
]


@pytest.mark.parametrize(("reason", "restart", "phases", "last", "deleted"), CASES, ids=[case[0] for case in CASES])
def test_outcomes(reason: str, restart: str, phases: dict[str, str], last: str, deleted: list[str]) -> None:
    plan = look(job(pytorchReplicaSpecs=policy(restart)), **phases)
    assert plan.status["conditions"][-1]["type"] == last, reason
    assert plan.status["conditions"][-1]["reason"] == f"PyTorchJob{last}", reason
    assert names(plan.delete) == [f"Pod/j-{name}" for name in deleted], reason
    assert ("completionTime" in plan.status) == (last in ("Succeeded", "Failed")), reason


def test_a_deleted_pod_is_made_anew_and_the_others_stay() -> None:
    plan = look(job(), worker_1="gone")
    assert names(plan.create) == ["Pod/j-worker-1"]
    assert plan.delete == []


def test_a_replica_beyond_the_count_goes_with_its_service() -> None:
    smaller = job()
    smaller["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] = 1
    assert names(look(smaller).delete) == ["Pod/j-worker-1", "Service/j-worker-1"]


def test_children_of_another_job_of_the_same_name_are_not_touched() -> None:
    other = job()
    other["metadata"]["uid"] = "u2"
    plan = training.plan(other, children(job()), NOW, IMAGE)
    assert len(plan.create) == 6, "the server refuses those names until the old ones are gone; then they are made"
    assert plan.delete == []


def test_running_and_restarting_replace_each_other() -> None:
    running = look(job()).status
    restarting = look(job(status=running), worker_0="Failed").status
    assert [item["type"] for item in restarting["conditions"]] == ["Created", "Restarting"]
    again = look(job(status=restarting)).status
    assert [item["type"] for item in again["conditions"]] == ["Created", "Running"]


def test_failed_is_sticky_and_turns_running_false() -> None:
    never = {"pytorchReplicaSpecs": policy("Never")}
    failed = look(job(status=look(job()).status, **never), worker_0="Failed").status
    assert conditions(failed) == {"Created": "True", "Running": "False", "Failed": "True"}
    assert look(job(status=failed, **never)).status == failed, "the pods that still run do not bring it back"


BACKOFF = [
    ("restarts in all replicas count together", 3, {"master_0": "Running:1", "worker_0": "Running:2"}, True),
    ("below the limit the job goes on", 4, {"master_0": "Running:1", "worker_0": "Running:2"}, False),
    ("without restarts a limit of 0 is not reached", 0, {}, False),
    ("a limit of 0 is reached by the first restart", 0, {"worker_1": "Running:1"}, True),
    ("no limit: restarts without end", None, {"worker_1": "Running:99"}, False),
]


@pytest.mark.parametrize(("reason", "limit", "phases", "fails"), BACKOFF, ids=[case[0] for case in BACKOFF])
def test_backoff_limit(reason: str, limit: int | None, phases: dict[str, str], fails: bool) -> None:  # noqa: FBT001  a table
    plan = look(job(runPolicy={"backoffLimit": limit, "cleanPodPolicy": "Running"}), **phases)
    assert (conditions(plan.status).get("Failed") == "True") == fails, reason
    assert bool(plan.delete) == fails, f"{reason}; at the limit cleanPodPolicy applies at once"


def test_exit_code_restarts_do_not_count() -> None:
    plan = look(job(pytorchReplicaSpecs=policy("ExitCode"), runPolicy={"backoffLimit": 1}), worker_0="Running:5")
    assert "Failed" not in conditions(plan.status), "an OOM 137 under ExitCode restarts for ever"


CLEAN = [
    ("None keeps everything", "None", []),
    ("Running removes what still runs, with its Services", "Running", ["Pod/j-worker-1", "Service/j-worker-1"]),
    (
        "All removes everything",
        "All",
        [f"{k}/j-{n}" for k in ("Pod", "Service") for n in ("master-0", "worker-0", "worker-1")],
    ),
]


@pytest.mark.parametrize(("reason", "clean", "deleted"), CLEAN, ids=[case[0] for case in CLEAN])
def test_clean_pod_policy(reason: str, clean: str, deleted: list[str]) -> None:
    phases = {"master_0": "Succeeded", "worker_0": "Succeeded"}
    done = look(job(), **phases).status
    plan = look(job(status=done, runPolicy={"cleanPodPolicy": clean}), **phases)
    assert names(plan.delete) == deleted, reason
    assert plan.status["replicaStatuses"]["Worker"] == {"active": 0, "succeeded": 2}, "what ran counts as succeeded"


def test_time_to_live() -> None:
    done = look(job(), master_0="Succeeded").status
    raw = job(status=done, runPolicy={"ttlSecondsAfterFinished": 60})
    early = training.plan(raw, [], NOW + timedelta(seconds=20), IMAGE)
    assert (early.delete_job, early.again) == (False, 40.0)
    assert early.create == [], "a finished job's pods are not made anew"
    assert training.plan(raw, [], NOW + timedelta(seconds=60), IMAGE).delete_job


def test_suspend_and_resume() -> None:
    running = look(job()).status
    suspended = look(job(status=running, runPolicy={"suspend": True}))
    assert len(suspended.delete) == 6, "pods and Services go"
    assert conditions(suspended.status) == {"Created": "True", "Running": "False", "Suspended": "True"}
    assert "startTime" not in suspended.status
    later = NOW + timedelta(hours=1)
    resumed = training.plan(job(status=suspended.status), [], later, IMAGE)
    assert conditions(resumed.status)["Suspended"] == "False"
    assert resumed.status["startTime"] == "2026-01-01T13:00:00Z", "the deadline's clock starts anew"
    assert len(resumed.create) == 6


def test_the_deadline_is_seen_when_something_happens_but_sets_no_alarm() -> None:
    raw = job(status=look(job()).status, runPolicy={"activeDeadlineSeconds": 10})
    assert look(raw).again is None, "a silent job outlives its deadline, as it does with the real operator"
    late = training.plan(raw, children(job()), NOW + timedelta(seconds=10), IMAGE)
    assert conditions(late.status)["Failed"] == "True"


def _without(path: str) -> JSON:
    raw = job()
    container = raw["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    if path == "master":
        del raw["spec"]["pytorchReplicaSpecs"]["Master"]
    elif path == "name":
        container["name"] = "main"
    else:
        del container["image"]
    return raw


INVALID = [
    ("a name that cannot be a Service's", job(name="1j"), "DNS-1035"),
    ("no master", _without("master"), "Master must be there"),
    ("no container named pytorch", _without("name"), "container named 'pytorch'"),
    ("no image", _without("image"), "needs an image"),
    ("processes that are no number", job(nprocPerNode="many"), "nprocPerNode 'many'"),
    (
        "what the stand-in does not do is said",
        job(elasticPolicy={"maxReplicas": 2}),
        "elasticPolicy is not implemented",
    ),
]


@pytest.mark.parametrize(("reason", "raw", "words"), INVALID, ids=[case[0] for case in INVALID])
def test_invalid_jobs_fail_with_a_sentence(reason: str, raw: JSON, words: str) -> None:
    plan = training.plan(raw, [], NOW, IMAGE)
    assert plan.status["conditions"][-1]["type"] == "Failed", reason
    assert words in plan.status["conditions"][-1]["message"], reason
    assert plan.create == [], reason


def test_a_job_of_another_manager_is_none_of_ours() -> None:
    plan = training.plan(job(runPolicy={"managedBy": "kueue.x-k8s.io/multikueue"}), [], NOW, IMAGE)
    assert plan == training.Plan()
