"""The chart on a real API server: it installs, upgrades and leaves models alone; who may do what with it there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver_fixture import COMMAND_TIMEOUT, REPOSITORY, ApiServer, binary, started
from contract import modules
from kubernetes import config
from unit.operator_world import mlmodel
from written import SCENARIOS, scenario, send

from mlplatform.actions import Delete
from mlplatform.cli.main import main
from mlplatform.cluster import Cluster
from mlplatform.doctor import __main__ as doctor_main
from mlplatform.doctor import probe
from mlplatform.resources import service

pytestmark = pytest.mark.apiserver

CHART = REPOSITORY / "charts/mlplatform"
SYSTEM = "mlplatform-system"
OPERATOR = f"system:serviceaccount:{SYSTEM}:mlplatform-operator"


def helm(server: ApiServer, *arguments: str) -> str:
    done = tried(server, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tried(server: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``helm <arguments>`` and returns whatever came of it."""
    environment = {**os.environ, "HELM_CACHE_HOME": str(server.folder / "helm"), "HELM_CONFIG_HOME": str(server.folder)}
    return subprocess.run(
        [binary("helm"), *arguments, "--namespace", SYSTEM, "--kubeconfig", server.kubeconfig],
        capture_output=True, text=True, check=False, env=environment, timeout=COMMAND_TIMEOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of its own, with the add-ons' CRDs and the release `mlplatform`, models in `default`."""
    with started(tmp_path_factory.mktemp("installation")) as server:
        server.install_crds(*modules.crds())
        helm(server, "install", "mlplatform", str(CHART), "--create-namespace")
        yield server


def secret(server: ApiServer, namespace: str) -> dict[str, str]:
    data: dict[str, str] = json.loads(
        server.kubectl("get", "secret", "mlplatform-store", "-n", namespace, "-o", "json")
    )["data"]
    return data


def test_services_have_the_families_of_the_cluster(installed: ApiServer) -> None:
    """Of a cluster with two, both: who has IPv6 alone reaches them, too."""
    apex = {**service.render(mlmodel(), "adult-1"), "metadata": {"name": "adult", "namespace": "default"}}
    installed.kubectl("create", "-f", "-", given=yaml.safe_dump(apex))
    for namespace, name in ((SYSTEM, "mlplatform-operator"), (SYSTEM, "mlplatform-store"), ("default", "adult")):
        found = json.loads(installed.kubectl("get", "service", name, "-n", namespace, "-o", "json"))
        assert found["spec"]["ipFamilies"] == ["IPv4", "IPv6"], name


def test_an_upgrade_keeps_generated_credentials(installed: ApiServer) -> None:
    before = secret(installed, "default")
    helm(installed, "upgrade", "mlplatform", str(CHART), "--reuse-values", "--set", "images.tag=next")
    assert secret(installed, "default") == secret(installed, SYSTEM) == before


def test_an_upgrade_upgrades_the_crds(installed: ApiServer) -> None:
    removed = '[{"op": "remove", "path": "/spec/names/shortNames"}]'
    installed.kubectl("patch", "crd", "mlmodels.mlplatform.dev", "--type=json", "-p", removed)
    helm(installed, "upgrade", "mlplatform", str(CHART))
    names = json.loads(installed.kubectl("get", "crd", "mlmodels.mlplatform.dev", "-o", "json"))["spec"]["names"]
    assert names["shortNames"] == ["mlm"]


def doctor(
    server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> dict[str, dict[str, str]]:
    """Its findings, by check and message."""
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    main(["doctor", "-o", "json", "--no-probe", *arguments])
    return {f"{f['check']}: {f['message']}": f for f in json.loads(capsys.readouterr().out)}


def test_the_doctor_knows_a_fresh_installation(
    installed: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rights that the chart gives; nobody runs the controllers here, which it says."""
    found = doctor(installed, capsys, monkeypatch)
    levels = {said: f["level"] for said, f in found.items()}
    release = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    for plural in ("mlmodels", "modelversions"):
        assert levels[f"API: CRD {plural}.mlplatform.dev is that of {release}"] == "ok", "the API server fills in much"
    assert levels["rights: the operator may do what it needs in default"] == "ok"
    assert levels["namespace default: has all that the pods of models need"] == "ok"
    failures = sorted(said for said, level in levels.items() if level == "failure")
    assert [said.partition(":")[0] for said in failures] == [
        "KServe", "Training Operator", "gateway", "operator", "operator",
    ], failures  # fmt: skip


def test_the_doctor_finds_what_was_taken_away(
    installed: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = (
        '[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/scheduling"}]'
    )
    installed.kubectl("patch", "crd", "mlmodels.mlplatform.dev", "--type=json", "-p", removed)
    installed.kubectl(
        "patch", "clusterrole", "mlplatform-operator", "--type=json", "-p", '[{"op": "remove", "path": "/rules/0"}]'
    )
    installed.kubectl("delete", "serviceaccount", "mlplatform-jobs", "-n", "default")
    failures = [
        said for said, f in doctor(installed, capsys, monkeypatch, "-n", "default").items() if f["level"] == "failure"
    ]
    assert any("it does not have v1alpha1.spec.scheduling as" in said for said in failures), failures
    assert any("may not get customresourcedefinitions" in said for said in failures), failures
    assert "namespace default: it has no ServiceAccount mlplatform-jobs, as which pods run" in failures
    helm(installed, "upgrade", "mlplatform", str(CHART), "--force-conflicts")
    assert not [s for s, f in doctor(installed, capsys, monkeypatch).items() if f["level"] == "failure" and "API" in s]


def test_the_doctor_tells_who_may_see_little_what_that_is(
    installed: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No failure of the cluster's comes of it, and the namespace that one works in is looked at."""
    installed.kubectl("create", "serviceaccount", "ann", "-n", "default")
    installed.kubectl(
        "create", "rolebinding", "ann", "-n", "default", "--clusterrole=view", "--serviceaccount=default:ann"
    )
    token = installed.kubectl("create", "token", "ann", "-n", "default").strip()
    config = yaml.safe_load(installed.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "ann").write_text(yaml.safe_dump(config))
    found = doctor(replace(installed, kubeconfig=tmp_path / "ann"), capsys, monkeypatch)
    assert {f["level"] for f in found.values()} <= {"ok", "skipped", "warning"}, found
    assert any('cannot list resource "deployments"' in said for said, f in found.items() if f["level"] == "skipped")


def of_the_test(server: ApiServer) -> set[str]:
    kinds = "serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings,pods"
    label = "app.kubernetes.io/component=test"
    return set(server.kubectl("get", kinds, "-A", "-l", label, "-o", "name").split())


def test_what_the_test_of_a_release_may_do_goes_with_it(installed: ApiServer) -> None:
    """Of one that fails (here no node runs its pod), the pod stays, for its log."""
    failed = tried(installed, "test", "mlplatform", "--timeout", "5s")
    assert failed.returncode != 0
    assert of_the_test(installed) == {"pod/mlplatform-test"}
    installed.kubectl("delete", "pod", "mlplatform-test", "-n", SYSTEM, "--force")


def test_the_test_of_a_release_may_see_all_but_secrets(
    installed: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And may make a pod where models live, and take it away: nobody runs it here, which it says."""
    only = ("--show-only", "templates/tests/installation.yaml", "--set", "store.existingSecret=ours")
    rights = [
        o
        for o in yaml.safe_load_all(helm(installed, "template", "mlplatform", str(CHART), *only))
        if o["kind"] != "Pod"
    ]
    installed.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(rights))
    kubeconfig = yaml.safe_load(installed.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {
        "token": installed.kubectl("create", "token", "mlplatform-test", "-n", SYSTEM).strip()
    }
    (tmp_path / "test").write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setattr(doctor_main, "connect", lambda: config.new_client_from_config(str(tmp_path / "test")))
    monkeypatch.setattr(probe, "run", partial(probe.run, deadline=2.0))
    monkeypatch.setattr("sys.argv", ["doctor", "--namespace=default"])
    assert doctor_main.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("SKIPPED") and "secrets" not in line] == []
    assert any(line.startswith("FAILURE  store: from default: pod mlplatform-doctor-") for line in lines), lines
    assert any(line.startswith("OK       rights: ") for line in lines), lines
    assert installed.kubectl("get", "pods", "-n", "default", "-o", "name") == ""
    installed.kubectl("delete", "-f", "-", given=yaml.safe_dump_all(rights))


def test_uninstalling_leaves_models_and_installing_again_takes_them_over(installed: ApiServer) -> None:
    installed.kubectl("apply", "-f", str(REPOSITORY / "manifests/samples/minimal.yaml"))
    helm(installed, "uninstall", "mlplatform")
    assert "minimal" in installed.kubectl("get", "mlmodels", "-o", "name")
    helm(installed, "install", "mlplatform", str(CHART))
    installed.kubectl("delete", "mlmodel", "minimal")


def test_uninstalling_says_what_stays_and_leaves_what_serving_needs(installed: ApiServer) -> None:
    """A pod that starts anew asks for its ServiceAccount and the store's key, and who asks a model comes by the gateway."""
    before = secret(installed, "default")
    said = helm(installed, "uninstall", "mlplatform")
    for kept in (
        "[CustomResourceDefinition] mlmodels.mlplatform.dev", "[CustomResourceDefinition] modelversions.mlplatform.dev",
        "[Gateway] mlplatform", "[ServiceAccount] mlplatform-serving", "[Secret] mlplatform-store",
        "[PersistentVolumeClaim] mlplatform-store",
    ):  # fmt: skip
        assert kept in said
    left = "gateways.networking.istio.io,serviceaccounts,secrets,persistentvolumeclaims,deployments"
    found = installed.kubectl("get", left, "-A", "-l", "app.kubernetes.io/instance=mlplatform", "-o", "name").split()
    assert "deployment.apps/mlplatform-operator" not in found
    assert found.count("serviceaccount/mlplatform-serving") == found.count("serviceaccount/mlplatform-jobs") == 1
    helm(installed, "install", "mlplatform", str(CHART))
    assert secret(installed, "default") == secret(installed, SYSTEM) == before, "the store's key is the same again"


def test_another_release_takes_over_what_the_first_has_left(installed: ApiServer) -> None:
    """The CRDs, which stay with every model, belong to a release that is no more; Helm asks to be told so."""
    installed.kubectl("apply", "-f", str(REPOSITORY / "manifests/samples/minimal.yaml"))
    helm(installed, "uninstall", "mlplatform")
    refused = tried(installed, "install", "another", str(CHART))
    assert "cannot be imported into the current release: invalid ownership metadata" in refused.stderr
    helm(installed, "install", "another", str(CHART), "--take-ownership")
    crd = json.loads(installed.kubectl("get", "crd", "mlmodels.mlplatform.dev", "-o", "json"))
    assert crd["metadata"]["annotations"]["meta.helm.sh/release-name"] == "another"
    assert "minimal" in installed.kubectl("get", "mlmodels", "-o", "name")
    helm(installed, "upgrade", "another", str(CHART))
    helm(installed, "uninstall", "another")
    helm(installed, "install", "mlplatform", str(CHART), "--take-ownership")
    installed.kubectl("delete", "mlmodel", "minimal")


def test_an_installation_that_is_rolled_back_can_be_tried_again(installed: ApiServer) -> None:
    """No node runs its pods here, so it never becomes ready."""
    installed.kubectl("apply", "-f", str(REPOSITORY / "manifests/samples/minimal.yaml"))
    helm(installed, "uninstall", "mlplatform")
    failed = tried(installed, "install", "mlplatform", str(CHART), "--rollback-on-failure", "--timeout", "5s")
    assert failed.returncode != 0
    assert installed.kubectl("get", "deployments", "-n", SYSTEM, "-o", "name") == ""
    assert "minimal" in installed.kubectl("get", "mlmodels", "-o", "name"), "nothing of a user's goes with it"
    helm(installed, "install", "mlplatform", str(CHART))
    installed.kubectl("delete", "mlmodel", "minimal")


def test_what_is_rendered_can_be_applied_again(tmp_path: Path) -> None:
    """As Argo CD and `helm template | kubectl apply` do: the same again restarts nothing, the next release goes over it."""
    values = ["--set", "store.accessKeyId=the-id,store.secretAccessKey=the-secret"]
    with started(tmp_path) as server:
        server.install_crds(*modules.crds())
        server.kubectl("create", "namespace", SYSTEM)
        for tag, generation in (("1.0.0", "1"), ("1.0.0", "1"), ("1.0.1", "2")):
            render = [binary("helm"), "template", "mlplatform", str(CHART), "--namespace", SYSTEM, "--skip-tests"]
            done = subprocess.run(
                [*render, *values, "--set", f"images.tag={tag}"], capture_output=True, text=True, check=True
            )
            server.kubectl("apply", "-f", "-", given=done.stdout)
            found = server.kubectl("get", "deployments", "-n", SYSTEM, "-o", "jsonpath={.items[*].metadata.generation}")
            assert set(found.split()) == {generation}, tag


@pytest.mark.parametrize("overlay", ["kind", "eks"])
def test_overlays_apply(overlay: str, tmp_path: Path) -> None:
    """On a server of its own: what kustomize makes is accepted, and applying it again restarts nothing."""
    subprocess.run(["cp", "-r", REPOSITORY / "manifests", tmp_path], check=True)
    (tmp_path / "manifests/overlays/kind/store.env").write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")
    folder = tmp_path / "server"
    folder.mkdir()
    with started(folder) as server:
        server.install_crds(*modules.crds())
        target = str(tmp_path / "manifests/overlays" / overlay)
        server.kubectl("apply", "-k", target)
        before = server.kubectl("get", "deployments", "-n", SYSTEM, "-o", "jsonpath={.items[*].metadata.generation}")
        server.kubectl("apply", "-k", target)
        after = server.kubectl("get", "deployments", "-n", SYSTEM, "-o", "jsonpath={.items[*].metadata.generation}")
        assert set(before.split()) == set(after.split()) == {"1"}, "applying again restarted something"


@dataclass(frozen=True)
class Access:
    reason: str
    verb: str
    resource: str
    allowed: bool
    group: str = ""
    namespace: str = "default"
    subresource: str = ""


OPERATOR_ACCESS = [
    Access("it reads models", "watch", "mlmodels", True, "mlplatform.dev"),
    Access("it takes off a request that it carried out", "patch", "mlmodels", True, "mlplatform.dev"),
    Access("it writes their status", "patch", "mlmodels", True, "mlplatform.dev", subresource="status"),
    Access("what users want is theirs to write", "create", "mlmodels", False, "mlplatform.dev"),
    Access("it never deletes a model", "delete", "mlmodels", False, "mlplatform.dev"),
    Access("it makes versions", "create", "modelversions", True, "mlplatform.dev"),
    Access("it prunes versions", "delete", "modelversions", True, "mlplatform.dev"),
    Access("it writes their status", "patch", "modelversions", True, "mlplatform.dev", subresource="status"),
    Access("it trains", "create", "pytorchjobs", True, "kubeflow.org"),
    Access("it stops training at the deadline", "delete", "pytorchjobs", True, "kubeflow.org"),
    Access("it runs the stages", "create", "jobs", True, "batch"),
    Access("it applies what serves", "patch", "inferenceservices", True, "serving.kserve.io"),
    Access("it moves weights", "patch", "virtualservices", True, "networking.istio.io"),
    Access("it keeps the apex Service", "patch", "services", True),
    Access("it reads why pods ended", "watch", "pods", True),
    Access("it makes no pods itself", "create", "pods", False),
    Access("it enters no pods", "create", "pods", False, subresource="exec"),
    Access("it posts Events", "create", "events", True),
    Access("it reads why pods are refused", "list", "events", True),
    Access("likewise of what KServe deploys", "get", "deployments", True, "apps"),
    Access("which it never changes", "patch", "deployments", False, "apps"),
    Access("it takes its lease", "create", "leases", True, "coordination.k8s.io", namespace=SYSTEM),
    Access("nobody else's", "update", "leases", False, "coordination.k8s.io", namespace=SYSTEM),
    Access("nor elsewhere", "create", "leases", False, "coordination.k8s.io"),
    Access("it reads no Secret", "get", "secrets", False),
    Access("nor lists them", "list", "secrets", False),
    Access("nor the release's own", "get", "secrets", False, namespace=SYSTEM),
    Access("it borrows no ServiceAccount", "create", "serviceaccounts", False, subresource="token"),
    Access("it changes no roles", "create", "roles", False, "rbac.authorization.k8s.io"),
    Access("it changes no gateway", "patch", "gateways", False, "networking.istio.io"),
    Access("it makes runtimes", "create", "servingruntimes", True, "serving.kserve.io"),
    Access("nor the cluster's", "create", "clusterservingruntimes", False, "serving.kserve.io"),
    Access("it takes away what KServe has published", "delete", "ingresses", True, "networking.k8s.io"),
    Access("and publishes nothing itself", "create", "ingresses", False, "networking.k8s.io"),
    Access("it finds out which kinds there are", "list", "customresourcedefinitions", True, "apiextensions.k8s.io", ""),
    Access("and changes none", "patch", "customresourcedefinitions", False, "apiextensions.k8s.io", ""),
]


@pytest.mark.parametrize("case", OPERATOR_ACCESS, ids=lambda c: c.reason)
def test_what_the_operator_may_do(installed: ApiServer, case: Access) -> None:
    assert may(installed, OPERATOR, case) is case.allowed, case.reason


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_operators_own_writes_are_allowed(installed: ApiServer, name: str) -> None:
    """Whole scenarios, sent by its own writer as its own ServiceAccount; models are a user's to write."""
    namespace = f"as-operator-{name.replace(' ', '-')}"
    installed.kubectl("create", "namespace", namespace)
    with (
        config.new_client_from_config(str(installed.kubeconfig)) as user,
        config.new_client_from_config(str(installed.kubeconfig)) as operator,
    ):
        operator.set_default_header("Impersonate-User", OPERATOR)
        for what in scenario(name):
            if isinstance(what, Delete):
                Cluster(operator).do(replace(what, ref=replace(what.ref, namespace=namespace)))
            else:
                send(Cluster(user if isinstance(what, dict) else operator), what, namespace)


VIEWER_ACCESS = [
    Access("a viewer sees models", "list", "mlmodels", True, "mlplatform.dev"),
    Access("and versions", "get", "modelversions", True, "mlplatform.dev"),
    Access("and changes none", "patch", "mlmodels", False, "mlplatform.dev"),
    Access("nor removes any", "delete", "mlmodels", False, "mlplatform.dev"),
]
EDITOR_ACCESS = [
    Access("an editor makes models", "create", "mlmodels", True, "mlplatform.dev"),
    Access("changes", "patch", "mlmodels", True, "mlplatform.dev"),
    Access("and deletes them", "delete", "mlmodels", True, "mlplatform.dev"),
    Access("but makes no version, past the pipeline", "create", "modelversions", False, "mlplatform.dev"),
    Access("and writes no verdict", "patch", "modelversions", False, "mlplatform.dev", subresource="status"),
    Access("nor a model's status", "patch", "mlmodels", False, "mlplatform.dev", subresource="status"),
]


@pytest.mark.parametrize("role", ["viewer", "editor"])
def test_what_people_may_do(installed: ApiServer, role: str) -> None:
    """The roles bound by themselves: no controller runs here that would aggregate them into view and edit."""
    for part in ["viewer"] if role == "viewer" else ["viewer", "editor"]:
        installed.run(
            "create",
            "rolebinding",
            f"{role}-{part}",
            f"--clusterrole=mlplatform-{part}",
            f"--user={role}",
            "-n",
            "default",
        )
    for case in VIEWER_ACCESS[:2] + EDITOR_ACCESS if role == "editor" else VIEWER_ACCESS:
        assert may(installed, role, case) is case.allowed, case.reason
        elsewhere = Access(case.reason, case.verb, case.resource, False, case.group, "kube-system", case.subresource)
        assert may(installed, role, elsewhere) is False, "a role in one namespace is none in another"


@pytest.mark.parametrize(("role", "into"), [("viewer", {"view", "edit", "admin"}), ("editor", {"edit", "admin"})])
def test_roles_aggregate(installed: ApiServer, role: str, into: set[str]) -> None:
    labels = json.loads(installed.kubectl("get", "clusterrole", f"mlplatform-{role}", "-o", "json"))["metadata"][
        "labels"
    ]
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key.removeprefix(prefix) for key in labels if key.startswith(prefix)} == into


def may(server: ApiServer, user: str, case: Access) -> bool:
    """Asks the API server itself, with a SubjectAccessReview."""
    attributes = {
        "verb": case.verb, "group": case.group, "resource": case.resource, "subresource": case.subresource,
        "namespace": case.namespace,
    }  # fmt: skip
    groups = ["system:serviceaccounts", "system:authenticated"] if ":" in user else ["system:authenticated"]
    review: dict[str, Any] = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
    }
    answer = json.loads(server.kubectl("create", "-f", "-", "-o", "json", given=yaml.safe_dump(review)))
    return bool(answer["status"]["allowed"])
