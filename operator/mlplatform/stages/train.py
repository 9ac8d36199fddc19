"""Train: fit the model. A PyTorchJob, because it may need many pods.

Listed in `stages.PIPELINE`; called by `mlplatform.plan`.
"""

from __future__ import annotations

from datetime import timedelta

from mlplatform import api
from mlplatform.contract import Summary
from mlplatform.resources import pytorchjob
from mlplatform.settings import Settings
from mlplatform.snapshot import Object
from mlplatform.stages.verdict import Verdict, headline


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings, scheduling: api.Scheduling) -> Object:
    """The PyTorchJob."""
    return pytorchjob.render(version, spec, settings, scheduling)


def deadline(spec: api.ModelVersionSpec) -> timedelta:
    """How long training may work."""
    return spec.training.deadline


def restarts(spec: api.ModelVersionSpec) -> int:
    """How often training may start again after a failure of its own."""
    return spec.training.max_restarts


def judge(summary: Summary, spec: api.ModelVersionSpec) -> Verdict:
    """A finished fit passes; how good it is, audit measures on rows that training has not seen."""
    epochs = summary.details.get("epochs")
    trained = f"trained {epochs} epochs" if epochs is not None else "trained"
    watched = spec.training.early_stopping
    first = [watched.metric] if watched and watched.metric else []
    numbers = headline(summary.metrics, spec.training.task, first, limit=1)
    return Verdict(passed=True, reason="Succeeded", message=f"{trained}: {numbers}" if numbers else trained)
