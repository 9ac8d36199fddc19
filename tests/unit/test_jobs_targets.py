"""Kinds of labels: how they are told apart, and whole pipelines of several classes and of a measured number."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fairlearn.metrics import MetricFrame, mean_prediction, selection_rate
from sklearn.metrics import mean_absolute_error
from standalone_kit import people_model

import mlplatform
from mljobs import audit, data, lesson, package
from mljobs.failure import JobFailure
from mljobs.optimize import Latency, Measured, objections
from mljobs.tasks import targets
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import predictions
from mljobs.tasks.targets import CLASSES_LIMIT, Binary, MultiClass, Regression, Target
from mlplatform.api import Data, EarlyStopping, Fairness, Gate, ModelVersionSpec, Optimization, Split, Training
from mlplatform.contract import TARGET_FAIRNESS, TARGET_METRICS, Artifacts, FailureClass, Stage
from mlplatform.standalone.result import Result

pytestmark = [
    pytest.mark.usefixtures("importable"),
    # TorchServe, which tries the archive, loads TorchScript and leaves files open.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

ROWS = 600
COLOURS = {"name": "colour", "kind": "multiclass", "classes": ["blue", "green", "red"]}
PRICE = {"name": "price", "kind": "regression", "mean": 200.0, "scale": 50.0}


@dataclass(frozen=True)
class Label:
    """A label and what it is taken for, or what is said of it.

    Attributes:
        reason: What it shows.
        values: Of the column.
        target: As asked for.
        kind: As found; empty where it is refused.
        words: Part of the message.
        action: Part of the next action.
        positive: `spec.data.positiveLabel`.
    """

    reason: str
    values: list[Any]
    target: Any = "auto"
    kind: str = ""
    words: str = ""
    action: str = ""
    positive: str = field(default="", kw_only=True)


LABELS = [
    Label("two words", ["a", "b"] * 9, kind="binary"),
    Label("two numbers", [0, 1] * 9, kind="binary"),
    Label("three words", ["a", "b", "c"] * 9, kind="multiclass"),
    Label("numbers and a word are words", ["1", "2", "many"] * 9, kind="multiclass"),
    Label("fractions are measured", [0.5, 1.5, 2.5] * 9, kind="regression"),
    Label("fractions as text, too", ["0.5", "1.5", "2"] * 9, kind="regression"),
    Label("many whole numbers are measured", list(range(CLASSES_LIMIT + 1)), kind="regression"),
    Label(
        "grades could be either", [1, 2, 3] * 9,
        words="has 3 different whole numbers (1, 2, 3), which may be classes or a measured number",
        action="Set spec.data.target to multiclass or regression",
    ),
    Label("grades as classes", [1, 2, 3] * 9, "multiclass", "multiclass"),
    Label("grades as a measure", [1, 2, 3] * 9, "regression", "regression"),
    Label("two numbers as a measure", [0, 1] * 9, "regression", "regression"),
    Label("three classes where two were asked for", ["a", "b", "c"] * 9, "binary",
          words="has 3 distinct value(s) (a, b, c); two are needed", action="spec.data.target"),
    Label("a positive class says that there are two", ["a", "b", "c"] * 9, positive="a",
          words="has 3 distinct value(s) (a, b, c); two are needed", action="spec.data.target"),
    Label("two classes where several were asked for", ["a", "b"] * 9, "multiclass",
          words="has 2 distinct value(s) (a, b); three or more are needed", action="spec.data.target to binary"),
    Label("names of people are no classes", [f"p{i}" for i in range(CLASSES_LIMIT + 1)],
          words=f"has {CLASSES_LIMIT + 1} distinct values", action="spec.data.label"),
    Label("a word among measures", [1.5, 2.5, 3.5, "n/k", 4.5], "regression",
          words="1 of 5 rows have no number in the label column 'y': the first is row 4 of the data with 'n/k'",
          action="Correct or remove these rows"),
    Label("infinity is no measure", ["1.5", "inf", "2.5"], "regression", words="row 2 of the data with 'inf'"),
    Label("one number in all rows", [4, 4, 4], "regression", words="has 4 in every row"),
    Label("a class in two spellings", ["yes", "YES", "no", "No"] * 9,
          words="spells a class in two ways: 'No' and 'no', 'YES' and 'yes'", action="Write each class in one way"),
    Label("one class in two spellings", ["Yes", "yes"] * 9, words="spells a class in two ways: 'Yes' and 'yes'"),
    Label("numbers and words for one truth", ["1", "true", "0", "False"] * 9,
          words="spells a class in two ways: '0' and 'false', '1' and 'true'"),
    Label("whoever asks for several has said so", ["b", "B", "c"] * 9, "multiclass", "multiclass"),
    Label("likewise whoever asks for two", ["b", "B"] * 9, "binary", "binary"),
    Label("a word for missing is a class where it must be", ["Yes", "None"] * 9, kind="binary"),
    Label("of several classes, too", ["Low", "High", "None"] * 9, "multiclass", "multiclass"),
    Label("without the field it may be either", ["Low", "High", "None"] * 9,
          words="9 of 27 rows have no value in the label column 'y' ('None' counts as missing)",
          action="write a class as another word"),
    Label("where it is not needed it is missing", ["Low", "Mid", "High", "None"] * 9, "multiclass",
          words="('None' counts as missing)", action="complete them"),
    Label("two words for missing are no two classes", ["Yes", "None", "NA"] * 9,
          words="18 of 27 rows have no value in the label column 'y' ('NA', 'None' counts as missing)"),
    Label("a measure has no classes", ["4", "NA"] * 9, "regression", words="9 of 18 rows have no value"),
    Label("nothing in any row", ["", " ", None] * 9, words="the label column 'y' has no value in any row",
          action="Point spec.data.label at a column that has some"),
    Label("lists", [[1], [2]] * 9, words="the column 'y' holds list<", action="Write its cells as text"),
    Label("bytes", [b"a", b"b"] * 9, words="the column 'y' holds binary", action="Write its cells as text"),
    Label("nothing in some rows", [1.5, None, 2.5], "regression", words="1 of 3 rows have no value"),
]  # fmt: skip


def of(values: list[Any], **more: Any) -> targets.Targets:
    column = values if len({type(value) for value in values if value is not None}) == 1 else [
        None if value is None else str(value) for value in values
    ]  # fmt: skip
    return targets.read(pa.table({"y": column}), Data(uri="x", label="y", **more))


@pytest.mark.parametrize("case", LABELS, ids=lambda case: case.reason)
def test_what_a_label_is(case: Label) -> None:
    if case.kind:
        found = of(case.values, target=case.target, positive_label=case.positive)
        assert found.label.get("kind", "binary") == case.kind, case.reason
        assert len(found.values) == len(case.values)
        return
    with pytest.raises(JobFailure) as caught:
        of(case.values, target=case.target, positive_label=case.positive)
    assert caught.value.failure.reason is FailureClass.DATA_INVALID
    assert case.words in caught.value.failure.message, case.reason
    assert case.action in caught.value.failure.next_action, case.reason


@dataclass(frozen=True)
class Written:
    """Labels as files have them, and what they are.

    Attributes:
        reason: What it shows.
        files: The label's cells, file by file.
        target: As asked for.
        values: What is learned; empty where it is refused.
        words: Part of the message.
        remark: Part of what is said of the column.
        kind: As found.
    """

    reason: str
    files: list[list[str]]
    target: Any
    values: list[float]
    words: str = ""
    remark: str = ""
    kind: str = "regression"


WRITTEN = [
    Written("thousands", [["1,234", "2,500", "900"]], "regression", [1234, 2500, 900],
            remark="'1,234' is read as the number 1234, though the comma could be a decimal one"),
    Written("nor is a guess needed of many", [["1,234.5", "2,500", "900"]], "auto", [1234.5, 2500, 900]),
    Written("a percentage is a hundredth", [["12%", "7.5%", "0%"]], "regression", [0.12, 0.075, 0]),
    Written("the whole column tells of a decimal comma", [["1,5", "1.234", "1,234"]], "regression", [1.5, 1234, 1.234]),
    Written("and so do all files", [["1.234", "4"], ["1.234,5", "7"]], "regression", [1234, 4, 1234.5, 7]),
    Written("a part with thousands goes with the others", [["900", "950"], ["1,234", "5"]], "regression",
            [900, 950, 1234, 5]),
    Written("money of two is a measure where it is asked for", [["$5", "$1,000"] * 2], "regression", [5, 1000] * 2),
    Written("two texts of numbers are classes by themselves", [["5%", "10%"] * 2], "auto", [1, 0] * 2, kind="binary"),
    Written("a word for missing is no number", [["1,234", "NA", "5"]], "regression", [], "1 of 3 rows have no value"),
    Written("a word is none either", [["1,5", "2,5", "n/k"]], "regression", [], "row 3 of the data with 'n/k'"),
    Written("thousands that may be classes", [["1,000", "2,000", "3,000"] * 3], "auto", [],
            "has 3 different whole numbers (1000, 2000, 3000)"),
]  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.reason)
def test_a_measured_label_is_read_as_every_number_is(case: Written, tmp_path: Path) -> None:
    for i, cells in enumerate(case.files):
        with (tmp_path / f"{i}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["x", "y"], *([j, cell] for j, cell in enumerate(cells))])
    asked = Data(uri=str(tmp_path), label="y", target=case.target)
    rows = data.load(asked)
    if not case.values:
        with pytest.raises(JobFailure) as caught:
            targets.read(rows.table, asked)
        assert case.words in caught.value.failure.message, case.reason
        return
    found = targets.read(rows.table, asked)
    assert found.label.get("kind", "binary") == case.kind, case.reason
    assert found.values.tolist() == case.values, case.reason
    assert case.remark in rows.columns.get("y", ""), case.reason


def test_grades_are_the_same_classes_from_every_file(tmp_path: Path) -> None:
    """1.0 of a CSV, "1.0" of Parquet's text and 1 of its integers: whoever exports again gets the model of before."""
    tables: dict[str, Any] = {
        "integers": [1, 2, 3, 2],
        "text": ["1.0", "2.0", "3.0", "2.0"],
        "dictionary": pa.array(["1.0", "2.0", "3.0", "2.0"]).dictionary_encode(),
        "fractions": [1.0, 2.0, 3.0, 2.0],
    }
    found = []
    for name, values in tables.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"x": [1, 2, 3, 4], "y": values}), tmp_path / name / "x.parquet")
        asked = Data(uri=str(tmp_path / name), label="y", format="parquet", target="multiclass")
        found.append(targets.read(data.load(asked).table, asked))
    (tmp_path / "x.csv").write_text("x,y\n1,1.0\n2,2.0\n3,3.0\n4,2.0\n")
    asked = Data(uri=str(tmp_path / "x.csv"), label="y", target="multiclass")
    found.append(targets.read(data.load(asked).table, asked))
    for one in found:
        assert one.label["classes"] == ["1", "2", "3"]
        assert one.values.tolist() == [0, 1, 2, 1]
        assert one.strata.codes.tolist() == [0, 1, 2, 1]


def test_a_label_of_two_classes_is_configured_as_ever() -> None:
    """Archives and configurations of earlier releases have no kind."""
    assert of(["no", "yes"] * 5).label == {"name": "y", "classes": ["no", "yes"]}


def test_every_class_is_in_every_part_and_a_rare_one_is_named() -> None:
    parts = data.split(of(["a"] * 20 + ["b"] * 30 + ["c"] * 10).strata, Split())
    assert [len(part) for part in parts] == [42, 6, 12]
    with pytest.raises(JobFailure, match="the validation part of the split has no row of the class 'c', which has 3"):
        data.split(of(["a"] * 20 + ["b"] * 30 + ["c"] * 3).strata, Split())


def test_a_measure_needs_two_rows_in_each_part() -> None:
    with pytest.raises(JobFailure, match="the validation part of the split has only 1 row of the data, which has 8"):
        data.split(of([i + 0.5 for i in range(8)]).strata, Split())


def test_only_training_rows_tell_the_scale_of_a_measure() -> None:
    table = pa.table({"x": [1.0, 2.0, 3.0], "y": [1.0, 3.0, 1000.5]})
    task = TabularTask({})
    config = task.fit(table, task.targets(table, Data(uri="", label="y")), np.array([0, 1]))
    assert config["label"] == {"name": "y", "kind": "regression", "mean": 2.0, "scale": 1.0}


def test_the_metrics_are_the_contracts_and_perfect_where_the_scores_are() -> None:
    codes = np.array([0, 1, 2, 0, 1, 2])
    found = MultiClass(COLOURS).evaluate(codes, np.eye(3)[codes])
    assert tuple(found) == TARGET_METRICS["multiclass"]
    assert [found[name] for name in ("roc_auc", "accuracy", "balanced_accuracy", "macro_f1")] == [1.0] * 4
    measured = Regression(PRICE).evaluate(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0]))
    assert tuple(measured) == TARGET_METRICS["regression"]
    assert measured == {"r2": 1.0, "mae": 0.0, "rmse": 0.0, "median_absolute_error": 0.0}


def test_what_outputs_mean() -> None:
    classes, price = predictions(COLOURS), predictions(PRICE)
    scores = classes.scores(torch.tensor([[0.0, 3.0, 0.0], [5.0, 0.0, 0.0]]))
    assert classes.columns(scores)["prediction"] == ("BYTES", ["green", "blue"])
    assert classes.columns(torch.empty(0)) == {"prediction": ("BYTES", []), "confidence": ("FP32", [])}
    assert price.columns(price.scores(torch.tensor([0.0, -1.0]))) == {"prediction": ("FP64", [200.0, 150.0])}


# Groups


GROUPS = np.repeat(["a", "b", "c"], [120, 100, 10])


def test_differences_of_several_classes_are_fairlearns() -> None:
    generator = np.random.default_rng(5)
    codes, scores = generator.integers(0, 3, 230), generator.dirichlet(np.ones(3), 230)
    large = GROUPS != "c"
    predicted = scores.argmax(axis=1)
    wanted = max(
        MetricFrame(
            metrics=lambda y, p, code=code: selection_rate(y, p, pos_label=code),
            y_true=codes[large], y_pred=predicted[large], sensitive_features=GROUPS[large],
        ).difference()
        for code in range(3)
    )  # fmt: skip
    objective = MultiClass(COLOURS)
    found = objective.compare(GROUPS, codes, scores, Fairness())
    assert tuple(found["differences"]) == TARGET_FAIRNESS["multiclass"]
    assert found["differences"]["demographic_parity_difference"]["value"] == pytest.approx(wanted)
    assert objective.differences(GROUPS, codes, scores, 50) == pytest.approx(
        {metric: interval["value"] for metric, interval in found["differences"].items()}
    )
    assert list(found["notAssessed"]) == ["c"]
    for interval in found["differences"].values():
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1


def test_differences_of_a_measure_are_fairlearns() -> None:
    generator = np.random.default_rng(6)
    truth = generator.normal(200, 50, 230)
    scores = truth + generator.normal(0, 10, 230) + 20 * (GROUPS == "b")
    objective, large = Regression(PRICE), GROUPS != "c"
    found = objective.compare(GROUPS, truth, scores, Fairness())
    frame = MetricFrame(
        metrics={"mean_prediction_difference": mean_prediction, "mean_absolute_error_difference": mean_absolute_error},
        y_true=truth[large], y_pred=scores[large], sensitive_features=GROUPS[large],
    )  # fmt: skip
    assert {m: interval["value"] for m, interval in found["differences"].items()} == pytest.approx(
        frame.difference().to_dict()
    )
    assert objective.differences(GROUPS, truth, scores, 50) == pytest.approx(frame.difference().to_dict())
    assert objective.differences(GROUPS, truth, scores, 110) == {}, "one group alone is compared with nothing"


def test_an_interval_of_a_difference_of_means_covers_the_truth() -> None:
    """95 % are promised, at least; below 90 of 100 is chance in 3 of 100 seeds, and the seed is fixed."""
    generator = np.random.default_rng(8)
    groups = np.repeat(["a", "b"], 150)
    covered = 0
    for _ in range(100):
        truth = generator.normal(0, 1, 300)
        scores = generator.normal(0, 1, 300) + 0.3 * (groups == "b")
        interval = Regression(PRICE).compare(groups, truth, scores, Fairness())["differences"][
            "mean_prediction_difference"
        ]
        covered += interval["low"] <= 0.3 <= interval["high"]
    assert covered > 90


LABELS = {
    "binary": {"name": "y", "classes": ["no", "yes"]},
    "multiclass": {"name": "y", "kind": "multiclass", "classes": ["a", "b", "c"]},
    "multilabel": {"kind": "multilabel", "labels": [{"name": name, "classes": ["0", "1"]} for name in "yz"]},
    "regression": {"name": "y", "kind": "regression", "mean": 5.0, "scale": 2.0},
}
SAID = {
    "binary": (np.arange(40) % 5 == 0, np.full(40, 0.2)),
    "multiclass": (np.arange(40) % 3, np.tile([0.5, 0.3, 0.2], (40, 1))),
    "multilabel": (np.arange(80).reshape(40, 2) % 5 == 0, np.tile([0.6, 0.2], (40, 1))),
    "regression": (np.arange(40.0), np.full(40, 5.0)),
}


@pytest.mark.parametrize("kind", LABELS)
def test_groups_that_all_get_one_answer_have_no_differences(kind: str) -> None:
    found = targets.objective(LABELS[kind])
    wanted, scores = SAID[kind]
    groups = np.array(["a", "b"] * 20)
    assert found.differences(groups, wanted, scores, 5) == {}, "0.0 would pass every bound"
    compared = found.compare(groups, wanted, scores, Fairness(min_group_size=5))
    assert compared["differences"] == {}
    assert set(compared["groups"]) == {"a", "b"}, "the rates themselves are what they are"
    assert isinstance(found, Target)
    told = found.constant(wanted, scores)
    assert (told["always"], told["better"]) == (True, False)


@dataclass(frozen=True)
class Beside:
    """Scores of 200 rows, 40 of them positive, and whether they are worth more than one class for all."""

    reason: str
    right: tuple[int, int]
    """How many of the 160 negative and of the 40 positive rows are told right."""
    better: bool


@pytest.mark.parametrize(
    "case",
    [
        Beside("all of one class", (160, 0), False),
        Beside("most of both classes", (150, 30), True),
        Beside("fewer right than the commonest class has, but the rare one is found", (120, 34), True),
        Beside("fewer right than the commonest class has, and by chance", (112, 13), False),
        Beside("worse than chance", (80, 18), False),
    ],
    ids=lambda case: case.reason,
)
def test_a_model_is_held_beside_one_class_for_all_rows(case: Beside) -> None:
    wanted = np.arange(200) >= 160
    negative, positive = case.right
    told = np.r_[np.arange(160) >= negative, np.arange(40) < positive]
    found = Binary(LABELS["binary"]).constant(wanted, np.where(told, 0.9, 0.1))
    assert found["better"] is case.better, case.reason
    assert (found["metric"], found["answer"], found["floor"], found["right"]) == ("balanced_accuracy", "no", 0.5, 0.8)


def test_a_measure_is_held_beside_the_mean() -> None:
    wanted = np.arange(40.0)
    regression = Regression(LABELS["regression"])
    assert regression.constant(wanted, wanted + 1)["better"]
    worse = regression.constant(wanted, wanted[::-1])
    assert (worse["better"], worse["metric"], worse["answer"]) == (False, "r2", 19.5)


def test_a_model_that_learned_nothing_fails_without_a_gate(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    lines = [f"{generator.normal():.3f},{'yes' if i % 10 == 0 else 'no'},{'ab'[i % 2]}" for i in range(600)]
    (tmp_path / "noise.csv").write_text("\n".join(["x,y,group", *lines]))
    model = people_model(tmp_path / "noise.csv", gates=[], fairness={"metrics": {"demographic_parity_difference": 0.9}})
    model["spec"]["data"] = {"uri": str(tmp_path / "noise.csv"), "label": "y", "sensitiveAttributes": ["group"]}
    result = mlplatform.run(model, store=tmp_path / "store", until=Stage.AUDIT)
    assert not result.passed
    assert result.failure is not None
    assert "the model answers 'no' for every row of the test split" in result.failure.message
    assert "demographic_parity_difference by group is not shown" in result.failure.message
    assert "spec.gates" in result.failure.next_action


def test_a_metric_in_the_labels_unit_may_be_worse_by_a_share() -> None:
    spec = ModelVersionSpec(
        model="m", sequence=1, data=Data(uri="x", label="y"), gates=(Gate(metric="mae", max=2000.0),),
        optimization=Optimization(max_metric_drop=0.01),
    )  # fmt: skip
    fp32 = Measured("fp32", 1, Latency(1, 1), {"mae": 1000.0}, {}, 0.0)
    for mae, wanted in (1009.0, []), (1020.0, ["mae is 0.0200 of fp32's worse than fp32's, over 0.01"]):
        found = objections(Measured("x", 1, Latency(1, 1), {"mae": mae}, {}, None), fp32, spec, Regression(PRICE))
        assert found == wanted


@pytest.mark.parametrize(
    ("spec", "words", "reason"),
    [
        ({"gates": (Gate(metric="f1", min=0.1),)}, "spec.gates names f1", "only of two classes"),
        (
            {"training": Training(early_stopping=EarlyStopping(metric="val_accurcy"))},
            "earlyStopping.metric names val_accurcy, which is not defined for a label that is multiclass (did you mean val_acc",
            "it would be found out after the first epoch",
        ),
        (
            {"fairness": Fairness(metrics={"equalized_odds_difference": 0.1})},
            "spec.fairness.metrics names equalized_odds_difference",
            "what is positive of several classes",
        ),
    ],
)
def test_what_is_not_defined_is_refused_before_the_training(spec: dict[str, Any], words: str, reason: str) -> None:
    asked = ModelVersionSpec(model="m", sequence=1, data=Data(uri="x", label="y"), **spec)
    with pytest.raises(JobFailure) as caught:
        lesson.defined(asked, MultiClass(COLOURS))
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID, reason
    assert words in caught.value.failure.message, reason
    assert "Use one of" in caught.value.failure.next_action, reason


# Whole pipelines


def write_rows(folder: Path) -> Path:
    """Rows whose colour and price follow from a size and a place."""
    generator = np.random.default_rng(2)
    size = generator.uniform(0, 10, ROWS).round(2)
    place = generator.choice(["north", "south"], ROWS)
    group = generator.choice(["a", "b"], ROWS)
    colour = np.select([size < 3, size < 6], ["blue", "green"], "red")
    price = (1000 * size + 500 * (place == "north") + generator.normal(0, 100, ROWS)).round(2)
    lines = [f"{size[i]},{place[i]},{group[i]},{colour[i]},{price[i]}" for i in range(ROWS)]
    (folder / "rows.csv").write_text("\n".join(["size,place,group,colour,price", *lines]) + "\n")
    return folder


@dataclass(frozen=True)
class Pipeline:
    """A kind of label and what its pipeline is asked.

    Attributes:
        kind: Which.
        label: Its column.
        metric: Watched and gated: a small net learns that much of these rows.
        gate: Its bound.
        bounds: On differences between groups.
        other: The other label's column.
    """

    kind: str
    label: str
    metric: str
    gate: dict[str, float]
    bounds: dict[str, float]
    other: str


PIPELINES = [
    Pipeline("multiclass", "colour", "accuracy", {"min": 0.8},
             {"demographic_parity_difference": 0.9, "accuracy_difference": 0.9}, "price"),
    Pipeline("regression", "price", "r2", {"min": 0.8},
             {"mean_prediction_difference": 5000, "mean_absolute_error_difference": 5000}, "colour"),
]  # fmt: skip


@pytest.fixture(scope="module", params=PIPELINES, ids=lambda case: case.kind)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, Result]:
    case: Pipeline = request.param
    folder = tmp_path_factory.mktemp(case.kind)
    model = people_model(
        write_rows(folder),
        gates=[{"metric": case.metric, **case.gate}],
        fairness={"metrics": case.bounds, "minGroupSize": 20},
    )
    model["spec"]["data"] = {"uri": str(folder), "label": case.label, "sensitiveAttributes": ["group"]}
    training = model["spec"]["training"]
    training["earlyStopping"] = {"patience": 4}
    training["hyperparameters"]["exclude"] = [case.other]
    result = mlplatform.run(model, store=tmp_path_factory.mktemp("store"))
    assert (result.passed, result.missed, result.failure) == (True, (), None)
    return case, result


def test_every_stage_speaks_of_the_target(done: tuple[Pipeline, Result]) -> None:
    case, result = done
    trained = result.report(Stage.TRAIN)
    assert trained["data"]["target"] == case.kind
    watched = [epoch[f"val_{TARGET_METRICS[case.kind][0]}"] for epoch in trained["history"]]
    assert trained["bestEpoch"] == watched.index(max(watched)) + 1, "the first metric is watched where none is named"
    assert set(result.stages[Stage.AUDIT].metrics) == set(TARGET_METRICS[case.kind])
    assert set(result.stages[Stage.AUDIT].details["fairness"]) == set(TARGET_FAIRNESS[case.kind])
    for entry in result.stages[Stage.OPTIMIZE].details["candidates"]:
        assert set(entry["metrics"]) == set(TARGET_METRICS[case.kind])
    assert result.report(Stage.OPTIMIZE)["onnx"]["fp32"]["maxAbsDifference"] < 1e-4
    fp32 = result.stages[Stage.OPTIMIZE].details["candidates"][0]["metrics"]
    assert fp32 == pytest.approx(result.stages[Stage.AUDIT].metrics, rel=1e-4), "what ships scores as what was audited"


def test_the_page_shows_every_difference_and_rate(done: tuple[Pipeline, Result]) -> None:
    case, result = done
    page = (result.artifacts / audit.PAGE).read_text()
    for word in (*TARGET_FAIRNESS[case.kind], *TARGET_METRICS[case.kind], "By group"):
        assert word in page
    assert "ositive" not in page


def test_the_archive_answers_in_every_dialect(done: tuple[Pipeline, Result], tmp_path: Path) -> None:
    case, result = done
    example = json.loads((result.artifacts / Artifacts.EXAMPLE).read_text())
    assert set(example) == {"size", "place", "group"}
    [archive] = (result.artifacts / Artifacts.SERVING).glob("model-store/*.mar")
    handler, context = package.load(archive, tmp_path)
    bodies = [
        {"features": example},
        {"instances": [example, list(example.values())]},
        {"inputs": [{"name": k, "shape": [1], "datatype": "BYTES", "data": [v]} for k, v in example.items()]},
    ]
    one, v1, v2 = (answer(handler, context, body) for body in bodies)
    table = {output["name"]: output for output in v2["outputs"]}
    if case.kind == "multiclass":
        assert one["prediction"] in COLOURS["classes"]
        assert 1 / 3 <= one["confidence"] <= 1
        assert [table[name]["datatype"] for name in ("prediction", "confidence")] == ["BYTES", "FP32"]
    else:
        assert 0 < one["prediction"] < 11000, "in the label's unit"
        assert "confidence" not in one
        assert table["prediction"]["datatype"] == "FP64"
    assert table["prediction"]["shape"] == [1]
    assert len(v1["predictions"]) == 2


def answer(handler: Any, context: Any, body: dict[str, Any]) -> dict[str, Any]:
    from ts.context import RequestProcessor  # noqa: PLC0415  takes a second

    context.request_ids, context.request_processor = {0: "0"}, [RequestProcessor({})]
    found: dict[str, Any] = json.loads(handler.handle([{"body": body}], context)[0])
    assert context.get_response_status(0)[0] == 200, found
    return found
