"""Rows from any store: loading, checking, groups and the split.

Called by lesson, and by trained for the stages after it, each of which loads the same rows and
derives the same split from them, so no stage has to store indices. `Rows.digest` lets a later
stage notice that the data changed in between. Where `contract.ENV_ROWS` asks for a sample, it is
drawn here, and nothing after this module sees other rows.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mljobs import files, parting, spool, tables
from mljobs.columns import settle
from mljobs.failure import JobFailure, row_words
from mljobs.features import numbering
from mljobs.files import SHOWN
from mljobs.stream import Digest, Source
from mljobs.tables import Part
from mljobs.tasks import Strata
from mljobs.tasks.tabular_model import category, number
from mlplatform.api import Data, Split
from mlplatform.contract import ENV_ROWS, FailureClass

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.str_]
Named = tuple[str, pa.Table]
"""Rows, and the first file that they are from."""

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
        commit: Of the repository that they are from.
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
    commit: str = ""

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
            f"read {file} as {encoding}" + (f" parted by {delimiter!r}" if delimiter else "")
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

    def within(self, rows: Indices) -> Parts:
        """Where among these rows, which rise, those of each part stand."""
        near = (np.searchsorted(part, rows).clip(max=max(0, len(part) - 1)) for part in self)
        return Parts(*(np.flatnonzero(part[at] == rows) for part, at in zip(self, near, strict=True)))


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
    store = files.source(data)
    found = files.listing(store, data)
    content_hash: Digest = hashlib.sha256()
    parts, names = [], [store.uri(name) for name in found.names]
    gathered = _Gathered(data)
    for name in found.names:
        source = Source(store, name, content_hash)
        parts.append(tables.partitioned(tables.load(source, data), name, source.uri))
        gathered.add(parts[-1], source.uri)
        content_hash = source.digest
    lengths = [part.rows for part in parts]
    table, kinds = settle(_together(gathered.all(), data), data, lambda row: _place(lengths, names, row))
    if not table.num_rows:
        raise JobFailure(FailureClass.DATA_INVALID, f"{data.uri} has no rows", "Write the data and apply again")
    spool.release()
    total, numbered, taken = table.num_rows, numbering(table, lengths), None
    if wanted and wanted < total:
        taken = np.sort(np.random.default_rng((data.split.seed, SAMPLE_STREAM)).permutation(total)[:wanted])
        table = take(table, taken)
        content_hash.update(f"{wanted} rows by seed {data.split.seed}".encode())
    read = [
        {"file": name, "rows": part.rows, "encoding": part.encoding, "delimiter": part.delimiter}
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
        getattr(store, "commit", ""),
    )


def take(table: pa.Table, rows: Indices) -> pa.Table:
    """These rows of a table, ``(rows,)`` in rising order; of a large one on disk."""
    if len(rows) == table.num_rows:
        return table
    pieces = taken(table, rows)
    if not spool.is_large(table):
        return pa.concat_tables([table.schema.empty_table(), *pieces])
    batches = (batch for piece in pieces for batch in piece.combine_chunks().to_batches())
    return pa.concat_tables(spool.tables(batches) or [table.schema.empty_table()])


def taken(table: pa.Table, rows: Indices) -> Iterator[pa.Table]:
    """Likewise, a stretch at a time."""
    start = 0
    for piece in spool.pieces(table):
        low, high = np.searchsorted(rows, (start, start + piece.num_rows))
        if high > low:
            yield piece.take(spool.as_arrow(rows[low:high] - start))
        start += piece.num_rows


def _sample_size(asked: str | None) -> int | None:
    if not asked:
        return None
    if not (asked.isascii() and asked.isdecimal() and int(asked)):
        raise JobFailure(
            FailureClass.SPEC_INVALID, f"{ENV_ROWS} {asked!r} is no positive number of rows", "Write it like 2000"
        )
    return int(asked)


class _Gathered:
    """The rows of the files so far; small files together become one on disk."""

    def __init__(self, data: Data) -> None:
        self._format = data.format
        self._known: tuple[list[str], str] | None = None
        self._stored: list[Named] = []
        self._held: list[Named] = []

    def add(self, part: Part, name: str) -> None:
        """Takes in the next file.

        Raises:
            JobFailure: It has other columns than the first one.
        """
        self._known = self._known or (part.columns, name)
        if self._format != "jsonl":  # there, what is missing need not be written
            _refuse_other_columns(*self._known, part.columns, name)
        if part.nbytes > spool.HELD_BYTES:
            self._store()
            self._stored += [(name, table) for table in part.tables]
            return
        self._held += [(name, table) for table in part.tables]
        if sum(spool.size(table) for _, table in self._held) > spool.HELD_BYTES:
            self._store()

    def _store(self) -> None:
        for _, run in itertools.groupby(self._held, key=lambda named: named[1].schema):
            (name, first), *more = run
            rows = [batch for table in (first, *(table for _, table in more)) for batch in table.to_batches()]
            self._stored += [(name, table) for table in spool.tables(rows) or [first]]
        self._held = []

    def all(self) -> list[Named]:
        """In the order of the files, each with the name of the first file in it."""
        return self._stored + self._held


def _refuse_other_columns(known: Sequence[str], where: str, columns: Sequence[str], name: str) -> None:
    more = [column for column in columns if column not in known]
    less = [column for column in known if column not in columns]
    if more and less:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{name} lacks {', '.join(less[:SHOWN])} and has {', '.join(more[:SHOWN])} instead, unlike {where}",
            "Give every file the same columns, each CSV file with its header line",
        )


def _together(parts: Sequence[Named], data: Data) -> pa.Table:
    """The rows of all files.

    Raises:
        JobFailure: A file has other types than those before: words where others have numbers.
    """
    try:
        return _joined([table for _, table in parts])
    except pa.ArrowException as error:
        if data.format != "csv":
            raise _misfit(parts) from error
    # Of CSV a part alone does not tell: one word for missing more, or numbers with thousands, and a column is text there.
    kinds = [(typed.name, pa.types.is_string(typed.type)) for _, table in parts for typed in table.schema]
    words = {name for name, is_text in kinds if is_text}
    together = _joined([_as_text(table, words) for _, table in parts])
    found = settle(together, data, str).table.schema
    if any(name in words and not is_text and pa.types.is_string(found.field(name).type) for name, is_text in kinds):
        raise _misfit(parts)
    return together


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
    return pa.concat_tables([_conformed(table, schema) for table in tables])


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of all files; what it lacks is missing there."""
    if table.schema.equals(schema):
        return table
    large = spool.is_large(table)
    columns = []
    for typed in schema:
        if typed.name not in table.column_names:
            chunks = (pa.nulls(piece.num_rows, typed.type) for piece in spool.pieces(table))
            columns.append(spool.column(typed, chunks, large=large))
        elif (found := table.column(typed.name)).type != typed.type:
            columns.append(spool.column(typed, (chunk.cast(typed.type) for chunk in spool.chunks(found)), large=large))
        else:
            columns.append(found)
    return pa.table(columns, schema=schema)


def _as_text(table: pa.Table, columns: set[str]) -> pa.Table:
    return _conformed(
        table,
        pa.schema([typed.with_type(pa.string()) if typed.name in columns else typed for typed in table.schema]),
    )


def _place(lengths: Sequence[int], names: Sequence[str], row: int) -> str:
    for length, name in zip(lengths, names, strict=True):
        if row < length:
            return f"row {row + 1} of {name}"
        row -= length
    raise IndexError(row)


def _misfit(parts: Sequence[Named]) -> JobFailure:
    """Names the first file and column whose type does not go with those of the files before."""
    known: dict[str, tuple[pa.Field, str]] = {}
    for name, table in parts:
        for typed in table.schema:
            before, where = known.setdefault(typed.name, (typed, name))
            try:
                merged = pa.unify_schemas([pa.schema([before]), pa.schema([typed])], promote_options="permissive")
            except pa.ArrowException:
                return JobFailure(
                    FailureClass.DATA_INVALID,
                    f"the column {typed.name!r} is {before.type} in {where} but {typed.type} in {name}"
                    + _example(table.column(typed.name)),
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
        for row, text in enumerate(text for chunk in spool.chunks(column) for text in chunk.to_pylist())
        if category(text) is not None and number(text) is None
    )
    found = next(words, None)
    return f", first {found[1]!r} in its row {found[0] + 1}" if found else ""


def groups(table: pa.Table, attribute: str) -> Words:
    """Each row's group by a sensitive attribute.

    Raises:
        JobFailure: The column is missing, or has too many values to be groups.
    """
    found = grouped(table, attribute)
    names = np.array([MISSING_GROUP if word is None else word for word in found.words], dtype=np.str_)
    values: Words = names[found.codes]
    return values


def grouped(table: pa.Table, attribute: str) -> Coded:
    """Likewise, as numbers of the groups.

    Raises:
        JobFailure: As `groups`.
    """
    found = coded(table, attribute, "spec.data.sensitiveAttributes")
    if (count := len(found.words)) > GROUPS_LIMIT:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the sensitive attribute {attribute!r} has {count} distinct values, over {GROUPS_LIMIT}",
            "Put its values into ranges or classes first, as a column of the data",
        )
    return found


def split(strata: Strata, shares: Split, table: pa.Table | None = None) -> Parts:
    """Divides the rows: at random, each part with its share of every stratum, or by what `shares.by` names.

    The same rows and shares always give the same parts.

    Args:
        strata: Of the rows.
        shares: What to hold out, and the seed.
        table: The rows, where a column may decide.

    Raises:
        JobFailure: A part would have too little of a stratum: nothing could be learned or measured there. Or the column
            that decides is missing, or holds no times.
    """
    if table is not None and (decided := parting.places(table, shares)) is not None:
        parts = [np.flatnonzero(decided == place) for place in range(len(Parts._fields))]
        for code, name in enumerate(strata.names):
            near = [part[strata.codes[part] == code] for part in parts]
            _refuse_too_few(near, name, strata.least, "spec.data.split.by")
        _refuse_lacking(parts, strata, "spec.data.split.by")
        return Parts(*parts)
    generator = np.random.default_rng(shares.seed)
    kind = np.int32 if len(strata.codes) < 2**31 else np.int64  # half the memory, and the same order
    held: list[tuple[npt.NDArray[Any], ...]] = []
    said = f" (validation {shares.validation}, test {shares.test})"
    for code, name in enumerate(strata.names):
        order = generator.permutation(np.flatnonzero(strata.codes == code).astype(kind))
        test = round(len(order) * shares.test)
        validation = test + round(len(order) * shares.validation)
        held.append((order[validation:], order[test:validation], order[:test]))
        _refuse_too_few(held[-1], name, strata.least, "the shares in spec.data.split", said)
    found = Parts(*(np.sort(np.concatenate(part)).astype(np.int64) for part in zip(*held, strict=True)))
    _refuse_lacking(found, strata, "the shares or the seed in spec.data.split", said)
    return found


def _refuse_lacking(parts: Sequence[npt.NDArray[Any]], strata: Strata, field: str, said: str = "") -> None:
    """Makes sure that every part has a row of each kind that it needs."""
    for name, rows in strata.needed.items():
        _refuse_too_few([part[rows[part]] for part in parts], name, 1, field, said)


def _refuse_too_few(parts: Sequence[npt.NDArray[Any]], name: str, least: int, field: str, said: str = "") -> None:
    """Makes sure that every part has enough rows of a stratum."""
    total = sum(map(len, parts))
    for part, rows in zip(Parts._fields, parts, strict=True):
        if len(rows) < least:
            few = f"only {len(rows)} row" if len(rows) else "no row"
            first = min((int(other.min()) for other in parts if len(other)), default=-1)
            where = f", the first in {row_words(first)}" if total else ""
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the {part} part of the split has {few} of {name}, which has {total} in all{said}{where}",
                f"Add rows of {name}, remove those that are there if they are a mistake, or change {field}",
                first,
            )


class Coded(NamedTuple):
    """A column as categories.

    Attributes:
        codes: Of each row the number of its word, ``(rows,)``.
        words: Each once, as they come; None stands for what is missing.
    """

    codes: npt.NDArray[np.int32]
    words: list[str | None]

    @property
    def blank(self) -> int:
        """The number of what is missing; -1 if nothing is."""
        return self.words.index(None) if None in self.words else -1


def coded(table: pa.Table, column: str, field: str, read: Callable[[Any], str | None] = category) -> Coded:
    """A column's values as categories.

    Args:
        table: The rows.
        column: Its name.
        field: Of the specification, which names it.
        read: What each value stands for.

    Raises:
        JobFailure: There is no such column.
    """
    parting.require(table, column, field)
    known: dict[str | None, int] = {}
    parts = [np.empty(0, dtype=np.int32)]
    for chunk in spool.chunks(table.column(column)):
        found = chunk.dictionary_encode()
        words = [read(value) for value in [*found.dictionary.to_pylist(), None]]
        near = found.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)
        used = words if chunk.null_count else words[:-1]
        codes = np.array([known.setdefault(word, len(known)) for word in used] + [0], dtype=np.int32)
        parts.append(codes[near])
    return Coded(np.concatenate(parts), list(known))
