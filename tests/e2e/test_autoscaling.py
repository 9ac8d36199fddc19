"""Replicas follow what the pods really use: the HPA that KServe makes, on metrics-server's figures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.scenario import NAMESPACE, Model, Object, Platform, condition

from local.demo import PEOPLE

METRICS_SECONDS = 120.0
"""A pod's first figures come after two scrapes of 15 s, the autoscaler's look every 15 s."""
SCALE_SECONDS = 180.0
CLIENTS = 4
INSTANCES = 300
"""Records in a request: the server has the work, not the client."""


def test_replicas_follow_the_load_and_not_the_capped_request(model: Model, platform: Platform) -> None:
    # Given a model that may have two replicas of one CPU each
    model.is_changed(serving={"replicas": {"min": 1, "max": 2}})
    version = model.becomes_ready()["status"]["latestVersion"]
    name = f"{version}-predictor"
    hpa = platform.wait(
        "horizontalpodautoscalers",
        has_figures,
        f"{name} has figures",
        METRICS_SECONDS,
        field_selector=f"metadata.name={name}",
    )

    # Then the autoscaler asks for 80 % of that CPU, whatever the pods' capped request is
    requests = platform.list("pods", f"app=isvc.{name}")[0]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    wanted = 800 if requests == "100m" else 80
    assert target(hpa) == wanted, f"{target(hpa)} % of {requests}"
    assert hpa["status"]["currentReplicas"] == 1, "an idle model has one"

    # When the pod is busy, then a second one comes
    with busy(model):
        platform.wait(
            "horizontalpodautoscalers",
            lambda found: found["status"].get("desiredReplicas") == 2,
            f"{name} wants two replicas",
            SCALE_SECONDS,
            field_selector=f"metadata.name={name}",
        )

    # And when one is all that is allowed again, one is left
    model.is_changed(serving={"replicas": {"min": 1, "max": 1}})
    platform.wait(
        "deployments",
        lambda found: found["status"].get("replicas") == 1,
        f"{name} has one replica",
        SCALE_SECONDS,
        namespace=NAMESPACE,
        field_selector=f"metadata.name={name}",
    )


def has_figures(hpa: Object) -> bool:
    """Whether the autoscaler has seen what the pods use."""
    current = [metric.get("resource", {}).get("current", {}) for metric in hpa["status"].get("currentMetrics") or ()]
    return condition(hpa, "ScalingActive") == "True" and any("averageUtilization" in found for found in current)


def target(hpa: Object) -> int:
    """Percent of the request at which it adds a replica."""
    (metric,) = hpa["spec"]["metrics"]
    return int(metric["resource"]["target"]["averageUtilization"])


@contextmanager
def busy(model: Model) -> Iterator[None]:
    """Large requests, one after the other, for the whole block."""
    stop = threading.Event()
    body = {"instances": [PEOPLE[index % len(PEOPLE)] for index in range(INSTANCES)]}

    def ask() -> None:
        while not stop.is_set():
            model.asks(f"/v1/models/{model.name}:predict", body)

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.join()
