"""Whether one candidate ships whatever else the machine does; `make bench-optimize` prints it.

Trains and audits the example once by `mlplatform.run` and goes on from there to the stage `optimize` again and again,
on one CPU as in its pod: with the other CPU idle, with a busy loop there, and with the busy loop on its own. Ends with
1 if the choice ever differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import mlplatform
from benchmarks.table import markdown, publish
from mlplatform.contract import Stage
from mlplatform.standalone.result import Result

EXAMPLE = Path(__file__).parents[1] / "examples/adult-income"
RUNS = 20
WHOLE_RUNS = 5


CHOICE: Final = {"optimization.export": ["torchscript"]}
"""Without ONNX files: they decide nothing."""


def run(folder: Path, until: Stage, changed: Mapping[str, Any]) -> Result:
    """The example in the store `folder`/store, up to a stage."""
    done = mlplatform.run(
        EXAMPLE / "mlmodel.yaml", data=folder / "adult.csv", set=changed, until=until, store=folder / "store"
    )
    if not done.passed:
        sys.exit(f"error: {done.failure.message if done.failure else done.missed}")
    return done


def optimized(folder: Path, changed: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is left to do after the audit, from the store as the audit left it; the report."""
    shutil.rmtree(folder / "store")
    shutil.copytree(folder / "audited", folder / "store")
    return run(folder, Stage.OPTIMIZE, changed).report(Stage.OPTIMIZE)


@contextmanager
def on(cpus: set[int]) -> Iterator[None]:
    """What this thread starts runs on these CPUs only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def busy(cpus: set[int]) -> Iterator[None]:
    """A loop that never rests on each of these CPUs."""
    loops = []
    for cpu in cpus:
        with on({cpu}):
            loops.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measured(where: str, loops: set[int], own: set[int], folder: Path, runs: int) -> tuple[list[object], Counter[str]]:
    """A row of the table, and how often each candidate was chosen."""
    with busy(loops), on(own):
        reports = [optimized(folder, CHOICE) for _ in range(runs)]
    chosen = Counter(str(report["selected"]) for report in reports)
    pairs = [report["comparisons"][0] for report in reports]
    ratios, widths = [pair["ratio"] for pair in pairs], [pair["high"] / pair["low"] for pair in pairs]
    ships = ", ".join(f"{name} {count}" for name, count in chosen.items())
    pair = f"{pairs[0]['name']} / {pairs[0]['beside']}"
    ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    seconds = median(report["durationSeconds"] for report in reports)
    return [where, ships, pair, ratio, f"{median(widths):.2f}", f"{seconds:.1f}"], chosen


def main() -> int:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="of the stage in each row (default: %(default)s)")
    runs = parser.parse_args().runs
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:  # noqa: PLR2004  its own and another
        sys.exit("this takes two CPUs")
    own, other = {cpus[0]}, {cpus[1]}
    rows, chosen = [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="bench-optimize-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, EXAMPLE / "data.py", "--to", str(folder / "adult.csv")], check=True)
        for changed in ({}, CHOICE):  # two versions, or one
            run(folder, Stage.AUDIT, changed)
        shutil.copytree(folder / "store", folder / "audited")
        whole = median(optimized(folder, {})["durationSeconds"] for _ in range(WHOLE_RUNS))
        for where, loops in (("nothing", set[int]()), ("a loop on the other CPU", other), ("a loop on its CPU", own)):
            row, counted = measured(where, loops, own, folder, runs)
            rows.append(row)
            chosen += counted
    head = ["beside it", "ships", "p99 of", "ratio, median of the runs", "interval, high / low", "seconds a run"]
    body = f"{markdown(head, rows)}\n\nThe stage as the example asks for it, on all {len(cpus)} CPUs with nothing beside it: {whole:.1f} s."
    print(body)
    publish("optimize", "make bench-optimize", body)
    return int(len(chosen) > 1)


if __name__ == "__main__":
    sys.exit(main())
