"""What the watches have shown, in little room."""

from __future__ import annotations

import json

import pytest
from unit.operator_world import NAMESPACE, mlmodel

from mlplatform.snapshot import Object
from mlplatform.store import Store, slim


def job(name: str = "x", revision: int = 1, uid: str = "uid-1", **labels: str) -> Object:
    meta = {"name": name, "namespace": NAMESPACE, "uid": uid, "resourceVersion": str(revision), "labels": labels}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"n": revision}, "status": {}}


def shown(store: Store, kind: str = "Job", model: str = "adult") -> list[tuple[str, int]]:
    return sorted((o["metadata"]["name"], o["spec"]["n"]) for o in store.objects(kind, NAMESPACE, model))


def test_objects_are_found_by_kind_and_model() -> None:
    store = Store()
    store.put("Job", "adult", job("a"))
    store.put("Job", "adult", job("b", 2))
    store.put("Job", "other", job("c"))
    store.put("PyTorchJob", "adult", job("a"))
    assert shown(store) == [("a", 1), ("b", 2)]
    assert shown(store, model="other") == [("c", 1)]
    assert list(store.objects("Job", "elsewhere", "adult")) == []
    assert store.uids("Job") == {(NAMESPACE, name): "uid-1" for name in "abc"}


@pytest.mark.parametrize(
    ("reason", "events", "news", "left"),
    [
        ("a newer state counts", [job(revision=1), job(revision=2)], [True, True], [("x", 2)]),
        ("a list that shows nothing new is no news", [job(revision=2), job(revision=2)], [True, False], [("x", 2)]),
        ("an older state comes late", [job(revision=2), job(revision=1)], [True, False], [("x", 2)]),
        (
            "the last word of a namesake that is gone comes late",
            [job(revision=9, uid="uid-2"), job(revision=8)],
            [True, False],
            [("x", 9)],
        ),
    ],
)
def test_the_newest_state_counts(reason: str, events: list[Object], news: list[bool], left: list[object]) -> None:
    store = Store()
    assert [store.put("Job", "adult", event) for event in events] == news, reason
    assert shown(store) == left, reason


def test_what_is_gone_is_gone_unless_it_was_another_one() -> None:
    store = Store()
    store.put("Job", "adult", job(uid="uid-2"))
    assert store.discard("Job", (NAMESPACE, "x"), "uid-1") is None, "a namesake"
    assert store.discard("Job", (NAMESPACE, "y"), "uid-2") is None, "never seen"
    gone = store.discard("Job", (NAMESPACE, "x"), "uid-2")
    assert gone
    assert gone["metadata"]["uid"] == "uid-2"
    assert (shown(store), store.uids("Job")) == ([], {})


def test_an_object_that_is_given_to_another_model_leaves_the_first() -> None:
    store = Store()
    store.put("Job", "adult", job())
    store.put("Job", "other", job(revision=2))
    assert (shown(store), shown(store, model="other")) == ([], [("x", 2)])


def test_only_what_decisions_rest_on_is_kept() -> None:
    whole = mlmodel("m", None, **{"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"})
    whole["metadata"] |= {"managedFields": [{}] * 10}
    kept = slim("MLModel", whole)
    assert kept["metadata"] == {"name": "m", "namespace": NAMESPACE, "annotations": {"mine": "1"}}
    assert kept["spec"] == whole["spec"]
    assert "last-applied" in json.dumps(whole), "what was given is as it was"
    pod = {**job(), "kind": "Pod", "status": {"phase": "Running"}}
    assert slim("Pod", pod).keys() == {"apiVersion", "kind", "metadata", "status"}, "most of a pod is its spec"
    waits = {"conditions": [{"type": "PodScheduled", "status": "False"}]}
    spec = {"nodeSelector": {"pool": "gpu"}, "containers": [{"name": "c", "env": [], "resources": {"limits": {}}}]}
    assert slim("Pod", {**pod, "status": waits, "spec": spec})["spec"] == {
        "nodeSelector": {"pool": "gpu"},
        "containers": [{"resources": {"limits": {}}}],
    }, "what no node has is told"
