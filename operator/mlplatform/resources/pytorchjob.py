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


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings) -> Object:
    """PyTorchJob ``<version>-train``: one Master, the other workers beside it, all started by torchrun."""
    replica = {
        "replicas": 1,
        "restartPolicy": "OnFailure",
        "template": pod.template(
            version,
            spec,
            Stage.TRAIN,
            settings,
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
        "metadata": metadata(version, f"{name}-{Stage.TRAIN}", Stage.TRAIN, version=name, stage=Stage.TRAIN),
        "spec": {
            # A number: "auto" would count the host's cores.
            "nprocPerNode": str(spec.training.processes_per_worker),
            "runPolicy": {
                # Pods that ended keep their reports; pods that still run when the job has ended hold GPUs.
                "cleanPodPolicy": "Running",
                "backoffLimit": _backoff_limit(spec.training),
                "suspend": False,
            },
            "pytorchReplicaSpecs": replicas,
        },
    }


def _backoff_limit(training: api.Training) -> int:
    """Container restarts over all pods, at which the Training Operator gives up.

    One pod's death restarts the training in every pod, so each restart of the training counts once a pod.
    """
    return training.max_restarts * training.workers + 1


def read(job: Object) -> workload.Workload:
    """Where the job stands; Succeeded means the Master succeeded."""
    return workload.read(job, succeeded="Succeeded", failed="Failed", suspended=suspended(job))


def suspended(job: Object) -> bool:
    """Whether the job is asked to hold no pods."""
    return bool((job["spec"].get("runPolicy") or {}).get("suspend"))


def wanted(job: Object) -> int:
    """How many pods it should have now."""
    if suspended(job) or read(job).finished:
        return 0
    return sum(int(replica.get("replicas", 1)) for replica in job["spec"]["pytorchReplicaSpecs"].values())


def suspend(*, value: bool) -> Object:
    """The merge patch that stops the job's pods, or lets them run again."""
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": {"runPolicy": {"suspend": value}}}
