"""Replicas follow what the pods really use: the HPA that KServe makes, on metrics-server's figures."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.scenario import SMALL, Model, Object, Platform, condition

from local.demo import PEOPLE

METRICS_SECONDS = 120.0
"""A pod's first figures come after two scrapes of 15 s, the autoscaler's look every 15 s."""
SCALE_SECONDS = 180.0
CLIENTS = 4
INSTANCES = 300
"""Records in a request: the server has the work, not the client."""


def test_replicas_follow_the_load_and_not_the_capped_request(model: Model, platform: Platform) -> None:
    # Given a model that may have two replicas of half a CPU each
    model.is_changed(serving={"replicas": {"min": 1, "max": 2}, "resources": {"cpu": "500m", "memory": "1Gi"}})
    version = model.becomes_ready()["status"]["latestVersion"]
    name = f"{version}-predictor"
    of_it = {"field_selector": f"metadata.name={name}"}

    # Then the autoscaler asks for 80 % of that half, whatever share of it the pods request
    wanted = 400 if platform.cluster.kind == "local" else 80
    hpa = platform.wait(
        "horizontalpodautoscalers",
        lambda found: has_figures(found) and percent(found) == wanted,
        f"{name} has figures, and {wanted} % as its target",
        METRICS_SECONDS,
        **of_it,
    )
    assert hpa["status"]["currentReplicas"] == 1, "an idle model has one"

    # When the pod is busy, then a second one comes
    with busy(model):
        platform.wait(
            "horizontalpodautoscalers",
            lambda found: found["status"].get("desiredReplicas") == 2,
            f"{name} wants two replicas",
            SCALE_SECONDS,
            **of_it,
        )

    # And when one is all that is allowed again, one is left
    model.is_changed(serving=SMALL["serving"])
    platform.wait("deployments", is_one, f"{name} has one replica", SCALE_SECONDS, **of_it)


def is_one(deployment: Object) -> bool:
    """Whether one pod of the newest template is left, and it is ready."""
    status = deployment["status"]
    newest = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "readyReplicas")]
    return newest and counts == [1, 1, 1]


def has_figures(hpa: Object) -> bool:
    """Whether the autoscaler has seen what the pods use."""
    current = [metric.get("resource", {}).get("current", {}) for metric in hpa["status"].get("currentMetrics") or ()]
    return condition(hpa, "ScalingActive") == "True" and any("averageUtilization" in found for found in current)


def percent(hpa: Object) -> int:
    """Percent of the request at which it adds a replica."""
    (metric,) = hpa["spec"]["metrics"]
    return int(metric["resource"]["target"]["averageUtilization"])


@contextmanager
def busy(model: Model) -> Iterator[None]:
    """Large requests, one after the other, for the whole block."""
    stop, target = threading.Event(), model.target()
    body = json.dumps({"instances": [PEOPLE[index % len(PEOPLE)] for index in range(INSTANCES)]})
    headers = {"Host": target.host, "Content-Type": "application/json"}

    def ask() -> None:
        connection = target.connect()
        while not stop.is_set():
            connection.request("POST", f"/v1/models/{model.name}:predict", body, headers)
            answer = connection.getresponse()
            assert (answer.status, len(answer.read()) > INSTANCES) == (200, True)
        connection.close()

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.join()
