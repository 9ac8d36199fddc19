"""Rows that are both learned from and tested on.

Called by the built-in tasks, with the columns that they learn from and the label. Rows may repeat by chance, where the
columns have few values: then what is tested will come again, and the test is honest. Copies are another thing: the test
would measure what was memorised.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mljobs import spool
from mljobs.data import Parts, Rows, take
from mljobs.failure import JobFailure
from mljobs.features import ENOUGH, Choice, Encoded, is_plain
from mlplatform.contract import FailureClass

Codes = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

LIMIT: Final = 0.05
"""Share of the test rows that may be copies: a metric of 0.8 then gains at most 0.01, and gates are set no finer."""
ALONE: Final = 0.01
"""Share of the different rows that occur once, below which all were copied; by chance it is over 0.15 where rows occur
`OFTEN` times on average (Poisson)."""
OFTEN: Final = 3
BEYOND: Final = 0.2
"""How far between chance (0) and always (1) each column agrees, from which on equal rows are copies."""
_GOLDEN: Final = 0x9E3779B97F4A7C15


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


def counted(rows: Rows, columns: Collection[str], parts: Parts, most: float | None, choice: Choice) -> Choice:
    """A choice that tells of them; of data that is not for memory they are sought among all rows of some kinds.

    Args:
        rows: All.
        columns: That are learned from, and the label.
        parts: The split.
        most: `spec.data.split.maxRepeated`.
        choice: Of these columns.

    Raises:
        JobFailure: As `find`.
    """
    learned = rows.table.select([name for name in rows.table.column_names if name in columns])
    kept = some_kinds(learned)
    found = find(take(learned, kept), parts.within(kept), most, lambda row: rows.place(int(kept[row])))
    return choice._replace(repeated={"validation": found.validation, "test": found.test}, repeats=found.remark)


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
    kinds = np.zeros(len(table), dtype=np.uint64)
    for i, codes in enumerate(columns):
        kinds += _mixed(codes, i)
    known = np.isin(kinds, kinds[parts.train])
    validation, test = int(known[parts.validation].sum()), int(known[parts.test].sum())
    if not test:
        return Repeats(validation, test, "")
    example = int(parts.test[known[parts.test]][0])
    twin = int(parts.train[kinds[parts.train] == kinds[example]][0])
    told = (
        f"{test} of the {len(parts.test)} test rows are among the training rows, too, value for value: "
        f"{place(example)} is {place(twin)}"
    )
    if test > len(parts.test) * (LIMIT if most is None else most) and (most is not None or _copied(columns, kinds)):
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


def some_kinds(table: pa.Table) -> npt.NDArray[np.int64]:
    """Row numbers that rise: all, or of a large table those of as many kinds of row as fit into memory.

    Equal rows are all among them, or none is.
    """
    if not spool.is_large(table):
        return np.arange(table.num_rows)
    shares, start = max(1, spool.size(table) // spool.HELD_BYTES), 0
    found = list[npt.NDArray[np.int64]]()
    for piece in spool.pieces(table):
        kinds = np.zeros(piece.num_rows, dtype=np.uint64)
        for i, column in enumerate(piece.columns):
            if is_plain(column.type):
                kinds += _mixed(_hashes(column.combine_chunks()), i)
        found.append(start + np.flatnonzero(kinds % np.uint64(shares) == 0))
        start += piece.num_rows
    return np.concatenate(found)


def _hashes(column: pa.Array) -> Hashes:
    """A number for each value: equal ones have the same, in any stretch of the column."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return spool.numbers(column).view(np.uint64)
    known = column.dictionary_encode()
    values = [*map(repr, known.dictionary.to_pylist()), ""]
    hashes = np.array([zlib.crc32(value.encode()) for value in values], dtype=np.uint64)
    codes: Codes = known.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
    return hashes[codes]


def _mixed(codes: Codes | Hashes, column: int) -> Hashes:
    """A number a row that sums of other columns' leave apart (splitmix64)."""
    start = np.uint64((column + 1) * _GOLDEN % 2**64)
    mixed = (codes.astype(np.uint64) + start) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    found: Hashes = mixed ^ (mixed >> np.uint64(31))
    return found


def _copied(columns: list[Codes], kinds: Hashes) -> bool:
    """Whether equal rows are too many for chance: nearly no row is there once, or no column is left to it.

    Of two rows that agree in all the other columns a column is left to chance if it agrees no more often than of any two.
    """
    counts = np.unique(kinds, return_counts=True)[1]
    if len(counts) < ENOUGH:
        return False
    if (counts == 1).mean() < ALONE and counts.mean() <= OFTEN:
        return True
    equal, every = _pairs(kinds), len(kinds) * (len(kinds) - 1) / 2
    for i, codes in enumerate(columns):
        chance = _pairs(codes) / every
        if chance < 1 and equal / _pairs(kinds - _mixed(codes, i)) < chance + BEYOND * (1 - chance):
            return False
    return True


def _pairs(kinds: npt.NDArray[Any]) -> float:
    """How many pairs of rows are of one kind."""
    counts = np.unique(kinds, return_counts=True)[1].astype(np.float64)
    return float((counts * (counts - 1) / 2).sum())
