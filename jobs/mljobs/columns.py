"""What a column of text holds: numbers as people write them, or words.

Called by `mljobs.data` with the rows of all files, for a part of them may not show it. The cells are read by
`tabular_model`, as they are when they come in a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mljobs.tasks.tabular_model import MISSING_WORDS, number
from mlplatform.api import Data

DECIMAL: Final = b"decimal"
"""Of a field's metadata: the sign before the fraction, where the numbers were text."""
MOSTLY: Final = 0.9
"""Share of distinct values from which on words among numbers are told."""
LOOK: Final = 1000
"""Values of a column that tell whether it is worth looking at all."""
NAMED: Final = 3
"""Odd cells that are told with file and row."""
FEW: Final = 20
"""Distinct numbers below which they may well be names."""


class Settled(NamedTuple):
    """A table whose columns have their kinds.

    Attributes:
        table: Numbers in place of text that spells them, null in place of words for missing.
        remarks: By column, what was converted or looks odd.
    """

    table: pa.Table
    remarks: dict[str, str]


def settle(table: pa.Table, asked: Data, place: Callable[[int], str]) -> Settled:
    """Decides what each column of text is, from all of its values.

    Args:
        table: Of all files.
        asked: Which column is the label: its words are left as they are, for they may name classes, unless it is measured.
        place: Where the row of this number stands.
    """
    remarks: dict[str, str] = {}
    for i, written in enumerate(table.schema):
        field = written
        if pa.types.is_dictionary(written.type):
            field = written.with_type(written.type.value_type)
            table = table.set_column(i, field, table.column(i).cast(field.type))
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            continue
        encoded = table.column(i).combine_chunks().dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        present = [text for text in texts if text.strip().lower() not in MISSING_WORDS]
        read = _numbers(present)
        if field.name == asked.label and not (read and _measured(present, asked)):
            continue
        if read is None:
            values = pa.array([None if text.strip().lower() in MISSING_WORDS else text for text in texts], pa.string())
            if odd := _odd(present):
                rows = [pc.index(table.column(i), pa.scalar(text, field.type)).as_py() for text in odd[:NAMED]]
                remarks[field.name] = (
                    f"it is text: {len(odd)} of {len(present)} distinct values are no numbers, first "
                    + ", ".join(f"{text!r} in {place(row)}" for text, row in zip(odd, rows, strict=False))
                )
            if len(present) == len(texts):
                continue
        else:
            decimal, known, why = read
            values = pa.array([known.get(text) for text in texts], pa.float64())
            remarks[field.name] = why
            field = field.with_metadata({DECIMAL: decimal.encode()})
        table = table.set_column(i, field.with_type(values.type), pc.take(values, encoded.indices))
    return Settled(table, remarks)


def _measured(texts: list[str], asked: Data) -> bool:
    """Whether a label whose texts are all numbers is read as these: two of them, or one that is positive, are classes."""
    several = len(texts) > 2 and not asked.positive_label  # noqa: PLR2004  binary
    return asked.target == "regression" or (asked.target == "auto" and several)


def _numbers(texts: list[str]) -> tuple[str, dict[str, float], str] | None:
    """The decimal sign of a column, its numbers by their text and a remark; None if one of them is no number in it."""
    if not texts or number(texts[0]) is None is number(texts[0], ","):
        return None
    for decimal in (".", ","):
        known = {text: value for text in texts if (value := number(text, decimal)) is not None}
        if len(known) == len(texts):
            other = {text: number(text, "," if decimal == "." else ".") for text in texts}
            either = all(value is not None for value in other.values()) and other != known
            first = next((text for text in texts if other[text] != known[text]), texts[0])
            told = f"text like {first!r} is read as the number {known[first]:g}"
            return decimal, known, told + (", though the comma could be a decimal one" if either else "")
    return None


def _odd(texts: list[str]) -> list[str]:
    """The values that are no numbers, where nearly all others are."""
    if sum(number(text) is None for text in texts[:LOOK]) * 2 > len(texts[:LOOK]):
        return []
    odd = [text for text in texts if number(text) is None]
    found = len(texts) - len(odd)
    return odd if found >= FEW and found >= MOSTLY * len(texts) else []
