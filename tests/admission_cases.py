"""What an API server, or kubectl before it, says of MLModels that are wrong: one table, two judges.

Used by tests/unit/test_admission.py, where `mlplatform.admission` decides, and by tests/apiserver/test_admission.py, where
kubectl and a real API server do. The rules that span fields have a table of their own, in crd_rules.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crd_rules import changed, example

from mlplatform import contract

NOT_CHECKED = (
    "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
UNREAD = "json: cannot unmarshal"
EITHER = (
    "spec.data: Invalid value: set label (the column to predict) or labels "
    "(the columns of a multilabel target), not both"
)
PARITY = "spec.fairness.metrics.demographic_parity_difference"
ATTRIBUTE = "spec.data.sensitiveAttributes[1]"
RATE = "spec.training.optimizer.learningRate"
DURATION = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
SOME_TIME = "must be longer than 0s; write it like 90s, 10m or 1h30m"


@dataclass(frozen=True)
class Case:
    """A change to the example.

    Attributes:
        keyword: What of the schema it is about.
        reason: Why it must end as it does.
        change: Dotted path → value; ``...`` takes the field out.
        said: Every line of the refusal, in order; none when it is accepted.
    """

    keyword: str
    reason: str
    change: Mapping[str, object]
    said: tuple[str, ...] = ()

    @property
    def manifest(self) -> dict[str, Any]:
        """The MLModel."""
        return changed(example("mlmodels"), self.change)


CASES = [
    Case("type", "a number is not text", {"spec.training.resources.cpu": 1},
         ('spec.training.resources.cpu: Invalid value: "integer": spec.training.resources.cpu in body must be of type string: "integer"',
          NOT_CHECKED)),
    Case("type", "text is not a number", {"spec.training.epochs": "five"},
         ('spec.training.epochs: Invalid value: "string": spec.training.epochs in body must be of type integer: "string"', NOT_CHECKED)),
    Case("type", "an object is not a list", {"spec.gates": {"metric": "roc_auc"}},
         ('unknown field "spec.gates.metric"',
          'spec.gates: Invalid value: "object": spec.gates in body must be of type array: "object"', NOT_CHECKED)),
    Case("type", "a list is not an object", {"spec.training": [1]},
         ('spec.training: Invalid value: "array": spec.training in body must be of type object: "array"', NOT_CHECKED)),
    Case("type", "text is not yes or no", {"spec.suspend": "yes"},
         ('spec.suspend: Invalid value: "string": spec.suspend in body must be of type boolean: "string"', NOT_CHECKED)),
    Case("type", "nothing between two gates", {"spec.gates": [{"metric": "roc_auc", "min": 0.5}, None]},
         ('spec.gates[1]: Invalid value: "null": spec.gates[1] in body must be of type object: "null"', NOT_CHECKED)),
    Case("type", "an integer is a number", {"spec.training.optimizer.learningRate": 1}),
    Case("type", "a whole number is an integer, however it is written", {"spec.training.workers": 2.0}),
    Case("format", "a fraction is no integer", {"spec.training.workers": 2.5},
         ('spec.training.workers: Invalid value: "float64": spec.training.workers in body must be of type int32: "float64"',
          '<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.training.workers',
          NOT_CHECKED)),
    Case("format", "yes is no integer", {"spec.training.workers": True},
         ('spec.training.workers: Invalid value: "": spec.training.workers in body must be of type int32: ""', NOT_CHECKED)),
    Case("format", "more than 32 bits", {"spec.training.maxRestarts": 2**31},
         ('<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.training.maxRestarts',
          "spec.training.maxRestarts: Invalid value: 2147483648: spec.training.maxRestarts in body should be less than or equal to 100")),
    Case("format", "more than 64 bits is a float", {"spec.training.seed": 10**30},
         ('spec.training.seed: Invalid value: "float64": spec.training.seed in body must be of type int64: "float64"',
          '<nil>: Invalid value: "": Checked value must be of type integer with format int64 in spec.training.seed',
          "spec.training.seed: Invalid value: 1e+30: spec.training.seed in body should be less than or equal to 4.294967295e+09",
          NOT_CHECKED)),
    Case("nullable", "a null is a field that is not there", {"spec.gates": None, "spec.training.workers": None}),
    Case("nullable", "what must be there must not be null", {"spec.data": None}, ("spec.data: Required value", NOT_CHECKED)),
    Case("nullable", "a hyperparameter that is null is none", {"spec.training.hyperparameters": {"dropout": None}}),
    Case("nullable", "even a misspelt one", {"spec.trainig": None}),
    Case("enum", "a misspelt word", {"spec.training.strategy": "fsdpx"},
         ('spec.training.strategy: Unsupported value: "fsdpx": supported values: "fsdp", "ddp", "single"', NOT_CHECKED)),
    Case("enum", "a number for a word", {"spec.training.precision": 16},
         ('spec.training.precision: Invalid value: "integer": spec.training.precision in body must be of type string: "integer"',
          'spec.training.precision: Unsupported value: 16: supported values: "bf16", "fp32"', NOT_CHECKED)),
    Case("enum", "one of a list", {"spec.optimization.export": ["onnx", "onyx"]},
         ('spec.optimization.export[1]: Unsupported value: "onyx": supported values: "torchscript", "onnx"', NOT_CHECKED)),
    Case("required", "no address", {"spec.data.uri": ...}, ("spec.data.uri: Required value", NOT_CHECKED)),
    Case("required", "no spec", {"spec": ...}, ("spec: Required value", NOT_CHECKED)),
    Case("required", "a gate on nothing", {"spec.gates": [{"min": 0.5}]}, ("spec.gates[0].metric: Required value", NOT_CHECKED)),
    Case("properties", "a misspelt section", {"spec.trainig": {"epochs": 3}},
         ('unknown field "spec.trainig" (did you mean training?)',)),
    Case("properties", "a misspelt field of a list's item", {"spec.gates": [{"metric": "roc_auc", "mim": 0.5, "max": 1}]},
         ('unknown field "spec.gates[0].mim" (did you mean min?)',)),
    Case("properties", "a field that nothing is like", {"spec.zebra": 1}, ('unknown field "spec.zebra"',)),
    Case("properties", "what the operator writes may be in the file, and is dropped", {"status": {"stage": "Training"}}),
    Case("properties", "but not misspelt", {"status": {"stag": "Training"}},
         ('unknown field "status.stag" (did you mean stage?)',)),
    Case("properties", "a misspelt label", {"spec.data.label": ..., "spec.data.lable": "income"},
         ('unknown field "spec.data.lable" (did you mean label?)', EITHER)),
    Case("additionalProperties", "each value of a map", {"spec.fairness.metrics": {"demographic_parity_difference": -1}},
         (f"{PARITY}: Invalid value: -1: {PARITY} in body should be greater than or equal to 0",)),
    Case("maxProperties", "more bounds than there may be", {"spec.fairness.metrics": {f"m{i}": 0.1 for i in range(9)}},
         ("spec.fairness.metrics: Too many: 9: must have at most 8 items", NOT_CHECKED)),
    Case("x-kubernetes-preserve-unknown-fields", "hyperparameters are the task's", {"spec.training.hyperparameters": {"a": {"b": [1]}}}),
    Case("items", "one of a list", {"spec.data.sensitiveAttributes": ["sex", 7]},
         (f'{ATTRIBUTE}: Invalid value: "integer": {ATTRIBUTE} in body must be of type string: "integer"', NOT_CHECKED)),
    Case("minItems", "nothing to export to", {"spec.optimization.export": []},
         ("spec.optimization.export: Invalid value: 0: spec.optimization.export in body should have at least 1 items",)),
    Case("minItems", "a rule that is broken too is told with it", {"spec.optimization.candidates": []},
         ("spec.optimization.candidates: Invalid value: 0: spec.optimization.candidates in body should have at least 1 items",
          "spec.optimization.candidates: Invalid value: must contain fp32, the reference that the others are compared with; add it")),
    Case("maxItems", "too many steps", {"spec.rollout.steps": list(range(1, 22))},
         ("spec.rollout.steps: Too many: 21: must have at most 20 items", NOT_CHECKED)),
    Case("minLength", "an empty label", {"spec.data.label": ""},
         ('spec.data.label: Invalid value: "": spec.data.label in body should be at least 1 chars long', EITHER)),
    Case("minLength", "an empty duration is none", {"spec.training.deadline": ""},
         ('spec.training.deadline: Invalid value: "": spec.training.deadline in body should be at least 2 chars long',
          f'spec.training.deadline: Invalid value: "": {SOME_TIME}')),
    Case("maxLength", "a name that leaves its pods no room", {"metadata.name": "a" * 37},
         ("metadata.name: Too long: may not be more than 36 bytes", NOT_CHECKED)),
    Case("maxLength", "characters are counted, not bytes", {"spec.data.positiveLabel": "ü" * 128}),
    Case("pattern", "a duration in words", {"spec.training.deadline": "two hours"},
         (f"spec.training.deadline: Invalid value: \"two hours\": spec.training.deadline in body should match '{DURATION}'",
          f'spec.training.deadline: Invalid value: "two hours": {SOME_TIME}')),
    Case("pattern", "a duration of a unit that there is not", {"spec.rollout.interval": "1d"},
         (f"spec.rollout.interval: Invalid value: \"1d\": spec.rollout.interval in body should match '{DURATION}'",)),
    Case("pattern", "the end of a line is not the end", {"spec.rollout.keepWarm": "30m\n"},
         (f"spec.rollout.keepWarm: Invalid value: \"30m\\n\": spec.rollout.keepWarm in body should match '{DURATION}'",)),
    Case("pattern", "a folder of blanks", {"spec.data.uri": "  "},
         (r"""spec.data.uri: Invalid value: "  ": spec.data.uri in body should match '\S'""",)),
    Case("pattern", "a name with a capital", {"metadata.name": "Adult"},
         (f'metadata.name: Invalid value: "Adult": {SUBDOMAIN}',
          "metadata.name: Invalid value: \"Adult\": metadata.name in body should match '^[a-z]([-a-z0-9]*[a-z0-9])?$'")),
    Case("pattern", "a name that Kubernetes would take, and a Service would not", {"metadata.name": "2024.adult"},
         ("metadata.name: Invalid value: \"2024.adult\": metadata.name in body should match '^[a-z]([-a-z0-9]*[a-z0-9])?$'",)),
    Case("minimum", "no worker", {"spec.training.workers": 0},
         ("spec.training.workers: Invalid value: 0: spec.training.workers in body should be greater than or equal to 1",)),
    Case("minimum", "a fraction below it", {"spec.fairness.confidence": 0.25},
         ("spec.fairness.confidence: Invalid value: 0.25: spec.fairness.confidence in body should be greater than or equal to 0.5",)),
    Case("maximum", "too many workers", {"spec.training.workers": 101},
         ("spec.training.workers: Invalid value: 101: spec.training.workers in body should be less than or equal to 100",)),
    Case("maximum", "an integer is held against the bound's integer part", {"spec.fairness.confidence": 1},
         ("spec.fairness.confidence: Invalid value: 1: spec.fairness.confidence in body should be less than or equal to 0",)),
    Case("maximum", "a large number", {"spec.training.optimizer.learningRate": 1234567.5},
         (f"{RATE}: Invalid value: 1.2345675e+06: {RATE} in body should be less than or equal to 10",)),
    Case("exclusiveMinimum", "no rows to test on", {"spec.data.split": {"test": 0}},
         ("spec.data.split.test: Invalid value: 0: spec.data.split.test in body should be greater than 0",)),
    Case("exclusiveMinimum", "a small number", {"spec.training.optimizer.learningRate": -0.00001},
         (f"{RATE}: Invalid value: -1e-05: {RATE} in body should be greater than 0",)),
    Case("exclusiveMaximum", "no rows to train on; the rule says so, too", {"spec.data.split": {"test": 1}},
         ("spec.data.split.test: Invalid value: 1: spec.data.split.test in body should be less than 1",
          "spec.data.split: Invalid value: validation + test must be less than 1 to leave rows for training; lower one of them")),
    Case("default", "one that takes part in a rule", {"spec.serving.replicas": {"min": 2}},
         ("spec.serving.replicas: Invalid value: max is below min; raise max",)),
    Case("default", "sections that are not there", {"spec.training": ..., "spec.gates": ..., "spec.serving": ..., "spec.rollout": ...}),
    Case("x-kubernetes-list-type", "a candidate three times is told once", {"spec.optimization.candidates": ["fp32"] * 3},
         ('spec.optimization.candidates[1]: Duplicate value: "fp32"',)),
    Case("x-kubernetes-list-type", "a step twice is the rule's matter", {"spec.rollout.steps": [5, 5]},
         ("spec.rollout.steps: Invalid value: must rise, each between 1 and 99; 100 follows by itself",)),
    Case("x-kubernetes-list-map-keys", "two gates on one metric",
         {"spec.gates": [{"metric": "roc_auc", "min": 0.5}, {"metric": "f1", "min": 0.5}, {"metric": "roc_auc", "max": 0.9}]},
         ('spec.gates[2]: Duplicate value: {"metric":"roc_auc"}',)),
    Case("x-kubernetes-list-map-keys", "two gates on none", {"spec.gates": [{"min": 0.5}, {"max": 0.9}]},
         ("spec.gates[0].metric: Required value", "spec.gates[1].metric: Required value",
          "spec.gates[1]: Duplicate value: {}", NOT_CHECKED)),
    Case("x-kubernetes-list-map-keys", "a gate that is a word", {"spec.gates": ["roc_auc"]},
         ('spec.gates[0]: Invalid value: "string": spec.gates[0] in body must be of type object: "string"',
          'spec.gates[0]: Invalid value: "roc_auc": must be an object for an array of list-type map', NOT_CHECKED)),
    Case("x-kubernetes-validations", "several that are broken, and bounds",
         {"spec.data.label": "sex", "spec.gates": [{"metric": "roc_auc", "min": 2, "max": 1}, {"metric": "mse"}],
          "spec.training.epochs": 0, "spec.rollout.maxDuration": "0m", "spec.optimization.candidates": ["int8-dynamic"]},
         ("spec.training.epochs: Invalid value: 0: spec.training.epochs in body should be greater than or equal to 1",
          "spec.data.sensitiveAttributes: Invalid value: contains the label, which cannot be audited against itself; take it out",
          f"spec.gates: Invalid value: a built-in task reports no such metric; it reports {', '.join(contract.TASK_METRICS['tabular'])}",
          "spec.gates[0]: Invalid value: min is above max, so no version could pass; swap or correct them",
          "spec.gates[1]: Invalid value: give min or max: a gate without a bound holds nothing back",
          "spec.optimization.candidates: Invalid value: must contain fp32, the reference that the others are compared with; add it",
          f'spec.rollout.maxDuration: Invalid value: "0m": {SOME_TIME}')),
    Case("x-kubernetes-validations", "all at once: fields of no name, values of no sense; rules wait for those",
         {"spec.trainig": {}, "metadata.lables": {"team": "a"}, "sepc": {}, "spec.training.epoch": 3, "spec.training.workers": 0,
          "spec.training.strategy": "fsdpx", "spec.data.uri": ..., "spec.rollout.steps": [50, 25]},
         ('unknown field "metadata.lables" (did you mean labels?)', 'unknown field "sepc" (did you mean spec?)',
          'unknown field "spec.trainig" (did you mean training?)', 'unknown field "spec.training.epoch" (did you mean epochs?)',
          "spec.data.uri: Required value",
          'spec.training.strategy: Unsupported value: "fsdpx": supported values: "fsdp", "ddp", "single"',
          "spec.training.workers: Invalid value: 0: spec.training.workers in body should be greater than or equal to 1",
          NOT_CHECKED)),
]  # fmt: skip


@dataclass(frozen=True)
class Early:
    """A file that ends before any schema is asked.

    Attributes:
        reason: Why it does.
        text: The file.
        said: Every line of the refusal; what stands in parentheses at its end, kubectl does not say.
        told: What kubectl says where it has other words.
    """

    reason: str
    text: str
    said: tuple[str, ...]
    told: str = ""


def _text(change: Mapping[str, object]) -> str:
    return json.dumps(changed(example("mlmodels"), change))


EARLY = [
    Early("an empty file", "", ("no objects passed to apply",)),
    Early("comments only", "# nothing yet\n---\n", ("no objects passed to apply",)),
    Early("text", "adult-income", ("invalid object to validate",)),
    Early("a list in brackets", "[1, 2]", ("invalid object to validate",)),
    Early("another kind", _text({"kind": "MLModell"}), ('kind: Invalid value: "MLModell": must be MLModel',),
          told='no matches for kind "MLModell" in version "mlplatform.dev/v1alpha1"'),
    Early("another version", _text({"apiVersion": "mlplatform.dev/v1"}),
          ('apiVersion: Invalid value: "mlplatform.dev/v1": must be mlplatform.dev/v1alpha1',),
          told='no matches for kind "MLModel" in version "mlplatform.dev/v1"'),
    Early("a list of nothing", "{apiVersion: v1, kind: List, items: []}",
          ('apiVersion: Invalid value: "v1": must be mlplatform.dev/v1alpha1', 'kind: Invalid value: "List": must be MLModel'),
          told="no objects passed to apply"),
    Early("no kind", _text({"kind": ...}), ("kind not set",)),
    Early("neither kind nor version", "{spec: {}}", ("apiVersion not set", "kind not set")),
    Early("a number that JSON has no word for", "apiVersion: mlplatform.dev/v1alpha1\nkind: MLModel\nspec: {gates: [{min: .nan}]}",
          ("error converting YAML to JSON: json: unsupported value: NaN (spec.gates[0].min)",)),
    Early("a bound without an end", "apiVersion: mlplatform.dev/v1alpha1\nkind: MLModel\nspec: {gates: [{max: .inf}]}",
          ("error converting YAML to JSON: json: unsupported value: +Inf (spec.gates[0].max)",)),
    Early("no name", _text({"metadata.name": ...}), ("metadata.name: Required value: name or generateName is required", NOT_CHECKED),
          told="resource name may not be empty"),
    Early("no metadata", _text({"metadata": ...}), ("metadata.name: Required value: name or generateName is required", NOT_CHECKED),
          told="resource name may not be empty"),
    Early("a name that the server would make up", _text({"metadata": {"generateName": "adult-"}}),
          ("from adult-: cannot use generate name with apply",)),
    Early("a name that is a number", _text({"metadata.name": 2024}),
          (f"{UNREAD} number into Go struct field ObjectMeta.metadata.name of type string",)),
    Early("a reason to retrain that YAML takes for a number", _text({"metadata.annotations": {"mlplatform.dev/retrain": 2}}),
          (f"{UNREAD} number into Go struct field ObjectMeta.metadata.annotations of type string (mlplatform.dev/retrain: put it in quotes)",)),
    Early("a label that YAML takes for yes or no", _text({"metadata.labels": {"production": True}}),
          (f"{UNREAD} bool into Go struct field ObjectMeta.metadata.labels of type string (production: put it in quotes)",)),
    Early("annotations in a list", _text({"metadata.annotations": ["a"]}),
          (f"{UNREAD} array into Go struct field ObjectMeta.metadata.annotations of type map[string]string",)),
    Early("metadata in a list", _text({"metadata": ["a"]}),
          (f"{UNREAD} array into Go struct field metadataOnlyObject.metadata of type v1.ObjectMeta",)),
]  # fmt: skip
