"""The stand-in for the cluster's DNS: names against caches, and one real query by UDP and by TCP."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from dnslib import QTYPE, RCODE, DNSRecord

from local.addons import dns

JSON = dict[str, Any]
SERVICES: dict[tuple[str, str], JSON] = {
    ("default", "web"): {"spec": {"clusterIP": "10.96.0.20"}},
    ("default", "six"): {"spec": {"clusterIP": "fd00::1"}},
    ("default", "pods"): {"spec": {"clusterIP": "None"}},
    ("default", "empty"): {"spec": {"clusterIP": "None"}},
    ("default", "outside"): {"spec": {"type": "ExternalName", "externalName": "example.com"}},
}
ENDPOINTS: dict[tuple[str, str], JSON] = {
    ("default", "pods"): {
        "subsets": [
            {
                "addresses": [{"ip": "10.244.0.12"}, {"ip": "10.244.0.9", "hostname": "db-0"}],
                "notReadyAddresses": [{"ip": "10.244.0.13"}],
            }
        ]
    },
    ("default", "empty"): {"subsets": [{"notReadyAddresses": [{"ip": "10.244.0.14"}]}]},
}
CASES = [
    ("a Service has its cluster address", "web.default.svc.cluster.local", ["10.96.0.20"]),
    ("a headless Service has its ready pods'", "pods.default.svc.cluster.local", ["10.244.0.9", "10.244.0.12"]),
    ("a pod with a host name", "db-0.pods.default.svc.cluster.local", ["10.244.0.9"]),
    ("a pod without one by its address", "10-244-0-12.pods.default.svc.cluster.local", ["10.244.0.12"]),
    ("a pod that is not ready has no name", "10-244-0-13.pods.default.svc.cluster.local", None),
    ("a headless Service without ready pods does not exist", "empty.default.svc.cluster.local", None),
    ("a pod of a Service with an address has no name", "db-0.web.default.svc.cluster.local", None),
    ("another namespace is another name", "web.other.svc.cluster.local", None),
    ("a search path's first try", "web.default.svc.cluster.local.default.svc.cluster.local", None),
    ("names outside of the cluster are not forwarded", "example.com", None),
    ("nor are ExternalNames", "outside.default.svc.cluster.local", None),
    ("the zone itself is no host", "svc.cluster.local", None),
]


@pytest.mark.parametrize(("reason", "name", "expected"), CASES, ids=[case[0] for case in CASES])
def test_addresses(reason: str, name: str, expected: list[str] | None) -> None:
    assert dns.addresses(name, SERVICES.get, ENDPOINTS.get) == expected, reason


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = int(probe.getsockname()[1])
    servers = dns.serve(SERVICES.get, ENDPOINTS.get, "127.0.0.1", free)
    yield free
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


QUERIES = [
    ("the asked family", "WEB.default.svc.cluster.local", "A", RCODE.NOERROR, ["10.96.0.20"]),
    (
        "the other family: no answer, and no error, or clients stop",
        "web.default.svc.cluster.local",
        "AAAA",
        RCODE.NOERROR,
        [],
    ),
    ("an IPv6 Service", "six.default.svc.cluster.local", "AAAA", RCODE.NOERROR, ["fd00::1"]),
    ("an unknown name", "no.default.svc.cluster.local", "A", RCODE.NXDOMAIN, []),
]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("case", QUERIES, ids=[case[0] for case in QUERIES])
def test_queries(port: int, case: tuple[str, str, str, int, list[str]], *, tcp: bool) -> None:
    reason, name, kind, code, expected = case
    reply = DNSRecord.parse(DNSRecord.question(name, kind).send("127.0.0.1", port, tcp=tcp, timeout=5))
    assert reply.header.rcode == code, reason
    assert [str(answer.rdata) for answer in reply.rr if answer.rtype == QTYPE.reverse[kind]] == expected, reason
    assert bool(reply.auth) == (not expected), "without an answer the zone says how long to remember that"
