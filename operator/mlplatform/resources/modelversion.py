"""The ModelVersion that an MLModel's spec asks for: which one of those there are it is, or what a new one looks like.

Called by `mlplatform.plan` and `mlplatform.standalone`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from mlplatform import api, contract
from mlplatform.contract import ANNOTATION_FORGET, ANNOTATION_RETRAIN
from mlplatform.resources.metadata import metadata
from mlplatform.snapshot import Object, annotations_of, name_of, namespace_of, uid_of


def trigger(model: Object) -> str:
    """What the MLModel asks for beyond its spec: the value of its retrain annotation."""
    return annotations_of(model).get(ANNOTATION_RETRAIN, "")


def wanted(model: Object, spec: api.MLModelSpec, versions: Mapping[str, Object], taken: Collection[str] = ()) -> str:
    """Name of the version that the MLModel asks for: one of those there are, if its content is asked for, else a new name.

    A version is known by its content, not by its name: a later release may have another default, order or way of making
    names, and none of that is a wish of the user's. (Defaults are no trouble: the API server writes them into both objects
    when they are made.) Of several versions of one content it is the one that is written as the spec is, else the newest.

    One whose artifacts are being deleted is none of them: it is made anew, under another name.

    Absence is no wish: without a retrain annotation, or once a tool has stripped it, the trigger in force is the one of
    the newest version of that content.

    Args:
        model: The MLModel.
        spec: Its spec, decoded.
        versions: Its ModelVersions by name.
        taken: Names of versions that are gone, but not what they left: a new one must not be taken for them.
    """
    asked = api.content(spec)
    texts = {name: json.dumps(obj["spec"]) for name, obj in versions.items() if not forgotten(obj)}
    alike = {name: found for name, text in texts.items() if (found := _read(text)) and found.content == asked}
    newest = max(alike.values(), key=lambda found: found.sequence, default=None)
    key = trigger(model) or (newest.trigger if newest else "")
    same = {name: found for name, found in alike.items() if found.trigger == key}
    if same:
        written = _as_written(spec) if len(same) > 1 else ""
        return max(same, key=lambda name: (same[name].written == written, same[name].sequence))
    names = (api.version_name(name_of(model), spec, trigger(model), tries) for tries in count())
    return next(name for name in names if name not in versions and name not in taken)


@dataclass(frozen=True, slots=True)
class _Read:
    """What a version is known by: its content, how that is written, its number and its trigger."""

    content: str
    written: str
    sequence: int
    trigger: str


@lru_cache(maxsize=2048)
def _read(spec: str) -> _Read | None:
    """A version by the text of its spec, which never changes; None where a newer release wrote what this one cannot read."""
    try:
        found = api.decode(api.ModelVersionSpec, json.loads(spec))
    except api.SpecError:
        return None
    return _Read(api.content(found), _as_written(found), found.sequence, found.trigger)


def _as_written(spec: api.MLModelSpec | api.ModelVersionSpec) -> str:
    return json.dumps([api.encode(getattr(spec, section)) for section in api.VERSIONED], sort_keys=True)


def forgotten(version: Object) -> bool:
    """Whether its artifacts are deleted, or will be: it can neither serve nor be asked for any more."""
    return ANNOTATION_FORGET in annotations_of(version)


def forget() -> Object:
    """What marks a version for that."""
    return {"annotations": {ANNOTATION_FORGET: "true"}}


def artifacts(version: Object, root: str) -> str:
    """The folder of its artifacts in the store at `root`."""
    spec = version["spec"]
    return contract.artifact_root(
        root, namespace_of(version), spec["model"], name_of(version), spec.get("artifactId", "")
    )


def render(model: Object, spec: api.MLModelSpec, name: str, sequence: int, trigger: str) -> Object:
    """An immutable snapshot of the sections that shape an artifact.

    Sections hold only what differs from the defaults, so the object reads like what the user wrote. The id is that of this
    very model and number: the same if it is made twice, another one for a namesake of a version that was deleted, with its
    model or alone. Without a cluster there is no such namesake, and no id.
    """
    return {
        "apiVersion": contract.API_VERSION,
        "kind": "ModelVersion",
        "metadata": metadata(model, name, "version", version=name),
        "spec": {
            "model": name_of(model),
            "sequence": sequence,
            **({"trigger": trigger} if trigger else {}),
            **({"artifactId": contract.digest([uid_of(model), sequence])} if uid_of(model) else {}),
            **{section: api.canonical(getattr(spec, section)) for section in api.VERSIONED},
        },
    }
