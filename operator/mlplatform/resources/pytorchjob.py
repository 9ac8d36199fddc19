"""The PyTorchJob that trains a version (Kubeflow Training Operator v1, ``kubeflow.org/v1``).

Called by `mlplatform.stages.train`. The one module that knows this backend: a
renderer and a status reader, so that Trainer v2 is another module like it.
"""

from __future__ import annotations

from mlplatform import api
from mlplatform.contract import Stage
from mlplatform.resources import pod, workload
from mlplatform.resources.metadata import metadata
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, name_of


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings, scheduling: api.Scheduling) -> Object:
    """PyTorchJob ``<version>-train``: one Master, the other workers beside it, all started by torchrun."""
    replica = {
        "replicas": 1,
        "restartPolicy": "OnFailure",
        "template": pod.template(
            version,
            spec,
            Stage.TRAIN,
            settings,
            scheduling,
            container="pytorch",
            command=["torchrun", "-m", "mljobs.train"],
            restart_policy="",
        ),
    }
    replicas = {"Master": replica}
    if spec.training.workers > 1:
        replicas["Worker"] = {**replica, "replicas": spec.training.workers - 1}
    name = name_of(version)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": workload.placed(
            metadata(version, f"{name}-{Stage.TRAIN}", Stage.TRAIN, version=name, stage=Stage.TRAIN), scheduling
        ),
        "spec": {
            # A number: "auto" would count the host's cores.
            "nprocPerNode": str(spec.training.processes_per_worker),
            "runPolicy": {
                # Pods that ended keep their reports; pods that still run when the job has ended hold GPUs.
                "cleanPodPolicy": "Running",
                # No backoffLimit: it sums the restarts of every container of every pod, those of init containers and
                # after evictions among them, and deletes the pods with what they told. `plan.work` counts.
                "suspend": bool(scheduling.queue),
            },
            "pytorchReplicaSpecs": replicas,
        },
    }


def read(job: Object) -> workload.Workload:
    """Where the job stands; Succeeded means the Master succeeded."""
    return workload.read(job, succeeded="Succeeded", failed="Failed", suspended=suspended(job))


def suspended(job: Object) -> bool:
    """Whether the job is asked to hold no pods."""
    return bool((job["spec"].get("runPolicy") or {}).get("suspend"))


def wanted(job: Object) -> int:
    """How many pods it should have now."""
    return 0 if suspended(job) or read(job).finished else gang(job)


def gang(job: Object) -> int:
    """How many pods train together."""
    return sum(int(replica.get("replicas", 1)) for replica in job["spec"]["pytorchReplicaSpecs"].values())


def halt(reason: str) -> Object:
    """The merge patch that takes the job's pods away and keeps its record."""
    return workload.marked(_suspend(value=True), reason)


def resume() -> Object:
    """The merge patch that lets its pods run again."""
    return workload.marked(_suspend(value=False), None)


def _suspend(*, value: bool) -> Object:
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {"runPolicy": {"suspend": value}}}
