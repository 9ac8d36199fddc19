"""A queue decides when a model trains: the real Kueue, from its Go module, in the place where people install it.

Building Kueue takes some minutes, once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.scenario import NAMESPACE, SMALL, STAGE_SECONDS, Model, Platform, find_condition

from local import addons, cluster, images, layout, upstream
from local.steps import Shell

pytestmark = pytest.mark.nightly

IMAGE = images.Image(
    "kueue",
    "images/upstream/Dockerfile",
    base="base",
    program="kueue",
    arguments={"PROGRAM": "manager", "TARGET": "/manager"},
)
ADD_ON = addons.AddOn(
    "kueue",
    "kueue-system",
    ("kueue-controller-manager",),
    "kueue",
    charts={"kueue": "charts/kueue"},
    images=("kueue",),
    above=Path(__file__).parent,
)
GROUP = "kueue.x-k8s.io/v1beta2"
QUEUE = "e2e-queue"
TOO_LITTLE, ENOUGH = "256Mi", "16Gi"
"""Memory that the queue may give, below and above what two workers ask for."""


@pytest.fixture(scope="module")
def queue(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A LocalQueue of the real Kueue that has too little for a training."""
    shell = Shell(tmp_path_factory.mktemp("kueue") / "log")
    here = layout.default_layout()
    upstream.build(shell, here.cache, sys.executable, upstream.KUEUE)
    reference = f"{images.PREFIX}/{IMAGE.name}:{upstream.KUEUE.key}"
    machine = cluster.Cluster(here, refs={**images.references(), IMAGE.name: reference})
    machine.make_image(shell, IMAGE, load=True)
    machine.install_addon(shell, ADD_ON)
    try:
        queues(platform, TOO_LITTLE)
        yield QUEUE
    finally:
        for kind in ("mutating", "validating"):  # first, for they refuse what their server does not answer for
            platform.kubectl("delete", f"{kind}webhookconfiguration", f"kueue-{kind}-webhook-configuration")
        platform.kubectl("delete", "namespace", ADD_ON.namespace, "--wait=false")
        (here.state / "addons" / ADD_ON.name).unlink()


def queues(platform: Platform, memory: str) -> None:
    """A ClusterQueue with this memory, and the namespace's way into it."""
    flavors = [
        {
            "name": QUEUE,
            "resources": [
                {"name": "cpu", "nominalQuota": "16"},
                {"name": "memory", "nominalQuota": memory},
            ],
        }
    ]
    groups = [{"coveredResources": ["cpu", "memory"], "flavors": flavors}]
    made: list[tuple[str, dict[str, str], dict[str, Any]]] = [
        ("ResourceFlavor", {}, {}),
        ("ClusterQueue", {}, {"namespaceSelector": {}, "resourceGroups": groups}),
        ("LocalQueue", {"namespace": NAMESPACE}, {"clusterQueue": QUEUE}),
    ]
    items = [
        {"apiVersion": GROUP, "kind": kind, "metadata": {"name": QUEUE, **where}, "spec": spec}
        for kind, where, spec in made
    ]
    platform.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def test_a_training_waits_for_its_queue_and_goes_on_when_there_is_room(
    platform: Platform, small_data: str, queue: str
) -> None:
    # Given a model whose training is queued, and a queue that has too little for it
    assert SMALL["data"]["uri"] == small_data
    model = Model(platform, "e2e-queued")
    model.is_deleted()
    model.is_applied({**SMALL, "scheduling": {"queue": queue}})
    version = model.gets_a_version()

    # Then it says so, and nobody but the queue lets it run
    waiting = model.version_reaches(
        version, "is queued", lambda v: find_condition(v, "Trained").get("reason") == "Queued"
    )
    assert queue in find_condition(waiting, "Trained")["message"]
    job = platform.cluster.get("pytorchjob", f"{version}-train", "-n", NAMESPACE)
    assert job["spec"]["runPolicy"]["suspend"] is True
    assert platform.list("pods", f"mlplatform.dev/version={version}") == []

    # When there is room, then the version goes through every stage, each by the queue
    queues(platform, ENOUGH)
    model.version_reaches(version, "is ready", lambda v: v["status"].get("stage") == "Ready", 4 * STAGE_SECONDS)
    model.is_deleted()
