"""One file's rows as Arrow tables.

Called by `mljobs.data` for every file of the data. A file that is not for memory is read in blocks and written to disk as
Arrow. What a file's cells mean is not decided here: a part of the data cannot know.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mljobs import lines, spool, stream, text
from mljobs.failure import JobFailure
from mljobs.files import SHOWN
from mljobs.stream import RowEndsError, Source
from mljobs.tasks.tabular_model import MISSING_WORDS
from mlplatform.api import Data
from mlplatform.contract import FailureClass

DELIMITERS: Final = (",", ";", "\t", "|")
"""Tried in this order where `spec.data.delimiter` names none."""
AS: Final = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary(), pa.float16(): pa.float32()}
"""Types that not all of Arrow's own functions know, and what they are read as."""
LINE_ENDS: Final = ("\r", "\n")
NUMBERING: Final = "pandas' numbering of the rows"
HEADER_BYTES: Final = 1 << 20
ABOVE: Final = 50
"""Lines among which a header is sought that is not the first."""
BLOCK_BYTES: Final = 1 << 20
"""Arrow's own; a row that is longer is read with a block as long as the file."""
NO_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"
"""Stands for a value that is missing in the name of a folder."""
SHOWN_CHARACTERS: Final = 100
_RAGGED: Final = re.compile(
    r"Row #(?P<row>\d+): Expected (?P<wanted>\d+) columns, got (?P<got>\d+): (?P<text>.*)", re.DOTALL
)
_SAID: Final = re.compile(rb'"?sep=(?P<sign>[^"\r\n])"?\r?\n?')
_SOMETHING: Final = re.compile(rb"[^\r\n]")


@dataclass(frozen=True, slots=True)
class Part:
    """What one file holds.

    Attributes:
        tables: Its rows, in memory or mapped; more than one where a type became wider in the course of the file.
        left_out: Columns that are none of the data, with why.
        encoding: Of its text; empty for Parquet.
        delimiter: Between its values; empty unless it is CSV.
    """

    tables: list[pa.Table]
    left_out: dict[str, str]
    encoding: str = ""
    delimiter: str = ""

    @property
    def columns(self) -> list[str]:
        """The names of all."""
        return list(dict.fromkeys(name for table in self.tables for name in table.column_names))

    @property
    def rows(self) -> int:
        """How many it has."""
        return sum(table.num_rows for table in self.tables)

    @property
    def nbytes(self) -> int:
        """Their size as Arrow has them."""
        return sum(map(spool.size, self.tables))


def load(source: Source, data: Data) -> Part:
    """Reads one file, of any size.

    Raises:
        JobFailure: It is empty, damaged, or not of the format (DataInvalid).
    """
    long: _LongCsv | _LongLines | None = None
    while True:
        with opened(source) as file:
            start = file.read(stream.BLOCK_BYTES + 1)
            if data.format != "parquet":
                text.refuse_foreign(start, source.uri)
            if len(start) <= stream.BLOCK_BYTES:
                part = read(start, data, source.uri)
            elif data.format == "parquet":
                part = _long_parquet(start, file, source)
            else:
                long = long or (_LongLines if data.format == "jsonl" else _LongCsv)(source, data, start)
                try:
                    part = long.read(itertools.chain([start], stream.pieces(file)))
                except _Again:
                    continue
            source.finish()
        return part


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
    if data.format == "parquet":
        return _parquet(content, uri)
    return _lines(content, data, uri) if data.format == "jsonl" else _csv(content, data, uri)


def _parquet(content: bytes, uri: str) -> Part:
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
        table = table.cast(pa.schema([_plain(typed) for typed in table.schema]))
    except (pa.ArrowException, OSError) as error:
        raise _no_file("parquet", uri, str(error)) from error
    _refuse_twins(table.column_names, uri)
    # pandas numbers the rows of a frame in a column of its own; it says nothing of a row that comes later.
    numbering = [name for name in table.column_names if name.startswith("__index_level_")]
    return Part([table.drop_columns(numbering)], dict.fromkeys(numbering, NUMBERING))


def _long_parquet(start: bytes, rest: io.BufferedReader, source: Source) -> Part:
    """By stretches of its row groups. Parquet is read from its end: what comes as a stream is written to disk before."""
    with tempfile.NamedTemporaryFile(prefix="parquet-") as copy:
        path = source.local
        if not path or not start.startswith(b"PAR1") or isinstance(rest.raw, stream.Unpacked):
            copy.write(start)
            shutil.copyfileobj(rest, copy, stream.BLOCK_BYTES)
            copy.flush()
            path = copy.name
        try:
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
                names = file.schema_arrow.names
                _refuse_twins(names, source.uri)
                numbering = [name for name in names if name.startswith("__index_level_")]
                kept = [name for name in names if name not in numbering]
                schema = pa.schema([_plain(file.schema_arrow.field(name)) for name in kept])
                batches = (
                    batch.select(kept).cast(schema)
                    for batch in file.iter_batches(_rows_at_a_time(file.metadata), use_threads=True)
                )
                tables = spool.tables(batches) or [schema.empty_table()]
        except (pa.ArrowException, OSError) as error:
            raise _no_file("parquet", source.uri, str(error)) from error
    return Part(tables, dict.fromkeys(numbering, NUMBERING))


def _plain(typed: pa.Field) -> pa.Field:
    """A column's type as everything after this knows it: how it was packed, or who wrote it, says nothing of its values."""
    kind = typed.type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        kind = kind.value_type
    return typed.with_type(AS.get(kind, kind))


def _rows_at_a_time(about: pyarrow.parquet.FileMetaData) -> int:
    size: int = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    rows: int = about.num_rows * spool.BATCH_BYTES // max(1, size)
    return max(1, min(spool.BATCH_ROWS, rows))


def _lines(content: bytes, data: Data, uri: str) -> Part:
    found = text.read(content, data.encoding, uri)
    return Part(list(lines.tables([found.content], uri)) or [pa.table({})], {}, found.encoding)


class _Again(Exception):  # noqa: N818  no error
    """A file is otherwise than it was taken to be; whoever raises this knows now how it is to be read."""


class _LongLines:
    """A JSONL file that is not for memory, block by block.

    Args:
        source: The file.
        data: What the specification says of it.
        start: How it begins.
    """

    def __init__(self, source: Source, data: Data, start: bytes) -> None:
        self._source, self._said = source, bool(data.encoding)
        self._encoding = text.begun(start, data.encoding)

    def read(self, parts: Iterator[bytes]) -> Part:
        """All rows.

        Raises:
            _Again: It is not UTF-8.
            JobFailure: It is no JSONL file, or a damaged one.
        """
        uri = self._source.uri
        decoder = text.Decoder(self._encoding, uri, said=self._said)
        try:
            found = lines.tables(stream.blocks(parts, decoder, stream.line_end), uri)
            batches = (batch for table in found for batch in table.combine_chunks().to_batches())
            return Part(spool.tables(batches), {}, self._encoding or "utf-8")
        except text.NotUtf8Error as error:
            self._encoding = _told(self._source)
            raise _Again from error
        except RowEndsError as error:
            size = stream.LONGEST * stream.BLOCK_BYTES >> 20
            raise _no_file("jsonl", uri, f"a line is longer than {size} MiB") from error


def _told(source: Source) -> str:
    with opened(source) as file:
        return text.told(stream.pieces(file), source.uri)


@contextmanager
def opened(source: Source) -> Iterator[io.BufferedReader]:
    """A file's content, unpacked."""
    with source.open() as packed, stream.unpacked(packed, source.uri) as file:
        yield file


def _csv(content: bytes, data: Data, uri: str) -> Part:
    read = text.read(content, data.encoding, uri)
    head = Head.of(read.content, data, uri)
    table = _rows(read.content, head, uri).drop_columns(list(head.nameless))
    return Part([table], head.nameless, read.encoding, head.delimiter)


@dataclass(frozen=True, slots=True)
class Head:
    """What the first line of a CSV file says.

    Attributes:
        delimiter: Between values.
        columns: Names.
        nameless: Those that stand for none, with why they are left out.
        start: Where the rows begin.
    """

    delimiter: str
    columns: list[str]
    nameless: dict[str, str]
    start: int

    @classmethod
    def of(cls, content: bytes, data: Data, uri: str) -> Head:
        """Reads it.

        Raises:
            JobFailure: There is none, or it has a name twice.
        """
        if data.delimiter in LINE_ENDS:
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                "spec.data.delimiter is the end of a line",
                "Name the character between values",
            )
        # Excel's own way to say the delimiter, which only Excel takes for none of the data.
        said = _SAID.match(content)
        begin = said.end() if said else 0
        delimiter = data.delimiter or (said["sign"].decode() if said else _delimiter(content, data.predicted))
        names, start = _header(content[begin:], delimiter)
        start += begin
        if not names:
            raise JobFailure(
                FailureClass.DATA_INVALID, f"{uri} has no header line", "Write the columns' names into its first line"
            )
        if not set(data.predicted) <= set(names):
            _refuse_lines_above(content, data, uri)
        _refuse_twins([name for name in names if name], uri)
        # What pandas and R write without a name numbers the rows; a delimiter at the end of each line makes an empty one.
        columns = [name or f"(column {i})" for i, name in enumerate(names, 1)]
        nameless = {column: "it has no name" for column, name in zip(columns, names, strict=True) if not name}
        return cls(delimiter, columns, nameless, start)


class Before(NamedTuple):
    """What comes before a part of a file.

    Attributes:
        rows: How many.
        quotes: Likewise.
    """

    rows: int = 0
    quotes: int = 0


class _Mixed(Exception):  # noqa: N818  likewise
    """Columns of words began with what is none.

    Args:
        columns: Their names.
    """

    def __init__(self, columns: set[str]) -> None:
        super().__init__()
        self.columns = columns


class _LongCsv:
    """A CSV file that is not for memory, block by block.

    Args:
        source: The file.
        data: What the specification says of it.
        start: How it begins.
    """

    def __init__(self, source: Source, data: Data, start: bytes) -> None:
        self._source, self._data = source, data
        self._encoding = text.begun(start, data.encoding)
        self._words: set[str] = set()
        self._by_arrow = False
        self._head = Head("", [], {}, 0)

    def read(self, parts: Iterator[bytes]) -> Part:
        """All rows.

        Raises:
            _Again: A block has shown that the file is otherwise than it was taken to be.
            JobFailure: It is no CSV file, or a damaged one.
        """
        try:
            return self._once(parts)
        except text.NotUtf8Error as error:
            self._encoding = _told(self._source)
            raise _Again from error
        except _Mixed as mixed:
            self._words |= mixed.columns
            raise _Again from mixed
        except (RowEndsError, _Unparsed) as error:
            if self._by_arrow:
                raise _unreadable(self._head, b"", self._source.uri, str(error)) from error
            self._by_arrow = True
            raise _Again from error

    def _once(self, parts: Iterator[bytes]) -> Part:
        uri = self._source.uri
        decoder = text.Decoder(self._encoding, uri, said=bool(self._data.encoding))
        blocks = stream.decoded(parts, decoder) if self._by_arrow else stream.blocks(parts, decoder, stream.row_end)
        first = next(blocks)
        self._head = head = Head.of(first, self._data, uri)
        blocks = itertools.chain([first[head.start :]], blocks)
        rows = self._rows(self._requoted(blocks, head) if self._by_arrow else blocks, head)
        kept = [name for name in head.columns if name not in head.nameless]
        found = spool.tables(batch.select(kept) for batch in rows)
        empty = pa.table({name: pa.array([], pa.null()) for name in kept})
        return Part(found or [empty], head.nameless, self._encoding or "utf-8", head.delimiter)

    def _rows(self, blocks: Iterator[bytes], head: Head) -> Iterator[pa.RecordBatch]:
        """Each block by a core. A column that has words is not read as anything else from there on."""
        words, mixed, rows = set(self._words), set[str](), 0
        last: tuple[bytes, pa.Table] | None = None

        def parsed(block: bytes, *, threads: bool = False) -> tuple[bytes, pa.Table]:
            try:
                table = _typed(pa.py_buffer(block), b'"' in block, head, words, threads=threads)
            except pa.ArrowException as error:
                raise _Unparsed(str(error)) from error
            return block, table.combine_chunks()

        blocks = (block for block in blocks if _SOMETHING.search(block))
        # What is words in the first one is in all others: these wait for it.
        first = (parsed(block, threads=True) for block in itertools.islice(blocks, 1))
        for last in itertools.chain(first, stream.side_by_side(parsed, blocks)):
            table = last[1]
            new = {typed.name for typed in table.schema if pa.types.is_string(typed.type)} - words
            words = words | new  # not in place: a thread may be reading it
            if rows:
                mixed |= new
            rows += table.num_rows
            if not mixed:
                yield from table.to_batches()
        if mixed:
            raise _Mixed(mixed)
        if last:  # the others end where a row ends
            _refuse_open_quote(*last, self._source.uri, Before(rows - len(last[1])))

    def _requoted(self, blocks: Iterator[bytes], head: Head) -> Iterator[bytes]:
        """The same with every value in quotes, by a single core.

        Where rows end only Arrow's own reader tells for sure; of a row that is none it gives the number, too.
        """
        parse = pyarrow.csv.ParseOptions(delimiter=head.delimiter, newlines_in_values=True)
        options = pyarrow.csv.ReadOptions(column_names=head.columns, block_size=stream.BLOCK_BYTES, use_threads=False)
        plain = pyarrow.csv.WriteOptions(include_header=False, delimiter=head.delimiter, quoting_style="all_valid")
        content, rows, batch = stream.Joined(blocks), 0, None
        try:
            with pyarrow.csv.open_csv(content, options, parse, _convert(head.columns)) as reader:
                for batch in reader:
                    rows += batch.num_rows
                    quoted = pa.BufferOutputStream()
                    pyarrow.csv.write_csv(batch, quoted, plain)
                    yield quoted.getvalue().to_pybytes()
        except pa.ArrowException as error:
            raise _Unparsed(str(error)) from error
        if batch is not None:
            end = pa.Table.from_batches([batch])
            _refuse_open_quote(content.last, end, self._source.uri, Before(rows - len(end), content.quotes))


class _Unparsed(Exception):  # noqa: N818  likewise
    """Arrow refuses a block."""


def _delimiter(content: bytes, labels: Collection[str]) -> str:
    """The first one that parts the header into columns of which the labels are some; else the one with most columns."""
    headers = {delimiter: _header(content, delimiter)[0] for delimiter in DELIMITERS}
    fitting = (delimiter for delimiter, names in headers.items() if set(labels) <= set(names) and len(names) > 1)
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


def _refuse_lines_above(content: bytes, data: Data, uri: str) -> None:
    """Refuses a file of which a later line names the columns: a title or remarks stand above."""
    for delimiter in [data.delimiter] if data.delimiter else DELIMITERS:
        start = io.StringIO(content[:HEADER_BYTES].decode(errors="ignore"), newline="")
        reader = csv.reader(itertools.islice(start, ABOVE), delimiter=delimiter)
        try:
            rows = [(reader.line_num, {name.strip() for name in names}) for names in reader]
        except csv.Error:
            continue
        for line, names in rows[1:]:
            if set(data.predicted) <= names and len(names) > 1:
                raise JobFailure(
                    FailureClass.DATA_INVALID,
                    f"{uri} names its columns in line {line}, below a title or remarks",
                    f"Remove what stands above line {line}",
                )


def _rows(content: bytes, head: Head, uri: str) -> pa.Table:
    if not _SOMETHING.search(content, head.start):
        return pa.table({name: pa.array([], pa.null()) for name in head.columns})  # which goes with any type
    try:
        table = _typed(pa.py_buffer(content).slice(head.start), b'"' in content, head, set())
    except pa.ArrowException as error:
        raise _unreadable(head, content, uri, str(error)) from error
    _refuse_open_quote(content, table, uri)
    return table


def _unreadable(head: Head, content: bytes, uri: str, problem: str) -> JobFailure:
    """What Arrow refuses; `content` is the file, if it was read whole."""
    if ragged := _RAGGED.search(problem):
        return _ragged(ragged, content, head.delimiter, uri)
    return _no_file("csv", uri, f"{problem} ({len(head.columns)} columns in the header, parted by {head.delimiter!r})")


def _typed(
    body: pa.Buffer,
    quotes: bool,  # noqa: FBT001  of the body
    head: Head,
    words: Collection[str],
    *,
    threads: bool = True,
) -> pa.Table:
    """Rows with the types that they show; a time stays as it is written, which is how a request has it."""
    parse = pyarrow.csv.ParseOptions(delimiter=head.delimiter, newlines_in_values=quotes)
    table = _parsed(body, parse, head.columns, words, threads=threads)
    if times := {typed.name for typed in table.schema if pa.types.is_temporal(typed.type)}:
        table = _parsed(body, parse, head.columns, times.union(words), threads=threads)
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
        "Double each quote within a value: a backslash before it is a character like any other"
        if '\\"' in shown
        else f"Correct the row (a value that holds {delimiter!r} stands in double quotes), or spec.data.delimiter, if that is another",
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
    tables = part.tables
    for folder in name.split("/")[:-1]:
        column, sign, written = (unquote(text) for text in folder.partition("="))
        if not (sign and column):
            continue
        if column in part.columns:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the folder of {uri} names the column {column!r}, which the file has, too",
                f"Write the files without {column!r}, or into folders of another name",
            )
        value = None if written == NO_PARTITION else written
        tables = [_with(table, column, value) for table in tables]
    return replace(part, tables=tables)


def _with(table: pa.Table, column: str, value: str | None) -> pa.Table:
    """A table with one more column of one value."""
    typed = pa.field(column, pa.string())
    chunks = (pa.repeat(pa.scalar(value, pa.string()), piece.num_rows) for piece in spool.pieces(table))
    return table.append_column(typed, spool.column(typed, chunks, large=spool.is_large(table)))


def _parsed(
    body: pa.Buffer,
    parse: pyarrow.csv.ParseOptions,
    columns: Sequence[str],
    words: Collection[str],
    *,
    threads: bool,
) -> pa.Table:
    """By blocks; if that fails as one block, which may hold a row of any length, and tells a bad row's number."""
    blocks = pyarrow.csv.ReadOptions(column_names=list(columns), block_size=BLOCK_BYTES, use_threads=threads)
    try:
        return pyarrow.csv.read_csv(pa.BufferReader(body), blocks, parse, _convert(words))
    except pa.ArrowException:
        whole = pyarrow.csv.ReadOptions(column_names=list(columns), block_size=body.size, use_threads=False)
        return pyarrow.csv.read_csv(pa.BufferReader(body), whole, parse, _convert(words))


def _convert(words: Collection[str]) -> pyarrow.csv.ConvertOptions:
    """How cells become values, with columns that are text in any case."""
    # Without words for true and false, such a column stays text, and `category` reads it as it reads a request's; Arrow
    # would take 0 for false in a column of 0 and True. Words for missing stay in text: None may be a class.
    return pyarrow.csv.ConvertOptions(
        null_values=sorted({*MISSING_WORDS, *map(str.upper, MISSING_WORDS), "NaN", "None", "NaT", "Null", "\\N"}),
        true_values=[],
        false_values=[],
        column_types=dict.fromkeys(words, pa.string()),
    )


def _refuse_twins(names: Sequence[str], uri: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        where = ", ".join(str(i) for i, name in enumerate(names, 1) if name == twice[0])
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} has the column {twice[0]!r} more than once (columns {where})",
            f"Rename or remove all but one of {', '.join(map(repr, twice[:SHOWN]))}",
        )


def _refuse_open_quote(content: bytes, table: pa.Table, uri: str, before: Before = Before()) -> None:  # noqa: B008  frozen
    """Arrow ends a quoted value where the file ends; `content` is its last part, with the rows of `table`."""
    if not table.num_rows or (before.quotes + stream.quotes(content)) % 2 == 0:
        return
    last = itertools.chain.from_iterable(column[-1:].to_pylist() for column in table.columns)
    if content.rstrip(b"\r\n").endswith(b'"') or any(isinstance(value, str) and "\n" in value for value in last):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{uri} ends within a quoted value, in row {before.rows + table.num_rows}",
            "Write the file again if its upload broke off; else close the quote, or double it within a value",
        )


def _no_file(file_format: str, uri: str, problem: str) -> JobFailure:
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"{uri} is no {file_format} file, or a damaged one: {' '.join(problem.split())}",
        "Correct the file, or spec.data.format"
        + (", spec.data.delimiter or spec.data.encoding" if file_format == "csv" else ""),
    )
