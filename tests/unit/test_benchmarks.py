"""The benchmarks say what they could not measure, instead of publishing a number."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes import config, watch
from kubernetes.client.exceptions import ApiException

from benchmarks import cluster, operator, serving
from benchmarks.audit import Write, writes_between
from local.access import Cluster
from local.layout import default_layout

OPERATOR = "system:serviceaccount:mlplatform-system:mlplatform-operator"
NODE = "system:node:local"


def event(second: int, verb: str, resource: str, user: str = OPERATOR) -> str:
    """A line of the audit log, received `second` seconds after noon."""
    return json.dumps(
        {
            "verb": verb,
            "user": {"username": user},
            "objectRef": {"resource": resource},
            "requestReceivedTimestamp": f"2026-01-31T12:00:{second:02}.500000Z",
        }
    )


def at(second: int) -> datetime:
    return datetime(2026, 1, 31, 12, 0, second, tzinfo=UTC)


def test_writes_are_counted_by_when_the_server_received_them(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    lines = [
        event(9, "patch", "mlmodels"),
        event(10, "patch", "mlmodels"),
        event(12, "create", "jobs"),
        event(12, "update", "leases"),
        event(13, "get", "jobs"),
        event(14, "patch", "pods", NODE),
        event(20, "delete", "jobs"),
    ]
    log.write_text("\n".join(lines))
    (tmp_path / "audit-2026-01-31T12-00-05.000.log").write_text(event(11, "patch", "mlmodels"))
    found = writes_between(log, at(10), at(20))
    assert found == Counter(
        {Write(OPERATOR, "patch", "mlmodels"): 2, Write(OPERATOR, "create", "jobs"): 1, Write(NODE, "patch", "pods"): 1}
    )
    assert operator.operator_writes(found) == 3


def test_a_log_that_is_not_there_is_no_silence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        writes_between(tmp_path / "audit.log", at(0), at(1))


def test_the_operators_benchmark_needs_the_clusters_own_audit_log(tmp_path: Path) -> None:
    missing = tmp_path / "audit.log"
    with pytest.raises(SystemExit, match=rf"{re.escape(str(missing))}.*--audit-log"):
        operator.audit_log(missing, "local")
    with pytest.raises(SystemExit, match=r"CLUSTER=kind.*--audit-log"):
        operator.audit_log(None, "kind")
    missing.touch()
    assert operator.audit_log(missing, "kind") == missing


class FakeApi:
    """Lists two InferenceServices; what goes of them comes by the watch."""

    def list_namespaced_custom_object(self, *_where: str, **_options: Any) -> dict[str, Any]:
        names = ("m-1", "m-2")
        return {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": name}} for name in names]}


def stream_of(*events: tuple[str, str]) -> Callable[..., Iterator[dict[str, Any]]]:
    """`watch.Watch.stream` with these events, after which its time is up."""

    def stream(_self: watch.Watch, _list: Any, *_where: str, **options: Any) -> Iterator[dict[str, Any]]:
        assert options["resource_version"] == "7", "what goes between the list and the watch would be missed"
        for kind, name in events:
            yield {"type": kind, "object": {"metadata": {"name": name}}}

    return stream


def test_one_version_left_is_what_retired_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.Watch, "stream", stream_of(("MODIFIED", "m-1"), ("DELETED", "m-1")))
    operator.wait_retired(FakeApi(), "m", "default", 5)


def test_a_version_that_stays_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.Watch, "stream", stream_of(("MODIFIED", "m-1")))
    with pytest.raises(TimeoutError, match=r"default/m .* m-1, m-2 after 5 s.*keepWarm"):
        operator.wait_retired(FakeApi(), "m", "default", 5)


class FakeCore:
    """A namespace that is there for so many looks."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def delete_namespace(self, _name: str) -> None:
        """Asks only."""

    def read_namespace(self, _name: str) -> None:
        self.looks -= 1
        if self.looks < 0:
            raise ApiException(status=404)


def test_a_namespace_that_goes_is_waited_for() -> None:
    serving.delete_namespace(FakeCore(looks=1))


def test_a_namespace_that_stays_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "READY_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match=serving.NAMESPACE):
        serving.delete_namespace(FakeCore(looks=float("inf")))


@pytest.mark.parametrize(
    ("kind", "loaded", "reason"),
    [
        ("local", str(default_layout().kubeconfig), "never another cluster, whatever is exported"),
        ("current", "/home/sre/.kube/production", "this is how one says so"),
    ],
)
def test_the_cluster_is_the_one_that_is_named(
    kind: str, loaded: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []
    monkeypatch.setenv("CLUSTER", kind)
    monkeypatch.setenv("KUBECONFIG", "/home/sre/.kube/production")
    monkeypatch.setattr(Cluster, "kubectl", lambda *_words, **_options: "ok")
    monkeypatch.setattr(config, "load_kube_config", told.append)
    assert cluster.connect() == kind, reason
    assert told == [loaded], reason
