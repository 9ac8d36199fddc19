"""The ModelVersion that an MLModel's spec asks for.

Called by `mlplatform.plan`.
"""

from __future__ import annotations

from mlplatform import api, contract
from mlplatform.resources.metadata import metadata
from mlplatform.snapshot import Object, name_of


def render(model: Object, spec: api.MLModelSpec, name: str, sequence: int, trigger: str) -> Object:
    """An immutable snapshot of the sections that shape an artifact.

    Sections hold only what differs from the defaults, so the object reads like what the user wrote.
    """
    return {
        "apiVersion": contract.API_VERSION,
        "kind": "ModelVersion",
        "metadata": metadata(model, name, "version", version=name),
        "spec": {
            "model": name_of(model),
            "sequence": sequence,
            **({"trigger": trigger} if trigger else {}),
            **{section: api.canonical(getattr(spec, section)) for section in api.VERSIONED},
        },
    }
