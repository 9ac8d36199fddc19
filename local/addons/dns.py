"""The cluster's DNS: answers the names of Services from the API and forwards nothing. Run by ``__main__``.

A test double for CoreDNS's kubernetes plugin, on clusters without any. Answers
come straight from the caches of Services and Endpoints: there is nothing to
reconcile and nothing is ever written.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from typing import Final

from dnslib import AAAA, QTYPE, RCODE, RR, SOA, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSServer

from .client import JSON
from .controller import Key

ZONE: Final = "cluster.local"
PORT: Final = 5353
"""Unprivileged; the Service maps 53 to it."""
TTL: Final = 5
"""Seconds; pods come and go, so nothing should remember an address for long."""

Lookup = Callable[[Key], JSON | None]


def addresses(name: str, services: Lookup, endpoints: Lookup) -> list[str] | None:
    """The addresses behind a name.

    Args:
        name: Lower case, without the last dot.
        services: Finds a Service by namespace and name.
        endpoints: Finds Endpoints likewise; their ready addresses count (``publishNotReadyAddresses``
            makes Kubernetes list all of them there).

    Returns:
        Addresses in a fixed order; None where there is no such name. As in CoreDNS a headless
        Service without any address does not exist.
    """
    labels = name.removesuffix(f".svc.{ZONE}").split(".")
    if not name.endswith(f".svc.{ZONE}") or len(labels) not in (2, 3):
        return None
    *pod, service, namespace = labels
    found = services((namespace, service))
    if found is None or found["spec"].get("type") == "ExternalName":
        return None
    address = found["spec"].get("clusterIP", "None")
    if address != "None":
        return None if pod else [address]
    members = [
        member
        for subset in (endpoints((namespace, service)) or {}).get("subsets") or []
        for member in subset.get("addresses") or []
        if not pod or pod[0] in (member.get("hostname"), _dashed(member["ip"]))
    ]
    return sorted({member["ip"] for member in members}, key=ipaddress.ip_address) or None


class Resolver(BaseResolver):  # type: ignore[misc]  # dnslib has no types
    """dnslib's hook: one query in, one reply out."""

    def __init__(self, services: Lookup, endpoints: Lookup) -> None:
        self._services = services
        self._endpoints = endpoints

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:  # noqa: ARG002  dnslib's signature
        """The reply: addresses of the asked family, nothing for another type, NXDOMAIN for an unknown name."""
        reply = request.reply()
        question = str(request.q.qname).rstrip(".")
        found = addresses(question.lower(), self._services, self._endpoints)
        if found is None:
            reply.header.rcode = RCODE.NXDOMAIN
        for address in found or []:
            kind = "AAAA" if ":" in address else "A"
            if request.q.qtype in (QTYPE.reverse[kind], QTYPE.ANY):
                data = AAAA(address) if kind == "AAAA" else A(address)
                reply.add_answer(RR(request.q.qname, QTYPE.reverse[kind], rdata=data, ttl=TTL))
        if not reply.rr:
            # Says for how long a resolver may remember that there is no answer.
            authority = SOA(f"ns.dns.{ZONE}", f"hostmaster.{ZONE}", (1, 7200, 1800, 86400, TTL))
            reply.add_auth(RR(ZONE, QTYPE.SOA, rdata=authority, ttl=TTL))
        return reply


def serve(services: Lookup, endpoints: Lookup, address: str = "", port: int = PORT) -> list[DNSServer]:
    """Starts answering by UDP and TCP, each in a thread.

    Returns:
        The servers, to be stopped by a test.
    """
    resolver = Resolver(services, endpoints)
    servers = [DNSServer(resolver, port=port, address=address, tcp=tcp, logger=_Quiet()) for tcp in (False, True)]
    for server in servers:
        server.thread = threading.Thread(target=server.server.serve_forever, name="dns", daemon=True)
        server.thread.start()
    return servers


class _Quiet:
    """dnslib logs every query to stdout; this takes the hooks and says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def _dashed(address: str) -> str:
    """CoreDNS's name of a pod without a host name: 10.244.0.7 is ``10-244-0-7``."""
    return address.replace(".", "-").replace(":", "-")
