"""One pass over one MLModel: what people, crashes and other controllers can do to it, and what it makes of that."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from unit.operator_world import NAMESPACE, SPEC, START, Fake, Operator, failing, mlmodel, play, run

from mlplatform import api
from mlplatform.actions import Apply, Create, Delete, Ref, Write
from mlplatform.cluster import Rejected
from mlplatform.contract import ANNOTATION_ROLLBACK, MODEL_NAME_LIMIT, Failure, FailureClass, Stage
from mlplatform.plan import plan_model
from mlplatform.plan.facts import gather
from mlplatform.resources import inferenceservice, modelversion, names, service, servingruntime, virtualservice
from mlplatform.settings import Settings
from mlplatform.snapshot import ModelSnapshot, Object, annotations_of, condition, labels_of, name_of, stamp
from mlplatform.stages import PIPELINE

SECOND = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.9}]}
THIRD = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.85}]}
V1, V2, V3 = (api.version_name("adult", api.decode(api.MLModelSpec, spec)) for spec in (SPEC, SECOND, THIRD))
ROLLING_AT = 400 + 60 + 3 * 20 + 15 + 5
"""Seconds from the start: the second version's first step has been taken."""


def applied(spec: Object = SPEC, **annotations: str) -> Callable[[Fake], None]:
    return lambda fake: fake.apply(mlmodel(spec=spec, **annotations))


def nothing(_fake: Fake) -> None:
    """Time passes."""


def serving() -> Fake:
    """The first version serves."""
    return play([(0, applied()), (300, nothing)])


def rolling() -> Fake:
    """The second version takes 5%."""
    fake = play([(0, applied()), (400, applied(SECOND)), (ROLLING_AT, nothing)])
    assert fake.weights() == {V1: 95, V2: 5}
    return fake


def settle(fake: Fake, seconds: float = 0) -> list[str]:
    """Lets a new operator act, and time pass; returns what was written."""
    before = len(fake.log)
    run(fake, Operator(fake), fake.now + timedelta(seconds=seconds))
    return fake.log[before:]


def status(fake: Fake, kind: str) -> tuple[str, str, str]:
    c = condition(fake.one("MLModel", "adult"), kind)
    return c["status"], c["reason"], c["message"]


def edited(fake: Fake, kind: str, name: str, **spec: Any) -> None:
    """Somebody edits an object by hand."""
    live = fake.one(kind, name)
    fake.put({**live, "spec": {**live["spec"], **spec}})


def with_weights(fake: Fake, weights: dict[str, int]) -> list[Object]:
    rendered = virtualservice.render(fake.one("MLModel", "adult"), weights, sorted(weights), "", Settings())
    routes: list[Object] = rendered["spec"]["http"]
    return routes


# What people do to the children.


def test_weights_set_by_hand_between_rollouts_are_put_back() -> None:
    fake = serving()
    edited(fake, "VirtualService", "adult", http=[])
    assert settle(fake) == ["apply VirtualService/adult"]
    assert fake.weights() == {V1: 100}


def test_weights_set_by_hand_during_a_rollout_are_where_it_goes_on() -> None:
    fake = rolling()
    edited(fake, "VirtualService", "adult", http=with_weights(fake, {V1: 70, V2: 30}))
    settle(fake)
    assert fake.weights() == {V1: 70, V2: 30}
    assert fake.one("MLModel", "adult")["status"]["rollout"]["weight"] == 30
    settle(fake, seconds=10)
    assert fake.weights() == {V1: 50, V2: 50}, "the first step above 30"


def test_a_deleted_route_comes_back_and_its_rollout_begins_anew() -> None:
    fake = rolling()
    fake.remove("VirtualService", "adult")
    settle(fake)
    assert fake.weights() == {V1: 95, V2: 5}
    settle(fake, seconds=40)
    assert fake.weights() == {V2: 100}


def test_a_decision_in_the_words_of_a_newer_operator_stays_on_record_and_stops_nothing() -> None:
    fake = rolling()
    model = fake.one("MLModel", "adult")
    (first,) = model["status"]["history"]
    held = {**first, "decision": "Held", "message": "a newer operator held it"}
    fake.put({**model, "status": {**model["status"], "history": [held, first]}})
    settle(fake, seconds=60)
    history = fake.one("MLModel", "adult")["status"]["history"]
    assert [d["decision"] for d in history] == ["Promoted", "Held", "Promoted"]
    assert fake.weights() == {V2: 100}


def test_a_deleted_apex_comes_back_with_the_version_that_the_route_remembers() -> None:
    for fake, selected in ((serving(), V1), (rolling(), V1)):
        fake.remove("Service", "adult")
        assert "apply Service/adult" in settle(fake)
        assert fake.one("Service", "adult")["spec"]["selector"] == {"app": f"isvc.{selected}-predictor"}


def test_apex_and_route_both_deleted_come_back_from_the_last_status() -> None:
    fake = serving()
    fake.remove("Service", "adult")
    fake.remove("VirtualService", "adult")
    settle(fake)
    assert fake.weights() == {V1: 100}
    assert fake.one("Service", "adult")["spec"]["selector"] == {"app": f"isvc.{V1}-predictor"}


def test_a_deleted_inference_service_of_the_stable_version_comes_back() -> None:
    fake = serving()
    fake.remove("InferenceService", V1)
    fake.remove("Pod", f"{V1}-predictor-0")
    assert f"apply InferenceService/{V1}" in settle(fake)
    assert status(fake, "Serving")[:2] == ("False", "NoReadyPods")
    settle(fake, seconds=20)
    assert status(fake, "Serving")[0] == "True"


def test_a_deleted_version_that_serves_goes_on_serving_and_is_trained_again() -> None:
    fake = serving()
    fake.remove("ModelVersion", V1)
    written = settle(fake)
    (again,) = fake.names("ModelVersion")
    assert again != V1, "the spec asks for it, and what serves has the name"
    assert fake.weights() == {V1: 100}
    assert status(fake, "Serving")[0] == "True"
    assert f"apply InferenceService/{V1}" not in written, "what serves stays as it is"
    settle(fake, seconds=300)
    assert fake.weights() == {again: 100}, "it takes over like any other version"


def test_a_deleted_candidate_ends_its_rollout() -> None:
    fake = rolling()
    fake.remove("ModelVersion", V2)
    settle(fake)
    assert fake.weights() == {V1: 100}
    assert fake.one("MLModel", "adult")["status"]["history"][0]["decision"] == "Superseded"


def test_a_damaged_record_starts_the_rollout_again() -> None:
    fake = rolling()
    route = fake.one("VirtualService", "adult")
    damaged = {**annotations_of(route), virtualservice.ROLLOUT: "{"}
    fake.put({**route, "metadata": {**route["metadata"], "annotations": damaged}})
    settle(fake, seconds=60)
    assert fake.weights() == {V2: 100}


def test_a_spec_that_brings_back_a_version_of_the_same_name_as_someone_elses_service() -> None:
    fake = Fake()
    fake.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "adult", "namespace": NAMESPACE}, "spec": {}})
    fake.apply(mlmodel())
    with pytest.raises(Exception, match="belongs to something else"):
        run(fake, Operator(fake), START + timedelta(seconds=300))
    assert fake.one("Service", "adult")["spec"] == {}, "it is left alone"
    assert status(fake, "Ready")[:2] == ("False", "NameTaken")


# What can go wrong while a rollout is under way.


def test_no_ready_pod_takes_the_traffic_back_until_there_is_one() -> None:
    fake = rolling()
    fake.unready.add(V2)
    settle(fake)
    assert fake.weights() == {V1: 100}
    assert status(fake, "RolloutPassed")[:2] == ("Unknown", "WaitingForPods")
    assert ("adult", "CandidateNotReady") in [(name, event.reason) for name, event in fake.events]
    fake.unready.clear()
    settle(fake, seconds=1)
    assert fake.weights() == {V1: 95, V2: 5}, "it starts over at the first step"


def test_the_stable_version_without_a_pod_hands_its_traffic_over_until_it_has_one() -> None:
    fake = rolling()
    fake.unready.add(V1)
    settle(fake)
    assert fake.weights() == {V2: 100}
    assert fake.one("Service", "adult")["spec"]["selector"] == {"app": f"isvc.{V1}-predictor"}, "nothing is promoted"
    assert status(fake, "Serving")[:2] == ("False", "StableNotReady")
    assert f"{V2} (v2) answers for it" in status(fake, "Serving")[2]
    assert status(fake, "RolloutPassed")[:2] == ("Unknown", "StableNotReady")
    rolled = fake.one("MLModel", "adult")["status"]["rollout"]
    assert "eta" not in rolled
    assert (rolled["weight"], rolled["step"]) == (100, 1), "what the mesh has, and what the rollout has come to"
    events = [event.reason for _, event in fake.events[-3:]]
    assert events.count("StableNotReady") == 1, events
    settle(fake, seconds=3600)
    assert fake.weights() == {V2: 100}
    fake.unready.clear()
    settle(fake)
    assert fake.weights() == {V1: 95, V2: 5}, "where it was"
    assert status(fake, "Serving")[0] == "True"
    settle(fake, seconds=4)
    assert fake.weights() == {V1: 95, V2: 5}, "the rest of its step"
    settle(fake, seconds=2)
    assert fake.weights() == {V1: 75, V2: 25}


def test_too_few_stable_pods_are_enough_to_go_back_to_if_who_stands_in_has_no_more() -> None:
    fake = rolling()
    fake.unready.add(V1)
    settle(fake)
    fake.apply(mlmodel(spec={**SECOND, "serving": {"replicas": {"min": 2, "max": 2}}}))
    fake.unready.update(f"{version}-predictor-1" for version in (V1, V2))
    settle(fake, seconds=60)
    assert fake.weights() == {V2: 100}
    fake.unready.discard(V1)
    settle(fake)
    assert fake.weights() == {V1: 95, V2: 5}


def test_without_steps_who_stands_in_takes_over_for_good() -> None:
    fake = rolling()
    fake.unready.add(V1)
    settle(fake)
    fake.apply(mlmodel(spec={**SECOND, "rollout": {**SECOND["rollout"], "strategy": "recreate"}}))
    settle(fake, seconds=10)
    assert fake.one("MLModel", "adult")["status"]["stable"]["version"] == V2
    assert status(fake, "Ready")[0] == "True"


def test_neither_version_with_a_pod_moves_nothing() -> None:
    fake = rolling()
    fake.unready.update((V1, V2))
    assert {entry.split()[0] for entry in settle(fake, seconds=3600)} == {"status"}
    assert fake.weights() == {V1: 95, V2: 5}
    assert status(fake, "RolloutPassed")[:2] == ("Unknown", "NoReadyPods")


@pytest.mark.parametrize("change", [{"suspend": True}, {"rollout": {**SPEC["rollout"], "steps": [50, 5]}}])
def test_suspended_or_refused_the_stable_version_is_protected_too(change: Object) -> None:
    fake = rolling()
    fake.apply(mlmodel(spec={**SECOND, **change}))
    fake.unready.add(V1)
    settle(fake)
    assert fake.weights() == {V2: 100}
    fake.unready.clear()
    settle(fake)
    assert fake.weights() == {V1: 95, V2: 5}


def test_another_version_asked_for_meanwhile_takes_the_traffic_from_nobody_who_answers() -> None:
    fake = rolling()
    fake.unready.add(V1)
    settle(fake)
    fake.apply(mlmodel(spec=THIRD))
    settle(fake)
    assert fake.weights() == {V2: 100}, "stable has no pod to take it"
    [decision, *_] = fake.one("MLModel", "adult")["status"]["history"]
    assert (decision["version"], decision["decision"]) == (V2, "Superseded")
    settle(fake, seconds=600)
    assert fake.weights() == {V3: 100}, "once the third has pods it stands in"
    fake.unready.clear()
    settle(fake)
    assert fake.weights() == {V1: 95, V3: 5}, "and begins at its first step"
    settle(fake, seconds=60)
    assert fake.weights() == {V3: 100}


def test_pods_that_stood_in_stay_until_proxies_know_that_they_no_longer_do() -> None:
    fake = rolling()
    fake.unready.add(V1)
    settle(fake)
    fake.apply(mlmodel(spec={**SECOND, "gates": [{"metric": "roc_auc", "min": 0.99}]}))
    settle(fake, seconds=600)
    assert fake.weights() == {V2: 100}, "nothing else can answer"
    fake.unready.clear()
    settle(fake)
    assert fake.weights() == {V1: 100}
    assert V2 in fake.names("InferenceService"), "keepWarm counted from the decision is long over"
    settle(fake, seconds=9)
    assert V2 in fake.names("InferenceService")
    settle(fake, seconds=2)
    assert V2 not in fake.names("InferenceService")


def bounds(fake: Fake, version: str) -> tuple[int, int]:
    predictor = fake.one("InferenceService", version)["spec"]["predictor"]
    return predictor["minReplicas"], predictor["maxReplicas"]


AUTOSCALED = {"serving": {"replicas": {"min": 1, "max": 2}}}


def autoscaled(fake: Fake, version: str, pods: int) -> None:
    """An autoscaler, or a person, has made that many pods of a version."""
    [pod] = [p for p in (fake.one("Pod", name) for name in fake.names("Pod")) if name_of(p) == f"{version}-predictor-0"]
    for i in range(pods, pods + 5):
        fake.remove("Pod", f"{version}-predictor+{i}")
    for i in range(1, pods):
        fake.put({**pod, "metadata": {**pod["metadata"], "name": f"{version}-predictor+{i}", "uid": f"u{version}{i}"}})


def test_a_step_waits_for_its_share_of_the_capacity() -> None:
    """The stable version has grown to 8 pods; the candidate would have taken half of their traffic with one."""
    fake = play([(0, applied({**SPEC, **AUTOSCALED})), (400, applied({**SECOND, **AUTOSCALED})), (500, nothing)])
    autoscaled(fake, V1, 8)
    settle(fake, seconds=37)
    assert fake.weights() == {V1: 95, V2: 5}
    assert bounds(fake, V2) == (2, 2), "a quarter of 8 comes next"
    settle(fake, seconds=10)
    assert fake.weights() == {V1: 95, V2: 5}, "its second pod takes 15 s"
    assert status(fake, "RolloutPassed")[1:] == (
        "WaitingForPods",
        f"waiting for the pods of {V2} (v2) (1 of 2 pods ready)",
    )
    settle(fake, seconds=60)
    assert fake.weights() == {V2: 100}
    assert bounds(fake, V2) == (1, 2), "the spec's own bounds afterwards"


def test_a_candidate_that_was_given_up_for_want_of_room_gives_its_room_back() -> None:
    fake = play([(0, applied({**SPEC, **AUTOSCALED})), (400, applied({**SECOND, **AUTOSCALED})), (500, nothing)])
    autoscaled(fake, V1, 8)
    fake.unready.update(f"{V2}-predictor-{i}" for i in range(1, 8))
    settle(fake, seconds=370)
    [decision, *_] = fake.one("MLModel", "adult")["status"]["history"]
    assert (decision["decision"], decision["reason"]) == ("RolledBack", "NotReadyInTime")
    assert "(1 of 2 pods ready)" in decision["message"]
    assert bounds(fake, V2) == (1, 2)


def test_a_clock_that_jumped_holds_no_rollout() -> None:
    fake = rolling()
    route = fake.one("VirtualService", "adult")
    record = {**json.loads(virtualservice.record(route)), "stepStartedAt": stamp(fake.now + timedelta(hours=5))}
    annotations = {**annotations_of(route), virtualservice.ROLLOUT: json.dumps(record)}
    fake.put({**route, "metadata": {**route["metadata"], "annotations": annotations}})
    assert settle(fake)[0] == "apply VirtualService/adult", "the step begins anew"
    settle(fake, seconds=60)
    assert fake.weights() == {V2: 100}


@pytest.mark.parametrize(("hours", "known"), [(-1, True), (0, True), (5, False)])
def test_a_pod_of_a_node_whose_clock_is_hours_ahead_tells_no_time(hours: int, known: bool) -> None:  # noqa: FBT001  a table's column
    since = START + timedelta(hours=hours)
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": stamp(since)}
    pods = {V2: ({"metadata": {"name": "p"}, "status": {"conditions": [unready]}},)}
    snapshot = ModelSnapshot(model=mlmodel(), pods=pods)
    facts = gather(snapshot, Settings(), api.decode(api.MLModelSpec, SPEC), START)
    assert facts.unready_since(V2) == (since if known else None)


def test_a_clock_that_jumped_keeps_no_pods() -> None:
    fake = play([(0, applied()), (400, applied(SECOND)), (620, nothing)])
    model = fake.one("MLModel", "adult")
    history = [{**d, "time": stamp(fake.now + timedelta(hours=5))} for d in model["status"]["history"]]
    route = fake.one("VirtualService", "adult")
    record = {**json.loads(virtualservice.record(route)), "finishedAt": history[0]["time"]}
    annotations = {**annotations_of(route), virtualservice.ROLLOUT: json.dumps(record)}
    fake.put({**route, "metadata": {**route["metadata"], "annotations": annotations}})
    fake.put({**model, "status": {**model["status"], "history": history}})
    settle(fake, seconds=60)
    assert fake.names("InferenceService") == [V2]


def test_pods_stay_until_proxies_know_even_if_they_need_not_be_kept_warm() -> None:
    cold = {"rollout": {**SPEC["rollout"], "keepWarm": "0s"}}
    fake = play([(0, applied({**SPEC, **cold})), (400, applied({**SECOND, **cold})), (565, nothing)])
    assert fake.weights() == {V2: 100}
    assert V1 in fake.names("InferenceService")
    settle(fake, seconds=10)
    assert fake.names("InferenceService") == [V2]


def test_a_version_that_was_rolled_back_is_not_tried_again_until_asked_for_anew() -> None:
    fake = rolling()
    fake.unready.add(V2)
    settle(fake, seconds=400)
    assert fake.weights() == {V1: 100}
    assert status(fake, "RolloutPassed")[:2] == ("False", "RolledBack")
    fake.unready.clear()
    settle(fake, seconds=600)
    assert fake.weights() == {V1: 100}, "ready or not, it had its chance"
    assert V2 not in fake.names("InferenceService"), "and its pods are gone after keepWarm"

    fake.apply(mlmodel(spec=SPEC))
    settle(fake, seconds=10)
    fake.apply(mlmodel(spec=SECOND))
    settle(fake, seconds=90)
    assert fake.weights() == {V2: 100}, "going back to it is asking for it anew"


def test_the_retrain_annotation_makes_a_new_version_of_the_same_spec() -> None:
    fake = serving()
    fake.apply(mlmodel(spec=SPEC, **{"mlplatform.dev/retrain": "monday"}))
    settle(fake, seconds=300)
    [retrained] = set(fake.names("ModelVersion")) - {V1}
    assert fake.weights() == {retrained: 100}
    assert fake.one("ModelVersion", retrained)["spec"]["trigger"] == "monday"


def test_suspended_in_the_middle_of_a_rollout_the_weights_stay() -> None:
    fake = rolling()
    fake.apply(mlmodel(spec={**SECOND, "suspend": True}))
    settle(fake, seconds=300)
    assert fake.weights() == {V1: 95, V2: 5}
    assert status(fake, "Ready")[:2] == ("Unknown", "Suspended")
    fake.apply(mlmodel(spec=SECOND))
    settle(fake, seconds=40)
    assert fake.weights() == {V2: 100}


def test_suspended_the_candidate_without_a_ready_pod_loses_its_traffic() -> None:
    fake = rolling()
    fake.apply(mlmodel(spec={**SECOND, "suspend": True}))
    fake.unready.add(V2)
    settle(fake)
    assert fake.weights() == {V1: 100}, "half of the requests would fail for as long as it is suspended"
    fake.unready.clear()
    settle(fake, seconds=60)
    assert fake.weights() == {V1: 100}, "and nothing is tried again meanwhile"


def test_suspended_what_serves_is_put_back_and_nothing_else_happens() -> None:
    suspended = mlmodel(spec={**SECOND, "suspend": True, "serving": {"replicas": {"min": 2, "max": 2}}})
    fake = serving()
    fake.apply(suspended)
    assert settle(fake) == ["status MLModel/adult"]
    fake.remove("Service", "adult")
    fake.remove("VirtualService", "adult")
    written = settle(fake)
    fake.remove("InferenceService", V1)
    written += settle(fake, seconds=30)
    assert {entry for entry in written if not entry.startswith("status")} == {
        f"apply InferenceService/{V1}", "apply VirtualService/adult", "apply Service/adult",
    }  # fmt: skip
    assert fake.names("ModelVersion") == [V1], "no version is made"


def test_a_refused_spec_still_protects_the_traffic() -> None:
    fake = rolling()
    fake.apply(mlmodel(spec={**SECOND, "rollout": {**SECOND["rollout"], "steps": [50, 5]}}))
    fake.unready.add(V2)
    settle(fake)
    assert status(fake, "Accepted")[0] == "False"
    assert fake.weights() == {V1: 100}


def test_a_version_that_cannot_be_created_does_not_hold_up_what_serves() -> None:
    class Full(Fake):
        """A quota has no room for another version."""

        def do(self, write: Write) -> Object | None:
            if isinstance(write, Create) and write.manifest["kind"] == "ModelVersion" and self.names("ModelVersion"):
                raise Rejected("exceeded quota")
            return super().do(write)

    fake = play([(0, applied()), (300, nothing)], Full())
    fake.apply(mlmodel(spec=SECOND))
    edited(fake, "VirtualService", "adult", http=[])
    with pytest.raises(Rejected):
        settle(fake)
    assert fake.weights() == {V1: 100}, "the route was repaired first"
    assert status(fake, "Ready")[:2] == ("False", "Rejected")


MISSPELT = {**SECOND, "gates": [{"metric": "roc_acu", "min": 0.9}]}


def test_an_outcome_that_the_status_cannot_take_does_not_hold_up_what_serves() -> None:
    class Full(Fake):
        """A quota has room for two versions."""

        def do(self, write: Write) -> Object | None:
            kind = write.manifest["kind"] if isinstance(write, Create) else ""
            if kind == "ModelVersion" and len(self.names("ModelVersion")) > 1:
                raise Rejected("exceeded quota")
            return super().do(write)

    fake = play([(0, applied()), (400, applied(SECOND)), (ROLLING_AT, nothing)], Full())
    fake.apply(mlmodel(spec=THIRD))
    for _ in range(2):
        with pytest.raises(Rejected):
            settle(fake)
    assert fake.weights() == {V1: 100}, "the candidate made way"
    fake.remove("Service", "adult")
    edited(fake, "VirtualService", "adult", http=[])
    with pytest.raises(Rejected):
        settle(fake)
    assert fake.weights() == {V1: 100}
    assert "adult" in fake.names("Service")
    assert [d["decision"] for d in fake.one("MLModel", "adult")["status"]["history"]] == ["Superseded", "Promoted"]
    fake.unready.add(V1)
    with pytest.raises(Rejected):
        settle(fake)
    assert status(fake, "Serving")[0] == "False", "what is seen is told, whatever becomes of the writes"


def test_a_refused_spec_says_what_is_seen_and_forgets_nothing() -> None:
    fake = rolling()
    fake.unready.add(V2)
    settle(fake, seconds=400)
    fake.unready.clear()
    fake.apply(mlmodel(spec=MISSPELT))
    assert [entry for entry in settle(fake) if not entry.startswith("status")] == [], "nothing that runs is changed"
    fake.remove("InferenceService", V1)
    fake.remove("Pod", f"{V1}-predictor-0")
    settle(fake)
    assert status(fake, "Serving")[0] == "False"
    settle(fake, seconds=30)
    assert status(fake, "Serving")[0] == "True", "it was put back"
    fake.apply(mlmodel(spec=SECOND))
    settle(fake, seconds=60)
    assert fake.weights() == {V1: 100}, "the version that was rolled back still counts as tried"


def test_a_refused_spec_does_not_stop_a_training() -> None:
    fake = play([(0, applied()), (300, nothing), (300, applied(SECOND)), (320, nothing)])
    [job] = [name for name in fake.names("PyTorchJob") if name.startswith(V2)]
    fake.apply(mlmodel(spec=MISSPELT))
    settle(fake, seconds=5)
    assert fake.one("PyTorchJob", job)["spec"]["runPolicy"]["suspend"] is False


def test_suspended_with_the_apex_on_the_candidate_the_route_stays_whole() -> None:
    fake = rolling()
    fake.apply(mlmodel(spec={**SECOND, "suspend": True}))
    edited(fake, "Service", "adult", selector={"app": f"isvc.{V2}-predictor"})
    settle(fake)
    assert sum(fake.weights().values()) == 100


def test_a_candidate_that_keeps_losing_its_pods_is_given_up() -> None:
    fake = rolling()
    for _ in range(3):
        fake.unready.add(V2)
        settle(fake)
        assert fake.weights() == {V1: 100}
        fake.unready.clear()
        settle(fake, seconds=5)
    assert status(fake, "RolloutPassed")[1] == "RolledBack"
    assert "lost all its ready pods under traffic 3 times" in status(fake, "RolloutPassed")[2]


def test_a_retrain_key_too_long_for_the_version_is_refused() -> None:
    fake = serving()
    fake.apply(mlmodel(spec=SPEC, **{"mlplatform.dev/retrain": "x" * 257}))
    settle(fake)
    assert "has 257 characters, at most 256" in status(fake, "Accepted")[2]
    assert fake.names("ModelVersion") == [V1]


def test_a_second_failure_says_that_the_first_version_goes_on_serving() -> None:
    failure = Failure(FailureClass.DATA_INVALID, "no column income", "Name the label.")
    fake = Fake(report=failing(Stage.TRAIN, failure, V2))
    play([(0, applied()), (300, applied(SECOND)), (500, nothing)], fake)
    assert status(fake, "VersionReady")[:2] == ("False", "TrainFailed")
    assert status(fake, "Serving")[0] == "True"
    _, reason, message = status(fake, "Ready")
    assert reason == "TrainFailed"
    assert "no column income" in message
    assert message.endswith(f"{V1} (v1) goes on serving.")
    assert fake.one("MLModel", "adult")["status"]["failure"]["class"] == "DataInvalid"


@pytest.mark.parametrize(("kind", "add_on"), [("InferenceService", "KServe"), ("VirtualService", "Istio")])
def test_a_missing_add_on_is_named_and_waited_for(kind: str, add_on: str) -> None:
    fake = Fake()
    fake.served.remove(kind)
    play([(0, applied()), (300, nothing)], fake)
    assert status(fake, "RolloutPassed")[:2] == ("False", "AddOnMissing")
    assert add_on in status(fake, "RolloutPassed")[2]
    fake.served.add(kind)
    settle(fake, seconds=60)
    assert fake.weights() == {V1: 100}


HOST_TOO_LONG = 'failed creating host name: invalid domain name "x": must be no more than 63 characters'


def test_kserve_says_itself_why_a_first_version_has_no_pods() -> None:
    fake = play([(0, applied()), (300, nothing)], Fake(podless={V1: HOST_TOO_LONG}))
    assert status(fake, "RolloutPassed")[1:] == (
        "WaitingForPods",
        f"waiting for the pods of {V1} (v1) (0 of 1 pods ready): {HOST_TOO_LONG}",
    )
    fake.podless.clear()
    settle(fake, seconds=30)
    assert fake.weights() == {V1: 100}, "it goes on once KServe does"


def test_kserve_says_itself_why_what_serves_has_lost_its_pods() -> None:
    fake = serving()
    fake.podless[V1] = "the ServingRuntime mlplatform-torchserve is gone"
    settle(fake)
    assert status(fake, "Serving")[1:] == ("NoReadyPods", f"{V1} (v1) has no ready pod: {fake.podless[V1]}")


def says(kind: str, state: str = "False", message: str = "") -> Object:
    return {"type": kind, "status": state, "message": message or f"{kind} is {state}"}


WAITING: Object = {"metadata": {"name": "p"}, "status": {"phase": "Pending"}}
UNSCHEDULABLE: Object = {
    "metadata": {"name": "p"},
    "status": {"conditions": [{**says("PodScheduled", message="0/1 nodes"), "reason": "Unschedulable"}]},
}
FAILED: Object = {"modelStatus": {"lastFailureInfo": {"message": "no such archive"}}}

TROUBLE: list[tuple[str, Object, tuple[Object, ...], str]] = [
    ("nothing is known yet", {}, (), ""),
    ("KServe has not begun", {"conditions": [says("PredictorReady", "Unknown")]}, (), ""),
    ("all is well", {"conditions": [says("PredictorReady", "True"), says("Ready", "True")]}, (), ""),
    (
        "the predictor's own words before the sum of all",
        {"conditions": [says("Ready"), says("PredictorReady")]},
        (),
        "PredictorReady is False",
    ),
    (
        "the sum of all where the predictor is not to blame",
        {"conditions": [says("PredictorReady", "Unknown"), says("Ready")]},
        (),
        "Ready is False",
    ),
    (
        "or has nothing to say",
        {"conditions": [{"type": "PredictorReady", "status": "False"}, says("Ready")]},
        (),
        "Ready is False",
    ),
    ("neither has", {"conditions": [{"type": "Ready", "status": "False", "reason": "Stopped"}]}, (), ""),
    (
        "pods that only wait: KServe would say no more than that they do",
        {"conditions": [says("PredictorReady")]},
        (WAITING,),
        "",
    ),
    (
        "pods speak for themselves",
        {"conditions": [says("PredictorReady")]},
        (UNSCHEDULABLE,),
        "p: no node has room: 0/1 nodes. Free or add capacity, lower the resources asked for, or correct what scheduling asks of a node.",
    ),
    (
        "a failure that KServe has looked into comes before a condition",
        {**FAILED, "conditions": [says("PredictorReady")]},
        (),
        "no such archive",
    ),
]


@pytest.mark.parametrize(("reason", "said", "pods", "trouble"), TROUBLE, ids=[row[0] for row in TROUBLE])
def test_what_keeps_pods_from_being_ready(reason: str, said: Object, pods: tuple[Object, ...], trouble: str) -> None:
    spec = api.decode(api.MLModelSpec, SPEC)
    snapshot = ModelSnapshot(model=mlmodel(), services={V1: {"status": said}}, pods={V1: pods} if pods else {})
    assert gather(snapshot, Settings(), spec, START).trouble(V1) == trouble, reason


# Ready is about now.


def beside(fake: Fake, version: str, pod_status: Object, **metadata: Any) -> None:
    """One more pod of a version, in some trouble or other, beside one that answers."""
    model = fake.one("Pod", f"{version}-predictor-0")
    meta = {**model["metadata"], "name": f"{version}-new", "uid": "new", **metadata}
    fake.put({**model, "metadata": meta, "status": pod_status})


def ended(container: str, said: str = "", **state: Any) -> Object:
    """Of a container that ended and is about to be started again."""
    terminated = {"exitCode": 1, "reason": "Error", "message": said, **state}
    return {
        "name": container,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": terminated},
    }


OOM: Object = {"containerStatuses": [ended("kserve-container", reason="OOMKilled", exitCode=137)]}
NO_ARCHIVE: Object = {
    "initContainerStatuses": [
        ended(
            "storage-initializer",
            "Traceback (most recent call last):\n  ...\nRuntimeError: Failed to fetch model. No model found in s3://m/v1.\n",
        )
    ]
}
NO_ROOM: Object = {
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
}
STARTING: Object = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}
EVICTED: Object = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}

NOW_READY: list[tuple[str, Object, Object, tuple[str, str], str]] = [
    ("a container that runs out of memory", OOM, {}, ("False", "OOMKilled"), "Raise spec.serving.resources.memory"),
    ("an archive that is gone", NO_ARCHIVE, {}, ("False", "Crashed"), "No model found in s3://m/v1. kubectl mlmodel"),
    ("no room for one more", NO_ROOM, {}, ("Unknown", "Unschedulable"), "no node has room: 0/3 nodes"),
    ("one more that starts is no trouble", STARTING, {}, ("True", "Serving"), ""),
    ("nor is one on its way out", OOM, {"deletionTimestamp": "2026-01-01T00:05:00Z"}, ("True", "Serving"), ""),
    ("nor one whose place another has taken", EVICTED, {}, ("True", "Serving"), ""),
]


@pytest.mark.parametrize(
    ("reason", "pod_status", "metadata", "ready", "told"), NOW_READY, ids=[row[0] for row in NOW_READY]
)
def test_ready_is_about_now(
    reason: str, pod_status: Object, metadata: Object, ready: tuple[str, str], told: str
) -> None:
    fake = serving()
    beside(fake, V1, pod_status, **metadata)
    settle(fake)
    assert status(fake, "Serving")[0] == "True", reason
    assert status(fake, "RolloutPassed")[0] == "True", reason
    assert status(fake, "Ready")[:2] == ready, reason
    assert told in status(fake, "Ready")[2], reason
    found = fake.one("MLModel", "adult")["status"]
    if ready[0] == "True":
        assert "failure" not in found, reason
        return
    assert found["stage"] == "Degraded", reason
    assert (found["failure"]["class"], found["failure"]["pod"]) == (ready[1], f"{V1}-new"), reason
    fake.remove("Pod", f"{V1}-new")
    settle(fake)
    assert status(fake, "Ready")[0] == "True", f"{reason}: and once it has gone, all is well"


@pytest.mark.parametrize(
    ("reason", "pod_status", "told"),
    [
        ("out of memory", OOM, "used more memory than its limit"),
        ("no archive", NO_ARCHIVE, "No model found in s3://m/v1"),
        ("no room", NO_ROOM, "no node has room: 0/3 nodes"),
    ],
)
def test_a_rollback_keeps_the_cause(reason: str, pod_status: Object, told: str) -> None:
    class Troubled(Fake):
        """The second version's pods are in that trouble."""

        def act(self) -> Any:
            due = super().act()
            live = self.get(Ref("v1", "Pod", NAMESPACE, f"{V2}-predictor-0"))
            if live and live["status"] != pod_status:
                self.put({**live, "status": pod_status})
            return due

    fake = Troubled(unready={V2})
    play([(0, applied()), (400, applied(SECOND)), (900, nothing)], fake)
    settle(fake, seconds=300)
    [decision, *_] = fake.one("MLModel", "adult")["status"]["history"]
    assert (decision["decision"], decision["reason"]) == ("RolledBack", "NotReadyInTime"), reason
    assert told in decision["message"], reason
    assert V2 not in fake.names("InferenceService"), "its pods have gone since"
    assert told in status(fake, "Ready")[2], reason
    assert told in fake.one("MLModel", "adult")["status"]["failure"]["message"], (
        "and nothing points to a log that is gone"
    )


# The way back that somebody asks for.


def asked_back(fake: Fake, text: str) -> list[str]:
    """What `kubectl mlmodel rollback` does; returns what was written then."""
    model = fake.one("MLModel", "adult")
    asked = {**annotations_of(model), ANNOTATION_ROLLBACK: text}
    fake.put({**model, "metadata": {**model["metadata"], "annotations": asked}})
    return settle(fake)


def told(fake: Fake) -> str:
    """Why the operator did not go back."""
    [message] = [event.message for _, event in fake.events if event.reason == "RollbackRefused"]
    return message


def replaced() -> Fake:
    """The second version serves, and the first one's pods have gone."""
    fake = play([(0, applied()), (400, applied(SECOND)), (800, nothing)])
    assert fake.names("InferenceService") == [V2]
    return fake


def test_going_back_starts_the_pods_first_and_then_moves_everything() -> None:
    fake = replaced()
    written = asked_back(fake, f"{V2}->{V1}")
    routed = "apply VirtualService/adult"  # The header may ask for it.
    assert [entry for entry in written if not entry.startswith("status")] == [f"apply InferenceService/{V1}", routed]
    assert fake.weights() == {V2: 100}, "what serves goes on serving"
    waiting = f"going back to {V1} (v1): waiting for the pods of {V1} (v1) (0 of 1 pods ready)"
    assert status(fake, "RolloutPassed") == ("Unknown", "RollingBack", waiting)
    assert status(fake, "Ready")[:2] == ("Unknown", "RollingBack")
    assert fake.one("MLModel", "adult")["status"]["stage"] == "RollingBack"
    written = [entry for entry in settle(fake, seconds=15) if not entry.startswith("status")]
    assert written == ["apply VirtualService/adult", "apply Service/adult", "patch MLModel/adult"]
    assert fake.weights() == {V1: 100}
    assert fake.one("Service", "adult")["spec"]["selector"] == {"app": f"isvc.{V1}-predictor"}
    assert annotations_of(fake.one("MLModel", "adult")) == {}, "it was carried out, once"
    [decision, *_] = fake.one("MLModel", "adult")["status"]["history"]
    said = f"{V2} (v2) was rolled back to {V1} (v1), as somebody had asked for"
    assert (decision["reason"], decision["message"], decision["previous"]) == ("RolledBackByUser", said, V1)
    assert (
        status(fake, "RolloutPassed")[2]
        == f"{said}. It is not tried again until another version is asked for, or a retrain"
    )
    settle(fake, seconds=600)
    assert fake.names("InferenceService") == [V1]


def test_what_somebody_went_back_from_is_not_tried_again_for_more_memory() -> None:
    fake = replaced()
    asked_back(fake, f"{V2}->{V1}")
    settle(fake, seconds=60)
    fake.apply(mlmodel(spec={**SECOND, "serving": {"resources": {"memory": "4Gi"}}}))
    settle(fake, seconds=600)
    assert fake.weights() == {V1: 100}


def test_going_back_waits_for_as_many_pods_as_serve_now() -> None:
    fake = replaced()
    autoscaled(fake, V2, 3)
    asked_back(fake, f"{V2}->{V1}")
    assert bounds(fake, V1) == (3, 3)
    fake.unready.add(f"{V1}-predictor-2")
    settle(fake, seconds=60)
    assert fake.weights() == {V2: 100}
    assert "(2 of 3 pods ready)" in status(fake, "RolloutPassed")[2]
    fake.unready.add(V2)
    settle(fake)
    assert fake.weights() == {V1: 100}, "where nobody answers, any pod is enough"


def test_a_request_that_is_taken_off_while_pods_are_waited_for_is_forgotten() -> None:
    fake = replaced()
    asked_back(fake, f"{V2}->{V1}")
    fake.apply(mlmodel(spec=SECOND))
    settle(fake, seconds=100)
    assert fake.weights() == {V2: 100}
    assert fake.names("InferenceService") == [V2]
    assert status(fake, "Ready")[0] == "True"


def test_going_back_before_the_new_version_is_built_keeps_it_from_being_rolled_out() -> None:
    fake = play([(0, applied()), (400, applied(SECOND)), (420, nothing)])
    asked_back(fake, f"{V2}->{V1}")
    settle(fake, seconds=600)
    assert fake.weights() == {V1: 100}
    assert status(fake, "RolloutPassed")[:2] == ("False", "RolledBack")


def test_suspended_nobody_goes_back() -> None:
    fake = rolling()
    fake.apply(mlmodel(spec={**SECOND, "suspend": True}))
    asked_back(fake, f"{V2}->{V1}")
    assert fake.weights() == {V1: 95, V2: 5}
    model = fake.one("MLModel", "adult")
    fake.put({**model, "spec": {**model["spec"], "suspend": False}})
    settle(fake)
    assert fake.weights() == {V1: 100}, "once it goes on"


def third() -> Fake:
    """The third version takes 5%."""
    fake = play([(0, applied()), (400, applied(SECOND)), (800, applied(THIRD)), (400 + ROLLING_AT, nothing)])
    assert fake.weights() == {V2: 95, V3: 5}
    return fake


WAYS_BACK: list[tuple[str, Callable[[], Fake], str, str]] = [
    ("no request", replaced, "yesterday", "'yesterday' is not <from>-><to>, two versions"),
    ("it came too late", replaced, f"{V1}->{V2}", f"go back from {V1}, but {V2} (v2) is the version that is wanted"),
    ("no such version", replaced, f"{V2}->adult-0", f"serve instead of {V2} (v2); there is {V1}"),
    ("the same version", replaced, f"{V2}->{V2}", f"serve instead of {V2} (v2); there is {V1}"),
    ("nothing to go back to", serving, f"{V1}->adult-0", "there is no other"),
    ("past the stable version of a rollout", third, f"{V3}->{V1}", f"leads to {V2} (v2) alone"),
]


@pytest.mark.parametrize(("reason", "world", "text", "why"), WAYS_BACK, ids=[row[0] for row in WAYS_BACK])
def test_a_way_back_that_cannot_be_gone(reason: str, world: Callable[[], Fake], text: str, why: str) -> None:
    fake = world()
    before = fake.weights()
    assert asked_back(fake, text) == ["patch MLModel/adult"], reason
    assert why in told(fake), reason
    assert fake.weights() == before, reason
    assert settle(fake) == [], reason


# What is kept, and for how long.


def test_pods_of_the_version_before_stay_for_keep_warm() -> None:
    fake = play([(0, applied()), (400, applied(SECOND)), (620, nothing)])
    assert fake.weights() == {V2: 100}
    assert fake.names("InferenceService") == sorted((V1, V2)), "rolling back is a change of weights"
    settle(fake, seconds=60)
    assert fake.names("InferenceService") == [V2]
    assert V1 in fake.names("ModelVersion"), "its record stays"


def test_old_versions_beyond_the_limit_go_oldest_first() -> None:
    def with_gate(bound: float) -> Object:
        return {**SPEC, "revisionHistoryLimit": 1, "gates": [{"metric": "roc_auc", "min": bound}]}

    specs = [with_gate(bound) for bound in (0.80, 0.81, 0.82, 0.83)]
    names = [api.version_name("adult", api.decode(api.MLModelSpec, spec)) for spec in specs]
    fake = play([(400 * i, applied(spec)) for i, spec in enumerate(specs)] + [(1600, nothing)])
    assert fake.names("ModelVersion") == sorted(names[2:]), "the one that serves, and one before it"
    assert [fake.one("ModelVersion", name)["spec"]["sequence"] for name in names[2:]] == [3, 4]


def test_history_is_bounded_and_newest_first() -> None:
    fake = serving()
    old = [
        {"version": f"adult-{i}", "decision": "Promoted", "reason": "x", "message": "y", "time": "2026-01-01T00:00:00Z"}
        for i in range(30)
    ]
    model = fake.one("MLModel", "adult")
    fake.put({**model, "status": {**model["status"], "history": old}})
    settle(fake)
    history = fake.one("MLModel", "adult")["status"]["history"]
    assert len(history) == 20
    assert history[0]["version"] == V1, "the route remembers the outcome that status had lost"


def test_a_change_of_replica_bounds_reaches_kserve_and_restarts_nothing() -> None:
    fake = serving()
    before = annotations_of(fake.one("InferenceService", V1))
    fake.apply(mlmodel(spec={**SPEC, "serving": {"replicas": {"min": 1, "max": 4}}}))
    assert f"patch InferenceService/{V1}" in settle(fake)
    live = fake.one("InferenceService", V1)
    assert live["spec"]["predictor"]["maxReplicas"] == 4
    assert annotations_of(live) == before, "annotations go to the pods, and would restart them"


# What is refused.

REFUSED: list[tuple[str, str, Object, str, str]] = [
    ("an unknown field", "adult", {**SPEC, "modle": 1}, "SpecInvalid", "spec.modle: unknown field"),
    ("a wrong type", "adult", {**SPEC, "training": {"epochs": "5"}}, "SpecInvalid", "expected an integer"),
    ("a missing field", "adult", {"data": {"label": "x"}}, "SpecInvalid", "spec.data.uri: required"),
    ("an empty URI", "adult", {"data": {"uri": "", "label": "y"}}, "SpecInvalid", "spec.data.uri: empty"),
    (
        "a gate on a metric that does not exist",
        "adult",
        {**SPEC, "gates": [{"metric": "roc_acu", "min": 0.5}]},
        "SpecInvalid",
        "spec.gates: a built-in task reports no such metric; it reports roc_auc, ",
    ),
    ("a name too long for its children", "a" * 37, SPEC, "InvalidName", "at most 36"),
    ("a name that no Service can have", "7-adults", SPEC, "InvalidName", "start with a letter"),
    ("a name with dots", "adult.v2", SPEC, "InvalidName", "lower-case letters, digits and hyphens"),
    ("steps that fall", "adult", {**SPEC, "rollout": {"steps": [50, 5]}}, "SpecInvalid", "spec.rollout.steps"),
]


@pytest.mark.parametrize(("reason", "name", "spec", "why", "contains"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(reason: str, name: str, spec: Object, why: str, contains: str) -> None:
    model = mlmodel(name, spec)
    result = plan_model(ModelSnapshot(model=model), Settings(), START)
    conditions = {c["type"]: c for c in result.status["conditions"]}
    assert (conditions["Accepted"]["status"], conditions["Accepted"]["reason"]) == ("False", why), reason
    assert contains in conditions["Accepted"]["message"], reason
    assert conditions["Ready"]["status"] == "False", reason
    assert result.status["stage"] == "Invalid", reason
    assert [*result.writes, *result.cleanup] == [], reason
    assert [event.reason for event in result.events] == [why], reason


LONG = "a.domain." * 20
NAMES: list[tuple[str, str, str, str, str]] = [
    ("the longest name in default", "a" * 36, "default", "models.local", ""),
    ("one more in the namespace", "a" * 36, "defaults", "models.local", "has 36 characters, and in namespace 'defaults' only 35 are left"),
    ("the same room split otherwise", "a" * 23, "n" * 20, "models.local", ""),
    ("a namespace that leaves one", "a", "n" * 42, "models.local", ""),
    ("a namespace that leaves none", "a", "n" * 43, "models.local", "none fits: 0 too many"),
    ("the longest namespace", "a" * 3, "n" * 63, "models.local", "none fits: 20 too many are taken without it"),
    ("the shortest namespace", "a" * 36, "n", "models.local", ""),
    ("a long domain", "a" * 36, "n" * 7, LONG, ""),
    ("a longer one", "a" * 36, "n" * 7, f"{LONG}{LONG[:40]}", "only 24 are left, because the model's address"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "name", "namespace", "domain", "told"), NAMES, ids=[row[0] for row in NAMES])
def test_a_name_leaves_room_for_all_that_is_made_of_it(
    reason: str, name: str, namespace: str, domain: str, told: str
) -> None:
    model = mlmodel(name)
    model["metadata"]["namespace"] = namespace
    result = plan_model(ModelSnapshot(model=model), Settings(domain=domain), START)
    accepted = condition({"status": result.status}, "Accepted")
    [write] = result.writes or [None]
    if not told:
        assert accepted["status"] == "True", reason
        assert isinstance(write, Create), reason
        return
    assert write is None, "nothing is trained"
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidName"), reason
    for part in (f"metadata.name: {name!r}", f"namespace {namespace!r}", told, "shorter by"):
        assert part in accepted["message"], reason


@pytest.mark.parametrize("namespace", ["n" * length for length in (1, 7, 8, 20, 42)])
def test_the_longest_name_fits_everything_that_is_rendered(namespace: str) -> None:
    """Names of objects, values of labels, parts of host names: as they are made, not as they were thought to be."""
    longest = min(names.room(namespace, "models.local").characters, MODEL_NAME_LIMIT)
    model = {**mlmodel("m" * longest), "metadata": {"name": "m" * longest, "namespace": namespace, "uid": "u"}}
    spec = api.decode(api.MLModelSpec, {**SPEC, "training": {"workers": 100}})
    version = modelversion.render(model, spec, api.version_name("m" * longest, spec), 1, "")
    version["metadata"]["uid"] = "v"
    decoded, name, settings = api.decode(api.ModelVersionSpec, version["spec"]), name_of(version), Settings()
    served = inferenceservice.render(model, spec, name, "s3://x", settings)
    route = virtualservice.render(model, {name: 100}, [name], "", settings)
    made = [version, served, route, service.render(model, name), servingruntime.render(model, settings)]
    made += [stage.render(version, decoded, settings, api.Scheduling()) for stage in PIPELINE]
    for obj in made:
        assert len(name_of(obj)) <= 63, obj["kind"]
        assert all(len(value) <= 63 for value in labels_of(obj).values()), obj["kind"]
    derived = [f"{name}-train-worker-98", f"{name}-predictor-{namespace}", inferenceservice.pod_label(name)]
    hosts = [inferenceservice.service(name), *route["spec"]["hosts"]]
    assert [text for text in derived if len(text) > 63] == []
    assert [host for host in hosts if len(host) > 253 or any(len(part) > 63 for part in host.split("."))] == []


def test_names_under_which_a_version_has_served_do_fit() -> None:
    """KServe's domainTemplate may be the cluster's own, and must not be guessed at against what is seen."""
    fake = serving()
    model = fake.one("MLModel", "adult")
    model = {**model, "metadata": {**model["metadata"], "namespace": "n" * 63}}
    children = {"services": {V1: fake.one("InferenceService", V1)}, "versions": {V1: fake.one("ModelVersion", V1)}}
    served = ModelSnapshot(model=model, apex=fake.one("Service", "adult"), **children)
    for snapshot, accepted in ((served, "True"), (ModelSnapshot(model=model), "False")):
        found = plan_model(snapshot, Settings(), START)
        assert condition({"status": found.status}, "Accepted")["status"] == accepted


def test_several_mistakes_are_all_in_the_message() -> None:
    model = mlmodel(spec={**SPEC, "rollout": {"steps": [50, 5]}, "gates": [{"metric": "novel"}]})
    result = plan_model(ModelSnapshot(model=model), Settings(), START)
    message = result.status["conditions"][0]["message"]
    for part in ("spec.rollout.steps", "spec.gates[0]: give min or max", "spec.gates: a built-in task reports no such"):
        assert part in message


# Order: what a crash may leave undone.


def test_a_promotion_writes_the_route_before_the_apex_and_history_after_both() -> None:
    fake = rolling()
    written = settle(fake, seconds=60)
    promoted = written.index("apply Service/adult")
    assert written[promoted - 1] == "apply VirtualService/adult"
    record = json.loads(virtualservice.record(fake.one("VirtualService", "adult")))
    assert record["outcome"] == "Promoted"
    assert fake.one("MLModel", "adult")["status"]["history"][0]["time"] == record["finishedAt"]


def test_a_pass_is_a_function_of_what_is_seen() -> None:
    fake = rolling()
    snapshot = ModelSnapshot(
        model=fake.one("MLModel", "adult"),
        versions={name: fake.one("ModelVersion", name) for name in fake.names("ModelVersion")},
        services={name: fake.one("InferenceService", name) for name in fake.names("InferenceService")},
        pods={v: (fake.one("Pod", f"{v}-predictor-0"),) for v in (V1, V2)},
        apex=fake.one("Service", "adult"),
        route=fake.one("VirtualService", "adult"),
    )
    later = fake.now + timedelta(seconds=30)
    first, second = (plan_model(snapshot, Settings(), later) for _ in range(2))
    assert first == second
    assert [w.manifest["kind"] for w in first.traffic if isinstance(w, Apply)] == ["VirtualService"]
    assert first.writes == []
    assert not [w for w in first.cleanup if isinstance(w, Delete) and w.ref.name == V1], "never the stable version's"
    assert name_of(snapshot.model) == "adult"
