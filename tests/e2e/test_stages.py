"""A stage that is stopped, waits, fails and is tried again, by the real controllers.

The training is a small one that checkpoints often; a model of its own each, none of which is served.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from e2e.scenario import FOLDER, NAMESPACE, SMALL, STAGE_SECONDS, Model, Object, Platform, find_condition, stages, told

from mlplatform import contract

JOB = "pytorchjobs.kubeflow.org"


@pytest.fixture
def trains(platform: Platform, small_data: str, request: pytest.FixtureRequest) -> Iterator[Model]:
    """A model of the test's own, not applied yet."""
    assert SMALL["data"]["uri"] == small_data
    found = Model(platform, f"e2e-{request.node.name.split('_')[-1]}")
    found.is_deleted()
    yield found
    found.is_deleted()
    found.is_gone()


def spec(**training: Any) -> Object:
    """The small model's, with changes of its training, for one pod."""
    found: Object = copy.deepcopy(SMALL)
    found["training"] |= {"workers": 1, "strategy": "single", **training}
    return found


LONG = {"epochs": 60, "checkpoint": {"everySteps": 5, "keep": 2}, "deadline": "30m"}


def runs(model: Model, version: str) -> str:
    """The training's pod, once its container works and has saved a checkpoint."""
    pod = f"{version}-train-master-0"
    model.platform.wait(
        "pods", lambda p: p["status"].get("phase") == "Running", f"{pod} runs", STAGE_SECONDS,
        namespace=NAMESPACE, field_selector=f"metadata.name={pod}",
    )  # fmt: skip
    model.log_says(pod, r"^checkpoint step=")
    return pod


def reason(kind: str, *words: str) -> Any:
    """Whether a version's condition has one of these reasons."""
    return lambda version: find_condition(version, kind).get("reason") in words


def has_trained(version: Object) -> bool:
    """Whether the training has passed."""
    return bool(stages(version).get("train", {}).get("outcome") == "Succeeded")


def test_a_model_that_is_suspended_and_goes_on_has_not_failed_suspend(trains: Model, platform: Platform) -> None:
    # Given a training with a checkpoint, when its model is suspended, then its pods go, and its job says who did it
    trains.is_applied(spec(**LONG))
    version = trains.gets_a_version()
    pod = runs(trains, version)
    trains.is_changed(suspend=True)
    platform.kubectl("wait", f"pod/{pod}", "-n", NAMESPACE, "--for=delete", "--timeout=90s")
    job = platform.cluster.get(JOB, f"{version}-train", "-n", NAMESPACE)
    assert job["metadata"]["annotations"][contract.ANNOTATION_HALTED] == "Suspended"
    held = trains.version_reaches(version, "is suspended", reason("Trained", "Suspended"), 30)
    worked = stages(held)["train"]["workedSeconds"]

    # And when it goes on, then the training ends from its checkpoint, and what it waited was no work
    trains.is_changed(suspend=False)
    record = stages(trains.version_reaches(version, "has trained", has_trained, 2 * STAGE_SECONDS))["train"]
    assert record["details"]["resumedFromStep"] > 0
    assert record["workedSeconds"] > worked
    assert record.get("restarts", []) == []


def test_what_somebody_else_suspended_is_theirs_to_resume_queued(trains: Model, platform: Platform) -> None:
    # Given a training that an administrator suspends, then it is queued, and stays so whatever the operator looks at
    trains.is_applied(spec(**LONG))
    version = trains.gets_a_version()
    runs(trains, version)

    def suspended(value: bool) -> None:  # noqa: FBT001  the field's own value
        body = json.dumps({"spec": {"runPolicy": {"suspend": value}}})
        platform.kubectl("patch", JOB, f"{version}-train", "-n", NAMESPACE, "--type=merge", "-p", body)

    suspended(True)
    trains.version_reaches(version, "is queued", reason("Trained", "Queued"), 60)
    platform.kill_operator()
    seen = platform.cluster.get(JOB, f"{version}-train", "-n", NAMESPACE)
    assert seen["spec"]["runPolicy"]["suspend"] is True

    # And goes on when they resume it
    suspended(False)
    trains.version_reaches(version, "has trained", has_trained, 2 * STAGE_SECONDS)


def test_a_stage_that_failed_runs_again_when_it_is_asked_to_retry(
    trains: Model, platform: Platform, store: fsspec.AbstractFileSystem
) -> None:
    # Given a training that failed for want of its data, then it says what runs it again
    later = f"{FOLDER}/later"
    if store.exists(later):
        store.rm(later, recursive=True)
    wanted = spec()
    wanted["data"] = {**wanted["data"], "uri": f"s3://{later}/"}
    trains.is_applied(wanted)
    failed = trains.fails("VersionReady")
    assert "DataMissing" in told(failed)
    assert f"kubectl mlmodel retry {trains.name} -n {NAMESPACE}" in told(failed)

    # When the data is there and a retry is asked for, then the same version trains
    store.copy(f"{FOLDER}/adult/adult.csv", f"{later}/adult.csv")
    platform.kubectl("mlmodel", "retry", trains.name, "-n", NAMESPACE)
    version = failed["status"]["latestVersion"]
    record = stages(trains.version_reaches(version, "has trained", has_trained, 2 * STAGE_SECONDS))["train"]
    assert record["attempt"] == 2


def test_a_training_that_has_used_up_its_restarts_says_what_its_pods_told_oom(
    trains: Model, platform: Platform
) -> None:
    # Given a training that needs more memory than it may have, each time
    trains.is_applied(spec(maxRestarts=1, resources={"cpu": "1", "memory": "96Mi"}))
    failed = trains.fails("VersionReady", 2 * STAGE_SECONDS)

    # Then the cause is that, though its pod is gone, and nobody is sent to a log that is gone, too
    failure = failed["status"]["failure"]
    assert failure["class"] == "OOMKilled"
    assert "the restarts that spec.training.maxRestarts allows (1) are used up" in failure["message"]
    assert "spec.training.resources.memory" in failure["nextAction"]
    version = failed["status"]["latestVersion"]
    pod = f"pod/{version}-train-master-0"
    platform.kubectl("wait", pod, "-n", NAMESPACE, "--for=delete", "--timeout=90s")
    record = stages(platform.cluster.get("modelversion", version, "-n", NAMESPACE))["train"]
    assert (record["outcome"], len(record["restarts"])) == ("Failed", 2)


def test_a_version_beyond_the_limit_goes_with_its_artifacts_and_with_nobody_elses_forget(
    trains: Model, platform: Platform, store: fsspec.AbstractFileSystem
) -> None:
    # Given a model that keeps one version beside the wanted one, and a version of it that missed its gate
    few = {"revisionHistoryLimit": 1, "artifactRetention": "Delete", "gates": [{"metric": "roc_auc", "min": 0.9999}]}
    trains.is_applied({**spec(), **few})
    version = trains.gets_a_version()
    missed = trains.version_reaches(
        version,
        "has missed its gate",
        lambda v: stages(v).get("audit", {}).get("outcome") == "Failed",
        3 * STAGE_SECONDS,
    )
    folder = f"mlplatform/{NAMESPACE}/{trains.name}/{version}-{missed['spec']['artifactId']}"
    assert store.find(folder)
    neighbour = f"{folder}0/report.json"
    store.pipe_file(neighbour, b"{}")

    # When two others are asked for after it, whose data is missing
    last = version
    for nowhere in ("nowhere", "elsewhere"):
        trains.is_changed(data={"uri": f"s3://{FOLDER}/{nowhere}/"})
        last = trains.gets_a_version(other_than=last)

    # Then its artifacts go, and then it, and nothing beside them
    platform.kubectl(
        "wait", f"modelversion/{version}", "-n", NAMESPACE, "--for=delete", f"--timeout={STAGE_SECONDS:.0f}s"
    )
    store.invalidate_cache()
    assert [path for path in store.find(folder) if path.startswith(f"{folder}/")] == []
    assert store.exists(neighbour)
    store.rm_file(neighbour)
    said = platform.kubectl("get", "events", "-n", NAMESPACE, "--field-selector", f"involvedObject.name={trains.name}")
    assert f"{version} (v1) was deleted, and with it what lay in s3://{folder}" in said
