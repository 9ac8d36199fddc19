"""`kubectl mlmodel predict` where something is wrong: each mistake has its cause and its next action, none a traceback.

Real sockets stand in for the gateway and for a model's own server, a table of answers for the API server; tests/e2e
asks a real model, and so does test_standalone_serve.py at its URL.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlplatform.cli import forward, predict
from mlplatform.cli.cluster import Cluster
from mlplatform.errors import CliError

QUESTION = predict.Question("http://adult-income.default.models.local", {"age": 39})
ROOT = "/api/v1/namespaces/istio-system"
SERVICE = f"{ROOT}/services/istio-ingressgateway"
ENDPOINTS = f"{ROOT}/endpoints/istio-ingressgateway"
POD = {"kind": "Pod", "name": "istio-ingressgateway-1"}
Answers = dict[str, tuple[int, Any]]


def service(*ports: int) -> tuple[int, Any]:
    return 200, {"metadata": {}, "spec": {"ports": [{"name": f"p{port}", "port": port} for port in ports]}}


def endpoints(port: int, name: str) -> tuple[int, Any]:
    subset = {"addresses": [{"ip": "10.0.0.1", "targetRef": POD}], "ports": [{"name": name, "port": port}]}
    return 200, {"metadata": {}, "subsets": [subset]}


def refusal(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "code": code, "details": {"name": "x"}}


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    """A server that answers by path, a str as it is and all else as JSON; None hangs up."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            """Keeps the test's output clean."""

        def do_GET(self) -> None:
            code, body = answers[self.path]
            if body is None:
                self.close_connection = True
                return
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def a_cluster(folder: Path, answers: Answers) -> Iterator[Cluster]:
    with serving(answers) as url:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        cluster = Cluster(str(path), None, None)
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("reason", "gateway"),
    [
        ("a port that is no number", "http://gateway:abc"),
        ("a port that is too large", "http://gateway:99999"),
        ("a host with a space", "http://my gateway"),
        ("half an IPv6 address", "http://[::1"),
        ("a host of dots", "http://.."),
        ("another scheme", "ftp://gateway"),
        ("no host", "http://"),
    ],
)
def test_what_is_no_gateway_address(reason: str, gateway: str, tmp_path: Path) -> None:
    with a_cluster(tmp_path, {}) as cluster, pytest.raises(CliError) as raised:
        predict.ask(cluster, QUESTION, gateway)
    assert raised.value.code == 2, reason
    assert raised.value.cause == f"{gateway!r} is no gateway address", reason


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_prediction_through_a_gateway(scheme: str, tmp_path: Path) -> None:
    with a_cluster(tmp_path, {}) as cluster, serving({"/predict": (200, {"probability": 0.7})}) as url:
        assert predict.ask(cluster, QUESTION, url.replace("http://", scheme)) == {"probability": 0.7}


def test_a_refusal_is_told_in_the_models_words(tmp_path: Path) -> None:
    said = {"code": 400, "type": "BadRequest", "message": "record 0: column age needs a number, got 'old'"}
    with (
        a_cluster(tmp_path, {}) as cluster,
        serving({"/predict": (400, said)}) as url,
        pytest.raises(CliError) as raised,
    ):
        predict.ask(cluster, QUESTION, url)
    assert raised.value.cause == f"the model answered 400: {said['message']}"
    assert raised.value.next_action.startswith("correct --features")


def test_an_answer_that_is_no_json_is_shown(tmp_path: Path) -> None:
    with a_cluster(tmp_path, {}) as cluster, serving({"/predict": (200, "<html>It works!</html>")}) as url:
        with pytest.raises(CliError, match="the answer is no prediction but '<html>It works!</html>'") as raised:
            predict.ask(cluster, QUESTION, url)
        assert "--gateway URL" in raised.value.next_action


READY: Answers = {SERVICE: service(15021, 80), ENDPOINTS: endpoints(8080, "p80")}


@pytest.mark.parametrize(
    ("reason", "answers", "cause", "next_action"),
    [
        (
            "another gateway than Istio's is named by its address",
            {SERVICE: refusal(404, 'services "istio-ingressgateway" not found')},
            "there is no Service istio-ingressgateway in namespace 'istio-system'",
            "--gateway URL",
        ),
        (
            "who may not look into the gateway's namespace needs no right there to ask",
            {SERVICE: refusal(403, 'User "ann" cannot get resource "services"')},
            "not allowed to find the pods of Service istio-ingressgateway in 'istio-system': User",
            "--gateway URL",
        ),
        (
            "a gateway that speaks neither HTTP nor HTTPS",
            {SERVICE: service(15021), ENDPOINTS: endpoints(15021, "p15021")},
            "Service istio-ingressgateway in 'istio-system' has neither port 80 nor 443",
            "--gateway URL",
        ),
        (
            "a gateway without pods",
            {SERVICE: service(80), ENDPOINTS: (200, {"metadata": {}, "subsets": None})},
            "no ready pod behind Service istio-ingressgateway",
            "--gateway URL",
        ),
        (
            "an API server that hangs up",
            {SERVICE: service(80), ENDPOINTS: (200, None)},
            "cannot reach the cluster at http://127.0.0.1:",
            "kubectl cluster-info",
        ),
        (
            "a port-forward that is refused",
            {**READY, f"{ROOT}/pods/{POD['name']}/portforward?ports=8080": refusal(403, "no")},
            "cannot forward a port to pod istio-ingressgateway-1 in 'istio-system': Handshake status 403 Forbidden",
            "--gateway URL",
        ),
    ],
)
def test_no_way_to_the_gateway(reason: str, answers: Answers, cause: str, next_action: str, tmp_path: Path) -> None:
    with a_cluster(tmp_path, answers) as cluster, pytest.raises(CliError) as raised:
        predict.ask(cluster, QUESTION, "")
    assert raised.value.cause.startswith(cause), reason
    assert next_action in raised.value.next_action, reason


class Forwarder:
    """A port-forward as far as `predict` needs it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def socket(self, _port: int) -> socket.socket:
        return self._sock


def test_a_model_that_hangs_does_not_hang_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(forward, "portforward", lambda *_args, **_kwargs: Forwarder(ours))
    monkeypatch.setattr(predict, "_TIMEOUT_SECONDS", 0.2)
    hang_up = threading.Timer(5, theirs.shutdown, [socket.SHUT_RDWR])  # Ends the test where there is no timeout.
    hang_up.start()
    try:
        with a_cluster(tmp_path, READY) as cluster, pytest.raises(CliError) as raised:
            predict.ask(cluster, QUESTION, "")
    finally:
        hang_up.cancel()
        hang_up.join()
        theirs.close()
    assert raised.value.cause == "no answer from the model within 0.2 s"
    assert "kubectl logs" in raised.value.next_action


def test_a_gateway_that_cannot_be_reached_is_not_the_models_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_out(*_: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(predict.socket, "create_connection", time_out)
    with a_cluster(tmp_path, {}) as cluster, pytest.raises(CliError, match="the gateway does not answer: timed out"):
        predict.ask(cluster, QUESTION, "http://192.0.2.1")


ANSWER = {"prediction": "<=50K", "confidence": 0.9}
MODEL = "/predictions/adult-income"


@pytest.mark.parametrize(
    ("reason", "suffix", "asked"),
    [
        ("the URL that run --serve prints", MODEL, MODEL),
        ("a slash at its end", f"{MODEL}/", MODEL),
        ("without a path, the one model that is there", "", "/invocations"),
        ("likewise", "/", "/invocations"),
        ("one version of it", f"{MODEL}/v1", f"{MODEL}/v1"),
        ("what no request line may hold", "/predictions/für mich", "/predictions/f%C3%BCr%20mich"),
    ],
)
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_prediction_at_a_url(scheme: str, reason: str, suffix: str, asked: str) -> None:
    with serving({asked: (200, ANSWER)}) as url:
        assert predict.ask_url(url.replace("http://", scheme) + suffix, {"age": 39}) == ANSWER, reason


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:abc/predictions/m", "ftp://127.0.0.1/predictions/m", "/predictions/m"]
)
def test_what_is_no_url_of_a_model(url: str) -> None:
    with pytest.raises(CliError) as raised:
        predict.ask_url(url, {})
    assert raised.value.cause == f"{url!r} is no URL of a model"
    assert raised.value.code == 2


@pytest.mark.parametrize(
    ("reason", "answer", "cause", "next_action"),
    [
        (
            "a refusal, in the model's words",
            (400, {"code": 400, "type": "BadRequest", "message": "column age needs a number, got 'old'"}),
            "the model answered 400: column age needs a number, got 'old'",
            "correct --features; the model's schema is in train/preprocessor.json",
        ),
        (
            "another model's name",
            (404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: adult-income"}),
            "the model answered 404: Model not found: adult-income",
            "the URL ends in the model's name",
        ),
        (
            "a model that failed",
            (503, {"code": 503, "type": "InternalServerException", "message": "Worker died"}),
            "the model answered 503: Worker died",
            "read logs/torchserve.log",
        ),
        (
            "no model, which refuses",
            (501, "<html>Unsupported method</html>"),
            "the model answered 501: <html>Unsupported method</html>",
            "read logs/torchserve.log",
        ),
        (
            "JSON that is no message",
            (500, ["a", "b"]),
            'the model answered 500: ["a", "b"]',
            "read logs/torchserve.log",
        ),
        (
            "no model, which answers",
            (200, "<html>It works!</html>"),
            "the answer is no prediction but '<html>It works!</html>'",
            "does a model answer there?",
        ),
        ("a server that hangs up", (200, None), "nothing answers at http://127.0.0.1:", "run --serve running?"),
    ],
)
def test_no_prediction_at_a_url(reason: str, answer: tuple[int, Any], cause: str, next_action: str) -> None:
    with serving({MODEL: answer}) as url, pytest.raises(CliError) as raised:
        predict.ask_url(f"{url}{MODEL}", {"age": "old"})
    assert raised.value.cause.startswith(cause), reason
    assert next_action in raised.value.next_action, reason
    assert raised.value.code == 1, reason


def test_a_url_where_nothing_listens() -> None:
    with serving({}) as url:
        pass
    with pytest.raises(CliError) as raised:
        predict.ask_url(f"{url}{MODEL}", {"age": 39})
    assert raised.value.cause == f"nothing answers at {url}{MODEL}: [Errno 111] Connection refused"
    assert raised.value.next_action == "is kubectl mlmodel run --serve running? It prints the URL of its model"


def test_a_model_at_a_url_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(CliError) as raised:
        predict.ask_url(f"http://127.0.0.1:{silent.getsockname()[1]}{MODEL}", {"age": 39})
    assert raised.value.cause == "no answer from the model within 0.2 s"
