"""An upgrade of the platform while a model serves: no request fails, and no pod is replaced that need not be.

The release before is made of this one: its objects' shape. The model is the one that all scenarios share; at the end it is
what it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
import yaml
from e2e.scenario import NAMESPACE, STAGE_SECONDS, Model, Object, Platform, is_ready

from local.access import OPERATOR, RELEASE, SYSTEM
from local.demo import ROUTE_SECONDS
from local.layout import REPO
from mlplatform import api
from mlplatform.resources import inferenceservice, servingruntime
from mlplatform.settings import Settings

pytestmark = pytest.mark.nightly

HASH = "mlplatform.dev/hash"
LATER = "604800"
"""Seconds: nobody's turn comes while a test waits."""
STILL_SECONDS = 20.0
"""In which an operator that wanted to change something would have."""


@pytest.fixture
def upgrade(platform: Platform) -> Iterator[Callable[..., str]]:
    """Upgrades the chart with some values changed; at the end it has its own again."""
    yield lambda *values: platform.cluster.install(*(word for value in values for word in ("--set", value)))
    platform.cluster.install()


def environment(platform: Platform) -> dict[str, str]:
    """The operator's."""
    deployment = platform.cluster.get("deployment", OPERATOR, "-n", SYSTEM)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item.get("value", "") for item in container["env"]}


def pods(platform: Platform, version: str) -> dict[str, Object]:
    """The serving pods of a version, by uid."""
    found = platform.list("pods", f"app={inferenceservice.pod_label(version)}")
    return {pod["metadata"]["uid"]: pod for pod in found}


def wait_for(until: Callable[[], bool], seconds: float, what: str) -> None:
    """Polls: what is waited for are several objects, or none."""
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)


def runtime_of(platform: Platform, version: str) -> str:
    """The runtime that a version's InferenceService names."""
    return inferenceservice.runtime(platform.cluster.get("inferenceservice", version, "-n", NAMESPACE))


def replaced(platform: Platform, version: str, runtime: str) -> bool:
    """Whether all pods of a version are ready ones of that runtime."""
    found = pods(platform, version).values()
    return bool(found) and all(servingruntime.of_pod(pod) == runtime and is_ready(pod) for pod in found)


def as_the_release_before_made_it(platform: Platform, model: Model, version: str) -> Object:
    """The InferenceService without its label, with a digest and probes, on a runtime of the whole cluster."""
    settings, live = Settings.from_env(environment(platform)), model.get()
    stored = platform.cluster.get("modelversion", version, "-n", NAMESPACE)["status"]["storageUri"]
    made = inferenceservice.render(live, api.decode(api.MLModelSpec, live["spec"]), version, stored, settings)
    del made["metadata"]["labels"][inferenceservice.VISIBILITY]
    made["metadata"]["annotations"][HASH] = "1ee476e1"
    probe = {"httpGet": {"path": f"/predictions/{model.name}", "port": 8080}, "timeoutSeconds": 5}
    made["spec"]["predictor"]["model"] |= {"runtime": servingruntime.SHARED, "readinessProbe": probe}
    return made


def shared_runtime(platform: Platform) -> Object:
    """The ClusterServingRuntime of the chart before."""
    runtime: Object = yaml.safe_load((REPO / "images/serving/servingruntime.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    container["image"] = environment(platform)["MLPLATFORM_SERVING_IMAGE"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        del container[name]
    owner = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": SYSTEM}
    meta = {"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": owner}
    return {**runtime, "kind": "ClusterServingRuntime", "metadata": {"name": servingruntime.SHARED, **meta}}


def apply(platform: Platform, manifest: Object) -> None:
    """As the operator does, in its name."""
    flags = ("--server-side", "--force-conflicts", "--field-manager=mlplatform")
    platform.kubectl("apply", *flags, "-f", "-", stdin=json.dumps(manifest))


def answers_past_the_gateway(platform: Platform, model: Model, version: str) -> list[int]:
    """Statuses at the addresses that KServe publishes a version at."""
    settings = json.loads(
        platform.cluster.get("configmap", "inferenceservice-config", "-n", "kserve")["data"]["ingress"]
    )
    hosts = [f"{name}-{NAMESPACE}.{settings['ingressDomain']}" for name in (version, f"{version}-predictor")]
    return [model.asks(path, host=host) for host in hosts for path in ("/ping", f"/predictions/{model.name}")]


def test_versions_of_the_release_before_are_renewed_once_and_no_longer_published(
    model: Model, platform: Platform, upgrade: Callable[..., str]
) -> None:
    # Given a version as the release before has made it, which KServe publishes past the gateway
    version = model.becomes_ready()["status"]["stable"]["version"]
    upgrade(f"servingRuntime.renewalSeconds={LATER}")
    apply(platform, shared_runtime(platform))
    apply(platform, as_the_release_before_made_it(platform, model, version))
    wait_for(lambda: replaced(platform, version, servingruntime.SHARED), STAGE_SECONDS, "pods of the release before")
    wait_for(
        lambda: answers_past_the_gateway(platform, model, version) == [200] * 4,
        ROUTE_SECONDS,
        "KServe's Ingress of class istio answers on any path: the IngressClass is there",
    )
    before = pods(platform, version).keys()

    with model.under_load() as load:
        # When it is not the model's turn, then nothing happens
        time.sleep(STILL_SECONDS)
        assert pods(platform, version).keys() == before

        # And in its turn the pods are replaced, once, and KServe's addresses are gone
        upgrade("servingRuntime.renewalSeconds=0")
        wait_for(lambda: runtime_of(platform, version) != servingruntime.SHARED, 30, "it is the model's turn")
        present = runtime_of(platform, version)
        wait_for(lambda: replaced(platform, version, present), STAGE_SECONDS, "pods of this release")
        wait_for(
            lambda: answers_past_the_gateway(platform, model, version) == [404] * 4, ROUTE_SECONDS, "no other way in"
        )
        renewed = pods(platform, version).keys()
        time.sleep(STILL_SECONDS)
        assert pods(platform, version).keys() == renewed, "once"
        assert load.wait_for(load.outcome.total + 40)

    # And no request failed, and the version is what it was
    assert (load.outcome.failed, load.outcome.failures) == (0, [])
    assert set(load.outcome.by_version) == {version}
    assert model.becomes_ready()["status"]["latestVersion"] == version
    platform.kubectl("delete", "clusterservingruntime", servingruntime.SHARED)


def test_another_runtime_replaces_no_pod_unless_that_is_asked_for(
    model: Model, platform: Platform, upgrade: Callable[..., str]
) -> None:
    # Given a version that serves, when a release with another runtime comes under load
    sound, version = model.spec, model.becomes_ready()["status"]["stable"]["version"]
    old, before = runtime_of(platform, version), pods(platform, version).keys()
    with model.under_load() as load:
        upgrade("servingRuntime.renewalSeconds=0", "servingRuntime.spec.annotations.release=next")

        # Then no pod is replaced, also when its user changes something else
        model.is_changed(serving={"replicas": {"min": 1, "max": 2}})
        model.becomes_ready()
        time.sleep(STILL_SECONDS)
        assert pods(platform, version).keys() == before

        # And when it is asked for, all are, and the runtime that nothing names any more goes
        model.is_changed(serving={"runtimeUpdate": "Roll"})
        wait_for(
            lambda: (found := runtimes(platform, model)) != [old] and replaced(platform, version, found[-1]),
            STAGE_SECONDS,
            "pods of another runtime",
        )
        wait_for(lambda: old not in runtimes(platform, model), 30, "the old runtime is gone")
        assert load.wait_for(load.outcome.total + 40)

    # And no request failed, and the version is what it was
    assert (load.outcome.failed, load.outcome.failures) == (0, [])
    assert model.becomes_ready()["status"]["latestVersion"] == version
    model.is_applied(sound)
    model.becomes_ready()


def runtimes(platform: Platform, model: Model) -> list[str]:
    """The model's runtimes, oldest first."""
    found = platform.list("servingruntimes", f"mlplatform.dev/model={model.name}")
    return [item["metadata"]["name"] for item in sorted(found, key=lambda r: r["metadata"]["creationTimestamp"])]
