"""The operator's process and its writer against a real API server.

The server is this module's own: the operator must find it without the add-ons' kinds, and alone when it is idle.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import yaml
from apiserver_fixture import CRD_FOLDER, REPOSITORY, ApiServer, binary, kubeconfig, started
from contract import modules
from kubernetes import client, config
from operator_program import MLMODEL, Program, apply, eventually, get

from mlplatform import contract
from mlplatform.actions import Delete, Event, Patch, Ref
from mlplatform.cluster import Cluster, Conflict, Forbidden, NameTaken, Rejected, path
from mlplatform.main import FINALIZER
from mlplatform.resources import KINDS, virtualservice
from mlplatform.resources.metadata import labels, taken_over
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, annotations_of, condition, moment, name_of, stamp

pytestmark = pytest.mark.apiserver


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with started(tmp_path_factory.mktemp("operator-apiserver")) as found:
        found.install_crds(*sorted(CRD_FOLDER.glob("mlplatform.dev_*.yaml")))
        yield found


@pytest.fixture
def operator(server: ApiServer, tmp_path: Path) -> Iterator[Program]:
    program = Program(server, tmp_path / "operator.log")
    program.start()
    yield program
    assert program.process
    if program.process.poll() is None:
        program.stop(kill=True)


def test_it_is_asked_by_ipv6_too(operator: Program) -> None:
    """A pod may have no other address."""
    for port, page in ((operator.health, "healthz"), (operator.metrics, "metrics")):
        with urllib.request.urlopen(f"http://[::1]:{port}/{page}") as answer:
            assert answer.status == 200, page


class Wire:
    """The network between one operator and the API server; cut, it carries nothing and says nothing."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.whole = threading.Event()
        self.whole.set()
        self._target = urlsplit(server.url).port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.kubeconfig = folder / "kubeconfig-by-wire"
        port = self._door.getsockname()[1]
        self.kubeconfig.write_text(server.kubeconfig.read_text().replace(f":{self._target}", f":{port}"))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                self.whole.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def namespace(server: ApiServer, request: pytest.FixtureRequest) -> str:
    # Short: KServe's host names hold the namespace, too.
    name = (
        f"{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())[5:20].strip('-')}-{contract.digest(request.node.name)}"
    )
    server.kubectl("create", "namespace", name)
    return name


def model_condition(server: ApiServer, namespace: str, kind: str) -> tuple[str, str]:
    found = condition(get(server, namespace, "mlmodel/adult-income"), kind)
    return found.get("status", ""), found.get("reason", "")


def writes(server: ApiServer) -> dict[str, float]:
    """Requests so far that change something of a kind that the operator writes, by verb and resource.

    Services apart: the server keeps one of its own.
    """
    pattern = re.compile(
        r'apiserver_request_total\{.*resource="([a-z]+)".*verb="(POST|PUT|PATCH|APPLY|DELETE)".*\} (\S+)'
    )
    found: dict[str, float] = {}
    for line in server.kubectl("get", "--raw", "/metrics").splitlines():
        if (match := pattern.match(line)) and match[1] in {kind.plural for kind in KINDS.values()} - {"services"}:
            found[f"{match[2]} {match[1]}"] = found.get(f"{match[2]} {match[1]}", 0) + float(match[3])
    return found


def test_life_of_a_model_on_a_real_api_server(server: ApiServer, operator: Program, namespace: str) -> None:
    """One story, in order: a missing add-on, its installation, training begun, idleness, restarts, deletion."""
    apply(server, namespace)
    missing = ("False", "AddOnMissing")
    eventually(
        lambda: model_condition(server, namespace, "VersionReady") == missing, lambda: operator.log.read_text()[-3000:]
    )

    server.install_crds(*modules.crds())
    eventually(lambda: model_condition(server, namespace, "VersionReady") == ("Unknown", "Training"))
    [version] = get(server, namespace, "modelversions")["items"]
    job = get(server, namespace, f"pytorchjob/{version['metadata']['name']}-train")
    assert job["metadata"]["ownerReferences"][0]["uid"] == version["metadata"]["uid"]
    events = {(e["involvedObject"]["kind"], e["reason"]) for e in get(server, namespace, "events")["items"]}
    assert {("MLModel", "VersionCreated"), ("ModelVersion", "TrainingStarted")} <= events

    eventually(lambda: version_settled(server, namespace))
    before = writes(server)
    assert before, "nothing is counted"
    time.sleep(10)  # idleness is the absence of something: there is no event to wait for
    assert writes(server) == before, f"an idle operator writes nothing\n{operator.log.read_text()[-3000:]}"

    for kill in (True, False):
        operator.stop(kill=kill)
        operator.start()
    time.sleep(3)  # likewise
    assert writes(server) == before, "and neither does one that has just started"
    assert operator.memory() < 250

    server.kubectl("-n", namespace, "delete", "mlmodel", "adult-income", "--timeout=10s")
    server.kubectl("-n", namespace, "delete", "modelversion", version["metadata"]["name"], "--timeout=10s")
    assert operator.stop() == 0


def test_nothing_waits_for_an_operator_that_is_gone(server: ApiServer, operator: Program, namespace: str) -> None:
    """What earlier releases have put on their objects is taken off, and nothing is put on any."""
    apply(server, namespace)
    eventually(lambda: model_condition(server, namespace, "Accepted")[0] == "True", operator.log.read_text)
    [version] = get(server, namespace, "modelversions")["items"]
    named = ["mlmodel/adult-income", f"modelversion/{name_of(version)}"]
    assert [get(server, namespace, name)["metadata"].get("finalizers") for name in named] == [None, None]
    operator.stop()
    for name in named:
        older = json.dumps({"metadata": {"finalizers": [FINALIZER]}})
        server.kubectl("-n", namespace, "patch", name, "--type=merge", "-p", older)
    operator.start()
    for name in named:
        eventually(lambda name=name: "finalizers" not in get(server, namespace, name)["metadata"])
    operator.stop(kill=True)
    server.kubectl("-n", namespace, "delete", *named, "--timeout=10s")


def grant(server: ApiServer, *namespaces: str) -> None:
    """The chart's own roles for an operator that watches these namespaces, in a release in `default`."""
    values = f"store.existingSecret=any,operator.watchNamespaces={{{','.join(namespaces)}}}"
    command = [binary("helm"), "template", "mlplatform", str(REPOSITORY / "charts/mlplatform"), "--namespace=default"]
    command += ["--set", values, "--show-only", "templates/rbac.yaml"]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    server.kubectl("apply", "-f", "-", given=rendered)


def test_a_namespace_that_is_not_there_or_takes_its_rights_along_holds_up_nothing(
    server: ApiServer, tmp_path: Path
) -> None:
    """Of the namespaces that it is to watch, one stays, one is being deleted, one is made later on."""
    stays, goes, comes = names = ("watched-stays", "watched-goes", "watched-comes")
    for name in (stays, goes):
        server.kubectl("create", "namespace", name)
    grant(server, stays, goes)
    server.kubectl("create", "serviceaccount", "mlplatform-operator", "-n", "default")
    token = server.kubectl("create", "token", "mlplatform-operator", "-n", "default").strip()
    own = tmp_path / "kubeconfig"
    authority = server.folder / "certificates/apiserver.crt"
    own.write_text(yaml.safe_dump(kubeconfig(server.url, authority, {"token": token})))
    operator = Program(server, tmp_path / "log", own, "default/mlplatform-operator", namespaces=",".join(names))
    operator.start()
    try:
        for name in (stays, goes):
            apply(server, name)
            eventually(lambda name=name: model_condition(server, name, "Accepted")[0] == "True", operator.log.read_text)

        server.kubectl("-n", goes, "delete", "rolebinding", "mlplatform-operator")
        server.kubectl("-n", goes, "delete", "mlmodel,modelversion", "--all", "--timeout=10s")
        server.kubectl("create", "namespace", comes)
        apply(server, comes)
        time.sleep(3)  # it meets what it may not see
        grant(server, stays, comes)
        eventually(lambda: model_condition(server, comes, "Accepted")[0] == "True", operator.log.read_text)
        server.kubectl(
            "-n", stays, "patch", "mlmodel/adult-income", "--type=merge", "-p", '{"spec": {"suspend": true}}'
        )
        eventually(lambda: get(server, stays, "mlmodel/adult-income")["status"]["observedGeneration"] == 2)
    finally:
        operator.stop(kill=True)


def test_a_request_that_cannot_be_carried_out_is_taken_off(
    server: ApiServer, operator: Program, namespace: str
) -> None:
    apply(server, namespace)
    eventually(lambda: model_condition(server, namespace, "Accepted")[0] == "True", operator.log.read_text)
    asked = f"{contract.ANNOTATION_ROLLBACK}=yesterday"
    server.kubectl("-n", namespace, "annotate", "mlmodel", "adult-income", asked)
    eventually(
        lambda: contract.ANNOTATION_ROLLBACK not in annotations_of(get(server, namespace, "mlmodel/adult-income")),
        lambda: operator.log.read_text()[-3000:],
    )
    eventually(lambda: "RollbackRefused" in {e["reason"] for e in get(server, namespace, "events")["items"]})


def ingress(host: str) -> str:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    rule = {"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    meta = {"name": "web"}
    return json.dumps(
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta, "spec": {"rules": [rule]}}
    )


def test_who_has_a_host_keeps_it_and_the_next_is_woken(
    server: ApiServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an Ingress of somebody else's the watch for KServe's tells."""
    host = "credit.example.com"
    monkeypatch.setenv("MLPLATFORM_GATEWAY_HOSTS", f"{namespace}/{host}")
    operator = Program(server, tmp_path / "operator.log")
    operator.start()

    def answer(name: str) -> str:
        return str(condition(get(server, namespace, f"mlmodel/{name}"), "HostAssigned").get("message", ""))

    def says(name: str, part: str) -> None:
        eventually(lambda: part in answer(name), lambda: f"{answer(name)}\n{operator.log.read_text()[-3000:]}")

    try:
        apply(server, namespace, ingress(host))
        for name in ("adult-income", "younger"):
            model = yaml.safe_load(MLMODEL)
            model["metadata"]["name"] = name
            model["spec"].setdefault("serving", {})["host"] = host
            apply(server, namespace, json.dumps(model))
            says(name, f"Ingress {namespace}/web has {host}")
        server.kubectl("-n", namespace, "delete", "ingress", "web")
        says("adult-income", f"{host} is this model's")
        says("younger", f"MLModel {namespace}/adult-income has {host}")
        assert get(server, namespace, "mlmodel/adult-income")["status"]["url"] == f"http://{host}"
        server.kubectl("-n", namespace, "delete", "mlmodel", "adult-income", "--timeout=10s")
        says("younger", f"{host} is this model's")
    finally:
        operator.stop(kill=True)


def version_settled(server: ApiServer, namespace: str) -> bool:
    [version] = get(server, namespace, "modelversions")["items"]
    return bool(condition(version, "Trained").get("reason") == "Running")


class Changes:
    """People who never stop applying models, one after another, and when each was first seen to be acted on."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        self.cluster, self.applied = Cluster(connect_to(server)), list[str]()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._apply, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _apply(self) -> None:
        model = yaml.safe_load(MLMODEL)
        while not self._end.wait(0.5):
            name = f"model-{len(self.applied)}"
            meta = {"name": name, "namespace": self.namespace}
            assert self.cluster.create({**model, "metadata": meta})
            self.applied.append(name)

    def versions(self) -> list[str]:
        """The models that have a version, once for each version."""
        return [v["spec"]["model"] for v in get(self.server, self.namespace, "modelversions")["items"]]

    def acted_on(self, seconds: float) -> None:
        """Until what is applied from now on is acted on."""
        start, before = time.monotonic(), len(self.applied)
        while not {f"model-{n}" for n in range(before, len(self.applied))} & {*self.versions()}:
            assert time.monotonic() < start + seconds, f"nobody has acted for {seconds} s"
            time.sleep(0.2)  # what is waited for is the effect of another process


FAILOVER = 15.0
"""Seconds."""


def test_two_operators_one_writes(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    """One story under changes: the one that writes is cut off, comes back, and is then all there is when the other dies."""
    wire, lease = Wire(server, tmp_path), f"{namespace}/operator"
    one = Program(server, tmp_path / "one.log", wire.kubeconfig, lease, "one")
    two = Program(server, tmp_path / "two.log", None, lease, "two")
    try:
        one.start()
        eventually(one.leads, one.log.read_text)
        two.start()
        assert two.healthy(), "one that waits is well"
        assert (one.leads(), two.leads()) == (True, False)
        with Changes(server, namespace) as changes:
            changes.acted_on(FAILOVER)
            wire.whole.clear()
            cut, stopped = time.monotonic(), None
            while not two.leads():
                if not one.leads():
                    stopped = stopped or time.monotonic()
                assert time.monotonic() < cut + FAILOVER, two.log.read_text()[-3000:]
            assert stopped is not None, "the one that is cut off stops before the other begins"
            assert not one.leads()
            changes.acted_on(FAILOVER - (time.monotonic() - cut))
            wire.whole.set()
            assert one.process
            assert one.process.wait(timeout=20) == 1, "it sees that another one writes, and ends"
            one.start()
            assert (one.leads(), two.leads()) == (False, True)
            two.stop(kill=True)
            changes.acted_on(FAILOVER)
        eventually(lambda: len(changes.versions()) == len(changes.applied))
        assert one.stop() == 0
        given = get(server, namespace, "lease/operator")["spec"].get("holderIdentity", "")
        assert given == "", "one that ends gives it back: nobody need wait for its end"
        assert sorted(changes.versions()) == sorted(changes.applied), "one version each"
        said = [
            (e["involvedObject"]["uid"], e["reason"], e["message"]) for e in get(server, namespace, "events")["items"]
        ]
        created = [entry for entry in said if entry[1] == "VersionCreated"]
        assert len(created) == len({*created}), "nothing was done twice"
    finally:
        wire.whole.set()
        wire.close()
        for program in (one, two):
            if program.process and program.process.poll() is None:
                program.stop(kill=True)


QUOTA = """
apiVersion: v1
kind: ResourceQuota
metadata: {name: none}
spec: {hard: {pods: "0"}}
"""


def test_pods_that_a_quota_refuses_are_told_of(server: ApiServer, operator: Program, namespace: str) -> None:
    """No controller runs here: the pod is asked for, and the event posted, as the Training Operator 1.9 does."""
    server.install_crds(*modules.crds())
    server.kubectl("-n", namespace, "create", "-f", "-", given=QUOTA)
    counted = json.dumps({"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}})
    server.kubectl(
        "-n", namespace, "patch", "resourcequota", "none", "--subresource=status", "--type=merge", "-p", counted
    )
    apply(server, namespace)
    [job] = eventually(lambda: get(server, namespace, "pytorchjobs")["items"])
    master = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name_of(job)}-master-0"}, "spec": master["spec"]}
    refused = server.run(
        "-n",
        namespace,
        "create",
        "-f",
        "-",
        given=json.dumps({**pod, "spec": {**pod["spec"], "restartPolicy": "OnFailure"}}),
    )
    words = refused.stderr.strip().rpartition("(Forbidden): ")[2].partition(": ")[2]
    assert words.startswith(f'pods "{name_of(job)}-master-0" is forbidden: exceeded quota: none'), refused.stderr
    cluster = Cluster(connect_to(server))
    about = {"apiVersion": job["apiVersion"], "kind": "PyTorchJob", "namespace": namespace, "name": name_of(job)}
    when = stamp(datetime.now(UTC))
    cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": "refused", "namespace": namespace},
            "involvedObject": {**about, "uid": job["metadata"]["uid"]},
            "type": "Warning",
            "reason": "FailedCreatePod",
            "message": f"Error creating: {words}",
            "source": {"component": "pytorchjob-controller"},
            "firstTimestamp": when,
            "lastTimestamp": when,
            "count": 1,
        }
    )
    eventually(lambda: model_condition(server, namespace, "Ready") == ("False", "PodsRefused"), operator.log.read_text)
    ready = condition(get(server, namespace, "mlmodel/adult-income"), "Ready")["message"]
    assert "train is blocked: its pods are refused: exceeded quota: none, requested: pods=1, used: pods=0" in ready


BAD = [
    (
        "a time that no date can be",
        MLMODEL.replace("interval: 10s", "interval: 100000h"),
        "spec.rollout.interval: '100000h' is longer than 87600h",
    ),
    (
        "a trigger that no field can hold",
        MLMODEL.replace("metadata:", f"metadata:\n  annotations: {{{contract.ANNOTATION_RETRAIN}: {'x' * 257}}}"),
        "metadata.annotations: mlplatform.dev/retrain has 257 characters",
    ),
]
"""What no rule of the CRD can say."""


@pytest.mark.parametrize(("reason", "text", "contains"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_refused_in_accepted(
    server: ApiServer, operator: Program, namespace: str, reason: str, text: str, contains: str
) -> None:
    assert text != MLMODEL, "the row changes something"
    apply(server, namespace, text)
    eventually(lambda: model_condition(server, namespace, "Accepted")[0] == "False", lambda: reason)
    accepted = condition(get(server, namespace, "mlmodel/adult-income"), "Accepted")
    assert contains in accepted["message"], reason
    created = get(server, namespace, "mlmodel/adult-income")["metadata"]["creationTimestamp"]
    assert (moment(accepted["lastTransitionTime"]) - moment(created)).total_seconds() <= 10, reason
    assert operator.process
    assert operator.process.poll() is None, "nothing that people write ends the operator"


# The writer.


def connect_to(server: ApiServer) -> client.ApiClient:
    settings = client.Configuration()
    config.load_kube_config(str(server.kubeconfig), client_configuration=settings)
    return client.ApiClient(settings)


@pytest.fixture(scope="module")
def api(server: ApiServer) -> client.ApiClient:
    return connect_to(server)


@pytest.fixture
def cluster(api: client.ApiClient) -> Cluster:
    return Cluster(api)


def service(namespace: str, owner: str = "uid-1", **spec: Any) -> Object:
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "controller": True}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "apex",
            "namespace": namespace,
            "ownerReferences": [reference],
            "annotations": {"mine": "1"},
        },
        "spec": {"selector": {"app": "a"}, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}], **spec},
    }


def test_create_makes_once_and_then_returns_what_is_there(cluster: Cluster, namespace: str) -> None:
    made = cluster.create(service(namespace))
    again = cluster.create(service(namespace, selector={"app": "b"}))
    assert made
    assert again
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    assert again["spec"]["selector"] == {"app": "a"}


def test_apply_takes_over_what_it_names_and_leaves_the_rest(
    server: ApiServer, cluster: Cluster, namespace: str
) -> None:
    cluster.apply(service(namespace))
    server.kubectl("-n", namespace, "annotate", "service", "apex", "theirs=1")
    server.kubectl("-n", namespace, "patch", "service", "apex", "-p", '{"spec":{"selector":{"app":"edited"}}}')
    applied = cluster.apply(service(namespace))
    assert applied
    assert applied["spec"]["selector"] == {"app": "a"}, "what it names is put back"
    assert annotations_of(applied)["theirs"] == "1", "what it does not name stays"
    unchanged = cluster.apply(service(namespace))
    assert unchanged
    assert unchanged["metadata"]["resourceVersion"] == applied["metadata"]["resourceVersion"]


def test_an_object_of_somebody_else_is_left_alone(server: ApiServer, cluster: Cluster, namespace: str) -> None:
    server.kubectl("-n", namespace, "create", "service", "clusterip", "apex", "--tcp=80:80")
    before = get(server, namespace, "service/apex")
    for write in (cluster.create, cluster.apply):
        with pytest.raises(NameTaken, match=f"Service {namespace}/apex exists and belongs to something else"):
            write(service(namespace))
    assert get(server, namespace, "service/apex") == before


def test_what_nobody_owns_and_has_our_labels_is_ours(cluster: Cluster, namespace: str) -> None:
    ours = service(namespace)
    ours["metadata"]["labels"] = labels("adult", "apex")
    stray = {**ours, "metadata": {k: v for k, v in ours["metadata"].items() if k != "ownerReferences"}}
    cluster.create(stray)
    assert cluster.create(ours), "it is there, and not taken"
    applied = cluster.apply(ours)
    assert applied
    assert [r["uid"] for r in applied["metadata"]["ownerReferences"]] == ["uid-1"]


def test_a_restored_routes_record_is_emptied_not_left_out(server: ApiServer, cluster: Cluster, namespace: str) -> None:
    server.install_crds(*modules.crds())
    model = {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "MLModel",
        "metadata": {"name": "adult", "namespace": namespace, "uid": "uid-1"},
    }
    before, after = (
        virtualservice.render(model, {"adult-1": 100}, [], record, Settings()) for record in ('{"version": "v"}', "")
    )
    restored = {**before, "metadata": {k: v for k, v in before["metadata"].items() if k != "ownerReferences"}}
    server.kubectl("create", "-f", "-", given=json.dumps(restored))
    assert virtualservice.record(cluster.apply(before)) == '{"version": "v"}'
    assert not virtualservice.record(cluster.apply(after)), (
        "whoever restored it owns the annotation, too, and would keep it"
    )


def test_a_stray_is_adopted_as_it_was_seen_and_keeps_its_other_owners(cluster: Cluster, namespace: str) -> None:
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "backup", "uid": "uid-2"}
    stray = service(namespace)
    stray["metadata"]["ownerReferences"] = [other]
    seen = cluster.create(stray)
    assert seen
    owner = {"apiVersion": "mlplatform.dev/v1alpha1", "kind": "MLModel", "metadata": {"name": "adult", "uid": "uid-1"}}
    adopted = cluster.do(taken_over(seen, owner))
    assert adopted
    assert [(r["uid"], r.get("controller")) for r in adopted["metadata"]["ownerReferences"]] == [
        ("uid-2", None),
        ("uid-1", True),
    ]
    with pytest.raises(Conflict):
        cluster.do(taken_over(seen, owner))


def test_what_is_gone_can_be_patched_deleted_and_reported_on_without_harm(cluster: Cluster, namespace: str) -> None:
    ref = Ref("v1", "Service", namespace, "absent")
    assert cluster.patch(ref, {"spec": {}}) is None
    cluster.delete(Delete(ref))
    assert cluster.get(ref) is None
    gone = {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "MLModel",
        "metadata": {"name": "x", "namespace": namespace, "uid": "u"},
    }
    assert cluster.write_status(gone, {"stage": "x"}) is None


def test_a_merge_patch_changes_only_what_it_names(cluster: Cluster, namespace: str) -> None:
    cluster.create(service(namespace))
    patched = cluster.do(Patch(Ref("v1", "Service", namespace, "apex"), {"metadata": {"annotations": {"mine": "2"}}}))
    assert patched
    assert annotations_of(patched) == {"mine": "2"}
    assert patched["spec"]["selector"] == {"app": "a"}


def test_what_was_asked_for_is_taken_off_unless_something_else_was_asked_for_since(
    cluster: Cluster, namespace: str
) -> None:
    seen = cluster.create(
        {**service(namespace), "metadata": {**service(namespace)["metadata"], "annotations": {"ask": "1"}}}
    )
    assert seen
    off = {"metadata": {"resourceVersion": seen["metadata"]["resourceVersion"], "annotations": {"ask": None}}}
    patched = cluster.do(Patch(Ref("v1", "Service", namespace, "apex"), off))
    assert patched
    assert annotations_of(patched) == {}
    with pytest.raises(Conflict):
        cluster.do(Patch(Ref("v1", "Service", namespace, "apex"), off))


def test_status_is_replaced_as_a_whole_and_only_on_the_same_object(
    server: ApiServer, cluster: Cluster, namespace: str
) -> None:
    apply(server, namespace)
    model = get(server, namespace, "mlmodel/adult-income")
    cluster.write_status(model, {"stage": "Training", "latestVersion": "v"})
    written = cluster.write_status(model, {"stage": "Serving"})
    assert written
    assert written["status"] == {"stage": "Serving"}
    namesake = {**model, "metadata": {**model["metadata"], "uid": "another"}}
    with pytest.raises(Conflict):
        cluster.write_status(namesake, {"stage": "Wrong"})
    assert get(server, namespace, "mlmodel/adult-income")["status"] == {"stage": "Serving"}
    server.kubectl("-n", namespace, "delete", "mlmodel", "adult-income")


def test_the_api_servers_words_reach_the_message(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(Rejected, match=r"422.*Invalid value.*no-port"):
        cluster.create(service(namespace, ports=[{"name": "no-port", "port": 0, "protocol": "no-port"}]))


def test_missing_rights_are_named(api: client.ApiClient, namespace: str) -> None:
    stranger = client.ApiClient(api.configuration)
    stranger.set_default_header("Impersonate-User", "nobody")
    with pytest.raises(Forbidden, match=rf'"nobody" cannot create resource "services".*"{namespace}"'):
        Cluster(stranger).create(service(namespace))


def test_kinds_that_are_not_served_are_missing(cluster: Cluster) -> None:
    kinds = {"Pod": "v1", "MLModel": "mlplatform.dev/v1alpha1", "Novel": "novel.example.com/v1", "NoSuch": "batch/v1"}
    assert cluster.missing(kinds) == {"Novel", "NoSuch"}


def test_every_kind_that_there_is_can_be_looked_for(server: ApiServer, cluster: Cluster, namespace: str) -> None:
    server.install_crds(*modules.crds())
    for kind, entry in KINDS.items():
        ref = Ref(entry.api_version, kind, namespace, "none")
        assert cluster.get(ref) is None, kind
        resources = json.loads(server.kubectl("get", "--raw", path(ref).partition("/namespaces/")[0]))["resources"]
        assert (kind, entry.plural) in {(r["kind"], r["name"]) for r in resources}, kind


def test_an_event_that_cannot_be_posted_is_only_logged(
    cluster: Cluster, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    obj = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "apex", "namespace": f"{namespace}-gone", "uid": "u"},
    }
    cluster.post(obj, Event("Normal", "Happened", "something"), datetime.now(UTC))
    assert "event Happened" in caplog.text
