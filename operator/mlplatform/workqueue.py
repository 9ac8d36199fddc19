"""Who is to be looked at, and when: each key by one worker at a time, and those that an event has woken first.

Called by `mlplatform.fleet`. As client-go's workqueue: a key that is woken while it waits waits once, and one that is
woken while it is worked on is worked on once more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys that want work.

    Args:
        work: Looks at one key; returns the seconds until it wants to be looked at again, None for when it is woken.
    """

    def __init__(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        self._work = work
        self._first: deque[K] = deque()
        self._later: deque[K] = deque()
        self._waiting: dict[K, bool] = {}  # Whether among the first.
        self._busy: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: list[asyncio.Task[None]] = []
        self._some = asyncio.Event()
        self._stopping = False

    def wake(self, key: K, *, later: bool = False) -> None:
        """Asks for a look at a key.

        Args:
            key: It.
            later: After all that were woken otherwise: there may be thousands that are seen for the first time.
        """
        if key in self._busy:
            self._again.add(key)
            return
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if self._waiting.get(key) or (later and key in self._waiting):
            return
        self._waiting[key] = not later
        (self._later if later else self._first).append(key)
        self._some.set()

    async def run(self, workers: int, stop: asyncio.Event, patience: float) -> None:
        """Works until told to stop, and ends what is under way.

        Args:
            workers: How many keys are worked on at a time.
            stop: The sign.
            patience: Seconds for what is under way then; what takes longer is cancelled.
        """
        serving, told = asyncio.create_task(self._serve(workers)), asyncio.create_task(stop.wait())
        await asyncio.wait([told, serving], return_when=asyncio.FIRST_COMPLETED)  # It ends by a mistake only.
        told.cancel()
        self._end()
        for timer in self._timers.values():
            timer.cancel()
        ended, late = await asyncio.wait([serving, *self._tasks], timeout=patience)
        for task in late:
            task.cancel()
        for task in [*ended, *self._failed]:
            task.result()

    def _end(self) -> None:
        self._stopping = True
        self._some.set()

    async def _serve(self, workers: int) -> None:
        """Begins one look in each round of the event loop, so that probes and watches have their turn, however many keys wait."""
        free = asyncio.Semaphore(workers)
        while not self._stopping:
            if not (self._first or self._later):
                self._some.clear()
                await self._some.wait()
                continue
            await free.acquire()
            if (key := self._next()) is None:
                free.release()
                continue
            self._busy.add(key)
            task = asyncio.create_task(self._look(key))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, free))
            await asyncio.sleep(0)

    def _next(self) -> K | None:
        """Whose turn it is; None if it has had it, where it stood in both lines, or if nobody waits any longer."""
        line = self._first or self._later
        key = line.popleft() if line and not self._stopping else None
        return key if key is not None and self._waiting.pop(key, None) is not None else None

    async def _look(self, key: K) -> None:
        try:
            pause = await self._work(key)
        finally:
            self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.wake(key)
        elif pause is not None and not self._stopping:
            self._timers[key] = asyncio.get_running_loop().call_later(pause, self.wake, key)

    def _ended(self, free: asyncio.Semaphore, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed.append(task)
            self._end()
        free.release()
