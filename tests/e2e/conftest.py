"""Fixtures of the end-to-end scenarios: the platform, a small data set, a model that serves.

Loaded by pytest for this folder. They need a cluster with the add-ons (`make up`).
What they share is costly (a version takes a minute on two cores), so one model
serves all scenarios.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from e2e.scenario import FOLDER, NAMESPACE, SMALL, Model, Platform, adult
from kubernetes import config

from local import demo
from local.access import OPERATOR, SYSTEM, AccessError, Cluster

RESTRICTED = "pod-security.kubernetes.io/enforce"


LAST = "test_recovery.py"
"""It leaves another cluster behind, without the data and the models that the scenarios share."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder needs a cluster, and the one that damages it comes last."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: item.path == here / LAST)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """A failed scenario shows what an engineer would ask for first."""
    outcome = yield
    report = outcome.get_result()
    platform = getattr(item, "funcargs", {}).get("platform")
    if not report.failed or platform is None:
        return
    questions = {
        "models": ("mlmodel", "status", "-A", "-o", "wide"),
        "pods": ("get", "pods", "-A", "-o", "wide"),
        "events": ("get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"),
        "operator": ("logs", "-n", SYSTEM, f"deployment/{OPERATOR}", "--tail=60"),
    }
    for name, question in questions.items():
        try:
            report.sections.append((name, platform.kubectl(*question)))
        except AccessError as error:
            report.sections.append((name, str(error)))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that CLUSTER names."""
    found = Cluster.connect()
    yield found
    found.close()


@pytest.fixture(scope="session")
def platform(cluster: Cluster) -> Iterator[Platform]:
    """The platform on the cluster, as this checkout has it: installed, or upgraded where anything differs."""
    cluster.install()
    # Every pod of every scenario meets the strictest standard, those of two-worker trainings included.
    cluster.kubectl("label", "namespace", NAMESPACE, f"{RESTRICTED}=restricted", "--overwrite")
    api = config.new_client_from_config(cluster.env.get("KUBECONFIG"))
    yield Platform(cluster, api, cluster.gateway())
    api.close()


@pytest.fixture(scope="session")
def store(cluster: Cluster, platform: Platform) -> fsspec.AbstractFileSystem:
    """The artifact store, from the host."""
    assert platform.cluster is cluster, "the store comes with the chart"
    return demo.store(cluster)


@pytest.fixture(scope="session")
def small_data(store: fsspec.AbstractFileSystem) -> str:
    """The first 4,000 rows of the Adult data, in the store."""
    store.pipe_file(f"{FOLDER}/adult/adult.csv", adult())
    return f"s3://{FOLDER}/adult/"


@pytest.fixture(scope="session")
def model(platform: Platform, store: fsspec.AbstractFileSystem, small_data: str) -> Iterator[Model]:
    """A model whose first version serves; gone again at the end."""
    found = Model(platform, "e2e-adult")
    found.is_deleted()
    artifacts = f"mlplatform/{NAMESPACE}/{found.name}"
    if store.exists(artifacts):
        store.rm(artifacts, recursive=True)
    assert SMALL["data"]["uri"] == small_data
    found.is_applied(SMALL)
    found.becomes_ready()
    yield found
    found.is_deleted()
