"""Whether one candidate ships whatever else the machine does; `make bench-optimize` prints it.

Trains the example once and runs the stage `optimize` on that artifact again and again, on one CPU as in its pod: with
the other CPU idle, with a busy loop there, and with the busy loop on its own. Ends with 1 if the choice ever differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.table import markdown, publish
from mlplatform import contract
from mlplatform.api import VERSIONED
from mlplatform.contract import Artifacts, Stage

EXAMPLE = Path(__file__).parents[1] / "examples/adult-income"
RUNS = 20


def specification(data: Path) -> dict[str, Any]:
    """A version of the example, read from `data`.

    Without ONNX files: those are made after the choice, and take longer than all that leads to it.
    """
    model = yaml.safe_load((EXAMPLE / "mlmodel.yaml").read_text(encoding="utf-8"))
    spec = {name: model["spec"][name] for name in VERSIONED}
    spec["data"]["uri"] = str(data)
    spec["optimization"]["export"] = ["torchscript"]
    return {"model": model["metadata"]["name"], "sequence": 1, **spec}


def run(stage: Stage, folder: Path, spec: Mapping[str, Any], cpus: set[int]) -> float:
    """Runs a stage in a process of its own on these CPUs; returns its seconds."""
    environment = {
        contract.ENV_SPEC: json.dumps(spec),
        contract.ENV_ARTIFACTS: str(folder / "artifacts"),
        contract.ENV_MODEL: spec["model"],
        contract.ENV_VERSION: f"{spec['model']}-bench",
        contract.ENV_TERMINATION_LOG: str(folder / "message"),
    }
    started = time.monotonic()
    pinned(["-m", f"mljobs.{stage}"], cpus, environment).wait()
    if failure := contract.Summary.from_json((folder / "message").read_text()).failure:
        sys.exit(f"{stage} failed: {failure.message}")
    return time.monotonic() - started


def pinned(arguments: Sequence[str], cpus: set[int], more: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Python on these CPUs only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        return subprocess.Popen([sys.executable, *arguments], env={**os.environ, **more}, stdout=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def busy(cpus: set[int]) -> Iterator[None]:
    """A loop that never rests on each of these CPUs."""
    loops = [pinned(["-c", "while True: pass"], {cpu}, {}) for cpu in cpus]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measured(where: str, loops: set[int], own: set[int], folder: Path, runs: int) -> tuple[list[object], Counter[str]]:
    """A row of the table, and how often each candidate was chosen."""
    spec = specification(folder / "adult.csv")
    chosen: Counter[str] = Counter()
    seconds, pairs = [], []
    with busy(loops):
        for _ in range(runs):
            seconds.append(run(Stage.OPTIMIZE, folder, spec, own))
            report = json.loads((folder / "artifacts" / Artifacts.report(Stage.OPTIMIZE)).read_text())
            chosen[report["selected"]] += 1
            pairs.append(report["comparisons"][0])
    ratios, widths = [pair["ratio"] for pair in pairs], [pair["high"] / pair["low"] for pair in pairs]
    ships = ", ".join(f"{name} {count}" for name, count in chosen.items())
    pair = f"{pairs[0]['name']} / {pairs[0]['beside']}"
    ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [where, ships, pair, ratio, f"{median(widths):.2f}", f"{median(seconds):.1f}"], chosen


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
        run(Stage.TRAIN, folder, specification(folder / "adult.csv"), {*own, *other})
        for where, loops in (("nothing", set[int]()), ("a loop on the other CPU", other), ("a loop on its CPU", own)):
            row, counted = measured(where, loops, own, folder, runs)
            rows.append(row)
            chosen += counted
    head = ["beside it", "ships", "p99 of", "ratio, median of the runs", "interval, high / low", "seconds a run"]
    body = markdown(head, rows)
    print(body)
    publish("optimize", "make bench-optimize", body)
    return int(len(chosen) > 1)


if __name__ == "__main__":
    sys.exit(main())
