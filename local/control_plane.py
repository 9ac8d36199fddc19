"""etcd, the API server, the controller manager and the scheduler: how they are started.

Called by `cluster.py`, which hands the daemons to the supervisor. Pure: each function
returns command lines or the text of a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.layout import API_PORT, CLUSTER_DOMAIN, NODE_IP, POD_CIDR, SERVICE_CIDR, Layout
from local.pki import FRONT_PROXY


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program that the supervisor keeps running.

    Attributes:
        name: Also its log's name.
        argv: Absolute program and its arguments.
        env: Its whole environment.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As the supervisor's file holds it."""
        return {"name": self.name, "argv": list(self.argv), "env": self.env}


AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    # Writes only: this log answers who changes an idle cluster, and stays small.
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}


def files(layout: Layout) -> dict[Path, str]:
    """Configuration files of the control plane."""
    return {layout.etc / "audit-policy.json": json.dumps(AUDIT_POLICY, indent=1)}


def daemons(layout: Layout, binaries: Path, path: str) -> list[Daemon]:
    """The control plane.

    Args:
        layout: Its folders.
        binaries: The folder with the programs.
        path: PATH of the daemons.
    """
    env = {"PATH": path}
    pki = layout.pki

    def program(name: str, *flags: str) -> Daemon:
        return Daemon(name, (str(binaries / name), *flags), env)

    return [
        program(
            "etcd",
            f"--data-dir={layout.state}/etcd",
            # Loopback of the node's own network namespace: nothing on the host can reach it.
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
            # A lost write costs a development cluster nothing that `up` does not bring back.
            "--unsafe-no-fsync",
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=1000",
            "--logger=zap",
            "--log-level=warn",
        ),
        program(
            "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--bind-address={NODE_IP}",
            f"--advertise-address={NODE_IP}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--allow-privileged=true",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-signing-key-file={pki}/service-account.key",
            f"--service-account-key-file={pki}/service-account.pub",
            # So that the API server is believed by those it hands requests on to (metrics-server).
            f"--requestheader-client-ca-file={pki}/ca.crt",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki}/front-proxy.crt",
            f"--proxy-client-key-file={pki}/front-proxy.key",
            f"--audit-policy-file={layout.etc}/audit-policy.json",
            f"--audit-log-path={layout.audit_log}",
            "--audit-log-maxsize=20",
            "--audit-log-maxbackup=1",
            "--profiling=false",
        ),
        program(
            "kube-controller-manager",
            f"--kubeconfig={pki}/controller-manager.kubeconfig",
            "--controllers=*",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={pki}/service-account.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-cidr={POD_CIDR}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            # The node takes its range from the CNI configuration.
            "--allocate-node-cidrs=false",
            # Elected, as where kubeadm starts it: one that goes on without an API server takes all nodes for lost when it is back.
            "--leader-elect=true",
            "--bind-address=127.0.0.1",
            "--horizontal-pod-autoscaler-sync-period=15s",
            "--profiling=false",
        ),
        program(
            "kube-scheduler",
            f"--kubeconfig={pki}/scheduler.kubeconfig",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--profiling=false",
        ),
    ]
