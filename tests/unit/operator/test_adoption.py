"""What a restore or ``--cascade=orphan`` leaves: objects of ours that nobody owns are taken over, and nothing is made again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta

import pytest
from unit.operator_world import NAMESPACE, Fake, Operator, mlmodel, play, run

from mlplatform import contract
from mlplatform.contract import Stage
from mlplatform.plan import plan_version
from mlplatform.resources import adoption, service
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, VersionSnapshot, condition, controlled_by, labels_of, name_of

OURS = ("ModelVersion", "ServingRuntime", "InferenceService", "Service", "VirtualService")


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


def without_status(fake: Fake) -> None:
    """Everything is made again from a backup that has neither owner references nor status, without the stages' workloads."""
    without_workloads(fake)
    orphaned(fake, "MLModel", "adult", status=False)
    for kind in OURS:
        for name in fake.names(kind):
            orphaned(fake, kind, name, status=False)


def without_workloads(fake: Fake) -> None:
    for kind in ("PyTorchJob", "Job"):
        for name in fake.names(kind):
            fake.remove(kind, name)


def restored_under_its_model(fake: Fake) -> None:
    """Its children are made again from a backup, the model was there all the time."""
    for kind in OURS:
        for name in fake.names(kind):
            orphaned(fake, kind, name)


DEEDS = [left_by_its_model, restored, restored_under_its_model, without_status]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda f: f.__doc__)
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
    assert {entry for entry in fake.log if entry.startswith("create")} <= {f"create Job/{version}-adopt"}, fake.log
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
    pass_time(fake, 10)
    assert controlled_by(fake.one("PyTorchJob", job), fake.one("ModelVersion", version))
    pass_time(fake, 290)
    assert f"create PyTorchJob/{job}" not in fake.log, "it went on training meanwhile"
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
    found = copy.deepcopy(fake.one("Service", "adult"))
    fake.remove("Service", "adult")
    found["metadata"] = {"name": "adult", "namespace": NAMESPACE, "labels": labels_of(found)}
    change(found)
    before = fake.put(found)
    with pytest.raises(Exception, match="belongs to something else"):
        Operator(fake).settle()
    assert fake.one("Service", name_of(before)) == before, reason
    assert condition(fake.one("MLModel", "adult"), "Ready")["reason"] == "NameTaken"


# A version that comes back without its status: what it had finished is read from its reports.


def records(fake: Fake, version: str) -> dict[str, str]:
    stages = fake.one("ModelVersion", version)["status"].get("stages") or ()
    return {stage["name"]: stage["outcome"] for stage in stages}


def made(fake: Fake) -> list[str]:
    return [entry.partition("/")[2] for entry in fake.log if entry.startswith("create")]


@pytest.mark.parametrize("finished", range(len(Stage) + 1))
def test_what_was_finished_is_adopted_and_the_rest_is_run(finished: int) -> None:
    fake = serving()
    (version,) = fake.names("ModelVersion")
    before = fake.one("ModelVersion", version)["status"]
    (place,) = fake.store
    fake.store[place] = {stage: said for stage, said in fake.store[place].items() if stage in list(Stage)[:finished]}
    without_status(fake)
    fake.log.clear()
    pass_time(fake, 300)
    assert made(fake) == [f"{version}-adopt", *(f"{version}-{stage}" for stage in list(Stage)[finished:])]
    after = fake.one("ModelVersion", version)
    assert records(fake, version) == dict.fromkeys(Stage, "Succeeded")
    for key in ("metrics", "storageUri"):
        assert after["status"][key] == before[key]
    for old, new in zip(before["stages"], after["status"]["stages"], strict=True):
        for key in ("metrics", "details", "digest"):
            assert new.get(key) == old.get(key), f"{new['name']}: {key}"
    assert not adoption.restored(after), "they are looked for once"
    assert f"{version}-adopt" not in fake.names("Job")
    assert fake.weights() == {version: 100}
    assert condition(fake.one("MLModel", "adult"), "Ready")["status"] == "True"


def test_it_serves_all_the_while() -> None:
    fake = serving()
    (version,) = fake.names("ModelVersion")
    without_status(fake)
    for _ in range(30):
        pass_time(fake, 2)
        assert fake.weights() == {version: 100}
        assert service.stable(fake.one("Service", "adult")) == version
        assert fake.names("InferenceService") == [version]


def test_a_store_that_cannot_be_read_is_asked_again_and_trains_nothing() -> None:
    fake = serving()
    (version,) = fake.names("ModelVersion")
    without_status(fake)
    fake.store_away, fake.log[:] = True, []
    pass_time(fake, 300)
    ready = condition(fake.one("ModelVersion", version), "Ready")
    assert ready["status"] == "False"
    assert "the reports cannot be looked for" in ready["message"]
    assert "the store refused to read it" in ready["message"]
    assert set(made(fake)) == {f"{version}-adopt"}
    assert len(made(fake)) > 2, "with new pods: credentials are mended in the Secret"
    assert condition(fake.one("MLModel", "adult"), "Serving")["status"] == "True"
    fake.store_away = False
    pass_time(fake, 120)
    assert set(made(fake)) == {f"{version}-adopt"}
    assert condition(fake.one("MLModel", "adult"), "Ready")["status"] == "True"


def test_whoever_takes_the_mark_off_has_it_trained_anew() -> None:
    fake = serving()
    (version,) = fake.names("ModelVersion")
    without_status(fake)
    fake.store_away = True
    pass_time(fake, 60)
    marked = fake.one("ModelVersion", version)
    fake.put({**marked, "metadata": {**marked["metadata"], "annotations": {}}})
    pass_time(fake, 300)
    assert f"{version}-train" in made(fake)
    assert records(fake, version) == dict.fromkeys(Stage, "Succeeded")
    assert f"{version}-adopt" not in fake.names("Job")


def test_the_version_before_is_adopted_too_so_that_going_back_needs_no_training() -> None:
    first, second = mlmodel()["spec"], {**mlmodel()["spec"], "gates": [{"metric": "roc_auc", "min": 0.9}]}
    fake = play([(0, applied), (400, lambda f: f.apply(mlmodel(spec=second))), (900, nothing)])
    without_status(fake)
    fake.log.clear()
    pass_time(fake, 100)
    assert len(made(fake)) == 2, made(fake)
    assert [records(fake, name) for name in fake.names("ModelVersion")] == [dict.fromkeys(Stage, "Succeeded")] * 2
    fake.log.clear()
    fake.apply(mlmodel(spec=first))
    pass_time(fake, 300)
    assert not [name for name in made(fake) if "-train" in name]
    assert condition(fake.one("MLModel", "adult"), "Ready")["status"] == "True"


def test_a_version_that_missed_a_gate_has_missed_it() -> None:
    harder = {**mlmodel()["spec"], "gates": [{"metric": "roc_auc", "min": 0.95}]}
    fake = play([(0, lambda f: f.apply(mlmodel(spec=harder))), (300, nothing)])
    (version,) = fake.names("ModelVersion")
    without_status(fake)
    fake.log.clear()
    pass_time(fake, 100)
    assert made(fake) == [f"{version}-adopt"]
    assert records(fake, version) == {"train": "Succeeded", "audit": "Failed"}


def test_a_killed_operator_adopts_all_the_same() -> None:
    fake = serving()
    (version,) = fake.names("ModelVersion")
    without_status(fake)
    fake.log.clear()
    fake.forks = []
    pass_time(fake, 100)
    for fork in fake.forks:
        pass_time(fork, 200)
        assert records(fork, version) == dict.fromkeys(Stage, "Succeeded"), fork.log
        assert set(made(fork)) <= {f"{version}-adopt"}, fork.log
        assert not adoption.restored(fork.one("ModelVersion", version))
        assert f"{version}-adopt" not in fork.names("Job")


def test_a_version_begins_nothing_before_its_model_has_adopted_it() -> None:
    fake = serving()
    (version,) = fake.names("ModelVersion")
    without_status(fake)
    snapshot = VersionSnapshot(version=fake.one("ModelVersion", version), model=fake.one("MLModel", "adult"))
    plan = plan_version(snapshot, Settings(), fake.now)
    assert plan.writes == [], "its reconciler may be first"
    ready = next(c for c in plan.status["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("Unknown", "ModelMissing")
    assert "has not adopted this version yet" in ready["message"]
