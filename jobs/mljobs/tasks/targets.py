"""What a table's label asks to be learned, and what each kind of it means to every stage.

Called by the task `tabular`. `read` looks at the table; an objective is made of the configuration alone.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from mljobs import data, spool
from mljobs.failure import JobFailure, did_you_mean, row_words
from mljobs.fairness import Means, point_estimates
from mljobs.files import SHOWN
from mljobs.tasks import Objective, Strata, Targets, constant
from mljobs.tasks.tabular_model import THRESHOLD, BinaryPredictions, answered, category, number, predictions
from mlplatform.api import Data, Fairness
from mlplatform.contract import TARGET_FAIRNESS, TARGET_METRICS, FailureClass

WEIGHTS: Final = ("none", "balanced")
"""What `describe` knows."""

Codes = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.str_]

ACCURACY: Final = "accuracy"
CLASSES_LEAST: Final = {"auto": 2, "binary": 2, "multiclass": 3}
TRUTH: Final = {"1": "true", "0": "false"}
"""What else stands for a boolean."""
CLASSES_LIMIT: Final = 100
"""Of more distinct values a label is no class."""
FEW: Final = 5
"""Cells of a row that a message shows; rows of a class that is meant."""
STRETCH: Final = 1 << 18
"""Rows of which scikit-learn takes a mean at a time: it makes a hundred bytes of each."""
CLIP: Final = 1e-7
"""Probabilities are kept this far from 0 and 1 in the logarithmic loss: float32 sigmoids reach both."""


def read(table: pa.Table, asked: Data) -> Targets:
    """What is to be learned.

    Raises:
        JobFailure: The label's column is missing, incomplete, not of the kind that is asked for, or of no kind that can be told.
    """
    if asked.labels:
        return of_labels(table, asked)
    if (measured := _measured(table, asked)) is not None:
        return _numbers(measured, asked)
    codes, classes = _classes(table, asked, "spec.data.label")
    return READ[guess(codes, classes, asked) if asked.target == "auto" else asked.target](codes, classes, asked)


def _classes(table: pa.Table, asked: Data, field: str) -> tuple[Codes, list[str]]:
    """Of each row the number of its value, and the distinct values in order; `field` names the label.

    Raises:
        JobFailure: The column is missing or incomplete.
    """
    found, missing = _words(table, asked, field)
    if len(blank := np.flatnonzero(found.codes == found.blank)):
        if len(blank) == len(found.codes):
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the label column {asked.label!r} has no value in any row",
                "Point spec.data.label at a column that has some, or fill it",
            )
        shown, row = ", ".join(map(repr, sorted(missing))), int(blank[0])
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{len(blank)} of {len(found.codes)} rows have no value in the label column {asked.label!r}"
            + (f" ({shown} counts as missing)" if missing else "")
            + f": first {row_words(row)} ({_cells(table, row)})",
            "Remove these rows (a total, a remark at the end of a file) or complete them"
            + ("; write a class as another word" if missing else ""),
            row,
        )
    words = [word for word in found.words if word is not None]
    classes = sorted(words, key=_order)
    _refuse_spellings(classes, asked)
    places = {name: place for place, name in enumerate(classes)}
    return np.array([places.get(word or "", -1) for word in found.words], dtype=np.int32)[found.codes], classes


def _refuse_spellings(classes: Sequence[str], asked: Data) -> None:
    """Refuses classes that are the same word in two spellings, unless the specification says how many classes there are."""
    if asked.target == "multiclass" or (asked.target == "binary" and len(classes) == 2):  # noqa: PLR2004  binary
        return
    spelled: dict[str, list[str]] = {}
    for name in classes:
        spelled.setdefault(TRUTH.get(name.casefold(), name.casefold()), []).append(name)
    same = [" and ".join(map(repr, names)) for names in spelled.values() if len(names) > 1]
    if same:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the label column {asked.label!r} spells a class in two ways: {', '.join(same[:FEW])}",
            "Write each class in one way; spec.data.target: multiclass takes each spelling for a class of its own",
        )


def _measured(table: pa.Table, asked: Data) -> Floats | None:
    """The values of a column of numbers, where it is certain that they are measured; else they are looked at one by one."""
    if asked.label not in table.column_names or asked.target not in {"auto", "regression"} or asked.positive_label:
        return None
    column = table.column(asked.label)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    seen: set[Any] = set()
    for chunk in spool.chunks(column):
        seen.update(chunk.unique().to_pylist())
        if len(seen) > CLASSES_LIMIT:
            break
    else:
        return None
    values = np.concatenate([spool.numbers(chunk) for chunk in spool.chunks(column)])
    return values if np.isfinite(values).all() else None  # what is missing or none is named below


def _cells(table: pa.Table, row: int) -> str:
    """What stands in the other columns of a row."""
    cells = {name: column[row].as_py() for name, column in zip(table.column_names, table.columns, strict=True)}
    shown = [f"{name} {value!r:.40}" for name, value in cells.items() if value is not None]
    return ", ".join(shown[:FEW]) + (", …" if len(shown) > FEW else "") or "it is empty"


def _stray(codes: Codes, classes: Sequence[str]) -> tuple[str, int]:
    """Of a few classes one that is in a single row, and which row that is: a total, or a typo; else nothing and -1."""
    counts = np.bincount(codes, minlength=len(classes)) if len(classes) <= SHOWN else np.empty(0, dtype=np.int64)
    alone = np.flatnonzero(counts == 1)
    if len(alone) != 1 or (counts > FEW).sum() < 2:  # noqa: PLR2004  the classes that are meant
        return "", -1
    row = int(np.flatnonzero(codes == alone[0])[0])
    return f"; {classes[alone[0]]!r} is in {row_words(row)} alone", row


REMOVE: Final = "Remove that row if it is a total or a typo. "


def _words(table: pa.Table, asked: Data, field: str) -> tuple[data.Coded, set[str]]:
    """The label's values, and which words for missing are in place of some.

    One that is needed is a class: None of Yes and None, or of Low, High and None where several classes are asked for.
    """
    found = data.coded(table, asked.label, field)
    if None not in found.words:
        return found, set()
    values = {value for chunk in spool.chunks(table.column(asked.label)) for value in chunk.unique().to_pylist()}
    missing = {value.strip() for value in values if isinstance(value, str) and category(value) is None} - {""}
    if len(missing) == 1 and len(found.words) == CLASSES_LEAST.get(asked.target, 0):
        return data.coded(table, asked.label, field, _or_text), set()
    return found, missing


def _or_text(value: Any) -> str | None:
    """A value's category, or else the word that it is."""
    word = category(value)
    return (value.strip() or None) if word is None and isinstance(value, str) else word


def guess(codes: Codes, classes: Sequence[str], asked: Data) -> str:
    """What kind of a label these values are of.

    Args:
        codes: Of all rows, which one each has.
        classes: The distinct ones.
        asked: Its name; whoever names a positive class has said that there are two.

    Raises:
        JobFailure: They could be of more than one kind: a guess would learn the wrong thing without a word.
    """
    if len(classes) <= 2 or asked.positive_label:  # noqa: PLR2004  binary
        return "binary"
    numbers = [number(name) for name in classes]
    if None in numbers:
        return "multiclass"
    if len(classes) > CLASSES_LIMIT or not all(value.is_integer() for value in numbers if value is not None):
        return "regression"
    stray, row = _stray(codes, classes)
    raise JobFailure(
        FailureClass.DATA_INVALID,
        f"the label column {asked.label!r} has {len(classes)} different whole numbers ({_shown(classes)}), which may be "
        f"classes or a measured number{stray}",
        (REMOVE if stray else "")
        + "Set spec.data.target to multiclass or regression; with binary, point spec.data.label at a column of two classes",
        row,
    )


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:SHOWN]) + (", …" if len(classes) > SHOWN else "")


def of_two_classes(codes: Codes, classes: list[str], asked: Data) -> Targets:
    """Which rows are positive.

    The positive class is `asked.positive_label`, or else the last in order: 1 of 0 and 1, yes of no and yes.

    Args:
        codes: Of each row the number of its value.
        classes: Its distinct values, in order.
        asked: Names of the label and the positive class.

    Raises:
        JobFailure: There are not two classes, or the positive class is none of them.
    """
    if len(classes) != 2:  # noqa: PLR2004  binary
        stray, row = _stray(codes, classes)
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the label column {asked.label!r} has {len(classes)} distinct value(s) ({_shown(classes)}); two are needed{stray}",
            (REMOVE if stray else "")
            + "Point spec.data.label at a column of two classes, or derive one"
            + ("; spec.data.target says what other labels are" if len(classes) > 2 else ""),  # noqa: PLR2004  likewise
            row,
        )
    # By its value, as a cell is read: 1.0 is 1, and True is true.
    named = asked.positive_label if asked.positive_label in classes else category(asked.positive_label)
    if asked.positive_label and named not in classes:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"spec.data.positiveLabel {asked.positive_label!r} is no value of {asked.label!r}"
            f"{did_you_mean(asked.positive_label, classes)}",
            f"Set spec.data.positiveLabel to one of {', '.join(map(repr, classes))}",
        )
    positive = (named if asked.positive_label else None) or classes[1]
    negative = next(name for name in classes if name != positive)
    flags = codes == classes.index(positive)
    strata = Strata(flags.astype(np.int8), ("the negative class", "the positive class"))
    return Targets(flags, strata, {"name": asked.label, "classes": [negative, positive]})


def of_classes(codes: Codes, classes: list[str], asked: Data) -> Targets:
    """Which of several classes each row is of.

    Args:
        codes: Of each row the number of its value.
        classes: Its distinct values, in order.
        asked: The label's name.

    Raises:
        JobFailure: There are fewer than three classes, or too many.
    """
    if len(classes) < 3:  # noqa: PLR2004  with two, one of them is positive
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the label column {asked.label!r} has {len(classes)} distinct value(s) ({_shown(classes)}); three or more "
            "are needed",
            "Set spec.data.target to binary where there are two classes, or point spec.data.label at another column",
        )
    if len(classes) > CLASSES_LIMIT:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the label column {asked.label!r} has {len(classes)} distinct values ({_shown(classes)}), over "
            f"{CLASSES_LIMIT} classes",
            "Point spec.data.label at a column of classes, or set spec.data.target to regression if it is a measured "
            "number",
        )
    found = codes.astype(np.int64)
    strata = Strata(codes, [f"the class {name!r}" for name in classes])
    return Targets(found, strata, {"name": asked.label, "kind": "multiclass", "classes": classes})


def of_labels(table: pa.Table, asked: Data) -> Targets:
    """Which of several labels each row has: of each column it is the greater of its two values.

    A part gets its share of the rows by the rarest value that each has.

    Raises:
        JobFailure: A column is missing or incomplete, or does not have two values.
    """
    flags = np.empty((table.num_rows, len(asked.labels)), dtype=np.bool_)
    known, needed = [], {}
    strata, rarest = np.zeros(table.num_rows, dtype=np.int16), np.full(table.num_rows, table.num_rows + 1)
    for i, name in enumerate(asked.labels):
        one = dataclasses.replace(asked, label=name, labels=(), target="binary")
        codes, classes = _classes(table, one, "spec.data.labels")
        if len(classes) != 2:  # noqa: PLR2004  had or not
            stray, row = _stray(codes, classes)
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"the label column {name!r} has {len(classes)} distinct value(s) ({_shown(classes)}), and each of "
                f"spec.data.labels needs two{stray}",
                (REMOVE if stray else "")
                + "Make a column of two values for each of its classes, or take it out of spec.data.labels",
                row,
            )
        flags[:, i] = codes == 1
        known.append({"name": name, "classes": classes})
        for place, word in enumerate(classes):
            there = codes == place
            needed[f"{word!r} of the label {name!r}"] = there
            rarer = there & (rarest > (count := int(there.sum())))
            strata[rarer], rarest[rarer] = 2 * i + place, count
    names = list(needed)
    return Targets(flags, Strata(strata, names, 0, needed), {"kind": "multilabel", "labels": known})


def by_label(found: Targets, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """By label the numbers of the classes of some rows; of a measured one all are 0."""
    if "labels" not in found.label:
        return {found.label["name"]: found.strata.codes[rows].astype(np.int64)}
    flags = found.values[rows].astype(np.int64)
    return {each["name"]: flags[:, i] for i, each in enumerate(found.label["labels"])}


def of_numbers(codes: Codes, classes: list[str], asked: Data) -> Targets:
    """The number of each row.

    Args:
        codes: Of each row the number of its value.
        classes: Its distinct values, in order.
        asked: The label's name.

    Raises:
        JobFailure: A value is no number, or all are the same.
    """
    # The table has numbers already, if all of them are: what is left is to name the others.
    decimal = min(".,", key=lambda sign: sum(number(name, sign) is None for name in classes))
    known = {name: number(name, decimal) for name in classes}
    if bad := [name for name, value in known.items() if value is None or not math.isfinite(value)]:
        rows = np.flatnonzero(np.isin(codes, [classes.index(name) for name in bad]))
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{len(rows)} of {len(codes)} rows have no number in the label column {asked.label!r}: the first is "
            f"{row_words(int(rows[0]))} with {classes[codes[rows[0]]]!r}",
            "Correct or remove these rows, or set spec.data.target to multiclass if the values are classes",
            int(rows[0]),
        )
    if len(classes) < 2:  # noqa: PLR2004  nothing to tell apart
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the label column {asked.label!r} has {classes[0]} in every row",
            "Point spec.data.label at a column whose values differ",
        )
    return _numbers(np.array([known[name] for name in classes], dtype=np.float64)[codes], asked)


def _numbers(values: Floats, asked: Data) -> Targets:
    strata = Strata(np.zeros(len(values), dtype=np.int8), ("the data",), least=2)
    return Targets(values, strata, {"name": asked.label, "kind": "regression"})


READ: Final[Mapping[str, Callable[[Codes, list[str], Data], Targets]]] = {
    "binary": of_two_classes,
    "multiclass": of_classes,
    "regression": of_numbers,
}


def describe(found: Targets, rows: npt.NDArray[np.int64], weights: str = "none") -> dict[str, Any]:
    """``label`` of the configuration.

    Args:
        found: Of the whole table.
        rows: Of the training: only they may tell a mean, or how rare a class is.
        weights: ``balanced`` lets all rows of a class together count as much as those of any other, ``none`` each row.

    Raises:
        JobFailure: A measured label has no classes to weigh.
    """
    if found.label.get("kind") == "regression":
        if weights != "none":
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"spec.training.hyperparameters.classWeights is {weights}, and the label is measured: it has no classes",
                "Take it out; if the label is of classes, set spec.data.target",
            )
        part = found.values[rows]
        return {**found.label, "mean": float(part.mean()), "scale": float(part.std()) or 1.0}
    if weights == "none":
        return dict(found.label)
    if "labels" in found.label:
        had = found.values[rows].sum(axis=0)
        return {**found.label, "weights": (len(rows) / (2 * np.stack([len(rows) - had, had], axis=1))).tolist()}
    counts = np.bincount(found.values[rows].astype(np.int64), minlength=len(found.label["classes"]))
    return {**found.label, "weights": (len(rows) / (len(counts) * counts)).tolist()}


def _weighed(losses: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """The rows' losses, each times its class's weight; the mean weight is 1."""
    if not weights:
        return losses
    return losses * torch.tensor(weights, dtype=losses.dtype, device=losses.device)[targets.long()]


def _decided(label: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows have decided, here and in `mljobs.tasks.adjusting`."""
    return {name: label[name] for name in ("threshold", "temperature", "weights") if name in label}


def mean_of(metric: Callable[[Any, Any], float], targets: npt.NDArray[Any], scores: Floats) -> float:
    """A metric that is a mean over the rows, a stretch at a time."""
    starts = range(0, len(targets), STRETCH)
    found = [metric(targets[i : i + STRETCH], scores[i : i + STRETCH]) for i in starts]
    return float(np.average(found, weights=[len(targets[i : i + STRETCH]) for i in starts]))


def selection(name: str) -> str:
    """The rate that is the share of rows of which a class is predicted."""
    return f"selection_rate of {name}"


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before words by the alphabet."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


class Target(Objective):
    """What all of them have: groups that all get one answer differ in nothing, whatever is done to them, so that is not shown."""

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Each row's loss, ``(rows,)``."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Their mean."""
        return self.losses(outputs, targets).mean()

    @abstractmethod
    def compared(self, groups: Words, targets: Any, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """As `compare`, whatever is answered."""

    @abstractmethod
    def differing(self, groups: Words, targets: Any, scores: Floats, smallest: int) -> dict[str, float]:
        """As `differences`, likewise."""

    def compare(self, groups: Words, targets: Any, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """Rates by group, and their differences."""
        found = self.compared(groups, targets, scores, asked)
        return {**found, "differences": {}} if self.constant(targets, scores)["always"] else found

    def differences(self, groups: Words, targets: Any, scores: Floats, smallest: int) -> dict[str, float]:
        """Likewise."""
        return {} if self.constant(targets, scores)["always"] else self.differing(groups, targets, scores, smallest)


class Binary(Target):
    """One class of two; see `tasks.Objective` for what it has.

    Targets are flags: whether a row is positive. Scores are the positive class's probabilities.

    Args:
        label: ``label`` of the configuration.
    """

    kind = "binary"
    metrics: Sequence[str] = TARGET_METRICS["binary"]
    fairness: Sequence[str] = TARGET_FAIRNESS["binary"]
    unit = "probability"
    shares = True
    titles: Mapping[str, str] = {
        "selection_rate": "Selection rate: share predicted positive",
        "true_positive_rate": "True positive rate: share found of those who are positive",
        "false_positive_rate": "False positive rate: share flagged of those who are negative",
    }

    def __init__(self, label: Mapping[str, Any]) -> None:
        self._predictions = BinaryPredictions(label)
        self._classes: list[str] = list(label["classes"])
        self._weights: Sequence[float] = label.get("weights", ())
        self.learned: Mapping[str, Any] = {"target": self.kind, "classes": self._classes, **_decided(label)}
        self._threshold = self._predictions.threshold
        self.about: Mapping[str, Any] = {"positiveClass": self._classes[1], "threshold": self._threshold}
        self.sentence = f"Positive class: {self._classes[1]}, predicted from a probability of {self._threshold:.4g}."

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, weighed by class where that is asked for."""
        losses = nn.functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        return _weighed(losses, targets, self._weights)

    def scores(self, outputs: Tensor) -> Tensor:
        """The positive class's probabilities."""
        return self._predictions.scores(outputs)

    def evaluate(self, targets: Flags, scores: Floats) -> dict[str, float]:
        """The metrics of `contract.TARGET_METRICS`, by scikit-learn."""
        from sklearn import metrics as sk  # noqa: PLC0415  takes a second, and packaging scores nothing

        predicted, targets = scores >= self._threshold, targets.astype(np.int8)  # which has a copy made of it often
        found = {
            "roc_auc": sk.roc_auc_score(targets, scores),
            "average_precision": sk.average_precision_score(targets, scores),
            "accuracy": sk.accuracy_score(targets, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(targets, predicted),
            "f1": sk.f1_score(targets, predicted, zero_division=0.0),
            "log_loss": mean_of(lambda y, p: sk.log_loss(y, p.clip(CLIP, 1 - CLIP), labels=[0, 1]), targets, scores),
            "brier_score": mean_of(lambda y, p: sk.brier_score_loss(y, p, labels=[0, 1]), targets, scores),
        }
        return {name: float(value) for name, value in found.items()}

    def off(self, answer: Mapping[str, Any], wanted: Any) -> float:
        """How far the positive class's probability is from the one that is wanted."""
        confidence: float = answer["confidence"]
        return abs(float((confidence if answer["prediction"] == self._classes[1] else 1 - confidence) - wanted))

    def compared(self, groups: Words, targets: Flags, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """Selection, true and false positive rates."""
        from mljobs.tasks import comparison  # noqa: PLC0415  fairlearn takes seconds, and only the audit needs it

        return comparison.of_two_classes(groups, targets, scores >= self._threshold, asked)

    def differing(self, groups: Words, targets: Flags, scores: Floats, smallest: int) -> dict[str, float]:
        """Likewise."""
        return point_estimates(groups, targets, scores >= self._threshold, smallest)

    def constant(self, targets: Flags, scores: Floats) -> dict[str, Any]:
        """Beside one class for all rows."""
        return constant.of_classes(
            self._classes, targets.astype(np.int64), (scores >= self._threshold).astype(np.int64)
        )


class MultiClass(Target):
    """One class of three or more; see `tasks.Objective` for what it has.

    Targets are the classes' numbers. Scores are the probabilities of all classes, ``(rows, classes)``.

    Args:
        label: ``label`` of the configuration.
    """

    kind = "multiclass"
    metrics: Sequence[str] = TARGET_METRICS["multiclass"]
    fairness: Sequence[str] = TARGET_FAIRNESS["multiclass"]
    unit = "probability"
    shares = True

    def __init__(self, label: Mapping[str, Any]) -> None:
        self._predictions = predictions(label)
        self._classes: list[str] = list(label["classes"])
        self._weights: Sequence[float] = label.get("weights", ())
        self.learned: Mapping[str, Any] = {"target": self.kind, "classes": self._classes, **_decided(label)}
        self.about: Mapping[str, Any] = {"classes": self._classes}
        self.sentence = f"Of {len(self._classes)} classes the likeliest is predicted."
        self.titles: Mapping[str, str] = {
            ACCURACY: "Accuracy: share predicted right",
            **{selection(name): f"Selection rate: share predicted {name}" for name in self._classes[:SHOWN]},
        }

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, likewise."""
        return _weighed(nn.functional.cross_entropy(outputs, targets, reduction="none"), targets, self._weights)

    def scores(self, outputs: Tensor) -> Tensor:
        """The classes' probabilities."""
        return self._predictions.scores(outputs)

    def evaluate(self, targets: Codes, scores: Floats) -> dict[str, float]:
        """The metrics of `contract.TARGET_METRICS`, by scikit-learn."""
        from sklearn import metrics as sk  # noqa: PLC0415  as above

        predicted, every = scores.argmax(axis=1), np.arange(len(self._classes))

        def lost(targets: Codes, scores: Floats) -> float:
            clipped = scores.clip(CLIP, 1)
            return float(sk.log_loss(targets, clipped / clipped.sum(axis=1, keepdims=True), labels=every))

        found = {
            "roc_auc": sk.roc_auc_score(targets, scores, multi_class="ovr", labels=every),
            "accuracy": sk.accuracy_score(targets, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(targets, predicted),
            "macro_f1": sk.f1_score(targets, predicted, labels=every, average="macro", zero_division=0.0),
            "log_loss": mean_of(lost, targets, scores),
        }
        return {name: float(value) for name, value in found.items()}

    def off(self, answer: Mapping[str, Any], wanted: Any) -> float:
        """How far the probability of the class that was answered is from its own."""
        return abs(float(answer["confidence"] - wanted[self._classes.index(answer["prediction"])]))

    def compared(self, groups: Words, targets: Codes, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """Accuracy, and each class's selection rate."""
        from mljobs.tasks import comparison  # noqa: PLC0415  as above

        means = self._means(targets, scores)
        return comparison.of_classes(groups, targets, scores.argmax(axis=1), means, asked)

    def differing(self, groups: Words, targets: Codes, scores: Floats, smallest: int) -> dict[str, float]:
        """Likewise."""
        return self._means(targets, scores).differences(groups, smallest)

    def constant(self, targets: Codes, scores: Floats) -> dict[str, Any]:
        """Beside one class for all rows."""
        return constant.of_classes(self._classes, targets, scores.argmax(axis=1))

    def _means(self, targets: Codes, scores: Floats) -> Means:
        predicted = scores.argmax(axis=1)
        selected = [selection(name) for name in self._classes]
        return Means(
            {ACCURACY: predicted == targets, **{name: predicted == code for code, name in enumerate(selected)}},
            {"demographic_parity_difference": selected, "accuracy_difference": [ACCURACY]},
            greatest=1.0,
        )


class MultiLabel(Target):
    """Each of several labels, which a row has or has not; see `tasks.Objective` for what it has.

    Targets are flags, ``(rows, labels)``. Scores are the probabilities of all labels, likewise.

    Args:
        label: ``label`` of the configuration.
    """

    kind = "multilabel"
    metrics: Sequence[str] = TARGET_METRICS["multilabel"]
    fairness: Sequence[str] = TARGET_FAIRNESS["multilabel"]
    unit = "probability"
    shares = True

    def __init__(self, label: Mapping[str, Any]) -> None:
        self._predictions = predictions(label)
        self._names = answered(label)
        self._weights: Sequence[Sequence[float]] = label.get("weights", ())
        known = {each["name"]: each["classes"][1] for each in label["labels"]}
        self.learned: Mapping[str, Any] = {"target": self.kind, "labels": known, **_decided(label)}
        self.about: Mapping[str, Any] = {"labels": known}
        self.sentence = f"Each of {len(self._names)} labels is predicted from a probability of {THRESHOLD} on; metrics are means over them."
        self.titles: Mapping[str, str] = {
            ACCURACY: "Accuracy: share of the labels predicted right",
            **{selection(name): f"Selection rate: share predicted {name}" for name in self._names[:SHOWN]},
        }

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The means of the labels' binary cross-entropies, likewise."""
        losses = nn.functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        if self._weights:
            weights = torch.tensor(self._weights, dtype=losses.dtype, device=losses.device)
            losses = losses * torch.where(targets, weights[:, 1], weights[:, 0])
        return losses.mean(dim=1)

    def scores(self, outputs: Tensor) -> Tensor:
        """The labels' probabilities."""
        return self._predictions.scores(outputs)

    def evaluate(self, targets: Flags, scores: Floats) -> dict[str, float]:
        """The metrics of `contract.TARGET_METRICS`, by scikit-learn."""
        from sklearn import metrics as sk  # noqa: PLC0415  as above

        predicted, clipped = scores >= THRESHOLD, scores.clip(CLIP, 1 - CLIP)
        each = list(zip(targets.T, predicted.T, strict=True))
        found = {
            "roc_auc": sk.roc_auc_score(targets, scores),
            "average_precision": sk.average_precision_score(targets, scores),
            "balanced_accuracy": np.mean([sk.balanced_accuracy_score(one, other) for one, other in each]),
            "micro_f1": sk.f1_score(targets, predicted, average="micro", zero_division=0.0),
            "macro_f1": sk.f1_score(targets, predicted, average="macro", zero_division=0.0),
            "log_loss": -np.where(targets, np.log(clipped), np.log1p(-clipped)).mean(),
            "hamming_loss": sk.hamming_loss(targets, predicted),
        }
        return {name: float(value) for name, value in found.items()}

    def off(self, answer: Mapping[str, Any], wanted: Any) -> float:
        """How far the probability of a label is from its own, at most."""
        return max(abs(float(answer[name] - score)) for name, score in zip(self._names, wanted, strict=True))

    def compared(self, groups: Words, targets: Flags, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """Accuracy, and each label's selection rate."""
        from mljobs.tasks import comparison  # noqa: PLC0415  as above

        return comparison.of_labels(groups, self._means(targets, scores), asked)

    def differing(self, groups: Words, targets: Flags, scores: Floats, smallest: int) -> dict[str, float]:
        """Likewise."""
        return self._means(targets, scores).differences(groups, smallest)

    def constant(self, targets: Flags, scores: Floats) -> dict[str, Any]:
        """Beside the same labels for all rows."""
        return constant.of_labels(self._names, targets, scores >= THRESHOLD)

    def _means(self, targets: Flags, scores: Floats) -> Means:
        predicted = scores >= THRESHOLD
        selected = [selection(name) for name in self._names]
        return Means(
            {ACCURACY: (predicted == targets).mean(axis=1), **dict(zip(selected, predicted.T, strict=True))},
            {"demographic_parity_difference": selected, "accuracy_difference": [ACCURACY]},
            greatest=1.0,
        )


class Regression(Target):
    """A measured number; see `tasks.Objective` for what it has.

    Targets and scores are numbers in the label's own unit. The model's outputs are in standard deviations from the mean
    of the training rows, so that neither the learning rate nor a tolerance depends on that unit.

    Args:
        label: ``label`` of the configuration.
    """

    kind = "regression"
    metrics: Sequence[str] = TARGET_METRICS["regression"]
    fairness: Sequence[str] = TARGET_FAIRNESS["regression"]
    unit = "standardised prediction"
    shares = False
    titles: Mapping[str, str] = {
        "mean_prediction": "Mean prediction",
        "mean_absolute_error": "Mean absolute error",
    }

    def __init__(self, label: Mapping[str, Any]) -> None:
        self._predictions = predictions(label)
        self._mean, self._scale = float(label["mean"]), float(label["scale"])
        self.learned: Mapping[str, Any] = {"target": self.kind, "mean": self._mean, "scale": self._scale}
        self.about: Mapping[str, Any] = {"mean": self._mean, "scale": self._scale}
        self.sentence = f"A number is predicted; over the training rows its mean is {self._mean:.6g}, its standard deviation {self._scale:.6g}."

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squares of the standardised errors."""
        standard = ((targets - self._mean) / self._scale).to(outputs.dtype)
        return nn.functional.mse_loss(outputs, standard, reduction="none")

    def scores(self, outputs: Tensor) -> Tensor:
        """The numbers."""
        return self._predictions.scores(outputs)

    def evaluate(self, targets: Floats, scores: Floats) -> dict[str, float]:
        """The metrics of `contract.TARGET_METRICS`, by scikit-learn."""
        from sklearn import metrics as sk  # noqa: PLC0415  as above

        found = {
            "r2": sk.r2_score(targets, scores),
            "mae": sk.mean_absolute_error(targets, scores),
            "rmse": sk.root_mean_squared_error(targets, scores),
            "median_absolute_error": sk.median_absolute_error(targets, scores),
        }
        return {name: float(value) for name, value in found.items()}

    def difference(self, scores: Floats, wanted: Floats) -> float:
        """The largest difference of a standardised prediction."""
        return float(np.abs(scores - wanted).max()) / self._scale

    def off(self, answer: Mapping[str, Any], wanted: Any) -> float:
        """Likewise, of one."""
        return abs(float(answer["prediction"] - wanted)) / self._scale

    def compared(self, groups: Words, targets: Floats, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """Mean prediction and mean absolute error."""
        from mljobs.tasks import comparison  # noqa: PLC0415  as above

        return comparison.of_numbers(groups, targets, scores, self._means(targets, scores), asked)

    def differing(self, groups: Words, targets: Floats, scores: Floats, smallest: int) -> dict[str, float]:
        """Likewise."""
        return self._means(targets, scores).differences(groups, smallest)

    def constant(self, targets: Floats, scores: Floats) -> dict[str, Any]:
        """Beside the mean for all rows."""
        return constant.of_numbers(targets, scores, self.evaluate(targets, scores)["r2"])

    def _means(self, targets: Floats, scores: Floats) -> Means:
        return Means(
            {"mean_prediction": scores, "mean_absolute_error": np.abs(scores - targets)},
            {
                "mean_prediction_difference": ["mean_prediction"],
                "mean_absolute_error_difference": ["mean_absolute_error"],
            },
        )


OBJECTIVES: Final[Mapping[str, Callable[[Mapping[str, Any]], Objective]]] = {
    "binary": Binary,
    "multiclass": MultiClass,
    "multilabel": MultiLabel,
    "regression": Regression,
}


def objective(label: Mapping[str, Any]) -> Objective:
    """What is learned.

    Args:
        label: ``label`` of the configuration; without a kind it is of two classes.
    """
    return OBJECTIVES[label.get("kind", "binary")](label)
