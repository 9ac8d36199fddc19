"""Which columns a model learns from, and rows that are both learned from and tested on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mljobs import data, profile
from mljobs.failure import JobFailure
from mljobs.features import Choice
from mljobs.tasks.tabular import TabularTask
from mlplatform import api
from mlplatform.api import Data

N = 300
DRAWN = np.random.default_rng(5)
AGE = DRAWN.integers(18, 90, N).tolist()
YES = (DRAWN.random(N) < 0.4).tolist()
Y = ["yes" if one else "no" for one in YES]
FLOATS = DRAWN.normal(size=N).tolist()
UNIQUE = DRAWN.permutation(N)


def table_of(**columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values())))
    return pa.table({"age": AGE[:rows], **columns, **({} if "y" in columns else {"y": Y[:rows]})})


def chosen(table: pa.Table, excluded: tuple[str, ...] = (), **asked: Any) -> Choice:
    wanted = api.decode(Data, {"uri": "x", "label": "y", **asked})
    task = TabularTask({"exclude": list(excluded)})
    numbered = data.numbering(table, [table.num_rows])
    rows = data.Rows(table, ["x.csv"], "", table.num_rows, [{"rows": table.num_rows}], numbered=numbered)
    targets = task.targets(table, wanted)
    return task.choose(rows, targets, data.split(targets.strata, wanted.split, table), wanted)


@pytest.mark.parametrize(
    ("name", "values", "why", "reason"),
    [
        ("Unnamed: 0", range(N), "numbers the rows", "pandas' to_csv with its index"),
        ("line", range(1, N + 1), "numbers the rows", "a spreadsheet's"),
        ("x", np.arange(N, dtype=float), "numbers the rows", "read as fractions, because another file has a gap"),
        ("customer", UNIQUE + 1000, "names the rows", "whole numbers drawn from a list, in any order"),
        ("customer", np.delete(np.arange(2 * N), UNIQUE) * 3, "", "their gaps have a pattern: an amount"),
        ("customerID", UNIQUE * 7919 % 1_000_003, "names the rows", "far apart, but called what they are"),
        ("passenger_id", [f"P-{i}" for i in UNIQUE], "names the rows", "text that is never the same"),
        ("remark", [f"called {i} times, no answer" for i in UNIQUE], "names the rows", "free text teaches no category"),
        ("twice", [f"P-{max(i, 9)}" for i in UNIQUE], "names the rows", "a few of them repeat"),
        ("when", pa.array((UNIQUE * 3_600_000).tolist(), pa.timestamp("ms")), "make columns of", "a time a row"),
        ("again", AGE, "repeats the column 'age'", "the same numbers under another name"),
        ("again", [float(age) for age in AGE], "repeats the column 'age'", "another type, the same numbers"),
    ],
)  # fmt: skip
def test_what_says_nothing_of_later_rows_is_left_out(name: str, values: Any, why: str, reason: str) -> None:
    left_out = chosen(table_of(**{name: values})).left_out
    assert why in left_out[name] if why else not left_out, reason


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("x", FLOATS, "measured numbers are all different"),
        ("x", [round(value, 1) for value in FLOATS], "measured numbers that repeat"),
        ("income", (UNIQUE * 613 + 20_000), "amounts that happen to be all different"),
        ("income", UNIQUE * 10, "amounts in tens"),
        ("seconds", 1_700_000_000 + UNIQUE * 86_400, "a time as a number, one a day"),
        ("city", [f"city {i % 20}" for i in UNIQUE], "categories"),
        ("street", [f"street {i % 200}" for i in UNIQUE], "many categories, of which some come again"),
        ("id", [i % 40 for i in UNIQUE], "what is called an identifier and repeats is one of something else"),
        ("count", [*range(N - 1), N - 2], "nearly a numbering"),
        ("again", [*AGE[:-1], AGE[-1] + 1], "nearly a copy"),
    ],
)
def test_what_is_measured_stays(name: str, values: Any, reason: str) -> None:
    found = chosen(table_of(**{name: values}))
    assert (found.left_out, found.remarks) == ({}, {}), reason


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("seat", [7, 3, 9, 4, 12, 5, 8, 2, 6, 10, 15, 11], "a dozen rows prove nothing"),
        ("name", [*"abcdefghijkl"], "nor with text"),
    ],
)
def test_few_rows_prove_nothing(name: str, values: list[Any], reason: str) -> None:
    rows = len(values) * 4
    assert chosen(table_of(**{name: values * 4}, y=["no", "yes"] * (rows // 2))).left_out == {}, reason
    once = table_of(
        **{name: [values[i] if i < len(values) else None for i in range(rows)]}, y=["no", "yes"] * (rows // 2)
    )
    assert chosen(once).left_out == {}, reason


def test_each_files_own_numbering_is_one_too() -> None:
    table = table_of(row=[*range(100), *range(200)])
    assert data.numbering(table, [100, 200]) == {"row": "it numbers the rows of each file"}
    assert data.numbering(table, [150, 150]) == {}


def test_what_divides_the_rows_is_left_out_for_the_test_has_other_values_of_it() -> None:
    table = table_of(team=[f"t{i % 30}" for i in range(N)], day=[f"2024-0{i % 9 + 1}-01" for i in range(N)])
    by_team, by_day = {"group": "team"}, {"time": {"column": "day", "validation": "2024-06-01", "test": "2024-08-01"}}
    assert chosen(table).left_out == {}
    assert "split.by.group" in chosen(table, split={"by": by_team}).left_out["team"]
    assert "split.by.time" in chosen(table, split={"by": by_day}).left_out["day"]
    assert chosen(table, split={"by": by_day}, columns={"day": "use"}).left_out == {}


def test_the_only_column_is_kept_and_said() -> None:
    found = chosen(pa.table({"age": range(20, 20 + N), "same": ["x"] * N, "y": Y}))
    assert found.left_out == {}
    assert "it is kept, for there is no other column" in found.remarks["age"]


def test_one_field_overrides_each_of_them() -> None:
    table = table_of(row=range(N), twin=AGE, code=[f"{i}" for i in UNIQUE], alive=YES, shoe=FLOATS)
    said = {"row": "use", "twin": "use", "code": "use", "alive": "use"}
    assert chosen(table, columns={**said, "shoe": "ignore"}).left_out == {"shoe": "spec.data.columns says so"}
    with pytest.raises(JobFailure, match="'shoes', which the data lacks \\(did you mean shoe\\?\\)"):
        chosen(table, columns={**said, "shoes": "ignore"})


@pytest.mark.parametrize(
    ("values", "words", "reason"),
    [
        (YES, "one to one", "another word for each class: titanic's alive and survived"),
        ([2 if one else 1 for one in YES], "one to one", "as numbers"),
        ([None if one else "open" for one in YES], "one to one", "or as nothing"),
        (Y, "the same value in all", "a copy"),
        ([f"{'c' if one else 'd'}{i % 5}" for i, one in enumerate(YES)], "each of its values", "codes of the classes"),
        ([None if one else i % 60 for i, one in enumerate(YES)], "whether it has a value", "days since what is predicted"),
        ([i % 90 + 100 * one for i, one in enumerate(YES)], "one bound", "a score made of the label"),
        ([i % 90 + 100 * (one and i != 7) for i, one in enumerate(YES)], "all but", "nearly"),
    ],
)  # fmt: skip
def test_a_column_that_tells_the_label_is_refused_by_name(values: list[Any], words: str, reason: str) -> None:
    big = {"age": AGE * 2, "told": values * 2, "y": Y * 2}
    seed = {"split": {"maxRepeated": 1.0}}
    with pytest.raises(JobFailure) as caught:
        chosen(pa.table(big), **seed)
    failure = caught.value.failure
    assert "'told' tells the label 'y'" in failure.message, reason
    assert words in failure.message, reason
    assert '{"told": ignore}' in failure.next_action, reason
    assert chosen(pa.table(big), columns={"told": "use"}, **seed).left_out == {}, "a request has it"
    assert chosen(pa.table(big), ("told",), **seed).remarks == {}, "the older way to leave it out"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([f"{'c' if one else 'd'}{i % 5}" if i % 20 else "c0" for i, one in enumerate(YES)], "one row in twenty errs"),
        ([i % 90 + 60 * one for i, one in enumerate(YES)], "a strong number"),
        ([i if one else -i for i, one in enumerate(YES)][::-1], "a number of another order"),
    ],
)
def test_a_strong_feature_is_none(values: list[Any], reason: str) -> None:
    assert chosen(table_of(told=values)).remarks == {}, reason


def test_in_few_rows_it_is_only_told() -> None:
    table = pa.table({"age": AGE[:60], "city": ["Lyon", "Nîmes"] * 30, "y": ["non", "oui"] * 30})
    remark = chosen(table).remarks["city"]
    assert "alone it tells the label 'y' (one to one, Lyon is non, Nîmes is oui, in all 60 rows)" in remark
    with pytest.raises(JobFailure, match="the same value in all 60 rows"):
        chosen(table.append_column("z", table.column("y")))


@pytest.mark.parametrize(
    ("scale", "noise", "refused"), [(1.0, 0.0, True), (0.01, 0.0, True), (2.54, 1e-4, True), (1.0, 0.2, False)]
)
def test_a_measured_label_in_another_unit_is_refused(scale: float, noise: float, *, refused: bool) -> None:
    price = DRAWN.gamma(3.0, size=N)
    table = table_of(cents=price * scale + noise * DRAWN.normal(size=N), y=price)
    if refused:
        with pytest.raises(JobFailure, match="'cents' tells the label 'y'"):
            chosen(table, target="regression")
    else:
        assert chosen(table, target="regression").remarks == {}


def doubled(**columns: Any) -> pa.Table:
    table = table_of(**columns)
    return pa.concat_tables([table, table])


def test_copies_in_train_and_test_are_refused_with_their_places() -> None:
    with pytest.raises(JobFailure) as caught:
        chosen(doubled(weight=FLOATS))
    failure = caught.value.failure
    assert "test rows are among the training rows, too, value for value: row" in failure.message
    assert "of x.csv is row" in failure.message
    assert "spec.data.split.maxRepeated: 1" in failure.next_action
    found = chosen(doubled(weight=FLOATS), split={"maxRepeated": 1.0})
    assert found.repeated["test"] > 60
    assert "value for value" in found.repeats


def test_a_numbering_does_not_hide_them() -> None:
    table = doubled(weight=FLOATS).append_column("row", pa.array(range(2 * N)))
    with pytest.raises(JobFailure, match="among the training rows"):
        chosen(table)


def test_rows_that_all_come_twice_are_copies_though_no_value_is_rare() -> None:
    parts = {"a": DRAWN.integers(0, 9, N), "b": DRAWN.integers(0, 9, N), "c": DRAWN.integers(0, 9, N)}
    chosen(pa.table({**parts, "y": Y}))
    with pytest.raises(JobFailure, match="among the training rows"):
        chosen(pa.concat_tables([pa.table({**parts, "y": Y})] * 2))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"a": [i % 4 for i in range(N)], "b": [i % 3 for i in range(N)]}, "a few values: what is tested comes again"),
        ({"a": DRAWN.integers(0, 40, N), "b": DRAWN.integers(0, 4, N)}, "some rows meet by chance"),
        ({"item": (ITEM := DRAWN.integers(0, 200, N)), "price": ITEM * 7 % 13}, "an item's price is always the same"),
        ({"code": DRAWN.integers(0, 400, N)}, "with a single column equal rows are equal values"),
    ],
)
def test_rows_that_repeat_by_chance_are_only_told(columns: Mapping[str, Any], reason: str) -> None:
    table = pa.table({**columns, "y": DRAWN.permutation(Y)})
    found = chosen(table)
    assert found.repeated["test"] > 3, reason
    with pytest.raises(JobFailure, match=r"over spec\.data\.split\.maxRepeated"):
        chosen(table, split={"maxRepeated": 0.01})


@pytest.mark.parametrize("diverse", [True, False], ids=["a number of many values", "none"])
def test_a_part_that_was_appended_again_is_refused(*, diverse: bool) -> None:
    few = {name: DRAWN.integers(0, 30, N) for name in ("a", "b", "c")}
    table = pa.table({**few, **({"weight": DRAWN.integers(0, 200, N)} if diverse else {}), "y": Y})
    assert chosen(table).repeated["test"] < 3, "values meet, rows do not"
    with pytest.raises(JobFailure, match="among the training rows"):
        chosen(pa.concat_tables([table, table.slice(0, 60)]))


def test_a_few_copies_are_only_told() -> None:
    table = pa.concat_tables([table_of(weight=FLOATS), table_of(weight=FLOATS).slice(0, 8)])
    assert chosen(table).repeated["test"] <= 4


def test_numbers_that_are_none_are_missing_and_told() -> None:
    table = pa.table({
        "rate": [1.0, float("nan"), float("inf"), -2e38, None, 3.0],
        "none": pa.nulls(6),
        "at": pa.array([0, 1, 2, 0, 1, 2], pa.timestamp("s")),
        "y": list("ababab"),
    })  # fmt: skip
    found = profile.described(data.Rows(table, ["a"], "", 6), {}, {}, "y")
    assert found["rate"]["missing"] == pytest.approx(4 / 6, abs=1e-6)
    assert found["rate"]["note"] == "2 of 6 numbers are infinite or beyond 1e+38, and count as missing"
    assert (found["none"]["kind"], found["none"]["missing"], found["none"]["distinct"]) == ("empty", 1.0, 0)
    assert "each time is a category" in found["at"]["note"]


def test_a_column_of_nothing_is_left_out(tmp_path: Path) -> None:
    table = pa.table({"age": [float(i * i % 37) for i in range(60)], "none": pa.nulls(60), "y": ["a", "b", "b"] * 20})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    asked = Data(uri=str(tmp_path), label="y", format="parquet")
    rows, task = data.load(asked), TabularTask({})
    choice, config = learned(task, rows, asked)
    assert [feature["name"] for feature in config["features"]] == ["age"]
    found = profile.described(rows, choice.remarks, {**choice.left_out, **config["ignored"]}, "y")
    assert (found["none"]["kind"], found["none"]["use"]) == ("empty", "left out")


def learned(task: TabularTask, rows: data.Rows, asked: Data) -> tuple[Choice, dict[str, Any]]:
    """What a training finds out about rows before it learns."""
    targets = task.targets(rows.table, asked)
    parts = data.split(targets.strata, asked.split)
    choice = task.choose(rows, targets, parts, asked)
    config = task.fit(rows.table.drop_columns(list(choice.left_out)), targets, parts.train)
    return choice, config


def test_every_column_is_described(tmp_path: Path) -> None:
    lines = [
        "row,age,pay,same,seen,y,",
        *(f'{i},{AGE[i]},"{i % 50 + 1},000",x,{"" if i % 4 else "a"},{Y[i]},' for i in range(N)),
    ]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    asked = Data(uri=str(tmp_path), label="y")
    rows, task = data.load(asked), TabularTask({})
    choice, config = learned(task, rows, asked)
    found = profile.described(rows, choice.remarks, {**choice.left_out, **config["ignored"]}, "y")
    assert found["(column 7)"] == {"kind": "", "use": "left out", "why": "it has no name"}
    assert found["row"] == {
        "kind": "number", "missing": 0.0, "distinct": N, "use": "left out", "why": "it numbers the rows",
    }  # fmt: skip
    assert found["age"] == {"kind": "number", "missing": 0.0, "distinct": len(set(AGE)), "use": "feature"}
    assert found["pay"]["note"].startswith("text like '1,000' is read as the number 1000")
    assert found["same"]["why"] == "it has one value or none in the training rows"
    assert (found["seen"]["missing"], found["seen"]["use"]) == (0.75, "feature"), (
        "whether it is there may tell something"
    )
    assert found["y"]["use"] == "label"
    assert [line.partition(":")[0] for line in profile.unusual(found)] == ["(column 7)", "row", "pay", "same"]
