"""Rows that are both learned from and tested on.

Called by the task `tabular`, with the columns that it learns from and the label. Rows may repeat by chance, where the
columns have few values: then what is tested will come again, and the test is honest. Copies are another thing: the test
would measure what was memorised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mljobs.data import Parts
from mljobs.failure import JobFailure
from mljobs.features import ENOUGH, Encoded, is_plain
from mlplatform.contract import FailureClass

LIMIT: Final = 0.05
"""Share of the test rows that may be copies: a metric of 0.8 then gains at most 0.01, and gates are set no finer."""
OWN: Final = 0.5
"""A column that has more values than this share of the different rows tells rows apart."""
ALONE: Final = 0.01
"""Share of the different rows that occur once, below which all were copied; by chance it is over 0.15 where rows occur
`OFTEN` times on average (Poisson)."""
OFTEN: Final = 3
ALWAYS: Final = 0.95
LEAST: Final = 3
"""Columns that vary, the label among them: with a single feature equal rows are nothing but equal values."""
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


class Repeats(NamedTuple):
    """How many rows are among the training rows, too.

    Attributes:
        validation: Of the validation part.
        test: Of the test part.
        remark: A sentence about them; empty if there are none.
    """

    validation: int
    test: int
    remark: str


def find(table: pa.Table, parts: Parts, most: float | None, place: Callable[[int], str]) -> Repeats:
    """Counts them.

    Args:
        table: All rows, with the columns that are learned from and the label.
        parts: The split.
        most: `spec.data.split.maxRepeated`.
        place: Where the row of this number stands.

    Raises:
        JobFailure: They are more than `most`, or, where that says nothing, more than `LIMIT` and copies.
    """
    columns = [Encoded.of(column).codes for column in table.columns if is_plain(column.type)]
    kinds = _kinds(columns, len(table))
    learned = np.zeros(len(table), dtype=np.bool_)
    learned[kinds[parts.train]] = True
    validation, test = (int(learned[kinds[part]].sum()) for part in (parts.validation, parts.test))
    if not test:
        return Repeats(validation, test, "")
    copies = learned[kinds[parts.test]] & (_copied(columns, kinds)[parts.test] if most is None else True)
    share = copies.sum() / len(parts.test)
    example = int(parts.test[np.flatnonzero(learned[kinds[parts.test]])[0]])
    if copies.any():
        example = int(parts.test[np.flatnonzero(copies)[0]])
    twin = int(parts.train[np.flatnonzero(kinds[parts.train] == kinds[example])[0]])
    told = (
        f"{test} of the {len(parts.test)} test rows are among the training rows, too, value for value: "
        f"{place(example)} is {place(twin)}"
    )
    if share > (LIMIT if most is None else most):
        why = (
            "and their values do not repeat by chance" if most is None else f"over spec.data.split.maxRepeated {most:g}"
        )
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{told}; {why}. The test would measure what was memorised",
            "Remove the copies (a file that is there twice, rows that were appended again or oversampled); if such rows "
            "come in requests, too, set spec.data.split.maxRepeated: 1",
        )
    return Repeats(validation, test, told)


def _kinds(columns: list[npt.NDArray[np.int64]], rows: int) -> npt.NDArray[np.int64]:
    """Of each row the number of its kind: rows that are equal have the same."""
    mixed = np.zeros(rows, dtype=np.uint64)
    for codes in columns:
        mixed = (mixed ^ (codes.astype(np.uint64) + _MIX + (mixed << np.uint64(6)) + (mixed >> np.uint64(2)))) * _MIX
        mixed ^= mixed >> np.uint64(29)
    _, kinds = np.unique(mixed, return_inverse=True)
    found: npt.NDArray[np.int64] = kinds.astype(np.int64)
    return found


def _copied(columns: list[npt.NDArray[np.int64]], kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Rows that, if they are there twice, are copies.

    All are, if nearly none is there once. Else where a column has many values, and a value that comes again always comes
    with the very same row: by chance something else would differ, unless there is nothing else.
    """
    _, first, counts = np.unique(kinds, return_index=True, return_counts=True)
    found = np.zeros(len(first), dtype=np.bool_)
    varied = [codes for codes in columns if (codes != codes[0]).any()]
    if len(first) < ENOUGH or len(varied) < LEAST:
        return found[kinds]
    if (counts == 1).mean() < ALONE and counts.mean() <= OFTEN:
        found[:] = True
    for codes in varied:
        values, where, rows = np.unique(codes[first], return_inverse=True, return_counts=True)
        again = np.bincount(where, weights=counts) > 1
        if len(values) > OWN * len(first) and (rows[again] == 1).sum() > ALWAYS * again.sum():
            found |= (rows == 1)[where]
    return found[kinds]
