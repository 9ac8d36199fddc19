"""The stage `train`: fits the model and saves its weights and preprocessing.

Run as ``torchrun -m mljobs.train`` in every pod of the PyTorchJob. Rank 0 reports.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import torch
import torch.distributed as dist

from mljobs import lesson, processes, spool
from mljobs.report import Job, run
from mljobs.tasks import Objective, Task, load_task
from mlplatform.api import Training
from mlplatform.contract import VALIDATION, Artifacts, Stage, Summary


def main(job: Job) -> Summary | None:
    """Trains; returns the summary on rank 0, None on the others."""
    training = job.spec.training
    task = load_task(training.task, training.hyperparameters)
    topology = processes.start()
    found = lesson.prepare(job, task, topology)
    config, validation = found.config, found.validation
    spool.release()
    # Shards and checkpoints take a second to import: what is wrong with the specification or the data is said before.
    from mljobs.checkpoint import Checkpoints  # noqa: PLC0415
    from mljobs.parallel import Parallel  # noqa: PLC0415
    from mljobs.trainer import Trainer  # noqa: PLC0415

    torch.manual_seed(training.seed)
    model = task.start(config, task.build(config))
    prepared = Parallel(model, task.blocks(model), found.settled, topology)
    checkpoints = Checkpoints(job.store, training.checkpoint.keep, topology.rank, topology.world_size, found.digest)
    trainer = Trainer(found.objective, prepared, found.settled, (found.train, validation), checkpoints)
    trainer.fit()

    objective, metrics, config = judged(task, config, trainer.outputs(), validation.targets.numpy(), training)
    state = final(task, config, prepared.full_state())
    summary = None
    if topology.rank == 0:
        save(job, state, config, task.reference(config, found.train.inputs, found.train.targets.numpy()))
        progress = trainer.progress
        details = {
            "rows": found.rows,
            "epochs": len(progress.history),
            "worldSize": topology.world_size,
            "resumedFromStep": trainer.resumed_from,
            **({"columns": found.odd} if found.odd else {}),
        }
        report = {
            **details,
            "data": {**found.source, **objective.learned},
            "sample": found.sample,
            "training": {**found.said, "model": config.get("model")},
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
