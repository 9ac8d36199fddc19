"""What a user meets at the API: mistakes refused with their cause, columns, status, two managers on one object."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from apiserver_fixture import REPOSITORY, ApiServer
from written import lost

from mlplatform import contract

pytestmark = pytest.mark.apiserver

DATA = {"uri": "s3://datasets/adult/", "label": "income"}
HOPE = 10.0
"""Seconds within which a mistake must be known to who made it."""


def model(name: str = "m", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "MLModel",
        "metadata": {"name": name},
        "spec": {"data": DATA, **spec},
    }


@dataclass(frozen=True)
class Case:
    reason: str
    given: dict[str, Any]
    message: str


REFUSED = [
    Case("an unknown field", model(trainng={}), 'unknown field "'),
    Case("an unknown field further down", model(training={"epoch": 3}), 'unknown field "'),
    Case("an unknown field in a list", model(gates=[{"metric": "f1", "low": 1}]), 'unknown field "'),
    Case("a string is no number", model(training={"epochs": "five"}), "spec.training.epochs"),
    Case("a number is no string", model(training={"resources": {"cpu": 1}}), "spec.training.resources.cpu"),
    Case("no spec at all", {**model(), "spec": {}}, "data"),
    Case("no label", model(data={"uri": "s3://a/"}), "label"),
    Case("an empty data URI", model(data={"uri": "", "label": "y"}), "spec.data.uri"),
    Case("a blank data URI", model(data={"uri": " ", "label": "y"}), "spec.data.uri"),
    Case("below a bound", model(training={"epochs": 0}), "spec.training.epochs"),
    Case("above a bound", model(training={"workers": 101}), "spec.training.workers"),
    Case("a share of one leaves nothing", model(data={**DATA, "split": {"test": 1}}), "spec.data.split.test"),
    Case("an unknown strategy", model(training={"strategy": "fspd"}), '"fsdp", "ddp", "single"'),
    Case("a duration without a unit", model(rollout={"interval": "60"}), "spec.rollout.interval"),
    Case("a quantity that is none", model(serving={"resources": {"memory": "2 GB"}}), "spec.serving.resources.memory"),
    Case("a column twice", model(data={**DATA, "sensitiveAttributes": ["a", "a"]}), "Duplicate value"),
    Case("two gates on one metric", model(gates=[{"metric": "f1", "min": 0}, {"metric": "f1", "max": 1}]), "Duplicate value"),
    Case("a step of 100", model(rollout={"steps": [50, 100]}), "spec.rollout.steps"),
    Case("a bound over one", model(fairness={"metrics": {"equalized_odds_difference": 5}}), "spec.fairness.metrics"),
    Case("a name too long for its children", model("m" * 37), "metadata.name"),
    Case("a name that no Service may have", model("adult.income"), "metadata.name"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.reason)
@pytest.mark.parametrize("command", ["create", "apply"])
def test_kubectl_refuses(api_server: ApiServer, namespace: str, case: Case, command: str) -> None:
    began = time.monotonic()
    done = api_server.run(command, "-n", namespace, "-f", "-", given=yaml.safe_dump(case.given))
    assert done.returncode != 0, f"{case.reason}: accepted"
    assert case.message in done.stderr, case.reason
    assert time.monotonic() - began < HOPE


@pytest.mark.parametrize("case", [c for c in REFUSED if "unknown field" not in c.reason], ids=lambda c: c.reason)
def test_the_server_itself_refuses(api_server: ApiServer, namespace: str, case: Case) -> None:
    """Clients that validate nothing (Helm, controllers, curl) get the same answer."""
    done = api_server.run("create", "--validate=false", "-n", namespace, "-f", "-", given=yaml.safe_dump(case.given))
    assert done.returncode != 0, f"{case.reason}: accepted"
    assert case.message in done.stderr, case.reason


def test_an_unknown_field_is_dropped_when_the_client_asks_not_to_be_told(api_server: ApiServer, namespace: str) -> None:
    given = yaml.safe_dump(model(training={"epochs": 3, "epoch": 9}))
    api_server.kubectl("create", "--validate=false", "-n", namespace, "-f", "-", given=given)
    stored = fetch(api_server, namespace, "mlmodel", "m")
    assert stored["spec"]["training"]["epochs"] == 3
    assert "epoch" not in stored["spec"]["training"]


@pytest.mark.parametrize("how", ["create", "apply --server-side"])
def test_examples_and_samples_are_accepted_whole(api_server: ApiServer, namespace: str, how: str) -> None:
    paths = [*REPOSITORY.glob("examples/*/mlmodel.yaml"), *REPOSITORY.glob("manifests/samples/*.yaml")]
    assert len(paths) >= 3
    for path in paths:
        given = yaml.safe_load(path.read_text())
        api_server.kubectl(*how.split(), "-n", namespace, "-f", str(path))
        stored = fetch(api_server, namespace, "mlmodel", given["metadata"]["name"])
        assert list(lost(given["spec"], stored["spec"], "spec")) == [], path.name


def test_defaults_are_written_out(api_server: ApiServer, namespace: str) -> None:
    api_server.kubectl("create", "-n", namespace, "-f", "-", given=yaml.safe_dump(model()))
    spec = fetch(api_server, namespace, "mlmodel", "m")["spec"]
    assert spec["training"]["optimizer"] == {"name": "adamw", "learningRate": 0.001, "weightDecay": 0.0001}
    assert spec["rollout"]["steps"] == [5, 25, 50]
    assert "earlyStopping" not in spec["training"], "absent means none"


UNSEEN = {"observedGeneration": -1}
"""The status until the operator has seen the object: no tool takes that for the end."""


@pytest.mark.parametrize("how", ["create", "apply", "apply --server-side"])
@pytest.mark.parametrize("kind", ["MLModel", "ModelVersion"])
def test_what_nobody_has_seen_says_so_from_the_first_moment(
    api_server: ApiServer, namespace: str, how: str, kind: str
) -> None:
    given = {**model(), "kind": kind}
    given["spec"] |= {} if kind == "MLModel" else {"model": "m", "sequence": 1}
    watching = f"/apis/mlplatform.dev/v1alpha1/namespaces/{namespace}/{kind.lower()}s?watch=true&timeoutSeconds=1"
    api_server.kubectl(*how.split(), "-n", namespace, "-f", "-", given=yaml.safe_dump(given))
    assert fetch(api_server, namespace, kind, "m")["status"] == UNSEEN
    (added, *_) = api_server.kubectl("get", "--raw", watching).splitlines()
    assert json.loads(added)["object"]["status"] == UNSEEN, "so a watch shows it, too"


def test_an_upgrade_of_the_crd_leaves_what_is_stored_alone(api_server: ApiServer, namespace: str) -> None:
    """Under names of its own, for other tests use the real ones."""
    crd = yaml.safe_load((REPOSITORY / "manifests/crd/mlplatform.dev_mlmodels.yaml").read_text())
    crd["metadata"]["name"], crd["spec"]["group"] = "priors.before.example", "before.example"
    crd["spec"]["names"] = {"kind": "Prior", "listKind": "PriorList", "plural": "priors", "singular": "prior"}
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    default = status.pop("default")
    api_server.kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump(crd))
    api_server.kubectl("wait", "crd/priors.before.example", "--for=condition=Established", "--timeout=30s")
    for name in ("unseen", "seen"):
        given = {**model(name), "apiVersion": "before.example/v1alpha1", "kind": "Prior"}
        api_server.kubectl("create", "-n", namespace, "-f", "-", given=yaml.safe_dump(given))
    patch_status(api_server, namespace, {"status": {"observedGeneration": 1, "stage": "Serving"}}, "prior", "seen")
    before = {name: fetch(api_server, namespace, "prior", name) for name in ("unseen", "seen")}
    assert "status" not in before["unseen"]

    status["default"] = default
    api_server.kubectl("apply", "--server-side", "-f", "-", given=yaml.safe_dump(crd))
    deadline = time.monotonic() + HOPE
    while "status" not in (unseen := fetch(api_server, namespace, "prior", "unseen")):
        assert time.monotonic() < deadline, "the default is not there"
        time.sleep(0.1)  # nothing tells when a changed CRD is served
    assert unseen == {**before["unseen"], "status": UNSEEN}, "nothing was written: its resourceVersion is the same"
    assert fetch(api_server, namespace, "prior", "seen") == before["seen"]
    api_server.kubectl("delete", "crd", "priors.before.example")


def test_status_is_a_subresource(api_server: ApiServer, namespace: str) -> None:
    api_server.kubectl(
        "create", "-n", namespace, "-f", "-", given=yaml.safe_dump({**model(), "status": {"stage": "x"}})
    )
    assert fetch(api_server, namespace, "mlmodel", "m")["status"] == UNSEEN, "a user cannot write status"
    patch_status(api_server, namespace, {"status": {"stage": "Training"}, "spec": {"suspend": True}})
    stored = fetch(api_server, namespace, "mlmodel", "m")
    assert stored["status"] == {**UNSEEN, "stage": "Training"}
    assert stored["spec"]["suspend"] is False, "the operator's status write cannot change the spec"
    assert stored["metadata"]["generation"] == 1, "a status write is no new generation"


READY = {
    "type": "Ready", "status": "True", "reason": "Serving", "message": "m-0123abcd serves all traffic",
    "lastTransitionTime": "2026-01-31T12:00:00Z", "observedGeneration": 1,
}  # fmt: skip


def test_a_condition_must_be_complete(api_server: ApiServer, namespace: str) -> None:
    api_server.kubectl("create", "-n", namespace, "-f", "-", given=yaml.safe_dump(model()))
    for change in ({"status": "Perhaps"}, {"lastTransitionTime": "yesterday"}):
        patch = json.dumps({"status": {"conditions": [{**READY, **change}]}})
        done = api_server.run(
            "patch", "mlmodel", "m", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch
        )
        assert done.returncode != 0, f"accepted {change}"
        assert "conditions[0]" in done.stderr


def test_columns_show_a_rollout(api_server: ApiServer, namespace: str) -> None:
    api_server.kubectl("create", "-n", namespace, "-f", "-", given=yaml.safe_dump(model()))
    status = {
        "stage": "RollingOut", "latestVersion": "m-89abcdef", "url": "http://m.default.models.local",
        "conditions": [READY], "stable": {"version": "m-0123abcd"}, "rollout": {"version": "m-89abcdef", "weight": 25},
    }  # fmt: skip
    patch_status(api_server, namespace, {"status": status})
    header, row = api_server.kubectl("get", "mlm", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "STAGE", "VERSION", "WEIGHT", "AGE"]
    assert row.split()[:5] == ["m", "True", "RollingOut", "m-0123abcd", "25"]
    wide = api_server.kubectl("get", "mlm", "-n", namespace, "-o", "wide").splitlines()[1].split()
    assert wide[6:] == ["m-89abcdef", "http://m.default.models.local", "Serving"]


def test_columns_show_a_version(api_server: ApiServer, namespace: str) -> None:
    version = {**model("m-0123abcd"), "kind": "ModelVersion"}
    version["spec"] = {"model": "m", "sequence": 7, "data": DATA}
    api_server.kubectl("create", "-n", namespace, "-f", "-", given=yaml.safe_dump(version))
    status = {"stage": "Ready", "conditions": [READY], "metrics": {"roc_auc": 0.914}}
    patch_status(api_server, namespace, {"status": status}, "modelversion", "m-0123abcd")
    header, row = api_server.kubectl("get", "mlv", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "READY", "STAGE", "MODEL", "SEQ", "ROC-AUC", "AGE"]
    assert row.split()[:6] == ["m-0123abcd", "True", "Ready", "m", "7", "0.914"]


def test_the_category_lists_both_kinds(api_server: ApiServer, namespace: str) -> None:
    api_server.kubectl("create", "-n", namespace, "-f", "-", given=yaml.safe_dump(model()))
    assert "mlmodel.mlplatform.dev/m" in api_server.kubectl("get", "mlplatform", "-n", namespace)


def test_explain_shows_units_and_defaults(api_server: ApiServer) -> None:
    shown = api_server.kubectl("explain", "mlmodel.spec.training.deadline")
    assert "Default: 2h" in " ".join(shown.split())


def test_two_managers_share_a_model(api_server: ApiServer, namespace: str) -> None:
    """GitOps owns the spec, a second manager adds a gate of its own and cannot take a field that is owned."""
    apply(api_server, namespace, "gitops", model(gates=[{"metric": "roc_auc", "min": 0.88}], training={"epochs": 3}))
    second = model(gates=[{"metric": "f1", "min": 0.6}])
    apply(api_server, namespace, "risk-team", second)
    gates = fetch(api_server, namespace, "mlmodel", "m")["spec"]["gates"]
    assert {gate["metric"] for gate in gates} == {"roc_auc", "f1"}, "gates merge by metric"
    conflicting = yaml.safe_dump(model(training={"epochs": 4}))
    done = api_server.run(
        "apply", "--server-side", "--field-manager=risk-team", "-n", namespace, "-f", "-", given=conflicting
    )
    assert done.returncode != 0, "a field that gitops owns was taken without force"
    assert 'conflict with "gitops"' in done.stderr


@pytest.mark.parametrize("tool", ["apply --server-side --force-conflicts --field-manager=gitops", "apply"])
def test_a_tool_that_works_from_git_leaves_what_others_write_on_a_model(
    api_server: ApiServer, namespace: str, tool: str
) -> None:
    """The plugin's orders, somebody's finalizer, the status."""
    git = yaml.safe_dump(model(training={"epochs": 3}))
    api_server.kubectl(*tool.split(), "-n", namespace, "-f", "-", given=git)
    order = {"annotations": {contract.ANNOTATION_RETRAIN: "1"}, "finalizers": ["example.com/somebody"]}
    body = json.dumps({"metadata": order})
    api_server.kubectl(
        "patch", "mlmodel", "m", "-n", namespace, f"--field-manager={contract.MANAGER_CLI}", "--type=merge", "-p", body
    )
    patch_status(api_server, namespace, {"status": {"observedGeneration": 1, "stage": "Training"}})
    before = fetch(api_server, namespace, "mlmodel", "m")

    api_server.kubectl(*tool.split(), "-n", namespace, "-f", "-", given=git)
    after = fetch(api_server, namespace, "mlmodel", "m")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "nothing differs for it"
    assert order["annotations"].items() <= after["metadata"]["annotations"].items()


def fetch(server: ApiServer, namespace: str, kind: str, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(server.kubectl("get", kind, name, "-n", namespace, "-o", "json"))
    return loaded


def apply(server: ApiServer, namespace: str, manager: str, obj: dict[str, Any]) -> None:
    given = yaml.safe_dump(obj)
    server.kubectl("apply", "--server-side", f"--field-manager={manager}", "-n", namespace, "-f", "-", given=given)


def patch_status(
    server: ApiServer, namespace: str, patch: dict[str, Any], kind: str = "mlmodel", name: str = "m"
) -> None:
    body = json.dumps(patch)
    server.kubectl("patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", body)
