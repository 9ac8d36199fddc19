"""Conditions that never flap.

Called by `mlplatform.plan`. A condition keeps its lastTransitionTime while its
status stays, and a plan that comes to the same result writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from mlplatform import api
from mlplatform.snapshot import Object, stamp

Status = Literal["True", "False", "Unknown"]
"""True: reached. False: failed or blocked, and a person can act. Unknown: not there yet."""


class Book:
    """The conditions of one object while its next status is worked out."""

    def __init__(self, previous: Iterable[Object], generation: int, now: datetime) -> None:
        self._previous = {c["type"]: c for c in previous}
        self._generation = generation
        self._now = now
        self._next: dict[str, api.Condition] = {}

    def set(self, kind: str, status: Status, reason: str, message: str) -> None:
        """Sets a condition; the last call for a type counts."""
        old = self._previous.get(kind, {})
        since = old["lastTransitionTime"] if old.get("status") == status else stamp(self._now)
        self._next[kind] = api.Condition(
            type=kind,
            status=status,
            reason=reason,
            message=message,
            last_transition_time=since,
            observed_generation=self._generation,
        )

    def keep(self, kind: str) -> None:
        """Carries a condition over as it was, when nothing new is known about it."""
        old = self._previous.get(kind)
        if old is not None:
            self._next[kind] = api.Condition(
                type=kind,
                status=old["status"],
                reason=old["reason"],
                message=old.get("message", ""),
                last_transition_time=old["lastTransitionTime"],
                observed_generation=old.get("observedGeneration", 0),
            )

    def stall(self, kind: str = "Ready") -> None:
        """`Stalled`, in the words of another condition: nothing goes on until a person acts.

        By it kstatus and the GitOps tools that use it tell what has failed from what is under way, both of which are
        not `Ready`. Where all is well it is absent, as they ask for.
        """
        cause = self._next[kind]
        self.set("Stalled", "True", cause.reason, cause.message)

    def get(self, kind: str) -> api.Condition | None:
        """The condition as set so far."""
        return self._next.get(kind)

    def changed(self, kind: str) -> bool:
        """Whether status or reason differ from what was last written."""
        new, old = self._next.get(kind), self._previous.get(kind, {})
        return new is not None and (new.status, new.reason) != (old.get("status"), old.get("reason"))

    def conditions(self) -> tuple[api.Condition, ...]:
        """All, in the order of their first `set`."""
        return tuple(self._next.values())
