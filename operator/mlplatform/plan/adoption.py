"""What a version that was restored without its status has finished already: its reports say it, read by a Job.

Called by `plan.version`. A stage that has neither a record nor a workload is not run before its report was looked for:
only what is not there, or does not fit together, is run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from mlplatform import api, failures
from mlplatform.actions import Create, Delete, Event, Patch, Ref
from mlplatform.conditions import Status
from mlplatform.contract import Stage, Summary
from mlplatform.failures import Gravity
from mlplatform.plan.plan import Plan
from mlplatform.resources import adoption, job
from mlplatform.settings import Settings
from mlplatform.snapshot import Reading, VersionSnapshot, moment, name_of, status_of

AGAIN: Final = timedelta(minutes=1)
"""After which reports that could not be read are asked for again, with new pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """What is known of them.

    Attributes:
        found: By stage, what it had reported.
        waiting: Status, reason and message of the condition of a stage that must wait for its report; None when none must.
    """

    found: Mapping[Stage, Summary] = field(default_factory=dict)
    waiting: tuple[Status, str, str] | None = None


def reports(
    snapshot: VersionSnapshot, spec: api.ModelVersionSpec, settings: Settings, now: datetime, plan: Plan
) -> Reports:
    """Asks for a restored version's reports, and takes the answer; the plan gets what that takes."""
    version, reading = snapshot.version, snapshot.reading
    if not adoption.restored(version):
        if reading:
            plan.cleanup.append(Delete(Ref.to(reading.job)))
        return Reports()
    ended = {s["name"] for s in status_of(version).get("stages") or () if s["outcome"] != "Running"}
    following = next((stage for stage in Stage if stage not in ended), None)
    if following in snapshot.children:
        return Reports()  # It is at work, whatever its report said.
    if following and reading is None:
        looking = Event(
            "Normal", "ReportsSought", f"the reports of {name_of(version)} are looked for in the artifact store"
        )
        plan.writes.append(Create(adoption.render(version, spec, settings), looking))
        return Reports(waiting=("Unknown", "LookingForReport", looking.message))
    answers = adoption.answers(reading.pods) if reading else None
    if following and reading and answers is None:
        return Reports(waiting=_asked(reading, now, plan))
    # Once what they say is on record, nobody needs to ask again.
    plan.cleanup.append(Patch(Ref.to(version), adoption.done()))
    plan.cleanup += [Delete(Ref.to(reading.job))] if reading else []
    return Reports(found={stage: said for stage, said in (answers or {}).items() if said.failure is None})


def _asked(reading: Reading, now: datetime, plan: Plan) -> tuple[Status, str, str]:
    """The Job runs, or has failed: the store did not answer, or no pod could run. To train anew would be no answer."""
    found = job.read(reading.job)
    if found.finished:
        until = (moment(found.finished_at) or now) + AGAIN
        if now >= until:
            plan.cleanup.append(Delete(Ref.to(reading.job)))
        plan.look(until)
    trouble = failures.worst(reading.pods, adoption.NAME)
    if reading.absent:
        return "False", "NoPods", f"the reports cannot be looked for: {reading.absent}"
    if trouble is None:
        return "Unknown", "LookingForReport", f"Job {name_of(reading.job)} looks for the reports in the artifact store"
    status: Status = "False" if trouble.gravity > Gravity.PENDING else "Unknown"
    return status, trouble.failure.class_, f"the reports cannot be looked for: {failures.sentence(trouble.failure)}"
