"""The wiring: what is watched, what belongs to which model, who wakes whom."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import Any, cast

import kopf
import pytest

from mlplatform import main
from mlplatform.reconciler import Reconciler, World
from mlplatform.resources import KINDS
from mlplatform.settings import Settings, SettingsError


def test_every_kind_that_is_written_is_watched() -> None:
    kinds = main.watched(Settings(istio_api_version="networking.istio.io/v1beta1"))
    assert kinds.keys() == KINDS.keys() - {"Event", "Deployment"}
    assert main.where("Pod", kinds["Pod"]) == ("", "v1", "pods")
    assert main.where("Job", kinds["Job"]) == ("batch", "v1", "jobs")
    assert main.where("VirtualService", kinds["VirtualService"]) == (
        "networking.istio.io",
        "v1beta1",
        "virtualservices",
    )


def test_each_kind_is_seen_and_nothing_needs_a_finalizer_or_a_patch_of_kopfs() -> None:
    registry, seen = kopf.OperatorRegistry(), list[Any]()
    kinds = main.watched(Settings())

    async def streams() -> bool:
        return True

    main.wire(registry, kinds, lambda *what: seen.append(what), lambda: None, streams)
    handlers = registry._watching.get_all_handlers()  # noqa: SLF001  kopf shows them nowhere else
    assert {str(handler.id) for handler in handlers} == {f"see-{kind}" for kind in kinds}
    others = (registry._spawning, registry._changing, registry._indexing)  # noqa: SLF001  likewise
    assert [list(each.get_all_handlers()) for each in others] == [[], [], []]
    see: Any = next(handler.fn for handler in handlers if handler.id == "see-Pod")
    asyncio.run(see(event={"type": "ADDED", "object": {"metadata": {}}}))
    assert seen == [("Pod", "ADDED", {"metadata": {}})]


def test_kopf_is_set_up_to_write_nothing_of_its_own_and_to_let_go() -> None:
    settings = kopf.OperatorSettings()
    kinds = main.watched(Settings())
    main.tune(settings, kinds, streams=True)
    assert settings.watching.initial_streaming
    assert not settings.posting.enabled
    assert settings.persistence.finalizer == "mlplatform.dev/operator"
    body = kopf.Body({"metadata": {"name": "x"}, "spec": {"large": "1" * 1000}})
    assert settings.persistence.diffbase_storage.build(body=body) == {}, "no event of an object costs a copy of it"
    assert settings.persistence.diffbase_storage.fetch(body=body) is None
    selectors = settings.watching.label_selectors
    unlabelled = {"MLModel", "ModelVersion", "Ingress"}
    chosen = {kind for kind, version in kinds.items() if main.where(kind, version) in selectors}
    assert chosen == kinds.keys() - unlabelled


def test_a_request_of_a_watch_is_tried_again_without_end_and_never_in_step_with_others() -> None:
    settings = kopf.OperatorSettings()
    main.tune(settings, main.watched(Settings()), streams=False)
    assert not settings.watching.initial_streaming
    backoffs = cast("main.Backoffs", settings.networking.error_backoffs)
    first, second = (list(itertools.islice(backoffs, 100)) for _ in range(2))
    assert first != second
    assert max(first) <= 40
    assert sum(first[:3]) < 5, "a short outage is over soon"


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


@pytest.mark.parametrize(
    ("reason", "page", "ready", "status"),
    [
        ("one that works or waits is alive", "healthz", True, b"200 OK"),
        ("so is one that has only begun", "healthz", False, b"200 OK"),
        ("but not ready", "readyz", False, b"503 Service Unavailable"),
        ("until it has looked at everything", "readyz", True, b"200 OK"),
    ],
)
def test_probes(reason: str, page: str, ready: bool, status: bytes) -> None:  # noqa: FBT001  a table's
    async def ask() -> bytes:
        async with await asyncio.start_server(main._health(lambda: ready), host="127.0.0.1") as server:  # noqa: SLF001  its handler
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(f"GET /{page} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return answer

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 " + status), reason
