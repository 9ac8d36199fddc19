"""What was asked for: an MLModel out of a file, with what the caller changes about it.

Called by `mlplatform.standalone.engine`. The words of refusal are `kubectl apply`'s (`mlplatform.admission`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from mlplatform import admission, api, contract
from mlplatform.errors import EXIT_USAGE, CliError
from mlplatform.resources import modelversion
from mlplatform.snapshot import Object, annotations_of, name_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One run.

    Attributes:
        file: YAML or JSON with an MLModel; ``-`` is standard input.
        name: Which of several MLModels in it; empty for the only one.
        namespace: Instead of the manifest's; empty keeps that (``default`` where it names none).
        store: Folder of the results.
        data: Another place for the rows than ``spec.data.uri``; empty for that.
        set: ``path=value`` each, the path below ``spec``.
        rows: How many rows to take, a stable sample; None for all.
        until: The last stage to run; empty for all.
        keep_going: Whether a gate that is missed ends nothing but the hope of serving.
    """

    file: str
    name: str = ""
    namespace: str = ""
    store: Path = Path(".mlplatform")
    data: str = ""
    set: tuple[str, ...] = ()
    rows: int | None = None
    until: str = ""
    keep_going: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read and found sound.

    Attributes:
        model: The MLModel as a cluster would hold it.
        spec: Its spec, decoded.
        trigger: What beside the spec the version's name must tell apart: a sample of the rows, a retrain request.
        version: The version's name: the cluster's, for the same file.
    """

    model: Object
    spec: api.MLModelSpec
    trigger: str
    version: str


def read(request: Request, text: str) -> Asked:
    """Reads the manifest.

    Args:
        request: What the caller wants of it.
        text: The file's content.

    Raises:
        CliError: It is no manifest, or `kubectl apply` or the operator would refuse it, or it is suspended.
    """
    model = _unshared(_pick(_documents(text, request.file), request))
    for assignment in request.set:
        _assign(model, assignment)
    _refuse(request, "kubectl apply", admission.refusals(model))
    model = admission.stored(model)
    model["metadata"].pop("uid", None)  # Of an object out of a cluster: what is made here is not that object's.
    model["spec"].pop("scheduling", None)  # Queues and nodes are a cluster's.
    model["metadata"]["namespace"] = request.namespace or model["metadata"].get("namespace") or "default"
    retrain = annotations_of(model).get(contract.ANNOTATION_RETRAIN, "")
    try:
        spec = api.decode(api.MLModelSpec, model["spec"])
    except api.SpecError as error:
        _refuse(request, "the operator", [str(error)])
        raise
    _refuse(request, "the operator", api.problems(spec, name_of(model), retrain))
    if spec.suspend:
        raise CliError(
            f"{request.file}: spec.suspend is true, so nothing may run", "add --set suspend=false", code=EXIT_USAGE
        )
    parts = [retrain] + ([f"rows={request.rows}"] if request.rows is not None else [])
    trigger = ",".join(part for part in parts if part)
    if trigger:
        annotations = {**annotations_of(model), contract.ANNOTATION_RETRAIN: trigger}
        model["metadata"]["annotations"] = annotations
    return Asked(model, spec, trigger, modelversion.wanted(model, spec, {}))


def _refuse(request: Request, who: str, mistakes: list[str]) -> None:
    if mistakes:
        changed = f" (with {', '.join('--set ' + a for a in request.set)})" if request.set else ""
        raise CliError(
            "\n       ".join([f"{request.file}{changed} is refused, as {who} would refuse it:", *mistakes]),
            "correct what is named; `kubectl explain mlmodel.spec` describes every field",
            code=EXIT_USAGE,
        )


def _documents(text: str, file: str) -> list[Any]:
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        raise CliError(f"{file} is no YAML: {' '.join(str(error).split())}", "correct it", code=EXIT_USAGE) from None


def _pick(documents: list[Any], request: Request) -> Object:
    items: list[Any] = []
    for document in documents:
        listed = document.get("items") if isinstance(document, dict) else None
        items += listed if isinstance(listed, list) else [document]
    models = [item for item in items if isinstance(item, dict) and item.get("kind") == "MLModel"]
    named = {_name(model): model for model in models}
    if request.name:
        if request.name in named:
            return named[request.name]
        has = f"it has {', '.join(named)}" if named else "it has none"
        raise CliError(f"{request.file} has no MLModel {request.name!r}", has, code=EXIT_USAGE)
    if len(models) == 1:
        return models[0]
    if models:
        raise CliError(
            f"{request.file} has {len(models)} MLModels: {', '.join(named)}",
            f"say which: kubectl mlmodel run -f {request.file} {next(iter(named))}",
            code=EXIT_USAGE,
        )
    kinds = ", ".join(
        str(item.get("kind") or "an object without a kind") if isinstance(item, dict) else type(item).__name__
        for item in items
    )
    raise CliError(
        f"{request.file} has no MLModel{f', only {kinds}' if kinds else ': it is empty'}",
        "examples/adult-income/mlmodel.yaml is one",
        code=EXIT_USAGE,
    )


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's aliases name is there as often as it is named, as in JSON."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _name(model: Object) -> str:
    metadata = model.get("metadata")
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""


_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def _assign(model: Object, assignment: str) -> None:
    """Carries out one ``--set``: ``training.epochs=1``, ``gates[0].min=0.9``, ``data.split={test: 0.3}``."""
    path, equals, text = assignment.partition("=")
    steps = [key or int(index) for key, index in _STEP.findall(path.removeprefix("spec."))]
    if not equals or not steps or "".join(_shown(step) for step in steps).lstrip(".") != path.removeprefix("spec."):
        raise CliError(f"--set {assignment}: no assignment", "write it like training.epochs=1", code=EXIT_USAGE)
    try:
        value = yaml.load(text, _Loader)  # noqa: S506  a safe loader
    except yaml.YAMLError as error:
        raise CliError(
            f"--set {assignment}: the value is no YAML: {' '.join(str(error).split())}", "quote it", code=EXIT_USAGE
        ) from None
    at: Any = model.setdefault("spec", {})
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        usable = isinstance(at, dict) if isinstance(step, str) else isinstance(at, list) and step < len(at)
        if not usable:
            raise CliError(
                f"--set {assignment}: there is no {path} to set in this file", "name a field that is there", EXIT_USAGE
            )
        if following is None:
            at[step] = value
        elif isinstance(step, str):
            at = at.setdefault(step, [] if isinstance(following, int) else {})
        else:
            at = at[step]


def _shown(step: str | int) -> str:
    return f".{step}" if isinstance(step, str) else f"[{step}]"


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: ``1e-3`` is a number, a date stays text, a key twice is a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Reads one mapping, before what it merges (``<<``) is put into it: that it may have again.

        Raises:
            yaml.composer.ComposerError: A key is there twice, or is no text, as in a template's ``{{ name }}``.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key that is a map or a list", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.composer.ComposerError(None, None, f'key "{key.value}" already set in map', key.start_mark)
            seen.add(key.value)
        return node


_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
