"""The task `causal-lm` against counts of tokens: the verses of the example, the same tokens and split, in one run.

Called by `benchmarks.data` as the part ``lm``.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

import mlplatform
from benchmarks.table import markdown
from mljobs import data, lesson
from mljobs.tasks.causal_lm import CausalLmTask
from mlplatform import api
from mlplatform.contract import ENV_ROWS, Stage

EXAMPLE: Final = Path(__file__).parents[1] / "examples/verses"
ORDERS: Final = (1, 2, 3, 4)
DISCOUNT: Final = 0.75

Tokens = tuple[int, ...]


def table(_before: str | None) -> str:
    """Test metrics and seconds of all; `contract.ENV_ROWS` may ask for a sample.

    Raises:
        RuntimeError: The pipeline failed.
    """
    model: dict[str, Any] = yaml.safe_load((EXAMPLE / "mlmodel.yaml").read_text())
    rows = os.environ.get(ENV_ROWS)
    with tempfile.TemporaryDirectory(prefix="bench-lm-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, EXAMPLE / "data.py", "--to", str(folder / "verses")], check=True)
        model["spec"]["data"]["uri"] = str(folder / "verses")
        model["spec"]["gates"] = []
        done = mlplatform.run(
            model, rows=int(rows) if rows else None, until=Stage.AUDIT, keep_going=True, store=folder / "store"
        )
        if Stage.AUDIT not in done.stages:
            raise RuntimeError(done.failure)
        metrics = done.stages[Stage.AUDIT].metrics
        seconds = done.report(Stage.TRAIN)["durationSeconds"]
        theirs = list(baselines(api.decode(api.MLModelSpec, model["spec"])))
    ours = ["GPT of 2 layers, 128 wide", *shown(metrics["bits_per_byte"], metrics["perplexity"]), f"{seconds:.0f}"]
    return markdown(["on the test rows", "bits per byte", "perplexity", "seconds of training"], [*theirs, ours])


def baselines(spec: api.MLModelSpec) -> Iterator[list[str]]:
    """Counts of so many tokens in a row, on the training rows that the task has."""
    task, rows = CausalLmTask(spec.training.hyperparameters), data.load(spec.data)
    targets, parts = lesson.divided(task, rows, spec.data)
    config = task.fit(rows.table, targets, parts.train)
    (tokens,) = task.inputs(config, rows.table)
    start = config["start"]
    written = [(start, *(token for token in row if token != start)) for row in tokens.tolist()]
    sizes = np.array(config["sizes"])
    test = [written[row] for row in parts.test]
    size = sum(int(sizes[list(row[1:])].sum()) for row in test)
    for order in ORDERS:
        started = time.monotonic()
        counts = KneserNey([written[row] for row in parts.train], order, len(sizes))
        seconds = time.monotonic() - started
        losses = [-math.log(counts.probability(row[:i], row[i])) for row in test for i in range(1, len(row))]
        name = "tokens alone" if order == 1 else f"{order} tokens in a row, Kneser-Ney"
        yield [
            name,
            *shown(sum(losses) / math.log(2) / size, math.exp(sum(losses) / len(losses))),
            f"{seconds:.0f}",
        ]


class KneserNey:
    """Interpolated counts of tokens in a row (Chen & Goodman 1999, section 2.7), with one discount.

    Args:
        texts: Their tokens, which one begins that is in no other place.
        order: Tokens in a row at most.
        vocabulary: How many there are.
    """

    def __init__(self, texts: Sequence[Tokens], order: int, vocabulary: int) -> None:
        self._order, self._vocabulary = order, vocabulary
        counts: Counter[Tokens] = Counter()
        for text in texts:
            for end in range(2, len(text) + 1):
                counts.update({text[max(0, end - order) : end]: 1})
        for length in range(order, 1, -1):  # Shorter ones count by how many different tokens stand before them.
            counts.update([row[1:] for row in list(counts) if len(row) == length])
        self._counts = counts
        self._totals: Counter[Tokens] = Counter()
        self._kinds: Counter[Tokens] = Counter()
        for row, count in counts.items():
            self._totals[row[:-1]] += count
            self._kinds[row[:-1]] += 1

    def probability(self, before: Tokens, token: int) -> float:
        """Of a token after these."""
        found = 1 / self._vocabulary
        for length in range(min(self._order - 1, len(before)) + 1):
            seen = before[len(before) - length :]
            if total := self._totals[seen]:
                rest = DISCOUNT * self._kinds[seen]
                found = (max(self._counts[(*seen, token)] - DISCOUNT, 0) + rest * found) / total
        return found


def shown(bits: float, perplexity: float) -> list[str]:
    """In the table's order."""
    return [f"{bits:.3f}", f"{perplexity:.1f}"]
