"""One prediction, from wherever the user is.

Called by `mlplatform.cli.main`. Of a model in a cluster it is asked through the gateway: with its address there; in a
pod at its Service; without either over a port that the API server forwards to a gateway pod, so that neither DNS for
the model's host nor a route into the cluster is needed. Of a model that `kubectl mlmodel run --serve` serves it is asked
at its URL, and no client of a cluster is imported.

Whatever address is connected to, the question goes to the model's host: that is what the request names, what TLS asks
for, what the certificate must be made out to, and the only one that a redirect may lead to.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from mlplatform import contract
from mlplatform.errors import EXIT_USAGE, CliError

if TYPE_CHECKING:
    from mlplatform.cli.cluster import Cluster

GATEWAY_NAMESPACE: Final = "istio-system"
GATEWAY_SERVICE: Final = "istio-ingressgateway"
_TIMEOUT_SECONDS: Final = 10.0
_INVOCATIONS: Final = "/invocations"
"""Where TorchServe answers for the one model that it has, whatever its name."""

_MOVED: Final = {301, 302, 307, 308}
"""Redirects that are followed with the question in hand."""
_MOVES: Final = 2
"""How many of them: to HTTPS, and to another path."""
_OTHER_NAME: Final = {62, 64}
"""OpenSSL's codes of a certificate that is made out to others: a host, an address."""
_EXPIRED: Final = 10


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask.

    Attributes:
        url: The model's URL; its host chooses the route at the gateway.
        features: An object by column, or a list in the schema's order.
        version: A version to force, or empty for the weighted split.
        ca_file: Certificates of the authorities to trust; empty: those that this machine trusts.
    """

    url: str
    features: Any
    version: str = ""
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class _Words:
    """What to say when there is no prediction.

    Attributes:
        silent: Nobody takes the question: the cause.
        reach: And what to do then.
        schema: Where the columns are written down.
        unknown: What to do when the model is not known there.
        stranger: What to do when it is no model that answers.
        look: What to do when it is the model that fails.
        name: How to name another address.
    """

    silent: str
    reach: str
    schema: str
    unknown: str
    stranger: str
    look: str
    name: str


_GATEWAY: Final = _Words(
    silent="the gateway does not answer",
    reach=f"kubectl -n {GATEWAY_NAMESPACE} get pods; or name another one with --gateway URL",
    schema="train/preprocessor.json of its artifacts",
    unknown="no route for this model: is its VirtualService there? kubectl get virtualservices",
    stranger="does a gateway of the platform answer there? Name the right one with --gateway URL",
    look="look at the version's pods: kubectl get pods -l mlplatform.dev/model=<name>, then kubectl logs",
    name="--gateway",
)
_RUN: Final = "kubectl mlmodel run --serve"


@dataclass(frozen=True, slots=True)
class _Door:
    """Where the host is reached.

    Attributes:
        dial: Opens one of its ports.
        port: The one to ask at.
        tls: By HTTPS.
    """

    dial: Callable[[int], socket.socket]
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class _Request:
    """What goes to the host.

    Attributes:
        url: Of the host, without a path.
        path: Of the model there.
        body: JSON.
        trust: Whose certificates are good.
        words: What to say when it comes to nothing.
        headers: More than those that every request has.
    """

    url: SplitResult
    path: str
    body: str
    trust: ssl.SSLContext
    words: _Words
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """Without the port."""
        return _idna(self.url)


class _Connection(http.client.HTTPConnection):
    """HTTP with `host` over what `dial` opens, wherever that is; with `trust` by TLS."""

    def __init__(self, host: str, dial: Callable[[], socket.socket], trust: ssl.SSLContext | None) -> None:
        super().__init__(host, http.client.HTTP_PORT)
        self._dial, self._trust = dial, trust

    def connect(self) -> None:
        """Opens it, and looks at the certificate before anything is said."""
        self.sock = self._dial()
        if self._trust is not None:
            self.sock = self._trust.wrap_socket(self.sock, server_hostname=self.host)


def ask(cluster: Cluster, question: Question, gateway: str) -> Any:
    """Sends `POST /predict` and returns the answer's JSON.

    Raises:
        CliError: The gateway cannot be reached, the model refuses, or its answer is no JSON.
    """
    url, trust = urlsplit(question.url), _trust(question.ca_file)
    if gateway:
        cause = f"{gateway!r} is no gateway address"
        door = _door(_address(gateway, cause, "write it like http://10.0.0.1:80", scheme=url.scheme))
    else:
        door = _way(cluster)
    headers = {contract.HEADER_VERSION: question.version} if question.version else {}
    return _ask(door, _Request(url, "/predict", _body(question.features), trust, _GATEWAY, headers))


def ask_url(url: str, features: Any, ca_file: str = "") -> Any:
    """Asks a model at its own URL, without a gateway, and returns the answer's JSON.

    Args:
        url: As `kubectl mlmodel run --serve` prints it; without a path it is the one model that is served there.
        features: An object by column, or a list in the schema's order.
        ca_file: As in `Question`.

    Raises:
        CliError: Nothing answers there, the model refuses, or its answer is no JSON.
    """
    example = "write it like http://127.0.0.1:8080/predictions/adult-income"
    address = _address(url, f"{url!r} is no URL of a model", example, scheme="http")
    path = quote(address.path.rstrip("/"), safe="/:%") or _INVOCATIONS
    words = _Words(
        silent=f"nothing answers at {url}",
        reach=f"is {_RUN} running? It prints the URL of its model",
        schema="train/preprocessor.json in the folder of its version",
        unknown=f"the URL ends in the model's name; {_RUN} prints it whole",
        stranger=f"does a model answer there? Take the URL that {_RUN} prints",
        look="read logs/torchserve.log in the folder of its version",
        name="--url",
    )
    return _ask(_door(address), _Request(address, path, _body(features), _trust(ca_file), words))


def _way(cluster: Cluster) -> _Door:
    """To the gateway of this cluster; whoever sends to HTTPS there says so."""
    if cluster.inside:
        service = f"{GATEWAY_SERVICE}.{GATEWAY_NAMESPACE}.svc"
        return _Door(
            lambda port: socket.create_connection((service, port), _TIMEOUT_SECONDS), http.client.HTTP_PORT, tls=False
        )
    from mlplatform.cli import forward  # noqa: PLC0415  it imports the Kubernetes client

    ports = forward.gateway_ports(cluster)
    plain = http.client.HTTP_PORT in ports
    port = http.client.HTTP_PORT if plain else http.client.HTTPS_PORT
    return _Door(lambda wanted: forward.dial(cluster, ports, wanted, _TIMEOUT_SECONDS), port, tls=not plain)


def _door(address: SplitResult) -> _Door:
    """At an address that has a scheme."""
    tls = address.scheme == "https"
    port = address.port or (http.client.HTTPS_PORT if tls else http.client.HTTP_PORT)
    return _Door(lambda port: socket.create_connection((_idna(address), port), _TIMEOUT_SECONDS), port, tls)


def _ask(door: _Door, request: _Request) -> Any:
    for _ in range(_MOVES + 1):
        response, answer = _send(door, request)
        if response.status not in _MOVED:
            break
        door, request = _moved(door, request, response)
    else:
        _elsewhere(request, response)
    words = request.words
    if response.status != http.client.OK:
        raise CliError(f"the model answered {response.status}: {_said(answer)}", _advice(response.status, words))
    try:
        return json.loads(answer)
    except ValueError:
        raise CliError(f"the answer is no prediction but {answer.strip()[:500]!r}", words.stranger) from None


def _send(door: _Door, request: _Request) -> tuple[http.client.HTTPResponse, str]:
    words, sent = request.words, False
    connection = _Connection(request.host, lambda: door.dial(door.port), request.trust if door.tls else None)
    headers = {"Host": request.url.netloc.rpartition("@")[2], "Content-Type": "application/json", "Connection": "close"}
    try:
        connection.request("POST", request.path, request.body, {**headers, **request.headers})
        sent = True
        response = connection.getresponse()
        return response, response.read().decode(errors="replace")
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(error, request) from None
    except ssl.SSLError as error:
        cause = f"{words.silent} by HTTPS: {error.reason or error}"
        raise CliError(cause, f"if it is HTTP there, say so: {words.name} http://…") from None
    except (OSError, http.client.HTTPException) as error:
        if sent and isinstance(error, TimeoutError):
            raise CliError(f"no answer from the model within {_TIMEOUT_SECONDS:g} s", words.look) from None
        raise CliError(f"{words.silent}: {error or type(error).__name__}", words.reach) from None
    finally:
        connection.close()


def _moved(door: _Door, request: _Request, response: http.client.HTTPResponse) -> tuple[_Door, _Request]:
    """The question at the same host where that asks for it: by HTTPS, or at another path.

    Raises:
        CliError: It is another host, or nobody knows the address by which that port is reached from here.
    """
    here = request.url._replace(scheme="https" if door.tls else "http", path=request.path).geturl()
    try:
        to = urlsplit(urljoin(here, response.headers.get("Location", "")))
        port = to.port or http.client.HTTPS_PORT
    except ValueError:
        _elsewhere(request, response)
    if to.hostname != request.url.hostname or to.scheme not in {"http", "https"} or (door.tls and to.scheme == "http"):
        _elsewhere(request, response)
    moved = replace(request, path=to._replace(scheme="", netloc="", fragment="").geturl())
    if (to.scheme == "https") == door.tls:
        return door, moved
    if door.port != http.client.HTTP_PORT:
        cause = f"what answers at port {door.port} sends to HTTPS: {response.headers['Location']}"
        raise CliError(cause, f"name the address by which that is reached from here: {request.words.name} https://…")
    return replace(door, port=port, tls=True), moved


def _elsewhere(request: _Request, response: http.client.HTTPResponse) -> NoReturn:
    raise CliError(
        f"{request.host} sends the question on to {response.headers.get('Location')!r} ({response.status}), where it "
        "was not sent: features go to the model's own host, never back to HTTP, and not in circles",
        request.words.stranger,
    )


def _untrusted(error: ssl.SSLCertVerificationError, request: _Request) -> CliError:
    """What OpenSSL has against the certificate, and what that means here."""
    if error.verify_code in _OTHER_NAME:
        return CliError(
            f"the certificate is not made out to {request.host}: {error.verify_message}",
            "it must name that host, or *.<namespace>.<domain> (the chart's gateway.tlsSecret); "
            f"if it is not the platform's gateway that answers: {request.words.name} URL",
        )
    if error.verify_code == _EXPIRED:
        return CliError(f"the certificate of {request.host} has expired", "whoever runs the gateway must renew it")
    return CliError(
        f"the certificate of {request.host} is not trusted: {error.verify_message}",
        "name the certificate of the authority that has signed it: --ca-file FILE",
    )


def _trust(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # ssl.SSLError, of what holds no certificate, is one.
        cause = f"cannot read certificates from {ca_file!r}: {error.strerror or error}"
        raise CliError(cause, "--ca-file takes a file in PEM: -----BEGIN CERTIFICATE----- …", EXIT_USAGE) from None


def _body(features: Any) -> str:
    return json.dumps({"features": features})


def _said(answer: str) -> str:
    """The message of a refusal in the form of TorchServe's errors; any other body as it is."""
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, TypeError, KeyError):
        return answer.strip()[:500]


def _advice(status: int, words: _Words) -> str:
    if status == http.client.BAD_REQUEST:
        return f"correct --features; the model's schema is in {words.schema}"
    if status == http.client.NOT_FOUND:
        return words.unknown
    return words.look


def _address(text: str, cause: str, example: str, *, scheme: str) -> SplitResult:
    """The parts of an address, with the scheme where it has none; an error of usage with `cause` if it has no host."""
    try:
        parts = urlsplit(text if "//" in text else f"//{text}", scheme)
        host = _idna(parts)
        if host and " " not in host and parts.scheme in {"http", "https"} and parts.port != 0:
            return parts
    except ValueError:
        pass  # A port that is no number, half an IPv6 address: told below.
    raise CliError(cause, example, code=EXIT_USAGE)


def _idna(address: SplitResult) -> str:
    return (address.hostname or "").encode("idna").decode()
