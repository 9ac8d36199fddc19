"""The stand-ins for Training Operator and KServe against a real API server, each with its own rights and no more.

The server is this module's own: the stand-ins' CRDs have the names of the upstream ones, which other tests install.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from apiserver_fixture import REPOSITORY, ApiServer, child, started

from local.addons.client import ApiError, Client, Resource
from local.addons.controllers import DEPLOYMENTS, JOBS, PODS, SERVICES

pytestmark = pytest.mark.apiserver

JSON = dict[str, Any]
MANIFESTS = REPOSITORY / "local/addons/manifests"
PATIENCE = 30.0
HPAS = Resource("autoscaling/v1", "horizontalpodautoscalers")
ENTRIES = {
    "training": ("kubeflow", "training-operator", "run_training(client, 'addons:1')"),
    "kserve": ("kserve", "kserve-controller-manager", "KServe(client, 'addons:1').run()"),
}
JOB = """
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: j}
spec:
  runPolicy: {cleanPodPolicy: Running}
  pytorchReplicaSpecs:
    Master: &replica
      template: {spec: {containers: [{name: pytorch, image: train}]}}
    Worker: *replica
"""
ISVC = """
apiVersion: serving.kserve.io/v1alpha1
kind: ClusterServingRuntime
metadata: {name: rt}
spec:
  supportedModelFormats: [{name: f}]
  containers: [{name: kserve-container, image: serve}]
---
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: m}
spec:
  predictor:
    minReplicas: 1
    maxReplicas: 3
    model: {modelFormat: {name: f}, runtime: rt, storageUri: "s3://b/m"}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with started(tmp_path_factory.mktemp("addons")) as running:
        definitions = str(MANIFESTS / "00-crds.yaml")
        running.kubectl("apply", "-f", definitions)
        running.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", definitions)
        running.kubectl("apply", "-f", str(MANIFESTS))
        yield running


@dataclass(frozen=True)
class Place:
    """One test's namespace. No controller manager runs here, so a deleted owner leaves its children behind."""

    server: ApiServer
    client: Client
    name: str

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        return self.server.kubectl("--namespace", self.name, *arguments, given=given)

    def names(self, resource: Resource) -> list[str]:
        items = self.client.request("GET", resource.path(self.name))["items"]
        return sorted(item["metadata"]["name"] for item in items)

    def get(self, resource: Resource, name: str) -> JSON:
        return self.client.get(resource, self.name, name) or {}

    def phase(self, pod: str, value: str) -> None:
        self.client.replace_status(PODS, self.get(PODS, pod) | {"status": {"phase": value}})

    def last_condition(self) -> str:
        conditions = self.get(JOBS, "j").get("status", {}).get("conditions") or [{"type": ""}]
        return str(conditions[-1]["type"])


@pytest.fixture
def place(server: ApiServer) -> Iterator[Place]:
    name = f"t-{time.monotonic_ns()}"
    server.kubectl("create", "namespace", name)
    client = Client(server.url, token_file=_token_of_kubeconfig(server), ca_file=_authority(server))
    yield Place(server, client, name)
    server.kubectl("delete", "--all", "--namespace", name, "pytorchjobs,inferenceservices")
    client.close()


@pytest.fixture
def run(server: ApiServer, tmp_path: Path) -> Callable[[str], contextlib.AbstractContextManager[Any]]:
    """Runs one stand-in as its ServiceAccount while the block lasts."""

    def start(name: str) -> contextlib.AbstractContextManager[Any]:
        namespace, account, call = ENTRIES[name]
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = server.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(request))
        token = tmp_path / f"{name}.token"
        token.write_text(json.loads(answer)["status"]["token"])
        code = (
            "import pathlib\nfrom local.addons.client import Client\n"
            "from local.addons.controllers import run_training, KServe\n"
            f"client = Client({server.url!r}, token_file=pathlib.Path({str(token)!r}), "
            f"ca_file=pathlib.Path({str(_authority(server))!r}))\n{call}"
        )
        return _controller(code, tmp_path / f"{name}.log")

    return start


class Refused(Exception):  # noqa: N818  it is what happened
    """The controller had something to warn of: a right that it lacks, an object that is somebody else's."""


@contextlib.contextmanager
def _controller(code: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = ["env", f"PYTHONPATH={REPOSITORY}", "HEALTH_PORT=0"]
    with child([*env, sys.executable, "-W", "error", "-c", code], log) as process:
        yield process
        assert process.poll() is None, f"it ended by itself:\n{log.read_text()}"
    if log.read_text():
        raise Refused(log.read_text())


def _authority(server: ApiServer) -> Path:
    return server.folder / "certificates" / "apiserver.crt"


def _token_of_kubeconfig(server: ApiServer) -> Path:
    path = server.folder / "admin.token"
    path.write_text((server.folder / "tokens.csv").read_text().split(",")[0])
    return path


def until(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.05)
    return found


def writes(server: ApiServer) -> list[str]:
    """The server's counters of write requests to the kinds that the stand-ins write."""
    kinds = "pods|services|deployments|horizontalpodautoscalers|pytorchjobs|inferenceservices"
    verbs = "POST|PUT|PATCH|APPLY|DELETE"
    line = re.compile(rf'apiserver_request_total{{.*resource="(?:{kinds})".*verb="(?:{verbs})".*}} .+')
    return sorted(line.findall(server.kubectl("get", "--raw", "/metrics")))


def test_the_manifests_can_be_applied_again(server: ApiServer) -> None:
    lines = server.kubectl("apply", "-f", str(MANIFESTS)).splitlines()
    assert [line for line in lines if not line.endswith(" unchanged")] == []


def test_a_pytorchjob_from_its_creation_to_its_end(place: Place, run: Callable[[str], Any]) -> None:
    replicas = ["j-master-0", "j-worker-0"]
    with run("training"):
        place.kubectl("apply", "-f", "-", given=JOB)
        until(lambda: place.names(PODS) == place.names(SERVICES) == replicas, "a pod and a Service a replica")
        for name in replicas:
            place.phase(name, "Running")
        until(lambda: place.last_condition() == "Running", "the job runs")
        place.kubectl("delete", "pod", "j-worker-0", "--force", "--grace-period=0")
        until(lambda: place.names(PODS) == replicas, "the deleted pod is made anew")
        place.phase("j-worker-0", "Running")
        place.phase("j-master-0", "Succeeded")
        until(lambda: place.last_condition() == "Succeeded", "the master's success is the job's")
        until(lambda: place.names(PODS) == place.names(SERVICES) == ["j-master-0"], "cleanPodPolicy Running")


def test_an_inference_service_from_its_creation_to_its_stop(place: Place, run: Callable[[str], Any]) -> None:
    def made() -> list[list[str]]:
        return [place.names(kind) for kind in (DEPLOYMENTS, SERVICES, HPAS)]

    def deployment() -> JSON:
        return place.get(DEPLOYMENTS, "m-predictor")

    with run("kserve"):
        place.kubectl("apply", "-f", "-", given=ISVC)
        until(lambda: made() == [["m-predictor"]] * 3, "Deployment, Service and autoscaler")
        place.kubectl("scale", "deployment", "m-predictor", "--replicas=2")
        place.kubectl("label", "isvc", "m", "x=y")
        until(lambda: deployment()["spec"]["template"]["metadata"]["labels"].get("x") == "y", "labels reach the pods")
        assert deployment()["spec"]["replicas"] == 2, "the autoscaler's number is kept"
        place.kubectl("delete", "deployment", "m-predictor")
        until(lambda: made()[0] == ["m-predictor"], "the deleted Deployment is made anew")
        state = deployment()
        counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas", "readyReplicas"), 1)
        condition = {"type": "Available", "status": "True"}
        ready = {"observedGeneration": state["metadata"]["generation"], "conditions": [condition], **counts}
        place.client.replace_status(DEPLOYMENTS, state | {"status": ready})
        place.kubectl("wait", "--for=condition=Ready", "isvc/m", f"--timeout={PATIENCE:.0f}s")
        place.kubectl("annotate", "isvc", "m", "serving.kserve.io/stop=true")
        until(lambda: made() == [[], [], []], "a stopped InferenceService has nothing")


def test_a_name_that_somebody_else_has_is_left_to_them(place: Place, run: Callable[[str], Any]) -> None:
    place.kubectl("create", "service", "clusterip", "m-predictor", "--tcp=80")
    theirs = place.get(SERVICES, "m-predictor")
    with contextlib.suppress(Refused), run("kserve"):
        place.kubectl("apply", "-f", "-", given=ISVC)
        until(lambda: place.names(DEPLOYMENTS), "the Deployment, which comes first")
        time.sleep(0.5)  # nothing is to happen, and nothing announces that
    assert place.get(SERVICES, "m-predictor")["spec"] == theirs["spec"]


def test_idle_and_restarted_controllers_write_nothing(place: Place, run: Callable[[str], Any]) -> None:
    with run("training"), run("kserve"):
        place.kubectl("apply", "-f", "-", given=f"{JOB}---{ISVC}")
        until(lambda: len(place.names(PODS)) == 2 and place.names(HPAS), "all is made")
        before = until(lambda: _settled(place.server), "the writes come to an end")
    with run("training"), run("kserve"):
        time.sleep(3)  # likewise
        assert writes(place.server) == before


def _settled(server: ApiServer) -> list[str]:
    first = writes(server)
    time.sleep(1)  # likewise
    return first if writes(server) == first else []


def test_deletion_is_only_of_the_very_object(place: Place) -> None:
    place.kubectl("create", "service", "clusterip", "s", "--tcp=80")
    uid = place.get(SERVICES, "s")["metadata"]["uid"]
    place.client.delete(SERVICES, place.name, "s", "00000000-0000-0000-0000-000000000000")
    assert place.names(SERVICES) == ["s"], "one that came back under the name is another one"
    place.client.delete(SERVICES, place.name, "s", uid)
    assert place.names(SERVICES) == []
    place.client.delete(SERVICES, place.name, "s", uid)  # gone already is fine


def test_a_refusal_carries_the_servers_sentence(place: Place) -> None:
    bad = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "B", "namespace": place.name}}
    with pytest.raises(ApiError, match=r"spec\.ports") as caught:
        place.client.create(SERVICES, bad)
    assert caught.value.status == 422
