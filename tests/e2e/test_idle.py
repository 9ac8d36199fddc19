"""A platform with nothing to do writes nothing, and its operator is small."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from e2e.scenario import Model, Platform

from local.access import OPERATOR, SYSTEM
from local.layout import default_layout
from mlplatform.contract import GROUP

WINDOW_SECONDS = 60.0
AUDIT_VERBS = {"create", "update", "patch", "delete", "deletecollection"}
METRIC_VERBS = {"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"}
RSS_LIMIT = 250 * 1024**2


def test_an_idle_operator_writes_nothing_in_a_minute(model: Model, platform: Platform) -> None:
    # Given a model that serves and asks for nothing
    model.becomes_ready()
    before = writes(platform)

    # When a minute passes in which nothing happens (there is no event to wait for: silence is the subject)
    threading.Event().wait(WINDOW_SECONDS)

    # Then the operator has written nothing
    assert writes(platform) - before == Counter()


def writes(platform: Platform) -> Counter[tuple[str, str]]:
    """The operator's write requests so far, by verb and resource.

    The local cluster's audit log names who wrote; elsewhere the API server's
    metrics count what anybody wrote of the kinds that only the operator writes.
    """
    if platform.cluster.kind == "local":
        return audited(default_layout().audit_log, f"system:serviceaccount:{SYSTEM}:{OPERATOR}")
    return counted(platform.kubectl("get", "--raw", "/metrics"))


def audited(log: Path, user: str) -> Counter[tuple[str, str]]:
    """Writes of a user in an audit log."""
    found: Counter[tuple[str, str]] = Counter()
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            if event["verb"] in AUDIT_VERBS and event["user"]["username"] == user:
                found[event["verb"], event.get("objectRef", {}).get("resource", "")] += 1
    assert found, f"{log} tells of no write by {user}, who has just made a model: it is not this cluster's"
    return found


def counted(metrics: str) -> Counter[tuple[str, str]]:
    """Writes of the platform's own kinds in the API server's metrics."""
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
