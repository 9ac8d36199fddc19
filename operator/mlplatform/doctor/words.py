"""Findings in words, and the few words that checks share.

Called by the modules with checks.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from mlplatform.doctor import Finding, Level
from mlplatform.snapshot import Object, condition, name_of, namespace_of, status_of

Version = tuple[int, int]


UPGRADE: Final = "helm upgrade --install mlplatform charts/mlplatform -n mlplatform-system --reset-then-reuse-values"


REQUIREMENTS: Final = 'docs/deployment.md, "Requirements"'


_ASK: Final = "Let somebody run the doctor who may, or ask for the right"


def ok(name: str, message: str) -> Finding:
    """All is well with it."""
    return Finding(name, Level.OK, message)


def warning(name: str, message: str, action: str) -> Finding:
    """Models work, with less than one might think."""
    return Finding(name, Level.WARNING, message, action)


def failure(name: str, message: str, action: str) -> Finding:
    """Models do not work, or some."""
    return Finding(name, Level.FAILURE, message, action)


def skipped(name: str, what: str, why: str) -> Finding:
    """It could not be looked at."""
    return Finding(name, Level.SKIPPED, f"{what} cannot be looked at: {why}", _ASK)


def available(name: str, deployment: Object, action: str) -> Finding:
    """Whether any pod of a Deployment is."""
    where = f"{namespace_of(deployment)}/{name_of(deployment)}"
    there, wanted = status_of(deployment).get("availableReplicas") or 0, deployment["spec"].get("replicas", 1)
    if there:
        return ok(name, f"{there} of {wanted} pods of Deployment {where} are available")
    said = (
        condition(deployment, "Available").get("message") or condition(deployment, "Progressing").get("message") or ""
    )
    return failure(name, f"no pod of Deployment {where} is available{f': {said}' if said else ''}", action)


def version(text: str) -> Version | None:
    """The first two numbers of a version; None of what is none, such as a digest."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?\+?([-.+].*)?", text)
    return (int(match[1]), int(match[2])) if match else None


def text(found: Version) -> str:
    """A version, as people write it."""
    return ".".join(map(str, found))


def seconds(span: timedelta) -> str:
    """A span of time in whole seconds."""
    return f"{span.total_seconds():.0f} s"


def some(words: list[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
