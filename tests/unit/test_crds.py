"""The CRDs in manifests/crd/ and the dataclasses in mlplatform.api say the same, field by field, both ways."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import crds
import pytest
import yaml

from mlplatform import api, contract

PAIRS: list[tuple[str, str, type]] = [
    ("mlmodels", "spec", api.MLModelSpec),
    ("mlmodels", "status", api.MLModelStatus),
    ("modelversions", "spec", api.ModelVersionSpec),
    ("modelversions", "status", api.ModelVersionStatus),
]
SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def differences(cls: type, node: dict[str, Any], path: str) -> Iterator[str]:
    """Every way in which a schema of type object and a dataclass disagree, each with its path."""
    fields = {api.json_name(f.name): f for f in dataclasses.fields(cls)}
    properties = node.get("properties", {})
    for name in sorted(properties.keys() - fields.keys()):
        yield f"{path}.{name}: in the CRD, not in {cls.__name__}"
    for name in sorted(fields.keys() - properties.keys()):
        yield f"{path}.{name}: in {cls.__name__}, not in the CRD"
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if required != set(node.get("required", [])):
        yield f"{path}: required {sorted(node.get('required', []))} in the CRD, {sorted(required)} in {cls.__name__}"
    hints = typing.get_type_hints(cls)
    for name in fields.keys() & properties.keys():
        f = fields[name]
        yield from type_differences(hints[f.name], properties[name], f"{path}.{name}")
        if path.startswith("spec"):
            yield from default_differences(f, properties[name], f"{path}.{name}")
        elif "default" in properties[name]:
            yield f"{path}.{name}: status is written whole; it takes no default"


def type_differences(hint: Any, node: dict[str, Any], path: str) -> Iterator[str]:
    """How a type hint and a schema node disagree."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        yield from type_differences(next(a for a in args if a is not types.NoneType), node, path)
        return
    expected: dict[str, Any]
    if dataclasses.is_dataclass(hint):
        expected = {"type": "object"}
        yield from differences(typing.cast("type", hint), node, path)
    elif origin is Literal:
        expected = {"type": "string", "enum": list(args)}
    elif origin is tuple:
        expected = {"type": "array"}
        yield from type_differences(args[0], node.get("items", {}), f"{path}[]")
    elif origin is dict:
        expected = {"type": "object"}
        if args[1] is Any:
            expected["additionalProperties"] = {"x-kubernetes-preserve-unknown-fields": True, "nullable": True}
        else:
            yield from type_differences(args[1], node.get("additionalProperties", {}), f"{path}.*")
    elif hint is timedelta:
        expected = {"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"}
    else:
        expected = {"type": SCALARS[hint]}
    actual = {key: node.get(key) for key in expected}
    if isinstance(actual.get("enum"), list):
        actual["enum"], expected["enum"] = sorted(actual["enum"]), sorted(expected["enum"])
    if actual != expected:
        yield f"{path}: {expected} in the dataclass, {actual} in the CRD"


def default_differences(f: dataclasses.Field[Any], node: dict[str, Any], path: str) -> Iterator[str]:
    """How the defaults disagree.

    Empty ones are left out of the CRD, and those that an older operator would refuse; a dataclass's is ``{}`` and filled in
    below.
    """
    default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    if default is dataclasses.MISSING or default is None:
        expected: Any = ...
    elif dataclasses.is_dataclass(default):
        expected = {}
    else:
        expected = api.encode(default)
        expected = ... if expected in ("", [], {}) or f.metadata.get("unfilled") else expected
    actual = node.get("default", ...)
    if (type(actual), actual) != (type(expected), expected):
        yield f"{path}: default {expected!r} in the dataclass, {actual!r} in the CRD (... is none)"


@pytest.mark.parametrize("plural", ["mlmodels", "modelversions"])
def test_an_operator_of_before_targets_meets_none_that_nobody_asked_for(plural: str) -> None:
    """While a chart is upgraded it reads objects that the new schema has filled in, and refuses what it does not know."""
    filled = crds.with_defaults(crds.schema(plural, "spec"), {"data": {"uri": "x", "label": "y"}, "training": {}})
    assert "target" not in filled["data"]


@pytest.mark.parametrize(("plural", "section", "cls"), PAIRS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_crd_and_dataclass_agree(plural: str, section: str, cls: type) -> None:
    assert list(differences(cls, crds.schema(plural, section), section)) == []


@pytest.mark.parametrize("cls", [api.MLModelSpec, api.ModelVersionSpec])
def test_the_servers_defaults_decode_to_the_dataclasses_defaults(cls: type) -> None:
    plural = "mlmodels" if cls is api.MLModelSpec else "modelversions"
    given: dict[str, Any] = {"data": {"uri": "s3://a/", "label": "y"}}
    given |= {} if cls is api.MLModelSpec else {"model": "m", "sequence": 1}
    assert api.decode(cls, crds.with_defaults(crds.schema(plural, "spec"), given)) == api.decode(cls, given)


def test_a_version_repeats_the_models_sections_word_for_word() -> None:
    model, snapshot = (crds.schema(plural, "spec")["properties"] for plural in ("mlmodels", "modelversions"))
    for section in api.VERSIONED:
        assert snapshot[section] == model[section], f"spec.{section} differs between the two CRDs"


@pytest.mark.parametrize("plural", ["mlmodels", "modelversions"])
def test_every_spec_field_has_a_description(plural: str) -> None:
    bare = [
        path
        for path, node in crds.walk(crds.schema(plural, "spec"), "spec")
        if not path.endswith(("[]", ".*")) and not node.get("description")
    ]
    assert bare == [], "kubectl explain would show nothing for these"


@pytest.mark.parametrize("plural", ["mlmodels", "modelversions"])
def test_a_descriptions_default_is_the_default(plural: str) -> None:
    wrong = []
    for path, node in crds.walk(crds.schema(plural, "spec"), "spec"):
        said = re.search(r"Default: ([^,;]+?)\.?$", node.get("description", ""))
        default = node.get("default")
        if said and isinstance(default, (str, int, float)) and said[1].strip('"') != str(default).replace("F", "f"):
            wrong.append(f"{path}: says {said[1]!r}, is {default!r}")
    assert wrong == []


@pytest.mark.parametrize("plural", ["mlmodels", "modelversions"])
def test_every_bound_that_a_rules_cost_rests_on_is_there(plural: str) -> None:
    """Kubernetes refuses a CRD whose rules could cost too much; unbounded lists, maps and strings are how that comes."""
    unbounded = []
    for path, node in crds.walk(crds.schema(plural, "spec"), "spec"):
        kind = node.get("type")
        free = node.get("additionalProperties", {}).get("x-kubernetes-preserve-unknown-fields")
        missing = (
            (kind == "array" and "maxItems" not in node)
            or (kind == "object" and "additionalProperties" in node and "maxProperties" not in node)
            or (kind == "string" and "maxLength" not in node and "enum" not in node)
            or (kind in ("integer", "number") and "maximum" not in node and "gates[]" not in path)
        )
        if missing and not free and path != "spec.sequence":
            unbounded.append(path)
    assert unbounded == []


def version_schema(plural: str) -> dict[str, Any]:
    """The whole schema of a kind."""
    return dict(crds.version(plural)["schema"]["openAPIV3Schema"])


def test_names_leave_room_for_the_longest_child() -> None:
    name = version_schema("mlmodels")["properties"]["metadata"]["properties"]["name"]
    version = version_schema("modelversions")["properties"]["metadata"]["properties"]["name"]
    hash_suffix = len(api.version_name("", api.MLModelSpec(data=api.Data(uri="s3://a", label="y"))))
    assert name["maxLength"] == contract.MODEL_NAME_LIMIT
    assert version["maxLength"] == contract.MODEL_NAME_LIMIT + hash_suffix


@pytest.mark.parametrize("plural", ["mlmodels", "modelversions"])
def test_failure_classes_are_listed(plural: str) -> None:
    described = crds.schema(plural, "status")["properties"]["failure"]["properties"]["class"]["description"]
    assert re.findall(r"[A-Z]\w+", described) == [str(c) for c in contract.FailureClass]


@pytest.mark.parametrize(
    ("plural", "columns", "short"),
    [
        ("mlmodels", ["Ready", "Stage", "Version", "Weight", "Age"], "mlm"),
        ("modelversions", ["Ready", "Stage", "Model", "Seq", "ROC-AUC", "Age"], "mlv"),
    ],
)
def test_what_kubectl_get_shows(plural: str, columns: list[str], short: str) -> None:
    shown = [c["name"] for c in crds.version(plural)["additionalPrinterColumns"] if c.get("priority", 0) == 0]
    names = crds.crd(plural)["spec"]["names"]
    assert (shown, names["shortNames"], names["categories"]) == (columns, [short], ["mlplatform"])


@pytest.mark.parametrize("plural", ["mlmodels", "modelversions"])
def test_printer_columns_point_at_fields_that_exist(plural: str) -> None:
    for column in crds.version(plural)["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(.*?\)\]", "[]", column["jsonPath"]).lstrip(".")
        if path.startswith("metadata."):
            continue
        section = path.split(".")[0]
        known = {p for p, _ in crds.walk(crds.schema(plural, section), section)}
        assert path in known or re.sub(r"\.\w+$", ".*", path) in known, f"{column['name']}: no field {path}"


SAMPLES = sorted(crds.FOLDER.parent.glob("samples/*.yaml"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: p.name)
def test_samples_are_sound(path: Path) -> None:
    sample = yaml.safe_load(path.read_text())
    spec = api.decode(api.MLModelSpec, sample["spec"])
    assert api.problems(spec, sample["metadata"]["name"]) == []


def test_the_complete_sample_shows_every_field() -> None:
    (path,) = (p for p in SAMPLES if p.stem == "complete")
    shown = set(given_paths(yaml.safe_load(path.read_text())["spec"], "spec"))
    known = {p for p, _ in crds.walk(crds.schema("mlmodels", "spec"), "spec") if not p.endswith(("[]", ".*"))}
    # Kubernetes' own structures are its documentation's to show, what two sections share is shown in one, and of fields that
    # exclude each other there is one.
    hidden = r"\.serving\.scheduling\.|\.affinity\.|\.labelSelector\.|\.split\.by\.(group|key)$|\.threshold\.value$|\.data\.labels$"
    known = {p for p in known if not re.search(hidden, p)}
    assert known - shown == set()


def given_paths(value: Any, path: str) -> Iterator[str]:
    """Paths that a value has, written as `crds.walk` writes them."""
    yield path
    for name, item in value.items() if isinstance(value, dict) else ():
        yield from given_paths(item, f"{path}.{name}")
    for item in value if isinstance(value, list) else ():
        yield from given_paths(item, f"{path}[]")
