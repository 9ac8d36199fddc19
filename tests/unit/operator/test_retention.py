"""What becomes of a version beyond `revisionHistoryLimit` and of its artifacts: kept, or deleted before it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from unit.operator_world import SPEC, Fake, Operator, mlmodel, play, run

from mlplatform import api, contract
from mlplatform.actions import Create
from mlplatform.contract import ANNOTATION_ROLLBACK, Stage
from mlplatform.plan import plan_version
from mlplatform.resources import modelversion
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, VersionSnapshot, annotations_of, condition

FAILING = ("0.95", "0.96", "0.97")
"""Bounds that no version reaches."""


def spec(bound: str = "0.88", **changes: Any) -> Object:
    kept = {"revisionHistoryLimit": 1, "artifactRetention": "Delete"}
    return {**SPEC, **kept, "gates": [{"metric": "roc_auc", "min": float(bound)}], **changes}


def version(bound: str) -> str:
    return api.version_name("adult", api.decode(api.MLModelSpec, spec(bound)))


def applied(bound: str = "0.88", **changes: Any) -> Callable[[Fake], None]:
    return lambda fake: fake.apply(mlmodel(spec=spec(bound, **changes)))


def nothing(_fake: Fake) -> None:
    """Time passes."""


def away(fake: Fake) -> None:
    """The store refuses everything."""
    fake.store_away = True


def pass_time(fake: Fake, seconds: float) -> None:
    """With an operator that has just started."""
    run(fake, Operator(fake), fake.now + timedelta(seconds=seconds))


SERVES = version("0.88")
FIRST, SECOND, THIRD = map(version, FAILING)


def failures(**changes: Any) -> list[tuple[float, Callable[[Fake], None]]]:
    """One version serves, and three after it miss their gate: the first of them is beyond the limit."""
    bounds = enumerate(FAILING)
    return [(0, applied(**changes)), *((400 + 200 * i, applied(bound, **changes)) for i, bound in bounds)]


FAILURES = failures()


def folders(fake: Fake) -> set[str]:
    """Versions that have something in the store."""
    return {place.rpartition("/")[2].rpartition("-")[0] for place in fake.store}


def told(fake: Fake, reason: str) -> list[str]:
    return [event.message for _, event in fake.events if event.reason == reason]


def forgets(fake: Fake, name: str = FIRST) -> str:
    return condition(fake.one("ModelVersion", name), "Forgotten").get("reason", "")


def test_artifacts_are_kept_and_it_is_said_where() -> None:
    fake = play([*failures(artifactRetention="Keep"), (1000, nothing)])
    assert FIRST not in fake.names("ModelVersion")
    assert folders(fake) == {SERVES, FIRST, SECOND, THIRD}
    [said] = told(fake, "VersionForgotten")
    [place] = [place for place in fake.store if FIRST in place]
    assert said == (
        f"{FIRST} (v2) is beyond revisionHistoryLimit 1 and was deleted; its artifacts stay in {place} (artifactRetention: Keep)"
    )
    assert f"create Job/{FIRST}-forget" not in fake.log


def test_artifacts_go_first_and_then_the_version() -> None:
    fake = play([*FAILURES, (1000, nothing)])
    assert fake.names("ModelVersion") == sorted((SERVES, SECOND, THIRD))
    assert folders(fake) == {SERVES, SECOND, THIRD}
    assert fake.log.index(f"create Job/{FIRST}-forget") < fake.log.index(f"delete ModelVersion/{FIRST}")
    assert len(told(fake, "VersionExpired")) == 1
    [said] = told(fake, "VersionForgotten")
    assert said.startswith(f"{FIRST} (v2) was deleted, and with it what lay in s3://")
    assert not [job for job in fake.names("Job") if FIRST in job], "its Jobs went with it"
    assert fake.weights() == {SERVES: 100}
    fake.log.clear()
    Operator(fake).settle()
    assert fake.log == [], "and that is the end of it"


def test_what_a_record_names_stays_until_none_does() -> None:
    bounds = ("0.80", "0.81", "0.82", "0.83")
    names = [version(bound) for bound in bounds]
    fake = play([*((400 * i, applied(bound)) for i, bound in enumerate(bounds)), (1600, nothing)])
    assert fake.names("ModelVersion") == sorted(names), "the history tells of all four"
    model = fake.one("MLModel", "adult")
    history = model["status"]["history"]
    assert (history[0]["version"], history[0]["previous"]) == (names[3], names[2])
    fake.put({**model, "status": {**model["status"], "history": history[:1]}})
    pass_time(fake, 100)
    assert fake.names("ModelVersion") == sorted(names[2:])
    assert folders(fake) == set(names[2:])


def test_a_store_that_refuses_is_asked_again_and_holds_nothing_up() -> None:
    fake = play([*FAILURES[:-1], (790, away), *FAILURES[-1:], (1200, nothing)])
    seen = fake.one("ModelVersion", FIRST)
    ready = condition(seen, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "StoreAccess")
    assert "its artifacts cannot be deleted" in ready["message"]
    assert "the store refused to delete it" in ready["message"]
    assert seen["status"]["stage"] == "Forgetting"
    assert len(told(fake, "ForgettingBlocked")) == 1
    assert condition(fake.one("MLModel", "adult"), "Serving")["status"] == "True"
    since = ready["lastTransitionTime"]

    pass_time(fake, 3600)
    tries = fake.log.count(f"create Job/{FIRST}-forget")
    assert 5 <= tries <= 8, "every ten minutes, with new pods"
    assert len(told(fake, "ForgettingBlocked")) == 1, "it is said once"
    assert condition(fake.one("ModelVersion", FIRST), "Ready")["lastTransitionTime"] == since

    applied()(fake)
    pass_time(fake, 60)
    assert condition(fake.one("MLModel", "adult"), "Ready")["status"] == "True", "nothing else waits for it"
    fake.store_away = False
    pass_time(fake, 700)
    assert FIRST not in fake.names("ModelVersion")
    assert FIRST not in folders(fake)


def test_who_is_asked_for_again_meanwhile_is_made_anew_elsewhere() -> None:
    bounds = ("0.80", "0.81", "0.82")
    first, second, third = map(version, bounds)
    fake = play([*((400 * i, applied(bound)) for i, bound in enumerate(bounds)), (1200, away)])
    model = fake.one("MLModel", "adult")
    fake.put({**model, "status": {**model["status"], "history": model["status"]["history"][:1]}})
    pass_time(fake, 60)
    [old] = [place for place in fake.store if first in place]
    assert modelversion.forgotten(fake.one("ModelVersion", first))

    applied(bounds[0])(fake)
    pass_time(fake, 400)
    again = fake.one("MLModel", "adult")["status"]["stable"]["version"]
    assert again not in {first, second, third}, "a name is not used twice"
    assert f"create PyTorchJob/{again}-train" in fake.log, "nor is half a folder"
    assert fake.weights() == {again: 100}
    assert old in fake.store

    fake.store_away = False
    pass_time(fake, 700)
    assert old not in fake.store
    assert first not in fake.names("ModelVersion")
    assert fake.weights() == {again: 100}
    assert again in folders(fake)


def test_who_is_asked_for_after_that_has_a_folder_of_its_own() -> None:
    fake = play([*FAILURES, (1000, nothing)])
    before = {*fake.store}
    applied(FAILING[0])(fake)
    pass_time(fake, 200)
    assert fake.one("ModelVersion", FIRST)["spec"]["sequence"] == 5
    [new] = {*fake.store} - before
    assert FIRST in new


def test_a_killed_operator_forgets_all_the_same() -> None:
    fake = play([*FAILURES[:-1], (790, nothing)])
    applied(FAILING[-1])(fake)
    fake.forks = []
    pass_time(fake, 200)
    assert len(fake.forks) > 15
    for fork in fake.forks:
        pass_time(fork, 400)
        assert fork.names("ModelVersion") == sorted((SERVES, SECOND, THIRD)), fork.log
        assert folders(fork) == {SERVES, SECOND, THIRD}, fork.log
        assert fork.log.count(f"create Job/{FIRST}-forget") <= 2, "at most the one that was made when it died"
        assert fork.weights() == {SERVES: 100}


def test_the_work_of_its_stages_ends_first() -> None:
    quick = [(0, applied()), (400, applied(FAILING[0])), (420, applied(FAILING[1])), (600, applied(FAILING[2]))]
    fake = play([*quick, (900, nothing)])
    gone = fake.log.index(f"delete PyTorchJob/{FIRST}-train")
    assert gone < fake.log.index(f"create Job/{FIRST}-forget")
    assert FIRST not in folders(fake)


def test_a_suspended_model_begins_no_deletion() -> None:
    fake = play([*FAILURES[:-1], (790, away), *FAILURES[-1:], (1000, nothing)])
    applied(FAILING[-1], suspend=True)(fake)
    fake.log.clear()
    fake.store_away = False
    pass_time(fake, 1000)
    assert f"create Job/{FIRST}-forget" not in fake.log
    applied(FAILING[-1])(fake)
    pass_time(fake, 100)
    assert FIRST not in fake.names("ModelVersion")


def test_what_has_begun_is_finished_whatever_the_setting_says_then() -> None:
    fake = play([*FAILURES[:-1], (790, away), *FAILURES[-1:], (1000, nothing)])
    applied(FAILING[-1], artifactRetention="Keep", revisionHistoryLimit=50)(fake)
    fake.store_away = False
    pass_time(fake, 700)
    assert FIRST not in fake.names("ModelVersion")
    assert FIRST not in folders(fake)
    assert SECOND in fake.names("ModelVersion")


def test_going_back_to_it_is_refused_in_words() -> None:
    fake = play([*FAILURES[:-1], (790, away), *FAILURES[-1:], (1000, nothing)])
    model = fake.one("MLModel", "adult")
    asked = {**annotations_of(model), ANNOTATION_ROLLBACK: str(api.WayBack(THIRD, FIRST))}
    fake.put({**model, "metadata": {**model["metadata"], "annotations": asked}})
    pass_time(fake, 10)
    [said] = told(fake, "RollbackRefused")
    assert f"{FIRST}, whose artifacts are being deleted, is not a version that could serve" in said


# One step.


def marked(name: str, fake: Fake) -> VersionSnapshot:
    """A version that is marked, by whomever."""
    live = fake.one("ModelVersion", name)
    metadata = {**live["metadata"], "annotations": {contract.ANNOTATION_FORGET: "true"}}
    return VersionSnapshot(version={**live, "metadata": metadata}, model=fake.one("MLModel", "adult"))


TERMINATING = {"metadata": {"name": "p", "deletionTimestamp": "x"}, "status": {"phase": "Running"}}
ENDED = {"metadata": {"name": "p"}, "status": {"phase": "Failed"}}
STEPS: list[tuple[str, str, Callable[[VersionSnapshot], VersionSnapshot], str, bool]] = [
    ("nothing is in the way", FIRST, lambda s: s, "Deleting", True),
    ("it serves, whoever marked it", SERVES, lambda s: s, "StillNamed", False),
    ("its model is gone: that keeps artifacts", FIRST, lambda s: replace(s, model=None), "ModelMissing", False),
    ("a pod writes until it has ended", FIRST, lambda s: replace(s, pods={Stage.TRAIN: (TERMINATING,)}), "Stopping", False),
    ("a pod that has ended writes nothing", FIRST, lambda s: replace(s, pods={Stage.TRAIN: (ENDED,)}), "Deleting", True),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "name", "change", "step", "begins"), STEPS, ids=[row[0] for row in STEPS])
def test_step(
    reason: str, name: str, change: Callable[[VersionSnapshot], VersionSnapshot], step: str, *, begins: bool
) -> None:
    fake = play([*FAILURES[:2], (590, nothing)])
    applied(FAILING[1])(fake)
    pass_time(fake, 100)
    plan = plan_version(change(marked(name, fake)), Settings(), fake.now)
    said = {c["type"]: c for c in plan.status["conditions"]}
    assert said["Forgotten"]["reason"] == step, reason
    assert said["Ready"]["status"] == "False", reason
    assert [type(write) for write in plan.writes] == [Create] * begins, reason
    assert [*plan.cleanup] == [], reason
