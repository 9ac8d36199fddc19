"""The stand-in for KServe: what an InferenceService and a runtime turn into, and what status says of it."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from local.addons import kserve

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
JSON = dict[str, Any]
GROUP = "serving.kserve.io"


def isvc(model: JSON | None = None, annotations: dict[str, str] | None = None, **predictor: Any) -> JSON:
    base = {"modelFormat": {"name": "pytorch"}, "runtime": "rt", "storageUri": "s3://bucket/m"}
    return {
        "apiVersion": f"{GROUP}/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "m-1",
            "namespace": "n",
            "uid": "u1",
            "labels": {"team": "a"},
            "annotations": {f"{GROUP}/deploymentMode": "Standard", "note": "x"} | (annotations or {}),
        },
        "spec": {"predictor": {"model": base | (model or {}), **predictor}},
    }


def runtime(name: str = "rt", **spec: Any) -> JSON:
    container = {
        "name": "kserve-container",
        "image": "serve:1",
        "args": ["--name={{.Name}}", "--team={{ .Labels.team }}"],
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
        "resources": {"limits": {"cpu": "1"}},
        "securityContext": {"runAsNonRoot": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/scratch"}],
    }
    formats = [{"name": "pytorch", "version": "1", "autoSelect": True}]
    base = {"supportedModelFormats": formats, "protocolVersions": ["v1"], "containers": [container]}
    return {"metadata": {"name": name}, "spec": base | {"volumes": [{"name": "tmp", "emptyDir": {}}]} | spec}


def render(service: JSON, *runtimes: JSON, secrets: list[JSON] | None = None) -> kserve.Children:
    return kserve.render(service, list(runtimes) or [runtime()], secrets or [], "addons:1", "autoscaling/v2")


def pod_of(children: kserve.Children) -> JSON:
    pod: JSON = children.deployment["spec"]["template"]["spec"]
    return pod


def test_labels_and_annotations_reach_the_pods_as_with_kserve() -> None:
    children = render(isvc(annotations={"kubectl.kubernetes.io/last-applied-configuration": "{}"}))
    labels = {
        "team": "a",
        f"{GROUP}/inferenceservice": "m-1",
        "component": "predictor",
        "app": "isvc.m-1-predictor",
    }
    template = children.deployment["spec"]["template"]
    assert template["metadata"]["labels"] == children.deployment["metadata"]["labels"] == labels
    uri = {"internal.serving.kserve.io/storage-initializer-sourceuri": "s3://bucket/m"}
    mode = {f"{GROUP}/deploymentMode": "Standard"}
    assert template["metadata"]["annotations"] == {"note": "x"} | mode | uri, "but not what kubectl apply leaves behind"
    assert children.deployment["spec"]["selector"] == {"matchLabels": {"app": "isvc.m-1-predictor"}}
    rolling = children.deployment["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxUnavailable": "25%", "maxSurge": "25%"}


def test_the_models_container_fields_go_over_the_runtimes() -> None:
    probe = {"httpGet": {"path": "/ping", "port": 8080}}
    model = {
        "args": ["--extra"],
        "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "{{.Name}}"}],
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}},
        "livenessProbe": probe,
    }
    container = pod_of(render(isvc(model)))["containers"][0]
    assert container["name"] == "kserve-container"
    assert container["image"] == "serve:1"
    assert container["args"] == ["--name=m-1", "--team=a", "--extra"], "arguments add up, placeholders are filled"
    assert [(item["name"], item["value"]) for item in container["env"]] == [("A", "1"), ("B", "3"), ("C", "m-1")]
    assert container["resources"] == {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}}
    assert container["livenessProbe"] == probe
    assert container["readinessProbe"]["tcpSocket"] == {"port": 8080}, "KServe's default where none is given"


def test_the_predictors_pod_fields_go_over_the_runtimes() -> None:
    predictor = {
        "serviceAccountName": "sa",
        "securityContext": {"runAsUser": 65532},
        "volumes": [{"name": "more", "emptyDir": {}}],
    }
    pod = pod_of(render(isvc(**predictor), runtime(nodeSelector={"a": "b"}, tolerations=[{"key": "k"}])))
    assert (pod["serviceAccountName"], pod["securityContext"]) == ("sa", {"runAsUser": 65532})
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"a": "b"}, [{"key": "k"}])
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp", "more", "kserve-provision-location"]
    assert "minReplicas" not in pod, "what is KServe's stays out of the pod"


def test_default_resources_where_nothing_is_said() -> None:
    bare = runtime(containers=[{"name": "kserve-container", "image": "serve:1"}])
    default = {"cpu": "1", "memory": "2Gi"}
    assert pod_of(render(isvc(), bare))["containers"][0]["resources"] == {"requests": default, "limits": default}


def test_the_storage_initializer_fills_the_folder_that_the_server_reads() -> None:
    secret = {
        "metadata": {
            "name": "s3",
            "annotations": {
                f"{GROUP}/s3-endpoint": "store.n:8333",
                f"{GROUP}/s3-usehttps": "0",
                f"{GROUP}/s3-region": "eu-1",
            },
        },
        "data": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    }
    other = {"metadata": {"name": "token"}, "data": {"token": ""}}
    pod = pod_of(render(isvc(), secrets=[other, secret]))
    (init,) = pod["initContainers"]
    assert (init["name"], init["image"], init["args"]) == (
        "storage-initializer",
        "addons:1",
        ["s3://bucket/m", "/mnt/models"],
    )
    assert init["securityContext"] == {"runAsNonRoot": True}, "it runs as the server does"
    reference = {
        item["name"]: item.get("valueFrom", {}).get("secretKeyRef", {}).get("name") for item in init["env"][:2]
    }
    assert reference == {"AWS_ACCESS_KEY_ID": "s3", "AWS_SECRET_ACCESS_KEY": "s3"}, "keys are never copied out"
    assert {item["name"]: item["value"] for item in init["env"][2:]} == {
        "S3_USE_HTTPS": "0",
        "S3_ENDPOINT": "store.n:8333",
        "AWS_ENDPOINT_URL": "http://store.n:8333",
        "AWS_DEFAULT_REGION": "eu-1",
    }
    mount = next(item for item in pod["containers"][0]["volumeMounts"] if item["mountPath"] == "/mnt/models")
    assert mount == {"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True}


def test_no_storage_uri_no_initializer() -> None:
    service = isvc()
    del service["spec"]["predictor"]["model"]["storageUri"]
    pod = pod_of(render(service))
    assert "initContainers" not in pod
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp"]


def test_the_service_leads_from_80_to_the_containers_port() -> None:
    ports = [{"containerPort": 9000, "name": "h1"}, {"containerPort": 9001}]
    container = {"name": "kserve-container", "image": "serve:1", "ports": ports}
    service = render(isvc(), runtime(containers=[container])).service
    assert service["metadata"]["name"] == "m-1-predictor"
    assert service["spec"]["selector"] == {"app": "isvc.m-1-predictor"}
    assert service["spec"]["ports"] == [
        {"name": "h1", "port": 80, "targetPort": 9000, "protocol": "TCP"},
        {"name": "port-9001", "port": 9001, "targetPort": 9001, "protocol": "TCP"},
    ]
    assert render(isvc()).service["spec"]["ports"][0]["targetPort"] == 8080, "8080 where the container names none"


SCALING = [
    ("room to scale", {"minReplicas": 1, "maxReplicas": 3}, {}, (1, 3), None, 1),
    ("no room", {"minReplicas": 2, "maxReplicas": 2}, {}, None, 2, 2),
    ("nothing said", {}, {}, None, 1, 1),
    ("somebody else scales", {"minReplicas": 2, "maxReplicas": 3}, {"autoscalerClass": "external"}, None, None, 2),
    ("nobody scales", {"minReplicas": 2, "maxReplicas": 3}, {"autoscalerClass": "none"}, None, 2, 2),
    ("to zero only by hand: an autoscaler keeps one", {"minReplicas": 0, "maxReplicas": 2}, {}, (1, 2), None, 1),
]


@pytest.mark.parametrize("case", SCALING, ids=[case[0] for case in SCALING])
def test_scaling(case: tuple[str, JSON, dict[str, str], tuple[int, int] | None, int | None, int]) -> None:
    reason, predictor, annotations, bounds, fixed, initial = case
    service = isvc(annotations={f"{GROUP}/{key}": value for key, value in annotations.items()}, **predictor)
    children = render(service)
    scaler = children.autoscaler
    assert (scaler and (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"])) == bounds, reason
    assert (children.fixed_replicas, children.initial_replicas) == (fixed, initial), reason


def test_the_autoscaler_follows_the_metric() -> None:
    scaler = render(isvc(minReplicas=1, maxReplicas=4, scaleMetric="memory", scaleTarget=60)).autoscaler
    assert scaler is not None
    assert scaler["apiVersion"] == "autoscaling/v2"
    assert scaler["spec"]["scaleTargetRef"]["name"] == "m-1-predictor"
    target = {"type": "Utilization", "averageUtilization": 60}
    assert scaler["spec"]["metrics"] == [{"type": "Resource", "resource": {"name": "memory", "target": target}}]


AUTO = {"runtime": None}
RUNTIMES = [
    ("the named one", {}, [runtime("other"), runtime("rt")], "rt"),
    ("one that offers itself for the format", AUTO, [runtime("no", supportedModelFormats=[]), runtime("yes")], "yes"),
    ("a disabled one offers nothing", AUTO, [runtime("off", disabled=True), runtime("on")], "on"),
    ("the version must fit", AUTO | {"modelFormat": {"name": "pytorch", "version": "1"}}, [runtime("v1")], "v1"),
]


@pytest.mark.parametrize("case", RUNTIMES, ids=[case[0] for case in RUNTIMES])
def test_choice_of_the_runtime(case: tuple[str, JSON, list[JSON], str]) -> None:
    reason, model, runtimes, expected = case
    assert kserve.choose_runtime(isvc(model), runtimes)["metadata"]["name"] == expected, reason


INVALID = [
    ("an unknown runtime", isvc({"runtime": "no"}), "RuntimeNotRecognized", "named no"),
    ("no runtime for the format", isvc(AUTO | {"modelFormat": {"name": "tf"}}), "NoSupportingRuntime", "format tf"),
    ("a runtime of another format", isvc({"modelFormat": {"name": "tf"}}), "NoSupportingRuntime", "does not support"),
    ("a protocol the runtime lacks", isvc({"protocolVersion": "v2"}), "NoSupportingRuntime", "protocol"),
    ("Knative", isvc(annotations={f"{GROUP}/deploymentMode": "Serverless"}), "InvalidPredictorSpec", "Serverless"),
    ("another storage", isvc({"storageUri": "gs://b/m"}), "InvalidPredictorSpec", "s3:// only"),
    ("an old form of the predictor", isvc(sklearn={}), "InvalidPredictorSpec", "predictor.sklearn"),
    ("bounds the wrong way round", isvc(minReplicas=3, maxReplicas=2), "InvalidPredictorSpec", "less than minReplicas"),
    ("a metric of Knative's", isvc(minReplicas=1, maxReplicas=2, scaleMetric="rps"), "InvalidPredictorSpec", "rps"),
]


@pytest.mark.parametrize("case", INVALID, ids=[case[0] for case in INVALID])
def test_what_cannot_be_served_is_said(case: tuple[str, JSON, str, str]) -> None:
    reason, service, code, words = case
    with pytest.raises(kserve.InvalidSpecError, match=words) as caught:
        render(service)
    assert caught.value.reason == code, reason
    status = kserve.status(service, None, [], caught.value, NOW)
    assert status["modelStatus"]["transitionStatus"] == "InvalidSpec", reason
    assert status["modelStatus"]["lastFailureInfo"]["reason"] == code, reason
    assert condition(status, "Ready") == ("False", code), reason


def test_a_placeholder_of_another_form_is_refused() -> None:
    with pytest.raises(kserve.InvalidSpecError, match=r"placeholder \{\{index"):
        render(isvc(), runtime(containers=[{"name": "kserve-container", "args": ['{{index .Labels "a/b"}}']}]))


def condition(status: JSON, kind: str) -> tuple[str, str]:
    found = next(item for item in status["conditions"] if item["type"] == kind)
    return found["status"], found.get("reason", "")


def deployment(*, available: bool, updated: int = 1, replicas: int = 1) -> JSON:
    word = {"status": "True"} if available else {"status": "False", "reason": "MinimumReplicasUnavailable"}
    counts = {"updatedReplicas": updated, "availableReplicas": replicas if available else 0, "replicas": replicas}
    state = {"observedGeneration": 3, **counts, "conditions": [{"type": "Available", **word}]}
    return {"metadata": {"generation": 3}, "spec": {"replicas": replicas}, "status": state}


def pod(container: str, state: JSON, last: JSON | None = None) -> JSON:
    group = "initContainerStatuses" if container == "storage-initializer" else "containerStatuses"
    item = {"name": container, "state": state, "lastState": last or {}}
    return {"metadata": {"name": "m-1-predictor-x"}, "status": {group: [item]}}


def test_a_predictor_that_is_up() -> None:
    status = kserve.status(isvc(), deployment(available=True), [], None, NOW)
    kinds = ("IngressReady", "PredictorReady", "Ready")
    assert [condition(status, kind) for kind in kinds] == [("True", "")] * 3
    assert status["url"] == status["address"]["url"] == "http://m-1-predictor.n.svc.cluster.local"
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"
    assert status["modelStatus"]["states"] == {"activeModelState": "Loaded", "targetModelState": "Loaded"}
    assert status["observedGeneration"] == 3, "the Deployment's, as KServe's is"


def test_predictor_ready_can_stay_true_on_old_pods() -> None:
    status = kserve.status(isvc(), deployment(available=True, updated=0), [], None, NOW)
    assert condition(status, "PredictorReady") == ("True", "")
    assert status["modelStatus"]["transitionStatus"] == "InProgress", "which is why nobody should rely on it alone"


def test_a_predictor_on_its_way() -> None:
    status = kserve.status(isvc(), None, [], None, NOW)
    assert condition(status, "PredictorReady") == ("Unknown", "Deploying")
    assert status["modelStatus"]["states"]["targetModelState"] == "Pending"
    loading = kserve.status(isvc(), deployment(available=False), [pod("kserve-container", {"running": {}})], None, NOW)
    assert condition(loading, "Ready") == ("False", "MinimumReplicasUnavailable")
    assert loading["modelStatus"]["states"]["targetModelState"] == "Loading"
    assert "url" not in loading


ended = {"terminated": {"exitCode": 1, "message": "no model found", "reason": "Error"}}
looping = {"waiting": {"reason": "CrashLoopBackOff"}}
LOADS = [
    ("the initializer failed", pod("storage-initializer", ended), "no model found"),
    ("the server keeps crashing", pod("kserve-container", looping, ended), "no model found"),
    ("a container of somebody else is no model", pod("sidecar", ended), None),
    ("the initializer is done", pod("storage-initializer", {"terminated": {"exitCode": 0}}), None),
    ("a single crash in the past", pod("kserve-container", {"running": {}}, ended), None),
]


@pytest.mark.parametrize("case", LOADS, ids=[case[0] for case in LOADS])
def test_failed_loads(case: tuple[str, JSON, str | None]) -> None:
    reason, failing, message = case
    found = kserve.status(isvc(), deployment(available=False), [failing], None, NOW)["modelStatus"]
    if message is None:
        assert found["transitionStatus"] == "InProgress", reason
        return
    assert (found["transitionStatus"], found["states"]["targetModelState"]) == ("BlockedByFailedLoad", "FailedToLoad")
    info = found["lastFailureInfo"]
    assert (info["reason"], info["message"], info["exitCode"]) == ("ModelLoadFailed", message, 1), reason


def test_a_failure_stands_until_a_model_is_loaded() -> None:
    failing = kserve.status(isvc(), deployment(available=False), [pod("storage-initializer", ended)], None, NOW)
    service = isvc() | {"status": failing}
    again = pod("storage-initializer", {"running": {}}, ended)
    between = kserve.status(service, deployment(available=False), [again], None, NOW)["modelStatus"]
    assert between["transitionStatus"] == "InProgress"
    assert between["lastFailureInfo"] == failing["modelStatus"]["lastFailureInfo"], "or it would flap between crashes"
    assert "lastFailureInfo" not in kserve.status(service, deployment(available=True), [], None, NOW)["modelStatus"]


def test_the_same_look_later_is_the_same_status() -> None:
    failing = [pod("storage-initializer", ended)]
    for pods, live in ([], deployment(available=True)), (failing, deployment(available=False)):
        first = kserve.status(isvc(), live, pods, None, NOW)
        service = isvc() | {"status": copy.deepcopy(first)}
        assert kserve.status(service, live, pods, None, NOW + timedelta(hours=1)) == first, "no change, no write"


def test_a_stopped_service_says_so() -> None:
    service = isvc(annotations={f"{GROUP}/stop": "true"})
    status = kserve.status(service, None, [], None, NOW)
    assert condition(status, "Stopped") == ("True", "")
    assert condition(status, "Ready") == ("False", "Stopped")
