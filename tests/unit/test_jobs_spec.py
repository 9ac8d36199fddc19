"""The jobs' reading of the specification, against the API's types."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import MISSING

import pytest

from mljobs import job_spec
from mljobs.failure import JobFailure
from mlplatform import api
from mlplatform.contract import FailureClass

PAIRS = [
    (job_spec.Split, api.Split),
    (job_spec.Data, api.Data),
    (job_spec.Optimizer, api.Optimizer),
    (job_spec.EarlyStopping, api.EarlyStopping),
    (job_spec.Checkpoint, api.Checkpoint),
    (job_spec.Training, api.Training),
    (job_spec.Gate, api.Gate),
    (job_spec.Fairness, api.Fairness),
    (job_spec.Optimization, api.Optimization),
    (job_spec.JobSpec, api.ModelVersionSpec),
]


def default(field: dataclasses.Field[object]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda cls: cls.__module__)
def test_every_field_has_the_name_and_the_default_of_the_api(ours: type, theirs: type) -> None:
    known = {field.name: field for field in dataclasses.fields(theirs)}
    for field in dataclasses.fields(ours):
        assert field.name in known, f"{ours.__name__}.{field.name} is not in the API"
        wanted, found = default(known[field.name]), default(field)
        if dataclasses.is_dataclass(found):
            assert type(found).__name__ == type(wanted).__name__, "nested types are compared by their own row"
        else:
            assert found == wanted, f"{ours.__name__}.{field.name}"


def test_a_version_as_the_operator_writes_it_is_read_back() -> None:
    spec = api.ModelVersionSpec(
        model="people",
        sequence=3,
        data=api.Data(uri="s3://b/x/", label="rich", sensitive_attributes=("sex",)),
        training=api.Training(
            epochs=3, early_stopping=api.EarlyStopping(patience=9), hyperparameters={"hidden": [8], "dropout": 0}
        ),
        gates=(api.Gate(metric="roc_auc", min=0.8),),
    )
    found = job_spec.parse(json.dumps(api.encode(spec)))
    assert found.data.sensitive_attributes == ("sex",)
    assert found.training.early_stopping == job_spec.EarlyStopping(patience=9)
    assert found.training.hyperparameters == {"hidden": [8], "dropout": 0}
    assert found.gates == (job_spec.Gate(metric="roc_auc", min=0.8, max=None),)
    assert found.optimization == job_spec.Optimization()


@pytest.mark.parametrize(
    ("text", "words", "reason"),
    [
        ("{", "cannot be read", "cut JSON"),
        ("[]", "spec: expected dict", "another kind of value"),
        ('{"data": {"uri": "x"}}', "label", "a required field is absent"),
        ('{"data": {"uri": "x", "label": 5}}', "spec.data.label: expected str", "a scalar of another type"),
        (
            '{"data": {"uri": "x", "label": "y"}, "gates": [{"metric": "m", "min": "0.5"}]}',
            "spec.gates[0].min",
            "a path into a list",
        ),
    ],
)
def test_a_broken_specification_is_named(text: str, words: str, reason: str) -> None:
    with pytest.raises(JobFailure) as caught:
        job_spec.parse(text)
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID, reason
    assert words in caught.value.failure.message, reason
