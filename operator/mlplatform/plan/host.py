"""Whether a model may have the host that it asks for, beside the one that the platform gives it.

Called by `plan.facts`. Two things decide: whether the platform accepts the host in the model's namespace, and whether
nobody has it. Who has a host keeps it, and that is told by the mesh; among models that only ask for it, the oldest gets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mlplatform import api
from mlplatform.resources import host as hosts
from mlplatform.settings import Settings
from mlplatform.snapshot import ModelSnapshot, Object, name_of, namespace_of

_FIELD: Final = "spec.serving.host"


@dataclass(frozen=True, slots=True)
class Grant:
    """What becomes of `spec.serving.host`.

    Attributes:
        host: The model's; empty when it does not get it.
        reason: Of the condition `HostAssigned`.
        message: Likewise.
    """

    host: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, order=True)
class _Claim:
    """Of one model, or of an Ingress; the least keeps the host."""

    asks_only: bool
    created: str
    namespace: str
    name: str
    kind: str


def decide(snapshot: ModelSnapshot, spec: api.MLModelSpec, settings: Settings) -> Grant | None:
    """What the model gets; None when it asks for nothing."""
    host, namespace = spec.serving.host, namespace_of(snapshot.model)
    if not host:
        return None
    if _is_given(host, settings):
        message = f"{_FIELD}: {host} has the form <model>.<namespace>.{settings.domain}, which each model has by itself"
        return Grant("", "HostNotAccepted", f"{message}. Take it out, or choose another")
    if not _accepts(host, namespace, settings):
        entries = [entry for entry in settings.gateway_hosts.split(",") if entry and _is_for(entry, namespace)]
        message = f"{_FIELD}: the platform does not accept {host} in namespace {namespace}, but {', '.join(entries) or 'none'}"
        action = f"Choose another, or have whoever runs it add {namespace}/{host} to gateway.hosts of its chart"
        return Grant("", "HostNotAccepted", f"{message}. {action}")
    holder = _holder(snapshot, host, settings)
    if holder:
        message = f"{_FIELD}: {holder.kind} {holder.namespace}/{holder.name} has {host}, and who has a host keeps it"
        return Grant("", "HostTaken", f"{message}. Choose another, or take it out there")
    return Grant(host, "Assigned", f"{host} is this model's")


def _is_given(host: str, settings: Settings) -> bool:
    rest = host.removesuffix(f".{settings.domain}")
    return rest != host and rest.count(".") == 1


def _accepts(host: str, namespace: str, settings: Settings) -> bool:
    names = [entry.rpartition("/")[2] for entry in settings.gateway_hosts.split(",") if _is_for(entry, namespace)]
    return any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in names)


def _is_for(entry: str, namespace: str) -> bool:
    """Whether an entry `[<namespace>/]<name>`, as an Istio Gateway has them, counts in a namespace."""
    return entry.rpartition("/")[0] in {"", "*", namespace}


def _holder(snapshot: ModelSnapshot, host: str, settings: Settings) -> _Claim | None:
    """Who has the host in place of the model; None when nobody does."""
    me = _claim(
        snapshot.model, routed=snapshot.route is not None and host in hosts.named("VirtualService", snapshot.route)
    )
    routed = {(namespace_of(o), name_of(o)) for o in snapshot.claims if o["kind"] == "VirtualService"}
    others = (
        _claim(o, routed=o["kind"] != "MLModel" or (namespace_of(o), name_of(o)) in routed) for o in snapshot.claims
    )
    rivals = [
        other
        for other in others
        # Who may not have it holds up nobody; and an Ingress comes too late for a host that the model has.
        if (not other.asks_only or _accepts(host, other.namespace, settings))
        and (other.kind != "Ingress" or me.asks_only)
    ]
    first = min([me, *rivals])
    return None if first is me else first


def _claim(obj: Object, *, routed: bool) -> _Claim:
    created = str(obj["metadata"].get("creationTimestamp", ""))
    return _Claim(not routed, created, namespace_of(obj), name_of(obj), obj["kind"])
