"""The tabular model and how raw records become its tensors.

Imported by the jobs as `mljobs.tasks.tabular_model`, and by the TorchServe handler
by its base name: the packaging job puts this very file into the archive, so that
training and serving cannot read a record in two ways. Hence it imports torch and
the standard library only, and nothing of this package.
"""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

MISSING: Final = 0
"""Category index of a missing value."""
UNKNOWN: Final = 1
"""Category index of a value not seen in training."""
FIRST_CATEGORY: Final = 2
MISSING_WORDS: Final = frozenset(
    {
        "",
        "?",
        "na",
        "n/a",
        "nan",
        "null",
        "none",
        "nat",
        "<na>",
        "#na",
        "#n/a",
        "-nan",
        "1.#ind",
        "-1.#ind",
        "1.#qnan",
        "-1.#qnan",
        "#null!",
        "#div/0!",
        "#value!",
        "#ref!",
        "#name?",
        "#num!",
        "\\n",
        "#n/a n/a",
    }
)
"""What pandas, R, Excel and databases write for a value that is not there, in small letters."""
LARGEST: Final = 1e38
"""Numbers beyond it count as missing: the difference of two must be a float32."""
THRESHOLD: Final = 0.5
"""A probability from here on predicts the positive class."""
JOINED: Final = "|"
"""Between the names of labels in an answer; as in mlplatform.contract."""
BOOLEAN_WORDS: Final = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
"""How Python, R and spreadsheets write booleans, to how JSON does."""

_SPACES: Final = " \u00a0\u202f\u2009"
_MONEY: Final = r"[$¢£¤¥฿\u20a0-\u20cf]"
_PLAIN: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMBER: Final = {
    decimal: re.compile(
        rf"(?P<sign>[+-]?){_MONEY}?\s*(?P<inner>[+-]?)"
        rf"(?P<digits>(?:[1-9][0-9]{{0,2}}(?:(?P<group>[{grouping}\u2019'{_SPACES}])[0-9]{{3}})(?:(?P=group)[0-9]{{3}})*|[0-9]+)"
        rf"(?:{re.escape(decimal)}[0-9]*)?|{re.escape(decimal)}[0-9]+)(?P<power>[eE][+-]?[0-9]+)?"
        rf"\s*(?:(?P<percent>%)|{_MONEY})?(?P<after>-?)"
    )
    for decimal, grouping in ((".", ","), (",", "."))
}
"""Numbers as people write them, by the sign before the fraction."""
_HEX: Final = re.compile("0x[0-9a-f]{1,16}")
_INFINITE: Final = re.compile("[+-]?inf(?:inity)?")
_FRACTION: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,14})\.[0-9]{1,15}")
"""Text of a category that a program may have written for a number."""

Column = tuple[str, list[Any]]
"""One field of the answers: its type in the Open Inference Protocol, and a value a row."""

SHOWN: Final = 20
"""Columns that a message names at most."""


FORMAT: Final = 1
"""Version of ``preprocessor.json``."""

NESTED: Final = frozenset({list, dict})


class RecordError(ValueError):
    """A record does not fit the schema; the message names the record, the field and the fix."""


class Served:
    """The task's half that travels; see `mljobs.tasks.Served` for what it has.

    Args:
        config: The parsed ``preprocessor.json``.

    Raises:
        RuntimeError: It is of another format.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if config.get("format") != FORMAT:
            msg = f"preprocessor.json has format {config.get('format')}, this code reads {FORMAT}; package the model again"
            raise RuntimeError(msg)
        self._preprocessor = Preprocessor(config)
        self._predictions = predictions(config["label"])
        self.names = self._preprocessor.names
        self.width = len(self.names)

    def read(self, records: Sequence[Sequence[Any] | Mapping[str, Any]], first: int = 0) -> tuple[Tensor, Tensor]:
        """As `Preprocessor.transform`, of records that came as JSON."""
        return self._preprocessor.transform(scalars(records, first), first)

    def answers(self, outputs: Tensor) -> dict[str, Column]:
        """What the label's kind answers."""
        return self._predictions.columns(self._predictions.scores(outputs))


class Preprocessor:
    """Turns raw records into the model's two input tensors.

    Args:
        config: The parsed ``preprocessor.json``: ``features`` (a list in schema order of
            ``{"name", "kind": "numeric", "decimal": "." or ",", …}`` or
            ``{"name", "kind": "categorical", "categories": [str, …], "code": bool}``) and ``ignored``
            (``{column: why}``: a record may have it).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.names: list[str] = [feature["name"] for feature in config["features"]]
        self._known = frozenset(self.names).union(config.get("ignored", ()))
        self._answered = answered(config.get("label", {}))
        self._numeric = [
            (i, f["name"], f.get("decimal", ".")) for i, f in enumerate(config["features"]) if f["kind"] == "numeric"
        ]
        self._categorical = [
            (i, {value: index for index, value in enumerate(f["categories"], FIRST_CATEGORY)}, f.get("code", True))
            for i, f in enumerate(config["features"])
            if f["kind"] == "categorical"
        ]

    def transform(self, records: Sequence[Sequence[Any] | Mapping[str, Any]], first: int = 0) -> tuple[Tensor, Tensor]:
        """Reads records as a client sends them.

        Args:
            records: Each a list of values in schema order, or a mapping of column to value. None, an empty
                string and ``?`` mean missing, as does a column that a mapping lacks.
            first: Number of the first of them, for messages.

        Returns:
            ``(numeric, categorical)`` of shapes ``(n, numeric features)`` float32, missing as NaN, and
            ``(n, categorical features)`` int64.

        Raises:
            RecordError: A record has the wrong number of values, a column that the schema lacks, or a value
                that is no number where one is needed.
        """
        rows = [self._row(record, i) for i, record in enumerate(records, first)]
        return self.transform_columns(list(zip(*rows, strict=True)) if rows else [[] for _ in self.names], first)

    def transform_columns(self, columns: Sequence[Sequence[Any]], first: int = 0) -> tuple[Tensor, Tensor]:
        """Like `transform`, of whole columns in schema order: one pass a column, for data sets and batches.

        Raises:
            RecordError: A value is no number where one is needed.
        """
        size = len(columns[0]) if columns else 0
        numeric = [_numbers(columns[i], name, decimal, first) for i, name, decimal in self._numeric]
        categorical = [_indices(columns[i], categories, code) for i, categories, code in self._categorical]
        return (
            torch.tensor(numeric, dtype=torch.float32).reshape(len(numeric), size).T.contiguous(),
            torch.tensor(categorical, dtype=torch.int64).reshape(len(categorical), size).T.contiguous(),
        )

    def _unknown(self, record: Mapping[str, Any], index: int) -> str:
        """What to do about the columns that are not known."""
        strange = [str(key) for key in record if key not in self._known]
        told = f"record {index}: unknown column {listed([key[:80] for key in strange])}; the columns are {listed(self.names)}"
        if answers := [name[:80] for name in self._answered if name in strange]:
            return f"{told}; {listed(answers)} is what the model answers, leave it out"
        plain = {name.strip().lower(): name for name in self.names}
        meant = {key: plain[bare] for key in strange[:SHOWN] if (bare := key.strip().lower()) in plain}
        if meant:
            return f"{told}; write {', '.join(f'{name!r:.80} for {key!r:.80}' for key, name in meant.items())}"
        return f"{told}; leave it out or correct its name"

    def _row(self, record: Sequence[Any] | Mapping[str, Any], index: int) -> Sequence[Any]:
        if isinstance(record, Mapping):
            if not self._known.issuperset(record):
                raise RecordError(self._unknown(record, index))
            return [record.get(name) for name in self.names]
        if isinstance(record, (str, bytes)) or not isinstance(record, Sequence):
            msg = f"record {index}: expected a list of values or an object of column to value"
            raise RecordError(msg)
        if len(record) != len(self.names):
            msg = (
                f"record {index}: {len(record)} values, expected {len(self.names)}: {listed(self.names)}; "
                "send null for a value that is missing"
            )
            raise RecordError(msg)
        return record


Records = TypeVar("Records", bound=Sequence[Any])


def scalars(records: Records, first: int = 0) -> Records:
    """`records` if no value in them is a list or an object: those would pass for an unknown category.

    Raises:
        RecordError: One is.
    """
    for i, record in enumerate(records, first):
        values = record.values() if isinstance(record, dict) else record if isinstance(record, list) else ()
        if NESTED.isdisjoint(map(type, values)):
            continue
        fields = record.items() if isinstance(record, dict) else enumerate(record)
        field, value = next((field, value) for field, value in fields if type(value) in NESTED)
        msg = f"record {i}: column {field!s:.80} must be a number, a string, a boolean or null, got {quoted(value)}"
        raise RecordError(msg)
    return records


_QUOTE: Final = reprlib.Repr()
_QUOTE.maxstring = _QUOTE.maxother = 80


def quoted(value: Any) -> str:
    """A value for a message, which stays short whatever was sent."""
    return _QUOTE.repr(value)


def listed(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in MISSING_WORDS)


def number(text: str, decimal: str = ".") -> float | None:
    """The number that `text` spells; None if it spells none.

    Thousands may be grouped, a percentage is a hundredth, money may have its sign, parentheses mean less than nothing, and
    hexadecimal is read, too.

    Args:
        text: Without what `MISSING_WORDS` has.
        decimal: The sign before the fraction, of the whole column: ``1,234`` alone could be either.
    """
    if decimal == "." and _PLAIN.fullmatch(text):
        return float(text)
    text = text.strip().replace("\u2212", "-")
    negative = text[:1] == "(" and text[-1:] == ")"
    found = _NUMBER[decimal].fullmatch(text[1:-1].strip() if negative else text)
    if not found:
        return _special(text)
    minus = [found["sign"], found["inner"], found["after"]].count("-") + negative
    if minus > 1 or (found["sign"] and found["inner"]):
        return None
    digits = found["digits"].replace(found["group"], "") if found["group"] else found["digits"]
    value = float(digits.replace(decimal, ".") + (found["power"] or ""))
    return (-1 if minus else 1) * (value / 100 if found["percent"] else value)


def _special(text: str) -> float | None:
    """Hexadecimal, and what is no finite number."""
    digits = text.lower()
    if _HEX.fullmatch(digits):
        return float(int(digits, 16))
    return float(digits) if _INFINITE.fullmatch(digits) else None


def _number(value: Any, decimal: str) -> float:
    """The number that a raw value stands for; NaN if it is missing.

    Raises:
        ValueError: It stands for none.
        TypeError: It is a list or an object.
    """
    if _is_missing(value):
        return math.nan
    if not isinstance(value, str):
        return float(value)
    found = number(value, decimal)
    if found is None:
        raise ValueError
    return found


def _numbers(column: Iterable[Any], name: str, decimal: str, first: int) -> list[float]:
    numbers = []
    for i, value in enumerate(column, first):
        try:
            number = float(value) if type(value) is float or type(value) is int else _number(value, decimal)
        except (TypeError, ValueError, OverflowError):
            msg = (
                f"record {i}: column {name} needs a number, got {quoted(value)}; send null for a value that is missing"
            )
            raise RecordError(msg) from None
        numbers.append(number if abs(number) <= LARGEST else math.nan)
    return numbers


def category(value: Any, *, code: bool = False) -> str | None:
    """The category that a raw value stands for; None if it is missing.

    Numbers are written so that 1, 1.0, "1" and "1.0" are one category, and booleans, also those in words, as JSON
    writes them.

    Args:
        value: Of a file or a request.
        code: Whether the column's text is taken to the letter, because there "1.10" is not 1.1, nor "01" 1.
    """
    if type(value) is str:
        text = value.strip()
        if text.lower() in MISSING_WORDS:
            return None
        return BOOLEAN_WORDS.get(text, text) if code or not _FRACTION.fullmatch(text) else category(float(text))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _indices(column: Iterable[Any], categories: Mapping[str, int], code: bool) -> list[int]:  # noqa: FBT001  of the schema
    known: dict[str, int] = {}
    indices = []
    for value in column:
        index = known.get(value) if type(value) is str else None
        if index is None:
            name = category(value, code=code)
            index = MISSING if name is None else categories.get(name, UNKNOWN)
            if type(value) is str:
                known[value] = index
        indices.append(index)
    return indices


def answered(label: Mapping[str, Any]) -> list[str]:
    """Names of the columns that a model answers.

    Args:
        label: ``label`` of the parsed ``preprocessor.json``; empty where nothing is answered.
    """
    return [each["name"] for each in label.get("labels", [label]) if each]


class BinaryPredictions:
    """What the outputs of a model of two classes mean.

    Args:
        label: ``{"name", "classes": [negative, positive], "threshold", "temperature"}``, the last two where they are not
            `THRESHOLD` and 1.
    """

    outputs = 1

    def __init__(self, label: Mapping[str, Any]) -> None:
        self.classes: list[str] = list(label["classes"])
        self.threshold: float = label.get("threshold", THRESHOLD)
        self._temperature: float = label.get("temperature", 1.0)

    def scores(self, outputs: Tensor) -> Tensor:
        """The positive class's probabilities of logits ``(n,)``."""
        return torch.sigmoid(outputs / self._temperature)

    def columns(self, scores: Tensor) -> dict[str, Column]:
        """The class of each row, and its probability."""
        positive: list[float] = scores.tolist()
        return {
            "prediction": ("BYTES", [self.classes[p >= self.threshold] for p in positive]),
            "confidence": ("FP32", [round(p if p >= self.threshold else 1 - p, 6) for p in positive]),
        }


class MultiClassPredictions:
    """What the outputs of a model of several classes mean.

    Args:
        label: ``{"name", "classes": [str, …], "temperature"}``, the last one where it is not 1.
    """

    def __init__(self, label: Mapping[str, Any]) -> None:
        self.classes: list[str] = list(label["classes"])
        self.outputs = len(self.classes)
        self._temperature: float = label.get("temperature", 1.0)

    def scores(self, outputs: Tensor) -> Tensor:
        """The classes' probabilities of logits ``(n, classes)``."""
        return torch.softmax(outputs / self._temperature, dim=-1)

    def columns(self, scores: Tensor) -> dict[str, Column]:
        """The likeliest class of each row, and its probability."""
        confidence, likeliest = scores.reshape(-1, len(self.classes)).max(dim=1)
        return {
            "prediction": ("BYTES", [self.classes[i] for i in likeliest.tolist()]),
            "confidence": ("FP32", [round(p, 6) for p in confidence.tolist()]),
        }


class MultiLabelPredictions:
    """What the outputs of a model of several labels mean.

    Args:
        label: ``{"labels": [{"name", "classes": [negative, positive]}, …], "temperature"}``, the last one where it is not 1.
    """

    def __init__(self, label: Mapping[str, Any]) -> None:
        self.names = answered(label)
        self.outputs = len(self.names)
        self._temperature: float = label.get("temperature", 1.0)

    def scores(self, outputs: Tensor) -> Tensor:
        """The labels' probabilities of logits ``(n, labels)``."""
        return torch.sigmoid(outputs / self._temperature)

    def columns(self, scores: Tensor) -> dict[str, Column]:
        """The names of the labels that each row has, and the probability of every label."""
        rows: list[list[float]] = scores.reshape(-1, self.outputs).tolist()
        had = [[name for name, p in zip(self.names, row, strict=True) if p >= THRESHOLD] for row in rows]
        return {
            "prediction": ("BYTES", [JOINED.join(names) for names in had]),
            **{name: ("FP32", [round(row[i], 6) for row in rows]) for i, name in enumerate(self.names)},
        }


class RankingPredictions(MultiLabelPredictions):
    """What the outputs of a model that puts rows in order mean.

    Args:
        label: Of several labels, with ``worth``: what each counts, in their order.
    """

    def __init__(self, label: Mapping[str, Any]) -> None:
        super().__init__(label)
        self._worth = torch.tensor(label["worth"], dtype=torch.float64)

    def columns(self, scores: Tensor) -> dict[str, Column]:
        """By what to sort, and the probability of every label."""
        found = super().columns(scores)
        return {**found, "prediction": ("FP32", (scores.reshape(-1, self.outputs).double() @ self._worth).tolist())}


class NumberPredictions:
    """What the outputs of a model of a measured number mean.

    Args:
        label: ``{"name", "mean", "scale"}``, of the training rows.
    """

    outputs = 1

    def __init__(self, label: Mapping[str, Any]) -> None:
        self._mean, self._scale = float(label["mean"]), float(label["scale"])

    def scores(self, outputs: Tensor) -> Tensor:
        """Numbers in the label's own unit, of standardised ones ``(n,)``."""
        return outputs.double() * self._scale + self._mean

    def columns(self, scores: Tensor) -> dict[str, Column]:
        """The number of each row."""
        return {"prediction": ("FP64", scores.tolist())}


Predictions = BinaryPredictions | MultiClassPredictions | MultiLabelPredictions | NumberPredictions


def predictions(label: Mapping[str, Any]) -> Predictions:
    """What the outputs of a model mean.

    Args:
        label: ``label`` of the parsed ``preprocessor.json``; without a ``kind`` it is of two classes.
    """
    return PREDICTIONS[label.get("kind", "binary")](label)


PREDICTIONS: Final[Mapping[str, Callable[[Mapping[str, Any]], Predictions]]] = {
    "binary": BinaryPredictions,
    "multiclass": MultiClassPredictions,
    "multilabel": MultiLabelPredictions,
    "ranking": RankingPredictions,
    "regression": NumberPredictions,
}


class NumericEncoder(nn.Module):
    """Piecewise-linear encoding of numbers (Gorishniy, Rubachev, Babenko 2022), plus an indicator of missing ones.

    A feature with edges e0 < … < eB becomes B values: how far it has passed through each interval, in [0, 1].
    An affine layer on top can then bend at each edge, and an outlier moves no value beyond 1.

    Args:
        features: The numeric features' configuration: ``edges`` (≥ 2 rising numbers).
    """

    source: Tensor
    left: Tensor
    width: Tensor

    def __init__(self, features: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        source, left, width = [], [], []
        for i, feature in enumerate(features):
            edges = feature["edges"]
            source += [i] * (len(edges) - 1)
            left += edges[:-1]
            width += [b - a for a, b in itertools.pairwise(edges)]
        # Not persistent: they follow from the configuration.
        self.register_buffer("source", torch.tensor(source, dtype=torch.int64), persistent=False)
        self.register_buffer("left", torch.tensor(left, dtype=torch.float32), persistent=False)
        self.register_buffer("width", torch.tensor(width, dtype=torch.float32), persistent=False)
        self.size = len(source) + len(features)

    def forward(self, numeric: Tensor) -> Tensor:
        """Encodes ``(n, features)``, NaN as missing, into ``(n, size)`` values in [0, 1]."""
        missing = torch.isnan(numeric)
        spread = numeric.index_select(1, self.source)
        parts = ((spread - self.left) / self.width).clamp(0.0, 1.0)
        parts = torch.where(torch.isnan(parts), torch.zeros_like(parts), parts)
        return torch.cat([parts, missing.to(parts.dtype)], dim=1)


class CategoricalEncoder(nn.Module):
    """One embedding table for all categorical features, so that a batch takes one lookup.

    Args:
        features: The categorical features' configuration: ``categories``.
        width: Size of each feature's embedding.
    """

    offset: Tensor

    def __init__(self, features: Sequence[Mapping[str, Any]], width: int) -> None:
        super().__init__()
        sizes = [len(feature["categories"]) + FIRST_CATEGORY for feature in features]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.register_buffer("offset", torch.tensor(offsets, dtype=torch.int64), persistent=False)
        self.table = nn.Embedding(max(sum(sizes), 1), width)
        # Rows that no training row reaches keep their first value: 0, the mean of the others', favours no class by chance.
        with torch.no_grad():
            for offset in offsets:
                self.table.weight[offset : offset + FIRST_CATEGORY] = 0.0
        self.size = len(features) * width

    def forward(self, categorical: Tensor) -> Tensor:
        """Embeds ``(n, features)`` indices into ``(n, size)``."""
        embedded: Tensor = self.table(categorical + self.offset)
        return embedded.flatten(1)


class Block(nn.Module):
    """Linear, normalisation, activation, dropout: the unit that FSDP shards.

    Args:
        inputs: Width before.
        outputs: Width after.
        dropout: Share of activations dropped in training.
    """

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(n, inputs)`` to ``(n, outputs)``."""
        y: Tensor = self.dropout(self.activation(self.norm(self.linear(x))))
        return y


class TabularModel(nn.Module):
    """A model of tables: encoders, blocks, one output or one a class.

    Args:
        config: The parsed ``preprocessor.json``: ``features``, ``label`` and ``model``
            (``{"hidden": [int, …], "dropout": float, "embedding": int}``).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        model = config["model"]
        self.numeric = NumericEncoder([f for f in config["features"] if f["kind"] == "numeric"])
        categorical = [f for f in config["features"] if f["kind"] == "categorical"]
        self.categorical = CategoricalEncoder(categorical, model["embedding"])
        widths = [self.numeric.size + self.categorical.size, *model["hidden"]]
        self.blocks = nn.ModuleList(
            Block(inputs, outputs, model["dropout"]) for inputs, outputs in itertools.pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], predictions(config["label"]).outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """What `predictions` reads.

        Args:
            numeric: ``(n, numeric features)`` float32, missing as NaN.
            categorical: ``(n, categorical features)`` int64.

        Returns:
            ``(n,)``, or ``(n, classes)`` of more than two classes.
        """
        x = torch.cat([self.numeric(numeric), self.categorical(categorical)], dim=1)
        for block in self.blocks:
            x = block(x)
        outputs: Tensor = self.head(x)
        # FSDP hooks the output, which must be no view; ONNX squeezes no dimension of several.
        return outputs.squeeze(1).clone() if self.head.out_features == 1 else outputs
