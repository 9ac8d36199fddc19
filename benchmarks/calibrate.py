"""How often each way to decide a rollout errs, and how soon it is right; `make calibrate` prints it.

Rollouts are simulated: a look a minute for four hours. Beside the evidence of `mlplatform.statistics` stand what people
use: a threshold with so many failed looks (Flagger's way), and a test of two proportions that is looked at every minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.table import markdown, publish
from mlplatform import evidence
from mlplatform.evidence import ALPHA, Guardrail
from mlplatform.statistics import Arms

Floats = npt.NDArray[np.float64]

LOOKS: Final = 240
GUARDRAIL: Final = Guardrail()
FAILED_LOOKS: Final = 5
"""Of the threshold rule; so many looks with more bad answers than the guardrail's bound roll back, and 25 looks without that promote."""
THRESHOLD_LOOKS: Final = 25
STEPS: Final = (0.05, 0.1, 0.25, 0.5)
NEVER: Final = LOOKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the simulated service does.

    Attributes:
        rps: Requests a second, in the mean.
        rate: Share of bad answers of the stable version, in the mean.
        ratio: How many times as many the candidate has.
        swing: Load and rate swing by this share of themselves, each with a period of its own.
        ramp: Whether the weight rises through `STEPS`; else it is 10 %.
        dispersion: Standard deviation, as a share, of each version's rate around what it is in that minute: 0 where the
            model holds.
        bad_pod: Share of the candidate's requests that fall on a pod with five times its rate in half of the time.
    """

    rps: float
    rate: float = 0.005
    ratio: float = 1.0
    swing: float = 0.0
    ramp: bool = False
    dispersion: float = 0.0
    bad_pod: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether bad answers are independent of each other, as the evidence takes them to be."""
        return not (self.dispersion or self.bad_pod)


def simulated(setting: Setting, rollouts: int, rng: np.random.Generator) -> Arms:
    """Requests and bad answers of each minute, ``(rollouts, LOOKS)``."""
    minute, start = np.arange(LOOKS), rng.uniform(0, 2 * np.pi, (2, rollouts, 1))
    load = setting.rps * 60 * (1 + setting.swing * np.sin(start[0] + minute / 9))
    rate = setting.rate * (1 + setting.swing * np.sin(start[1] + minute / 23))
    weight = np.repeat(STEPS, LOOKS // len(STEPS)) if setting.ramp else np.full(LOOKS, 0.1)
    shape = (rollouts, LOOKS)

    def around(rate: Floats) -> Floats:
        if not setting.dispersion:
            return rate
        return rate * rng.gamma(setting.dispersion**-2, setting.dispersion**2, shape)

    requests = rng.poisson(load * weight, shape), rng.poisson(load * (1 - weight), shape)
    hurt = 1 + 4 * setting.bad_pod * rng.integers(0, 2, (rollouts, LOOKS // 30)).repeat(30, axis=1)
    rates = around(rate * setting.ratio) * hurt, around(rate)
    bad = [rng.binomial(n, np.clip(p, 0, 1)) for n, p in zip(requests, rates, strict=True)]
    return Arms(requests[0], bad[0], requests[1], bad[1])


class Verdicts(NamedTuple):
    """What a rule made of each rollout.

    Attributes:
        rolled_back: The look at which it did, ``(rollouts,)``; `NEVER` where it did not.
        promoted: Likewise.
        requests: That the candidate had answered by the verdict.
    """

    rolled_back: npt.NDArray[np.int64]
    promoted: npt.NDArray[np.int64]
    requests: npt.NDArray[np.int64]


def first(true: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """The first look at which something holds."""
    return np.where(true.any(axis=1), true.argmax(axis=1), NEVER)


def decided(arms: Arms, back: npt.NDArray[np.bool_], on: npt.NDArray[np.bool_]) -> Verdicts:
    """The first of both; harm is looked at first."""
    rolled_back, promoted = first(back), first(on)
    harmed = rolled_back <= promoted
    rolled_back, promoted = np.where(harmed, rolled_back, NEVER), np.where(harmed, NEVER, promoted)
    end = np.minimum(np.minimum(rolled_back, promoted), LOOKS - 1)
    answered = np.cumsum(arms.candidate, axis=1)[np.arange(len(end)), end]
    return Verdicts(rolled_back, promoted, answered)


def by_evidence(arms: Arms) -> Verdicts:
    """This project's: each e-process against 1/alpha."""
    needed, found = np.log(1 / ALPHA), evidence.weigh(GUARDRAIL, arms)
    return decided(arms, found.harm >= needed, found.good >= needed)


def by_threshold(arms: Arms) -> Verdicts:
    """Flagger's: `FAILED_LOOKS` looks above the bound in all roll back, `THRESHOLD_LOOKS` that were not promote.

    A minute without a request fails, as its metric has no value.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        failed = ~(arms.candidate_bad / arms.candidate <= GUARDRAIL.bound)
    failures, passes = np.cumsum(failed, axis=1), np.cumsum(~failed, axis=1)
    return decided(arms, failures >= FAILED_LOOKS, passes >= THRESHOLD_LOOKS)


def by_peeking(arms: Arms) -> Verdicts:
    """A one-sided z test of all requests so far, at every look; it promotes after the last one."""
    n, x, m, y = (
        np.cumsum(part, axis=1) for part in (arms.candidate, arms.candidate_bad, arms.stable, arms.stable_bad)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = (x + y) / (n + m)
        z = (x / n - y / m) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    last = np.zeros(x.shape, dtype=bool)
    last[:, -1] = True
    return decided(arms, z > stats.norm.isf(ALPHA), last)


RULES: Final[Mapping[str, Callable[[Arms], Verdicts]]] = {
    "evidence": by_evidence,
    "threshold": by_threshold,
    "peeked z": by_peeking,
}

TRAFFIC: Final = (0.1, 1.0, 10.0, 100.0, 1000.0)
KINDS: Final[Mapping[str, dict[str, Any]]] = {
    "steady": {},
    "load and rate ± 80 %": {"swing": 0.8},
    "weights rise, ± 80 %": {"swing": 0.8, "ramp": True},
    "over-dispersed by 30 %": {"dispersion": 0.3},
    "one bad pod of three": {"bad_pod": 1 / 3},
}
HEALTHY: Final = {f"{kind}, {rps:g}/s": Setting(rps=rps, **more) for kind, more in KINDS.items() for rps in TRAFFIC}
"""As good as the stable version, but for the bad pod."""
HARMFUL: Final = {
    f"{ratio:g} x, {rps:g}/s": Setting(rps=rps, rate=0.01, ratio=ratio, swing=0.8)
    for ratio in (1.0 + GUARDRAIL.tolerance, 2.0, 5.0)
    for rps in TRAFFIC
}


def share(hits: npt.NDArray[np.bool_]) -> str:
    """A share with its standard error."""
    mean = float(hits.mean())
    return f"{mean:.3f} ± {np.sqrt(mean * (1 - mean) / len(hits)):.3f}"


def minutes(found: Verdicts) -> str:
    """The median time until a rollback, and requests of the candidate by then, of those that were rolled back."""
    hit = found.rolled_back < NEVER
    if not hit.any():
        return "never"
    return f"{np.median(found.rolled_back[hit]) + 1:.0f} min, {np.median(found.requests[hit]):,.0f}"


def tables(rollouts: int) -> str:
    """Both tables."""
    rng = np.random.default_rng(5)
    healthy, harmful = [], []
    for name, setting in HEALTHY.items():
        arms = simulated(setting, rollouts, rng)
        found = {rule: decide(arms) for rule, decide in RULES.items()}
        promoted = found["evidence"].promoted
        when = f"{np.median(promoted[promoted < NEVER]) + 1:.0f}" if (promoted < NEVER).any() else "never"
        healthy.append(
            [name, *(share(each.rolled_back < NEVER) for each in found.values()), share(promoted < NEVER), when]
        )
        print(" | ".join(healthy[-1]), flush=True)
    for name, setting in HARMFUL.items():
        arms = simulated(setting, rollouts, rng)
        cells = [name]
        for decide in RULES.values():
            verdicts = decide(arms)
            cells += [f"{(verdicts.rolled_back < NEVER).mean():.2f}", minutes(verdicts), f"{(verdicts.promoted < NEVER).mean():.3f}"]  # fmt: skip
        harmful.append(cells)
        print(" | ".join(cells), flush=True)
    back = markdown(
        ["a candidate like the stable version", *(f"rolled back, {rule}" for rule in RULES), "promoted, evidence", "after minutes"],
        healthy,
    )  # fmt: skip
    found_by = markdown(
        ["1 % bad, the candidate", *(f"{rule}: {what}" for rule in RULES for what in ("found", "after, its requests", "promoted"))],
        harmful,
    )  # fmt: skip
    return f"{rollouts:,} rollouts a row, {LOOKS} looks, alpha {ALPHA}:\n\n{back}\n\n{found_by}"


def main() -> None:
    """Simulates, prints and publishes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=2000, help="in each setting")
    asked = parser.parse_args()
    publish("calibrate", "make calibrate", tables(asked.rollouts))


if __name__ == "__main__":
    main()
