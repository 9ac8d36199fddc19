"""What KServe does with an InferenceService in Standard mode, as pure functions; ``__main__`` gives it a cluster.

A test double for kserve/kserve (``serving.kserve.io/v1beta1``, runtimes
``v1alpha1``): runtime chosen and merged, storage initializer, Deployment,
Service, autoscaler, status. What it does not do becomes ``InvalidSpec`` with a sentence.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from .client import JSON
from .controller import owner_reference, stamp

GROUP: Final = "serving.kserve.io"
INTERNAL: Final = "internal.serving.kserve.io"
MODEL_DIR: Final = "/mnt/models"
VOLUME: Final = "kserve-provision-location"
INITIALIZER: Final = "storage-initializer"
CONTAINER: Final = "kserve-container"
PORT: Final = 8080
STANDARD: Final = frozenset({"Standard", "RawDeployment"})
OWN_FIELDS: Final = frozenset(
    {"modelFormat", "runtime", "runtimeVersion", "protocolVersion", "storageUri", "storage", "confidential"}
)
"""Fields of ``predictor.model`` that are KServe's; the others are the container's."""
COMPONENT_FIELDS: Final = frozenset(
    {"model", "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "containerConcurrency"}
    | {"timeout", "canaryTrafficPercent", "labels", "annotations", "deploymentStrategy"}
)
"""Fields of ``predictor`` that are KServe's; the others are the pod's."""
UNSUPPORTED: Final = frozenset({"logger", "batcher", "autoScaling", "workerSpec", "storageUris", "containers"}) | {
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
}
NOT_FOR_PODS: Final = frozenset(
    {"kubectl.kubernetes.io/last-applied-configuration", "autoscaling.knative.dev/minScale"}
    | {"autoscaling.knative.dev/maxScale"}
)
"""Annotations that stay on the InferenceService; every other one reaches the pods, so changing it rolls them."""
MERGE_KEYS: Final = {"env": "name", "volumeMounts": "mountPath", "ports": "containerPort", "volumes": "name"}
"""Lists that Kubernetes' strategic merge joins by a key; any other list is replaced."""
DEFAULT_RESOURCES: Final = {"cpu": "1", "memory": "2Gi"}
PLACEHOLDER: Final = re.compile(r"\{\{\s*(.*?)\s*\}\}")
PATH: Final = re.compile(r"\.(Name|Namespace|Labels|Annotations)(?:\.([A-Za-z0-9_]+))?")


class InvalidSpecError(Exception):
    """The InferenceService cannot be served as it is written.

    Attributes:
        reason: One of ``modelStatus.lastFailureInfo.reason``'s values.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Children:
    """Everything one InferenceService turns into.

    Attributes:
        deployment: Without ``replicas`` where an autoscaler owns them.
        service: The predictor's Service.
        autoscaler: The HorizontalPodAutoscaler, or None.
        fixed_replicas: Replicas where no autoscaler owns them, else None.
        initial_replicas: Replicas of a Deployment that is made now.
    """

    deployment: JSON
    service: JSON
    autoscaler: JSON | None
    fixed_replicas: int | None
    initial_replicas: int


def stopped(isvc: JSON) -> bool:
    """Whether the annotation that stops an InferenceService is set."""
    return str(_annotations(isvc).get(f"{GROUP}/stop", "")).lower() == "true"


def child_name(isvc: JSON) -> str:
    """Name of the Deployment, the Service and the autoscaler."""
    return f"{isvc['metadata']['name']}-predictor"


def render(isvc: JSON, runtimes: list[JSON], secrets: list[JSON], image: str, hpa_version: str) -> Children:
    """All children of an InferenceService.

    Args:
        isvc: The InferenceService.
        runtimes: ServingRuntimes of its namespace, then ClusterServingRuntimes.
        secrets: Secrets of the predictor's ServiceAccount.
        image: The storage initializer's image.
        hpa_version: ``autoscaling/v2``, or ``autoscaling/v2beta2`` on old clusters.

    Raises:
        InvalidSpecError: It cannot be served as written.
    """
    validate(isvc)
    predictor = isvc["spec"]["predictor"]
    pod = _pod_spec(isvc, runtime := choose_runtime(isvc, runtimes))
    uri = predictor["model"].get("storageUri", "")
    if uri:
        _mount_model(pod, uri, secrets, image)
    minimum = max(int(predictor.get("minReplicas", 1)), 1)
    scaling = _autoscaling(isvc)
    autoscaler = _autoscaler(isvc, minimum, hpa_version) if scaling == "hpa" else None
    deployment = _deployment(isvc, runtime, pod, uri)
    fixed = None if autoscaler or scaling == "external" else _fixed_replicas(predictor, scaling)
    return Children(deployment, _service(isvc, pod), autoscaler, fixed, minimum)


def validate(isvc: JSON) -> None:
    """Refuses what this stand-in does not do.

    Raises:
        InvalidSpecError: Names the field.
    """
    spec, reason = isvc["spec"], "InvalidPredictorSpec"
    mode = _annotations(isvc).get(f"{GROUP}/deploymentMode", "Standard")
    if mode not in STANDARD:
        raise InvalidSpecError(reason, f"deploymentMode {mode} is not implemented by this stand-in; use Standard")
    for part in ("transformer", "explainer"):
        if part in spec:
            raise InvalidSpecError(reason, f"spec.{part} is not implemented by this stand-in")
    predictor = spec["predictor"]
    if fields := sorted(UNSUPPORTED & set(predictor)):
        raise InvalidSpecError(reason, f"spec.predictor.{fields[0]} is not implemented by this stand-in; use model")
    if not predictor.get("model", {}).get("modelFormat", {}).get("name"):
        raise InvalidSpecError(reason, "spec.predictor.model.modelFormat.name is missing")
    if "storage" in predictor["model"]:
        raise InvalidSpecError(reason, "spec.predictor.model.storage is not implemented by this stand-in")
    uri = predictor["model"].get("storageUri", "")
    if uri and not uri.startswith("s3://"):
        raise InvalidSpecError(reason, f"storageUri {uri!r}: this stand-in copies from s3:// only")
    minimum, maximum = int(predictor.get("minReplicas", 1)), int(predictor.get("maxReplicas", 0))
    if maximum and maximum < minimum:
        raise InvalidSpecError(reason, f"maxReplicas {maximum} is less than minReplicas {minimum}")


def choose_runtime(isvc: JSON, runtimes: list[JSON]) -> JSON:
    """The runtime named in ``predictor.model.runtime``, or the one that takes the format by itself.

    A namespace's own ServingRuntime goes before a ClusterServingRuntime of the same name.

    Raises:
        InvalidSpecError: None fits.
    """
    model = isvc["spec"]["predictor"]["model"]
    wanted, form = model.get("runtime"), model["modelFormat"]["name"]
    if wanted:
        found = next((item for item in runtimes if item["metadata"]["name"] == wanted), None)
        if found is None:
            raise InvalidSpecError("RuntimeNotRecognized", f"No ServingRuntime or ClusterServingRuntime named {wanted}")
        if found["spec"].get("disabled"):
            raise InvalidSpecError("RuntimeDisabled", f"runtime {wanted} is disabled")
        if not _supports(found, model, automatic=False):
            message = f"runtime {wanted} does not support model format {form} with the wanted version and protocol"
            raise InvalidSpecError("NoSupportingRuntime", message)
        return found
    fitting = [r for r in runtimes if not r["spec"].get("disabled") and _supports(r, model, automatic=True)]
    if not fitting:
        raise InvalidSpecError("NoSupportingRuntime", f"no runtime takes model format {form} by itself; name one")
    return fitting[0]


def merge(base: Any, overlay: Any, key: str = "") -> Any:
    """Kubernetes' strategic merge, as far as containers and pods need it."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        merged = {name: merge(base.get(name), value, name) for name, value in overlay.items() if value is not None}
        return {name: value for name, value in base.items() if overlay.get(name, value) is not None} | merged
    if isinstance(base, list) and isinstance(overlay, list) and key in MERGE_KEYS:
        by = MERGE_KEYS[key]
        joined = {item[by]: item for item in base}
        for item in overlay:
            joined[item[by]] = merge(joined.get(item[by]), item)
        return list(joined.values())
    return copy.deepcopy(overlay)


def fill(container: JSON, isvc: JSON) -> JSON:
    """Replaces ``{{.Name}}``, ``{{.Namespace}}``, ``{{.Labels.x}}`` and ``{{.Annotations.x}}`` everywhere in a container.

    Raises:
        InvalidSpecError: A placeholder is of another form.
    """
    meta = isvc["metadata"]

    def value(match: re.Match[str]) -> str:
        path = PATH.fullmatch(match[1])
        if path is None or (path[2] is None) != (path[1] in ("Name", "Namespace")):
            message = f"placeholder {match[0]} in the runtime: only .Name, .Namespace, .Labels.x and .Annotations.x"
            raise InvalidSpecError("InvalidPredictorSpec", message)
        field = meta.get(path[1].lower(), "")
        text = field.get(path[2], "") if path[2] else field
        return json.dumps(str(text))[1:-1]

    filled: JSON = json.loads(PLACEHOLDER.sub(value, json.dumps(container)))
    return filled


def storage_environment(secrets: list[JSON]) -> list[JSON]:
    """The initializer's S3 environment from the first Secret of the ServiceAccount that holds S3 credentials.

    The keys stay in the Secret (``secretKeyRef``); endpoint, region and TLS come from its annotations.
    """
    for secret in secrets:
        if "AWS_ACCESS_KEY_ID" not in secret.get("data", {}):
            continue
        name, notes = secret["metadata"]["name"], secret["metadata"].get("annotations", {})
        env: list[JSON] = [
            {"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}
            for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        ]
        https = str(notes.get(f"{GROUP}/s3-usehttps", "1")).lower() not in ("0", "false")
        endpoint = notes.get(f"{GROUP}/s3-endpoint", "")
        values = {"S3_USE_HTTPS": "1" if https else "0"}
        if endpoint:
            values |= {"S3_ENDPOINT": endpoint, "AWS_ENDPOINT_URL": f"http{'s' if https else ''}://{endpoint}"}
        if region := notes.get(f"{GROUP}/s3-region", ""):
            values["AWS_DEFAULT_REGION"] = region
        return env + [{"name": key, "value": value} for key, value in values.items()]
    return []


def status(
    isvc: JSON, deployment: JSON | None, pods: list[JSON], error: InvalidSpecError | None, now: datetime
) -> JSON:
    """The InferenceService's next status.

    Args:
        isvc: With the status so far.
        deployment: The predictor's Deployment, or None.
        pods: Its pods.
        error: What ``render`` raised, or None.
        now: The present.
    """
    meta, old = isvc["metadata"], isvc.get("status") or {}
    address = f"http://{child_name(isvc)}.{meta['namespace']}.svc.cluster.local"
    ready = _predictor_condition(deployment, error, halted=stopped(isvc))
    ingress = {"status": "True"} if ready["status"] == "True" else _ingress_waits()
    total = {"status": "True"} if ready["status"] == "True" else {**ready}
    halt = {"status": "True"} if stopped(isvc) else {"status": "False"}
    wanted = {"IngressReady": ingress, "PredictorReady": ready, "Ready": total, "Stopped": halt}
    fresh: JSON = {
        "conditions": [_keep_time({"type": kind, **condition}, old, now) for kind, condition in sorted(wanted.items())],
        "deploymentMode": "Standard",
        "modelStatus": _model_status(old, deployment, pods, error, now),
        "components": {"predictor": {"url": address}},
    }
    if deployment and "observedGeneration" in deployment.get("status", {}):
        fresh["observedGeneration"] = deployment["status"]["observedGeneration"]
    if ready["status"] == "True":
        fresh |= {"url": address, "address": {"url": address}}
    return fresh


def _pod_spec(isvc: JSON, runtime: JSON) -> JSON:
    """The runtime's pod with the predictor's fields over it, and the runtime's container with the model's."""
    predictor, source = isvc["spec"]["predictor"], runtime["spec"]
    containers = source["containers"]
    base = next((item for item in containers if item["name"] == CONTAINER), None)
    if base is None:
        message = f"runtime {runtime['metadata']['name']} has no container named {CONTAINER}"
        raise InvalidSpecError("InvalidPredictorSpec", message)
    own = {key: value for key, value in predictor["model"].items() if key not in OWN_FIELDS | {"name"}}
    container = fill(merge(base, own), isvc)
    if args := [*(base.get("args") or []), *(own.get("args") or [])]:
        container["args"] = fill({"args": args}, isvc)["args"]
    _default_resources(container)
    port = (container.get("ports") or [{}])[0].get("containerPort", PORT)
    probe = {"tcpSocket": {"port": port}, "timeoutSeconds": 1, "periodSeconds": 10, "failureThreshold": 3}
    container.setdefault("readinessProbe", probe)
    shared = ("volumes", "nodeSelector", "affinity", "tolerations", "imagePullSecrets", "hostIPC", "schedulerName")
    pod = {key: source[key] for key in shared if key in source}
    pod = merge(pod, {key: value for key, value in predictor.items() if key not in COMPONENT_FIELDS})
    pod["containers"] = [container, *(item for item in containers if item["name"] != CONTAINER)]
    result: JSON = pod
    return result


def _default_resources(container: JSON) -> None:
    """KServe's defaulting: 1 CPU and 2Gi, asked and allowed, where neither is said."""
    resources = container.setdefault("resources", {})
    for name, amount in DEFAULT_RESOURCES.items():
        if not any(name in (resources.get(part) or {}) for part in ("requests", "limits")):
            for part in ("requests", "limits"):
                resources[part] = (resources.get(part) or {}) | {name: amount}


def _mount_model(pod: JSON, uri: str, secrets: list[JSON], image: str) -> None:
    """Adds the storage initializer and the volume it fills; changes ``pod`` in place."""
    container = pod["containers"][0]
    initializer = {
        "name": INITIALIZER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-m", "addons", INITIALIZER],
        "args": [uri, MODEL_DIR],
        "env": storage_environment(secrets),
        "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": VOLUME, "mountPath": MODEL_DIR}],
    }
    if security := container.get("securityContext"):
        initializer["securityContext"] = copy.deepcopy(security)
    pod["initContainers"] = [*(pod.get("initContainers") or []), initializer]
    pod["volumes"] = [*(pod.get("volumes") or []), {"name": VOLUME, "emptyDir": {}}]
    mount = {"name": VOLUME, "mountPath": MODEL_DIR, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or []), mount]


def _labels(isvc: JSON, runtime: JSON | None = None) -> dict[str, str]:
    """Labels of the pods: the runtime's, the InferenceService's, the predictor's, KServe's."""
    predictor = isvc["spec"]["predictor"]
    return {
        **((runtime or {}).get("spec", {}).get("labels") or {}),
        **(isvc["metadata"].get("labels") or {}),
        **(predictor.get("labels") or {}),
        f"{GROUP}/inferenceservice": isvc["metadata"]["name"],
        "component": "predictor",
        "app": f"isvc.{child_name(isvc)}",
    }


def _pod_annotations(isvc: JSON, runtime: JSON, uri: str) -> dict[str, str]:
    merged = {
        **(runtime["spec"].get("annotations") or {}),
        **_annotations(isvc),
        **(isvc["spec"]["predictor"].get("annotations") or {}),
        **({f"{INTERNAL}/storage-initializer-sourceuri": uri} if uri else {}),
    }
    return {key: value for key, value in merged.items() if key not in NOT_FOR_PODS}


def _child(isvc: JSON, api_version: str, kind: str, labels: dict[str, str]) -> JSON:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": child_name(isvc),
            "namespace": isvc["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [owner_reference(isvc)],
        },
    }


def _deployment(isvc: JSON, runtime: JSON, pod: JSON, uri: str) -> JSON:
    labels = _labels(isvc, runtime)
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}
    spec = {
        "selector": {"matchLabels": {"app": labels["app"]}},
        "strategy": isvc["spec"]["predictor"].get("deploymentStrategy", rolling),
        "progressDeadlineSeconds": 600,
        "revisionHistoryLimit": 10,
        "template": {
            "metadata": {"labels": labels, "annotations": _pod_annotations(isvc, runtime, uri)},
            "spec": pod,
        },
    }
    return {**_child(isvc, "apps/v1", "Deployment", labels), "spec": spec}


def _service(isvc: JSON, pod: JSON) -> JSON:
    """Port 80 to the container's first port; further ports under their own numbers."""
    first, *others = pod["containers"][0].get("ports") or [{"containerPort": PORT}]
    ports = [{"name": first.get("name") or "http", "port": 80, "targetPort": first["containerPort"], "protocol": "TCP"}]
    for port in others:
        number = port["containerPort"]
        # Servers before Kubernetes 1.22 do not add the protocol, which is a key of the list, to an applied object.
        protocol = port.get("protocol", "TCP")
        name = port.get("name") or f"port-{number}"
        ports.append({"name": name, "port": number, "targetPort": number, "protocol": protocol})
    labels = _labels(isvc)
    spec = {"type": "ClusterIP", "selector": {"app": labels["app"]}, "ports": ports}
    return {**_child(isvc, "v1", "Service", labels), "spec": spec}


def _autoscaling(isvc: JSON) -> str:
    """``hpa``, ``external`` or ``none``; ``hpa`` only where there is room to scale."""
    chosen = str(_annotations(isvc).get(f"{GROUP}/autoscalerClass", "hpa"))
    if chosen not in ("hpa", "external", "none"):
        raise InvalidSpecError(
            "InvalidPredictorSpec", f"autoscalerClass {chosen!r} is not implemented by this stand-in"
        )
    predictor = isvc["spec"]["predictor"]
    room = int(predictor.get("maxReplicas", 0)) > max(int(predictor.get("minReplicas", 1)), 1)
    return "none" if chosen == "hpa" and not room else chosen


def _fixed_replicas(predictor: JSON, scaling: str) -> int:
    minimum = int(predictor.get("minReplicas", 1))
    return minimum if scaling == "none" and minimum >= 0 else 1


def _autoscaler(isvc: JSON, minimum: int, version: str) -> JSON:
    predictor = isvc["spec"]["predictor"]
    metric = predictor.get("scaleMetric", "cpu")
    if metric not in ("cpu", "memory"):
        raise InvalidSpecError("InvalidPredictorSpec", f"scaleMetric {metric!r} needs Knative; use cpu or memory")
    target = {"type": "Utilization", "averageUtilization": int(predictor.get("scaleTarget", 80))}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": child_name(isvc)},
        "minReplicas": minimum,
        "maxReplicas": int(predictor["maxReplicas"]),
        "metrics": [{"type": "Resource", "resource": {"name": metric, "target": target}}],
    }
    return {**_child(isvc, version, "HorizontalPodAutoscaler", _labels(isvc)), "spec": spec}


def _supports(runtime: JSON, model: JSON, *, automatic: bool) -> bool:
    """Format, version and protocol fit; ``automatic``: the runtime must also offer itself for the format."""
    form, protocol = model["modelFormat"], model.get("protocolVersion")
    if protocol and protocol not in (runtime["spec"].get("protocolVersions") or ["v1"]):
        return False
    return any(
        offered["name"] == form["name"]
        and form.get("version") in (None, offered.get("version"))
        and (offered.get("autoSelect", False) or not automatic)
        for offered in runtime["spec"].get("supportedModelFormats") or []
    )


def _predictor_condition(deployment: JSON | None, error: InvalidSpecError | None, *, halted: bool) -> JSON:
    """PredictorReady: the Deployment's Available condition; it can stay True on old pods, as KServe's does."""
    if error is not None:
        return {"status": "False", "reason": error.reason, "message": str(error)}
    if halted:
        return {"status": "False", "reason": "Stopped", "message": "the InferenceService is stopped by its annotation"}
    conditions = (deployment or {}).get("status", {}).get("conditions") or []
    found = next((item for item in conditions if item["type"] == "Available"), None)
    if found is None:
        return {"status": "Unknown", "reason": "Deploying", "message": "the Deployment has no Available condition yet"}
    if found["status"] == "True":
        return {"status": "True"}
    return {key: found.get(key, "") for key in ("status", "reason", "message")}


def _ingress_waits() -> JSON:
    return {"status": "False", "reason": "PredictorNotReady", "message": "waiting for PredictorReady"}


def _model_status(
    old: JSON, deployment: JSON | None, pods: list[JSON], error: InvalidSpecError | None, now: datetime
) -> JSON:
    before = old.get("modelStatus") or {}
    active = before.get("states", {}).get("activeModelState", "")
    copies = sum(_is_ready(pod) for pod in pods)
    if error is not None:
        info = _failure_info(before, {"reason": error.reason, "message": str(error)}, now)
        return {"transitionStatus": "InvalidSpec", "states": _states(active, "Pending"), "lastFailureInfo": info}
    if _rolled_out(deployment):
        done = {"transitionStatus": "UpToDate", "states": _states("Loaded", "Loaded")}
        return done | {"copies": {"failedCopies": 0, "totalCopies": copies}}
    failures = [found for pod in pods if (found := _load_failure(pod))]
    if failures:
        info = _failure_info(before, failures[0], now)
        result = {"transitionStatus": "BlockedByFailedLoad", "states": _states(active, "FailedToLoad")}
        return result | {"copies": {"failedCopies": len(failures), "totalCopies": copies}, "lastFailureInfo": info}
    target = "Loading" if pods else "Pending"
    result = {"transitionStatus": "InProgress", "states": _states(active, target)}
    # Between two crashes a container runs again: the failure stands until a model is loaded.
    kept = {"lastFailureInfo": before["lastFailureInfo"]} if "lastFailureInfo" in before else {}
    return result | {"copies": {"failedCopies": 0, "totalCopies": copies}} | kept


def _load_failure(pod: JSON) -> JSON | None:
    """``{reason, message, exitCode, location}`` of a pod whose initializer or server keeps ending in an error."""
    state = pod.get("status", {})
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in state.get(group) or []:
            if container["name"] not in (INITIALIZER, CONTAINER) or container.get("ready"):
                continue
            waiting = container.get("state", {}).get("waiting", {}).get("reason", "")
            last = container.get("lastState", {}).get("terminated") if waiting == "CrashLoopBackOff" else None
            ended = container.get("state", {}).get("terminated") or last
            if ended and ended.get("exitCode"):
                message = ended.get("message") or ended.get("reason", "")
                details = {"message": message, "exitCode": ended["exitCode"], "location": pod["metadata"]["name"]}
                return {"reason": "ModelLoadFailed", **details}
    return None


def _failure_info(before: JSON, info: JSON, now: datetime) -> JSON:
    """With the time it was first seen: the same failure again is no news."""
    old = before.get("lastFailureInfo") or {}
    same = {key: value for key, value in old.items() if key != "time"} == info
    return info | {"time": old["time"] if same and "time" in old else stamp(now)}


def _rolled_out(deployment: JSON | None) -> bool:
    """Every replica runs the newest template and is available."""
    if deployment is None:
        return False
    state, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    return bool(
        state.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
        and {wanted} == {state.get(key, 0) for key in ("updatedReplicas", "availableReplicas", "replicas")} != {0}
    )


def _states(active: str, target: str) -> JSON:
    return {"activeModelState": active, "targetModelState": target}


def _keep_time(condition: JSON, old: JSON, now: datetime) -> JSON:
    """The condition with the time its status last changed."""
    before = next((item for item in old.get("conditions") or [] if item["type"] == condition["type"]), None)
    same = before is not None and before["status"] == condition["status"]
    return condition | {"lastTransitionTime": before["lastTransitionTime"] if before and same else stamp(now)}


def _is_ready(pod: JSON) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _annotations(isvc: JSON) -> dict[str, str]:
    return isvc["metadata"].get("annotations") or {}
