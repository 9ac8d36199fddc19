"""Tasks: what is to be learned, apart from how the training is run.

Called by train, and by trained for the stages after it. Those of `BUILT_IN` are the platform's; a user's own is named
``package.module:Class`` and lives in the training image.
"""

from __future__ import annotations

import importlib
import itertools
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from mljobs.failure import JobFailure
from mlplatform.api import Data, Fairness, Training
from mlplatform.contract import IN_LABEL_UNITS, LOWER_IS_BETTER, FailureClass

BUILT_IN: Final = {
    "tabular": "mljobs.tasks.tabular:TabularTask",
    "text": "mljobs.tasks.text:TextTask",
    "causal-lm": "mljobs.tasks.causal_lm:CausalLmTask",
    "ranking": "mljobs.tasks.ranking:RankingTask",
}
LOSSES: Final = "losses"
"""Of an `Objective`, where rows may have weights."""
HANDLER: Final = "mlhandlers.records"
"""The platform's, which serves every task."""
EVALUATION_ROWS: Final = 4096
"""Rows of a forward pass without gradients, at most."""
EVALUATION_VALUES: Final = 1 << 16
"""Values of its inputs: what a model computes of a column or a token takes memory of its own."""


@dataclass(frozen=True, slots=True)
class Strata:
    """Kinds of rows of which every part of a split gets its share.

    Attributes:
        codes: Which one each row is of, ``(rows,)``, from 0.
        names: What each is called in a sentence, e.g. ``the positive class``.
        least: Rows that a part needs of each, or nothing could be learned or measured there.
        needed: Further kinds, by name: which rows are of it, ``(rows,)``. They may overlap, and a part needs a row of each.
    """

    codes: npt.NDArray[np.integer[Any]]
    names: Sequence[str]
    least: int = 1
    needed: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Targets:
    """What a table says is to be learned.

    Attributes:
        values: As the objective's `loss` and `evaluate` take them; the first dimension is the row.
        strata: How to divide the rows.
        label: Plain JSON: what the table tells of the label; `Task.fit` adds what only the training rows may tell.
    """

    values: npt.NDArray[Any]
    strata: Strata
    label: Mapping[str, Any]


class Objective(Protocol):
    """What is learned, once it is configured: the only place that knows what a model's outputs mean.

    One of a user's own inherits from this and gives `kind`, `metrics`, `loss`, `scores`, `evaluate` and `off`; what the rest
    says by default is in the code below. Whose rows may have weights (`spec.data.weight`) has a method ``losses(outputs,
    targets)``, too: each row's loss, ``(rows,)``.

    Attributes:
        kind: What it is called in `spec.data.target`.
        metrics: Names of what `evaluate` returns; the first is the one to watch where the spec names none.
        less_is_better: Which of them are better the lower they are.
        in_label_units: Which of them have no scale of their own: how much worse one may be is a share of fp32's.
        fairness: Names of the differences between groups that are defined.
        unit: Of a score, as in ``differs by 0.1 in probability``.
        learned: For the report of the training: what the label is.
        about: For the report of the audit: what a reader must know to read the metrics.
        sentence: The same in words.
        titles: Of the rates by group.
        shares: Whether these are between 0 and 1.
    """

    kind: str
    metrics: Sequence[str]
    less_is_better: Collection[str] = LOWER_IS_BETTER
    in_label_units: Collection[str] = IN_LABEL_UNITS
    fairness: Sequence[str] = ()
    unit: str = "prediction"
    learned: Mapping[str, Any] = MappingProxyType({})
    about: Mapping[str, Any] = MappingProxyType({})
    sentence: str = ""
    titles: Mapping[str, str] = MappingProxyType({})
    shares: bool = False

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of the model's float32 outputs; `targets` are `Targets.values` of the same rows."""
        ...

    @abstractmethod
    def scores(self, outputs: Tensor) -> Tensor:
        """What outputs mean, e.g. probabilities; in serving, too."""
        ...

    @abstractmethod
    def evaluate(self, targets: npt.NDArray[Any], scores: npt.NDArray[np.float64]) -> dict[str, float]:
        """The metrics."""
        ...

    def difference(self, scores: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> float:
        """The largest difference of two forms of one model, in `unit`."""
        return float(np.abs(scores - wanted).max())

    @abstractmethod
    def off(self, answer: Mapping[str, Any], wanted: Any) -> float:
        """How far a served answer is from one row of scores, in `unit`."""
        ...

    def compare(
        self,
        groups: npt.NDArray[np.str_],  # noqa: ARG002  by default there is nothing to compare; likewise below
        targets: npt.NDArray[Any],  # noqa: ARG002
        scores: npt.NDArray[np.float64],  # noqa: ARG002
        asked: Fairness,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Rates by group and their differences for one sensitive attribute, as the audit reports them.

        Returns:
            ``{groups: {<group>: {count, denominators: {<rate>: rows}, <rate>: {value, low, high}, …}},
            differences: {<metric>: {value, low, high}}, notAssessed: {<group>: [<rate>, …]}}``
        """
        return {"groups": {}, "differences": {}, "notAssessed": {}}

    def differences(
        self,
        groups: npt.NDArray[np.str_],  # noqa: ARG002
        targets: npt.NDArray[Any],  # noqa: ARG002
        scores: npt.NDArray[np.float64],  # noqa: ARG002
        smallest: int,  # noqa: ARG002
    ) -> dict[str, float]:
        """The differences of `compare` alone; a metric is absent if fewer than two groups are large enough."""
        return {}

    def constant(
        self,
        targets: npt.NDArray[Any],  # noqa: ARG002
        scores: npt.NDArray[np.float64],  # noqa: ARG002
    ) -> dict[str, Any]:
        """What the same answer for every row is worth beside the model, as `mljobs.tasks.constant` says it.

        The audit's default gate holds by it; where nothing is said, there is none.
        """
        return {}


class Served(Protocol):
    """The half of a task that travels in the archive, and the class's name there; made as ``Served(config)``.

    Its module is one file that imports torch and the standard library only: training, the stages after it and the serving
    pods load that very file (`mljobs.served`).

    One whose answers take more than one run of the model has a method ``run(model, inputs)``, which gives the outputs that
    `answers` reads; `width` then counts what all runs cost.

    Attributes:
        names: The columns of a record, for requests in columns and for messages.
        width: Values that a record costs the model, e.g. its columns or tokens; bounds how many are answered at once.
    """

    names: Sequence[str]
    width: int

    def read(self, records: Sequence[Any], first: int = 0) -> tuple[Tensor, ...]:
        """The model's input tensors for records as clients send them; the first dimension of each is the record.

        Args:
            records: JSON values: objects by column, or whatever else the task takes for a record.
            first: Number of the first of them, for messages.

        Raises:
            ValueError: One cannot be read; the client gets this sentence.
        """
        ...

    def answers(self, outputs: Tensor) -> Mapping[str, tuple[str, list[Any]]]:
        """What the model's float64 outputs say: by name a type of the Open Inference Protocol, and a value a record.

        One is called ``prediction``.
        """
        ...


class Task(Protocol):
    """What is to be learned of which records. Made as ``Class(hyperparameters)``; a ``ValueError`` there names a bad one.

    One of a user's own may inherit from this: what it need not give has a default in the code below.

    A task whose rows stand each for itself may have a method ``choose(rows, targets, parts, data)`` that gives an
    `mljobs.features.Choice`, as `tabular` has; of any other one every column and every row is its own business.

    Attributes:
        modules: What the archive is made of: the handler's module (`HANDLER`, unless the task brings its own), that of
            `Served`, then whatever these find beside them.
        hyperparameters: `spec.training.hyperparameters`.
    """

    modules: Sequence[str]
    hyperparameters: Mapping[str, Any]

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        self.hyperparameters = hyperparameters

    @abstractmethod
    def targets(self, table: pa.Table, data: Data) -> Targets:
        """What the table says is to be learned.

        Raises:
            JobFailure: It cannot be told, or not be learned.
        """
        ...

    @abstractmethod
    def fit(self, table: pa.Table, targets: Targets, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Learns the preprocessing from the training rows.

        Args:
            table: The whole data.
            targets: Of all its rows.
            rows: Row numbers of the training part, which rise: nothing else may shape the result.

        Returns:
            The configuration of preprocessing, model and objective: plain JSON, saved as ``preprocessor.json``. Of it
            ``ignored`` are columns that a record may have, with why, and ``remarks`` are sentences for the log.
        """
        ...

    @abstractmethod
    def objective(self, config: Mapping[str, Any]) -> Objective:
        """What is learned."""
        ...

    def adjust(
        self,
        config: Mapping[str, Any],
        targets: npt.NDArray[Any],  # noqa: ARG002  by default nothing is left to decide
        outputs: Tensor,  # noqa: ARG002
        training: Training,  # noqa: ARG002
    ) -> Mapping[str, Any]:
        """The configuration with what is decided by the validation rows once the weights are final.

        Args:
            config: As `fit` made it.
            targets: `Targets.values` of the validation rows.
            outputs: The model's for these, in float64.
            training: The specification.
        """
        return config

    def reference(
        self,
        config: Mapping[str, Any],  # noqa: ARG002  by default there is none
        inputs: Sequence[Tensor],  # noqa: ARG002
        targets: npt.NDArray[Any],  # noqa: ARG002
    ) -> Mapping[str, Any]:
        """What the training rows look like, to see a drift by: plain JSON, saved as ``reference.json`` if there is any.

        Args:
            config: As `fit` made it.
            inputs: As `inputs` made them of the training rows.
            targets: `Targets.values` of these rows.
        """
        return {}

    def inputs(self, config: Mapping[str, Any], table: pa.Table) -> tuple[Tensor, ...]:
        """The model's input tensors for all rows of `table`; the first dimension of each is the row.

        Large data comes in stretches of rows: the other dimensions follow from the configuration.

        By default rows are read as records are.
        """
        from mljobs import served  # noqa: PLC0415  which knows of tasks

        return served.load(self, config).read(table.to_pylist())

    @abstractmethod
    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The model with fresh weights: maps `inputs` to outputs whose first dimension is the row."""
        ...

    def start(self, config: Mapping[str, Any], model: nn.Module) -> nn.Module:  # noqa: ARG002  by default it has all
        """The model of `build` with the weights that the training begins with; by default fresh ones."""
        return model

    def finish(self, config: Mapping[str, Any], state: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002  by default they are the same
        """The weights of the model of `build` that the stages to come load, from those that `start` began with and the training ended with."""
        return state

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:  # noqa: ARG002  by default it has none
        """The submodules that FSDP shards and activation checkpointing recomputes one by one; by default it is whole."""
        return ()

    @abstractmethod
    def example(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A made-up record to try the model with: no person's."""
        ...


MOVED: Final = ("metrics", "loss", "evaluate")
"""What a task had of its own before there were objectives."""
PARTS: Final = (
    "modules",
    "targets",
    "fit",
    "objective",
    "inputs",
    "build",
    "start",
    "finish",
    "adjust",
    "reference",
    "blocks",
    "example",
)


def evaluation_rows(inputs: Sequence[Tensor]) -> int:
    """Rows of a forward pass without gradients over such inputs, of which there are some."""
    values = sum(part[:1].numel() for part in inputs)
    return max(1, min(EVALUATION_ROWS, EVALUATION_VALUES // max(1, values)))


def in_stretches(run: Callable[[slice], Tensor], count: int, rows: int) -> Tensor:
    """The outputs of `count` rows, of so many at a time, as one tensor.

    Each is copied there at once: kept, a small one lies amid the large ones that a run leaves behind, whose memory stays with it.
    """
    found = torch.empty(0)
    for start in range(0, count, rows):
        part = run(slice(start, start + rows))
        if not start:
            found = part.new_empty((count, *part.shape[1:]))
        found[start : start + rows] = part
    return found


def load_task(name: str, hyperparameters: Mapping[str, Any]) -> Task:
    """The task that `spec.training.task` names.

    Raises:
        JobFailure: It cannot be imported, is no task or one of before objectives (TaskImport), or refuses a hyperparameter (SpecInvalid).
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
    stubs: Collection[str] = getattr(found, "__abstractmethods__", ())
    if lacking := [part for part in PARTS if part in stubs or not hasattr(found, part)]:
        raise JobFailure(
            FailureClass.TASK_IMPORT,
            f"spec.training.task {name!r} is no task: it lacks {', '.join(lacking)}",
            "Give the class every attribute and method of mljobs.tasks.Task",
        )
    if ignored := _ignored(found):
        raise JobFailure(
            FailureClass.TASK_IMPORT,
            f"spec.training.task {name!r} overrides {', '.join(ignored)}, which nothing calls: they are its objective's",
            "Give the class a method objective(config) that returns an mljobs.tasks.Objective with them, e.g. a subclass of "
            "one in mljobs.tasks.targets",
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


def _ignored(task: Any) -> list[str]:
    """What a class has in place of its base's objective, and not in one of its own."""
    bases: tuple[type, ...] = getattr(task, "__mro__", ())
    younger = list(itertools.takewhile(lambda base: "objective" not in vars(base), bases))
    return [name for name in MOVED if any(name in vars(base) for base in younger)]
