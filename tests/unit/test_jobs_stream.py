"""Data that is larger than memory: read block by block it is what it would be if it were read whole."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from mljobs import data, feed, spool, stream
from mljobs.automatic import Settled
from mljobs.failure import JobFailure
from mljobs.features import Choice
from mljobs.feed import Examples, Feed
from mljobs.tasks.tabular import TabularTask
from mljobs.trainer import Plan
from mlplatform.api import Data, TrainingResources

BLOCK = 1000
ROWS = 300


def csv(*columns: Callable[[int], object], names: str = "n,grade", rows: int = ROWS) -> bytes:
    lines = [names, *(",".join(str(column(i)) for column in columns) for i in range(rows))]
    return ("\n".join(lines) + "\n").encode()


def grade(i: int) -> str:
    return "ab"[i % 2]


def quoted(i: int) -> str:
    return f'"first {i}\nsecond, ""line"""'


LONG = {
    "numbers and words": csv(lambda i: i, grade),
    "a fraction that comes late": csv(lambda i: 0.5 if i == 280 else i, grade),
    "a word that comes late": csv(lambda i: "many" if i == 280 else i, grade),
    "values that come late": csv(lambda i: i if i > 280 else "", grade),
    "words after nothing but words for missing": csv(lambda i: "much" if i > 280 else "NA", grade),
    "numbers after words": csv(lambda i: "few" if i < 9 else f"{i}.50", grade),
    "two columns that turn out to be words": csv(
        lambda i: "x" if i == 200 else i, lambda i: "y" if i == 290 else i, grade, names="n,m,grade"
    ),
    "thousands": csv(lambda i: f'"{i},000"', grade),
    "times": csv(lambda i: f"2024-01-01 00:{i % 60:02}", grade),
    "line breaks in quotes": csv(quoted, lambda i: i, grade, names="text,n,grade"),
    "an inch in front of line breaks in quotes": csv(
        lambda i: '5" pipe' if i == 3 else quoted(i) if i < 299 else "end", lambda i: i, grade, names="text,n,grade"
    ),
    "letters of two bytes": csv(lambda i: "é" * (i % 7), grade),
    "Western letters": csv(lambda i: f"Sète {i}", grade).decode().encode("cp1252"),
    "UTF-16": csv(lambda i: f"Sète {i}", grade).decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + csv(lambda i: i, grade),
    "other line ends": csv(lambda i: i, grade).replace(b"\n", b"\r\n"),
    "the oldest line ends": csv(lambda i: i, grade).replace(b"\n", b"\r"),
    "semicolons": csv(lambda i: i, grade).replace(b",", b";"),
    "an index without a name": csv(lambda i: i, lambda i: i * 2, grade, names=",n,grade"),
    "a row longer than a block": csv(lambda i: "x" * 3 * BLOCK if i == 99 else "y", grade),
    "no line end at the end": csv(lambda i: i, grade).rstrip(),
    "empty lines": csv(lambda i: i, grade) + b"\n" * 2 * BLOCK,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(spool, "HELD_BYTES", BLOCK)
    monkeypatch.setattr(spool, "BATCH_ROWS", 64)


@pytest.mark.parametrize("reason", LONG)
def test_a_long_file_is_read_as_a_short_one_is(tmp_path: Path, request: pytest.FixtureRequest, reason: str) -> None:
    (tmp_path / "a.csv").write_bytes(LONG[reason])
    asked = Data(uri=str(tmp_path), label="grade")
    whole = data.load(asked)
    request.getfixturevalue("small")
    found = data.load(asked)
    assert found.table.equals(whole.table), f"{reason}: {found.table.schema} {whole.table.schema}"
    assert found.table.schema.equals(whole.table.schema, check_metadata=True), reason
    assert (found.digest, found.read, found.left_out, found.columns) == (
        whole.digest,
        whole.read,
        whole.left_out,
        whole.columns,
    ), reason
    assert found.digest == f"sha256:{hashlib.sha256(LONG[reason]).hexdigest()}", reason


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lambda content: pa.compress(content, "zstd", asbytes=True)]
)
@pytest.mark.usefixtures("small")
def test_a_packed_file_stays_a_stream(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(LONG["numbers and words"])
    (tmp_path / "a.csv.gz").write_bytes(packed)
    rows = data.load(Data(uri=str(tmp_path), label="grade"))
    assert rows.table.column("n").to_pylist() == list(range(ROWS))
    assert rows.digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"


@pytest.mark.usefixtures("small")
def test_a_packed_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(LONG["line breaks in quotes"])[:-200])
    with pytest.raises(JobFailure, match=r"a.csv.gz cannot be unpacked as gzip"):
        data.load(Data(uri=str(tmp_path), label="grade"))


WRONG = [
    (LONG["numbers and words"] + b"1,2,3\n", "row 301 has 3 values where the header has 2", "a row of another length"),
    (LONG["line breaks in quotes"] + b'x,1,"a\n', "ends within a quoted value", "an upload that broke off"),
    (LONG["an inch in front of line breaks in quotes"] + b'5" pipe,"1\n",a\nx,1,"a\n', "ends within", "behind an inch"),
    (LONG["numbers and words"] + "Żary\n".encode("cp1250"), "encoding", "an encoding that cannot be told"),
    (b"n,n,grade\n" + LONG["numbers and words"], "more than once", "a column twice"),
]


@pytest.mark.parametrize(("content", "words", "reason"), WRONG, ids=[case[-1] for case in WRONG])
@pytest.mark.usefixtures("small")
def test_a_long_file_that_would_be_misread_is_refused(tmp_path: Path, content: bytes, words: str, reason: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(JobFailure) as caught:
        data.load(Data(uri=str(tmp_path), label="grade"))
    assert words in caught.value.failure.message, reason
    assert "a.csv" in caught.value.failure.message, reason


def test_long_parquet_is_read_as_short_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "x": rng.random(500),
            "kind": pa.array(rng.choice(["a", "b"], 500)).dictionary_encode(),
            "__index_level_0__": range(500),
            "grade": rng.choice(["y", "n"], 500),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=70)
    asked = Data(uri=str(tmp_path), label="grade", format="parquet")
    whole = data.load(asked)
    request.getfixturevalue("small")
    found = data.load(asked)
    assert found.table.equals(whole.table)
    assert (found.digest, found.left_out) == (whole.digest, whole.left_out)


@pytest.mark.usefixtures("small")
def test_many_small_files_become_few_on_disk(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02}.csv").write_bytes(csv(lambda j, i=i: i * 20 + j + (0.5 if i == 30 else 0), grade, rows=20))
    rows = data.load(Data(uri=str(tmp_path), label="grade"))
    assert rows.table.column("n").to_pylist() == [i + (0.5 if i // 20 == 30 else 0) for i in range(800)]
    assert rows.place(799).endswith("row 20 of " + str(tmp_path / "39.csv"))


@pytest.mark.usefixtures("small")
def test_rows_of_a_large_table_are_taken_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(LONG["line breaks in quotes"])
    table = data.load(Data(uri=str(tmp_path), label="grade")).table
    wanted = np.sort(np.random.default_rng(0).permutation(ROWS)[:100])
    assert data.take(table, wanted).column("n").to_pylist() == wanted.tolist()


def test_large_data_is_encoded_as_small_data_is(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    words = np.random.default_rng(5).choice(["a", "b", "1.10", "", "none"], ROWS)
    (tmp_path / "a.csv").write_bytes(csv(lambda i: i % 9 / 7, lambda i: words[i], grade, names="x,w,grade"))
    asked, task = Data(uri=str(tmp_path), label="grade"), TabularTask({})

    def learned() -> tuple[dict[str, object], list[torch.Tensor]]:
        rows = data.load(asked)
        targets = task.targets(rows.table, asked)
        parts = data.split(targets.strata, asked.split)
        config = task.fit(rows.table, targets, parts.train)
        return config, [part for rows_ in parts for part in feed.encode(task, config, rows.table, rows_, held=BLOCK)]

    config, tensors = learned()
    request.getfixturevalue("small")
    again, mapped = learned()
    assert again == config
    assert all(
        torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)) for one, other in zip(tensors, mapped, strict=True)
    )


def fed(rows: int, memory: str, rank: int = 0, world: int = 2, batch: int = 24) -> tuple[Plan, Feed]:
    training = Settled(
        batch_size=batch, gradient_accumulation_steps=2, epochs=3, resources=TrainingResources(memory=memory)
    )
    numbers = torch.arange(rows)
    plan = Plan(rows, training, world)
    return plan, Feed(Examples((numbers[:, None].float(),), numbers), plan, training, rank, torch.device("cpu"))


def steps(feed_: Feed, which: range) -> list[list[int]]:
    return [[int(row) for part in feed_.micro_batches(step) for row in part.targets] for step in which]


def test_data_that_fits_is_learned_from_in_the_order_of_before() -> None:
    plan, whole = fed(1003, "1Gi")
    wanted = [
        plan.share(batch, 0).ravel().tolist() for epoch in range(3) for batch in plan.order(Settled().seed, epoch)
    ]
    assert steps(whole, range(plan.steps)) == wanted


@pytest.mark.parametrize("rows", [1003, 1000, 997, 300])
def test_larger_data_is_learned_from_window_by_window(rows: int) -> None:
    plan, first = fed(rows, "8Ki")  # a KiB for rows: 128 of them in a window
    _, second = fed(rows, "8Ki", rank=1)
    assert first.window_steps == 128 // plan.batch
    both = [one + other for one, other in zip(*(steps(f, range(plan.steps)) for f in (first, second)), strict=True)]
    each = plan.steps_per_epoch
    epochs = [list(itertools.chain.from_iterable(both[i : i + each])) for i in range(0, plan.steps, each)]
    assert all(len(set(epoch)) == each * plan.batch for epoch in epochs), "no row twice in an epoch"
    assert epochs[0] != epochs[1]
    assert sum(abs(a - b) == 1 for a, b in zip(epochs[0], epochs[0][1:], strict=False)) < rows / 4, "they are mixed"
    _, resumed = fed(rows, "8Ki")
    middle = plan.steps_per_epoch + plan.steps_per_epoch // 2
    assert steps(resumed, range(middle, plan.steps)) == steps(first, range(middle, plan.steps)), (
        "a training that goes on in the middle of an epoch learns from the rows that were next"
    )


def judged(folder: Path, monkeypatch: pytest.MonkeyPatch, held: int, copied: int) -> Choice:
    """What is chosen of 3,000 rows, of which the last ones copy the first."""
    rng = np.random.default_rng(8)
    x, words = rng.normal(size=3000), rng.choice(["a", "b", "c"], 3000)
    y = (x + rng.normal(size=3000) > 0).astype(int)
    rows = [*range(3000 - copied), *range(copied)]
    z = rng.normal(size=3000)
    lines = [f"{i},{rng.integers(10**6)},{x[j]},{x[j]},{z[j]},{words[j]},{y[j]}" for i, j in enumerate(rows)]
    (folder / "a.csv").write_text("\n".join(["index,other,x,same,z,w,grade", *lines]))
    monkeypatch.setattr(spool, "HELD_BYTES", held)
    asked, task = Data(uri=str(folder), label="grade", columns={"other": "ignore"}), TabularTask({})
    found = data.load(asked)
    targets = task.targets(found.table, asked)
    return task.choose(found, targets, data.split(targets.strata, asked.split), asked)


def test_a_large_table_is_judged_by_some_rows_as_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judged(tmp_path, monkeypatch, 1 << 30, copied=0)
    assert judged(tmp_path, monkeypatch, 30_000, copied=0).left_out == whole.left_out
    assert whole.left_out.keys() == {"index", "other", "same"}


def test_copies_in_a_large_table_are_found_among_rows_of_some_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for held in 1 << 30, 30_000:
        with pytest.raises(JobFailure, match="are among the training rows, too") as caught:
            judged(tmp_path, monkeypatch, held, copied=900)
        assert "row 2" in caught.value.failure.message, "with the places of a pair"
