"""The apex Service `<model>`: in-cluster address of the stable version's pods.

Called by `mlplatform.plan`. Its selector is the record of which version is
stable, so a cluster that loses its mesh keeps answering from that one.
"""

from __future__ import annotations

from mlplatform.resources import inferenceservice
from mlplatform.resources.metadata import hashed, metadata
from mlplatform.snapshot import Object, name_of


def render(model: Object, version: str) -> Object:
    """Service ``<model>`` that selects the version's serving pods."""
    return hashed(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(model, name_of(model), "apex"),
            "spec": {
                "selector": {"app": inferenceservice.pod_label(version)},
                "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"name": "http", "port": 80, "targetPort": inferenceservice.PORT, "protocol": "TCP"}],
            },
        }
    )


def stable(apex: Object | None) -> str:
    """The version that the Service selects; empty when there is no Service."""
    selector = (apex or {}).get("spec", {}).get("selector") or {}
    return inferenceservice.version_of(selector.get("app", ""))
