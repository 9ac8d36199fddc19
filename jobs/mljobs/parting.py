"""Which part of the split each row is in, where a column decides.

Called by `mljobs.data`. A row's part follows from the row alone, so that rows that are appended move none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mljobs import spool
from mljobs.failure import JobFailure, did_you_mean, row_words
from mljobs.files import SHOWN
from mljobs.tasks.tabular_model import category, number
from mlplatform.api import Split, TimeSplit
from mlplatform.contract import FailureClass

TRAIN: Final = 0
VALIDATION: Final = 1
TEST: Final = 2
PARTS: Final = 3
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)

SHOWN_CHARACTERS: Final = 100
_PARTS: Final = re.compile(r"[^\w. -]")

Places = npt.NDArray[np.int8]


def places(table: pa.Table, shares: Split) -> Places | None:
    """Of each row its part, ``(rows,)``; None where chance decides.

    Raises:
        JobFailure: A column is missing or holds no times, or the times are out of order.
    """
    by = shares.by
    if by is None:
        return None
    if by.time:
        return _by_time(table, by.time)
    names = [by.group] if by.group else list(by.key)
    for name in names:
        require(table, name, f"spec.data.split.by.{'group' if by.group else 'key'}")
    found, seen = [np.empty(0, dtype=np.int8)], set[int]()
    for piece in spool.pieces(table.select(names)):
        mixed = np.zeros(piece.num_rows, dtype=np.uint64)
        for column in piece.columns:
            mixed = (mixed ^ _hashes(column.combine_chunks(), shares.seed)) * _MIX
        if len(seen) < PARTS:
            seen.update(np.unique(mixed)[:PARTS].tolist())
        share = mixed / 2.0**64
        found.append(
            np.where(
                share < shares.test, TEST, np.where(share < shares.test + shares.validation, VALIDATION, TRAIN)
            ).astype(np.int8)
        )
    if by.group and len(seen) < PARTS:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"spec.data.split.by.group names the column {by.group!r}, which has {len(seen)} different value(s) for "
            f"{PARTS} parts",
            "Name a column that tells more groups apart",
        )
    return np.concatenate(found)


def comparable(kind: pa.DataType) -> bool:
    """Whether cells of this kind can be told from each other: no lists, objects or bytes."""
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return not (pa.types.is_nested(kind) or is_bytes)


def require(table: pa.Table, column: str, field: str) -> None:
    """Makes sure that the data has a column, the cells of which can be told from each other.

    Raises:
        JobFailure: It has not.
    """
    columns = table.column_names
    if column in columns:
        kind = table.schema.field(column).type
        if not comparable(kind):
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the column {column!r} holds {kind}, and {field} names it",
                "Write its cells as text, numbers, booleans or times, or name another column",
            )
        return
    shown = ", ".join(columns[:SHOWN]) + (", …" if len(columns) > SHOWN else "")
    close = next((name for name in columns if name.strip().lower() == column.strip().lower()), None)
    raise JobFailure(
        FailureClass.DATA_INVALID,
        f"the data has no column {column!r}"
        + (f" (did you mean {close!r}?)" if close else did_you_mean(column, columns))
        + f"; it has {shown}",
        f"Write {close!r} in {field}"
        if close
        else _otherwise(columns, column) or f"Correct {field}, or spec.data.uri if these are other data",
    )


def _otherwise(columns: Sequence[str], column: str) -> str:
    """What helps where the header was misread, or is none; empty if nothing speaks for that."""
    if len(columns) == 1 and column in columns[0].split():
        return f"Spaces part the columns: set spec.data.delimiter to {' '!r}; where several part two values, write the file with commas"
    if len(columns) == 1 and column in _PARTS.split(columns[0]):
        return f"Set spec.data.delimiter to the character that parts the columns of the header {columns[0][:SHOWN_CHARACTERS]!r}"
    words = columns[0].split() if len(columns) == 1 else columns
    if sum(number(word) is not None for word in words) >= max(2, len(words) / 4):
        return "Write the columns' names into the first line of each file: what is there looks like a row" + (
            ", parted by spaces (spec.data.delimiter)" if len(columns) == 1 else ""
        )
    return ""


def _hashes(column: pa.Array, seed: int) -> npt.NDArray[np.uint64]:
    """A number for each cell, which follows from what it stands for."""
    known = column.dictionary_encode()
    words = [category(value) for value in [*known.dictionary.to_pylist(), None]]
    hashes = [hashlib.blake2b(f"{seed} {word}".encode(), digest_size=8).digest() for word in words]
    codes = known.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)
    values: npt.NDArray[np.uint64] = np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)[codes]
    return values


def _by_time(table: pa.Table, asked: TimeSplit) -> Places:
    require(table, asked.column, "spec.data.split.by.time.column")
    field = "spec.data.split.by.time"
    cuts = [cut for text in (asked.validation, asked.test) if (cut := _time(text)) is not None]
    if len(cuts) != 2 or cuts[0] >= cuts[1]:  # noqa: PLR2004  both
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"{field} has validation {asked.validation!r} and test {asked.test!r}, which are no two times in this order",
            "Write them like 2024-05-01 or 2024-05-01T12:00, the validation before the test",
        )
    found, start = [np.empty(0, dtype=np.int8)], 0
    for chunk in spool.chunks(table.column(asked.column)):
        known = chunk.dictionary_encode()
        values = [*known.dictionary.to_pylist(), None]
        codes = known.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
        times = [_time(value) for value in values]
        parts = np.array([-1 if time is None else sum(time >= cut for cut in cuts) for time in times], dtype=np.int8)[
            codes
        ]
        if (bad := np.flatnonzero(parts < 0)).size:
            row = start + int(bad[0])
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"{field} names the column {asked.column!r}, which has {values[codes[bad[0]]]!r} in {row_words(row)}: no time",
                "Write dates or times in ISO 8601 (2024-05-01, 2024-05-01T12:00), or remove the row",
                row,
            )
        found.append(parts)
        start += len(chunk)
    return np.concatenate(found)


def _time(value: Any) -> datetime | None:
    """A time without its zone, in UTC; None if the value is none."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    return datetime.combine(value, datetime.min.time()) if isinstance(value, date) else None
