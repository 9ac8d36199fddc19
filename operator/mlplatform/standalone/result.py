"""A run for programs: notebooks, tests, scripts.

Called through `mlplatform.run`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlplatform import api, contract
from mlplatform.contract import Stage
from mlplatform.snapshot import name_of, status_of
from mlplatform.standalone.engine import Moment, Run
from mlplatform.standalone.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a run ended.

    Attributes:
        version: Name of the ModelVersion.
        passed: Whether every stage that was asked for ended well and every gate was passed.
        stages: What each stage that has ended measured, by name.
        metrics: On the test split, of what ships.
        missed: Sentences about the gates that were missed.
        failure: Why a stage failed; None otherwise.
        artifacts: Folder of everything that the version left.
        archive: The TorchServe archive; None where the pipeline did not come so far.
    """

    version: str
    passed: bool
    stages: Mapping[str, api.StageStatus]
    metrics: Mapping[str, float]
    missed: tuple[str, ...]
    failure: api.FailureStatus | None
    artifacts: Path
    archive: Path | None

    def report(self, stage: str) -> dict[str, Any]:
        """The full ``report.json`` of a stage.

        Raises:
            FileNotFoundError: It has not run.
        """
        found: dict[str, Any] = json.loads((self.artifacts / contract.Artifacts.report(Stage(stage))).read_text())
        return found

    def predict(self, records: Sequence[Mapping[str, Any] | Sequence[Any]]) -> list[dict[str, Any]]:
        """What the archive answers, in this process and by the code that TorchServe would run.

        Args:
            records: Each an object by column, or a list in the schema's order.

        Returns:
            An answer a record: ``prediction``, ``confidence``, …; ``message`` where the record was refused.

        Raises:
            ValueError: There is no archive.
        """
        if self.archive is None:
            raise ValueError(
                f"{self.version} has no archive: {self.failure.message if self.failure else 'not packaged'}"
            )
        from mljobs import package  # noqa: PLC0415  imports torch
        from mljobs.export import quiet  # noqa: PLC0415  likewise

        with quiet(), tempfile.TemporaryDirectory(prefix="mlplatform-") as folder:
            handler, context = package.load(self.archive, Path(folder))
            # One at a time: what is quantised dynamically takes its scale from all records of a batch.
            return [package.predict(handler, context, [record])[0][1] for record in records]


def run(  # noqa: PLR0913  the command's options
    file: str | Path | Mapping[str, Any],
    *,
    data: str | Path = "",
    set: Mapping[str, Any] | None = None,  # noqa: A002  the option's name
    rows: int | None = None,
    until: str = "",
    keep_going: bool = False,
    store: str | Path = ".mlplatform",
    tell: Callable[[Moment], None] | None = None,
) -> Result:
    """Runs the pipeline of an MLModel on this machine, like ``kubectl mlmodel run``.

    Args:
        file: Of the MLModel's YAML, or the MLModel itself.
        data: Where the rows are, instead of ``spec.data.uri``.
        set: Changes of the spec, by path: ``{"training.epochs": 1}``.
        rows: How many rows to take, a stable sample.
        until: The last stage to run.
        keep_going: Whether to run on after a missed gate.
        store: Folder of the results.
        tell: Called with every moment of the run, e.g. to show its progress.

    Raises:
        mlplatform.errors.CliError: It cannot be run, for a cause that it names. A stage that fails or a gate that is
            missed raises nothing: `Result` says so.
    """
    given = isinstance(file, Mapping)
    request = Request(
        file="the MLModel" if given else str(file),
        store=Path(store),
        data=str(data),
        set=tuple(f"{path}={json.dumps(value)}" for path, value in (set or {}).items()),
        rows=rows,
        until=Stage(until).value if until else "",
        keep_going=keep_going,
    )
    ended = Run(request, tell or (lambda _: None), lambda _: None, json.dumps(file) if given else None).go()
    status = api.decode(api.ModelVersionStatus, status_of(ended.moment.version), "status")
    name = name_of(ended.moment.version)
    archive = ended.folder / contract.Artifacts.SERVING / "model-store" / f"{name_of(ended.moment.model)}.mar"
    return Result(
        version=name,
        passed=not ended.failed,
        stages={stage.name: stage for stage in status.stages},
        metrics=status.metrics,
        missed=ended.missed,
        failure=status.failure,
        artifacts=ended.folder,
        archive=archive if ended.complete else None,
    )
