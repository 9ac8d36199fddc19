"""How traffic moves from the stable version to the candidate: one link of the chain a pass.

Called by `plan.model`. The decisions are in `mlplatform.rollout`; here they
become a VirtualService and an apex Service. Nothing rests on what an earlier
pass meant to do, only on what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final, Literal

from mlplatform import api, rollout
from mlplatform.actions import Apply, Event
from mlplatform.plan import wayback
from mlplatform.plan.facts import Facts
from mlplatform.plan.plan import ADD_ON_RETRY, PROXIES_LEARN, Plan
from mlplatform.resources import service, virtualservice
from mlplatform.resources.metadata import same
from mlplatform.rollout import FULL, Detour, Move, Record
from mlplatform.snapshot import Object, moment, precise, stamp, until

_OUTCOMES: Final[dict[Move, Literal["Promoted", "RolledBack"]]] = {
    Move.PROMOTE: "Promoted",
    Move.ROLLBACK: "RolledBack",
}


def move(  # noqa: PLR0911  one link of the chain each, in order
    facts: Facts, plan: Plan
) -> rollout.Verdict | None:
    """Moves the rollout on by one step; returns the verdict about a candidate, if there is one."""
    record = facts.record
    if "VirtualService" in facts.snapshot.missing:
        plan.look(facts.now + ADD_ON_RETRY)
        return None
    if record and record.winner not in {"", facts.stable} and not facts.recorded:
        _point_apex(facts, record.winner, plan)  # Its end was cut short between its two writes.
        promoted = record.outcome == "Promoted"
        return rollout.Verdict(Move.PROMOTE if promoted else Move.ROLLBACK, FULL, record.reason, record.message)
    if record and not facts.recorded:
        _hold(facts, record, plan)  # Its outcome goes into status first; the next pass goes on.
        return None
    asked = wayback.pending(facts)
    if asked:
        return _go_back(facts, asked, plan)
    candidate = facts.candidate
    if record and facts.rolling and record.version != candidate:
        wanted = "is no longer there" if record.version == facts.latest else f"made way: {facts.latest} was asked for"
        message = f"{facts.label(record.version)} {wanted}"
        _close(facts, replace(record, outcome="Superseded", reason="OtherVersionAsked", message=message), plan)
        return None
    if candidate and not facts.stable:
        return _first(facts, candidate, plan)
    if candidate and not facts.rolling:
        now = precise(facts.now)
        detour = Detour(weight=0, since=now) if facts.home == candidate else None
        record = Record(version=candidate, previous=facts.stable, started_at=now, step_started_at=now, detour=detour)
        _apply_route(facts, {facts.home: FULL}, record, plan)
        return rollout.Verdict(Move.HOLD, 0, "Starting", f"the rollout of {facts.label(candidate)} begins")
    if candidate and record:
        return _advance(facts, record, plan)
    if facts.stable:
        _keep_route(facts, plan)
    return None


def _first(facts: Facts, candidate: str, plan: Plan) -> rollout.Verdict:
    """A model's first version has nothing to be compared with: it is stable as soon as it is ready."""
    if not facts.is_ready(candidate):
        pods, needs = facts.ready_pods(candidate), max(1, facts.spec.serving.replicas.min)
        message = rollout.waiting(facts.label(candidate), pods, needs, facts.trouble(candidate))
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
    verdict = rollout.decide(facts.view(record))
    outcome = _OUTCOMES.get(verdict.move)
    if outcome:
        tried = rollout.attempt(facts.spec) if outcome == "RolledBack" else ""
        ended = replace(record, outcome=outcome, reason=verdict.reason, message=verdict.message, tried=tried)
        _close(facts, ended, plan)
    elif verdict.weight != facts.weights.get(record.version, 0):
        _shift(facts, record, verdict, plan)
    else:
        _apply_route(facts, _split(facts, record.version, verdict.weight), record, plan)
    _point_apex(facts, record.version if verdict.move is Move.PROMOTE else facts.stable, plan)
    plan.look(verdict.wait_until)
    return verdict


def _go_back(facts: Facts, asked: api.WayBack, plan: Plan) -> rollout.Verdict:
    """Somebody asked for another version than the latest: all the traffic goes to it once its pods can take that."""
    target = facts.label(asked.to)
    pods, needs = facts.ready_pods(asked.to), rollout.share(FULL, facts.ready_pods(facts.stable))
    if asked.to != facts.stable and pods < needs:
        _keep_route(facts, plan)
        message = f"going back to {target}: {rollout.waiting(target, pods, needs, facts.trouble(asked.to))}"
        return rollout.Verdict(Move.HOLD, 0, rollout.ROLLING_BACK, message)
    now, began = precise(facts.now), facts.record if facts.record and facts.rolling else None
    record = Record(
        version=asked.from_,
        previous=asked.to,
        started_at=began.started_at if began else now,
        step_started_at=now,
        outcome="RolledBack",
        reason=api.ROLLED_BACK_BY_USER,
        message=f"{facts.label(asked.from_)} was rolled back to {target}, as somebody had asked for",
    )
    _close(facts, record, plan)
    _point_apex(facts, asked.to, plan)
    return rollout.Verdict(Move.ROLLBACK, 0, record.reason, record.message)


def protect(facts: Facts, plan: Plan) -> None:
    """Moves nothing on, but keeps what serves serving: for a model that is suspended, or whose spec is refused."""
    record = facts.record
    if "VirtualService" in facts.snapshot.missing or not facts.stable:
        return
    if record and not facts.recorded:
        _hold(facts, record, plan)
    elif record and facts.rolling:
        view = facts.view(record)
        verdict = rollout.protect(view)
        if verdict and verdict.weight != view.weight:
            _shift(facts, record, verdict, plan)
        else:
            _apply_route(facts, _split(facts, record.version, view.weight), record, plan)
        _point_apex(facts, facts.stable, plan)
    else:
        _keep_route(facts, plan, forget=False)


def _hold(facts: Facts, record: Record, plan: Plan) -> None:
    """What has been decided stays in place, however long it takes until the status says so."""
    winner = _heir(facts, record)
    if winner:
        _apply_route(facts, {winner: FULL}, record, plan)
        _point_apex(facts, facts.stable or winner, plan)


def _shift(facts: Facts, record: Record, verdict: rollout.Verdict, plan: Plan) -> None:
    """Gives the candidate another weight, and remembers what the rollout needs to go on from there."""
    now, weight = precise(facts.now), facts.weights.get(record.version, 0)
    if verdict.move is Move.ADVANCE:
        moved = replace(record, step_started_at=now)
    elif verdict.move is Move.DIVERT:
        moved = replace(record, detour=record.detour or Detour(weight=weight, since=now))
    elif verdict.move is Move.RETURN:
        moved = replace(record, step_started_at=_resumed(record, facts.now), detour=None)
    else:
        moved = replace(record, step_started_at=now, setbacks=record.setbacks + 1, detour=None)
    forward = verdict.move in {Move.ADVANCE, Move.RETURN}
    event = (
        Event("Normal", "TrafficMoved", verdict.message)
        if forward
        else Event("Warning", verdict.reason, verdict.message)
    )
    _apply_route(facts, _split(facts, record.version, verdict.weight), moved, plan, event)


def _resumed(record: Record, now: datetime) -> str:
    """When the present step would have begun, had the candidate never stood in for the stable version."""
    since = moment(record.detour.since) if record.detour else None
    return precise((moment(record.step_started_at) or now) + (now - (since or now)))


def _close(facts: Facts, record: Record, plan: Plan) -> None:
    """Ends a rollout: all traffic to one version, and the outcome beside the weights, in one write."""
    ended = replace(record, finished_at=stamp(facts.now), step_started_at=precise(facts.now), detour=None)
    _apply_route(facts, {_heir(facts, record): FULL}, ended, plan)


def _heir(facts: Facts, record: Record) -> str:
    """Who takes all the traffic at a rollout's end: whom that made stable, if it can."""
    winner = record.winner
    return winner if winner and (record.outcome == "Promoted" or facts.ready_pods(winner)) else facts.home


def _keep_route(facts: Facts, plan: Plan, *, forget: bool = True) -> None:
    """Between rollouts: the stable version has everything, and the apex and the route say so.

    A rollback is forgotten once another version is asked for, so that coming
    back to the version that failed counts as asking for it anew.
    """
    record = facts.record
    over = record and record.outcome != "Promoted" and record.version != facts.latest
    if forget and record and over and _settled(facts, record, plan):
        record = None
    if record and facts.weights.get(facts.home) != FULL:
        record = replace(record, step_started_at=precise(facts.now))
    if facts.ready_pods(facts.stable) or facts.snapshot.route is not None:
        _apply_route(facts, {facts.home: FULL}, record, plan, _moved(facts))
    _point_apex(facts, facts.stable, plan)


def _moved(facts: Facts) -> Event | None:
    """What there is to say where, between rollouts, the traffic goes elsewhere than before; None where it stays."""
    if not facts.weights or facts.weights.get(facts.home) == FULL:
        return None
    stable, home = facts.label(facts.stable), facts.label(facts.home)
    if facts.home == facts.stable:
        return Event("Normal", "TrafficMoved", f"{stable} takes all the traffic again")
    trouble = facts.trouble(facts.stable)
    message = f"{stable} has no ready pod; {home} takes all the traffic until it has{f': {trouble}' if trouble else ''}"
    return Event("Warning", "StableNotReady", message)


def _settled(facts: Facts, record: Record, plan: Plan) -> bool:
    """Whether the stable version has all the traffic, and every proxy knows: pods that had some wait for that."""
    if facts.home != facts.stable or facts.weights.get(facts.stable) != FULL:
        return False
    known = until(moment(record.step_started_at) or facts.now, PROXIES_LEARN, facts.now)
    if facts.now < known:
        plan.look(known)
    return facts.now >= known


def _apply_route(
    facts: Facts, weights: Mapping[str, int], record: Record | None, plan: Plan, event: Event | None = None
) -> None:
    """Applies the VirtualService unless it is just so already.

    Weights that a person set by hand are a fact like any other: during a
    rollout it goes on from them, between rollouts they are put back.
    """
    model, live = facts.snapshot.model, facts.snapshot.route
    forced = sorted(facts.snapshot.services.keys() | {v for v, weight in weights.items() if weight})
    told = record.to_json() if record else ""
    wanted = virtualservice.render(model, weights, forced, told, facts.settings, host=facts.host)
    if live is None or not same(live, wanted) or virtualservice.drifted(live, wanted):
        plan.traffic.append(Apply(_unless_changed(wanted, live), event))


def _point_apex(facts: Facts, version: str, plan: Plan) -> None:
    wanted = service.render(facts.snapshot.model, version)
    live = facts.snapshot.apex
    if not same(live, wanted) or service.stable(live) != version:
        plan.traffic.append(Apply(_unless_changed(wanted, live)))


def _unless_changed(wanted: Object, live: Object | None) -> Object:
    """The manifest, to be applied only over the state that was looked at: a stale view must not move traffic."""
    if live is None:
        return wanted
    return {**wanted, "metadata": {**wanted["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}


def _split(facts: Facts, candidate: str, weight: int) -> dict[str, int]:
    home = facts.stable if weight else facts.home
    return {home: FULL} if candidate == home else {home: FULL - weight, candidate: weight}
