"""Whether a rollout advances, holds, promotes or rolls back.

Called by `mlplatform.plan`. Pure: an ordered chain of small policies over one
`View`; the first that has an opinion decides. Time and readiness decide here;
evidence from traffic joins as another policy, behind the same `Verdict`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Final, Literal, Self

from mlplatform import api, contract
from mlplatform.snapshot import moment, precise

FULL: Final = api.FULL_WEIGHT

SETBACKS: Final = 3
"""How often a candidate may lose all its ready pods under traffic before it is given up."""


ROLLING_BACK: Final = "RollingBack"
"""Reason of the condition while the pods of the version to go back to are waited for."""


class Move(StrEnum):
    """What happens to the traffic."""

    ADVANCE = "Advance"
    HOLD = "Hold"
    DIVERT = "Divert"
    """Another version stands in for a stable one without pods: the candidate, or where that has none either, a third."""
    RETURN = "Return"
    """The stable version is back: the rollout goes on where it was."""
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
class Detour:
    """Another version stands in for the stable one, which has no ready pod.

    The only weight that is remembered rather than read from the mesh: what the mesh has now is not what the rollout
    had come to, and nothing else tells where it goes on.

    Attributes:
        weight: Percentage of traffic that the candidate had before, and gets back.
        since: When that began (RFC 3339).
    """

    weight: int
    since: str


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
        pods: How many of its pods are Ready.
        stable_pods: How many of the stable version's are.
        stable_ready: Whether those are as many as the spec asks for, or at least as many as the candidate's.
        trouble: What keeps its pods from being Ready; empty when unknown or ready.
        stable_trouble: Likewise, of the stable version's.
        started_at: When the rollout began.
        step_started_at: When the weight last moved.
        unready_since: When the last of its pods that are not Ready stopped being so; None when none is known.
        stands_in: A third version that answers while neither of the two does; empty when there is none.
        detour: Set while another version stands in for the stable one.
        now: The clock.
    """

    candidate: str
    stable: str
    weight: int
    steps: tuple[int, ...]
    interval: timedelta
    max_duration: timedelta
    pods: int
    stable_pods: int
    stable_ready: bool
    trouble: str
    stable_trouble: str
    started_at: datetime
    step_started_at: datetime
    now: datetime
    setbacks: int = 0
    unready_since: datetime | None = None
    stands_in: str = ""
    detour: Detour | None = None

    @property
    def step_ends_at(self) -> datetime:
        """When its present weight has been held for long enough."""
        return self.step_started_at + self.interval

    @property
    def needs(self) -> int:
        """Ready pods without which it does not go on: for the weight it has, and once that was held, for the next."""
        held = self.weight and self.now < self.step_ends_at
        return share(self.weight if held else next_weight(self.weight, self.steps), self.stable_pods)

    @property
    def ready(self) -> bool:
        """Whether it has them."""
        return self.pods >= self.needs

    @property
    def overdue_at(self) -> datetime:
        """When a candidate that stays as it is, not ready, is given up.

        A weight moves only to a version that is ready, so it was ready then; one that takes traffic was ready until
        its pods say otherwise, and waits for more of them from the end of its step on.
        """
        since = max(self.started_at, self.step_started_at)
        if self.weight:
            since = max(since, self.unready_since or self.step_ends_at)
        return since + self.max_duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is remembered of a rollout, as an annotation beside the weights it explains.

    Never a weight, but for a detour's: those are read from the mesh. Times are RFC 3339.

    Attributes:
        version: The candidate.
        started_at: When it began.
        step_started_at: When the weight last moved.
        previous: The version that was stable when it began, or that somebody went back to; empty for a model's first.
        outcome: ``Promoted``, ``RolledBack`` or ``Superseded``; empty while it is under way.
        reason: Why, one word.
        message: Why, with values.
        finished_at: When the outcome was decided; empty while it is under way.
        tried: `attempt` of the spec that a rollback was decided under; empty where it holds under every other, too.
        setbacks: As in `View`.
        detour: Likewise.
    """

    version: str
    started_at: str
    step_started_at: str
    previous: str = ""
    outcome: Literal["", "Promoted", "RolledBack", "Superseded"] = ""
    reason: str = ""
    message: str = ""
    finished_at: str = ""
    tried: str = ""
    setbacks: int = 0
    detour: Detour | None = None

    @property
    def winner(self) -> str:
        """The version that its outcome makes the stable one; empty where that stays who it was."""
        if self.outcome == "Promoted":
            return self.version
        return self.previous if self.reason == api.ROLLED_BACK_BY_USER else ""

    def in_the_past(self, now: datetime) -> Self:
        """The same, with `now` for a time of its course that lies ahead: the clock has jumped, and must hold nothing."""
        latest = precise(now)

        def known(time: str) -> str:
            return latest if (moment(time) or now) > now else time

        detour = self.detour and replace(self.detour, since=known(self.detour.since))
        started_at, step_started_at = known(self.started_at), known(self.step_started_at)
        return replace(self, started_at=started_at, step_started_at=step_started_at, detour=detour)

    def to_json(self) -> str:
        """The annotation's value."""
        return json.dumps(api.canonical(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Reads the annotation; None when it is absent or somebody has damaged it."""
        try:
            found = api.decode(cls, json.loads(text), unknown="skip")
            since = found.detour.since if found.detour else ""
            times = [moment(t) for t in (found.started_at, found.step_started_at, found.finished_at, since) if t]
        except ValueError:
            return None
        return found if all(time and time.tzinfo for time in times) else None


def step_of(weight: int, steps: tuple[int, ...]) -> int:
    """How many steps a weight has reached: 0 before the first, ``len(steps) + 1`` at 100."""
    return sum(weight >= step for step in (*steps, FULL))


def next_weight(weight: int, steps: tuple[int, ...]) -> int:
    """The first step above the weight, 100 after the last one."""
    return next((step for step in steps if step > weight), FULL)


def share(weight: int, pods: int) -> int:
    """Ready pods that a percentage of the traffic needs when all of it needs that many: never none."""
    return max(1, ceil(weight * pods / FULL))


def attempt(spec: api.MLModelSpec) -> str:
    """Digest of the sections that say how a version is served and rolled out: with others, it may fare better."""
    return contract.digest({"serving": api.canonical(spec.serving), "rollout": api.canonical(spec.rollout)})


def eta(view: View) -> datetime | None:
    """When the rollout ends if every step passes; None while it waits for pods, or is late."""
    if not view.ready or view.detour or not view.weight or view.now >= view.step_ends_at:
        return None
    return view.step_started_at + view.interval * sum(step > view.weight for step in (*view.steps, FULL))


def _nobody_answers(view: View) -> Verdict | None:
    """Where neither version has a pod, nobody is to blame; a third one that has some stands in, else no weight is better."""
    if view.pods or view.stable_pods:
        return None
    if view.stands_in:
        message = (
            f"neither {view.stable} nor {view.candidate} has a ready pod; {view.stands_in} takes all the traffic until "
            f"one has, and is not promoted by that{_cause(view.stable_trouble or view.trouble)}"
        )
        return Verdict(Move.DIVERT, 0, "StableNotReady", message)
    message = (
        f"neither {view.stable} nor {view.candidate} has a ready pod, so the traffic stays as it is{_because(view)}"
    )
    return Verdict(Move.HOLD, view.weight, "NoReadyPods", message)


def protect_stable(view: View) -> Verdict | None:
    """A stable version without a pod: the candidate answers for it until it is back, and has proven nothing by that."""
    if not view.pods or (view.stable_pods and not view.detour):
        return None
    if view.ready and not view.steps:
        return None  # Nothing is to be proven: it takes over for good.
    if view.stable_ready and view.detour:
        message = f"{view.stable} has ready pods again; {view.candidate} takes {view.detour.weight}% of the traffic, as before"
        return Verdict(Move.RETURN, view.detour.weight, "StableReady", message)
    has = "too few ready pods yet" if view.stable_pods else "no ready pod"
    message = (
        f"{view.stable} has {has}; {view.candidate} takes all the traffic until it has, and is not promoted by that"
        f"{_cause(view.stable_trouble)}"
    )
    return Verdict(Move.DIVERT, FULL, "StableNotReady", message)


def _give_up(view: View) -> Verdict | None:
    """A candidate that cannot become ready, or stay so, must not hold up the model for ever."""
    if view.ready:
        return None
    if view.weight and not view.pods:  # It loses its traffic now, and its time begins.
        if view.setbacks + 1 < SETBACKS:
            return None
        message = f"{view.candidate} lost all its ready pods under traffic {SETBACKS} times{_because(view)}"
        return Verdict(Move.ROLLBACK, 0, "Unstable", message)
    if view.now < view.overdue_at:
        return None
    message = f"{view.candidate} was not ready for as long as rollout.maxDuration ({view.pods} of {view.needs} pods ready){_because(view)}"
    return Verdict(Move.ROLLBACK, 0, "NotReadyInTime", message)


def protect_traffic(view: View) -> Verdict | None:
    """Traffic that reaches no pod is an error for somebody: send it to the stable version meanwhile."""
    if view.pods or not view.weight:
        return None
    message = f"{view.candidate} lost its last ready pod; its traffic went back to {view.stable}{_because(view)}"
    return Verdict(Move.HOLD, 0, "CandidateNotReady", message, view.now + view.max_duration)


def _wait_for_pods(view: View) -> Verdict | None:
    """A weight moves only to a version whose pods are Ready, as many as its share of the traffic needs."""
    if view.ready:
        return None
    message = waiting(view.candidate, view.pods, view.needs, view.trouble)
    return Verdict(Move.HOLD, view.weight, "WaitingForPods", message, view.overdue_at)


def _hold_step(view: View) -> Verdict | None:
    """Each step lasts `interval`."""
    if not view.weight or view.now >= view.step_ends_at:
        return None
    return Verdict(Move.HOLD, view.weight, "Progressing", _progress(view, view.weight), view.step_ends_at)


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
    _nobody_answers,
    protect_stable,
    _give_up,
    protect_traffic,
    _wait_for_pods,
    _hold_step,
    _move_on,
)
"""In order: who answers at all, an end that is overdue, safety, readiness, time."""

_PROTECTION: Final = (_nobody_answers, protect_stable, protect_traffic)
"""Those that move nothing on, in the same order."""


def decide(view: View) -> Verdict:
    """The first policy's verdict."""
    return next(verdict for policy in POLICIES if (verdict := policy(view)))


def protect(view: View) -> Verdict | None:
    """What keeps requests answered while the rollout itself rests; None when the weights can stay."""
    return next((verdict for policy in _PROTECTION if (verdict := policy(view))), None)


def waiting(version: str, pods: int, needs: int, trouble: str) -> str:
    """Message about a version whose pods are waited for."""
    return f"waiting for the pods of {version} ({pods} of {needs} pods ready){_cause(trouble)}"


def _progress(view: View, weight: int) -> str:
    step, steps = step_of(weight, view.steps), len(view.steps) + 1
    return f"{view.candidate} takes {weight}% of the traffic (step {step} of {steps}), {view.stable} the rest"


def _because(view: View) -> str:
    return _cause(view.trouble)


def _cause(trouble: str) -> str:
    return f": {trouble}" if trouble else ""
