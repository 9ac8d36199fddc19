"""Observe → plan → apply: lag of the watch, errors, and the loop around a pass."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
from datetime import timedelta
from typing import Any, cast

import prometheus_client
import pytest
import urllib3
from unit.operator_world import NAMESPACE, SPEC, START, Fake, Operator, mlmodel, play, run

from mlplatform import reconciler
from mlplatform.actions import Delete, Event, Ref, Write
from mlplatform.cluster import KIND_MISSED_AGAIN, KIND_SEEN_AGAIN, Cluster, ClusterError, Conflict, Forbidden, Rejected
from mlplatform.contract import ANNOTATION_RETRAIN as RETRAIN
from mlplatform.plan.plan import Plan
from mlplatform.reconciler import Recent, Reconciler, World
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, condition, name_of


def obj(name: str = "x", revision: int = 1, **fields: Any) -> Object:
    return {"kind": "Job", "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": str(revision)}, **fields}


def nothing(_fake: Fake) -> None:
    """Time passes."""


class TestRecent:
    def test_what_was_written_counts_until_the_watch_has_caught_up(self) -> None:
        recent = Recent()
        recent.remember(obj(revision=5, spec="new"))
        assert recent.view("Job", [obj(revision=4, spec="old")])["x"]["spec"] == "new"
        assert recent.view("Job", [])["x"]["spec"] == "new", "it was created; the watch has not said so yet"
        assert recent.view("Job", [obj(revision=6, spec="newest")])["x"]["spec"] == "newest"
        assert recent.view("Job", []) == {}, "from then on the watch counts: it is gone"

    def test_it_is_by_kind_and_name(self) -> None:
        recent = Recent()
        recent.remember(obj(revision=5))
        assert recent.view("Pod", []) == {}
        assert set(recent.view("Job", [obj("y")])) == {"x", "y"}

    def test_what_the_watch_does_not_show_for_long_is_overdue(self, monkeypatch: pytest.MonkeyPatch) -> None:
        recent = Recent()
        recent.remember(obj(revision=5))
        assert recent.overdue == []
        later = reconciler.time.monotonic() + reconciler.LAG + 1
        monkeypatch.setattr(reconciler.time, "monotonic", lambda: later)
        assert recent.overdue == [obj(revision=5)]
        assert set(recent.view("Job", [])) == {"x"}, "it counts until somebody has looked"
        recent.forget(obj())
        assert recent.view("Job", []) == {}

    def test_it_says_when_a_write_that_is_not_confirmed_is_to_be_looked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recent = Recent()
        assert recent.lag is None
        now = reconciler.time.monotonic()
        monkeypatch.setattr(reconciler.time, "monotonic", lambda: now)
        recent.remember(obj(revision=5))
        assert recent.lag == reconciler.LAG
        recent.view("Job", [obj(revision=5)])
        assert recent.lag is None, "the watch has shown it"

    def test_answers_that_are_no_objects_are_not_remembered(self) -> None:
        recent = Recent()
        recent.remember(None)
        recent.remember({"kind": "Status"})
        assert recent.view("Status", []) == {}


class Refusing(Fake):
    """An API server that answers some writes with an error."""

    error: ClusterError | None = None
    on: str = ""

    def do(self, write: Write) -> Object | None:
        if self.error and self.on in repr(write):
            raise self.error
        return super().do(write)


def passing(fake: Fake) -> Reconciler:
    world = World(cast("Cluster", fake), fake, Settings(), lambda: fake.now)
    return Reconciler(world, "MLModel", NAMESPACE, "adult", "adult")


@pytest.mark.parametrize(
    ("error", "reason", "told_at"),
    [
        (Forbidden("cannot create resource modelversions"), "Forbidden", 1),
        (Rejected("admission webhook denied the request"), "Rejected", 1),
        (ClusterError("no answer"), "WriteFailing", 2),
        (Conflict("the object has been modified"), "Conflict", 4),
    ],
    ids=["Forbidden", "Rejected", "ClusterError", "Conflict"],
)
def test_an_error_is_told_in_ready_once_it_does_not_pass_by_itself(
    error: ClusterError, reason: str, told_at: int
) -> None:
    fake = Refusing()
    fake.apply(mlmodel())
    fake.error, fake.on = error, "ModelVersion"
    subject = passing(fake)
    for attempt in range(1, 6):
        with pytest.raises(type(error)):
            asyncio.run(subject.once())
        model = fake.one("MLModel", "adult")
        ready, version = condition(model, "Ready"), condition(model, "VersionReady")
        assert ready["reason"] == version["reason"] == (reason if attempt >= told_at else "Creating"), attempt
        if attempt >= told_at:
            assert str(error) in ready["message"]
            assert str(error) in version["message"]
        stalled = condition(model, "Stalled").get("status", "")
        assert stalled == ("True" if told_at == 1 else ""), "what may pass by itself needs no person"
    assert len([entry for entry in fake.log if entry.startswith("status")]) == (1 if told_at == 1 else 2)
    with pytest.raises(type(error)):
        asyncio.run(passing(fake).once())
    assert condition(fake.one("MLModel", "adult"), "Ready")["reason"] == reason, "a new process takes nothing back"
    fake.error = None
    asyncio.run(subject.once())
    assert condition(fake.one("MLModel", "adult"), "Ready")["reason"] == "Creating"
    assert not condition(fake.one("MLModel", "adult"), "Stalled"), "mended"
    assert [event.reason for _, event in fake.events] == [reason, "VersionCreated"], "each once"


WEBHOOK = (
    "PATCH /apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices/x: 500 failed calling webhook "
    '"inferenceservice.kserve-webhook-server.defaulter": failed to call webhook: Post "https://kserve.kserve.svc:443": '
)


@functools.cache
def _rolling() -> Refusing:
    fake = Refusing()
    play([(0, lambda f: f.apply(mlmodel())), (300, lambda f: f.apply(mlmodel(**{RETRAIN: "1"}))), (450, nothing)], fake)
    return fake


def rolling() -> Refusing:
    """In the middle of the rollout of a second version."""
    return cast("Refusing", _rolling().fork())


def raised(**serving: Any) -> Object:
    """The model with other resources to serve with: each of its InferenceServices is to be changed."""
    return mlmodel(spec={**SPEC, "serving": {"resources": {"memory": "3Gi"}, **serving}})


def attempts(fake: Fake, operator: Operator, passes: int = 1) -> None:
    """Passes over every object, whatever each of them ends with."""
    for _ in range(passes):
        fake.act()
        asyncio.run(operator.attempt())


def test_a_write_that_is_refused_does_not_stop_the_protection_of_traffic() -> None:
    fake = rolling()
    stable = fake.one("MLModel", "adult")["status"]["stable"]["version"]
    [candidate] = fake.weights().keys() - {stable}
    fake.apply({**raised(), "metadata": fake.one("MLModel", "adult")["metadata"]})
    fake.error, fake.on = ClusterError(f"{WEBHOOK}connection refused"), "InferenceService"
    fake.unready.add(candidate)
    attempts(fake, Operator(fake), 2)
    assert fake.weights() == {stable: 100}, "KServe's webhook is down; the mesh is not"


def test_a_route_that_is_refused_stops_the_apex_and_nothing_else() -> None:
    fake = Refusing()
    play([(0, lambda f: f.apply(mlmodel())), (130, nothing)], fake)
    assert fake.names("Service") == [], "its first version is about to be promoted"
    fake.now += timedelta(seconds=30)
    fake.act()
    fake.error, fake.on = ClusterError("no answer"), "'kind': 'VirtualService'"
    attempts(fake, Operator(fake))
    assert fake.names("Service") == []
    fake.error = None
    attempts(fake, Operator(fake))
    assert fake.names("Service") == ["adult"]


def test_what_is_seen_is_told_whatever_was_answered_to_a_write() -> None:
    fake = Refusing()
    play([(0, lambda f: f.apply(mlmodel())), (300, lambda f: f.apply(raised()))], fake)
    [version] = fake.names("ModelVersion")
    fake.events.clear()
    operator = Operator(fake)

    def ready() -> tuple[str, str, str]:
        found = condition(fake.one("MLModel", "adult"), "Ready")
        return found["status"], found["reason"], found["message"]

    fake.error, fake.on = ClusterError(f"{WEBHOOK}connection refused"), "InferenceService"
    attempts(fake, operator)
    assert ready()[:2] == ("True", "Serving"), "it may pass by itself"
    attempts(fake, operator)
    assert ready() == ("False", "WriteFailing", f"{WEBHOOK}connection refused. {version} (v1) goes on serving.")
    fake.remove("Pod", f"{version}-predictor-0")
    fake.podless[version] = "the pod mutator is down, too"
    before = len(fake.log)
    asyncio.run(operator.attempt())
    assert condition(fake.one("MLModel", "adult"), "Serving")["status"] == "False", "at once"
    assert ready()[1] == "WriteFailing"
    assert ready()[2].startswith(f"{version} (v1) has no ready pod; PATCH")
    for number in range(20):
        tail = "context deadline exceeded" if number % 2 else f"dial tcp 10.0.0.{number}:443"
        fake.error = ClusterError(f"{WEBHOOK}{tail}")
        attempts(fake, operator)
    assert len(fake.log) - before <= 2, "one status that says the pod is gone, one with KServe's words about it"
    assert [event.reason for _, event in fake.events] == ["WriteFailing", "ServingStopped"]
    fake.error = None
    fake.podless.clear()
    run(fake, operator, fake.now + timedelta(seconds=60))
    assert ready()[:2] == ("True", "Serving")


def test_a_rollout_that_stands_because_a_write_fails_says_so() -> None:
    fake = rolling()
    weights, operator = fake.weights(), Operator(fake)
    assert len(weights) == 2
    before = condition(fake.one("MLModel", "adult"), "RolloutPassed")["message"]
    said = (
        'PATCH …: 500 failed calling webhook "validation.istio.io": failed to call webhook: Post "https://istiod": EOF'
    )
    fake.error, fake.on = ClusterError(said), "VirtualService"
    for attempt in range(4):
        fake.now += timedelta(seconds=60)
        attempts(fake, operator)
        status = fake.one("MLModel", "adult")["status"]
        passed = condition(fake.one("MLModel", "adult"), "RolloutPassed")
        assert "eta" not in status["rollout"], "no end is in sight"
        assert (passed["status"], passed["message"]) == (
            "Unknown",
            f"the rollout stands: {said}" if attempt else before,
        )
    assert passed["reason"] == "WriteFailing"
    assert fake.weights() == weights
    fake.error = None
    run(fake, operator, fake.now + timedelta(seconds=120))
    assert list(fake.weights().values()) == [100]


def test_a_stage_that_cannot_begin_says_so_and_the_one_before_is_on_record() -> None:
    fake = Refusing()
    fake.error, fake.on = ClusterError('POST …: 500 failed calling webhook "policy"'), "'kind': 'Job'"
    fake.apply(mlmodel())
    operator = Operator(fake)
    for _ in range(12):
        attempts(fake, operator)
        fake.now += timedelta(seconds=10)
    version = fake.one("ModelVersion", fake.names("ModelVersion")[0])
    assert [(s["name"], s["outcome"]) for s in version["status"]["stages"]] == [("train", "Succeeded")]
    audited, ready = condition(version, "Audited"), condition(version, "Ready")
    assert (audited["status"], audited["reason"]) == ("False", "WriteFailing")
    assert ready["message"] == 'audit is blocked: POST …: 500 failed calling webhook "policy"'
    assert [e.reason for who, e in fake.events if who == name_of(version)] == [
        "TrainingStarted",
        "Trained",
        "AuditingBlocked",
    ]


def test_while_a_write_fails_what_else_is_due_does_not_wait_for_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Refusing()
    fake.apply(mlmodel())
    due = [START + timedelta(seconds=100)]
    monkeypatch.setattr(reconciler, "plan_model", lambda *_: Plan(status={}, look_again=due[0]))
    subject, loop = passing(fake), Loop(fake, 12)

    async def fails(*_: object) -> None:
        raise ClusterError("no answer")

    monkeypatch.setattr(subject, "_write_status", fails)
    loop.drive(subject)
    moments = [sum(loop.pauses[: n + 1]) for n in range(len(loop.pauses))]
    assert pytest.approx(100, abs=0.01) in moments, "the moment that the plan asked for"


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted at once", "a watch that is slow"])
def test_a_write_that_the_watch_never_shows_is_looked_for(monkeypatch: pytest.MonkeyPatch, *, deleted: bool) -> None:
    class Slow(Fake):
        """Its watch does not show ModelVersions."""

        def objects(self, kind: str, namespace: str, model: str) -> list[Object]:
            return [] if kind == "ModelVersion" else super().objects(kind, namespace, model)

    clock = [0.0]
    monkeypatch.setattr(reconciler.time, "monotonic", lambda: clock[0])
    fake = Slow()
    fake.apply(mlmodel())
    subject = passing(fake)
    Loop(fake, 2).drive(subject)
    [version] = fake.names("ModelVersion")
    uid = fake.one("ModelVersion", version)["metadata"]["uid"]
    if deleted:
        fake.remove("ModelVersion", version)
    clock[0] += reconciler.LAG
    Loop(fake, 1).drive(subject)
    assert fake.names("ModelVersion") == [version]
    assert (fake.one("ModelVersion", version)["metadata"]["uid"] == uid) is not deleted
    assert fake.log.count(f"create ModelVersion/{version}") == (2 if deleted else 1)


def test_an_error_that_lasts_is_about_the_generation_that_it_was_met_with() -> None:
    fake = Refusing()
    fake.apply(mlmodel())
    fake.error, fake.on = Forbidden("no"), "ModelVersion"
    with pytest.raises(Forbidden):
        asyncio.run(passing(fake).once())
    model = fake.one("MLModel", "adult")
    assert model["status"]["observedGeneration"] == model["metadata"]["generation"], "so that nobody waits for more"


def test_a_mistake_of_ours_is_told_counted_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Plan:
        raise KeyError("weight")

    fake = Fake()
    fake.apply(mlmodel())
    monkeypatch.setattr(reconciler, "plan_model", broken)
    labels = {"kind": "MLModel", "error": "KeyError"}
    metric = "mlplatform_reconcile_errors_total"
    before = prometheus_client.REGISTRY.get_sample_value(metric, labels) or 0
    loop = Loop(fake, 3)
    loop.drive(passing(fake))
    ready = condition(fake.one("MLModel", "adult"), "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InternalError")
    assert "KeyError: 'weight'" in ready["message"]
    assert prometheus_client.REGISTRY.get_sample_value(metric, labels) == before + 3
    assert loop.pauses[2] > loop.pauses[0], "it backs off"
    assert "Traceback" in caplog.text
    assert [entry for entry in fake.log if entry.startswith("status")] == ["status MLModel/adult"], "told once"


def test_a_mistake_of_ours_leaves_a_ready_version_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Plan:
        raise KeyError("outcome")

    fake = play([(0, lambda f: f.apply(mlmodel())), (300, nothing)], Fake())
    [version] = fake.names("ModelVersion")
    monkeypatch.setattr(reconciler, "plan_version", broken)
    world = World(cast("Cluster", fake), fake, Settings(), lambda: fake.now)
    with pytest.raises(KeyError):
        asyncio.run(Reconciler(world, "ModelVersion", NAMESPACE, version, "adult").once())
    assert condition(fake.one("ModelVersion", version), "Ready")["status"] == "True", "or its rollout would end"


def test_pods_that_could_not_be_stopped_are_not_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Refusing()
    fake.apply(mlmodel())
    plan = Plan(status={"stage": "X"})
    stopped = Event("Normal", "VersionRetired", "its pods were stopped")
    plan.cleanup.append(Delete(Ref("v1", "Service", NAMESPACE, "x"), stopped))
    monkeypatch.setattr(reconciler, "plan_model", lambda *_: plan)
    fake.error, fake.on = Forbidden("no"), "Delete"
    subject = passing(fake)
    with pytest.raises(Forbidden):
        asyncio.run(subject.once())
    assert [event.reason for _, event in fake.events] == ["CleanupFailing"]
    fake.error = None
    asyncio.run(subject.once())
    assert [event.reason for _, event in fake.events] == ["CleanupFailing", "VersionRetired"]


@pytest.mark.parametrize(
    ("error", "reason", "told_at"),
    [
        (Forbidden("DELETE …: 403 no right to"), "Forbidden", 1),
        (ClusterError("DELETE …: no answer"), "WriteFailing", 2),
    ],
    ids=["Forbidden", "ClusterError"],
)
def test_pods_that_are_not_needed_any_more_and_cannot_be_stopped_are_told_of_beside_ready(
    error: ClusterError, reason: str, told_at: int
) -> None:
    fake = Refusing()
    play([(0, lambda f: f.apply(mlmodel())), (300, lambda f: f.apply(mlmodel(**{RETRAIN: "1"}))), (480, nothing)], fake)
    serving = condition(fake.one("MLModel", "adult"), "Ready")
    assert serving["status"] == "True"
    assert len(fake.names("InferenceService")) == 2, "the first version is still warm"
    fake.events.clear()
    fake.now += timedelta(minutes=2)
    fake.error, fake.on = error, "Delete"
    subject = passing(fake)
    for attempt in range(1, 6):
        with pytest.raises(type(error)):
            asyncio.run(subject.once())
        model = fake.one("MLModel", "adult")
        left = condition(model, "CleanupFailing")
        assert condition(model, "Ready") == serving, "everything serves"
        assert left.get("reason") == (reason if attempt >= told_at else None), attempt
    assert (left["status"], left["message"]) == ("True", f"what is to stop, go on or go away is as it was: {error}")
    with pytest.raises(type(error)):
        asyncio.run(passing(fake).once())
    assert [event.reason for _, event in fake.events] == ["CleanupFailing"], "once; a new process takes nothing back"
    fake.error, fake.on = ClusterError("no answer"), "VirtualService"
    fake.put({**fake.one("VirtualService", "adult"), "spec": {}})
    with pytest.raises(ClusterError):
        asyncio.run(subject.once())
    assert condition(fake.one("MLModel", "adult"), "CleanupFailing") == left, "not tried: nothing new is known"
    fake.error = None
    asyncio.run(subject.once())
    assert not condition(fake.one("MLModel", "adult"), "CleanupFailing"), "mended"
    assert len(fake.names("InferenceService")) == 1


def test_a_workload_that_cannot_be_taken_away_is_told_of_by_its_version() -> None:
    fake = Refusing()
    fake.apply(mlmodel())
    fake.error, fake.on = Forbidden("DELETE …: 403 no right to"), "Delete"
    operator = Operator(fake)
    for _ in range(12):
        attempts(fake, operator)
        fake.now += timedelta(seconds=20)
    version = fake.one("ModelVersion", fake.names("ModelVersion")[0])
    assert condition(version, "Ready")["status"] == "True"
    assert condition(version, "CleanupFailing")["reason"] == "Forbidden"
    assert [e.reason for who, e in fake.events if who == name_of(version)].count("CleanupFailing") == 1


def test_a_stage_whose_record_could_not_be_written_is_counted_once() -> None:
    class Deaf(Fake):
        """Its first two statuses of ended stages are lost."""

        left = 2

        def write_status(self, obj: Object, status: Object) -> Object | None:
            if self.left and any(s["outcome"] != "Running" for s in status.get("stages") or ()):
                self.left -= 1
                raise ClusterError("no answer")
            return super().write_status(obj, status)

    def count() -> float:
        labels = {"stage": "train", "outcome": "Succeeded"}
        return prometheus_client.REGISTRY.get_sample_value("mlplatform_stage_seconds_count", labels) or 0

    fake, before = Deaf(), count()
    fake.apply(mlmodel())
    operator = Operator(fake)
    for _ in range(4):
        with contextlib.suppress(ClusterError):
            run(fake, operator, fake.now + timedelta(seconds=61))
    assert count() == before + 1


def test_the_workload_of_a_deleted_namesake_is_not_taken_for_its_own() -> None:
    fake = Fake(train_seconds=1e6)
    fake.apply(mlmodel())
    run(fake, Operator(fake), START + timedelta(seconds=5))
    [name], [version] = fake.names("PyTorchJob"), fake.names("ModelVersion")
    job = fake.one("PyTorchJob", name)
    failed = {"type": "Failed", "status": "True", "message": "old", "lastTransitionTime": "2026-01-01T00:00:01Z"}
    job["metadata"]["ownerReferences"][0]["uid"] = "uid-of-a-deleted-version"
    fake.put({**job, "status": {"conditions": [failed]}})
    fake.put({**fake.one("ModelVersion", version), "status": {}})
    fake.now += timedelta(minutes=5)
    world = World(cast("Cluster", fake), fake, Settings(), lambda: fake.now)
    with pytest.raises(ClusterError):  # until the garbage collector has taken the old one away
        asyncio.run(Reconciler(world, "ModelVersion", NAMESPACE, version, "adult").once())
    stages = fake.one("ModelVersion", version).get("status", {}).get("stages", [])
    assert [s for s in stages if s["outcome"] == "Failed"] == []


def test_events_of_what_was_recorded_are_posted_even_when_the_cleanup_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Refusing()
    play([(0, lambda f: f.apply(mlmodel())), (100, nothing)], fake)
    [name] = fake.names("ModelVersion")
    fake.remove("InferenceService", name)
    subject, plan = passing(fake), Plan(status={"stage": "X"})
    plan.cleanup.append(Delete(Ref("v1", "Service", NAMESPACE, "x")))
    plan.events.append(Event("Normal", "Promoted", "it was"))

    monkeypatch.setattr(reconciler, "plan_model", lambda *_: plan)
    fake.error, fake.on = ClusterError("no answer"), "Delete"
    with pytest.raises(ClusterError):
        asyncio.run(subject.once())
    assert ("adult", "Promoted") in [(who, event.reason) for who, event in fake.events]


class Asked(Fake):
    """Keeps what it is asked."""

    asked: list[str]

    def get(self, ref: Ref) -> Object | None:
        self.asked.append(f"{ref.kind}/{ref.name}")
        return super().get(ref)

    def warnings(self, obj: Object) -> list[Object]:
        self.asked.append(f"events of {name_of(obj)}")
        return super().warnings(obj)


def test_what_is_settled_costs_a_process_that_begins_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Asked()
    fake.asked = []
    play([(0, lambda f: f.apply(mlmodel())), (400, nothing)], fake)
    before = len(fake.log)

    async def thread(*_: object) -> None:
        raise AssertionError("what is known goes through no thread: with hundreds of models, a new one's writes queue")

    monkeypatch.setattr(asyncio, "to_thread", thread)
    operator = Operator(fake)
    fake.asked.clear()
    asyncio.run(operator.attempt())
    assert fake.asked == [], "with thousands of models they would be thousands"
    assert len(fake.log) == before


class Kinds:
    """An API client that is asked for one kind's group, and serves nothing of it at first."""

    def __init__(self) -> None:
        self.asked, self.kinds = 0, list[str]()

    def call_api(self, *_: object, **__: object) -> object:
        self.asked += 1
        return self

    @property
    def data(self) -> bytes:
        return json.dumps({"resources": [{"kind": kind} for kind in self.kinds]}).encode()


def test_kinds_that_were_seen_lately_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, api = [0.0], Kinds()
    monkeypatch.setattr("mlplatform.cluster.time.monotonic", lambda: clock[0])
    cluster, wanted = Cluster(cast("Any", api)), {"PyTorchJob": "kubeflow.org/v1"}
    assert cluster.seen_missing(wanted) is None, "nobody has looked yet"
    assert cluster.missing(wanted) == cluster.seen_missing(wanted) == {"PyTorchJob"}
    assert api.asked == 1
    clock[0] += KIND_MISSED_AGAIN
    assert cluster.seen_missing(wanted) is None, "it may have been installed"
    api.kinds.append("PyTorchJob")
    assert cluster.missing(wanted) == cluster.seen_missing(wanted) == set()
    clock[0] += KIND_SEEN_AGAIN - 1
    assert cluster.missing(wanted) == cluster.seen_missing(wanted) == set()
    assert api.asked == 2
    clock[0] += 1
    assert cluster.seen_missing(wanted) is None, "it may have been taken away"


class Answers:
    """An API client whose answers cannot be read to their end."""

    def __init__(self, problem: Exception) -> None:
        self.problem = problem

    def call_api(self, *_: object, **__: object) -> object:
        return self

    @property
    def data(self) -> bytes:
        raise self.problem


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (urllib3.exceptions.ProtocolError("connection broken"), "did not answer: connection broken"),
        (ValueError("Expecting value"), "is no JSON; is a proxy in between?"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error_of_the_cluster(problem: Exception, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        Cluster(cast("Any", Answers(problem))).get(Ref("v1", "Service", NAMESPACE, "x"))


def test_the_same_error_again_writes_nothing_new() -> None:
    fake = Refusing()
    fake.apply(mlmodel())
    fake.error, fake.on = Forbidden("no"), "ModelVersion"
    subject = passing(fake)
    for _ in range(3):
        with pytest.raises(Forbidden):
            asyncio.run(subject.once())
    assert [entry for entry in fake.log if entry.startswith("status")] == ["status MLModel/adult"]


def test_nothing_is_stopped_before_status_has_recorded_why() -> None:
    fake = Refusing()
    play([(0, lambda f: f.apply(mlmodel())), (300, nothing)], fake)
    before = len(fake.log)
    fake.error, fake.on = ClusterError("no answer"), "VirtualService"
    fake.put({**fake.one("VirtualService", "adult"), "spec": {}})
    with pytest.raises(ClusterError):
        asyncio.run(passing(fake).once())
    assert fake.log[before:] == [], "no status and no cleanup after a write that failed"


def test_an_object_that_is_gone_or_going_is_left_alone() -> None:
    fake = Fake()
    assert asyncio.run(passing(fake).once()) is None
    going = mlmodel()
    going["metadata"]["deletionTimestamp"] = "now"
    fake.put(going)
    assert asyncio.run(passing(fake).once()) is None
    assert fake.log == []


class Loop:
    """Has a reconciler pass a number of times, and keeps the pauses that it asked for."""

    def __init__(self, fake: Fake, passes: int) -> None:
        self.fake, self.passes, self.pauses = fake, passes, list[float]()

    def drive(self, subject: Reconciler) -> None:
        for _ in range(self.passes):
            pause = asyncio.run(subject.attempt()) or 0.0
            self.pauses.append(pause)
            self.fake.now += timedelta(seconds=pause)


def test_errors_back_off_with_jitter_and_success_forgets_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconciler.random, "uniform", lambda low, high: (low + high) / 2)
    fake, subject = Fake(), None
    outcomes: list[ClusterError | None] = [ClusterError("no answer")] * 8 + [None, ClusterError("no answer")]

    async def once() -> None:
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome

    subject = passing(fake)
    monkeypatch.setattr(subject, "once", once)
    loop = Loop(fake, 10)
    with caplog.at_level(logging.WARNING):
        loop.drive(subject)
    assert loop.pauses[:8] == [1, 2, 5, 10, 30, 60, 60, 60]
    assert loop.pauses[9] == 1, "after a success it starts at the beginning"
    assert "MLModel default/adult: trying again in 1.0 s: no answer" in caplog.text


def test_a_first_conflict_is_quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    subject = passing(Fake())

    async def once() -> None:
        raise Conflict("somebody was faster")

    monkeypatch.setattr(subject, "once", once)
    with caplog.at_level(logging.INFO):
        Loop(Fake(), 1).drive(subject)
    assert not caplog.records


def test_it_sleeps_until_time_alone_may_change_something(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    subject = passing(fake)

    async def once() -> Any:
        return START + timedelta(seconds=7)

    monkeypatch.setattr(subject, "once", once)
    loop = Loop(fake, 2)
    loop.drive(subject)
    assert loop.pauses == [7, 0], "and not at all when that is over"


def test_plans_are_carried_out_in_the_order_that_survives_a_crash() -> None:
    fields = list(Plan.__dataclass_fields__)
    assert fields == ["traffic", "writes", "status", "cleanup", "events", "look_again"]
