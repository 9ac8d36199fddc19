"""The operator killed again and again, each add-on and the API server down in turn: the end is the same, and nobody notices.

The short form is a scenario like the others: one version, eight deaths, one add-on down for ten seconds. `make chaos`
is the long one: 200 deaths, everything down for a minute. CHAOS_SEED makes the same choices again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import fsspec
import pytest
from e2e.chaos import ADD_ONS, API_SERVER, Books, Row, books_kept, can_stop, counted, down, kill_operator, table
from e2e.scenario import STAGE_SECONDS, Model, Object, Platform, condition, is_current, stages

from benchmarks.load import Load, Outcome

SEED = int(os.environ.get("CHAOS_SEED", "0"))


@dataclass(frozen=True)
class Dose:
    """How much is taken away.

    Attributes:
        kills: Of the operator, over as many versions' lives as that takes.
        in_place: The share of them after which it begins again in its pod.
        pause: The longest time between one death and the next, in seconds.
        seconds: How long an outage lasts.
        outages: What is down, each in a version's life of its own; in the short form, in that of the deaths.
    """

    kills: int
    in_place: float
    pause: float
    seconds: float
    outages: tuple[str, ...]


SHORT = Dose(8, 0.5, 6.0, 10.0, (sorted(ADD_ONS)[SEED % len(ADD_ONS)],))
LONG = Dose(200, 0.5, 8.0, 60.0, (*ADD_ONS, API_SERVER))
DOSE = LONG if os.environ.get("CHAOS") == "long" else SHORT


@dataclass
class Chaos:
    """What was seen.

    Attributes:
        known: Versions that there were before.
        asked: Every version that was asked for, in order.
        stories: The stages of each, as its ModelVersion had them when it was ready.
        model: The model at the end.
        books: What was seen on the way.
        outcome: What became of the requests.
        rows: What was taken away.
    """

    known: set[str]
    asked: list[str]
    stories: dict[str, dict[str, Object]]
    model: Object
    books: Books
    outcome: Outcome
    rows: list[Row]

    @property
    def table(self) -> str:
        """For people."""
        ended = {
            "versions asked for": len(self.asked),
            "versions made": self.books.count("modelversions"),
            "trainings begun": self.books.count("pytorchjobs"),
            "made twice": len(self.books.twice),
            "answers": sum(self.outcome.by_version.values()),
            "requests failed": self.outcome.failed,
            "seed": SEED,
        }
        return table(self.rows, ended)


@dataclass
class Lives:
    """Versions of one model, one after the other."""

    model: Model
    asked: list[str]
    stories: dict[str, dict[str, Object]]
    tell: Callable[[str], None]

    def begin(self) -> str:
        """Asks for a version that there was never before."""
        before = self.asked[-1] if self.asked else str(self.model.get()["status"]["latestVersion"])
        self.model.is_changed(training={"hyperparameters": {"hidden": [40 + len(self.asked)], "dropout": 0.0}})
        self.asked.append(self.model.gets_a_version(other_than=before))
        return self.asked[-1]

    def is_over(self) -> bool:
        """Whether the last version serves."""
        model = self.model.get()
        serves = model["status"].get("stable", {}).get("version") == self.asked[-1]
        return serves and is_current(model) and condition(model, "Ready") == "True"

    def end(self) -> None:
        """Waits until the last version serves, and reads its story before anything prunes it."""
        self.model.becomes_ready(4 * STAGE_SECONDS)
        version = self.asked[-1]
        ready = self.model.version_reaches(version, "is ready", lambda v: condition(v, "Ready") == "True", 30)
        self.stories[version] = stages(ready)
        self.tell(f"version {len(self.asked)} of those asked for serves: {version}")


def kill_through(platform: Platform, lives: Lives, load: Load, rng: random.Random, during: Callable[[], None]) -> Row:
    """Kills the operator at random instants of as many lives as it takes; `during` the first, something else happens."""
    row = Row("operator (killed)")
    with counted(load, row):
        while row.times < DOSE.kills:
            lives.begin()
            row.lives += 1
            during_this, during = during, lambda: None
            happens_at = rng.randrange(DOSE.kills)
            while row.times < DOSE.kills and not lives.is_over():
                if row.times >= happens_at:
                    during_this()
                    during_this = lambda: None  # noqa: E731  it has happened
                time.sleep(rng.uniform(0, DOSE.pause))
                kill_operator(platform, in_place=rng.random() < DOSE.in_place)
                row.times += 1
            during_this()
            lives.tell(f"{row.times} of {DOSE.kills} kills")
            lives.end()
    return row


def outage(platform: Platform, lives: Lives, load: Load, rng: random.Random, what: str) -> Row:
    """Takes something away at a random instant of a version's life."""
    row = Row(what, times=1, seconds=DOSE.seconds, lives=1)
    with counted(load, row):
        lives.begin()
        time.sleep(rng.uniform(0, STAGE_SECONDS / 4))
        lives.tell(f"{what} is away for {DOSE.seconds:.0f} s")
        down(platform, what, DOSE.seconds)
        lives.end()
    return row


@pytest.fixture(scope="module")
def chaos(model: Model, platform: Platform, request: pytest.FixtureRequest) -> Iterator[Chaos]:
    """All of it, once; the tests look at what came of it."""
    rng = random.Random(SEED)  # noqa: S311  no secret
    model.becomes_ready()
    before = model.spec
    known = {name for name in model.children() if name.startswith("modelversions/")}
    outages = [what for what in DOSE.outages if can_stop(platform, what)]
    rows: list[Row] = []
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    with model.under_load(5) as load, books_kept(platform, model) as books:
        lives = Lives(model, [], {}, terminal.write_line)
        if DOSE is SHORT:
            (what,) = outages
            among = Row(f"{what}, meanwhile", times=1, seconds=DOSE.seconds)

            def away() -> None:
                with counted(load, among):
                    down(platform, what, DOSE.seconds)

            rows += [kill_through(platform, lives, load, rng, away), among]
        else:
            rows.append(kill_through(platform, lives, load, rng, lambda: None))
            rows += [outage(platform, lives, load, rng, what) for what in outages]
        assert load.wait_for(load.outcome.total + 10), "the load goes on"
        ended = model.get()
    found = Chaos(known, lives.asked, lives.stories, ended, books, load.outcome, rows)
    terminal.write_line(f"\n{found.table}")
    yield found
    model.is_applied(before)
    model.becomes_ready()


def test_the_end_is_what_was_asked_for(chaos: Chaos) -> None:
    assert condition(chaos.model, "Ready") == "True", chaos.table
    assert chaos.model["status"]["stable"]["version"] == chaos.asked[-1], chaos.table


def test_somebody_answered_every_request(chaos: Chaos) -> None:
    assert (chaos.outcome.failed, chaos.outcome.failures) == (0, []), chaos.table
    assert set(chaos.asked) <= set(chaos.outcome.by_version), "each served in its turn"


def test_nothing_was_made_twice_and_nothing_that_nobody_asked_for(chaos: Chaos) -> None:
    assert chaos.books.twice == [], chaos.table
    made = {name for name in chaos.books.objects if name.startswith("modelversions/")}
    assert made - chaos.known == {f"modelversions/{version}" for version in chaos.asked}, chaos.table
    begun = {name for name in chaos.books.objects if name.startswith("pytorchjobs/")}
    assert {f"pytorchjobs/{version}-train" for version in chaos.asked} <= begun, chaos.table


def test_no_training_began_anew(chaos: Chaos) -> None:
    """A dead operator or API server is no reason for a pod to end, so no checkpoint was needed."""
    resumed = {v: story["train"]["details"].get("resumedFromStep", 0) for v, story in chaos.stories.items()}
    assert set(resumed.values()) <= {0}, resumed


def test_every_version_was_promoted_once_step_by_step(chaos: Chaos) -> None:
    for version in chaos.asked:
        assert chaos.books.promotions(version) == 1, chaos.table
        steps = chaos.books.steps(version)
        assert 100 in steps, f"{version}: {steps}"
        rise = steps[: steps.index(100) + 1]
        assert rise == sorted(set(rise)), f"{version}: {steps}"
    assert all(sum(split.values()) == 100 for split in chaos.books.splits)


def test_nothing_is_lost_in_the_store(chaos: Chaos, store: fsspec.AbstractFileSystem) -> None:
    for version, story in chaos.stories.items():
        for stage in story.values():
            assert store.exists(stage["report"].removeprefix("s3://")), f"{version}: {stage['report']}"
