"""Reading of the CRD files for tests: schemas, defaults and rules as an API server applies them.

Used by test_crds.py and test_crds_rules.py, by tests/apiserver and by the chart's tests. The rules run in Google's
CEL library, so a mistake in one is found without an API server that evaluates rules (Kubernetes 1.25 and later).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from cel_expr_python import cel

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


@cache
def _environment() -> cel.Env:
    sorted_overload = cel.Overload(
        "list_isSorted", return_type=cel.Type.BOOL, parameters=[cel.Type.LIST], is_member=True
    )
    return cel.NewEnv(
        variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN},
        functions=[cel.FunctionDecl("isSorted", [sorted_overload])],  # of Kubernetes' own CEL list library
        function_impls={"list_isSorted": lambda items: list(items) == sorted(items)},
    )


@cache
def _program(rule: str) -> cel.Expression:
    return _environment().compile(rule)


def broken_rules(node: dict[str, Any], value: Any, old: Any = None) -> list[str]:
    """Messages of the rules that `value` breaks, at any depth.

    A rule that names ``oldSelf`` runs only when there is an old value, as in the API server; items of a list map are
    matched by their keys.
    """
    found = []
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        passed = _program(rule["rule"]).eval(data={"self": value, "oldSelf": old}).value()
        if not isinstance(passed, bool):
            raise TypeError(f"the rule {rule['rule']!r} cannot be evaluated: {passed}")
        if not passed:
            found.append(rule["message"])
    if isinstance(value, dict):
        extra = node.get("additionalProperties")
        for name, item in value.items():
            child = node.get("properties", {}).get(name, extra)
            if isinstance(child, dict):
                found += broken_rules(child, item, old.get(name) if old else None)
    elif isinstance(value, list):
        keys = node.get("x-kubernetes-list-map-keys", [])
        by_key = {tuple(item[key] for key in keys): item for item in old or []} if keys else {}
        for item in value:
            old_item = by_key.get(tuple(item[key] for key in keys)) if keys else None
            found += broken_rules(node["items"], item, old_item)
    return found
