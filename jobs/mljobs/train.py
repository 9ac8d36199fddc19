"""The stage `train`: fits the model and saves its weights and preprocessing.

Run as ``torchrun -m mljobs.train`` in every pod of the PyTorchJob. Rank 0 reports.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

import torch
import torch.distributed as dist

from mljobs import automatic, data, feed, processes, spool, weights
from mljobs.failure import RETRAIN, JobFailure, did_you_mean
from mljobs.features import Choice
from mljobs.feed import Examples
from mljobs.files import SHOWN
from mljobs.profile import described, unusual
from mljobs.report import Job, run, say
from mljobs.served import rehearse
from mljobs.tasks import LOSSES, Objective, Targets, Task, load_task
from mlplatform.api import Data, ModelVersionSpec, Training
from mlplatform.contract import COLUMN, VALIDATION, Artifacts, FailureClass, Stage, Summary


def main(job: Job) -> Summary | None:
    """Trains; returns the summary on rank 0, None on the others."""
    training = job.spec.training
    task = load_task(training.task, training.hyperparameters)
    topology = processes.start()
    rows = data.load(job.spec.data)
    same_everywhere(rows.digest, job.spec.data.uri, topology.world_size)
    targets, parts = divided(task, rows, job.spec.data)
    for attribute in job.spec.data.sensitive_attributes:
        data.grouped(rows.table, attribute)  # the audit needs them: what it would refuse is refused before the training
    weighed = weighed_rows(rows, job.spec.data, parts.train)
    choice, config = fitted(task, rows, targets, parts, job.spec.data)
    columns = described(rows, choice.remarks, config["ignored"], job.spec.data.predicted)
    objective = task.objective(config)
    defined(job.spec, objective)
    rehearse(task, config, objective, job.spec)
    settled = automatic.settle(training, len(parts.train), topology)
    said = automatic.said(training, settled)
    if topology.rank == 0:
        of = "" if rows.table.num_rows == rows.total else f"/{rows.total}"
        say(
            f"rows={rows.table.num_rows}{of} train={len(parts.train)} processes={topology.world_size} device={topology.device} "
            + " ".join(f"{name}={value}" for name, value in said.items() if name != "automatic")
        )
        odd = unusual(columns)
        tell(
            [
                *rows.remarks(),
                *filter(None, [choice.repeats]),
                *config.get("remarks", ()),
                *(f"the column {sentence}" for sentence in odd),
            ],
            columns,
        )
        if weighed is not None:
            say(f"weights of {job.spec.data.weight}: as much as {weights.effective(weighed):.0f} rows of one weight")
    # Shards and checkpoints take a second to import: what is wrong with the specification or the data is said before.
    from mljobs.checkpoint import Checkpoints  # noqa: PLC0415
    from mljobs.parallel import Parallel  # noqa: PLC0415
    from mljobs.trainer import Trainer  # noqa: PLC0415

    spool.release()
    held = feed.held_bytes(training)
    train, validation = (
        Examples(feed.encode(task, config, rows.table, part, held), torch.from_numpy(targets.values[part]))
        for part in (parts.train, parts.validation)
    )
    train = replace(train, weights=None if weighed is None else torch.from_numpy(weighed).float())

    torch.manual_seed(training.seed)
    model = task.start(config, task.build(config))
    prepared = Parallel(model, task.blocks(model), settled, topology)
    checkpoints = Checkpoints(job.store, training.checkpoint.keep, topology.rank, topology.world_size, rows.digest)
    trainer = Trainer(objective, prepared, settled, (train, validation), checkpoints)
    trainer.fit()

    objective, metrics, config = judged(task, config, trainer.outputs(), targets.values[parts.validation], training)
    state = final(task, config, prepared.full_state())
    summary = None
    if topology.rank == 0:
        save(job, state, config, task.reference(config, train.inputs, targets.values[parts.train]))
        progress = trainer.progress
        details = {
            "rows": {name: len(part) for name, part in zip(("train", "validation", "test"), parts, strict=True)},
            "epochs": len(progress.history),
            "worldSize": topology.world_size,
            "resumedFromStep": trainer.resumed_from,
            **({"columns": odd} if odd else {}),
        }
        source = {
            "files": rows.files,
            "digest": rows.digest,
            **({"commit": rows.commit} if rows.commit else {}),
            "read": rows.read,
            "ignored": rows.ignored,
            "columns": columns,
            "repeatedRows": dict(choice.repeated),
            **({} if weighed is None else {"effectiveRows": round(weights.effective(weighed), 1)}),
            **objective.learned,
            "features": sum(column["use"] == "feature" for column in columns.values()),
        }
        report = {
            **details,
            "data": source,
            "sample": rows.sample,
            "training": {**said, "model": config.get("model")},
            "batch": {"rows": trainer.plan.batch, "stepsPerEpoch": trainer.plan.steps_per_epoch},
            "parameters": sum(weight.numel() for weight in prepared.module.parameters()),
            "history": progress.history,
            "libraries": {"python": platform.python_version(), "torch": torch.__version__},
        }
        if training.early_stopping:
            report["bestEpoch"] = progress.best_epoch
        summary = job.finish(report, metrics, details)
    # Last: if rank 0 could not save, no rank may succeed, for all must start again from the checkpoint.
    dist.barrier()
    dist.destroy_process_group()
    return summary


def judged(
    task: Task, config: dict[str, Any], outputs: torch.Tensor, targets: Any, training: Training
) -> tuple[Objective, dict[str, float], dict[str, Any]]:
    """What the validation rows decide, and the metrics with it.

    Args:
        task: The task.
        config: As it was fitted.
        outputs: Of the final weights for the validation rows.
        targets: Of these rows.
        training: The specification.
    """
    config = dict(task.adjust(config, targets, outputs, training))
    objective = task.objective(config)
    found = objective.evaluate(targets, objective.scores(outputs).numpy())
    return objective, {f"{VALIDATION}{name}": value for name, value in found.items()}, config


def final(task: Task, config: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights that are saved, on rank 0; none on the others, which have no `state`."""
    return task.finish(config, state) if state else state


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


def save(job: Job, state: Mapping[str, Any], config: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Writes the weights, the preprocessing and what the rows looked like to the store."""
    buffer = BytesIO()
    torch.save(state, buffer)
    job.write(Artifacts.MODEL, buffer.getvalue())
    job.write(Artifacts.PREPROCESSOR, json.dumps(config, indent=1).encode())
    if reference:
        job.write(Artifacts.REFERENCE, json.dumps(reference, ensure_ascii=False, indent=1).encode())


if __name__ == "__main__":
    sys.exit(run(Stage.TRAIN, main))
