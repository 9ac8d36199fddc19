"""What was written to a cluster in a stretch of time, by the API server's audit log.

Called by `benchmarks.operator` for its idle rows and by tests/e2e, where an idle operator must write nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

VERBS: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})


class Write(NamedTuple):
    """Who changed what.

    Attributes:
        user: E.g. ``system:serviceaccount:mlplatform-system:mlplatform-operator``.
        verb: One of `VERBS`.
        resource: E.g. ``mlmodels``.
    """

    user: str
    verb: str
    resource: str


def writes_between(log: Path, start: datetime, end: datetime) -> Counter[Write]:
    """Write requests that the API server received in ``[start, end)``.

    Leases are left out: renewing one is how kubelets and controllers say that they live.

    Args:
        log: One event a line (audit.k8s.io/v1). What the server renamed at ``--audit-log-maxsize`` is read, too:
            beside ``audit.log`` e.g. ``audit-2026-01-31T12-00-00.000.log``.
        start: With a time zone.
        end: Likewise.

    Raises:
        FileNotFoundError: There is no such log.
    """
    found: Counter[Write] = Counter()
    for file in (log, *log.parent.glob(f"{log.stem}-*{log.suffix}")):
        for line in file.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            write = Write(event["user"]["username"], event["verb"], event.get("objectRef", {}).get("resource", ""))
            if write.verb not in VERBS or write.resource == "leases":
                continue
            if start <= datetime.fromisoformat(event["requestReceivedTimestamp"]) < end:
                found[write] += 1
    return found
