"""What pods that serve go through: more requests than they can answer, and a worker that hangs."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from e2e.scenario import NAMESPACE, Model, Object, Platform, ask_until, condition, is_ready, restarts

from local.demo import PEOPLE
from mlplatform.resources import inferenceservice

pytestmark = pytest.mark.nightly

CLIENTS = 1400
"""Connections, each with a request at all times; the server's queue holds 1,024."""
OVERLOAD_SECONDS = 60.0
REPLACED_SECONDS = 60.0

HANG = """
import os, pathlib, signal
for process in pathlib.Path("/proc").iterdir():
    mine = process.name in ("self", "thread-self", str(os.getpid())) or not process.name.isdigit()
    if not mine and b"model_service_worker.py" in (process / "cmdline").read_bytes():
        os.kill(int(process.name), signal.SIGSTOP)
        print(process.name)
"""


def serving_pods(platform: Platform, model: Model) -> list[Object]:
    """The pods of the stable version."""
    version = model.get()["status"]["stable"]["version"]
    return platform.list("pods", f"app={inferenceservice.pod_label(version)}")


def test_overload_restarts_nothing_and_takes_nothing_out(model: Model, platform: Platform) -> None:
    # Given a model that serves, when more is asked of it than its queue holds, for a minute
    model.becomes_ready()
    before = serving_pods(platform, model)
    seen: list[bool] = []
    with overload(model) as statuses:
        until = time.monotonic() + OVERLOAD_SECONDS
        while time.monotonic() < until:
            seen += map(is_ready, serving_pods(platform, model))
            time.sleep(1)

    # Then its queue was full, its pods stayed in, none was restarted, and it answers
    assert statuses[503] > 0, statuses
    assert statuses[200] > statuses[503] / 100, statuses
    after = serving_pods(platform, model)
    assert {pod["metadata"]["uid"] for pod in after} == {pod["metadata"]["uid"] for pod in before}
    assert restarts(after) == restarts(before)
    assert all(seen), f"{seen.count(False)} of {len(seen)} looks found a pod that was not ready"
    assert condition(model.get(), "Serving") == "True"
    assert model.answers().status == 200


@contextmanager
def overload(model: Model) -> Iterator[Counter[int]]:
    """Requests on `CLIENTS` connections for the whole block; yields the count of answers by status, 0 for none."""
    statuses: Counter[int] = Counter()
    stop, target = threading.Event(), model.target()
    body = json.dumps({"features": PEOPLE[0]})
    headers = {"Host": target.host, "Content-Type": "application/json"}

    def ask() -> None:
        connection = target.connect()
        while not stop.is_set():
            try:
                connection.request("POST", "/predict", body, headers)
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
            except (OSError, http.client.HTTPException):
                connection.close()
                statuses[0] += 1
        connection.close()

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield statuses
    finally:
        stop.set()
        for client in clients:
            client.join()


def test_a_worker_that_hangs_is_replaced_within_a_minute(model: Model, platform: Platform) -> None:
    # Given the only pod of a version, when its worker hangs
    model.becomes_ready()
    (before,) = serving_pods(platform, model)
    name = before["metadata"]["name"]
    hung = platform.kubectl("exec", name, "-n", NAMESPACE, "-c", "kserve-container", "--", "python", "-c", HANG)
    assert hung.strip(), "a worker was found"

    # Then it answers again within a minute
    ask_until(model.target(), lambda answer: answer.status == 200, REPLACED_SECONDS)

    # And its pod is the same, and was not restarted
    (after,) = serving_pods(platform, model)
    assert (after["metadata"]["uid"], restarts([after])) == (before["metadata"]["uid"], restarts([before]))
