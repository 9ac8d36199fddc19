"""The example record; what else the packaging does is in test_package.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mljobs.tasks.tabular import TabularTask, example_number
from mljobs.tasks.tabular_model import FIRST_CATEGORY, Preprocessor

CONFIG: dict[str, Any] = {
    "features": [
        {"name": "age", "kind": "numeric", "edges": [17.0, 28.0, 37.0, 48.0, 90.0]},
        {"name": "job", "kind": "categorical", "categories": ["?", "clerk", "cook"], "common": "cook"},
        {"name": "gain", "kind": "numeric", "edges": [0.0, 5013.0, 99999.0]},
        {"name": "never known", "kind": "categorical", "categories": []},
    ],
    "label": {"name": "income", "classes": ["<=50K", ">50K"]},
}


def test_it_has_every_column_in_order_and_is_read_as_known_values() -> None:
    found = TabularTask({}).example(CONFIG)
    assert list(found.items()) == [("age", 37), ("job", "cook"), ("gain", 0), ("never known", None)]
    numeric, categorical = Preprocessor(CONFIG).transform([found])
    assert numeric.tolist() == [[37.0, 0.0]]
    assert categorical.tolist()[0][0] == FIRST_CATEGORY + 2
    assert json.dumps(found) == json.dumps(TabularTask({}).example(json.loads(json.dumps(CONFIG))))


@pytest.mark.parametrize(
    ("edges", "wanted", "reason"),
    [
        ([17.0, 28.0, 37.0, 48.0, 90.0], "37", "whole numbers stay whole"),
        ([17.0, 28.0, 36.5, 48.0, 90.0], "36", "a quantile between two whole numbers: half of a person's year is none"),
        ([12285.0, 117831.5, 178144.484375, 237642.0, 1484705.0], "180000", "large numbers are rounded to their range"),
        ([1.5, 20.25, 31.737503051757812, 48.0, 59.5], "31.7", "fractions stay fractions, without float32's digits"),
        ([0.10000000149011612, 0.30000001192092896, 0.8999999761581421], "0.3", "small ones, too"),
        ([1e-9, 2.5e-9, 9e-9], "2.5e-09", "and very small ones"),
        ([1990.0, 2007.0, 2015.0, 2024.0], "2015", "years are not rounded to tens: their range is small"),
        ([1001.0, 1002.0], "1002", "a narrow range of large numbers"),
        ([0.0, 1.0], "0", "a flag"),
        ([0.0, 5013.0, 99999.0], "0", "amounts that are mostly 0"),
        ([0.0, 0.25, 0.5, 1.0], "0.0", "shares: their ends are whole, they are not"),
        ([-40.5, -12.25, 3.0], "-12.2", "below 0"),
        ([-1.0, -0.0001, 500.0], "0", "no minus before a 0"),
        ([-5.0, 0.0, 5.0], "0", "around 0"),
    ],
)
def test_a_number_is_ordinary_and_short(edges: Sequence[float], wanted: str, reason: str) -> None:
    found = example_number(edges)
    assert json.dumps(found) == wanted, reason
    assert edges[0] <= found <= edges[-1], reason
