"""Which hosts an object names, beside those that the platform gives to models.

Called by `mlplatform.fleet`, which finds objects by them, by `mlplatform.reconciler` and by `mlplatform.plan`.
"""

from __future__ import annotations

from mlplatform.snapshot import Object, name_of, namespace_of


def named(kind: str, obj: Object) -> frozenset[str]:
    """What an MLModel asks for, what a model's route has, and what an Ingress has; of any other kind nothing."""
    spec = obj.get("spec") or {}
    if kind == "MLModel":
        return frozenset({host} if (host := asked(obj)) else ())
    if kind == "VirtualService":
        given = (name_of(obj), f"{name_of(obj)}.{namespace_of(obj)}.")
        return frozenset(h for h in spec.get("hosts") or () if h != given[0] and not h.startswith(given[1]))
    if kind == "Ingress":
        return frozenset(rule["host"] for rule in spec.get("rules") or () if rule.get("host"))
    return frozenset()


def asked(model: Object) -> str:
    """The host that an MLModel asks for; empty for none."""
    return str((model["spec"].get("serving") or {}).get("host") or "")
