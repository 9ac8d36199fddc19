"""Measures the operator's own cost; `make bench-operator` runs it against a cluster with the chart and the example.

Three figures: its share of the time from apply to Ready, its resident memory,
and how many writes it sends while nothing changes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client, watch

from benchmarks.audit import Write, writes_between
from benchmarks.cluster import connect
from benchmarks.follow import Object, followed
from benchmarks.table import markdown, publish
from local.layout import default_layout
from mlplatform.api import MLModelSpec, MLModelStatus, decode

GROUP, VERSION, PLURAL = "mlplatform.dev", "v1alpha1", "mlmodels"
Interval = tuple[datetime, datetime]
SETTLE_SECONDS = 30
"""From a version's retirement to idleness: its pods drain, for 23 s at most, and the operator reports it."""


def covered(intervals: Iterable[Interval], within: Interval) -> float:
    """Seconds of `within` that the union of the intervals covers."""
    start, end = within
    total, reached = 0.0, start
    for low, high in sorted(intervals):
        low, high = max(low, reached), min(high, end)  # noqa: PLW2901  clipped to what is not counted yet
        if high > low:
            total += (high - low).total_seconds()
            reached = high
    return total


def pod_interval(pod: Object) -> Interval:
    """From the pod's creation to its end, or to Ready where it serves."""
    states = [status["state"] for status in pod["status"].get("containerStatuses", ())]
    ends = [state["terminated"]["finishedAt"] for state in states if "terminated" in state]
    conditions = pod["status"].get("conditions", ())
    ready = [c["lastTransitionTime"] for c in conditions if (c["type"], c["status"]) == ("Ready", "True")]
    seen = [datetime.fromisoformat(text) for text in ends or ready]
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"]), max(seen or [datetime.now(UTC)])


def wait_ready(
    api: client.CustomObjectsApi, name: str, namespace: str, generation: int, timeout: int
) -> dict[str, Any]:
    """Watches the MLModel until Ready is True for `generation`.

    Raises:
        TimeoutError: It was not Ready within `timeout` seconds.
    """
    stream = watch.Watch().stream(
        api.list_namespaced_custom_object, GROUP, VERSION, namespace, PLURAL,
        field_selector=f"metadata.name={name}", timeout_seconds=timeout,
    )  # fmt: skip
    for event in stream:
        model: dict[str, Any] = event["object"]
        for condition in model.get("status", {}).get("conditions", []):
            current = condition.get("observedGeneration", 0) >= generation
            if condition["type"] == "Ready" and condition["status"] == "True" and current:
                return model
    msg = (
        f"MLModel {namespace}/{name} is not Ready after {timeout} s; see `kubectl mlmodel status {name} -n {namespace}`"
    )
    raise TimeoutError(msg)


def wait_retired(api: client.CustomObjectsApi, model: str, namespace: str, timeout: int) -> None:
    """Watches the model's InferenceServices until one is left: `keepWarm` is over, and nothing is due any more.

    Raises:
        TimeoutError: More than one was left after `timeout` seconds.
    """
    where = ("serving.kserve.io", "v1beta1", namespace, "inferenceservices")
    selector = f"mlplatform.dev/model={model}"
    listed = api.list_namespaced_custom_object(*where, label_selector=selector)
    names = {item["metadata"]["name"] for item in listed["items"]}
    if len(names) <= 1:
        return
    # From the list on: one that goes between the two requests would not be seen to go.
    stream = watch.Watch().stream(
        api.list_namespaced_custom_object, *where, label_selector=selector,
        resource_version=listed["metadata"]["resourceVersion"], timeout_seconds=timeout,
    )  # fmt: skip
    for event in stream:
        if event["type"] == "DELETED":
            names.discard(event["object"]["metadata"]["name"])
        if len(names) <= 1:
            return
    msg = (
        f"MLModel {namespace}/{model} still has the InferenceServices {', '.join(sorted(names))} after {timeout} s; "
        "give a --timeout longer than its spec.rollout.keepWarm"
    )
    raise TimeoutError(msg)


def audit_log(given: Path | None, kind: str) -> Path:
    """The API server's audit log: the one that was named, else the local cluster's.

    Raises:
        SystemExit: There is none; without it no write would be counted, which is not the same as no write.
    """
    if given is None and kind != "local":
        raise SystemExit(f"CLUSTER={kind}: name the API server's audit log with --audit-log")
    log = given or default_layout().audit_log
    if not log.is_file():
        raise SystemExit(f"no audit log at {log}: name the API server's with --audit-log")
    return log


def operator_rss(core: client.CoreV1Api, namespace: str) -> int:
    """Bytes resident, as the operator's own /metrics reports them."""
    pods = core.list_namespaced_pod(namespace, label_selector="app.kubernetes.io/component=operator").items
    text = core.connect_get_namespaced_pod_proxy_with_path(f"{pods[0].metadata.name}:9090", namespace, "metrics")
    line = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes"))
    return int(float(line.split()[1]))


def main() -> int:
    """Runs the three measurements and writes their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="adult-income")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--operator-namespace", default="mlplatform-system")
    parser.add_argument("--audit-log", type=Path, help="default: the local cluster's")
    parser.add_argument("--idle", type=int, default=60, help="seconds to watch for writes (default 60)")
    parser.add_argument("--timeout", type=int, default=600)
    args = parser.parse_args()
    log = audit_log(args.audit_log, connect())
    api, core = client.CustomObjectsApi(), client.CoreV1Api()

    mine = f"mlplatform.dev/model={args.model}"
    with followed(core.list_namespaced_pod, args.namespace, selector=mine) as seen:
        print("Asking for a new version …", flush=True)
        started = datetime.now(UTC)
        patch = {"metadata": {"annotations": {"mlplatform.dev/retrain": started.isoformat()}}}
        try:
            model = api.patch_namespaced_custom_object(GROUP, VERSION, args.namespace, PLURAL, args.model, patch)
        except client.ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            raise SystemExit(f"there is no MLModel {args.namespace}/{args.model}: run `make demo` first") from None
        before = model.get("status", {}).get("latestVersion")
        deadline = time.monotonic() + args.timeout
        while model.get("status", {}).get("latestVersion") == before:
            if time.monotonic() > deadline:
                msg = f"MLModel {args.namespace}/{args.model} has no version after {before} after {args.timeout} s"
                raise TimeoutError(msg)
            model = wait_ready(api, args.model, args.namespace, 0, args.timeout)
        version = model["status"]["latestVersion"]
        model = wait_ready(api, args.model, args.namespace, model["metadata"]["generation"], args.timeout)
        ended = datetime.now(UTC)
        if not operator_writes(writes_between(log, started, ended)):
            raise SystemExit(f"{log} tells of no write by the operator during the rollout: it is another cluster's")
    pods = [pod for pod in seen.values() if pod["metadata"]["labels"].get("mlplatform.dev/version") == version]
    busy = covered(map(pod_interval, pods), (started, ended))
    rollout = rollout_seconds(model, version)
    total = (ended - started).total_seconds()

    print("Waiting for the previous version to be retired …", flush=True)
    wait_retired(api, args.model, args.namespace, args.timeout)
    time.sleep(SETTLE_SECONDS)
    print(f"Watching {args.idle} s for writes …", flush=True)
    idle_from = datetime.now(UTC)
    time.sleep(args.idle)  # the measurement itself: how much happens in that time
    writes = writes_between(log, idle_from, datetime.now(UTC))

    rows: list[list[object]] = [
        ["apply to Ready", f"{total:.1f} s"],
        ["… of it pods being scheduled, started, run", f"{busy:.1f} s"],
        ["… of it rollout steps at their interval", f"{rollout:.1f} s"],
        ["operator's own share", f"{total - busy - rollout:.1f} s"],
        ["operator's resident memory", f"{operator_rss(core, args.operator_namespace) / 2**20:.0f} MiB"],
        [f"writes in {args.idle} s of idling, operator", operator_writes(writes)],
        [f"writes in {args.idle} s of idling, everybody", sum(writes.values())],
    ]
    text = markdown(["figure", "value"], rows)
    print(text)
    publish("operator", "make bench-operator", text)
    return 0


def rollout_seconds(model: dict[str, Any], version: str) -> float:
    """How long the weights were held on purpose: the configured steps times their interval."""
    status = decode(MLModelStatus, model["status"], "status")
    rollout = decode(MLModelSpec, model["spec"]).rollout
    replaced = any(decision.version == version and decision.previous for decision in status.history)
    if not replaced or rollout.strategy == "recreate":
        return 0.0
    return len(rollout.steps) * rollout.interval.total_seconds()


def operator_writes(writes: Counter[Write]) -> int:
    """Those of the chart's operator ServiceAccount."""
    return sum(count for write, count in writes.items() if write.user.endswith(":mlplatform-operator"))


if __name__ == "__main__":
    sys.exit(main())
