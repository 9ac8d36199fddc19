"""Loading rows, labels, groups and the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mljobs import data
from mljobs.failure import JobFailure
from mlplatform.api import Data, Split
from mlplatform.contract import FailureClass

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
    table = data.load(Data(uri=str(tmp_path), label="job")).table
    assert table.to_pydict() == {"age": [None, 3], "job": [None, "clerk"]}


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
    ({"x.csv": "a,b\n1,2\n3\n"}, {}, FailureClass.DATA_INVALID, "is no csv file", "rows of different lengths"),
    ({"x.csv": ""}, {}, FailureClass.DATA_INVALID, "is no csv file", "an empty file"),
    ({"x.csv": "a,b\n"}, {}, FailureClass.DATA_INVALID, "has no rows", "a header alone"),
    ({"x.parquet": "PAR0"}, {"format": "parquet"}, FailureClass.DATA_INVALID, "is no parquet file", "not Parquet"),
    (
        {"a.csv": "a\n1\n", "b.csv": "a\nx\n"},
        {},
        FailureClass.DATA_INVALID,
        "do not fit together",
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
    (["a", "b", "c"] * 10, {}, "has 3 distinct value(s) (a, b, c)", "three classes"),
    (["yes", "no", None] * 10, {}, "10 of 30 rows have no value in the label column", "labels missing"),
    (["yes", "no"] * 20, {"positive_label": "yess"}, "'yess' is no value of 'income' (did you mean yes?)", "positive"),
    (["yes"] + ["no"] * 40, {}, "only 1 rows are of the rarer class", "a class too rare to split"),
]


@pytest.mark.parametrize(("values", "more", "words", "reason"), LABEL_FAILURES, ids=[c[-1] for c in LABEL_FAILURES])
def test_what_is_no_label_is_named(values: list[object], more: dict[str, str], words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        data.labels(labelled(values), Data(**{"uri": "x", "label": "income", **more}))
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
    flags, found = data.labels(labelled(values * 20), Data(uri="x", label="income", positive_label=positive))
    assert found == classes, reason
    assert flags.sum() == 20, reason


def test_groups_name_missing_values_and_refuse_identifiers() -> None:
    table = pa.table({"sex": ["m", None, "f"] * 20, "id": list(range(60))})
    assert sorted(set(data.groups(table, "sex").tolist())) == ["(missing)", "f", "m"]
    for column, words in (("id", "60 distinct values"), ("sx", "did you mean sex?")):
        with pytest.raises(JobFailure, match=words.replace("?", r"\?")) as caught:
            data.groups(table, column)
        assert caught.value.failure.reason is FailureClass.DATA_INVALID


def test_the_split_is_a_stratified_partition_that_only_the_seed_moves() -> None:
    positive = np.arange(1000) % 5 == 0
    parts = data.split(positive, Split(validation=0.1, test=0.2, seed=7))
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000)), "every row once"
    assert [len(part) for part in parts] == [700, 100, 200]
    assert [int(positive[part].sum()) for part in parts] == [140, 20, 40], "a fifth of each part is positive"
    again = data.split(positive, Split(validation=0.1, test=0.2, seed=7))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    other = data.split(positive, Split(validation=0.1, test=0.2, seed=8))
    assert not np.array_equal(parts.test, other.test)
