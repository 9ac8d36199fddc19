"""The CRDs on a real API server: taken whole, and each rule refuses and lets through what the table says.

Everything here holds on the oldest supported Kubernetes too: `apiserver_fixture` says how to give its server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import crds
import pytest
from apiserver_fixture import ApiServer
from crd_rules import RULES, Case, Rule, changed, example
from written import lost

pytestmark = pytest.mark.apiserver

KINDS = {"mlmodels": "MLModel", "modelversions": "ModelVersion"}


@pytest.mark.parametrize("plural", KINDS)
def test_a_crd_is_stored_whole(api_server: ApiServer, plural: str) -> None:
    """Rules and defaults too: what a server does not know or refuse, it drops without a word."""
    stored = json.loads(api_server.kubectl("get", "crd", f"{plural}.mlplatform.dev", "-o", "json"))
    assert list(lost(crds.crd(plural)["spec"], stored["spec"], "spec")) == []


def rows(outcome: str) -> list[Any]:
    """Every case of the table, once for each kind that has its rule."""
    return [
        pytest.param(plural, rule, case, id=f"{plural} {rule.words.partition(':')[0]} {case.reason}")
        for plural in KINDS
        for rule in RULES
        if rule.words in crds.rules(plural)
        for case in getattr(rule, outcome)
    ]


@pytest.mark.parametrize(("plural", "rule", "case"), rows("refused"))
def test_a_broken_rule_is_told_in_its_words(
    api_server: ApiServer, namespace: str, plural: str, rule: Rule, case: Case
) -> None:
    done = ask(api_server, namespace, plural, rule, case)
    path, message = rule.words.split(": ", 1)
    name = example(plural)["metadata"]["name"]
    # Kubernetes 1.28 writes the value, or its type, before the message.
    told = rf'The {KINDS[plural]} "{name}" is invalid: {re.escape(path)}: Invalid value: (".*?": |\[.*?\]: )?{re.escape(message)}'
    assert re.fullmatch(told, done.stderr.strip()), f"{case.reason}: {done.stderr}{done.stdout}"


@pytest.mark.parametrize(("plural", "rule", "case"), rows("accepted"))
def test_its_neighbour_passes(api_server: ApiServer, namespace: str, plural: str, rule: Rule, case: Case) -> None:
    done = ask(api_server, namespace, plural, rule, case)
    assert done.returncode == 0, f"{case.reason}: {done.stderr}"


def ask(server: ApiServer, namespace: str, plural: str, rule: Rule, case: Case) -> Any:
    """Applies the example with the case's change; for a rule about change, changes what was applied before."""
    given = example(plural)
    apply = ["apply", "-n", namespace, "-f", "-"]
    if case.before is None:
        given[rule.section] = changed(given[rule.section], case.change)
        return server.run(*apply, "--dry-run=server", given=json.dumps(given))
    server.kubectl(*apply, given=json.dumps(given))
    part = [f"--subresource={rule.section}"] if rule.section == "status" else []
    patch = ["patch", plural, given["metadata"]["name"], "-n", namespace, "--type=merge", *part, "-p"]
    server.kubectl(*patch, merge_patch(rule.section, case.before))
    return server.run(*patch, merge_patch(rule.section, case.change))


def merge_patch(section: str, change: Mapping[str, object]) -> str:
    """A case's change as a JSON merge patch, where null takes a field out."""
    body = changed({}, {path: None if value is ... else value for path, value in change.items()})
    return json.dumps({section: body})
