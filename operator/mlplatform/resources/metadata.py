"""Names, labels and owners that all children share.

Called by every other module of this package.
"""

from __future__ import annotations

from typing import Final

from mlplatform import contract
from mlplatform.actions import Patch, Ref
from mlplatform.snapshot import Object, annotations_of, controlled_by, labels_of, name_of, namespace_of, uid_of

HASH: Final = f"{contract.GROUP}/hash"
"""Annotation with the digest of what was rendered; a child is applied again only when it differs."""


def metadata(owner: Object, name: str, component: str, *, version: str = "", stage: str = "") -> Object:
    """``metadata`` of a child in its owner's namespace, controlled by the owner."""
    return {
        "name": name,
        "namespace": namespace_of(owner),
        "labels": labels(model_of(owner), component, version=version, stage=stage),
        "ownerReferences": [reference(owner)],
    }


def reference(owner: Object) -> Object:
    """The owner reference by which the garbage collector takes a child away with its owner."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": True,
    }


def belongs(obj: Object, owner: Object) -> bool:
    """Whether `owner` controls the object, or nobody does and its labels say that it is a child of `owner`.

    Nobody controls what a backup was restored of without owner references, or what was left by ``--cascade=orphan``.
    """
    return controlled_by(obj, owner) or is_stray_of(obj, owner)


def is_stray_of(obj: Object, owner: Object) -> bool:
    """Whether nobody controls the object, and its labels say that it is a child of `owner`."""
    version = name_of(owner) if owner["kind"] == "ModelVersion" else ""
    return stray(obj, labels(model_of(owner), "", version=version))


def stray(obj: Object, wanted: dict[str, str]) -> bool:
    """Whether nobody controls the object, and its labels say that this operator made it for what `wanted` names."""
    if any(r.get("controller") for r in obj["metadata"].get("ownerReferences") or ()):
        return False
    found = labels_of(obj)
    return found.get(_MANAGED_BY) == contract.MANAGER and all(
        found.get(key) == wanted[key] for key in _CHILD_OF & wanted.keys()
    )


_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
_CHILD_OF: Final = {contract.LABEL_MODEL, contract.LABEL_VERSION, contract.LABEL_STAGE}


def taken_over(obj: Object, owner: Object, **annotations: str) -> Patch:
    """What makes `owner` the controller of an object that is a stray, if it is still as it was seen."""
    owners = [*(obj["metadata"].get("ownerReferences") or ()), reference(owner)]
    seen = {"resourceVersion": obj["metadata"]["resourceVersion"], "ownerReferences": owners}
    return Patch(Ref.to(obj), {"metadata": {**seen, **({"annotations": annotations} if annotations else {})}})


def labels(model: str, component: str, *, version: str = "", stage: str = "") -> dict[str, str]:
    """The recommended labels, and our own by which children are found."""
    found = {
        "app.kubernetes.io/name": contract.MANAGER,
        "app.kubernetes.io/instance": model,
        "app.kubernetes.io/component": str(component),
        _MANAGED_BY: contract.MANAGER,
        contract.LABEL_MODEL: model,
    }
    if version:
        found[contract.LABEL_VERSION] = version
    if stage:
        found[contract.LABEL_STAGE] = str(stage)
    return found


def model_of(owner: Object) -> str:
    """The MLModel's name, whether `owner` is the MLModel or one of its versions."""
    return str(owner["spec"]["model"]) if owner["kind"] == "ModelVersion" else name_of(owner)


def hashed(manifest: Object) -> Object:
    """The manifest with a digest of itself as an annotation."""
    annotations = {**(manifest["metadata"].get("annotations") or {}), HASH: contract.digest(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def same(live: Object | None, wanted: Object) -> bool:
    """Whether the live object was last applied from exactly this manifest, and has its owner."""
    if live is None or annotations_of(live).get(HASH) != annotations_of(wanted).get(HASH):
        return False
    return _owners(wanted) <= _owners(live)


def _owners(obj: Object) -> set[str]:
    return {r["uid"] for r in obj["metadata"].get("ownerReferences") or ()}
