"""A cluster that has all of its own: addresses, domain, store and authority, proxy, user ids and nodes.

Run by `make test-company` on the cluster that `VARIANT=ipv6` makes; company.yaml and company_values.yaml hold the rest.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from string import Template

import fsspec
import pytest
from certificates import Authority
from e2e.scenario import SMALL, STAGE_SECONDS, Model, Platform, adult, ask_until, restarts, told
from kubernetes import config

from benchmarks.load import Target
from local import layout
from local.access import AccessError, Cluster
from local.demo import PEOPLE
from mlplatform import contract

pytestmark = pytest.mark.variant

HERE = Path(__file__).parent
STORE, TEAM = "company", "credit"
HOST, OWN = "credit.corp.internal", "adult.credit.ml.corp.internal"
"""Names of the model: the company's, and the platform's."""
UID = 1000660000
ADDRESS = str(ipaddress.ip_network(layout.SERVICE_CIDR)[333])
"""Of the store, so that the host reaches it under a name of its certificate."""
SPEC = {
    **SMALL,
    "data": {**SMALL["data"], "uri": "s3://datasets/adult/"},
    "serving": {**SMALL["serving"], "host": HOST},
}


def secret(authority: Authority, name: str, *names: str) -> dict[str, str]:
    """A certificate and its key, as a Secret has them."""
    files = zip((f"{name}_certificate", f"{name}_key"), authority.issued(name, *names, days=90), strict=True)
    return {key: base64.b64encode(file.read_bytes()).decode() for key, file in files}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The company's."""
    return Authority.founded(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def company(cluster: Cluster, authority: Authority) -> Iterator[Platform]:
    """The platform in the company's cluster, whose nodes let nobody in without a toleration."""
    known = {
        "address": ADDRESS, "password": secrets.token_hex(16), "uid": str(UID), "team": TEAM, "host": HOST,
        "seaweedfs": cluster.images()["seaweedfs"],
        **secret(authority, "store", f"DNS:s3.{STORE}.svc", f"IP:{ADDRESS}"),
        **secret(authority, "gateway", f"DNS:{HOST}", f"DNS:{OWN}"),
    }  # fmt: skip
    manifests, values = (
        Template((HERE / name).read_text()).substitute(known) for name in ("company.yaml", "company_values.yaml")
    )
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifests)
    bundle(cluster, authority)
    cluster.kubectl("rollout", "status", "deployment/s3", "-n", STORE, "--timeout=120s")
    file = authority.folder / "values.yaml"
    file.write_text(values)
    cluster.install("--values", str(file))
    without_user(cluster)
    store = fsspec.filesystem(
        "s3", key=STORE, secret=known["password"],
        client_kwargs={"endpoint_url": f"https://[{ADDRESS}]:8333", "verify": str(authority.certificate)},
    )  # fmt: skip
    store.pipe_file("datasets/adult/adult.csv", adult())
    api = config.new_client_from_config(cluster.env.get("KUBECONFIG"))
    cluster.kubectl("label", "nodes", "--all", "company/pool=models", "--overwrite")
    cluster.kubectl("taint", "nodes", "--all", "company/pool=models:NoSchedule", "--overwrite")
    yield Platform(cluster, api, cluster.gateway("https"), str(authority.certificate))
    cluster.kubectl("taint", "nodes", "--all", "company/pool-")
    api.close()


def bundle(cluster: Cluster, authority: Authority) -> None:
    """The ConfigMap of the authorities that the team's pods trust."""
    made = ["create", "configmap", "company-ca", "-n", TEAM, f"--from-file=ca.crt={authority.certificate}"]
    cluster.kubectl("apply", "-f", "-", stdin=cluster.kubectl(*made, "--dry-run=client", "-o", "yaml"))


def without_user(cluster: Cluster) -> None:
    """The Training Operator's init container without a user of its own, as docs/deployment.md says."""
    maps = cluster.get("configmaps", "-n", "kubeflow")["items"]
    found = next(item for item in maps if "initContainer.yaml" in item.get("data", {}))
    name, text = found["metadata"]["name"], found["data"]["initContainer.yaml"]
    lines = [line for line in text.splitlines() if "runAsUser" not in line]
    again = [
        "create",
        "configmap",
        name,
        "-n",
        "kubeflow",
        "--from-file=initContainer.yaml=/dev/stdin",
        "--dry-run=client",
        "-o",
        "yaml",
    ]
    manifest = cluster.kubectl(*again, stdin="\n".join(lines))
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)
    cluster.kubectl("rollout", "restart", "deployment/training-operator", "-n", "kubeflow")
    cluster.kubectl("rollout", "status", "deployment/training-operator", "-n", "kubeflow", "--timeout=120s")


@pytest.fixture(scope="module")
def model(company: Platform) -> Model:
    """A model there."""
    return Model(company, "adult", TEAM)


def test_a_model_goes_all_the_way(model: Model, company: Platform) -> None:
    # Given a cluster of IPv6 alone, another domain, a store that only the company's authority vouches for, a proxy that
    # carries nothing, user ids that the cluster assigns and nodes with a taint, when a model is applied
    model.is_applied(SPEC)
    # Then it serves
    mine = f"{contract.LABEL_MODEL}={model.name}"
    training = company.wait(
        "pods", lambda pod: "podIP" in pod["status"], "a pod trains", STAGE_SECONDS,
        namespace=TEAM, label_selector=f"{mine},{contract.LABEL_STAGE}={contract.Stage.TRAIN}",
    )  # fmt: skip
    model.becomes_ready()
    assert ask_until(model.target(), lambda answer: answer.status == 200, 10)
    # And its pods have all of it
    serving = company.list("pods", mine, TEAM)
    for pod in (training, *serving):
        assert ":" in pod["status"]["podIP"], "its address"
        assert pod["spec"]["securityContext"]["runAsUser"] == UID, "assigned"
        assert pod["metadata"]["labels"]["company/cost-center"] == "42"
    assert restarts(serving) == 0


def test_people_reach_it_by_https_at_the_name_of_the_company(model: Model, company: Platform) -> None:
    # Given a gateway with a certificate that the company has signed, then the status says where the model is
    status = model.get()["status"]
    assert status["url"] == f"https://{HOST}"
    # And the plugin asks there, whatever address leads to the gateway
    ask = ("mlmodel", "predict", model.name, "-n", TEAM, "--features", json.dumps(PEOPLE[0]))
    told = company.kubectl(*ask, "--gateway", company.gateway, "--ca-file", company.authority)
    assert status["latestVersion"] in told
    # It trusts no other authority, and says which option names one
    with pytest.raises(AccessError, match="--ca-file"):
        company.kubectl(*ask, "--gateway", company.gateway)
    # From port 80 people are sent on; the platform's own name is there, too
    with closing(Target(company.cluster.gateway(), HOST).connect()) as plain:
        plain.request("GET", "/health", headers={"Host": HOST})
        response = plain.getresponse()
        assert (response.status, response.headers["Location"]) == (301, f"https://{HOST}/health")
    assert ask_until(Target(company.gateway, OWN, company.authority), lambda answer: answer.status == 200, 10)


def test_the_doctor_finds_nothing(company: Platform) -> None:
    findings = json.loads(company.kubectl("mlmodel", "doctor", "-n", TEAM, "-o", "json"))
    assert not [finding for finding in findings if finding["level"] != "ok"]


def test_a_version_is_promoted_without_a_failed_request(model: Model) -> None:
    with model.under_load() as load:
        model.is_changed(training={"epochs": 3})
        model.becomes_ready()
    assert not load.outcome.failures


def test_an_authority_that_did_not_sign_the_store_is_named(
    model: Model, company: Platform, authority: Authority, tmp_path: Path
) -> None:
    # Given pods that trust somebody else
    bundle(company.cluster, Authority.founded(tmp_path))
    try:
        # When a version is trained, then the failure has OpenSSL's words and says what to do
        model.is_changed(training={"epochs": 4})
        failed = model.reaches("has failed", lambda m: "certificate verify failed" in told(m), 150)
        assert "trust.configMap" in told(failed)
        # And what served goes on
        assert model.answers().status == 200
    finally:
        bundle(company.cluster, authority)
