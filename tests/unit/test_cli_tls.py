"""`kubectl mlmodel predict` over HTTPS: whatever address it connects to, the question is the model's host's alone.

Real TLS servers on the loopback stand in for gateways, with certificates of an authority that only `--ca-file` makes
good; tests/unit/test_cli_predict.py asks by HTTP.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from unit.test_cli_predict import ENDPOINTS, POD, SERVICE, Forwarder, a_cluster, service

from mlplatform.cli import forward, predict
from mlplatform.cli.main import main
from mlplatform.errors import CliError

HOST = "adult-income.default.models.example.com"
FEATURES = {"age": 39}
ANSWER = {"probability": 0.7}


@dataclass
class Gateway:
    """A server that answers, or redirects.

    Attributes:
        location: Where it sends who asks; empty: it answers.
        status: With which status.
        port: Its own.
        answer: What it answers.
        asked: The path, the Host header and the body of each request.
        names: The name that each client has asked for by SNI.
    """

    location: str = ""
    status: int = 301
    port: int = 0
    answer: Any = field(default_factory=lambda: ANSWER)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.founded(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> ssl.SSLContext:
    """Of the gateway; a wildcard stands for one label."""
    return authority.server("*.default.models.example.com")


class Server(ThreadingHTTPServer):
    """Says nothing of clients that do not trust it and hang up."""

    def handle_error(self, *_: object) -> None:
        """It is what some tests are about."""


@contextmanager
def running(gateway: Gateway, context: ssl.SSLContext | None = None) -> Iterator[Gateway]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            gateway.asked.append((self.path, self.headers["Host"], body))
            answer = b"" if gateway.location else json.dumps(gateway.answer).encode()
            self.send_response(gateway.status if gateway.location else 200)
            if gateway.location:
                self.send_header("Location", gateway.location)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815  so the server calls it

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        context.sni_callback = lambda _socket, name, _context: gateway.names.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    gateway.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def question(authority: Authority | None, url: str = f"https://{HOST}") -> predict.Question:
    return predict.Question(url, FEATURES, ca_file=str(authority.certificate) if authority else "")


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Of the loopback, in place of those that nobody but root listens at."""
    instead: dict[int, int] = {}
    connect = socket.create_connection

    def redirected(address: tuple[str, int], timeout: float) -> socket.socket:
        return connect((address[0], instead.get(address[1], address[1])), timeout)

    monkeypatch.setattr(predict.socket, "create_connection", redirected)
    return instead


@pytest.mark.parametrize(
    ("reason", "address"), [("the address says HTTPS", "https://127.0.0.1"), ("the model's URL does", "127.0.0.1")]
)
def test_the_certificate_is_the_hosts_whatever_the_address(
    reason: str, address: str, authority: Authority, certificate: ssl.SSLContext, tmp_path: Path
) -> None:
    with a_cluster(tmp_path, {}) as cluster, running(Gateway(), certificate) as gateway:
        assert predict.ask(cluster, question(authority), f"{address}:{gateway.port}") == ANSWER, reason
    assert gateway.names == [HOST], reason
    assert gateway.asked == [("/predict", HOST, {"features": FEATURES})], reason


def test_over_a_forwarded_port(
    authority: Authority, certificate: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that is asked by HTTPS only."""
    subset = {"addresses": [{"ip": "10.0.0.1", "targetRef": POD}], "ports": [{"name": "p443", "port": 8443}]}
    answers = {SERVICE: service(15021, 443), ENDPOINTS: (200, {"metadata": {}, "subsets": [subset]})}
    with a_cluster(tmp_path, answers) as cluster, running(Gateway(), certificate) as gateway:
        way = lambda *_args, **_kwargs: Forwarder(socket.create_connection(("127.0.0.1", gateway.port)))  # noqa: E731
        monkeypatch.setattr(forward, "portforward", way)
        assert predict.ask(cluster, question(authority), "") == ANSWER
    assert gateway.names == [HOST]


@pytest.mark.parametrize(
    ("reason", "names", "days", "trusted", "cause", "next_action"),
    [
        ("an authority that this machine does not know", (HOST,), 1, False,
         f"the certificate of {HOST} is not trusted: unable to get local issuer certificate", "--ca-file FILE"),
        ("another name", ("gateway.example.com",), 1, True,
         f"the certificate is not made out to {HOST}: Hostname mismatch", "gateway.tlsSecret"),
        ("a wildcard stands for one label", ("*.models.example.com",), 1, True,
         f"the certificate is not made out to {HOST}: Hostname mismatch", "*.<namespace>.<domain>"),
        ("one that is over", (HOST,), -1, True, f"the certificate of {HOST} has expired", "renew"),
    ],
)  # fmt: skip
def test_a_certificate_that_is_not_good(
    reason: str, names: tuple[str, ...], days: int, trusted: bool, cause: str, next_action: str,  # noqa: FBT001
    authority: Authority, tmp_path: Path,
) -> None:  # fmt: skip
    context = authority.server(*names, days=days)
    with (
        a_cluster(tmp_path, {}) as cluster,
        running(Gateway(), context) as gateway,
        pytest.raises(CliError) as raised,
    ):
        predict.ask(cluster, question(authority if trusted else None), f"https://127.0.0.1:{gateway.port}")
    assert raised.value.cause.startswith(cause), reason
    assert next_action in raised.value.next_action, reason
    assert gateway.asked == [], "nobody is told the features before that"


def test_http_where_https_is_asked_for(tmp_path: Path) -> None:
    with (
        a_cluster(tmp_path, {}) as cluster,
        running(Gateway()) as gateway,
        pytest.raises(CliError, match="does not answer by HTTPS: WRONG_VERSION_NUMBER") as raised,
    ):
        predict.ask(cluster, question(None), f"https://127.0.0.1:{gateway.port}")
    assert raised.value.next_action == "if it is HTTP there, say so: --gateway http://…"


@pytest.mark.parametrize(("reason", "text"), [("no such file", None), ("no certificate in it", "hello")])
def test_a_file_of_authorities_that_is_none(reason: str, text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    if text:
        path.write_text(text)
    with pytest.raises(CliError, match="cannot read certificates from") as raised:
        predict.ask_url(f"https://{HOST}/predict", FEATURES, str(path))
    assert (raised.value.code, "--ca-file" in raised.value.next_action) == (2, True), reason


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_https_is_followed_with_the_question(
    status: int, authority: Authority, certificate: ssl.SSLContext, tmp_path: Path, ports: dict[int, int]
) -> None:
    plain = Gateway(location=f"https://{HOST}/predict", status=status)
    with a_cluster(tmp_path, {}) as cluster, running(plain), running(Gateway(), certificate) as gateway:
        ports |= {80: plain.port, 443: gateway.port}
        assert predict.ask(cluster, question(authority, f"http://{HOST}"), "http://127.0.0.1") == ANSWER
    assert gateway.names == [HOST]
    assert plain.asked == gateway.asked == [("/predict", HOST, {"features": FEATURES})]


def test_a_redirect_to_https_over_forwarded_ports(
    authority: Authority, certificate: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chart's own Gateway with a certificate: port 80 only redirects."""
    subset = {
        "addresses": [{"ip": "10.0.0.1", "targetRef": POD}],
        "ports": [{"name": "p443", "port": 8443}, {"name": "p80", "port": 8080}],
    }
    answers = {SERVICE: service(80, 443), ENDPOINTS: (200, {"metadata": {}, "subsets": [subset]})}
    plain = Gateway(location=f"https://{HOST}/predict")
    with a_cluster(tmp_path, answers) as cluster, running(plain), running(Gateway(), certificate) as gateway:
        pods = {"8080": plain.port, "8443": gateway.port}
        way = lambda *_args, ports: Forwarder(socket.create_connection(("127.0.0.1", pods[ports])))  # noqa: E731
        monkeypatch.setattr(forward, "portforward", way)
        assert predict.ask(cluster, question(authority), "") == ANSWER
    assert gateway.names == [HOST]


@pytest.mark.parametrize(
    ("reason", "location"),
    [
        ("another host", "https://elsewhere.example.com/predict"),
        ("another host without TLS", "http://elsewhere.example.com/predict"),
        ("a host that only begins like it", f"https://{HOST}.example.net/predict"),
        ("no URL at all", "https://[::1/predict"),
        ("another protocol", f"ftp://{HOST}/predict"),
        ("itself, for ever", f"http://{HOST}/predict"),
    ],
)
def test_features_go_to_the_models_host_only(reason: str, location: str, tmp_path: Path) -> None:
    with (
        a_cluster(tmp_path, {}) as cluster,
        running(Gateway(location=location)) as gateway,
        pytest.raises(CliError) as raised,
    ):
        predict.ask(cluster, question(None, f"http://{HOST}"), f"http://127.0.0.1:{gateway.port}")
    assert raised.value.cause.startswith(f"{HOST} sends the question on to '{location}' (301)"), reason
    assert {host for _, host, _ in gateway.asked} == {HOST}, reason


def test_nothing_goes_back_to_http(authority: Authority, certificate: ssl.SSLContext, tmp_path: Path) -> None:
    downgrade = Gateway(location=f"http://{HOST}/predict")
    with (
        a_cluster(tmp_path, {}) as cluster,
        running(downgrade, certificate) as gateway,
        pytest.raises(CliError, match="never back to HTTP"),
    ):
        predict.ask(cluster, question(authority), f"https://127.0.0.1:{gateway.port}")


def test_a_port_of_a_tunnel_says_nothing_of_the_one_for_https(tmp_path: Path) -> None:
    with (
        a_cluster(tmp_path, {}) as cluster,
        running(Gateway(location=f"https://{HOST}/predict")) as gateway,
        pytest.raises(CliError, match=f"what answers at port {gateway.port} sends to HTTPS") as raised,
    ):
        predict.ask(cluster, question(None, f"http://{HOST}"), f"http://127.0.0.1:{gateway.port}")
    assert "--gateway https://" in raised.value.next_action


def test_a_url_of_its_own(authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    with running(Gateway(), authority.server("localhost")) as gateway:
        url = f"https://localhost:{gateway.port}/predictions/adult-income"
        flags = ["--features", json.dumps(FEATURES), "--ca-file", str(authority.certificate)]
        assert main(["predict", "--url", url, *flags]) == 0
    assert json.loads(capsys.readouterr().out) == ANSWER
    assert gateway.asked == [("/predictions/adult-income", f"localhost:{gateway.port}", {"features": FEATURES})]
