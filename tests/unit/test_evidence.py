"""What counts say of a candidate: one table of rollouts, each with its verdict and what it tells a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from mlplatform.evidence import ALPHA, Guardrail, Word, judge, slower, weigh
from mlplatform.statistics import Arms

ERRORS = Guardrail()
SLOW = Guardrail(bad="answers slower than 300 ms", bound=0.05)
LOOKS = 20


def steady(candidate: int, bad: float, stable: int, stable_bad: float) -> Arms:
    """So many requests, and so many bad ones in all, spread over all looks."""

    def spread(count: float) -> np.ndarray:
        return np.diff(np.round(np.linspace(0, count, LOOKS + 1))).astype(int)

    return Arms(*(spread(count) for count in (candidate, bad, stable, stable_bad)))


@dataclass(frozen=True, kw_only=True)
class Case:
    reason: str
    errors: Arms
    word: Word
    says: str
    slow: Arms | None = None
    weight: float = 0.1
    silent: Sequence[str] = field(default=())


CASES = [
    Case(reason="nobody has asked the candidate", errors=steady(0, 0, 900, 5), word=Word.OPEN,
         says="the candidate has had no request yet"),
    Case(reason="too few to tell, and how many more it takes", errors=steady(100, 0, 900, 4), word=Word.OPEN,
         says="errors: 0 of 100 requests (0.00%) beside 4 of 900 requests (0.44%) of the stable version; good enough after "
              "about 340 more requests of the candidate"),
    Case(reason="a rollout without any error ends", errors=steady(1000, 0, 9000, 0), word=Word.GOOD,
         says="errors: 0 of 1,000 requests"),
    Case(reason="as many errors as before, and enough requests", errors=steady(5000, 25, 45000, 225), word=Word.GOOD,
         says="25 of 5,000 requests (0.50%) beside 225 of 45,000"),
    Case(reason="ten times as many errors", errors=steady(400, 20, 3600, 18), word=Word.HARM,
         says="20 of 400 requests (5.00%) beside 18 of 3,600 requests (0.50%) of the stable version, 3.4 to 30 times as often (limit 1.1)"),
    Case(reason="errors in every second request, of a handful", errors=steady(20, 10, 180, 1), word=Word.HARM,
         says="10 of 20 requests (50.00%)"),
    Case(reason="a few more errors, which may be chance", errors=steady(400, 4, 3600, 18), word=Word.OPEN,
         says="neither good enough nor proven worse yet"),
    Case(reason="errors of a stable version that is bad itself do not count against the candidate",
         errors=steady(1000, 100, 9000, 900), word=Word.GOOD, says="100 of 1,000 requests (10.00%)"),
    Case(reason="traffic that goes elsewhere than it should", errors=steady(3000, 150, 7000, 35), word=Word.MISROUTED,
         says="3,000 of 10,000 requests (30.00%) reached the candidate, where the weights say 10.0%",
         silent=["times as often"]),
    Case(reason="no error, but slow", errors=steady(1000, 0, 9000, 0), slow=steady(1000, 400, 9000, 300), word=Word.HARM,
         says="answers slower than 300 ms: 400 of 1,000 requests", silent=["errors:"]),
    Case(reason="good by one guardrail, open by the other", errors=steady(1000, 0, 9000, 0),
         slow=steady(1000, 90, 9000, 810), word=Word.GOOD, says="answers slower than 300 ms: 90 of 1,000"),
    Case(reason="of what is still open only that is told", errors=steady(1000, 0, 9000, 0),
         slow=steady(1000, 60, 9000, 420), word=Word.OPEN, says="answers slower than 300 ms: 60 of 1,000",
         silent=["errors:"]),
    Case(reason="harm by both is told of both, the clearer one first", errors=steady(400, 40, 3600, 18), slow=steady(400, 200, 3600, 100),
         word=Word.HARM, says="; errors: 40 of 400"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_what_counts_say(case: Case) -> None:
    counted = [(ERRORS, case.errors, weigh(ERRORS, case.errors))]
    if case.slow:
        counted.append((SLOW, case.slow, slower([case.slow], SLOW)))
    found = judge(counted, np.full(LOOKS, case.weight))
    assert found.word is case.word, (case.reason, found.message)
    assert case.says in found.message, case.reason
    assert not any(words in found.message for words in case.silent), found.message
    assert found == judge(counted, np.full(LOOKS, case.weight)), "the same counts say the same"


def test_a_look_takes_nothing_from_the_looks_before() -> None:
    """All counts at once are the counts interval by interval: whoever restarts misses nothing."""
    arms = steady(400, 20, 3600, 18)
    before = [
        Arms(*(each[:i] for each in (arms.candidate, arms.candidate_bad, arms.stable, arms.stable_bad)))
        for i in range(1, LOOKS)
    ]
    whole = weigh(ERRORS, arms)
    for i, part in enumerate(before):
        assert weigh(ERRORS, part).harm[-1] == pytest.approx(whole.harm[i])
        assert weigh(ERRORS, part).good[-1] == pytest.approx(whole.good[i])


def test_slowness_at_a_neighbouring_edge_is_found_and_the_objective_decides_what_is_good() -> None:
    """Answers became three times as slow without passing the objective's own edge."""
    edge, below = steady(20000, 200, 180000, 1800), steady(20000, 12000, 180000, 18000)
    together, alone = slower([edge, below], SLOW), slower([edge], SLOW)
    assert together.harm[-1] > np.log(1 / ALPHA) > alone.harm[-1]
    assert together.good[-1] == alone.good[-1] > np.log(1 / ALPHA)


def test_one_harmed_guardrail_of_several_needs_more_proof() -> None:
    """e-BH: of K hypotheses a single one is rejected by K / alpha."""
    fine = steady(400, 2, 3600, 18)
    for bad in (3, 8, 9, 10, 11, 12, 20):
        arms = steady(400, bad, 3600, 18)
        alone = judge([(ERRORS, arms, weigh(ERRORS, arms))], np.full(LOOKS, 0.1))
        among = judge(
            [(ERRORS, arms, weigh(ERRORS, arms)), *[(SLOW, fine, weigh(SLOW, fine))] * 4], np.full(LOOKS, 0.1)
        )
        strength = alone.weighed[0].harm
        assert (alone.word is Word.HARM) == (strength >= np.log(1 / ALPHA))
        assert (among.word is Word.HARM) == (strength >= np.log(5 / ALPHA))
