"""The termination message: what a job writes is what the operator reads."""

from __future__ import annotations

import json

import pytest

from mlplatform.contract import (
    TERMINATION_LIMIT,
    Artifacts,
    Failure,
    FailureClass,
    Stage,
    Summary,
    artifact_root,
    digest,
)

FAILURE = Failure(
    FailureClass.DATA_MISSING, "no CSV files at s3://datasets/empty/", "Upload the data or correct spec.data.uri."
)


@pytest.mark.parametrize(
    "summary",
    [
        Summary(
            stage=Stage.TRAIN,
            version="m-1",
            metrics={"val_roc_auc": 0.9},
            details={"epochs": 3},
            report="s3://b/r",
            digest="sha256:0",
        ),
        Summary(stage=Stage.AUDIT, version="m-1", failure=FAILURE, duration_seconds=1.5),
    ],
)
def test_a_summary_survives_the_termination_message(summary: Summary) -> None:
    assert Summary.from_json(summary.to_json()) == summary


def test_a_summary_over_the_kubelets_limit_is_refused() -> None:
    summary = Summary(stage=Stage.TRAIN, version="m-1", details={"text": "é" * TERMINATION_LIMIT})
    with pytest.raises(ValueError, match="over 4096"):
        summary.to_json()


@pytest.mark.parametrize(
    "text", ["", "Traceback (most recent call last):", "[]", "{}", '"text"', '{"stage": "unknown"}']
)
def test_a_log_tail_is_no_summary(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  JSON errors and our own are both ValueError
        Summary.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("metrics", None, "no object"),
        ("metrics", {"auc": "0.9"}, "a text is no number"),
        ("metrics", {"auc": True}, "neither is a truth"),
        ("metrics", {"auc": float("nan")}, "a status cannot hold it"),
        ("details", [], "no object"),
    ],
)
def test_what_somebody_elses_image_wrote_is_checked(field: str, value: object, reason: str) -> None:
    raw = json.loads(Summary(stage=Stage.TRAIN, version="m-1").to_json())
    with pytest.raises(ValueError, match="metrics of a stage summary must be finite numbers"):
        Summary.from_json(json.dumps({**raw, field: value}))
    assert reason


def test_a_number_that_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Summary(stage=Stage.TRAIN, version="m-1", metrics={"auc": float("nan")}).to_json()


def test_fields_of_a_newer_job_are_ignored() -> None:
    raw = json.loads(Summary(stage=Stage.TRAIN, version="m-1").to_json())
    assert Summary.from_json(json.dumps({**raw, "added": 1})) == Summary(stage=Stage.TRAIN, version="m-1")


def test_an_unknown_failure_class_is_a_crash() -> None:
    assert Failure.from_dict({"class": "Novel", "message": "m", "nextAction": "n"}).reason is FailureClass.CRASHED


def test_artifacts_have_one_place() -> None:
    root = artifact_root("s3://mlplatform/", "default", "adult", "adult-12345678")
    assert f"{root}/{Artifacts.report(Stage.TRAIN)}" == "s3://mlplatform/default/adult/adult-12345678/train/report.json"
    again = artifact_root("s3://mlplatform/", "default", "adult", "adult-12345678", "0a1b2c3d")
    assert again == f"{root}-0a1b2c3d", "beside the other's, not in it: what deletes one leaves the other"


def test_a_digest_ignores_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
