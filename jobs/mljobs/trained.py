"""What the stages after training start from: the trained model and the rows it has not seen.

Called by audit, optimize and package.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from mljobs import data, feed, spool
from mljobs.failure import JobFailure
from mljobs.report import Job
from mljobs.tasks import Objective, Task, evaluation_rows, in_stretches, load_task
from mlplatform.contract import ENV_ROWS, Artifacts, FailureClass, Stage


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model and its test split.

    Attributes:
        task: What it was trained for.
        config: Of preprocessing, model and objective.
        objective: What was learned.
        model: On the CPU, in evaluation mode.
        test: The test split's rows.
        inputs: Their tensors.
        targets: What they should have been predicted as.
        sample: `data.Rows.sample`.
    """

    task: Task
    config: dict[str, Any]
    objective: Objective
    model: nn.Module
    test: pa.Table
    inputs: tuple[Tensor, ...]
    targets: npt.NDArray[Any]
    sample: dict[str, int]


def load(job: Job) -> Trained:
    """Loads the model and the test split.

    Raises:
        JobFailure: The training left no model, the weights do not fit it, or the data changed since the training:
            then the split would be another one, and rows of the training could end in the test.
    """
    training = job.read_json(Artifacts.report(Stage.TRAIN))
    config = job.read_json(Artifacts.PREPROCESSOR)
    rows = data.load(job.spec.data)
    taken = training.get("sample", rows.sample)
    if taken["of"] == rows.total and taken != rows.sample:
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"the training took {taken['rows']} of {taken['of']} rows, and this stage would take {rows.sample['rows']}",
            f"Give every stage the same {ENV_ROWS}, or none",
        )
    if rows.digest != training["data"]["digest"]:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the data at {job.spec.data.uri} changed after the training ({rows.digest} is not {training['data']['digest']})",
            "Retrain the model: annotate it with a new value of mlplatform.dev/retrain",
        )
    task = load_task(job.spec.training.task, job.spec.training.hyperparameters)
    targets = task.targets(rows.table, job.spec.data)
    parts = data.split(targets.strata, job.spec.data.split, rows.table)
    test = data.take(rows.table, parts.test)
    model = task.build(config)
    weights = job.store.read(Artifacts.MODEL)
    try:
        model.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    except Exception as error:  # damaged bytes lead the unpickler to almost any exception
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the weights at {job.store.uri(Artifacts.MODEL)} do not fit the model: "
            f"{type(error).__name__}: {' '.join(str(error).split())}",
            "Retrain the model: annotate it with a new value of mlplatform.dev/retrain",
        ) from error
    inputs = feed.encode(task, config, rows.table, parts.test)
    values = targets.values[parts.test]
    spool.release()
    return Trained(task, config, task.objective(config), model.eval(), test, inputs, values, rows.sample)


@torch.inference_mode()
def scores(objective: Objective, model: Callable[..., Tensor], inputs: Sequence[Tensor]) -> npt.NDArray[np.float64]:
    """What a model says of rows; the first dimension is the row.

    Args:
        objective: What its outputs mean.
        model: In evaluation mode.
        inputs: At least one row; they are scored in stretches, so that memory does not grow with the test split.
    """
    rows = evaluation_rows(inputs)
    outputs = in_stretches(lambda some: model(*(part[some] for part in inputs)), len(inputs[0]), rows)
    found: npt.NDArray[np.float64] = objective.scores(outputs.double()).numpy()
    return found
