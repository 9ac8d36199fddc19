"""Data that is larger than the memory there is: every stage in a cgroup, and the speed beside what it is in memory.

Called by `benchmarks.data`. `MLPLATFORM_BENCH_GIB` says how much data (decoded), `MLPLATFORM_BENCH_MIB` how much memory, page
cache included, each stage has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks.table import markdown
from mljobs import data
from mlplatform import contract
from mlplatform.api import Data
from mlplatform.contract import Artifacts, Stage

REPOSITORY: Final = Path(__file__).parents[1]
CGROUP: Final = Path("/sys/fs/cgroup/memory")
"""Version 1's controller of memory, which root can divide by hand."""
NUMBERS: Final = 60
GROUP_ROWS: Final = 100_000
FILE_ROWS: Final = 1_000_000
ROW_BYTES: Final = 8 * NUMBERS + 3 * 8
CSV_ROWS: Final = (600_000, 2_400_000)
"""0.24 and 0.97 GB."""
ROUNDS: Final = 3


def write(folder: Path, gib: float) -> int:
    """Made-up rows as Parquet; returns their size as Arrow has them."""
    rng = np.random.default_rng(11)
    weights = rng.normal(size=NUMBERS)
    rows, size = int(gib * 2**30 / ROW_BYTES), 0
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        writer = None
        for first in range(start, min(start + FILE_ROWS, rows), GROUP_ROWS):
            table = made_up(rng, weights, min(GROUP_ROWS, rows - first))
            size += table.nbytes
            writer = writer or pyarrow.parquet.ParquetWriter(
                folder / f"part-{number:03}.parquet", table.schema, compression="zstd"
            )
            writer.write_table(table)
        if writer:
            writer.close()
    return size


def made_up(rng: np.random.Generator, weights: np.ndarray[Any, Any], rows: int) -> pa.Table:
    """Numbers, categories, a group and a label that follows from some of them."""
    numbers = rng.normal(size=(rows, len(weights))).round(3)
    group, kind = rng.choice(["a", "b", "c"], rows), rng.choice([f"kind {i}" for i in range(40)], rows)
    label = numbers @ weights + (kind == "kind 3") * 3 + rng.normal(size=rows) * 4 > 0
    columns = {f"x{i}": numbers[:, i] for i in range(len(weights))}
    return pa.table({**columns, "kind": kind, "group": group, "label": np.where(label, "yes", "no")})


def specification(uri: Path, memory: str) -> dict[str, Any]:
    """Of a model whose data is large and whose net is not."""
    return {
        "model": "larger",
        "sequence": 1,
        "data": {"uri": str(uri), "label": "label", "format": "parquet", "sensitiveAttributes": ["group"]},
        "training": {
            "strategy": "single",
            "precision": "fp32",
            "epochs": 1,
            "batchSize": 4096,
            "resources": {"memory": memory},
            "checkpoint": {"everySteps": 100_000, "keep": 1},
            "hyperparameters": {"hidden": [64], "bins": 16},
        },
        "gates": [{"metric": "roc_auc", "min": 0.6}],
        "fairness": {"metrics": {"demographic_parity_difference": 0.9}},
    }


@contextmanager
def limited(mib: int | None) -> Iterator[Callable[[], dict[str, float]] | None]:
    """Everything that this process starts meanwhile is in a cgroup of so much memory; gives what it used at most."""
    if mib is None:
        yield None
        return
    folder = CGROUP / f"bench-larger-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(mib << 20))

        def used() -> dict[str, float]:
            found = {"peak": int((folder / "memory.max_usage_in_bytes").read_text()) / 2**20}
            (folder / "memory.max_usage_in_bytes").write_text("0")
            return found

        yield used
    finally:
        folder.rmdir()


def stage(name: Stage, spec: Mapping[str, Any], artifacts: Path, *, confined: bool) -> dict[str, Any]:
    """Runs one; its seconds, its largest resident size and its report."""
    environment = {
        **os.environ,
        contract.ENV_SPEC: json.dumps(spec),
        contract.ENV_ARTIFACTS: str(artifacts),
        contract.ENV_NAMESPACE: "default",
        contract.ENV_MODEL: "larger",
        contract.ENV_VERSION: "larger-0123abcd",
        contract.ENV_STAGE: name.value,
        contract.ENV_TERMINATION_LOG: str(artifacts / "message"),
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("jobs", "operator", "handlers")),
    }
    artifacts.mkdir(parents=True, exist_ok=True)
    into = CGROUP / f"bench-larger-{os.getpid()}" / "cgroup.procs"
    enter = f"echo $$ > {into} && " if confined else ""
    started = time.monotonic()
    done = subprocess.run(
        ["sh", "-c", f"{enter}exec {sys.executable} -u -m mljobs.{name.value}"],
        env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - started
    if done.returncode:
        msg = f"{name.value} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        raise RuntimeError(msg)
    return {"seconds": seconds, "report": json.loads((artifacts / Artifacts.report(name)).read_text())}


def csv_speed(folder: Path, rows: int) -> tuple[float, float]:
    """Megabytes a second of `pyarrow.csv.read_csv` alone, and of the data as the jobs load it, in turns: the best of each."""
    rng = np.random.default_rng(2)
    path = folder / "rows.csv"
    with pyarrow.csv.CSVWriter(path, made_up(rng, np.ones(NUMBERS), 1).schema) as writer:
        for _ in range(rows // GROUP_ROWS):
            writer.write_table(made_up(rng, np.ones(NUMBERS), GROUP_ROWS))
    size = path.stat().st_size / 1e6
    times: dict[str, list[float]] = {"alone": [], "load": []}
    for _ in range(ROUNDS):
        for name, read in (
            ("alone", lambda: pyarrow.csv.read_csv(path)),
            ("load", lambda: data.load(Data(uri=str(path), label="label"))),
        ):
            started = time.monotonic()
            read()
            times[name].append(time.monotonic() - started)
    path.unlink()
    return size / min(times["alone"]), size / min(times["load"])


def told(*words: object) -> None:
    """What is known so far: the whole takes an hour."""
    print(*words, file=sys.stderr, flush=True)


def table(_before: str | None) -> str:
    """Measures; the tables."""
    gib, mib = (
        float(os.environ.get(f"MLPLATFORM_BENCH_{unit}", value)) for unit, value in (("GIB", 10), ("MIB", 1024))
    )
    with tempfile.TemporaryDirectory(prefix="larger-") as name:
        folder = Path(name)
        texts = [(count, *csv_speed(folder, count)) for count in CSV_ROWS]
        told("rows of CSV, MB a second of pyarrow alone, and as the jobs do", texts)
        rows = folder / "rows"
        rows.mkdir()
        size = write(rows, gib) / 2**30
        told("GiB written", size)
        lines = []
        spec = specification(rows, f"{mib:.0f}Mi")
        confined = os.access(CGROUP, os.W_OK)
        with limited(int(mib) if confined else None) as used:
            for each in (Stage.TRAIN, Stage.AUDIT, Stage.OPTIMIZE, Stage.PACKAGE):
                done = stage(each, spec, folder / "limited", confined=confined)
                lines.append((each.value, f"{done['seconds']:.0f}", f"{used()['peak']:.0f}" if used else "not limited"))
                told(*lines[-1])
                if each is Stage.TRAIN:
                    windowed = done["report"]["history"][0]["rows_per_second"]
                    told("rows a second", windowed)
        free = stage(Stage.TRAIN, specification(rows, "1Ti"), folder / "free", confined=False)
    in_memory = free["report"]["history"][0]["rows_per_second"]
    speeds = markdown(
        ("", "alone or in memory", "as the jobs do", "share"),
        [
            *(
                (
                    f"CSV of {count:,} rows, MB/s, beside `pyarrow.csv.read_csv`",
                    f"{alone:.0f}",
                    f"{load:.0f}",
                    f"{load / alone:.2f}",
                )
                for count, alone, load in texts
            ),
            ("training, rows/s", f"{in_memory:,.0f}", f"{windowed:,.0f}", f"{windowed / in_memory:.2f}"),
        ],
    )
    stages = markdown(("stage", "seconds", "peak MiB, page cache included"), lines)
    return f"{size:.1f} GiB of decoded rows, {mib:.0f} MiB for each stage:\n\n{stages}\n\n{speeds}"
