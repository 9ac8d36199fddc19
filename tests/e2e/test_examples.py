"""The examples' own files: from `kubectl apply` to a served prediction, with fewer rows, a shorter training and one form."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from e2e.scenario import PROMPT_SECONDS, Model, Object, Platform, ask_until

from local.layout import REPO

OPTIMIZED: Object = {"candidates": ["fp32"], "export": ["torchscript"]}
SERVED: Object = {"replicas": {"min": 1, "max": 1}, "resources": {"cpu": "1", "memory": "1Gi"}}


@dataclass(frozen=True)
class Example:
    """One of examples/.

    Attributes:
        folder: Its name there.
        training: Fields of spec.training for the few rows.
        gates: What such a training must reach.
        record: A request's.
        is_answer: Whether this may be answered.
        options: Of its data.py.
        every: Of its lines after the header one in so many; the classes may come one after the other.
        image: Of its own, as the local cluster has it; empty for the platform's.
    """

    folder: str
    training: Mapping[str, Any]
    gates: list[Object]
    record: Object
    is_answer: Callable[[Object], bool]
    options: tuple[str, ...] = ()
    every: int = 1
    image: str = ""


EXAMPLES = [
    Example(
        "own-task",
        {"epochs": 10},
        [{"metric": "coverage", "min": 0.5}],
        {"readings": [14.0 + 4 * math.sin(hour * math.pi / 12) for hour in range(24)]},
        lambda found: found["low"] <= found["prediction"] <= found["high"],
        options=("--rows", "3000"),
        image="own-task",
    ),
    Example(
        "tweets",
        {"epochs": 2, "batchSize": 16, "resources": {"cpu": "1", "memory": "2Gi"}},
        [{"metric": "roc_auc", "min": 0.65}, {"metric": "balanced_accuracy", "min": 0.0}],
        {"text": "I would never trust a self-driving car"},
        lambda found: found["prediction"] in {"negative", "neutral", "positive"} and 0 < found["confidence"] <= 1,
        every=10,
    ),
    Example(
        "feed",
        {"epochs": 3, "batchSize": 256, "resources": {"cpu": "1", "memory": "1Gi"}},
        [{"metric": "roc_auc", "min": 0.6}, {"metric": "ndcg_at_10", "min": 0.0}],
        {"user": 19, "film": 1245, "genres": "Crime|Drama", "year": 1990},
        lambda found: 0 < found["watched"] < 1 and 0 < found["liked"] < 1 and found["prediction"] > 0,
        every=5,
    ),
    Example(
        "verses",
        {"epochs": 1, "batchSize": 16, "resources": {"cpu": "1", "memory": "2Gi"}},
        [{"metric": "bits_per_byte", "max": 3.5}],
        {"text": "And the LORD said unto"},
        lambda found: found["prediction"] != "" and found["perplexity"] > 1,
        every=10,
    ),
]


@pytest.fixture
def model(request: pytest.FixtureRequest, platform: Platform) -> Iterator[Model]:
    """The example's, not applied yet."""
    folder = request.getfixturevalue("example").folder
    found = Model(
        platform, yaml.safe_load((REPO / "examples" / folder / "mlmodel.yaml").read_text())["metadata"]["name"]
    )
    found.is_deleted()
    yield found
    found.is_deleted()
    found.is_gone()


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.folder for example in EXAMPLES])
def test_an_example_goes_from_its_files_to_an_answer(
    example: Example, model: Model, platform: Platform, store: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    # Given the example's data, where its specification looks for them
    folder = REPO / "examples" / example.folder
    spec: Object = yaml.safe_load((folder / "mlmodel.yaml").read_text())["spec"]
    subprocess.run([sys.executable, folder / "data.py", "--to", tmp_path, *example.options], check=True)
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        if example.every > 1:
            header, *lines = content.splitlines(keepends=True)
            content = b"".join([header, *lines[:: example.every]])
        store.pipe_file(f"{spec['data']['uri'].removeprefix('s3://')}{file.name}", content)
    # When its specification is applied
    training = {**spec["training"], **example.training}
    if example.image:
        if platform.cluster.kind != "local":
            pytest.skip("only the local cluster builds this example's image")
        training["image"] = platform.cluster.images()[example.image]
    model.is_applied(
        {**spec, "training": training, "gates": example.gates, "optimization": OPTIMIZED, "serving": SERVED}
    )
    # Then it serves, and its record gets an answer
    model.becomes_ready()
    answer = ask_until(model.target(), lambda found: found.status == 200, PROMPT_SECONDS, example.record)
    assert example.is_answer(answer.body), json.dumps(answer.body)
