"""Tasks: what is to be learned, apart from how the training is run.

Called by train, and by trained for the stages after it. `tabular` is built in; a user's own is named
``package.module:Class`` and lives in the training image.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor, nn

from mljobs.failure import JobFailure
from mlplatform.contract import FailureClass

BUILT_IN: Final = {"tabular": "mljobs.tasks.tabular:TabularTask"}
EVALUATION_ROWS: Final = 4096
"""Rows of a forward pass without gradients."""


class Task(Protocol):
    """A binary classifier's parts. Made as ``Class(hyperparameters)``; a ``ValueError`` there names a bad one.

    Attributes:
        metrics: Names of what `evaluate` returns; the first is the one to watch where the spec names none.
    """

    metrics: Sequence[str]

    def fit(self, table: pa.Table, label: str, classes: Sequence[str], rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Learns the preprocessing from the training rows.

        Args:
            table: The whole data.
            label: Name of the label's column.
            classes: ``[negative, positive]``.
            rows: Row numbers of the training part: nothing else may shape the result.

        Returns:
            The configuration of preprocessing and model: plain JSON, saved as ``preprocessor.json``.
        """
        ...

    def inputs(self, config: Mapping[str, Any], table: pa.Table) -> tuple[Tensor, ...]:
        """The model's input tensors for all rows of `table`; the first dimension of each is the row."""
        ...

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The model with fresh weights: maps `inputs` to logits ``(rows,)``."""
        ...

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The submodules that FSDP shards and activation checkpointing recomputes one by one."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss; `logits` and `targets` (0 or 1) are ``(rows,)`` float32."""
        ...

    def evaluate(self, positive: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.float64]) -> dict[str, float]:
        """The metrics; both arrays are ``(rows,)`` and both classes occur."""
        ...


def load_task(name: str, hyperparameters: Mapping[str, Any]) -> Task:
    """The task that `spec.training.task` names.

    Raises:
        JobFailure: It cannot be imported or is no task (TaskImport), or refuses a hyperparameter (SpecInvalid).
    """
    module_name, _, class_name = BUILT_IN.get(name, name).partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise JobFailure(
            FailureClass.TASK_IMPORT,
            f"spec.training.task {name!r} cannot be imported: {type(error).__name__}: {error}",
            "Correct the name (package.module:Class), or set spec.training.image to an image that has this package",
        ) from error
    if lacking := [
        part for part in ("fit", "inputs", "build", "blocks", "loss", "evaluate") if not hasattr(found, part)
    ]:
        raise JobFailure(
            FailureClass.TASK_IMPORT,
            f"spec.training.task {name!r} is no task: it lacks {', '.join(lacking)}",
            "Give the class every method of mljobs.tasks.Task",
        )
    try:
        task: Task = found(hyperparameters)
    except (ValueError, TypeError) as error:
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"task {name} refused spec.training.hyperparameters: {error}",
            "Correct the hyperparameters and apply again",
        ) from error
    return task
