"""The Job that deletes the artifacts of a version (`mljobs.forget`).

Called by `mlplatform.plan.forgetting`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mlplatform import api
from mlplatform.resources import errand
from mlplatform.settings import Settings
from mlplatform.snapshot import Object

NAME: Final = "forget"

RESOURCES: Final = api.TrainingResources(cpu="500m", memory="512Mi")
"""Whatever the training had: that may have been too little, and the reason why the version is of no use."""


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings, scheduling: api.Scheduling) -> Object:
    """Job ``<version>-forget``."""
    small = replace(spec, training=replace(spec.training, resources=RESOURCES))
    return errand.render(version, small, settings, scheduling, NAME, {NAME: ["python", "-m", "mljobs.forget"]})
