"""ModelSnapshot → Plan: which version is wanted, which one serves, and how traffic moves between them.

Called by `mlplatform.reconciler` for each MLModel.

What is true lies in the children, and only there: the apex Service says which
version is stable, the VirtualService how traffic is split and (in an
annotation written with the weights) when and how the last rollout went. Each
pass moves one link of that chain, so a restart between any two writes finds
its way on from what it sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal, cast

from mlplatform import api, failures, rollout
from mlplatform.actions import Apply, Create, Delete, Event, Ref
from mlplatform.conditions import Book
from mlplatform.contract import ANNOTATION_RETRAIN, MODEL_NAME_LIMIT
from mlplatform.plan.plan import Plan, conditions_json, known, status_json
from mlplatform.resources import ADD_ONS, inferenceservice, modelversion, service, virtualservice
from mlplatform.resources.metadata import same
from mlplatform.rollout import FULL, Move, Record, View
from mlplatform.settings import Settings
from mlplatform.snapshot import (
    ModelSnapshot,
    Object,
    annotations_of,
    condition,
    moment,
    name_of,
    precise,
    stamp,
    status_of,
)

HISTORY_LIMIT: Final = 20
"""Decision records kept in status."""

ADD_ON_RETRY: Final = timedelta(seconds=15)

_OUTCOMES: Final = {Move.PROMOTE: "Promoted", Move.ROLLBACK: "RolledBack"}
_DECISIONS: Final = {*_OUTCOMES.values(), "Superseded"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the snapshot means, worked out once.

    Attributes:
        snapshot: Where it comes from.
        settings: The operator's settings.
        spec: What the user wants.
        latest: Name of the version that the spec asks for.
        trigger: The retrain annotation's value.
        stable: Name of the version that the apex Service selects; empty before the first promotion.
        record: The last rollout, under way or over.
        weights: Percentage by version, read from the mesh.
        previous: The MLModel's status as last written.
        now: The clock.
    """

    snapshot: ModelSnapshot
    settings: Settings
    spec: api.MLModelSpec
    latest: str
    trigger: str
    stable: str
    record: Record | None
    weights: Mapping[str, int]
    previous: Object
    now: datetime

    def label(self, version: str) -> str:
        """``<name> (v<sequence>)``, for messages."""
        return f"{version} (v{self.sequence(version)})" if version in self.snapshot.versions else version

    def sequence(self, version: str) -> int:
        """The version's number for people; 0 when the version is gone."""
        return int(self.snapshot.versions.get(version, {}).get("spec", {}).get("sequence", 0))

    def ready_pods(self, version: str) -> int:
        """How many pods of the version take traffic."""
        return sum(failures.ready(pod) for pod in self.snapshot.pods.get(version, ()))

    def built(self, version: str) -> bool:
        """Whether the version passed its pipeline, and can be served."""
        return condition(self.snapshot.versions.get(version), "Ready").get("status") == "True"

    @property
    def recorded(self) -> bool:
        """Whether the last rollout's outcome is in `status.history`."""
        return (
            self.record is None
            or not self.record.outcome
            or any(
                (d["version"], d["time"]) == (self.record.version, self.record.finished_at)
                for d in self.previous.get("history") or ()
            )
        )

    @property
    def rolling(self) -> bool:
        """Whether a rollout is under way."""
        return self.record is not None and not self.record.outcome

    @property
    def rejected(self) -> bool:
        """Whether the latest version was rolled back; it is not tried again while the spec stays."""
        r = self.record
        return r is not None and r.outcome == "RolledBack" and r.version == self.latest


def plan_model(snapshot: ModelSnapshot, settings: Settings, now: datetime) -> Plan:
    """What to do about one MLModel."""
    model, plan = snapshot.model, Plan()
    book = Book(status_of(model).get("conditions") or (), model["metadata"].get("generation", 0), now)
    try:
        spec = api.decode(api.MLModelSpec, model["spec"])
    except api.SpecError as error:
        return _refuse(snapshot, book, "SpecInvalid", str(error))
    found = api.problems(spec, name_of(model))
    if found:
        reason = "InvalidName" if len(name_of(model)) > MODEL_NAME_LIMIT else "SpecInvalid"
        return _refuse(snapshot, book, reason, "; ".join(found))
    book.set("Accepted", "True", "SpecValid", "the spec is sound")

    facts = _facts(snapshot, settings, spec, now)
    verdict: rollout.Verdict | None = None
    if not spec.suspend:
        _ensure_version(facts, plan)
        _ensure_served(facts, plan)
        verdict = _route_traffic(facts, plan)
        _retire(facts, plan)
        _prune(facts, plan)
    plan.status = _status(facts, verdict, book, plan)
    return plan


def _facts(snapshot: ModelSnapshot, settings: Settings, spec: api.MLModelSpec, now: datetime) -> Facts:
    trigger = annotations_of(snapshot.model).get(ANNOTATION_RETRAIN, "")
    record = Record.from_json(virtualservice.record(snapshot.route))
    return Facts(
        snapshot=snapshot,
        settings=settings,
        spec=spec,
        latest=api.version_name(name_of(snapshot.model), spec, trigger),
        trigger=trigger,
        stable=_stable(snapshot, record),
        record=record,
        weights=virtualservice.weights(snapshot.route),
        previous=status_of(snapshot.model),
        now=now,
    )


def _stable(snapshot: ModelSnapshot, record: Record | None) -> str:
    """The apex Service says it. If somebody deleted that, the route's record does; then the last status."""
    if snapshot.apex is not None:
        return service.stable(snapshot.apex)
    if record is not None:
        return record.version if record.outcome == "Promoted" else record.previous
    remembered = str((status_of(snapshot.model).get("stable") or {}).get("version", ""))
    return remembered if remembered in snapshot.services else ""


# Children: what should exist.


def _ensure_version(facts: Facts, plan: Plan) -> None:
    """The version that the spec asks for; its name is a hash of what it is made of."""
    if facts.latest in facts.snapshot.versions:
        return
    sequence = 1 + max(map(facts.sequence, facts.snapshot.versions), default=0)
    manifest = modelversion.render(facts.snapshot.model, facts.spec, facts.latest, sequence, facts.trigger)
    plan.writes.append(Create(manifest))
    plan.events.append(Event("Normal", "VersionCreated", f"{facts.latest} (v{sequence}) was created"))


def _candidate(facts: Facts) -> str:
    """The version that traffic should move to; empty when there is none."""
    if facts.latest == facts.stable or facts.rejected or not facts.built(facts.latest):
        return ""
    return facts.latest


def _ensure_served(facts: Facts, plan: Plan) -> None:
    """An InferenceService for the stable version and for the candidate."""
    if "InferenceService" in facts.snapshot.missing:
        plan.look(facts.now + ADD_ON_RETRY)
        return
    for version in filter(None, dict.fromkeys((facts.stable, _candidate(facts)))):
        storage_uri = status_of(facts.snapshot.versions.get(version)).get("storageUri", "")
        if not storage_uri:
            continue  # Its ModelVersion is gone; what serves already, stays as it is.
        wanted = inferenceservice.render(facts.snapshot.model, facts.spec, version, storage_uri, facts.settings)
        if not inferenceservice.same(facts.snapshot.services.get(version), wanted):
            plan.writes.append(Apply(wanted))


# Traffic: one link of the chain a pass.


def _route_traffic(  # noqa: PLR0911  one link of the chain each, in order
    facts: Facts, plan: Plan
) -> rollout.Verdict | None:
    """Moves the rollout on by one step; returns the verdict about a candidate, if there is one."""
    record = facts.record
    if "VirtualService" in facts.snapshot.missing:
        plan.look(facts.now + ADD_ON_RETRY)
        return None
    if record and record.outcome == "Promoted" and facts.stable != record.version and not facts.recorded:
        _point_apex(facts, record.version, plan)  # The promotion was cut short between its two writes.
        return rollout.Verdict(Move.PROMOTE, FULL, record.reason, record.message)
    if record and not facts.recorded:
        return None  # Its outcome goes into status first; the next pass goes on.
    candidate = _candidate(facts)
    if record and facts.rolling and record.version != candidate:
        message = f"{facts.latest} was asked for while {facts.label(record.version)} rolled out"
        _close(facts, replace(record, outcome="Superseded", reason="OtherVersionAsked", message=message), plan)
        return None
    if candidate and not facts.stable:
        return _first(facts, candidate, plan)
    if candidate and not facts.rolling:
        now = precise(facts.now)
        record = Record(version=candidate, previous=facts.stable, started_at=now, step_started_at=now)
        _apply_route(facts, {facts.stable: FULL}, record, plan)
        return rollout.decide(replace(_view(facts, record), ready=False, serving=True, weight=0))
    if candidate and record:
        return _advance(facts, record, plan)
    if facts.stable:
        _keep_route(facts, plan)
    return None


def _first(facts: Facts, candidate: str, plan: Plan) -> rollout.Verdict:
    """A model's first version has nothing to be compared with: it is stable as soon as it is ready."""
    if not _is_ready(facts, candidate):
        trouble = _trouble(facts, candidate)
        message = f"waiting for the pods of {facts.label(candidate)}{f': {trouble}' if trouble else ''}"
        return rollout.Verdict(Move.HOLD, 0, "WaitingForPods", message)
    now = precise(facts.now)
    message = f"{facts.label(candidate)} is the first version, and its pods are ready"
    record = Record(
        version=candidate,
        previous="",
        started_at=now,
        step_started_at=now,
        outcome="Promoted",
        reason="FirstVersion",
        message=message,
        finished_at=stamp(facts.now),
    )
    _apply_route(facts, {candidate: FULL}, record, plan)
    _point_apex(facts, candidate, plan)
    return rollout.Verdict(Move.PROMOTE, FULL, "FirstVersion", message)


def _advance(facts: Facts, record: Record, plan: Plan) -> rollout.Verdict:
    """Lets the policies decide, and writes what they say."""
    verdict = rollout.decide(_view(facts, record))
    outcome = _OUTCOMES.get(verdict.move)
    if outcome:
        _close(facts, replace(record, outcome=outcome, reason=verdict.reason, message=verdict.message), plan)
    elif verdict.weight != facts.weights.get(record.version, 0):
        moved = replace(record, step_started_at=precise(facts.now))
        _apply_route(facts, _split(facts, record.version, verdict.weight), moved, plan)
        kind: Literal["Normal", "Warning"] = "Normal" if verdict.move is Move.ADVANCE else "Warning"
        plan.events.append(Event(kind, "TrafficMoved" if kind == "Normal" else verdict.reason, verdict.message))
    else:
        _apply_route(facts, _split(facts, record.version, verdict.weight), record, plan)
    _point_apex(facts, record.version if verdict.move is Move.PROMOTE else facts.stable, plan)
    plan.look(verdict.wait_until)
    return verdict


def _close(facts: Facts, record: Record, plan: Plan) -> None:
    """Ends a rollout: all traffic to one version, and the outcome beside the weights, in one write."""
    winner = record.version if record.outcome == "Promoted" else facts.stable
    _apply_route(facts, {winner: FULL}, replace(record, finished_at=stamp(facts.now)), plan)


def _keep_route(facts: Facts, plan: Plan) -> None:
    """Between rollouts: the stable version has everything, and the apex and the route say so.

    A rollback is forgotten once another version is asked for, so that coming
    back to the version that failed counts as asking for it anew.
    """
    record = facts.record
    if record and record.outcome != "Promoted" and record.version != facts.latest:
        record = None
    if facts.ready_pods(facts.stable) or facts.snapshot.route is not None:
        _apply_route(facts, {facts.stable: FULL}, record, plan)
    _point_apex(facts, facts.stable, plan)


def _apply_route(facts: Facts, weights: Mapping[str, int], record: Record | None, plan: Plan) -> None:
    """Applies the VirtualService unless it is just so already.

    Weights that a person set by hand are a fact like any other: during a
    rollout it goes on from them, between rollouts they are put back.
    """
    model, live = facts.snapshot.model, facts.snapshot.route
    forced = sorted(facts.snapshot.services.keys() | {v for v, weight in weights.items() if weight})
    wanted = virtualservice.render(model, weights, forced, record.to_json() if record else "", facts.settings)
    if live is None or not same(live, wanted) or virtualservice.drifted(live, wanted):
        plan.writes.append(Apply(wanted))


def _point_apex(facts: Facts, version: str, plan: Plan) -> None:
    wanted = service.render(facts.snapshot.model, version)
    live = facts.snapshot.apex
    if not same(live, wanted) or service.stable(live) != version:
        plan.writes.append(Apply(wanted))


def _split(facts: Facts, candidate: str, weight: int) -> dict[str, int]:
    return {facts.stable: FULL - weight, candidate: weight}


def _view(facts: Facts, record: Record) -> View:
    version, spec = record.version, facts.spec.rollout
    return View(
        candidate=facts.label(version),
        stable=facts.label(facts.stable),
        weight=facts.weights.get(version, 0),
        steps=() if spec.strategy == "recreate" else spec.steps,
        interval=spec.interval,
        max_duration=spec.max_duration,
        ready=_is_ready(facts, version),
        serving=facts.ready_pods(version) > 0,
        trouble=_trouble(facts, version),
        started_at=moment(record.started_at) or facts.now,
        step_started_at=moment(record.step_started_at) or facts.now,
        now=facts.now,
    )


def _is_ready(facts: Facts, version: str) -> bool:
    """Enough pods to take over: the autoscaler's lower bound, and at least one."""
    return version in facts.snapshot.services and facts.ready_pods(version) >= max(1, facts.spec.serving.replicas.min)


def _trouble(facts: Facts, version: str) -> str:
    """What keeps a version's pods from being Ready: the pods say it, else KServe does."""
    sighting = failures.worst(pod for pod in facts.snapshot.pods.get(version, ()) if not failures.ready(pod))
    if sighting:
        return failures.sentence(sighting.failure)
    failed = (status_of(facts.snapshot.services.get(version)).get("modelStatus") or {}).get("lastFailureInfo") or {}
    return str(failed.get("message", ""))


# Old versions.


def _retire(facts: Facts, plan: Plan) -> None:
    """Stops the pods of versions that take no traffic, `keepWarm` after they last did."""
    if not facts.recorded:
        return
    wanted = {facts.stable, _candidate(facts), facts.record.version if facts.record and facts.rolling else ""}
    for version, served in facts.snapshot.services.items():
        if version in wanted or facts.weights.get(version) or "deletionTimestamp" in served["metadata"]:
            continue
        last = next(
            (d for d in facts.previous.get("history") or () if version in (d["version"], d.get("previous"))), None
        )
        until = (moment(last["time"]) or facts.now) + facts.spec.rollout.keep_warm if last else facts.now
        if facts.now < until:
            plan.look(until)
            continue
        plan.cleanup.append(Delete(Ref.to(served)))
        plan.events.append(Event("Normal", "VersionRetired", f"the pods of {facts.label(version)} were stopped"))


def _prune(facts: Facts, plan: Plan) -> None:
    """Deletes the oldest versions beyond `revisionHistoryLimit`; never one that serves, rolls out or is asked for."""
    if not facts.recorded or facts.latest not in facts.snapshot.versions:
        return
    used = {facts.latest, facts.stable, *facts.snapshot.services, *(v for v, weight in facts.weights.items() if weight)}
    old = sorted((v for v in facts.snapshot.versions if v not in used), key=facts.sequence, reverse=True)
    for version in old[facts.spec.revision_history_limit :]:
        manifest = facts.snapshot.versions[version]
        if "deletionTimestamp" not in manifest["metadata"]:
            plan.cleanup.append(Delete(Ref.to(manifest)))


# Status.


def _refuse(snapshot: ModelSnapshot, book: Book, reason: str, message: str) -> Plan:
    """A spec that cannot be used changes nothing that runs: only conditions say so."""
    previous, plan = status_of(snapshot.model), Plan()
    book.set("Accepted", "False", reason, message)
    for kind in ("VersionReady", "Serving", "RolloutPassed"):
        book.keep(kind)
    book.set("Ready", "False", reason, message)
    plan.status = {
        **{k: v for k, v in previous.items() if k not in {"failure", "conditions"}},
        "observedGeneration": snapshot.model["metadata"].get("generation", 0),
        "stage": "Invalid",
        "conditions": conditions_json(book.conditions()),
    }
    if book.changed("Accepted"):
        plan.events.append(Event("Warning", reason, message))
    return plan


def _status(facts: Facts, verdict: rollout.Verdict | None, book: Book, plan: Plan) -> Object:
    history = _history(facts, plan)
    _version_condition(facts, book)
    _serving_condition(facts, book)
    _rollout_condition(facts, verdict, book)
    _ready_condition(facts, book)
    plan.events += _events(book)
    status = api.MLModelStatus(
        observed_generation=facts.snapshot.model["metadata"].get("generation", 0),
        stage=_word(facts, verdict, book),
        latest_version=facts.latest,
        latest_sequence=facts.sequence(facts.latest),
        url=virtualservice.url(facts.snapshot.model, facts.settings),
        conditions=book.conditions(),
        stable=_stable_status(facts, history),
        rollout=_rollout_status(facts, verdict),
        history=history,
        failure=_failure(facts, verdict),
    )
    return status_json(status)


def _history(facts: Facts, plan: Plan) -> tuple[api.Decision, ...]:
    """Decision records, newest first: what status has, and the outcome in the mesh if it is not among them."""
    kept = tuple(known(api.Decision, {"message": "", **d}) for d in facts.previous.get("history") or ())
    record = facts.record
    if record is None or record.outcome not in _DECISIONS or facts.recorded:
        return kept
    if record.outcome == "Promoted" and facts.stable != record.version:
        return kept  # Not before the apex Service has followed.
    decision = api.Decision(
        version=record.version,
        decision=cast("Literal['Promoted', 'RolledBack', 'Superseded']", record.outcome),
        reason=record.reason,
        message=record.message,
        time=record.finished_at,
        sequence=facts.sequence(record.version),
        previous=record.previous,
    )
    plan.events.append(Event("Warning" if record.outcome == "RolledBack" else "Normal", record.outcome, record.message))
    plan.look(facts.now)
    return (decision, *kept)[:HISTORY_LIMIT]


def _version_condition(facts: Facts, book: Book) -> None:
    """`VersionReady`: the latest version has passed its pipeline."""
    if facts.latest not in facts.snapshot.versions:
        reason, message = (
            ("Suspended", "spec.suspend is true") if facts.spec.suspend else ("Creating", "it is being created")
        )
        book.set("VersionReady", "Unknown", reason, f"{facts.latest}: {message}")
        return
    ready = condition(facts.snapshot.versions[facts.latest], "Ready")
    status = ready.get("status", "Unknown")
    message = ready.get("message", "its pipeline has not begun")
    book.set("VersionReady", status, ready.get("reason", "Pending"), f"{facts.label(facts.latest)}: {message}")


def _serving_condition(facts: Facts, book: Book) -> None:
    """`Serving`: the stable version has a pod that takes traffic."""
    if not facts.stable:
        failed = condition(facts.snapshot.versions.get(facts.latest), "Ready").get("status") == "False"
        book.set("Serving", "False" if failed else "Unknown", "NoStableVersion", "no version has been promoted yet")
    elif facts.ready_pods(facts.stable):
        book.set("Serving", "True", "PodsReady", f"{facts.label(facts.stable)} serves")
    else:
        trouble = _trouble(facts, facts.stable)
        message = f"{facts.label(facts.stable)} has no ready pod{f': {trouble}' if trouble else ''}"
        book.set("Serving", "False", "NoReadyPods", message)


def _rollout_condition(facts: Facts, verdict: rollout.Verdict | None, book: Book) -> None:
    """`RolloutPassed`: the latest version took over all the traffic."""
    missing = sorted(facts.snapshot.missing & {"InferenceService", "VirtualService"})
    if missing and facts.built(facts.latest):
        add_on = f"the cluster does not serve {missing[0]}: install {ADD_ONS[missing[0]]}"
        book.set("RolloutPassed", "False", "AddOnMissing", add_on)
    elif facts.rejected and facts.record:
        message = f"{facts.record.message}. It is not tried again until the spec or its retrain annotation changes"
        book.set("RolloutPassed", "False", "RolledBack", message)
    elif verdict is not None and verdict.move is Move.ROLLBACK:
        book.set("RolloutPassed", "False", "RolledBack", verdict.message)
    elif facts.latest == facts.stable:
        book.set("RolloutPassed", "True", "Promoted", f"{facts.label(facts.stable)} takes all the traffic")
    elif verdict is not None:
        book.set("RolloutPassed", "Unknown", verdict.reason, verdict.message)
    elif facts.spec.suspend:
        book.set("RolloutPassed", "Unknown", "Suspended", "spec.suspend is true: the traffic stays as it is")
    elif facts.built(facts.latest):
        book.set("RolloutPassed", "Unknown", "Starting", f"the rollout of {facts.label(facts.latest)} begins")
    else:
        book.set(
            "RolloutPassed", "Unknown", "WaitingForVersion", f"{facts.label(facts.latest)} is not ready to be served"
        )


def _ready_condition(facts: Facts, book: Book) -> None:
    """`Ready`: what the spec asks for is what serves. The first condition that is not True says why not."""
    parts = [c for kind in ("VersionReady", "RolloutPassed", "Serving") if (c := book.get(kind))]
    worst = next((c for c in parts if c.status == "False"), next((c for c in parts if c.status != "True"), None))
    if facts.spec.suspend and (worst is None or worst.status == "Unknown"):
        book.set(
            "Ready", "Unknown", "Suspended", "spec.suspend is true: nothing is started, what serves goes on serving"
        )
    elif worst is None:
        book.set("Ready", "True", "Serving", f"{facts.label(facts.stable)} serves what the spec asks for")
    else:
        serves = f" {facts.label(facts.stable)} goes on serving." if facts.stable and worst.type != "Serving" else ""
        book.set(
            "Ready", worst.status, worst.reason, f"{worst.message.rstrip('.')}.{serves}" if serves else worst.message
        )


def _stable_status(facts: Facts, history: Iterable[api.Decision]) -> api.StableStatus | None:
    if not facts.stable:
        return None
    promoted = next((d.time for d in history if (d.version, d.decision) == (facts.stable, "Promoted")), "")
    return api.StableStatus(version=facts.stable, sequence=facts.sequence(facts.stable), promoted_at=promoted)


def _rollout_status(facts: Facts, verdict: rollout.Verdict | None) -> api.RolloutStatus | None:
    """A rollout under way, as the mesh shows it."""
    record = facts.record
    if record is None or not facts.rolling:
        return None
    view = _view(facts, record)
    ends = rollout.eta(view) if record.version == facts.latest and not facts.spec.suspend else None
    return api.RolloutStatus(
        version=record.version,
        sequence=facts.sequence(record.version),
        step=rollout.step_of(view.weight, view.steps),
        steps=len(view.steps) + 1,
        weight=view.weight,
        started_at=record.started_at,
        step_started_at=record.step_started_at,
        eta=stamp(ends) if ends else "",
        message=verdict.message if verdict else "",
    )


def _failure(facts: Facts, verdict: rollout.Verdict | None) -> api.FailureStatus | None:
    """The cause to look at first: the latest version's, else its serving pods', else the stable version's."""
    raw = status_of(facts.snapshot.versions.get(facts.latest)).get("failure")
    if raw:
        return known(api.FailureStatus, {"message": "", "nextAction": "", **raw})
    struggling = facts.latest if verdict and verdict.move is Move.HOLD else facts.stable
    if facts.ready_pods(struggling):
        return None
    sighting = failures.worst(facts.snapshot.pods.get(struggling, ()), "serving")
    return sighting.failure if sighting else None


def _word(facts: Facts, verdict: rollout.Verdict | None, book: Book) -> str:
    """`status.stage`: one word for people; nothing branches on it."""
    ready, version = book.get("Ready"), book.get("VersionReady")
    if facts.spec.suspend:
        return "Suspended"
    if ready and ready.status == "True":
        return "Serving"
    if facts.rejected:
        return "RolledBack"
    if version and version.status == "False":
        return "Failed"
    if version and version.status == "True":
        return "RollingOut" if facts.stable and facts.stable != facts.latest else "Deploying"
    word = str(status_of(facts.snapshot.versions.get(facts.latest)).get("stage", "")) or "Pending"
    return "Deploying" if verdict else word


def _events(book: Book) -> list[Event]:
    """What changed for the model as a whole; its version and its rollout post their own."""
    events = []
    for kind in ("Accepted", "Serving", "Ready"):
        new = book.get(kind)
        if new is None or not book.changed(kind):
            continue
        if kind == "Serving" and new.status == "True":
            events.append(Event("Normal", "ServingStarted", new.message))
        elif kind == "Serving" and new.reason == "NoReadyPods":
            events.append(Event("Warning", "ServingStopped", new.message))
        elif kind == "Ready" and new.status == "False" and new.reason != "NoReadyPods":
            events.append(Event("Warning", new.reason, new.message))
    return events
