"""What became of every column, in words and figures.

Called by `mljobs.lesson`: for the report, the log that `kubectl mlmodel data` reads, and the summary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from mljobs import spool
from mljobs.columns import TIMES
from mljobs.data import Rows
from mljobs.tasks.tabular_model import LARGEST

MANY: Final = 10_000
"""Different values of a column of large data that are counted."""
SAID: Final = 160
"""Characters of a sentence in the summary; the report has all of it."""


def described(
    rows: Rows, remarks: Mapping[str, str], ignored: Mapping[str, str], labels: Collection[str]
) -> dict[str, dict[str, Any]]:
    """What became of every column: for the report, and for whoever asks `kubectl mlmodel data`.

    Args:
        rows: With what was found when they were read.
        remarks: By column, what the task has to say of it.
        ignored: Columns that are no features, with why.
        labels: The columns that are predicted.

    Returns:
        By name ``{kind, missing, distinct, use, why, note}``, the last two and `distinct` where there is something to say.
    """
    large = spool.is_large(rows.table)
    found: dict[str, dict[str, Any]] = {
        name: {"kind": "", "use": "left out", "why": why} for name, why in rows.left_out.items()
    }
    for name, column in zip(rows.table.column_names, rows.table.columns, strict=True):
        why = ignored.get(name, "")
        absent, beyond = _no_numbers(column)
        own = [
            rows.columns.get(name, ""),
            f"{beyond} of {len(column)} numbers are infinite or beyond {LARGEST:g}, and count as missing"
            if beyond
            else "",
            TIMES if pa.types.is_temporal(column.type) and name not in labels and not why else "",
        ]
        note = "; ".join(filter(None, [*own, remarks.get(name, "")]))
        found[name] = {
            "kind": _kind(column.type),
            "missing": round((column.null_count + absent + beyond) / len(column), 6),
            **_distinct(column, large=large),
            "use": "label" if name in labels else "left out" if why else "feature",
            **({"why": why} if why else {}),
            **({"note": note} if note else {}),
        }
    return found


def _no_numbers(column: pa.ChunkedArray) -> tuple[int, int]:
    """How many numbers of a column are NaN, and how many are too large to be read."""
    if not pa.types.is_floating(column.type):
        return 0, 0
    absent = beyond = 0
    for chunk in spool.chunks(column):
        absent += pc.sum(pc.is_nan(chunk)).as_py() or 0
        beyond += pc.sum(pc.greater(pc.abs(chunk), LARGEST)).as_py() or 0
    return absent, beyond


def _distinct(column: pa.ChunkedArray, *, large: bool) -> dict[str, int]:
    """How many values there are; of large data only if they are few."""
    if pa.types.is_nested(column.type):
        return {}
    if pa.types.is_null(column.type):
        return {"distinct": 0}
    if not large:
        return {"distinct": pc.count_distinct(column).as_py()}
    seen: set[Any] = set()
    for chunk in spool.chunks(column):
        seen.update(chunk.drop_null().unique().to_pylist())
        if len(seen) > MANY:
            return {}
    return {"distinct": len(seen)}


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_null(kind):
        return "empty"
    return "time" if pa.types.is_temporal(kind) else str(kind)


def unusual(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence a column of which there is something to say, cut to what many fit into a summary of."""
    return [
        f"{name}: {'left out: ' if 'why' in column else ''}{said}"[:SAID]
        for name, column in columns.items()
        if (said := "; ".join(filter(None, [column.get("why"), column.get("note")])))
    ]
