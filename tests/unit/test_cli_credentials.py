"""Whose API server the plugin asks, in a pod and through proxies: the same that kubectl would."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import yaml
from certificates import Authority
from kubernetes.config import incluster_config
from unit.test_cli_tls import ANSWER, FEATURES, HOST, Gateway, running

from mlplatform.cli import credentials, predict
from mlplatform.cli.cluster import Cluster
from mlplatform.cli.main import main
from mlplatform.errors import CliError

API = "https://api.example.com:6443"
PROXY = "http://proxy.example.com:3128"
VARIABLES = [case(f"{name}_proxy") for name in ("http", "https", "no", "all") for case in (str, str.upper)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a kubeconfig, a proxy and a ServiceAccount."""
    for name in (*VARIABLES, "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "POD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.founded(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def pod(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Kubernetes mounts into a pod of namespace team-a."""
    (tmp_path / "token").write_text("secret")
    (tmp_path / "namespace").write_text("team-a\n")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority.certificate))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return tmp_path


def kubeconfig(folder: Path, server: str = API, **cluster: str) -> str:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "other", "cluster": {"server": "https://other", "proxy-url": "http://other:1"}},
            {"name": "test", "cluster": {"server": server, **cluster}},
        ],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "team-b"}}],
        "current-context": "test",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def found(kubeconfig: str | None = None) -> tuple[str, str, bool]:
    what = credentials.find(kubeconfig, None)
    return what.settings.host, what.namespace, what.inside


def test_a_pod_without_a_kubeconfig_is_its_service_account(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found() == ("https://10.96.0.1:443", "team-a", True)
    assert credentials.find(None, None).settings.api_key == {"authorization": "bearer secret"}
    monkeypatch.setenv("KUBECONFIG", str(pod / "nothing"))
    assert found() == ("https://10.96.0.1:443", "team-a", True), "kubectl passes over a file that is not there"
    monkeypatch.setenv("POD_NAMESPACE", "team-c")
    assert found()[1] == "team-c", "as kubectl has it"
    assert Cluster(None, None, "team-d").namespace == "team-d"


def test_a_kubeconfig_comes_before_the_service_account(pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", kubeconfig(pod))
    assert found() == (API, "team-b", False)


@pytest.mark.parametrize("flags", [["--kubeconfig", "/nowhere/config"], ["--context", "moon"]])
def test_what_a_pod_was_asked_to_take_is_not_replaced(
    flags: list[str], pod: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pod.exists()
    assert main(["status", *flags]) == 2
    assert "error: no usable kubeconfig: Invalid kube-config" in capsys.readouterr().err


def test_neither_a_kubeconfig_nor_a_pod(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: no usable kubeconfig: there is none at ~/.kube/config, and this is no pod with the token of a ServiceAccount",
        "next:  set KUBECONFIG or pass --kubeconfig; in a pod, let its ServiceAccount's token be mounted",
    ]


def test_every_command_works_in_a_pod(
    authority: Authority, pod: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a server with a certificate of the cluster's own authority."""
    with running(Gateway(answer={"items": [], "metadata": {}}), authority.server("localhost")) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        assert main(["status", "-o", "json"]) == 0, capsys.readouterr().err
    assert server.asked[0][0] == "/apis/mlplatform.dev/v1alpha1/namespaces/team-a/mlmodels"
    assert pod.exists()


@pytest.mark.usefixtures("pod")
def test_in_a_pod_the_gateway_is_asked_at_its_service(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that any pod can resolve, and without the right to forward a port."""
    dialled: list[tuple[str, int]] = []
    connect = socket.create_connection

    def on_loopback(address: tuple[str, int], timeout: float) -> socket.socket:
        dialled.append(address)
        return connect(("127.0.0.1", {80: plain.port, 443: gateway.port}[address[1]]), timeout)

    with (
        running(Gateway(location=f"https://{HOST}/predict")) as plain,
        running(Gateway(), authority.server(HOST)) as gateway,
    ):
        monkeypatch.setattr(predict.socket, "create_connection", on_loopback)
        question = predict.Question(f"https://{HOST}", FEATURES, ca_file=str(authority.certificate))
        assert predict.ask(Cluster(None, None, None), question, "") == ANSWER
    service = "istio-ingressgateway.istio-system.svc"
    assert dialled == [(service, 80), (service, 443)]
    assert gateway.names == [HOST]


@pytest.mark.parametrize(
    ("reason", "server", "cluster", "environment", "proxy", "direct"),
    [
        ("none", API, {}, {}, None, False),
        ("by the API server's scheme", API, {}, {"HTTPS_PROXY": PROXY, "HTTP_PROXY": "http://plain:1"}, PROXY, False),
        ("one for HTTP only", API, {}, {"HTTP_PROXY": PROXY}, None, False),
        ("in lower case", API, {}, {"https_proxy": PROXY}, PROXY, False),
        ("without a scheme", API, {}, {"HTTPS_PROXY": "proxy.example.com:3128"}, PROXY, False),
        ("not for this host", API, {}, {"HTTPS_PROXY": PROXY, "NO_PROXY": "a.b,.example.com"}, PROXY, True),
        ("nor for this network", "https://10.1.2.3", {}, {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, PROXY, True),
        ("never for the loopback", "https://127.0.0.1:6443", {}, {"HTTPS_PROXY": PROXY}, PROXY, True),
        ("the cluster's own", API, {"proxy-url": PROXY}, {}, PROXY, False),
        ("which comes first, and knows no exceptions", API, {"proxy-url": PROXY},
         {"HTTPS_PROXY": "http://elsewhere:1", "NO_PROXY": "*"}, PROXY, False),
    ],
)  # fmt: skip
def test_proxies_are_those_of_kubectl(
    reason: str, server: str, cluster: dict[str, str], environment: dict[str, str], proxy: str | None, direct: bool,  # noqa: FBT001
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = credentials.find(kubeconfig(tmp_path, server, **cluster), None).settings
    assert settings.proxy == proxy, reason
    manager = Cluster(str(tmp_path / "kubeconfig"), None, None).core.api_client.rest_client.pool_manager
    assert (manager.proxy is None) == (direct or proxy is None), reason


def test_a_password_of_the_proxy_is_given_to_it_and_shown_to_nobody(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, **{"proxy-url": "http://ann:p%40ss@proxy.example.com:3128"})
    settings = credentials.find(path, None).settings
    assert (settings.proxy, settings.proxy_headers) == (PROXY, {"proxy-authorization": "Basic YW5uOnBAc3M="})
    with pytest.raises(CliError, match="no way through the proxy 'socks5://proxy:1080' of proxy-url") as raised:
        credentials.find(kubeconfig(tmp_path, **{"proxy-url": "socks5://ann:secret@proxy:1080"}), None)
    assert (raised.value.code, "http://" in raised.value.next_action) == (2, True)


def test_requests_go_through_the_proxy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(Gateway(answer={"items": [], "metadata": {}})) as proxy:
        path = kubeconfig(tmp_path, "http://api.example.com", **{"proxy-url": f"http://127.0.0.1:{proxy.port}"})
        assert main(["status", "--kubeconfig", path, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert {host for _, host, _ in proxy.asked} == {"api.example.com"}
