"""What the API server would say of an MLModel, without one: the CRD's rules, in the server's words.

Called by `mlplatform.standalone.request`, which refuses a manifest on a laptop as `kubectl apply` would refuse it.
The words are those of Kubernetes 1.36, its oddities included; tests/apiserver/test_admission.py holds them against a
real server's. What the server would say in a second answer, because it names unknown fields first and nothing beside
them, is said at once.

The rules that span fields (``x-kubernetes-validations``) are written in CEL, which nothing here can read.
`api.problems` checks the same rules in the same words, to which tests/unit/test_crds_rules.py holds it.
"""

from __future__ import annotations

import copy
import json
import math
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import Any, Final

import yaml

from mlplatform import api, contract

KIND: Final = "MLModel"

KEYWORDS: Final = frozenset(
    {
        "type", "format", "nullable", "enum", "default", "required", "properties", "additionalProperties",
        "maxProperties", "items", "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum",
        "exclusiveMinimum", "exclusiveMaximum", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys", "x-kubernetes-validations",
        "description",
    }
)  # fmt: skip
"""Keywords of a schema that are obeyed here, and one that asks for nothing. A CRD with another needs code for it."""

FORMATS: Final = {"int32": 31, "int64": 63}
"""Formats that bound a number: how many bits it has beside its sign."""

_METADATA: Final = (
    "name", "namespace", "labels", "annotations", "generateName", "finalizers", "ownerReferences", "uid",
    "generation", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    "managedFields", "selfLink",
)  # fmt: skip
"""The fields of ObjectMeta, which no CRD lists."""

_SUBDOMAIN: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_SUBDOMAIN_LIMIT: Final = 253
_SOME_TIME: Final = r"^(?=.*[1-9])([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
"""A duration that is not zero."""

_INT64: Final = 2**63
_PLAIN: Final = range(-4, 6)
"""Powers of ten of the numbers that Go writes without an exponent."""

_KINDS: Final[dict[type, str]] = {
    type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object",
}  # fmt: skip
_GO_KINDS: Final[dict[type, str]] = {
    bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Mistake:
    """One line of the server's.

    Attributes:
        path: The field, as the server writes it.
        words: What is wrong with it.
        blocks: Whether the server then asks no rule that spans fields.
    """

    path: str
    words: str
    blocks: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.words}"


_NOT_CHECKED: Final = (
    "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)


def refusals(manifest: object) -> list[str]:
    """Why `kubectl apply` would refuse a manifest, a line each; empty when it would be stored.

    One step of the server's comes after the other; within one, it walks maps in no order, and here by their keys.

    Args:
        manifest: What a YAML parser made of the file: a mapping, if it is an MLModel.
    """
    if manifest is None:
        return ["no objects passed to apply"]
    if not isinstance(manifest, dict):
        return ["invalid object to validate"]
    if no_json := list(_no_json(manifest, "")):
        return no_json
    given = _json(manifest)
    if other_kind := list(_other_kind(given)):
        return other_kind
    unread = list(_unread(given.get("metadata")))
    unknown = [f'unknown field "{path}"{api.suggest(key, known)}' for path, key, known in _unknown_fields(given)]
    kept = stored(given)
    if unread:
        kept["metadata"] = {}
    mistakes = [] if unread else list(_name(kept["metadata"]))
    mistakes += [*_values(_schema(), kept, ""), *_twice(_schema(), kept, "")]
    blocked = any(mistake.blocks for mistake in mistakes)
    rules = [_NOT_CHECKED] if blocked else _rules(kept)
    return list(dict.fromkeys([*unread, *unknown, *map(str, mistakes), *rules]))


def stored(manifest: dict[str, Any]) -> dict[str, Any]:
    """The MLModel as the API server would keep it: defaults filled in, unknown fields, nulls and the status dropped.

    What `refusals` lets pass, `api.decode` reads in this form only: to the server, 2.0 is an integer.

    Args:
        manifest: A mapping.
    """
    given = _json(manifest)
    metadata = given.pop("metadata", None)
    kept: dict[str, Any] = _kept(_schema(), given)
    kept.pop("status", None)  # Even its default: nobody has looked at the model yet.
    if isinstance(metadata, dict):
        metadata = {key: value for key, value in metadata.items() if key in _METADATA and value != ""}
    return {**kept, "metadata": metadata or {}}


@cache
def _schema() -> dict[str, Any]:
    """The schema of the CRD."""
    text = (resources.files("mlplatform") / "crd" / "mlplatform.dev_mlmodels.yaml").read_text(encoding="utf-8")
    # The one in C takes a tenth of the time, but is not part of every PyYAML.
    crd = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  both are safe loaders
    (version,) = crd["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


# Before any schema is asked: what kubectl and the server read.


def _json(value: Any) -> Any:
    """The value as the server reads it: in the types of JSON, without the nulls that kubectl takes out of maps."""
    if isinstance(value, dict):
        filled = {key: item for key, item in value.items() if item is not None}
        return {key if isinstance(key, str) else _shown(key): _json(item) for key, item in filled.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        whole = -_INT64 <= value < _INT64 and value == int(value)
        return int(value) if whole else float(value)
    return str(value)


def _no_json(value: Any, path: str) -> Iterator[str]:
    """Numbers that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        word = "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
        yield f"error converting YAML to JSON: json: unsupported value: {word} ({path})"
    for at, item, _ in _items({}, value, path):
        yield from _no_json(item, at)


def _other_kind(given: dict[str, Any]) -> Iterator[str]:
    for key, wanted in (("apiVersion", contract.API_VERSION), ("kind", KIND)):
        value = given.get(key)
        if not value:
            yield f"{key} not set"
        elif value != wanted:
            yield f"{key}: Invalid value: {_shown(value)}: must be {wanted}"


def _unread(metadata: Any) -> Iterator[str]:
    """What kubectl cannot read as the types of ObjectMeta; in parentheses, what it leaves to be guessed."""
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        yield _unlike(metadata, "metadataOnlyObject.metadata", "v1.ObjectMeta")
        return
    for key in ("name", "namespace", "generateName"):
        if not isinstance(metadata.get(key, ""), str):
            yield _unlike(metadata[key], f"ObjectMeta.metadata.{key}", "string")
    for key in ("labels", "annotations"):
        texts = metadata.get(key, {})
        if not isinstance(texts, dict):
            yield _unlike(texts, f"ObjectMeta.metadata.{key}", "map[string]string")
            continue
        for word, value in texts.items():
            if not isinstance(value, str):
                yield f"{_unlike(value, f'ObjectMeta.metadata.{key}', 'string')} ({word}: put it in quotes)"
    if not metadata.get("name") and metadata.get("generateName"):
        yield f"from {metadata['generateName']}: cannot use generate name with apply"


def _unlike(value: Any, field: str, wanted: str) -> str:
    return f"json: cannot unmarshal {_GO_KINDS[type(value)]} into Go struct field {field} of type {wanted}"


def _name(metadata: dict[str, Any]) -> Iterator[_Mistake]:
    """Kubernetes' own rules of a name; the CRD's are in its schema."""
    name = metadata.get("name", "")
    if not name:
        yield _Mistake("metadata.name", "Required value: name or generateName is required", blocks=True)
        return
    said = f"Invalid value: {_shown(name)}:"
    if len(name.encode()) > _SUBDOMAIN_LIMIT:
        yield _Mistake("metadata.name", f"{said} must be no more than {_SUBDOMAIN_LIMIT} characters")
    if not re.fullmatch(_SUBDOMAIN, name):
        yield _Mistake(
            "metadata.name",
            f"{said} a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
            f"and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation "
            f"is '{_SUBDOMAIN}')",
        )


# What the schema knows, and what it fills in.


def _items(node: dict[str, Any], value: Any, path: str) -> Iterator[tuple[str, Any, dict[str, Any] | None]]:
    """What is in an object or a list: its path, itself, and its schema, which is None for an unknown field."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield f"{path}[{i}]", item, node.get("items", {})
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            known = node.get("properties", {}).get(key, node.get("additionalProperties"))
            yield f"{path}.{key}" if path else str(key), value[key], known


def _unknown_fields(given: dict[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Path, name and known neighbours of every field that is none, in the server's order."""
    metadata = given.get("metadata")
    if isinstance(metadata, dict):
        for key in sorted(metadata.keys() - set(_METADATA)):
            yield f"metadata.{key}", key, list(_METADATA)
    yield from sorted(_pruned(_schema(), {key: value for key, value in given.items() if key != "metadata"}, ""))


def _pruned(node: dict[str, Any], value: Any, path: str) -> Iterator[tuple[str, str, list[str]]]:
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return
    for at, item, known in _items(node, value, path):
        if known is None:
            yield at, at[len(path) :].removeprefix("."), list(node.get("properties", {}))
        else:
            yield from _pruned(known, item, at)


def _kept(node: dict[str, Any], value: Any) -> Any:
    """A value without unknown fields, and with the defaults of what is absent."""
    if node.get("x-kubernetes-preserve-unknown-fields"):
        return value
    if isinstance(value, list):
        return [_kept(node.get("items", {}), item) for item in value]
    if not isinstance(value, dict):
        return value
    fields, others = node.get("properties", {}), node.get("additionalProperties")
    kept = {}
    for key, item in value.items():
        known = fields.get(key, others)
        if known is not None:
            kept[key] = _kept(known, item)
    for key, field in fields.items():
        if key not in kept and "default" in field:
            kept[key] = _kept(field, copy.deepcopy(field["default"]))
    return kept


# What a value must be.


def _values(node: dict[str, Any], value: Any, path: str) -> Iterator[_Mistake]:
    """Every mistake of a value and of what is in it."""
    yield from _type(node, value, path)
    if isinstance(value, str):
        yield from _string(node, value, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from _number(node, value, path)
    elif isinstance(value, (list, dict)):
        yield from _size(node, value, path)
    if "enum" in node and value not in node["enum"]:
        supported = ", ".join(_shown(word) for word in node["enum"])
        yield _Mistake(path, f"Unsupported value: {_shown(value)}: supported values: {supported}", blocks=True)
    for at, item, known in _items(node, value, path):
        yield from _values(known or {}, item, at)
    if isinstance(value, dict):
        for key in node.get("required", []):
            if key not in value:
                yield _Mistake(f"{path}.{key}" if path else key, "Required value", blocks=True)


def _type(node: dict[str, Any], value: Any, path: str) -> Iterator[_Mistake]:
    wanted, kind = node.get("type"), _KINDS[type(value)]
    if wanted in {None, kind} or (wanted, kind) == ("number", "integer") or (value is None and node.get("nullable")):
        return
    if "format" in node and kind in {"boolean", "number", "object"}:
        # It compares formats then, and only a number's has a name.
        wanted, kind = node["format"], "float64" if kind == "number" else ""
    yield _Mistake(path, f'Invalid value: "{kind}": {path} in body must be of type {wanted}: "{kind}"', blocks=True)


def _string(node: dict[str, Any], value: str, path: str) -> Iterator[_Mistake]:
    """The first of its bounds that a string breaks."""
    said = f"Invalid value: {_shown(value)}: {path} in body should"
    if len(value) > node.get("maxLength", math.inf):
        yield _Mistake(path, f"Too long: may not be more than {_count(node['maxLength'], 'byte')}", blocks=True)
    elif len(value) < node.get("minLength", 0):
        yield _Mistake(path, f"{said} be at least {node['minLength']} chars long")
    elif not _matches(node.get("pattern", ""), value):
        yield _Mistake(path, f"{said} match '{node['pattern']}'")


def _matches(pattern: str, value: str) -> bool:
    """Whether it does in Go, where ``$`` is the end of the text, never of a line, and a class is one of ASCII."""
    return re.search(re.sub(r"(?<!\\)\$", r"\\Z", pattern), value, re.ASCII) is not None


def _number(node: dict[str, Any], value: float, path: str) -> Iterator[_Mistake]:
    bits = FORMATS.get(node.get("format", ""))
    if bits is not None and not (isinstance(value, int) and -(2**bits) <= value < 2**bits):
        words = f"Checked value must be of type {node['type']} with format {node['format']} in {path}"
        yield _Mistake("<nil>", f'Invalid value: "": {words}')
    for side, beyond, word in (("minimum", operator.lt, "greater"), ("maximum", operator.gt, "less")):
        if side not in node:
            continue
        # The server holds an integer against the integer part of a bound, whatever the field's type.
        bound = type(value)(node[side])
        exclusive = node.get(f"exclusive{side.capitalize()}", False)
        if beyond(value, bound) or (exclusive and value == bound):
            than = f"{word} than{'' if exclusive else ' or equal to'} {_shown(bound)}"
            yield _Mistake(path, f"Invalid value: {_shown(value)}: {path} in body should be {than}")


def _size(node: dict[str, Any], value: list[Any] | dict[str, Any], path: str) -> Iterator[_Mistake]:
    if isinstance(value, list) and len(value) < node.get("minItems", 0):
        words = f"{path} in body should have at least {node['minItems']} items"
        yield _Mistake(path, f"Invalid value: {len(value)}: {words}")
    limit = node.get("maxItems" if isinstance(value, list) else "maxProperties", math.inf)
    if len(value) > limit:
        yield _Mistake(path, f"Too many: {len(value)}: must have at most {_count(limit, 'item')}", blocks=True)


def _twice(node: dict[str, Any], value: Any, path: str) -> Iterator[_Mistake]:
    """What a set, or a list that is a map, has more than once: told where it comes for the second time."""
    keys: list[Any] = []
    if isinstance(value, list) and node.get("x-kubernetes-list-type") == "set":
        keys = value
    elif isinstance(value, list) and node.get("x-kubernetes-list-type") == "map":
        (name,) = node["x-kubernetes-list-map-keys"]
        for i, item in enumerate(value):
            if not isinstance(item, (dict, type(None))):
                words = f"Invalid value: {_shown(item)}: must be an object for an array of list-type map"
                yield _Mistake(f"{path}[{i}]", words)
                return
        keys = [{name: item[name]} if item and name in item else {} for item in value]
    shown = [_shown(key) for key in keys]
    for i, word in enumerate(shown):
        if shown[:i].count(word) == 1:
            yield _Mistake(f"{path}[{i}]", f"Duplicate value: {word}")
    for at, item, known in _items(node, value, path):
        yield from _twice(known or {}, item, at)


# What takes two fields.


def _rules(kept: dict[str, Any]) -> list[str]:
    """What the CRD's rules say of an object whose values are of the right types, if not within their bounds."""
    found = []
    for problem in api.problems(_decoded(kept), kept["metadata"].get("name", "")):
        path, _, message = problem.partition(": ")
        shows = _shows_value().get((re.sub(r"\[\d+\]", "[]", path), message))
        if shows is not None:
            value = f"{_shown(_at(kept, path))}: " if shows else ""
            found.append(f"{path}: Invalid value: {value}{message}")
    return sorted(found)


@cache
def _shows_value() -> dict[tuple[str, str], bool]:
    """The CRD's rules, by path and message: whether the server shows the value, as it does where that is a scalar."""
    return {
        (f"{path}{rule.get('fieldPath', '')}", rule["message"]): node["type"] not in {"object", "array"}
        for path, node in _walk(_schema(), "")
        for rule in node.get("x-kubernetes-validations", [])
    }


def _walk(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for key, field in node.get("properties", {}).items():
        yield from _walk(field, f"{path}.{key}" if path else key)
    if "items" in node:
        yield from _walk(node["items"], f"{path}[]")


def _decoded(kept: dict[str, Any]) -> api.MLModelSpec:
    """The spec. A duration that is none stands in as one that the CRD's rules judge alike."""
    kept = copy.deepcopy(kept)
    while True:
        try:
            return api.decode(api.MLModelSpec, kept["spec"])
        except api.SpecError as error:
            parent, _, key = str(error).partition(":")[0].rpartition(".")
            section = _at(kept, parent)
            section[key] = "1s" if _matches(_SOME_TIME, section[key]) else "0s"


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[key]
    return value


# Words.


def _shown(value: Any) -> str:
    """A value as Go prints it into an error."""
    if isinstance(value, float):
        exact = Decimal(repr(value)).normalize()
        if exact.adjusted() in _PLAIN or not exact:
            return f"{exact:f}"
        digits, _, exponent = f"{exact:e}".partition("e")
        return f"{digits}e{int(exponent):+03d}"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
