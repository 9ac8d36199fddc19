"""The KServe ServingRuntime behind a model's versions: how the server of a release is run.

Called by `mlplatform.plan.children`. When a runtime changes, KServe replaces the pods of every InferenceService that
names it, at once and past any rollout. So one is made and never changed: its name ends in a digest of what it says,
another release's is another object, and a version keeps the one it was made with.
"""

from __future__ import annotations

import json
from typing import Final

from mlplatform import contract
from mlplatform.resources.metadata import metadata
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, name_of

SHARED: Final = "mlplatform-torchserve"
"""The ClusterServingRuntime that versions named before there were runtimes of their own, until they are renewed."""

RUNTIME: Final = f"{contract.GROUP}/runtime"
"""Annotation of serving pods: the runtime that they were made from."""


def render(model: Object, settings: Settings) -> Object:
    """ServingRuntime ``<model>-torchserve-<digest>``: what a version that is made now gets."""
    spec = json.loads(settings.serving_runtime)
    image = {"image": settings.serving_image, "imagePullPolicy": settings.image_pull_policy}
    spec["containers"] = [{**container, **image} for container in spec["containers"]]
    name = f"{name_of(model)}-torchserve-{contract.digest(spec)}"
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": metadata(model, name, "serving-runtime"),
        "spec": {**spec, "annotations": {**(spec.get("annotations") or {}), RUNTIME: name}},
    }


def of_pod(pod: Object) -> str:
    """The runtime that a serving pod was made from."""
    return annotations_of(pod).get(RUNTIME, SHARED)
