"""The tabular task: reading records, encodings, hyperparameters, and the loading of tasks."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mljobs.failure import JobFailure
from mljobs.tasks import Strata, Targets, load_task, tabular_model
from mljobs.tasks.tabular import TabularTask, quantile_edges
from mljobs.tasks.tabular_model import (
    MISSING,
    UNKNOWN,
    CategoricalEncoder,
    NumericEncoder,
    Preprocessor,
    RecordError,
    TabularModel,
    category,
)
from mljobs.tasks.targets import Binary
from mlplatform.contract import TARGET_METRICS, FailureClass

CONFIG: dict[str, Any] = {
    "features": [
        {"name": "age", "kind": "numeric", "edges": [20.0, 40.0, 60.0]},
        {"name": "job", "kind": "categorical", "categories": ["clerk", "pilot", "1"]},
        {"name": "gain", "kind": "numeric", "edges": [0.0, 10.0]},
    ],
    "label": {"name": "rich", "classes": ["no", "yes"]},
    "model": {"hidden": [8], "dropout": 0.0, "embedding": 3},
}


def test_the_model_file_stands_alone() -> None:
    """Serving imports it from an archive that holds no other file of this project."""
    tree = ast.parse(Path(tabular_model.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else ["." if node.level else str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {"torch", *sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("record", "numbers", "index", "reason"),
    [
        ([30, "pilot", 5], [30.0, 5.0], 3, "values in schema order"),
        ({"gain": 5, "age": 30, "job": "pilot"}, [30.0, 5.0], 3, "a mapping in another order"),
        (["30", " pilot ", "5.0"], [30.0, 5.0], 3, "text as a CSV file has it"),
        ([None, None, "?"], [None, None], 0, "missing values"),
        ({"age": 30}, [30.0, None], 0, "a mapping may leave columns out"),
        ([float("nan"), "", float("inf")], [None, None], 0, "what is no finite number is missing"),
        ([30, "astronaut", 5], [30.0, 5.0], 1, "a category that training has not seen"),
        ([30, 1, 5], [30.0, 5.0], 4, "a number for a category"),
        ([30, 1.0, True], [30.0, 1.0], 4, "1.0 is the category 1"),
    ],
)
def test_a_record_becomes_tensors(record: Any, numbers: list[float | None], index: int, reason: str) -> None:
    numeric, categorical = Preprocessor(CONFIG).transform([record])
    found = [None if np.isnan(value) else value for value in numeric[0].tolist()]
    assert found == numbers, reason
    assert categorical.tolist() == [[index]], reason


@pytest.mark.parametrize(
    ("record", "words", "reason"),
    [
        ([30, "pilot"], "record 1: 2 values, expected 3: age, job, gain", "too short"),
        ({"agee": 30}, "record 1: unknown column agee; the columns are age, job, gain", "a typo"),
        ({"agee": 30}, "the columns are age, job, gain; leave it out or correct its name", "no null helps"),
        ({" Age": 30}, "; write 'age' for ' Age'", "a space and another case"),
        (["old", "pilot", 5], "record 1: column age needs a number, got 'old'", "a word for a number"),
        ([[30], "pilot", 5], "record 1: column age needs a number, got [30]", "a list for a number"),
        ("30,pilot,5", "record 1: expected a list of values or an object", "a string"),
        (30, "record 1: expected a list of values or an object", "a number"),
    ],
)
def test_what_is_no_record_is_named(record: Any, words: str, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        Preprocessor(CONFIG).transform([[1, "clerk", 2], record])
    assert words in str(caught.value), reason


def test_no_records_make_empty_tensors() -> None:
    numeric, categorical = Preprocessor(CONFIG).transform([])
    assert numeric.shape == (0, 2)
    assert categorical.shape == (0, 1)


def test_columns_and_records_give_the_same_tensors() -> None:
    columns = [[30, None, 50.5], ["pilot", "x", None], [1, 2, "?"]]
    by_column = Preprocessor(CONFIG).transform_columns(columns)
    by_record = Preprocessor(CONFIG).transform(list(zip(*columns, strict=True)))
    for a, b in zip(by_column, by_record, strict=True):
        assert torch.equal(torch.nan_to_num(a, nan=-1), torch.nan_to_num(b, nan=-1))


@pytest.mark.parametrize(
    ("value", "wanted", "reason"),
    [
        (20.0, [0.0, 0.0, 0.0], "at the first edge nothing is passed"),
        (30.0, [0.5, 0.0, 0.0], "half through the first interval"),
        (50.0, [1.0, 0.5, 0.0], "through the first, half through the second"),
        (1e9, [1.0, 1.0, 0.0], "beyond the last edge"),
        (-1e9, [0.0, 0.0, 0.0], "before the first edge"),
        (float("nan"), [0.0, 0.0, 1.0], "missing has an indicator of its own"),
    ],
)
def test_numeric_encoding(value: float, wanted: list[float], reason: str) -> None:
    encoder = NumericEncoder([{"edges": [20.0, 40.0, 60.0]}])
    assert encoder.size == 3
    assert encoder(torch.tensor([[value]])).tolist() == [wanted], reason


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((True, "true", "True", "TRUE", " True "), "true"),
        ((False, "false", "False", "FALSE"), "false"),
        ((1, 1.0, "1"), "1"),
        ((None, "", "?", "NA", float("nan")), None),
        (("yes",), "yes"),
    ],
)
def test_ways_of_writing_one_category(values: tuple[Any, ...], wanted: str | None) -> None:
    assert [category(value) for value in values] == [wanted] * len(values)


def test_a_value_that_training_never_saw_is_neutral() -> None:
    """Its embedding is 0 at first and, as no gradient reaches it, ever after."""
    torch.manual_seed(1)
    encoder = CategoricalEncoder([{"categories": ["a", "b"]}, {"categories": ["c"]}], 3)
    seen = torch.tensor([[2, 2], [3, 2]])
    unseen = torch.tensor([[UNKNOWN, UNKNOWN], [MISSING, MISSING]])
    assert encoder(seen).all(), "values of the training start at random"
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1)
    for _ in range(3):
        assert not encoder(unseen).any()
        optimizer.zero_grad()
        torch.autograd.backward(encoder(seen).square().sum())
        optimizer.step()
    assert not encoder(unseen).any()


@pytest.mark.parametrize("kinds", [("numeric",), ("categorical",), ("numeric", "categorical")])
def test_a_model_of_any_kinds_of_columns_gives_one_logit_a_row(kinds: tuple[str, ...]) -> None:
    config = {**CONFIG, "features": [f for f in CONFIG["features"] if f["kind"] in kinds]}
    model = TabularModel(config).eval()
    record = [{"age": 30, "job": "pilot", "gain": 5}[f["name"]] for f in config["features"]]
    logits = model(*Preprocessor(config).transform([record, [None] * len(record)]))
    assert logits.shape == (2,)
    assert torch.isfinite(logits).all()


def test_weights_hold_no_configuration() -> None:
    """Edges follow from preprocessor.json: a state dict that carried them could contradict it."""
    assert not [name for name in TabularModel(CONFIG).state_dict() if "edge" in name or "left" in name]


def test_edges_follow_the_quantiles_and_split_what_is_mostly_one_value() -> None:
    assert quantile_edges(np.arange(101.0), 4) == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert quantile_edges(np.array([0.0] * 90 + list(range(1, 11))), 2) == [0.0, 1.0, 5.5, 10.0]
    assert quantile_edges(np.array([3.0, 3.0]), 4) == []
    assert quantile_edges(np.array([]), 4) == []


RICH = Targets(np.zeros(0), Strata(np.zeros(0, dtype=np.int64), ()), {"name": "rich", "classes": ["n", "y"]})
TABLE = pa.table(
    {
        "age": [30, 40, None, 60],
        "job": ["b", "a", None, "only in the test"],
        "constant": [1, 1, 1, 1],
        "rich": ["y", "n", "y", "n"],
    }
)


def test_only_training_rows_shape_the_preprocessing() -> None:
    config = TabularTask({"bins": 1}).fit(TABLE, RICH, np.array([0, 1, 2]))
    assert config["features"] == [
        {"name": "age", "kind": "numeric", "edges": [30.0, 40.0], "decimal": "."},
        {"name": "job", "kind": "categorical", "categories": ["a", "b"], "code": False, "common": "b"},
    ], "the label, a constant and a value of another part are no features"
    assert config["label"] == {"name": "rich", "classes": ["n", "y"]}


def test_excluded_columns_are_no_features() -> None:
    config = TabularTask({"exclude": ["age"]}).fit(TABLE, RICH, np.arange(4))
    assert [feature["name"] for feature in config["features"]] == ["job"]
    for columns, words in (["agee"], "did you mean age?"), (["age", "job"], "no column with two or more values"):
        with pytest.raises(JobFailure) as caught:
            TabularTask({"exclude": columns}).fit(TABLE, RICH, np.arange(4))
        assert words in caught.value.failure.message
        assert caught.value.failure.reason is FailureClass.DATA_INVALID


def test_rare_categories_beyond_the_limit_count_as_unknown() -> None:
    table = pa.table({"job": ["a", "b", "b", "b", "a", "c"], "rich": ["y", "n"] * 3})
    config = TabularTask({"maxCategories": 2}).fit(table, RICH, np.arange(6))
    assert config["features"][0]["categories"] == ["a", "b"]
    assert config["features"][0]["common"] == "b"


def test_it_reports_the_metrics_of_the_contract() -> None:
    scores = np.array([0.1, 0.9, 0.4, 1.0, 0.0, 0.6])
    positive = np.array([False, True, True, True, False, False])
    found = Binary(CONFIG["label"]).evaluate(positive, scores)
    assert tuple(found) == TARGET_METRICS["binary"]
    assert found["roc_auc"] == pytest.approx(8 / 9)
    assert found["accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("raw", "words", "reason"),
    [
        ({"hiden": [8]}, "unknown 'hiden' (did you mean hidden?)", "a typo"),
        ({"hidden": 8}, "hidden cannot be 8", "a number for a list"),
        ({"hidden": []}, "hidden cannot be []", "no layers"),
        ({"hidden": [8, 0]}, "hidden cannot be [8, 0]", "a layer of no width"),
        ({"dropout": 1.0}, "dropout cannot be 1.0", "nothing would be left"),
        ({"dropout": "0.1"}, "dropout cannot be '0.1'", "text for a number"),
        ({"embedding": 0}, "embedding cannot be 0", "no width"),
        ({"bins": True}, "bins cannot be True", "a boolean for a number"),
        ({"exclude": "age"}, "exclude cannot be 'age'", "a word for a list"),
        ({"maxCategories": -1}, "maxCategories cannot be -1", "a negative limit"),
    ],
)
def test_a_bad_hyperparameter_is_named(raw: dict[str, Any], words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        load_task("tabular", raw)
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID, reason
    assert words in caught.value.failure.message, reason


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("no_such_package.task:Task", "No module named 'no_such_package'", "a package that is not installed"),
        ("json:NoSuchClass", "has no attribute 'NoSuchClass'", "a class that is not there"),
        (
            "json.decoder:JSONDecoder",
            "it lacks modules, targets, fit, objective, inputs, build, start, finish, adjust, reference, blocks, example",
            "a class that is no task",
        ),
        ("broken_task:Task", "SyntaxError", "a module that does not parse"),
        (":Task", "Empty module name", "no module"),
        ("tabulr", "No module named 'tabulr'", "a typo in a built-in's name"),
    ],
)
def test_a_task_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str, reason: str
) -> None:
    (tmp_path / "broken_task.py").write_text("class Task(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(JobFailure) as caught:
        load_task(name, {})
    failure = caught.value.failure
    assert failure.reason is FailureClass.TASK_IMPORT, reason
    assert words in failure.message, reason
    assert "spec.training.image" in failure.next_action or "Give the class" in failure.next_action, reason


OWN = """
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.targets import Binary

class Scored:
    def evaluate(self, positive, scores):
        return {"mine": 1.0}

class Loss(TabularTask):
    metrics = ("mine",)
    def loss(self, logits, targets):
        return logits.mean()

class Deeper(Loss):
    pass

class Mixed(Scored, TabularTask):
    pass

class Both(Loss):
    def objective(self, config):
        return Binary(config["label"])

class Mended(Both):
    pass
"""


@pytest.mark.parametrize(
    ("name", "ignored", "reason"),
    [
        ("Loss", "metrics, loss", "it overrides what is the objective's"),
        ("Deeper", "metrics, loss", "its base does"),
        ("Mixed", "evaluate", "a mixin does"),
        ("Both", "", "it gives an objective, which may call the rest"),
        ("Mended", "", "its base does"),
    ],
)
def test_a_task_of_before_objectives_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ignored: str, reason: str
) -> None:
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    if not ignored:
        assert type(load_task(f"own_tasks:{name}", {})).__name__ == name, reason
        return
    with pytest.raises(JobFailure) as caught:
        load_task(f"own_tasks:{name}", {})
    assert caught.value.failure.reason is FailureClass.TASK_IMPORT, reason
    assert f"'own_tasks:{name}' overrides {ignored}, which nothing calls" in caught.value.failure.message, reason
    assert "objective(config)" in caught.value.failure.next_action, reason


def test_a_task_of_a_users_package_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_package.py").write_text(
        "from mljobs.tasks.tabular import TabularTask\nclass MyTask(TabularTask):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(load_task("my_package:MyTask", {"hidden": [4]})).__name__ == "MyTask"
