"""The versions of a model, and the pods that serve them: what should exist, and what may go.

Called by `plan.model`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from mlplatform import api, rollout
from mlplatform.actions import Apply, Create, Delete, Event, Patch, Ref
from mlplatform.plan import wayback
from mlplatform.plan.facts import Facts
from mlplatform.plan.plan import ADD_ON_RETRY, PROXIES_LEARN, Plan
from mlplatform.resources import inferenceservice, modelversion
from mlplatform.resources.metadata import adoption, is_stray_of
from mlplatform.snapshot import moment, name_of, status_of, until


def adopt(facts: Facts, plan: Plan) -> None:
    """Takes over what has the model's labels and nobody's owner reference; its Service and its route are applied anew."""
    model = facts.snapshot.model
    for version in facts.snapshot.versions.values():
        if is_stray_of(version, model):
            told = Event("Normal", "VersionAdopted", f"{facts.label(name_of(version))} had no owner")
            plan.writes.append(replace(adoption(version, model), event=told))
    strays = (served for served in facts.snapshot.services.values() if is_stray_of(served, model))
    plan.writes += [adoption(served, model) for served in strays]


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
    serving = replace(facts.spec.serving, replicas=_replicas(facts, version))
    spec = replace(facts.spec, serving=serving)
    wanted = inferenceservice.render(facts.snapshot.model, spec, version, storage_uri, facts.settings)
    if not inferenceservice.same(facts.snapshot.services.get(version), wanted):
        plan.writes.append(Apply(wanted))


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
    wanted = {facts.stable, facts.candidate, rolling, wayback.target(facts)}
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
    """Deletes the oldest versions beyond `revisionHistoryLimit`; never one that serves, rolls out or is asked for."""
    if not facts.recorded or facts.latest not in facts.snapshot.versions:
        return
    used = {
        facts.latest,
        facts.stable,
        wayback.target(facts),
        *facts.snapshot.services,
        *(v for v, weight in facts.weights.items() if weight),
    }
    old = sorted((v for v in facts.snapshot.versions if v not in used), key=facts.sequence, reverse=True)
    for version in old[facts.spec.revision_history_limit :]:
        manifest = facts.snapshot.versions[version]
        if "deletionTimestamp" not in manifest["metadata"]:
            plan.cleanup.append(Delete(Ref.to(manifest)))
