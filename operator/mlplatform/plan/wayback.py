"""The way back that somebody asked for with `kubectl mlmodel rollback`: whether it can be gone, and when it is over.

Called by `plan.model`, `plan.children` and `plan.traffic`, which moves the traffic. The request is an annotation on the
MLModel. It is carried out once: its outcome is the route's record, as of any rollout, and then the annotation is taken
off, as it is where it cannot be carried out.
"""

from __future__ import annotations

from mlplatform import api
from mlplatform.actions import Event, Patch, Ref
from mlplatform.contract import ANNOTATION_ROLLBACK
from mlplatform.plan.facts import Facts
from mlplatform.plan.plan import Plan


def pending(facts: Facts) -> api.WayBack | None:
    """The request, while it can be carried out and has not been."""
    asked = api.WayBack.parse(facts.way_back)
    return None if asked is None or _done(facts, asked) or refusal(facts) else asked


def target(facts: Facts) -> str:
    """The version to go back to; empty when nobody asks for that."""
    asked = pending(facts)
    return asked.to if asked else ""


def refusal(facts: Facts) -> str:
    """Why the request cannot be carried out; empty when it can."""
    asked, latest = api.WayBack.parse(facts.way_back), facts.label(facts.latest)
    if asked is None:
        return f"{facts.way_back!r} is not <from>-><to>, two versions; kubectl mlmodel rollback writes it"
    if asked.from_ != facts.latest:
        return f"it was asked to go back from {asked.from_}, but {latest} is the version that is wanted now"
    if asked.to == asked.from_ or not facts.built(asked.to):
        there = [v for v in facts.snapshot.versions if facts.built(v) and v != facts.latest]
        known = (
            f"there {'are' if len(there) > 1 else 'is'} {', '.join(sorted(there))}" if there else "there is no other"
        )
        leaving = ", whose artifacts are being deleted," if facts.forgotten(asked.to) else ""
        return f"{asked.to}{leaving} is not a version that could serve instead of {latest}; {known}"
    if not facts.stable:
        return f"no version serves yet, so there is nothing to go back from; {latest} is the first"
    if facts.rolling and asked.to != facts.stable:
        stable = facts.label(facts.stable)
        return f"a rollout is under way, and the way back from it leads to {stable} alone, not to {asked.to}"
    return ""


def conclude(facts: Facts, plan: Plan) -> None:
    """Takes the annotation off once it was carried out, or where it cannot be, and says why."""
    if not facts.way_back or not facts.recorded:
        return
    asked, why = api.WayBack.parse(facts.way_back), refusal(facts)
    done = asked is not None and _done(facts, asked)
    if not done and not why:
        return
    model = facts.snapshot.model
    metadata = {"resourceVersion": model["metadata"]["resourceVersion"], "annotations": {ANNOTATION_ROLLBACK: None}}
    refused = None if done else Event("Warning", "RollbackRefused", why)
    plan.cleanup.append(Patch(Ref.to(model), {"metadata": metadata}, refused))


def _done(facts: Facts, asked: api.WayBack) -> bool:
    record = facts.record
    return record is not None and (record.reason, record.version, record.previous) == (
        api.ROLLED_BACK_BY_USER,
        asked.from_,
        asked.to,
    )
