"""Child manifests: one pure function a kind, returning a dict laid out like the YAML.

Called by `mlplatform.stages` and `mlplatform.plan`; `mlplatform.cluster` sends
the dicts to the API server. Each module also knows how to read its kind back,
so that no other module knows where a field of it lies. `KINDS` are all that
there are: `mlplatform.main` watches, `mlplatform.reconciler` sweeps and
`mlplatform.cluster` writes by that table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mlplatform import contract


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of object that the operator reads or writes.

    Attributes:
        api_version: Where the API server has it; of Istio's, `Settings.istio_api_version` says it.
        plural: The resource name in the API path.
        read_by: Whose decisions rest on its objects, ``MLModel`` or ``ModelVersion``; of nobody's, it is not watched.
        add_on: What a person installs when the API server does not serve it.
    """

    api_version: str
    plural: str
    read_by: frozenset[str] = frozenset()
    add_on: str = ""


_MODEL: Final = frozenset({"MLModel"})
_VERSION: Final = frozenset({"ModelVersion"})
_BOTH: Final = _MODEL | _VERSION

KINDS: Final = {
    "MLModel": Kind(api_version=contract.API_VERSION, plural="mlmodels", read_by=_BOTH),
    "ModelVersion": Kind(api_version=contract.API_VERSION, plural="modelversions", read_by=_BOTH),
    "PyTorchJob": Kind(
        api_version="kubeflow.org/v1",
        plural="pytorchjobs",
        read_by=_VERSION,
        add_on="the Kubeflow Training Operator",
    ),
    "Job": Kind(api_version="batch/v1", plural="jobs", read_by=_VERSION),
    "Pod": Kind(api_version="v1", plural="pods", read_by=_BOTH),
    "InferenceService": Kind(
        api_version="serving.kserve.io/v1beta1", plural="inferenceservices", read_by=_MODEL, add_on="KServe"
    ),
    "ServingRuntime": Kind(
        api_version="serving.kserve.io/v1alpha1", plural="servingruntimes", read_by=_MODEL, add_on="KServe"
    ),
    "Ingress": Kind(api_version="networking.k8s.io/v1", plural="ingresses", read_by=_MODEL),
    "Service": Kind(api_version="v1", plural="services", read_by=_MODEL),
    "VirtualService": Kind(
        api_version="networking.istio.io/v1", plural="virtualservices", read_by=_MODEL, add_on="Istio"
    ),
    "Deployment": Kind(api_version="apps/v1", plural="deployments"),
    "Event": Kind(api_version="v1", plural="events"),
}
