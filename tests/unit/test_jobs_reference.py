"""The profile of the training rows: its counts are those of the table, and of the same rows as requests."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mljobs.tasks import Strata, Targets, reference
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import Served

ROWS = 3000


def learned(label: dict[str, Any], values: Any) -> tuple[dict[str, Any], pa.Table, dict[str, Any]]:
    """Configuration, training rows and profile of made-up rows."""
    rng = np.random.default_rng(2)
    amount = rng.exponential(100, ROWS).round(2)
    table = pa.table({
        "amount": pa.array(amount, mask=rng.random(ROWS) < 0.1),
        "kind": pa.array(rng.choice(["a", "b", "c"], ROWS, p=[0.7, 0.2, 0.1]), mask=rng.random(ROWS) < 0.05),
        "zero": np.where(rng.random(ROWS) < 0.9, 0.0, amount),
        "two": rng.choice([1.0, 2.0], ROWS, p=[0.25, 0.75]),
        "y": values,
    })  # fmt: skip
    task = TabularTask({})
    rows = np.arange(0, ROWS, 2)
    config = task.fit(table, Targets(values, Strata(np.zeros(ROWS, int), ("x",)), label), rows)
    part = table.take(rows)
    return config, part, dict(task.reference(config, task.inputs(config, part), values[rows]))


FLAGS = np.arange(ROWS) % 4 == 0


def by_name(profile: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {feature["name"]: feature for feature in profile["features"]}


def test_counts_are_those_of_the_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "STRETCH", 64)
    config, part, profile = learned({"name": "y", "classes": ["no", "yes"]}, FLAGS)
    found = by_name(profile)
    assert list(found) == [feature["name"] for feature in config["features"]]
    assert profile["rows"] == ROWS // 2

    amount = found["amount"]
    values = part.column("amount").drop_null().to_numpy()
    assert amount["missing"] == part.column("amount").null_count
    assert sum(amount["counts"]) == len(values)
    assert len(amount["counts"]) == reference.INTERVALS
    assert max(amount["counts"]) < 1.3 * min(amount["counts"]), "tenths of the rows"
    bounds = [-np.inf, *np.float32(amount["edges"]), np.inf]
    assert amount["counts"] == [
        int(((np.float32(values) >= low) & (np.float32(values) < high)).sum())
        for low, high in itertools.pairwise(bounds)
    ]

    kinds = part.column("kind").to_pylist()
    assert found["kind"]["counts"] == {word: kinds.count(word) for word in "abc"}
    assert (found["kind"]["missing"], found["kind"]["unknown"]) == (kinds.count(None), 0)
    assert found["two"]["counts"] == [part.column("two").to_pylist().count(number) for number in (1.0, 2.0)]
    assert sum(found["zero"]["counts"]) == ROWS // 2
    assert profile["label"] == {"name": "y", "counts": {"no": int((~FLAGS[::2]).sum()), "yes": int(FLAGS[::2].sum())}}


def test_the_same_rows_as_requests_are_counted_alike() -> None:
    config, part, profile = learned({"name": "y", "classes": ["no", "yes"]}, FLAGS)
    records = [{name: value for name, value in row.items() if name != "y"} for row in part.to_pylist()]
    served = Served(config).read(records)
    assert reference.profile(config, served, FLAGS[::2]) == profile
    strange = Served(config).read([{**records[0], "kind": "new"}])
    assert by_name(reference.profile(config, strange, FLAGS[:1]))["kind"]["unknown"] == 1


def test_a_measured_label_is_counted_in_tenths() -> None:
    values = np.arange(ROWS, dtype=float)
    _, _, profile = learned({"name": "y", "kind": "regression"}, values)
    assert len(profile["label"]["counts"]) == reference.INTERVALS
    assert set(profile["label"]["counts"]) == {ROWS // 2 // reference.INTERVALS}


def test_a_model_of_words_alone_has_no_numbers_to_count() -> None:
    config = {
        "features": [{"name": "kind", "kind": "categorical", "categories": ["a"], "code": False}],
        "label": {"name": "y", "classes": ["no", "yes"]},
    }
    inputs = torch.empty((2, 0)), torch.tensor([[0], [2]])
    found = reference.profile(config, inputs, np.array([True, False]))
    assert found["features"] == [
        {"name": "kind", "kind": "categorical", "missing": 1, "unknown": 0, "counts": {"a": 1}}
    ]
