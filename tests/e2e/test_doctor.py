"""The doctor on a cluster where models live: it finds nothing wrong, leaves nothing behind, and `helm test` says the same."""

from __future__ import annotations

import json

from e2e.scenario import NAMESPACE, Model, Platform

from local.access import RELEASE, SYSTEM
from mlplatform.settings import Settings


def test_it_finds_nothing_wrong_and_leaves_nothing(model: Model, platform: Platform) -> None:
    # Given a model that serves
    model.becomes_ready()

    # When somebody who may do everything asks
    found = json.loads(platform.kubectl("mlmodel", "doctor", "-n", NAMESPACE, "-o", "json"))

    # Then all is well, the store among it, and its pod is gone
    assert [f for f in found if f["level"] not in {"ok", "skipped"}] == []
    root = Settings().artifact_root
    assert [f["message"] for f in found if f["check"] == "store"] == [
        f"a pod in {NAMESPACE} wrote, read and deleted a file in {root}"
    ]
    assert (
        platform.kubectl("get", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=doctor", "-o", "name") == ""
    )


def test_the_test_of_a_release_says_the_same(platform: Platform) -> None:
    platform.cluster.helm("test", RELEASE, "-n", SYSTEM)
