"""Whether a model says more than one and the same answer for every row would.

Called by the objectives of `mljobs.tasks.targets`, for the audit: the operator judges by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mljobs.tasks.tabular_model import JOINED

NOTHING: Final = "(none)"
"""None of several labels."""
CHANCE: Final = 1.645
"""Standard errors above chance: 95 % of models that know nothing are below."""


def of_classes(
    classes: Sequence[str], targets: npt.NDArray[np.integer[Any]], predicted: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Of classes the balanced accuracy tells: whichever class is always answered, it is 1 / classes.

    A model that is right less often than who always answers the commonest class may find a rare one all the same. It must
    then be above that by more than chance.

    Args:
        classes: Their names.
        targets: Which one each row is of, ``(rows,)``.
        predicted: Likewise, what the model says.

    Returns:
        As `mlplatform.contract.Summary` lists it under ``constant``.
    """
    sizes = np.bincount(targets, minlength=len(classes))
    there = sizes > 0
    right = np.bincount(targets[predicted == targets], minlength=len(classes))[there] / sizes[there]
    value, floor = float(right.mean()), 1 / int(there.sum())
    error = float(np.sqrt((right * (1 - right) / sizes[there]).sum())) / int(there.sum())
    always = _same(predicted)
    often = bool((predicted == targets).mean() > sizes.max() / len(targets))
    return {
        "metric": "balanced_accuracy",
        "answer": classes[int(predicted[0] if always else sizes.argmax())],
        "floor": floor,
        "right": float(sizes.max() / len(targets)),
        "always": always,
        "better": not always and value > (floor if often else floor + CHANCE * error),
    }


def of_labels(names: Sequence[str], targets: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Of several labels the mean of their balanced accuracies tells: whatever is always answered, it is one half.

    Args:
        names: Of the labels.
        targets: Which of them each row has, ``(rows, labels)``.
        predicted: Likewise, what the model says.

    Returns:
        Likewise.
    """
    commonest = targets.mean(axis=0) > 0.5  # noqa: PLR2004  more often than not
    sizes = np.stack([(~targets).sum(axis=0), targets.sum(axis=0)])
    hits = np.stack([(~targets & ~predicted).sum(axis=0), (targets & predicted).sum(axis=0)])
    right = hits / sizes
    # The labels of a row hang together, so the error of their mean may be as large as the mean of their errors.
    error = float((np.sqrt((right * (1 - right) / sizes).sum(axis=0)) / 2).mean())
    always, value = _same(predicted), float(right.mean())
    most = float(sizes.max(axis=0).sum() / targets.size)
    often = bool((predicted == targets).mean() > most)
    answer = predicted[0] if always else commonest
    return {
        "metric": "balanced_accuracy",
        "answer": JOINED.join(name for name, there in zip(names, answer, strict=True) if there) or NOTHING,
        "floor": 0.5,
        "right": most,
        "always": always,
        "better": not always and value > (0.5 if often else 0.5 + CHANCE * error),
    }


def of_numbers(targets: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64], r2: float) -> dict[str, Any]:
    """Of a measure `r2` tells: it is 0 for who always answers the mean.

    Args:
        targets: ``(rows,)``.
        predicted: Likewise.
        r2: Of these.

    Returns:
        Likewise.
    """
    always = _same(predicted)
    answer = float(predicted[0] if always else targets.mean())
    return {"metric": "r2", "answer": answer, "floor": 0.0, "always": always, "better": not always and r2 > 0}


def _same(predicted: npt.NDArray[Any]) -> bool:
    return bool((predicted == predicted[0]).all())
