"""Where one stage of a version stands, by its workload and its pods, and what becomes of that workload.

Called by `plan.version`, which folds the stages over this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from mlplatform import api, failures
from mlplatform.actions import Create, Delete, Event, Patch, Ref
from mlplatform.conditions import Status
from mlplatform.contract import ANNOTATION_RETRY, FailureClass, Summary
from mlplatform.failures import Finished, Gravity, Sighting
from mlplatform.plan import adoption, work
from mlplatform.plan.plan import ADD_ON_RETRY, Plan
from mlplatform.resources import KINDS, scheduling, workload
from mlplatform.resources.workload import Phase, Workload
from mlplatform.settings import Settings
from mlplatform.snapshot import (
    Object,
    VersionSnapshot,
    annotations_of,
    condition,
    controlled_by,
    moment,
    name_of,
    stamp,
    status_of,
    until,
)
from mlplatform.stages import Definition

REPORT_GRACE: Final = timedelta(minutes=2)
"""A workload's end may be seen before its pod's: longer than a dead watch goes unnoticed (70 s) and than clocks differ.

After it the pod is taken to be gone, which is final, and may throw away hours of training.
"""

HELD: Final = ("Suspended", "Superseded", "ModelMissing")
"""Why no stage of a version may run: reasons of a condition."""


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
        record: What was on record of it, and what its pods have added to that; None before it has begun.
    """

    state: Literal["Pending", "Running", "Succeeded", "Failed"]
    status: Status
    reason: str
    message: str
    summary: Summary | None = None
    failure: api.FailureStatus | None = None
    started_at: str = ""
    finished_at: str = ""
    record: api.StageStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What every stage of one pass is looked at with.

    Attributes:
        snapshot: What the cluster shows.
        spec: The version's spec, decoded.
        settings: The operator's.
        held: Says why no stage may run now (a condition's reason and message), None when they may; what has ended does
            not ask.
        reports: What a restored version had finished.
        scheduling: When and where the model's pods may run.
        again: What runs a failed stage again, for messages.
        now: The clock.
        plan: Where the pass puts what it wants.
    """

    snapshot: VersionSnapshot
    spec: api.ModelVersionSpec
    settings: Settings
    held: Callable[[], tuple[str, str] | None]
    reports: adoption.Reports
    scheduling: api.Scheduling
    again: str
    now: datetime
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One stage that has a workload.

    Attributes:
        stage: Which.
        child: The workload.
        found: What its controller says of it.
        pods: Its pods.
        trouble: The gravest thing wrong with them.
        record: What is on record of it, up to now.
        look: The pass.
    """

    stage: Definition
    child: Object
    found: Workload
    pods: list[Object]
    trouble: Sighting | None
    record: api.StageStatus
    look: Pass


def on_record(version: Object, stage: Definition) -> api.StageStatus | None:
    """The stage's record; that of a new attempt, where one was asked for after a failure."""
    raw = next((s for s in status_of(version).get("stages") or () if s["name"] == stage.name), None)
    if raw is None:
        return None
    found = api.decode(api.StageStatus, raw, "status.stages", unknown="skip")
    name, _, attempt = annotations_of(version).get(ANNOTATION_RETRY, "").partition("/")
    if found.outcome == "Failed" and name == stage.name and attempt.isdecimal() and int(attempt) > found.attempt:
        return api.StageStatus(name=found.name, outcome="Running", attempt=int(attempt))
    return found


def ended(version: Object, recorded: api.StageStatus) -> Progress:
    """A stage that has ended stays ended, whatever has become of its workload and pods."""
    if recorded.outcome == "Succeeded":
        return Progress(state="Succeeded", status="True", reason="", message="", record=recorded)
    raw = status_of(version).get("failure")
    told = api.decode(api.FailureStatus, raw, "status.failure", unknown="skip") if raw else None
    failure = recorded.last_failure or told
    return Progress(
        state="Failed",
        status="False",
        reason=failure.class_ if failure else FailureClass.CRASHED,
        message=failures.sentence(failure) if failure else "",
        failure=failure,
        record=recorded,
    )


def adopted(stage: Definition, recorded: api.StageStatus | None, look: Pass) -> Progress | None:
    """What its report says of a stage that a restored version has neither a record nor a workload of; None when nothing does."""
    if stage.name in look.snapshot.children:
        return None
    record = recorded or api.StageStatus(name=stage.name, outcome="Running")
    if look.reports.waiting:
        status, reason, message = look.reports.waiting
        return Progress(state="Running", status=status, reason=reason, message=message, record=record)
    summary = look.reports.found.get(stage.name)
    if summary is None:
        return None
    verdict, when = stage.judge(summary, look.spec), stamp(look.now)
    message = f"{verdict.message} (as its report says)"
    told = Progress(
        state="Succeeded",
        status="True",
        reason=verdict.reason,
        message=message,
        summary=summary,
        finished_at=when,
        record=record,
    )
    if verdict.passed:
        return told
    failure = api.FailureStatus(
        class_=verdict.reason, message=message, next_action=verdict.next_action, stage=stage.name
    )
    return replace(told, state="Failed", status="False", message=failures.sentence(failure), failure=failure)


def observe(stage: Definition, recorded: api.StageStatus | None, look: Pass) -> Progress:
    """A stage that has not ended."""
    child = look.snapshot.children.get(stage.name)
    record = recorded or api.StageStatus(name=stage.name, outcome="Running")
    if child is None or workload.attempt(child) < record.attempt:
        return replace(_absent(stage, child, look), record=recorded and work.timed(recorded, (), 1, look.now))
    pods = [pod for pod in look.snapshot.pods.get(stage.name, ()) if controlled_by(pod, child)]
    found = stage.read(child)
    gang = stage.gang(child)
    record = work.timed(record, pods, gang, _latest(child, found) or look.now)
    if stage.restarts and found.started_at and not found.finished and not failures.succeeded(pods):
        record = work.counted(record, pods, gang, look.now)
    absent = failures.absent(look.snapshot.absent.get(stage.name, ""), child, stage.name)
    worst = failures.graver(failures.worst(pods, stage.name), absent)
    trouble = failures.steady(worst, status_of(look.snapshot.version).get("failure"))
    if trouble and trouble.gravity >= Gravity.CRASHED:
        record = replace(record, last_failure=trouble.failure)
    sight = Sight(stage=stage, child=child, found=found, pods=pods, trouble=trouble, record=record, look=look)
    return replace(_standing(sight), record=record)


def entered(progress: Progress) -> api.StageStatus | None:
    """What goes on record of it."""
    record, summary = progress.record, progress.summary
    if record is None or progress.state == "Pending":
        return record
    if progress.finished_at:
        record = work.closed(record, progress.finished_at)
    lasting = progress.failure if progress.state == "Failed" else record.last_failure
    return replace(
        record,
        outcome=progress.state,
        started_at=progress.started_at,
        finished_at=progress.finished_at,
        last_failure=None if progress.state == "Succeeded" else lasting,
        metrics=dict(summary.metrics) if summary else {},
        details=dict(summary.details) if summary else {},
        report=summary.report if summary else "",
        digest=summary.digest if summary else "",
    )


def keep_workload(stage: Definition, progress: Progress, recorded: api.StageStatus | None, look: Pass) -> None:
    """Makes the stage's workload, stops it, lets it go on, or takes it away."""
    child = look.snapshot.children.get(stage.name)
    if child is None:
        if progress.state == "Pending" and not look.held() and stage.kind not in look.snapshot.missing:
            manifest = stage.render(look.snapshot.version, look.spec, look.settings, look.scheduling)
            numbered = workload.numbered(manifest, recorded.attempt if recorded else 1)
            look.plan.writes.append(Create(numbered, Event("Normal", f"{stage.doing}Started", progress.message)))
    elif "deletionTimestamp" in child["metadata"]:
        return
    elif progress.state in {"Pending", "Succeeded"}:
        # An attempt that failed makes room for the next; of one that passed all that matters is on record.
        look.plan.cleanup.append(Delete(Ref.to(child)))
    elif progress.state == "Failed":
        _keep_failed(stage, child, recorded, look)
    else:
        _halt_or_resume(stage, child, recorded, look)


def _keep_failed(stage: Definition, child: Object, recorded: api.StageStatus | None, look: Pass) -> None:
    """A stage that failed holds no pods (and no GPU); what is left of it goes after a while."""
    found, finished = stage.read(child), moment(recorded.finished_at) if recorded else None
    if found.phase is Phase.ACTIVE and not workload.halted(child):
        _halt(stage, child, "Failed", look)
    if finished is None or look.settings.failed_workloads_ttl == "0":
        return
    over = until(finished, api.parse_duration(look.settings.failed_workloads_ttl), look.now)
    if look.now >= over:
        look.plan.cleanup.append(Delete(Ref.to(child)))
    else:
        look.plan.look(over)


def _halt_or_resume(stage: Definition, child: Object, recorded: api.StageStatus | None, look: Pass) -> None:
    """A stage that nobody waits for holds no pods; one that somebody else has suspended is theirs to resume."""
    found, queue = stage.read(child), workload.queue(child)
    if found.finished or (stage.resume is None and look.held()):
        return
    suspended = found.phase is Phase.SUSPENDED
    if held := look.held():
        if queue or not suspended:
            _halt(stage, child, held[0], look)
    elif scheduling.asked(child) != scheduling.text(look.scheduling) and not work.begun(recorded):
        look.plan.cleanup.append(Delete(Ref.to(child)))  # Made anew, its pods go where they are to go now.
    elif suspended and stage.resume and _ours(stage, child, look):
        look.plan.cleanup.append(Patch(Ref.to(child), stage.resume))
    elif suspended and look.scheduling.queue not in {"", queue}:
        look.plan.cleanup.append(Delete(Ref.to(child)))  # Made anew, it waits in the other queue.


def _halt(stage: Definition, child: Object, reason: str, look: Pass) -> None:
    """Kueue resumes what it has let in: there, only what is gone stays stopped. A checkpoint is not the workload's."""
    gone = Delete(Ref.to(child))
    look.plan.cleanup.append(gone if workload.queue(child) else Patch(Ref.to(child), stage.halt(reason)))


def _ours(stage: Definition, child: Object, look: Pass) -> bool:
    """Whether it was the operator who stopped the workload, and may let it go on."""
    # A release that did not mark what it stopped left the reason in the condition.
    told = condition(look.snapshot.version, stage.condition).get("reason")
    return workload.halted(child) or (told in {*HELD, "Resuming"} and not workload.queue(child))


def _latest(child: Object, found: Workload) -> datetime | None:
    """When a container has ended at the latest whose pod is gone; None for now."""
    suspended = condition(child, "Suspended")
    if found.phase is Phase.SUSPENDED and suspended.get("status") == "True":
        return moment(suspended.get("lastTransitionTime"))
    return moment(found.finished_at)


def _absent(stage: Definition, old: Object | None, look: Pass) -> Progress:
    """A stage without a workload, or with that of an attempt which has failed."""
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
    message = f"{stage.kind} {name} {'of the attempt before is being deleted' if old else 'was created'}"
    reason, message = look.held() or ("Starting", message)
    return Progress(state="Pending", status="Unknown", reason=reason, message=message)


def _standing(sight: Sight) -> Progress:
    # The pod that did the work says so a second or two before its controller does, which has to see it first, too.
    done, phase = failures.succeeded(sight.pods), sight.found.phase
    if done or phase is Phase.SUCCEEDED:
        return _judge(done, sight)
    if sight.trouble and sight.trouble.gravity is Gravity.FINAL:
        return _failed(sight.trouble.failure, sight)
    if phase is Phase.FAILED:
        cause = _cause(sight)
        return _failed(cause, sight) if cause else _reading(sight)
    return _suspended(sight) if phase is Phase.SUSPENDED else _running(sight)


def _suspended(sight: Sight) -> Progress:
    queue = workload.queue(sight.child)
    if _ours(sight.stage, sight.child, sight.look) or (sight.look.held() and queue):
        reason, message = sight.look.held() or ("Resuming", "its pods may run again")
    elif queue:
        reason, message = "Queued", f"waits until Kueue's queue {queue} lets it run"
    else:
        who = f"{sight.stage.kind} {name_of(sight.child)}"
        reason, message = "Queued", f"{who} was suspended by somebody else, and goes on when they resume it"
    return Progress(state="Running", status="Unknown", reason=reason, message=message)


def _running(sight: Sight) -> Progress:
    stage, look, record, trouble = sight.stage, sight.look, sight.record, sight.trouble
    allowed = stage.restarts(look.spec) if stage.restarts else len(record.restarts)
    if len(record.restarts) > allowed:
        cause = record.last_failure or _unknown(sight)
        message = f"{cause.message}; the restarts that spec.training.maxRestarts allows ({allowed}) are used up"
        return _failed(replace(cause, message=message), sight)
    limit, spent = stage.deadline(look.spec), work.spent(record, look.now)
    if spent >= limit:
        return _failed(_late(limit, sight), sight)
    if record.working_since:
        look.plan.look(look.now + limit - spent)
    if trouble is None:
        return Progress(
            state="Running",
            status="Unknown",
            reason="Running",
            message=f"{stage.kind} is running",
            started_at=sight.found.started_at,
        )
    blocked = trouble.gravity is Gravity.BLOCKED
    waiting = "Unschedulable" if trouble.gravity is Gravity.PENDING else "Retrying"
    return Progress(
        state="Running",
        status="False" if blocked else "Unknown",
        reason=trouble.failure.class_ if blocked else waiting,
        message=failures.sentence(trouble.failure),
        failure=trouble.failure,
        started_at=sight.found.started_at,
    )


def _judge(found: Finished | None, sight: Sight) -> Progress:
    """A workload that succeeded: its summary is in its pod, and the verdict is ours."""
    if found is None:
        if _patient(sight):
            return _reading(sight)
        message = "the workload succeeded, but no pod of it is left to read the summary from"
        return _failed(failures.failure(FailureClass.REPORT_LOST, message, sight.stage.name), sight)
    verdict = sight.stage.judge(found.summary, sight.look.spec)
    if not verdict.passed:
        failure = api.FailureStatus(
            class_=verdict.reason, message=verdict.message, next_action=verdict.next_action, stage=sight.stage.name
        )
        return replace(_failed(failure, sight), summary=found.summary)
    return Progress(
        state="Succeeded",
        status="True",
        reason=verdict.reason,
        message=verdict.message,
        summary=found.summary,
        started_at=sight.found.started_at,
        finished_at=found.finished_at or sight.found.finished_at,
    )


def _failed(failure: api.FailureStatus, sight: Sight) -> Progress:
    lasting = failures.final(failure, sight.look.again)
    return Progress(
        state="Failed",
        status="False",
        reason=lasting.class_,
        message=failures.sentence(lasting),
        failure=lasting,
        started_at=sight.found.started_at,
        finished_at=sight.found.finished_at or stamp(sight.look.now),
    )


def _cause(sight: Sight) -> api.FailureStatus | None:
    """Why a workload gave up: what its pods say, else what they last said, else what its controller says.

    None while the pods may not have been seen yet: what is recorded is recorded for good.
    """
    if sight.record.last_failure:
        return sight.record.last_failure
    return None if _patient(sight) else _unknown(sight)


def _unknown(sight: Sight) -> api.FailureStatus:
    message = sight.found.message or f"the {sight.stage.kind} failed"
    return failures.failure(FailureClass.CRASHED, message, sight.stage.name)


def _patient(sight: Sight) -> bool:
    """Whether the workload ended so recently that its pods' end may not have been seen yet."""
    look = sight.look
    over = until(moment(sight.found.finished_at) or look.now, REPORT_GRACE, look.now)
    if look.now < over:
        look.plan.look(over)
    return look.now < over


def _reading(sight: Sight) -> Progress:
    return Progress(
        state="Running",
        status="Unknown",
        reason="ReadingReport",
        message="the workload has ended; what its pods say is being read",
        started_at=sight.found.started_at,
    )


def _late(limit: timedelta, sight: Sight) -> api.FailureStatus:
    """A deadline has passed; what went wrong meanwhile is the better half of the story."""
    last = sight.record.last_failure
    seen = f"; seen last: {last.message}" if last else ""
    message = f"{sight.stage.name} ran longer than its deadline of {api.format_duration(limit)}{seen}"
    return failures.failure(FailureClass.DEADLINE_EXCEEDED, message, sight.stage.name)
