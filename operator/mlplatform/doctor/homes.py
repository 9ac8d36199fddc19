"""The checks of the namespaces that models live in, and of the way from there to the store.

Called by `checks`.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from mlplatform.doctor import Finding, Level
from mlplatform.doctor.facts import KUEUE, READING, Facts, Seen, Stay, Unseen
from mlplatform.doctor.words import failure, ok, skipped, some, warning
from mlplatform.resources import pod
from mlplatform.settings import Settings
from mlplatform.snapshot import annotations_of


def namespaces(facts: Facts) -> Iterator[Finding]:
    """Each namespace of models."""
    if not facts.stays:
        yield warning(
            "namespaces",
            "none is set up for models, and there is no model",
            "List one in modelNamespaces of the chart, or name one with -n",
        )
    for place, stay in facts.stays.items():
        if facts.settings is None:  # Of what should be there, nobody knows the names.
            yield from _own_rights(f"namespace {place}", place, stay.own)
            continue
        found = list(_namespace(place, stay, facts.settings, facts.now))
        yield from found
        if all(f.level is Level.OK for f in found):
            yield ok(f"namespace {place}", "has all that the pods of models need")


def _namespace(place: str, stay: Stay, settings: Settings, now: datetime) -> Iterator[Finding]:
    name = f"namespace {place}"
    setup = f"List {place} in modelNamespaces of the chart, then helm upgrade"
    if stay.namespace is None:
        yield failure(
            name, "it does not exist", f"kubectl create namespace {place}, or take it out of the chart's values"
        )
        return
    if settings.namespaces and place not in settings.namespaces:
        yield failure(
            name,
            f"the operator does not watch it, but {some(list(settings.namespaces))}: models there are left as they are",
            f"Add {place} to operator.watchNamespaces of the chart",
        )
    for account, found in stay.accounts.items():
        if isinstance(found, Unseen):
            yield skipped(name, f"ServiceAccount {account}", found.why)
        elif found is None:
            yield failure(name, f"it has no ServiceAccount {account}, as which pods run", setup)
    for secret, found in stay.pull.items():
        if isinstance(found, Unseen):
            yield skipped(name, f"pull secret {secret}", found.why)
        elif found is None:
            yield failure(
                name,
                f"it has no Secret {secret}, with which its ServiceAccounts pull images",
                f"kubectl create secret docker-registry {secret} -n {place} …",
            )
    yield from _store_secret(name, place, stay, settings, setup)
    if settings.trust_config_map:
        yield from _trust(name, place, stay.trust, settings, now)
    yield from _own_rights(name, place, stay.own)


def _store_secret(name: str, place: str, stay: Stay, settings: Settings, setup: str) -> Iterator[Finding]:
    found = stay.secret
    if isinstance(found, Unseen):
        if stay.probe is None or stay.probe.skipped:  # A pod has been given it.
            yield skipped(name, f"Secret {settings.store_secret}", found.why)
        return
    if found is None:
        yield failure(name, f"it has no Secret {settings.store_secret} with the store's credentials", setup)
        return
    keys = found.get("data") or {}
    one, other = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    if bool(keys.get(one)) != bool(keys.get(other)):
        yield failure(
            name,
            f"Secret {settings.store_secret} has one of {one} and {other}, and not the other",
            "Give it both, or, with a role, none",
        )
    if settings.trust_config_map:
        wanted = {
            "serving.kserve.io/s3-cabundle-configmap": settings.trust_config_map,
            "serving.kserve.io/s3-cabundle": f"{pod.TRUST}/{settings.trust_key}",
        }
        account = stay.accounts.get(
            settings.serving_service_account
        )  # Where there are no keys but a role, KServe reads it.
        said = {**(annotations_of(account) if isinstance(account, dict) else {}), **annotations_of(found)}
        if any(said.get(key) != value for key, value in wanted.items()):
            yield warning(
                name,
                f"KServe's storage initializer is not told to trust ConfigMap {settings.trust_config_map}",
                f"kubectl annotate --overwrite secret {settings.store_secret} -n {place} "
                + " ".join(f"{key}={value}" for key, value in wanted.items()),
            )


def _trust(name: str, place: str, found: Seen, settings: Settings, now: datetime) -> Iterator[Finding]:
    config, key = settings.trust_config_map, settings.trust_key
    if isinstance(found, Unseen):
        yield skipped(name, f"ConfigMap {config}", found.why)
        return
    if found is None:
        yield failure(
            name,
            f"it has no ConfigMap {config}, which trust.configMap of the chart names",
            f"kubectl create configmap {config} -n {place} --from-file={key}=…, or let trust-manager make it",
        )
        return
    binary = {
        name: base64.b64decode(value).decode(errors="replace")
        for name, value in (found.get("binaryData") or {}).items()
    }
    data = {**(found.get("data") or {}), **binary}
    if key not in data:
        yield failure(
            name,
            f"ConfigMap {config} has no key {key}, but {some(list(data)) or 'none at all'}",
            "Let trust.key of the chart name the one with the authorities",
        )
        return
    try:
        authorities = _authorities(str(data[key]))
    except ValueError as error:
        yield failure(
            name,
            f"key {key} of ConfigMap {config} holds no certificate of an authority in PEM: {error}",
            "Put the PEM of every authority there that pods are to trust, -----BEGIN CERTIFICATE----- and all",
        )
        return
    ended = [who for who, ends in authorities.items() if ends <= now]
    if ended:
        yield warning(
            name,
            f"of the authorities in ConfigMap {config}, {some(ended)} have ended",
            "Replace them, if the store's certificate is signed by one of them",
        )


def _authorities(pem: str) -> dict[str, datetime]:
    """The authorities in a bundle, and when they end.

    Raises:
        ValueError: There is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    parts = re.findall(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[^-]*-----END [A-Z0-9 ]*-----", pem)
    try:
        context.load_verify_locations(cadata="\n".join(parts))
    except (ssl.SSLError, ValueError, TypeError) as error:  # Of no part at all, and of one that is not ASCII.
        raise ValueError(str(error) if parts else "there is no BEGIN CERTIFICATE") from error
    found: dict[str, datetime] = {}
    authority: Any
    for authority in context.get_ca_certs():
        subject = ", ".join(f"{key}={value}" for part in authority["subject"] for key, value in part)
        found[subject] = datetime.fromtimestamp(ssl.cert_time_to_seconds(authority["notAfter"]), tz=UTC)
    return found


def _own_rights(name: str, place: str, own: tuple[str, ...] | Unseen | None) -> Iterator[Finding]:
    if own is None:
        return
    if isinstance(own, Unseen):
        yield skipped(name, "what you may do there", own.why)
    elif any(what.partition(" ")[0] in READING for what in own):
        yield warning(
            name,
            f"you may not {some(list(own))} there",
            f"Ask for the role: kubectl create rolebinding mlmodels --clusterrole=view --user=<you> -n {place}",
        )
    elif not own:
        yield ok(name, "you may view and edit models there")
    else:
        yield ok(name, f"you may view models there, but not {some(list(own))} (--clusterrole=edit gives that)")


def queues(facts: Facts) -> Iterator[Finding]:
    """Kueue, where a model names a queue of it."""
    for place, stay in facts.stays.items():
        for queue, found in stay.queues.items():
            if isinstance(found, Unseen):
                yield skipped("Kueue", f"LocalQueue {place}/{queue}", found.why)
            elif not facts.served.get(KUEUE):
                yield failure(
                    "Kueue",
                    f"a model in {place} waits for the queue {queue}, and Kueue is not installed",
                    "Install Kueue, or take spec.scheduling.queue off the model",
                )
            elif found is None:
                yield failure(
                    "Kueue",
                    f"there is no LocalQueue {queue} in {place}, for which a model waits",
                    f"Create it, or correct spec.scheduling.queue of the models in {place}",
                )
            else:
                yield ok("Kueue", f"LocalQueue {place}/{queue} is there")


def store(facts: Facts) -> Iterator[Finding]:
    """The artifact store, as the pods of stages use it."""
    for place, stay in facts.stays.items():
        probe = stay.probe
        if probe is None or facts.settings is None:
            continue
        root = facts.settings.artifact_root
        if probe.skipped:
            yield Finding(
                "store", Level.SKIPPED, f"{root} was not used from {place}: {probe.skipped}", probe.next_action
            )
        elif probe.trouble:
            yield failure("store", f"from {place}: {probe.trouble}", probe.next_action)
        else:
            yield ok("store", f"a pod in {place} wrote, read and deleted a file in {root}")
