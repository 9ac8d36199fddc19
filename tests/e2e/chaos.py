"""What is taken away while a model lives, and the books that are kept of it: for test_chaos.py.

An operator is killed with its pod, or where the node is ours with SIGKILL in it. An add-on is down while its
Deployment has no replicas. The API server of the local cluster is down while the node's process 1 has it not on its
list, so that whoever calls is refused, as by a machine that restarts.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from e2e.scenario import OPERATOR_PODS, Model, Object, Platform, restarts
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from benchmarks.load import Load
from benchmarks.table import markdown
from local import node, processes, teardown
from local.access import SYSTEM
from local.demo import weights
from local.layout import default_layout
from mlplatform import contract

ADD_ONS: Final = {
    "KServe": ("kserve", "kserve-controller-manager"),
    "Training Operator": ("kubeflow", "training-operator"),
    "istiod": ("istio-system", "istiod"),
}
"""Add-on → namespace and Deployment."""
API_SERVER: Final = "API server"
ONCE: Final = ("modelversions", "pytorchjobs", "jobs")
"""Kinds of which there is one object of a name, ever: a second one is a version or a training begun anew."""
PATIENCE: Final = 2
"""Deaths in one pod after which kubelet is not asked for another start: it waits 10 s then, 20 s, 40 s, up to 5 minutes."""
_LOOK_SECONDS: Final = 0.5
_BACK_SECONDS: Final = 120.0


def down(platform: Platform, what: str, seconds: float) -> None:
    """Takes an add-on or the API server away for that long, and waits until it is back."""
    away = _api_server_down if what == API_SERVER else _add_on_down
    with away(platform, what):
        time.sleep(seconds)


def can_stop(platform: Platform, what: str) -> bool:
    """Whether `down` can do it: the API server of the local cluster only."""
    return what != API_SERVER or platform.cluster.kind == "local"


def kill_operator(platform: Platform, *, in_place: bool) -> None:
    """Ends the operator without notice and waits until one writes again.

    Args:
        platform: Where.
        in_place: With SIGKILL: the container begins again in its pod, which still holds the Lease. Else, or where a pod
            has died so often that kubelet lets it wait, its pod is taken away, and the next one waits until the Lease
            has run out.
    """
    deaths = restarts(platform.list("pods", OPERATOR_PODS, SYSTEM))
    if in_place and deaths < PATIENCE and platform.cluster.kind == "local":
        for pid in teardown.cgroup_processes():
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"mlplatform.main" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    os.kill(pid, signal.SIGKILL)
    else:
        platform.kill_operator()
    _until_leading(platform)


def _until_leading(platform: Platform) -> None:
    deadline = time.monotonic() + _BACK_SECONDS
    while True:
        with suppress(RuntimeError):  # its port may open a moment after its pod is ready
            if platform.operator_metric("mlplatform_leader"):
                return
        assert time.monotonic() < deadline, "no operator leads"
        time.sleep(_LOOK_SECONDS)  # a metric tells nobody that it has changed


@contextmanager
def _add_on_down(platform: Platform, what: str) -> Iterator[None]:
    namespace, deployment = ADD_ONS[what]
    where = (f"deployment/{deployment}", "-n", namespace)
    before = platform.cluster.get(*where)
    selector = ",".join(f"{key}={value}" for key, value in before["spec"]["selector"]["matchLabels"].items())
    try:
        platform.kubectl("scale", *where, "--replicas=0")
        platform.kubectl("delete", "pod", "-n", namespace, "-l", selector, "--grace-period=0", "--force")
        yield
    finally:
        platform.kubectl("scale", *where, f"--replicas={before['spec']['replicas']}")
        platform.cluster.kubectl(
            "rollout", "status", *where, f"--timeout={_BACK_SECONDS:.0f}s", seconds=_BACK_SECONDS + 10
        )


@contextmanager
def _api_server_down(platform: Platform, _what: str) -> Iterator[None]:
    """Process 1 starts what is on its list again, so the list goes without it for a while."""
    layout = default_layout()
    spec = layout.supervisor_spec.read_text()
    listed = json.loads(spec)
    listed["daemons"] = [daemon for daemon in listed["daemons"] if daemon["name"] != "kube-apiserver"]
    try:
        _supervise(layout.supervisor_spec, json.dumps(listed))
        for pid, command in processes.members(_init()).items():
            if command == "kube-apiserver":
                os.kill(pid, signal.SIGKILL)
        yield
    finally:
        _supervise(layout.supervisor_spec, spec)
        _until_ready(platform)


def _supervise(path: Path, spec: str) -> None:
    path.write_text(spec)
    os.kill(_init(), signal.SIGHUP)


def _init() -> int:
    """Process 1 of the node."""
    pid = node.supervisor_pid(default_layout())
    assert pid is not None, "the node does not run"
    return pid


def _until_ready(platform: Platform) -> None:
    deadline = time.monotonic() + _BACK_SECONDS
    while True:
        try:
            platform.kubectl("get", "--raw", "/readyz")
        except RuntimeError:
            assert time.monotonic() < deadline, "the API server did not come back"
            time.sleep(1)  # there is nobody to ask for an event
        else:
            return


@dataclass
class Books:
    """What was ever seen of a model, by looks half a second apart: what comes and goes between two of them is missed.

    Attributes:
        objects: ``kind/name`` → the uids that it had.
        splits: Every split of the traffic, in order.
        decisions: Every entry of the history: version, decision and time.
    """

    objects: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    splits: list[dict[str, int]] = field(default_factory=list)
    decisions: set[tuple[str, str, str]] = field(default_factory=set)

    def note(self, kind: str, items: list[Object]) -> None:
        """Takes in what exists of a kind now."""
        for item in items:
            self.objects[f"{kind}/{item['metadata']['name']}"].add(item["metadata"]["uid"])

    def note_route(self, route: Object) -> None:
        """Takes in how traffic is split now."""
        split = weights(route)
        if not self.splits or self.splits[-1] != split:
            self.splits.append(split)

    def note_history(self, model: Object) -> None:
        """Takes in what the model's status has on record."""
        for entry in model.get("status", {}).get("history", ()):
            self.decisions.add((entry["version"], entry["decision"], entry["time"]))

    @property
    def twice(self) -> list[str]:
        """What was made more than once."""
        return sorted(name for name, uids in self.objects.items() if len(uids) > 1)

    def count(self, kind: str) -> int:
        """How many objects of a kind there ever were."""
        return sum(len(uids) for name, uids in self.objects.items() if name.startswith(f"{kind}/"))

    def steps(self, version: str) -> list[int]:
        """The weights that a version was given, in order, without the noughts before and after."""
        return [weight for split in self.splits if (weight := split.get(version, 0))]

    def promotions(self, version: str) -> int:
        """How often a version was promoted."""
        return sum((name, decision) == (version, "Promoted") for name, decision, _ in self.decisions)


@contextmanager
def books_kept(platform: Platform, model: Model) -> Iterator[Books]:
    """Looks at the model until the end of the block; an API server that is down is asked again."""
    books, stop, selector = Books(), threading.Event(), f"{contract.LABEL_MODEL}={model.name}"

    def look() -> None:
        while not stop.wait(_LOOK_SECONDS):
            with suppress(ApiException, HTTPError, RuntimeError):
                for kind in ONCE:
                    books.note(kind, platform.list(kind, selector, model.namespace))
                for route in platform.list("virtualservices", selector, model.namespace):
                    books.note_route(route)
                books.note_history(model.get())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield books
    finally:
        stop.set()
        thread.join()


@dataclass
class Row:
    """What one kind of trouble came to.

    Attributes:
        what: That was taken away.
        times: How often.
        seconds: For how long each time; 0 for a kill.
        lives: Versions that were asked for meanwhile.
        requests: Requests through the gateway meanwhile.
        failed: Of these.
    """

    what: str
    times: int = 0
    seconds: float = 0.0
    lives: int = 0
    requests: int = 0
    failed: int = 0


@contextmanager
def counted(load: Load, row: Row) -> Iterator[None]:
    """Adds the block's requests to the row."""
    total, failed = load.outcome.total, load.outcome.failed
    try:
        yield
    finally:
        row.requests += load.outcome.total - total
        row.failed += load.outcome.failed - failed


def table(rows: list[Row], ended: Mapping[str, int]) -> str:
    """What happened, and what there was at the end."""
    header = ("taken away", "times", "seconds each", "versions asked for", "requests", "failed")
    cells = [(r.what, r.times, f"{r.seconds:.0f}" if r.seconds else "-", r.lives, r.requests, r.failed) for r in rows]
    return markdown(header, cells) + "\n\n" + ", ".join(f"{what} {number}" for what, number in ended.items())
