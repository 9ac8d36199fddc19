"""What a training learns from, and what there is to say of it.

Called by train before anything is learned: what is wrong with the data or with what is asked of them is refused here. The rows,
and the numbers of those of each part, are gone when it returns; of large data these alone take a sixth of a small pod.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mljobs import automatic, data, feed, spool, weights
from mljobs.automatic import Settled
from mljobs.failure import RETRAIN, JobFailure, did_you_mean
from mljobs.features import Choice
from mljobs.feed import Examples
from mljobs.files import SHOWN
from mljobs.processes import Topology
from mljobs.profile import described, unusual
from mljobs.report import Job, say
from mljobs.served import rehearse
from mljobs.tasks import LOSSES, Objective, Targets, Task
from mlplatform.api import Data, ModelVersionSpec
from mlplatform.contract import COLUMN, VALIDATION, FailureClass


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a training learns from.

    Attributes:
        config: Of the task, as it was fitted.
        objective: Of that configuration.
        settled: The specification, with what it leaves open.
        train: The training part.
        validation: The validation part.
        digest: Of the data.
        rows: How many each part has.
        odd: A sentence for each column of which there is something to say.
        said: `settled`, for the report.
        source: The data, for the report.
        sample: `data.Rows.sample`.
    """

    config: dict[str, Any]
    objective: Objective
    settled: Settled
    train: Examples
    validation: Examples
    digest: str
    rows: dict[str, int]
    odd: list[str]
    said: dict[str, Any]
    source: dict[str, Any]
    sample: dict[str, int]


def prepare(job: Job, task: Task, topology: Topology) -> Lesson:
    """Reads, divides and encodes the rows. All ranks must call it.

    Raises:
        JobFailure: They cannot be read, divided or learned, or something is asked for that is not defined for them.
    """
    asked, training = job.spec.data, job.spec.training
    rows = data.load(asked)
    same_everywhere(rows.digest, asked.uri, topology.world_size)
    targets, parts = divided(task, rows, asked)
    for attribute in asked.sensitive_attributes:
        data.grouped(rows.table, attribute)  # the audit needs them: what it would refuse is refused before the training
    weighed = weighed_rows(rows, asked, parts.train)
    choice, config = fitted(task, rows, targets, parts, asked)
    columns = described(rows, choice.remarks, config["ignored"], asked.predicted)
    objective = task.objective(config)
    defined(job.spec, objective)
    rehearse(task, config, objective, job.spec)
    settled = automatic.settle(training, len(parts.train), topology)
    said, odd = automatic.said(training, settled), unusual(columns)
    effective = {} if weighed is None else {"effectiveRows": round(weights.effective(weighed), 1)}
    if topology.rank == 0:
        of = "" if rows.table.num_rows == rows.total else f"/{rows.total}"
        say(
            f"rows={rows.table.num_rows}{of} train={len(parts.train)} processes={topology.world_size} device={topology.device} "
            + " ".join(f"{name}={value}" for name, value in said.items() if name != "automatic")
        )
        tell(
            [
                *rows.remarks(),
                *filter(None, [choice.repeats]),
                *config.get("remarks", ()),
                *(
                    f"the weights of {asked.weight} tell as much as {count:.0f} rows of one weight"
                    for count in effective.values()
                ),
                *(f"the column {sentence}" for sentence in odd),
            ],
            columns,
        )
    spool.release()
    held = feed.held_bytes(training)
    weight = None if weighed is None else torch.from_numpy(weighed).float()
    train, validation = (
        Examples(feed.encode(task, config, rows.table, part, held), torch.from_numpy(targets.values[part]), weight)
        for part, weight in ((parts.train, weight), (parts.validation, None))
    )
    source = {
        "files": rows.files,
        "digest": rows.digest,
        **({"commit": rows.commit} if rows.commit else {}),
        "read": rows.read,
        "ignored": rows.ignored,
        "columns": columns,
        "repeatedRows": dict(choice.repeated),
        **effective,
        "features": sum(column["use"] == "feature" for column in columns.values()),
    }
    sizes = {name: len(part) for name, part in zip(("train", "validation", "test"), parts, strict=True)}
    return Lesson(config, objective, settled, train, validation, rows.digest, sizes, odd, said, source, rows.sample)


def tell(remarks: list[str], columns: Mapping[str, Any]) -> None:
    """Writes what is remarkable about the rows, and a line for each column, which `kubectl mlmodel data` reads."""
    more = [f"and {len(remarks) - SHOWN} more, in the report"] if len(remarks) > SHOWN else []
    for line in [*remarks[:SHOWN], *more]:
        say(line)
    for name, column in columns.items():
        say(f"{COLUMN}{json.dumps({'name': name, **column}, ensure_ascii=False)}")


def divided(task: Task, rows: data.Rows, asked: Data) -> tuple[Targets, data.Parts]:
    """What is to be learned, and the split.

    Raises:
        JobFailure: One of them cannot be; of a row it tells the file.
    """
    try:
        targets = task.targets(rows.table, asked)
        return targets, data.split(targets.strata, asked.split, rows.table)
    except JobFailure as failure:
        raise failure.at(rows.place) from None


def fitted(
    task: Task, rows: data.Rows, targets: Targets, parts: data.Parts, asked: Data
) -> tuple[Choice, dict[str, Any]]:
    """What is not learned from, and the configuration of the rest.

    Raises:
        JobFailure: The task refuses the rows.
    """
    choose = getattr(task, "choose", None)
    choice: Choice = choose(rows, targets, parts, asked) if choose else Choice({}, {})
    aside = {asked.weight: f"{weights.FIELD} names it"} if asked.weight else {}
    left_out = {**choice.left_out, **aside}
    config = task.fit(rows.table.drop_columns(list(left_out)), targets, parts.train)
    return choice, {**config, "ignored": {**left_out, **config.get("ignored", {})}}


def weighed_rows(rows: data.Rows, asked: Data, train: data.Indices) -> weights.Floats | None:
    """How much each training row counts; None if all count alike.

    Raises:
        JobFailure: A row has no weight; it tells the file.
    """
    if not asked.weight:
        return None
    try:
        return weights.read(rows.table, asked.weight, train)
    except JobFailure as failure:
        raise failure.at(rows.place) from None


def defined(spec: ModelVersionSpec, objective: Objective) -> None:
    """Makes sure that what the stages to come are to judge by is measured.

    Raises:
        JobFailure: A gate, a bound or the early stopping names what the objective does not define.
    """
    for field, is_asked, kinds in (
        ("spec.training.threshold", spec.training.threshold is not None, {"binary"}),
        ("spec.training.calibration", spec.training.calibration != "none", {"binary", "multiclass", "multilabel"}),
    ):
        if is_asked and objective.kind not in kinds:
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"{field} is not defined for a label that is {objective.kind}",
                f"Take it out; if the label is {' or '.join(sorted(kinds))}, set spec.data.target",
            )
    if spec.data.weight and not hasattr(objective, LOSSES):
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"spec.data.weight names {spec.data.weight!r}, and the task {spec.training.task} has no loss of each row to weigh",
            f"Take it out, or give the task's objective a method {LOSSES}(outputs, targets)",
        )
    stopping = spec.training.early_stopping
    watched = [stopping.metric] if stopping and stopping.metric else []
    for field, named, known in (
        ("spec.training.earlyStopping.metric", watched, [f"{VALIDATION}{name}" for name in objective.metrics]),
        ("spec.gates", [gate.metric for gate in spec.gates], objective.metrics),
        ("spec.fairness.metrics", list(spec.fairness.metrics), objective.fairness),
    ):
        if strange := [name for name in named if name not in known]:
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"{field} names {', '.join(strange)}, which is not defined for a label that is {objective.kind}"
                f"{did_you_mean(strange[0], known)}",
                f"Use one of {', '.join(known)}; if the label is something else, set spec.data.target",
            )


def same_everywhere(digest: str, uri: str, world_size: int) -> None:
    """Makes sure that every rank has loaded the same data; else their splits differ. All ranks must call it.

    Args:
        digest: Of this rank's data.
        uri: Where it came from, for the message.
        world_size: All processes.

    Raises:
        JobFailure: The digests differ.
    """
    digests = [""] * world_size
    dist.all_gather_object(digests, digest)
    if found := set(digests) - {digests[0]}:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the data at {uri} changed while the processes loaded it ({min(found)} is not {digests[0]})",
            f"Let nothing write there meanwhile, then: {RETRAIN}",
        )
