"""The Job that reads the reports of a version which was restored without its status (`mljobs.adopt`).

Called by `mlplatform.plan.adoption`. The operator has no credentials of the store. The stages' containers run one after
the other, so that the pod needs no more room than one of them, and each has a termination message of its own.
"""

from __future__ import annotations

from typing import Final

from mlplatform import api, contract
from mlplatform.contract import Stage, Summary
from mlplatform.resources import job
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, name_of, status_of

NAME: Final = "adopt"
"""Stands where a stage's name stands: in the Job's name and in its pods' label."""

RESTORED: Final = f"{contract.GROUP}/restored"
"""Annotation of a ModelVersion whose finished stages are to be looked for; it goes when that is done."""


def restored(version: Object) -> bool:
    """Whether the version came back without its records, so that its reports are looked for."""
    return RESTORED in annotations_of(version)


def mark(version: Object) -> dict[str, str]:
    """What a version that is adopted is told: to look for its reports, if it has no record of its own."""
    return {} if status_of(version).get("stages") else {RESTORED: "true"}


DEADLINE_SECONDS: Final = 3600
"""Reading takes seconds; what hangs is asked again with new pods."""


def done() -> Object:
    """The merge patch for a version whose reports have been looked for."""
    return {"metadata": {"annotations": {RESTORED: None}}}


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings) -> Object:
    """Job ``<version>-adopt``."""
    manifest = job.render(version, spec, Stage.PACKAGE, settings, api.Scheduling())
    labels = {**manifest["metadata"]["labels"], "app.kubernetes.io/component": NAME, contract.LABEL_STAGE: NAME}
    template = manifest["spec"]["template"]
    (container,) = template["spec"]["containers"]
    *before, last = (
        {**container, "name": stage.value, "command": ["python", "-m", "mljobs.adopt", stage.value]} for stage in Stage
    )
    pod = {
        "metadata": {**template["metadata"], "labels": {**template["metadata"]["labels"], **labels}},
        "spec": {**template["spec"], "initContainers": before, "containers": [last]},
    }
    return {
        **manifest,
        "metadata": {**manifest["metadata"], "name": f"{name_of(version)}-{NAME}", "labels": labels},
        "spec": {**manifest["spec"], "activeDeadlineSeconds": DEADLINE_SECONDS, "template": pod},
    }


def answers(pods: tuple[Object, ...]) -> dict[Stage, Summary] | None:
    """What the containers of a pod that has come to its end have said of each stage; None while there is no such pod."""
    for pod in pods:
        status = status_of(pod)
        containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        ended = {c["name"]: (c.get("state") or {}).get("terminated") or {} for c in containers}
        try:
            return {
                stage: Summary.from_json(ended[stage]["message"]) for stage in Stage if not ended[stage]["exitCode"]
            }
        except (KeyError, ValueError, TypeError):
            continue
    return None
