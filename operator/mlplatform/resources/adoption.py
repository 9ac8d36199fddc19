"""The Job that reads the reports of a version which was restored without its status (`mljobs.adopt`).

Called by `mlplatform.plan.adoption`.
"""

from __future__ import annotations

from typing import Final

from mlplatform import api, contract
from mlplatform.contract import Stage, Summary
from mlplatform.resources import errand
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, status_of

NAME: Final = "adopt"

RESTORED: Final = f"{contract.GROUP}/restored"
"""Annotation of a ModelVersion whose finished stages are to be looked for; it goes when that is done."""


def restored(version: Object) -> bool:
    """Whether the version came back without its records, so that its reports are looked for."""
    return RESTORED in annotations_of(version)


def mark(version: Object) -> dict[str, str]:
    """What a version that is adopted is told: to look for its reports, if it has no record of its own."""
    return {} if status_of(version).get("stages") else {RESTORED: "true"}


def done() -> Object:
    """The merge patch for a version whose reports have been looked for."""
    return {"metadata": {"annotations": {RESTORED: None}}}


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings, scheduling: api.Scheduling) -> Object:
    """Job ``<version>-adopt``."""
    commands = {stage.value: ["python", "-m", "mljobs.adopt", stage.value] for stage in Stage}
    return errand.render(version, spec, settings, scheduling, NAME, commands)


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
