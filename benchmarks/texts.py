"""The task `text` against the obvious baseline: the tweets of the example, the same split, in one run.

Called by `benchmarks.data` as the part ``texts``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import mlplatform
from benchmarks.table import markdown
from mljobs import data, train
from mljobs.tasks.text import TextTask, texts
from mlplatform import api
from mlplatform.contract import ENV_ROWS, Stage

EXAMPLE: Final = Path(__file__).parents[1] / "examples/tweets"
METRICS: Final = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")


def table(_before: str | None) -> str:
    """Test metrics and seconds of both; `contract.ENV_ROWS` may ask for a sample.

    Raises:
        RuntimeError: The pipeline failed.
    """
    model: dict[str, Any] = yaml.safe_load((EXAMPLE / "mlmodel.yaml").read_text())
    del model["spec"]["training"]["image"]
    rows = os.environ.get(ENV_ROWS)
    with tempfile.TemporaryDirectory(prefix="bench-texts-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, EXAMPLE / "data.py", "--to", str(folder / "tweets")], check=True)
        model["spec"]["data"]["uri"] = str(folder / "tweets")
        model["spec"]["gates"] = []
        done = mlplatform.run(
            model, rows=int(rows) if rows else None, until=Stage.AUDIT, keep_going=True, store=folder / "store"
        )
        if Stage.AUDIT not in done.stages:
            raise RuntimeError(done.failure)
        seconds = done.report(Stage.TRAIN)["durationSeconds"]
        ours = ["encoder of 2 layers, 128 wide", *shown(done.stages[Stage.AUDIT].metrics), f"{seconds:.0f}"]
        spec = api.decode(api.MLModelSpec, model["spec"])
        theirs = baseline(spec)
    return markdown(["on the test rows", *METRICS, "seconds of training"], [theirs, ours])


def baseline(spec: api.MLModelSpec) -> list[object]:
    """Words and pairs of words, weighted by TF-IDF, and a logistic regression, on the training rows that the task has."""
    task, rows = TextTask(spec.training.hyperparameters), data.load(spec.data)
    targets, parts = train.divided(task, rows, spec.data)
    written = texts(rows.table, spec.training.hyperparameters["column"])
    started = time.monotonic()
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(max_iter=1000)
    model.fit(vectors.fit_transform([written[row] for row in parts.train]), targets.values[parts.train])
    seconds = time.monotonic() - started
    scores = model.predict_proba(vectors.transform([written[row] for row in parts.test]))
    found = task.objective({"label": targets.label}).evaluate(targets.values[parts.test], scores)
    return ["TF-IDF + logistic regression", *shown(found), f"{seconds:.0f}"]


def shown(metrics: Any) -> list[str]:
    """In the table's order."""
    return [f"{metrics[name]:.3f}" for name in METRICS]
