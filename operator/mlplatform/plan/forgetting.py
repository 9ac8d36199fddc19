"""The end of a version whose artifacts are deleted with it (`spec.artifactRetention: Delete`).

Called by `plan.children`, which marks versions beyond `revisionHistoryLimit` and deletes them when nothing of them is left
in the store, and by `plan.version`, which sees to that. The ModelVersion is what remembers that something is left: it goes
last. A mark is for good: who is asked for again meanwhile is made anew, for what is there may be half of it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from mlplatform import api
from mlplatform.actions import Create, Delete, Event, Ref
from mlplatform.conditions import Book, Status
from mlplatform.contract import ANNOTATION_ROLLBACK
from mlplatform.plan import errand
from mlplatform.plan.plan import Plan
from mlplatform.resources import forgetting, job
from mlplatform.resources.workload import Phase
from mlplatform.snapshot import Object, VersionSnapshot, annotations_of, condition, name_of, status_of

FORGOTTEN: Final = "Forgotten"
"""Condition of a ModelVersion: nothing of it is left in the store."""

DELETING: Final = errand.Purpose(
    name=forgetting.NAME,
    reason="Deleting",
    doing="deletes its artifacts",
    cannot="its artifacts cannot be deleted",
    again=timedelta(minutes=10),
)


def forgotten(version: Object) -> bool:
    """Whether nothing of it is left but the object."""
    return condition(version, FORGOTTEN).get("status") == "True"


def named(model: Object) -> set[str]:
    """Versions that a record of the MLModel names: of what serves, is wanted or was decided, or somebody's wish."""
    status = status_of(model)
    entries = [e for e in (status.get("stable"), status.get("rollout"), *(status.get("history") or ())) if e]
    wish = api.WayBack.parse(annotations_of(model).get(ANNOTATION_ROLLBACK, ""))
    told = {str(entry.get(key, "")) for entry in entries for key in ("version", "previous")}
    return told | {str(status.get("latestVersion", ""))} | ({wish.from_, wish.to} if wish else set())


def step(
    snapshot: VersionSnapshot, manifest: Object, held: tuple[str, str] | None, now: datetime, plan: Plan
) -> tuple[Status, str, str]:
    """Plans what comes next for a version that is marked; returns status, reason and message of `Forgotten`.

    Args:
        snapshot: What the cluster shows.
        manifest: The Job that deletes.
        held: Reason and message where nothing may be begun now.
        now: The clock.
        plan: Gets what is to be done.
    """
    version, model, work = snapshot.version, snapshot.model, snapshot.errands.get(forgetting.NAME)
    if forgotten(version) or (work and job.read(work.job).phase is Phase.SUCCEEDED):
        return "True", "Deleted", "its artifacts are deleted"
    if work:
        return errand.standing(DELETING, work, now, plan)
    if held:
        return "Unknown", *held
    if model and name_of(version) in named(model):
        return "Unknown", "StillNamed", f"a record of MLModel {name_of(model)} names it; its artifacts stay as long"
    # What still runs would write into a folder that is being emptied.
    if snapshot.children or any(_runs(pod) for pods in snapshot.pods.values() for pod in pods):
        plan.cleanup += [Delete(Ref.to(child)) for child in snapshot.children.values()]
        return "Unknown", "Stopping", "the work of its stages is stopped before its artifacts are deleted"
    plan.writes.append(Create(manifest))
    return "Unknown", DELETING.reason, "its artifacts are being deleted"


def tell(version: Object, found: tuple[Status, str, str], book: Book, plan: Plan) -> None:
    """`Forgotten`, and by it `Ready`: such a version cannot serve any more."""
    status, reason, message = found
    if status == "Unknown" and condition(version, FORGOTTEN).get("status") == "False":
        book.keep(FORGOTTEN)  # Another try tells nothing yet.
    else:
        book.set(FORGOTTEN, status, reason, message)
    said = book.get(FORGOTTEN)
    if said is None:
        return
    book.set("Ready", "False", said.reason, said.message)
    if said.status == "False" and book.changed(FORGOTTEN):
        plan.events.append(Event("Warning", "ForgettingBlocked", said.message))


def _runs(pod: Object) -> bool:
    return status_of(pod).get("phase") not in {"Failed", "Succeeded"}
