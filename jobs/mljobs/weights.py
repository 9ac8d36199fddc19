"""How much each row of the training counts.

Called by lesson, before the first step. Metrics count every row alike: they tell what happens to the rows that come.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mljobs import parting, spool
from mljobs.failure import JobFailure, row_words
from mljobs.tasks.tabular_model import number
from mlplatform.contract import FailureClass

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

FIELD: Final = "spec.data.weight"


def read(table: pa.Table, column: str, rows: Indices) -> Floats:
    """The weights of the training rows, whose mean is 1.

    Args:
        table: The whole data.
        column: That holds them.
        rows: Row numbers of the training part, which rise.

    Raises:
        JobFailure: There is no such column, or a row of the data has no weight of 0 or more, or all of the training's are 0.
    """
    parting.require(table, column, FIELD)
    found, start = [], 0
    for chunk in spool.chunks(table.column(column)):
        values = _numbers(chunk)
        if (bad := np.flatnonzero(~(np.isfinite(values) & (values >= 0)))).size:
            row = int(bad[0])
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"{FIELD} names the column {column!r}, which has {chunk[row].as_py()!r} in {row_words(start + row)}: no weight",
                "Write a number of 0 or more into every row, or name another column",
                start + row,
            )
        found.append(values)
        start += len(chunk)
    weights = np.concatenate(found)[rows]
    if not (mean := weights.mean()):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{FIELD} names the column {column!r}, which is 0 in all {len(rows)} training rows",
            "Give rows that are to be learned from a weight above 0",
        )
    scaled: Floats = weights / mean
    return scaled


def _numbers(chunk: pa.Array) -> Floats:
    """NaN where there is none."""
    kind = chunk.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return spool.numbers(chunk)
    read = (number(value) if isinstance(value, str) else None for value in chunk.to_pylist())
    return np.array([np.nan if value is None else value for value in read], dtype=np.float64)


def effective(weights: Floats) -> float:
    """How many rows of one weight tell as much (Kish 1965, section 8.2)."""
    return float(weights.sum() ** 2 / np.square(weights).sum())
