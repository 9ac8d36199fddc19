"""What an MLModel says of itself: conditions, rollout, history, and one word.

Called by `plan.model`, after the children are planned.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mlplatform import api, failures, rollout
from mlplatform.actions import Event
from mlplatform.conditions import Book, Status
from mlplatform.failures import Gravity
from mlplatform.plan.facts import Facts
from mlplatform.plan.plan import LEFTOVERS, Plan, status_json
from mlplatform.resources import KINDS, virtualservice
from mlplatform.rollout import Move
from mlplatform.snapshot import Object, condition, stamp, status_of

OBSERVED: Final = ("stable", "rollout", "history")
"""Keys of the status that say what is there, not what the spec asks for."""

_UNSERVED: Final = {"NoReadyPods", "StableNotReady"}
"""Reasons of `Serving` where the stable version has no pod; its own event tells of that."""

HISTORY_LIMIT: Final = 20
"""Decision records kept."""


def describe(facts: Facts, verdict: rollout.Verdict | None, book: Book, plan: Plan) -> Object:
    """The next status as JSON; the events of what changed go into the plan."""
    history = _history(facts, plan)
    _version_condition(facts, book)
    _serving_condition(facts, book)
    _rollout_condition(facts, verdict, book)
    host_condition(facts, book)
    _stand_still(facts, book)
    _ready_condition(facts, book)
    _stalled_condition(facts, book)
    book.keep(LEFTOVERS)
    plan.events += _events(book)
    status = api.MLModelStatus(
        observed_generation=facts.snapshot.model["metadata"].get("generation", 0),
        stage=_word(facts, verdict, book),
        latest_version=facts.latest,
        latest_sequence=facts.sequence(facts.latest),
        highest_sequence=facts.highest_sequence,
        url=virtualservice.url(facts.snapshot.model, facts.settings, facts.host),
        conditions=book.conditions(),
        stable=_stable_status(facts, history),
        rollout=_rollout_status(facts, verdict),
        history=history,
        failure=_failure(facts, verdict),
    )
    return status_json(status)


def observed(facts: Facts, book: Book, plan: Plan) -> Object:
    """The parts of the status that hold whether or not the spec can be used, as JSON; sets `Serving`."""
    history = _history(facts, plan)
    _serving_condition(facts, book)
    plan.events += [event for event in _events(book) if event.reason in {"ServingStarted", "ServingStopped"}]
    status = api.MLModelStatus(
        stable=_stable_status(facts, history), rollout=_rollout_status(facts, None), history=history
    )
    return {key: value for key, value in status_json(status).items() if key in OBSERVED}


def _history(facts: Facts, plan: Plan) -> tuple[api.Decision, ...]:
    """Decision records, newest first: what status has, and the outcome in the mesh if it is not among them."""
    recorded = facts.previous.get("history") or ()
    kept = tuple(api.decode(api.Decision, d, "status.history", unknown="show") for d in recorded)
    record = facts.record
    if record is None or not record.outcome or facts.recorded:
        return kept
    if record.winner not in {"", facts.stable}:
        return kept  # Not before the apex Service has followed.
    decision = api.Decision(
        version=record.version,
        decision=record.outcome,
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
        trouble, stands_in = facts.trouble(facts.stable), facts.home != facts.stable
        meanwhile = f"; {facts.label(facts.home)} answers for it through the gateway meanwhile" if stands_in else ""
        message = f"{facts.label(facts.stable)} has no ready pod{meanwhile}{f': {trouble}' if trouble else ''}"
        book.set("Serving", "False", "StableNotReady" if stands_in else "NoReadyPods", message)


def _rollout_condition(facts: Facts, verdict: rollout.Verdict | None, book: Book) -> None:
    """`RolloutPassed`: the latest version took over all the traffic."""
    missing = sorted(facts.snapshot.missing & {"InferenceService", "VirtualService"})
    if missing and facts.built(facts.latest):
        add_on = f"the cluster does not serve {missing[0]}: install {KINDS[missing[0]].add_on}"
        book.set("RolloutPassed", "False", "AddOnMissing", add_on)
    elif verdict is not None and verdict.reason == rollout.ROLLING_BACK:
        book.set("RolloutPassed", "Unknown", verdict.reason, verdict.message)
    elif facts.rejected and facts.record:
        held = "another version is asked for" if facts.record.reason == api.ROLLED_BACK_BY_USER else "the spec changes"
        message = f"{facts.record.message}. It is not tried again until {held}, or a retrain"
        book.set("RolloutPassed", "False", "RolledBack", message)
    elif verdict is not None and verdict.move is Move.ROLLBACK:
        book.set("RolloutPassed", "False", "RolledBack", verdict.message)
    elif facts.latest == facts.stable:
        has = "takes all the traffic" if facts.home == facts.stable else "was promoted"
        book.set("RolloutPassed", "True", "Promoted", f"{facts.label(facts.stable)} {has}")
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


def host_condition(facts: Facts, book: Book) -> None:
    """`HostAssigned`: the model has the host that it asks for; absent where it asks for none."""
    if facts.grant:
        book.set("HostAssigned", "True" if facts.host else "False", facts.grant.reason, facts.grant.message)


def _stand_still(facts: Facts, book: Book) -> None:
    """What waits for a write that the API server has refused says so, and nothing tells of a step that was not taken."""
    refusal, rolling = facts.standing, book.get("RolloutPassed")
    if facts.told and facts.told.kind == "ModelVersion" and facts.latest not in facts.snapshot.versions:
        book.set("VersionReady", "Unknown", facts.told.reason, f"{facts.latest}: {facts.told.message}")
    if refusal is None or rolling is None or rolling.status == "True" or facts.rejected:
        return
    if refusal.told:
        book.set("RolloutPassed", "Unknown", refusal.reason, f"the rollout stands: {refusal.message}")
    else:
        book.keep("RolloutPassed")


def _ready_condition(facts: Facts, book: Book) -> None:
    """`Ready`: what the spec asks for is what serves. The first condition that is not True says why not."""
    if facts.told:
        serving = book.get("Serving")
        down = f"{serving.message}; " if serving and serving.reason in _UNSERVED else ""
        serves = f". {facts.label(facts.stable)} goes on serving." if facts.stable and not down else ""
        book.set("Ready", "False", facts.told.reason, f"{down}{facts.told.message.rstrip('.')}{serves}")
        return
    parts = [c for kind in ("VersionReady", "RolloutPassed", "Serving", "HostAssigned") if (c := book.get(kind))]
    worst = next((c for c in parts if c.status == "False"), next((c for c in parts if c.status != "True"), None))
    if facts.spec.suspend and (worst is None or worst.status == "Unknown"):
        book.set(
            "Ready", "Unknown", "Suspended", "spec.suspend is true: nothing is started, what serves goes on serving"
        )
    elif worst is None and (ailing := facts.sighting(facts.stable)):
        status: Status = "Unknown" if ailing.gravity is Gravity.PENDING else "False"
        message = f"{facts.label(facts.stable)} serves, but not with all its pods: {failures.sentence(ailing.failure)}"
        book.set("Ready", status, ailing.failure.class_, message)
    elif worst is None:
        book.set("Ready", "True", "Serving", f"{facts.label(facts.stable)} serves what the spec asks for")
    else:
        answers = facts.ready_pods(facts.stable) and worst.type != "Serving"
        serves = f" {facts.label(facts.stable)} goes on serving." if answers else ""
        book.set(
            "Ready", worst.status, worst.reason, f"{worst.message.rstrip('.')}.{serves}" if serves else worst.message
        )


def _stalled_condition(facts: Facts, book: Book) -> None:
    """`Stalled`: what the spec asks for was tried and is not tried again by itself, or must not be written."""
    rollout_passed = book.get("RolloutPassed")
    if facts.told and facts.told.lasting:
        book.stall()
    elif rollout_passed and rollout_passed.reason == "RolledBack":
        book.stall("RolloutPassed")
    elif condition(facts.snapshot.versions.get(facts.latest), "Stalled").get("status") == "True":
        book.stall("VersionReady")
    elif facts.grant and not facts.host and rollout_passed and rollout_passed.status == "True":
        book.stall("HostAssigned")


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
    view = facts.view(record)
    going_on = record.version == facts.latest and not facts.spec.suspend and not facts.standing
    ends = rollout.eta(view) if going_on else None
    message = facts.standing.message if facts.standing else verdict.message if verdict else ""
    return api.RolloutStatus(
        version=record.version,
        sequence=facts.sequence(record.version),
        step=rollout.step_of(view.detour.weight if view.detour else view.weight, view.steps),
        steps=len(view.steps) + 1,
        weight=view.weight,
        started_at=record.started_at,
        step_started_at=record.step_started_at,
        eta=stamp(ends) if ends else "",
        message=message,
    )


def _failure(facts: Facts, verdict: rollout.Verdict | None) -> api.FailureStatus | None:
    """The cause to look at first: the latest version's, else its serving pods', else the stable version's."""
    raw = status_of(facts.snapshot.versions.get(facts.latest)).get("failure")
    if raw:
        return api.decode(api.FailureStatus, raw, "status.failure", unknown="skip")
    record, told = facts.record, facts.previous.get("failure")
    if facts.rejected and record and record.reason != api.ROLLED_BACK_BY_USER and told:
        # Why it was rolled back; its pods and their logs go.
        return api.decode(api.FailureStatus, told, "status.failure", unknown="skip")
    trying = verdict is not None and verdict.move in {Move.HOLD, Move.ROLLBACK}
    sighting = facts.sighting(facts.latest if trying else facts.stable)
    return sighting.failure if sighting else None


def _word(facts: Facts, verdict: rollout.Verdict | None, book: Book) -> str:
    """`status.stage`: one word for people; nothing branches on it."""
    ready, version = book.get("Ready"), book.get("VersionReady")
    if facts.spec.suspend:
        return "Suspended"
    if ready and ready.status == "True":
        return "Serving"
    if verdict and verdict.reason == rollout.ROLLING_BACK:
        return rollout.ROLLING_BACK
    if facts.rejected:
        return "RolledBack"
    if version and version.status == "True":
        rolling = "RollingOut" if facts.stable else "Deploying"
        return "Degraded" if facts.stable == facts.latest else rolling
    # The version's own word, which is Failed only when it is for good.
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
        elif kind == "Ready" and new.status == "False" and new.reason not in _UNSERVED:
            events.append(Event("Warning", new.reason, new.message))
    return events
