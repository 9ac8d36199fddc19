"""mlplatform.admission: a manifest is refused without a cluster as `kubectl apply` refuses it with one, word for word.

tests/apiserver/test_admission.py holds the same tables against kubectl and a real API server.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import crds
import pytest
import yaml
from admission_cases import CASES, EARLY, Case, Early
from crd_rules import RULES, changed, example
from crd_rules import Case as RuleCase

from mlplatform import admission, api

OF_A_MODEL = [rule for rule in RULES if rule.words in crds.rules("mlmodels")]


def with_spec(case: RuleCase) -> dict[str, Any]:
    """The example with a case of crd_rules' change."""
    model = example("mlmodels")
    return {**model, "spec": changed(model["spec"], case.change)}


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.keyword}: {c.reason}")
def test_a_value_is_refused_in_the_servers_words(case: Case) -> None:
    assert admission.refusals(case.manifest) == list(case.said), case.reason


@pytest.mark.parametrize("case", EARLY, ids=lambda c: c.reason)
def test_what_is_no_model_is_refused_before_its_spec_is_read(case: Early) -> None:
    assert admission.refusals(yaml.safe_load(case.text)) == list(case.said), case.reason


@pytest.mark.parametrize(
    ("words", "case"),
    [(rule.words, case) for rule in OF_A_MODEL for case in rule.refused],
    ids=[f"{rule.words.partition(':')[0]}: {case.reason}" for rule in OF_A_MODEL for case in rule.refused],
)
def test_a_broken_rule_is_told_in_its_words(words: str, case: RuleCase) -> None:
    (line,) = admission.refusals(with_spec(case))
    path, _, message = words.partition(": ")
    # The server shows what a rule of a single string is about.
    assert re.fullmatch(rf'{re.escape(path)}: Invalid value: ("[^"]*": )?{re.escape(message)}', line), case.reason


@pytest.mark.parametrize("case", [case for rule in OF_A_MODEL for case in rule.accepted], ids=lambda c: c.reason)
def test_what_breaks_no_rule_is_accepted(case: RuleCase) -> None:
    assert admission.refusals(with_spec(case)) == [], case.reason


SAMPLES = sorted([*crds.FOLDER.parent.glob("samples/*.yaml"), *crds.FOLDER.parents[1].glob("examples/*/mlmodel.yaml")])


@pytest.mark.parametrize("path", SAMPLES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_samples_are_accepted(path: Any) -> None:
    assert admission.refusals(yaml.safe_load(path.read_text())) == []


# Nothing of the CRD is passed over in silence.


def nodes() -> list[tuple[str, dict[str, Any]]]:
    """Every schema node that a manifest is held against: the status is dropped unread."""
    root = crds.version("mlmodels")["schema"]["openAPIV3Schema"]
    return [(path, node) for path, node in crds.walk(root, "") if not path.startswith(".status")]


def test_the_crd_uses_no_keyword_that_is_not_obeyed() -> None:
    used = {keyword: path for path, node in nodes() for keyword in node}
    assert {keyword: path for keyword, path in used.items() if keyword not in admission.KEYWORDS} == {}
    assert admission.KEYWORDS - used.keys() == set(), "and none is obeyed for nothing"


def test_every_keyword_that_is_obeyed_has_a_case() -> None:
    assert admission.KEYWORDS - {"description"} == {case.keyword for case in CASES}


def test_the_crd_uses_keywords_only_in_ways_that_are_obeyed() -> None:
    rules = [rule for _, node in nodes() for rule in node.get("x-kubernetes-validations", [])]
    assert {key for rule in rules for key in rule} == {"rule", "message", "fieldPath"}
    assert {node["format"] for _, node in nodes() if "format" in node} == set(admission.FORMATS)
    assert {node["x-kubernetes-list-type"] for _, node in nodes() if "x-kubernetes-list-type" in node} <= {
        "atomic",
        "map",
        "set",
    }
    assert all(len(node.get("x-kubernetes-list-map-keys", ["one"])) == 1 for _, node in nodes())
    assert all(isinstance(node.get("additionalProperties", {}), dict) for _, node in nodes())
    # Of lists in maps the server would write the path in another way, and of enums other than text the words.
    assert not [path for path, node in nodes() if ".*" in path and node.get("type") in {"array", "object"}]
    assert all(isinstance(word, str) for _, node in nodes() for word in node.get("enum", []))
    # A dollar is the end, and nothing else is read one way in Go and another way here.
    patterns = {node["pattern"] for _, node in nodes() if "pattern" in node}
    assert [p for p in patterns if re.search(r"\\[^S.]|\(\?|\$.|[^\x20-\x7e]", p)] == []


def test_the_package_carries_the_crd() -> None:
    name = "mlplatform.dev_mlmodels.yaml"
    assert (resources.files("mlplatform") / "crd" / name).read_bytes() == (crds.FOLDER / name).read_bytes()


# What the server would store.


def test_defaults_are_filled_in_as_a_server_fills_them_in() -> None:
    model = {**example("mlmodels"), "spec": {"data": {"uri": "s3://a/", "label": "y"}}}
    assert admission.stored(model)["spec"] == crds.with_defaults(crds.schema("mlmodels", "spec"), model["spec"])


@pytest.mark.parametrize("case", [case for case in CASES if not case.said], ids=lambda c: c.reason)
def test_what_is_accepted_can_be_decoded_as_it_is_stored(case: Case) -> None:
    kept = admission.stored(case.manifest)
    assert api.problems(api.decode(api.MLModelSpec, kept["spec"]), kept["metadata"]["name"]) == []


def test_what_is_stored_is_no_part_of_what_was_given() -> None:
    given = example("mlmodels")
    admission.stored(given)["spec"]["data"]["uri"] = "elsewhere"
    admission.refusals(given)
    assert given == example("mlmodels")


def test_what_is_stored_has_no_status_and_no_field_of_no_name() -> None:
    given = changed(
        example("mlmodels"), {"status": {"stage": "x"}, "spec.trainig": {}, "metadata.nme": "x", "spec.gates": None}
    )
    kept = admission.stored(given)
    assert (kept.keys(), kept["metadata"]) == ({"apiVersion", "kind", "metadata", "spec"}, {"name": "adult-income"})
    assert "gates" not in kept["spec"]
    assert "trainig" not in kept["spec"]


def test_keys_that_yaml_does_not_take_for_text_are_text() -> None:
    given = changed(example("mlmodels"), {"spec.training.hyperparameters": {2: "a", True: "b"}})
    assert admission.stored(given)["spec"]["training"]["hyperparameters"] == {"2": "a", "true": "b"}
