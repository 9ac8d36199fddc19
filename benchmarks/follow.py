"""Objects as they were seen last, also those that are gone: a stage's workload and pods go once its success is on record.

Called by the benchmarks that time a version from within.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes import watch

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@contextmanager
def followed(call: Callable[..., Any], *where: str, selector: str) -> Iterator[dict[str, Object]]:
    """The last state by uid of what a list call lists, for as long as the block takes."""
    seen: dict[str, Object] = {}
    watching = watch.Watch()

    def follow() -> None:
        for event in watching.stream(call, *where, label_selector=selector, timeout_seconds=3600):
            found = event["raw_object"]
            seen[found["metadata"]["uid"]] = found

    threading.Thread(target=follow, daemon=True).start()
    try:
        yield seen
    finally:
        watching.stop()
