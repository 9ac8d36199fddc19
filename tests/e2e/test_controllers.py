"""What the operator's renderers believe of the Training Operator, KServe and Istio, held against the running ones.

tests/contract reads what these publish; here they run. Training is looked at on jobs of the operator's own making under
other names, whose commands wait or fail; serving on the model that all scenarios share, which stays as it was.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from contract.webhooks import WRITES, Write, asked
from e2e.scenario import (
    NAMESPACE,
    STAGE_SECONDS,
    Model,
    Object,
    Platform,
    Predicate,
    condition,
    find_condition,
    is_ready,
)
from written import lost

from local.access import OPERATOR, SYSTEM, AccessError
from local.demo import PEOPLE
from mlplatform import api, contract
from mlplatform.cluster import Cluster, Rejected
from mlplatform.resources import inferenceservice, pytorchjob, service, servingruntime, virtualservice, workload
from mlplatform.resources.workload import Phase
from mlplatform.settings import Settings

PROBES = "e2e-controllers"
"""A namespace that enforces the restricted Pod Security Standard."""
WAITS, FAILS, ENDS = "e2e-waits", "e2e-fails", "e2e-ends"
RESTARTS = 3
PATIENCE = 90.0
"""Seconds within which a controller does what it was asked, its images there."""
KINDS = {
    "PyTorchJob": "pytorchjobs.kubeflow.org",
    "ServingRuntime": "servingruntimes.serving.kserve.io",
    "InferenceService": "inferenceservices.serving.kserve.io",
    "VirtualService": "virtualservices.networking.istio.io",
    "Service": "services",
}


@pytest.fixture(scope="module")
def probes(platform: Platform) -> Iterator[str]:
    """A namespace of this module's own."""
    platform.kubectl("delete", "namespace", PROBES, "--ignore-not-found", "--timeout=90s")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PROBES, "labels": labels}}
    platform.kubectl("create", "-f", "-", stdin=json.dumps(namespace))
    yield PROBES
    platform.kubectl("delete", "namespace", PROBES, "--wait=false")


def version_of(model: Model) -> str:
    """The version that serves."""
    return str(model.get()["status"]["stable"]["version"])


def get(platform: Platform, kind: str, name: str, namespace: str = NAMESPACE) -> Object:
    """An object as it is now."""
    found: Object = platform.cluster.get(kind, name, "-n", namespace)
    return found


def conditions(item: Object) -> dict[str, str]:
    """Status by type."""
    return {c["type"]: c["status"] for c in item["status"]["conditions"]}


def reasons(item: Object) -> dict[str, str]:
    """Reason by type."""
    return {c["type"]: c["reason"] for c in item["status"]["conditions"]}


def is_whole(sent: Any, stored: Any) -> bool:
    """Whether all that was sent is stored; the difference is in the failure's message."""
    assert list(lost(sent, stored, "")) == []
    return True


# What is written


def rendered(platform: Platform, model: Model, kind: str) -> Object:
    """What the operator writes for the model that serves, by the settings that it runs with."""
    deployment = get(platform, "deployment", OPERATOR, SYSTEM)
    env = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    settings = Settings.from_env({item["name"]: item.get("value", "") for item in env})
    live = model.get()
    version = get(platform, "modelversion", live["status"]["stable"]["version"])
    name = version["metadata"]["name"]
    if kind == "PyTorchJob":
        decoded = api.decode(api.ModelVersionSpec, version["spec"])
        return pytorchjob.render(version, decoded, settings, api.Scheduling())
    if kind == "ServingRuntime":
        return servingruntime.render(live, settings)
    if kind == "InferenceService":
        spec = api.decode(api.MLModelSpec, live["spec"])
        return inferenceservice.render(live, spec, name, version["status"]["storageUri"], settings)
    if kind == "VirtualService":
        # Until the version before it has gone, the header may ask for that, too.
        alone = platform.wait(
            "virtualservices",
            lambda route: {r["name"].partition("@")[2] for r in route["spec"]["http"]} == {"", name},
            f"no version but {name} is warm",
            PATIENCE,
            field_selector=f"metadata.name={model.name}",
        )
        return virtualservice.render(live, {name: 100}, [name], virtualservice.record(alone), settings)
    return service.render(live, name)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "PyTorchJob"])
def test_no_controller_and_no_webhook_changes_what_we_write(kind: str, model: Model, platform: Platform) -> None:
    # Given what the operator wrote, when the controllers have taken it up, then every field of it is as it was
    # (but for quantities: KServe's webhook writes 1024Mi as 1Gi)
    wanted = rendered(platform, model, kind)
    assert is_whole(wanted, get(platform, KINDS[kind], wanted["metadata"]["name"]))


# Training


@dataclass
class Training:
    """Jobs of the operator's making in their states, as they were seen.

    Attributes:
        sent: The job whose pods wait, as it was created.
        waiting: The same, while they run.
        pods: Its pods by name.
        services: Its Services by name.
        suspended: The job after it was suspended, its pods and Services gone.
        resumed: The job after it was resumed, its pods running again.
        failing: The job whose container fails, after its third restart.
        succeeded: The job whose containers end well, when it has ended.
    """

    sent: Object
    waiting: Object
    pods: dict[str, Object]
    services: dict[str, Object]
    suspended: Object
    resumed: Object
    failing: Object
    succeeded: Object


@pytest.fixture(scope="module")
def training(model: Model, platform: Platform, probes: str) -> Training:
    """Runs, suspends, resumes and fails jobs, looking at each state."""
    trained = rendered(platform, model, "PyTorchJob")
    programs = {WAITS: ["sleep", "infinity"], FAILS: ["false"], ENDS: ["true"]}
    made = [probe(trained, name, command) for name, command in programs.items()]
    del made[1]["spec"]["pytorchReplicaSpecs"]["Worker"]
    platform.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": made}))

    waiting = job_once(platform, WAITS, "runs", runs)
    selector = f"training.kubeflow.org/job-name={WAITS}"
    pods, services = (by_name(platform.list(kind, selector, probes)) for kind in ("pods", "services"))

    patch(platform, WAITS, pytorchjob.halt("Suspended"))
    suspended = job_once(platform, WAITS, "is suspended", lambda job: condition(job, "Suspended") == "True")
    is_gone(platform, [*pods, *(f"service/{name}" for name in services)])

    patch(platform, WAITS, pytorchjob.resume())
    resumed = job_once(platform, WAITS, "runs again", lambda j: condition(j, "Suspended") == "False" and runs(j))

    succeeded = job_once(platform, ENDS, "has succeeded", lambda job: condition(job, "Succeeded") == "True")
    platform.wait(
        "pods",
        lambda pod: any(c["restartCount"] >= RESTARTS for c in pod["status"].get("containerStatuses", ())),
        f"{FAILS}-master-0 is restarted",
        PATIENCE,
        namespace=probes,
        field_selector=f"metadata.name={FAILS}-master-0",
    )
    failing = get(platform, KINDS["PyTorchJob"], FAILS, probes)
    return Training(made[0], waiting, pods, services, suspended, resumed, failing, succeeded)


def probe(job: Object, name: str, command: list[str]) -> Object:
    """A job of the operator's under another name, with a command that needs no data and pods that are not the model's."""
    spec = json.loads(json.dumps(job["spec"]))  # as rendered, all replicas have one template
    for replica in spec["pytorchReplicaSpecs"].values():
        template = replica["template"]
        labels = template["metadata"]["labels"]
        template["metadata"]["labels"] = {k: v for k, v in labels.items() if not k.startswith(contract.GROUP)}
        template["spec"].pop("serviceAccountName")
        template["spec"]["terminationGracePeriodSeconds"] = 1
        container = template["spec"]["containers"][0]
        container.pop("envFrom")
        container |= {"command": command, "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}}}
    meta = {"name": name, "namespace": PROBES}
    return {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": meta, "spec": spec}


def runs(job: Object) -> bool:
    """Whether both pods run, and the job says so."""
    replicas = job.get("status", {}).get("replicaStatuses") or {}
    active = {kind: status.get("active") for kind, status in replicas.items()}
    return condition(job, "Running") == "True" and active == {"Master": 1, "Worker": 1}


def job_once(platform: Platform, name: str, what: str, until: Predicate) -> Object:
    """A job in `PROBES` once `until` holds."""
    selection = {"namespace": PROBES, "field_selector": f"metadata.name={name}"}
    return platform.wait("pytorchjobs", until, f"{name} {what}", PATIENCE, **selection)


def patch(platform: Platform, name: str, body: Object) -> None:
    """Merge-patches a job in `PROBES`."""
    platform.kubectl("patch", KINDS["PyTorchJob"], name, "-n", PROBES, "--type=merge", "-p", json.dumps(body))


def is_gone(platform: Platform, names: list[str]) -> None:
    """Waits for the end of pods (or of ``<kind>/<name>``) in `PROBES`."""
    for name in names:
        target = name if "/" in name else f"pod/{name}"
        platform.kubectl("wait", target, "-n", PROBES, "--for=delete", f"--timeout={PATIENCE:.0f}s")


def by_name(items: list[Object]) -> dict[str, Object]:
    """Objects by their names."""
    return {item["metadata"]["name"]: item for item in items}


REPLICAS = [("master", 0, "0"), ("worker", 0, "1")]
"""Type, index, and rank of the node."""


def test_a_training_has_a_pod_and_a_headless_service_for_each_worker(training: Training) -> None:
    # Given a training of two workers, then its pods and their Services have the names that leave room for the model's
    names = {f"{WAITS}-{kind}-{index}" for kind, index, _ in REPLICAS}
    assert training.pods.keys() == training.services.keys() == names
    for name, found in training.services.items():
        assert found["spec"]["clusterIP"] == "None", name
        assert [(port["name"], port["port"]) for port in found["spec"]["ports"]] == [("pytorchjob-port", 23456)], name
        assert found["spec"]["selector"].items() <= training.pods[name]["metadata"]["labels"].items(), name


@pytest.mark.parametrize(("kind", "index", "rank"), REPLICAS)
def test_the_training_operator_adds_to_a_pod_and_takes_nothing(
    kind: str, index: int, rank: str, training: Training
) -> None:
    # Given a pod of a training, then it has our labels and those that name its place
    found = training.pods[f"{WAITS}-{kind}-{index}"]
    template = training.waiting["spec"]["pytorchReplicaSpecs"][kind.title()]["template"]
    place = {
        "job-name": WAITS,
        "operator-name": "pytorchjob-controller",
        "replica-type": kind,
        "replica-index": str(index),
    }
    role = {"job-role": "master"} if kind == "master" else {}
    added = {f"training.kubeflow.org/{key}": value for key, value in (place | role).items()}
    assert found["metadata"]["labels"] == template["metadata"]["labels"] | added

    # And its container has our environment and what torchrun reads: ranks are the node's, not the process's
    (container,), (ours,) = found["spec"]["containers"], template["spec"]["containers"]
    assert container["name"] == "pytorch"
    master = {"MASTER_ADDR": f"{WAITS}-master-0", "MASTER_PORT": "23456"}
    size = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": rank}
    told = master | {f"PET_{name}": value for name, value in master.items()} | size
    told |= {"WORLD_SIZE": "2", "RANK": rank, "PYTHONUNBUFFERED": "1"}
    assert environment(container) == environment(ours) | told

    # And it restarts as we ask, with our security, beside an init container where it waits for the master
    assert found["spec"]["restartPolicy"] == "OnFailure"
    assert is_whole(template["spec"]["securityContext"], found["spec"]["securityContext"])
    assert is_whole(ours["securityContext"], container["securityContext"])
    waits = [c["name"] for c in found["spec"].get("initContainers", ())]
    assert waits == ([] if kind == "master" else ["init-pytorch"])


def environment(container: Object) -> dict[str, str]:
    """A container's variables."""
    return {item["name"]: item.get("value", "") for item in container["env"]}


def test_the_training_operator_changes_nothing_of_what_we_write(training: Training) -> None:
    # Given a training as the operator writes it, when it runs, then every field of it is as it was
    assert is_whole(training.sent, training.waiting)


def test_a_training_that_runs_says_so(training: Training) -> None:
    # Given pods that run, then the status counts them and says since when
    assert conditions(training.waiting) == {"Created": "True", "Running": "True"}
    assert reasons(training.waiting) == {"Created": "PyTorchJobCreated", "Running": "PyTorchJobRunning"}
    found = pytorchjob.read(training.waiting)
    assert (found.phase, found.started_at) == (Phase.ACTIVE, training.waiting["status"]["startTime"])


def test_a_suspended_training_holds_nothing(training: Training) -> None:
    # Given a training that was suspended (its pods and Services went), then it says so and keeps its first start, which
    # counts for nothing
    assert conditions(training.suspended) == {"Created": "True", "Running": "False", "Suspended": "True"}
    found = pytorchjob.read(training.suspended)
    assert training.suspended["status"]["startTime"] == training.waiting["status"]["startTime"]
    assert (found.phase, found.started_at) == (Phase.SUSPENDED, "")
    assert workload.halted(training.suspended)


def test_a_resumed_training_starts_anew(training: Training) -> None:
    # Given a training that was resumed, then it has a new start
    assert conditions(training.resumed) == {"Created": "True", "Running": "True", "Suspended": "False"}
    found = pytorchjob.read(training.resumed)
    assert found.phase is Phase.ACTIVE
    assert found.started_at > training.suspended["status"]["startTime"]


def test_a_training_that_fails_is_restarted_until_we_stop_it(training: Training) -> None:
    # Given a container that has failed again and again, then its job has not given up: the operator counts
    assert pytorchjob.read(training.failing).phase is Phase.ACTIVE
    assert condition(training.failing, "Failed") != "True"


def test_a_training_whose_master_ended_well_has_succeeded(training: Training) -> None:
    # Given a training whose containers ended well, then it says so, and counts no pod as running
    assert conditions(training.succeeded).items() >= {"Running": "False", "Succeeded": "True"}.items()
    found = pytorchjob.read(training.succeeded)
    assert (found.phase, found.reason) == (Phase.SUCCEEDED, "PyTorchJobSucceeded")
    assert found.finished_at == training.succeeded["status"]["completionTime"]
    replicas = training.succeeded["status"]["replicaStatuses"]
    assert replicas["Master"]["succeeded"] == 1
    assert [status.get("active", 0) for status in replicas.values()] == [0, 0]


# Serving


@dataclass
class Served:
    """The version that serves.

    Attributes:
        version: Its name.
        isvc: Its InferenceService.
        predictor: The name of what KServe makes of that.
        pods: Its serving pods.
    """

    version: str
    isvc: Object
    predictor: str
    pods: list[Object]


@pytest.fixture
def served(model: Model, platform: Platform) -> Served:
    """The version that serves, as it is now."""
    version = version_of(model)
    pods = platform.list("pods", f"app={inferenceservice.pod_label(version)}")
    assert pods, f"no pod has the label app={inferenceservice.pod_label(version)}"
    return Served(version, get(platform, KINDS["InferenceService"], version), f"{version}-predictor", pods)


def test_kserve_makes_a_deployment_and_a_service_of_the_names_we_route_to(served: Served, platform: Platform) -> None:
    # Given a version that serves, then its Deployment and its Service are named after it and select our label
    label = {"app": inferenceservice.pod_label(served.version)}
    assert get(platform, "deployment", served.predictor)["spec"]["selector"] == {"matchLabels": label}
    found = get(platform, "service", served.predictor)["spec"]
    assert found["selector"] == label
    ports = {port["port"]: port["targetPort"] for port in found["ports"]}
    assert ports == {80: inferenceservice.PORT, 8082: 8082}, "the second is where the pods' metrics are"


def test_the_apex_service_selects_the_pods(served: Served, model: Model, platform: Platform) -> None:
    # Given the Service with the model's name, then it leads to the version's pods
    slices = platform.cluster.get("endpointslices", "-n", NAMESPACE, "-l", f"kubernetes.io/service-name={model.name}")
    endpoints = [endpoint for found in slices["items"] for endpoint in found["endpoints"] or ()]
    addresses = {address for e in endpoints if e["conditions"]["ready"] for address in e["addresses"]}
    assert addresses == {found["status"]["podIP"] for found in served.pods if is_ready(found)}


def test_pods_are_what_we_ask_of_them(served: Served, platform: Platform) -> None:
    # Given the pods of a version, then they carry its labels and annotations, so these hold nothing that a release changes
    predictor, meta = served.isvc["spec"]["predictor"], served.isvc["metadata"]
    assert meta["annotations"].keys() == {inferenceservice.MODE, "modelFormat"}
    runtime = get(platform, KINDS["ServingRuntime"], inferenceservice.runtime(served.isvc))["spec"]
    for found in served.pods:
        assert meta["labels"].items() <= found["metadata"]["labels"].items()
        assert servingruntime.of_pod(found) == inferenceservice.runtime(served.isvc)

        # And run as we say
        for key in ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext"):
            assert is_whole(predictor[key], found["spec"][key]), key
        (container,) = found["spec"]["containers"]
        assert container["name"] == "kserve-container"
        assert is_whole(predictor["model"]["resources"], container["resources"])
        for key in ("image", "securityContext", "startupProbe", "readinessProbe", "livenessProbe"):
            assert is_whole(runtime["containers"][0][key], container[key]), key
        assert environment(container).items() >= environment(predictor["model"]).items()

        # And get their archive from KServe's init container
        assert [c["name"] for c in found["spec"]["initContainers"]] == ["storage-initializer"]


def test_kserve_says_where_a_version_stands(served: Served) -> None:
    # Given a version that serves, then KServe says so, and names the address that we route to
    status = served.isvc["status"]
    expected = {"PredictorReady": "True", "IngressReady": "True", "Ready": "True", "Stopped": "False"}
    assert expected.items() <= conditions(served.isvc).items()
    assert status["address"]["url"].startswith(f"http://{inferenceservice.service(served.version)}.{NAMESPACE}.svc.")
    assert status["modelStatus"]["transitionStatus"] == "UpToDate"
    assert status["modelStatus"]["states"]["activeModelState"] == "Loaded"


def test_kserve_leaves_the_routes_to_us(served: Served, platform: Platform) -> None:
    # Given a version that serves, then no VirtualService is KServe's, and no Ingress leads to it past the model's weights
    for kind in (KINDS["VirtualService"], "ingresses"):
        routes = platform.cluster.get(kind, "-n", NAMESPACE)["items"]
        owners = {owner["name"] for route in routes for owner in route["metadata"].get("ownerReferences", ())}
        assert served.version not in owners, kind


PATHS = {
    "/predict": 200, "/health": 200, "/predictions/{model}": 200, "/v1/models/{model}:predict": 200,
    "/v2/models/{model}/infer": 200, "/": 404, "/ping": 404, "/metrics": 404, "/models": 404, "/models/{model}": 404,
    "/predictions/{model}/{version}": 404, "/v1/models/{model}": 404, "/v2/health/ready": 404, "/explanations/{model}": 404,
    "/api-description": 404,
}  # fmt: skip
"""What the gateway lets in is what the contract says, and nothing else of the server."""


@pytest.mark.parametrize("path", PATHS)
def test_only_the_paths_of_the_contract_answer(path: str, served: Served, model: Model, platform: Platform) -> None:
    # Given a cluster in which an Ingress of class istio would be served
    assert platform.cluster.get("ingressclass", "istio")["spec"]["controller"] == "istio.io/ingress-controller"

    # Then a path answers at the model's address or not at all, and none does where KServe would publish the version
    body = {"features": PEOPLE[0]}
    asked = path.format(model=model.name, version=served.version)
    allowed = {True} if PATHS[path] == 200 else {False}
    assert {model.asks(asked, given) != 404 for given in (None, body)} == allowed
    settings = json.loads(get(platform, "configmap", "inferenceservice-config", "kserve")["data"]["ingress"])
    for name in (served.version, served.predictor):
        assert model.asks(asked, host=f"{name}-{NAMESPACE}.{settings['ingressDomain']}") == 404, name


def test_bounds_reach_the_autoscaler_and_restart_nothing(served: Served, model: Model, platform: Platform) -> None:
    # Given a version with one pod at most
    sound, before = model.spec, revision(platform, served)
    scaler = get(platform, "horizontalpodautoscaler", served.predictor)["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": served.predictor}
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 1)

    # When two are allowed, then the autoscaler has them, and the Deployment is what it was: no pod is replaced
    try:
        model.is_changed(serving={"replicas": {"min": 1, "max": 2}})
        allows(platform, served, 2)
        assert revision(platform, served) == before
    finally:
        model.is_applied(sound)
    allows(platform, served, 1)
    assert model.becomes_ready(STAGE_SECONDS)["status"]["latestVersion"] == served.version


def revision(platform: Platform, served: Served) -> str:
    """Of the version's Deployment: it counts its pod templates."""
    annotations = get(platform, "deployment", served.predictor)["metadata"]["annotations"]
    return str(annotations["deployment.kubernetes.io/revision"])


def allows(platform: Platform, served: Served, most: int) -> None:
    """Waits until the autoscaler allows so many pods."""
    wanted = f"--for=jsonpath={{.spec.maxReplicas}}={most}"
    platform.kubectl("wait", f"hpa/{served.predictor}", "-n", NAMESPACE, wanted, f"--timeout={PATIENCE:.0f}s")


def test_kserve_says_which_runtime_is_missing(served: Served, platform: Platform, probes: str) -> None:
    # Given an InferenceService whose runtime is not installed, then KServe's words for it are where we read them
    manifest = copied(served.isvc, "e2e-no-runtime")
    manifest["spec"]["predictor"]["model"]["runtime"] = "no-such-runtime"
    seen = isvc_once(
        platform, manifest, lambda item: "lastFailureInfo" in item.get("status", {}).get("modelStatus", {})
    )
    assert manifest["metadata"]["namespace"] == probes
    assert seen["status"]["modelStatus"]["transitionStatus"] == "InvalidSpec"
    assert seen["status"]["modelStatus"]["lastFailureInfo"] == {
        "reason": "RuntimeNotRecognized",
        "message": "Waiting for runtime to become available",
    }


def test_kserve_makes_no_pods_for_names_too_long_together(served: Served, platform: Platform, probes: str) -> None:
    # Given names of which `<version>-predictor-<namespace>` is longer than 63, then KServe says so, and makes nothing
    name = "v" * (64 - len(f"-predictor-{probes}"))
    runtime = get(platform, KINDS["ServingRuntime"], inferenceservice.runtime(served.isvc))
    platform.kubectl("create", "-f", "-", stdin=json.dumps(copied(runtime, runtime["metadata"]["name"])))
    seen = isvc_once(platform, copied(served.isvc, name), lambda item: condition(item, "PredictorReady") == "False")
    assert "must be no more than 63 characters" in find_condition(seen, "PredictorReady")["message"]
    assert platform.list("deployments", f"serving.kserve.io/inferenceservice={name}", probes) == []


def isvc_once(platform: Platform, manifest: Object, until: Predicate) -> Object:
    """Creates an InferenceService; returns it once `until` holds."""
    platform.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
    name = manifest["metadata"]["name"]
    selection = {"namespace": PROBES, "field_selector": f"metadata.name={name}"}
    return platform.wait("inferenceservices", until, f"{name} has a status of KServe's", PATIENCE, **selection)


# Webhooks


@pytest.mark.parametrize("write", [w for w in WRITES if w.policies], ids=lambda write: write.reason)
def test_webhooks_fail_closed(write: Write, platform: Platform) -> None:
    # Given the add-ons as they run, then nothing is stored past the webhook that judges it
    kinds = "validatingwebhookconfigurations,mutatingwebhookconfigurations"
    found = asked(platform.cluster.get(kinds)["items"], write)
    assert write.policies.keys() <= found.keys(), write.reason
    for name in write.policies:
        assert found[name]["failurePolicy"] == "Fail", name
        assert found[name]["clientConfig"]["caBundle"], name


Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Refused:
    """A mistake that a webhook finds.

    Attributes:
        reason: The mistake, in words.
        kind: Of the object with it.
        path: Where it lies in the object.
        value: What it is.
        webhook: Who finds it.
        words: What the operator is told.
    """

    reason: str
    kind: str
    path: Keys
    value: Any
    webhook: str
    words: str


MASTER: Keys = ("spec", "pytorchReplicaSpecs", "Master")
CONTAINER: Keys = (*MASTER, "template", "spec", "containers", 0)
TRAINING = "validator.pytorchjob.training-operator.kubeflow.org"
KSERVE = "inferenceservice.kserve-webhook-server.validator"
ISTIO = "validation.istio.io"


def split(*weights: int) -> list[Object]:
    """Destinations with these weights."""
    return [{"destination": {"host": f"v{i}-predictor"}, "weight": weight} for i, weight in enumerate(weights)]


REFUSED = [
    Refused(
        "a container of another name", "PyTorchJob", (*CONTAINER, "name"), "trainer", TRAINING,
        "must have at least one container with name pytorch",
    ),
    Refused("no image", "PyTorchJob", (*CONTAINER, "image"), "", TRAINING, "containers[0].image: Required value"),
    Refused(
        "two masters", "PyTorchJob", (*MASTER, "replicas"), 2, TRAINING,
        "spec.pytorchReplicaSpecs[Master].replicas: Forbidden: must be 1",
    ),
    Refused(
        "a name that no Service may have", "PyTorchJob", ("metadata", "name"), "1-train", TRAINING,
        "a DNS-1035 label must consist of lower case alphanumeric characters",
    ),
    Refused(
        "more pods at least than at most", "InferenceService", ("spec", "predictor", "minReplicas"), 9, KSERVE,
        "'MinReplicas' cannot be greater than MaxReplicas",
    ),
    Refused(
        "an unknown autoscaler", "InferenceService",
        ("metadata", "annotations", "serving.kserve.io/autoscalerClass"), "sometimes", KSERVE,
        "[sometimes] is not a supported autoscaler class type",
    ),
    Refused(
        "a name that starts with a digit", "InferenceService", ("metadata", "name"), "1-model", KSERVE,
        "must start with alphabetical character",
    ),
    Refused("a weight below nothing", "VirtualService", ("spec", "http", 0, "route"), split(-1, 101), ISTIO, "weight -1 < 0"),
    Refused(
        "weights of nothing", "VirtualService", ("spec", "http", 0, "route"), split(0, 0), ISTIO,
        "total destination weight = 0",
    ),
]  # fmt: skip


def copied(item: Object, name: str) -> Object:
    """What a live object says, under another name in `PROBES`."""
    annotations = {k: v for k, v in item["metadata"].get("annotations", {}).items() if not k.startswith(contract.GROUP)}
    meta = {"name": name, "namespace": PROBES, "annotations": annotations}
    return {**{key: copy.deepcopy(item[key]) for key in ("apiVersion", "kind", "spec")}, "metadata": meta}


@pytest.mark.parametrize("mistake", REFUSED, ids=lambda mistake: mistake.reason)
def test_a_webhook_refuses_a_mistake_in_its_own_words(
    mistake: Refused, served: Served, model: Model, platform: Platform, probes: str
) -> None:
    # Given what the operator writes, with a mistake
    if mistake.kind == "PyTorchJob":  # Its own has gone with the stage's end.
        written = rendered(platform, model, mistake.kind)
    else:
        written = get(platform, KINDS[mistake.kind], {"VirtualService": model.name}.get(mistake.kind, served.version))
    manifest = changed(copied(written, "e2e-refused"), mistake.path, mistake.value)
    assert manifest["metadata"]["namespace"] == probes

    # When the operator's own writer sends it, then it is told which webhook refused it, and why
    with pytest.raises(Rejected) as refusal:
        Cluster(platform.api).create(manifest)
    assert f'admission webhook "{mistake.webhook}" denied the request' in str(refusal.value), mistake.reason
    assert mistake.words in str(refusal.value), mistake.reason


def changed(manifest: Object, path: Keys, value: Any) -> Object:
    """The manifest with the value at this path."""
    target: Any = manifest
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return manifest


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("RawDeployment", ""),
        ("Knative", "deploymentMode cannot be changed from 'Standard' to 'Knative'"),
    ],
    ids=["the older name of the mode is the mode", "another mode is refused"],
)
def test_kserve_keeps_the_mode_that_a_version_was_made_in(
    mode: str, words: str, served: Served, platform: Platform
) -> None:
    # Given a version that serves, when another mode is asked for, then KServe lets it be what it is
    annotation = f"serving.kserve.io/deploymentMode={mode}"
    command = ("annotate", KINDS["InferenceService"], served.version, "-n", NAMESPACE, annotation, "--overwrite")
    if not words:
        platform.kubectl(*command, "--dry-run=server")
        return
    with pytest.raises(AccessError, match=words):
        platform.kubectl(*command, "--dry-run=server")
