"""All models: who is woken by what, and what the watches have missed."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from unit.operator_world import NAMESPACE, Fake, mlmodel, play

from mlplatform import contract, fleet
from mlplatform.actions import Create, Ref, Write
from mlplatform.cluster import WORKERS, Cluster, ClusterError, Expired, Forbidden, NotFound, Rejected, Truncated
from mlplatform.fleet import Fleet
from mlplatform.main import watched
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, labels_of, name_of, namespace_of

KINDS = watched(Settings())


def child(kind: str, name: str = "x", **labels: str) -> Object:
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "uid": "u", "resourceVersion": "1"},
        "spec": {"model": "adult"},
    }


@pytest.mark.parametrize(
    ("reason", "kind", "obj", "model"),
    [
        ("a model belongs to itself", "MLModel", mlmodel(), "adult"),
        ("a version says whose it is", "ModelVersion", child("ModelVersion"), "adult"),
        ("a child says it by label", "Pod", child("Pod", **{contract.LABEL_MODEL: "adult"}), "adult"),
        ("others are nobody's", "Pod", child("Pod"), ""),
    ],
)
def test_what_belongs_to_whom(reason: str, kind: str, obj: Object, model: str) -> None:
    assert fleet.model_of(kind, obj) == model, reason


ENDED = {"conditions": [{"type": "Ready", "status": "True"}]}
FAILED = {"stages": [{"name": "train", "outcome": "Failed"}]}
RUNNING = {"stages": [{"name": "train", "outcome": "Running"}]}
OF = {contract.LABEL_MODEL: "adult"}


@pytest.mark.parametrize(
    ("reason", "status", "kind", "obj", "woken"),
    [
        ("one that works looks at everything", RUNNING, "ModelVersion", child("ModelVersion", "other"), True),
        ("one that has ended does not look at its siblings", ENDED, "ModelVersion", child("ModelVersion", "other"), False),
        ("nor one that has failed", FAILED, "ModelVersion", child("ModelVersion", "other"), False),
        ("but at itself", FAILED, "ModelVersion", child("ModelVersion", "v"), True),
        ("and at its model, which may ask for a retry", FAILED, "MLModel", mlmodel(), True),
        ("and at its own work", FAILED, "Job", child("Job", **OF, **{contract.LABEL_VERSION: "v"}), True),
        ("not at that of others", FAILED, "Job", child("Job", **OF, **{contract.LABEL_VERSION: "w"}), False),
        ("nor at the route", ENDED, "VirtualService", child("VirtualService", **OF), False),
    ],
)  # fmt: skip
def test_which_versions_a_change_may_concern(reason: str, status: Object, kind: str, obj: Object, woken: bool) -> None:  # noqa: FBT001  a table's
    assert fleet.concerns(kind, obj, {**child("ModelVersion", "v"), "status": status}) is woken, reason


@dataclass
class Server(Fake):
    """A cluster in memory that lists, too."""

    away: bool = False
    hides: str = ""
    listed: int = 0
    streaming: bool = False
    kinds_listed: list[str] = field(default_factory=list)
    fails: list[tuple[str, str, ClusterError]] = field(
        default_factory=list
    )  # Kind and page that cannot be given, once each.

    def missing(self, kinds: dict[str, str]) -> frozenset[str]:
        if self.away:
            raise ClusterError("no answer")
        return frozenset(kinds.keys() & {"PyTorchJob", "InferenceService", "VirtualService"} - self.served)

    def streams(self, _namespaces: Sequence[str]) -> bool:
        return self.streaming

    def stream(self, ref: Ref, _selector: str) -> Iterator[Object]:
        """All of them, one by one."""
        assert self.streaming
        for number, obj in enumerate([{"metadata": o["metadata"]} for o in self._of(ref)]):
            for failure in self.fails:
                if failure[:2] == (ref.kind, str(number)):
                    self.fails.remove(failure)
                    raise failure[2]
            yield obj
        self.listed += 1
        self.kinds_listed.append(ref.kind)

    def _of(self, ref: Ref) -> list[Object]:
        return [o for (k, _), o in self._objects.items() if k == ref.kind and ref.namespace in {"", namespace_of(o)}]

    def page(self, ref: Ref, _selector: str, rest: str) -> tuple[list[Object], str]:
        """Two objects a page."""
        for failure in self.fails:
            if failure[:2] == (ref.kind, rest):
                self.fails.remove(failure)
                raise failure[2]
        self.listed += not rest
        if ref.namespace and ref.namespace == self.hides:
            raise Forbidden(f"GET {ref.kind}: 403")
        assert not self.streaming
        found = self._of(ref)
        begin = int(rest or 0)
        page = [{"metadata": o["metadata"]} for o in found[begin : begin + 2]]
        return page, str(begin + 2) if begin + 2 < len(found) else ""

    def every(self) -> list[Object]:
        return [o for (k, _), o in self._objects.items() if k in KINDS]


async def until(happens: Callable[[], bool]) -> None:
    """Waits for what nobody tells of."""
    deadline = asyncio.get_running_loop().time() + 10
    while not happens():
        assert asyncio.get_running_loop().time() < deadline, "not within 10 s"
        await asyncio.sleep(0.01)


def following(
    server: Server,
    script: Callable[[Fleet], Any],
    *,
    told: bool = True,
    watch: str = "",
    settings: Settings | None = None,
) -> Fleet:
    """A fleet that was told of everything, works, and is stopped after a script."""

    async def scenario() -> Fleet:
        chosen, stop = settings or Settings(watch_namespaces=watch), asyncio.Event()
        found = Fleet(cast("Cluster", server), chosen, KINDS)
        for obj in server.every() if told else ():
            found.see(obj["kind"], None, obj)
        running = asyncio.create_task(found.run(stop))
        outcome = script(found)
        if asyncio.iscoroutine(outcome):
            await outcome
        await until(lambda: found._synced and not (found._queue._waiting or found._queue._busy))  # noqa: SLF001  state
        stop.set()
        await running
        return found

    return asyncio.run(scenario())


def nothing(_fake: Fake) -> None:
    """Time passes."""


def served() -> Server:
    """A model that serves."""
    return cast("Server", play([(0, lambda f: f.apply(mlmodel())), (300, nothing)], Server()))


def test_at_the_start_each_is_looked_at_and_what_is_at_rest_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, passes = served(), list[str]()
    attempt = fleet.Reconciler.attempt

    async def counted(self: fleet.Reconciler) -> float | None:
        passes.append(str(self))
        return await attempt(self)

    monkeypatch.setattr(fleet.Reconciler, "attempt", counted)
    server.log.clear()
    found = following(server, nothing_more)
    [version] = server.names("ModelVersion")
    assert sorted(passes) == [f"MLModel {NAMESPACE}/adult", f"ModelVersion {NAMESPACE}/{version}"]
    assert server.log == [], "and nothing is written"
    assert found._reconcilers == {}  # noqa: SLF001  it is nowhere to be seen


def nothing_more(_fleet: Fleet) -> None:
    """It only starts."""


def test_it_is_ready_once_everything_that_there_was_has_been_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    server, attempt, looked = served(), fleet.Reconciler.attempt, list[str]()
    held = asyncio.Event()

    async def last(self: fleet.Reconciler) -> float | None:
        looked.append(str(self))
        await held.wait()
        return await attempt(self)

    monkeypatch.setattr(fleet.Reconciler, "attempt", last)

    async def begun(found: Fleet) -> None:
        await until(lambda: len(looked) == 2)
        assert found._synced  # noqa: SLF001  it is nowhere to be seen
        assert not found.ready
        held.set()
        await until(lambda: found.ready)

    following(server, begun)
    assert Fleet(cast("Cluster", server), Settings(), KINDS).ready, "one that waits for the lease is as it should be"


def test_nothing_is_done_before_the_watches_have_shown_everything() -> None:
    """Without its route, its model would look like one that has none."""
    server = served()
    server.log.clear()

    async def late(found: Fleet) -> None:
        for obj in server.every():
            if obj["kind"] != "VirtualService":
                found.see(obj["kind"], None, obj)
        await asyncio.sleep(0.5)
        assert not found._synced  # noqa: SLF001  it is nowhere to be seen
        for obj in server.every():
            found.see(obj["kind"], None, obj)
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen

    following(server, late, told=False)
    assert server.log == []


def test_an_api_server_that_cannot_list_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    server = served()
    server.away = True

    async def back(found: Fleet) -> None:
        await asyncio.sleep(0.3)
        server.away = False
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen

    following(server, back)
    assert "what there is cannot be listed, trying again in 0" in caplog.text


def test_a_namespace_that_may_not_be_seen_holds_up_no_other_and_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not there yet, or it takes its rights along: what is seen of it may be half of what there is."""
    monkeypatch.setattr(fleet, "HIDDEN", 0.05)
    server = served()
    server.hides = NAMESPACE
    server.log.clear()
    [version] = server.names("ModelVersion")

    async def shown(found: Fleet) -> None:
        for obj in server.every():
            if obj["kind"] in {"MLModel", "Pod"}:
                found.see(obj["kind"], "ADDED", obj)
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen
        assert server.log == [], "without its versions the model would look new"
        for obj in server.every():
            found.see(obj["kind"], "ADDED", obj)
        server.hides = ""
        server.remove("ModelVersion", version)
        found.see("ModelVersion", "DELETED", server_version)
        await until(lambda: len(server.names("ModelVersion")) == 1)

    server_version = server.one("ModelVersion", version)
    following(server, shown, told=False, watch=f"{NAMESPACE},another")
    assert len(server.names("ModelVersion")) == 1, "shown again, it is worked on"
    assert caplog.text.count("is left alone") == 1


def test_a_deletion_that_the_watch_has_missed_is_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SWEEP", 0.05)
    server = Server(train_seconds=1e6)
    play([(0, lambda f: f.apply(mlmodel())), (5, nothing)], server)
    [job] = server.names("PyTorchJob")

    async def missed(found: Fleet) -> None:
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen
        server.remove("PyTorchJob", job)
        assert found._store.uids("PyTorchJob"), "it believes the watch"  # noqa: SLF001
        await until(lambda: server.names("PyTorchJob") == [job])  # until it looks past it, and trains anew

    following(server, missed)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_sweep_is_one_list_a_kind_however_many_models_there_are(*, streaming: bool) -> None:
    server = Server(streaming=streaming)
    for number in range(5):
        server.apply(mlmodel(f"model-{number}"))
    following(server, nothing_more)
    present = KINDS.keys() - server.missing(KINDS)
    assert server.listed == len(present)


@pytest.mark.parametrize(
    ("reason", "error", "lists"),
    [
        ("whoever has too much to do is asked for the same page later", ClusterError("429 too many requests"), 0),
        ("a list that has become too old begins anew, that one alone", Expired("410 the list is too old"), 1),
        ("so does one whose next page an API server of another release cannot find", Rejected("400 no such page"), 1),
        ("a kind that has just gone is not waited for", NotFound("404 no such kind"), 0),
    ],
)
def test_trouble_in_the_middle_of_the_lists_costs_no_list_of_everything(
    monkeypatch: pytest.MonkeyPatch, reason: str, error: ClusterError, lists: int
) -> None:
    monkeypatch.setattr(fleet, "Backoffs", lambda: itertools.repeat(0.01))
    server = Server()
    for number in range(5):
        server.apply(mlmodel(f"model-{number}"))
    server.fails = [("MLModel", "2", error)]
    following(server, nothing_more)
    assert server.fails == [], "it has happened"
    assert server.listed == len(KINDS.keys() - server.missing(KINDS)) + lists, reason


def test_a_list_that_breaks_off_as_it_streams_begins_anew_that_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "Backoffs", lambda: itertools.repeat(0.01))
    server = Server(streaming=True)
    for number in range(5):
        server.apply(mlmodel(f"model-{number}"))
    server.fails = [("MLModel", "3", Truncated("the list broke off"))]
    following(server, nothing_more)
    assert server.fails == [], "it has happened"
    assert server.listed == len(KINDS.keys() - server.missing(KINDS)), "no other kind's is repeated"


def test_what_two_lists_have_and_the_watch_never_shows_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kopf's watch that breaks off within its first list goes on from the last object of it."""
    monkeypatch.setattr(fleet, "SYNC", 0.01)
    server = served()
    server.log.clear()

    async def cut(found: Fleet) -> None:
        for obj in server.every():
            if obj["kind"] != "VirtualService":
                found.see(obj["kind"], None, obj)
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen

    found = following(server, cut, told=False)
    assert found._store.uids("VirtualService")  # noqa: SLF001  it is nowhere to be seen
    assert server.log == [], "without its route, its model would look like one that has none"


def test_a_second_list_waits_until_the_first_one_comes_to_rest() -> None:
    """Both at once take the API server more than twice as long: it is what a start of thousands of models waits for."""
    server = Server(streaming=True)
    for number in range(10):
        server.apply(mlmodel(f"model-{number}"))

    async def shown(found: Fleet) -> None:
        for obj in server.every():
            found.see(obj["kind"], None, obj)
            await asyncio.sleep(fleet.SYNC / 2)  # as the watch goes on
        assert "MLModel" not in server.kinds_listed
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen

    following(server, shown, told=False)
    assert server.kinds_listed.count("MLModel") == 1


def test_no_model_waits_for_what_the_api_server_owes_another() -> None:
    """Of many that change at once, 40 are in front of the others and get no answer."""
    assert WORKERS > 200
    answered = threading.Event()

    class Slow(Server):
        """A cluster that takes its time over some models."""

        def do(self, write: Write) -> Object | None:
            if isinstance(write, Create) and name_of(write.manifest).startswith("slow-"):
                answered.wait(10)
            return super().do(write)

    server, names = (
        Slow(),
        [f"{pace}-{number}" for pace, many in (("slow", 40), ("quick", 20)) for number in range(many)],
    )

    def versions(pace: str) -> int:
        return sum(name.startswith(pace) for name in server.names("ModelVersion"))

    async def changed(found: Fleet) -> None:
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen
        for name in names:
            server.apply(mlmodel(name))
            found.see("MLModel", "ADDED", server.one("MLModel", name))
        try:
            await until(lambda: versions("quick") == 20)
            assert versions("slow") == 0
        finally:
            answered.set()
        await until(lambda: versions("slow") == 40)

    following(server, changed)


def test_an_event_of_nobodys_object_wakes_nobody() -> None:
    found = Fleet(cast("Cluster", Server()), Settings(), KINDS)
    stranger = child("Pod")
    found.see("Pod", "ADDED", stranger)
    assert (labels_of(stranger), found._store.uids("Pod")) == ({}, {})  # noqa: SLF001


def test_the_reconciler_of_what_is_deleted_goes_with_it() -> None:
    """What it remembers to have written would stand for the object for a while."""
    server = Server()
    server.apply(mlmodel())
    model = server.one("MLModel", "adult")

    async def deleted(found: Fleet) -> None:
        await until(lambda: any(who[0] == "MLModel" for who in found._reconcilers))  # noqa: SLF001
        server.remove("MLModel", "adult")
        found.see("MLModel", "DELETED", model)
        keys = {(who[0], who[2]) for who in found._reconcilers}  # noqa: SLF001
        assert ("MLModel", name_of(model)) not in keys
        assert (namespace_of(model), "adult") not in found._store.uids("MLModel")  # noqa: SLF001

    following(server, deleted)
