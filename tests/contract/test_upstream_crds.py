"""A real API server with the CRDs that Kubeflow, KServe, Istio and prometheus-operator publish takes everything whole.

The CRDs come from the modules that ``local/upstream`` pins, as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from apiserver_fixture import REPOSITORY, ApiServer
from contract.modules import crds
from kubernetes import config
from written import SCENARIOS, lost, manifests, patches, scenario, send

from mlplatform import resources
from mlplatform.actions import Delete
from mlplatform.cluster import Cluster

pytestmark = pytest.mark.apiserver

KINDS = ("PyTorchJob", "ServingRuntime", "InferenceService", "VirtualService")


@pytest.fixture(scope="module")
def upstream(api_server: ApiServer) -> Iterator[ApiServer]:
    """The API server with the upstream CRDs, which go again afterwards: they are large and slow its OpenAPI document."""
    api_server.install_crds(*crds())
    yield api_server
    installed = api_server.kubectl("get", "crd", "-o", "name").split()
    theirs = [name for name in installed if not name.endswith(".mlplatform.dev")]
    api_server.kubectl("delete", "--wait=false", *theirs)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_server_takes_all_of_it_whole(upstream: ApiServer, namespace: str, name: str) -> None:
    """Sent by the operator's own writer."""
    with config.new_client_from_config(str(upstream.kubeconfig)) as client:
        cluster = Cluster(client)
        for what in scenario(name):
            if isinstance(what, Delete):
                continue
            sent, stored = send(cluster, what, namespace)
            assert stored is not None, f"nothing is stored of {what}"
            assert list(lost(sent, stored, stored["kind"])) == []


def test_every_kind_is_sent() -> None:
    """Otherwise the test above would pass while it says nothing about a kind."""
    for kind in resources.KINDS.keys() - {"MLModel", "Pod", "Deployment", "Ingress", "Event"}:
        assert manifests(kind), f"no scenario writes a {kind}"
    assert patches("PyTorchJob"), "no scenario halts training"


def stored(upstream: ApiServer, manifest: dict[str, Any], *flags: str) -> dict[str, Any]:
    """What the API server would store of a manifest."""
    command = ["create", "--dry-run=server", *flags, "-f", "-", "-o", "json"]
    found: dict[str, Any] = json.loads(upstream.kubectl(*command, given=json.dumps(manifest)))
    return found


def filled_in(upstream: ApiServer, manifest: dict[str, Any]) -> list[str]:
    """What the schema's defaults add to a manifest's spec."""
    return [text.partition(":")[0] for text in lost(stored(upstream, manifest)["spec"], manifest["spec"], "spec")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_fills_nothing_in(upstream: ApiServer, namespace: str, kind: str) -> None:
    """A default that a release of upstream adds becomes a part of what runs: a person looks at it first."""
    for manifest in manifests(kind):
        sent = {**manifest, "metadata": {"name": manifest["metadata"]["name"], "namespace": namespace}}
        assert filled_in(upstream, sent) == []


def test_a_default_would_be_found(upstream: ApiServer, namespace: str) -> None:
    """The operator writes ``suspend``, which the Training Operator's schema would otherwise fill in."""
    manifest = json.loads(json.dumps(manifests("PyTorchJob")[0]))
    manifest["metadata"] = {"name": "without-suspend", "namespace": namespace}
    del manifest["spec"]["runPolicy"]["suspend"]
    assert filled_in(upstream, manifest) == ["spec.runPolicy.suspend"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_field_would_be_found(upstream: ApiServer, namespace: str, kind: str) -> None:
    """The comparison notices what the upstream schema drops."""
    manifest = json.loads(json.dumps(manifests(kind)[0]))
    manifest["metadata"] |= {"name": f"misspelt-{kind.lower()}", "namespace": namespace}
    manifest["spec"]["reticulateSplines"] = True
    found = stored(upstream, manifest, "--validate=false")
    assert list(lost(manifest["spec"], found["spec"], "spec")) == ["spec.reticulateSplines: dropped"]


@pytest.mark.parametrize("path", ["images/serving/servingruntime.yaml", "istio/gateway.yaml"])
def test_what_we_install_is_taken_whole(upstream: ApiServer, path: str) -> None:
    manifest = yaml.safe_load((REPOSITORY / path).read_text())
    manifest["metadata"].pop("namespace", None)
    assert list(lost(manifest, stored(upstream, manifest), manifest["kind"])) == []


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PrometheusRule"])
def test_what_prometheus_reads_is_taken_whole(upstream: ApiServer, kind: str) -> None:
    from unit.test_chart import EVERYTHING, objects, rendered  # noqa: PLC0415  it looks for helm when it is imported

    (manifest,) = objects(kind, rendered(*EVERYTHING)).values()
    sent = {**manifest, "metadata": {**manifest["metadata"], "namespace": "default"}}
    assert list(lost(sent["spec"], stored(upstream, sent)["spec"], "spec")) == []
