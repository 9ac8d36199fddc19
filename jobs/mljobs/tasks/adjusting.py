"""How sure a probability is, and from which one on the positive class is predicted: decided once the weights are final.

Called by the built-in tasks with what the validation rows show. Both go into ``label`` of the configuration, where the
stages to come and the serving pods read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mljobs.tasks.tabular_model import THRESHOLD, predictions
from mlplatform.api import Training

COLDEST: Final = 0.1
HOTTEST: Final = 10.0
"""Temperatures that are looked at: beyond it the validation rows are too few to say more."""

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def adjusted(
    label: Mapping[str, Any], targets: npt.NDArray[Any], outputs: Tensor, training: Training
) -> dict[str, Any]:
    """``label`` with ``temperature`` and ``threshold``, as far as the specification asks for them.

    Args:
        label: Of the configuration.
        targets: Of the validation rows: flags, or numbers of classes; of several labels flags of each.
        outputs: The model's for these, in float64.
        training: The specification.
    """
    found = dict(label)
    if training.calibration == "temperature":
        found["temperature"] = temperature(outputs, torch.from_numpy(targets))
    if (asked := training.threshold) is not None:
        scores: Floats = predictions(found).scores(outputs).numpy()
        found["threshold"] = asked.value if asked.maximize is None else best_threshold(targets, scores, asked.maximize)
    return found


def temperature(outputs: Tensor, targets: Tensor) -> float:
    """What the outputs are to be divided by, so that the targets are likeliest (Guo et al. 2017, section 4.2).

    Args:
        outputs: Logits, ``(n,)`` of two classes, else ``(n, classes)`` or ``(n, labels)``.
        targets: Flags, or numbers of classes.
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415  a tenth of a second that few trainings need

    def loss(logarithm: float) -> float:
        cooled = outputs / math.exp(logarithm)
        if targets.dtype is torch.bool:
            return float(nn.functional.binary_cross_entropy_with_logits(cooled, targets.to(outputs.dtype)))
        return float(nn.functional.cross_entropy(cooled, targets.long()))

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return math.exp(found.x)


def best_threshold(flags: Flags, scores: Floats, metric: str) -> float:
    """The probability from which on to predict the positive class for the most of a metric.

    Of several that are equally good the one next to one half; it lies amid two scores, so that rounding moves no answer.

    Args:
        flags: Which rows are positive; both kinds are there.
        scores: Their probabilities.
        metric: ``accuracy``, ``balanced_accuracy`` or ``f1``.
    """
    order = np.argsort(scores)
    ordered, positive = scores[order], flags[order]
    last = np.flatnonzero(np.diff(ordered)) + 1  # The rows before each of these are predicted negative.
    if not len(last):
        return THRESHOLD
    between = (ordered[last - 1] + ordered[last]) / 2
    missed = np.cumsum(positive)[last - 1]
    true_negative, hits = last - missed, positive.sum() - missed
    false_positive = (~positive).sum() - true_negative
    values = {
        "accuracy": hits + true_negative,
        "balanced_accuracy": hits / positive.sum() + true_negative / (~positive).sum(),
        "f1": 2 * hits / (2 * hits + false_positive + missed),
    }[metric]
    best = np.flatnonzero(values >= values.max() - 1e-12)
    return float(between[best[np.abs(between[best] - THRESHOLD).argmin()]])
