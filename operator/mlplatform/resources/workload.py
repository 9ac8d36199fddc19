"""How far a child workload is: one vocabulary for PyTorchJob and Job.

Called by `pytorchjob` and `job`, which read their kinds into it and render by
it, and by `mlplatform.plan`, which need not know which kind a stage runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mlplatform import api
from mlplatform.contract import ANNOTATION_ATTEMPT, ANNOTATION_HALTED, LABEL_QUEUE
from mlplatform.resources import scheduling
from mlplatform.snapshot import Object, annotations_of, labels_of, status_of


class Phase(StrEnum):
    """What the workload's own controller says of it."""

    ACTIVE = "Active"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Workload:
    """A child workload, as its controller reports it.

    Attributes:
        phase: Where it stands.
        reason: Why it failed, e.g. ``BackoffLimitExceeded``; else empty.
        message: In the controller's words.
        started_at: When its pods could start (RFC 3339), empty while they are not allowed to, or just again.
        finished_at: When it ended, empty while it has not.
    """

    phase: Phase
    reason: str = ""
    message: str = ""
    started_at: str = ""
    finished_at: str = ""

    @property
    def finished(self) -> bool:
        """Whether it will never run again."""
        return self.phase in {Phase.SUCCEEDED, Phase.FAILED}


def read(workload: Object, *, succeeded: str, failed: str, suspended: bool) -> Workload:
    """Reads conditions of type `succeeded` and `failed`; both controllers keep them for good."""
    status = status_of(workload)
    holding = {c["type"]: c for c in status.get("conditions") or () if c["status"] == "True"}
    created = workload["metadata"].get("creationTimestamp", "")
    # The Training Operator keeps the first start through a suspension, and until a second after its end; of a workload
    # that has been suspended, its creation says nothing.
    resting = suspended or "Suspended" in holding
    was_suspended = any(c["type"] == "Suspended" for c in status.get("conditions") or ())
    started = status.get("startTime") or ("" if was_suspended else created)
    for kind, phase in ((succeeded, Phase.SUCCEEDED), (failed, Phase.FAILED)):
        if kind in holding:
            c = holding[kind]
            finished = status.get("completionTime") or c.get("lastTransitionTime", "")
            return Workload(phase, c.get("reason", ""), c.get("message", ""), started or created, finished)
    return Workload(Phase.SUSPENDED if suspended else Phase.ACTIVE, started_at="" if resting else started)


def placed(metadata: Object, wanted: api.Scheduling) -> Object:
    """``metadata`` of a workload with what its pods are scheduled by, and the queue for which it waits, created suspended."""
    placed = scheduling.marked(metadata, wanted)
    if not wanted.queue:
        return placed
    return {**placed, "labels": {**placed["labels"], LABEL_QUEUE: wanted.queue}}


def numbered(manifest: Object, attempt: int) -> Object:
    """The manifest of that attempt."""
    if attempt == 1:
        return manifest
    annotations = {**annotations_of(manifest), ANNOTATION_ATTEMPT: str(attempt)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def queue(workload: Object) -> str:
    """The queue that decides when it may run; empty for none."""
    return labels_of(workload).get(LABEL_QUEUE, "")


def attempt(workload: Object) -> int:
    """Which attempt at its stage it is."""
    text = annotations_of(workload).get(ANNOTATION_ATTEMPT, "")
    return int(text) if text.isdecimal() else 1


def halted(workload: Object) -> bool:
    """Whether it was the operator who stopped it."""
    return ANNOTATION_HALTED in annotations_of(workload)


def marked(body: Object, reason: str | None) -> Object:
    """A merge patch that also says on the workload why it is stopped; None says no more."""
    return {**body, "metadata": {"annotations": {ANNOTATION_HALTED: reason}}}
