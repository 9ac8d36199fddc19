"""Prints every image that an installation pulls, one a line: those of the rendered chart that it reads, and the add-ons'.

Run by people who mirror images, as ``make images-list``, and by what renders the chart in its own way:
``helm template … | python charts/images.py | xargs -n1 crane copy …``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

ADDONS = {
    "kserve/kserve-controller:v0.20.0": "KServe",
    "quay.io/brancz/kube-rbac-proxy:v0.18.0": "beside it",
    "kserve/storage-initializer:v0.20.0": "the init container of each serving pod",
    "ghcr.io/kubeflow/training-v1/training-operator:v1-d6eb98e": "the Training Operator 1.9.3",
    "alpine:3.10": "the init container of a training's workers",
}
"""What the add-ons run, and put into the pods of models, as they come: reference → what for. Other releases of them, and
images that were given to them by name, are in their own settings."""

SETTINGS = ("MLPLATFORM_JOBS_IMAGE", "MLPLATFORM_SERVING_IMAGE")
"""Variables of the operator whose values it puts into pods."""
RUNTIME = "MLPLATFORM_SERVING_RUNTIME"
"""Its variable with the pods' spec that models are served by, as JSON."""


def referenced(value: Any) -> Iterator[str]:
    """Every image that an object names, or the operator that it runs would put into pods."""
    if isinstance(value, list):
        for item in value:
            yield from referenced(item)
    elif isinstance(value, dict):
        if value.get("name") in SETTINGS:
            yield value["value"]
        elif value.get("name") == RUNTIME:
            yield from referenced(json.loads(value["value"]))
        elif isinstance(value.get("image"), str):
            yield value["image"]
        for item in value.values():
            yield from referenced(item)


def images(rendered: Iterable[Any]) -> list[str]:
    """What the rendered objects and the add-ons pull, sorted."""
    # A CRD describes fields of that name and has none.
    found = [o for o in rendered if o and o["kind"] != "CustomResourceDefinition"]
    return sorted({*referenced(found), *ADDONS})


def main() -> int:
    """Reads manifests from standard input."""
    print(*images(yaml.safe_load_all(sys.stdin)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
