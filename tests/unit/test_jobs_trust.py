"""A store behind a certificate of a private CA: what is said of it, and that one bundle makes it trusted."""

from __future__ import annotations

import functools
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from mljobs.failure import JobFailure
from mljobs.store import Store
from mlplatform.contract import FailureClass

BODY = b"rows"


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


@dataclass(frozen=True)
class Private:
    """A store with a certificate that a CA of its own has signed."""

    endpoint: str
    authority: Path


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    folder = tmp_path_factory.mktemp("pki")
    openssl = functools.partial(subprocess.run, cwd=folder, check=True, capture_output=True)
    openssl(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
            "-days",
            "1",
            "-subj",
            "/CN=Private",
        ]
    )
    openssl(
        [
            "openssl",
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
            "-subj",
            "/CN=localhost",
        ]
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    openssl(
        [
            "openssl",
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            "server.crt",
            "-days",
            "1",
            "-extfile",
            "names",
        ]
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  a client that does not trust it hangs up
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Private(f"https://localhost:{server.server_port}", folder / "ca.crt")
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(private: Private, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Of a pod: its store is `private`, and it trusts what everybody does."""
    driver = fsspec.get_filesystem_class("s3")
    driver.clear_instance_cache()
    monkeypatch.setattr(driver, "retries", 1)
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
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
