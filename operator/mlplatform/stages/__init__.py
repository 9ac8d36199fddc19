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


def _no_deadline(_spec: api.ModelVersionSpec) -> timedelta | None:
    return None


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
        halted: Whether the workload may hold no pods.
        halt: The merge patch that takes the workload's pods away and keeps its record.
        resume: The merge patch that undoes `halt`; None where a stage is too short to be halted midway.
        deadline: How long the operator lets it run; None leaves it to the workload.
    """

    name: Stage
    condition: str
    reads: tuple[str, ...]
    doing: str
    kind: str
    render: Callable[[Object, api.ModelVersionSpec, Settings], Object]
    judge: Callable[[Summary, api.ModelVersionSpec], Verdict]
    read: Callable[[Object], Workload]
    halted: Callable[[Object], bool]
    halt: Object
    resume: Object | None = None
    deadline: Callable[[api.ModelVersionSpec], timedelta | None] = _no_deadline


def _batch(  # noqa: PLR0913, PLR0917  the fields of one line of the pipeline
    name: Stage,
    condition: str,
    reads: tuple[str, ...],
    doing: str,
    render: Callable[[Object, api.ModelVersionSpec, Settings], Object],
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
        halted=job.stopped,
        halt=job.stop(),
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
        halted=pytorchjob.suspended,
        halt=pytorchjob.suspend(value=True),
        resume=pytorchjob.suspend(value=False),
        deadline=train.deadline,
    ),
    _batch(Stage.AUDIT, "Audited", ("gates", "fairness"), "Auditing", audit.render, audit.judge),
    _batch(Stage.OPTIMIZE, "Optimized", ("optimization",), "Optimizing", optimize.render, optimize.judge),
    _batch(Stage.PACKAGE, "Packaged", (), "Packaging", package.render, package.judge),
)

__all__ = ["PIPELINE", "Definition", "Verdict"]
