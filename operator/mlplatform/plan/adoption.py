"""What a version that was restored without its status has finished already: its reports say it, read by a Job.

Called by `plan.version`. A stage that has neither a record nor a workload is not run before its report was looked for:
only what is not there, or does not fit together, is run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from mlplatform import api
from mlplatform.actions import Create, Delete, Event, Patch, Ref
from mlplatform.conditions import Status
from mlplatform.contract import Stage, Summary
from mlplatform.plan import errand
from mlplatform.plan.plan import Plan
from mlplatform.resources import adoption
from mlplatform.settings import Settings
from mlplatform.snapshot import VersionSnapshot, name_of, status_of

READING: Final = errand.Purpose(
    name=adoption.NAME,
    reason="LookingForReport",
    doing="looks for the reports in the artifact store",
    cannot="the reports cannot be looked for",  # To train anew would be no answer to that.
    again=timedelta(minutes=1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """What is known of them.

    Attributes:
        found: By stage, what it had reported.
        waiting: Status, reason and message of the condition of a stage that must wait for its report; None when none must.
    """

    found: Mapping[Stage, Summary] = field(default_factory=dict)
    waiting: tuple[Status, str, str] | None = None


def reports(  # noqa: PLR0913, PLR0917  what a Job is rendered from, and where it goes
    snapshot: VersionSnapshot,
    spec: api.ModelVersionSpec,
    settings: Settings,
    scheduling: api.Scheduling,
    now: datetime,
    plan: Plan,
) -> Reports:
    """Asks for a restored version's reports, and takes the answer; the plan gets what that takes."""
    version, reading = snapshot.version, snapshot.errands.get(adoption.NAME)
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
        plan.writes.append(Create(adoption.render(version, spec, settings, scheduling), looking))
        return Reports(waiting=("Unknown", "LookingForReport", looking.message))
    answers = adoption.answers(reading.pods) if reading else None
    if following and reading and answers is None:
        return Reports(waiting=errand.standing(READING, reading, now, plan))
    # Once what they say is on record, nobody needs to ask again.
    plan.cleanup.append(Patch(Ref.to(version), adoption.done()))
    plan.cleanup += [Delete(Ref.to(reading.job))] if reading else []
    return Reports(found={stage: said for stage, said in (answers or {}).items() if said.failure is None})
