"""Child manifests: one pure function a kind, returning a dict laid out like the YAML.

Called by `mlplatform.stages` and `mlplatform.plan`; `mlplatform.cluster` sends
the dicts to the API server. Each module also knows how to read its kind back,
so that no other module knows where a field of it lies.
"""

from __future__ import annotations

from typing import Final

PLURALS: Final = {
    "MLModel": "mlmodels",
    "ModelVersion": "modelversions",
    "PyTorchJob": "pytorchjobs",
    "Job": "jobs",
    "InferenceService": "inferenceservices",
    "VirtualService": "virtualservices",
    "Service": "services",
    "Event": "events",
}
"""The resource name in the API path, by kind."""

ADD_ONS: Final = {
    "PyTorchJob": "the Kubeflow Training Operator",
    "InferenceService": "KServe",
    "VirtualService": "Istio",
}
"""What a person installs when the API server does not serve a kind."""
