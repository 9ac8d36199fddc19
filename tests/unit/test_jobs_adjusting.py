"""Thresholds and temperatures: what is chosen on the validation rows, and that what is served answers by it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from mljobs import train, trained
from mljobs.failure import JobFailure
from mljobs.report import Job
from mljobs.store import Store
from mljobs.tasks import Strata, Targets, adjusting, targets
from mljobs.tasks.tabular_model import Served, predictions
from mlplatform import api
from mlplatform.api import Threshold, Training
from mlplatform.contract import FailureClass, Stage

CHOSEN = [
    ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], "balanced_accuracy", 0.25, "one that parts them"),
    ([0, 1], [0.3, 0.7], "f1", 0.5, "amid two scores"),
    ([0, 1, 0, 1], [0.4, 0.4, 0.4, 0.4], "f1", 0.5, "one score for all leaves one half"),
    ([0, 0, 1, 1], [0.2, 0.6, 0.4, 0.9], "balanced_accuracy", 0.3, "of 0.3 and 0.75 the one nearer to one half"),
    ([0, 0, 0, 0, 0, 0, 0, 0, 1, 0], [0.1] * 8 + [0.2, 0.3], "accuracy", 0.15, "the most rows that are right"),
]


@pytest.mark.parametrize(("flags", "scores", "metric", "wanted", "reason"), CHOSEN, ids=[case[-1] for case in CHOSEN])
def test_the_best_threshold(flags: list[int], scores: list[float], metric: str, wanted: float, reason: str) -> None:
    assert adjusting.best_threshold(np.array(flags, bool), np.array(scores), metric) == pytest.approx(wanted), reason


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "f1"])
def test_no_threshold_is_better_than_the_one_that_is_chosen(metric: str) -> None:
    rng = np.random.default_rng(5)
    scores = rng.random(400).round(2)
    flags = rng.random(400) < scores**2
    measure = getattr(sk, f"{metric}_score")
    found = measure(flags, scores >= adjusting.best_threshold(flags, scores, metric))
    assert found == pytest.approx(max(measure(flags, scores >= each) for each in np.arange(0.005, 1, 0.01)))


@pytest.mark.parametrize("classes", [1, 4])
def test_the_temperature_undoes_outputs_that_are_too_sure(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((20_000, classes), generator=generator, dtype=torch.float64) * 2
    if classes == 1:
        logits = logits.squeeze(1)
        targets = torch.rand(20_000, generator=generator, dtype=torch.float64) < torch.sigmoid(logits)
    else:
        targets = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)
    assert adjusting.temperature(logits * 3, targets) == pytest.approx(3, rel=0.05)
    assert adjusting.temperature(logits, targets) == pytest.approx(1, rel=0.05)


def test_a_temperature_moves_no_class_before_another() -> None:
    outputs = torch.tensor([[1.0, 2.0, 0.0], [0.3, 0.2, 0.1]], dtype=torch.float64)
    label = {"name": "x", "kind": "multiclass", "classes": ["a", "b", "c"]}
    warm = predictions({**label, "temperature": 4.0})
    cold = predictions(label)
    assert torch.equal(warm.scores(outputs).argsort(), cold.scores(outputs).argsort())
    assert torch.allclose(warm.scores(outputs), torch.softmax(outputs / 4, 1))


def test_a_class_is_answered_by_the_threshold_with_its_own_probability() -> None:
    found = predictions({"name": "x", "classes": ["no", "yes"], "threshold": 0.3}).columns(
        torch.tensor([0.29, 0.3, 0.9])
    )
    assert found["prediction"][1] == ["no", "yes", "yes"]
    assert found["confidence"][1] == [0.71, 0.3, 0.9]


def rare(folder: Path) -> Path:
    """600 rows, of which one in eight is positive."""
    rng = np.random.default_rng(4)
    x, kind = rng.normal(size=600), rng.choice(["a", "b"], 600)
    y = x + (kind == "b") + rng.normal(size=600) > 2.2
    lines = [f"{x[i]:.4f},{kind[i]},{['no', 'yes'][int(y[i])]}" for i in range(600)]
    (folder / "rows.csv").write_text("\n".join(["x,kind,grade", *lines]))
    return folder / "rows.csv"


def job(folder: Path, training: dict[str, Any], **data: Any) -> Job:
    spec = {
        "model": "m", "sequence": 1, "data": {"uri": str(rare(folder)), "label": "grade", **data},
        "training": {"epochs": 8, "batchSize": 32, **training},
    }  # fmt: skip
    return Job(Stage.TRAIN, "m", "m-0", api.decode(api.ModelVersionSpec, spec), Store(str(folder / "store")))


def test_what_the_validation_rows_decide_is_what_every_stage_and_the_answers_use(tmp_path: Path) -> None:
    asked = job(tmp_path, {"threshold": {"maximize": "balanced_accuracy"}, "calibration": "temperature"})
    summary = train.main(asked)
    assert summary is not None
    found = trained.load(asked)
    label = found.config["label"]
    assert 0 < label["threshold"] < 0.5, "one class of eight is rare"
    assert adjusting.COLDEST < label["temperature"] < adjusting.HOTTEST

    scores = trained.scores(found.objective, found.model, found.inputs)
    measured = found.objective.evaluate(found.targets, scores)
    assert measured["balanced_accuracy"] == pytest.approx(
        sk.balanced_accuracy_score(found.targets, scores >= label["threshold"])
    )
    report = asked.read_json("train/report.json")
    assert report["data"]["threshold"] == label["threshold"]
    assert summary.metrics["val_balanced_accuracy"] > 0.7

    served = Served(json.loads(json.dumps(found.config)))
    with torch.no_grad():
        answers = served.answers(found.model(*found.inputs).double())
    assert [name == "yes" for name in answers["prediction"][1]] == (scores >= label["threshold"]).tolist()
    assert max(found.objective.off({"prediction": p, "confidence": c}, s) for p, c, s in zip(
        answers["prediction"][1], answers["confidence"][1], scores, strict=True)) < 1e-6  # fmt: skip


REFUSED = [
    ({"threshold": {"value": 0.3}}, {"target": "regression"}, "spec.training.threshold", "a measured label has none"),
    ({"calibration": "temperature"}, {"target": "regression"}, "spec.training.calibration", "nor probabilities"),
]


@pytest.mark.parametrize(("training", "more", "field", "reason"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_a_label_without_one_is_refused_before_the_training(
    training: dict[str, Any], more: dict[str, Any], field: str, reason: str, tmp_path: Path
) -> None:
    asked = job(tmp_path, training, **more)
    path = Path(asked.spec.data.uri)
    path.write_text(path.read_text().replace("yes", "1").replace("no", "0"))
    with pytest.raises(JobFailure, match=field) as caught:
        train.main(asked)
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID, reason
    assert "Take it out" in caught.value.failure.next_action
    torch.distributed.destroy_process_group()


def test_nothing_is_decided_where_nothing_is_asked_for() -> None:
    label = {"name": "x", "classes": ["no", "yes"]}
    outputs, flags = torch.zeros(4, dtype=torch.float64), np.array([True, False, True, False])
    assert adjusting.adjusted(label, flags, outputs, Training()) == label
    fixed = adjusting.adjusted(label, flags, outputs, Training(threshold=Threshold(value=0.2)))
    assert fixed == {**label, "threshold": 0.2}
    assert math.isfinite(adjusting.temperature(outputs, torch.from_numpy(flags)))


def test_weights_let_each_class_count_as_much(tmp_path: Path) -> None:
    found = {}
    for weights in ("none", "balanced"):
        folder = tmp_path / weights
        folder.mkdir()
        asked = job(folder, {"hyperparameters": {"classWeights": weights}})
        assert train.main(asked)
        found[weights] = trained.load(asked)
    no, yes = found["balanced"].config["label"]["weights"]
    text = rare(tmp_path).read_text()
    assert yes / no == pytest.approx(text.count("no") / text.count("yes"), rel=0.05)
    recall = {
        name: sk.recall_score(model.targets, trained.scores(model.objective, model.model, model.inputs) >= 0.5)
        for name, model in found.items()
    }
    assert recall["balanced"] > recall["none"], "rare ones are found more often"


@pytest.mark.parametrize("classes", [2, 3])
def test_the_mean_of_equal_losses_is_left_alone_by_weights(classes: int) -> None:
    kind = {"kind": "multiclass"} if classes > 2 else {}
    values = np.arange(90) % 10 % classes
    found = Targets(
        values if classes > 2 else values.astype(bool),
        Strata(values, ("a", "b", "c")[:classes]),
        {"name": "x", "classes": ["a", "b", "c"][:classes], **kind},
    )
    label = targets.describe(found, np.arange(90), "balanced")
    objective = targets.objective(label)
    outputs = torch.zeros(90) if classes == 2 else torch.zeros(90, 3)
    assert float(objective.loss(outputs, torch.from_numpy(found.values))) == pytest.approx(math.log(classes))


def test_a_measured_label_has_no_classes_to_weigh() -> None:
    found = Targets(np.arange(9.0), Strata(np.zeros(9, int), ("x",)), {"name": "x", "kind": "regression"})
    with pytest.raises(JobFailure, match="classWeights is balanced, and the label is measured"):
        targets.describe(found, np.arange(9), "balanced")
