"""Back to an earlier version, and who answers while the stable one cannot: on a model of its own.

The name sorts before `test_life`, which counts the versions of the model that the other scenarios share.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.scenario import (
    NAMESPACE,
    PROMPT_SECONDS,
    SMALL,
    STAGE_SECONDS,
    Model,
    Platform,
    ask_until,
    condition,
    find_condition,
    told,
)

from local.demo import weights
from mlplatform import contract


@pytest.fixture(scope="module")
def aged(platform: Platform, small_data: str) -> Iterator[Model]:
    """A model that was retrained: its second version serves, and the first one's pods have gone."""
    assert SMALL["data"]["uri"] == small_data
    found = Model(platform, "e2e-back")
    found.is_deleted()
    found.is_applied({**SMALL, "training": {**SMALL["training"], "workers": 1}})
    found.becomes_ready()
    first = found.get()["status"]["stable"]["version"]
    platform.kubectl("mlmodel", "retrain", found.name, "-n", NAMESPACE, "--key", "monday")
    found.reaches(
        "serves the retrained version",
        lambda m: condition(m, "Ready") == "True" and m["status"]["stable"]["version"] != first,
        4 * STAGE_SECONDS,
    )
    platform.kubectl("wait", f"inferenceservice/{first}", "-n", NAMESPACE, "--for=delete", "--timeout=60s")
    yield found
    found.is_deleted()


def test_ready_names_what_is_wrong_with_new_pods_while_old_ones_answer(aged: Model) -> None:
    # Given a model that serves, when a change gives its pods too little memory
    aged.is_changed(serving={"resources": {"cpu": "1", "memory": "128Mi"}})

    # Then Ready says so in the pod's own words, and the old pod goes on answering
    seen = aged.fails("Ready")
    assert find_condition(seen, "Ready")["reason"] in {"OOMKilled", "Crashed"}, told(seen)
    assert (condition(seen, "Serving"), condition(seen, "RolloutPassed")) == ("True", "True")
    assert seen["status"]["failure"]["pod"] in told(seen)
    assert aged.answers().status == 200

    # And when the change is taken back, nothing is left of it
    aged.is_changed(serving={"resources": {"cpu": "1", "memory": "1Gi"}})
    aged.becomes_ready(STAGE_SECONDS)


def test_absence_is_no_wish_and_the_way_back_works_after_a_retrain(aged: Model, platform: Platform) -> None:
    # Given a retrained model whose annotation a tool has stripped, then the same version is wanted
    seen = aged.get()["status"]
    second = seen["stable"]["version"]
    first = next(d["previous"] for d in seen["history"] if d["version"] == second)
    platform.kubectl("annotate", "mlmodel", aged.name, "-n", NAMESPACE, f"{contract.ANNOTATION_RETRAIN}-")

    # When somebody goes back, under load
    with aged.under_load() as load:
        said = platform.kubectl("mlmodel", "rollback", aged.name, "-n", NAMESPACE, "--wait", "--timeout", "3m")
        assert load.wait_for(load.outcome.total + 40)

    # Then the first version serves, and no request was lost while its pods were started
    assert f"{first} takes all the traffic" in said
    assert (load.outcome.failed, load.outcome.failures) == (0, [])
    gone_back = aged.reaches("has taken note", lambda m: condition(m, "RolloutPassed") == "False", PROMPT_SECONDS)
    assert gone_back["status"]["stable"]["version"] == first
    assert gone_back["status"]["latestVersion"] == second, "what is wanted, has not changed"
    latest = gone_back["status"]["history"][0]
    assert (latest["version"], latest["decision"], latest["reason"]) == (second, "RolledBack", "RolledBackByUser")
    aged.reaches(
        "has no request any more",
        lambda m: contract.ANNOTATION_ROLLBACK not in m["metadata"].get("annotations", {}),
        PROMPT_SECONDS,
    )


def test_a_stable_version_without_a_pod_hands_its_traffic_over_and_gets_it_back(
    aged: Model, platform: Platform
) -> None:
    # Given a third version that takes a quarter of the traffic, for a long time
    stable = aged.get()["status"]["stable"]["version"]
    aged.is_changed(training={"hyperparameters": {"hidden": [16], "dropout": 0.0}}, rollout={"interval": "30m"})
    third = aged.gets_a_version(other_than=aged.get()["status"]["history"][0]["version"])
    route_is(aged, {stable: 75, third: 25}, 4 * STAGE_SECONDS)

    # When the pod of the stable version dies
    pods = f"{contract.LABEL_VERSION}={stable},app.kubernetes.io/component=predictor"
    platform.kubectl("delete", "pod", "-n", NAMESPACE, "-l", pods, "--grace-period=0", "--force")

    # Then all requests go to who answers, nothing is promoted, and it goes on where it was
    route_is(aged, {third: 100}, PROMPT_SECONDS)
    said = aged.fails("Serving", PROMPT_SECONDS)
    assert find_condition(said, "Serving")["reason"] == "StableNotReady"
    assert said["status"]["stable"]["version"] == stable
    ask_until(aged.target(), lambda a: a.status == 200 and a.body["model_version"] == third, PROMPT_SECONDS)
    route_is(aged, {stable: 75, third: 25}, STAGE_SECONDS)

    # And when somebody has had enough of it, one command ends it at the stable version
    platform.kubectl("mlmodel", "rollback", aged.name, "-n", NAMESPACE, "--wait", "--timeout", "30s")
    route_is(aged, {stable: 100}, PROMPT_SECONDS)


def route_is(model: Model, split: dict[str, int], seconds: float) -> None:
    """Waits until the mesh splits the traffic like that."""
    model.platform.wait(
        "virtualservices",
        lambda route: {version: weight for version, weight in weights(route).items() if weight} == split,
        f"traffic is split {split}",
        seconds,
        field_selector=f"metadata.name={model.name}",
    )
