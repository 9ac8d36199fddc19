"""A model of another kind than the one that the scenarios share, from other files, with nothing said of its training."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator

import fsspec
import pytest
from e2e.scenario import FOLDER, PROMPT_SECONDS, Model, Object, Platform, ask_until, condition

from mlplatform import contract
from mlplatform.contract import Artifacts, Stage

ROWS = 1500
SPEC: Object = {
    "data": {
        "uri": f"s3://{FOLDER}/plants/",
        "format": "jsonl",
        "label": "plant",
        "sensitiveAttributes": ["garden"],
        "split": {"by": {"group": "bed"}},
    },
    "training": {"calibration": "temperature", "resources": {"cpu": "1", "memory": "1Gi"}},
    "gates": [{"metric": "balanced_accuracy", "min": 0.7}],
    "fairness": {"metrics": {"accuracy_difference": 0.9}},
    "optimization": {"candidates": ["fp32"], "export": ["torchscript"]},
    "serving": {"replicas": {"min": 1, "max": 1}, "resources": {"cpu": "1", "memory": "1Gi"}},
}
HEIGHT = {"fern": 30, "rose": 60, "vine": 150}


def plants() -> list[bytes]:
    """Two files of an object a line: three plants that differ in height and in leaves; some leaves were not counted."""
    rng = random.Random(7)  # noqa: S311  no secret
    rows = []
    for i in range(ROWS):
        plant = rng.choice(sorted(HEIGHT))
        leaves = {"leaves": rng.choice(["few", "many"] if plant == "rose" else ["many"])} if rng.random() < 0.9 else {}
        height = round(rng.gauss(HEIGHT[plant], 12), 1)
        rows.append({"bed": f"bed {i // 10}", "garden": rng.choice("ns"), "height": height, **leaves, "plant": plant})
    lines = [json.dumps(row) + "\n" for row in rows]
    return [gzip.compress("".join(part).encode()) for part in (lines[::2], lines[1::2])]


@pytest.fixture
def model(platform: Platform) -> Iterator[Model]:
    """One of the test's own, not applied yet."""
    found = Model(platform, "e2e-plants")
    found.is_deleted()
    yield found
    found.is_deleted()
    found.is_gone()


def test_three_classes_from_lines_of_objects_become_answers(model: Model, store: fsspec.AbstractFileSystem) -> None:
    # Given packed lines of objects in the store, and a specification that leaves the training to the platform
    for i, content in enumerate(plants()):
        store.pipe_file(f"{FOLDER}/plants/part-{i}.jsonl.gz", content)
    # When it is applied
    model.is_applied(SPEC)
    # Then it serves, and each record gets its class
    name = model.becomes_ready()["status"]["stable"]["version"]
    target = model.target()
    for plant, height in HEIGHT.items():
        record = {"height": height, "leaves": "many", "garden": "n"}
        answer = ask_until(target, lambda found: found.status == 200, PROMPT_SECONDS, record)
        assert answer.body["prediction"] == plant, answer.body

    # And the training's report says what was settled, chosen and left out
    version = model.version_reaches(name, "is ready", lambda v: condition(v, "Ready") == "True")
    artifact_id = version["spec"].get("artifactId", "")
    root = contract.artifact_root("mlplatform", model.namespace, model.name, name, artifact_id)
    report = json.loads(store.cat_file(f"{root}/{Artifacts.report(Stage.TRAIN)}"))
    assert report["data"]["target"] == "multiclass"
    assert report["data"]["temperature"] > 0
    assert "split.by.group" in report["data"]["columns"]["bed"]["why"]
    assert set(report["training"]["automatic"]) == {"strategy", "precision", "batchSize", "epochs"}
    assert report["training"]["strategy"] == "single"

    # And a profile of the training rows is beside the weights
    reference = json.loads(store.cat_file(f"{root}/{Artifacts.REFERENCE}"))
    assert reference["rows"] == report["rows"]["train"] == sum(reference["label"]["counts"].values())
    assert {feature["name"] for feature in reference["features"]} == {"garden", "height", "leaves"}
