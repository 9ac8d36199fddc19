"""What the jobs read of `ModelVersion.spec`.

Called by `report.run` for every job. The operator has validated the object, so
unknown fields are none of the jobs' business; a field that is absent takes the
default of `mlplatform.api`, which a unit test compares with these classes.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mljobs.failure import JobFailure
from mlplatform.contract import ENV_SPEC, FailureClass

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Shares of the rows held out; the rest trains."""

    validation: float = 0.1
    test: float = 0.2
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Where the rows are and what they mean."""

    uri: str
    label: str
    format: str = "csv"
    positive_label: str = ""
    sensitive_attributes: tuple[str, ...] = ()
    split: Split = Split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """A torch.optim optimiser."""

    name: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """Stops when the metric has not improved for `patience` epochs."""

    metric: str = "val_roc_auc"
    mode: str = "max"
    patience: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How often training state is saved, and how many are kept."""

    every_steps: int = 200
    keep: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the model is fitted.

    Attributes:
        batch_size: Rows of one optimiser step, over all processes and accumulated micro-batches: the
            result does not depend on how many pods share the work.
    """

    task: str = "tabular"
    strategy: str = "fsdp"
    precision: str = "bf16"
    gradient_accumulation_steps: int = 1
    activation_checkpointing: bool = False
    epochs: int = 10
    batch_size: int = 512
    optimizer: Optimizer = Optimizer()
    early_stopping: EarlyStopping | None = None
    checkpoint: Checkpoint = Checkpoint()
    seed: int = 7
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A bound on a test metric."""

    metric: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """Upper bounds on group differences, per sensitive attribute."""

    metrics: dict[str, float] = field(default_factory=dict)
    min_group_size: int = 50
    confidence: float = 0.95
    on_failure: str = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """Candidates to measure and how to choose among them."""

    candidates: tuple[str, ...] = ("fp32", "int8-dynamic")
    export: tuple[str, ...] = ("torchscript", "onnx")
    max_metric_drop: float = 0.005
    objective: str = "latency_p99"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """The sections that shape an artifact."""

    data: Data
    training: Training = Training()
    gates: tuple[Gate, ...] = ()
    fairness: Fairness = Fairness()
    optimization: Optimization = Optimization()


def parse(text: str) -> JobSpec:
    """Reads the JSON of ``ModelVersion.spec``.

    Raises:
        JobFailure: It is no JSON, or a value has the wrong type.
    """
    try:
        return typing.cast("JobSpec", _read(JobSpec, json.loads(text), "spec"))
    except (ValueError, TypeError) as error:
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"{ENV_SPEC} cannot be read: {error}",
            "Run the job image of the same release as the operator",
        ) from error


def _json_name(attribute: str) -> str:
    head, *rest = attribute.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _read(hint: Any, raw: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if raw is None else _read(args[0], raw, path)
    if hint is Any:
        return raw
    if dataclasses.is_dataclass(hint):
        mapping = _expect(dict, raw, path)
        hints = typing.get_type_hints(hint)
        names = {f.name: _json_name(f.name) for f in dataclasses.fields(hint)}
        values = {
            name: _read(hints[name], mapping[key], f"{path}.{key}") for name, key in names.items() if key in mapping
        }
        return typing.cast("type", hint)(**values)
    if origin is tuple:
        return tuple(_read(args[0], item, f"{path}[{i}]") for i, item in enumerate(_expect(list, raw, path)))
    if origin is dict:
        return {key: _read(args[1], value, f"{path}.{key}") for key, value in _expect(dict, raw, path).items()}
    return float(raw) if hint is float and type(raw) is int else _expect(hint, raw, path)


def _expect(kind: type[T], raw: Any, path: str) -> T:
    if type(raw) is not kind:
        raise TypeError(f"{path}: expected {kind.__name__}, got {raw!r}")
    return raw
