"""What of a task travels in the archive: loaded as the serving pods load it, and tried before anything is learned.

Called by lesson before the first step, and by package.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from mljobs import export
from mljobs.export import PARITY_TOLERANCE
from mljobs.failure import JobFailure
from mljobs.tasks import Objective, Served, Task
from mlplatform.api import ModelVersionSpec
from mlplatform.contract import FailureClass

PREDICTION: Final = "prediction"
"""What every answer has."""
INT8: Final = "int8-dynamic"
ROWS: Final = 2
"""Of the trial: with one alone nothing would tell a batch from a constant."""


def source(module: str) -> Path:
    """The file of a module, which is not imported.

    Raises:
        JobFailure: The image lacks it.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise JobFailure(
            FailureClass.TASK_IMPORT,
            f"the image has no module {module}, which goes into the archive",
            "Correct the task's modules, or set spec.training.image to an image that has them, built on the platform's job image",
        )
    return Path(spec.origin)


def import_file(path: Path) -> ModuleType:
    """Imports a file under its base name without keeping it in `sys.modules`, as the handler imports what lies beside it."""
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    SourceFileLoader(path.stem, str(path)).exec_module(module)
    return module


def load(task: Task, config: Mapping[str, Any]) -> Served:
    """The half of `task` that travels.

    Raises:
        JobFailure: There is none, or its file cannot be imported by itself.
    """
    if len(task.modules) < 2:  # noqa: PLR2004  the handler and what it serves
        raise refused("has no module that could be served", "modules names fewer than two")
    path = source(task.modules[1])
    try:
        found: Served = import_file(path).Served(config)
    except Exception as error:  # code of the user's
        raise refused(
            "cannot be served", f"{path.name}, imported by itself as a serving pod does, gives no Served", error
        ) from error
    return found


def rehearse(task: Task, config: dict[str, Any], objective: Objective, spec: ModelVersionSpec) -> None:
    """Takes the task's example the whole way, with fresh weights: read, run, answered and exported.

    Raises:
        JobFailure: It does not get through, so that no model of this task would be served.
    """
    try:
        config = json.loads(json.dumps(config))
        example = json.loads(json.dumps(task.example(config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise refused("cannot be served", "its configuration or its example is no plain JSON", error) from error
    served, model = load(task, config), task.build(config).eval()
    inputs = read(served, example)
    outputs = run(model, inputs)
    try:
        wanted = objective.scores(outputs.double())
        answers = served.answers(answered(served, model, inputs, outputs).double())
        rows = [{name: values[i] for name, (_, values) in answers.items()} for i in range(ROWS)]
        json.dumps(rows, allow_nan=False)
        off = max(objective.off(row, score) for row, score in zip(rows, wanted.numpy(), strict=True))
    except Exception as error:  # code of the user's
        raise refused(
            "has outputs that cannot be served", f"its example {shown(example)} got no answer", error
        ) from error
    if any(PREDICTION not in row for row in rows):
        raise refused("has outputs that cannot be served", f"an answer has no {PREDICTION}: {shown(rows[0])}")
    if not off <= PARITY_TOLERANCE:
        raise refused(
            "has an example that does not round-trip",
            f"the answer {shown(rows[0])} is {off:.2g} in {objective.unit} from the objective's scores, over {PARITY_TOLERANCE}",
        )
    run(export.load_torchscript(export.torchscript(model, inputs)), tuple(part[:1] for part in inputs))
    if INT8 in spec.optimization.candidates:
        export.row_scaled(model)


def read(served: Served, example: Any) -> tuple[Tensor, ...]:
    """The example's tensors, as those of several records.

    Raises:
        JobFailure: It is not read, or not as so many records.
    """
    try:
        inputs = tuple(served.read([example] * ROWS))
        fits = all(len(part) == ROWS for part in inputs)
    except Exception as error:  # code of the user's
        raise refused("has an example that does not round-trip", f"{shown(example)} cannot be read", error) from error
    if not inputs or not fits:
        raise refused(
            "has an example that does not round-trip",
            f"{ROWS} records became tensors of the shapes {[tuple(part.shape) for part in inputs]}",
        )
    return inputs


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's outputs.

    Raises:
        JobFailure: It does not take the inputs, or gives something else than a row for a row.
    """
    rows = len(inputs[0])
    try:
        with torch.inference_mode():
            outputs: Any = model(*inputs)
    except Exception as error:  # code of the user's
        raise refused(
            "has an example that does not round-trip", f"the model does not take {rows} record(s)", error
        ) from error
    if not isinstance(outputs, Tensor) or not outputs.dim() or len(outputs) != rows:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise refused(
            "has outputs that cannot be served", f"{rows} record(s) gave {found}, and a tensor of a row each is needed"
        )
    return outputs


def answered(served: Served, model: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
    """What the answers are made of: by the task's own way to run its model, if it has one, else the model's `outputs`."""
    runs: Callable[[nn.Module, tuple[Tensor, ...]], Tensor] | None = getattr(served, "run", None)
    if runs is None:
        return outputs
    with torch.inference_mode():
        return runs(model, inputs)


def refused(what: str, why: str, error: Exception | None = None) -> JobFailure:
    """The task is at fault, and another try would find the same."""
    cause = f": {type(error).__name__}: {' '.join(str(error).split())}" if error else ""
    return JobFailure(
        FailureClass.TASK_IMPORT,
        f"the task that spec.training.task names {what}: {why}{cause}",
        "Correct the task: mljobs.tasks.Task and Served say what each part gives, and examples/own-task is a whole one",
    )


def shown(value: Any) -> str:
    """A value for a message."""
    return f"{json.dumps(value, ensure_ascii=False, default=str)!s:.200}"
