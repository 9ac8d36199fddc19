"""One prediction, from wherever the user is.

Called by `mlplatform.cli.main`. Of a model in a cluster it is asked through the gateway: with its address there;
without one over a port that the API server forwards to a gateway pod, so that neither DNS for the model's host nor a
route into the cluster is needed. Of a model that `kubectl mlmodel run --serve` serves it is asked at its URL, and no
client of a cluster is imported.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from mlplatform import contract
from mlplatform.errors import EXIT_USAGE, CliError

if TYPE_CHECKING:
    from mlplatform.cli.cluster import Cluster

GATEWAY_NAMESPACE: Final = "istio-system"
_TIMEOUT_SECONDS: Final = 10.0
_INVOCATIONS: Final = "/invocations"
"""Where TorchServe answers for the one model that it has, whatever its name."""


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
    """

    silent: str
    reach: str
    schema: str
    unknown: str
    stranger: str
    look: str


_GATEWAY: Final = _Words(
    silent="the gateway does not answer",
    reach=f"kubectl -n {GATEWAY_NAMESPACE} get pods; or name another one with --gateway URL",
    schema="train/preprocessor.json of its artifacts",
    unknown="no route for this model: is its VirtualService there? kubectl get virtualservices",
    stranger="does a gateway of the platform answer there? Name the right one with --gateway URL",
    look="look at the version's pods: kubectl get pods -l mlplatform.dev/model=<name>, then kubectl logs",
)
_RUN: Final = "kubectl mlmodel run --serve"


def ask(cluster: Cluster, question: Question, gateway: str) -> Any:
    """Sends `POST /predict` and returns the answer's JSON.

    Raises:
        CliError: The gateway cannot be reached, the model refuses, or its answer is no JSON.
    """
    if gateway:
        connection = _connect(gateway, f"{gateway!r} is no gateway address", "write it like http://10.0.0.1:80")
    else:
        from mlplatform.cli import forward  # noqa: PLC0415  it imports the Kubernetes client

        connection = forward.to_gateway(cluster, _TIMEOUT_SECONDS)
    headers = {"Host": urlsplit(question.url).netloc}
    if question.version:
        headers[contract.HEADER_VERSION] = question.version
    return _ask(connection, "/predict", headers, question.features, _GATEWAY)


def ask_url(url: str, features: Any) -> Any:
    """Asks a model at its own URL, without a gateway, and returns the answer's JSON.

    Args:
        url: As `kubectl mlmodel run --serve` prints it; without a path it is the one model that is served there.
        features: An object by column, or a list in the schema's order.

    Raises:
        CliError: Nothing answers there, the model refuses, or its answer is no JSON.
    """
    connection = _connect(
        url, f"{url!r} is no URL of a model", "write it like http://127.0.0.1:8080/predictions/adult-income"
    )
    path = quote(urlsplit(_absolute(url)).path.rstrip("/"), safe="/:%") or _INVOCATIONS
    words = _Words(
        silent=f"nothing answers at {url}",
        reach=f"is {_RUN} running? It prints the URL of its model",
        schema="train/preprocessor.json in the folder of its version",
        unknown=f"the URL ends in the model's name; {_RUN} prints it whole",
        stranger=f"does a model answer there? Take the URL that {_RUN} prints",
        look="read logs/torchserve.log in the folder of its version",
    )
    return _ask(connection, path, {}, features, words)


def _ask(
    connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str], features: Any, words: _Words
) -> Any:
    sent = False
    try:
        body = json.dumps({"features": features})
        connection.request("POST", path, body, {"Content-Type": "application/json", "Connection": "close", **headers})
        sent = True
        response = connection.getresponse()
        answer = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        if sent and isinstance(error, TimeoutError):
            raise CliError(f"no answer from the model within {_TIMEOUT_SECONDS:g} s", words.look) from None
        raise CliError(f"{words.silent}: {error or type(error).__name__}", words.reach) from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise CliError(f"the model answered {response.status}: {_said(answer)}", _advice(response.status, words))
    try:
        return json.loads(answer)
    except ValueError:
        raise CliError(f"the answer is no prediction but {answer.strip()[:500]!r}", words.stranger) from None


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


def _absolute(address: str) -> str:
    return address if "//" in address else f"//{address}"


def _connect(address: str, cause: str, example: str) -> http.client.HTTPConnection:
    """A connection to the host of `address`; an error of usage with `cause` if it has none."""
    try:
        parts = urlsplit(_absolute(address))
        host = (parts.hostname or "").encode("idna").decode()
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        if host and parts.scheme in {"", "http", "https"}:
            return kind(host, parts.port or kind.default_port, timeout=_TIMEOUT_SECONDS)
    except (ValueError, http.client.InvalidURL):
        pass  # A port that is no number, a host with a space in it: told below.
    raise CliError(cause, example, code=EXIT_USAGE)
