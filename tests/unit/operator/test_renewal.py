"""What another release of the platform, or other settings of it, do to what serves: nothing that nobody asked for."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from unit.operator_world import NAMESPACE, SPEC, START, Fake, Operator, mlmodel, play, run

from mlplatform import api
from mlplatform.plan import children
from mlplatform.plan.facts import gather
from mlplatform.resources import inferenceservice, servingruntime
from mlplatform.settings import Settings
from mlplatform.snapshot import ModelSnapshot, Object, annotations_of, labels_of, name_of

NOW, NEXT = (Settings(serving_image=f"mlplatform/serving:{tag}", renewal_seconds=0) for tag in (1, 2))
"""Two releases, whose models' turn is always."""
V1 = api.version_name("adult", api.decode(api.MLModelSpec, SPEC))
SECOND = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.9}]}
V2 = api.version_name("adult", api.decode(api.MLModelSpec, SECOND))
POD = ("Pod", "InferenceService", "ServingRuntime", "Ingress")


def runtime(settings: Settings) -> str:
    return name_of(servingruntime.render(mlmodel(), settings))


def settle(fake: Fake, settings: Settings, seconds: float = 0) -> list[str]:
    """What a new operator with these settings writes to what serves."""
    before = len(fake.log)
    run(fake, Operator(fake, settings), fake.now + timedelta(seconds=seconds))
    return [entry for entry in fake.log[before:] if entry.split()[1].startswith(POD)]


def serving(spec: Object = SPEC) -> Fake:
    """A model whose first version serves, made by the release NOW."""
    fake = Fake()
    fake.apply(mlmodel(spec=spec))
    run(fake, Operator(fake, NOW), START + timedelta(seconds=300))
    return fake


def before_runtimes(fake: Fake, *, kept: str = "") -> None:
    """Makes a version what the release before this one had made: a digest, a shared runtime, published by KServe."""
    live = copy.deepcopy(fake.one("InferenceService", V1))
    model = live["spec"]["predictor"]["model"]
    model["runtime"] = kept or servingruntime.SHARED
    del live["metadata"]["labels"][inferenceservice.VISIBILITY]
    live["metadata"]["annotations"] |= {"mlplatform.dev/hash": "1ee476e1", "modelFormat": "pytorch"}
    fake.put(live)
    for name in fake.names("ServingRuntime"):
        fake.remove("ServingRuntime", name)
    for name in fake.names("Pod"):
        fake.remove("Pod", name)
    fake.act()
    fake.now += timedelta(seconds=fake.serve_seconds)
    fake.act()


def pods(fake: Fake) -> list[str]:
    return [name for name in fake.names("Pod") if "predictor" in name]


# What a user asks for, and what KServe makes of how it is written.


def asked(resources: Object, replicas: Object | None = None, per_request: Object | None = None) -> api.MLModelSpec:
    serving = {
        "resources": resources,
        "replicas": replicas or {"min": 1, "max": 1},
        **({"perRequest": per_request} if per_request else {}),
    }
    return api.decode(api.MLModelSpec, {**SPEC, "serving": serving})


def made(limits: Object, requests: Object | None = None, **predictor: Any) -> Object:
    """An InferenceService as it is read back."""
    model = {"storageUri": "s3://x", "resources": {"limits": limits, "requests": requests or limits}}
    bounds = {"minReplicas": 1, "maxReplicas": 1, "scaleMetric": "cpu", "scaleTarget": 80, **predictor}
    return {"metadata": {}, "spec": {"predictor": {**bounds, "model": model}}}


ONE = {"cpu": "1", "memory": "1Gi"}
SAME: list[tuple[str, Object, Object]] = [
    ("as it was written", ONE, ONE),
    ("KServe's webhook writes whole units", {"cpu": "1000m", "memory": "1024Mi"}, ONE),
    ("decimal ones, too", {"cpu": "1", "memory": "1000M"}, {"cpu": "1", "memory": "1G"}),
    ("half a core", {"cpu": "0.5", "memory": "1Gi"}, {"cpu": "500m", "memory": "1Gi"}),
]


@pytest.mark.parametrize(("reason", "wanted", "found"), SAME, ids=[row[0] for row in SAME])
def test_a_quantity_is_what_it_amounts_to(reason: str, wanted: Object, found: Object) -> None:
    assert inferenceservice.change(made(found), asked(wanted), "s3://x", NOW) is None, reason


DIFFERENT: list[tuple[str, Object, api.MLModelSpec, str, Object]] = [
    (
        "more memory",
        made(ONE),
        asked({"cpu": "1", "memory": "1025Mi"}),
        "s3://x",
        {"model": {"resources": {kind: {"memory": "1025Mi"} for kind in ("requests", "limits")}}},
    ),
    ("more pods", made(ONE), asked(ONE, {"min": 2, "max": 3}), "s3://x", {"minReplicas": 2, "maxReplicas": 3}),
    ("another archive", made(ONE), asked(ONE), "s3://y", {"model": {"storageUri": "s3://y"}}),
    (
        "larger requests",
        made(ONE),
        asked(ONE, per_request={"maxRecords": 5000}),
        "s3://x",
        {"model": {"env": [{"name": "MLPLATFORM_MAX_RECORDS", "value": "5000"}]}},
    ),
    ("a bound that somebody moved by hand", made(ONE, scaleTarget=50), asked(ONE), "s3://x", {"scaleTarget": 80}),
]


@pytest.mark.parametrize(("reason", "live", "spec", "uri", "patch"), DIFFERENT, ids=[row[0] for row in DIFFERENT])
def test_only_what_the_user_asks_for_is_changed(
    reason: str, live: Object, spec: api.MLModelSpec, uri: str, patch: Object
) -> None:
    found = inferenceservice.change(live, spec, uri, NOW)
    assert found is not None, reason
    assert found["spec"]["predictor"] == patch, reason


def test_what_bounds_requests_comes_and_goes_with_the_users_wish() -> None:
    mine = {"name": "MLPLATFORM_MODEL", "value": "m"}
    bounded = asked(ONE, per_request={"maxRecords": 500, "maxBytes": 2048})
    live = inferenceservice.render(mlmodel(), bounded, V1, "s3://x", NOW)
    env = live["spec"]["predictor"]["model"]["env"]
    assert [variable["value"] for variable in env[-2:]] == ["500", "2048"]
    assert inferenceservice.change(live, bounded, "s3://x", NOW) is None
    live["spec"]["predictor"]["model"]["env"] = [mine, *env[-2:]]
    found = inferenceservice.change(live, asked(ONE), "s3://x", NOW)
    assert found is not None
    assert found["spec"]["predictor"] == {"model": {"env": [mine]}}, "what is not of this field stays"


def test_a_setting_of_the_operator_is_no_wish_of_the_user() -> None:
    capped = replace(NOW, max_cpu_request="100m")
    assert inferenceservice.change(made(ONE), asked(ONE), "s3://x", capped) is None
    small = made(ONE, {"cpu": "100m", "memory": "1Gi"}, scaleTarget=800)
    assert inferenceservice.change(small, asked(ONE), "s3://x", NOW) is None, "a percent of what the pods request"


# Another release.


def test_another_release_restarts_nothing() -> None:
    fake = serving()
    before = pods(fake)
    assert settle(fake, replace(NEXT, max_cpu_request="100m"), seconds=3600) == []
    assert pods(fake) == before


def test_a_new_version_gets_the_runtime_of_its_release_and_the_last_one_goes_with_its_last_user() -> None:
    fake = serving()
    fake.apply(mlmodel(spec=SECOND))
    run(fake, Operator(fake, NEXT), fake.now + timedelta(seconds=200))
    found = {v: inferenceservice.runtime(fake.one("InferenceService", v)) for v in fake.names("InferenceService")}
    assert found == {V1: runtime(NOW), V2: runtime(NEXT)}
    assert fake.names("ServingRuntime") == sorted(found.values())
    settle(fake, NEXT, seconds=300)
    assert fake.names("InferenceService") == [V2]
    assert fake.names("ServingRuntime") == [runtime(NEXT)]


def test_a_change_of_resources_brings_no_other_runtime_along() -> None:
    fake = serving()
    fake.apply(mlmodel(spec={**SPEC, "serving": {"resources": {"cpu": "1", "memory": "3Gi"}}}))
    assert settle(fake, NEXT, seconds=60) == [f"patch InferenceService/{V1}"]
    assert inferenceservice.runtime(fake.one("InferenceService", V1)) == runtime(NOW)
    assert pods(fake) == [f"{V1}-predictor-1"]


def test_rolling_the_runtime_is_asked_for() -> None:
    fake = serving({**SPEC, "serving": {"runtimeUpdate": "Roll"}})
    written = settle(fake, NEXT, seconds=60)
    assert written == [
        f"create ServingRuntime/{runtime(NEXT)}",
        f"apply InferenceService/{V1}",
        f"delete ServingRuntime/{runtime(NOW)}",
    ]
    assert pods(fake) == [f"{V1}-predictor-1"]
    assert settle(fake, NEXT, seconds=3600) == [], "once"


def test_versions_are_renewed_one_after_another() -> None:
    spec = {**SECOND, "serving": {"runtimeUpdate": "Roll"}, "rollout": {**SPEC["rollout"], "keepWarm": "3h"}}
    fake = serving()
    fake.apply(mlmodel(spec=spec))
    run(fake, Operator(fake, NOW), fake.now + timedelta(seconds=300))
    assert fake.names("InferenceService") == sorted([V1, V2])
    assert f"apply InferenceService/{V2}" not in settle(fake, NEXT, seconds=fake.serve_seconds - 1)
    assert f"apply InferenceService/{V2}" in settle(fake, NEXT, seconds=10), "the first one's pods are there"


def test_a_rollout_is_not_disturbed() -> None:
    fake = serving()
    fake.apply(mlmodel(spec={**SECOND, "serving": {"runtimeUpdate": "Roll"}}))
    run(fake, Operator(fake, NOW), fake.now + timedelta(seconds=160))
    assert fake.weights().keys() == {V1, V2}
    written = settle(fake, NEXT)
    assert f"apply InferenceService/{V1}" not in written


# The release before versions had runtimes of their own.


def test_versions_that_kserve_publishes_are_renewed_once_in_their_turn() -> None:
    fake = serving()
    before_runtimes(fake)
    assert fake.names("Ingress") == [V1]
    later = replace(NOW, renewal_seconds=7200)
    due = children._turn(gather(ModelSnapshot(model=mlmodel()), later, asked(ONE), fake.now))  # noqa: SLF001  when it is
    assert settle(fake, later, seconds=(due - fake.now).total_seconds() - 1) == []
    assert settle(fake, later, seconds=61) == [
        f"create ServingRuntime/{runtime(NOW)}",
        f"apply InferenceService/{V1}",
        f"delete Ingress/{V1}",
    ]
    live = fake.one("InferenceService", V1)
    assert labels_of(live)[inferenceservice.VISIBILITY] == "cluster-local"
    assert annotations_of(live).keys() == {inferenceservice.MODE}, "the digest went in the same roll"
    assert pods(fake) == [f"{V1}-predictor-1"]
    assert settle(fake, later, seconds=3 * 7200) == [], "once"


def test_a_user_changes_a_version_of_the_last_release_at_once() -> None:
    fake = serving()
    before_runtimes(fake)
    fake.apply(mlmodel(spec={**SPEC, "serving": {"replicas": {"min": 1, "max": 4}}}))
    assert settle(fake, replace(NEXT, renewal_seconds=999_999)) == [f"patch InferenceService/{V1}"]
    assert inferenceservice.runtime(fake.one("InferenceService", V1)) == servingruntime.SHARED


def test_an_ingress_that_is_not_a_versions_is_left_alone() -> None:
    fake = serving()
    for owner in ({"kind": "InferenceService", "name": V1, "uid": "another", "controller": True}, None):
        meta = {"name": V1, "namespace": NAMESPACE, "ownerReferences": [owner] if owner else []}
        fake.put({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": meta})
        assert settle(fake, NOW) == []


# The turns.


def turns(around: int) -> list[float]:
    """When 500 models have theirs, seconds from now."""
    found = []
    for number in range(500):
        facts = gather(
            ModelSnapshot(model=mlmodel(f"m{number}")), replace(NOW, renewal_seconds=around), asked(ONE), START
        )
        found.append((children._turn(facts) - START).total_seconds())  # noqa: SLF001  the spread
    return found


def test_turns_are_spread_over_the_fleet() -> None:
    found = turns(3600)
    assert max(found) < 3600
    by_minute = [sum(60 * m <= seconds < 60 * (m + 1) for seconds in found) for m in range(60)]
    assert max(by_minute) < 4 * len(found) / 60, "no minute has a crowd"


@pytest.mark.parametrize("around", [0, 60])
def test_a_fleet_that_is_not_to_wait_does_not(around: int) -> None:
    assert set(turns(around)) == {0.0}


# The deployment mode.


@pytest.mark.parametrize(
    ("reason", "live", "mode"),
    [
        ("a new one", None, "Standard"),
        ("as it was made", {"metadata": {"annotations": {inferenceservice.MODE: "RawDeployment"}}}, "RawDeployment"),
        ("as KServe runs it", {"metadata": {}, "status": {"deploymentMode": "Knative"}}, "Knative"),
        ("nobody says", {"metadata": {}}, "Standard"),
    ],
)
def test_the_deployment_mode_is_kept(reason: str, live: Object | None, mode: str) -> None:
    rendered = inferenceservice.render(mlmodel(), asked(ONE), V1, "s3://x", NOW, live=live)
    assert annotations_of(rendered)[inferenceservice.MODE] == mode, reason


def test_what_was_made_in_another_mode_is_not_written_again() -> None:
    fake = play([(0, lambda f: f.apply(mlmodel())), (300, lambda _: None)])
    assert settle(fake, Settings(kserve_mode="RawDeployment"), seconds=3600) == []
