"""Where everything of the local cluster lies, and the addresses it uses.

Called by every other module here, so that a path or an address is written down once.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPO: Final = Path(__file__).resolve().parent.parent

NODE_NAME: Final = "mlplatform-local"
HOST_LINK: Final = "mlp0"
"""The one interface that the host sees; the rest is in the node's own network namespace."""
LINK_ALIAS: Final = "mlplatform-local"
"""Marks ``HOST_LINK`` as ours; a link of that name without the alias is not touched."""
NODE_LINK: Final = "uplink"
POD_BRIDGE: Final = "cni0"


@dataclass(frozen=True, slots=True)
class Network:
    """What clusters do not have in common.

    Attributes:
        link: Two addresses: of the host, and of the node.
        pods: Their addresses; the bridge has the first.
        services: Their addresses; the API server has the first, DNS the tenth.
        domain: Under which Services have their names.
    """

    link: str
    pods: str
    services: str
    domain: str


VARIANTS: Final = {
    "": Network("10.243.0.0/30", "10.244.0.0/24", "10.96.0.0/16", "cluster.local"),
    # Pods and Services have no IPv4 address.
    "ipv6": Network("fd6d:6c70:0:1::/126", "fd6d:6c70:0:2::/64", "fd6d:6c70:0:3::/112", "corp.internal"),
}
PLAIN: Final = "(none)"
"""What people are told of the first."""
VARIANT: Final = os.environ.get("VARIANT", "")
"""Which of them `up` makes."""
if VARIANT not in VARIANTS:
    raise SystemExit(f"error: VARIANT={VARIANT}; choose one of {', '.join(filter(None, VARIANTS))}, or none")
NETWORK: Final = VARIANTS[VARIANT]


def _address(network: str, number: int) -> str:
    return str(ipaddress.ip_network(network)[number])


LINK_CIDR: Final = NETWORK.link
HOST_IP: Final = _address(LINK_CIDR, 1)
NODE_IP: Final = _address(LINK_CIDR, 2)
POD_CIDR: Final = NETWORK.pods
POD_GATEWAY: Final = _address(POD_CIDR, 1)
SERVICE_CIDR: Final = NETWORK.services
SERVICE_IP: Final = _address(SERVICE_CIDR, 1)
DNS_IP: Final = _address(SERVICE_CIDR, 10)
CLUSTER_DOMAIN: Final = NETWORK.domain
IS_IPV6: Final = ":" in NODE_IP
API_PORT: Final = 6443
API_URL: Final = f"https://[{NODE_IP}]:{API_PORT}" if IS_IPV6 else f"https://{NODE_IP}:{API_PORT}"

CGROUP: Final = "mlplatform-local"
"""Every pod's cgroup is below this one, in every hierarchy."""

STATE: Final = Path("/var/lib/mlplatform-local")
"""What belongs to the running cluster; ``down`` removes it."""


def cache_root() -> Path:
    """``$MLPLATFORM_CACHE``, or ``~/.cache/mlplatform``; outlives the cluster."""
    return Path(os.environ.get("MLPLATFORM_CACHE", "") or Path.home() / ".cache" / "mlplatform").expanduser().resolve()


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one cluster.

    Attributes:
        state: What ``down`` removes.
        cache: What the next ``up`` reuses.
    """

    state: Path
    cache: Path

    @property
    def kubeconfig(self) -> Path:
        """The administrator's, mode 0600."""
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Keys, certificates and the components' kubeconfigs."""
        return self.state / "pki"

    @property
    def etc(self) -> Path:
        """Configuration files of the daemons."""
        return self.state / "etc"

    @property
    def logs(self) -> Path:
        """One file a daemon, and the API server's audit log."""
        return self.state / "logs"

    @property
    def audit_log(self) -> Path:
        """Every write request, one JSON object a line (``audit.k8s.io/v1``)."""
        return self.logs / "audit.log"

    @property
    def step_logs(self) -> Path:
        """One file a step of the last ``up``."""
        return self.cache / "logs"

    @property
    def containerd_root(self) -> Path:
        """Image content; in the cache, so that a warm start imports nothing."""
        return self.cache / "containerd"

    @property
    def containerd_socket(self) -> Path:
        """Answers CRI and ``ctr``."""
        return self.state / "containerd.sock"

    @property
    def supervisor_record(self) -> Path:
        """The pid file."""
        return self.state / "supervisor.json"

    @property
    def supervisor_spec(self) -> Path:
        """What the supervisor sets up and keeps running."""
        return self.etc / "supervisor.json"


def default_layout() -> Layout:
    """The layout of this machine's only cluster."""
    return Layout(state=STATE, cache=cache_root())
