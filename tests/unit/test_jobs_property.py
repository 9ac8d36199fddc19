"""For any table: the rows of the file, sent back as requests, get the encoding and the predictions of the training."""

from __future__ import annotations

import csv
import io
import tempfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mljobs import data
from mljobs.failure import JobFailure
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import Preprocessor, TabularModel
from mlplatform.api import Data

integers = st.integers(-(10**7), 10**7)
SPELLINGS = {
    "integers": integers.map(str),
    "floats": st.floats(allow_nan=False).map(repr),
    "thousands": integers.map("{:,}".format),
    "dotted": integers.map(lambda number: f"{number:,}".replace(",", ".")),
    "decimal commas": st.decimals(-1000, 1000, places=2).map(lambda number: str(number).replace(".", ",")),
    "percent": st.integers(0, 1000).map("{}%".format),
    "money": st.decimals(0, 1000, places=2).map("${}".format),
    "hexadecimal": st.integers(0, 2**60).map(hex),
    "padded": st.integers(0, 999).map("{:>6}".format),
    "zeros": st.integers(0, 99).map("{:03}".format),
    "versions": st.from_regex(r"\A[1-3]\.[0-9]{1,2}\Z"),
    "words": st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=6),
    "lines": st.lists(st.sampled_from(["one", "two, three", 'a "b"']), max_size=3).map("\n".join),
    "missing": st.sampled_from(["", "NA", " null", "#N/A", "None", "nan", "?", "<NA>", "\\N"]),
    "booleans": st.sampled_from(["true", "True", "FALSE", "0", "1"]),
    "dates": st.dates().map(str),
    "times": st.datetimes().map(str),
    "zoned": st.datetimes().map(lambda moment: f"{moment.isoformat(timespec='seconds')}Z"),
    "clocks": st.times().map(lambda time: time.isoformat("minutes")),
}


@st.composite
def columns(draw: st.DrawFn, rows: int) -> list[str]:
    kinds = draw(st.lists(st.sampled_from(list(SPELLINGS)), min_size=1, max_size=3))
    return draw(st.lists(st.one_of(*(SPELLINGS[kind] for kind in kinds)), min_size=rows, max_size=rows))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=st.integers(4, 12).flatmap(lambda rows: st.lists(columns(rows), min_size=1, max_size=3)))
def test_the_rows_of_a_file_are_answered_as_they_were_learned(table: list[list[str]]) -> None:
    rows = len(table[0])
    names = [f"c{i}" for i in range(len(table))]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["age", *names, "grade"])
    writer.writerows([i, *(column[i] for column in table), "ab"[i % 2]] for i in range(rows))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.csv").write_bytes(buffer.getvalue().encode())
        try:
            asked = Data(uri=folder, label="grade")
            loaded = data.load(asked).table
            task = TabularTask({"hidden": [4], "bins": 4})
            config = task.fit(loaded, task.targets(loaded, asked), np.arange(rows))
        except JobFailure as refusal:
            pytest.fail(f"refused: {refusal}")
    learned = task.inputs(config, loaded)
    records = [{"age": i, **{name: column[i] for name, column in zip(names, table, strict=True)}} for i in range(rows)]
    sent = Preprocessor(config).transform(records)
    for part, other in zip(learned, sent, strict=True):
        assert torch.equal(torch.nan_to_num(part, nan=-7.5), torch.nan_to_num(other, nan=-7.5)), (learned, sent)
    torch.manual_seed(1)
    model = TabularModel(config).eval()
    assert torch.equal(model(*learned), model(*sent))


MEASURES = {
    ".": ("{:,}", "{:,}%", "${:,}", "{}", " {} "),
    ",": ("{}", "{}%", "{} €", " {} "),
}
"""Ways to write a number, by its decimal sign; what is grouped by commas cannot have a decimal one."""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    decimal=st.sampled_from(list(MEASURES)),
    written=st.lists(
        st.tuples(st.decimals(1000, 99999, places=2), st.integers(0, 3)), min_size=4, max_size=12,
        unique_by=lambda cell: cell[0],
    ),
)  # fmt: skip
def test_a_label_is_the_number_that_a_feature_of_the_same_text_is(
    decimal: str, written: list[tuple[Decimal, int]]
) -> None:
    ways = MEASURES[decimal]
    cells = [ways[way % len(ways)].format(value) for value, way in written]
    if decimal == ",":
        cells = [cell.replace(".", ",") for cell in cells]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["size", "price"], *([cell, cell] for cell in cells)])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.csv").write_bytes(buffer.getvalue().encode())
        asked = Data(uri=folder, label="price", target="regression")
        loaded = data.load(asked).table
    task = TabularTask({"hidden": [4], "bins": 4})
    targets = task.targets(loaded, asked)
    assert targets.values.tolist() == loaded.column("size").to_pylist()
    divided = [float(value) / (100 if "%" in cell else 1) for (value, _), cell in zip(written, cells, strict=True)]
    assert targets.values.tolist() == pytest.approx(divided)
    numeric, _ = Preprocessor(task.fit(loaded, targets, np.arange(len(cells)))).transform([[cell] for cell in cells])
    assert numeric.flatten().tolist() == pytest.approx(targets.values.tolist(), rel=1e-6), "as the request has it"
