"""Group differences: against fairlearn, by hand, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from mljobs import fairness
from mljobs.audit import audit_attribute, by_metric
from mlplatform.api import Fairness

FAIRLEARN = {
    "demographic_parity_difference": demographic_parity_difference,
    "equalized_odds_difference": equalized_odds_difference,
}


def people(rows: int, seed: int) -> tuple[fairness.npt.NDArray[np.str_], ...]:
    generator = np.random.default_rng(seed)
    groups = generator.choice(["a", "b", "c"], rows, p=[0.5, 0.3, 0.2])
    positive = generator.random(rows) < np.where(groups == "a", 0.4, 0.25)
    predicted = generator.random(rows) < np.where(positive, 0.7, 0.2) + (groups == "b") * 0.1
    return groups, positive, predicted


@pytest.mark.parametrize("metric", sorted(FAIRLEARN))
@pytest.mark.parametrize("seed", range(5))
def test_point_estimates_are_fairlearns(metric: str, seed: int) -> None:
    groups, positive, predicted = people(3000, seed)
    wanted = FAIRLEARN[metric](positive, predicted, sensitive_features=groups)
    assert fairness.point_estimates(groups, positive, predicted, 50)[metric] == pytest.approx(wanted, abs=1e-12)
    audited = audit_attribute(groups, positive, predicted, Fairness())
    assert audited["differences"][metric]["value"] == pytest.approx(wanted, abs=1e-12)


def test_intervals_are_those_of_resampled_rows() -> None:
    """The multinomial draw of counts against a plain bootstrap of the rows."""
    groups, positive, predicted = people(2000, 1)
    interval = fairness.assess(groups, positive, predicted, 50, 0.9).differences["demographic_parity_difference"]
    generator = np.random.default_rng(5)
    spread = []
    for _ in range(400):
        rows = generator.integers(0, len(groups), len(groups))
        spread.append(fairness.point_estimates(groups[rows], positive[rows], predicted[rows], 50))
    low, high = np.quantile([draw["demographic_parity_difference"] for draw in spread], [0.05, 0.95])
    assert interval.low == pytest.approx(low, abs=0.01)
    assert interval.high == pytest.approx(high, abs=0.01)
    assert interval.low < interval.value < interval.high


def test_wider_confidence_and_fewer_rows_widen_the_interval() -> None:
    def width(rows: int, confidence: float) -> float:
        found = fairness.assess(*people(rows, 2), 20, confidence).differences["equalized_odds_difference"]
        return found.high - found.low

    assert width(2000, 0.99) > width(2000, 0.9)
    assert width(500, 0.9) > width(5000, 0.9)


def rows_of(*cells: tuple[str, int, int, int]) -> tuple[fairness.npt.NDArray[np.str_], ...]:
    """Rows from ``(group, positive?, predicted?, how many)``."""
    groups = np.concatenate([np.full(n, group) for group, _, _, n in cells])
    positive = np.concatenate([np.full(n, bool(flag)) for _, flag, _, n in cells])
    predicted = np.concatenate([np.full(n, bool(flag)) for _, _, flag, n in cells])
    return groups, positive, predicted


SMALL = [
    (
        (("a", 1, 1, 60), ("a", 0, 0, 60), ("b", 1, 0, 60), ("b", 0, 1, 60), ("c", 1, 1, 10)),
        {"demographic_parity_difference": 0.0, "equalized_odds_difference": 1.0},
        {"c": ["selection_rate", "true_positive_rate", "false_positive_rate"]},
        "a small group is left out of every rate, so its rate of 1 does not count",
    ),
    (
        (("a", 1, 1, 60), ("a", 0, 0, 60), ("b", 1, 0, 10), ("b", 0, 0, 60)),
        {"demographic_parity_difference": 0.5, "equalized_odds_difference": 0.0},
        {"b": ["true_positive_rate"]},
        "b has rows enough for two rates, but too few positive ones for the third",
    ),
    (
        (("a", 1, 1, 60), ("a", 0, 0, 60), ("b", 1, 0, 10)),
        {},
        {"b": ["selection_rate", "true_positive_rate", "false_positive_rate"]},
        "one group alone has nothing to be compared with",
    ),
]


@pytest.mark.parametrize(("cells", "wanted", "left_out", "reason"), SMALL, ids=[case[-1] for case in SMALL])
def test_small_groups(
    cells: tuple[tuple[str, int, int, int], ...], wanted: dict[str, float], left_out: dict[str, list[str]], reason: str
) -> None:
    found = audit_attribute(*rows_of(*cells), Fairness(min_group_size=50))
    assert {metric: interval["value"] for metric, interval in found["differences"].items()} == wanted, reason
    assert found["notAssessed"] == left_out, reason


def test_a_group_without_positive_rows_has_no_true_positive_rate() -> None:
    found = audit_attribute(*rows_of(("a", 1, 1, 60), ("a", 0, 0, 60), ("b", 0, 1, 60)), Fairness())
    assert found["groups"]["b"]["true_positive_rate"] is None
    assert found["groups"]["b"]["false_positive_rate"]["value"] == 1.0


def test_the_summary_is_by_metric_then_attribute() -> None:
    differences = {"demographic_parity_difference": {"value": 0.123456, "low": 0.1, "high": 0.2}}
    assert by_metric({"sex": {"differences": differences}}) == {
        "demographic_parity_difference": {"sex": {"value": 0.1235, "low": 0.1, "high": 0.2}}
    }
