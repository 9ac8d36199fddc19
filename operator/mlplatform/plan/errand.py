"""How a Job stands that does something for a version in the artifact store, in words, and when it is tried again.

Called by `plan.adoption` and `plan.forgetting`. A store that is away or refuses is no answer: the Job is made again, with
new pods, until it has done what it is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from mlplatform import failures
from mlplatform.actions import Delete, Ref
from mlplatform.conditions import Status
from mlplatform.failures import Gravity
from mlplatform.plan.plan import Plan
from mlplatform.resources import job
from mlplatform.snapshot import Errand, moment, name_of, until


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a Job is for.

    Attributes:
        name: Stands where a stage's name stands.
        reason: Of a condition, while it is at work.
        doing: What it does, after its name.
        cannot: What does not come about while it fails.
        again: After which it is made again once it has ended.
    """

    name: str
    reason: str
    doing: str
    cannot: str
    again: timedelta


def standing(purpose: Purpose, errand: Errand, now: datetime, plan: Plan) -> tuple[Status, str, str]:
    """Status, reason and message of the condition that waits for it; one that has ended in vain goes, in time."""
    found = job.read(errand.job)
    if found.finished:
        over = until(moment(found.finished_at) or now, purpose.again, now)
        if now >= over:
            plan.cleanup.append(Delete(Ref.to(errand.job)))
        plan.look(over)
    trouble = failures.worst(errand.pods, purpose.name)
    if errand.absent:
        return "False", "NoPods", f"{purpose.cannot}: {errand.absent}"
    if trouble is None:
        return "Unknown", purpose.reason, f"Job {name_of(errand.job)} {purpose.doing}"
    status: Status = "False" if trouble.gravity > Gravity.PENDING else "Unknown"
    return status, trouble.failure.class_, f"{purpose.cannot}: {failures.sentence(trouble.failure)}"
