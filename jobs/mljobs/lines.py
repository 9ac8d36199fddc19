"""Files of JSON objects, one a line, as Arrow tables.

Called by `mljobs.tables`. A key is a column, and one that an object lacks is missing there. A value is what JSON says: a
number, true or false, or text; a time stays as it is written, which is how a request has it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.json

from mljobs.failure import JobFailure
from mlplatform.contract import FailureClass

LIKE_THIS: Final = (
    "Write one object a line, with the columns as keys (pandas: to_json(orient='records', lines=True); jq -c '.[]')"
)
SHOWN_CHARACTERS: Final = 100
_CHANGED: Final = re.compile(
    r"Column\(/(?P<column>.*)\) changed from (?P<before>\w+) to (?P<now>\w+) in row (?P<row>\d+)"
)
_NO_OBJECT: Final = re.compile(r"Column\(\) changed from object to (?P<now>\w+) in row (?P<row>\d+)")
_TWICE: Final = re.compile(r"Column\(/(?P<column>.*)\) was specified twice in row (?P<row>\d+)")
_WRONG: Final = re.compile(r"JSON parse error: (?P<why>.*?)\.? in row (?P<row>\d+)", re.DOTALL)


def tables(blocks: Iterable[bytes], uri: str) -> Iterator[pa.Table]:
    """The rows of each block; types of one column only become wider.

    Args:
        blocks: UTF-8, each with whole lines.
        uri: Of the file, for messages.

    Raises:
        JobFailure: A line is no object, or a column has values of two kinds.
    """
    times, kinds, rows = set[str](), dict[str, str](), 0
    for block in blocks:
        if not block.strip():
            continue
        try:
            table = _parsed(block, times)
            if new := {typed.name for typed in table.schema if pa.types.is_temporal(typed.type)}:
                times |= new
                table = _parsed(block, times)
        except pa.ArrowException as error:
            raise _unreadable(block, str(error), rows, uri) from error
        for typed, column in zip(table.schema, table.columns, strict=True):
            now = _kind(typed.type)
            if now and now != kinds.setdefault(typed.name, now):
                row = rows + int(np.flatnonzero(column.is_valid().to_numpy())[0])
                raise _changed(typed.name, kinds[typed.name], now, row, uri)
        rows += table.num_rows
        yield table


def _parsed(block: bytes, texts: Collection[str]) -> pa.Table:
    """As one piece: of several, Arrow takes text for a number where another piece has numbers."""
    names = [pa.field(name, pa.string()) for name in sorted(texts)]
    parse = pyarrow.json.ParseOptions(explicit_schema=pa.schema(names)) if names else None
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    return pyarrow.json.read_json(pa.BufferReader(block), options, parse)


def _kind(kind: pa.DataType) -> str:
    """What JSON calls it; empty where all is null."""
    if pa.types.is_null(kind):
        return ""
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_string(kind):
        return "string"
    return "array" if pa.types.is_list(kind) else "object" if pa.types.is_struct(kind) else "number"


def _unreadable(block: bytes, problem: str, before: int, uri: str) -> JobFailure:
    """What Arrow refuses, in words; `before` counts the rows of the blocks before."""
    if found := _NO_OBJECT.search(problem):
        if not before and found["row"] == "0" and found["now"] == "array":
            told = f"{uri} is one JSON array and not an object a line"
        else:
            told = f"{uri} has no object in row {before + int(found['row']) + 1}, but {_a(found['now'])}"
        return JobFailure(FailureClass.DATA_INVALID, told, LIKE_THIS)
    if found := _CHANGED.search(problem):
        return _changed(found["column"], found["before"], found["now"], before + int(found["row"]), uri)
    if found := _TWICE.search(problem):
        return JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} has the key {found['column']!r} twice in row {before + int(found['row']) + 1}",
            "Write each key once",
        )
    if not (found := _WRONG.search(problem)):
        return JobFailure(FailureClass.DATA_INVALID, f"{uri} is no jsonl file, or a damaged one: {problem}", LIKE_THIS)
    row, lines = int(found["row"]), [line for line in block.splitlines() if line.strip()]
    line = lines[row].strip() if row < len(lines) else b""
    shown = line[:SHOWN_CHARACTERS].decode(errors="replace")
    if row == len(lines) - 1 and line.startswith(b"{") and not line.endswith(b"}"):
        return JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} ends with row {before + row + 1}, which breaks off: {shown!r}",
            "Write the file again if its upload broke off; else complete the row",
        )
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"{uri} has no object in row {before + row + 1} ({found['why']}): {shown!r}",
        LIKE_THIS,
    )


def _changed(column: str, before: str, now: str, row: int, uri: str) -> JobFailure:
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"the column {column!r} has {_a(before)} in the rows before and {_a(now)} in row {row + 1} of {uri}",
        "Write the column with values of one kind; null stands for what is missing",
    )


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "ao" else f"a {kind}"
