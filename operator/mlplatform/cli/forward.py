"""A way through the API server to the gateway, for who has no route into the cluster.

Called by `mlplatform.cli.predict`, which imports it only when it is needed: it brings the Kubernetes client along.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from typing import Any, Final

from kubernetes import client
from kubernetes.stream import portforward

from mlplatform.cli.cluster import REQUEST_TIMEOUT, Cluster, explain
from mlplatform.cli.predict import GATEWAY_NAMESPACE, GATEWAY_SERVICE
from mlplatform.errors import CliError

_NAME_GATEWAY: Final = "name the gateway that serves your models with --gateway URL or GATEWAY_URL"


Ports = Mapping[int, tuple[str, int]]
"""Port of the gateway's Service → a ready pod behind it, and the pod's port."""


def dial(cluster: Cluster, ports: Ports, port: int, timeout: float) -> socket.socket:
    """A socket to one of the gateway's ports.

    Args:
        cluster: Whose API server forwards it.
        ports: Those that there are.
        port: The one wanted.
        timeout: Seconds that one answer may take.

    Raises:
        CliError: There is no such port, or no way to it.
    """
    if port not in ports:
        raise CliError(f"Service {GATEWAY_SERVICE} in {GATEWAY_NAMESPACE!r} has no port {port}", _NAME_GATEWAY)
    pod, target = ports[port]
    try:
        forwarder = portforward(
            cluster.core.connect_get_namespaced_pod_portforward, pod, GATEWAY_NAMESPACE, ports=str(target)
        )
    except (client.ApiException, OSError) as error:
        # The client reports every failure of the handshake without a status, the headers of the answer in its words.
        said = str(error.reason if isinstance(error, client.ApiException) else error).partition(" -+-+- ")[0]
        raise CliError(
            f"cannot forward a port to pod {pod} in {GATEWAY_NAMESPACE!r}: {said}",
            f"ask for the right to create pods/portforward there; or {_NAME_GATEWAY}",
        ) from None
    sock: socket.socket = forwarder.socket(target)
    sock.settimeout(timeout)
    return sock


def gateway_ports(cluster: Cluster) -> Ports:
    """The gateway's ports for HTTP and HTTPS.

    Raises:
        CliError: There is none of them, or no pod behind it.
    """
    doing = f"find the pods of Service {GATEWAY_SERVICE} in {GATEWAY_NAMESPACE!r}"
    with cluster.explained(doing):
        try:
            where = {"name": GATEWAY_SERVICE, "namespace": GATEWAY_NAMESPACE, "_request_timeout": REQUEST_TIMEOUT}
            service = cluster.core.read_namespaced_service(**where)
            endpoints = cluster.core.read_namespaced_endpoints(**where)
        except client.ApiException as error:
            if error.status == http.client.NOT_FOUND:
                cause = f"there is no Service {GATEWAY_SERVICE} in namespace {GATEWAY_NAMESPACE!r}"
                raise CliError(cause, _NAME_GATEWAY) from None
            if error.status == http.client.FORBIDDEN:
                raise CliError(explain(error, doing).cause, _NAME_GATEWAY) from None
            raise
    wanted = {http.client.HTTP_PORT, http.client.HTTPS_PORT}
    names = {p.port: p.name for p in service.spec.ports or () if p.port in wanted}
    if not names:
        cause = f"Service {GATEWAY_SERVICE} in {GATEWAY_NAMESPACE!r} has neither port 80 nor 443"
        raise CliError(cause, _NAME_GATEWAY)
    found = {port: pod for port, name in names.items() if (pod := _ready_pod(endpoints, name))}
    if not found:
        raise CliError(
            f"no ready pod behind Service {GATEWAY_SERVICE} in {GATEWAY_NAMESPACE!r}",
            f"kubectl -n {GATEWAY_NAMESPACE} get pods,endpoints; or name another gateway with --gateway URL",
        )
    return found


def _ready_pod(endpoints: Any, port_name: str) -> tuple[str, int] | None:
    for subset in endpoints.subsets or ():
        for port in subset.ports or ():
            if port.name == port_name or len(subset.ports) == 1:
                for address in subset.addresses or ():
                    if address.target_ref is not None:
                        return address.target_ref.name, port.port
    return None
