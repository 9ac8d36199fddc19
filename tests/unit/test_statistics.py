"""The evidence that decides rollouts: against definitions, other implementations and published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks import calibrate
from mlplatform import statistics
from mlplatform.statistics import Arms, Interval

ONE = Arms(*(np.array([n]) for n in (40, 3, 60, 2)))


def arms(*intervals: tuple[int, int, int, int]) -> Arms:
    """Of (candidate, its bad ones, stable, its bad ones) each."""
    return Arms(*(np.array(column) for column in zip(*intervals, strict=True)))


BETS = [
    (1.1, statistics.ratios_above(1.1), "harm"),
    (1.5, statistics.ratios_below(1.5), "good enough"),
    (1.0, np.array([0.5, 2.0]), "in both directions"),
]


@pytest.mark.parametrize(("ratio", "against", "reason"), BETS, ids=[case[-1] for case in BETS])
@pytest.mark.parametrize(("candidate", "stable", "bad"), [(10, 90, 1), (10, 90, 7), (500, 20, 3), (1, 1, 2)])
def test_a_bet_is_fair_at_its_bound(
    ratio: float, against: np.ndarray, reason: str, candidate: int, stable: int, bad: int
) -> None:
    falls = ratio * candidate / (ratio * candidate + stable)
    mean = sum(
        stats.binom.pmf(k, bad, falls)
        * np.exp(statistics.log_ratio_evidence(arms((candidate, k, stable, bad - k)), ratio, against)[-1])
        for k in range(bad + 1)
    )
    assert mean == pytest.approx(1, abs=1e-9), reason


@pytest.mark.parametrize("true", [1.0, 1.05, 1.1])
def test_no_smaller_ratio_than_the_bound_makes_a_bet_on_harm_favourable(true: float) -> None:
    falls = true * 30 / (true * 30 + 70)
    mean = sum(
        stats.binom.pmf(k, 12, falls) * np.exp(statistics.log_worse(arms((30, k, 70, 12 - k)), 0.1)[-1])
        for k in range(13)
    )
    assert mean <= 1 + 1e-9


def test_intervals_multiply() -> None:
    both = arms((10, 2, 90, 3), (50, 4, 50, 1))
    wanted = sum(
        (
            x * np.log(2 * n / (2 * n + m) / (1.1 * n / (1.1 * n + m)))
            + y * np.log(m / (2 * n + m) / (m / (1.1 * n + m)))
        )
        for n, x, m, y in ((10, 2, 90, 3), (50, 4, 50, 1))
    )
    assert statistics.log_ratio_evidence(both, 1.1, np.array([2.0]))[-1] == pytest.approx(wanted)


NOTHING = [
    ((0, 0, 0, 0), "nobody asked"),
    ((50, 0, 50, 0), "nothing went wrong"),
    ((0, 0, 100, 9), "the candidate was not asked: what went wrong says nothing of it"),
    ((100, 9, 0, 0), "likewise the stable version: all of it falls on the candidate in any case"),
]


@pytest.mark.parametrize(("interval", "reason"), NOTHING, ids=[case[-1] for case in NOTHING])
def test_what_tells_nothing_of_a_ratio_leaves_it_where_it_was(interval: tuple[int, int, int, int], reason: str) -> None:
    before = arms((40, 3, 60, 2))
    after = arms((40, 3, 60, 2), interval)
    found = statistics.log_worse(after, 0.1)
    assert found[0] == pytest.approx(statistics.log_worse(before, 0.1)[0]), reason
    assert found[1] == pytest.approx(found[0]), reason


def test_rollouts_side_by_side_are_alike_to_each_alone() -> None:
    rng = np.random.default_rng(1)
    many = calibrate.simulated(calibrate.Setting(rps=1.0), 3, rng)
    together = statistics.log_good_enough(many, 0.5, 0.01)
    for i in range(3):
        one = Arms(many.candidate[i], many.candidate_bad[i], many.stable[i], many.stable_bad[i])
        assert np.allclose(together[i], statistics.log_good_enough(one, 0.5, 0.01))


def test_a_rollout_without_any_error_ends_in_promotion() -> None:
    minutes = np.full(100, 10)
    found = statistics.log_good_enough(Arms(minutes, 0 * minutes, 9 * minutes, 0 * minutes), 0.5, 0.01)
    needed = np.flatnonzero(found >= np.log(20))[0] + 1
    assert 300 <= 10 * needed <= 500, "the candidate's requests"
    assert statistics.log_worse(Arms(minutes, 0 * minutes, 9 * minutes, 0 * minutes), 0.1).max() <= 1e-9


def test_few_errors_do_not_excuse_many_times_those_of_the_stable_version() -> None:
    quiet = arms(*[(1000, 2, 9000, 1)] * 5)
    assert statistics.log_bound_evidence(quiet.candidate, quiet.candidate_bad, 0.01, statistics.rates_below(0.01))[-1] > np.log(20)  # fmt: skip
    assert statistics.log_good_enough(quiet, 0.5, 0.01).max() < np.log(20)


def test_a_bound_on_the_mean_rate_holds_while_the_rate_falls() -> None:
    rng = np.random.default_rng(6)
    rate = np.repeat([0.05, 0.001], [20, 80])  # the mean so far is never below .01
    requests = np.full((2000, 100), 50)
    bad = rng.binomial(requests, rate)
    found = statistics.log_bound_evidence(requests, bad, 0.01, statistics.rates_below(0.01))
    assert (found.max(axis=1) >= np.log(20)).mean() <= 0.05


@pytest.mark.parametrize(("n", "m", "bad", "odds"), [(12, 30, 9, 1.0), (5, 4, 6, 1.3), (40, 10, 3, 0.8)])
def test_the_exact_law_is_fishers(n: int, m: int, bad: int, odds: float) -> None:
    against = np.array([0.5, 2.5])
    possible = range(max(0, bad - m), min(n, bad) + 1)
    for k in possible:
        wanted = np.log(
            np.mean([
                stats.nchypergeom_fisher.pmf(k, n + m, n, bad, other) / stats.nchypergeom_fisher.pmf(k, n + m, n, bad, odds)
                for other in against
            ])
        )  # fmt: skip
        found = statistics.log_odds_evidence(arms((n, k, m, bad - k)), odds, against)
        assert found[-1] == pytest.approx(wanted, abs=1e-6)


def test_common_outcomes_are_told_sooner_by_the_exact_law() -> None:
    common = arms(*[(100, 65, 100, 45)] * 3)
    exact = statistics.log_odds_evidence(common, 1.0, np.array([2.0]))
    plain = statistics.log_ratio_evidence(common, 1.0, np.array([2.0]))
    assert exact[-1] > plain[-1] > 0


MISROUTED = [
    (0.1, 0.1, False, "as configured"),
    (0.1, 0.13, True, "weights that somebody has edited"),
    (0.5, 0.4, True, "a version that is asked less than it should be"),
    (0.01, 0.01, False, "a small share"),
]


@pytest.mark.parametrize(("weight", "true", "wanted", "reason"), MISROUTED, ids=[case[-1] for case in MISROUTED])
def test_a_share_that_is_not_the_configured_one_is_found(weight: float, true: float, wanted: bool, reason: str) -> None:  # noqa: FBT001
    rng = np.random.default_rng(3)
    total = rng.poisson(600, (200, 60))
    candidate = rng.binomial(total, true)
    found = statistics.log_misrouted(candidate, total - candidate, np.full(total.shape, weight)).max(axis=1)
    hits = (found >= np.log(1000)).mean()
    assert (hits > 0.95) if wanted else (hits <= 0.005), reason


def test_a_ramp_of_the_weights_is_no_mismatch() -> None:
    rng = np.random.default_rng(4)
    weight = np.tile(np.repeat([0.05, 0.25, 0.5], 20), (300, 1))
    total = rng.poisson(1000, weight.shape)
    candidate = rng.binomial(total, weight)
    assert (statistics.log_misrouted(candidate, total - candidate, weight).max(axis=1) < np.log(1000)).all()


REJECTED = [
    ([100.0, 50.0, 1.0], [0, 1], "the second passes at 3 / (0.1 x 2) = 15"),
    ([100.0, 14.0, 1.0], [0], "the second does not"),
    ([10.0, 10.0, 10.0], [0, 1, 2], "none alone would need less than 30, three together need 10"),
    ([9.0, 9.0, 9.0], [], "none"),
    ([1.0, 40.0], [1], "in any order"),
]


@pytest.mark.parametrize(("evidence", "wanted", "reason"), REJECTED, ids=[case[-1] for case in REJECTED])
def test_several_hypotheses_together(evidence: list[float], wanted: list[int], reason: str) -> None:
    assert sorted(statistics.rejected(np.log(evidence), 0.1)) == wanted, reason


@pytest.mark.parametrize(("requests", "bad"), [(0, 0), (10, 0), (10, 10), (1000, 7), (100_000, 500)])
def test_a_rates_sequence_is_what_no_bet_excludes(requests: int, bad: int) -> None:
    found = statistics.rate_sequence(np.array(requests), np.array(bad), 0.05)
    rates = np.linspace(1e-6, 1 - 1e-6, 200_001)
    won = stats.betabinom.logpmf(bad, requests, 1, 1) - stats.binom.logpmf(bad, requests, rates)
    inside = rates[won < np.log(20)]
    assert float(found.low) == pytest.approx(inside[0], abs=1e-5)
    assert float(found.high) == pytest.approx(inside[-1], abs=1e-5)


def test_a_rates_sequence_holds_the_rate_at_every_look() -> None:
    rng = np.random.default_rng(7)
    requests = np.cumsum(np.full((500, 200), 20), axis=1)
    bad = np.cumsum(rng.binomial(20, 0.03, (500, 200)), axis=1)
    low, high = statistics.rate_sequence(requests, bad, 0.05)
    missed = ((low > 0.03) | (high < 0.03)).any(axis=1).mean()
    assert missed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 500)


def test_a_ratios_sequence_agrees_with_the_evidence() -> None:
    counts = arms(*[(100, 3, 900, 10)] * 30)
    low, high = statistics.ratio_sequence(counts, 0.05)
    assert low < 3 / 100 / (10 / 900) < high
    nothing = statistics.ratio_sequence(arms((10, 0, 10, 0)), 0.05)
    assert nothing == Interval(statistics.SHOWN_RATIOS[0], statistics.SHOWN_RATIOS[-1])


def test_a_means_sequence_holds_the_mean_and_narrows() -> None:
    rng = np.random.default_rng(8)
    values = rng.exponential(2.0, (400, 3000))
    count = np.arange(1, 3001)[99:]
    mean = (np.cumsum(values, axis=1) / np.arange(1, 3001))[:, 99:]
    low, high = statistics.mean_sequence(count, mean, np.full(count.shape, 2.0), 0.05)
    assert ((low > 2.0) | (high < 2.0)).any(axis=1).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert (high - low)[0, -1] < (high - low)[0, 0] / 3


def test_a_fixed_sample_has_the_power_that_was_planned() -> None:
    needed = statistics.requests_for_power(0.1, 0.12, 0.5, 0.05, 0.8)
    assert needed == pytest.approx(2 * 3841, rel=0.01), "Fleiss, Levin & Paik's formula without a correction"
    rng = np.random.default_rng(9)
    half = needed // 2
    x, y = rng.binomial(half, 0.12, 4000), rng.binomial(half, 0.1, 4000)
    hits = np.mean([
        statistics.two_proportions(half, int(a), half, int(b)).p < 0.05 for a, b in zip(x, y, strict=True)
    ])  # fmt: skip
    assert hits == pytest.approx(0.8, abs=0.03)


def test_two_proportions_is_the_chi_square_test() -> None:
    found = statistics.two_proportions(200, 30, 300, 25)
    wanted = stats.chi2_contingency([[30, 170], [25, 275]], correction=False)
    assert found.statistic**2 == pytest.approx(wanted.statistic)
    assert found.p == pytest.approx(wanted.pvalue)
    assert statistics.two_proportions(5, 0, 7, 0).p == 1, "nothing to tell them by"


def test_the_expected_time_to_decide_is_near_the_simulated_one() -> None:
    expected = statistics.requests_to_decide(0.01, 0.05, 1.1, 0.1, 0.05)
    rng = np.random.default_rng(10)
    found = calibrate.by_evidence(
        calibrate.simulated(calibrate.Setting(rps=2.0, rate=0.01, ratio=5.0), 400, rng)
    ).rolled_back
    minutes = expected / 120
    assert minutes <= np.median(found + 1) <= 3 * minutes, (
        "bets on many ratios know less than one who knows the true one"
    )
    assert statistics.requests_to_decide(0.01, 0.01, 1.0, 0.5, 0.05) == float("inf")


PLANNED = [
    ("obrien-fleming", [0.2, 0.4, 0.6, 0.8, 1.0], [4.877, 3.357, 2.680, 2.290, 2.031]),
    ("pocock", [0.2, 0.4, 0.6, 0.8, 1.0], [2.438, 2.427, 2.410, 2.397, 2.386]),
    ("obrien-fleming", [1.0], [1.960]),
]


@pytest.mark.parametrize(("kind", "shares", "wanted"), PLANNED)
def test_group_sequential_bounds_are_those_of_the_literature(
    kind: str, shares: list[float], wanted: list[float]
) -> None:
    assert np.allclose(statistics.group_sequential(np.array(shares), kind, 0.05), wanted, atol=2e-3)


def test_group_sequential_bounds_spend_alpha_in_all() -> None:
    rng = np.random.default_rng(11)
    shares = np.array([0.3, 0.5, 1.0])
    bounds = statistics.group_sequential(shares, "pocock", 0.1)
    steps = rng.normal(size=(100_000, 3)) * np.sqrt(np.diff(shares, prepend=0.0))
    crossed = (np.abs(np.cumsum(steps, axis=1)) / np.sqrt(shares) > bounds).any(axis=1)
    assert crossed.mean() == pytest.approx(0.1, abs=0.004)


HOLDS = {name: setting for name, setting in calibrate.HEALTHY.items() if setting.holds and setting.rps <= 100}


@pytest.mark.parametrize("name", HOLDS)
def test_no_more_false_rollbacks_than_alpha(name: str) -> None:
    rollouts = 400
    found = calibrate.by_evidence(calibrate.simulated(HOLDS[name], rollouts, np.random.default_rng(len(name))))
    error = 3 * np.sqrt(calibrate.ALPHA * (1 - calibrate.ALPHA) / rollouts)
    assert (found.rolled_back < calibrate.NEVER).mean() <= calibrate.ALPHA + error


UNACCEPTABLE = [
    (10.0, 0.01, 1.5, 0.0, "worse by the tolerance, and above the bound"),
    (10.0, 0.01, 3.0, 0.0, "much worse"),
    (10.0, 0.06, 1.5, 0.8, "in quiet hours, too, it is above the bound"),
    (10.0, 0.06, 3.0, 0.8, "likewise, much worse"),
    (10.0, 0.01, 2.0, 0.8, "in quiet hours it is below the bound"),
    (100.0, 0.01, 2.0, 0.8, "in these there are enough requests to prove it"),
    (1000.0, 0.01, 2.0, 0.8, "in a minute of these"),
]


@pytest.mark.parametrize(
    ("rps", "rate", "ratio", "swing", "reason"), UNACCEPTABLE, ids=[case[-1] for case in UNACCEPTABLE]
)
def test_no_more_false_promotions_than_alpha(rps: float, rate: float, ratio: float, swing: float, reason: str) -> None:
    rollouts = 400
    setting = calibrate.Setting(rps=rps, rate=rate, ratio=ratio, swing=swing)
    found = calibrate.by_evidence(calibrate.simulated(setting, rollouts, np.random.default_rng(12)))
    error = 3 * np.sqrt(calibrate.ALPHA * (1 - calibrate.ALPHA) / rollouts)
    assert (found.promoted < calibrate.NEVER).mean() <= calibrate.ALPHA + error, reason


def test_the_other_rules_err_where_they_are_known_to() -> None:
    healthy = calibrate.simulated(calibrate.Setting(rps=10.0), 400, np.random.default_rng(13))
    assert (calibrate.by_peeking(healthy).rolled_back < calibrate.NEVER).mean() > 0.2, "peeking"
    assert (calibrate.by_threshold(healthy).rolled_back < calibrate.NEVER).mean() > 0.5, "60 requests a look"
