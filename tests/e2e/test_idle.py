"""A platform with nothing to do writes nothing, and its operator is small."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from e2e.scenario import Model, Platform

from benchmarks.audit import Write, writes_between
from local.access import OPERATOR, SYSTEM
from local.layout import default_layout
from mlplatform.contract import GROUP

WINDOW_SECONDS = 60.0
OPERATOR_USER = f"system:serviceaccount:{SYSTEM}:{OPERATOR}"
METRIC_VERBS = {"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}
RSS_LIMIT = 250 * 1024**2


def test_an_idle_operator_writes_nothing_in_a_minute(model: Model, platform: Platform) -> None:
    # Given a model that serves and asks for nothing
    model.becomes_ready()

    # When a minute passes in which nothing happens (there is no event to wait for: silence is the subject)
    written = writes_from_now(platform)
    threading.Event().wait(WINDOW_SECONDS)

    # Then the operator has written nothing
    assert written() == Counter()


def writes_from_now(platform: Platform) -> Callable[[], Counter[Any]]:
    """A function that counts what the operator has written since this call.

    The local cluster's audit log names who wrote; elsewhere the API server's
    metrics count what anybody wrote of the kinds that only the operator writes.
    """
    if platform.cluster.kind == "local":
        start = datetime.now(UTC)
        return lambda: audited(default_layout().audit_log, start)
    before = counted(platform)
    return lambda: counted(platform) - before


def audited(log: Path, start: datetime) -> Counter[Write]:
    """The operator's writes since `start` in an audit log."""

    def by_operator(since: datetime, until: datetime) -> Counter[Write]:
        found = writes_between(log, since, until)
        return Counter({write: n for write, n in found.items() if write.user == OPERATOR_USER})

    always = datetime.min.replace(tzinfo=UTC)
    assert by_operator(always, start), f"{log} tells of no write by {OPERATOR_USER}: it is not this cluster's"
    return by_operator(start, datetime.now(UTC))


def counted(platform: Platform) -> Counter[tuple[str, str]]:
    """Writes so far of the platform's own kinds in the API server's metrics."""
    metrics = platform.kubectl("get", "--raw", "/metrics")
    found: Counter[tuple[str, str]] = Counter()
    for labels, value in re.findall(r"^apiserver_request_total\{([^}]*)\} (\S+)$", metrics, re.MULTILINE):
        at = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if at.get("group") == GROUP and at.get("verb") in METRIC_VERBS:
            found[at["verb"], at["resource"]] += int(float(value))
    assert found, "the API server counts no write of the platform's kinds, though a model was just made"
    return found


def test_the_operator_is_small(platform: Platform, record_property: Callable[[str, object], None]) -> None:
    # Given an operator that has run pipelines, then it stays below its limit
    resident = platform.operator_metric("process_resident_memory_bytes")
    record_property("operator_rss_mib", round(resident / 1024**2, 1))
    assert resident < RSS_LIMIT, f"{resident / 1024**2:.0f} MiB"
