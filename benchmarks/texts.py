"""The task `text` against the obvious baseline: the tweets of the example, the same split, in one run; and adapters.

Called by `benchmarks.data` as the part ``texts``.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from pyarrow import csv
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import mlplatform
from benchmarks.table import markdown
from mljobs import data, lesson
from mljobs.tasks.text import TextTask, texts
from mlplatform import api
from mlplatform.contract import ENV_ROWS, Artifacts, Stage

EXAMPLE: Final = Path(__file__).parents[1] / "examples/tweets"
METRICS: Final = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")


def table(_before: str | None) -> str:
    """Test metrics and seconds of all; `contract.ENV_ROWS` may ask for a sample.

    Raises:
        RuntimeError: The pipeline failed.
    """
    model: dict[str, Any] = yaml.safe_load((EXAMPLE / "mlmodel.yaml").read_text())
    with tempfile.TemporaryDirectory(prefix="bench-texts-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, EXAMPLE / "data.py", "--to", str(folder / "tweets")], check=True)
        model["spec"]["data"]["uri"] = str(folder / "tweets")
        model["spec"]["gates"] = []
        ours = learned("encoder of 2 layers, 128 wide", model, folder / "store")
        spec = api.decode(api.MLModelSpec, model["spec"])
        theirs = baseline(spec)
        training = model["spec"]["training"]
        kept = {name: training["hyperparameters"][name] for name in ("column", "maxLength")}
        checkpoint = {**kept, "checkpoint": str(pretrained(model, folder / "checkpoint"))}
        from_it = []
        for words, more in ("all of a checkpoint", {}), ("adapters of rank 8 on it (LoRA)", {"lora": {"rank": 8}}):
            training["hyperparameters"] = {**checkpoint, **more}
            training["epochs"] = 1
            from_it.append(learned(words, model, folder / "store"))
    return markdown(["on the test rows", *METRICS, "seconds of training"], [theirs, ours, *from_it])


def learned(name: str, model: dict[str, Any], store: Path) -> list[object]:
    """A row of the table.

    Raises:
        RuntimeError: The pipeline failed.
    """
    rows = os.environ.get(ENV_ROWS)
    done = mlplatform.run(model, rows=int(rows) if rows else None, until=Stage.AUDIT, keep_going=True, store=store)
    if Stage.AUDIT not in done.stages:
        raise RuntimeError(done.failure)
    seconds = done.report(Stage.TRAIN)["durationSeconds"]
    return [name, *shown(done.stages[Stage.AUDIT].metrics), f"{seconds:.0f}"]


def pretrained(model: dict[str, Any], folder: Path) -> Path:
    """A checkpoint: the same encoder after one pass over the first half of the training rows, less its head.

    Raises:
        RuntimeError: The pipeline failed.
    """
    spec = api.decode(api.MLModelSpec, model["spec"])
    task, rows = TextTask(spec.training.hyperparameters), data.load(spec.data)
    _, parts = lesson.divided(task, rows, spec.data)
    half = data.take(rows.table, parts.train[: len(parts.train) // 2])
    folder.mkdir()
    csv.write_csv(half, folder / "half.csv")
    asked = copy.deepcopy(model)
    asked["spec"]["data"]["uri"] = str(folder / "half.csv")
    asked["spec"]["training"]["epochs"] = 1
    done = mlplatform.run(asked, until=Stage.TRAIN, keep_going=True, store=folder / "store")
    if Stage.TRAIN not in done.stages:
        raise RuntimeError(done.failure)
    (weights,) = (folder / "store").glob(f"**/{Artifacts.MODEL}")
    config = json.loads(weights.with_name(Path(Artifacts.PREPROCESSOR).name).read_text())
    encoder: Any = TextTask(spec.training.hyperparameters).build(config)
    encoder.load_state_dict(torch.load(weights, weights_only=True))
    encoder.encoder.base_model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(config["tokenizer"])
    return folder


def baseline(spec: api.MLModelSpec) -> list[object]:
    """Words and pairs of words, weighted by TF-IDF, and a logistic regression, on the training rows that the task has."""
    task, rows = TextTask(spec.training.hyperparameters), data.load(spec.data)
    targets, parts = lesson.divided(task, rows, spec.data)
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
