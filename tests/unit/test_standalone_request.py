"""Out of a file and what the caller changes about it: one MLModel, or words about why there is none."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs_kit import REPO

from mlplatform import api, contract
from mlplatform.errors import CliError
from mlplatform.snapshot import name_of, namespace_of
from mlplatform.standalone.engine import located
from mlplatform.standalone.request import Asked, Request, read

HEAD = f"apiVersion: {contract.API_VERSION}\nkind: MLModel\n"
BODY = "spec: {data: {uri: s3://datasets/people/, label: rich}}\n"
PEOPLE = f"{HEAD}metadata: {{name: people}}\n{BODY}"
HOUSES = f"{HEAD}metadata: {{name: houses}}\n{BODY}"
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: other}\n"


def asked(text: str, name: str = "", **request: Any) -> Asked:
    return read(Request(file="mlmodel.yaml", name=name, **request), text)


def value_at(asked: Asked, path: str) -> Any:
    found = asked.model["spec"]
    for step in path.split("."):
        found = found[int(step) if step.isdecimal() else step]
    return found


def refusal(text: str, name: str = "", **request: Any) -> CliError:
    with pytest.raises(CliError) as caught:
        asked(text, name, **request)
    assert caught.value.code == 2
    assert "\n" not in caught.value.next_action
    return caught.value


# The file


@dataclass(frozen=True)
class Scalar:
    """A hyperparameter as it is written, and what kubectl makes of it."""

    reason: str
    text: str
    value: object


SCALARS = [
    Scalar("a number in scientific notation needs no dot", "1e-3", 0.001),
    Scalar("nor a sign", "2E6", 2_000_000),
    Scalar("with a dot and a sign", "-1.5e+2", -150),
    Scalar("a fraction without its zero", ".5", 0.5),
    Scalar("an integer", "12", 12),
    Scalar("a date stays text", "2026-01-01", "2026-01-01"),
    Scalar("a time stays text", "2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z"),
    Scalar("a version is text", "1.2.3", "1.2.3"),
    Scalar("what only looks like a number is text", "1e", "1e"),
    Scalar("a number in quotes is text", '"1e-3"', "1e-3"),
    Scalar("a switch", "true", True),
    Scalar("a list", "[256, 128]", [256, 128]),
]


@pytest.mark.parametrize("case", SCALARS, ids=lambda case: case.reason)
def test_yaml_is_read_as_kubectl_reads_it(case: Scalar) -> None:
    text = PEOPLE.replace("label: rich}", f"label: rich}}, training: {{hyperparameters: {{x: {case.text}}}}}")
    found = value_at(asked(text), "training.hyperparameters.x")
    assert found == case.value, case.reason
    assert isinstance(found, bool) == isinstance(case.value, bool), case.reason


def test_json_is_yaml() -> None:
    model = yaml.safe_load(PEOPLE)
    assert asked(json.dumps(model)).model == asked(PEOPLE).model


def test_a_map_may_have_again_what_it_merges() -> None:
    merging = "{deep: {inner: &few {<<: {a: 1, b: 1}, b: 2}}, flat: {<<: *few, a: 3}}"
    text = PEOPLE.replace("label: rich}", f"label: rich}}, training: {{hyperparameters: {merging}}}")
    assert value_at(asked(text), "training.hyperparameters") == {
        "deep": {"inner": {"a": 1, "b": 2}},
        "flat": {"a": 3, "b": 2},
    }


@dataclass(frozen=True)
class Choice:
    """A file, and the model that is taken out of it.

    Attributes:
        reason: What it shows.
        text: The file.
        name: What the caller names.
        found: Name of the model.
    """

    reason: str
    text: str
    name: str = ""
    found: str = "people"


LIST = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(t) for t in (SERVICE, PEOPLE)]})
CHOICES = [
    Choice("the only one", PEOPLE),
    Choice("the only one, named", PEOPLE, "people"),
    Choice("the only one among other kinds", f"{SERVICE}---\n{PEOPLE}---\n{SERVICE}"),
    Choice("empty documents are none", f"---\n---\n{PEOPLE}---\n# nothing\n"),
    Choice("one of two", f"{PEOPLE}---\n{HOUSES}", "houses", "houses"),
    Choice("the only one of a List", LIST),
    Choice("one of a List and another document", f"{LIST}---\n{HOUSES}", "people"),
]


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case.reason)
def test_which_model_of_a_file(case: Choice) -> None:
    assert name_of(asked(case.text, case.name).model) == case.found


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be run, and what is said of it."""

    reason: str
    text: str
    cause: str
    next_action: str
    name: str = ""
    request: dict[str, Any] = field(default_factory=dict)


EXPLAIN = "correct what is named; `kubectl explain mlmodel.spec` describes every field"
APPLY = "mlmodel.yaml is refused, as kubectl apply would refuse it:\n       "
OPERATOR = "mlmodel.yaml is refused, as the operator would refuse it:\n       "
EXAMPLE = "examples/adult-income/mlmodel.yaml is one"
REFUSALS = [
    Refusal("an empty file", "", "mlmodel.yaml has no MLModel: it is empty", EXAMPLE),
    Refusal("a file of comments", "# nothing\n---\n", "mlmodel.yaml has no MLModel: it is empty", EXAMPLE),
    Refusal(
        "other kinds only", f"{SERVICE}---\n{SERVICE}", "mlmodel.yaml has no MLModel, only Service, Service", EXAMPLE
    ),
    Refusal("a list of words", "[a, 1]", "mlmodel.yaml has no MLModel, only list", EXAMPLE),
    Refusal("a word", "kind", "mlmodel.yaml has no MLModel, only str", EXAMPLE),
    Refusal("an empty List", "{kind: List, items: []}", "mlmodel.yaml has no MLModel: it is empty", EXAMPLE),
    Refusal("a List of nothing", "{kind: List, items: }", "mlmodel.yaml has no MLModel, only List", EXAMPLE),
    Refusal(
        "two models and no name",
        f"{PEOPLE}---\n{HOUSES}",
        "mlmodel.yaml has 2 MLModels: people, houses",
        "say which: kubectl mlmodel run -f mlmodel.yaml people",
    ),
    Refusal(
        "a name that none has",
        f"{PEOPLE}---\n{HOUSES}",
        "mlmodel.yaml has no MLModel 'adult'",
        "it has people, houses",
        "adult",
    ),
    Refusal("a name, and no model", SERVICE, "mlmodel.yaml has no MLModel 'adult'", "it has none", "adult"),
    Refusal("no YAML", "a: [", "mlmodel.yaml is no YAML: while parsing a flow node", "correct it"),
    Refusal("a tab", "a:\n\tb: 1\n", "mlmodel.yaml is no YAML: while scanning for the next token", "correct it"),
    Refusal(
        "a key twice: the second would silently win",
        PEOPLE + "kind: MLModel\n",
        'mlmodel.yaml is no YAML: key "kind" already set in map',
        "correct it",
    ),
    Refusal(
        "a key twice, deep within",
        PEOPLE.replace("label: rich", "label: rich, label: poor"),
        'mlmodel.yaml is no YAML: key "label" already set in map',
        "correct it",
    ),
    Refusal(
        "a chart's template",
        PEOPLE.replace("name: people", "name: {{ .Values.name }}"),
        "mlmodel.yaml is no YAML: a key that is a map or a list",
        "correct it",
    ),
    Refusal(
        "an object of Python's",
        PEOPLE.replace("label: rich", "label: !!python/object/apply:os.getcwd []"),
        "mlmodel.yaml is no YAML: could not determine a constructor for the tag",
        "correct it",
    ),
    Refusal(
        "a misspelt field",
        PEOPLE.replace("label: rich", "label: rich, lable: rich"),
        f'{APPLY}unknown field "spec.data.lable" (did you mean label?)',
        EXPLAIN,
    ),
    Refusal("no spec", f"{HEAD}metadata: {{name: people}}\n", f"{APPLY}spec: Required value", EXPLAIN),
    Refusal(
        "metadata that is a word", f"{HEAD}metadata: people\n{BODY}", f"{APPLY}json: cannot unmarshal string", EXPLAIN
    ),
    Refusal("no metadata", f"{HEAD}{BODY}", f"{APPLY}metadata.name: Required value", EXPLAIN),
    Refusal(
        "another version of the API",
        PEOPLE.replace("v1alpha1", "v9"),
        f'{APPLY}apiVersion: Invalid value: "mlplatform.dev/v9": must be mlplatform.dev/v1alpha1',
        EXPLAIN,
    ),
    Refusal(
        "two mistakes, each on a line of its own",
        PEOPLE.replace("label: rich}", "label: rich}, training: {epochs: 0, workers: 0}"),
        f"{APPLY}spec.training.epochs: Invalid value: 0: spec.training.epochs in body should be greater than or equal to 1"
        "\n       spec.training.workers: Invalid value: 0",
        EXPLAIN,
    ),
    Refusal(
        "a mistake that the caller made",
        PEOPLE,
        "mlmodel.yaml (with --set training.epochs=0, --set training.seed=1) is refused, as kubectl apply would refuse it:"
        "\n       spec.training.epochs: Invalid value: 0",
        EXPLAIN,
        request={"set": ("training.epochs=0", "training.seed=1")},
    ),
    Refusal(
        "what only the operator finds: a deadline beyond all dates",
        PEOPLE.replace("label: rich}", "label: rich}, training: {deadline: 9999999h}"),
        f"{OPERATOR}spec.training.deadline: '9999999h' is longer than 87600h",
        EXPLAIN,
    ),
    Refusal(
        "what only the operator finds: a request too long to keep",
        PEOPLE.replace("name: people", f"name: people, annotations: {{{contract.ANNOTATION_RETRAIN}: {'x' * 300}}}"),
        f"{OPERATOR}metadata.annotations: {contract.ANNOTATION_RETRAIN} has 300 characters, at most 256 are kept",
        EXPLAIN,
    ),
    Refusal(
        "a model that is suspended would wait forever",
        PEOPLE.replace("spec: {", "spec: {suspend: true, "),
        "mlmodel.yaml: spec.suspend is true, so nothing may run",
        "add --set suspend=false",
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.reason)
def test_what_is_refused(case: Refusal) -> None:
    found = refusal(case.text, case.name, **case.request)
    assert found.cause.startswith(case.cause), found.cause
    assert found.next_action == case.next_action


# --set


@dataclass(frozen=True)
class Set:
    """An assignment, and what it makes of the spec.

    Attributes:
        reason: What it shows.
        assignment: As it is written.
        path: Where to look.
        value: What is there.
    """

    reason: str
    assignment: str
    path: str
    value: object


SETS = [
    Set("a field that is there", "data.label=poor", "data.label", "poor"),
    Set("a field of a section that is not there", "training.epochs=1", "training.epochs", 1),
    Set("the path may begin as the field's name does", "spec.training.epochs=1", "training.epochs", 1),
    Set("three deep", "training.optimizer.learningRate=1e-3", "training.optimizer.learningRate", 0.001),
    Set("an item of a list", "gates[0].min=0.9", "gates.0.min", 0.9),
    Set("an item as a whole", "gates[1]={metric: f1, min: 0.5}", "gates.1", {"metric": "f1", "min": 0.5}),
    Set("an object", "data.split={test: 0.3}", "data.split.test", 0.3),
    Set("a list", "optimization.candidates=[fp32]", "optimization.candidates", ["fp32"]),
    Set("an object of a map", "fairness.metrics={}", "fairness.metrics", {}),
    Set("a value with an equals sign in it", "data.uri=s3://a/b=c/", "data.uri", "s3://a/b=c/"),
    Set("text that would be a number", "data.positiveLabel='1'", "data.positiveLabel", "1"),
    Set("text that would be a switch", 'data.positiveLabel="true"', "data.positiveLabel", "true"),
    Set("no text at all", "training.image=''", "training.image", ""),
    Set("a date is text", "data.positiveLabel=2026-01-01", "data.positiveLabel", "2026-01-01"),
    Set("a name with a hyphen", "training.hyperparameters.weight-decay=1", "training.hyperparameters.weight-decay", 1),
    Set("null: the default again", "optimization.maxMetricDrop=null", "optimization.maxMetricDrop", 0.005),
]
FULL = PEOPLE.replace(
    "label: rich}",
    "label: rich, sensitiveAttributes: [job]}, gates: [{metric: roc_auc, min: 0.5}, {metric: f1, min: 0.1}], "
    "fairness: {metrics: {demographic_parity_difference: 0.2}}, optimization: {maxMetricDrop: 0.1}",
)


@pytest.mark.parametrize("case", SETS, ids=lambda case: case.reason)
def test_set(case: Set) -> None:
    found = value_at(asked(FULL, set=(case.assignment,)), case.path)
    assert found == case.value, case.reason
    assert type(found) is type(case.value), case.reason


def test_one_assignment_after_the_other() -> None:
    found = asked(PEOPLE, set=("training.epochs=1", "training={workers: 2}", "training.epochs=3"))
    assert (value_at(found, "training.epochs"), value_at(found, "training.workers")) == (3, 2)


def test_what_an_alias_repeats_is_set_in_one_place() -> None:
    shared = "label: rich}, training: {resources: &small {memory: 1Gi}}, serving: {resources: *small}"
    found = asked(PEOPLE.replace("label: rich}", shared), set=("training.resources.memory=2Gi",))
    assert value_at(found, "training.resources.memory") == "2Gi"
    assert value_at(found, "serving.resources.memory") == "1Gi"


@pytest.mark.parametrize(
    ("reason", "assignment", "cause", "next_action"),
    [
        ("no value", "training.epochs", "no assignment", "write it like training.epochs=1"),
        ("no path", "=1", "no assignment", "write it like training.epochs=1"),
        ("nothing between two dots", "training..epochs=1", "no assignment", "write it like training.epochs=1"),
        ("a dot at the end", "training.=1", "no assignment", "write it like training.epochs=1"),
        ("an index that is none", "gates[x].min=1", "no assignment", "write it like training.epochs=1"),
        ("an index that is not closed", "gates[0.min=1", "no assignment", "write it like training.epochs=1"),
        (
            "an item that is not there",
            "gates[9].min=1",
            "there is no gates[9].min to set",
            "name a field that is there",
        ),
        ("an index of what is no list", "data[0]=1", "there is no data[0] to set", "name a field that is there"),
        ("a field of a list", "gates.min=1", "there is no gates.min to set", "name a field that is there"),
        ("a field of a word", "data.label.x=1", "there is no data.label.x to set", "name a field that is there"),
        ("a value that is no YAML", "data.label=[", "the value is no YAML: while parsing a flow node", "quote it"),
        ("a value with a colon too many", "data.label=a: b: c", "the value is no YAML: mapping values", "quote it"),
    ],
)
def test_what_cannot_be_set(reason: str, assignment: str, cause: str, next_action: str) -> None:
    found = refusal(FULL, set=(assignment,))
    assert found.cause.startswith(f"--set {assignment}: {cause}"), reason
    assert found.next_action == next_action, reason


def test_what_is_set_is_judged_like_the_rest() -> None:
    found = refusal(PEOPLE, set=("training.epoch=1",))
    assert found.cause.endswith('unknown field "spec.training.epoch" (did you mean epochs?)')


# The version


def cluster_name(text: str, trigger: str = "") -> str:
    """What the operator would call the version, of the file as it is."""
    model = yaml.safe_load(text)
    return api.version_name(model["metadata"]["name"], api.decode(api.MLModelSpec, model["spec"]), trigger)


EXAMPLE_FILE = (REPO / "examples" / "adult-income" / "mlmodel.yaml").read_text()


@pytest.mark.parametrize("text", [PEOPLE, FULL, EXAMPLE_FILE], ids=["short", "full", "example"])
def test_an_untouched_file_makes_the_version_that_it_makes_in_a_cluster(text: str) -> None:
    assert asked(text).version == cluster_name(text)


@dataclass(frozen=True)
class Named:
    """What the caller asks for, and whether it is the version of the file."""

    reason: str
    same: bool
    request: dict[str, Any]


NAMED = [
    Named("rows that lie somewhere else are the same rows", True, {"data": "/elsewhere"}),
    Named("what is only shown or kept is no part of a version", True, {"until": "audit", "keep_going": True}),
    Named("another folder for the results", True, {"store": Path("/elsewhere")}),
    Named("another namespace", True, {"namespace": "team-a"}),
    Named("a value that is the file's own", True, {"set": ("data.label=rich",)}),
    Named("a value that is the default", True, {"set": ("training.seed=7",)}),
    Named("a value where none was said is another version", False, {"set": ("training.epochs=10",)}),
    Named("what serves, and how traffic moves, is no part of a version", True, {"set": ("serving.replicas.max=3",)}),
    Named("a sample is another version", False, {"rows": 100}),
    Named("another value is another version", False, {"set": ("training.epochs=1",)}),
]


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.reason)
def test_what_names_a_version(case: Named) -> None:
    assert (asked(PEOPLE, **case.request).version == cluster_name(PEOPLE)) is case.same


def test_samples_of_two_sizes_are_two_versions_and_a_request_to_retrain_a_third() -> None:
    retrain = PEOPLE.replace("name: people", f"name: people, annotations: {{{contract.ANNOTATION_RETRAIN}: again}}")
    assert asked(retrain).version == cluster_name(PEOPLE, "again"), "as in a cluster"
    names = {asked(text, rows=rows).version for text in (PEOPLE, retrain) for rows in (None, 100, 200)}
    assert len(names) == 6


def test_the_operator_that_looks_at_the_model_wants_this_very_version() -> None:
    found = asked(PEOPLE, rows=100, set=("training.epochs=1",))
    trigger = found.model["metadata"]["annotations"][contract.ANNOTATION_RETRAIN]
    assert trigger == found.trigger == "rows=100"
    spec = api.decode(api.MLModelSpec, found.model["spec"])
    assert spec == found.spec
    assert api.version_name("people", spec, trigger) == found.version


@pytest.mark.parametrize(
    ("reason", "text", "asked_for", "namespace"),
    [
        ("a file that names none", PEOPLE, "", "default"),
        ("a file that names one", PEOPLE.replace("name: people", "name: people, namespace: team-a"), "", "team-a"),
        ("the caller's comes first", PEOPLE.replace("name: people", "name: people, namespace: a"), "team-b", "team-b"),
        ("a name of nothing", PEOPLE.replace("name: people", "name: people, namespace: "), "", "default"),
    ],
)
def test_the_namespace(reason: str, text: str, asked_for: str, namespace: str) -> None:
    assert namespace_of(asked(text, namespace=asked_for).model) == namespace, reason


def test_the_model_is_as_a_cluster_would_hold_it() -> None:
    text = PEOPLE.replace("label: rich}", "label: rich}, training: {epochs: 3.0, seed: }") + "status: {stage: Ready}\n"
    found = asked(text)
    assert value_at(found, "training.epochs") == 3, "3.0 is an integer to the API server"
    assert value_at(found, "training.seed") == 7, "what is null has its default"
    assert value_at(found, "rollout.interval") == "1m"
    assert "status" not in found.model


@pytest.mark.parametrize(
    ("reason", "data", "uri", "found"),
    [
        ("a URI stays as it is", "", "s3://datasets/people/", "s3://datasets/people/"),
        ("a path is told in full", "", "data/people", "{cwd}/data/people"),
        ("the caller's comes first", "people.csv", "s3://datasets/people/", "{cwd}/people.csv"),
        ("the caller's may be a URI", "s3://other/", "data/people", "s3://other/"),
        ("the home folder", "~/people", "s3://datasets/people/", "{home}/people"),
    ],
)
def test_where_the_rows_are(reason: str, data: str, uri: str, found: str) -> None:
    wanted = found.format(cwd=Path.cwd(), home=Path.home())
    request = Request(file="mlmodel.yaml", data=data)
    place = located(request, asked(PEOPLE.replace("s3://datasets/people/", uri)).spec.data)
    assert place.uri == wanted, reason


def test_what_one_request_changes_is_not_in_the_next() -> None:
    text = f"{FULL}---\n{HOUSES}"
    assert value_at(asked(text, "people", set=("gates[0].min=0.9",)), "gates.0.min") == 0.9
    assert value_at(asked(text, "people"), "gates.0.min") == 0.5
