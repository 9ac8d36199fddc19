"""Reading JSONL: what a line's values become, files of any size, and what is refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mljobs import data, stream, tables
from mljobs.failure import JobFailure
from mlplatform.api import Data
from mlplatform.contract import FailureClass

URI = "s3://b/x.jsonl"


def asked(uri: str = "x", **more: str) -> Data:
    return Data(**{"uri": uri, "label": "grade", "format": "jsonl", **more})


def read(content: bytes) -> pa.Table:
    return tables.read(content, asked(), URI).tables[0]


def written(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


READ = [
    (written({"age": 1, "grade": "a"}, {"age": 2.5, "grade": "b"}), {"age": [1, 2.5], "grade": ["a", "b"]}, "numbers"),
    (written({"age": 1}, {"grade": "b"}, {}), {"age": [1, None, None], "grade": [None, "b", None]}, "keys that lack"),
    (b'{"age":1}\n\n  \n{"age":2}', {"age": [1, 2]}, "empty lines, and none at the end"),
    (b'{"age":1}\r\n{"age":2}\r\n', {"age": [1, 2]}, "line ends of Windows"),
    (b'\xef\xbb\xbf{"age":1}\n', {"age": [1]}, "a byte order mark"),
    ('{"city":"Orléans"}\n'.encode("latin-1"), {"city": ["Orléans"]}, "another encoding"),
    ('{"city":"Orléans"}\n'.encode("utf-16"), {"city": ["Orléans"]}, "UTF-16"),
    (b'{"city":"\\u00e9 \\"q\\" \\n {"}\n{"city":"a"}\n', {"city": ['é "q" \n {', "a"]}, "escapes"),
    (written({"day": "2024-05-01"}, {"day": "2024-05-02"}), {"day": ["2024-05-01", "2024-05-02"]}, "days are text"),
    (written({"at": "2024-05-01T12:00:00Z"}), {"at": ["2024-05-01T12:00:00Z"]}, "times are text"),
    (written({"well": True}, {"well": None}), {"well": [True, None]}, "true, false and null"),
    (written({"id": 2**70}), {"id": [float(2**70)]}, "a number over 64 bits"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "wanted", "reason"), READ, ids=[case[-1] for case in READ])
def test_a_value_is_what_json_says(content: bytes, wanted: dict[str, list[Any]], reason: str) -> None:
    assert read(content).to_pydict() == wanted, reason


REFUSED = [
    (b'[{"age":1},\n{"age":2}]\n', "is one JSON array and not an object a line", "one object a line", "an array"),
    (b'{"age":1}\n[1]\n', "has no object in row 2, but an array", "one object a line", "an array in a row"),
    (b'{"age":1}\n\n7\n', "has no object in row 2, but a number", "one object a line", "a number"),
    (b"age,grade\n1,a\n", "has no object in row 1 (Invalid value): 'age,grade'", "one object a line", "CSV"),
    (b'{"age":1}\n{"age":tru}\n', "has no object in row 2 (Invalid value): '{\"age\":tru}'", "one object", "no JSON"),
    (b'{"age":1}\n{"age":2,"gra', 'ends with row 2, which breaks off: \'{"age":2,"gra\'', "upload broke off", "half"),
    (b'{"age":1,"age":2}\n', "has the key 'age' twice in row 1", "once", "a key twice"),
    (
        b'{"age":1}\n{"age":"1"}\n',
        "the column 'age' has a number in the rows before and a string in row 2 of s3://b/x.jsonl",
        "one kind",
        "numbers and text",
    ),
    (
        b'{"well":true}\n{"well":1}\n',
        "'well' has a boolean in the rows before and a number in row 2",
        "one kind",
        "0, 1",
    ),
    (b"", "is empty", "Write the file again", "nothing"),
]


@pytest.mark.parametrize(("content", "words", "action", "reason"), REFUSED, ids=[case[-1] for case in REFUSED])
def test_what_is_no_object_a_line_is_refused_by_name(content: bytes, words: str, action: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        read(content)
    assert words in caught.value.failure.message, reason
    assert URI in caught.value.failure.message, reason
    assert action in caught.value.failure.next_action, reason
    assert caught.value.failure.reason is FailureClass.DATA_INVALID


ROWS = [
    {
        "age": i if i % 3 else i + 0.5,
        "day": f"2024-05-{i % 28 + 1:02}",
        "note": 'a "quote {',
        "grade": "ab"[i % 2],
        **({"rare": "x"} if i == 777 else {}),
    }
    for i in range(1000)
]  # fmt: skip


def test_a_long_file_has_the_rows_that_it_has_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("a.jsonl", written(*ROWS)), ("b.jsonl.gz", gzip.compress(written(*ROWS)))):
        (tmp_path / name).write_bytes(content)
        whole = data.load(asked(str(tmp_path / name)))
        monkeypatch.setattr(stream, "BLOCK_BYTES", 4096)
        parts = data.load(asked(str(tmp_path / name)))
        monkeypatch.undo()
        assert parts.table.select(whole.table.column_names).to_pydict() == whole.table.to_pydict()
        assert whole.table.to_pylist() == [{"rare": None, **row} for row in ROWS]
        assert parts.digest == whole.digest


def test_a_kind_that_changes_late_in_a_long_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(written(*ROWS, {"age": None}, {"age": "old"}))
    monkeypatch.setattr(stream, "BLOCK_BYTES", 4096)
    with pytest.raises(
        JobFailure, match=r"'age' has a number in the rows before and a string in row 1002 of \S+a.jsonl"
    ):
        data.load(asked(str(tmp_path)))


def test_a_long_file_that_is_not_utf8_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({**row, "note": "é" if i > 900 else "e"}, ensure_ascii=False) for i, row in enumerate(ROWS)]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("cp1252"))
    monkeypatch.setattr(stream, "BLOCK_BYTES", 4096)
    rows = data.load(asked(str(tmp_path)))
    assert rows.table.column("note").to_pylist() == ["é" if i > 900 else "e" for i in range(1000)]
    assert rows.read[0]["encoding"].rstrip("?") == "cp1252"


def test_files_of_a_folder_may_lack_what_others_have(tmp_path: Path) -> None:
    (tmp_path / "year=2023").mkdir()
    (tmp_path / "year=2024").mkdir()
    (tmp_path / "year=2023/a.jsonl").write_bytes(written({"age": 1, "grade": "a"}, {"age": 2}))
    (tmp_path / "year=2024/b.ndjson.gz").write_bytes(gzip.compress(written({"grade": "b", "city": "Lyon"})))
    (tmp_path / "notes.json").write_bytes(b"{}")
    rows = data.load(asked(str(tmp_path)))
    assert rows.table.to_pylist() == [
        {"age": 1, "grade": "a", "year": 2023, "city": None},
        {"age": 2, "grade": None, "year": 2023, "city": None},
        {"age": None, "grade": "b", "year": 2024, "city": "Lyon"},
    ]
    assert rows.ignored == {"notes.json": "it is no .jsonl file"}


def test_a_file_with_another_kind_than_those_before_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(written({"age": 1}))
    (tmp_path / "b.jsonl").write_bytes(written({"age": None}, {"age": "old"}))
    with pytest.raises(
        JobFailure, match=r"'age' is int64 in \S+a.jsonl but string in \S+b.jsonl, first 'old' in its row 2"
    ):
        data.load(asked(str(tmp_path)))
