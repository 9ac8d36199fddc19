"""The small parts: settings, conditions, times, weights, digests, metrics."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import prometheus_client
import pytest
from unit.operator_world import NAMESPACE, SPEC, START, Fake, mlmodel

from mlplatform import api, metrics
from mlplatform.conditions import Book
from mlplatform.contract import Stage
from mlplatform.plan.plan import Plan, status_json
from mlplatform.reconciler import Reconciler, World
from mlplatform.resources import inferenceservice, job, pod, pytorchjob, service, virtualservice
from mlplatform.resources.metadata import hashed, same
from mlplatform.resources.workload import Phase
from mlplatform.settings import Settings, SettingsError
from mlplatform.snapshot import Object, moment, precise, stamp

if TYPE_CHECKING:
    from mlplatform.cluster import Cluster

# Settings


def test_settings_come_from_the_environment() -> None:
    env = {
        "MLPLATFORM_JOBS_IMAGE": "x:1",
        "MLPLATFORM_METRICS_PORT": "9999",
        "MLPLATFORM_WATCH_NAMESPACES": "a, b,",
        "PATH": "/",
    }
    found = Settings.from_env(env)
    assert (found.jobs_image, found.metrics_port, found.namespaces) == ("x:1", 9999, ("a", "b"))
    assert found.artifact_root == "s3://mlplatform", "what is not set keeps its default"
    assert Settings().namespaces == (), "no list means all namespaces"


def test_a_service_of_that_name_sets_a_variable_that_is_no_port() -> None:
    with pytest.raises(SettingsError, match=r"MLPLATFORM_HEALTH_PORT='tcp://10\.96\.0\.1:8080'.*enableServiceLinks"):
        Settings.from_env({"MLPLATFORM_HEALTH_PORT": "tcp://10.96.0.1:8080"})


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("MLPLATFORM_MAX_CPU_REQUEST", "1k", "a thousand cores are nobody's request"),
        ("MLPLATFORM_MAX_CPU_REQUEST", "a lot", "no quantity"),
        ("MLPLATFORM_ISTIO_API_VERSION", "v1", "the group is missing"),
        ("MLPLATFORM_METRICS_PORT", "99999", "no port"),
        ("MLPLATFORM_GATEWAY_SCHEME", "HTTPS", "schemes are in lower case"),
        ("MLPLATFORM_GATEWAY_HOSTS", "a.example.com, b.example.com", "by comma alone"),
        ("MLPLATFORM_METRICS_PORT", "0", "no port that anybody could ask"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(variable: str, value: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable}='{value}'"):
        Settings.from_env({variable: value})
    assert reason


# Times


def test_times_are_written_in_utc_and_read_back() -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
    assert stamp(when) == "2026-01-02T03:04:05Z"
    assert precise(when) == "2026-01-02T03:04:05.678Z"
    assert moment(stamp(when)) == when.replace(microsecond=0)
    assert moment("") is None
    assert moment(None) is None


# Conditions


def held(status: str, reason: str = "R") -> Object:
    return {
        "type": "T",
        "status": status,
        "reason": reason,
        "message": "m",
        "lastTransitionTime": "2020-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("reason", "previous", "status", "why", "since", "changed"),
    [
        ("a new condition begins now", [], "True", "R", stamp(START), True),
        ("the same status keeps its time", [held("True")], "True", "R", "2020-01-01T00:00:00Z", False),
        ("another reason keeps the time but is news", [held("True")], "True", "S", "2020-01-01T00:00:00Z", True),
        ("another status begins now", [held("True")], "False", "R", stamp(START), True),
    ],
)
def test_condition(reason: str, previous: list[Object], status: Any, why: str, since: str, *, changed: bool) -> None:
    book = Book(previous, 7, START)
    book.set("T", status, why, "a new message is no news")
    [found] = book.conditions()
    assert found.last_transition_time == since, reason
    assert found.observed_generation == 7, reason
    assert book.changed("T") is changed, reason


def test_a_condition_can_be_carried_over_as_it_was() -> None:
    book = Book([held("False")], 7, START)
    book.keep("T")
    book.keep("absent")
    assert [(c.type, c.status, c.observed_generation) for c in book.conditions()] == [("T", "False", 0)]
    assert not book.changed("T")


def test_status_json_leaves_out_what_is_empty_but_keeps_zeros_and_what_the_schema_requires() -> None:
    status = api.MLModelStatus(
        observed_generation=0,
        rollout=api.RolloutStatus(version="v", weight=0),
        failure=api.FailureStatus(class_="Crashed", message="", next_action=""),
    )
    assert status_json(status) == {
        "observedGeneration": 0,
        "latestSequence": 0,
        "highestSequence": 0,
        "rollout": {"version": "v", "sequence": 0, "step": 0, "steps": 0, "weight": 0},
        "failure": {"class": "Crashed", "message": "", "nextAction": ""},
    }


def test_a_plan_looks_again_at_the_earliest_moment_asked_for() -> None:
    plan = Plan()
    for minutes in (None, 5, 3, 9):
        plan.look(None if minutes is None else START + timedelta(minutes=minutes))
    assert plan.look_again == START + timedelta(minutes=3)


# Reading children


def route(weights: dict[str, int], **changes: Any) -> Object:
    rendered = virtualservice.render(mlmodel(), weights, (), "", Settings())
    return {**rendered, "spec": {**rendered["spec"], **changes}}


def with_split(destinations: list[Object], **fields: Any) -> Object:
    """A route whose split somebody has edited."""
    live = route({"adult-1": 100})
    [split] = [entry for entry in live["spec"]["http"] if entry["name"] == "predict"]
    others = [entry for entry in live["spec"]["http"] if entry is not split]
    kept = {key: value for key, value in split.items() if key != "route"}
    edited = {**kept, **({"route": destinations} if destinations else {}), **fields}
    return {**live, "spec": {**live["spec"], "http": [*others, edited]}}


def alone(weight: Object) -> Object:
    """A route with one destination, which has this weight or none."""
    return with_split([{"destination": {"host": "adult-1-predictor.default.svc.cluster.local"}, **weight}])


@pytest.mark.parametrize(
    ("reason", "live", "expected"),
    [
        ("no route", None, {}),
        ("a route of somebody else's making", {"metadata": {}, "spec": {"tcp": []}}, {}),
        ("everything to one", route({"adult-1": 100}), {"adult-1": 100}),
        ("a version without weight is not in the mesh", route({"adult-1": 100, "adult-2": 0}), {"adult-1": 100}),
        ("a split", route({"adult-1": 75, "adult-2": 25}), {"adult-1": 75, "adult-2": 25}),
        ("weights are proportions", route({"adult-1": 3, "adult-2": 1}), {"adult-1": 75, "adult-2": 25}),
        ("a lone destination has everything", alone({}), {"adult-1": 100}),
        ("whatever its weight", alone({"weight": 30}), {"adult-1": 100}),
        ("even none: Istio looks at no weight then", alone({"weight": 0}), {"adult-1": 100}),
        ("a redirect in its place goes to no version", with_split([], redirect={"uri": "/"}), {}),
    ],
)
def test_weights_are_read_from_the_mesh(reason: str, live: Object | None, expected: dict[str, int]) -> None:
    assert virtualservice.weights(live) == expected, reason


def test_a_route_is_right_under_any_cluster_domain() -> None:
    """Istio completes a short name by the domain that its own registry has; a full one it takes as it is."""
    rendered = virtualservice.render(mlmodel(), {"adult-1": 75, "adult-2": 25}, ["adult-2"], "", Settings())
    destinations = [d["destination"]["host"] for entry in rendered["spec"]["http"] for d in entry["route"]]
    assert set(destinations) == {"adult-1-predictor", "adult-2-predictor"}
    assert rendered["spec"]["hosts"] == ["adult.default.models.local", "adult"]
    assert virtualservice.drifted(alone({}), rendered), "the routes of earlier releases named cluster.local"


def test_a_route_has_drifted_when_somebody_changed_where_traffic_goes() -> None:
    wanted = route({"adult-1": 100})
    assert not virtualservice.drifted(wanted, wanted)
    assert not virtualservice.drifted(route({"adult-1": 100}, exportTo=["*"]), wanted), "what we do not set is not ours"
    assert virtualservice.drifted(route({"adult-1": 100}, hosts=["elsewhere"]), wanted)
    assert virtualservice.drifted(route({"adult-2": 100}), wanted)


def test_the_apex_says_which_version_is_stable() -> None:
    assert service.stable(service.render(mlmodel(), "adult-1")) == "adult-1"
    assert service.stable(None) == ""
    assert service.stable({"spec": {"selector": {"app": "something-else"}}}) == ""
    assert inferenceservice.version_of(inferenceservice.pod_label("adult-1")) == "adult-1"


@pytest.mark.parametrize(
    ("reason", "job_status", "suspend", "phase", "started"),
    [
        ("just created", {}, False, Phase.ACTIVE, stamp(START)),
        ("running", {"startTime": "t1"}, False, Phase.ACTIVE, "t1"),
        ("suspended from the beginning: no time is counted", {}, True, Phase.SUSPENDED, ""),
        (
            "suspended: its first start, which stays in its status, is none",
            {"startTime": "t1", "conditions": [{"type": "Suspended", "status": "True"}]},
            True,
            Phase.SUSPENDED,
            "",
        ),
        (
            "resumed, but not started again: likewise",
            {"startTime": "t1", "conditions": [{"type": "Suspended", "status": "True"}]},
            False,
            Phase.ACTIVE,
            "",
        ),
        (
            "resumed, not started again: its creation says nothing",
            {"conditions": [{"type": "Suspended", "status": "False"}]},
            False,
            Phase.ACTIVE,
            "",
        ),
        (
            "failed is for good, though it was restarting",
            {
                "startTime": "t1",
                "conditions": [
                    {"type": "Restarting", "status": "True"},
                    {"type": "Failed", "status": "True", "lastTransitionTime": "t2"},
                ],
            },
            False,
            Phase.FAILED,
            "t1",
        ),
        (
            "a condition that no longer holds does not count",
            {"startTime": "t1", "conditions": [{"type": "Succeeded", "status": "False"}]},
            False,
            Phase.ACTIVE,
            "t1",
        ),
    ],
)
def test_pytorchjob_is_read(reason: str, job_status: Object, phase: Phase, started: str, *, suspend: bool) -> None:
    live = {
        "metadata": {"creationTimestamp": stamp(START)},
        "spec": {"runPolicy": {"suspend": suspend}},
        "status": job_status,
    }
    found = pytorchjob.read(live)
    assert (found.phase, found.started_at) == (phase, started), reason


def test_job_is_read() -> None:
    done = {"type": "Complete", "status": "True", "lastTransitionTime": "t2"}
    live = {"metadata": {}, "spec": {}, "status": {"startTime": "t1", "completionTime": "t2", "conditions": [done]}}
    found = job.read(live)
    assert (found.phase, found.started_at, found.finished_at, found.finished) == (Phase.SUCCEEDED, "t1", "t2", True)
    for spec in ({"parallelism": 0}, {"suspend": True}):
        assert job.read({**live, "spec": spec, "status": {}}).phase is Phase.SUSPENDED


@pytest.mark.parametrize(
    ("reason", "cpu", "cap", "asked"),
    [
        ("no cap: requests equal limits", "2", "", "2"),
        ("a smaller request stays", "50m", "100m", "50m"),
        ("a greater one is cut", "2", "100m", "100m"),
        ("fractions are compared as numbers", "0.5", "600m", "0.5"),
        ("and so are whole cores", "10", "9", "9"),
    ],
)
def test_cpu_requests_can_be_capped(reason: str, cpu: str, cap: str, asked: str) -> None:
    wanted = api.ServingResources(cpu=cpu, memory="1Gi")
    found = pod.resources(wanted, Settings(max_cpu_request=cap), api.PodScheduling())
    assert found["requests"] == {"cpu": asked, "memory": "1Gi"}, reason
    assert found["limits"]["cpu"] == cpu, "limits stay as the model says"


@pytest.mark.parametrize(
    ("reason", "cpu", "cap", "percent"),
    [
        ("80 % of what the model may use", "1", "", 80),
        ("a request below the cap is not bent", "50m", "100m", 80),
        ("80 % of one core are 800 % of a tenth", "1", "100m", 800),
        ("and of one and a half 1,200 %", "1500m", "100m", 1200),
        ("no request, no percent of it: the autoscaler says so itself", "1", "0", 80),
    ],
)
def test_a_capped_request_does_not_bend_the_autoscalers_target(reason: str, cpu: str, cap: str, percent: int) -> None:
    spec = api.decode(api.MLModelSpec, {**SPEC, "serving": {"resources": {"cpu": cpu, "memory": "1Gi"}}})
    rendered = inferenceservice.render(mlmodel("m"), spec, "m-1", "s3://x", Settings(max_cpu_request=cap))
    assert rendered["spec"]["predictor"]["scaleTarget"] == percent, reason


# Digests


def test_a_digest_says_whether_an_object_is_what_would_be_made_now() -> None:
    manifest = {"kind": "Service", "metadata": {"name": "x", "annotations": {"a": "b"}}, "spec": {"x": 1}}
    wanted = hashed(manifest)
    assert wanted["metadata"]["annotations"]["a"] == "b"
    assert same({**wanted, "status": {"novel": 1}}, wanted)
    assert not same(hashed({**manifest, "spec": {"x": 2}}), wanted)
    assert not same(None, wanted)
    owned = {**wanted, "metadata": {**wanted["metadata"], "ownerReferences": [{"uid": "1"}]}}
    assert same(owned, owned)
    assert not same(wanted, owned), "a backup was restored without its owner"


def test_names_and_labels_fit_kubernetes() -> None:
    longest = mlmodel("m" * 36)
    spec = api.decode(api.MLModelSpec, {**SPEC, "training": {"workers": 64}})
    name = api.version_name("m" * 36, spec)
    rendered = service.render(longest, name)
    assert len(f"{name}-train-worker-63") <= 63
    assert all(len(value) <= 63 for value in rendered["metadata"]["labels"].values())
    assert len(inferenceservice.pod_label(name)) <= 63, "it is a label's value"


# Metrics


def test_metrics_show_a_model_and_forget_it() -> None:
    conditions = [{"type": "Ready", "status": "True", "reason": "R", "message": ""}]
    status = {"rollout": {"weight": 25}, "conditions": conditions, "stable": {"version": "measured-1"}}
    model = {**mlmodel("measured"), "status": status}
    metrics.record_model(model, {"status": {"metrics": {"roc_auc": 0.9}}})
    where = {"namespace": NAMESPACE, "model": "measured"}
    registry = prometheus_client.REGISTRY
    value = registry.get_sample_value
    assert value("mlplatform_rollout_weight", where) == 25
    assert value("mlplatform_model_promoted", where) == 1
    assert value("mlplatform_model_condition", {**where, "type": "Ready", "status": "True"}) == 1
    assert value("mlplatform_model_condition", {**where, "type": "Serving", "status": "Unknown"}) == 1
    assert value("mlplatform_version_metric", {**where, "metric": "roc_auc"}) == 0.9
    metrics.forget_model(NAMESPACE, "measured")
    assert value("mlplatform_rollout_weight", where) is None
    assert value("mlplatform_version_metric", {**where, "metric": "roc_auc"}) is None


@dataclass(frozen=True)
class Replaced:
    """What the version that serves measured before and after a change, and what Prometheus is shown then."""

    reason: str
    before: dict[str, float]
    after: dict[str, float] | None
    shown: dict[str, float]


@pytest.mark.parametrize(
    "case",
    [
        Replaced(
            "the new version measures something else", {"roc_auc": 0.9, "f1": 0.7}, {"roc_auc": 0.91}, {"roc_auc": 0.91}
        ),
        Replaced("the version was pruned or deleted", {"roc_auc": 0.9}, None, {}),
        Replaced("the same once more", {"roc_auc": 0.9}, {"roc_auc": 0.9}, {"roc_auc": 0.9}),
        Replaced("a metric comes back", {}, {"f1": 0.7}, {"f1": 0.7}),
    ],
    ids=lambda case: case.reason,
)
def test_metrics_of_a_version_that_is_gone_go(case: Replaced) -> None:
    model = {**mlmodel("replaced"), "status": {"stable": {"version": "replaced-1"}}}
    metrics.record_model(mlmodel("beside"), {"status": {"metrics": {"f1": 0.5}}})
    metrics.record_model(model, {"status": {"metrics": case.before}})
    metrics.record_model(model, None if case.after is None else {"status": {"metrics": case.after}})
    shown = {
        sample.labels["metric"]: sample.value
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "mlplatform_version_metric" and sample.labels["model"] == "replaced"
    }
    assert shown == case.shown, case.reason
    promoted = {"namespace": NAMESPACE, "model": "replaced"}
    assert prometheus_client.REGISTRY.get_sample_value("mlplatform_model_promoted", promoted) == 1, "it still counts"
    beside = {"namespace": NAMESPACE, "model": "beside", "metric": "f1"}
    assert prometheus_client.REGISTRY.get_sample_value("mlplatform_version_metric", beside) == 0.5
    metrics.forget_model(NAMESPACE, "replaced")


def test_a_model_that_is_gone_leaves_no_series_behind() -> None:
    fake = Fake()
    fake.apply(mlmodel("gone"))
    world = World(cast("Cluster", fake), fake, Settings(), lambda: fake.now)
    keeper = Reconciler(world, "MLModel", NAMESPACE, "gone", "gone")
    where = {"namespace": NAMESPACE, "model": "gone"}

    asyncio.run(keeper.attempt())
    assert prometheus_client.REGISTRY.get_sample_value("mlplatform_rollout_weight", where) == 0
    fake.remove("MLModel", "gone")
    asyncio.run(Reconciler(world, "MLModel", NAMESPACE, "gone", "gone").attempt())
    assert prometheus_client.REGISTRY.get_sample_value("mlplatform_rollout_weight", where) is None


def test_a_stages_first_failure_is_a_rise() -> None:
    for stage in Stage:
        labels = {"stage": stage.value, "outcome": "Failed"}
        assert prometheus_client.REGISTRY.get_sample_value("mlplatform_stage_seconds_count", labels) is not None


def test_a_stage_is_counted_once_when_it_ends() -> None:
    def count() -> float:
        labels = {"stage": "package", "outcome": "Succeeded"}
        return prometheus_client.REGISTRY.get_sample_value("mlplatform_stage_seconds_count", labels) or 0.0

    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:07Z"}
    running = {"stages": [{"name": "package", "outcome": "Running", "startedAt": times["startedAt"]}]}
    ended = {"stages": [{"name": "package", "outcome": "Succeeded", **times}]}
    before = count()
    for old, new in (({}, running), (running, ended), (ended, ended)):
        metrics.record_version(old, new)
    assert count() == before + 1
