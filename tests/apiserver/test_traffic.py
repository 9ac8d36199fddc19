"""What the operator asks of the API server when nothing happens, when much does, and when the API server is in trouble."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from apiserver_fixture import CRD_FOLDER, ApiServer, started
from apiserver_proxy import GONE, UNKNOWN, Answer, Proxy, Request, busy
from operator_program import MLMODEL, Program, apply, eventually, get

from mlplatform import contract
from mlplatform.main import CHUNK
from mlplatform.snapshot import Object, name_of

pytestmark = pytest.mark.apiserver

WATCHED = {"mlmodels", "modelversions", "jobs", "pods", "services", "ingresses"}
"""Of the kinds that the operator watches those that are served: there are no add-ons."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with started(tmp_path_factory.mktemp("traffic-apiserver")) as found:
        found.install_crds(*sorted(CRD_FOLDER.glob("mlplatform.dev_*.yaml")))
        yield found


@pytest.fixture
def proxy(server: ApiServer, tmp_path: Path) -> Iterator[Proxy]:
    found = Proxy(server, tmp_path)
    yield found
    found.close()


@pytest.fixture
def operator(server: ApiServer, proxy: Proxy, tmp_path: Path) -> Iterator[Program]:
    program = Program(server, tmp_path / "operator.log", proxy.kubeconfig)
    program.start()
    yield program
    program.stop(kill=True)


@pytest.fixture
def of_before(server: ApiServer, proxy: Proxy, tmp_path: Path) -> Iterator[Program]:
    """An operator of an API server that gives lists in pages only."""
    proxy.rule = in_pages
    program = Program(server, tmp_path / "operator.log", proxy.kubeconfig)
    program.start()
    yield program
    program.stop(kill=True)


def in_pages(request: Request) -> Answer | None:
    return UNKNOWN if "sendInitialEvents" in request.query else None


def lists(request: Request) -> bool:
    """Whether it lists a kind of which there may be thousands."""
    return (request.lists or request.begins) and request.kind in WATCHED


def watches(request: Request) -> bool:
    return request.watches and request.kind in WATCHED


def leases(request: Request) -> bool:
    return "/leases" in request.path


def suspended(server: ApiServer, value: bool) -> None:  # noqa: FBT001  the field's value
    apply(server, "default", MLMODEL + f"\n  suspend: {str(value).lower()}\n")


def acted_on(server: ApiServer) -> bool:
    """Whether the newest change of the model is."""
    model = get(server, "default", "mlmodel/adult-income")
    return bool((model.get("status") or {}).get("observedGeneration") == model["metadata"]["generation"])


def many(server: ApiServer, number: int) -> None:
    """Pods of a model that there is none of, so that a list has more than one page."""
    labels = {contract.LABEL_MODEL: "nobody"}
    pods: list[Object] = [
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{n}", "namespace": "default", "labels": labels},
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        }
        for n in range(number)
    ]  # fmt: skip
    server.kubectl(
        "apply", "--server-side", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
    )


def streams(server: ApiServer) -> bool:
    """Whether its lists may come as streams: Kubernetes 1.34 and newer."""
    return int(json.loads(server.kubectl("get", "--raw", "/version"))["minor"]) >= 34


def ready(operator: Program) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{operator.health}/readyz"):
        return True
    return False


def test_a_quiet_operator_writes_nothing_but_its_lease(server: ApiServer, operator: Program, proxy: Proxy) -> None:
    suspended(server, value=True)
    eventually(lambda: acted_on(server), operator.log.read_text)
    time.sleep(3)  # what follows from it, events and what the watch shows of them
    begin = len(proxy.requests)
    time.sleep(10)  # the absence of something has no event to wait for
    sent = {(request.method, request.path) for request in proxy.seen(lambda r: r.method != "GET", begin)}
    assert sent == {("PUT", f"/apis/coordination.k8s.io/v1/namespaces/default/leases/operator-{operator.health}")}
    assert proxy.seen(lists, begin) == [], "nor does it list anything"


def test_of_200_models_that_change_at_once_none_waits_behind_what_another_asks_for(
    server: ApiServer, operator: Program, proxy: Proxy
) -> None:
    """The API server takes its time over one namespace, as an admission webhook may: its models come first, and are held."""
    server.kubectl("create", "namespace", "slow")
    suspended(server, value=True)
    eventually(lambda: acted_on(server), operator.log.read_text)
    answered = threading.Event()

    def held(request: Request) -> None:
        if request.method != "GET" and "/namespaces/slow/" in request.path:
            answered.wait(60)

    proxy.rule = held
    model = {**yaml.safe_load(MLMODEL), "spec": {**yaml.safe_load(MLMODEL)["spec"], "suspend": True}}
    places = [("slow", 40), ("default", 160)]
    models = [
        {**model, "metadata": {"name": f"burst-{number}", "namespace": namespace}}
        for namespace, many in places
        for number in range(many)
    ]
    try:
        server.kubectl("create", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": models}))
        eventually(lambda: told(server, "default") == 160, operator.log.read_text)
        assert told(server, "slow") == 0
    finally:
        answered.set()
    eventually(lambda: told(server, "slow") == 40, operator.log.read_text)


def told(server: ApiServer, namespace: str, prefix: str = "burst-") -> int:
    """How many models whose names begin so have a status."""
    found = [m for m in get(server, namespace, "mlmodels")["items"] if name_of(m).startswith(prefix)]
    return sum((m.get("status") or {}).get("observedGeneration") == 1 for m in found)


def forgotten(server: ApiServer, operator: Program, proxy: Proxy) -> list[Request]:
    """The API server no longer knows what the watches want to go on from; returns what was listed."""
    before = proxy.rule
    gap, told = len(proxy.requests), set[str]()

    def forgetful(request: Request) -> Answer | None:
        if not watches(request) or "resourceVersion" not in request.query or request.kind in told:
            return before(request)
        told.add(request.kind)
        return GONE

    proxy.rule = forgetful
    proxy.cut()
    eventually(lambda: told == WATCHED)
    eventually(lambda: {request.kind for request in proxy.seen(watches, gap)} == WATCHED)
    eventually(lambda: {request.kind for request in proxy.seen(lists, gap)} == WATCHED)
    suspended(server, value=True)
    eventually(lambda: acted_on(server), operator.log.read_text)
    return proxy.seen(lists, gap)


def test_neither_a_cut_nor_a_storm_costs_a_list_and_a_gap_costs_one(
    server: ApiServer, operator: Program, proxy: Proxy
) -> None:
    """One story: watches are cut, the API server has too much to do for longer than a client's patience, then it forgets."""
    many(server, CHUNK + 20)
    suspended(server, value=False)
    eventually(lambda: acted_on(server), operator.log.read_text)
    eventually(lambda: {request.kind for request in proxy.seen(watches)} == WATCHED)

    begin = len(proxy.requests)
    proxy.cut()
    eventually(lambda: {request.kind for request in proxy.seen(watches, begin)} == WATCHED)
    suspended(server, value=True)
    eventually(lambda: acted_on(server), operator.log.read_text)
    assert all("resourceVersion" in request.query for request in proxy.seen(watches, begin)), (
        "each goes on where it was"
    )
    assert all(request.query["allowWatchBookmarks"] == "true" for request in proxy.seen(watches, begin))

    storm, proxy.rule = len(proxy.requests), lambda request: None if leases(request) else busy(1)
    proxy.cut()
    time.sleep(65)  # longer than kopf tries by itself
    refused = proxy.seen(watches, storm)
    assert {request.kind for request in refused} == WATCHED
    most = max(sum(request.kind == kind for request in refused) for kind in WATCHED)
    assert most < 20, f"{most} tries of one watch: each waits for as long as it is told, and longer each time"
    proxy.rule = lambda _: None
    suspended(server, value=False)
    eventually(lambda: acted_on(server), operator.log.read_text)
    assert proxy.seen(lists, begin) == [], "nothing was listed"

    listed = forgotten(server, operator, proxy)
    assert {request.begins for request in listed} == {streams(server)}, "as streams, where they are"
    first = [request.kind for request in listed if "continue" not in request.query]
    assert sorted(first) == sorted(WATCHED), "once"
    assert operator.process
    assert operator.process.poll() is None


def test_an_api_server_that_gives_lists_in_pages_only_is_asked_for_pages(
    server: ApiServer, of_before: Program, proxy: Proxy
) -> None:
    many(server, CHUNK + 20)
    suspended(server, value=False)
    eventually(lambda: acted_on(server), of_before.log.read_text)
    assert not any(request.begins for request in proxy.requests)
    listed = forgotten(server, of_before, proxy)
    assert all(int(request.query["limit"]) <= CHUNK for request in listed), "in pages"
    assert [sum("continue" not in r.query for r in listed if r.kind == kind) for kind in WATCHED] == [1] * len(
        WATCHED
    ), "once"
    assert sum("continue" in request.query for request in listed if request.kind == "pods") == 1
    assert of_before.process
    assert of_before.process.poll() is None


def test_what_a_watch_that_breaks_off_in_its_first_list_has_not_shown_is_read(
    server: ApiServer, proxy: Proxy, tmp_path: Path
) -> None:
    """Kopf goes on from the last object that it was shown, whatever was before that one in time and after it in the list."""
    for name in ("a", "b", "c"):
        apply(server, "default", MLMODEL.replace("adult-income", f"late-{name}") + "\n  suspend: true\n")
    apply(server, "default", MLMODEL.replace("adult-income", "early") + "\n  suspend: true\n")
    cut = list[Request]()

    def first(request: Request) -> int | None:
        if not (request.begins and request.kind == "mlmodels" and "timeoutSeconds" in request.query) or cut:
            return None
        cut.append(request)
        names = [name_of(m) for m in get(server, "default", "mlmodels")["items"]]
        return sorted(names).index("early") + 1

    proxy.most = first
    program = Program(server, tmp_path / "operator.log", proxy.kubeconfig)
    program.start()
    try:
        eventually(lambda: told(server, "default", "late-") == 3, program.log.read_text)
        assert [bool(cut), "late-c was read" in program.log.read_text()] == [streams(server)] * 2
        eventually(lambda: ready(program), program.log.read_text)
    finally:
        program.stop(kill=True)
