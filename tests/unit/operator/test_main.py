"""The wiring: what is watched, what belongs to which model, who wakes whom."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

import kopf
import pytest
from unit.operator_world import NAMESPACE, mlmodel

from mlplatform import contract, main
from mlplatform.reconciler import Reconciler, World
from mlplatform.resources import KINDS
from mlplatform.settings import Settings, SettingsError
from mlplatform.snapshot import Object


def child(kind: str, **labels: str) -> Object:
    return {
        "kind": kind,
        "metadata": {"name": "x", "namespace": NAMESPACE, "labels": labels},
        "spec": {"model": "adult"},
    }


@pytest.mark.parametrize(
    ("reason", "kind", "obj", "key"),
    [
        ("a model belongs to itself", "MLModel", mlmodel(), (NAMESPACE, "adult")),
        ("a version says whose it is", "ModelVersion", child("ModelVersion"), (NAMESPACE, "adult")),
        ("a child says it by label", "Pod", child("Pod", **{contract.LABEL_MODEL: "adult"}), (NAMESPACE, "adult")),
        ("others are nobody's", "Pod", child("Pod"), None),
    ],
)
def test_model_key(reason: str, kind: str, obj: Object, key: main.Key | None) -> None:
    assert main.model_key(kind, obj) == key, reason


def test_pods_are_kept_without_their_specs_and_nothing_keeps_managed_fields() -> None:
    obj = {**child("Pod"), "status": {"phase": "Running"}}
    obj["metadata"]["managedFields"] = [{}] * 10
    assert main.slim("Pod", obj) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", "namespace": NAMESPACE, "labels": {}},
        "status": {"phase": "Running"},
    }
    assert main.slim("Job", obj)["spec"] == {"model": "adult"}


def test_every_kind_that_is_written_is_watched() -> None:
    kinds = main.watched(Settings(istio_api_version="networking.istio.io/v1beta1"))
    assert {kind: plural for kind, (_, _, plural) in kinds.items()} == {
        kind: entry.plural for kind, entry in KINDS.items() if kind not in {"Event", "Deployment"}
    }
    assert kinds["Pod"] == ("", "v1", "pods")
    assert kinds["Job"] == ("batch", "v1", "jobs")
    assert kinds["VirtualService"] == ("networking.istio.io", "v1beta1", "virtualservices")


def test_wiring_gives_each_kind_an_index_and_an_alarm_and_the_two_of_ours_a_daemon() -> None:
    registry = kopf.OperatorRegistry()
    main.wire(registry, Settings(), cluster=None)
    kinds = main.watched(Settings())
    indexes = {str(h.id) for h in registry._indexing.get_all_handlers()}  # noqa: SLF001  kopf shows them nowhere else
    wakes = {str(h.id) for h in registry._watching.get_all_handlers()}  # noqa: SLF001  likewise
    daemons = {str(h.id) for h in registry._spawning.get_all_handlers()}  # noqa: SLF001  likewise
    assert indexes == kinds.keys()
    assert wakes == {f"wake-{kind}" for kind in kinds}
    assert daemons == {"keep-MLModel", "keep-ModelVersion"}


def test_kopf_is_set_up_to_write_nothing_of_its_own_and_to_let_go() -> None:
    settings = kopf.OperatorSettings()
    kinds = main.watched(Settings())
    main.tune(settings, kinds)
    assert not settings.posting.enabled
    assert settings.persistence.finalizer == "mlplatform.dev/operator"
    body = kopf.Body(mlmodel())
    assert settings.persistence.diffbase_storage.build(body=body) == {}, "no event of an object costs a copy of it"
    assert settings.persistence.diffbase_storage.fetch(body=body) is None
    selectors = settings.watching.label_selectors
    unlabelled = {"MLModel", "ModelVersion", "Ingress"}
    assert {kind for kind, where in kinds.items() if where in selectors} == kinds.keys() - unlabelled


def test_an_alarm_wakes_the_daemons_of_its_model_only() -> None:
    alarm = main.Alarm()
    mine, other = alarm.subscribe(("a", "m")), alarm.subscribe(("b", "m"))
    alarm.ring(("a", "m"))
    alarm.ring(("nobody", "listens"))
    assert (mine.is_set(), other.is_set()) == (True, False)
    alarm.unsubscribe(("a", "m"), mine)
    mine.clear()
    alarm.ring(("a", "m"))
    assert not mine.is_set()


class Stopped:
    """kopf's sign that a daemon shall end."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def wait(self) -> None:
        await self.event.wait()

    def is_set(self) -> bool:
        return self.event.is_set()


def test_a_rest_ends_with_the_alarm_the_time_or_the_end() -> None:
    async def scenario() -> None:
        ringing, stopped = asyncio.Event(), Stopped()
        rest: Any = main._rest  # noqa: SLF001  the daemon's pause
        assert await rest(ringing, stopped, 0.001), "time is over: go on"
        ringing.set()
        assert await rest(ringing, stopped, 60), "something happened: go on"
        assert not ringing.is_set(), "and what has been heard does not ring again"
        stopped.event.set()
        assert not await rest(ringing, stopped, 60), "the end"

    asyncio.run(scenario())


def test_a_reconciler_names_itself_in_logs() -> None:
    world = World(cast("Any", None), cast("Any", None), Settings())
    assert str(Reconciler(world, "MLModel", "a", "m", "m")) == "MLModel a/m"


def test_a_bad_setting_ends_the_program_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPLATFORM_METRICS_PORT", "tcp://10.96.0.1:9090")
    with pytest.raises(SystemExit, match="MLPLATFORM_METRICS_PORT"):
        main.main()


def test_no_cluster_ends_the_program_with_where_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(SystemExit, match=r"neither a ServiceAccount .* nor a kubeconfig"):
        main.main()


def test_whoever_shares_a_lease_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "connect", lambda *_: None)
    assert main.candidate(Settings(lease="")) is None, "the only one"
    found = main.candidate(Settings(lease="ns/operator", identity="pod-1"))
    assert found
    assert (found.namespace, found.name, found.me) == ("ns", "operator", "pod-1")
    unnamed = main.candidate(Settings(lease="ns/operator"))
    assert unnamed
    assert unnamed.me.endswith(str(os.getpid()))
    with pytest.raises(SettingsError, match="MLPLATFORM_LEASE='operator'"):
        Settings.from_env({"MLPLATFORM_LEASE": "operator"})


def test_liveness_answers_whether_it_works_or_waits() -> None:
    async def ask() -> bytes:
        async with await asyncio.start_server(main._alive, host="127.0.0.1") as server:  # noqa: SLF001  its handler
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: pod\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 200 OK\r\n")
