"""One prediction through the gateway, from wherever the user is.

Called by `mlplatform.cli.main`. With a gateway address it asks there; without
one it forwards a port to a gateway pod through the API server, so that neither
DNS for the model's host nor a route into the cluster is needed.
"""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from kubernetes import client
from kubernetes.stream import portforward

from mlplatform import contract
from mlplatform.cli.cluster import CliError, Cluster, explain

GATEWAY_NAMESPACE: Final = "istio-system"
GATEWAY_SERVICE: Final = "istio-ingressgateway"
_TIMEOUT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask.

    Attributes:
        url: The model's URL; its host chooses the route at the gateway.
        features: An object by column, or a list in the schema's order.
        version: A version to force, or empty for the weighted split.
    """

    url: str
    features: Any
    version: str = ""


def ask(cluster: Cluster, question: Question, gateway: str) -> Any:
    """Sends `POST /predict` and returns the answer's JSON.

    Raises:
        CliError: The gateway cannot be reached or the model refuses.
    """
    connection = _connect(gateway) if gateway else _forward(cluster)
    headers = {"Host": urlsplit(question.url).netloc, "Content-Type": "application/json", "Connection": "close"}
    if question.version:
        headers[contract.HEADER_VERSION] = question.version
    try:
        connection.request("POST", "/predict", json.dumps({"features": question.features}), headers)
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise CliError(
            f"the gateway does not answer: {error or type(error).__name__}",
            f"kubectl -n {GATEWAY_NAMESPACE} get pods; or name another one with --gateway URL",
        ) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise CliError(f"the model answered {response.status}: {body.strip()[:500]}", _advice(response.status))
    return json.loads(body)


def _advice(status: int) -> str:
    if status == http.client.BAD_REQUEST:
        return "correct --features; the model's schema is in train/preprocessor.json of its artifacts"
    if status == http.client.NOT_FOUND:
        return "no route for this model: is its VirtualService there? kubectl get virtualservices"
    return "look at the version's pods: kubectl get pods -l mlplatform.dev/model=<name>, then kubectl logs"


def _connect(gateway: str) -> http.client.HTTPConnection:
    parts = urlsplit(gateway if "//" in gateway else f"//{gateway}")
    if not parts.hostname or parts.scheme not in {"", "http", "https"}:
        raise CliError(f"{gateway!r} is no gateway address", "write it like http://10.0.0.1:80", code=2)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS)


def _forward(cluster: Cluster) -> http.client.HTTPConnection:
    """A connection through the API server to a ready pod of the gateway."""
    try:
        service = cluster.core.read_namespaced_service(GATEWAY_SERVICE, GATEWAY_NAMESPACE)
        endpoints = cluster.core.read_namespaced_endpoints(GATEWAY_SERVICE, GATEWAY_NAMESPACE)
        pod, port = _ready_pod(endpoints, next(p.name for p in service.spec.ports if p.port == 80))  # noqa: PLR2004  http
        forwarder = portforward(
            cluster.core.connect_get_namespaced_pod_portforward, pod, GATEWAY_NAMESPACE, ports=str(port)
        )
    except client.ApiException as error:
        raise explain(error, f"forward a port to {GATEWAY_SERVICE} in {GATEWAY_NAMESPACE!r}") from None
    sock: socket.socket = forwarder.socket(port)
    sock.setblocking(True)
    connection = http.client.HTTPConnection("gateway", 80, timeout=_TIMEOUT_SECONDS)
    connection.sock = sock
    return connection


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
