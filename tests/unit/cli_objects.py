"""Objects as the API server sends them, for the tests of `kubectl mlmodel`.

Called by `test_cli_view`, `test_cli_render` and `test_cli_main`. One version's
whole life (`LIFE`) is told as a list of moments, so that each test names the
moment it looks at instead of building a dict of its own.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from mlplatform import api, contract

NOW = datetime(2026, 3, 1, 12, 2, 0, tzinfo=UTC)
V1, V2 = "adult-income-1a2b3c4d", "adult-income-5e6f7a8b"
URL = "http://adult-income.default.models.local"

TRAIN = api.StageStatus(
    name="train",
    outcome="Succeeded",
    started_at="2026-03-01T12:00:02Z",
    finished_at="2026-03-01T12:00:50Z",
    metrics={"val_accuracy": 0.8611, "val_roc_auc": 0.9152},
    details={"rows": {"train": 34189, "validation": 4884, "test": 9769}, "epochs": 9, "worldSize": 2},
)
AUDIT = api.StageStatus(
    name="audit",
    outcome="Succeeded",
    started_at="2026-03-01T12:00:51Z",
    finished_at="2026-03-01T12:01:00Z",
    metrics={"roc_auc": 0.9131, "accuracy": 0.8572},
    details={
        "fairness": {
            "demographic_parity_difference": {
                "sex": {"value": 0.182, "low": 0.164, "high": 0.197},
                "race": {"value": 0.121, "low": 0.08, "high": 0.16},
            },
            "equalized_odds_difference": {"sex": {"value": 0.096, "low": 0.05, "high": 0.13}},
        },
        "notAssessed": ["race=Other"],
    },
)
OPTIMIZE = api.StageStatus(
    name="optimize",
    outcome="Succeeded",
    started_at="2026-03-01T12:01:01Z",
    finished_at="2026-03-01T12:01:13Z",
    details={
        "selected": "int8-dynamic",
        "candidates": [
            {
                "name": "fp32",
                "sizeBytes": 249856,
                "latencyP50Ms": 0.212,
                "latencyP99Ms": 0.441,
                "metrics": {"roc_auc": 0.9131},
                "passed": True,
                "reason": "slower",
            },
            {
                "name": "int8-dynamic",
                "sizeBytes": 73728,
                "latencyP50Ms": 0.131,
                "latencyP99Ms": 0.252,
                "metrics": {"roc_auc": 0.9129},
                "passed": True,
                "reason": "",
            },
        ],
    },
)
PACKAGE = api.StageStatus(
    name="package",
    outcome="Succeeded",
    started_at="2026-03-01T12:01:14Z",
    finished_at="2026-03-01T12:01:20Z",
    details={"sizeBytes": 98304},
)
OUT_OF_MEMORY = api.FailureStatus(
    class_="OOMKilled",
    message="pod adult-income-5e6f7a8b-train-worker-0 used more than its 2Gi of memory",
    next_action="raise spec.training.resources.memory or lower spec.training.batchSize",
    stage="train",
    pod="adult-income-5e6f7a8b-train-worker-0",
    exit_code=137,
    last_log="epoch 3 step 40 loss 0.31",
)


def running(stage: api.StageStatus) -> api.StageStatus:
    """The same stage before its end."""
    return api.StageStatus(name=stage.name, outcome="Running", started_at=stage.started_at)


def failed(stage: api.StageStatus) -> api.StageStatus:
    """The same stage had it failed."""
    return api.StageStatus(
        name=stage.name,
        outcome="Failed",
        started_at=stage.started_at,
        finished_at=stage.finished_at,
        last_failure=OUT_OF_MEMORY,
    )


def condition(kind: str, status: str, reason: str, message: str = "", *, generation: int = 0) -> api.Condition:
    """A condition of no particular age, seen at that generation."""
    raw = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "",
        "observedGeneration": generation,
    }
    return api.decode(api.Condition, raw)


ACCEPTED = condition("Accepted", "True", "Accepted")
READY = condition("Ready", "True", "Serving", "v1 serves all traffic")
NOT_READY = condition("Ready", "Unknown", "Training", "training v1")


def version(
    name: str = V1,
    sequence: int = 1,
    stages: tuple[api.StageStatus, ...] = (),
    *,
    trigger: str = "",
    stage: str = "",
    failure: api.FailureStatus | None = None,
    model: str = "adult-income",
) -> dict[str, Any]:
    """A ModelVersion."""
    spec = {
        "model": model,
        "sequence": sequence,
        "trigger": trigger,
        "data": {"uri": "s3://datasets/adult/", "label": "income"},
        "gates": [{"metric": "roc_auc", "min": 0.88}],
        "fairness": {"metrics": {"demographic_parity_difference": 0.2, "equalized_odds_difference": 0.15}},
    }
    done = {stage.name for stage in stages if stage.outcome == "Succeeded"}
    metrics = AUDIT.metrics if "audit" in done else {}
    conditions = (READY,) if "package" in done else ()
    status = api.ModelVersionStatus(stage=stage, conditions=conditions, stages=stages, metrics=metrics, failure=failure)
    return {
        "apiVersion": contract.API_VERSION,
        "kind": "ModelVersion",
        "metadata": {"name": name, "namespace": "default", "labels": {contract.LABEL_MODEL: model}},
        "spec": spec,
        "status": api.encode(status),
    }


def model(
    status: api.MLModelStatus | None = None,
    *,
    name: str = "adult-income",
    namespace: str = "default",
    generation: int = 1,
    retrain: str = "",
    suspend: bool = False,
) -> dict[str, Any]:
    """An MLModel."""
    return {
        "apiVersion": contract.API_VERSION,
        "kind": "MLModel",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "generation": generation,
            "creationTimestamp": "2026-03-01T12:00:00Z",
            "annotations": {contract.ANNOTATION_RETRAIN: retrain} if retrain else {},
        },
        "spec": {"data": {"uri": "s3://datasets/adult/", "label": "income"}, "suspend": suspend},
        "status": api.encode(status) if status else {},
    }


PROMOTED_V1 = api.Decision(
    version=V1,
    sequence=1,
    decision="Promoted",
    reason="FirstVersion",
    message="v1 is the first version",
    time="2026-03-01T12:01:30Z",
)

TRAINING_V1 = api.MLModelStatus(
    observed_generation=1,
    stage="Training",
    latest_version=V1,
    latest_sequence=1,
    conditions=(ACCEPTED, NOT_READY),
)
SERVING_V1 = api.MLModelStatus(
    observed_generation=1,
    stage="Ready",
    latest_version=V1,
    latest_sequence=1,
    url=URL,
    conditions=(ACCEPTED, READY),
    stable=api.StableStatus(version=V1, sequence=1),
    history=(PROMOTED_V1,),
)
ROLLING_V2 = api.MLModelStatus(
    observed_generation=2,
    stage="RollingOut",
    latest_version=V2,
    latest_sequence=2,
    url=URL,
    conditions=(ACCEPTED, condition("Ready", "Unknown", "RollingOut", "v2 takes 25 % of the traffic")),
    stable=api.StableStatus(version=V1, sequence=1),
    rollout=api.RolloutStatus(
        version=V2,
        sequence=2,
        step=2,
        steps=4,
        weight=25,
        started_at="2026-03-01T12:01:30Z",
        step_started_at="2026-03-01T12:01:50Z",
        eta="2026-03-01T12:02:20Z",
    ),
    history=(PROMOTED_V1,),
)
REPLACED_V1 = api.MLModelStatus(
    observed_generation=2,
    stage="Serving",
    latest_version=V2,
    latest_sequence=2,
    url=URL,
    conditions=(ACCEPTED, READY),
    stable=api.StableStatus(version=V2, sequence=2),
    history=(
        api.Decision(
            version=V2,
            sequence=2,
            decision="Promoted",
            reason="StepsPassed",
            message="v2 held 5%, 25%, 50% with its pods ready and replaced v1",
            time="2026-03-01T12:02:20Z",
            previous=V1,
        ),
        PROMOTED_V1,
    ),
)
GONE_BACK_TO_V1 = replace(
    REPLACED_V1,
    stage="RolledBack",
    conditions=(
        ACCEPTED,
        condition("RolloutPassed", "False", "RolledBack", "v2 was rolled back to v1, as somebody had asked for"),
        condition("Ready", "False", "RolledBack", "v2 was rolled back to v1, as somebody had asked for"),
    ),
    stable=api.StableStatus(version=V1, sequence=1),
    history=(
        api.Decision(
            version=V2,
            sequence=2,
            decision="RolledBack",
            reason="RolledBackByUser",
            message="v2 was rolled back to v1, as somebody had asked for",
            time="2026-03-01T12:05:00Z",
            previous=V1,
        ),
        *REPLACED_V1.history,
    ),
)
RETRYING_V1 = api.MLModelStatus(
    observed_generation=1,
    stage="Training",
    latest_version=V1,
    latest_sequence=1,
    conditions=(ACCEPTED, NOT_READY),
    failure=api.FailureStatus(
        class_="Preempted",
        message="pod was taken off its node (Evicted): The node was low on memory",
        next_action="Nothing if it happened once: it is retried.",
        stage="train",
        pod="adult-income-1a2b3c4d-train-worker-0",
    ),
)
FAILED_V2 = api.MLModelStatus(
    observed_generation=2,
    stage="Failed",
    latest_version=V2,
    latest_sequence=2,
    url=URL,
    conditions=(
        ACCEPTED,
        condition("VersionReady", "False", "TrainFailed", "train failed"),
        condition("Ready", "False", "TrainFailed"),
    ),
    stable=api.StableStatus(version=V1, sequence=1),
    failure=OUT_OF_MEMORY,
    history=(PROMOTED_V1,),
)
REJECTED = api.MLModelStatus(
    observed_generation=1,
    stage="Rejected",
    conditions=(
        condition(
            "Accepted",
            "False",
            "SpecInvalid",
            "spec.gates[0].metric: task tabular reports no 'roc_acu' (did you mean roc_auc?)",
        ),
    ),
)
NO_IMAGE = api.FailureStatus(
    class_="ImagePull",
    message="image 'registry.example/jobs:1' cannot be pulled: connection refused",
    next_action="Correct the image's name, or give the ServiceAccount the registry's pull secret.",
    stage="train",
    pod="adult-income-1a2b3c4d-train-worker-0",
)
BLOCKED_V1 = api.MLModelStatus(
    observed_generation=1,
    stage="Failed",
    latest_version=V1,
    latest_sequence=1,
    conditions=(
        ACCEPTED,
        condition("VersionReady", "False", "ImagePull", "v1: train is blocked: image cannot be pulled"),
        condition("Ready", "False", "ImagePull", "v1: train is blocked: image cannot be pulled"),
    ),
    failure=NO_IMAGE,
)
NO_TRAINER = (
    "v1: train is blocked: the cluster does not serve PyTorchJob: install Kubeflow Trainer; "
    "the version goes on by itself after that"
)
WITHOUT_ADD_ON_V1 = api.MLModelStatus(
    observed_generation=1,
    stage="Failed",
    latest_version=V1,
    latest_sequence=1,
    conditions=(
        ACCEPTED,
        condition("VersionReady", "False", "AddOnMissing", NO_TRAINER),
        condition("Ready", "False", "AddOnMissing", NO_TRAINER),
    ),
)
NOT_ALLOWED = (
    "POST /apis/mlplatform.dev/v1alpha1/namespaces/default/modelversions: 403 modelversions.mlplatform.dev is forbidden"
)
REFUSED = api.MLModelStatus(
    observed_generation=1,
    conditions=(condition("Ready", "False", "Forbidden", NOT_ALLOWED, generation=1),),
)
ALL_STAGES = (TRAIN, AUDIT, OPTIMIZE, PACKAGE)

QUEUED_V2 = replace(
    SERVING_V1,
    observed_generation=2,
    stage="Queued",
    latest_version=V2,
    latest_sequence=2,
    conditions=(
        ACCEPTED,
        condition("VersionReady", "Unknown", "Queued", "v2: waits until Kueue's queue team-a lets it run"),
        condition("Serving", "True", "PodsReady", "v1 serves"),
        condition(
            "Ready", "Unknown", "Queued", "v2: waits until Kueue's queue team-a lets it run. v1 goes on serving."
        ),
    ),
)
STOOD_IN_FOR = (
    "v2 has no ready pod; v1 answers for it through the gateway meanwhile: container kserve-container crashed"
)
STOOD_IN_FOR_V2 = replace(
    SERVING_V1,
    observed_generation=2,
    stage="Degraded",
    latest_version=V2,
    latest_sequence=2,
    stable=api.StableStatus(version=V2, sequence=2),
    conditions=(
        ACCEPTED,
        condition("VersionReady", "True", "PipelinePassed"),
        condition("RolloutPassed", "True", "Promoted", "v2 was promoted"),
        condition("Serving", "False", "StableNotReady", STOOD_IN_FOR),
        condition("Ready", "False", "StableNotReady", STOOD_IN_FOR),
    ),
    failure=api.FailureStatus(
        class_="Crashed",
        message="container kserve-container crashed",
        next_action="Read the container's log.",
        stage="serving",
        pod="adult-income-5e6f7a8b-predictor-0",
        exit_code=1,
    ),
)
GOING_BACK = "going back to v1: waiting for the pods of v1 (0 of 2 pods ready). v2 goes on serving."
GOING_BACK_TO_V1 = replace(
    SERVING_V1,
    observed_generation=2,
    stage="RollingBack",
    latest_version=V2,
    latest_sequence=2,
    stable=api.StableStatus(version=V2, sequence=2),
    conditions=(
        ACCEPTED,
        condition("Serving", "True", "PodsReady", "v2 serves"),
        condition("Ready", "Unknown", "RollingBack", GOING_BACK),
    ),
)

LIFE: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "applied": (model(), []),
    "training": (model(TRAINING_V1), [version(stages=(running(TRAIN),))]),
    "retrying": (model(RETRYING_V1), [version(stages=(running(TRAIN),))]),
    "optimizing": (model(TRAINING_V1), [version(stages=(TRAIN, AUDIT, running(OPTIMIZE)))]),
    "serving": (model(SERVING_V1), [version(stages=ALL_STAGES)]),
    "rolling": (
        model(ROLLING_V2, generation=2),
        [version(stages=ALL_STAGES), version(V2, 2, ALL_STAGES)],
    ),
    "replaced": (
        model(REPLACED_V1, generation=2),
        [version(stages=ALL_STAGES), version(V2, 2, ALL_STAGES)],
    ),
    "gone back": (
        model(GONE_BACK_TO_V1, generation=2),
        [version(stages=ALL_STAGES), version(V2, 2, ALL_STAGES)],
    ),
    "failed": (
        model(FAILED_V2, generation=2),
        [version(stages=ALL_STAGES), version(V2, 2, (failed(TRAIN),), failure=OUT_OF_MEMORY)],
    ),
    "queued": (
        model(QUEUED_V2, generation=2),
        [version(stages=ALL_STAGES), version(V2, 2, (running(TRAIN),), stage="Queued")],
    ),
    "going-back": (
        model(GOING_BACK_TO_V1, generation=2),
        [version(stages=ALL_STAGES), version(V2, 2, ALL_STAGES)],
    ),
    "stood-in-for": (
        model(STOOD_IN_FOR_V2, generation=2),
        [version(stages=ALL_STAGES), version(V2, 2, ALL_STAGES)],
    ),
    "rejected": (model(REJECTED), []),
    "blocked": (model(BLOCKED_V1), [version(stages=(running(TRAIN),), stage="Training", failure=NO_IMAGE)]),
    "without-add-on": (model(WITHOUT_ADD_ON_V1), [version(stage="Training")]),
    "refused": (model(REFUSED), []),
}
