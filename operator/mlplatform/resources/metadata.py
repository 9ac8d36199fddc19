"""Names, labels and owners that all children share.

Called by every other module of this package.
"""

from __future__ import annotations

from typing import Final

from mlplatform import contract
from mlplatform.snapshot import Object, annotations_of, name_of, namespace_of, uid_of

HASH: Final = f"{contract.GROUP}/hash"
"""Annotation with the digest of what was rendered; a child is applied again only when it differs."""


def metadata(owner: Object, name: str, component: str, *, version: str = "", stage: str = "") -> Object:
    """``metadata`` of a child in its owner's namespace, controlled by the owner."""
    return {
        "name": name,
        "namespace": namespace_of(owner),
        "labels": labels(model_of(owner), component, version=version, stage=stage),
        "ownerReferences": [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": name_of(owner),
                "uid": uid_of(owner),
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def labels(model: str, component: str, *, version: str = "", stage: str = "") -> dict[str, str]:
    """The recommended labels, and our own by which children are found."""
    found = {
        "app.kubernetes.io/name": contract.MANAGER,
        "app.kubernetes.io/instance": model,
        "app.kubernetes.io/component": str(component),
        "app.kubernetes.io/managed-by": contract.MANAGER,
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


def hashed(manifest: Object, over: Object | None = None) -> Object:
    """The manifest with a digest of itself, or of `over`, as an annotation."""
    annotations = {**(manifest["metadata"].get("annotations") or {}), HASH: contract.digest(over or manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def same(live: Object | None, wanted: Object) -> bool:
    """Whether the live object was last applied from exactly this manifest."""
    return live is not None and annotations_of(live).get(HASH) == annotations_of(wanted).get(HASH)
