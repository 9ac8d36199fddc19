"""The versions of a model, and the pods that serve them: what should exist, and what may go.

Called by `plan.model`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from mlplatform import api, contract, rollout
from mlplatform.actions import Apply, Create, Delete, Event, Patch, Ref
from mlplatform.plan import forgetting, wayback
from mlplatform.plan.facts import Facts
from mlplatform.plan.plan import ADD_ON_RETRY, PROXIES_LEARN, Plan
from mlplatform.resources import adoption, inferenceservice, modelversion, servingruntime
from mlplatform.resources.metadata import is_stray_of, taken_over
from mlplatform.snapshot import moment, name_of, namespace_of, status_of, until

TURN_SECONDS: Final = 60
"""How long a model's turn to replace pods of an earlier release lasts."""


def adopt(facts: Facts, plan: Plan) -> None:
    """Takes over what has the model's labels and nobody's owner reference; its Service and its route are applied anew."""
    model = facts.snapshot.model
    for version in facts.snapshot.versions.values():
        if is_stray_of(version, model):
            told = Event("Normal", "VersionAdopted", f"{facts.label(name_of(version))} had no owner")
            plan.writes.append(replace(taken_over(version, model, **adoption.mark(version)), event=told))
    serving = (*facts.snapshot.services.values(), *facts.snapshot.runtimes.values())
    plan.writes += [taken_over(child, model) for child in serving if is_stray_of(child, model)]


def ensure_version(facts: Facts, plan: Plan) -> None:
    """The version that the spec asks for; its name is a hash of what it is made of."""
    if facts.latest in facts.snapshot.versions:
        return
    sequence = 1 + facts.highest_sequence
    manifest = modelversion.render(facts.snapshot.model, facts.spec, facts.latest, sequence, facts.trigger)
    created = Event("Normal", "VersionCreated", f"{facts.latest} (v{sequence}) was created")
    plan.writes.append(Create(manifest, created))


def ensure_served(facts: Facts, plan: Plan, version: str) -> None:
    """The InferenceService of a version; nothing for the empty name."""
    if "InferenceService" in facts.snapshot.missing:
        plan.look(facts.now + ADD_ON_RETRY)
        return
    storage_uri = status_of(facts.snapshot.versions.get(version)).get("storageUri", "")
    if not storage_uri:
        return  # Its ModelVersion is gone; what serves already, stays as it is.
    live = facts.snapshot.services.get(version)
    if live is None:
        _serve(facts, plan, version, storage_uri)
        return
    change = inferenceservice.change(live, _spec(facts, version), storage_uri, facts.settings)
    if change:
        plan.writes.append(Patch(Ref.to(live), change))


def renew(facts: Facts, plan: Plan) -> None:
    """Makes pods of an earlier release anew where that is due, one version at a time, in the model's turn.

    That is due once for versions that KServe still publishes past the gateway (they are told apart by a label, which it
    hands on to the pods), and with `serving.runtimeUpdate: Roll` for another runtime. KServe replaces pods one after
    another, each when its successor is ready.
    """
    present = name_of(servingruntime.render(facts.snapshot.model, facts.settings))
    roll = facts.spec.serving.runtime_update == "Roll"
    services = {v: s for v, s in facts.snapshot.services.items() if "deletionTimestamp" not in s["metadata"]}
    due = [v for v, served in services.items() if inferenceservice.outdated(served, present, roll=roll)]
    if not due or facts.rolling or facts.candidate:
        return
    if any(not _settled(facts, v) for v in services):
        return  # Its pods' events bring us back.
    turn = _turn(facts)
    plan.look(turn)
    if facts.now < turn:
        return
    version = min(due, key=facts.sequence)
    told = Event("Normal", "PodsRenewed", f"the pods of {facts.label(version)} are replaced: {present}")
    _serve(facts, plan, version, inferenceservice.storage_uri(services[version]), told)


def unpublish(facts: Facts, plan: Plan) -> None:
    """Takes away what KServe has published a version by, once KServe has been told not to; it does not do so itself."""
    for version, ingress in facts.snapshot.ingresses.items():
        served = facts.snapshot.services[version]
        if inferenceservice.is_local(served) and "deletionTimestamp" not in ingress["metadata"]:
            told = Event("Normal", "IngressRemoved", f"{facts.label(version)} answers through the gateway only")
            plan.cleanup.append(Delete(Ref.to(ingress), told))


def forget_runtimes(facts: Facts, plan: Plan) -> None:
    """Deletes the runtimes of earlier releases that nothing of the model names any more."""
    named = {inferenceservice.runtime(served) for served in facts.snapshot.services.values()}
    named.add(name_of(servingruntime.render(facts.snapshot.model, facts.settings)))
    for name, runtime in facts.snapshot.runtimes.items():
        if name not in named and "deletionTimestamp" not in runtime["metadata"]:
            plan.cleanup.append(Delete(Ref.to(runtime)))


def _serve(facts: Facts, plan: Plan, version: str, storage_uri: str, told: Event | None = None) -> None:
    """The InferenceService as this release makes it, and before it the runtime that it names."""
    model, live = facts.snapshot.model, facts.snapshot.services.get(version)
    runtime = servingruntime.render(model, facts.settings)
    if name_of(runtime) not in facts.snapshot.runtimes:
        plan.writes.append(Create(runtime))
    spec = _spec(facts, version)
    plan.writes.append(
        Apply(inferenceservice.render(model, spec, version, storage_uri, facts.settings, live=live), told)
    )


def _settled(facts: Facts, version: str) -> bool:
    """Whether the version has pods, all of them from the runtime that its InferenceService names."""
    runtime = inferenceservice.runtime(facts.snapshot.services[version])
    pods = [p for p in facts.snapshot.pods.get(version, ()) if status_of(p).get("phase") not in {"Failed", "Succeeded"}]
    return bool(pods) and all(servingruntime.of_pod(p) == runtime for p in pods)


def _turn(facts: Facts) -> datetime:
    """When it is the model's turn to replace pods: now, or when its minute comes round again.

    The minutes of a fleet's models are spread over `renewal_seconds` by their names, so that nobody has to keep a list.
    """
    around = facts.settings.renewal_seconds
    model = facts.snapshot.model
    place = int(contract.digest([namespace_of(model), name_of(model)]), 16) % around if around else 0
    since = (int(facts.now.timestamp()) - place) % around if around else 0
    return facts.now if since < TURN_SECONDS else facts.now + timedelta(seconds=around - since)


def _spec(facts: Facts, version: str) -> api.MLModelSpec:
    """The spec with as many pods as the version is to have now."""
    return replace(facts.spec, serving=replace(facts.spec.serving, replicas=_replicas(facts, version)))


def _replicas(facts: Facts, version: str) -> api.Replicas:
    """Autoscaling bounds of a version's pods: the spec's, but room for its next step while it is rolled out."""
    asked = facts.spec.serving.replicas
    target = wayback.target(facts)
    if version not in {facts.candidate, target} or version == facts.stable or not facts.stable:
        return asked
    serving = facts.ready_pods(facts.stable)
    if serving:
        weight = rollout.FULL if target else rollout.next_weight(facts.weights.get(version, 0), facts.steps)
        needs = rollout.share(weight, serving)
    else:  # Nothing tells what its share is: what it has, it keeps.
        needs = inferenceservice.replicas(facts.snapshot.services.get(version)).min
    low = max(asked.min, needs)
    return api.Replicas(min=low, max=max(asked.max, low))


def retire(facts: Facts, plan: Plan) -> None:
    """Stops the pods of versions that take no traffic, `keepWarm` after they last did."""
    if not facts.recorded:
        return
    rolling = facts.record.version if facts.record and facts.rolling else ""
    wanted = {facts.stable, facts.home, facts.candidate, rolling, wayback.target(facts)}
    for version, served in facts.snapshot.services.items():
        if version in wanted or facts.weights.get(version) or "deletionTimestamp" in served["metadata"]:
            continue
        until = _warm_until(facts, version)
        if facts.now < until:
            plan.look(until)
            if inferenceservice.replicas(served) != facts.spec.serving.replicas:  # A rollout had raised them.
                plan.cleanup.append(Patch(Ref.to(served), inferenceservice.bounds(facts.spec.serving.replicas)))
            continue
        stopped = Event("Normal", "VersionRetired", f"the pods of {facts.label(version)} were stopped")
        plan.cleanup.append(Delete(Ref.to(served), stopped))


def _warm_until(facts: Facts, version: str) -> datetime:
    """When the pods of a version that takes no traffic may go."""
    history = facts.previous.get("history") or ()
    last = next((d["time"] for d in history if version in (d["version"], d.get("previous"))), None)
    keep = max(facts.spec.rollout.keep_warm, PROXIES_LEARN)
    moved = moment(facts.record.step_started_at) if facts.record else None
    waits = ((moment(last), keep), (moved, PROXIES_LEARN))
    return max((until(since, wait, facts.now) for since, wait in waits if since), default=facts.now)


def prune(facts: Facts, plan: Plan) -> None:
    """Deletes the oldest versions beyond `revisionHistoryLimit`; never one that serves, rolls out or is asked for.

    With `artifactRetention: Delete` never one that a record names either, and not before its artifacts are gone.
    """
    if not facts.recorded or facts.latest not in facts.snapshot.versions:
        return
    used = {
        facts.latest,
        facts.stable,
        wayback.target(facts),
        *facts.snapshot.services,
        *(v for v, weight in facts.weights.items() if weight),
    }
    marked = {v for v in facts.snapshot.versions if facts.forgotten(v)}
    old = sorted((v for v in facts.snapshot.versions if v not in used | marked), key=facts.sequence, reverse=True)
    for version in old[facts.spec.revision_history_limit :]:
        _expire(facts, plan, version)
    for version in marked:
        if forgetting.forgotten(facts.snapshot.versions[version]):
            _delete(facts, plan, version, f"was deleted, and with it what lay in {_artifacts(facts, version)}")


def _expire(facts: Facts, plan: Plan, version: str) -> None:
    """A version beyond the limit goes, or is marked for that."""
    limit, where = f"is beyond revisionHistoryLimit {facts.spec.revision_history_limit}", _artifacts(facts, version)
    if facts.spec.artifact_retention == "Keep":
        _delete(
            facts, plan, version, f"{limit} and was deleted; its artifacts stay in {where} (artifactRetention: Keep)"
        )
        return
    record = facts.record
    if version in forgetting.named(facts.snapshot.model) | ({record.version, record.previous} if record else set()):
        return
    manifest = facts.snapshot.versions[version]
    message = f"{facts.label(version)} {limit} and no record names it: its artifacts in {where} are deleted first"
    # If it is still as it was seen.
    mark = {"resourceVersion": manifest["metadata"]["resourceVersion"], **modelversion.forget()}
    plan.cleanup.append(Patch(Ref.to(manifest), {"metadata": mark}, Event("Normal", "VersionExpired", message)))


def _delete(facts: Facts, plan: Plan, version: str, why: str) -> None:
    manifest = facts.snapshot.versions[version]
    if "deletionTimestamp" not in manifest["metadata"]:
        told = Event("Normal", "VersionForgotten", f"{facts.label(version)} {why}")
        plan.cleanup.append(Delete(Ref.to(manifest), told))


def _artifacts(facts: Facts, version: str) -> str:
    return modelversion.artifacts(facts.snapshot.versions[version], facts.settings.artifact_root)
