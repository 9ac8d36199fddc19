"""The KServe InferenceService of one version; every active version has its own.

Called by `mlplatform.plan`. KServe makes of it the Deployment and the Service
``<version>-predictor``; the names it gives are known here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mlplatform import api, contract
from mlplatform.resources import pod, scheduling, servingruntime
from mlplatform.resources.metadata import metadata
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, condition, labels_of, name_of, namespace_of, status_of

PORT: Final = 8080

CPU_PERCENT: Final = 80
"""Of the CPU that the model may use: busier than that, and another replica is added."""


MODE: Final = "serving.kserve.io/deploymentMode"

VISIBILITY: Final = "networking.kserve.io/visibility"
LOCAL: Final = "cluster-local"
"""Without this label KServe publishes every version at an address of its own, past the gateway's paths and weights."""


def render(  # noqa: PLR0913  what one service depends on
    model: Object,
    spec: api.MLModelSpec,
    version: str,
    storage_uri: str,
    settings: Settings,
    *,
    live: Object | None = None,
) -> Object:
    """InferenceService ``<version>``: the archive at `storage_uri` behind the server of this release.

    It carries no digest: KServe hands annotations and labels on to the pods, and each release would restart them all.

    Args:
        model: The MLModel.
        spec: Its spec, decoded.
        version: The version's name.
        storage_uri: Where its archive is.
        settings: The operator's.
        live: The one that is there; its deployment mode is kept, which KServe refuses to change.
    """
    name, serving = name_of(model), spec.serving
    meta = metadata(model, version, "predictor", version=version)
    meta["labels"][VISIBILITY] = LOCAL
    meta["annotations"] = {MODE: _mode(live) or settings.kserve_mode}
    placement = scheduling.of_serving(serving.scheduling, settings)
    resources = pod.resources(serving.resources, settings, placement)
    predictor = {
        **_scaling(spec, resources),
        **scheduling.fields(placement, _PLACED),
        "serviceAccountName": settings.serving_service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "model": {
            "modelFormat": {"name": "pytorch"},
            "runtime": name_of(servingruntime.render(model, settings)),
            "storageUri": storage_uri,
            "resources": resources,
            "env": [
                {"name": contract.ENV_MODEL, "value": name},
                {"name": contract.ENV_VERSION, "value": version},
                {"name": contract.ENV_NAMESPACE, "value": namespace_of(model)},
                *_variables(per_request(serving)),
            ],
        },
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": scheduling.marked(meta, serving.scheduling),
        "spec": {"predictor": predictor},
    }


_PLACED: Final = (*scheduling.POD_FIELDS, *scheduling.META_FIELDS)


def change(live: Object, spec: api.MLModelSpec, storage_uri: str, settings: Settings) -> Object | None:
    """The merge patch that makes a live object what its user asks for; None when it is that.

    Everything else of it stays as the release that made it has left it: another release, or other settings of the
    operator, are no wish of the user's to have pods replaced. Where the pods run is compared by what the user was
    found to ask when they were placed.
    """
    found = live["spec"]["predictor"]
    served = found.get("model") or {}
    wanted = spec.serving
    placement = scheduling.of_serving(wanted.scheduling, settings)
    moved = scheduling.asked(live) != scheduling.text(wanted.scheduling)
    asked = {"cpu": wanted.resources.cpu, "memory": wanted.resources.memory}
    limits = (served.get("resources") or {}).get("limits") or {}
    model, resources = {}, served.get("resources") or {}
    if moved or any(pod.quantity(str(limits.get(key, "0"))) != pod.quantity(value) for key, value in asked.items()):
        resources = pod.resources(wanted.resources, settings, placement)
        model["resources"] = _difference(served.get("resources"), resources)
    variables = served.get("env") or []
    others = [variable for variable in variables if variable["name"] not in _PER_REQUEST]
    if {variable["name"]: variable.get("value") for variable in variables if variable not in others} != per_request(
        wanted
    ):
        model["env"] = [*others, *_variables(per_request(wanted))]
    if served.get("storageUri") != storage_uri:
        model["storageUri"] = storage_uri
    predictor = {key: value for key, value in _scaling(spec, resources).items() if found.get(key) != value}
    if moved:
        placed = {key: found[key] for key in _PLACED if key in found}
        predictor |= _difference(placed, scheduling.fields(placement, _PLACED))
    if model:
        predictor["model"] = model
    patch: Object = {"spec": {"predictor": predictor}} if predictor else {}
    if moved:
        patch["metadata"] = {"annotations": {scheduling.ASKED: scheduling.text(wanted.scheduling) or None}}
    return patch or None


_PER_REQUEST: Final = {contract.ENV_MAX_RECORDS: "max_records", contract.ENV_MAX_BYTES: "max_bytes"}


def per_request(serving: api.Serving) -> dict[str, str]:
    """The model server's environment, as far as the user bounds requests."""
    asked = {name: getattr(serving.per_request, field) for name, field in _PER_REQUEST.items()}
    return {name: str(value) for name, value in asked.items() if value is not None}


def _variables(environment: Mapping[str, str]) -> list[Object]:
    return [{"name": name, "value": value} for name, value in environment.items()]


def _difference(found: Any, wanted: Any) -> Any:
    """The merge patch (RFC 7386) that makes the one of the other."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return wanted
    gone: Object = dict.fromkeys(found.keys() - wanted.keys())
    return gone | {key: _difference(found.get(key), value) for key, value in wanted.items() if found.get(key) != value}


def replicas(live: Object | None) -> api.Replicas:
    """The autoscaling bounds that the live object has; KServe's own defaults where it has none."""
    predictor = (live or {}).get("spec", {}).get("predictor", {})
    low = predictor.get("minReplicas", 1)
    return api.Replicas(min=low, max=predictor.get("maxReplicas", low))


def bounds(replicas: api.Replicas) -> Object:
    """Merge patch that sets them, and restarts nothing."""
    return {"spec": {"predictor": {"minReplicas": replicas.min, "maxReplicas": replicas.max}}}


def outdated(live: Object, present: str, *, roll: bool) -> bool:
    """Whether the pods of a live object are to be made anew as this release would make them.

    Args:
        live: The InferenceService.
        present: Name of the runtime of this release.
        roll: Whether its user wants that for another runtime alone.
    """
    return not is_local(live) or (roll and runtime(live) != present)


def is_local(live: Object) -> bool:
    """Whether KServe has been told to publish it nowhere."""
    return labels_of(live).get(VISIBILITY) == LOCAL


def runtime(live: Object) -> str:
    """The runtime that it names."""
    return str((live["spec"]["predictor"].get("model") or {}).get("runtime", ""))


def storage_uri(live: Object) -> str:
    """Where its archive is."""
    return str((live["spec"]["predictor"].get("model") or {}).get("storageUri", ""))


def _mode(live: Object | None) -> str:
    """How KServe runs a live object; empty for none."""
    if live is None:
        return ""
    return str(annotations_of(live).get(MODE) or status_of(live).get("deploymentMode", ""))


def _scaling(spec: api.MLModelSpec, resources: Object) -> Object:
    """What the autoscaler goes by; it restarts no pod."""
    return {
        "minReplicas": spec.serving.replicas.min,
        "maxReplicas": spec.serving.replicas.max,
        "scaleMetric": "cpu",
        "scaleTarget": _target(resources),
    }


def _target(resources: Object) -> int:
    """Percent of the request at which a replica is added; the request may be less than the model may use."""
    limit, request = (pod.quantity(str(resources[kind]["cpu"])) for kind in ("limits", "requests"))
    return round(CPU_PERCENT * limit / (request or limit))


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


def wanted(live: Object) -> int:
    """How many pods it should have at least."""
    return max(1, int(live["spec"]["predictor"].get("minReplicas", 1)))


def deployment(version: str) -> str:
    """Name of the Deployment that KServe makes for the version."""
    return f"{version}-predictor"


def pod_label(version: str) -> str:
    """Value of the label ``app`` on the version's serving pods."""
    return f"isvc.{version}-predictor"


def version_of(label: str) -> str:
    """The version behind a `pod_label`; empty for any other value."""
    if label.startswith("isvc.") and label.endswith("-predictor"):
        return label.removeprefix("isvc.").removesuffix("-predictor")
    return ""


def model_of_ingress(metadata: Mapping[str, Any]) -> str:
    """The model whose version an Ingress of KServe's may publish, by its owner's name; empty for any other Ingress."""
    owners = metadata.get("ownerReferences") or ()
    name = next((str(r["name"]) for r in owners if r.get("controller") and r["kind"] == "InferenceService"), "")
    return name.rpartition("-")[0]


def service(version: str) -> str:
    """Name of the Service in front of the version's pods."""
    return f"{version}-predictor"
