"""Lives under trouble: the operator killed at random, writes that fail or conflict, answers that are lost, late watches.

What the simulation's restarts before each write do one at a time, comes here together and in any order. Every life has
a seed, which its failure names; the same seed gives the same life.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, cast

import pytest
from unit.operator_world import SPEC, Fake, Operator, Scenario, mlmodel, outcome, play, run

from mlplatform import api, cluster, contract, reconciler
from mlplatform.actions import Event, Ref, Write
from mlplatform.failures import ready
from mlplatform.resources import virtualservice
from mlplatform.snapshot import Object, name_of, uid_of

SEEDS: Final = int(os.environ.get("CHAOS_SEEDS", "8"))
"""Lives of each kind; `make chaos` asks for more."""
SECOND = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.9}]}
FAILS = {**SPEC, "gates": [{"metric": "roc_auc", "min": 0.95}]}
V1, V2 = (api.version_name("adult", api.decode(api.MLModelSpec, spec)) for spec in (SPEC, SECOND))
TROUBLED: Final = timedelta(minutes=15)
"""How long there is trouble; after it the end must come by itself."""
CALM: Final = timedelta(minutes=5)
STEP: Final = timedelta(seconds=10) - timedelta(milliseconds=1)
"""`rollout.interval` of these lives, as exact as its record."""
KILL, FAIL, LOSE, CONFLICT = 0.06, 0.06, 0.06, 0.04
"""How often a write meets each: a death before it, no answer, an answer that is lost, somebody else's write."""
LATEST: Final = 3.0
"""Seconds by which a watch may be late."""


class KilledError(BaseException):
    """The process is gone: nothing of it runs any more, no `except` and no `finally`."""


@dataclass
class Trouble(Fake):
    """A cluster whose API server fails, and whose client may die in the middle.

    Attributes:
        rng: Of this life.
        dead: The operator was killed; until another one starts, whatever it does does not happen.
        met: How often each kind of trouble came.
        made: Every object that was ever made, by uid: kind and name.
        splits: When the mesh was given other weights, and which.
        unserved: Weights that were given to a version without a ready pod.
    """

    rng: random.Random = field(default_factory=random.Random)
    troubled: bool = True
    dead: bool = False
    met: Counter[str] = field(default_factory=Counter)
    made: dict[str, tuple[str, str]] = field(default_factory=dict)
    splits: list[tuple[datetime, dict[str, int]]] = field(default_factory=list)
    unserved: list[str] = field(default_factory=list)

    def do(self, write: Write) -> Object | None:
        return cast("Object | None", self._answer(lambda: super(Trouble, self).do(write)))

    def write_status(self, obj: Object, status: Object) -> Object | None:
        return cast("Object | None", self._answer(lambda: super(Trouble, self).write_status(obj, status)))

    def post(self, obj: Object, event: Event, when: datetime) -> None:
        self._alive()
        super().post(obj, event, when)

    def get(self, ref: Ref) -> Object | None:
        self._alive()
        return super().get(ref)

    def put(self, obj: Object) -> Object:
        stored = super().put(obj)
        self.made[uid_of(stored)] = (stored["kind"], name_of(stored))
        if stored["kind"] == "VirtualService":
            split = virtualservice.weights(stored)
            if not self.splits or self.splits[-1][1] != split:
                self.splits.append((self.now, split))
            self.unserved += [
                f"{name} {weight}%" for name, weight in split.items() if weight and not self._answers(name)
            ]
        return stored

    def _answers(self, version: str) -> bool:
        pod = self._objects.get(("Pod", f"{version}-predictor-0"))
        return pod is not None and ready(pod)

    def _alive(self) -> None:
        if self.dead:
            raise KilledError

    def _answer(self, write: Callable[[], Any]) -> Any:
        self._alive()
        dice = self.rng.random() if self.troubled else 1.0
        kinds = (
            ("killed before", KILL),
            ("no answer", FAIL),
            ("answer lost", LOSE),
            ("conflict", CONFLICT),
            ("killed after", KILL),
        )
        kind = next((kind for kind, share in kinds if (dice := dice - share) < 0), "")
        if not kind:
            return write()
        self.met[kind] += 1
        if kind == "no answer":
            raise cluster.ClusterError("the API server did not answer")
        if kind == "conflict":
            raise cluster.Conflict("somebody else wrote first")
        if kind != "killed before":
            write()
        if kind == "answer lost":
            raise cluster.ClusterError("the connection was reset")
        self.dead = True
        raise KilledError


class LateWatches:
    """The indexes of one process: of a change each kind's tells a moment later, and a new process begins with fresh ones."""

    def __init__(self, fake: Trouble) -> None:
        self._fake = fake
        self._seen: dict[str, list[Object]] = {}
        self._due: dict[str, datetime] = {}

    def objects(self, kind: str, namespace: str, model: str) -> Iterable[Object]:
        now = self._fake.objects(kind, namespace, model)
        seen = self._seen.setdefault(kind, now)
        if [id(obj) for obj in seen] != [id(obj) for obj in now]:  # Stored objects are replaced, never changed.
            late = self._fake.rng.uniform(0, LATEST) if self._fake.troubled else 0.0
            if self._fake.now >= self._due.setdefault(kind, self._fake.now + timedelta(seconds=late)):
                self._seen[kind] = now
                del self._due[kind]
        return self._seen[kind]

    def claims(self, host: str, namespace: str, model: str) -> Iterable[Object]:
        return self._fake.claims(host, namespace, model)

    @property
    def next(self) -> datetime | None:
        """When one of them shows something newer."""
        return min(self._due.values(), default=None)


class Troubled(Operator):
    """The operator's process under trouble; what is done about an error is what `Reconciler.attempt` does."""

    def __init__(self, fake: Trouble) -> None:
        super().__init__(fake)
        self.watches = LateWatches(fake)
        self._world = replace(self._world, store=self.watches)

    async def _settle(self) -> datetime | None:
        for _ in range(50):
            writes, looks = len(self._fake.log), []
            for keeper in self._all():
                try:
                    looks.append(await keeper.once())
                except cluster.ClusterError:
                    looks.append(self._fake.now + timedelta(seconds=1))
            self._fake.act()
            if len(self._fake.log) == writes:
                return min(
                    (look for look in (*looks, self.watches.next) if look and look > self._fake.now), default=None
                )
        raise AssertionError(f"still writing after 50 passes: {self._fake.log[-10:]}")


def troubled(fake: Fake, seed: int) -> Trouble:
    """The same cluster, with trouble to come."""
    copied = fake.fork()
    found = Trouble(**{f.name: getattr(copied, f.name) for f in fields(Fake)}, rng=random.Random(seed))  # noqa: S311  no secret
    found.made = {uid_of(obj): (obj["kind"], name_of(obj)) for obj in found._objects.values()}  # noqa: SLF001
    return found


def live(fake: Trouble, end: datetime) -> None:
    """Lets time pass; an operator that is killed is followed by another one a few seconds later."""
    while True:
        fake.dead = False
        try:
            run(fake, Troubled(fake), end)
        except KilledError:
            fake.now = min(end, fake.now + timedelta(seconds=fake.rng.uniform(0, 5)))
            fake.act()
        else:
            return


def first(fake: Fake) -> None:
    fake.apply(mlmodel())


def nothing(_fake: Fake) -> None:
    """Time passes."""


def second(fake: Fake) -> None:
    fake.apply(mlmodel(spec=SECOND))


def never_ready(fake: Fake) -> None:
    fake.unready.add(V2)
    second(fake)


def gated(fake: Fake) -> None:
    fake.apply(mlmodel(spec=FAILS))


def deleted_inference_service(fake: Fake) -> None:
    second(fake)
    fake.remove("InferenceService", V1)


def gone_back(fake: Fake) -> None:
    """`kubectl mlmodel rollback`, once the second version serves and the first one's pods are gone."""
    asked = {contract.ANNOTATION_ROLLBACK: str(api.WayBack(V2, V1))}
    fake.apply(mlmodel(spec=SECOND, **asked))


def moves(fake: Trouble) -> list[dict[str, int]]:
    """Every split of the traffic, in order."""
    return [split for _, split in fake.splits]


def gaps(fake: Trouble) -> list[timedelta]:
    """How long each split was held."""
    times = [when for when, _ in fake.splits]
    return [after - before for before, after in pairwise(times)]


def numbers(fake: Trouble) -> dict[str, int]:
    """The number of each version."""
    return {name: fake.one("ModelVersion", name)["spec"]["sequence"] for name in fake.names("ModelVersion")}


@dataclass(frozen=True)
class Life:
    """What happens to a model that serves.

    Attributes:
        reason: What it shows.
        deed: What somebody does.
        before: What had been done until then.
        always_served: The stable version has its pods all the while.
    """

    reason: str
    deed: Callable[[Fake], None]
    before: Scenario = ((0, first), (300, nothing))
    always_served: bool = True


LIVES = [
    Life("a second version takes over", second),
    Life("a version misses its gate", gated),
    Life("a version never gets ready and is rolled back", never_ready),
    Life("somebody goes back", gone_back, ((0, first), (300, second), (700, nothing))),
    Life("somebody deletes what serves while a second version is made", deleted_inference_service, always_served=False),
]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes to memory need no threads, which are half of such a life's time."""

    async def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(reconciler.asyncio, "to_thread", call)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.reason)
def test_trouble_changes_nothing_about_the_end(life: Life) -> None:
    served = play(life.before)
    undisturbed = troubled(served, 0)
    undisturbed.troubled = False
    life.deed(undisturbed)
    run(undisturbed, Operator(undisturbed), undisturbed.now + TROUBLED + CALM)
    expected, met = outcome(undisturbed), Counter[str]()
    for seed in range(SEEDS):
        fake = troubled(served, seed)
        life.deed(fake)
        live(fake, fake.now + TROUBLED)
        fake.troubled = False
        live(fake, fake.now + CALM)
        story = f"{life.reason}, seed {seed}: {dict(fake.met)}"
        assert outcome(fake) == expected, story
        if life.always_served:
            assert not fake.unserved, story
            assert moves(fake) == moves(undisturbed), f"{story}: no step was left out, repeated or taken back"
            assert min(gaps(fake), default=STEP) >= STEP, f"{story}: no step was shorter than its interval"
        twice = [thing for thing, times in Counter(fake.made.values()).items() if times > 1 and thing[0] in ONCE]
        assert twice == [], story
        assert numbers(fake) == numbers(undisturbed), story
        idle = len(fake.log)
        Troubled(fake).settle()
        assert fake.log[idle:] == [], f"{story}: a new operator has nothing to do"
        met += fake.met
    assert set(met) == {"killed before", "killed after", "no answer", "answer lost", "conflict"}, met


ONCE: Final = {"ModelVersion", "PyTorchJob", "Job", "VirtualService", "Service"}
"""Kinds whose objects are made once in these lives: a second one of a name would be a training begun anew."""
