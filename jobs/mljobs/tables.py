"""One file's rows as an Arrow table.

Called by `mljobs.data` for every file of the data. What a file's cells mean is not decided here: a part of the data
cannot know.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mljobs import text
from mljobs.failure import JobFailure
from mljobs.files import SHOWN
from mljobs.tasks.tabular_model import MISSING_WORDS
from mlplatform.api import Data
from mlplatform.contract import FailureClass

DELIMITERS: Final = (",", ";", "\t", "|")
"""Tried in this order where `spec.data.delimiter` names none."""
LINE_ENDS: Final = ("\r", "\n")
HEADER_BYTES: Final = 1 << 20
BLOCK_BYTES: Final = 1 << 20
"""Arrow's own; a row that is longer is read with a block as long as the file."""
NO_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"
"""Stands for a value that is missing in the name of a folder."""
SHOWN_CHARACTERS: Final = 100
_RAGGED: Final = re.compile(
    r"Row #(?P<row>\d+): Expected (?P<wanted>\d+) columns, got (?P<got>\d+): (?P<text>.*)", re.DOTALL
)
_SOMETHING: Final = re.compile(rb"[^\r\n]")


@dataclass(frozen=True, slots=True)
class Part:
    """What one file holds.

    Attributes:
        table: Its rows.
        left_out: Columns that are none of the data, with why.
        encoding: Of its text; empty for Parquet.
        delimiter: Between its values; empty for Parquet.
    """

    table: pa.Table
    left_out: dict[str, str]
    encoding: str = ""
    delimiter: str = ""


def read(content: bytes, data: Data, uri: str) -> Part:
    """Reads one file.

    Raises:
        JobFailure: It is empty, damaged, or not of the format (DataInvalid).
    """
    if not content:
        raise JobFailure(
            FailureClass.DATA_INVALID, f"{uri} is empty", "Write the file again, or delete it if nothing is missing"
        )
    content = text.unpacked(content, uri)
    return _parquet(content, uri) if data.format == "parquet" else _csv(content, data, uri)


def _parquet(content: bytes, uri: str) -> Part:
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise _no_file("parquet", uri, str(error)) from error
    _refuse_twins(table.column_names, uri)
    # pandas numbers the rows of a frame in a column of its own; it says nothing of a row that comes later.
    numbering = [name for name in table.column_names if name.startswith("__index_level_")]
    return Part(table.drop_columns(numbering), dict.fromkeys(numbering, "pandas' numbering of the rows"))


def _csv(content: bytes, data: Data, uri: str) -> Part:
    if data.delimiter in LINE_ENDS:
        raise JobFailure(
            FailureClass.SPEC_INVALID, "spec.data.delimiter is the end of a line", "Name the character between values"
        )
    read = text.read(content, data.encoding, uri)
    delimiter = data.delimiter or _delimiter(read.content, data.label)
    names, start = _header(read.content, delimiter)
    _refuse_twins([name for name in names if name], uri)
    # What pandas and R write without a name numbers the rows; a delimiter at the end of each line makes an empty one.
    columns = [name or f"(column {i})" for i, name in enumerate(names, 1)]
    nameless = {column: "it has no name" for column, name in zip(columns, names, strict=True) if not name}
    table = _rows(read.content, start, delimiter, columns, uri).drop_columns(list(nameless))
    return Part(table, nameless, read.encoding, delimiter)


def _delimiter(content: bytes, label: str) -> str:
    """The first one that parts the header into columns of which one is the label; else the one with most columns."""
    headers = {delimiter: _header(content, delimiter)[0] for delimiter in DELIMITERS}
    fitting = (delimiter for delimiter, names in headers.items() if label in names and len(names) > 1)
    return next(fitting, max(headers, key=lambda delimiter: len(headers[delimiter])))


def _header(content: bytes, delimiter: str) -> tuple[list[str], int]:
    """The columns' names without spaces around them, and where the rows begin."""
    lines = io.StringIO(content[:HEADER_BYTES].decode(errors="ignore"), newline="")
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        names = next(names for names in reader if names)  # Arrow, too, passes over empty lines.
    except (StopIteration, csv.Error):
        return [], len(content)
    start = sum(len(line) for line in content[:HEADER_BYTES].splitlines(keepends=True)[: reader.line_num])
    return [name.strip() for name in names], start


def _rows(content: bytes, start: int, delimiter: str, columns: Sequence[str], uri: str) -> pa.Table:
    if not columns:
        raise JobFailure(
            FailureClass.DATA_INVALID, f"{uri} has no header line", "Write the columns' names into its first line"
        )
    if not _SOMETHING.search(content, start):
        return pa.table({name: pa.array([], pa.null()) for name in columns})  # which goes with any type
    body = pa.py_buffer(content).slice(start)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in content)
    try:
        table = _parsed(body, parse, columns, {})
        # A time stays as it is written, which is how a request has it.
        times = {typed.name: pa.string() for typed in table.schema if pa.types.is_temporal(typed.type)}
        if times:
            table = _parsed(body, parse, columns, times)
    except pa.ArrowException as error:
        if ragged := _RAGGED.search(str(error)):
            raise _ragged(ragged, content, delimiter, uri) from error
        problem = f"{error} ({len(columns)} columns in the header, parted by {delimiter!r})"
        raise _no_file("csv", uri, problem) from error
    _refuse_open_quote(content, table, uri)
    return table


def _ragged(found: re.Match[str], content: bytes, delimiter: str, uri: str) -> JobFailure:
    """A row of another length than the header: the last one may be half, or none of the data."""
    row, wanted, got = (int(found[name]) for name in ("row", "wanted", "got"))
    shown = found["text"].strip()[:SHOWN_CHARACTERS]
    told = (
        f"{got} value{'s' if got > 1 else ''} where the header has {wanted} columns, parted by {delimiter!r}: {shown!r}"
    )
    if got < wanted and content.rstrip(b"\r\n").endswith(found["text"].strip("\r\n").encode()):
        return JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} ends with row {row}, which has {told}",
            "Write the file again if its upload broke off; remove the row if it is a total or a remark",
        )
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"{uri} has a row of another length: row {row} has {told}",
        f"Correct the row (a value that holds {delimiter!r} stands in double quotes), or spec.data.delimiter, if that is another",
    )


def partitioned(part: Part, name: str, uri: str) -> Part:
    """The part with the columns that its folders name (``year=2024/``), as Hive and Spark write them.

    Args:
        part: What the file holds.
        name: Of the file, below `spec.data.uri`.
        uri: Of the file, for messages.

    Raises:
        JobFailure: The file has such a column itself.
    """
    table = part.table
    for folder in name.split("/")[:-1]:
        column, sign, written = (unquote(text) for text in folder.partition("="))
        if not (sign and column):
            continue
        if column in table.column_names:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the folder of {uri} names the column {column!r}, which the file has, too",
                f"Write the files without {column!r}, or into folders of another name",
            )
        value = None if written == NO_PARTITION else written
        table = table.append_column(column, pa.array([value] * table.num_rows, pa.string()))
    return replace(part, table=table)


def _parsed(
    body: pa.Buffer, parse: pyarrow.csv.ParseOptions, columns: Sequence[str], types: Mapping[str, pa.DataType]
) -> pa.Table:
    """By blocks in parallel; if that fails as one block, which may hold a row of any length, and tells a bad row's number."""
    # Without words for true and false, such a column stays text, and `category` reads it as it reads a request's; Arrow
    # would take 0 for false in a column of 0 and True. Words for missing stay in text: None may be a class.
    convert = pyarrow.csv.ConvertOptions(
        null_values=sorted({*MISSING_WORDS, *map(str.upper, MISSING_WORDS), "NaN", "None", "NaT", "Null", "\\N"}),
        true_values=[],
        false_values=[],
        column_types=types,
    )
    blocks = pyarrow.csv.ReadOptions(column_names=list(columns), block_size=BLOCK_BYTES)
    try:
        return pyarrow.csv.read_csv(pa.BufferReader(body), blocks, parse, convert)
    except pa.ArrowException:
        whole = pyarrow.csv.ReadOptions(column_names=list(columns), block_size=body.size, use_threads=False)
        return pyarrow.csv.read_csv(pa.BufferReader(body), whole, parse, convert)


def _refuse_twins(names: Sequence[str], uri: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        where = ", ".join(str(i) for i, name in enumerate(names, 1) if name == twice[0])
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} has the column {twice[0]!r} more than once (columns {where})",
            f"Rename or remove all but one of {', '.join(map(repr, twice[:SHOWN]))}",
        )


def _refuse_open_quote(content: bytes, table: pa.Table, uri: str) -> None:
    """Arrow ends a quoted value where the file ends."""
    if not table.num_rows or content.count(b'"') % 2 == 0:
        return
    last = itertools.chain.from_iterable(column[-1:].to_pylist() for column in table.columns)
    if content.rstrip(b"\r\n").endswith(b'"') or any(isinstance(value, str) and "\n" in value for value in last):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} ends within a quoted value, in row {table.num_rows}",
            "Write the file again if its upload broke off; else close the quote, or double it within a value",
        )


def _no_file(file_format: str, uri: str, problem: str) -> JobFailure:
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"{uri} is no {file_format} file, or a damaged one: {' '.join(problem.split())}",
        "Correct the file, or spec.data.format"
        + (", spec.data.delimiter or spec.data.encoding" if file_format == "csv" else ""),
    )
