"""The local cluster itself: after a crash the next `up` brings it back, by itself.

Run after all other scenarios (conftest.py), which need the cluster as it was.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from e2e.scenario import NAMESPACE, Platform

from local import node, processes
from local.access import OPERATOR, SYSTEM
from local.layout import REPO, default_layout

KEPT = "e2e-kept"


@pytest.fixture(scope="module", autouse=True)
def _ours(platform: Platform) -> None:
    if platform.cluster.kind != "local":
        pytest.skip("the cluster is somebody else's: nothing here may crash it")


def crash() -> None:
    """SIGKILL to process 1 of the node, with which every daemon and container ends; nobody tidies up."""
    layout = default_layout()
    for record in processes.read_records(layout.supervisor_record).values():
        processes.kill(record)
    assert node.supervisor_pid(layout) is None


def up() -> str:
    """`local up`; what it printed."""
    command = [sys.executable, "-m", "local", "up"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_cluster_that_was_killed_comes_back_with_what_it_held(platform: Platform) -> None:
    # Given a cluster with an object of its own, when everything is killed and somebody says `up`
    platform.kubectl("delete", "configmap", KEPT, "-n", NAMESPACE, "--ignore-not-found")
    platform.kubectl("create", "configmap", KEPT, "-n", NAMESPACE)
    crash()
    up()

    # Then the object is there, and the operator runs again
    platform.kubectl("delete", "configmap", KEPT, "-n", NAMESPACE)
    platform.kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", SYSTEM, "--timeout=120s")


def test_a_cluster_whose_data_was_damaged_is_made_anew(platform: Platform) -> None:
    # Given an etcd whose log a crash has torn
    layout = default_layout()
    crash()
    logs = sorted((layout.state / "etcd").rglob("*.wal"))
    assert logs
    for log in logs:
        log.write_bytes(b"torn" * 1024)

    # When somebody says `up`, then it says that the objects are lost, and the platform can be installed
    assert "etcd" in up()
    platform.cluster.install()
    platform.kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", SYSTEM, "--timeout=120s")
