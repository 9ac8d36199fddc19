"""ModelSnapshot → Plan: which version is wanted, which one serves, and how traffic moves between them.

Called by `mlplatform.reconciler` for each MLModel.

What is true lies in the children, and only there: the apex Service says which
version is stable, the VirtualService how traffic is split and (in an
annotation written with the weights) when and how the last rollout went. Each
pass moves one link of that chain, so a restart between any two writes finds
its way on from what it sees.
"""

from __future__ import annotations

from datetime import datetime

from mlplatform import api, rollout
from mlplatform.actions import Event
from mlplatform.conditions import Book
from mlplatform.plan import children, traffic, wayback
from mlplatform.plan.facts import Facts, gather
from mlplatform.plan.model_status import OBSERVED, describe, host_condition, observed
from mlplatform.plan.plan import LEFTOVERS, Plan, conditions_json
from mlplatform.resources import names
from mlplatform.settings import Settings
from mlplatform.snapshot import ModelSnapshot, name_of, namespace_of, status_of


def plan_model(snapshot: ModelSnapshot, settings: Settings, now: datetime) -> Plan:
    """What to do about one MLModel."""
    model, plan = snapshot.model, Plan()
    book = Book(status_of(model).get("conditions") or (), model["metadata"].get("generation", 0), now)
    try:
        spec = api.decode(api.MLModelSpec, model["spec"])
    except api.SpecError as error:
        return _refuse(snapshot, book, "SpecInvalid", str(error))
    facts = gather(snapshot, settings, spec, now)
    found = [*_too_long(facts), *api.problems(spec, name_of(model), facts.trigger)]
    if found:
        reason = "InvalidName" if found[0].startswith("metadata.name") else "SpecInvalid"
        return _refuse(snapshot, book, reason, "; ".join(found), facts)
    book.set("Accepted", "True", "SpecValid", "the spec is sound")

    verdict: rollout.Verdict | None = None
    if spec.suspend:
        _keep_serving(facts, plan)
    else:
        verdict = traffic.move(facts, plan)
        children.adopt(facts, plan)
        for version in dict.fromkeys((facts.stable, wayback.target(facts), facts.candidate)):
            children.ensure_served(facts, plan, version)
        children.ensure_version(facts, plan)
        children.retire(facts, plan)
        children.prune(facts, plan)
        children.renew(facts, plan)
        children.unpublish(facts, plan)
        children.forget_runtimes(facts, plan)
        wayback.conclude(facts, plan)
    plan.status = describe(facts, verdict, book, plan)
    return plan


def _too_long(facts: Facts) -> list[str]:
    """The name, where a controller would make nothing of it in this namespace: said before anything is trained.

    Once a version has served, it evidently fits: all versions' names are equally long.
    """
    name, namespace = name_of(facts.snapshot.model), namespace_of(facts.snapshot.model)
    left, limit, what = names.room(namespace, facts.settings.domain)
    if len(name) <= left or facts.stable:
        return []
    allowed = f"only {left} are left" if left > 0 else f"none fits: {-left} too many are taken without it"
    action = f"Choose a name or a namespace that is shorter by {len(name) - left}"
    reason = f"{what} may have {limit} in all"
    return [
        f"metadata.name: {name!r} has {len(name)} characters, and in namespace {namespace!r} {allowed}, because {reason}. {action}"
    ]


def _keep_serving(facts: Facts, plan: Plan) -> None:
    """Nothing new is begun, but what takes traffic is put back where somebody deleted it, and its traffic is protected."""
    children.adopt(facts, plan)
    for version in dict.fromkeys([facts.stable, *(name for name, weight in facts.weights.items() if weight)]):
        if version not in facts.snapshot.services:
            children.ensure_served(facts, plan, version)
    traffic.protect(facts, plan)


def _refuse(snapshot: ModelSnapshot, book: Book, reason: str, message: str, facts: Facts | None = None) -> Plan:
    """A spec that cannot be used changes nothing that runs: only conditions say so.

    Args:
        snapshot: What the cluster shows.
        book: The conditions.
        reason: Of `Accepted` and `Ready`.
        message: Likewise.
        facts: By which what serves is looked after all the same; None when the spec cannot even be decoded.
    """
    previous, plan = status_of(snapshot.model), Plan()
    book.set("Accepted", "False", reason, message)
    if facts is not None:
        _keep_serving(facts, plan)
        previous = {**{k: v for k, v in previous.items() if k not in OBSERVED}, **observed(facts, book, plan)}
        host_condition(facts, book)
    for kind in ("VersionReady", "Serving", "RolloutPassed"):
        if book.get(kind) is None:
            book.keep(kind)
    refused = f"; {facts.told.message}" if facts and facts.told else ""
    book.set("Ready", "False", reason, f"{message}{refused}")
    book.stall()
    book.keep(LEFTOVERS)
    plan.status = {
        **{k: v for k, v in previous.items() if k not in {"failure", "conditions"}},
        "observedGeneration": snapshot.model["metadata"].get("generation", 0),
        "stage": "Invalid",
        "conditions": conditions_json(book.conditions()),
    }
    if book.changed("Accepted"):
        plan.events.append(Event("Warning", reason, message))
    return plan
