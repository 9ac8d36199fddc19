"""The stand-in for Istio: which VirtualServices count, what is rejected; test_addons_envoy.py has the traffic."""

from __future__ import annotations

from typing import Any

import pytest

from local.addons import istio

JSON = dict[str, Any]


def gateway(
    hosts: list[str], *, namespace: str = "istio-system", port: int = 80, selector: str = "ingressgateway"
) -> JSON:
    server = {"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": hosts}
    return {
        "metadata": {"name": "gw", "namespace": namespace},
        "spec": {"selector": {"istio": selector}, "servers": [server]},
    }


def virtual_service(name: str = "m", **spec: Any) -> JSON:
    base = {"hosts": ["m.example.com"], "gateways": ["istio-system/gw"], "http": [{"route": [to("web")]}]}
    return {"metadata": {"name": name, "namespace": "default"}, "spec": base | spec}


def to(host: str, weight: int | None = None, **more: Any) -> JSON:
    return {"destination": {"host": host, **more}, **({} if weight is None else {"weight": weight})}


def hosts(config: istio.Config) -> list[str]:
    return [host["name"] for routes in config.routes.values() for host in routes["virtual_hosts"]]


def action(http: JSON) -> JSON:
    config = istio.render(istio.Objects([gateway(["*"])], [virtual_service(http=[http])]), "/x")
    assert config.rejected == ()
    found: JSON = config.routes["http.80"]["virtual_hosts"][0]["routes"][0]["route"]
    return found


BINDINGS = [
    ("every host", gateway(["*"]), {}, True),
    ("a host below a wildcard", gateway(["*.example.com"]), {}, True),
    ("a wildcard is for whole labels", gateway(["*.ample.com"]), {}, False),
    ("hosts of the right namespace", gateway(["default/*"]), {}, True),
    ("hosts of another namespace", gateway(["other/*"]), {}, False),
    ("the Gateway's own namespace", gateway(["./*"]), {}, False),
    (
        "a Gateway in the own namespace needs no namespace",
        gateway(["*"], namespace="default"),
        {"gateways": ["gw"]},
        True,
    ),
    ("nor does it mean another's", gateway(["*"]), {"gateways": ["gw"]}, False),
    ("no gateways means the mesh, which is not here", gateway(["*"]), {"gateways": []}, False),
    ("a Gateway for other pods", gateway(["*"], selector="egress"), {}, False),
    ("a port that the gateway's Service does not have", gateway(["*"], port=81), {}, False),
]


@pytest.mark.parametrize("case", BINDINGS, ids=[case[0] for case in BINDINGS])
def test_which_hosts_are_served(case: tuple[str, JSON, JSON, bool]) -> None:
    reason, gate, spec, served = case
    config = istio.render(istio.Objects([gate], [virtual_service(**spec)]), "/x")
    assert hosts(config) == (["m.example.com"] if served else []), reason


REJECTED = [
    ("all weights are zero", [to("a", 0), to("b", 0)], "add up to 0"),
    ("a negative weight", [to("a", -1), to("b", 2)], "negative"),
    ("no destination", [], "no destination"),
    ("a subset", [to("a", subset="v1")], "no subsets"),
]


@pytest.mark.parametrize("case", REJECTED, ids=[case[0] for case in REJECTED])
def test_rejected(case: tuple[str, list[JSON], str]) -> None:
    reason, route, words = case
    bad, good = virtual_service(http=[{"route": route}]), virtual_service("good", hosts=["g.example.com"])
    config = istio.render(istio.Objects([gateway(["*"])], [bad, good]), "/x")
    assert len(config.rejected) == 1, reason
    assert words in config.rejected[0], reason
    assert "default/m" in config.rejected[0], "the sentence names the object"
    assert hosts(config) == ["g.example.com"], "one bad VirtualService takes no other with it"


def test_a_bad_duration_is_rejected() -> None:
    http = {"route": [to("a")], "timeout": "soon"}
    config = istio.render(istio.Objects([gateway(["*"])], [virtual_service(http=[http])]), "/x")
    assert "'soon' is no duration" in config.rejected[0]


def test_an_unknown_kind_of_match_is_rejected() -> None:
    http = {"match": [{"headers": {"x": {"suffix": "y"}}}], "route": [to("a")]}
    config = istio.render(istio.Objects([gateway(["*"])], [virtual_service(http=[http])]), "/x")
    assert "'suffix' is none of exact, prefix and regex" in config.rejected[0]


def service(name: str) -> JSON:
    ports = [{"name": "http", "port": 80}, {"name": "grpc", "port": 81}]
    return {"metadata": {"name": name, "namespace": "default"}, "spec": {"ports": ports}}


def destination_rule(host: str, timeout: str) -> JSON:
    policy = {"connectionPool": {"tcp": {"connectTimeout": timeout}}}
    return {"metadata": {"name": f"of-{host}", "namespace": "default"}, "spec": {"host": host, "trafficPolicy": policy}}


def test_a_bad_destination_rule_takes_nothing_else_with_it() -> None:
    rules = [destination_rule("bad", "10 s"), destination_rule("good", "3s")]
    objects = istio.Objects(destination_rules=rules, services=[service("bad"), service("good")])
    config = istio.render(objects, "/x")
    assert config.rejected == ("DestinationRule default/of-bad: '10 s' is no duration such as 500ms, 10s or 1m30s",), (
        "once, though the Service has two ports"
    )
    timeouts = {name: cluster["connect_timeout"] for name, cluster in config.clusters.items()}
    assert timeouts == {
        "outbound|80||bad.default.svc.cluster.local": "10s",
        "outbound|81||bad.default.svc.cluster.local": "10s",
        "outbound|80||good.default.svc.cluster.local": "3s",
        "outbound|81||good.default.svc.cluster.local": "3s",
    }, "it goes on with Istio's defaults"


ACTIONS = [
    (
        "a short name is of the own namespace",
        {"route": [to("web")]},
        "cluster",
        "outbound|80||web.default.svc.cluster.local",
    ),
    (
        "a full name is taken as it is",
        {"route": [to("w.n.svc.cluster.local")]},
        "cluster",
        "outbound|80||w.n.svc.cluster.local",
    ),
    ("a port", {"route": [to("web", port={"number": 9})]}, "cluster", "outbound|9||web.default.svc.cluster.local"),
    (
        "one with all of the weight",
        {"route": [to("a", 0), to("b", 1)]},
        "cluster",
        "outbound|80||b.default.svc.cluster.local",
    ),
    ("no timeout is no timeout, not Envoy's 15 s", {"route": [to("a")]}, "timeout", "0s"),
    ("a timeout", {"route": [to("a")], "timeout": "1m0.5s"}, "timeout", "60.5s"),
    ("0 attempts: none", {"route": [to("a")], "retries": {"attempts": 0}}, "retry_policy", None),
]


@pytest.mark.parametrize("case", ACTIONS, ids=[case[0] for case in ACTIONS])
def test_actions(case: tuple[str, JSON, str, Any]) -> None:
    reason, http, key, expected = case
    assert action(http).get(key) == expected, reason


def test_retries_where_nothing_is_said_are_istios_two() -> None:
    policy = action({"route": [to("a")]})["retry_policy"]
    assert policy["num_retries"] == 2
    assert "503" not in policy["retry_on"], "an answer is an answer; only requests that never arrived are repeated"


def test_a_header_for_one_destination_and_its_own_host() -> None:
    changes = {"headers": {"request": {"set": {"Host": "h", "x-v": "1"}}}}
    weighted = action({"route": [to("a", 90) | changes, to("b", 10)]})["weighted_clusters"]["clusters"]
    assert [item["weight"] for item in weighted] == [90, 10]
    assert weighted[0]["host_rewrite_literal"] == "h"
    assert weighted[0]["request_headers_to_add"][0]["header"] == {"key": "x-v", "value": "1"}
    assert "request_headers_to_add" not in weighted[1]


def test_of_two_virtual_services_with_one_host_the_older_goes_first() -> None:
    old, new = virtual_service("z", http=[{"name": "old", "route": [to("a")]}]), virtual_service("a")
    old["metadata"]["creationTimestamp"], new["metadata"]["creationTimestamp"] = "2026-01-01", "2026-01-02"
    config = istio.render(istio.Objects([gateway(["*"])], [new, old]), "/x")
    (host,) = config.routes["http.80"]["virtual_hosts"]
    assert [route.get("name") for route in host["routes"]] == ["old", None]


def test_endpoints_are_the_ready_ones_by_the_name_of_the_port() -> None:
    meta = {"name": "web", "namespace": "default"}
    service = {
        "metadata": meta,
        "spec": {"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
    }
    subset = {
        "addresses": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.1"}],
        "notReadyAddresses": [{"ip": "10.0.0.3"}],
        "ports": [{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}],
    }
    config = istio.render(istio.Objects(services=[service], endpoints=[{"metadata": meta, "subsets": [subset]}]), "/x")
    (name,) = config.clusters
    assert name == "outbound|80||web.default.svc.cluster.local", "UDP is nothing for the gateway"
    members = config.assignments[name]["endpoints"][0]["lb_endpoints"]
    addresses = [member["endpoint"]["address"]["socket_address"] for member in members]
    assert addresses == [{"address": ip, "port_value": 8080} for ip in ("10.0.0.1", "10.0.0.2")]


def test_order_of_objects_changes_nothing() -> None:
    services = [virtual_service(name, hosts=[f"{name}.example.com"]) for name in "ab"]
    there = istio.render(istio.Objects([gateway(["*"])], services), "/x")
    back = istio.render(istio.Objects([gateway(["*"])], services[::-1]), "/x")
    assert there == back, "or idle watches would rewrite Envoy's files"
