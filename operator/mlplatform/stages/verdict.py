"""What a stage's judge says, and the checks that several judges share.

Called by the stages of this package; `mlplatform.plan` turns a verdict into a
condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlplatform import api
from mlplatform.contract import LOWER_IS_BETTER, TASK_METRICS, VALIDATION


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a version may go on.

    Attributes:
        passed: False ends the version for good.
        reason: The condition's reason, one CamelCase word.
        message: The numbers that decided, in one or a few sentences.
        next_action: What a person does about it; empty when there is nothing to do.
    """

    passed: bool
    reason: str
    message: str
    next_action: str = ""


@dataclass(frozen=True, slots=True)
class Miss:
    """One bound that was not met."""

    message: str
    next_action: str


def number(value: float) -> str:
    """Four decimals, without trailing zeros: ``0.88``, ``0.9054``, ``1``."""
    return _fixed(value, 4)


def told_apart(value: float, bound: float) -> tuple[str, str]:
    """Both numbers with as many decimals as it takes to see that they differ: ``0.20004`` and ``0.2``."""
    digits = next((n for n in range(4, 17) if f"{value:.{n}f}" != f"{bound:.{n}f}"), 4)
    return _fixed(value, digits), _fixed(bound, digits)


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def headline(metrics: Mapping[str, float], task: str, first: Sequence[str] = (), limit: int = 3) -> str:
    """A few metrics for a condition's message: those in `first`, then in the order of the task, or of tasks like it."""
    order = [*first, *TASK_METRICS.get(task, ()), *(name for names in TASK_METRICS.values() for name in names)]

    def place(name: str) -> tuple[int, str]:
        plain = name.removeprefix(VALIDATION)
        return next((order.index(n) for n in (name, plain) if n in order), len(order)), name

    return ", ".join(f"{name} {number(metrics[name])}" for name in sorted(metrics, key=place)[:limit])


def gate_misses(gates: Sequence[api.Gate], metrics: Mapping[str, float], whose: str) -> list[Miss]:
    """Every gate that `metrics` do not pass; a metric that was not measured passes nothing."""
    misses = []
    for gate in gates:
        value = metrics.get(gate.metric)
        if value is None:
            known = ", ".join(sorted(metrics)) or "none"
            misses.append(
                Miss(
                    f"{whose} has no metric {gate.metric}, which spec.gates bounds",
                    f"Name one that was measured ({known}) in spec.gates.",
                )
            )
            continue
        direction = "lower" if gate.metric in LOWER_IS_BETTER else "higher"
        action = f"Train a model with a {direction} {gate.metric} (data, hyperparameters, epochs), or move the gate in spec.gates."
        if gate.min is not None and not value >= gate.min:
            shown, bound = told_apart(value, gate.min)
            misses.append(Miss(f"{gate.metric} of {whose} is {shown}, below the gate's min {bound}", action))
        if gate.max is not None and not value <= gate.max:
            shown, bound = told_apart(value, gate.max)
            misses.append(Miss(f"{gate.metric} of {whose} is {shown}, above the gate's max {bound}", action))
    return misses


def blocked(misses: Sequence[Miss], reason: str) -> Verdict:
    """The verdict over bounds that were missed: all of them in the message, the first one's way out."""
    return Verdict(
        passed=False,
        reason=reason,
        message="; ".join(miss.message for miss in misses),
        next_action=misses[0].next_action,
    )
