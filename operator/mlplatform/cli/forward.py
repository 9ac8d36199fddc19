"""A way through the API server to the gateway, for who has no route into the cluster.

Called by `mlplatform.cli.predict`, which imports it only when it is needed: it brings the Kubernetes client along.
"""

from __future__ import annotations

import http.client
import socket
from typing import Any, Final

from kubernetes import client
from kubernetes.stream import portforward

from mlplatform.cli.cluster import REQUEST_TIMEOUT, Cluster, explain
from mlplatform.cli.predict import GATEWAY_NAMESPACE
from mlplatform.errors import CliError

GATEWAY_SERVICE: Final = "istio-ingressgateway"
_NAME_GATEWAY: Final = "name the gateway that serves your models with --gateway URL or GATEWAY_URL"


def to_gateway(cluster: Cluster, timeout: float) -> http.client.HTTPConnection:
    """A connection to a ready pod of the gateway.

    Args:
        cluster: Whose API server forwards it.
        timeout: Seconds that one answer may take.

    Raises:
        CliError: There is no such pod, or no way to it.
    """
    pod, port = _gateway_pod(cluster)
    try:
        forwarder = portforward(
            cluster.core.connect_get_namespaced_pod_portforward, pod, GATEWAY_NAMESPACE, ports=str(port)
        )
    except (client.ApiException, OSError) as error:
        # The client reports every failure of the handshake without a status, the headers of the answer in its words.
        said = str(error.reason if isinstance(error, client.ApiException) else error).partition(" -+-+- ")[0]
        raise CliError(
            f"cannot forward a port to pod {pod} in {GATEWAY_NAMESPACE!r}: {said}",
            f"ask for the right to create pods/portforward there; or {_NAME_GATEWAY}",
        ) from None
    sock: socket.socket = forwarder.socket(port)
    sock.settimeout(timeout)  # The connection's own timeout is for sockets that it opens itself.
    connection = http.client.HTTPConnection("gateway", 80, timeout=timeout)
    connection.sock = sock
    return connection


def _gateway_pod(cluster: Cluster) -> tuple[str, int]:
    """Name of a ready pod of the gateway and its port for HTTP."""
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
    name = next((p.name for p in service.spec.ports or () if p.port == http.client.HTTP_PORT), None)
    if name is None:
        raise CliError(f"Service {GATEWAY_SERVICE} in {GATEWAY_NAMESPACE!r} has no port 80", _NAME_GATEWAY)
    return _ready_pod(endpoints, name)


def _ready_pod(endpoints: Any, port_name: str) -> tuple[str, int]:
    for subset in endpoints.subsets or ():
        for port in subset.ports or ():
            if port.name == port_name or len(subset.ports) == 1:
                for address in subset.addresses or ():
                    if address.target_ref is not None:
                        return address.target_ref.name, port.port
    raise CliError(
        f"no ready pod behind Service {GATEWAY_SERVICE} in {GATEWAY_NAMESPACE!r}",
        f"kubectl -n {GATEWAY_NAMESPACE} get pods,endpoints; or name another gateway with --gateway URL",
    )
