"""Loading rows, labels, groups, the split, and the trained model with its rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from jobs_kit import VERSION, people_spec, write_people
from torch import Tensor, nn

from mljobs import data, trained
from mljobs.failure import JobFailure
from mljobs.report import Job, read_spec
from mljobs.store import Store
from mljobs.tasks import EVALUATION_ROWS, Strata, targets
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import UNKNOWN, Preprocessor
from mljobs.tasks.targets import Binary
from mlplatform.api import Data, Split
from mlplatform.contract import ENV_ROWS, Artifacts, FailureClass, Stage

HEADER = "age,income\n"
TEN = "".join(f"{20 + i},{'no' if i % 2 else 'yes'}\n" for i in range(40))


def test_a_file_and_a_folder_of_it_give_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "adult.csv").write_text(HEADER + TEN)
    file = data.load(Data(uri=str(tmp_path / "adult.csv"), label="income"))
    folder = data.load(Data(uri=f"file://{tmp_path}/", label="income"))
    assert file.table.equals(folder.table)
    assert file.digest == folder.digest
    assert folder.files == [f"file://{tmp_path}/adult.csv"]


def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("age,income\n2.5,no\n")
    (tmp_path / "a.csv").write_text("age,income\n1,yes\n")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden.csv").write_text("other\n1\n")
    rows = data.load(Data(uri=str(tmp_path), label="income"))
    assert rows.table.column("age").to_pylist() == [1.0, 2.5], "whole numbers and fractions become one column"


def test_parquet_is_read(tmp_path: Path) -> None:
    table = pa.table({"age": [1, 2], "income": ["no", "yes"]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert data.load(Data(uri=str(tmp_path), label="income", format="parquet")).table.equals(table)


def test_words_for_missing_become_null(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("age,job\n?,\n3,clerk\n")
    table = data.load(Data(uri=str(tmp_path), label="age")).table
    assert table.to_pydict() == {"age": [None, 3], "job": [None, "clerk"]}


def test_a_csv_file_and_the_same_text_in_a_request_give_the_same_tensors(tmp_path: Path) -> None:
    """What training read as one category, serving must not read as an unknown one."""
    text = "age,member,mixed,loud,rich\n31,True,0,TRUE,no\n42,False,True,FALSE,yes\n,?,1,x,no\n"
    (tmp_path / "x.csv").write_text(text)
    table = data.load(Data(uri=str(tmp_path), label="rich")).table
    assert table.column("member").to_pylist() == ["True", "False", None], "as written"
    task = TabularTask({})
    config = task.fit(table, task.targets(table, Data(uri="", label="rich")), np.arange(3))
    records = [{name: row[name] for name in row if name != "rich"} for row in csv.DictReader(io.StringIO(text))]
    read, sent = task.inputs(config, table), Preprocessor(config).transform(records)
    assert torch.equal(read[1], sent[1])
    assert not (sent[1] == UNKNOWN).any()
    assert torch.equal(torch.nan_to_num(read[0], nan=-1), torch.nan_to_num(sent[0], nan=-1))
    json_record = Preprocessor(config).transform([{**records[0], "member": True, "loud": True}])
    assert torch.equal(json_record[1], sent[1][:1]), "a JSON boolean is the same category"


def sampled(folder: Path, rows: int | str, seed: int = 7) -> data.Rows:
    asked = Data(uri=str(folder), label="income", split=Split(seed=seed))
    return data.load(asked, {ENV_ROWS: str(rows)})


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    """Two files of 40 rows together, told apart by their age."""
    (tmp_path / "a.csv").write_text(HEADER + "".join(f"{i},{'no' if i % 2 else 'yes'}\n" for i in range(30)))
    (tmp_path / "b.csv").write_text(HEADER + "".join(f"{i},{'no' if i % 2 else 'yes'}\n" for i in range(30, 40)))
    return tmp_path


def test_a_sample_is_always_the_same_rows_in_their_order(forty: Path) -> None:
    first = sampled(forty, 12)
    ages = first.table.column("age").to_pylist()
    assert first.table.num_rows == 12
    assert first.sample == {"rows": 12, "of": 40}
    assert ages == sorted(set(ages)), "no row twice, none out of order"
    assert max(ages) >= 30 > min(ages), "of all files"
    assert sampled(forty, 12).table.equals(first.table)
    assert sampled(forty, 12).digest == first.digest
    assert set(ages) < set(sampled(forty, 13).table.column("age").to_pylist()), "one row more is one row more"


def test_a_sample_is_told_from_the_whole_and_from_other_samples(forty: Path) -> None:
    digests = [sampled(forty, rows, seed).digest for rows, seed in ((40, 7), (12, 7), (13, 7), (12, 8))]
    assert len(set(digests)) == 4


@pytest.mark.parametrize("rows", ["40", "41", "999999999", ""])
def test_no_more_rows_than_there_are(forty: Path, rows: str) -> None:
    whole = data.load(Data(uri=str(forty), label="income"), {})
    found = sampled(forty, rows)
    assert found.table.equals(whole.table)
    assert found.digest == whole.digest, "nothing was left out"
    assert found.sample == whole.sample == {"rows": 40, "of": 40}


@pytest.mark.parametrize("rows", ["0", "-5", "1e3", "many", "1.5", "٣"])
def test_what_is_no_number_of_rows_is_named(forty: Path, rows: str) -> None:
    with pytest.raises(JobFailure, match=f"{ENV_ROWS} '{rows}'") as caught:
        sampled(forty, rows)
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID


def test_a_sample_without_enough_of_a_class_is_refused_as_such_data_is(forty: Path) -> None:
    strata = targets.read(sampled(forty, 3).table, Data(uri="", label="income")).strata
    with pytest.raises(JobFailure, match="part of the split has no row"):
        data.split(strata, Split())


def labelled(values: list[object]) -> pa.Table:
    return pa.table({"age": list(range(len(values))), "income": values})


LOAD_FAILURES = [
    ({}, {}, FailureClass.DATA_MISSING, "there is nothing at", "an empty folder"),
    (
        {"x.json": "{}", "y.txt": ""},
        {},
        FailureClass.DATA_MISSING,
        "holds no .csv file, only x.json, y.txt",
        "files of other kinds",
    ),
    ({"x.csv": "a,b\n1,2\n3\n"}, {}, FailureClass.DATA_INVALID, "x.csv ends with row 2", "rows of different lengths"),
    ({"x.csv": ""}, {}, FailureClass.DATA_INVALID, "x.csv is empty", "an empty file"),
    ({"x.csv": "a,b\n"}, {}, FailureClass.DATA_INVALID, "has no rows", "a header alone"),
    ({"x.parquet": "PAR0"}, {"format": "parquet"}, FailureClass.DATA_INVALID, "is no parquet file", "not Parquet"),
    (
        {"a.csv": "a\n1\n", "b.csv": "a\nx\n"},
        {},
        FailureClass.DATA_INVALID,
        "the column 'a' is int64 in",
        "one column, two types",
    ),
]


@pytest.mark.parametrize(
    ("files", "more", "kind", "words", "reason"), LOAD_FAILURES, ids=[c[-1] for c in LOAD_FAILURES]
)
def test_what_cannot_be_loaded_is_named(
    tmp_path: Path, files: dict[str, str], more: dict[str, str], kind: FailureClass, words: str, reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(JobFailure) as caught:
        data.load(Data(uri=str(tmp_path), label="income", **more))
    assert caught.value.failure.reason is kind, reason
    assert words in caught.value.failure.message, reason
    assert caught.value.failure.next_action, reason


LABEL_FAILURES = [
    (["yes", "no"] * 20, {"label": "incom"}, "no column 'incom' (did you mean income?); it has age, income", "a typo"),
    (["yes"] * 40, {}, "has 1 distinct value(s) (yes)", "one class"),
    (["a", "b", "c"] * 10, {"target": "binary"}, "has 3 distinct value(s) (a, b, c)", "three classes"),
    (["yes", "no", None] * 10, {}, "10 of 30 rows have no value in the label column", "labels missing"),
    (["yes", "no"] * 20, {"positive_label": "yess"}, "'yess' is no value of 'income' (did you mean yes?)", "positive"),
]


@pytest.mark.parametrize(("values", "more", "words", "reason"), LABEL_FAILURES, ids=[c[-1] for c in LABEL_FAILURES])
def test_what_is_no_label_is_named(values: list[object], more: dict[str, str], words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        targets.read(labelled(values), Data(**{"uri": "x", "label": "income", **more}))
    assert caught.value.failure.reason is FailureClass.DATA_INVALID, reason
    assert words in caught.value.failure.message, reason


@pytest.mark.parametrize(
    ("values", "positive", "classes", "reason"),
    [
        (["no", "yes"], "", ["no", "yes"], "the later word"),
        (["<=50K", ">50K"], "", ["<=50K", ">50K"], "Adult's labels"),
        ([0, 1], "", ["0", "1"], "numbers"),
        ([9, 10], "", ["9", "10"], "numbers by value, not by their first digit"),
        ([False, True], "", ["false", "true"], "booleans"),
        (["no", "yes"], "no", ["yes", "no"], "as the specification says"),
    ],
)
def test_the_positive_class(values: list[object], positive: str, classes: list[str], reason: str) -> None:
    found = targets.read(labelled(values * 20), Data(uri="x", label="income", positive_label=positive))
    assert found.label["classes"] == classes, reason
    assert found.values.sum() == 20, reason


def test_groups_name_missing_values_and_refuse_identifiers() -> None:
    table = pa.table({"sex": ["m", None, "f"] * 20, "id": list(range(60))})
    assert sorted(set(data.groups(table, "sex").tolist())) == ["(missing)", "f", "m"]
    for column, words in (("id", "60 distinct values"), ("sx", "did you mean sex?")):
        with pytest.raises(JobFailure, match=words.replace("?", r"\?")) as caught:
            data.groups(table, column)
        assert caught.value.failure.reason is FailureClass.DATA_INVALID


def strata_of(positive: np.ndarray) -> Strata:
    return Strata(positive.astype(np.int64), ("the negative class", "the positive class"))


def test_the_split_is_a_stratified_partition_that_only_the_seed_moves() -> None:
    positive = np.arange(1000) % 5 == 0
    parts = data.split(strata_of(positive), Split(validation=0.1, test=0.2, seed=7))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000)), "every row once"
    assert [len(part) for part in parts] == [700, 100, 200]
    assert [int(positive[part].sum()) for part in parts] == [140, 20, 40], "a fifth of each part is positive"
    again = data.split(strata_of(positive), Split(validation=0.1, test=0.2, seed=7))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = data.split(strata_of(positive), Split(validation=0.1, test=0.2, seed=8))
    assert not np.array_equal(parts.test, other.test)


@pytest.mark.parametrize(
    ("positive", "negative", "shares", "words", "reason"),
    [
        (10, 90, (0.05, 0.05), "the validation part of the split has no row of the positive class", "half a row"),
        (10, 90, (0.1, 0.04), "the test part of the split has no row of the positive class", "only the test part"),
        (90, 10, (0.04, 0.2), "the validation part of the split has no row of the negative class", "the other class"),
        (2, 90, (0.25, 0.7), "has 2 in all (validation 0.25, test 0.7)", "the message holds the values"),
        (2, 90, (0.45, 0.5), "the train part of the split has no row of the positive class", "nothing to learn from"),
        (1, 40, (0.1, 0.2), "no row of the positive class, which has 1 in all", "a class too rare for any split"),
    ],
)
def test_a_part_without_one_of_the_classes_is_named(
    positive: int, negative: int, shares: tuple[float, float], words: str, reason: str
) -> None:
    flags = np.arange(positive + negative) < positive
    with pytest.raises(JobFailure) as caught:
        data.split(strata_of(flags), Split(validation=shares[0], test=shares[1]))
    failure = caught.value.failure
    assert failure.reason is FailureClass.DATA_INVALID, reason
    assert words in failure.message, reason
    assert "spec.data.split" in failure.next_action, reason


def test_a_rare_class_that_reaches_every_part_is_split() -> None:
    parts = data.split(strata_of(np.arange(60) < 6), Split(validation=0.3, test=0.3))
    assert [int((part < 6).sum()) for part in parts] == [2, 2, 2]


def job_after_training(folder: Path, weights: bytes) -> Job:
    """The job of a stage after a training that left `weights`."""
    spec = people_spec(write_people(folder, rows=200))
    rows = data.load(Data(uri=spec["data"]["uri"], label="rich"))
    job = Job(Stage.AUDIT, "people", VERSION, read_spec(json.dumps(spec)), Store(str(folder / "artifacts")))
    task = TabularTask({"hidden": [4]})
    config = task.fit(rows.table, task.targets(rows.table, job.spec.data), np.arange(100))
    job.store.write(Artifacts.report(Stage.TRAIN), json.dumps({"data": {"digest": rows.digest}}).encode())
    job.store.write(Artifacts.PREPROCESSOR, json.dumps(config).encode())
    job.store.write(Artifacts.MODEL, weights)
    return job


def saved(state: Mapping[str, Any] | list[int]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("weights", "words", "reason"),
    [
        (b"", "EOFError", "an empty file"),
        (b"no weights", "UnpicklingError", "another file"),
        (saved({"a": torch.ones(9)})[:200], "RuntimeError", "an upload that broke off"),
        (saved([1]), "TypeError", "something else, saved by torch"),
        (saved({"head.weight": torch.ones(1, 3)}), "size mismatch for head.weight", "another model's weights"),
    ],
    ids=["empty", "other", "cut", "list", "misfit"],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, weights: bytes, words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        trained.load(job_after_training(tmp_path, weights))
    failure = caught.value.failure
    assert failure.reason is FailureClass.DATA_INVALID, reason
    assert f"{Artifacts.MODEL} do not fit the model" in failure.message, reason
    assert words in failure.message, reason
    assert "\n" not in failure.message, reason
    assert "mlplatform.dev/retrain" in failure.next_action, reason


def test_a_stage_that_takes_other_rows_than_the_training_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_after_training(tmp_path, b"")
    training = job.read_json(Artifacts.report(Stage.TRAIN))
    training["sample"] = {"rows": 200, "of": 200}
    job.store.write(Artifacts.report(Stage.TRAIN), json.dumps(training).encode())
    monkeypatch.setenv(ENV_ROWS, "100")
    with pytest.raises(JobFailure, match="took 200 of 200 rows, and this stage would take 100") as caught:
        trained.load(job)
    assert ENV_ROWS in caught.value.failure.next_action


class Noting(nn.Module):
    """The first column as logits; remembers how many rows each pass held."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, numeric: Tensor, _: Tensor) -> Tensor:
        self.rows.append(len(numeric))
        return numeric[:, 0]


def test_rows_are_scored_in_stretches() -> None:
    model, numeric = Noting(), torch.linspace(-3, 3, 2 * EVALUATION_ROWS + 1).unsqueeze(1)
    found = trained.scores(Binary({"classes": ["no", "yes"]}), model, (numeric, torch.zeros(len(numeric), 0)))
    assert model.rows == [EVALUATION_ROWS, EVALUATION_ROWS, 1]
    assert np.array_equal(found, torch.sigmoid(numeric[:, 0].double()).numpy()), "in order"
