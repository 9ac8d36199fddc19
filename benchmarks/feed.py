"""The task `ranking` against the obvious baselines: the films of the example, the same split, in one run.

Called by `benchmarks.data` as the part ``feed``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import TargetEncoder

import mlplatform
from benchmarks.table import markdown
from mljobs import data, lesson
from mljobs.tasks.ranking import RankingTask
from mlplatform import api
from mlplatform.contract import Stage

EXAMPLE: Final = Path(__file__).parents[1] / "examples/feed"
METRICS: Final = ("ndcg_at_10", "roc_auc")
FACTORS: Final = (4, 8, 16, 32)
SEED: Final = 7

Floats = npt.NDArray[np.float64]


class Known(NamedTuple):
    """The rows, and what is to be scored.

    Attributes:
        frame: All of them.
        flags: Of the labels, ``(rows, labels)``.
        parts: The split.
    """

    frame: pd.DataFrame
    flags: npt.NDArray[np.bool_]
    parts: data.Parts


def table(_before: str | None) -> str:
    """Test metrics and seconds of all.

    Raises:
        RuntimeError: The pipeline failed.
    """
    model: dict[str, Any] = yaml.safe_load((EXAMPLE / "mlmodel.yaml").read_text())
    with tempfile.TemporaryDirectory(prefix="bench-feed-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, EXAMPLE / "data.py", "--to", str(folder / "feed")], check=True)
        model["spec"]["data"]["uri"] = str(folder / "feed")
        model["spec"]["gates"] = []
        spec = api.decode(api.MLModelSpec, model["spec"])
        rows = baselines(spec)
        done = mlplatform.run(model, until=Stage.AUDIT, keep_going=True, store=folder / "store")
        if Stage.AUDIT not in done.stages:
            raise RuntimeError(done.failure)
        found, seconds = done.stages[Stage.AUDIT].metrics, done.report(Stage.TRAIN)["durationSeconds"]
    rows.append(["the example's model (DLRM)", *shown(found), f"{seconds:.0f}"])
    return markdown(["on the test rows", *METRICS, "seconds of training"], rows)


def baselines(spec: api.MLModelSpec) -> list[list[object]]:
    """A line for each."""
    task, rows = RankingTask(spec.training.hyperparameters), data.load(spec.data)
    targets, parts = lesson.divided(task, rows, spec.data)
    values = targets.values  # noqa: PD011  no frame's
    known = Known(rows.table.to_pandas(), values[:, 1:] > 0, parts)
    objective = task.objective({"label": targets.label})
    found: list[list[object]] = []

    def measured(part: npt.NDArray[np.int64], scores: Floats) -> dict[str, float]:
        return objective.evaluate(values[part], scores)

    ways: dict[str, Callable[[], Floats]] = {
        "popularity: how many watched and liked the film": lambda: popularity(known, parts.test),
        "matrix factorisation (TruncatedSVD)": lambda: factorised(known, measured),
        "gradient boosting, a model a label": lambda: boosted(known),
    }
    for name, way in ways.items():
        started = time.monotonic()
        scores = way()
        found.append([name, *shown(measured(parts.test, scores)), f"{time.monotonic() - started:.0f}"])
    return found


def popularity(known: Known, part: npt.NDArray[np.int64]) -> Floats:
    """Of each row's film, in how many training rows each label is there."""
    films = known.frame["film"].to_numpy()
    counts = pd.DataFrame(known.flags[known.parts.train]).groupby(films[known.parts.train]).sum()
    return counts.reindex(films[part]).fillna(0).to_numpy(dtype=np.float64)


def factorised(known: Known, measured: Callable[[npt.NDArray[np.int64], Floats], dict[str, float]]) -> Floats:
    """Of each label users by films, as the product of two narrow matrices; how narrow the validation rows decide."""
    codes = [pd.factorize(known.frame[name])[0] for name in ("user", "film")]
    _, validation, test = known.parts
    best, found = -1.0, np.empty(0)
    for factors in FACTORS:
        scores = np.stack([_factors(known, codes, label, factors) for label in range(known.flags.shape[1])], axis=1)
        if (value := measured(validation, scores[validation])[METRICS[0]]) > best:
            best, found = value, scores[test]
    return found


def _factors(known: Known, codes: list[Any], label: int, factors: int) -> Floats:
    users, films = codes
    rows = known.parts.train
    shape = (users.max() + 1, films.max() + 1)
    matrix = csr_matrix((known.flags[rows, label].astype(float), (users[rows], films[rows])), shape=shape)
    model = TruncatedSVD(factors, random_state=SEED)
    scores: Floats = (model.fit_transform(matrix)[users] * model.components_.T[films]).sum(axis=1)
    return scores


def boosted(known: Known) -> Floats:
    """By the shares of the label that a user, a film and its genres have (out of fold), and the year."""
    rows, test = known.parts.train, known.parts.test
    words = known.frame[["user", "film", "genres"]].astype(str)
    year = known.frame["year"].to_numpy(dtype=np.float64)
    scores = []
    for wanted in known.flags.T:
        encoder = TargetEncoder(cv=StratifiedKFold(5, shuffle=True, random_state=SEED))
        fitted = np.column_stack([encoder.fit_transform(words.iloc[rows], wanted[rows]), year[rows]])
        model = HistGradientBoostingClassifier(random_state=SEED).fit(fitted, wanted[rows])
        scores.append(model.predict_proba(np.column_stack([encoder.transform(words.iloc[test]), year[test]]))[:, 1])
    return np.stack(scores, axis=1)


def shown(metrics: Any) -> list[str]:
    """In the table's order."""
    return [f"{metrics[name]:.3f}" for name in METRICS]
