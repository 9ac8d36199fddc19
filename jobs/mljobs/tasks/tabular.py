"""The built-in task `tabular`: tables with columns of any kind.

Loaded by `tasks.load_task`. The model and the reading of records live in
`tabular_model.py`, which also travels to the serving pods; what is learned from data and
needs numpy, Arrow or scikit-learn is here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from mljobs import data, features, repeats, spool
from mljobs.columns import DECIMAL
from mljobs.data import Parts, Rows
from mljobs.failure import JobFailure, did_you_mean
from mljobs.features import Choice
from mljobs.parting import comparable
from mljobs.tasks import HANDLER, Objective, Targets, Task, adjusting, hyperparameters, reference, targets
from mljobs.tasks.tabular_model import FORMAT, LARGEST, Preprocessor, RecordError, TabularModel, answered, category
from mljobs.tasks.targets import WEIGHTS, by_label, describe
from mlplatform.api import Data, Training
from mlplatform.contract import FailureClass

FEW_ROWS: Final = 1000
"""Of the training: for fewer a second layer learns nothing that holds (docs/adr/0032)."""
ROWS_A_BIN: Final = 30
BINS: Final = (4, 64)
"""Fewest and most."""
MOSTLY: Final = 0.5
"""Share of one value above which a column gets edges of its own for the rest (capital gains are mostly 0)."""
DISTINCT: Final = 1 << 20
"""Different values of a column that are counted at a time; beyond it the rarer half is forgotten."""
MEASURED: Final = 1 << 22
"""Rows whose numbers are sorted for quantiles, evenly spread: 65,536 for each of 64 intervals."""
ROUNDED: Final = 2
"""Digits of an example's number beyond the first one of its column's range: a hundredth of the range is fine enough."""


@dataclass(frozen=True, slots=True)
class Hyperparameters(hyperparameters.Hyperparameters):
    """What `spec.training.hyperparameters` may hold.

    Attributes:
        hidden: Widths of the hidden layers; None: one layer of 128 for fewer than 1,000 training rows, else 256 and 128.
        dropout: Share of activations dropped in training, in [0, 1).
        embedding: Width of each categorical feature's embedding.
        bins: Intervals of each numeric feature's encoding; None: one for 30 training rows, 4 to 64.
        exclude: Columns that are not features: identifiers, sampling weights, what must not be used.
        maxCategories: Most frequent values kept of a categorical feature; the rest counts as unknown.
        classWeights: ``balanced`` lets every class count as much in the loss, however rare it is.
    """

    hidden: tuple[int, ...] | None = None
    dropout: float = 0.1
    embedding: int = 8
    bins: int | None = None
    exclude: tuple[str, ...] = ()
    maxCategories: int = 1000  # noqa: N815  the name in the YAML
    classWeights: str = "none"  # noqa: N815  likewise

    @property
    def checks(self) -> dict[str, bool]:
        """By name, whether a value makes sense."""
        return {
            "hidden": self.hidden is None or (_all(self.hidden, int) and min(self.hidden, default=0) > 0),
            "dropout": isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1,
            "embedding": type(self.embedding) is int and self.embedding > 0,
            "bins": self.bins is None or (type(self.bins) is int and self.bins > 0),
            "exclude": _all(self.exclude, str),
            "maxCategories": type(self.maxCategories) is int and self.maxCategories > 0,
            "classWeights": self.classWeights in WEIGHTS,
        }


def _is_code(values: Iterable[Any]) -> bool:
    """Whether different texts of a column would be one number: then each is what it says."""
    texts = {value.strip() for value in values if isinstance(value, str)}
    return len({category(text) for text in texts}) < len({category(text, code=True) for text in texts})


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, tuple) and all(type(value) is kind for value in values)


class TabularTask(Task):
    """Prediction of a column of a table; see `tasks.Task` for the methods.

    Args:
        hyperparameters: `spec.training.hyperparameters`.
        settings: What a task that builds on this one has read of them.
    """

    modules: Sequence[str] = (HANDLER, "mljobs.tasks.tabular_model")

    def __init__(self, hyperparameters: Mapping[str, Any], settings: Hyperparameters | None = None) -> None:
        super().__init__(hyperparameters)
        self._hyper = settings or Hyperparameters.read(hyperparameters)

    def targets(self, table: pa.Table, asked: Data) -> Targets:
        """What the label's column says, by `mljobs.tasks.targets`."""
        return targets.read(table, asked)

    def objective(self, config: Mapping[str, Any]) -> Objective:
        """Likewise."""
        return targets.objective(config["label"])

    def choose(self, rows: Rows, targets: Targets, parts: Parts, asked: Data) -> Choice:
        """What the model does not learn from, by `mljobs.features` and `mljobs.repeats`."""
        table, excluded = rows.table, (*self._hyper.exclude, *filter(None, [asked.weight]))
        # What is not for memory is judged by some rows.
        some = spool.some(table)
        found = features.choose(
            data.take(table, some), rows.numbered, by_label(targets, some), asked, excluded, len(some) / len(table)
        )
        learned = set(table.column_names).difference(found.left_out, excluded)
        return repeats.counted(rows, learned, parts, asked.split.max_repeated, found)

    def fit(self, table: pa.Table, targets: Targets, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Schema in the order of the columns, with categories and quantiles of the training rows.

        Raises:
            JobFailure: `exclude` names no column, or no feature is left.
        """
        for name in self._hyper.exclude:
            if name not in table.column_names:
                raise JobFailure(
                    FailureClass.DATA_INVALID,
                    f"hyperparameters.exclude names {name!r}, which the data lacks{did_you_mean(name, table.column_names)}",
                    "Correct spec.training.hyperparameters.exclude",
                )
        names = [
            name
            for name in table.column_names
            if name not in answered(targets.label) and name not in self._hyper.exclude
        ]
        for name in names:
            if not comparable(table.column(name).type):
                raise JobFailure(
                    FailureClass.DATA_INVALID,
                    f"the column {name!r} holds {table.column(name).type}; a feature is a number, text, a boolean or a time",
                    f"Make columns of its elements, or leave it out with spec.data.columns: {{{json.dumps(name, ensure_ascii=False)}: "
                    "ignore} or spec.training.hyperparameters.exclude",
                )
        few = rows[:: math.ceil(len(rows) / MEASURED)]
        found = {
            name: self._numeric(table.schema.field(name), spool.chosen(table.column(name), few))
            if self.measured(table.schema.field(name))
            else self._categorical(name, spool.chosen(table.column(name), rows))
            for name in names
        }
        features = [feature for feature in found.values() if feature]
        if not features:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                "no column with two or more values is left as a feature",
                "Add columns to the data, or leave out fewer in spec.data.columns and spec.training.hyperparameters.exclude",
            )
        hidden = self._hyper.hidden or ((128,) if len(rows) < FEW_ROWS else (256, 128))
        model = {"hidden": list(hidden), "dropout": self._hyper.dropout, "embedding": self._hyper.embedding}
        return {
            "format": FORMAT,
            "features": features,
            "label": describe(targets, rows, self._hyper.classWeights),
            "ignored": {
                **{
                    name: "it has one value or none in the training rows"
                    for name, feature in found.items()
                    if not feature
                },
                **dict.fromkeys(self._hyper.exclude, "spec.training.hyperparameters.exclude names it"),
            },
            "model": model,
        }

    def measured(self, column: pa.Field) -> bool:
        """Whether a column's numbers measure something, and are not names."""
        return _is_number(column.type)

    def _numeric(self, field: pa.Field, chunks: Iterator[pa.Array]) -> dict[str, Any] | None:
        """A column of numbers: its schema and its quantiles; None if it is the same in all rows."""
        values = np.concatenate([spool.numbers(chunk.drop_null()) for chunk in chunks])
        bins = self._hyper.bins or min(BINS[1], max(BINS[0], len(values) // ROWS_A_BIN))
        edges = quantile_edges(values[np.abs(values) <= LARGEST], bins)
        decimal = (field.metadata or {}).get(DECIMAL, b".").decode()
        return {"name": field.name, "kind": "numeric", "edges": edges, "decimal": decimal} if edges else None

    def _categorical(self, name: str, chunks: Iterator[pa.Array]) -> dict[str, Any] | None:
        """Any other column: its schema and its categories; None if it is the same in all rows."""
        exact: Counter[Any] = Counter()
        for chunk in chunks:
            counted = chunk.value_counts()
            exact.update(dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)))
            if len(exact) > DISTINCT:
                exact = Counter(dict(exact.most_common(DISTINCT // 2)))
        code = _is_code(exact)
        counts: Counter[str] = Counter()
        for value, count in exact.items():
            if (word := category(value, code=code)) is not None:
                counts[word] += count
        if len(counts) < 2 and counts.total() in {0, exact.total()}:  # noqa: PLR2004  no two values, nor one that may lack
            return None
        frequent = [word for word, _ in counts.most_common(self._hyper.maxCategories)]
        # The commonest one is for whoever wants to try the model; the model itself does not read it.
        common = {"common": frequent[0]} if frequent else {}
        return {"name": name, "kind": "categorical", "categories": sorted(frequent), "code": code, **common}

    def adjust(
        self, config: Mapping[str, Any], targets: npt.NDArray[Any], outputs: Tensor, training: Training
    ) -> dict[str, Any]:
        """By `mljobs.tasks.adjusting`."""
        return {**config, "label": adjusting.adjusted(config["label"], targets, outputs, training)}

    def reference(
        self, config: Mapping[str, Any], inputs: Sequence[Tensor], targets: npt.NDArray[Any]
    ) -> dict[str, Any]:
        """By `mljobs.tasks.reference`."""
        return reference.profile(config, inputs, targets)

    def inputs(self, config: Mapping[str, Any], table: pa.Table) -> tuple[Tensor, ...]:
        """``(numeric, categorical)`` as `Preprocessor` makes them.

        Raises:
            JobFailure: The data lacks a column of the schema, or a number is none.
        """
        features = config["features"]
        if missing := [feature["name"] for feature in features if feature["name"] not in table.column_names]:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the data lacks {', '.join(missing)}, which the model was trained on",
                "Retrain the model on the present data",
            )
        kinds = [[feature for feature in features if feature["kind"] == kind] for kind in ("numeric", "categorical")]
        found = tuple(
            torch.empty((table.num_rows, len(some)), dtype=dtype)
            for some, dtype in zip(kinds, (torch.float32, torch.int64), strict=True)
        )
        try:
            for part, some in zip(found, kinds, strict=True):
                for i, feature in enumerate(some):
                    part[:, i] = encoded(feature, table.column(feature["name"]).combine_chunks())
        except RecordError as error:
            raise JobFailure(FailureClass.DATA_INVALID, str(error), "Correct the value in the data") from error
        return found

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A `TabularModel`."""
        return TabularModel(config)

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The model's hidden blocks."""
        return [block for name, block in model.named_children() if name == "blocks" for block in block.children()]

    def example(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The commonest value of each column, or one from its middle: statistics, which are no person's row."""
        return {
            feature["name"]: example_number(feature["edges"]) if feature["kind"] == "numeric" else feature.get("common")
            for feature in config["features"]
        }


def encoded(feature: Mapping[str, Any], column: pa.Array) -> Tensor:
    """A column as `Preprocessor` reads it, ``(rows,)``; of each distinct value it is asked once.

    Raises:
        RecordError: A value is no number where one is needed.
    """
    if feature["kind"] == "numeric" and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        values = torch.from_numpy(spool.numbers(column))
        return torch.where(values.abs() <= LARGEST, values, math.nan).float()
    known = column.dictionary_encode()
    read = Preprocessor({"features": [feature]}).transform_columns([[*known.dictionary.to_pylist(), None]])
    codes = known.indices.fill_null(len(known.dictionary)).to_numpy(zero_copy_only=False)
    one = next(part for part in read if part.shape[1])
    return one[:, 0][torch.from_numpy(codes.astype(np.int64))]


def example_number(edges: Sequence[float]) -> float:
    """About the middle one of a column's edges, an integer where the column holds integers as far as its edges tell.

    A column that begins at 0 gets 0: of one that is mostly 0, as capital gains are, the edges divide the rest.

    Args:
        edges: Two or more quantiles, rising; the first and the last are values of the column.
    """
    low, high = edges[0], edges[-1]
    value = 0.0 if low == 0 else round(edges[len(edges) // 2], ROUNDED - math.floor(math.log10(high - low)))
    value = min(max(value, low), high) + 0.0  # no -0.0
    # Quantiles of integers may lie between them, so the ends count, if there are integers enough for all edges.
    whole = float(low).is_integer() and float(high).is_integer()
    dense = high - low >= len(edges) or all(float(edge).is_integer() for edge in edges)
    return round(value) if whole and dense else value


def quantile_edges(values: npt.NDArray[np.float64], bins: int) -> list[float]:
    """Rising edges at quantiles of `values`, and where one value dominates also at quantiles of the others.

    Returns:
        2 to ``2 * bins + 2`` edges, distinct in float32; none if there are no two distinct values.
    """
    if not len(values):
        return []
    shares = np.linspace(0, 1, bins + 1)
    edges = np.quantile(values, shares)
    middle = np.median(values)
    if np.mean(values == middle) > MOSTLY and (values != middle).any():
        edges = np.concatenate([edges, np.quantile(values[values != middle], shares)])
    distinct = np.unique(edges.astype(np.float32)).astype(np.float64)
    return distinct.tolist() if len(distinct) > 1 else []
