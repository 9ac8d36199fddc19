"""What a restore or ``--cascade=orphan`` leaves: objects of ours that nobody owns are taken over, and nothing is made again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta

import pytest
from unit.operator_world import NAMESPACE, Fake, Operator, mlmodel, play, run

from mlplatform import contract
from mlplatform.snapshot import Object, condition, controlled_by, labels_of, name_of

OURS = ("ModelVersion", "InferenceService", "Service", "VirtualService")


def applied(fake: Fake) -> None:
    fake.apply(mlmodel())


def nothing(_fake: Fake) -> None:
    """Time passes."""


def pass_time(fake: Fake, seconds: float) -> None:
    """With an operator that has just started."""
    run(fake, Operator(fake), fake.now + timedelta(seconds=seconds))


def serving() -> Fake:
    fake = play([(0, applied), (300, nothing)])
    assert condition(fake.one("MLModel", "adult"), "Ready")["status"] == "True"
    return fake


def orphaned(fake: Fake, kind: str, name: str, *, status: bool = True, **labels: str) -> Object:
    """The object is made again under the same name, with another uid, without owner references, perhaps without status."""
    obj = copy.deepcopy(fake.one(kind, name))
    del fake._objects[kind, name]  # noqa: SLF001  what it owned stays
    for key in ("uid", "resourceVersion", "ownerReferences", "generation", "creationTimestamp"):
        obj["metadata"].pop(key, None)
    obj["metadata"]["labels"] = {**labels_of(obj), **labels}
    if not status:
        obj.pop("status", None)
    return fake.put(obj)


def left_by_its_model(fake: Fake) -> None:
    """``kubectl delete mlmodel --cascade=orphan``, and the model is applied again."""
    del fake._objects["MLModel", "adult"]  # noqa: SLF001  what it owned stays
    for kind in OURS:
        for name in fake.names(kind):
            obj = fake.one(kind, name)
            fake.put({**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "ownerReferences"}})
    applied(fake)


def restored(fake: Fake) -> None:
    """Everything is made again from a backup that has no owner references; the model has no status."""
    orphaned(fake, "MLModel", "adult", status=False)
    for kind in OURS:
        for name in fake.names(kind):
            orphaned(fake, kind, name)


def restored_under_its_model(fake: Fake) -> None:
    """Its children are made again from a backup, the model was there all the time."""
    for kind in OURS:
        for name in fake.names(kind):
            orphaned(fake, kind, name)


@pytest.mark.parametrize("deed", [left_by_its_model, restored, restored_under_its_model], ids=lambda f: f.__doc__)
def test_what_nobody_owns_is_taken_over(deed: Callable[[Fake], None]) -> None:
    fake = serving()
    (version,) = fake.names("ModelVersion")
    deed(fake)
    fake.log.clear()
    pass_time(fake, 600)
    model = fake.one("MLModel", "adult")
    assert condition(model, "Ready")["status"] == "True", condition(model, "Ready")
    assert fake.weights() == {version: 100}
    for kind in OURS:
        for name in fake.names(kind):
            assert controlled_by(fake.one(kind, name), model), f"{kind} {name} goes with its model again"
    assert fake.names("ModelVersion") == [version]
    assert not [entry for entry in fake.log if entry.startswith("create")], fake.log
    fake.log.clear()
    Operator(fake).settle()
    assert fake.log == [], "and that is the end of it"


def test_a_versions_workloads_are_taken_over() -> None:
    fake = play([(0, applied), (30, nothing)])
    (version,) = fake.names("ModelVersion")
    (job,) = fake.names("PyTorchJob")
    orphaned(fake, "ModelVersion", version)
    stripped = fake.one("PyTorchJob", job)
    fake.put({**stripped, "metadata": {k: v for k, v in stripped["metadata"].items() if k != "ownerReferences"}})
    fake.log.clear()
    pass_time(fake, 300)
    assert f"create PyTorchJob/{job}" not in fake.log, "it went on training meanwhile"
    assert controlled_by(fake.one("PyTorchJob", job), fake.one("ModelVersion", version))
    assert fake.weights() == {version: 100}


ELSES: list[tuple[str, Callable[[Object], None]]] = [
    ("it lacks our labels", lambda obj: obj["metadata"].update(labels={contract.LABEL_MODEL: "adult"})),
    ("another controller has it", lambda obj: obj["metadata"].update(ownerReferences=[
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "u", "controller": True}])),
    ("it is another model's", lambda obj: obj["metadata"]["labels"].update({contract.LABEL_MODEL: "other"})),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "change"), ELSES, ids=[case[0] for case in ELSES])
def test_what_is_somebody_elses_is_left_alone(reason: str, change: Callable[[Object], None]) -> None:
    fake = serving()
    service = copy.deepcopy(fake.one("Service", "adult"))
    fake.remove("Service", "adult")
    service["metadata"] = {"name": "adult", "namespace": NAMESPACE, "labels": labels_of(service)}
    change(service)
    before = fake.put(service)
    with pytest.raises(Exception, match="belongs to something else"):
        Operator(fake).settle()
    assert fake.one("Service", name_of(before)) == before, reason
    assert condition(fake.one("MLModel", "adult"), "Ready")["reason"] == "NameTaken"
