"""`kubectl mlmodel doctor` and `helm test`: what is wrong with an installation, and what to do about each of it.

Called by `mlplatform.cli.doctor` and, in the operator's image, as ``python -m mlplatform.doctor``. `gather` asks the API
server, `checks` are pure: facts in, findings out. `probe` is the one thing that is written, a short pod that uses the
artifact store as a stage does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    SKIPPED = "skipped"
    """It could not be looked at, most often for lack of a right."""
    WARNING = "warning"
    """Models work, with less than one might think."""
    FAILURE = "failure"
    """Models do not work, or those with what the message names do not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        check: What was looked at, in a word or two.
        level: How much it matters.
        message: What is so, with the values.
        next_action: What to do about it; empty where there is nothing to do.
    """

    check: str
    level: Level
    message: str
    next_action: str = ""


def failed(findings: Iterable[Finding]) -> bool:
    """Whether anything keeps models from working."""
    return any(found.level is Level.FAILURE for found in findings)


def sentence(findings: Iterable[Finding]) -> str:
    """How many of each level there are."""
    levels = [found.level for found in findings]
    counts = {level: levels.count(level) for level in reversed(Level)}
    return ", ".join(f"{count} {level}" for level, count in counts.items() if count) or "nothing was looked at"
