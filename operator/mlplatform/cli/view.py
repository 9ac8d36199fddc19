"""What `kubectl mlmodel` knows of one model, as plain values; no I/O and no clock.

Called by `mlplatform.cli.main` with objects as the API server sent them; the
result goes to `mlplatform.cli.render` (people) and to `-o json` (programs). It
is a module of its own so that every sentence of the live view can be tested as
a table, without a cluster and without a terminal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal

from mlplatform import api, contract

Object = dict[str, Any]
"""A Kubernetes object as JSON."""

State = Literal["pending", "running", "succeeded", "failed", "unknown"]
"""Of a stage; unknown: a newer operator has a word for it that this release does not know, which is shown."""


class Outcome(StrEnum):
    """Where the latest wish of the user stands."""

    PROGRESSING = "Progressing"
    READY = "Ready"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One line of the pipeline.

    Attributes:
        seconds: Wall time from start to end, or to now while it runs; None before it starts.
        summary: Its headline numbers in words, e.g. ``roc_auc 0.9131, 9 epochs``.
    """

    name: str
    state: State
    seconds: float | None = None
    summary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateView:
    """A bound on a test metric and what was measured (None: not yet)."""

    metric: str
    value: float | None = None
    min: float | None = None
    max: float | None = None
    passed: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessView:
    """A group difference by one attribute, its interval and its upper bound."""

    metric: str
    attribute: str
    value: float
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    passed: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateView:
    """One optimisation candidate as it was measured."""

    name: str
    size_bytes: int
    latency_p50_ms: float
    latency_p99_ms: float
    metrics: dict[str, float]
    passed: bool
    selected: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    """The latest version: how far its pipeline came and what it measured."""

    name: str
    sequence: int
    stages: tuple[StageView, ...]
    metrics: dict[str, float]
    gates: tuple[GateView, ...] = ()
    fairness: tuple[FairnessView, ...] = ()
    not_assessed: tuple[str, ...] = ()
    candidates: tuple[CandidateView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficView:
    """Who answers: `weight` percent goes to `candidate`, the rest to `stable`.

    Attributes:
        trouble: Why `stable` does not answer, and who does instead; empty while it has ready pods.
        remaining_seconds: Until the whole rollout ends, if nothing holds it up; None when nobody can say.
    """

    stable: str = ""
    candidate: str = ""
    weight: int = 0
    step: int = 0
    steps: int = 0
    message: str = ""
    trouble: str = ""
    remaining_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureView:
    """What went wrong and what to do next."""

    reason: str
    message: str
    next_action: str = ""
    stage: str = ""
    pod: str = ""
    exit_code: int | None = None
    last_log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model at one moment."""

    name: str
    namespace: str
    outcome: Outcome
    stage: str
    message: str
    url: str = ""
    accepted: bool | None = None
    current: bool = False
    version: VersionView | None = None
    traffic: TrafficView | None = None
    failure: FailureView | None = None
    history: tuple[api.Decision, ...] = ()
    age_seconds: float | None = None


def model_view(model: Object, versions: list[Object], now: datetime) -> ModelView:
    """Folds an MLModel and its ModelVersions into what the plugin shows.

    Args:
        model: The MLModel.
        versions: Its ModelVersions, in any order; only the latest one is shown in full.
        now: An aware time; running stages are measured up to it.

    Returns:
        The view. A word in it that this release does not know comes from a newer operator, and stands as it is.
    """
    meta = model["metadata"]
    status = api.decode(api.MLModelStatus, model.get("status") or {}, "status", unknown="show")
    latest = next((v for v in versions if v["metadata"]["name"] == status.latest_version), None)
    if latest is not None and _refused(status.conditions) and not _answers(latest, model, status):
        latest = None  # The operator could not even make the version that is asked for.
    sequences = {v["metadata"]["name"]: v.get("spec", {}).get("sequence", 0) for v in versions}
    current = _current(model, status, latest)
    view = ModelView(
        name=meta["name"],
        namespace=meta.get("namespace", ""),
        outcome=Outcome.PROGRESSING,
        stage="Pending",
        message="waiting for the operator to see this change",
        url=status.url,
        version=_version(latest, status, now) if latest else None,
        traffic=_traffic(status, sequences, now),
        history=status.history,
        age_seconds=_seconds(meta.get("creationTimestamp", ""), now),
    )
    if not current:
        return view
    blamed, held_up = _blamed(status), _held_up(status)
    failure = _failure(status, latest, blamed or held_up)
    outcome = _outcome(model, status, blamed, latest)
    return replace(
        view,
        current=True,
        outcome=outcome,
        stage=_stage_word(status, latest, blamed, held_up),
        message=_message(status, outcome, failure),
        accepted=_is_true(status.conditions, "Accepted"),
        failure=failure,
    )


def _current(model: Object, status: api.MLModelStatus, latest: Object | None) -> bool:
    """Whether the operator has seen this spec and this retrain request."""
    if status.observed_generation < model["metadata"].get("generation", 0):
        return False
    rejected = _is_true(status.conditions, "Accepted") is False
    if latest is not None and not rejected:
        return _triggered(latest, model)
    return bool(status.conditions)


def _triggered(latest: Object, model: Object) -> bool:
    """Whether the latest version was made for the retrain request that the model carries, if any."""
    asked = (model["metadata"].get("annotations") or {}).get(contract.ANNOTATION_RETRAIN, "")
    return bool(latest.get("spec", {}).get("trigger", "") == asked) or not asked


def _answers(latest: Object, model: Object, status: api.MLModelStatus) -> bool:
    """Whether the latest version belongs to this spec and request, where the operator was refused a write.

    It observes the generation then, yet what it says of versions stays as it was for the generation before.
    """
    said = find_condition(status.conditions, "VersionReady")
    seen = said is not None and said.observed_generation >= model["metadata"].get("generation", 0)
    return seen and _triggered(latest, model)


def find_condition(conditions: tuple[api.Condition, ...], kind: str) -> api.Condition | None:
    """The condition of that type; None when it is not there."""
    return next((c for c in conditions if c.type == kind), None)


def _is_true(conditions: tuple[api.Condition, ...], kind: str) -> bool | None:
    found = find_condition(conditions, kind)
    return {"True": True, "False": False}.get(found.status) if found else None


_NEXT: Final = {
    "Accepted": "correct the MLModel and apply it again",
    "VersionReady": "correct what the message names; `kubectl describe modelversion` has the whole story",
    "RolloutPassed": "correct the cause and apply again, or try the same spec anew: kubectl mlmodel retrain",
    "HostAssigned": "do what the message says; all else of the model goes on meanwhile",
}
"""Conditions of what the user asked for, and what to do about each where the operator says nothing better.

`Serving` is not among them: pods that come and go are an incident of the stable version.
"""

_REFUSALS: Final = {
    "Forbidden": "give the operator's ServiceAccount the right that the message names (the chart does); it tries again by itself",
    "NameTaken": "delete or rename the object that the message names; the operator tries again by itself",
    "Rejected": "correct what the message names (the model, a quota, a policy); the operator tries again by itself",
    "InternalError": (
        "report it with the operator's log: kubectl -n mlplatform-system logs deployment/mlplatform-operator"
    ),
}
"""Reasons of `Ready` for what the operator itself could not do and a person must mend, and how."""

_ADD_ON_MISSING: Final = "AddOnMissing"


def _refused(conditions: tuple[api.Condition, ...]) -> api.Condition | None:
    """`Ready`, where the operator says in it that it cannot do its work."""
    ready = find_condition(conditions, "Ready")
    return ready if ready is not None and ready.status == "False" and ready.reason in _REFUSALS else None


def _blamed(status: api.MLModelStatus) -> api.Condition | None:
    """The first condition by which the latest wish has failed.

    A refused operator comes first: what the other conditions say may be of the wish before.
    """
    return _refused(status.conditions) or next((c for c in _missed(status) if _final(c)), None)


def _held_up(status: api.MLModelStatus) -> api.Condition | None:
    """The first condition that waits for something outside to be mended, and goes on by itself after that."""
    return next((c for c in _missed(status) if not _final(c)), None)


def _missed(status: api.MLModelStatus) -> list[api.Condition]:
    found = (find_condition(status.conditions, kind) for kind in _NEXT)
    return [c for c in found if c is not None and c.status == "False"]


def _final(missed: api.Condition) -> bool:
    """Whether a condition that is False stays so; the operator also says False of what is only blocked."""
    if missed.type == "VersionReady":
        return missed.reason.endswith("Failed") or missed.reason == contract.FailureClass.SPEC_INVALID
    return missed.reason != _ADD_ON_MISSING


def _failure(status: api.MLModelStatus, latest: Object | None, told: api.Condition | None) -> FailureView | None:
    """The cause as the operator found it, else as the condition tells it; also of what only holds the pipeline up."""
    version = (
        api.decode(api.ModelVersionStatus, latest.get("status") or {}, "status", unknown="show") if latest else None
    )
    found = status.failure or (version.failure if version else None)
    if found is not None and not _tells_all(told):
        return FailureView(
            reason=found.class_,
            message=found.message,
            next_action=found.next_action,
            stage=found.stage,
            pod=found.pod,
            exit_code=found.exit_code,
            last_log=found.last_log,
        )
    if told is None:
        return None
    stage = "rollout" if told.type == "RolloutPassed" else ""
    return FailureView(reason=told.reason, message=told.message, next_action=_next_action(told), stage=stage)


def _tells_all(told: api.Condition | None) -> bool:
    """Whether a condition is about something else than the pods that `status.failure` is about."""
    if told is None:
        return False
    return told.type in {"Accepted", "Ready"} or told.reason in {_ADD_ON_MISSING, contract.FailureClass.SPEC_INVALID}


def _next_action(told: api.Condition) -> str:
    if told.reason == _ADD_ON_MISSING:
        return "install what the message names; it goes on by itself after that"
    return _REFUSALS[told.reason] if told.type == "Ready" else _NEXT[told.type]


def _stage_word(
    status: api.MLModelStatus, latest: Object | None, blamed: api.Condition | None, held_up: api.Condition | None
) -> str:
    """One word for where the model stands: the operator's, which is "Failed" also for a version that is only held up."""
    if blamed is None and held_up is not None and held_up.type == "VersionReady" and latest is not None:
        return str((latest.get("status") or {}).get("stage") or status.stage)
    return status.stage


def _outcome(model: Object, status: api.MLModelStatus, blamed: api.Condition | None, latest: Object | None) -> Outcome:
    if blamed is not None:
        return Outcome.FAILED
    if model.get("spec", {}).get("suspend"):
        return Outcome.SUSPENDED
    promoted = status.stable is not None and status.stable.version == status.latest_version
    if promoted and status.rollout is None and _is_true(status.conditions, "Ready") and _passed(latest):
        return Outcome.READY
    return Outcome.PROGRESSING


def _passed(latest: Object | None) -> bool:
    """Whether the latest version says itself that it is ready: it is watched apart from its model, and may be heard of later."""
    if latest is None:
        return False
    status = api.decode(api.ModelVersionStatus, latest.get("status") or {}, "status", unknown="show")
    return _is_true(status.conditions, "Ready") is True


def _message(status: api.MLModelStatus, outcome: Outcome, failure: FailureView | None) -> str:
    if outcome is Outcome.FAILED and failure is not None:
        return failure.message
    if outcome is Outcome.SUSPENDED:
        return "spec.suspend is true: nothing new starts; what serves keeps serving"
    ready = find_condition(status.conditions, "Ready")
    return ready.message if ready else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bounds:
    """What is shown of a ModelVersion's spec; the rest of it may be in the words of a newer release."""

    sequence: int
    gates: tuple[api.Gate, ...] = ()
    fairness: api.Fairness = field(default_factory=api.Fairness)


def _version(raw: Object, model: api.MLModelStatus, now: datetime) -> VersionView:
    spec = api.decode(_Bounds, raw["spec"], "spec", unknown="show")
    status = api.decode(api.ModelVersionStatus, raw.get("status") or {}, "status", unknown="show")
    ran = {stage.name: stage for stage in status.stages}
    audit, optimize = ran.get(contract.Stage.AUDIT), ran.get(contract.Stage.OPTIMIZE)
    metrics = status.metrics or (audit.metrics if audit else {})
    name = raw["metadata"]["name"]
    return VersionView(
        name=name,
        sequence=spec.sequence,
        stages=(*(_stage(s, ran.get(s), status.stage, now) for s in _names(ran)), _rollout_stage(name, model, now)),
        metrics=metrics,
        gates=tuple(_gate(gate, metrics) for gate in spec.gates),
        fairness=_fairness(audit, spec.fairness.metrics),
        not_assessed=tuple(audit.details.get("notAssessed", ())) if audit else (),
        candidates=_candidates(optimize),
    )


def _names(ran: Iterable[str]) -> tuple[str, ...]:
    """All stages in their order: those that have begun, among them one of a newer release, and those to come."""
    return tuple(dict.fromkeys([*ran, *map(str, contract.Stage)]))


_HELD: Final = {"Queued", "Suspended", "Superseded"}
"""Words of a version of which no stage runs, though one has begun."""

_STATES: Final[dict[str, State]] = {"Running": "running", "Succeeded": "succeeded", "Failed": "failed"}


_LEADING: Final = ("ndcg_at_10", "roc_auc", "accuracy", "r2", "mae")
"""Of a ranking, of classes, and of a measured number."""


def _stage(name: str, ran: api.StageStatus | None, word: str, now: datetime) -> StageView:
    if ran is None:
        return StageView(name=name, state="pending")
    if ran.outcome == "Running" and word in _HELD:
        return StageView(name=name, state="pending", summary=word.lower())
    end, state = _time(ran.finished_at) or now, _STATES.get(ran.outcome, "unknown")
    words = [ran.outcome if state == "unknown" else "", _headline(name, ran)]
    return StageView(
        name=name, state=state, seconds=_seconds(ran.started_at, end), summary=": ".join(filter(None, words))
    )


def leading(metrics: Collection[str]) -> list[str]:
    """The one or two metrics to show first: the best known ones, or those that come first where a task has none of them."""
    known = [name for name in _LEADING if name in metrics]
    return known or list(metrics)[:2]


def _headline(name: str, ran: api.StageStatus) -> str:
    """The two or three numbers of a stage that people ask for first."""
    details = ran.details
    parts: list[str] = []
    if name == contract.Stage.TRAIN:
        plain = {metric.removeprefix(contract.VALIDATION): metric for metric in sorted(ran.metrics)}
        parts += [f"{plain[metric]} {number(ran.metrics[plain[metric]])}" for metric in leading(plain)[:1]]
        parts += [f"{details['epochs']} epochs"] if details.get("epochs") else []
        parts += [f"{details['rows']['train']:,} rows"] if details.get("rows", {}).get("train") else []
        parts += [f"{details['worldSize']} processes"] if details.get("worldSize") else []
        parts += [f"resumed from step {details['resumedFromStep']}"] if details.get("resumedFromStep") else []
    elif name == contract.Stage.AUDIT:
        parts += [f"{metric} {number(ran.metrics[metric])}" for metric in leading(ran.metrics)]
        worst = max((f.value for f in _fairness(ran, {})), default=None)
        parts += [f"largest group difference {number(worst)}"] if worst is not None else []
    elif name == contract.Stage.OPTIMIZE and details.get("selected"):
        chosen = next((c for c in _candidates(ran) if c.selected), None)
        parts.append(f"{details['selected']} ships")
        parts += [f"{size(chosen.size_bytes)}, p99 {milliseconds(chosen.latency_p99_ms)}"] if chosen else []
    elif name == contract.Stage.PACKAGE and details.get("sizeBytes"):
        parts.append(f"archive of {size(details['sizeBytes'])}")
    return ", ".join(parts)


def _rollout_stage(name: str, model: api.MLModelStatus, now: datetime) -> StageView:
    """The way of a version to the traffic, told as a fifth stage."""
    decision = next((d for d in model.history if d.version == name), None)
    if model.rollout is not None and model.rollout.version == name:
        return StageView(
            name="rollout",
            state="running",
            seconds=_seconds(model.rollout.started_at, now),
            summary=model.rollout.message or f"{model.rollout.weight} % of the traffic",
        )
    if decision is not None and decision.decision == "RolledBack":
        return StageView(name="rollout", state="failed", summary=decision.message)
    if model.stable is not None and model.stable.version == name:
        serves = "was promoted, and has no ready pod" if _trouble(model) else "serves all traffic"
        return StageView(name="rollout", state="succeeded", summary=serves)
    return StageView(name="rollout", state="pending")


def _gate(gate: api.Gate, metrics: dict[str, float]) -> GateView:
    value = metrics.get(gate.metric)
    passed = None
    if value is not None:
        passed = (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
    return GateView(metric=gate.metric, value=value, min=gate.min, max=gate.max, passed=passed)


def _fairness(audit: api.StageStatus | None, bounds: dict[str, float]) -> tuple[FairnessView, ...]:
    measured = audit.details.get("fairness", {}) if audit else {}
    return tuple(
        FairnessView(
            metric=metric,
            attribute=attribute,
            value=found["value"],
            low=found.get("low"),
            high=found.get("high"),
            bound=bounds.get(metric),
            passed=found["value"] <= bounds[metric] if metric in bounds else None,
        )
        for metric, by_attribute in sorted(measured.items())
        for attribute, found in sorted(by_attribute.items())
    )


def _candidates(optimize: api.StageStatus | None) -> tuple[CandidateView, ...]:
    details = optimize.details if optimize else {}
    return tuple(
        CandidateView(
            name=c["name"],
            size_bytes=c.get("sizeBytes", 0),
            latency_p50_ms=c.get("latencyP50Ms", 0.0),
            latency_p99_ms=c.get("latencyP99Ms", 0.0),
            metrics=c.get("metrics", {}),
            passed=c.get("passed", True),
            selected=c["name"] == details.get("selected"),
            reason=c.get("reason", ""),
        )
        for c in details.get("candidates", ())
    )


def _traffic(status: api.MLModelStatus, sequences: dict[str, int], now: datetime) -> TrafficView | None:
    stable, rollout = status.stable, status.rollout
    serving = label(stable.version, stable.sequence or sequences.get(stable.version, 0)) if stable else ""
    trouble = _trouble(status)
    if rollout is None:
        return TrafficView(stable=serving, trouble=trouble) if serving else None
    eta = _time(rollout.eta)
    return TrafficView(
        stable=serving,
        candidate=label(rollout.version, rollout.sequence or sequences.get(rollout.version, 0)),
        weight=rollout.weight,
        step=rollout.step,
        steps=rollout.steps,
        message=rollout.message,
        trouble=trouble,
        remaining_seconds=max(0.0, (eta - now).total_seconds()) if eta else None,
    )


def _trouble(status: api.MLModelStatus) -> str:
    said = find_condition(status.conditions, "Serving")
    return said.message if status.stable and said is not None and said.status == "False" else ""


def label(version: str, sequence: int) -> str:
    """``v2`` where the sequence is known, else the version's name."""
    return f"v{sequence}" if sequence else version


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def _seconds(start: str, end: datetime) -> float | None:
    began = _time(start)
    return None if began is None else max(0.0, (end - began).total_seconds())


def number(value: float) -> str:
    """Four decimals for scores and losses, thousands separators for counts."""
    is_count = float(value).is_integer() and value not in {0, 1}
    return f"{int(value):,}" if is_count else f"{value:.4f}"


_UNITS = ("B", "KiB", "MiB", "GiB")


def size(count: int) -> str:
    """Bytes in binary units, three significant digits."""
    step = min(max(count.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    value = count / 1024**step
    return f"{value:.{0 if step == 0 else max(0, 3 - len(str(int(value))))}f} {_UNITS[step]}"


def milliseconds(value: float) -> str:
    """Three significant digits: the spread of candidates is often under 1 ms."""
    return f"{value:.3g} ms"


def duration(seconds: float | None) -> str:
    """``48s``, ``1m 12s``, ``2h 03m``, ``3d 4h``; empty for None."""
    if seconds is None:
        return ""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d {h}h"
    if hours:
        return f"{h}h {m:02}m"
    return f"{m}m {s:02}s" if minutes else f"{s}s"
