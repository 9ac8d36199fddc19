"""The check of where requests come in: the Gateway, its pods, its hosts, its certificates.

Called by `checks`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain
from typing import Final

from mlplatform.doctor import Finding
from mlplatform.doctor.addons import unserved
from mlplatform.doctor.facts import Facts, Seen, Unseen
from mlplatform.doctor.words import failure, ok, skipped, some, warning
from mlplatform.failures import ready
from mlplatform.snapshot import Object

SOON: Final = timedelta(days=21)
"""A certificate that ends within that time is worth a word."""


def gateway(facts: Facts) -> Iterator[Finding]:
    """Where requests come in."""
    name = "gateway"
    if facts.settings is None or list(unserved(facts, {"Gateway": facts.settings.istio_api_version})):
        return
    where, found = facts.settings.gateway, facts.gateway
    if isinstance(found, Unseen):
        yield skipped(name, f"Gateway {where}", found.why)
        return
    if found is None:
        yield failure(
            name,
            f"there is no Gateway {where}: no model is reached from outside",
            "Set gateway.create=true, or let gateway.name name one that there is",
        )
        return
    yield from _gateway_pods(facts, where, found)
    servers = found["spec"].get("servers") or ()
    hosts = [host for server in servers for host in server.get("hosts") or ()]
    if any(covers(host, facts.settings.domain) for host in hosts):
        yield ok(name, f"Gateway {where} takes requests for *.{facts.settings.domain}")
    else:
        yield failure(
            name,
            f"Gateway {where} takes requests for {some(hosts) or 'no host'}, and models answer at *.{facts.settings.domain}",
            f"Give it the host *.{facts.settings.domain}, or let gateway.domain of the chart be what it has",
        )
    asked = [entry for entry in facts.settings.gateway_hosts.split(",") if entry]
    if strange := [entry for entry in asked if not any(takes(host, entry) for host in hosts)]:
        yield failure(
            name,
            f"Gateway {where} does not take requests for {some(strange)}, which models may ask for (gateway.hosts)",
            "Give it those hosts, or take them out of gateway.hosts of the chart",
        )
    yield from chain.from_iterable(_certificate(key, secret, facts.now) for key, secret in facts.certificates.items())
    if facts.url:
        trouble, action = facts.url
        yield failure(name, trouble, action) if action else ok(name, trouble)


def _gateway_pods(facts: Facts, where: str, found: Object) -> Iterator[Finding]:
    pods, selector = facts.gateway_pods, found["spec"].get("selector") or {}
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    if isinstance(pods, Unseen):
        yield skipped("gateway", f"the pods of Gateway {where}", pods.why)
    elif not pods:
        yield failure(
            "gateway",
            f"no pod has the labels {labels} that Gateway {where} selects",
            "Install Istio's ingress gateway, or let gateway.selector of the chart be the labels of yours (kubectl get pods -A --show-labels)",
        )
    elif not (there := sum(map(ready, pods))):
        yield failure("gateway", f"none of {len(pods)} pods with {labels} is ready", f"kubectl get pods -A -l {labels}")
    else:
        yield ok("gateway", f"{there} of {len(pods)} pods with {labels} are ready")


def covers(host: str, domain: str) -> bool:
    """Whether a Gateway's host takes requests for every host below `domain`."""
    name = host.rpartition("/")[2]
    return name == "*" or (name.startswith("*.") and f".{domain}".endswith(name[1:]))


def takes(host: str, entry: str) -> bool:
    """Whether a Gateway's host takes the requests that an entry of gateway.hosts promises, in its namespaces."""
    (where, _, name), (namespace, _, asked) = host.rpartition("/"), entry.rpartition("/")
    ending = name.startswith("*") and asked.removeprefix("*").endswith(name[1:])
    return where in {"", "*", namespace} and (name == asked or ending)


def _certificate(key: str, secret: Seen, now: datetime) -> Iterator[Finding]:
    name = "certificate"
    if isinstance(secret, Unseen):
        yield skipped(name, f"Secret {key}", secret.why)
    elif secret is None:
        yield failure(
            name,
            f"there is no Secret {key}, which the Gateway names: HTTPS is not answered",
            "Create it with the keys tls.crt and tls.key, in the namespace of the gateway's pods",
        )
    else:
        data = secret.get("data") or {}
        text = data.get("tls.crt") or data.get("cert") or ""
        try:
            ends, names = _read_certificate(base64.b64decode(text))
        except ValueError as error:
            yield failure(
                name, f"Secret {key} holds no certificate: {error}", "Put a PEM certificate into its key tls.crt"
            )
            return
        if ends <= now:
            yield failure(name, f"that of Secret {key} ({names}) ended at {ends:%Y-%m-%d %H:%M}", "Renew it")
        elif ends - now < SOON:
            yield warning(
                name,
                f"that of Secret {key} ({names}) ends at {ends:%Y-%m-%d %H:%M}",
                "Renew it, or see why it is not renewed by itself",
            )
        else:
            yield ok(name, f"that of Secret {key} ({names}) ends at {ends:%Y-%m-%d}")


def _read_certificate(pem: bytes) -> tuple[datetime, str]:
    """When a certificate ends, and for whom it is.

    Raises:
        ValueError: It is none.
    """
    from cryptography import x509  # noqa: PLC0415  of the plugin alone: the test of a release reads no Secret

    found = x509.load_pem_x509_certificate(pem)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return found.not_valid_after_utc, ", ".join(names.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        return found.not_valid_after_utc, found.subject.rfc4514_string()
