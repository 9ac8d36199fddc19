"""What the watches have shown: the newest state of each object, by the model that it belongs to.

Filled and read by `mlplatform.fleet`. A fleet's models are at rest, all but a few, so objects are kept as deflated JSON:
a ModelVersion takes 2.4 KB so, and 28 KB as dicts.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from mlplatform import contract
from mlplatform.snapshot import Object, condition, name_of, namespace_of, stamp, uid_of, written

Key = tuple[str, str]
"""Namespace and name."""

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True)
class _Held:
    """An object, and what must be known of it without reading it."""

    model: str
    uid: str
    revision: int
    hosts: frozenset[str]
    data: bytes


class Store:
    """Objects by kind, and by the model that they belong to."""

    def __init__(self) -> None:
        self._held: dict[str, dict[Key, _Held]] = defaultdict(dict)
        self._of: dict[Key, set[tuple[str, str]]] = {}
        self._naming: dict[str, set[tuple[str, Key]]] = {}

    def put(self, kind: str, model: str, obj: Object, hosts: frozenset[str] = frozenset()) -> bool:
        """Takes in an object's state, unless a newer one of that name is known: events of a namesake come in any order.

        Args:
            kind: The object's.
            model: That it belongs to; empty for an Ingress of nobody's, which counts for the hosts that it names.
            obj: It.
            hosts: Those that it names.

        Returns:
            Whether it is another state than the one before.
        """
        key = (sys.intern(namespace_of(obj)), name_of(obj))
        before, revision = self._held[kind].get(key), int(obj["metadata"]["resourceVersion"])
        if before is not None and before.revision >= revision:
            return False
        if before is not None:
            self._leave(kind, key, before)
        data = zlib.compress(json.dumps(slim(kind, obj), separators=(",", ":")).encode(), 1)
        self._held[kind][key] = _Held(sys.intern(model), uid_of(obj), revision, hosts, data)
        self._of.setdefault((key[0], model), set()).add((kind, key[1]))
        for host in hosts:
            self._naming.setdefault(host, set()).add((kind, key))
        return True

    def discard(self, kind: str, key: Key, uid: str) -> Object | None:
        """Lets an object go, and returns it, if it is still that one."""
        held = self._held[kind].get(key)
        if held is None or held.uid != uid:
            return None
        del self._held[kind][key]
        self._leave(kind, key, held)
        return _read(held.data)

    def objects(self, kind: str, namespace: str, model: str) -> Iterable[Object]:
        """Objects of that kind that belong to the model, in no order; of kind MLModel, the model itself.

        They are shared with whoever asks next, so nobody changes them.
        """
        names = [name for of, name in self._of.get((namespace, model), ()) if of == kind]
        return tuple(_read(self._held[kind][namespace, name].data) for name in names)

    def claims(self, host: str, namespace: str, model: str) -> Iterable[Object]:
        """Objects that name the host, but for those of that model."""
        mine, found = (namespace, model), sorted(self._naming.get(host, ()))
        held = [(key[0], self._held[kind][key]) for kind, key in found]
        return tuple(_read(h.data) for where, h in held if (where, h.model) != mine)

    def hosts(self, kind: str, key: Key) -> frozenset[str]:
        """What the object names."""
        held = self._held[kind].get(key)
        return held.hosts if held else frozenset()

    def asking(self, host: str) -> Iterable[Key]:
        """MLModels that name the host."""
        return [key for kind, key in self._naming.get(host, ()) if kind == "MLModel"]

    def count(self, kind: str) -> int:
        """How many objects of a kind there are."""
        return len(self._held[kind])

    def uids(self, kind: str) -> dict[Key, str]:
        """Every object of a kind: its uid by namespace and name."""
        return {key: held.uid for key, held in self._held[kind].items()}

    def _leave(self, kind: str, key: Key, held: _Held) -> None:
        _take(self._of, (key[0], held.model), (kind, key[1]))
        for host in held.hosts:
            _take(self._naming, host, (kind, key))


def _take(index: dict[Any, set[Any]], key: object, value: object) -> None:
    """Takes a value out of an index, and the key with the last."""
    index[key].discard(value)
    if not index[key]:
        del index[key]


def slim(kind: str, obj: Object) -> Object:
    """The parts that decisions rest on: of a pod most is its spec, of who manages which field only when we wrote what serves."""
    meta = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    if kind == "InferenceService" and (when := written(obj)):
        meta["managedFields"] = [{"manager": contract.MANAGER, "time": stamp(when)}]
    if _LAST_APPLIED in (meta.get("annotations") or {}):
        meta["annotations"] = {k: v for k, v in meta["annotations"].items() if k != _LAST_APPLIED}
    found: Object = {
        "apiVersion": obj.get("apiVersion", "v1"),
        "kind": kind,
        "metadata": meta,
        "status": obj.get("status") or {},
    }
    if kind == "Pod" and condition(obj, "PodScheduled").get("status") == "False":
        return {**found, "spec": _asked(obj.get("spec") or {})}
    return found if kind in {"Pod", "Ingress"} else {**found, "spec": obj.get("spec") or {}}


def _asked(spec: Object) -> Object:
    """What a pod asks of a node: while none takes it, that is told (`mlplatform.nodes`)."""
    containers = [{"resources": container.get("resources") or {}} for container in spec.get("containers") or ()]
    return {"nodeSelector": spec.get("nodeSelector") or {}, "containers": containers}


@lru_cache(maxsize=512)
def _read(data: bytes) -> Object:
    """What is looked at again and again while something moves is read once."""
    found: Object = json.loads(zlib.decompress(data))
    return found
