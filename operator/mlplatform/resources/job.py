"""The batch Job of a stage that runs in one pod: audit, optimize, package.

Called by those stages.
"""

from __future__ import annotations

from typing import Final

from mlplatform import api
from mlplatform.contract import Stage
from mlplatform.resources import pod, workload
from mlplatform.resources.metadata import metadata
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, name_of

RETRIES: Final = 2


def render(
    version: Object, spec: api.ModelVersionSpec, stage: Stage, settings: Settings, scheduling: api.Scheduling
) -> Object:
    """Job ``<version>-<stage>`` that runs ``python -m mljobs.<stage>``."""
    name = name_of(version)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": workload.placed(metadata(version, f"{name}-{stage}", stage, version=name, stage=stage), scheduling),
        "spec": {
            "suspend": bool(scheduling.queue),
            "backoffLimit": RETRIES,
            # An eviction, a drain or a preemption is no failure of the stage.
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": pod.template(
                version,
                spec,
                stage,
                settings,
                scheduling,
                container=stage.value,
                command=["python", "-m", f"mljobs.{stage}"],
                # Never: each try is a pod of its own, and keeps its termination message.
                restart_policy="Never",
            ),
        },
    }


def read(job: Object) -> workload.Workload:
    """Where the job stands."""
    suspended = bool(job["spec"].get("suspend")) or stopped(job)
    return workload.read(job, succeeded="Complete", failed="Failed", suspended=suspended)


def stopped(job: Object) -> bool:
    """Whether the job may run no pods."""
    return bool(job["spec"].get("parallelism") == 0)


def wanted(job: Object) -> int:
    """How many pods it should have now."""
    return int(job["spec"].get("parallelism", 1)) if read(job).phase is workload.Phase.ACTIVE else 0


def stop(reason: str) -> Object:
    """The merge patch that ends a job's retries but keeps its finished pods."""
    return workload.marked({"apiVersion": "batch/v1", "kind": "Job", "spec": {"parallelism": 0}}, reason)
