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
from mlplatform.cli.cluster import EXIT_USAGE, REQUEST_TIMEOUT, CliError, Cluster, explain

GATEWAY_NAMESPACE: Final = "istio-system"
GATEWAY_SERVICE: Final = "istio-ingressgateway"
_TIMEOUT_SECONDS: Final = 10.0
_NAME_GATEWAY: Final = "name the gateway that serves your models with --gateway URL or GATEWAY_URL"
_LOOK_AT_PODS: Final = "look at the version's pods: kubectl get pods -l mlplatform.dev/model=<name>, then kubectl logs"


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
        CliError: The gateway cannot be reached, the model refuses, or its answer is no JSON.
    """
    connection = _connect(gateway) if gateway else _forward(cluster)
    headers = {"Host": urlsplit(question.url).netloc, "Content-Type": "application/json", "Connection": "close"}
    if question.version:
        headers[contract.HEADER_VERSION] = question.version
    sent = False
    try:
        connection.request("POST", "/predict", json.dumps({"features": question.features}), headers)
        sent = True
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        if sent and isinstance(error, TimeoutError):
            raise CliError(f"no answer from the model within {_TIMEOUT_SECONDS:g} s", _LOOK_AT_PODS) from None
        raise CliError(
            f"the gateway does not answer: {error or type(error).__name__}",
            f"kubectl -n {GATEWAY_NAMESPACE} get pods; or name another one with --gateway URL",
        ) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise CliError(f"the model answered {response.status}: {body.strip()[:500]}", _advice(response.status))
    try:
        return json.loads(body)
    except ValueError:
        raise CliError(
            f"the answer is no prediction but {body.strip()[:500]!r}",
            "does a gateway of the platform answer there? Name the right one with --gateway URL",
        ) from None


def _advice(status: int) -> str:
    if status == http.client.BAD_REQUEST:
        return "correct --features; the model's schema is in train/preprocessor.json of its artifacts"
    if status == http.client.NOT_FOUND:
        return "no route for this model: is its VirtualService there? kubectl get virtualservices"
    return _LOOK_AT_PODS


def _connect(gateway: str) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(gateway if "//" in gateway else f"//{gateway}")
        host = (parts.hostname or "").encode("idna").decode()
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        if host and parts.scheme in {"", "http", "https"}:
            return kind(host, parts.port or kind.default_port, timeout=_TIMEOUT_SECONDS)
    except (ValueError, http.client.InvalidURL):
        pass  # A port that is no number, a host with a space in it: told below.
    raise CliError(f"{gateway!r} is no gateway address", "write it like http://10.0.0.1:80", code=EXIT_USAGE)


def _forward(cluster: Cluster) -> http.client.HTTPConnection:
    """A connection through the API server to a ready pod of the gateway."""
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
    sock.settimeout(_TIMEOUT_SECONDS)  # The connection's own timeout is for sockets that it opens itself.
    connection = http.client.HTTPConnection("gateway", 80, timeout=_TIMEOUT_SECONDS)
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
