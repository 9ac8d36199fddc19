"""The split where a column decides: appended rows move none, and what cannot be divided is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mljobs import data, parting
from mljobs.failure import JobFailure
from mljobs.tasks import Strata
from mlplatform.api import Split, SplitBy, TimeSplit
from mlplatform.contract import FailureClass

ROWS = 2000


def table(rows: int = ROWS) -> pa.Table:
    days = [f"2024-{i % 12 + 1:02}-15" for i in range(rows)]
    return pa.table({"patient": [i // 4 for i in range(rows)], "day": days, "at": [float(i) for i in range(rows)]})


def divide(rows: pa.Table, by: SplitBy, **shares: Any) -> data.Parts:
    strata = Strata(np.arange(len(rows)) % 2, ("the negative class", "the positive class"))
    return data.split(strata, Split(by=by, **shares), rows)


def time(validation: str = "2024-09-01", test: str = "2024-11-01", column: str = "day") -> SplitBy:
    return SplitBy(time=TimeSplit(column=column, validation=validation, test=test))


WAYS = {"a group": SplitBy(group="patient"), "a key": SplitBy(key=("patient", "day")), "times": time()}


@pytest.mark.parametrize("reason", WAYS)
def test_rows_that_are_appended_move_none(reason: str) -> None:
    before, after = divide(table(), WAYS[reason]), divide(table(2 * ROWS), WAYS[reason])
    assert sorted(np.concatenate(before).tolist()) == list(range(ROWS)), "each row is in one part"
    for part, later in zip(before, after, strict=True):
        assert np.array_equal(part, later[later < ROWS]), reason


def test_rows_of_one_group_are_in_one_part_and_the_shares_hold() -> None:
    parts = divide(table(), WAYS["a group"])
    groups = [set((part // 4).tolist()) for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert len(parts.test) / ROWS == pytest.approx(0.2, abs=0.05)
    assert len(parts.validation) / ROWS == pytest.approx(0.1, abs=0.05)
    assert not np.array_equal(parts.test, divide(table(), WAYS["a group"], seed=8).test), "the seed counts"


def test_a_group_is_read_as_a_cell_is() -> None:
    texts = table().set_column(0, "patient", pa.array([f"{i // 4}.0" for i in range(ROWS)]))
    numbers = divide(table(), WAYS["a group"])
    assert np.array_equal(divide(texts, WAYS["a group"]).test, numbers.test)


@pytest.mark.parametrize("kind", [pa.string(), pa.date32(), pa.timestamp("ms"), pa.timestamp("us", "UTC")])
def test_times_decide(kind: pa.DataType) -> None:
    rows = table()
    times = rows.column("day").cast(pa.timestamp("us"))
    rows = rows if pa.types.is_string(kind) else rows.set_column(1, "day", times.cast(kind))
    months = [{i % 12 + 1 for i in part.tolist()} for part in divide(rows, time())]
    assert months == [set(range(1, 9)), {9, 10}, {11, 12}]


LISTS = pa.table({"patient": [[1], [2]] * 20, "day": [b"1"] * 40, "at": pa.array([b"12"] * 40, pa.binary(2))})


@pytest.mark.parametrize(("by", "kind"), [
    (SplitBy(group="patient"), "list<"), (SplitBy(key=("day",)), "binary"), (time(column="at"), "fixed_size_binary")
])  # fmt: skip
def test_cells_that_cannot_be_told_from_each_other_divide_nothing(by: SplitBy, kind: str) -> None:
    with pytest.raises(JobFailure, match=f"holds {kind}") as caught:
        divide(LISTS, by)
    assert caught.value.failure.reason is FailureClass.DATA_INVALID


@pytest.mark.parametrize("column", [["a"] * 40, pa.nulls(40), ["a", "b"] * 20], ids=["one", "none", "two"])
def test_too_few_groups_are_named(column: Any) -> None:
    with pytest.raises(JobFailure, match=r"names the column 'g', which has [12] different value\(s\) for 3 parts"):
        divide(pa.table({"g": column}), SplitBy(group="g"))


REFUSED = [
    (SplitBy(group="pateint"), "no column 'pateint' (did you mean patient?)", "a group that is not there"),
    (SplitBy(key=("patient", "hour")), "no column 'hour'", "a key that is not there"),
    (time(column="moment"), "no column 'moment'", "a time that is not there"),
    (time("2024-11-01", "2024-09-01"), "no two times in this order", "cut-offs out of order"),
    (time(column="at"), "has 0.0 in row 1 of the data: no time", "numbers are no times"),
    (time("2025-01-01", "2025-02-01"), "the validation part of the split has no row", "a part that would be empty"),
]


@pytest.mark.parametrize(("by", "words", "reason"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_what_cannot_be_divided_is_refused_by_name(by: SplitBy, words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        divide(table(), by)
    assert words in caught.value.failure.message, reason
    assert caught.value.failure.reason in {FailureClass.DATA_INVALID, FailureClass.SPEC_INVALID}, reason
    assert "spec.data" in caught.value.failure.next_action or "Write" in caught.value.failure.next_action, reason


MISREAD = [
    (["id heduc years div"], "div", "set spec.data.delimiter to ' '", "columns that spaces part"),
    (["id~age~div"], "div", "parts the columns of the header 'id~age~div'", "another character"),
    (["39", "State-gov", "77516", "13"], "income", "looks like a row", "no header"),
    (["A11 6 A34 1169"], "credit", "parted by spaces (spec.data.delimiter)", "no header, and spaces"),
    (["Report of 2024"], "income", "Correct spec.data.label", "a title"),
    (["age", "city", "2024"], "income", "Correct spec.data.label", "a year as a name"),
    (["city"], "income", "Correct spec.data.label", "one column"),
]


@pytest.mark.parametrize(("columns", "label", "action", "reason"), MISREAD, ids=[case[-1] for case in MISREAD])
def test_a_header_that_was_misread_is_told_from_a_name_that_is_wrong(
    columns: list[str], label: str, action: str, reason: str
) -> None:
    with pytest.raises(JobFailure) as caught:
        parting.require(pa.table({name: [""] for name in columns}), label, "spec.data.label")
    assert action in caught.value.failure.next_action, reason
