"""Which columns of a table a model learns from.

Called by the task `tabular` before it learns, once: what was left out stands in the model's schema. What says nothing of
a row that comes later is left out, what tells the label is refused, and `spec.data.columns` overrides both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mljobs.failure import JobFailure, did_you_mean
from mljobs.files import SHOWN
from mljobs.parting import comparable
from mljobs.tasks.tabular_model import category
from mlplatform.api import Data
from mlplatform.contract import FailureClass

Codes = npt.NDArray[np.int64]

ENOUGH: Final = 100
"""Rows from which on values that never repeat, or a column that never errs, are no chance."""
NAMED: Final = 10
"""Rows that are enough where the column is called an identifier."""
DIFFERENT: Final = 0.95
"""Share of texts that are different from which on they name rows: as categories nearly all would be seen once."""
DENSE: Final = 10
"""Whole numbers that are all different within so many times their count are drawn from a list: of a measured number
`n` values in `10 n` would repeat ``n / 20`` times."""
ERRING: Final = 0.03
"""Share of a class that a column gets wrong, below which it is taken for the label itself: real columns err more."""
COPIES: Final = 10
"""Rows from which on a column with the label's own words is a copy."""
UNEXPLAINED: Final = 1e-3
"""Share of a measured label's variance that a column may leave open and still be taken for the label itself."""

_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]|\d+")
_CALLED: Final = frozenset(
    {"id", "ids", "uid", "uuid", "guid", "identifier", "key", "pk", "index", "idx", "rowid", "rownum"}
)


class Choice(NamedTuple):
    """What is not learned from, and what is odd about the rest.

    Attributes:
        left_out: By column, why; a record may have it all the same.
        remarks: By column that stays, what there is to say of it.
        repeated: Rows of the other parts that are among the training rows, by part.
        repeats: A sentence about those of the test; empty if there are none.
    """

    left_out: Mapping[str, str]
    remarks: Mapping[str, str]
    repeated: Mapping[str, int] = MappingProxyType({})
    repeats: str = ""


class Encoded(NamedTuple):
    """A column as numbers of its distinct values.

    Attributes:
        codes: Of each row, ``(rows,)``; -1 where there is no value.
        values: The distinct values, by code.
    """

    codes: Codes
    values: pa.Array

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Encoded:
        """Of one column, which is not nested."""
        found = column.combine_chunks().dictionary_encode()
        return cls(found.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64), found.dictionary)


def numbering(table: pa.Table, lengths: Sequence[int]) -> dict[str, str]:
    """Columns that only number the rows, from 0 or 1 on, of all files or of each: a data frame's index, a spreadsheet's lines.

    Args:
        table: All rows, in the order of the files.
        lengths: Rows of each file.
    """
    found = {}
    for typed, column in zip(table.schema, table.columns, strict=True):
        if not _is_number(typed.type) or column.null_count:
            continue
        ends = np.cumsum([0, *lengths])
        for whose, bounds in (
            ("the rows", [(0, len(table))]),
            ("the rows of each file", list(itertools.pairwise(ends))),
        ):
            if all(_in_order(column, int(start), int(end)) for start, end in bounds if end > start):
                found[typed.name] = f"it numbers {whose}"
                break
    return found


def _in_order(column: pa.ChunkedArray, start: int, end: int) -> bool:
    first, last = column[start].as_py(), column[end - 1].as_py()
    if first not in {0, 1} or last != first + end - start - 1:
        return False
    for chunk in column.slice(start, end - start).chunks:
        if (chunk.to_numpy() != np.arange(first, first + len(chunk))).any():
            return False
        first += len(chunk)
    return True


def choose(  # noqa: PLR0913, PLR0917  the rows, what is known of them, what is asked
    table: pa.Table,
    numbered: Mapping[str, str],
    classes: Mapping[str, Codes],
    asked: Data,
    excluded: Collection[str],
    share: float = 1.0,
) -> Choice:
    """Decides it from all rows, or of large data from some.

    Args:
        table: The rows.
        numbered: As `numbering` found.
        classes: By label, of each row from 0; of a measured one all are 0.
        asked: The labels, and what is said of the columns.
        excluded: Columns that are none of the features anyway.
        share: Of all rows, those that are here.

    Raises:
        JobFailure: A column tells the label, or `spec.data.columns` names one that is not there.
    """
    for name in asked.columns:
        if name not in table.column_names:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"spec.data.columns names {name!r}, which the data lacks{did_you_mean(name, table.column_names)}",
                "Correct spec.data.columns",
            )
    left_out = {
        name: "spec.data.columns says so"
        for name, said in asked.columns.items()
        if said == "ignore" and name not in excluded
    }
    open_ = [
        typed.name
        for typed in table.schema
        if typed.name not in asked.predicted
        and typed.name not in asked.columns
        and typed.name not in excluded
        and is_plain(typed.type)
    ]
    encoded = {name: Encoded.of(table.column(name)) for name in open_}
    parts = _dividing(asked)
    names = {
        name: why
        for name in open_
        if (why := parts.get(name) or numbered.get(name) or identifies(name, table.column(name), encoded[name], share))
    }
    rest = [name for name in open_ if name not in names]
    remarks: dict[str, str] = {}
    for label, codes in classes.items():
        remarks |= _tell(table, rest, encoded, codes, label)
    twins = _twins(rest, encoded)
    features = [
        name
        for name in table.column_names
        if name not in asked.predicted
        and name not in excluded
        and name not in left_out
        and name not in names
        and name not in twins
    ]
    if not any(name not in encoded or len(encoded[name].values) > 1 for name in features):
        # Whoever has nothing else means it: a single column of years, say.
        remarks |= {name: f"{why}; it is kept, for there is no other column" for name, why in names.items()}
        names = {}
    return Choice({**left_out, **names, **twins}, remarks)


def _dividing(asked: Data) -> dict[str, str]:
    """Columns of which the test rows have other values than the training's, by `spec.data.split.by`."""
    by = asked.split.by
    if by is None:
        return {}
    named = {by.group: "group", by.time.column if by.time else "": "time"}
    return {
        name: f"spec.data.split.by.{how} divides by it: the test has other values"
        for name, how in named.items()
        if name
    }


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column of this kind has cells, and they can be told from each other."""
    return comparable(kind) and not pa.types.is_null(kind)


def identifies(name: str, column: pa.ChunkedArray, encoded: Encoded, share: float = 1.0) -> str:
    """Why a column names the rows and measures nothing; empty if it does not. `share` of the rows are here."""
    present, distinct = len(column) - column.null_count, len(encoded.values)
    called = _CALLED.intersection(word.lower() for word in _WORDS.findall(name)[-1:])
    enough = NAMED if called else ENOUGH
    if present < enough or distinct < DIFFERENT * present:
        return ""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return f"it names the rows: {distinct} of {present} texts are different"
    if pa.types.is_temporal(kind):
        return f"{distinct} of {present} times are different, and as a category none would come again: make columns of their parts"
    if distinct < present or not _is_number(kind):
        return ""
    values = np.sort(encoded.values.to_numpy(zero_copy_only=False).astype(np.float64))
    if not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        return ""
    # Amounts are rounded to tens, times are an hour apart; who numbers things leaves no such pattern.
    dense = (values[-1] - values[0]) * share < DENSE * len(values) and np.gcd.reduce(
        np.diff(values).astype(np.int64)
    ) == 1
    return f"it names the rows: {present} whole numbers, all different" if dense or called else ""


def _twins(names: Sequence[str], encoded: Mapping[str, Encoded]) -> dict[str, str]:
    """Columns that repeat an earlier one in every row."""
    first: dict[tuple[str, str], str] = {}
    found = {}
    for name in names:
        codes, values = encoded[name]
        if len(values) > 1:
            plain = (
                values.cast(pa.float64(), safe=False).to_numpy().tobytes()
                if _is_number(values.type)
                else repr(values.to_pylist()).encode()
            )
            key = hashlib.sha256(codes.tobytes()).hexdigest(), hashlib.sha256(plain).hexdigest()
            if (twin := first.setdefault(key, name)) != name:
                found[name] = f"it repeats the column {twin!r} in every row"
    return found


def _tell(
    table: pa.Table, names: Sequence[str], encoded: Mapping[str, Encoded], classes: Codes, name_of_label: str
) -> dict[str, str]:
    """What there is to say of columns that tell a label in a few rows.

    Raises:
        JobFailure: One does in so many that it is taken for the label itself.
    """
    label = table.column(name_of_label)
    if classes.any():
        found = {name: _as_class(encoded[name], classes, label) for name in names}
    else:
        found = {name: _as_number(table.column(name), label) for name in names if _is_number(label.type)}
    told = {name: verdict for name, verdict in found.items() if verdict}
    if sure := [name for name, verdict in told.items() if verdict.sure]:
        yaml = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: ignore" for name in sure[:SHOWN])
        raise JobFailure(
            FailureClass.DATA_INVALID,
            "; ".join(
                f"the column {name!r} tells the label {name_of_label!r}: {told[name].why}" for name in sure[:SHOWN]
            ),
            "A request has no such value if it is known only with the label: leave it out with spec.data.columns: "
            f"{{{yaml}}}; write use for ignore if it is known before",
        )
    return {
        name: f"alone it tells the label {name_of_label!r} ({verdict.why}); if it is known only with the label, leave it out"
        for name, verdict in told.items()
    }


class Verdict(NamedTuple):
    """How a column tells the label.

    Attributes:
        why: In words.
        sure: Whether the rows are too many for chance.
    """

    why: str
    sure: bool


def _as_class(column: Encoded, classes: Codes, label: pa.ChunkedArray) -> Verdict | None:
    """Whether a column's values are the classes under other names, or it gets nearly every row of every class right."""
    totals, missing = np.bincount(classes), bool((column.codes < 0).any())
    if len(column.values) + missing == len(totals) and (renamed := _renamed(column, classes, label)):
        return renamed
    ways = [("whether it has a value", _wrong_by_value(column.codes >= 0, classes))] if missing else []
    if not _is_number(column.values.type):
        ways.append(("each of its values", _wrong_by_value(column.codes, classes)))
    elif len(totals) == 2:  # noqa: PLR2004  one bound parts two classes
        ways.append(("one bound", _wrong_by_bound(column, classes)))
    if not ways:
        return None
    what, wrong = min(ways, key=lambda way: float((way[1] / totals).sum()))
    if ((wrong + 2 * np.sqrt(wrong) + 3) / totals < ERRING).all():
        return Verdict(f"{what} gets all but {wrong.sum()} of {len(classes)} rows right", sure=True)
    return Verdict(f"{what} gets all {len(classes)} rows right", sure=False) if not wrong.any() else None


def _renamed(column: Encoded, classes: Codes, label: pa.ChunkedArray) -> Verdict | None:
    """Whether a column of as many values as there are classes has one for each."""
    size = int(classes.max()) + 1
    pairs, first = np.unique((column.codes + 1) * size + classes, return_index=True)
    if len(pairs) != size:
        return None
    value, group = np.divmod(pairs, size)
    spelled = [
        (None if value[i] == 0 else column.values[int(value[i]) - 1].as_py(), label[int(first[i])].as_py())
        for i in np.argsort(group)
    ]
    same = all(category(one) == category(other) for one, other in spelled)
    shown = ", ".join(f"{one!s} is {other!s}" for one, other in spelled[:SHOWN])
    why = "it has the same value" if same else f"one to one, {shown},"
    return Verdict(f"{why} in all {len(classes)} rows", len(classes) >= (COPIES if same else ENOUGH))


def _wrong_by_value(codes: npt.NDArray[Any], classes: Codes) -> Codes:
    """Rows of each class whose value is not mostly of their class, themselves left aside."""
    size = int(classes.max()) + 1
    pairs, counts = np.unique((codes.astype(np.int64) + 1) * size + classes, return_counts=True)
    value, group = np.divmod(pairs, size)
    order = np.lexsort((-counts, value))
    value, group, counts = value[order], group[order], counts[order]
    start = np.flatnonzero(np.diff(value, prepend=value[0] - 1))  # of each value, its commonest class comes first
    length = np.diff(start, append=len(value))
    second = np.where(length > 1, counts[np.minimum(start + 1, len(counts) - 1)], 0)
    rival = np.repeat(counts[start], length)
    rival[start] = second
    wrong = np.bincount(group, weights=np.where(counts - 1 > rival, 0, counts), minlength=size)
    return wrong.astype(np.int64)


def _wrong_by_bound(column: Encoded, classes: Codes) -> Codes:
    """Rows of each of two classes on the wrong side of the best bound; a row without a value is on neither."""
    present = column.codes >= 0
    values = column.values.to_numpy(zero_copy_only=False)
    pairs = column.codes[present] * 2 + classes[present]
    counts = np.bincount(pairs, minlength=2 * len(values)).reshape(-1, 2)
    below = counts[np.argsort(values)].cumsum(axis=0)
    absent, total = np.bincount(classes[~present], minlength=2), counts.sum(axis=0)
    ways = [
        np.column_stack([below[:, 0], total[1] - below[:, 1]]),
        np.column_stack([total[0] - below[:, 0], below[:, 1]]),
    ]
    wrong: Codes = np.concatenate(ways) + absent
    best: Codes = wrong[(wrong / np.maximum(total + absent, 1)).sum(axis=1).argmin()]
    return best


def _as_number(column: pa.ChunkedArray, label: pa.ChunkedArray) -> Verdict | None:
    """Whether a column is a measured label in another unit."""
    if not _is_number(column.type):
        return None
    one, other = (part.cast(pa.float64(), safe=False).to_numpy() for part in (column, label))
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    if len(one) < COPIES or len(one) < DIFFERENT * len(both) or not (one.std() and other.std()):
        return None
    if (one == other).all():
        return Verdict(f"it has the same value in all {len(one)} rows", sure=True)
    explained = float(np.corrcoef(one, other)[0, 1]) ** 2
    if explained < 1 - UNEXPLAINED:
        return None
    return Verdict(f"a straight line through it explains {explained:.2%} of the variance", sure=len(one) >= ENOUGH)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
