"""VersionSnapshot → Plan: the pipeline folded over what the cluster shows.

Called by `mlplatform.reconciler` for each ModelVersion.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache

from mlplatform import api
from mlplatform.actions import Event
from mlplatform.conditions import Book
from mlplatform.plan import adoption, forgetting
from mlplatform.plan import stage as stages
from mlplatform.plan.plan import LEFTOVERS, Plan, conditions_json, status_json
from mlplatform.plan.stage import HELD, Pass, Progress
from mlplatform.resources import forgetting as forget
from mlplatform.resources import modelversion
from mlplatform.resources import scheduling as placement
from mlplatform.resources.metadata import is_stray_of, taken_over
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, VersionSnapshot, name_of, namespace_of, status_of
from mlplatform.stages import PIPELINE, Definition


def plan_version(
    snapshot: VersionSnapshot,
    settings: Settings,
    now: datetime,
    pipeline: Sequence[Definition] = PIPELINE,
    again: str = "",
) -> Plan:
    """What to do about one ModelVersion.

    Args:
        snapshot: What the cluster shows.
        settings: The operator's.
        now: The clock.
        pipeline: Its stages; `mlplatform.standalone` may judge them more leniently or end earlier, never add one.
        again: What runs a failed stage again, for messages; empty stands for the plugin's command.
    """
    version, previous, plan = snapshot.version, status_of(snapshot.version), Plan()
    generation = version["metadata"].get("generation", 0)
    book = Book(previous.get("conditions") or (), generation, now)
    try:
        spec = api.decode(api.ModelVersionSpec, version["spec"])
    except api.SpecError as error:
        # What has ended stays on record: an operator that can read the spec again goes on from it.
        for stage in PIPELINE:
            book.keep(stage.condition)
        book.set("Accepted", "False", "SpecInvalid", str(error))
        book.set("Ready", "False", "SpecInvalid", str(error))
        book.stall()
        book.keep(LEFTOVERS)
        conditions = conditions_json(book.conditions())
        plan.status = {**previous, "observedGeneration": generation, "stage": "Failed", "conditions": conditions}
        plan.events = _events(book)
        return plan
    book.set("Accepted", "True", "SpecValid", "the spec is sound")

    scheduling = _scheduling(snapshot.model, settings)
    if modelversion.forgotten(version):
        for stage in PIPELINE:
            book.keep(stage.condition)
        deletion = forget.render(version, spec, settings, scheduling)
        forgetting.tell(version, forgetting.step(snapshot, deletion, _resting(snapshot), now, plan), book, plan)
        book.keep(LEFTOVERS)
        conditions = conditions_json(book.conditions())
        plan.status = {**previous, "observedGeneration": generation, "stage": "Forgetting", "conditions": conditions}
        return plan

    plan.writes += [taken_over(child, version) for child in snapshot.children.values() if is_stray_of(child, version)]
    look = Pass(
        snapshot=snapshot,
        spec=spec,
        settings=settings,
        held=cache(lambda: _resting(snapshot) or _superseded(snapshot)),
        reports=adoption.reports(snapshot, spec, settings, scheduling, now, plan),
        scheduling=scheduling,
        again=again or f"kubectl mlmodel retry {spec.model} -n {namespace_of(version)}",
        now=now,
        plan=plan,
    )
    records: list[api.StageStatus] = []
    current: tuple[Definition, Progress] | None = None
    for stage in pipeline:
        if current:
            book.set(stage.condition, "Unknown", "NotReached", f"comes after {current[0].name}")
            continue
        recorded = stages.on_record(version, stage)
        if recorded and recorded.outcome != "Running":
            progress = stages.ended(version, recorded)
            book.keep(stage.condition)
        else:
            progress = stages.adopted(stage, recorded, look) or stages.observe(stage, recorded, look)
            recorded = stages.entered(progress)
            book.set(stage.condition, progress.status, progress.reason, progress.message)
        if recorded:
            records.append(recorded)
        stages.keep_workload(stage, progress, recorded, look)
        if progress.state != "Succeeded":
            current = (stage, progress)
    _summarise(book, current)
    book.keep(LEFTOVERS)
    plan.status = status_json(_status(generation, book, records, current))
    plan.events = _events(book)
    return plan


def _resting(snapshot: VersionSnapshot) -> tuple[str, str] | None:
    """Why nothing may be begun for this version now: a condition's reason and message; None when it may."""
    model = snapshot.model
    here = model is not None and "deletionTimestamp" not in model["metadata"]
    # Not before it is adopted does a restored version say that it was: what it has finished must not be begun anew.
    if model is None or not here or is_stray_of(snapshot.version, model):
        wanted = f"MLModel {snapshot.version['spec']['model']}"
        missing = f"there is no {wanted} that this version belongs to"
        return "ModelMissing", f"{wanted} has not adopted this version yet" if here else missing
    if model["spec"].get("suspend"):
        return "Suspended", "spec.suspend of the MLModel is true"
    return None


def _superseded(snapshot: VersionSnapshot) -> tuple[str, str] | None:
    """Whether another version is asked for, so that no stage of this one may run, likewise."""
    model = snapshot.model
    if model is None:
        return None
    try:
        spec = api.decode(api.MLModelSpec, model["spec"])
    except api.SpecError:
        return None  # The MLModel says so itself; what already runs was asked for by a sound spec.
    if api.problems(spec, name_of(model), modelversion.trigger(model)):
        return None  # Likewise.
    name = name_of(snapshot.version)
    latest = modelversion.wanted(model, spec, {**snapshot.siblings, name: snapshot.version})
    if latest != name:
        return "Superseded", f"the MLModel asks for {latest}; this version goes on if it is asked for again"
    return None


def _scheduling(model: Object | None, settings: Settings) -> api.Scheduling:
    """When and where the stages' pods may run, also where the rest of the model's spec cannot be used."""
    wanted = (model or {}).get("spec", {}).get("scheduling") or {}
    try:
        own = api.decode(api.Scheduling, wanted, "spec.scheduling", unknown="skip")
    except api.SpecError:
        own = api.Scheduling()  # The MLModel says so itself.
    return placement.of_stages(own, settings)


def _summarise(book: Book, current: tuple[Definition, Progress] | None) -> None:
    """`Ready`: every stage has passed."""
    if current is None:
        book.set("Ready", "True", "PipelinePassed", "every stage passed; the version can be served")
        return
    stage, progress = current
    if progress.state == "Failed":
        kept = book.get(stage.condition)
        message = kept.message if kept else progress.message
        book.set("Ready", "False", f"{stage.name.value.capitalize()}Failed", f"{stage.name} failed: {message}")
        book.stall()
    elif progress.status == "False":
        book.set("Ready", "False", progress.reason, f"{stage.name} is blocked: {progress.message}")
    elif progress.reason in {*HELD, "Queued"}:
        book.set("Ready", "Unknown", progress.reason, progress.message)
    else:
        book.set("Ready", "Unknown", stage.doing, f"{stage.name} has not ended yet")


def _status(
    generation: int, book: Book, records: list[api.StageStatus], current: tuple[Definition, Progress] | None
) -> api.ModelVersionStatus:
    metrics: dict[str, float] = {}
    storage_uri = ""
    for record in records:
        if record.name in {"audit", "optimize"}:  # measured on the test split; the selected candidate's count last
            metrics |= record.metrics
        if record.outcome == "Succeeded":
            storage_uri = str(record.details.get("storageUri", storage_uri))
    return api.ModelVersionStatus(
        observed_generation=generation,
        stage=_word(current),
        conditions=book.conditions(),
        stages=tuple(records),
        metrics=metrics,
        storage_uri=storage_uri,
        failure=current[1].failure if current else None,
    )


def _word(current: tuple[Definition, Progress] | None) -> str:
    """`status.stage`: for people; nothing branches on it."""
    if current is None:
        return "Ready"
    stage, progress = current
    if progress.state == "Failed":
        return "Failed"
    if progress.reason in {"Suspended", "Superseded", "Queued"}:
        return progress.reason
    return stage.doing


def _events(book: Book) -> list[Event]:
    """One event for each stage that started, passed, failed or was held up just now."""
    events = []
    for stage in PIPELINE:
        new = book.get(stage.condition)
        if new is None or not book.changed(stage.condition):
            continue
        noun = stage.doing
        if new.status == "True":
            events.append(Event("Normal", stage.condition, new.message))
        elif new.status == "False":
            events.append(
                Event("Warning", f"{noun}Failed" if _terminal(book, stage) else f"{noun}Blocked", new.message)
            )
        elif new.reason in {"Retrying", "Unschedulable"}:
            events.append(Event("Warning", f"{noun}{new.reason}", new.message))
        elif new.reason in {"Suspended", "Superseded", "Queued"}:
            events.append(Event("Normal", f"{noun}{new.reason}", new.message))
    accepted, ready = book.get("Accepted"), book.get("Ready")
    if accepted and accepted.status == "False" and book.changed("Accepted"):
        events.append(Event("Warning", accepted.reason, accepted.message))
    if ready and ready.status == "True" and book.changed("Ready"):
        events.append(Event("Normal", "VersionReady", ready.message))
    return events


def _terminal(book: Book, stage: Definition) -> bool:
    ready = book.get("Ready")
    return ready is not None and ready.reason == f"{stage.name.value.capitalize()}Failed"
