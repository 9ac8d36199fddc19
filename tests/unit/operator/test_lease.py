"""The Lease: who may write, by no clock but each one's own; never two at once."""

from __future__ import annotations

import itertools
import json
import random
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import urllib3
from kubernetes.client.exceptions import ApiException

from mlplatform.actions import Create, Ref
from mlplatform.cluster import Cluster, NotLeading, connect
from mlplatform.lease import Lease, Sighting, Step, Terms, claim, decide, see
from mlplatform.snapshot import Object

TERMS = Terms()


def held_by(holder: str, **more: Any) -> Object:
    return {"holderIdentity": holder, "leaseDurationSeconds": TERMS.duration, **more}


@pytest.mark.parametrize(
    ("reason", "spec", "known", "seconds", "step"),
    [
        ("there is none yet: the first one to ask has it", None, False, 0, "take"),
        ("it was deleted; its holder may not know yet", None, True, 1, "wait"),
        ("it was deleted long ago", None, True, TERMS.duration, "take"),
        ("mine, also from before a restart", held_by("me"), True, 0, "renew"),
        ("another one's", held_by("you"), True, TERMS.duration - 0.1, "wait"),
        ("another one's, not renewed for as long as it lasts", held_by("you"), True, TERMS.duration, "take"),
        ("a holder of other terms keeps its own", held_by("you", leaseDurationSeconds=60), True, 59, "wait"),
        ("given back", held_by(""), True, 0, "take"),
    ],
)
def test_decide(reason: str, spec: Object | None, known: bool, seconds: float, step: Step) -> None:  # noqa: FBT001  a column
    seen = Sighting(spec=spec, revision="1", since=100, known=known)
    assert decide(seen, "me", 100 + seconds, TERMS) == step, reason


def test_its_age_is_how_long_this_process_has_seen_it_unchanged() -> None:
    live = {"metadata": {"resourceVersion": "7"}, "spec": held_by("you", renewTime="a time of another machine's clock")}
    first = see(None, live, 10)
    assert see(first, live, 15).since == 10
    renewed = {**live, "spec": {**live["spec"], "renewTime": "any other"}}
    assert see(first, renewed, 15).since == 15
    gone = see(first, None, 20)
    assert (gone.spec, gone.known, gone.since) == (None, True, 20)


def test_a_claim_counts_those_who_held_it() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    first = claim(Sighting(spec=None, revision="", since=0, known=False), "a", now, TERMS, "take")
    assert first["leaseTransitions"] == 0
    renewed = claim(Sighting(spec=first, revision="1", since=0, known=True), "a", datetime.now(UTC), TERMS, "renew")
    assert (renewed["acquireTime"], renewed["leaseTransitions"]) == ("2026-01-01T00:00:00.000000Z", 0)
    assert renewed["renewTime"] != first["renewTime"]
    assert (
        claim(Sighting(spec=first, revision="1", since=0, known=True), "b", now, TERMS, "take")["leaseTransitions"] == 1
    )


def test_the_right_ends_before_another_one_may_have_it() -> None:
    assert TERMS.duration > TERMS.right + TERMS.timeout
    assert TERMS.right > 2 * (TERMS.renew + TERMS.timeout) - TERMS.timeout, "one renewal may fail"


class Answer:
    def __init__(self, found: Object) -> None:
        self.data = json.dumps(found)


@dataclass
class Server:
    """A kube-apiserver that knows one Lease."""

    lease: Object | None = None
    revision: int = 0

    def call(self, method: str, body: Object | None) -> Answer:
        if method == "GET":
            if self.lease is None:
                raise ApiException(404)
            return Answer(self.lease)
        assert body is not None
        if method == "POST" and self.lease is not None:
            raise ApiException(409)
        if method == "PUT" and (self.lease is None or body["metadata"]["resourceVersion"] != str(self.revision)):
            raise ApiException(409)
        self.revision += 1
        self.lease = {"metadata": {"resourceVersion": str(self.revision)}, "spec": body["spec"]}
        return Answer(self.lease)


@dataclass
class Connection:
    """One candidate's way to the server: cut, requests are lost; deaf, they arrive and the answers are lost."""

    server: Server
    cut: bool = False
    deaf: bool = False
    asked: list[str] = field(default_factory=list)

    def call_api(self, _path: str, method: str, *, body: Object | None = None, **_: object) -> Answer:
        self.asked.append(method)
        if self.cut:
            raise urllib3.exceptions.ReadTimeoutError(cast("Any", None), "", "timed out")
        answer = self.server.call(method, body)
        if self.deaf:
            raise urllib3.exceptions.ProtocolError("connection broken")
        return answer


def candidate(server: Server, me: str, clock: list[float], offset: float = 0) -> tuple[Lease, Connection]:
    connection = Connection(server)
    return Lease(cast("Any", connection), "ns", "operator", me, TERMS, lambda: clock[0] + offset), connection


def test_a_life_of_the_lease() -> None:
    server, clock = Server(), [0.0]
    (one, wire), (two, _) = candidate(server, "one", clock), candidate(server, "two", clock, offset=-1e6)
    one.attempt()
    two.attempt()
    assert (one.held(), two.held()) == (True, False)
    wire.cut = True
    for _ in range(60):
        clock[0] += 0.1
        two.attempt()
    assert (one.held(), two.held()) == (False, False), "the right has run out, and nobody else has it yet"
    clock[0] += 1.5
    two.attempt()
    assert two.held()
    wire.cut = False
    assert not one.keep(threading.Event()), "it sees that it is another one's"
    two.release()
    assert not two.held()
    one.attempt()
    assert one.held(), "at once: it was given back"
    server.lease = None
    one.attempt()
    assert one.held(), "deleted by somebody: its holder makes it anew"


def test_an_api_server_that_is_away_ends_the_right_and_not_the_process() -> None:
    server, clock = Server(), [0.0]
    lease, wire = candidate(server, "only", clock)
    lease.attempt()
    wire.cut = True
    for _ in range(100):
        clock[0] += 1
        lease.attempt()
    assert not lease.held()
    wire.cut = False
    lease.attempt()
    assert lease.held()


@pytest.mark.parametrize("seed", range(30))
def test_never_two_at_once_and_never_long_nobody(seed: int) -> None:
    """Cut wires, lost answers, stopped processes and deletions at random, on clocks that have nothing in common."""
    chance, server, clock = random.Random(seed), Server(), [0.0]  # noqa: S311  a test's dice
    parties = [candidate(server, name, clock, chance.uniform(-1e6, 1e6)) for name in ("one", "two", "three")]
    due, stopped = [0.0] * 3, [0.0] * 3
    idle = longest = 0.0
    trouble = True
    while clock[0] < 300:
        clock[0] += 0.05
        trouble = clock[0] < 250
        for number, (lease, wire) in enumerate(parties):
            if chance.random() < 0.005 and trouble:
                wire.cut, wire.deaf = chance.random() < 0.5, chance.random() < 0.3
                stopped[number] = clock[0] + chance.choice([0, 0, 3, 12])
            if not trouble:
                wire.cut = wire.deaf = False
            if clock[0] >= max(due[number], stopped[number]):
                lease.attempt()
                due[number] = clock[0] + (TERMS.renew if lease.held() else TERMS.watch)
        holders = [number for number, (lease, _) in enumerate(parties) if lease.held()]
        assert len(holders) <= 1, f"two hold it at {clock[0]:.2f}"
        idle = 0 if holders or trouble else idle + 0.05
        longest = max(longest, idle)
    assert longest < 15, "when all is well again, somebody has it soon"


def test_without_the_right_nothing_is_written_and_nothing_is_tried_again() -> None:
    class Counting:
        asked: list[str] = []  # noqa: RUF012  of this one test

        def call_api(self, _path: str, method: str, **_: object) -> Answer:
            self.asked.append(method)
            return Answer({})

    right = [True]
    api = Counting()
    cluster = Cluster(cast("Any", api), lambda: right[0])
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "ns"}}
    cluster.do(Create(manifest))
    right[0] = False
    for write in (lambda: cluster.do(Create(manifest)), lambda: cluster.write_status(manifest, {})):
        with pytest.raises(NotLeading):
            write()
    cluster.get(Ref.to(manifest))
    assert api.asked == ["POST", "GET"], "reading is nobody's right"


def test_what_failed_is_sent_again_only_while_it_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}], "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    answers = itertools.chain([True, True], itertools.repeat(False))
    cluster = Cluster(connect(lambda: next(answers)), lambda: True)
    with pytest.raises(NotLeading, match="ran out before the API server answered"):
        cluster.do(Create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "ns"}}))
