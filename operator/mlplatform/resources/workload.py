"""How far a child workload is: one vocabulary for PyTorchJob and Job.

Called by `pytorchjob` and `job`, which read their kinds into it, and by
`mlplatform.plan`, which need not know which kind a stage runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mlplatform.snapshot import Object, status_of


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
        started_at: When its pods could start (RFC 3339), empty if they have not been allowed to.
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
    was_suspended = any(c["type"] == "Suspended" for c in status.get("conditions") or ())
    # While a resumed workload has no new startTime, its creation says nothing about how long it has run.
    started = status.get("startTime") or ("" if was_suspended or suspended else created)
    for kind, phase in ((succeeded, Phase.SUCCEEDED), (failed, Phase.FAILED)):
        if kind in holding:
            c = holding[kind]
            finished = status.get("completionTime") or c.get("lastTransitionTime", "")
            return Workload(phase, c.get("reason", ""), c.get("message", ""), started or created, finished)
    return Workload(Phase.SUSPENDED if suspended else Phase.ACTIVE, started_at=started)
