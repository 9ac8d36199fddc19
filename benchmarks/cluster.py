"""Which cluster is measured; called by the benchmarks that need one."""

from __future__ import annotations

import os
import subprocess

from kubernetes import config


def connect() -> None:
    """Loads KUBECONFIG, else the local cluster's configuration, else (CLUSTER=kind|current) the current context."""
    found = os.environ.get("KUBECONFIG")
    if not found and os.environ.get("CLUSTER", "local") == "local":
        found = subprocess.check_output(["python3", "-m", "local", "kubeconfig"], text=True).strip()
    config.load_kube_config(found)
