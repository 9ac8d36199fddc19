"""mlplatform.admission says what kubectl and a real API server say, line for line, and keeps what they would store.

The tables are those of tests/unit/test_admission.py. The words are those of Kubernetes 1.36: an older server's differ.
"""

from __future__ import annotations

import json
import re
from typing import Any

import crds
import pytest
import yaml
from admission_cases import CASES, EARLY, Case, Early
from apiserver_fixture import ApiServer
from crd_rules import RULES, changed, example
from crd_rules import Case as RuleCase

from mlplatform import admission

pytestmark = pytest.mark.apiserver

OF_A_MODEL = [
    case for rule in RULES if rule.words in crds.rules("mlmodels") for case in (*rule.refused, *rule.accepted)
]

OF_EVERY_KIND: dict[str, Any] = {
    "a null": None,
    "yes": True,
    "nought": 0,
    "less than nothing": -1,
    "an integer": 3,
    "a fraction": 2.5,
    "a small number": 1e-7,
    "more than 32 bits": 2**31,
    "more than 64 bits": 10**19,
    "no text": "",
    "a blank": " ",
    "text": "x",
    "a line": "10m\n",
    "text that is quoted": 'q"\\\té',
    "long text": "x" * 2000,
    "a list of nothing": [],
    "a list of a null": [None],
    "a list of text, twice": ["x", "x"],
    "a list of numbers": [3, 2],
    "a list of objects": [{"a": 1}],
    "an object of nothing": {},
    "an object": {"a": 1},
    "an object in a list in an object": {"a": [{"b": None}]},
}


@pytest.fixture(autouse=True)
def of_these_words(api_server: ApiServer) -> None:
    minor = int(json.loads(api_server.kubectl("get", "--raw", "/version"))["minor"].rstrip("+"))
    if minor < 36:
        pytest.skip(f"Kubernetes 1.{minor} has other words")


def apply(server: ApiServer, manifest: str, *flags: str) -> tuple[list[str], dict[str, Any]]:
    """What kubectl prints about a manifest, a line each, and what the server would store."""
    done = server.run("apply", "--dry-run=server", "-o", "json", "-f", "-", *flags, given=manifest)
    if done.returncode == 0:
        return [], json.loads(done.stdout)
    unknown = re.findall(r'unknown field "[^"]+"', done.stderr)
    _, invalid, mistakes = done.stderr.strip().partition(" is invalid: ")
    return unknown or (
        [line.removeprefix("* ") for line in mistakes.strip().splitlines()] if invalid else [done.stderr]
    ), {}


def agree(server: ApiServer, manifest: dict[str, Any]) -> list[str]:
    """Both judge a manifest; returns ours.

    Where there are unknown fields the server speaks of them alone. Of the rest it speaks where it is told to drop them.
    """
    ours = admission.refusals(manifest)
    unknown = [line.partition(" (did you mean ")[0] for line in ours if line.startswith("unknown field")]
    rest = ours[len(unknown) :]
    given = json.dumps(manifest)
    if unknown:
        assert apply(server, given)[0] == unknown
    said, kept = apply(server, given, *(["--validate=ignore"] if unknown else []))
    assert sorted(said) == sorted(rest)
    if not rest:
        assert admission.stored(manifest)["spec"] == kept["spec"]
    return ours


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.keyword}: {c.reason}")
def test_a_value_is_refused_in_these_words(api_server: ApiServer, case: Case) -> None:
    assert agree(api_server, case.manifest) == list(case.said), case.reason


@pytest.mark.parametrize("case", EARLY, ids=lambda c: c.reason)
def test_what_is_no_model_is_refused_in_these_words(api_server: ApiServer, case: Early) -> None:
    done = api_server.run("apply", "--dry-run=server", "-f", "-", given=case.text)
    assert done.returncode != 0, case.reason
    for line in [case.told] if case.told else case.said:
        assert re.sub(r" \([^()]*\)$", "", line) in done.stderr, case.reason


def test_a_missing_name_is_told_by_the_server_where_kubectl_lets_it_pass(api_server: ApiServer) -> None:
    manifest = changed(example("mlmodels"), {"metadata.name": ...})
    done = api_server.run("create", "--dry-run=server", "-f", "-", given=json.dumps(manifest))
    for line in admission.refusals(manifest):
        assert line in done.stderr


@pytest.mark.parametrize("case", OF_A_MODEL, ids=lambda c: c.reason)
def test_a_rule_is_judged_alike(api_server: ApiServer, case: RuleCase) -> None:
    model = example("mlmodels")
    agree(api_server, {**model, "spec": changed(model["spec"], case.change)})


@pytest.mark.parametrize("kind", OF_EVERY_KIND)
def test_a_value_of_every_kind_in_every_field_is_judged_alike(api_server: ApiServer, kind: str) -> None:
    """All fields of a depth in one manifest: the server names every mistake."""
    paths = [path for path, _ in crds.walk(crds.schema("mlmodels", "spec"), "spec")]
    for depth in range(4):
        manifest = example("mlmodels")
        for path in paths:
            if path.count(".") + path.count("[]") == depth:
                put(manifest, path, OF_EVERY_KIND[kind])
        agree(api_server, yaml.safe_load(json.dumps(manifest)))


def put(manifest: dict[str, Any], path: str, value: Any) -> None:
    """Sets what a path of `crds.walk` names, in the first item of a list and under any key of a map."""
    *parents, last = path.replace("[]", ".0").replace("*", "any").split(".")
    node: Any = manifest
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
    node[int(last) if isinstance(node, list) else last] = value
