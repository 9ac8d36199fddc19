"""What the Training Operator does with a PyTorchJob, as pure functions; ``__main__`` gives it a cluster.

A test double for kubeflow/training-operator 1.9 (``kubeflow.org/v1``). One look
at a job and its pods yields a ``Plan``: what to create, what to delete, the next
status. Nothing is remembered between two looks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from .client import JSON
from .controller import controlled_by, owner_reference, stamp

MANAGER: Final = "kubeflow.org/training-operator"
OPERATOR: Final = "pytorchjob-controller"
PREFIX: Final = "training.kubeflow.org/"
CONTAINER: Final = "pytorch"
PORT_NAME: Final = "pytorchjob-port"
PORT: Final = 23456
RETRYABLE_EXIT_CODE: Final = 128
"""``restartPolicy: ExitCode`` restarts from this code on; below it the failure is permanent."""
REPLICA_TYPES: Final = ("Master", "Worker")
RESTARTED: Final = frozenset({"OnFailure", "Always"})
DNS_1035: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a job sees.

    Attributes:
        job: With defaults.
        pods: Those that it controls.
        services: Likewise.
        now: The present, in UTC.
        init_image: Image of the workers' init container.
    """

    job: JSON
    pods: list[JSON]
    services: list[JSON]
    now: datetime
    init_image: str

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.job["metadata"]["name"])

    @property
    def policy(self) -> JSON:
        """``spec.runPolicy``."""
        policy: JSON = self.job["spec"]["runPolicy"]
        return policy

    @property
    def replicas(self) -> dict[str, JSON]:
        """``spec.pytorchReplicaSpecs``, the master first."""
        specs = self.job["spec"]["pytorchReplicaSpecs"]
        return {kind: specs[kind] for kind in REPLICA_TYPES if kind in specs}


@dataclass(slots=True)
class Plan:
    """What one look at a job asks for.

    Attributes:
        create: Pods and Services, complete.
        delete: Pods and Services as they are in the cluster.
        status: The job's status after this look.
        delete_job: Its time to live is over.
        again: Seconds after which to look again without any event, or None.
    """

    create: list[JSON] = field(default_factory=list)
    delete: list[JSON] = field(default_factory=list)
    status: JSON = field(default_factory=dict)
    delete_job: bool = False
    again: float | None = None


def plan(raw: JSON, children: list[JSON], now: datetime, init_image: str) -> Plan:
    """Decides about one PyTorchJob.

    Args:
        raw: The job as the API has it.
        children: Pods and Services with its labels.
        now: The present, in UTC.
        init_image: Image of the workers' init container.

    Returns:
        What to do; an empty plan with the old status where another manager has the job.
    """
    result = Plan(status=copy.deepcopy(raw.get("status") or {}))
    mine = [child for child in children if controlled_by(child, raw["metadata"]["uid"])]
    pods, services = ([child for child in mine if child["kind"] == kind] for kind in ("Pod", "Service"))
    look = Look(with_defaults(raw), pods, services, now, init_image)
    if look.policy.get("managedBy", MANAGER) != MANAGER:
        return result
    set_condition(result.status, condition("Created", f"PyTorchJob {look.name} is created."), now)
    if finished(result.status):
        _finish(result, look)
    elif error := validation_error(look.job):
        _fail(result.status, f"PyTorchJob {look.name} is not valid: {error}", now)
    elif look.policy["suspend"]:
        _suspend(result, look)
    else:
        _advance(result, look)
    return result


def with_defaults(raw: JSON) -> JSON:
    """The job as the real operator's defaulting sees it; ``raw`` is not changed."""
    job = copy.deepcopy(raw)
    spec = job["spec"]
    policy = spec["runPolicy"] = spec.get("runPolicy") or {}
    policy.setdefault("cleanPodPolicy", "None")
    policy.setdefault("suspend", False)
    spec.setdefault("nprocPerNode", "auto")
    for replica in (spec.get("pytorchReplicaSpecs") or {}).values():
        replica.setdefault("replicas", 1)
        replica.setdefault("restartPolicy", "OnFailure")
        containers = replica.get("template", {}).get("spec", {}).get("containers") or []
        for container in containers:
            ports = container.get("ports") or []
            if container.get("name") == CONTAINER and not any(port.get("name") == PORT_NAME for port in ports):
                container["ports"] = [*ports, {"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}]
    return job


def validation_error(job: JSON) -> str | None:
    """What the real operator's webhook would say against a job (with defaults), or None.

    The stand-in has no webhook: the sentence ends up in the ``Failed`` condition.
    """
    return next(_problems(job), None)


def condition(kind: str, message: str, *, value: bool = True, reason: str = "") -> JSON:
    """A condition without its times; its reason is ``PyTorchJob<kind>`` unless given."""
    text = "True" if value else "False"
    return {"type": kind, "status": text, "reason": reason or f"PyTorchJob{kind}", "message": message}


def set_condition(status: JSON, fresh: JSON, now: datetime) -> None:
    """Adds or changes a condition as the real operator does; ``status`` is changed in place.

    Running and Restarting replace each other; a failed job takes no further condition;
    the end of a job turns Running false.
    """
    kind = fresh["type"]
    conditions: list[JSON] = status.get("conditions") or []
    current = next((item for item in conditions if item["type"] == kind), None)
    same = current is not None and all(current[key] == fresh[key] for key in ("status", "reason"))
    if same or _is(status, "Failed"):
        return
    replaced = {kind} | ({"Running", "Restarting"} if kind in ("Running", "Restarting") else set())
    kept = [item for item in conditions if item["type"] not in replaced]
    if kind in ("Succeeded", "Failed"):
        kept = [item | {"status": "False"} if item["type"] == "Running" else item for item in kept]
    steady = current is not None and current["status"] == fresh["status"]
    moved = current["lastTransitionTime"] if current is not None and steady else stamp(now)
    status["conditions"] = [*kept, fresh | {"lastUpdateTime": stamp(now), "lastTransitionTime": moved}]


def finished(status: JSON) -> bool:
    """Whether the job succeeded or failed."""
    return _is(status, "Succeeded") or _is(status, "Failed")


def pod_name(job: str, kind: str, index: int) -> str:
    """``<job>-{master|worker}-<i>``: the name of a pod and of its headless Service."""
    return f"{job}-{kind.lower()}-{index}"


def render_pod(job: JSON, kind: str, index: int, init_image: str) -> JSON:
    """One replica's pod, from a job with defaults."""
    replica = job["spec"]["pytorchReplicaSpecs"][kind]
    template = copy.deepcopy(replica["template"])
    spec, meta = template["spec"], template.get("metadata") or {}
    for container in spec["containers"]:
        container["env"] = [*(container.get("env") or []), *environment(job, kind, index)]
    if kind == "Worker":
        master = pod_name(job["metadata"]["name"], "Master", 0)
        spec["initContainers"] = [*(spec.get("initContainers") or []), _init_container(init_image, master)]
    # Kubernetes knows no ExitCode: the operator itself replaces such pods.
    spec["restartPolicy"] = "Never" if replica["restartPolicy"] == "ExitCode" else replica["restartPolicy"]
    labels = (meta.get("labels") or {}) | _labels(job, kind, index)
    if kind == "Master":
        labels[f"{PREFIX}job-role"] = "master"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _child_metadata(job, kind, index, labels) | {"annotations": meta.get("annotations") or {}},
        "spec": spec,
    }


def render_service(job: JSON, kind: str, index: int) -> JSON:
    """One replica's headless Service, from a job with defaults."""
    containers = job["spec"]["pytorchReplicaSpecs"][kind]["template"]["spec"]["containers"]
    ports = next(container["ports"] for container in containers if container["name"] == CONTAINER)
    labels = _labels(job, kind, index)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _child_metadata(job, kind, index, labels),
        "spec": {
            "clusterIP": "None",
            "selector": labels,
            "ports": [
                {"name": port.get("name", f"port-{port['containerPort']}"), "port": port["containerPort"]}
                for port in ports
            ],
        },
    }


def environment(job: JSON, kind: str, index: int) -> list[JSON]:
    """What the operator injects into every container; RANK and PET_NODE_RANK are the node's rank."""
    replicas = job["spec"]["pytorchReplicaSpecs"]
    nodes = sum(replica["replicas"] for replica in replicas.values())
    processes = str(job["spec"]["nprocPerNode"])
    master = pod_name(job["metadata"]["name"], "Master", 0)
    containers = replicas["Master"]["template"]["spec"]["containers"]
    ports = next(container["ports"] for container in containers if container["name"] == CONTAINER)
    port = next(port["containerPort"] for port in ports if port.get("name") == PORT_NAME)
    rank = index if kind == "Master" else index + 1
    values = {
        "PYTHONUNBUFFERED": "1",
        "MASTER_PORT": port,
        "PET_MASTER_PORT": port,
        "MASTER_ADDR": master,
        "PET_MASTER_ADDR": master,
        "WORLD_SIZE": nodes * (int(processes) if processes.isdigit() else 1),
        "RANK": rank,
        "PET_NPROC_PER_NODE": processes,
        "PET_NODE_RANK": rank,
        "PET_NNODES": nodes,
    }
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def restarts(job: JSON, pods: list[JSON]) -> int:
    """Container restarts that count against backoffLimit: those of live pods that Kubernetes restarts in place."""
    return sum(
        container.get("restartCount", 0)
        for kind, replica in job["spec"]["pytorchReplicaSpecs"].items()
        if replica["restartPolicy"] in RESTARTED
        for pod in _of_type(pods, kind)
        if _phase(pod) in ("Running", "Pending")
        for group in ("initContainerStatuses", "containerStatuses")
        for container in pod.get("status", {}).get(group) or []
    )


def _advance(result: Plan, look: Look) -> None:
    """A job that is neither finished nor suspended: fill gaps, count, conclude."""
    status = result.status
    if _is(status, "Suspended"):
        message = f"PyTorchJob {look.name} is resumed."
        set_condition(status, condition("Suspended", message, value=False, reason="PyTorchJobResumed"), look.now)
    status.setdefault("startTime", stamp(look.now))
    if limit := _limit_reached(look, status):
        result.delete = _to_clean(look)
        _fail(status, limit, look.now)
        return
    pods = {item["metadata"]["name"]: item for item in look.pods}
    services = {item["metadata"]["name"] for item in look.services}
    for kind, replica in look.replicas.items():
        wanted = [pod_name(look.name, kind, index) for index in range(replica["replicas"])]
        for index, child in enumerate(wanted):
            if child not in pods:
                result.create.append(render_pod(look.job, kind, index, look.init_image))
            elif _is_replaced(replica["restartPolicy"], pods[child]):
                result.delete.append(pods[child])
            if child not in services:
                result.create.append(render_service(look.job, kind, index))
        # A job scaled down: replicas beyond the count go, pod and Service.
        extra = [
            item for item in _of_type([*look.pods, *look.services], kind) if item["metadata"]["name"] not in wanted
        ]
        result.delete += _staying(extra)
    status["replicaStatuses"] = {kind: _counts(_of_type(look.pods, kind)) for kind in look.replicas}
    _conclude(status, look)


def _conclude(status: JSON, look: Look) -> None:
    """Conditions from the replicas' counts."""
    for kind, replica in look.replicas.items():
        counts = status["replicaStatuses"][kind]
        active, succeeded, failed = (counts.get(key, 0) for key in ("active", "succeeded", "failed"))
        if kind == "Master" and active:
            set_condition(status, condition("Running", f"PyTorchJob {look.name} is running."), look.now)
        if kind == "Master" and succeeded == replica["replicas"]:
            status.setdefault("completionTime", stamp(look.now))
            set_condition(
                status, condition("Succeeded", f"PyTorchJob {look.name} is successfully completed."), look.now
            )
            return
        if failed and replica["replicas"] > succeeded + active:
            dead = [pod for pod in _of_type(look.pods, kind) if _phase(pod) == "Failed"]
            if not all(_is_replaceable(replica["restartPolicy"], pod) for pod in dead):
                _fail(status, f"PyTorchJob {look.name} is failed because {failed} {kind} replica(s) failed.", look.now)
                return
            text = f"PyTorchJob {look.name} is restarting because {failed} {kind} replica(s) failed."
            set_condition(status, condition("Restarting", text), look.now)


def _finish(result: Plan, look: Look) -> None:
    """A finished job: clean up as asked, settle the counts, mind the time to live."""
    status = result.status
    result.delete = _to_clean(look)
    if _is(status, "Succeeded"):
        for kind, counts in (status.get("replicaStatuses") or {}).items():
            if active := counts.get("active", 0):
                done = counts.get("succeeded", 0) + active
                status["replicaStatuses"][kind] = counts | {"active": 0, "succeeded": done}
    ttl = look.policy.get("ttlSecondsAfterFinished")
    if ttl is not None and "completionTime" in status:
        left = (_time(status["completionTime"]) + timedelta(seconds=ttl) - look.now).total_seconds()
        result.delete_job = left <= 0
        result.again = left if left > 0 else None


def _suspend(result: Plan, look: Look) -> None:
    """A suspended job has no pods, and its clock starts anew when it is resumed."""
    status = result.status
    result.delete = _staying([*look.pods, *look.services])
    message, reason = f"PyTorchJob {look.name} is suspended.", "PyTorchJobSuspended"
    if _is(status, "Running"):
        set_condition(status, condition("Running", message, value=False, reason=reason), look.now)
    set_condition(status, condition("Suspended", message), look.now)
    status["replicaStatuses"] = {}
    status.pop("startTime", None)


def _limit_reached(look: Look, status: JSON) -> str | None:
    """Why a job must fail now.

    As in the real operator the deadline is only looked at when something happens:
    a silent job outlives it.
    """
    backoff, count = look.policy.get("backoffLimit"), restarts(look.job, look.pods)
    if backoff is not None and count and count >= backoff:
        return f"PyTorchJob {look.name} has failed because it has reached the specified backoff limit"
    deadline = look.policy.get("activeDeadlineSeconds")
    if deadline is not None and look.now >= _time(status["startTime"]) + timedelta(seconds=deadline):
        return f"PyTorchJob {look.name} has failed because it was active longer than specified deadline"
    return None


def _to_clean(look: Look) -> list[JSON]:
    """Which pods, each with its Service, cleanPodPolicy removes from a finished job."""
    policy = look.policy["cleanPodPolicy"]
    if policy == "None":
        return []
    going = [pod for pod in look.pods if policy == "All" or _phase(pod) in ("Running", "Pending")]
    names = {pod["metadata"]["name"] for pod in going}
    going += [service for service in look.services if policy == "All" or service["metadata"]["name"] in names]
    return _staying(going)


def _staying(items: list[JSON]) -> list[JSON]:
    """Without those that are being deleted already."""
    return [item for item in items if not item["metadata"].get("deletionTimestamp")]


def _is_replaced(policy: str, pod: JSON) -> bool:
    """Whether to delete a pod so that it is made anew."""
    return _phase(pod) == "Failed" and _is_replaceable(policy, pod) and bool(_staying([pod]))


def _is_replaceable(policy: str, pod: JSON) -> bool:
    """Whether the restart policy lets a failed pod be made anew."""
    return policy in RESTARTED or (policy == "ExitCode" and _exit_code(pod) >= RETRYABLE_EXIT_CODE)


def _counts(pods: list[JSON]) -> JSON:
    """``{active?, succeeded?, failed?}``; a zero is left out, as the real operator's JSON does."""
    counts = {
        "active": sum(_phase(pod) == "Running" for pod in _staying(pods)),
        "succeeded": sum(_phase(pod) == "Succeeded" for pod in pods),
        "failed": sum(_phase(pod) == "Failed" for pod in pods),
    }
    return {key: count for key, count in counts.items() if count}


def _problems(job: JSON) -> Iterator[str]:
    """Everything that is wrong with a job; later checks rely on the earlier ones."""
    spec, name = job["spec"], job["metadata"]["name"]
    if not DNS_1035.fullmatch(name):
        yield f"metadata.name {name!r} is no DNS-1035 label (lower-case letters, digits, '-', a letter first)"
    if spec.get("elasticPolicy"):
        yield "spec.elasticPolicy is not implemented by this stand-in; remove it or use the real Training Operator"
    if not re.fullmatch(r"auto|cpu|gpu|[1-9][0-9]*", str(spec["nprocPerNode"])):
        yield f"spec.nprocPerNode {spec['nprocPerNode']!r} is none of auto, cpu, gpu or a number"
    replicas = spec.get("pytorchReplicaSpecs") or {}
    if unknown := sorted(set(replicas) - set(REPLICA_TYPES)):
        yield f"spec.pytorchReplicaSpecs.{unknown[0]}: replica types are Master and Worker"
    if replicas.get("Master", {}).get("replicas") != 1:
        yield "spec.pytorchReplicaSpecs.Master must be there with exactly 1 replica"
    for kind, replica in replicas.items():
        containers = replica.get("template", {}).get("spec", {}).get("containers") or []
        if not any(container.get("name") == CONTAINER for container in containers):
            yield f"spec.pytorchReplicaSpecs.{kind}: a container named {CONTAINER!r} is missing"
        if any(not container.get("image") for container in containers):
            yield f"spec.pytorchReplicaSpecs.{kind}: every container needs an image"


def _init_container(image: str, master: str) -> JSON:
    """Waits for the master's DNS name; upstream's is ``alpine`` with a shell loop of the same length."""
    return {
        "name": "init-pytorch",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-m", "addons", "wait-for-name", master],
        "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "16Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _labels(job: JSON, kind: str, index: int) -> dict[str, str]:
    return {
        f"{PREFIX}job-name": job["metadata"]["name"],
        f"{PREFIX}operator-name": OPERATOR,
        f"{PREFIX}replica-type": kind.lower(),
        f"{PREFIX}replica-index": str(index),
    }


def _child_metadata(job: JSON, kind: str, index: int, labels: dict[str, str]) -> JSON:
    meta = job["metadata"]
    return {
        "name": pod_name(meta["name"], kind, index),
        "namespace": meta["namespace"],
        "labels": labels,
        "ownerReferences": [owner_reference(job)],
    }


def _of_type(items: list[JSON], kind: str) -> list[JSON]:
    label = f"{PREFIX}replica-type"
    return [item for item in items if item["metadata"].get("labels", {}).get(label) == kind.lower()]


def _exit_code(pod: JSON) -> int:
    for container in pod.get("status", {}).get("containerStatuses") or []:
        terminated = container.get("state", {}).get("terminated")
        if container["name"] == CONTAINER and terminated:
            return int(terminated["exitCode"])
    return 0  # evicted before it ran: no code, and so not retryable under ExitCode


def _fail(status: JSON, message: str, now: datetime) -> None:
    status.setdefault("completionTime", stamp(now))
    set_condition(status, condition("Failed", message), now)


def _is(status: JSON, kind: str) -> bool:
    return any(item["type"] == kind and item["status"] == "True" for item in status.get("conditions") or [])


def _phase(pod: JSON) -> Any:
    return pod.get("status", {}).get("phase")


def _time(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z")
