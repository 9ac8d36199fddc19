"""Reading of the CRD files for tests: schemas, defaults as an API server fills them in, and what rules say.

Used by test_crds.py and test_crds_rules.py, by tests/apiserver and by the chart's tests.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "manifests/crd"


@cache
def crd(plural: str) -> dict[str, Any]:
    """The CustomResourceDefinition `plural`, e.g. ``mlmodels``."""
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"mlplatform.dev_{plural}.yaml").read_text())
    return loaded


def version(plural: str) -> dict[str, Any]:
    """Its one version: schema, subresources, printer columns."""
    (only,) = crd(plural)["spec"]["versions"]
    return dict(only)


def schema(plural: str, section: str) -> dict[str, Any]:
    """Schema of ``spec`` or ``status``."""
    return dict(version(plural)["schema"]["openAPIV3Schema"]["properties"][section])


def walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema node with its path, e.g. ``spec.gates[].metric``; the root first."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from walk(node["additionalProperties"], f"{path}.*")


@cache
def rules(plural: str) -> tuple[str, ...]:
    """Every rule of a CRD in the words that a user reads: its path, of a list's first item, and its message."""
    return tuple(
        f"{path.removeprefix('.').replace('[]', '[0]')}{rule.get('fieldPath', '')}: {rule['message']}"
        for path, node in walk(version(plural)["schema"]["openAPIV3Schema"], "")
        for rule in node.get("x-kubernetes-validations", [])
    )


def with_defaults(node: dict[str, Any], value: Any) -> Any:
    """`value` as the API server stores it: absent fields that have a default get it, parents before children."""
    if isinstance(value, dict) and "properties" in node:
        filled = dict(value)
        for name, child in node["properties"].items():
            if name not in filled and "default" in child:
                filled[name] = copy.deepcopy(child["default"])
            if name in filled:
                filled[name] = with_defaults(child, filled[name])
        return filled
    if isinstance(value, list) and "items" in node:
        return [with_defaults(node["items"], item) for item in value]
    return value
