"""Whether a model says more than one and the same answer for every row would.

Called by the objectives of `mljobs.tasks.targets`, for the audit: the operator judges by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

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
