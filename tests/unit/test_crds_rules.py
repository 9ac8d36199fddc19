"""The table of the CRDs' rules is whole, and `api.problems` says what they say: `kubectl apply` and Accepted agree.

tests/apiserver/test_crds.py holds the same table against a real API server.
"""

from __future__ import annotations

from typing import Any

import crds
import pytest
from crd_rules import RULES, Case, Rule, changed, example

from mlplatform import api, contract

OF_A_SPEC = [rule for rule in RULES if rule.words in crds.rules("mlmodels")]
REFUSED = [(rule, case) for rule in OF_A_SPEC for case in rule.refused]
ACCEPTED = [case for rule in OF_A_SPEC for case in rule.accepted]


def problems(case: Case) -> list[str]:
    """What the operator says of the example's spec with a case's change."""
    model = example("mlmodels")
    spec: dict[str, Any] = changed(model["spec"], case.change)
    return api.problems(api.decode(api.MLModelSpec, spec), model["metadata"]["name"])


def test_every_rule_has_a_case_that_it_refuses_and_one_that_passes() -> None:
    assert {rule.words for rule in RULES} == {*crds.rules("mlmodels"), *crds.rules("modelversions")}
    assert [rule.words for rule in RULES if not (rule.refused and rule.accepted)] == []


@pytest.mark.parametrize(("rule", "case"), REFUSED, ids=[f"{r.words.split(':')[0]}: {c.reason}" for r, c in REFUSED])
def test_the_operator_refuses_it_in_the_same_words(rule: Rule, case: Case) -> None:
    assert problems(case) == [rule.words], case.reason


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda c: c.reason)
def test_the_operator_accepts_it(case: Case) -> None:
    assert problems(case) == [], case.reason


@pytest.mark.parametrize(
    "words",
    [
        contract.TASK_METRICS["tabular"],
        contract.TASK_METRICS["ranking"],
        contract.FAIRNESS_METRICS,
        *contract.TARGET_METRICS.values(),
        *contract.TARGET_FAIRNESS.values(),
    ],
    ids=lambda words: f"{len(words)} from {words[0]}",
)
def test_the_rules_know_the_contracts_words(words: tuple[str, ...]) -> None:
    """A metric added to the contract must be added to the rule, its message and the field's description."""
    listed = f"[{', '.join(repr(word) for word in words)}]"
    found = [
        rule
        for _, node in crds.walk(crds.schema("mlmodels", "spec"), "spec")
        for rule in node.get("x-kubernetes-validations", [])
        if listed in rule["rule"]
    ]
    assert found, f"no rule lists {listed}"
    assert all(", ".join(words) in rule["message"] for rule in found)
