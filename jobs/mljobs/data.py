"""Rows from any store: loading, checking, groups and the split.

Called by train, and by trained for the stages after it, each of which loads the same rows and
derives the same split from them, so no stage has to store indices. `Rows.digest` lets a later
stage notice that the data changed in between. Where `contract.ENV_ROWS` asks for a sample, it is
drawn here, and nothing after this module sees other rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mljobs import files, tables
from mljobs.columns import settle
from mljobs.failure import JobFailure, did_you_mean, row_words
from mljobs.features import numbering
from mljobs.files import SHOWN
from mljobs.store import Store
from mljobs.tables import Part
from mljobs.tasks import Strata
from mljobs.tasks.tabular_model import category, number
from mlplatform.api import Data, Split
from mlplatform.contract import ENV_ROWS, FailureClass

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.str_]

MISSING_GROUP: Final = "(missing)"
GROUPS_LIMIT: Final = 50
SAMPLE_STREAM: Final = 1
"""Beside the split's seed, so that the sample and the split are drawn by numbers of their own."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A loaded data set.

    Attributes:
        table: All columns; of a sample only its rows.
        files: Names of the files read, in order.
        digest: ``sha256:<hex>`` over the files' contents in order, and over what a sample was drawn by.
        total: Rows of the files.
        read: How each file was read: its rows, and of CSV the encoding and the delimiter.
        ignored: Files below `data.uri` that are none of the data, with why.
        left_out: Columns that are none of the data, with why.
        columns: What was converted in a column or looks odd there.
        numbered: Columns that number the rows, with which ones.
        taken: Of a sample: the numbers of its rows.
    """

    table: pa.Table
    files: list[str]
    digest: str
    total: int
    read: list[dict[str, Any]] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    numbered: dict[str, str] = field(default_factory=dict)
    taken: Indices | None = None

    def place(self, row: int) -> str:
        """Where a row of the table stands, in words."""
        at = row if self.taken is None else int(self.taken[row])
        return _place([part["rows"] for part in self.read], self.files, at)

    @property
    def sample(self) -> dict[str, int]:
        """How many rows there are of how many, as every stage's report says it."""
        return {"rows": self.table.num_rows, "of": self.total}

    def remarks(self) -> list[str]:
        """What of the files was read otherwise than it may seem, a line each."""
        ways = {(part["encoding"], part["delimiter"]): part["file"] for part in reversed(self.read)}
        plain = ({"", "utf-8"}, {"", ","})
        told = [
            f"read {file} as {encoding} parted by {delimiter!r}"
            for (encoding, delimiter), file in ways.items()
            if encoding not in plain[0] or delimiter not in plain[1]
        ]
        told += [f"{part['file']} has no rows" for part in self.read if not part["rows"]]
        return told + [f"ignored the file {name}: {why}" for name, why in self.ignored.items()]


class Parts(NamedTuple):
    """Row numbers of each part of the split, sorted."""

    train: Indices
    validation: Indices
    test: Indices


def load(data: Data, environment: Mapping[str, str] = os.environ) -> Rows:
    """Reads every file of the format below `data.uri`, in the order of their names, or that one file.

    Args:
        data: Where the rows are.
        environment: `contract.ENV_ROWS` asks for a sample of so many rows, or of all if there are no more: by the
            split's seed always the same ones of the same data, in their order.

    Raises:
        JobFailure: Nothing is there (DataMissing), a file does not parse or has no rows (DataInvalid), the size of the
            sample is no positive number (SpecInvalid), or the store refuses or does not answer.
    """
    wanted = _sample_size(environment.get(ENV_ROWS))
    store = Store(data.uri)
    found = files.listing(store, data)
    parts, content_hash = [], hashlib.sha256()
    for name in found.names:
        content = store.read(name)
        content_hash.update(content)
        parts.append(tables.partitioned(tables.read(content, data, store.uri(name)), name, store.uri(name)))
    names, lengths = [store.uri(name) for name in found.names], [part.table.num_rows for part in parts]
    table, kinds = settle(_together(parts, names, data), data, lambda row: _place(lengths, names, row))
    if not table.num_rows:
        raise JobFailure(FailureClass.DATA_INVALID, f"{data.uri} has no rows", "Write the data and apply again")
    total, numbered, taken = table.num_rows, numbering(table, lengths), None
    if wanted and wanted < total:
        taken = np.sort(np.random.default_rng((data.split.seed, SAMPLE_STREAM)).permutation(total)[:wanted])
        table = take(table, taken)
        content_hash.update(f"{wanted} rows by seed {data.split.seed}".encode())
    read = [
        {"file": name, "rows": part.table.num_rows, "encoding": part.encoding, "delimiter": part.delimiter}
        for part, name in zip(parts, names, strict=True)
    ]
    left_out = {column: why for part in parts for column, why in part.left_out.items()}
    return Rows(
        table,
        names,
        f"sha256:{content_hash.hexdigest()}",
        total,
        read,
        found.ignored,
        left_out,
        kinds,
        numbered,
        taken,
    )


def take(table: pa.Table, rows: Indices) -> pa.Table:
    """These rows of a table, ``(rows,)``. Arrow is given them as memory: to look at an array it would import pandas."""
    return table.take(pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(rows)]))


def _sample_size(asked: str | None) -> int | None:
    if not asked:
        return None
    if not (asked.isascii() and asked.isdecimal() and int(asked)):
        raise JobFailure(
            FailureClass.SPEC_INVALID, f"{ENV_ROWS} {asked!r} is no positive number of rows", "Write it like 2000"
        )
    return int(asked)


def _together(parts: Sequence[Part], names: Sequence[str], data: Data) -> pa.Table:
    """The rows of all files.

    Raises:
        JobFailure: A file has other columns than the first one, or other types: words where others have numbers.
    """
    first = parts[0].table.schema
    for part, name in zip(parts, names, strict=True):
        more = [column for column in part.table.column_names if column not in first.names]
        less = [column for column in first.names if column not in part.table.column_names]
        if more and less:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"{name} lacks {', '.join(less[:SHOWN])} and has {', '.join(more[:SHOWN])} instead, unlike {names[0]}",
                "Give every file the same columns, each CSV file with its header line",
            )
    try:
        return pa.concat_tables([part.table for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        if not parts[0].delimiter:
            raise _misfit(parts, names) from error
    # Of CSV a part alone does not tell: one word for missing more, or numbers with thousands, and a column is text there.
    kinds = [(typed.name, pa.types.is_string(typed.type)) for part in parts for typed in part.table.schema]
    words = {name for name, is_text in kinds if is_text}
    together = pa.concat_tables([_as_text(part.table, words) for part in parts], promote_options="permissive")
    found = settle(together, data, str).table.schema
    if any(name in words and not is_text and pa.types.is_string(found.field(name).type) for name, is_text in kinds):
        raise _misfit(parts, names)
    return together


def _as_text(table: pa.Table, columns: set[str]) -> pa.Table:
    for i, typed in enumerate(table.schema):
        if typed.name in columns:
            table = table.set_column(i, typed.with_type(pa.string()), table.column(i).cast(pa.string()))
    return table


def _place(lengths: Sequence[int], names: Sequence[str], row: int) -> str:
    for length, name in zip(lengths, names, strict=True):
        if row < length:
            return f"row {row + 1} of {name}"
        row -= length
    raise IndexError(row)


def _misfit(parts: Sequence[Part], names: Sequence[str]) -> JobFailure:
    """Names the first file and column whose type does not go with those of the files before."""
    known: dict[str, tuple[pa.Field, str]] = {}
    for part, name in zip(parts, names, strict=True):
        for typed in part.table.schema:
            before, where = known.setdefault(typed.name, (typed, name))
            try:
                merged = pa.unify_schemas([pa.schema([before]), pa.schema([typed])], promote_options="permissive")
            except pa.ArrowException:
                return JobFailure(
                    FailureClass.DATA_INVALID,
                    f"the column {typed.name!r} is {before.type} in {where} but {typed.type} in {name}"
                    + _example(part.table.column(typed.name)),
                    "Correct the cells that are not like the others, or write the column with one type in all files",
                )
            known[typed.name] = (merged.field(0), where)
    raise AssertionError


def _example(column: pa.ChunkedArray) -> str:
    """Where the first word stands in a column of text that is a number elsewhere."""
    if not pa.types.is_string(column.type):
        return ""
    words = (
        (row, text)
        for row, text in enumerate(column.to_pylist())
        if category(text) is not None and number(text) is None
    )
    found = next(words, None)
    return f", first {found[1]!r} in its row {found[0] + 1}" if found else ""


def groups(table: pa.Table, attribute: str) -> Words:
    """Each row's group by a sensitive attribute.

    Raises:
        JobFailure: The column is missing, or has too many values to be groups.
    """
    found = words(table, attribute, "spec.data.sensitiveAttributes")
    values = np.array([MISSING_GROUP if word is None else word for word in found], dtype=np.str_)
    if (count := len(np.unique(values))) > GROUPS_LIMIT:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the sensitive attribute {attribute!r} has {count} distinct values, over {GROUPS_LIMIT}",
            "Put its values into ranges or classes first, as a column of the data",
        )
    return values


def split(strata: Strata, shares: Split) -> Parts:
    """Divides the rows at random, each part with its share of every stratum.

    The same rows and shares always give the same parts.

    Args:
        strata: Of the rows.
        shares: What to hold out, and the seed.

    Raises:
        JobFailure: A part would have too little of a stratum: nothing could be learned or measured there.
    """
    generator = np.random.default_rng(shares.seed)
    held: list[tuple[Indices, Indices, Indices]] = []
    for code, name in enumerate(strata.names):
        order = generator.permutation(np.flatnonzero(strata.codes == code))
        test = round(len(order) * shares.test)
        validation = test + round(len(order) * shares.validation)
        held.append((order[validation:], order[test:validation], order[:test]))
        for part, rows in zip(Parts._fields, held[-1], strict=True):
            if len(rows) < strata.least:
                few = f"only {len(rows)} row" if len(rows) else "no row"
                first = int(order.min()) if len(order) else -1
                raise JobFailure(
                    FailureClass.DATA_INVALID,
                    f"the {part} part of the split has {few} of {name}, which has {len(order)} in all "
                    f"(validation {shares.validation}, test {shares.test}"
                    + (f"), the first in {row_words(first)}" if len(order) else ")"),
                    f"Add rows of {name}, remove those that are there if they are a mistake, or change the shares in spec.data.split",
                    first,
                )
    return Parts(*(np.sort(np.concatenate(part)) for part in zip(*held, strict=True)))


def words(table: pa.Table, column: str, field: str) -> list[str | None]:
    """A column's values as categories.

    Args:
        table: The rows.
        column: Its name.
        field: Of the specification, which names it.

    Raises:
        JobFailure: There is no such column.
    """
    if column not in table.column_names:
        shown = ", ".join(table.column_names[:SHOWN]) + (", …" if table.num_columns > SHOWN else "")
        close = next((name for name in table.column_names if name.strip().lower() == column.strip().lower()), None)
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the data has no column {column!r}"
            + (f" (did you mean {close!r}?)" if close else did_you_mean(column, table.column_names))
            + f"; it has {shown}",
            f"Write {close!r} in {field}" if close else f"Correct {field}, or spec.data.uri if these are other data",
        )
    return [category(value) for value in table.column(column).to_pylist()]
