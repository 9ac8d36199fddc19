"""The whole pipeline on one page.

Called by `mlplatform.plan`, which folds it over what the cluster shows: a stage
runs when the one before it has passed. A stage is a child workload, a summary,
and a verdict over that summary; to add one, add a line to `PIPELINE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from mlplatform import api
from mlplatform.contract import Stage, Summary
from mlplatform.resources import job, pytorchjob
from mlplatform.resources.workload import Workload
from mlplatform.settings import Settings
from mlplatform.snapshot import Object
from mlplatform.stages import audit, optimize, package, train
from mlplatform.stages.verdict import Verdict

BATCH_DEADLINE: Final = timedelta(hours=1)
"""The stages after training take minutes; an hour says that one hangs."""

Render = Callable[[Object, api.ModelVersionSpec, Settings, api.Scheduling], Object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One stage.

    Attributes:
        name: Its name; also the suffix of its workload's name.
        condition: The condition on the ModelVersion that it decides.
        reads: Sections of the spec that shape its result, beside those of the stages before it.
        doing: What `status.stage` says while it runs.
        kind: The workload's kind.
        render: The workload.
        judge: Whether the version may go on, from the summary of a workload that succeeded.
        read: Where the workload stands.
        gang: How many pods of the workload work together.
        halt: The merge patch that takes the workload's pods away, for a reason, and keeps its record.
        deadline: How long its containers may work; what waits (for a node, an image, a queue) does not.
        resume: The merge patch that undoes `halt`; None where a stage is too short to be halted midway.
        restarts: How often it may start again after a failure of its own; None leaves that to the workload.
    """

    name: Stage
    condition: str
    reads: tuple[str, ...]
    doing: str
    kind: str
    render: Render
    judge: Callable[[Summary, api.ModelVersionSpec], Verdict]
    read: Callable[[Object], Workload]
    gang: Callable[[Object], int]
    halt: Callable[[str], Object]
    deadline: Callable[[api.ModelVersionSpec], timedelta]
    resume: Object | None = None
    restarts: Callable[[api.ModelVersionSpec], int] | None = None


def _batch(  # noqa: PLR0913, PLR0917  the fields of one line of the pipeline
    name: Stage,
    condition: str,
    reads: tuple[str, ...],
    doing: str,
    render: Render,
    judge: Callable[[Summary, api.ModelVersionSpec], Verdict],
) -> Definition:
    """A stage that runs as a batch Job."""
    return Definition(
        name=name,
        condition=condition,
        reads=reads,
        doing=doing,
        kind="Job",
        render=render,
        judge=judge,
        read=job.read,
        gang=lambda _job: 1,
        halt=job.stop,
        deadline=lambda _spec: BATCH_DEADLINE,
    )


PIPELINE: Final[tuple[Definition, ...]] = (
    Definition(
        name=Stage.TRAIN,
        condition="Trained",
        reads=("data", "training"),
        doing="Training",
        kind="PyTorchJob",
        render=train.render,
        judge=train.judge,
        read=pytorchjob.read,
        gang=pytorchjob.gang,
        halt=pytorchjob.halt,
        deadline=train.deadline,
        resume=pytorchjob.resume(),
        restarts=train.restarts,
    ),
    _batch(Stage.AUDIT, "Audited", ("gates", "fairness"), "Auditing", audit.render, audit.judge),
    _batch(Stage.OPTIMIZE, "Optimized", ("optimization",), "Optimizing", optimize.render, optimize.judge),
    _batch(Stage.PACKAGE, "Packaged", (), "Packaging", package.render, package.judge),
)

__all__ = ["PIPELINE", "Definition", "Verdict"]
