"""A real API server with the CRDs that Kubeflow, KServe and Istio publish takes everything the operator sends, whole.

Needs the upstream CRDs in ``$UPSTREAM_CRDS`` (default ``../shared/upstream-crds`` beside the checkout); says so otherwise.
README.md has which files of which projects these are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from apiserver_fixture import REPOSITORY, ApiServer
from kubernetes import config
from written import SCENARIOS, lost, manifests, patches, scenario, send

from mlplatform.actions import Delete
from mlplatform.cluster import Cluster
from mlplatform.resources import PLURALS

pytestmark = pytest.mark.apiserver

UPSTREAM = Path(os.environ.get("UPSTREAM_CRDS", REPOSITORY.parent / "shared/upstream-crds"))


@pytest.fixture(scope="module")
def upstream(api_server: ApiServer) -> Iterator[ApiServer]:
    """The API server with the upstream CRDs, which go again afterwards: they are large and slow its OpenAPI document."""
    paths = sorted(UPSTREAM.glob("*.yaml"))
    if not paths:
        pytest.skip(
            f"no upstream CRDs in {UPSTREAM}: tests/contract/README.md lists the files of Kubeflow, KServe, Istio and "
            "prometheus-operator to put there, or into a folder that UPSTREAM_CRDS names"
        )
    api_server.install_crds(*paths)
    yield api_server
    for path in paths:
        api_server.kubectl("delete", "-f", str(path), "--wait=false")


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
    for kind in PLURALS.keys() - {"MLModel", "Event"}:
        assert manifests(kind), f"no scenario writes a {kind}"
    assert patches("PyTorchJob"), "no scenario halts training"


@pytest.mark.parametrize("kind", ["PyTorchJob", "InferenceService", "VirtualService"])
def test_a_misspelt_field_would_be_found(upstream: ApiServer, namespace: str, kind: str) -> None:
    """The comparison notices what the upstream schema drops."""
    manifest = json.loads(json.dumps(manifests(kind)[0]))
    manifest["metadata"] |= {"name": f"misspelt-{kind.lower()}", "namespace": namespace}
    manifest["spec"]["reticulateSplines"] = True
    flags = ["create", "--validate=false", "-f", "-", "-o", "json"]
    stored = json.loads(upstream.kubectl(*flags, given=json.dumps(manifest)))
    assert list(lost(manifest["spec"], stored["spec"], "spec")) == ["spec.reticulateSplines: dropped"]


@pytest.mark.parametrize("path", ["images/serving/clusterservingruntime.yaml", "istio/gateway.yaml"])
def test_what_we_install_is_taken_whole(upstream: ApiServer, path: str) -> None:
    manifest = yaml.safe_load((REPOSITORY / path).read_text())
    flags = ["create", "--dry-run=server", "-f", "-", "-o", "json"]
    manifest["metadata"].pop("namespace", None)
    stored = json.loads(upstream.kubectl(*flags, given=json.dumps(manifest)))
    assert list(lost(manifest, stored, manifest["kind"])) == []


def test_the_service_monitor_is_taken_whole(upstream: ApiServer) -> None:
    from unit.test_chart import EVERYTHING, objects, rendered  # noqa: PLC0415  it looks for helm when it is imported

    (monitor,) = objects("ServiceMonitor", rendered(*EVERYTHING)).values()
    manifest = {**monitor, "metadata": {**monitor["metadata"], "namespace": "default"}}
    stored = json.loads(
        upstream.kubectl("create", "--dry-run=server", "-f", "-", "-o", "json", given=json.dumps(manifest))
    )
    assert list(lost(manifest["spec"], stored["spec"], "spec")) == []
