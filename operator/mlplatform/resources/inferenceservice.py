"""The KServe InferenceService of one version; every active version has its own.

Called by `mlplatform.plan`. KServe makes of it the Deployment and the Service
``<version>-predictor``; the names it gives are known here and nowhere else.
"""

from __future__ import annotations

from typing import Final

from mlplatform import api, contract
from mlplatform.resources import pod
from mlplatform.resources.metadata import hashed, metadata
from mlplatform.resources.metadata import same as metadata_same
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, condition, name_of, namespace_of, status_of

PORT: Final = 8080

DNS_LABEL: Final = 63
"""Characters between two dots of a host name."""

CPU_PERCENT: Final = 80
"""Of the CPU that the model may use: busier than that, and another replica is added."""


def render(model: Object, spec: api.MLModelSpec, version: str, storage_uri: str, settings: Settings) -> Object:
    """InferenceService ``<version>``: the archive at `storage_uri` behind TorchServe."""
    name, serving = name_of(model), spec.serving
    meta = metadata(model, version, "predictor", version=version)
    meta["annotations"] = {"serving.kserve.io/deploymentMode": settings.kserve_mode}
    resources = pod.resources(serving.resources.cpu, serving.resources.memory, settings)
    scaling = {
        "minReplicas": serving.replicas.min,
        "maxReplicas": serving.replicas.max,
        "scaleMetric": "cpu",
        "scaleTarget": _target(resources),
    }
    predictor = {
        "serviceAccountName": settings.serving_service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "model": {
            "modelFormat": {"name": "pytorch"},
            "runtime": settings.serving_runtime,
            "storageUri": storage_uri,
            "resources": resources,
            "env": [
                {"name": contract.ENV_MODEL, "value": name},
                {"name": contract.ENV_VERSION, "value": version},
                {"name": contract.ENV_NAMESPACE, "value": namespace_of(model)},
            ],
            # Each asks for a prediction on a canned sample: a server that answers /ping
            # while its worker hangs or its model is still loading is neither ready nor alive.
            "startupProbe": _probe(name, periodSeconds=2, failureThreshold=150),
            "readinessProbe": _probe(name, periodSeconds=5, failureThreshold=3),
            "livenessProbe": _probe(name, periodSeconds=10, failureThreshold=3),
        },
    }
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": meta,
        "spec": {"predictor": {**scaling, **predictor}},
    }
    # KServe hands annotations on to the pods, so a digest over the bounds would restart them all to add one.
    return hashed(manifest, over={"labels": meta["labels"], "predictor": predictor})


def same(live: Object | None, wanted: Object) -> bool:
    """Whether the live object is what `render` made: its digest, and the bounds, which that leaves out.

    Not the deployment mode: KServe refuses to change it, so another one holds for services made from then on.
    """
    if live is None or not metadata_same(live, wanted):
        return False
    found, asked = live["spec"]["predictor"], wanted["spec"]["predictor"]
    return all(found.get(key) == asked[key] for key in _SCALING)


def replicas(live: Object | None) -> api.Replicas:
    """The autoscaling bounds that the live object has; KServe's own defaults where it has none."""
    predictor = (live or {}).get("spec", {}).get("predictor", {})
    low = predictor.get("minReplicas", 1)
    return api.Replicas(min=low, max=predictor.get("maxReplicas", low))


def bounds(replicas: api.Replicas) -> Object:
    """Merge patch that sets them, and restarts nothing."""
    return {"spec": {"predictor": {"minReplicas": replicas.min, "maxReplicas": replicas.max}}}


_SCALING: Final = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget")


def _target(resources: Object) -> int:
    """Percent of the request at which a replica is added; the request may be less than the model may use."""
    limit, request = (pod.cores(resources[kind]["cpu"]) for kind in ("limits", "requests"))
    return round(CPU_PERCENT * limit / (request or limit))


def _probe(model: str, **timing: int) -> Object:
    return {"httpGet": {"path": f"/predictions/{model}", "port": PORT}, "timeoutSeconds": 5, **timing}


def trouble(live: Object | None, *, pods: bool) -> str:
    """What KServe says is wrong; empty when it says nothing.

    Args:
        live: The InferenceService.
        pods: Whether it has any; of those its conditions say no more than that they are not ready.
    """
    failed = (status_of(live).get("modelStatus") or {}).get("lastFailureInfo") or {}
    conditions = () if pods else (condition(live, "PredictorReady"), condition(live, "Ready"))
    said = [failed, *(c for c in conditions if c.get("status") == "False")]
    return next((str(source["message"]) for source in said if source.get("message")), "")


def excess(version: str, namespace: str) -> int:
    """By how many characters the first part of KServe's host name is longer than DNS allows; it makes no pods then.

    Its `domainTemplate` makes that ``<version>-predictor-<namespace>`` unless the cluster has one of its own.
    """
    return max(0, len(f"{version}-predictor-{namespace}") - DNS_LABEL)


def pod_label(version: str) -> str:
    """Value of the label ``app`` on the version's serving pods."""
    return f"isvc.{version}-predictor"


def version_of(label: str) -> str:
    """The version behind a `pod_label`; empty for any other value."""
    if label.startswith("isvc.") and label.endswith("-predictor"):
        return label.removeprefix("isvc.").removesuffix("-predictor")
    return ""


def host(version: str, namespace: str) -> str:
    """DNS name of the Service in front of the version's pods."""
    return f"{version}-predictor.{namespace}.svc.cluster.local"
