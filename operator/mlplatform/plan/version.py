"""VersionSnapshot → Plan: the pipeline folded over what the cluster shows.

Called by `mlplatform.reconciler` for each ModelVersion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from mlplatform import api, failures
from mlplatform.actions import Create, Event, Patch, Ref
from mlplatform.conditions import Book, Status
from mlplatform.contract import ANNOTATION_RETRAIN, FailureClass, Summary
from mlplatform.failures import Gravity, Sighting
from mlplatform.plan import adoption
from mlplatform.plan.plan import ADD_ON_RETRY, Plan, conditions_json, status_json
from mlplatform.resources import KINDS, modelversion
from mlplatform.resources.metadata import is_stray_of, taken_over
from mlplatform.resources.workload import Phase, Workload
from mlplatform.settings import Settings
from mlplatform.snapshot import (
    Object,
    VersionSnapshot,
    controlled_by,
    moment,
    name_of,
    stamp,
    status_of,
    until,
)
from mlplatform.stages import PIPELINE, Definition

REPORT_GRACE: Final = timedelta(minutes=2)
"""A workload's end may be seen before its pod's: longer than a dead watch goes unnoticed (70 s) and than clocks differ.

After it the pod is taken to be gone, which is final, and may throw away hours of training.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where one stage stands.

    Attributes:
        state: Pending has no workload; Failed and Succeeded are for good.
        status: Of its condition.
        reason: Of its condition.
        message: Of its condition.
        summary: What it measured, once it has ended.
        failure: What is wrong, also while it may still come right.
        started_at: When its pods could start.
        finished_at: When it ended.
    """

    state: Literal["Pending", "Running", "Succeeded", "Failed"]
    status: Status
    reason: str
    message: str
    summary: Summary | None = None
    failure: api.FailureStatus | None = None
    started_at: str = ""
    finished_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What every stage of one pass is looked at with.

    Attributes:
        snapshot: What the cluster shows.
        spec: The version's spec, decoded.
        held: Why no stage may run now (a condition's reason and message); None when they may.
        reports: What a restored version had finished.
        now: The clock.
        plan: Where the pass puts what it wants.
    """

    snapshot: VersionSnapshot
    spec: api.ModelVersionSpec
    held: tuple[str, str] | None
    reports: adoption.Reports
    now: datetime
    plan: Plan


def plan_version(
    snapshot: VersionSnapshot, settings: Settings, now: datetime, pipeline: Sequence[Definition] = PIPELINE
) -> Plan:
    """What to do about one ModelVersion.

    Args:
        snapshot: What the cluster shows.
        settings: The operator's.
        now: The clock.
        pipeline: Its stages; `mlplatform.standalone` may judge them more leniently or end earlier, never add one.
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
        conditions = conditions_json(book.conditions())
        plan.status = {**previous, "observedGeneration": generation, "stage": "Failed", "conditions": conditions}
        plan.events = _events(book)
        return plan
    book.set("Accepted", "True", "SpecValid", "the spec is sound")

    plan.writes += [taken_over(child, version) for child in snapshot.children.values() if is_stray_of(child, version)]
    reports = adoption.reports(snapshot, spec, settings, now, plan)
    look = Pass(snapshot=snapshot, spec=spec, held=_held(snapshot), reports=reports, now=now, plan=plan)
    records: list[api.StageStatus] = []
    current: tuple[Definition, Progress] | None = None
    for stage in pipeline:
        if current:
            book.set(stage.condition, "Unknown", "NotReached", f"comes after {current[0].name}")
            continue
        recorded = _recorded(previous, stage)
        if recorded and recorded.outcome != "Running":
            progress = _on_record(previous, recorded)
            book.keep(stage.condition)
        else:
            progress = _adopted(stage, look) or _observe(stage, look)
            recorded = _record(stage, progress)
            book.set(stage.condition, progress.status, progress.reason, progress.message)
            if progress.state == "Pending" and not look.held and stage.kind not in snapshot.missing:
                started = Event("Normal", f"{stage.doing}Started", progress.message)
                plan.writes.append(Create(stage.render(version, spec, settings), started))
        if recorded:
            records.append(recorded)
        _halt_or_resume(stage, progress, look)
        if progress.state != "Succeeded":
            current = (stage, progress)
    _summarise(book, current)
    plan.status = status_json(_status(generation, book, records, current))
    plan.events = _events(book)
    return plan


def _held(snapshot: VersionSnapshot) -> tuple[str, str] | None:
    """Why no stage of this version may run now: a condition's reason and message; None when they may."""
    model = snapshot.model
    here = model is not None and "deletionTimestamp" not in model["metadata"]
    # Not before it is adopted does a restored version say that it was: what it has finished must not be begun anew.
    if model is None or not here or is_stray_of(snapshot.version, model):
        wanted = f"MLModel {snapshot.version['spec']['model']}"
        missing = f"there is no {wanted} that this version belongs to"
        return "ModelMissing", f"{wanted} has not adopted this version yet" if here else missing
    if model["spec"].get("suspend"):
        return "Suspended", "spec.suspend of the MLModel is true"
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


def _adopted(stage: Definition, look: Pass) -> Progress | None:
    """What its report says of a stage that a restored version has neither a record nor a workload of; None when nothing does."""
    if stage.name in look.snapshot.children:
        return None
    if look.reports.waiting:
        status, reason, message = look.reports.waiting
        return Progress(state="Running", status=status, reason=reason, message=message)
    summary = look.reports.found.get(stage.name)
    if summary is None:
        return None
    verdict, ended = stage.judge(summary, look.spec), stamp(look.now)
    message = f"{verdict.message} (as its report says)"
    if verdict.passed:
        return Progress(
            state="Succeeded", status="True", reason=verdict.reason, message=message, summary=summary, finished_at=ended
        )
    failure = api.FailureStatus(
        class_=verdict.reason, message=message, next_action=verdict.next_action, stage=stage.name
    )
    told = failures.sentence(failure)
    return Progress(
        state="Failed",
        status="False",
        reason=verdict.reason,
        message=told,
        summary=summary,
        failure=failure,
        finished_at=ended,
    )


def _observe(stage: Definition, look: Pass) -> Progress:
    child = look.snapshot.children.get(stage.name)
    if child is None:
        return _absent(stage, look)
    pods = [pod for pod in look.snapshot.pods.get(stage.name, ()) if controlled_by(pod, child)]
    workload = stage.read(child)
    absent = failures.absent(look.snapshot.absent.get(stage.name, ""), child, stage.name)
    worst = failures.graver(failures.worst(pods, stage.name), absent)
    trouble = failures.steady(worst, status_of(look.snapshot.version).get("failure"))
    if trouble and trouble.gravity is Gravity.FINAL:
        return _failed(trouble.failure, workload, look)
    # The pod that did the work says so a second or two before its controller does, which has to see it first, too.
    if workload.phase is Phase.SUCCEEDED or (workload.phase is Phase.ACTIVE and failures.succeeded(pods)):
        return _judge(stage, pods, workload, look)
    if workload.phase is Phase.FAILED:
        cause = _cause(stage, trouble, workload, look)
        return _failed(cause, workload, look) if cause else _reading(workload)
    if workload.phase is Phase.SUSPENDED:
        reason, message = look.held or ("Resuming", "its pods may run again")
        return Progress(
            state="Running", status="Unknown", reason=reason, message=message, started_at=workload.started_at
        )
    return _running(stage, trouble, workload, look)


def _absent(stage: Definition, look: Pass) -> Progress:
    if stage.kind in look.snapshot.missing:
        look.plan.look(look.now + ADD_ON_RETRY)
        message = (
            f"the cluster does not serve {stage.kind}: install {KINDS[stage.kind].add_on}; "
            "the version goes on by itself after that"
        )
        return Progress(state="Pending", status="False", reason="AddOnMissing", message=message)
    refusal = next((refusal for refusal in look.snapshot.refusals if refusal.told), None)
    if refusal:
        return Progress(state="Pending", status="False", reason=refusal.reason, message=refusal.message)
    name = f"{name_of(look.snapshot.version)}-{stage.name}"
    reason, message = look.held or ("Starting", f"{stage.kind} {name} was created")
    return Progress(state="Pending", status="Unknown", reason=reason, message=message)


def _running(stage: Definition, trouble: Sighting | None, workload: Workload, look: Pass) -> Progress:
    limit, since = stage.deadline(look.spec), moment(workload.started_at)
    if limit is not None and since is not None:
        if look.now >= since + limit:
            message = f"{stage.name} ran longer than its deadline of {api.format_duration(limit)}"
            return _failed(_late(stage, message, trouble), workload, look)
        look.plan.look(since + limit)
    if trouble is None:
        return Progress(
            state="Running",
            status="Unknown",
            reason="Running",
            message=f"{stage.kind} is running",
            started_at=workload.started_at,
        )
    blocked = trouble.gravity is Gravity.BLOCKED
    waiting = "Unschedulable" if trouble.gravity is Gravity.PENDING else "Retrying"
    return Progress(
        state="Running",
        status="False" if blocked else "Unknown",
        reason=trouble.failure.class_ if blocked else waiting,
        message=failures.sentence(trouble.failure),
        failure=trouble.failure,
        started_at=workload.started_at,
    )


def _judge(stage: Definition, pods: list[Object], workload: Workload, look: Pass) -> Progress:
    """A workload that succeeded: its summary is in its pod, and the verdict is ours."""
    found = failures.succeeded(pods)
    if found is None:
        if _patient(workload, look):
            return _reading(workload)
        message = "the workload succeeded, but no pod of it is left to read the summary from"
        action = f"Annotate the MLModel with {ANNOTATION_RETRAIN}=<any new value> to make a new version."
        return _failed(failures.failure(FailureClass.REPORT_LOST, message, stage.name, action), workload, look)
    verdict = stage.judge(found.summary, look.spec)
    if not verdict.passed:
        failure = api.FailureStatus(
            class_=verdict.reason, message=verdict.message, next_action=verdict.next_action, stage=stage.name
        )
        return replace(_failed(failure, workload, look), summary=found.summary)
    return Progress(
        state="Succeeded",
        status="True",
        reason=verdict.reason,
        message=verdict.message,
        summary=found.summary,
        started_at=workload.started_at,
        finished_at=found.finished_at or workload.finished_at,
    )


def _failed(failure: api.FailureStatus, workload: Workload, look: Pass) -> Progress:
    return Progress(
        state="Failed",
        status="False",
        reason=failure.class_,
        message=failures.sentence(failure),
        failure=failure,
        started_at=workload.started_at,
        finished_at=workload.finished_at or stamp(look.now),
    )


def _cause(stage: Definition, trouble: Sighting | None, workload: Workload, look: Pass) -> api.FailureStatus | None:
    """Why a workload gave up: what its pods say, else what they last said, else what its controller says.

    None while the pods may not have been seen yet: what is recorded is recorded for good.
    """
    if workload.reason == "DeadlineExceeded":
        return _late(stage, f"the {stage.kind} did not end within its activeDeadlineSeconds", trouble)
    if trouble and trouble.gravity is not Gravity.PENDING:
        return trouble.failure
    seen = _recorded_failure(status_of(look.snapshot.version))
    if seen and seen.stage == stage.name:
        return seen
    if _patient(workload, look):
        return None
    return failures.failure(FailureClass.CRASHED, workload.message or f"the {stage.kind} failed", stage.name)


def _patient(workload: Workload, look: Pass) -> bool:
    """Whether the workload ended so recently that its pods' end may not have been seen yet."""
    over = until(moment(workload.finished_at) or look.now, REPORT_GRACE, look.now)
    if look.now < over:
        look.plan.look(over)
    return look.now < over


def _reading(workload: Workload) -> Progress:
    return Progress(
        state="Running",
        status="Unknown",
        reason="ReadingReport",
        message="the workload has ended; what its pods say is being read",
        started_at=workload.started_at,
    )


def _late(stage: Definition, message: str, trouble: Sighting | None) -> api.FailureStatus:
    """A deadline has passed; what held the pods up is the better half of the story."""
    if trouble is None:
        return failures.failure(FailureClass.DEADLINE_EXCEEDED, message, stage.name)
    held_up = f"{message}; it was held up: {trouble.failure.message}"
    return failures.failure(FailureClass.DEADLINE_EXCEEDED, held_up, stage.name, trouble.failure.next_action)


def _halt_or_resume(stage: Definition, progress: Progress, look: Pass) -> None:
    """A stage that failed for good, or that nobody waits for, must hold no pods (and no GPU)."""
    child = look.snapshot.children.get(stage.name)
    if child is None or stage.read(child).finished or progress.state == "Succeeded":
        return
    halt = progress.state == "Failed" or (look.held is not None and stage.resume is not None)
    if halt and not stage.halted(child):
        look.plan.cleanup.append(Patch(Ref.to(child), stage.halt))
    if not halt and stage.halted(child) and stage.resume is not None:
        look.plan.cleanup.append(Patch(Ref.to(child), stage.resume))


def _recorded(previous: Object, stage: Definition) -> api.StageStatus | None:
    raw = next((s for s in previous.get("stages") or () if s["name"] == stage.name), None)
    return api.decode(api.StageStatus, raw, "status.stages", unknown="skip") if raw else None


def _recorded_failure(previous: Object) -> api.FailureStatus | None:
    raw = previous.get("failure")
    return api.decode(api.FailureStatus, raw, "status.failure", unknown="skip") if raw else None


def _on_record(previous: Object, recorded: api.StageStatus) -> Progress:
    """A stage that has ended stays ended, whatever has become of its workload and pods."""
    if recorded.outcome == "Succeeded":
        return Progress(state="Succeeded", status="True", reason="", message="")
    failure = _recorded_failure(previous)
    return Progress(
        state="Failed",
        status="False",
        reason=failure.class_ if failure else FailureClass.CRASHED,
        message=failures.sentence(failure) if failure else "",
        failure=failure,
    )


def _record(stage: Definition, progress: Progress) -> api.StageStatus | None:
    if progress.state == "Pending":
        return None
    summary = progress.summary
    return api.StageStatus(
        name=stage.name,
        outcome=progress.state,
        started_at=progress.started_at,
        finished_at=progress.finished_at,
        metrics=dict(summary.metrics) if summary else {},
        details=dict(summary.details) if summary else {},
        report=summary.report if summary else "",
        digest=summary.digest if summary else "",
    )


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
    elif progress.reason in {"Suspended", "Superseded", "ModelMissing"}:
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
    if progress.reason in {"Suspended", "Superseded"}:
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
        elif new.reason in {"Suspended", "Superseded"}:
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
