"""Rows from any store: loading, checking, labels, groups and the split.

Called by train, and by trained for the stages after it, each of which loads the same rows and
derives the same split from them, so no stage has to store indices. `Rows.digest` lets a later
stage notice that the data changed in between.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mljobs.failure import JobFailure, did_you_mean
from mljobs.store import Store
from mljobs.tasks.tabular_model import MISSING_WORDS, category
from mlplatform.api import Data, Split
from mlplatform.contract import FailureClass

Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Words = npt.NDArray[np.str_]

MISSING_GROUP: Final = "(missing)"
GROUPS_LIMIT: Final = 50
SHOWN: Final = 20
"""Names listed in a message."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A loaded data set.

    Attributes:
        table: All columns.
        files: Names of the files read, in order.
        digest: ``sha256:<hex>`` over the files' contents in order.
    """

    table: pa.Table
    files: list[str]
    digest: str


class Parts(NamedTuple):
    """Row numbers of each part of the split, sorted."""

    train: Indices
    validation: Indices
    test: Indices


def load(data: Data) -> Rows:
    """Reads every file of the format below `data.uri`, in the order of their names, or that one file.

    Raises:
        JobFailure: Nothing is there (DataMissing), a file does not parse or has no rows (DataInvalid), or the
            store refuses or does not answer.
    """
    store = Store(data.uri)
    names = [""] if store.is_file() else _data_files(store, data)
    tables, content_hash = [], hashlib.sha256()
    for name in names:
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
    return Rows(table, [store.uri(name) for name in names], f"sha256:{content_hash.hexdigest()}")


def _data_files(store: Store, data: Data) -> list[str]:
    present = [name for name in store.names() if not name.rpartition("/")[2].startswith((".", "_"))]
    if not present:
        raise JobFailure(
            FailureClass.DATA_MISSING,
            f"there is nothing at {data.uri}",
            "Write the data there, or correct spec.data.uri",
        )
    wanted = [name for name in present if name.lower().endswith(f".{data.format}")]
    if not wanted:
        raise JobFailure(
            FailureClass.DATA_MISSING,
            f"{data.uri} holds no .{data.format} file, only {', '.join(present[:SHOWN])}",
            "Correct spec.data.format or spec.data.uri",
        )
    return wanted


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
