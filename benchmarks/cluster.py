"""Which cluster is measured; called by the benchmarks that need one."""

from __future__ import annotations

from contextlib import closing

from kubernetes import config

from local.access import Cluster


def connect() -> str:
    """Points the Kubernetes client at the cluster that CLUSTER names, as the demo and the end-to-end tests do.

    Returns:
        ``local``, ``kind`` or ``current``; only the last looks at the caller's KUBECONFIG.

    Raises:
        AccessError: It does not answer.
    """
    with closing(Cluster.connect()) as cluster:
        config.load_kube_config(cluster.env.get("KUBECONFIG") or None)
    return cluster.kind
