"""What a table's label asks to be learned, and what each kind of it means to every stage.

Called by the task `tabular`. `read` looks at the table; an objective is made of the configuration alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor, nn

from mljobs import data, fairness
from mljobs.failure import JobFailure, did_you_mean
from mljobs.files import SHOWN
from mljobs.tasks import Objective, Strata, Targets
from mljobs.tasks.tabular_model import THRESHOLD, predictions
from mlplatform.api import Data, Fairness
from mlplatform.contract import FAIRNESS_METRICS, TASK_METRICS, FailureClass

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.str_]

CLIP: Final = 1e-7
"""Probabilities are kept this far from 0 and 1 in the logarithmic loss: float32 sigmoids reach both."""


def read(table: pa.Table, asked: Data) -> Targets:
    """What is to be learned.

    Raises:
        JobFailure: The label's column is missing, incomplete or not of two classes.
    """
    found = data.words(table, asked.label, "spec.data.label")
    if blank := found.count(None):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"{blank} of {len(found)} rows have no value in the label column {asked.label!r}",
            "Remove these rows or complete them",
        )
    values = np.array(found, dtype=np.str_)
    return of_two_classes(values, sorted(np.unique(values).tolist(), key=_order), asked)


def of_two_classes(values: Words, classes: list[str], asked: Data) -> Targets:
    """Which rows are positive.

    The positive class is `asked.positive_label`, or else the last in order: 1 of 0 and 1, yes of no and yes.

    Args:
        values: Of the label.
        classes: Its distinct values, in order.
        asked: Names of the label and the positive class.

    Raises:
        JobFailure: There are not two classes, or the positive class is none of them.
    """
    if len(classes) != 2:  # noqa: PLR2004  binary
        shown = ", ".join(classes[:SHOWN])
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the label column {asked.label!r} has {len(classes)} distinct value(s) ({shown}); two are needed",
            "Point spec.data.label at a column of two classes, or derive one",
        )
    if asked.positive_label and asked.positive_label not in classes:
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"spec.data.positiveLabel {asked.positive_label!r} is no value of {asked.label!r}"
            f"{did_you_mean(asked.positive_label, classes)}",
            f"Use one of {', '.join(classes)}",
        )
    positive = asked.positive_label or classes[1]
    negative = next(name for name in classes if name != positive)
    flags = values == positive
    strata = Strata(flags.astype(np.int64), ("the negative class", "the positive class"))
    return Targets(flags, strata, {"name": asked.label, "classes": [negative, positive]})


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before words by the alphabet."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


class Binary:
    """One class of two; see `tasks.Objective` for what it has.

    Targets are flags: whether a row is positive. Scores are the positive class's probabilities.

    Args:
        label: ``label`` of the configuration.
    """

    metrics: Sequence[str] = TASK_METRICS["tabular"]
    fairness: Sequence[str] = FAIRNESS_METRICS
    unit = "probability"
    titles: Mapping[str, str] = {
        "selection_rate": "Selection rate: share predicted positive",
        "true_positive_rate": "True positive rate: share found of those who are positive",
        "false_positive_rate": "False positive rate: share flagged of those who are negative",
    }

    def __init__(self, label: Mapping[str, Any]) -> None:
        self._predictions = predictions(label)
        self._classes: list[str] = list(label["classes"])
        self.learned: Mapping[str, Any] = {"classes": self._classes}
        self.about: Mapping[str, Any] = {"positiveClass": self._classes[1], "threshold": THRESHOLD}
        self.sentence = f"Positive class: {self._classes[1]}, predicted from a probability of {THRESHOLD}."

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))

    def scores(self, outputs: Tensor) -> Tensor:
        """The positive class's probabilities."""
        return self._predictions.scores(outputs)

    def evaluate(self, targets: Flags, scores: Floats) -> dict[str, float]:
        """The metrics of `contract.TASK_METRICS`, by scikit-learn."""
        from sklearn import metrics as sk  # noqa: PLC0415  takes a second, and packaging scores nothing

        predicted = scores >= THRESHOLD
        found = {
            "roc_auc": sk.roc_auc_score(targets, scores),
            "average_precision": sk.average_precision_score(targets, scores),
            "accuracy": sk.accuracy_score(targets, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(targets, predicted),
            "f1": sk.f1_score(targets, predicted, zero_division=0.0),
            "log_loss": sk.log_loss(targets, scores.clip(CLIP, 1 - CLIP)),
            "brier_score": sk.brier_score_loss(targets, scores),
        }
        return {name: float(value) for name, value in found.items()}

    def difference(self, scores: Floats, wanted: Floats) -> float:
        """The largest difference of a probability."""
        return float(np.abs(scores - wanted).max())

    def off(self, answer: Mapping[str, Any], wanted: Any) -> float:
        """How far the positive class's probability is from the one that is wanted."""
        confidence: float = answer["confidence"]
        return abs(float((confidence if answer["prediction"] == self._classes[1] else 1 - confidence) - wanted))

    def compare(self, groups: Words, targets: Flags, scores: Floats, asked: Fairness) -> dict[str, Any]:
        """Selection, true and false positive rates."""
        from mljobs.tasks import comparison  # noqa: PLC0415  fairlearn takes seconds, and only the audit needs it

        return comparison.of_two_classes(groups, targets, scores >= THRESHOLD, asked)

    def differences(self, groups: Words, targets: Flags, scores: Floats, smallest: int) -> dict[str, float]:
        """Likewise."""
        return fairness.point_estimates(groups, targets, scores >= THRESHOLD, smallest)


def objective(label: Mapping[str, Any]) -> Objective:
    """What is learned.

    Args:
        label: ``label`` of the configuration.
    """
    return Binary(label)
