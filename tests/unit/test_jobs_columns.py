"""One reading of a value: what a file's cells became in training, a request with the same cells becomes, too."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from mljobs import data
from mljobs.failure import JobFailure
from mljobs.tasks import Strata, Targets
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import UNKNOWN, Preprocessor, RecordError, number
from mlplatform.api import Data

GRADE = Data(uri="", label="grade")
GRADES = Targets(np.zeros(0), Strata(np.zeros(0, dtype=np.int64), ()), {"name": "grade", "classes": ["a", "b"]})
NUMBERS = [
    ("12", ".", 12.0, "plain"),
    (" -1.5e3 ", ".", -1500.0, "an exponent"),
    ("1,234,567.5", ".", 1234567.5, "thousands"),
    ("1.234.567,5", ",", 1234567.5, "thousands by dots"),
    ("3,5", ".", None, "a decimal comma where the column has points"),
    ("3,5", ",", 3.5, "a decimal comma"),
    ("1.5", ",", None, "a decimal point where the column has commas"),
    ("12\u202f345", ".", 12345.0, "narrow spaces"),
    ("7'500", ".", 7500.0, "Swiss"),
    ("12.5%", ".", 0.125, "a percentage"),
    ("$1,200.50", ".", 1200.5, "money before"),
    ("-\u20ac3", ".", -3.0, "less than no money"),
    ("1.200,50 \u20ac", ",", 1200.5, "money behind"),
    ("(250)", ".", -250.0, "an accountant's minus"),
    ("250-", ".", -250.0, "a minus behind"),
    ("\u221240", ".", -40.0, "a typographer's minus"),
    ("0x2F", ".", 47.0, "hexadecimal"),
    ("-inf", ".", -math.inf, "no finite one"),
    ("12,34", ".", None, "no group of thousands"),
    ("1,2345", ".", None, "nor this"),
    ("--4", ".", None, "two signs"),
    ("+-4", ".", None, "two different ones"),
    ("0,123", ".", None, "thousands do not begin with 0"),
    ("12kg", ".", None, "a unit"),
    ("1_000", ".", None, "a programmer's number"),
    ("\u0663", ".", None, "digits of another script"),
]


@pytest.mark.parametrize(("text", "decimal", "wanted", "reason"), NUMBERS, ids=[case[-1] for case in NUMBERS])
def test_numbers_are_read_as_people_write_them(text: str, decimal: str, wanted: float | None, reason: str) -> None:
    assert number(text, decimal) == wanted, reason


def write(folder: Path, columns: dict[str, Sequence[str]]) -> list[dict[str, str]]:
    """A CSV of these columns and a label; returns its rows without the label."""
    rows = len(next(iter(columns.values())))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*columns, "grade"])
    writer.writerows([*(column[i] for column in columns.values()), "ab"[i % 2]] for i in range(rows))
    (folder / "x.csv").write_text(buffer.getvalue())
    return [{name: column[i] for name, column in columns.items()} for i in range(rows)]


def both(
    folder: Path, columns: dict[str, Sequence[str]]
) -> tuple[Preprocessor, list[torch.Tensor], list[torch.Tensor]]:
    """The schema, the tensors of the training, and those of the file's rows sent back as text."""
    records = write(folder, columns)
    table = data.load(Data(uri=str(folder), label="grade")).table
    task = TabularTask({})
    config = task.fit(table, task.targets(table, GRADE), np.arange(len(records)))
    preprocessor = Preprocessor(config)
    read, sent = task.inputs(config, table), preprocessor.transform(records)
    return preprocessor, *([torch.nan_to_num(t.double(), nan=-77.0) for t in tensors] for tensors in (read, sent))


COLUMNS = {
    "thousands": ["1,000", "2,500", "12,750", "900"],
    "decimal commas": ["3,5", "1.250,75", "0,5", "12"],
    "percent": ["5%", "12.5%", "0.5%", "100%"],
    "money": ["$5", "$1,250.50", "$0.99", "$12"],
    "hexadecimal": ["0x10", "0xFF", "0x1A", "0x2B"],
    "minus": ["(5)", "12", "7-", "\u22123"],
    "missing in any case": ["5", "null", " NA", "7"],
    "Excel": ["5", "#N/A", "#DIV/0!", "7"],
    "pandas": ["5.5", "<NA>", "NaT", "7"],
    "databases": ["5", "\\N", "NULL", "7"],
    "words": ["red", " green ", "None", "n/a"],
    "booleans": ["TRUE", "false", "True", ""],
    "codes": ["1.0", "1", "1.10", "1.1"],
    "numbers and a word": ["1.0", "2.0", "unknown", "2.0"],
    "dates": ["2024-01-31", "2023-12-01", "", "2024-02-29"],
    "line breaks": ["one\ntwo", "three", "one\ntwo", "four"],
    "zeros": ["007", "7", "010", "1"],
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_files_rows_sent_back_are_encoded_as_in_training(tmp_path: Path, kind: str) -> None:
    preprocessor, read, sent = both(tmp_path, {"x": COLUMNS[kind] * 5, "age": ["1", "2", "3", "4"] * 5})
    assert preprocessor.names == ["x", "age"]
    assert all(torch.equal(a, b) for a, b in zip(read, sent, strict=True))
    assert not (sent[1] == UNKNOWN).any(), "every value of the file is known"


def test_any_mixture_of_cells_is_read_once(tmp_path: Path) -> None:
    """Columns at random from every spelling: whatever kind a column gets, both ways agree."""
    pool = [cell for cells in COLUMNS.values() for cell in cells] + [case[0] for case in NUMBERS]
    for seed in range(60):
        generator = random.Random(seed)  # noqa: S311
        columns = {f"c{i}": generator.choices(generator.sample(pool, 1 + seed % 9), k=30) for i in range(4)}
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            _, read, sent = both(folder, {**columns, "age": [str(i) for i in range(30)]})
        except JobFailure:
            continue  # By name, before training.
        for a, b in zip(read, sent, strict=True):
            assert torch.equal(a, b), (seed, columns)


def test_a_number_of_json_is_the_category_that_the_file_has(tmp_path: Path) -> None:
    write(tmp_path, {"deck": ["1.0", "2.0", "unknown"] * 4})
    table = data.load(Data(uri=str(tmp_path), label="grade")).table
    config = TabularTask({}).fit(table, GRADES, np.arange(12))
    _, categories = Preprocessor(config).transform([{"deck": value} for value in ("2.0", 2.0, 2, "2")])
    assert len(set(categories.flatten().tolist())) == 1
    assert categories[0, 0] != UNKNOWN


def test_a_column_of_one_value_may_be_sent_and_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, {"year": ["2031"] * 12, "age": [str(i) for i in range(12)]})
    table = data.load(Data(uri=str(tmp_path), label="grade")).table
    config = TabularTask({}).fit(table, GRADES, np.arange(12))
    assert config["ignored"] == {"year": "it has one value or none in the training rows"}
    preprocessor = Preprocessor(config)
    assert torch.equal(preprocessor.transform([{"year": 2031, "age": 3}])[0], preprocessor.transform([[3]])[0])
    with pytest.raises(RecordError, match="unknown column yeer"):
        preprocessor.transform([{"yeer": 2031}])


@pytest.mark.parametrize(
    "cells", [[[1], [2, 3]], [b"\xff", b"a"], [{"a": 1}, {"a": 2}]], ids=["list", "bytes", "struct"]
)
def test_columns_that_are_no_features_are_refused_by_name(cells: list[object]) -> None:
    table = pa.table({"clicks": cells, "age": [1, 2], "grade": ["a", "b"]})
    with pytest.raises(JobFailure, match="the column 'clicks' holds") as caught:
        TabularTask({}).fit(table, GRADES, np.arange(2))
    assert "exclude" in caught.value.failure.next_action
    config = TabularTask({"exclude": ["clicks"]}).fit(table, GRADES, np.arange(2))
    assert "clicks" in config["ignored"]


def test_a_class_that_is_spelled_like_missing_is_a_class_where_it_must_be(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("age,won\n" + "1,None\n2,Won\n" * 10)
    asked = Data(uri=str(tmp_path), label="won")
    found = TabularTask({}).targets(data.load(asked).table, asked)
    assert found.label["classes"] == ["None", "Won"]
    assert found.values.sum() == 10
    (tmp_path / "x.csv").write_text("age,won\n" + "1,Lost\n2,Won\n" * 10 + "3,NA\n")
    with pytest.raises(
        JobFailure, match=r"1 of 21 rows have no value in the label column 'won' \('NA' counts as"
    ) as caught:
        TabularTask({}).targets(data.load(asked).table, asked)
    assert "write a class as another word" in caught.value.failure.next_action


def test_what_was_converted_or_looks_odd_is_told_with_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("pay,size,grade\n" + "".join(f'"{i},500",{i}kg,a\n' for i in range(1, 3)))
    numbers = "".join(f'"{i},500",{i},b\n' for i in range(3, 40))
    (tmp_path / "b.csv").write_text(f'pay,size,grade\n{numbers}"9,000",abc,b\n')
    rows = data.load(Data(uri=str(tmp_path), label="grade"))
    assert rows.table.column("pay").to_pylist()[:2] == [1500.0, 2500.0]
    assert "'1,500' is read as the number 1500, though the comma could be a decimal one" in rows.columns["pay"]
    assert f"3 of 40 distinct values are no numbers, first '1kg' in row 1 of {tmp_path}/a.csv" in rows.columns["size"]
    assert rows.remarks() == [], "these are of the files"


TOLD = [
    ([f"2024-{i % 12 + 1:02}-{i % 28 + 1:02}" for i in range(84)], "each time is a category", "dates"),
    ([f"2024-{i % 12 + 1:02}-{i % 28 + 1:02}T10:00Z" for i in range(84)], "each time is a category", "times of a day"),
    ([f"{i % 28 + 1}.{i % 12 + 1}.2024" for i in range(84)], "each time is a category", "as Germans write them"),
    ([f"{i}:30" for i in range(24)], "each time is a category", "hours"),
    ([f"{i}.5 kg" for i in range(40)], "write the numbers without 'kg'", "amounts"),
    ([f"{i}km" for i in range(40)], "write the numbers without 'km'", "likewise"),
    ([f"{i}{'kg' if i % 2 else 'lb'}" for i in range(40)], "", "two units: without them the numbers are none"),
    ([f"{i}a" for i in range(10)], "", "few, which may be sizes"),
    ([f"1.{i}.3" for i in range(40)], "", "releases are no dates"),
    ([f"Q{i}" for i in range(40)], "", "words that end in numbers"),
]


@pytest.mark.parametrize(("cells", "words", "reason"), TOLD, ids=[case[-1] for case in TOLD])
def test_what_may_not_be_meant_as_words_is_told(tmp_path: Path, cells: list[str], words: str, reason: str) -> None:
    write(tmp_path, {"cell": cells})
    said = data.load(Data(uri=str(tmp_path), label="grade")).columns.get("cell", "")
    assert words in said if words else not said, reason


def test_a_part_with_one_word_for_missing_more_goes_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("pay,grade\n1500,a\n2500.5,b\n")
    (tmp_path / "b.csv").write_text('pay,grade\n" n/A ",a\n"9,000",b\n')
    rows = data.load(Data(uri=str(tmp_path), label="grade"))
    assert rows.table.column("pay").to_pylist() == [1500.0, 2500.5, None, 9000.0]


def test_a_part_with_words_for_numbers_is_refused_by_name(tmp_path: Path) -> None:
    for i in range(17):
        (tmp_path / f"{i:02}.csv").write_text(f"pay,grade\n{'lots' if i == 16 else i},a\n{i},b\n")
    with pytest.raises(JobFailure, match=r"'pay' is int64 in \S+00.csv but string in \S+16.csv"):
        data.load(Data(uri=str(tmp_path), label="grade"))
