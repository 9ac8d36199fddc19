"""The API's types: what `manifests/crd/` says, as frozen dataclasses.

Called by the reconcilers, the stages, the renderers, the jobs and `kubectl mlmodel`.
`decode` turns an object's JSON into these types and names every mistake by its
path; `tests/unit/test_crds.py` holds the classes and the CRDs together.

JSON uses camelCase, attributes snake_case; a trailing underscore (`from_`)
avoids a keyword.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Final, Literal, TypeVar

from mlplatform import contract

T = TypeVar("T")
Unknown = Literal["reject", "skip", "show"]
"""What `decode` does with a field, and with a word of an enumeration, that it does not know."""


class SpecError(ValueError):
    """An object does not fit the schema; the message names the path, the cause and the fix."""


_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""RFC 1035, which Services and PyTorchJobs ask for."""

_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_UNORDERED: Final = {"unordered": True}
"""Marks a field whose order means nothing."""
_UNFILLED: Final = {"unfilled": True}
"""A default that the schema does not fill in: an operator of before the field would refuse every object (ADR 6)."""


def _automatic(once: object) -> Any:
    """A field that follows the data and the machine where it is absent.

    Args:
        once: Its default in earlier releases, which the schema wrote into their objects. Names leave that out as they did then.
    """
    return field(default=None, metadata={"once": once})


LONGEST: Final = timedelta(days=3650)
"""Of a duration: what is added to a date must stay one."""


def parse_duration(text: str) -> timedelta:
    """Reads a duration such as ``90s``, ``10m`` or ``1h30m``.

    Raises:
        SpecError: It is not of that form.
    """
    match = _DURATION.fullmatch(text)
    if not match or not text:
        msg = f"{text!r} is not a duration; write it like 90s, 10m or 1h30m"
        raise SpecError(msg)
    hours, minutes, seconds = (int(group or 0) for group in match.groups())
    found = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if found > LONGEST:
        msg = f"{text!r} is longer than {format_duration(LONGEST)}"
        raise SpecError(msg)
    return found


def format_duration(value: timedelta) -> str:
    """Writes a duration as ``parse_duration`` reads it."""
    total = int(value.total_seconds())
    hours, rest = divmod(total, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if n]
    return "".join(parts) or "0s"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSplit:
    """Rows before `validation` train; those from `test` on are tested on."""

    column: str
    validation: str
    test: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBy:
    """What decides a row's part in place of chance; one of them."""

    group: str = ""
    key: tuple[str, ...] = ()
    time: TimeSplit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Shares of the rows held out; the rest trains."""

    validation: float = 0.1
    test: float = 0.2
    seed: int = 7
    max_repeated: float | None = None
    by: SplitBy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dvc:
    """A Git repository in which DVC keeps the data, and a revision of it; `Data.uri` is a path in it."""

    repo: str
    rev: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Where the rows are and what they mean."""

    uri: str
    label: str = ""
    labels: tuple[str, ...] = ()
    dvc: Dvc | None = None
    format: Literal["csv", "parquet", "jsonl"] = "csv"
    encoding: str = ""
    delimiter: str = ""
    target: Literal["auto", "binary", "multiclass", "multilabel", "regression"] = field(
        default="auto", metadata=_UNFILLED
    )
    positive_label: str = ""
    weight: str = ""
    sensitive_attributes: tuple[str, ...] = field(default=(), metadata=_UNORDERED)
    columns: dict[str, Literal["use", "ignore"]] = field(default_factory=dict)
    split: Split = Split()

    @property
    def predicted(self) -> tuple[str, ...]:
        """The columns that are labels."""
        return self.labels or (self.label,)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResources:
    """Of one worker pod; Kubernetes quantities."""

    cpu: str = "1"
    memory: str = "2Gi"
    gpu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """A torch.optim optimiser."""

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """Stops when the metric has not improved for `patience` epochs.

    No `metric` means the first one of what is learned, no `mode` the metric's own direction.
    """

    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    patience: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """From which probability of the positive class on it is predicted: a value, or what is best on the validation rows."""

    value: float | None = None
    maximize: Literal["accuracy", "balanced_accuracy", "f1"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How often training state is saved, and how many are kept."""

    every_steps: int = 200
    keep: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the model is fitted: a PyTorchJob. What is None the training settles (`mljobs.automatic`)."""

    task: str = "tabular"
    image: str = ""
    workers: int = 1
    processes_per_worker: int = 1
    resources: TrainingResources = TrainingResources()
    strategy: Literal["fsdp", "ddp", "single"] | None = _automatic("fsdp")
    precision: Literal["bf16", "fp32"] | None = _automatic("bf16")
    gradient_accumulation_steps: int = 1
    activation_checkpointing: bool = False
    epochs: int | None = _automatic(10)
    batch_size: int | None = _automatic(512)
    optimizer: Optimizer = Optimizer()
    early_stopping: EarlyStopping | None = None
    threshold: Threshold | None = None
    calibration: Literal["none", "temperature"] = field(default="none", metadata=_UNFILLED)
    checkpoint: Checkpoint = Checkpoint()
    deadline: timedelta = timedelta(hours=2)
    max_restarts: int = 3
    seed: int = 7
    hyperparameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A bound on a test metric that every version must pass."""

    metric: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """Upper bounds on group differences, per sensitive attribute (fairlearn's definitions)."""

    metrics: dict[str, float] = field(default_factory=dict)
    min_group_size: int = 50
    confidence: float = 0.95
    on_failure: Literal["block", "warn"] = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """Candidates to measure; the best by `objective` within `max_metric_drop` ships."""

    candidates: tuple[Literal["fp32", "int8-dynamic"], ...] = field(
        default=("fp32", "int8-dynamic"), metadata=_UNORDERED
    )
    export: tuple[Literal["torchscript", "onnx"], ...] = field(default=("torchscript", "onnx"), metadata=_UNORDERED)
    max_metric_drop: float = 0.005
    objective: Literal["latency_p50", "latency_p99", "size"] = "latency_p99"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """Autoscaling bounds of the serving pods."""

    min: int = 1
    max: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResources:
    """Of one serving pod; Kubernetes quantities."""

    cpu: str = "1"
    memory: str = "2Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorRequirement:
    """One line of a node or label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSelector:
    """A metav1.LabelSelector; an empty one selects everything, an absent one nothing."""

    match_labels: dict[str, str] = field(default_factory=dict)
    match_expressions: tuple[SelectorRequirement, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSelectorTerm:
    """Of core/v1."""

    match_expressions: tuple[SelectorRequirement, ...] = ()
    match_fields: tuple[SelectorRequirement, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSelector:
    """Of core/v1: one of the terms must hold."""

    node_selector_terms: tuple[NodeSelectorTerm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferredSchedulingTerm:
    """Of core/v1."""

    weight: int
    preference: NodeSelectorTerm


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAffinity:
    """Of core/v1."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: tuple[PreferredSchedulingTerm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAffinityTerm:
    """Of core/v1."""

    topology_key: str
    label_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    mismatch_label_keys: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    namespace_selector: LabelSelector | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedPodAffinityTerm:
    """Of core/v1."""

    weight: int
    pod_affinity_term: PodAffinityTerm


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAffinity:
    """Of core/v1; its PodAntiAffinity is the same."""

    required_during_scheduling_ignored_during_execution: tuple[PodAffinityTerm, ...] = ()
    preferred_during_scheduling_ignored_during_execution: tuple[WeightedPodAffinityTerm, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """Of core/v1."""

    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAffinity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """Of core/v1."""

    key: str = ""
    operator: Literal["Equal", "Exists"] | None = None
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologySpreadConstraint:
    """Of core/v1."""

    max_skew: int
    topology_key: str
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    min_domains: int | None = None
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    node_taints_policy: Literal["Honor", "Ignore"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodScheduling:
    """Where pods run and what else their cluster wants of them, in the terms of a pod; it shapes no artifact."""

    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    affinity: Affinity | None = None
    topology_spread_constraints: tuple[TopologySpreadConstraint, ...] = ()
    priority_class_name: str = ""
    runtime_class_name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    ephemeral_storage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling(PodScheduling):
    """When and where the stages' pods may run; it shapes no artifact. `queue` is a LocalQueue of Kueue."""

    queue: str = ""
    gpu_resource: str = ""
    shared_memory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerRequest:
    """What one request may hold; None leaves it to the model server."""

    max_records: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a version is served: a KServe InferenceService. `host` is one beside that which the platform gives the model."""

    host: str = ""
    runtime: Literal["torchserve"] = "torchserve"
    runtime_update: Literal["Keep", "Roll"] = "Keep"
    replicas: Replicas = Replicas()
    resources: ServingResources = ServingResources()
    per_request: PerRequest = PerRequest()
    scheduling: PodScheduling = PodScheduling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How traffic moves from the stable version to a new one.

    `steps` are percentages of traffic; 100 follows the last one. `recreate`
    moves all traffic at once, as soon as the new version is ready.
    """

    strategy: Literal["canary", "recreate"] = "canary"
    steps: tuple[int, ...] = (5, 25, 50)
    interval: timedelta = timedelta(minutes=1)
    max_duration: timedelta = timedelta(hours=1)
    keep_warm: timedelta = timedelta(minutes=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class MLModelSpec:
    """What the user wants."""

    data: Data
    training: Training = Training()
    gates: tuple[Gate, ...] = field(default=(), metadata=_UNORDERED)
    fairness: Fairness = Fairness()
    optimization: Optimization = Optimization()
    serving: Serving = Serving()
    rollout: Rollout = Rollout()
    scheduling: Scheduling = Scheduling()
    revision_history_limit: int = 5
    artifact_retention: Literal["Keep", "Delete"] = "Keep"
    suspend: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionSpec:
    """An immutable snapshot of what shapes an artifact; `artifact_id` is in the path of its artifacts."""

    model: str
    sequence: int
    data: Data
    trigger: str = ""
    artifact_id: str = ""
    training: Training = Training()
    gates: tuple[Gate, ...] = field(default=(), metadata=_UNORDERED)
    fairness: Fairness = Fairness()
    optimization: Optimization = Optimization()


ROLLED_BACK_BY_USER: Final = "RolledBackByUser"
"""Reason of a `Decision` that somebody asked for; it holds until another version is asked for."""


@dataclass(frozen=True, slots=True)
class WayBack:
    """What `kubectl mlmodel rollback` asks for: the value of `contract.ANNOTATION_ROLLBACK`.

    It names both ends, so that it means nothing once it has come too late: another version is asked for, or `to` serves.

    Attributes:
        from_: The version that is wanted now, and that is not to be tried again.
        to: The version that is to serve instead.
    """

    from_: str
    to: str

    def __str__(self) -> str:
        """``<from>-><to>``."""
        return f"{self.from_}->{self.to}"

    @classmethod
    def parse(cls, text: str) -> typing.Self | None:
        """Reads that; None for anything else."""
        start, arrow, end = text.partition("->")
        return cls(start, end) if arrow and start and end else None


FULL_WEIGHT: Final = 100
"""Percent: all the traffic."""

WATCHED_ONCE: Final = "val_roc_auc"
"""The default of `EarlyStopping.metric` in earlier releases, which is in their objects. Of classes it is the first metric
still, so that to name it asks for nothing else."""

VERSIONED: Final = ("data", "training", "gates", "fairness", "optimization")
"""Sections of MLModelSpec whose change makes a new ModelVersion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A metav1.Condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureStatus:
    """The cause of a failure; `class_` is a `contract.FailureClass`."""

    class_: str
    message: str
    next_action: str
    stage: str = ""
    pod: str = ""
    exit_code: int | None = None
    last_log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disruption:
    """A pod that was taken away by no fault of its own, or (without uid) that others waited for in vain.

    `count` is how often other pods have failed for that.
    """

    pod: str
    uid: str
    time: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage's record; once it has ended, only another attempt at it changes it.

    What it has worked is counted in `worked_seconds`, and from `working_since` or, between two runs, up to
    `worked_until` (`mlplatform.plan.work`).
    """

    name: str
    outcome: Literal["Running", "Succeeded", "Failed"]
    attempt: int = 1
    started_at: str = ""
    finished_at: str = ""
    worked_seconds: int = 0
    working_since: str = ""
    worked_until: str = ""
    restarts: tuple[str, ...] = ()
    disruptions: tuple[Disruption, ...] = ()
    last_failure: FailureStatus | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    report: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionStatus:
    """What has become of a version."""

    observed_generation: int = 0
    stage: str = ""
    conditions: tuple[Condition, ...] = ()
    stages: tuple[StageStatus, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    storage_uri: str = ""
    failure: FailureStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StableStatus:
    """The version that all traffic falls back to."""

    version: str
    sequence: int = 0
    promoted_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatus:
    """A rollout under way; `weight` is read from the mesh."""

    version: str
    sequence: int = 0
    step: int = 0
    steps: int = 0
    weight: int = 0
    started_at: str = ""
    step_started_at: str = ""
    eta: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One entry of `status.history`, newest first."""

    version: str
    decision: Literal["Promoted", "RolledBack", "Superseded"]
    reason: str
    message: str
    time: str
    sequence: int = 0
    previous: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MLModelStatus:
    """Where the model stands."""

    observed_generation: int = 0
    stage: str = ""
    latest_version: str = ""
    latest_sequence: int = 0
    highest_sequence: int = 0
    url: str = ""
    conditions: tuple[Condition, ...] = ()
    stable: StableStatus | None = None
    rollout: RolloutStatus | None = None
    history: tuple[Decision, ...] = ()
    failure: FailureStatus | None = None


@cache
def json_name(attribute: str) -> str:
    """``gradient_accumulation_steps`` → ``gradientAccumulationSteps``."""
    head, *rest = attribute.rstrip("_").split("_")
    return head + "".join(part.capitalize() for part in rest)


@cache
def named(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass by their names in JSON."""
    return {json_name(f.name): f for f in dataclasses.fields(cls)}


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def decode(cls: type[T], raw: object, path: str = "spec", *, unknown: Unknown = "reject") -> T:
    """Reads the JSON value `raw` as `cls`.

    Args:
        cls: A dataclass of this module.
        raw: What `json.loads` gives.
        path: Where `raw` stands, for the messages.
        unknown: In what a person wrote, a field that `cls` lacks is a mistake, unless it is empty: reject. What another
            program of the platform wrote may come from a newer release: skip the field. A word that an enumeration
            lacks is still a mistake where somebody acts on it; who only shows it to people takes it as it is: show.

    Raises:
        SpecError: A field or word is unknown, or a field is missing or of the wrong type.
    """
    return typing.cast("T", _decode(cls, raw, path, unknown))


def _decode(hint: Any, raw: Any, path: str, unknown: Unknown) -> Any:  # noqa: C901, PLR0911  a branch a kind of type
    if hint in _JSON_TYPES:  # Most fields, so first.
        return float(raw) if hint is float and type(raw) is int else _expect(hint, raw, path)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(typing.cast("type", hint), raw, path, unknown)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if raw is None else _decode(next(a for a in args if a is not type(None)), raw, path, unknown)
    if origin is Literal:
        if raw not in args and not (unknown == "show" and isinstance(raw, str)):
            msg = f"{path}: {raw!r} is not one of {', '.join(map(str, args))}{suggest(raw, args)}"
            raise SpecError(msg)
        return raw
    if origin is tuple:
        items = _expect(list, raw, path)
        return tuple(_decode(args[0], item, f"{path}[{i}]", unknown) for i, item in enumerate(items))
    if origin is dict:
        members = _expect(dict, raw, path)
        return {key: _decode(args[1], value, f"{path}.{key}", unknown) for key, value in members.items()}
    if hint is Any:
        return raw
    if hint is timedelta:
        try:
            return parse_duration(_expect(str, raw, path))
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None
    return _expect(hint, raw, path)


def _decode_dataclass(cls: type, raw: Any, path: str, unknown: Unknown) -> Any:
    mapping = _expect(dict, raw, path)
    hints = _hints(cls)
    names = named(cls)
    for key in mapping:
        if key not in names and unknown == "reject" and not _asks_for_nothing(mapping[key]):
            msg = f"{path}.{key}: unknown field{suggest(key, names)}; known: {', '.join(names)}"
            raise SpecError(msg)
    for key, f in names.items():
        if is_required(f) and key not in mapping:
            msg = f"{path}.{key}: required"
            raise SpecError(msg)
    return cls(
        **{
            f.name: _decode(hints[f.name], mapping[key], f"{path}.{key}", unknown)
            for key, f in names.items()
            if key in mapping
        }
    )


def _asks_for_nothing(value: Any) -> bool:
    """Whether a field that is not known may be left out: a newer CRD fills in its empty defaults before its operator comes."""
    if isinstance(value, dict):
        return all(map(_asks_for_nothing, value.values()))
    return value in (None, "", [])


def is_required(f: dataclasses.Field[Any]) -> bool:
    """Whether the field has no default, so that the JSON must name it."""
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _expect(kind: type[T], raw: Any, path: str) -> T:
    if type(raw) is not kind:
        msg = (
            f"{path}: expected {_JSON_TYPES.get(kind, kind.__name__)}, got {_JSON_TYPES.get(type(raw), 'null')} {raw!r}"
        )
        raise SpecError(msg)
    return raw


_JSON_TYPES: Final[dict[type, str]] = {
    str: "a string", int: "an integer", float: "a number", bool: "a boolean", list: "a list", dict: "an object",
}  # fmt: skip


_SCALARS: Final = (str, int, float)


def suggest(word: object, known: typing.Iterable[object]) -> str:
    """`` (did you mean epochs?)`` for a word that is nearly one of those; empty for one that is not."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def encode(value: Any) -> Any:
    """The JSON value of a dataclass: every field that is not None."""
    return _encode(value)


def canonical(value: Any) -> Any:
    """Like `encode`, less every field that has its default."""
    return _encode(value, sparse=True)


def content(spec: MLModelSpec | ModelVersionSpec) -> str:
    """What shapes an artifact, as text: equal where only orders differ that mean nothing, or how a default is written.

    By this and not by its name an MLModel knows a version for its own (`mlplatform.resources.modelversion`).
    """
    return json.dumps(_versioned(spec, sparse=False), sort_keys=True)


def _versioned(spec: MLModelSpec | ModelVersionSpec, *, sparse: bool) -> dict[str, Any]:
    stopping = spec.training.early_stopping
    if stopping and stopping.metric == WATCHED_ONCE:
        stopping = dataclasses.replace(stopping, metric=None)
        spec = dataclasses.replace(spec, training=dataclasses.replace(spec.training, early_stopping=stopping))
    return {
        f.name: _encode(_arranged(f, getattr(spec, f.name)), sparse=sparse, arranged=True)
        for f in dataclasses.fields(spec)
        if f.name in VERSIONED
    }


def _arranged(f: dataclasses.Field[Any], value: Any) -> Any:
    """A list whose order means nothing, in an order that depends on what is in it alone; anything else as it is."""
    return sorted(value, key=repr) if f.metadata.get("unordered") else value


def _encode(value: Any, *, sparse: bool = False, arranged: bool = False) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = {}
        for name, f in named(type(value)).items():
            item, default = getattr(value, f.name), _default(f)
            if sparse and arranged and "once" in f.metadata:
                item, default = "auto" if item is None else item, f.metadata["once"]
            if arranged:
                item, default = _arranged(f, item), _arranged(f, default)
            if item is None or (sparse and item == default):
                continue
            kept[name] = _encode(item, sparse=sparse, arranged=arranged)
        return kept
    if isinstance(value, (tuple, list)):
        return [_encode(item, sparse=sparse, arranged=arranged) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item, sparse=sparse, arranged=arranged) for key, item in value.items()}
    if isinstance(value, timedelta):
        return format_duration(value)
    return value


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def version_name(model: str, spec: MLModelSpec, trigger: str = "", tries: int = 0) -> str:
    """``<model>-<hash8>`` for a new version: over the versioned sections and the retrain trigger.

    Args:
        model: The MLModel's name.
        spec: Its spec.
        trigger: The value of its retrain annotation.
        tries: How many names of this content are taken by something else.
    """
    again = {"tries": tries} if tries else {}
    return f"{model}-{contract.digest({**_versioned(spec, sparse=True), 'trigger': trigger, **again})}"


def problems(spec: MLModelSpec, name: str, trigger: str = "") -> list[str]:
    """Cross-field mistakes, each a sentence with its fix; empty when the spec is sound.

    What a rule of the CRD says, too, it says in the same words. The rules do not reach a spec that was stored before
    they were there, nor a laptop without a cluster (`mlplatform.admission`).
    """
    found = _name_problems(name) + _training_problems(spec.training)
    if len(trigger) > contract.TRIGGER_LIMIT:
        found.append(
            f"metadata.annotations: {contract.ANNOTATION_RETRAIN} has {len(trigger)} characters, "
            f"at most {contract.TRIGGER_LIMIT} are kept; any short value that is new will do"
        )
    found += _data_problems(spec.data)
    if spec.training.task == contract.CAUSAL_LM:
        found += _text_problems(spec.data)
    if spec.training.task == contract.RANKING and spec.data.target in {"multiclass", "regression"}:
        found.append("spec.data.target: the labels of the task ranking have two values each; take it out")
    found += _gate_problems(spec)
    found += _fairness_problems(spec)
    if "fp32" not in spec.optimization.candidates:
        found.append(
            "spec.optimization.candidates: must contain fp32, the reference that the others are compared with; add it"
        )
    if not _HOST_NAME.fullmatch(spec.serving.host):
        found.append(f"spec.serving.host: {_HOST_WORDS}")
    if spec.serving.replicas.max < spec.serving.replicas.min:
        found.append("spec.serving.replicas: max is below min; raise max")
    found += _rollout_problems(spec.rollout)
    found += scheduling_problems(spec.serving.scheduling, "spec.serving.scheduling")
    found += scheduling_problems(spec.scheduling, "spec.scheduling")
    return found


def scheduling_problems(scheduling: PodScheduling, path: str) -> list[str]:
    """Likewise of one section about pods, which stands at `path`."""
    found = []
    for name in ("nodeSelector", "labels", "annotations"):
        keys = getattr(scheduling, "node_selector" if name == "nodeSelector" else name)
        if not all(_QUALIFIED_NAME.fullmatch(key) for key in keys):
            found.append(f"{path}.{name}: {_KEY_WORDS}")
        if name != "nodeSelector" and any(_RESERVED.fullmatch(key) for key in keys):
            found.append(f"{path}.{name}: {_RESERVED_WORDS}")
    return found


_HOST_NAME: Final = re.compile(r"(([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z]([-a-z0-9]{0,61}[a-z0-9])?)?")
_HOST_WORDS: Final = (
    "must be a host name alone, in lower case and with its domain, without scheme, port, path or wildcard; "
    "write it like credit.example.com"
)
_QUALIFIED_NAME: Final = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII
)
_KEY_WORDS: Final = "a key must be a name of at most 63 letters, digits and -_. between them, after a domain and a slash or without; correct it"
_RESERVED: Final = re.compile(
    r"(.*\.)?(mlplatform\.dev|kserve\.io|kubeflow\.org|kueue\.x-k8s\.io|batch\.kubernetes\.io)/.*"
    r"|app\.kubernetes\.io/(name|instance|component|managed-by)|app|component|job-name|controller-uid"
    r"|sidecar\.istio\.io/inject",
    re.DOTALL,
)
"""Keys by which this platform and the controllers that it drives know the pods."""
_RESERVED_WORDS: Final = (
    "has a key that the platform sets: one of mlplatform.dev, kserve.io, kubeflow.org, kueue.x-k8s.io or "
    "batch.kubernetes.io, app.kubernetes.io/name, /instance, /component or /managed-by, app, component, job-name, "
    "controller-uid or sidecar.istio.io/inject; take it out"
)


def _data_problems(data: Data) -> list[str]:
    found = []
    if not data.uri.strip():
        found.append("spec.data.uri: empty; give the folder or file that holds the rows, e.g. s3://datasets/adult/")
    if data.dvc and "://" in data.uri:
        found.append("spec.data.uri: with spec.data.dvc it is a path in that repository; write it without a scheme")
    if data.dvc and _PASSWORD.search(data.dvc.repo):
        found.append("spec.data.dvc.repo: holds a password, which all who may read the model would see; take it out")
    if data.split.validation + data.split.test >= 1:
        found.append(
            "spec.data.split: validation + test must be less than 1 to leave rows for training; lower one of them"
        )
    by = data.split.by
    if by and sum(map(bool, (by.group, by.key, by.time))) != 1:
        found.append("spec.data.split.by: set one of group, key and time; remove the others")
    if by and by.time and by.time.validation >= by.time.test:
        found.append("spec.data.split.by.time: validation must be before test: exchange them, or move one")
    if set(data.predicted) & set(data.sensitive_attributes):
        found.append(
            "spec.data.sensitiveAttributes: contains the label, which cannot be audited against itself; take it out"
        )
    if data.positive_label and (data.labels or data.target not in {"auto", "binary"}):
        found.append("spec.data.positiveLabel: only a binary target has a positive class; take it out")
    return found + _column_problems(data) + _label_problems(data)


def _column_problems(data: Data) -> list[str]:
    found = []
    if data.weight and data.weight in data.predicted:
        found.append("spec.data.weight: is the label; name a column that says how much a row counts")
    if data.weight in data.columns:
        found.append("spec.data.columns: contains spec.data.weight, which is no feature; take it out")
    if set(data.predicted) & data.columns.keys():
        found.append("spec.data.columns: contains the label, which is no feature; take it out")
    return found


def _label_problems(data: Data) -> list[str]:
    if data.target == "multilabel" and not data.labels:
        return ["spec.data.target: multilabel needs spec.data.labels, its columns, in place of spec.data.label"]
    if bool(data.label) == bool(data.labels):
        return ["spec.data: set label (the column to predict) or labels (the columns of a multilabel target), not both"]
    found = []
    if data.labels and data.target not in {"auto", "multilabel"}:
        found.append("spec.data.target: of spec.data.labels it is multilabel; take it out, or name one column in label")
    if any(name in contract.IN_ANSWERS or contract.JOINED in name for name in data.labels):
        found.append(
            "spec.data.labels: has prediction, latency_ms or model_version, which every answer has, or a name with |, which "
            "parts names there; rename the column"
        )
    return found


def _target(spec: MLModelSpec) -> str:
    """What a built-in task is to learn, as far as the specification tells."""
    if spec.training.task not in contract.LABELLED:
        return "auto"
    return "multilabel" if spec.data.labels else spec.data.target


def _text_problems(data: Data) -> list[str]:
    found = []
    if data.target != "auto":
        found.append("spec.data.target: the task causal-lm learns the text itself, which has no target; take it out")
    if data.labels:
        found.append("spec.data.labels: the task causal-lm learns one column of text; name it in spec.data.label")
    if data.positive_label:
        found.append("spec.data.positiveLabel: the task causal-lm has no classes; take it out")
    return found


def _fairness_problems(spec: MLModelSpec) -> list[str]:
    found = []
    if spec.fairness.metrics and not spec.data.sensitive_attributes:
        found.append("spec.fairness.metrics: needs spec.data.sensitiveAttributes, the columns to compare groups by")
    if not set(spec.fairness.metrics) <= set(contract.FAIRNESS_METRICS):
        found.append(f"spec.fairness.metrics: unknown metric; known: {', '.join(contract.FAIRNESS_METRICS)}")
    if any(spec.fairness.metrics.get(metric, 0) > 1 for metric in contract.DIFFERENCES_OF_SHARES):
        found.append(
            f"spec.fairness.metrics: {', '.join(contract.DIFFERENCES_OF_SHARES)} are differences of shares; "
            "give each a bound between 0 and 1"
        )
    if spec.training.task == contract.CAUSAL_LM and spec.fairness.metrics:
        found.append("spec.fairness.metrics: the task causal-lm defines no difference between groups; take them out")
    target = _target(spec)
    known = contract.TARGET_FAIRNESS.get(target)
    if known and not set(spec.fairness.metrics) <= set(known):
        found.append(f"spec.fairness.metrics: the target {target} defines only {', '.join(known)}")
    if spec.fairness.metrics and spec.training.task == contract.RANKING:
        found.append("spec.fairness.metrics: the task ranking compares no groups; take them out")
    return found


def _rollout_problems(rollout: Rollout) -> list[str]:
    found = []
    if not rollout.max_duration:
        found.append("spec.rollout.maxDuration: must be longer than 0s; write it like 90s, 10m or 1h30m")
    if list(rollout.steps) != sorted(set(rollout.steps)):
        found.append("spec.rollout.steps: must rise, each between 1 and 99; 100 follows by itself")
    if any(not 0 < step < FULL_WEIGHT for step in rollout.steps):
        found.append("spec.rollout.steps: a step is not between 1 and 99; take it out, 100 follows by itself")
    return found


def _name_problems(name: str) -> list[str]:
    found = []
    if len(name) > contract.MODEL_NAME_LIMIT:
        found.append(
            f"metadata.name: {len(name)} characters; at most {contract.MODEL_NAME_LIMIT} leave room for the names "
            f"of its Services and pods (63). Choose a shorter name",
        )
    if not _DNS_LABEL.fullmatch(name):
        found.append(
            f"metadata.name: {name!r} cannot name the model's Service; start with a letter and use only lower-case "
            f"letters, digits and hyphens, with no hyphen at the end",
        )
    return found


def _training_problems(training: Training) -> list[str]:
    found = []
    if training.strategy == "single" and training.workers * training.processes_per_worker > 1:
        found.append(
            "spec.training.strategy: single is one process; set workers and processesPerWorker to 1, or use fsdp"
        )
    if training.threshold and (training.threshold.value is None) == (training.threshold.maximize is None):
        found.append("spec.training.threshold: set value or maximize, not both")
    if not training.deadline:
        found.append("spec.training.deadline: must be longer than 0s; write it like 90s, 10m or 1h30m")
    return found


def _gate_problems(spec: MLModelSpec) -> list[str]:
    found = []
    known = contract.TASK_METRICS.get(spec.training.task)
    if known is None and ":" not in spec.training.task:
        tasks = ", ".join(contract.TASK_METRICS)
        found.append(f"spec.training.task: neither a built-in task ({tasks}) nor package.module:Class")
    labelled = spec.training.task in contract.LABELLED
    if known and not {gate.metric for gate in spec.gates} <= set(known):
        whose = (
            "a built-in task reports no such metric; it reports"
            if labelled
            else f"the task {spec.training.task} reports only"
        )
        found.append(f"spec.gates: {whose} {', '.join(known)}")
    target = _target(spec)
    of_target = contract.TARGET_METRICS.get(target)
    if of_target and not {gate.metric for gate in spec.gates} <= set(of_target):
        found.append(f"spec.gates: the target {target} reports only {', '.join(of_target)}")
    if spec.training.threshold and not (labelled and target in {"auto", "binary"}):
        found.append(
            "spec.training.threshold: only a binary target of the tasks tabular and text has a threshold; take it out"
        )
    if spec.training.calibration != "none" and not (labelled and target != "regression"):
        found.append(
            "spec.training.calibration: only classes of the tasks tabular and text have probabilities to calibrate; take it out"
        )
    stopping = spec.training.early_stopping
    named, reported = (f"target {target}", of_target) if labelled else (f"task {spec.training.task}", known)
    watched = [f"{contract.VALIDATION}{name}" for name in reported or ()]
    if watched and stopping and stopping.metric and stopping.metric not in watched:
        found.append(
            f"spec.training.earlyStopping.metric: the {named} reports only {', '.join(watched)}; name one of them, "
            "or none for the first"
        )
    for i, gate in enumerate(spec.gates):
        if gate.min is None and gate.max is None:
            found.append(f"spec.gates[{i}]: give min or max: a gate without a bound holds nothing back")
        if gate.min is not None and gate.max is not None and gate.min > gate.max:
            found.append(f"spec.gates[{i}]: min is above max, so no version could pass; swap or correct them")
    return found
