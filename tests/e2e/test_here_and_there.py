"""The same YAML makes the same model in the cluster and on this machine without it.

The model of the other scenarios is made once more by `mlplatform.run`, from the same rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from e2e.scenario import FOLDER, NAMESPACE, Model, Object, stages

import mlplatform
from local.demo import PEOPLE
from mlplatform import contract
from mlplatform.contract import Stage

TIMED = ("latency_p50_ms", "latency_p99_ms")
"""Metrics that a clock made: they differ from one run to the next wherever it is."""


@pytest.fixture(scope="module")
def made_there(model: Model) -> Object:
    """The version that the cluster made."""
    name = model.get()["status"]["latestVersion"]
    return model.version_reaches(name, "is ready", lambda version: version["status"]["stage"] == "Ready", 10)


@pytest.fixture(scope="module")
def made_here(
    made_there: Object, model: Model, store: fsspec.AbstractFileSystem, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """The version that a run makes of the MLModel as it stands in the cluster, from a copy of its rows."""
    assert made_there["spec"]["model"] == model.name
    folder: Path = tmp_path_factory.mktemp("here")
    store.get(f"{FOLDER}/adult/adult.csv", str(folder / "adult.csv"))
    applied = model.get()
    manifest = {
        "apiVersion": applied["apiVersion"],
        "kind": applied["kind"],
        "metadata": {"name": model.name, "namespace": NAMESPACE},
        "spec": applied["spec"],
    }
    return mlplatform.run(manifest, data=folder / "adult.csv", store=folder / "store")


def test_it_has_the_same_name(made_there: Object, made_here: Any) -> None:
    assert made_here.passed, made_here.failure
    assert made_here.version == made_there["metadata"]["name"]


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_measures_the_same_to_the_last_digit(made_there: Object, made_here: Any, stage: Stage) -> None:
    there, here = stages(made_there)[stage], made_here.stages[stage]
    assert {k: v for k, v in here.metrics.items() if k not in TIMED} == {
        k: v for k, v in (there.get("metrics") or {}).items() if k not in TIMED
    }


def test_the_same_candidate_ships(made_there: Object, made_here: Any) -> None:
    there = stages(made_there)[Stage.OPTIMIZE]["details"]
    assert made_here.stages[Stage.OPTIMIZE].details["selected"] == there["selected"], there


def test_the_archives_are_equal_byte_for_byte(
    made_there: Object, made_here: Any, store: fsspec.AbstractFileSystem
) -> None:
    name, spec = made_there["metadata"]["name"], made_there["spec"]
    root = contract.artifact_root("mlplatform", NAMESPACE, spec["model"], name, spec["artifactId"])
    there = json.loads(store.cat_file(f"{root}/{contract.Artifacts.report(Stage.PACKAGE)}"))
    assert made_here.report(Stage.PACKAGE)["archiveDigest"] == there["archiveDigest"]


# TorchServe's package leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning")
def test_both_answer_alike(model: Model, made_here: Any) -> None:
    here = made_here.predict(PEOPLE)
    there = [model.answers(person).body for person in PEOPLE]
    timed = {"latency_ms"}
    assert [{k: v for k, v in answer.items() if k not in timed} for answer in here] == [
        {k: v for k, v in answer.items() if k not in timed} for answer in there
    ]
