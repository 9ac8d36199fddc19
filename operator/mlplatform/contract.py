"""What the operator, the jobs and the handlers agree on; nothing else is shared.

Called by every other module of the project. It imports the standard library
only, so a job image carries no Kubernetes client and the operator no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, Self

GROUP: Final = "mlplatform.dev"
API_VERSION: Final = f"{GROUP}/v1alpha1"
MANAGER: Final = "mlplatform"
MANAGER_CLI: Final = "mlplatform-cli"
"""Field manager of the plugin's writes. Flux takes back what a manager has written whose name begins with kubectl."""

LABEL_MODEL: Final = f"{GROUP}/model"
LABEL_VERSION: Final = f"{GROUP}/version"
LABEL_STAGE: Final = f"{GROUP}/stage"

ANNOTATION_RETRAIN: Final = f"{GROUP}/retrain"
"""On an MLModel: any new value asks for a new version of an unchanged spec."""

ANNOTATION_ROLLBACK: Final = f"{GROUP}/rollback"
"""On an MLModel: `api.WayBack`, which the operator carries out once and takes off again."""

ANNOTATION_RETRY: Final = f"{GROUP}/retry"
"""On a ModelVersion: ``<stage>/<attempt>`` asks for that attempt at a stage that has failed at a lower one."""

ANNOTATION_FORGET: Final = f"{GROUP}/forget"
"""On a ModelVersion: its artifacts are deleted, and then it. Nobody takes it off: what is there may be half of it."""

ANNOTATION_ATTEMPT: Final = f"{GROUP}/attempt"
"""On a stage's workload: which attempt it is, from the second on."""

ANNOTATION_HALTED: Final = f"{GROUP}/halted"
"""On a stage's workload: why the operator stopped it. Only what carries this does it resume."""

LABEL_QUEUE: Final = "kueue.x-k8s.io/queue-name"
"""On a stage's workload: Kueue's LocalQueue, which decides when it may run."""

TRIGGER_LIMIT: Final = 256
"""Characters of that value: the version keeps it."""

HEADER_VERSION: Final = "x-mlplatform-version"
"""Request header that forces one version, past the weighted split."""

# Environment of every job container.
ENV_SPEC: Final = "MLPLATFORM_SPEC"
"""``ModelVersion.spec`` as JSON."""
ENV_ARTIFACTS: Final = "MLPLATFORM_ARTIFACTS"
"""Any fsspec URI, no trailing slash: where this version's artifacts live."""
ENV_NAMESPACE: Final = "MLPLATFORM_NAMESPACE"
ENV_MODEL: Final = "MLPLATFORM_MODEL"
ENV_VERSION: Final = "MLPLATFORM_VERSION"
ENV_STAGE: Final = "MLPLATFORM_STAGE"

# Environment of the model server, where `spec.serving.perRequest` is set.
ENV_MAX_RECORDS: Final = "MLPLATFORM_MAX_RECORDS"
ENV_MAX_BYTES: Final = "MLPLATFORM_MAX_BYTES"

# Set by `mlplatform.standalone` only, where no pod gives these.
ENV_TERMINATION_LOG: Final = "MLPLATFORM_TERMINATION_LOG"
"""Where the summary goes instead of `TERMINATION_LOG`."""
ENV_CPUS: Final = "MLPLATFORM_CPUS"
"""The container's CPU limit as a Kubernetes quantity, where no cgroup says it."""
ENV_ROWS: Final = "MLPLATFORM_ROWS"
"""How many rows of the data to take, a stable sample; absent: all."""

TERMINATION_LOG: Final = "/dev/termination-log"
TERMINATION_LIMIT: Final = 4096
"""Bytes; the kubelet cuts a longer termination message (core/v1 Container)."""

MODEL_NAME_LIMIT: Final = 36
"""Longest MLModel name whose children still fit 63 characters.

The longest child is the pod and Service ``<name>-<hash8>-train-worker-NN``. In a namespace of more than 7 characters
KServe's host name leaves less room (`mlplatform.resources.names`): `mlplatform.plan` refuses what does not fit.
"""


class Stage(StrEnum):
    """The pipeline's stages, in order."""

    TRAIN = "train"
    AUDIT = "audit"
    OPTIMIZE = "optimize"
    PACKAGE = "package"


class FailureClass(StrEnum):
    """Why a stage failed, in the words of `status.failure.class`."""

    UNSCHEDULABLE = "Unschedulable"
    OOM_KILLED = "OOMKilled"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    IMAGE_PULL = "ImagePull"
    CANNOT_START = "CannotStart"
    PREEMPTED = "Preempted"
    CONTAINER_CONFIG = "ContainerConfig"
    PODS_REFUSED = "PodsRefused"
    NAMESPACE_NOT_SET_UP = "NamespaceNotSetUp"
    NON_FINITE_LOSS = "NonFiniteLoss"
    DATA_MISSING = "DataMissing"
    DATA_INVALID = "DataInvalid"
    STORE_ACCESS = "StoreAccess"
    TASK_IMPORT = "TaskImport"
    SPEC_INVALID = "SpecInvalid"
    GATE_FAILED = "GateFailed"
    REPORT_LOST = "ReportLost"
    CRASHED = "Crashed"


PERMANENT: Final = frozenset(
    {
        FailureClass.CANNOT_START,
        FailureClass.NON_FINITE_LOSS,
        FailureClass.DATA_MISSING,
        FailureClass.DATA_INVALID,
        FailureClass.STORE_ACCESS,
        FailureClass.TASK_IMPORT,
        FailureClass.SPEC_INVALID,
        FailureClass.GATE_FAILED,
    }
)
"""Classes that a retry of the same inputs cannot mend."""

VALIDATION: Final = "val_"
"""What begins the name of a metric of the validation rows."""

TARGET_METRICS: Final[dict[str, tuple[str, ...]]] = {
    "binary": ("roc_auc", "average_precision", "accuracy", "balanced_accuracy", "f1", "log_loss", "brier_score"),
    "multiclass": ("roc_auc", "accuracy", "balanced_accuracy", "macro_f1", "log_loss"),
    "multilabel": (
        "roc_auc",
        "average_precision",
        "balanced_accuracy",
        "micro_f1",
        "macro_f1",
        "log_loss",
        "hamming_loss",
    ),
    "regression": ("r2", "mae", "rmse", "median_absolute_error"),
}
"""Test metrics of the built-in tasks, by `spec.data.target`."""

LABELLED: Final = ("tabular", "text")
"""Built-in tasks that learn what `spec.data.target` says of the label; of these alone it means something."""

CAUSAL_LM: Final = "causal-lm"
"""The built-in task that learns `spec.data.label` itself, a text."""

LANGUAGE_METRICS: Final = ("bits_per_byte", "perplexity", "token_accuracy")
"""Its test metrics."""

RANKING: Final = "ranking"
"""The built-in task that puts a user's rows in order."""

RANKING_METRICS: Final = ("ndcg_at_10", "roc_auc", "log_loss")
"""Its test metrics."""

TASK_METRICS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(LABELLED, tuple(dict.fromkeys(name for names in TARGET_METRICS.values() for name in names))),
    CAUSAL_LM: LANGUAGE_METRICS,
    RANKING: RANKING_METRICS,
}
"""Test metrics that each built-in task may report; a gate may name these."""

COLUMN: Final = "column "
"""Begins a line of the training's log with one column of the data as JSON, which `kubectl mlmodel data` reads."""

IN_ANSWERS: Final = frozenset({"prediction", "latency_ms", "model_version"})
"""What an answer has beside a column for each of several labels."""

JOINED: Final = "|"
"""Stands between the names of labels in an answer."""

DETAIL_LOG: Final = "lastLog"
"""Key of `Summary.details` with the end of a traceback: the pod and its log are gone when somebody asks."""

IN_LABEL_UNITS: Final = frozenset({"mae", "rmse", "median_absolute_error", "perplexity"})
"""Metrics in the unit of the label, which have no scale of their own; a perplexity's depends on the tokens."""

LOWER_IS_BETTER: Final = frozenset({"log_loss", "brier_score", "hamming_loss", "bits_per_byte"}) | IN_LABEL_UNITS

TARGET_FAIRNESS: Final[dict[str, tuple[str, ...]]] = {
    "binary": ("demographic_parity_difference", "equalized_odds_difference"),
    "multiclass": ("demographic_parity_difference", "accuracy_difference"),
    "multilabel": ("demographic_parity_difference", "accuracy_difference"),
    "regression": ("mean_prediction_difference", "mean_absolute_error_difference"),
}
"""Differences between groups that are defined for each `spec.data.target`."""

FAIRNESS_METRICS: Final = tuple(dict.fromkeys(name for names in TARGET_FAIRNESS.values() for name in names))

DIFFERENCES_OF_SHARES: Final = FAIRNESS_METRICS[:3]
"""Those that cannot be above 1; the others are in the unit of the label."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a stage failed and what a person does next.

    Attributes:
        reason: The class, e.g. ``DataMissing`` (``class`` is a Python keyword).
        message: One sentence with the cause and the values in it.
        next_action: One sentence: what to change or to run.
    """

    reason: FailureClass
    message: str
    next_action: str

    def to_dict(self) -> dict[str, str]:
        """The JSON object in summaries: ``{class, message, nextAction}``."""
        return {"class": self.reason.value, "message": self.message, "nextAction": self.next_action}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Reads ``to_dict``'s object; an unknown class counts as ``Crashed``."""
        name = raw.get("class", "")
        reason = FailureClass(name) if name in set(FailureClass) else FailureClass.CRASHED
        return cls(reason, str(raw.get("message", "")), str(raw.get("nextAction", "")))


@dataclass(frozen=True, slots=True)
class Summary:
    """A stage's result as its pod's termination message carries it.

    Attributes:
        stage: Which stage wrote it.
        version: Name of the ModelVersion.
        metrics: Headline numbers, e.g. ``{"roc_auc": 0.91}``.
        details: Small structured facts the operator's verdict needs (per-stage keys below).
        report: URI of the full ``report.json``.
        digest: ``sha256:<hex>`` of that file.
        duration_seconds: Wall time of the job.
        failure: Set when the stage could not do its work; None on success.

    Keys of ``details``, by stage (of one that crashed: `DETAIL_LOG`):
        train: ``rows`` ``{train, validation, test}``, ``epochs``, ``worldSize``, ``resumedFromStep``, ``columns``
            ``[<sentence about an unusual one>, …]``.
        audit: ``fairness`` ``{<metric>: {<attribute>: {value, low, high}}}`` (low/high: interval at
            ``fairness.confidence``), ``notAssessed`` ``[<attribute>=<group>, …]`` (smaller than ``minGroupSize``), ``constant`` ``{metric, answer,
            floor, right, always, better}``: what answering the same for every row is worth by that metric (and, of classes, how
            often it is right), whether the model does just that, and whether it is better; ``instead`` of ``answer`` where there
            is none (what the model is no better than).
        optimize: ``selected`` (candidate's name), ``choice`` (why, in one sentence), ``candidates`` ``[{name,
            sizeBytes, latencyP50Ms, latencyP99Ms, metrics, passed, reason}]``.
        package: ``storageUri`` (what KServe mounts), ``archive`` (URI), ``sizeBytes``.
    """

    stage: Stage
    version: str
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    report: str = ""
    digest: str = ""
    duration_seconds: float = 0.0
    failure: Failure | None = None

    def to_json(self) -> str:
        """Compact JSON.

        Raises:
            ValueError: It is longer than ``TERMINATION_LIMIT`` bytes (put less into ``details``), or holds a number that
                JSON has no word for.
        """
        raw = asdict(self)
        raw["failure"] = self.failure.to_dict() if self.failure else None
        text = json.dumps(raw, separators=(",", ":"), sort_keys=True, allow_nan=False)
        if len(text.encode()) > TERMINATION_LIMIT:
            msg = f"summary of stage {self.stage} is {len(text.encode())} bytes, over {TERMINATION_LIMIT}"
            raise ValueError(msg)
        return text

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parses ``to_json``'s text.

        Raises:
            ValueError: It is not a summary (a crash leaves a log tail there instead).
        """
        raw = json.loads(text)
        if not isinstance(raw, dict) or "stage" not in raw:
            msg = "termination message is not a stage summary"
            raise ValueError(msg)
        raw = {key: raw[key] for key in cls.__dataclass_fields__ if key in raw}
        metrics, details = raw.get("metrics", {}), raw.get("details", {})
        numbers = isinstance(metrics, dict) and all(
            type(value) in {int, float} and math.isfinite(value) for value in metrics.values()
        )
        if not numbers or not isinstance(details, dict):
            msg = "metrics of a stage summary must be finite numbers by name, and details an object"
            raise ValueError(msg)
        raw["stage"] = Stage(raw["stage"])
        failure = raw.get("failure")
        raw["failure"] = Failure.from_dict(failure) if failure else None
        return cls(**raw)


class Artifacts:
    """Where each artifact of one version lies below ``ENV_ARTIFACTS``."""

    @staticmethod
    def report(stage: Stage) -> str:
        """Full report of a stage."""
        return f"{stage}/report.json"

    MODEL: Final = "train/model.pt"
    """State dict; loaded with ``weights_only=True``."""
    PREPROCESSOR: Final = "train/preprocessor.json"
    """Schema and statistics that turn raw records into tensors; plain JSON."""
    REFERENCE: Final = "train/reference.json"
    """What the training rows looked like (`mljobs.tasks.reference`), to see a drift by; absent where the task says nothing."""
    CHECKPOINTS: Final = "train/checkpoints"
    CANDIDATES: Final = "optimize/candidates"
    SERVING: Final = "package/serving"
    """KServe layout: ``config/config.properties`` and ``model-store/<model>.mar``."""
    EXAMPLE: Final = "package/example.json"
    """A made-up record ``{column: value}``, as the object ``features`` of a request holds it."""


def artifact_root(root: str, namespace: str, model: str, version: str, artifact_id: str = "") -> str:
    """URI of one version's artifacts: ``<root>/<namespace>/<model>/<version>-<id>``.

    Args:
        root: Of the store.
        namespace: Of the model.
        model: Its name.
        version: Name of the ModelVersion.
        artifact_id: What tells it from another version that had its name; empty for one that has no such id.
    """
    return "/".join((root.rstrip("/"), namespace, model, f"{version}-{artifact_id}" if artifact_id else version))


def digest(value: object) -> str:
    """First 8 hex digits of the SHA-256 of canonical JSON: names are hashes of inputs."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
