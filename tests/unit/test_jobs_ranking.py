"""The task `ranking`: lists of users, what they are judged by, and the way from a file to a served order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import ndcg_score
from standalone_kit import people_model

import mlplatform
from mljobs import data, export, onnx_files, served
from mljobs.failure import JobFailure
from mljobs.onnx_session import Session
from mljobs.tasks import load_task
from mljobs.tasks.ranking import Ranking, RankingModel, RankingTask, ndcg
from mlplatform import api
from mlplatform.api import Data, ModelVersionSpec, Optimization
from mlplatform.contract import TASK_METRICS, Artifacts, FailureClass, Stage

pytestmark = [
    pytest.mark.usefixtures("importable"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

HYPER: dict[str, Any] = {"user": "user", "ids": ["item"], "worth": {"liked": 2}, "hidden": [16], "embedding": 8}
LABEL: dict[str, Any] = {
    "kind": "ranking", "user": "user", "worth": [1.0, 2.0],
    "labels": [{"name": "seen", "classes": ["0", "1"]}, {"name": "liked", "classes": ["0", "1"]}],
}  # fmt: skip


def rows(count: int = 900) -> dict[str, list[Any]]:
    """Users and items of which the first half is seen by most, and mostly liked."""
    generator = np.random.default_rng(6)
    user, item = generator.integers(100, 130, count), generator.integers(0, 40, count)
    seen = generator.random(count) < np.where(item < 20, 0.9, 0.1)
    liked = seen & (generator.random(count) < 0.7)
    found = {"user": user, "item": item, "length": generator.normal(100, 20, count).round(1), "genre": item % 5}
    genres = np.array(["a", "b", "c", "d", "e"])
    return {
        **{name: values.tolist() for name, values in found.items()},
        "genre": genres[item % 5].tolist(), "seen": seen.astype(int).tolist(), "liked": liked.astype(int).tolist(),
    }  # fmt: skip


TABLE = pa.table(rows())
DATA = Data(uri="x", labels=("seen", "liked"))


def fitted(**hyper: Any) -> tuple[RankingTask, dict[str, Any]]:
    task = RankingTask({**HYPER, **hyper})
    found = task.targets(TABLE, DATA)
    return task, json.loads(json.dumps(task.fit(TABLE, found, np.arange(700))))


@pytest.mark.parametrize("scores", ["distinct", "tied", "one"])
def test_a_list_is_judged_as_scikit_learn_judges_it(scores: str) -> None:
    generator = np.random.default_rng(3)
    users, gains = generator.integers(0, 12, 400), generator.integers(0, 4, 400).astype(float)
    given = {
        "distinct": generator.random(400),
        "tied": generator.integers(0, 5, 400).astype(float),
        "one": np.zeros(400),
    }[scores]
    wanted = [ndcg_score([gains[users == user]], [given[users == user]], k=10) for user in range(12)]
    assert ndcg(users, gains, given) == pytest.approx(wanted)


def test_who_has_nothing_to_be_put_in_order_counts_for_nothing() -> None:
    users, gains = np.array([1, 1, 2, 2, 3]), np.array([0.0, 1.0, 1.0, 1.0, 1.0])
    assert ndcg(users, gains, gains).tolist() == [1.0]
    assert len(ndcg(users[2:], gains[2:], gains[2:])) == 0


def test_names_are_categories_though_they_are_numbers_and_none_is_left_out() -> None:
    table = TABLE.set_column(1, "item", pa.array(np.random.default_rng(1).permutation(900)))
    task, asked = RankingTask(HYPER), DATA
    found = task.targets(table, asked)
    parts = data.split(found.strata, asked.split)
    loaded = data.Rows(table, ["x.csv"], "", 900, [{"rows": 900}], numbered={})
    assert task.choose(loaded, found, parts, asked).left_out == {}
    config = task.fit(table, found, parts.train)
    assert {feature["name"]: feature["kind"] for feature in config["features"]} == {
        "user": "categorical", "item": "categorical", "length": "numeric", "genre": "categorical",
    }  # fmt: skip
    assert task.example(config)["user"] is None, "no person's"
    ignored = api.decode(Data, {"uri": "x", "labels": ["seen", "liked"], "columns": {"user": "ignore"}})
    assert list(task.choose(loaded, found, parts, ignored).left_out) == ["user"], "lists are judged by it all the same"


def test_its_example_goes_the_whole_way_and_rows_are_read_as_records_are() -> None:
    task, config = fitted()
    both = Optimization(candidates=("fp32", "int8-dynamic"))
    served.rehearse(
        task, config, task.objective(config), ModelVersionSpec(model="m", sequence=1, data=DATA, optimization=both)
    )
    half = served.load(task, config)
    records = [
        {name: column[i] for name, column in TABLE.to_pydict().items() if name not in {"seen", "liked"}}
        for i in range(9)
    ]
    for learned, sent in zip(task.inputs(config, TABLE.slice(0, 9)), half.read(records), strict=True):
        assert torch.equal(learned, sent)
    again = half.read([{**records[0], "user": str(records[0]["user"]), "item": float(records[0]["item"])}])
    assert torch.equal(again[1][0], half.read(records)[1][0]), "an id is what it says, however it is written"


def test_it_has_every_form_that_the_specification_may_ask_for() -> None:
    task, config = fitted()
    torch.manual_seed(1)
    model = task.build(config).eval()
    inputs = task.inputs(config, TABLE)
    with torch.inference_mode():
        wanted = model(*inputs)
        assert torch.allclose(
            torch.cat([model(*(part[i : i + 1] for part in inputs)) for i in range(5)]), wanted[:5], atol=1e-6
        )
        assert torch.allclose(export.int8(model)(*inputs), wanted, atol=0.05)
        assert torch.allclose(export.load_torchscript(export.torchscript(model, inputs))(*inputs), wanted, atol=1e-5)
    (content,) = onnx_files.files(model, inputs, [export.REFERENCE]).values()
    assert torch.allclose(Session(content, 1)(inputs), wanted, atol=1e-4)


def test_who_is_new_has_a_vector_of_nothing() -> None:
    task, config = fitted()
    model = task.build(config)
    assert isinstance(model, RankingModel)
    half = served.load(task, config)
    new, nobody = half.read([{"user": 99_999, "item": 3}]), half.read([{"user": None, "item": 3}])
    model.eval()
    assert torch.equal(model(*new), model(*nobody))


def test_the_metrics_are_of_lists_and_of_labels() -> None:
    generator = np.random.default_rng(2)
    flags = generator.random((300, 2)) < 0.3
    targets = np.column_stack([generator.integers(0, 9, 300), flags]).astype(np.int32)
    perfect = Ranking(LABEL).evaluate(targets, np.where(flags, 0.9, 0.1))
    assert tuple(perfect) == TASK_METRICS["ranking"]
    assert (perfect["ndcg_at_10"], perfect["roc_auc"]) == (1.0, 1.0)
    assert perfect["log_loss"] == pytest.approx(-np.log(0.9))


def test_a_model_is_held_beside_any_order() -> None:
    generator = np.random.default_rng(2)
    flags = generator.random((900, 2)) < 0.3
    targets = np.column_stack([generator.integers(0, 30, 900), flags]).astype(np.int32)
    found = Ranking(LABEL)
    assert found.constant(targets, 0.3 * flags + 0.5 * generator.random((900, 2)))["better"]
    chance = found.constant(targets, generator.random((900, 2)))
    assert (chance["better"], chance["always"], chance["metric"]) == (False, False, "ndcg_at_10")
    assert found.constant(targets, np.full((900, 2), 0.2))["always"]
    assert found.compare(np.array([]), targets, flags, api.Fairness())["differences"] == {}


@pytest.mark.parametrize(
    ("reason", "hyper", "failure", "words"),
    [
        ("whose list it is", {"user": ""}, FailureClass.SPEC_INVALID, "user is missing"),
        ("no such column", {"user": "usr"}, FailureClass.DATA_INVALID, "no column 'usr' (did you mean user?)"),
        ("nor this", {"ids": ["itm"]}, FailureClass.DATA_INVALID, "no column 'itm' (did you mean item?)"),
        ("no label", {"worth": {"like": 2}}, FailureClass.SPEC_INVALID, "worth names like, which is no label (did you mean liked?)"),
        ("nothing counts", {"worth": {"liked": 0, "seen": 0}}, FailureClass.SPEC_INVALID, "worth leaves every label worth nothing"),
        ("less than nothing", {"worth": {"liked": -1}}, FailureClass.SPEC_INVALID, "worth cannot be {'liked': -1}"),
        ("a name that is none", {"item": "item"}, FailureClass.SPEC_INVALID, "unknown 'item'"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_by_name(
    reason: str, hyper: dict[str, Any], failure: FailureClass, words: str
) -> None:
    with pytest.raises(JobFailure) as caught:
        choose(TABLE, {**HYPER, **hyper})
    assert caught.value.failure.reason is failure, reason
    assert words in caught.value.failure.message, reason


def choose(table: pa.Table, hyper: dict[str, Any]) -> None:
    task: Any = load_task("ranking", hyper)
    found = task.targets(table, DATA)
    loaded = data.Rows(table, ["x.csv"], "", table.num_rows, [{"rows": table.num_rows}], numbered={})
    task.choose(loaded, found, data.split(found.strata, DATA.split), DATA)


def test_rows_that_make_no_list_are_refused() -> None:
    with pytest.raises(
        JobFailure, match="in the validation part of the split no user has rows that are worth more than others"
    ):
        choose(TABLE.set_column(0, "user", pa.array(range(900))), HYPER)
    users = pa.array([None, *TABLE["user"].to_pylist()[1:]])
    with pytest.raises(
        JobFailure, match=r"1 of 900 rows have no value in 'user', whose rows are one list: first row 1"
    ):
        choose(TABLE.set_column(0, "user", users), HYPER)


def test_one_label_is_a_list_of_one() -> None:
    task = RankingTask({**HYPER, "worth": {}})
    asked = Data(uri="x", label="seen", positive_label="0")
    table = TABLE.drop_columns(["liked"])
    found = task.targets(table, asked)
    assert (found.values[:, 1] == 1 - np.array(table["seen"])).all(), "whatever counts as positive"
    config = json.loads(json.dumps(task.fit(table, found, np.arange(700))))
    served.rehearse(task, config, task.objective(config), ModelVersionSpec(model="m", sequence=1, data=asked))


def test_it_goes_from_a_file_to_a_served_order(tmp_path: Path) -> None:
    found = rows()
    lines = [",".join(found), *(",".join(map(str, row)) for row in zip(*found.values(), strict=True))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    model = people_model(tmp_path, gates=[{"metric": "ndcg_at_10", "min": 0.8}], fairness={})
    model["spec"]["data"] = {"uri": str(tmp_path), "labels": ["seen", "liked"]}
    model["spec"]["training"] |= {
        "task": "ranking", "epochs": 6, "earlyStopping": {"patience": 6}, "hyperparameters": HYPER,
    }  # fmt: skip
    done = mlplatform.run(model, store=tmp_path / "store")
    assert (done.passed, done.missed, done.failure) == (True, (), None)
    trained = done.report(Stage.TRAIN)["data"]
    assert (trained["target"], trained["user"]) == ("ranking", "user")
    assert set(done.stages[Stage.AUDIT].metrics) == set(TASK_METRICS["ranking"])
    assert (done.artifacts / Artifacts.REFERENCE).exists()
    liked, not_seen, new = done.predict([{"user": 101, "item": 7}, {"user": 101, "item": 27}, {"user": 5, "item": 7}])
    assert liked["prediction"] > not_seen["prediction"]
    assert new["prediction"] > not_seen["prediction"], "who is new gets what others like"
    assert liked["prediction"] == pytest.approx(liked["seen"] + 2 * liked["liked"], abs=1e-5)
