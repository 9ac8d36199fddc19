"""Weights of rows: what the loss makes of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mljobs import train, trained, weights
from mljobs.failure import JobFailure
from mljobs.report import Job
from mljobs.store import Store
from mljobs.tasks import targets
from mlplatform import api
from mlplatform.contract import FailureClass, Stage

BINARY = {"name": "y", "classes": ["no", "yes"]}
LABELS: list[tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = [
    (BINARY, torch.randn(3), torch.tensor([True, False, True])),
    ({**BINARY, "weights": [0.5, 2.0]}, torch.randn(3), torch.tensor([True, False, True])),
    ({"name": "y", "kind": "multiclass", "classes": ["a", "b", "c"]}, torch.randn(3, 3), torch.tensor([0, 2, 1])),
    ({"name": "y", "kind": "regression", "mean": 3.0, "scale": 2.0}, torch.randn(3), torch.tensor([1.0, 4.0, 9.0])),
]


@pytest.mark.parametrize(("label", "outputs", "wanted"), LABELS, ids=["binary", "by class", "classes", "numbers"])
def test_a_weight_of_two_is_the_row_twice(label: dict[str, Any], outputs: torch.Tensor, wanted: torch.Tensor) -> None:
    objective: Any = targets.objective(label)
    twice = torch.tensor([0, 1, 1, 2])
    found = (objective.losses(outputs, wanted) * torch.tensor([1.0, 2.0, 1.0])).sum() / 4
    assert torch.allclose(found, objective.loss(outputs[twice], wanted[twice]))


@pytest.mark.parametrize(
    ("values", "wanted", "reason"),
    [
        ([1, 3, 5, 7], [0.6, 1.4], "whole numbers: rows 1 and 3 of four, their mean is 1"),
        ([0.0, 0.5, 9.0, 0.0], [2.0, 0.0], "0 is a weight"),
        (["1,000", "3,000", "1", "1,000"], [1.5, 0.5], "text that is read as numbers are"),
    ],
)
def test_weights_of_the_training_rows_have_mean_1(values: list[Any], wanted: list[float], reason: str) -> None:
    found = weights.read(pa.table({"w": values}), "w", np.array([1, 3]))
    assert found.tolist() == pytest.approx(wanted), reason
    assert weights.effective(np.ones(7)) == 7


REFUSED = [
    ({"w": [1, None, 3]}, "has None in row 2", "one that is missing"),
    ({"w": [1.0, 2.0, -0.5]}, "has -0.5 in row 3", "below 0"),
    ({"w": [1.0, float("inf"), 2.0]}, "has inf in row 2", "no end"),
    ({"w": ["1", "heavy", "2"]}, "has 'heavy' in row 2", "a word"),
    ({"w": [0, 0, 1]}, "is 0 in all 2 training rows", "none is left"),
    ({"Weight": [1, 1, 1]}, "has no column 'w'", "no such column"),
]


@pytest.mark.parametrize(("columns", "words", "reason"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_what_is_no_weight_is_refused_with_its_row(columns: dict[str, list[Any]], words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as found:
        weights.read(pa.table(columns), "w", np.array([0, 1]))
    assert found.value.failure.reason is FailureClass.DATA_INVALID, reason
    assert words in found.value.failure.message
    assert "spec.data.weight" in found.value.failure.message + found.value.failure.next_action


def job(folder: Path, column: str, **more: Any) -> Job:
    """600 rows: the label of those that a is 1 of follows from x, that of the others from -x."""
    rng = np.random.default_rng(2)
    x, other, half = rng.normal(size=600), rng.normal(size=600), rng.random(600) < 0.5
    y = np.where(half, x, -x) > 0
    lines = [f"{x[i]:.4f},{other[i]:.4f},{int(half[i])},{int(not half[i])},{'ny'[int(y[i])]}" for i in range(600)]
    (folder / "rows.csv").write_text("\n".join(["x,other,a,b,y", *lines]) + "\n")
    spec = {
        "model": "m", "sequence": 1,
        "data": {"uri": str(folder / "rows.csv"), "label": "y", "weight": column, "columns": {"ab".replace(column, ""): "ignore"}},
        "training": {"epochs": 12, "batchSize": 32, "optimizer": {"learningRate": 0.01}, **more},
    }  # fmt: skip
    return Job(Stage.TRAIN, "m", "m-0", api.decode(api.ModelVersionSpec, spec), Store(str(folder / column)))


@pytest.mark.parametrize(("column", "direction"), [("a", 1), ("b", -1)])
def test_rows_that_weigh_nothing_teach_nothing(column: str, direction: int, tmp_path: Path) -> None:
    asked = job(tmp_path, column)
    assert train.main(asked) is not None
    found = trained.load(asked)
    assert [feature["name"] for feature in found.config["features"]] == ["x", "other"]
    x = np.array(found.test.column("x").to_pylist())
    scores = trained.scores(found.objective, found.model, found.inputs)
    learned = (scores > 0.5) == (direction * x > 0)
    assert learned.mean() > 0.9

    report = asked.read_json("train/report.json")
    assert report["data"]["columns"][column]["why"] == "spec.data.weight names it"
    assert report["data"]["effectiveRows"] == pytest.approx(report["rows"]["train"] / 2, rel=0.2)


def test_a_task_without_losses_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(targets.Target, "losses")
    monkeypatch.delattr(targets.Binary, "losses")
    with pytest.raises(JobFailure, match=r"spec\.data\.weight names 'a'.*has no loss of each row") as caught:
        train.main(job(tmp_path, "a"))
    assert "losses(outputs, targets)" in caught.value.failure.next_action
    torch.distributed.destroy_process_group()
