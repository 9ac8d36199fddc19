"""Level-triggered reconciling: caches kept by watches, a queue of keys, one worker. Used by every stand-in.

A reconciler is called with a key whenever anything behind that key changed; it
looks at the caches, never at the event. Missing an event between two looks
therefore changes nothing, and with nothing to do nothing is written.
"""

from __future__ import annotations

import hashlib
import heapq
import http.client
import http.server
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from .client import JSON, ApiError, Client, Resource

LOG = logging.getLogger("addons")

Key = tuple[str, str]
"""Namespace (empty for cluster-wide kinds) and name."""

HASH: Final = "addons.local/content-hash"
"""On a child: digest of what was rendered; equal means there is nothing to write."""
HEALTH_PORT: Final = "HEALTH_PORT"
"""Environment variable with the port of the kubelet's probes."""
LONGEST_BACKOFF: Final = 30.0


class Store:
    """A cache of all objects of one kind, kept by list and watch.

    Args:
        client: Where to list and watch.
        resource: The kind.
        notify: Called after every change with the object (for a deletion: its last state).
        selector: Label selector that narrows the cache.
    """

    def __init__(self, client: Client, resource: Resource, notify: Callable[[JSON], None], selector: str = "") -> None:
        self.resource = resource
        self.synced = threading.Event()
        self.stopped = threading.Event()
        self._client = client
        self._notify = notify
        self._selector = selector
        self._objects: dict[Key, JSON] = {}
        self._lock = threading.Lock()

    def get(self, key: Key) -> JSON | None:
        """The cached object; do not change it."""
        with self._lock:
            return self._objects.get(key)

    def all(self) -> list[JSON]:
        """All cached objects in order of namespace and name; do not change them."""
        with self._lock:
            return [self._objects[key] for key in sorted(self._objects)]

    def run(self) -> None:
        """Lists and watches until `stopped` is set."""
        delay = 0.0
        while not self.stopped.is_set():
            try:
                version = self._list()
                delay = 0.0
                while True:
                    version = self._watch(version)
            except (ApiError, OSError, http.client.HTTPException, ValueError) as error:
                # 404: the kind's CRD is not there yet. 410: our version is too old. Either way: list again.
                delay = 0.0 if isinstance(error, ApiError) and error.status == http.HTTPStatus.GONE else 1.0
                if delay:
                    LOG.warning("watching %s: %s; listing again", self.resource.plural, error)
            self.stopped.wait(delay)

    def _list(self) -> str:
        query = f"?labelSelector={self._selector}" if self._selector else ""
        answer = self._client.request("GET", self.resource.path() + query)
        # Items of a list leave out what the list itself says.
        common = {"apiVersion": self.resource.api_version, "kind": answer["kind"].removesuffix("List")}
        fresh = {key_of(item): _slim(item | common) for item in answer["items"]}
        with self._lock:
            gone = [item for key, item in self._objects.items() if key not in fresh]
            self._objects = fresh
        self.synced.set()
        for item in [*fresh.values(), *gone]:
            self._notify(item)
        return str(answer["metadata"]["resourceVersion"])

    def _watch(self, version: str) -> str:
        for event in self._client.watch(self.resource, version, self._selector):
            item = event["object"]
            version = item["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            with self._lock:
                if event["type"] == "DELETED":
                    self._objects.pop(key_of(item), None)
                else:
                    self._objects[key_of(item)] = _slim(item)
            self._notify(item)
        return version


@dataclass
class WorkQueue:
    """Keys to reconcile, each once however often it was added, each with the time it is due."""

    _due: dict[Key, float] = field(default_factory=dict)
    _heap: list[tuple[float, Key]] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Puts a key in, due after ``delay`` seconds; an earlier due time of the same key stands."""
        due = time.monotonic() + delay
        with self._changed:
            if due < self._due.get(key, float("inf")):
                self._due[key] = due
                heapq.heappush(self._heap, (due, key))
                self._changed.notify()

    def get(self) -> Key:
        """Takes the next key out, waiting until one is due."""
        with self._changed:
            while True:
                while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
                    heapq.heappop(self._heap)  # overtaken by an earlier due time
                if not self._heap:
                    self._changed.wait()
                    continue
                due, key = self._heap[0]
                remaining = due - time.monotonic()
                if remaining <= 0:
                    heapq.heappop(self._heap)
                    del self._due[key]
                    return key
                self._changed.wait(remaining)


def run(stores: Iterable[Store], queue: WorkQueue, reconcile: Callable[[Key], float | None]) -> None:
    """Runs a controller for ever; a thread that dies ends the process, so that the kubelet restarts it.

    Args:
        stores: Caches to fill before the first key is reconciled.
        queue: Keys; the stores' ``notify`` fills it.
        reconcile: Brings one key to its desired state; returns after how many seconds to look again, or None.
    """
    threading.excepthook = _die
    stores = list(stores)
    for store in stores:
        threading.Thread(target=store.run, name=store.resource.plural, daemon=True).start()
    for store in stores:
        store.synced.wait()
    serve_health()
    LOG.info("caches are filled: %s", ", ".join(store.resource.plural for store in stores))
    failures: dict[Key, int] = {}
    while True:
        key = queue.get()
        try:
            again = reconcile(key)
        except (ApiError, OSError, http.client.HTTPException) as error:
            failures[key] = failures.get(key, 0) + 1
            conflict = isinstance(error, ApiError) and error.status == http.HTTPStatus.CONFLICT
            # A conflict is our cache being a moment behind: its event is on the way, so it is no news.
            LOG.log(logging.DEBUG if conflict else logging.WARNING, "reconciling %s/%s: %s", *key, error)
            queue.add(key, min(0.1 * 2 ** failures[key], LONGEST_BACKOFF))
            continue
        failures.pop(key, None)
        if again is not None:
            queue.add(key, again)


def serve_health() -> None:
    """Answers 200 on every path from now on: the caches are filled and the process lives."""
    server = http.server.ThreadingHTTPServer(("", int(os.environ.get(HEALTH_PORT, "8081"))), _Health)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()


def key_of(item: JSON) -> Key:
    """Namespace and name of an object."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def stamp(moment: datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def owner_reference(owner: JSON) -> JSON:
    """The controller reference that makes a child go with its owner."""
    meta = owner["metadata"]
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controlled_by(item: JSON, uid: str) -> bool:
    """Whether the object with this uid controls ``item``."""
    references = item["metadata"].get("ownerReferences", [])
    return any(reference.get("controller") and reference["uid"] == uid for reference in references)


def digest(value: Any) -> str:
    """Sixteen hex digits that change whenever the JSON value changes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _slim(item: JSON) -> JSON:
    """Without ``managedFields``: often half of an object, and nothing here reads it."""
    item["metadata"].pop("managedFields", None)
    return item


def _die(args: threading.ExceptHookArgs) -> None:
    LOG.critical("thread %s died", args.thread.name if args.thread else "?", exc_info=args.exc_value)
    os._exit(1)


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the name is http.server's
        """Answers the kubelet's probe."""
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is http.server's
        """Probes are not news."""
