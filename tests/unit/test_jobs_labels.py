"""Several labels at once: how they are read, learned, judged and answered, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn import metrics as sk
from standalone_kit import people_model

import mlplatform
from mljobs import data, package, profile
from mljobs.failure import JobFailure
from mljobs.tasks import adjusting, targets
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import Preprocessor, RecordError, predictions
from mljobs.tasks.targets import MultiLabel
from mlplatform import api
from mlplatform.api import Data, Fairness, Split, SplitBy
from mlplatform.contract import TARGET_FAIRNESS, TARGET_METRICS, Artifacts, FailureClass, Stage

pytestmark = [
    pytest.mark.usefixtures("importable"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

LABEL: dict[str, Any] = {
    "kind": "multilabel",
    "labels": [{"name": "hot", "classes": ["no", "yes"]}, {"name": "wet", "classes": ["0", "1"]}],
}
ASKED = Data(uri="x", labels=("hot", "wet"))


def read(hot: list[Any], wet: list[Any], **more: Any) -> targets.Targets:
    return targets.read(pa.table({"hot": hot, "wet": wet}), Data(uri="x", labels=("hot", "wet"), **more))


def test_each_label_is_read_as_one_of_two_values_is() -> None:
    found = read(["yes", "no", "yes", "no"], [1.0, 0.0, 0.0, 1.0])
    assert found.values.tolist() == [[True, True], [False, False], [True, False], [False, True]]
    assert found.label == LABEL
    assert read([True, False] * 2, ["Ja", "Nein"] * 2).label["labels"] == [
        {"name": "hot", "classes": ["false", "true"]}, {"name": "wet", "classes": ["Ja", "Nein"]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "hot", "words", "action"),
    [
        ("several classes", ["a", "b", "c", "a"], "the label column 'hot' has 3 distinct value(s) (a, b, c), and each of spec.data.labels needs two", "Make a column of two values for each of its classes"),
        ("one value", ["a"] * 4, "has 1 distinct value(s) (a)", "take it out of spec.data.labels"),
        ("nothing in a row", ["a", None, "b", "a"], "1 of 4 rows have no value in the label column 'hot': first row 2", "Remove these rows"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_by_name(reason: str, hot: list[Any], words: str, action: str) -> None:
    with pytest.raises(JobFailure) as caught:
        read(hot, [1, 0, 1, 0])
    assert caught.value.failure.reason is FailureClass.DATA_INVALID
    assert words in caught.value.failure.message, reason
    assert action in caught.value.failure.next_action, reason


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(JobFailure, match=r"spec.data.labels names no column 'wett'|no column 'wett'"):
        targets.read(pa.table({"hot": [0, 1], "wet": [0, 1]}), Data(uri="x", labels=("hot", "wett")))


def test_each_part_has_its_share_of_what_is_rare() -> None:
    """By chance alone a part of 100 rows would lack a label of 10 in 1,000 every third time."""
    hot, wet = np.zeros(1000, dtype=int), np.ones(1000, dtype=int)
    hot[:10], wet[10:20] = 1, 0
    found = read(hot.tolist(), wet.tolist())
    for seed in range(5):
        parts = data.split(found.strata, Split(seed=seed))
        assert [found.values[part, 0].sum() for part in parts] == [7, 1, 2]
        assert [(~found.values[part, 1]).sum() for part in parts] == [7, 1, 2]


@pytest.mark.parametrize("by", [None, SplitBy(key=("row",))])
def test_a_part_that_lacks_a_value_is_named(by: SplitBy | None) -> None:
    table = pa.table({"hot": [1] * 2 + [0] * 98, "wet": [0, 1] * 49 + [1, 0], "row": list(range(100))})
    found = targets.read(table, ASKED)
    with pytest.raises(
        JobFailure, match=r"part of the split has no row of '1' of the label 'hot', which has 2 in all"
    ) as caught:
        data.split(found.strata, Split(by=by), table)
    assert "spec.data.split" in caught.value.failure.next_action


def test_the_metrics_are_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    flags, scores = generator.random((300, 2)) < [0.2, 0.7], generator.random((300, 2))
    found = MultiLabel(LABEL).evaluate(flags, scores)
    assert tuple(found) == TARGET_METRICS["multilabel"]
    each = list(zip(flags.T, scores.T, strict=True))
    assert found["roc_auc"] == pytest.approx(np.mean([sk.roc_auc_score(*one) for one in each]))
    assert found["average_precision"] == pytest.approx(np.mean([sk.average_precision_score(*one) for one in each]))
    assert found["log_loss"] == pytest.approx(np.mean([sk.log_loss(*one) for one in each]))
    assert found["micro_f1"] == pytest.approx(sk.f1_score(flags.ravel(), scores.ravel() >= 0.5))
    assert found["hamming_loss"] == pytest.approx((flags != (scores >= 0.5)).mean())


def test_the_loss_is_the_mean_of_the_labels_and_rare_values_may_weigh_more() -> None:
    found = read(["yes"] + ["no"] * 7, [0, 1] * 4)
    outputs = torch.tensor([[2.0, -1.0]] * 8)
    wanted = torch.from_numpy(found.values)
    plain = targets.objective(targets.describe(found, np.arange(8)))
    each = [torch.nn.functional.binary_cross_entropy_with_logits(outputs[:, i], wanted[:, i].float()) for i in (0, 1)]
    assert plain.loss(outputs, wanted).item() == pytest.approx(float(sum(each)) / 2)
    described = targets.describe(found, np.arange(8), "balanced")
    assert described["weights"] == [[pytest.approx(8 / 14), 4.0], [1.0, 1.0]]
    assert targets.objective(described).loss(outputs, wanted) != plain.loss(outputs, wanted)


def test_what_outputs_mean() -> None:
    found = predictions(LABEL)
    answered = found.columns(found.scores(torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, -3.0]])))
    assert answered["prediction"] == ("BYTES", ["hot|wet", "hot", ""])
    assert answered["wet"] == ("FP32", [0.952574, 0.047426, 0.047426])
    assert found.columns(torch.empty(0)) == {"prediction": ("BYTES", []), "hot": ("FP32", []), "wet": ("FP32", [])}


def test_one_temperature_makes_the_flags_of_all_likeliest() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((20_000, 2), generator=generator, dtype=torch.float64) * 2
    wanted = torch.rand(logits.shape, generator=generator, dtype=torch.float64) < torch.sigmoid(logits)
    assert adjusting.temperature(logits * 3, wanted) == pytest.approx(3, rel=0.05)


def test_a_model_is_held_beside_the_same_labels_for_all_rows() -> None:
    generator = np.random.default_rng(2)
    flags = generator.random((400, 2)) < [0.2, 0.7]
    found = MultiLabel(LABEL)
    right = np.where(generator.random((400, 2)) < 0.8, flags, ~flags)
    assert found.constant(flags, right.astype(float))["better"]
    chance = found.constant(flags, generator.random((400, 2)))
    assert (chance["better"], chance["metric"], chance["answer"], chance["floor"]) == (
        False,
        "balanced_accuracy",
        "wet",
        0.5,
    )
    assert found.constant(flags, np.zeros((400, 2)))["answer"] == "(none)"


def test_a_difference_is_that_of_the_label_that_differs_most() -> None:
    groups = np.repeat(["a", "b"], 100)
    scores = np.zeros((200, 2))
    scores[:50, 0] = scores[:80, 1] = scores[100:120, 1] = 1
    flags = scores > 0
    found = MultiLabel(LABEL).compare(groups, flags, scores, Fairness())
    assert tuple(found["differences"]) == TARGET_FAIRNESS["multilabel"]
    assert found["differences"]["demographic_parity_difference"]["value"] == pytest.approx(0.6)
    assert found["differences"]["accuracy_difference"]["value"] == 0
    assert MultiLabel(LABEL).differences(groups, flags, scores, 50) == {
        metric: interval["value"] for metric, interval in found["differences"].items()
    }


def rows_of(folder: Path, more: str = "", rows: int = 600) -> Path:
    generator = np.random.default_rng(4)
    heat, rain, group = generator.normal(size=rows), generator.normal(size=rows), generator.choice(["a", "b"], rows)
    hot, wet = heat + generator.normal(0, 0.3, rows) > 0.8, rain - heat / 2 > 0
    lines = ["heat,rain,group,hot,wet" + (f",{more}" if more else "")]
    lines += [
        f"{heat[i]:.3f},{rain[i]:.3f},{group[i]},{['no', 'yes'][int(hot[i])]},{int(wet[i])}"
        + (f",{int(wet[i]) + 5}" if more else "")
        for i in range(rows)
    ]
    (folder / "days.csv").write_text("\n".join(lines) + "\n")
    return folder / "days.csv"


def test_no_label_is_a_feature_and_what_tells_one_is_refused(tmp_path: Path) -> None:
    asked = api.decode(Data, {"uri": str(rows_of(tmp_path)), "labels": ["hot", "wet"]})
    rows, task = data.load(asked), TabularTask({})
    found = task.targets(rows.table, asked)
    parts = data.split(found.strata, asked.split)
    assert task.choose(rows, found, parts, asked).left_out == {}
    config = task.fit(rows.table, found, parts.train)
    assert [feature["name"] for feature in config["features"]] == ["heat", "rain", "group"]
    columns = profile.described(rows, {}, {}, asked.predicted)
    assert {name: column["use"] for name, column in columns.items()} == {
        "heat": "feature", "rain": "feature", "group": "feature", "hot": "label", "wet": "label",
    }  # fmt: skip
    with pytest.raises(RecordError, match="hot, wet is what the model answers, leave it out"):
        Preprocessor(config).transform([{"heat": 1, "hot": "yes", "wet": 0}])
    asked = api.decode(Data, {"uri": str(rows_of(tmp_path, "wetness")), "labels": ["hot", "wet"]})
    rows = data.load(asked)
    with pytest.raises(JobFailure, match="the column 'wetness' tells the label 'wet'"):
        task.choose(rows, task.targets(rows.table, asked), parts, asked)


def test_they_go_from_a_file_to_a_served_answer(tmp_path: Path) -> None:
    model = people_model(
        rows_of(tmp_path),
        gates=[{"metric": "roc_auc", "min": 0.8}, {"metric": "hamming_loss", "max": 0.3}],
        fairness={"metrics": {"demographic_parity_difference": 0.9, "accuracy_difference": 0.9}, "minGroupSize": 20},
    )
    model["spec"]["data"] = {"uri": str(tmp_path), "labels": ["hot", "wet"], "sensitiveAttributes": ["group"]}
    model["spec"]["training"] |= {"earlyStopping": {"patience": 4}, "calibration": "temperature", "epochs": 8}
    done = mlplatform.run(model, store=tmp_path / "store")
    assert (done.passed, done.missed, done.failure) == (True, (), None)
    trained = done.report(Stage.TRAIN)
    assert trained["data"]["target"] == "multilabel"
    assert trained["data"]["labels"] == {"hot": "yes", "wet": "1"}
    assert trained["data"]["temperature"] > 0
    assert set(done.stages[Stage.AUDIT].metrics) == set(TARGET_METRICS["multilabel"])
    assert set(done.stages[Stage.AUDIT].details["fairness"]) == set(TARGET_FAIRNESS["multilabel"])
    reference = json.loads((done.artifacts / Artifacts.REFERENCE).read_text())
    assert [sum(label["counts"].values()) for label in reference["label"]["labels"]] == [reference["rows"]] * 2
    answers = done.predict([{"heat": 2, "rain": 2.5}, {"heat": -2, "rain": -2.5, "group": "a"}])
    assert [answer["prediction"] for answer in answers] == ["hot|wet", ""]
    assert answers[0]["hot"] > 0.5 > answers[1]["wet"]
    [archive] = (done.artifacts / Artifacts.SERVING).glob("model-store/*.mar")
    handler, context = package.load(archive, tmp_path / "unpacked")
    [(status, answer)] = package.predict(handler, context, [{"heat": 2}])
    assert (status, set(answer)) == (200, {"prediction", "hot", "wet", "latency_ms", "model_version"})
