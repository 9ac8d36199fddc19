"""Where pods run: what the platform says, and what a model says in its place.

Called by the renderers of pods, `mlplatform.plan.version` and, at start, `mlplatform.main`.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from typing import Any, Final, TypeVar

from mlplatform import api, contract
from mlplatform.settings import Settings, SettingsError
from mlplatform.snapshot import Object, annotations_of

P = TypeVar("P", bound=api.PodScheduling)

ASKED: Final = f"{contract.GROUP}/scheduling"
"""Annotation with what pods were asked to be scheduled by; absent for nothing. Only when that changes do pods."""

GPU: Final = "nvidia.com/gpu"


def of_stages(model: api.Scheduling, settings: Settings) -> api.Scheduling:
    """Of the stages' pods."""
    platform: api.Scheduling = _read(api.Scheduling, "jobs", settings.jobs_scheduling)
    return _joined(platform, model)


def of_serving(model: api.PodScheduling, settings: Settings) -> api.PodScheduling:
    """Of the serving pods."""
    platform: api.PodScheduling = _read(api.PodScheduling, "serving", settings.serving_scheduling)
    return _joined(platform, model)


def check(settings: Settings) -> None:
    """Looks at the platform's own, before anything rests on it.

    Raises:
        SettingsError: It cannot be used.
    """
    of_stages(api.Scheduling(), settings)
    of_serving(api.PodScheduling(), settings)


def text(scheduling: api.PodScheduling) -> str:
    """The value of `ASKED`; empty for nothing. A queue is no matter of the pods, and has a label of its own."""
    said = api.canonical(scheduling)
    said.pop("queue", None)
    return json.dumps(said, sort_keys=True, separators=(",", ":")) if said else ""


def asked(live: Object) -> str:
    """What a live object says that it was asked."""
    return annotations_of(live).get(ASKED, "")


def marked(metadata: Object, scheduling: api.PodScheduling) -> Object:
    """``metadata`` of an object whose pods are scheduled by that."""
    said = text(scheduling)
    if not said:
        return metadata
    return {**metadata, "annotations": {**(metadata.get("annotations") or {}), ASKED: said}}


POD_FIELDS: Final = (
    "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName", "runtimeClassName",
)  # fmt: skip
META_FIELDS: Final = ("labels", "annotations")


def fields(scheduling: api.PodScheduling, names: tuple[str, ...] = POD_FIELDS) -> Object:
    """Those that say something, as a pod has them."""
    said = api.canonical(scheduling)
    return {name: said[name] for name in names if name in said}


def _joined(platform: P, model: P) -> P:
    """What a model says stands in place of what the platform says; maps are joined key by key."""
    found: dict[str, Any] = {}
    for f in dataclasses.fields(model):
        theirs, own = getattr(platform, f.name), getattr(model, f.name)
        found[f.name] = {**theirs, **own} if isinstance(own, dict) else own or theirs
    return dataclasses.replace(model, **found)


@cache
def _read(cls: type[P], role: str, text: str) -> P:
    where = f"MLPLATFORM_{role.upper()}_SCHEDULING (the chart's scheduling.{role})"
    try:
        found = api.decode(cls, json.loads(text), f"scheduling.{role}")
    except (ValueError, api.SpecError) as error:
        raise SettingsError(f"{where} cannot be used: {error}") from error
    if mistakes := api.scheduling_problems(found, f"scheduling.{role}"):
        raise SettingsError(f"{where} cannot be used: {'; '.join(mistakes)}")
    return found
