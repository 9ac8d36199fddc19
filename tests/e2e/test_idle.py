"""A platform with nothing to do writes nothing, and its operator is small."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from e2e.scenario import Model, Platform, moment

from local.access import OPERATOR, SYSTEM
from local.layout import default_layout

WINDOW_SECONDS = 60.0
WRITES = {"create", "update", "patch", "delete", "deletecollection"}
RSS_LIMIT = 250 * 1024**2


def test_an_idle_operator_writes_nothing_in_a_minute(model: Model, platform: Platform) -> None:
    # Given a model that serves and asks for nothing
    model.becomes_ready()
    if platform.cluster.kind != "local":
        pytest.skip("only the local cluster's audit log can be read from here")

    # When a minute passes in which nothing happens (there is no event to wait for: silence is the subject)
    start = datetime.now(UTC)
    threading.Event().wait(WINDOW_SECONDS)

    # Then the operator has written nothing
    by_user = writes(default_layout().audit_log, start)
    assert not [what for what in by_user if what[0] == f"system:serviceaccount:{SYSTEM}:{OPERATOR}"], by_user


def writes(log: Path, since: datetime) -> Counter[tuple[str, str, str]]:
    """Write requests since then: ``(user, verb, resource)`` and how many."""
    found: Counter[tuple[str, str, str]] = Counter()
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            if event["verb"] in WRITES and moment(event["requestReceivedTimestamp"]) >= since:
                resource = event.get("objectRef", {}).get("resource", "")
                found[event["user"]["username"], event["verb"], resource] += 1
    assert found, f"{log} tells of no write at all, not even of the node's lease: it is not this cluster's"
    return found


def test_the_operator_is_small(platform: Platform, record_property: Callable[[str, object], None]) -> None:
    # Given an operator that has run pipelines, then it stays below its limit
    resident = platform.operator_metric("process_resident_memory_bytes")
    record_property("operator_rss_mib", round(resident / 1024**2, 1))
    assert resident < RSS_LIMIT, f"{resident / 1024**2:.0f} MiB"
