"""How a job reads the specification that the operator hands it."""

from __future__ import annotations

import json

import pytest

from mljobs.failure import JobFailure
from mljobs.report import read_spec
from mlplatform import api
from mlplatform.contract import FailureClass

SPEC = api.ModelVersionSpec(
    model="people",
    sequence=3,
    data=api.Data(uri="s3://b/x/", label="rich", sensitive_attributes=("sex",)),
    training=api.Training(
        epochs=3, early_stopping=api.EarlyStopping(patience=9), hyperparameters={"hidden": [8], "dropout": 0}
    ),
    gates=(api.Gate(metric="roc_auc", min=0.8),),
)


def test_a_version_as_the_operator_writes_it_is_read_back() -> None:
    assert read_spec(json.dumps(api.canonical(SPEC))) == SPEC


@pytest.mark.parametrize(
    ("change", "words", "reason"),
    [
        ({"mitigation": "reweighing"}, "spec.mitigation: unknown field", "a field of a later release, set by somebody"),
        ({"data": {"label": "x"}}, "spec.data.uri: required", "a required field is absent"),
        ({"data": {"uri": "x", "label": 5}}, "spec.data.label: expected a string", "a scalar of another type"),
        ({"gates": [{"metric": "m", "min": "0.5"}]}, "spec.gates[0].min", "a path into a list"),
        (
            {"training": {"strategy": "hsdp"}},
            "spec.training.strategy: 'hsdp' is not one of",
            "a word of a later release",
        ),
    ],
)
def test_a_broken_specification_is_named(change: dict[str, object], words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        read_spec(json.dumps(api.encode(SPEC) | change))
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID, reason
    assert words in caught.value.failure.message, reason


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("[]", "spec: expected an object")])
def test_what_is_no_object_is_named(text: str, words: str) -> None:
    with pytest.raises(JobFailure, match=words):
        read_spec(text)
