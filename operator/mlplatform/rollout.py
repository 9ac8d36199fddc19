"""Whether a rollout advances, holds, promotes or rolls back.

Called by `mlplatform.plan`. Pure: an ordered chain of small policies over one
`View`; the first that has an opinion decides. Time and readiness decide here;
evidence from traffic joins as another policy, behind the same `Verdict`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Literal, Self

from mlplatform import api
from mlplatform.snapshot import moment

FULL: Final = api.FULL_WEIGHT

SETBACKS: Final = 3
"""How often a candidate may lose all its ready pods under traffic before it is given up."""


class Move(StrEnum):
    """What happens to the traffic."""

    ADVANCE = "Advance"
    HOLD = "Hold"
    PROMOTE = "Promote"
    ROLLBACK = "Rollback"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One decision.

    Attributes:
        move: What to do.
        weight: Percentage of traffic for the candidate from now on.
        reason: The condition's reason, one CamelCase word.
        message: Why, with values, without times.
        wait_until: When time alone may change the verdict; None when only the cluster can.
    """

    move: Move
    weight: int
    reason: str
    message: str
    wait_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything a policy may look at.

    Attributes:
        candidate: The version being rolled out, for messages.
        stable: The version it would replace, for messages.
        weight: Percentage of traffic the mesh gives the candidate now.
        steps: Percentages on the way to 100.
        interval: How long each step is held.
        max_duration: How long the candidate may stay not ready before it is given up.
        setbacks: How often it has lost its traffic for want of a ready pod.
        ready: All the pods it needs are Ready.
        serving: At least one pod is Ready.
        trouble: What keeps its pods from being Ready; empty when unknown or ready.
        started_at: When the rollout began.
        step_started_at: When the weight last moved.
        unready_since: When the last of its pods that are not Ready stopped being so; None when none is known.
        now: The clock.
    """

    candidate: str
    stable: str
    weight: int
    steps: tuple[int, ...]
    interval: timedelta
    max_duration: timedelta
    ready: bool
    serving: bool
    trouble: str
    started_at: datetime
    step_started_at: datetime
    now: datetime
    setbacks: int = 0
    unready_since: datetime | None = None

    @property
    def overdue_at(self) -> datetime:
        """When a candidate that stays as it is, not ready, is given up.

        A weight moves only to a version that is ready, so it was ready then; one that takes traffic was ready until
        its pods say otherwise.
        """
        since = max(self.started_at, self.step_started_at)
        if self.weight and self.unready_since:
            since = max(since, self.unready_since)
        return since + self.max_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is remembered of a rollout, as an annotation beside the weights it explains.

    Never a weight: those are read from the mesh. Times are RFC 3339.

    Attributes:
        version: The candidate.
        started_at: When it began.
        step_started_at: When the weight last moved.
        previous: The version that was stable when it began; empty for a model's first version.
        outcome: ``Promoted``, ``RolledBack`` or ``Superseded``; empty while it is under way.
        reason: Why, one word.
        message: Why, with values.
        finished_at: When the outcome was decided; empty while it is under way.
        setbacks: As in `View`.
    """

    version: str
    started_at: str
    step_started_at: str
    previous: str = ""
    outcome: Literal["", "Promoted", "RolledBack", "Superseded"] = ""
    reason: str = ""
    message: str = ""
    finished_at: str = ""
    setbacks: int = 0

    def to_json(self) -> str:
        """The annotation's value."""
        return json.dumps(api.canonical(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Reads the annotation; None when it is absent or somebody has damaged it."""
        try:
            found = api.decode(cls, json.loads(text), unknown="skip")
            times = [moment(t) for t in (found.started_at, found.step_started_at, found.finished_at) if t]
        except ValueError:
            return None
        return found if all(time and time.tzinfo for time in times) else None


def step_of(weight: int, steps: tuple[int, ...]) -> int:
    """How many steps a weight has reached: 0 before the first, ``len(steps) + 1`` at 100."""
    return sum(weight >= step for step in (*steps, FULL))


def next_weight(weight: int, steps: tuple[int, ...]) -> int:
    """The first step above the weight, 100 after the last one."""
    return next((step for step in steps if step > weight), FULL)


def eta(view: View) -> datetime | None:
    """When the rollout ends if every step passes; None while it waits for pods."""
    if not view.ready:
        return None
    remaining = sum(step > view.weight for step in (*view.steps, FULL))
    return view.step_started_at + view.interval * (remaining if view.weight else remaining - 1)


def _give_up(view: View) -> Verdict | None:
    """A candidate that cannot become ready, or stay so, must not hold up the model for ever."""
    if view.ready:
        return None
    if view.weight and not view.serving:  # It loses its traffic now, and its time begins.
        if view.setbacks + 1 < SETBACKS:
            return None
        message = f"{view.candidate} lost all its ready pods under traffic {SETBACKS} times{_because(view)}"
        return Verdict(Move.ROLLBACK, 0, "Unstable", message)
    if view.now < view.overdue_at:
        return None
    message = f"{view.candidate} was not ready for as long as rollout.maxDuration{_because(view)}"
    return Verdict(Move.ROLLBACK, 0, "NotReadyInTime", message)


def protect_traffic(view: View) -> Verdict | None:
    """Traffic that reaches no pod is an error for somebody: send it to the stable version meanwhile."""
    if view.serving or not view.weight:
        return None
    message = f"{view.candidate} lost its last ready pod; its traffic went back to {view.stable}{_because(view)}"
    return Verdict(Move.HOLD, 0, "CandidateNotReady", message, view.now + view.max_duration)


def _wait_for_pods(view: View) -> Verdict | None:
    """A weight moves only to a version whose pods are Ready."""
    if view.ready:
        return None
    message = f"waiting for the pods of {view.candidate}{_because(view)}"
    return Verdict(Move.HOLD, view.weight, "WaitingForPods", message, view.overdue_at)


def _hold_step(view: View) -> Verdict | None:
    """Each step lasts `interval`."""
    until = view.step_started_at + view.interval
    if not view.weight or view.now >= until:
        return None
    return Verdict(Move.HOLD, view.weight, "Progressing", _progress(view, view.weight), until)


def _move_on(view: View) -> Verdict:
    """Ready, and this step's time is over."""
    weight = next_weight(view.weight, view.steps)
    if weight < FULL:
        return Verdict(Move.ADVANCE, weight, "Progressing", _progress(view, weight), view.now + view.interval)
    held = (
        f"held {', '.join(f'{step}%' for step in view.steps)} with its pods ready"
        if view.steps
        else "its pods are ready"
    )
    return Verdict(Move.PROMOTE, FULL, "StepsPassed", f"{view.candidate} {held} and replaced {view.stable}")


POLICIES: Final[tuple[Callable[[View], Verdict | None], ...]] = (
    _give_up,
    protect_traffic,
    _wait_for_pods,
    _hold_step,
    _move_on,
)
"""In order: an end that is overdue, then safety, then readiness, then time."""


def decide(view: View) -> Verdict:
    """The first policy's verdict."""
    return next(verdict for policy in POLICIES if (verdict := policy(view)))


def _progress(view: View, weight: int) -> str:
    step, steps = step_of(weight, view.steps), len(view.steps) + 1
    return f"{view.candidate} takes {weight}% of the traffic (step {step} of {steps}), {view.stable} the rest"


def _because(view: View) -> str:
    return f": {view.trouble}" if view.trouble else ""
