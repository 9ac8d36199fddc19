"""Rows from any store: loading, checking, labels, groups and the split.

Called by train, and by trained for the stages after it, each of which loads the same rows and
derives the same split from them, so no stage has to store indices. `Rows.digest` lets a later
stage notice that the data changed in between. Where `contract.ENV_ROWS` asks for a sample, it is
drawn here, and nothing after this module sees other rows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mljobs import files
from mljobs.failure import JobFailure, did_you_mean
from mljobs.files import SHOWN
from mljobs.store import Store
from mljobs.tasks.tabular_model import MISSING_WORDS, category
from mlplatform.api import Data, Split
from mlplatform.contract import ENV_ROWS, FailureClass

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
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
    """

    table: pa.Table
    files: list[str]
    digest: str
    total: int

    @property
    def sample(self) -> dict[str, int]:
        """How many rows there are of how many, as every stage's report says it."""
        return {"rows": self.table.num_rows, "of": self.total}


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
    found = files.names(store, data)
    tables, content_hash = [], hashlib.sha256()
    for name in found:
        content = store.read(name)
        content_hash.update(content)
        tables.append(_parse(content, data.format, store.uri(name)))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the files of {data.uri} do not fit together: {error}",
            "Give every file the same columns with the same types",
        ) from error
    if not table.num_rows:
        raise JobFailure(FailureClass.DATA_INVALID, f"{data.uri} has no rows", "Write the data and apply again")
    total = table.num_rows
    if wanted and wanted < total:
        chosen = np.random.default_rng((data.split.seed, SAMPLE_STREAM)).permutation(total)[:wanted]
        table = take(table, np.sort(chosen))
        content_hash.update(f"{wanted} rows by seed {data.split.seed}".encode())
    return Rows(table, [store.uri(name) for name in found], f"sha256:{content_hash.hexdigest()}", total)


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


def _parse(content: bytes, file_format: str, uri: str) -> pa.Table:
    source = pa.BufferReader(content)
    try:
        if file_format == "parquet":
            return pyarrow.parquet.read_table(source)
        # Without words for true and false, such a column stays text, and `category` reads it as it reads a request's;
        # Arrow would take 0 for false in a column of 0 and True.
        convert = pyarrow.csv.ConvertOptions(
            null_values=sorted(MISSING_WORDS), strings_can_be_null=True, true_values=[], false_values=[]
        )
        return pyarrow.csv.read_csv(source, convert_options=convert)
    except pa.ArrowException as error:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} is no {file_format} file: {error}",
            "Correct the file, or spec.data.format",
        ) from error


def labels(table: pa.Table, data: Data) -> tuple[Flags, list[str]]:
    """Which rows are positive, and the names ``[negative, positive]`` of the classes.

    The positive class is `data.positive_label`, or else the last in order: 1 of 0 and 1, yes of no and yes.

    Raises:
        JobFailure: The label column is missing, incomplete or not of two classes.
    """
    words = _words(table, data.label, "spec.data.label")
    if blank := words.count(None):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{blank} of {len(words)} rows have no value in the label column {data.label!r}",
            "Remove these rows or complete them",
        )
    values = np.array(words, dtype=np.str_)
    classes = sorted(np.unique(values).tolist(), key=_order)
    if len(classes) != 2:  # noqa: PLR2004  binary
        shown = ", ".join(classes[:SHOWN])
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the label column {data.label!r} has {len(classes)} distinct value(s) ({shown}); two are needed",
            "Point spec.data.label at a column of two classes, or derive one",
        )
    if data.positive_label and data.positive_label not in classes:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"spec.data.positiveLabel {data.positive_label!r} is no value of {data.label!r}"
            f"{did_you_mean(data.positive_label, classes)}",
            f"Use one of {', '.join(classes)}",
        )
    positive = data.positive_label or classes[1]
    negative = next(name for name in classes if name != positive)
    return values == positive, [negative, positive]


def groups(table: pa.Table, attribute: str) -> Words:
    """Each row's group by a sensitive attribute.

    Raises:
        JobFailure: The column is missing, or has too many values to be groups.
    """
    words = _words(table, attribute, "spec.data.sensitiveAttributes")
    values = np.array([MISSING_GROUP if word is None else word for word in words], dtype=np.str_)
    if (count := len(np.unique(values))) > GROUPS_LIMIT:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the sensitive attribute {attribute!r} has {count} distinct values, over {GROUPS_LIMIT}",
            "Put its values into ranges or classes first, as a column of the data",
        )
    return values


def split(positive: Flags, shares: Split) -> Parts:
    """Divides the rows at random, with the same share of positive ones in each part.

    The same rows and shares always give the same parts.

    Args:
        positive: ``(rows,)``.
        shares: What to hold out, and the seed.

    Raises:
        JobFailure: A part would have no row of one class: nothing could be learned or measured there.
    """
    generator = np.random.default_rng(shares.seed)
    held: list[tuple[Indices, Indices, Indices]] = []
    for value in (False, True):
        order = generator.permutation(np.flatnonzero(positive == value))
        test = round(len(order) * shares.test)
        validation = test + round(len(order) * shares.validation)
        held.append((order[validation:], order[test:validation], order[:test]))
        for part, rows in zip(Parts._fields, held[-1], strict=True):
            if not len(rows):
                name = "positive" if value else "negative"
                raise JobFailure(
                    FailureClass.DATA_INVALID,
                    f"the {part} part of the split has no row of the {name} class, which has {len(order)} in all "
                    f"(validation {shares.validation}, test {shares.test})",
                    f"Add rows of the {name} class, or change the shares in spec.data.split",
                )
    return Parts(*(np.sort(np.concatenate(part)) for part in zip(*held, strict=True)))


def _words(table: pa.Table, column: str, field: str) -> list[str | None]:
    if column not in table.column_names:
        shown = ", ".join(table.column_names[:SHOWN]) + (", …" if table.num_columns > SHOWN else "")
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the data has no column {column!r}{did_you_mean(column, table.column_names)}; it has {shown}",
            f"Correct {field}",
        )
    return [category(value) for value in table.column(column).to_pylist()]


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before words by the alphabet."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
