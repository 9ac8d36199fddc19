"""The way to a store and to the API server: private authorities, and what goes through a proxy and what does not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import kopf
import pytest
from certificates import Authority
from kubernetes.config import incluster_config

from mljobs.failure import JobFailure
from mljobs.store import Store
from mlplatform import api
from mlplatform.cluster import connect
from mlplatform.contract import FailureClass, Stage
from mlplatform.resources import pod
from mlplatform.settings import Settings

BODY = b"rows"
PROXIES = [case(name) for name in ("http_proxy", "https_proxy", "no_proxy") for case in (str, str.upper)]


class Bucket(BaseHTTPRequestHandler):
    """Answers as S3 does when an object is read."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(BODY)

    do_HEAD = do_GET  # noqa: N815  so the server calls it

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that do not trust it and hang up."""

    def handle_error(self, *_: object) -> None:
        """It is what some tests are about."""


@dataclass(frozen=True)
class Private:
    """A store with a certificate that a CA of its own has signed."""

    endpoint: str
    authority: Path


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    authority = Authority.founded(tmp_path_factory.mktemp("pki"))
    context = authority.server("localhost", "store.example.com")
    server = Quiet(("127.0.0.1", 0), Bucket)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Private(f"https://localhost:{server.server_port}", authority.certificate)
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(private: Private, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Of a pod: its store is `private`, and it trusts what everybody does."""
    driver = fsspec.get_filesystem_class("s3")
    driver.clear_instance_cache()
    monkeypatch.setattr(driver, "retries", 1)
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", *PROXIES):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "unused-here")
    monkeypatch.setenv("AWS_ENDPOINT_URL", private.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield monkeypatch
    driver.clear_instance_cache()


@pytest.mark.usefixtures("environment")
def test_an_untrusted_certificate_is_told_in_its_own_words(private: Private) -> None:
    with pytest.raises(JobFailure) as caught:
        Store("s3://bucket/data").read("rows.csv")
    failure = caught.value.failure
    assert "certificate verify failed: unable to get local issuer certificate" in failure.message, failure
    assert private.endpoint in failure.message, "whose certificate it is"
    assert "trust.configMap" in failure.next_action
    assert failure.reason is FailureClass.STORE_ACCESS, "to try again does not mend it"


def test_a_certificate_for_another_name_is_no_matter_of_trust(
    private: Private, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("AWS_CA_BUNDLE", str(private.authority))
    environment.setenv("AWS_ENDPOINT_URL", private.endpoint.replace("localhost", "127.0.0.1"))
    with pytest.raises(JobFailure, match=r"IP address mismatch") as caught:
        Store("s3://bucket/data").read("rows.csv")
    assert "AWS_ENDPOINT_URL" in caught.value.failure.next_action


def test_the_bundle_is_trusted(private: Private, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_CA_BUNDLE", str(private.authority))
    assert Store("s3://bucket/data").read("rows.csv") == BODY


def test_a_bundle_that_is_not_there_is_named(environment: pytest.MonkeyPatch) -> None:
    """A ConfigMap that this namespace lacks, or a key that it lacks."""
    environment.setenv("AWS_CA_BUNDLE", "/etc/mlplatform/trust/ca.crt")
    with pytest.raises(JobFailure, match=r"/etc/mlplatform/trust/ca\.crt is not there") as caught:
        Store("s3://bucket/data").read("rows.csv")
    assert caught.value.failure.reason is FailureClass.STORE_ACCESS
    assert "trust.configMap" in caught.value.failure.next_action


@pytest.mark.parametrize("content", ["", "company\n", "\x30\x82"], ids=["empty", "words", "DER"])
def test_a_bundle_without_a_certificate_is_named(environment: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    """A ConfigMap whose key was filled with something else."""
    (tmp_path / "ca.crt").write_text(content)
    environment.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.crt"))
    with pytest.raises(JobFailure, match=r"ca\.crt holds no certificate in PEM") as caught:
        Store("s3://bucket/data").read("rows.csv")
    assert caught.value.failure.reason is FailureClass.STORE_ACCESS, "to try again does not mend it"
    assert "key ca.crt of the ConfigMap that the chart's trust.configMap names" in caught.value.failure.next_action


# Proxies.


@dataclass
class Proxy:
    """An HTTP proxy on the loopback that leads wherever it is asked to go to one server.

    Attributes:
        url: Its address.
        asked: The hosts that it was asked for.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def proxy(private: Private) -> Iterator[Proxy]:
    found = Proxy()
    port = int(private.endpoint.rpartition(":")[2])

    class Handler(Bucket):
        def do_CONNECT(self) -> None:
            found.asked.append(self.path.rpartition(":")[0])
            self.send_response(200)
            self.end_headers()
            with socket.create_connection(("127.0.0.1", port)) as there, contextlib.suppress(OSError):
                threading.Thread(target=pipe, args=(there, self.connection), daemon=True).start()
                pipe(self.connection, there)

        def do_GET(self) -> None:
            found.asked.append(self.path.split("/")[2])
            super().do_GET()

        do_HEAD = do_GET  # noqa: N815  so the server calls it

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    server.server_close()


def pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def in_a_pod(environment: pytest.MonkeyPatch, proxy: Proxy) -> None:
    """What the container of a training has for its ways out."""
    version = {"metadata": {"name": "m-1", "namespace": "team"}, "spec": {"model": "m"}}
    spec = api.decode(api.ModelVersionSpec, {"model": "m", "sequence": 1, "data": {"uri": "s3://x/", "label": "y"}})
    settings = Settings(http_proxy=proxy.url, https_proxy=proxy.url, no_proxy="minio.corp")
    for entry in pod.environment(version, spec, Stage.TRAIN, settings):
        if entry["name"].lower().endswith("_proxy"):
            environment.setenv(entry["name"], entry["value"].replace("$(KUBERNETES_SERVICE_HOST)", "10.96.0.1"))


def test_a_store_outside_is_reached_through_the_proxy(
    private: Private, environment: pytest.MonkeyPatch, proxy: Proxy
) -> None:
    in_a_pod(environment, proxy)
    environment.setenv("AWS_CA_BUNDLE", str(private.authority))
    environment.setenv("AWS_ENDPOINT_URL", "https://store.example.com")
    assert Store("s3://bucket/data").read("rows.csv") == BODY
    assert set(proxy.asked) == {"store.example.com"}, "by CONNECT: the proxy sees no more than the name"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("localhost", "loopback"),
        ("mlplatform-store.mlplatform-system.svc", "the store inside the cluster"),
        ("minio.team.svc.cluster.local", "any other Service"),
        ("minio.corp", "what the chart was told"),
        ("10.96.0.1", "the API server"),
        ("m-1-train-master-0", "the pod that a training's others meet at"),
    ],
)
def test_what_is_inside_is_not(environment: pytest.MonkeyPatch, proxy: Proxy, host: str, reason: str) -> None:
    in_a_pod(environment, proxy)
    environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:1")
    environment.setattr("mljobs.store.CONNECT_TIMEOUT_SECONDS", 1)
    environment.setattr("mljobs.store.ATTEMPTS", 1)
    with pytest.raises(JobFailure):
        Store("s3://bucket/data").read("rows.csv")
    assert proxy.asked == [], reason


def test_the_operator_asks_the_api_server_itself(
    private: Private, environment: pytest.MonkeyPatch, proxy: Proxy, tmp_path: Path
) -> None:
    """Whatever its environment says, be it of the chart, of a webhook or of the container runtime."""
    (tmp_path / "token").write_text("t")
    environment.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    environment.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(private.authority))
    environment.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    environment.setenv("KUBERNETES_SERVICE_PORT", private.endpoint.rpartition(":")[2])
    for name in PROXIES[:4]:
        environment.setenv(name, proxy.url)
    answer = connect().call_api("/version", "GET", _preload_content=False, _return_http_data_only=True)
    assert answer.data == BODY
    assert proxy.asked == []
    assert kopf.OperatorSettings().networking.trust_env is False, "kopf's requests"
