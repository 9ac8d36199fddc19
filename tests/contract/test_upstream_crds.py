"""A real API server with the CRDs that Kubeflow, KServe and Istio publish takes everything the operator sends, whole.

Needs the upstream CRDs in ``$UPSTREAM_CRDS`` (default ``../shared/upstream-crds`` beside the checkout); says so otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from apiserver_fixture import REPOSITORY, ApiServer
from written import SCENARIOS, Status, lost, manifests, patches, scenario

from mlplatform.actions import Apply, Create, Patch, Ref
from mlplatform.resources import PLURALS
from mlplatform.snapshot import Object

pytestmark = pytest.mark.apiserver

UPSTREAM = Path(os.environ.get("UPSTREAM_CRDS", REPOSITORY.parent / "shared/upstream-crds"))


@pytest.fixture(scope="module")
def upstream(api_server: ApiServer) -> Iterator[ApiServer]:
    """The API server with the upstream CRDs, which go again afterwards: they are large and slow its OpenAPI document."""
    paths = sorted(UPSTREAM.glob("*.yaml"))
    if not paths:
        pytest.skip(
            f"no upstream CRDs in {UPSTREAM}: set UPSTREAM_CRDS to a folder with those of the Training Operator, KServe and Istio"
        )
    api_server.install_crds(*paths)
    yield api_server
    for path in paths:
        api_server.kubectl("delete", "-f", str(path), "--wait=false")


def send(server: ApiServer, what: Object | Create | Apply | Patch | Status, namespace: str) -> tuple[Object, Object]:
    """Does to the server what was done to the cluster in memory; returns what was sent and what is stored."""
    if isinstance(what, Status):
        ref, patch = Ref.to(what.obj), json.dumps([{"op": "add", "path": "/status", "value": what.status}])
        flags = ["--subresource=status", "--type=json", "-p", patch, "-o", "json"]
        stored = server.kubectl("patch", resource(ref), ref.name, "-n", namespace, *flags)
        return {"status": what.status}, json.loads(stored)
    if isinstance(what, Patch):
        body = json.dumps(what.body)
        kind, name = resource(what.ref), what.ref.name
        stored = server.kubectl("patch", kind, name, "-n", namespace, "--type=merge", "-p", body, "-o", "json")
        return what.body, json.loads(stored)
    manifest = what.manifest if isinstance(what, (Create, Apply)) else what
    manifest = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    if isinstance(what, Create):
        stored = server.kubectl("create", "-f", "-", "-o", "json", given=json.dumps(manifest))
    else:
        flags = ["--server-side", "--force-conflicts", "--field-manager=mlplatform"]
        stored = server.kubectl("apply", *flags, "-f", "-", "-o", "json", given=json.dumps(manifest))
    return manifest, json.loads(stored)


def resource(ref: Ref) -> str:
    """``plural.version.group`` as kubectl takes it, so that no other group's kind is meant."""
    group, _, version = ref.api_version.rpartition("/")
    return f"{PLURALS[ref.kind]}.{version}.{group}" if group else PLURALS[ref.kind]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_server_takes_all_of_it_whole(upstream: ApiServer, namespace: str, name: str) -> None:
    for what in scenario(name):
        if isinstance(what, (dict, Create, Apply, Patch, Status)):
            sent, stored = send(upstream, what, namespace)
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
