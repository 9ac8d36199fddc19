"""Reading one file: encodings, packing, delimiters, headers, quotes, and what is refused by name."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mljobs import data, tables, text
from mljobs.failure import JobFailure
from mljobs.files import listing
from mljobs.store import Store
from mlplatform.api import Data
from mlplatform.contract import FailureClass


def asked(**more: str) -> Data:
    return Data(**{"uri": "x", "label": "grade", **more})


def read(content: bytes, **more: str) -> pa.Table:
    return tables.read(content, asked(**more), "s3://b/x.csv").tables[0]


RUSSIAN = "город,grade\n" + "Пермь,очень хорошо\nТверь,не очень\nНовосибирск,хорошо\n" * 20  # noqa: RUF001

ENCODINGS = [
    ("ville,grade\nOrléans,a\nSète,b\n", "latin-1", "cp1252", "French in Latin-1"),
    ("prix,grade\n5 €,a\n7 €,b\n", "cp1252", "cp1252", "what only Windows has"),
    ("größe,grade\n1,a\n2,b\n", "latin-1", "cp1252", "in a header"),
    (RUSSIAN, "cp1251", "cp1251", "Cyrillic of Windows"),
    (RUSSIAN, "koi8-r", "koi8_r", "Cyrillic of Unix"),
    ("ville,grade\nSète,a\n", "utf-16", "utf-16-le", "UTF-16 with its mark"),
    ("ville,grade\nSète,a\n", "utf-16-be", "utf-16-be", "UTF-16 without its mark"),
    ("町,印\n" + "名古屋の町は大きい,良い\n" * 40, "utf-16-le", "utf-16-le", "UTF-16 with few Latin letters"),
    ("ville,grade\nSète,a\n", "utf-8-sig", "utf-8", "UTF-8 with a mark, as Excel writes it"),
]


@pytest.mark.parametrize(("words", "encoding", "found", "reason"), ENCODINGS, ids=[case[-1] for case in ENCODINGS])
def test_an_encoding_is_told_by_the_bytes(words: str, encoding: str, found: str, reason: str) -> None:
    content = text.read(words.encode(encoding), "", "x.csv")
    assert content.content.decode() == words, reason
    assert content.encoding == found, reason


REFUSED_ENCODINGS = [
    ("miasto,grade\nŁomża,a\nŻary,b\n".encode("cp1250"), "", "cannot be told", "Polish: as Western it would be no words"),
    ("miasto,grade\nŁomża,a\nŻary,b\n".encode("iso8859-2"), "", "cannot be told", "Polish of Unix"),
    ("il,grade\nMuğla,a\nŞile,b\n".encode("cp1254"), "", "cannot be told", "Turkish"),
    ("ок,grade\nнет,a\n".encode("cp1251"), "", "cannot be told", "too little Cyrillic to be sure of"),  # noqa: RUF001
    ("πόλη,grade\nΠάτρα,καλά\nΒόλος,όχι\n".encode("cp1253"), "", "cannot be told", "Greek that could be Cyrillic"),  # noqa: RUF001
    ("町,grade\n名古屋,a\n札幌,b\n".encode("shift_jis"), "", "cannot be told", "a little Japanese"),
    ("ville,grade\nOrléans,a\n".encode("mac-roman"), "", "cannot be told", "an old Macintosh"),
    ("ville,grade\nOrléans,a\n".encode("cp437"), "", "cannot be told", "DOS"),
    (b"ville,grade\nN\x81mes,a\n", "", "line 2 would hold byte 0x81, which is no character there", "a byte that Western lacks"),
    ("ville,grade\nSète,a\nOrléans,b\n".encode() + b"N\xeemes,a\n", "", "byte 0xee in line 4", "one row of another encoding"),
    ("ville,grade\nSète,a\n".encode("latin-1"), "utf-8", "spec.data.encoding says utf-8", "said wrongly"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "said", "words", "reason"), REFUSED_ENCODINGS, ids=[c[-1] for c in REFUSED_ENCODINGS])  # fmt: skip
def test_bytes_that_are_no_certain_text_are_refused(content: bytes, said: str, words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        text.read(content, said, "s3://b/x.csv")
    assert words in caught.value.failure.message, reason
    assert "s3://b/x.csv" in caught.value.failure.message, reason
    assert caught.value.failure.reason is FailureClass.DATA_INVALID, reason
    assert "spec.data.encoding" in caught.value.failure.next_action, reason


@pytest.mark.parametrize("name", ["utf8x", "base64", "hex"])
def test_what_is_no_encoding_of_text_is_named(name: str) -> None:
    with pytest.raises(JobFailure, match="is no encoding of text") as caught:
        text.read(b"a,b\n", name, "x.csv")
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID


def test_a_zero_that_strayed_into_a_text_makes_it_no_other_encoding() -> None:
    content = b"age,grade\n1,a\0\n" + b"2,b\n" * 40
    assert text.read(content, "", "x.csv").encoding == "utf-8"
    assert read(b"PAR1,grade\n1,a\n").column_names == ["PAR1", "grade"], "nor does a name make another format"


def test_an_encoding_that_is_said_is_used() -> None:
    found = read("miasto,grade\nŁomża,a\n".encode("cp1250"), encoding="windows-1250")
    assert found.to_pydict() == {"miasto": ["Łomża"], "grade": ["a"]}


PLAIN = b"age,grade\n31,a\n32,b\n"


@pytest.mark.parametrize(
    "packed", [gzip.compress(PLAIN), pa.compress(PLAIN, codec="zstd", asbytes=True), bz2.compress(PLAIN)], ids=["gzip", "zstd", "bzip2"]
)  # fmt: skip
def test_packed_files_are_told_by_their_first_bytes(packed: bytes) -> None:
    assert read(packed).equals(read(PLAIN))
    with pytest.raises(JobFailure, match=r"cannot be unpacked as .* Truncated") as caught:
        read(packed[:-4])
    assert "upload broke off" in caught.value.failure.next_action


def test_a_folder_of_packed_files_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"age,grade\n1,a\n"))
    (tmp_path / "b.csv").write_bytes(b"age,grade\n2,b\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"age,grade\n2,b\n"))
    (tmp_path / "c.CSV.ZST").write_bytes(pa.compress(b"age,grade\n3,b\n", codec="zstd", asbytes=True))
    rows = data.load(Data(uri=str(tmp_path), label="grade"))
    assert rows.table.column("age").to_pylist() == [1, 2, 3], "the packed twin of b.csv would count its rows twice"
    assert rows.ignored == {"b.csv.gz": "b.csv is there unpacked"}


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "_temporary/0", "year=2024/_tmp", ".git"])
def test_files_in_hidden_folders_are_left_out_and_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "a.csv").write_bytes(PLAIN)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "a-copy.csv").write_bytes(PLAIN)
    (tmp_path / "notes.txt").write_text("")
    asked = Data(uri=str(tmp_path), label="grade")
    found = listing(Store(asked.uri), asked)
    assert found.names == ["a.csv"]
    assert set(found.ignored) == {f"{folder}/a-copy.csv", "notes.txt"}
    assert any(folder in line for line in data.load(asked).remarks()), "the training says it"


DELIMITED = [
    (b"age;city;grade\n20;Lyon;a\n", {}, ["age", "city", "grade"], "semicolons"),
    (b"age\tgrade\n20\ta\n", {}, ["age", "grade"], "tabs"),
    (b"age|grade\n20|a\n", {}, ["age", "grade"], "bars"),
    (b"age;pay;grade\n20;1,5;a\n21;2,5;b\n", {}, ["age", "pay", "grade"], "decimal commas beside semicolons"),
    (b"age;a,b;grade\n20;1;a\n", {}, ["age", "a,b", "grade"], "a comma in a name"),
    (b"age:grade\n20:a\n", {"delimiter": ":"}, ["age", "grade"], "one that is said"),
    (b'"age";"gr;ade"\n20;a\n', {"label": "gr;ade"}, ["age", "gr;ade"], "a quoted one is none"),
    (b"sep=;\r\nage;grade\r\n20;a\r\n", {}, ["age", "grade"], "Excel's own line above the header"),
    (b'"sep=:"\nage:grade\n20:a\n', {}, ["age", "grade"], "the same in quotes, with a sign that is not tried"),
    (b"age;city\n20;Lyon\n", {}, ["age", "city"], "the label is missing: the columns are shown all the same"),
]


@pytest.mark.parametrize(("content", "more", "names", "reason"), DELIMITED, ids=[case[-1] for case in DELIMITED])
def test_the_delimiter_is_the_one_that_makes_the_label_a_column(
    content: bytes, more: dict[str, str], names: list[str], reason: str
) -> None:
    assert read(content, **more).column_names == names, reason


def test_a_line_end_is_no_delimiter() -> None:
    with pytest.raises(JobFailure, match="end of a line"):
        read(PLAIN, delimiter="\n")


def test_quoted_line_breaks_are_text_in_a_file_of_any_size() -> None:
    rows = 20_000
    body = "".join(f'{i},"first line\n{i},second, {"y" * 60}",{"ab"[i % 2]}\n' for i in range(rows))
    content = f"age,note,grade\n{body}".encode()
    assert len(content) > tables.BLOCK_BYTES, "several of Arrow's blocks"
    table = read(content)
    assert table.column("age").to_pylist() == list(range(rows))
    assert table.column("note")[rows - 1].as_py().startswith("first line\n19999,second, ")


def test_a_row_longer_than_a_block_is_read() -> None:
    content = f"age,note,grade\n1,short,a\n2,{'x' * 3 * tables.BLOCK_BYTES},b\n".encode()
    assert [len(note.as_py()) for note in read(content).column("note")] == [5, 3 * tables.BLOCK_BYTES]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_headers_are_read_as_people_write_them(end: bytes) -> None:
    lines = [b"", b' age ,"pay, in\neuro", grade', b"20,5,a", b"", b"21,6,b", b""]
    assert read(end.join(lines)).to_pydict() == {"age": [20, 21], "pay, in\neuro": [5, 6], "grade": ["a", "b"]}


def test_nameless_columns_are_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",age,grade,\n0,20,a,\n1,21,b,\n")
    rows = data.load(Data(uri=str(tmp_path), label="grade"))
    assert rows.table.column_names == ["age", "grade"]
    assert rows.left_out == {"(column 1)": "it has no name", "(column 4)": "it has no name"}


PACKED = [
    (pa.array(["a", "b"]).dictionary_encode(), pa.string(), "categories of pandas"),
    (pa.array(["a", "b"], pa.string_view()), pa.string(), "texts of which a column has views"),
    (pa.array([1.5, 2.0], pa.float32()).cast(pa.float16()), pa.float32(), "half the precision"),
]


@pytest.mark.parametrize(("column", "kind", "reason"), PACKED, ids=[case[-1] for case in PACKED])
@pytest.mark.parametrize("rows", [1, 400_000], ids=["small", "large"])
def test_how_a_column_is_packed_says_nothing_of_its_values(
    tmp_path: Path, column: pa.Array, kind: pa.DataType, reason: str, rows: int
) -> None:
    noise = np.random.default_rng(1).random(2 * rows)
    table = pa.table({"c": pa.concat_arrays([column] * rows), "noise": noise, "grade": ["a", "b"] * rows})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = data.load(Data(uri=str(tmp_path), label="grade", format="parquet")).table
    assert found.schema.field("c").type == kind, reason
    assert found.column("c")[-2:].to_pylist() == column.to_pylist(), reason


def test_pandas_numbering_is_left_out_of_parquet_and_named(tmp_path: Path) -> None:
    table = pa.table({"age": [3, 1], "grade": ["a", "b"], "__index_level_0__": [17, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = data.load(Data(uri=str(tmp_path), label="grade", format="parquet"))
    assert rows.table.column_names == ["age", "grade"]
    assert rows.left_out == {"__index_level_0__": "pandas' numbering of the rows"}


REFUSED = [
    (b"age,age,grade\n1,1,a\n", "has the column 'age' more than once (columns 1, 2)", "a column twice"),
    (b"age, age ,grade\n1,1,a\n", "has the column 'age' more than once", "twice but for spaces"),
    (
        b"age,grade\n1,a\n2\n",
        "ends with row 2, which has 1 value where the header has 2 columns",
        "a row that breaks off",
    ),
    (
        b"age,grade\n1,a\n2,b,c\n",
        "row 2 has 3 values where the header has 2 columns, parted by ',': '2,b,c'",
        "a value too many",
    ),
    (b'age,note,grade\n1,x,a\n2,y,"b\n3,z,a\n', "ends within a quoted value, in row 2", "an upload that broke off"),
    (b"\n\n", "has no header line", "empty lines alone"),
    (b"# made on Monday\n# by us\nage,grade\n1,a\n", "names its columns in line 3, below a title", "remarks above it"),
    (b"Report;;\n;;\nage;pay;grade\n1;2;a\n", "names its columns in line 3, below a title", "a spreadsheet's title"),
    (b"age,grade\n1,a\n" + b"\0" * 9, "ends with row 2, which has 1 value", "what was kept free and never written"),
]


@pytest.mark.parametrize(("content", "words", "reason"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_a_file_that_would_be_misread_is_refused(content: bytes, words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        read(content)
    assert words in caught.value.failure.message, reason
    assert "s3://b/x.csv" in caught.value.failure.message, reason
    assert caught.value.failure.next_action, reason


def test_quotes_behind_backslashes_are_explained() -> None:
    with pytest.raises(JobFailure, match="row 1 has 3 values where the header has 2 columns") as caught:
        read(b'note,grade\n"she said \\"hi\\", twice",a\n')
    assert caught.value.failure.next_action.startswith("Double each quote within a value")


FOREIGN = [
    (b"PK\x03\x04\x14\0\6\0\x08\0", "a ZIP archive", "save the sheet as CSV", "an Excel workbook"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel workbook", "Save the sheet as CSV", "one of before 2007"),
    (b"PAR1\x15\x04\x15", "a Parquet file", "Set spec.data.format to parquet", "the other format"),
    (b"\xfd7zXZ\0\0\4", "packed with xz", "gzip, zstd and bzip2 are read", "packed in another way"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "a pointer of Git LFS", "git lfs pull",
     "a clone without the large files"),
    (b"\n <!DOCTYPE html>\n<html><body>403", "a web page", "may have been refused", "a login page in place of the file"),
    (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied', "an XML document", "a store's refusal",
     "what S3 says to whom it refuses"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "what", "advice", "reason"), FOREIGN, ids=[case[-1] for case in FOREIGN])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_what_is_no_file_of_rows_is_named(
    tmp_path: Path, content: bytes, what: str, advice: str, reason: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "a.csv").write_bytes(pack(content))
    with pytest.raises(JobFailure, match=f"a.csv is {what}") as caught:
        data.load(Data(uri=str(tmp_path), label="grade"))
    assert advice in caught.value.failure.next_action, reason


ENDINGS = [
    ("csv", ["a.tsv", "b.TAB.gz", "notes.txt"], ["a.tsv", "b.TAB.gz"], "", "values parted by tabs"),
    ("csv", ["a.csv", "a.tsv"], ["a.csv"], "", "only where there is no CSV"),
    ("jsonl", ["a.json", "b.json.zst"], ["a.json", "b.json.zst"], "", "as Spark and BigQuery call them"),
    ("jsonl", ["a.jsonl", "schema.json"], ["a.jsonl"], "", "what describes the rows is none of them"),
    ("csv", ["a.parquet"], [], "Set spec.data.format to parquet", "another format that is read"),
    ("parquet", ["a.csv"], [], "Set spec.data.format to csv", "likewise"),
    ("csv", ["a.xlsx"], [], "Save the sheet as CSV", "a workbook"),
    ("csv", ["a.csv.xz"], [], "Unpack it: of packed files gzip", "packed in another way"),
    ("csv", ["a.pkl"], [], "Write the rows as Parquet", "what only Python reads"),
    ("csv", ["_tmp/a.parquet"], [], "Correct spec.data.format or spec.data.uri", "a hidden file is no hint"),
]


@pytest.mark.parametrize(("kind", "names", "wanted", "advice", "reason"), ENDINGS, ids=[case[-1] for case in ENDINGS])
def test_endings_say_what_is_read_and_what_to_do(
    tmp_path: Path, kind: str, names: list[str], wanted: list[str], advice: str, reason: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    asked = Data(uri=str(tmp_path), label="grade", format=kind)
    if wanted:
        assert listing(Store(asked.uri), asked).names == wanted, reason
        return
    with pytest.raises(JobFailure) as caught:
        listing(Store(asked.uri), asked)
    assert caught.value.failure.next_action.startswith(advice), reason


def test_a_quote_within_a_value_is_text() -> None:
    assert read(b'size,grade\n5" pipe,a\n6 pipe,b\n').column("size").to_pylist() == ['5" pipe', "6 pipe"]


def test_the_file_that_has_other_columns_is_named(tmp_path: Path) -> None:
    for i in range(16):
        (tmp_path / f"part-{i:02}.csv").write_bytes(PLAIN)
    (tmp_path / "part-16.csv").write_bytes(b"33,a\n34,b\n")
    with pytest.raises(JobFailure, match=r"part-16.csv lacks age, grade and has 33, a instead") as caught:
        data.load(Data(uri=str(tmp_path), label="grade"))
    assert "header line" in caught.value.failure.next_action


def test_the_file_with_another_type_is_named(tmp_path: Path) -> None:
    for i in range(17):
        column = ["x", "y"] if i == 16 else [i, 2.5] if i % 2 else [1, None]
        table = pa.table({"age": column, "grade": ["a", "b"]})
        pyarrow.parquet.write_table(table, tmp_path / f"part-{i:02}.parquet")
    with pytest.raises(JobFailure, match=r"the column 'age' is double in \S+part-00.parquet but string in \S+part-16"):
        data.load(Data(uri=str(tmp_path), label="grade", format="parquet"))
