"""The demo's verdict: each broken promise makes it fail, and says which one."""

from __future__ import annotations

import io
import json
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from benchmarks.load import Answer, Outcome, Target
from local import demo
from local.access import Cluster
from local.demo import Demo, DemoError, checks, summary


class FakeCluster:
    """Answers the two questions that the verdict asks the cluster."""

    def __init__(self) -> None:
        self.split = {"m-2": 100}

    def get(self, kind: str, *_arguments: str) -> Any:
        if kind == "mlmodel":
            return {"spec": {"rollout": {"steps": [5, 25, 50]}}}
        route = [
            {"destination": {"host": f"{name}-predictor.default.svc.cluster.local"}, "weight": weight}
            for name, weight in self.split.items()
        ]
        return {"spec": {"http": [{"route": []}, {"route": route}]}}


def view(name: str, sequence: int) -> dict[str, Any]:
    return {
        "outcome": "Ready",
        "version": {
            "name": name,
            "sequence": sequence,
            "stages": [{"name": stage, "state": "succeeded"} for stage in ("train", "audit", "rollout")],
            "metrics": {"roc_auc": 0.92},
            "fairness": [
                {"metric": "demographic_parity_difference", "attribute": "sex", "value": 0.1, "bound": 0.2, "passed": True}
            ],
            "candidates": [
                {
                    "name": "fp32", "sizeBytes": 2048, "latencyP50Ms": 0.1, "latencyP99Ms": 0.2,
                    "metrics": {"roc_auc": 0.92}, "selected": True,
                }
            ],
        },
    }  # fmt: skip


@pytest.fixture
def good() -> Demo:
    """A demo in which everything went as promised."""
    cluster = cast("Cluster", FakeCluster())
    return Demo(
        cluster,
        Console(file=io.StringIO(), width=160),
        views=[view("m-1", 1), view("m-2", 2)],
        answers=[Answer(200, {"prediction": ">50K", "model_version": "m-2"}, 0.01)],
        weights=[5, 25, 50, 100],
        outcome=Outcome(by_version=Counter({"m-1": 90, "m-2": 10}), seconds=[0.01] * 100),
        times={"install": 1.0},
    )


Change = Callable[[Demo], object]


def split(cluster: Cluster, weights: dict[str, int]) -> None:
    cast("FakeCluster", cluster).split = weights


BROKEN: list[tuple[str, Change, str]] = [
    ("quality", lambda d: d.views[1]["version"]["metrics"].update(roc_auc=0.904), "v2: test ROC-AUC"),
    ("fairness", lambda d: d.views[0]["version"]["fairness"][0].update(passed=False), "v1: fairness"),
    ("nothing audited", lambda d: d.views[0]["version"]["fairness"].clear(), "v1: fairness"),
    ("a stage", lambda d: d.views[0]["version"]["stages"][1].update(state="failed"), "every stage"),
    ("a step left out", lambda d: d.weights.remove(25), "the weights moved"),
    ("no weight seen", lambda d: d.weights.clear(), "the weights moved"),
    ("traffic at the old version", lambda d: split(d.cluster, {"m-1": 100}), "all traffic"),
    ("the old version's answer", lambda d: d.answers[-1].body.update(model_version="m-1"), "after the promotion"),
    ("a version that nobody asked", lambda d: d.outcome.by_version.pop("m-2"), "both versions answered"),
    ("an unknown version's answer", lambda d: d.outcome.by_version.update({"m-0": 1}), "nobody else"),
    ("a failed request", lambda d: setattr(d.outcome, "failed", 1), "no request failed"),
    ("no request at all", lambda d: setattr(d, "outcome", Outcome()), "no request failed"),
]


def test_a_demo_without_a_fault_passes(good: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "RESULTS", tmp_path / "results")
    assert all(check.kept for check in checks(good)), [check for check in checks(good) if not check.kept]
    summary(good)
    printed = cast("io.StringIO", good.out.file).getvalue()
    assert "no request failed" in printed
    assert [line for line in printed.splitlines() if line != line.rstrip()] == [], "no blanks at the ends of lines"
    story = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert story["requests"] == {
        "total": 100, "failed": 0, "byVersion": {"m-1": 90, "m-2": 10}, "failures": [],
        "p50Seconds": 0.01, "p99Seconds": 0.01,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "change", "promise"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_promise_fails_the_demo(
    reason: str, change: Change, promise: str, good: Demo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "RESULTS", tmp_path)
    change(good)
    with pytest.raises(DemoError) as failed:
        summary(good)
    assert promise in str(failed.value), reason


def unreachable() -> Target:
    """An address of the loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Target(f"http://127.0.0.1:{probe.getsockname()[1]}", "m.models.local")


def test_a_gateway_that_does_not_answer_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROUTE_SECONDS", 0.3)
    with pytest.raises(DemoError, match=r"has no route for m\.models\.local: 0 ConnectionRefusedError"):
        demo._wait_for_route(unreachable())  # noqa: SLF001  `ask` needs a cluster around it


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DemoError("it is not ready", "look here"), ("error: it is not ready", "next:  look here;")),
        (ConnectionResetError("peer"), ("error: ConnectionResetError: peer", "next:  read traceback.txt")),
        (KeyError("url"), ("error: KeyError: 'url'", "next:  read traceback.txt")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_fails_leaves_its_cause_and_logs(
    error: Exception,
    told: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(_: Demo) -> None:
        raise error

    cluster = Cluster("local", {"PATH": ""})
    monkeypatch.setattr(Cluster, "connect", lambda: cluster)
    monkeypatch.setattr(Cluster, "kubectl", lambda *_: "some log")
    monkeypatch.setattr(demo, "RESULTS", tmp_path)
    monkeypatch.setattr(demo, "STEPS", {"install": fails})
    assert demo.main([]) == 1
    printed = capsys.readouterr().out
    assert all(words in printed for words in told), printed
    assert (tmp_path / "operator.log").read_text() == "some log"
    assert (tmp_path / "traceback.txt").exists() is not isinstance(error, DemoError), "only where the cause is unknown"
