"""What the training rows looked like: the profile that later requests are held beside to see a drift.

Called by the task `tabular`, with the tensors that the model learns from and not with the table: a request is read into
the same ones, so that both are counted alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mljobs.tasks.tabular_model import FIRST_CATEGORY, MISSING, UNKNOWN

INTERVALS: Final = 10
"""Of a numeric feature; a population stability index is commonly taken over as many."""
STRETCH: Final = 1 << 16
"""Rows that are counted at a time: the tensors may lie on disk."""


def profile(config: Mapping[str, Any], inputs: Sequence[Tensor], targets: npt.NDArray[Any]) -> dict[str, Any]:
    """Counts of the rows.

    Args:
        config: The task's configuration.
        inputs: ``(numeric, categorical)`` of the training rows.
        targets: Of these rows: flags, numbers of classes, or measured numbers; of several labels flags of each.

    Returns:
        ``{rows, features: [{name, kind, missing, …}, …], label}``. A numeric feature and a measured label have ``edges`` (rising)
        and ``counts`` of the intervals that these part, the first and the last of which are open; a categorical one has
        ``counts`` by category and ``unknown``; a label of classes ``counts`` by class, and several ``labels`` such ones.
    """
    numeric, categorical = inputs
    features = config["features"]
    numbers = [feature for feature in features if feature["kind"] == "numeric"]
    words = [feature for feature in features if feature["kind"] == "categorical"]
    counted = _intervals(numeric, [_edges(feature["edges"]) for feature in numbers])
    counted += _categories(categorical, [feature["categories"] for feature in words])
    named = {
        feature["name"]: {"name": feature["name"], "kind": feature["kind"], **found}
        for feature, found in zip([*numbers, *words], counted, strict=True)
    }
    return {
        "rows": len(targets),
        "features": [named[feature["name"]] for feature in features],
        "label": _label(config["label"], targets),
    }


def _edges(quantiles: Sequence[float]) -> list[float]:
    """At most `INTERVALS` - 1 of the inner ones, evenly spread; of two, which have none within, what lies amid them."""
    last = len(quantiles) - 1
    if last == 1:
        return [(quantiles[0] + quantiles[1]) / 2]
    spread = np.linspace(0, last, INTERVALS + 1)[1:-1].round().astype(int)
    return [quantiles[i] for i in np.unique(spread.clip(1, last - 1))]


def _intervals(values: Tensor, edges: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Of each column how many values are in each interval, in one pass over the rows."""
    bounds = [torch.tensor(some, dtype=values.dtype) for some in edges]
    counts = [torch.zeros(len(some) + 1, dtype=torch.int64) for some in edges]
    missing = torch.zeros(len(edges), dtype=torch.int64)
    for part in torch.split(values, STRETCH):
        missing += part.isnan().sum(dim=0)
        for column, inner, count in zip(part.unbind(1), bounds, counts, strict=True):
            there = column[~column.isnan()]
            count += torch.bincount(torch.bucketize(there, inner, right=True), minlength=len(count))  # noqa: PLW2901  in place
    return [
        {"missing": lacking, "edges": list(some), "counts": count.tolist()}
        for lacking, some, count in zip(missing.tolist(), edges, counts, strict=True)
    ]


def _categories(values: Tensor, categories: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Of each column how many rows have each category, likewise."""
    counts = [torch.zeros(FIRST_CATEGORY + len(known), dtype=torch.int64) for known in categories]
    for part in torch.split(values, STRETCH):
        for column, count in zip(part.unbind(1), counts, strict=True):
            count += torch.bincount(column, minlength=len(count))  # noqa: PLW2901  in place
    return [
        {
            "missing": int(count[MISSING]),
            "unknown": int(count[UNKNOWN]),
            "counts": dict(zip(known, count[FIRST_CATEGORY:].tolist(), strict=True)),
        }
        for known, count in zip(categories, counts, strict=True)
    ]


def _label(label: Mapping[str, Any], targets: npt.NDArray[Any]) -> dict[str, Any]:
    if "labels" in label:
        return {"labels": [_label(each, targets[:, i]) for i, each in enumerate(label["labels"])]}
    if label.get("kind") == "regression":
        edges = np.unique(np.quantile(targets, np.linspace(0, 1, INTERVALS + 1)[1:-1])).tolist()
        found = np.bincount(np.searchsorted(edges, targets, side="right"), minlength=len(edges) + 1)
        return {"name": label["name"], "edges": edges, "counts": found.tolist()}
    found = np.bincount(targets.astype(np.int64), minlength=len(label["classes"]))
    return {"name": label["name"], "counts": dict(zip(label["classes"], found.tolist(), strict=True))}
