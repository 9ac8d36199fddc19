"""Whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mlplatform.workqueue import WorkQueue


class Work:
    """Takes note of what is worked on; each key for as long as `held` says."""

    def __init__(self, pauses: dict[str, float] | None = None) -> None:
        self.done: list[str] = []
        self.busy = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.pauses = pauses or {}

    async def __call__(self, key: str) -> float | None:
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.done.append(key)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.busy -= 1
        return self.pauses.pop(key, None)


def played(script: Callable[[WorkQueue[str], Work], object], workers: int = 1, work: Work | None = None) -> Work:
    """What was done once nothing more wants to be, after a script has been followed."""

    async def play() -> Work:
        works, stop = work or Work(), asyncio.Event()
        queue = WorkQueue(works)
        script(queue, works)
        running = asyncio.create_task(queue.run(workers, stop, 1))
        for _ in range(50):
            await asyncio.sleep(0.002)
        works.gate.set()
        for _ in range(20):
            await asyncio.sleep(0.002)
        stop.set()
        await running
        return works

    return asyncio.run(play())


def test_a_key_that_is_woken_while_it_waits_waits_once() -> None:
    assert played(lambda queue, _: [queue.wake(key) for key in "aabab"]).done == ["a", "b"]


def test_whoever_an_event_has_woken_comes_before_those_seen_for_the_first_time() -> None:
    def script(queue: WorkQueue[str], _: Work) -> None:
        for key in "abc":
            queue.wake(key, later=True)
        queue.wake("d")
        queue.wake("c")
        queue.wake("c", later=True)

    assert played(script).done == ["d", "c", "a", "b"]


def test_a_key_is_worked_on_by_one_at_a_time_and_once_more_if_it_was_woken_meanwhile() -> None:
    def script(queue: WorkQueue[str], work: Work) -> None:
        work.gate.clear()
        queue.wake("a")
        asyncio.get_running_loop().call_later(0.02, queue.wake, "a")
        asyncio.get_running_loop().call_later(0.03, queue.wake, "a")

    work = played(script, workers=4)
    assert (work.done, work.most) == (["a", "a"], 1)


def test_a_slow_one_keeps_no_other_waiting() -> None:
    def script(queue: WorkQueue[str], work: Work) -> None:
        work.gate.clear()
        for key in "abcdef":
            queue.wake(key)

    assert played(script, workers=3).most == 3


def test_a_key_is_looked_at_again_when_it_said_or_before_when_it_is_woken() -> None:
    assert played(lambda queue, _: queue.wake("a"), work=Work({"a": 0.01})).done == ["a", "a"]

    def woken(queue: WorkQueue[str], _: Work) -> None:
        queue.wake("a")
        asyncio.get_running_loop().call_later(0.02, queue.wake, "a")

    assert played(woken, work=Work({"a": 0.06})).done == ["a", "a"], "and then no longer when it had said"


def test_a_mistake_ends_it_for_everybody_to_see() -> None:
    async def broken(_: str) -> None:
        raise KeyError("x")

    async def scenario() -> None:
        queue = WorkQueue(broken)
        queue.wake("a")
        await queue.run(2, asyncio.Event(), 1)

    with pytest.raises(KeyError):
        asyncio.run(scenario())


@pytest.mark.parametrize(("takes", "ends"), [(0.05, True), (5, False)])
def test_what_is_under_way_at_the_end_may_end_within_some_time(*, takes: float, ends: bool) -> None:
    done: list[str] = []

    async def work(key: str) -> None:
        await asyncio.sleep(takes)
        done.append(key)

    async def scenario() -> None:
        queue, stop = WorkQueue(work), asyncio.Event()
        queue.wake("a")
        asyncio.get_running_loop().call_later(0.01, stop.set)
        await asyncio.wait_for(queue.run(2, stop, 0.5), 2)

    asyncio.run(scenario())
    assert done == (["a"] if ends else [])


@pytest.mark.parametrize("workers", [1, 256])
def test_others_have_their_turn_between_two_passes(workers: int) -> None:
    """Probes and watches: passes over what is at rest wait for nothing, and a start has tens of thousands of them."""

    async def scenario() -> list[int]:
        done, seen, stop = list[int](), list[int](), asyncio.Event()

        async def work(key: int) -> None:
            done.append(key)

        queue = WorkQueue(work)
        for key in range(100):
            queue.wake(key)
        running = asyncio.create_task(queue.run(workers, stop, 1.0))
        while len(done) < 100:
            await asyncio.sleep(0)
            seen.append(len(done))
        stop.set()
        await running
        return seen

    seen = asyncio.run(scenario())
    assert len({*seen}) > 90
