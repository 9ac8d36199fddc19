"""The stand-ins' cache and queue: a watch that breaks loses nothing, a key is worked on once and in time."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from local.addons.client import ApiError, Client, Resource
from local.addons.controller import Key, Store, WorkQueue, controlled_by, digest, owner_reference

JSON = dict[str, Any]
PODS = Resource("v1", "pods")
DEADLINE = 10.0


def pod(name: str, version: str = "1", **more: Any) -> JSON:
    return {"metadata": {"name": name, "namespace": "n", "resourceVersion": version, "managedFields": ["big"], **more}}


class Script(http.server.ThreadingHTTPServer):
    """An API server that answers lists and watches from a script and remembers what it was asked.

    Attributes:
        lists: What each list answers: the objects, or a status to refuse with; the last one repeats.
        watches: The events of each watch; after the last one a watch stays open.
        asked: ``resourceVersion`` of each watch.
    """

    daemon_threads = True

    def __init__(self, lists: list[list[JSON] | int], watches: list[list[JSON]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lists, self.watches, self.asked = lists, watches, list[str]()
        self.ended = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "watch" in query:
            self._watch(query["resourceVersion"][0])
            return
        lists = self.server.lists
        answer = lists.pop(0) if len(lists) > 1 else lists[0]
        body = {"kind": "PodList", "metadata": {"resourceVersion": "100"}, "items": answer}
        status = answer if isinstance(answer, int) else 200
        self._send(status, json.dumps({"message": "no"} if isinstance(answer, int) else body).encode())

    def _watch(self, version: str) -> None:
        self.server.asked.append(version)
        if not self.server.watches:
            self.server.ended.wait(DEADLINE)
            return
        events = self.server.watches.pop(0)
        self._send(200, b"".join(json.dumps(event).encode() + b"\n" for event in events))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Quiet."""


class Cache:
    """A store on a script, and the names it told of."""

    def __init__(self, script: Script) -> None:
        self.script, self.told = script, list[str]()
        client = Client(f"http://127.0.0.1:{script.server_port}")
        self.store = Store(client, PODS, lambda item: self.told.append(item["metadata"]["name"]))
        threading.Thread(target=self.store.run, daemon=True).start()

    def until_watching(self, count: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while len(self.script.asked) < count:
            assert time.monotonic() < deadline, f"only these watches: {self.script.asked}"
            time.sleep(0.01)

    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.store.all()]


@pytest.fixture
def start() -> Iterator[Any]:
    running: list[Cache] = []

    def scripted(lists: list[list[JSON] | int], watches: list[list[JSON]]) -> Cache:
        script = Script(lists, watches)
        threading.Thread(target=script.serve_forever, args=(0.02,), daemon=True).start()
        running.append(Cache(script))
        return running[-1]

    yield scripted
    for cache in running:
        cache.store.stopped.set()
        cache.script.ended.set()
        cache.script.shutdown()
        cache.script.server_close()


def event(kind: str, item: JSON) -> JSON:
    return {"type": kind, "object": item}


def test_a_cache_follows_its_watch_and_goes_on_from_the_last_version(start: Any) -> None:
    events = [
        event("ADDED", pod("b", "101")),
        event("MODIFIED", pod("a", "102", labels={"x": "y"})),
        event("DELETED", pod("b", "103")),
        event("BOOKMARK", {"metadata": {"resourceVersion": "110"}}),
    ]
    cache = start([[pod("a")]], [events])
    cache.until_watching(2)
    assert cache.names() == ["a"]
    found = cache.store.get(("n", "a"))
    assert found["metadata"]["labels"] == {"x": "y"}
    assert "managedFields" not in found["metadata"], "half of every object, and nobody reads it"
    assert cache.told == ["a", "b", "a", "b"], "one after every change, the bookmark is none"
    assert cache.script.asked == ["100", "110"], "the second watch goes on where the first ended: no new list"


def test_items_of_a_list_know_their_kind(start: Any) -> None:
    cache = start([[pod("a")]], [])
    cache.until_watching(1)
    item = cache.store.get(("n", "a"))
    assert (item["apiVersion"], item["kind"]) == ("v1", "Pod"), "the API leaves it out of lists"


def test_a_version_that_is_too_old_leads_to_a_new_list_that_finds_what_was_missed(start: Any) -> None:
    gone = event("ERROR", {"code": 410, "message": "too old"})
    cache = start([[pod("a"), pod("b")], [pod("b"), pod("c")]], [[gone]])
    cache.until_watching(2)
    assert cache.names() == ["b", "c"]
    assert cache.told == ["a", "b", "b", "c", "a"], "the deletion of a, which no event told of, is told too"


def test_a_kind_that_is_not_there_yet_is_asked_for_again(start: Any) -> None:
    cache = start([404, [pod("a")]], [])
    assert cache.store.synced.wait(DEADLINE)
    assert cache.names() == ["a"]


def test_a_refused_list_is_no_empty_list(start: Any) -> None:
    cache = start([403], [])
    assert not cache.store.synced.wait(0.2), "or a controller without rights would take the cluster for empty"


def test_an_error_carries_status_and_sentence(start: Any) -> None:
    cache = start([403], [])
    client = Client(f"http://127.0.0.1:{cache.script.server_port}")
    with pytest.raises(ApiError, match="403: no") as caught:
        client.request("GET", PODS.path())
    client.close()
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("reason", "resource", "arguments", "expected"),
    [
        ("the core group", PODS, (), "/api/v1/pods"),
        ("one namespace", PODS, ("n",), "/api/v1/namespaces/n/pods"),
        ("a named group", Resource("apps/v1", "deployments"), ("n", "d"), "/apis/apps/v1/namespaces/n/deployments/d"),
        ("a part", PODS, ("n", "p", "status"), "/api/v1/namespaces/n/pods/p/status"),
        ("a cluster-wide object", Resource("v1", "nodes"), ("", "x"), "/api/v1/nodes/x"),
    ],
)
def test_paths(reason: str, resource: Resource, arguments: tuple[str, ...], expected: str) -> None:
    assert resource.path(*arguments) == expected, reason


def test_a_key_is_taken_once_however_often_it_was_added() -> None:
    queue = WorkQueue()
    for key in (("n", "a"), ("n", "b"), ("n", "a")):
        queue.add(key)
    queue.add(("n", "end"), 0.05)
    taken: list[Key] = []
    while not taken or taken[-1] != ("n", "end"):
        taken.append(queue.get())
    assert taken == [("n", "a"), ("n", "b"), ("n", "end")]


def test_the_earlier_time_wins() -> None:
    queue = WorkQueue()
    queue.add(("n", "a"), 60)
    queue.add(("n", "a"))
    queue.add(("n", "a"), 60)
    assert queue.get() == ("n", "a"), "a change does not wait for a retry that is far away"
    queue.add(("n", "b"), 0.05)
    assert queue.get() == ("n", "b"), "and the time that was overtaken is forgotten"


def test_a_waiting_worker_is_woken() -> None:
    queue, taken = WorkQueue(), list[Key]()
    worker = threading.Thread(target=lambda: taken.append(queue.get()))
    worker.start()
    queue.add(("n", "later"), 60)
    queue.add(("n", "now"))
    worker.join(DEADLINE)
    assert taken == [("n", "now")]


def test_only_the_controlling_owner_counts() -> None:
    owner = {"apiVersion": "v1", "kind": "X", "metadata": {"name": "o", "uid": "1"}}
    child = {"metadata": {"ownerReferences": [owner_reference(owner), {"uid": "2"}]}}
    assert controlled_by(child, "1")
    assert not controlled_by(child, "2"), "an owner that does not control"
    assert not controlled_by({"metadata": {}}, "1")


def test_the_digest_is_of_the_content_not_of_its_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
