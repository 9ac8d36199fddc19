"""What a column of text holds: numbers as people write them, or words.

Called by `mljobs.data` with the rows of all files, for a part of them may not show it. The cells are read by
`tabular_model`, as they are when they come in a request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mljobs import spool
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
LIMIT: Final = 1 << 18
"""Distinct values of a large table's column that are kept in memory while it is looked at."""
FEW: Final = 20
"""Distinct numbers below which they may well be names."""
TIMES: Final = "each time is a category, and one that the training rows lack is unknown: make columns of its parts"
_TIME: Final = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{4}/\d\d?/\d\d?|\d\d?([./-])\d\d?\2(\d{4}|\d\d)( .*)?|\d\d?:\d\d(:\d\d.*)?"
)
_AMOUNT: Final = re.compile(r"[-+]?\d[\d.,]*\s*(?P<unit>[^\W\d_]{1,12}|[°%‰]\w?)\.?")
"""A number with its unit."""


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
        asked: Which columns are labels: their words are left as they are, for they may name classes, unless it is measured.
        place: Where the row of this number stands.
    """
    remarks: dict[str, str] = {}
    large = spool.is_large(table)
    for i, field in enumerate(table.schema):
        if not (pa.types.is_string(field.type) or pa.types.is_large_string(field.type)):
            continue
        column = table.column(i)
        found = _look(column, LIMIT if large else math.inf)
        if field.name in asked.predicted and not (found.decimal and _measured(found.texts, asked)):
            continue
        if found.decimal:
            read: Callable[[str], float | str | None] = partial(number, decimal=found.decimal)
            kind = field.with_type(pa.float64()).with_metadata({DECIMAL: found.decimal.encode()})
            remarks[field.name] = found.told
        else:
            read, kind = str, field.with_type(pa.string())
            if told := _named(found.texts):
                remarks[field.name] = told
            elif odd := _odd(found.texts) if found.whole else []:
                rows = [pc.index(column, pa.scalar(text, field.type)).as_py() for text in odd[:NAMED]]
                remarks[field.name] = (
                    f"it is text: {len(odd)} of {len(found.texts)} distinct values are no numbers, first "
                    + ", ".join(f"{text!r} in {place(row)}" for text, row in zip(odd, rows, strict=False))
                )
            if not found.blank:
                continue
        chunks = (_read(chunk, read, kind.type) for chunk in spool.chunks(column))
        table = table.set_column(i, kind, spool.column(kind, chunks, large=large))
    return Settled(table, remarks)


class _Looked(NamedTuple):
    """What there is in a column of text.

    Attributes:
        texts: Its distinct values that are not missing, in order; the first ones, if they are more than was asked for.
        whole: Whether these are all.
        blank: Whether it has words for missing.
        decimal: The sign before the fraction, if all are numbers with it; empty if they are words.
        told: How the numbers are read, in words.
    """

    texts: list[str]
    whole: bool
    blank: bool
    decimal: str
    told: str


def _look(column: pa.ChunkedArray, limit: float) -> _Looked:
    """Looks at all values; of each distinct one once, as far as the limit goes."""
    known: dict[str, None] = {}
    whole, blank, signs, other = True, False, [".", ","], ""
    for chunk in spool.chunks(column):
        new = [text for text in chunk.unique().to_pylist() if text is not None and text not in known]
        present = [text for text in new if text.strip().lower() not in MISSING_WORDS]
        blank = blank or len(present) < len(new)
        signs = [sign for sign in signs if all(number(text, sign) is not None for text in present)]
        if not other and len(signs) > 1:
            other = next((text for text in present if number(text, ".") != number(text, ",")), "")
        whole = whole and len(known) + len(present) <= limit
        known.update(dict.fromkeys(present if whole else present[: max(0, int(limit) - len(known))]))
    texts = list(known)
    if not texts or not signs:
        return _Looked(texts, whole, blank, "", "")
    first = other if len(signs) > 1 and other else _first(texts, signs[0])
    told = f"text like {first!r} is read as the number {number(first, signs[0]):g}"
    either = ", though the comma could be a decimal one" if len(signs) > 1 and other else ""
    return _Looked(texts, whole, blank, signs[0], told + either)


def _first(texts: Sequence[str], sign: str) -> str:
    """A number that the other sign would read otherwise, if there is one."""
    other = "," if sign == "." else "."
    return next((text for text in texts if number(text, other) != number(text, sign)), texts[0])


def _read(chunk: pa.Array, read: Callable[[str], float | str | None], kind: pa.DataType) -> pa.Array:
    """A chunk with what its texts stand for; null for words for missing."""
    encoded = chunk.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    values = [None if text.strip().lower() in MISSING_WORDS else read(text) for text in texts]
    return pa.array(values, kind).take(encoded.indices)


def _measured(texts: list[str], asked: Data) -> bool:
    """Whether a label whose texts are all numbers is read as these: two of them, or one that is positive, are classes."""
    several = len(texts) > 2 and not asked.positive_label  # noqa: PLR2004  binary
    return asked.target == "regression" or (asked.target == "auto" and several)


def _named(texts: list[str]) -> str:
    """What there is to say of words that are dates, times or amounts."""
    if len(texts) < FEW:
        return ""
    some = [text.strip() for text in texts[:LOOK]]
    if all(map(_TIME.fullmatch, some)):
        return f"it is text like {texts[0]!r}: {TIMES}"
    amounts = [found["unit"] for text in some if (found := _AMOUNT.fullmatch(text))]
    if len(amounts) == len(some) and len(set(amounts)) == 1:
        return f"it is text: {texts[0]!r} is a number with its unit, and each is a category: write the numbers without {amounts[0]!r}"
    return ""


def _odd(texts: list[str]) -> list[str]:
    """The values that are no numbers, where nearly all others are."""
    if sum(number(text) is None for text in texts[:LOOK]) * 2 > len(texts[:LOOK]):
        return []
    odd = [text for text in texts if number(text) is None]
    found = len(texts) - len(odd)
    return odd if found >= FEW and found >= MOSTLY * len(texts) else []
