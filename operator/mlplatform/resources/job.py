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
DEADLINE_SECONDS: Final = 3600
"""These stages take minutes; an hour says that the pod hangs or never starts."""


def render(version: Object, spec: api.ModelVersionSpec, stage: Stage, settings: Settings) -> Object:
    """Job ``<version>-<stage>`` that runs ``python -m mljobs.<stage>``."""
    name = name_of(version)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(version, f"{name}-{stage}", stage, version=name, stage=stage),
        "spec": {
            "backoffLimit": RETRIES,
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "template": pod.template(
                version,
                spec,
                stage,
                settings,
                container=stage.value,
                command=["python", "-m", f"mljobs.{stage}"],
                # Never: each try is a pod of its own, and keeps its termination message.
                restart_policy="Never",
            ),
        },
    }


def read(job: Object) -> workload.Workload:
    """Where the job stands."""
    return workload.read(job, succeeded="Complete", failed="Failed", suspended=stopped(job))


def stopped(job: Object) -> bool:
    """Whether the job may run no pods."""
    return bool(job["spec"].get("parallelism") == 0)


def wanted(job: Object) -> int:
    """How many pods it should have now."""
    return 0 if read(job).finished else int(job["spec"].get("parallelism", 1))


def stop() -> Object:
    """The merge patch that ends a job's retries but keeps its finished pods."""
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": {"parallelism": 0}}
