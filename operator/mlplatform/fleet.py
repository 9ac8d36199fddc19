"""All models: what is known of them, whose turn it is, and whether the watches have told everything.

Called by `mlplatform.main`. A change wakes the model that it belongs to and those of its versions that it may concern;
nothing else keeps time for an object at rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from mlplatform import contract
from mlplatform.actions import Ref
from mlplatform.cluster import WORKERS, Backoffs, Cluster, ClusterError, Expired, Forbidden, NotFound, Rejected
from mlplatform.reconciler import Reconciler, World
from mlplatform.resources import host, inferenceservice, modelversion
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, condition, labels_of, name_of, namespace_of, status_of, uid_of
from mlplatform.store import Key, Store
from mlplatform.workqueue import WorkQueue

log = logging.getLogger(__name__)

T = TypeVar("T")

Who = tuple[str, str, str, str]
"""What has a reconciler: kind, namespace, name, and the model's name."""

SWEEP: Final = 600.0
"""Seconds between two looks whether the watches have missed that something is gone."""

HIDDEN: Final = 5.0
"""Likewise at a namespace in which nothing may be seen: it is not there yet, or it is being deleted, and the rights with it."""

SYNC: Final = 0.2
"""Seconds between two looks whether they have shown what a list has."""

STILL: Final = 0.05
"""A watch that has shown nothing new for as much of the time that it has taken so far has shown everything, or is slow."""

LOOKS: Final = 10
"""After as many that found nothing new it is listed again: what has gone since will not be shown."""

STOP_SECONDS: Final = 4.0
"""How long a pass that is under way at the end may take; what it has not written then, nobody writes."""


def model_of(kind: str, obj: Mapping[str, Any]) -> str:
    """The model that an object belongs to; empty when to none."""
    meta = obj["metadata"]
    if kind == "MLModel":
        return str(meta["name"])
    if kind == "ModelVersion":
        return str((obj.get("spec") or {}).get("model", ""))
    if kind == "Ingress":
        return str(inferenceservice.model_of_ingress(meta))
    return str((meta.get("labels") or {}).get(contract.LABEL_MODEL, ""))


def labelled(kind: str) -> bool:
    """Whether the kind's objects carry the model's label, by which they are watched; KServe gives an Ingress none."""
    return kind not in {"MLModel", "ModelVersion", "Ingress"}


def concerns(kind: str, obj: Object, version: Object) -> bool:
    """Whether a change of an object may concern a version of the same model: one that has ended only what is its own."""
    outcomes = [stage["outcome"] for stage in status_of(version).get("stages") or ()]
    ended = condition(version, "Ready").get("status") == "True" or "Failed" in outcomes
    if not ended or modelversion.forgotten(version):
        return True
    mine = name_of(obj) if kind == "ModelVersion" else labels_of(obj).get(contract.LABEL_VERSION)
    return kind == "MLModel" or mine == name_of(version)


class Fleet:
    """Every MLModel and ModelVersion.

    Args:
        cluster: Writes.
        settings: The operator's.
        kinds: What is watched: kind → apiVersion.
    """

    def __init__(self, cluster: Cluster, settings: Settings, kinds: Mapping[str, str]) -> None:
        self._cluster, self._settings, self._kinds = cluster, settings, kinds
        self._store = Store()
        self._world = World(cluster, self._store, settings)
        self._reconcilers: dict[Who, Reconciler] = {}
        self._queue: WorkQueue[Who] = WorkQueue(self._work)
        self._begun = self._synced = False
        self._unseen: set[Who] = set()
        self._hidden: frozenset[str] = frozenset()
        self._lacked: dict[str, set[Key]] = {}
        self._stop = asyncio.Event()

    def see(self, kind: str, change: str | None, obj: Object) -> None:
        """Takes in what a watch has shown.

        Args:
            kind: The object's.
            change: ADDED, MODIFIED or DELETED; None for what a list has shown.
            obj: As it is, or as it was last.
        """
        model, key = model_of(kind, obj), (namespace_of(obj), name_of(obj))
        if not model and kind != "Ingress":
            return
        if change == "DELETED":
            self._lose(kind, key, uid_of(obj))
            return
        before, hosts = self._store.hosts(kind, key), host.named(kind, obj)
        news = self._store.put(kind, model, obj, hosts)
        if news and self._synced:
            self._wake(kind, obj, model, before ^ hosts)
        elif news and kind in {"MLModel", "ModelVersion"}:  # At the start each is looked at once.
            self._unseen.add((kind, namespace_of(obj), name_of(obj), model))

    @property
    def ready(self) -> bool:
        """Whether all that there was at the start has been looked at; whoever waits for its turn to begin is ready for it."""
        return not self._begun or (self._synced and not self._unseen)

    def _lose(self, kind: str, key: Key, uid: str) -> bool:
        """Lets go of an object that is gone, and of what its reconciler remembers; whether it was that one."""
        hosts, gone = self._store.hosts(kind, key), self._store.discard(kind, key, uid)
        if gone is None:
            return False
        model = model_of(kind, gone)
        self._reconcilers.pop((kind, *key, model), None)
        self._wake(kind, gone, model, hosts)
        return True

    def _wake(self, kind: str, obj: Object, model: str, hosts: Iterable[str]) -> None:
        for where, name in {key for named in hosts for key in self._store.asking(named)}:
            self._queue.wake(("MLModel", where, name, name))
        if not model:
            return
        namespace = namespace_of(obj)
        self._queue.wake(("MLModel", namespace, model, model))
        for version in self._store.objects("ModelVersion", namespace, model):
            if concerns(kind, obj, version):
                self._queue.wake(("ModelVersion", namespace, name_of(version), model))

    async def streams(self) -> bool:
        """Whether the API server gives lists as streams."""
        return await _answer(partial(self._cluster.streams, self._settings.namespaces or ("",)))

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps all models until told to stop; begins when the watches have shown everything that there is."""
        self._begun, self._stop = True, stop
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS))
        syncing, told = asyncio.create_task(self._sync()), asyncio.create_task(stop.wait())
        await asyncio.wait({syncing, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not syncing.done():
            syncing.cancel()
            return
        syncing.result()
        sweeping = asyncio.create_task(self._keep_sweeping(stop))
        try:
            await self._queue.run(WORKERS, stop, STOP_SECONDS)
        finally:
            sweeping.cancel()

    async def _sync(self) -> None:
        """Until the watches have shown what there is; a kind that they have shown is not listed again."""
        await asyncio.gather(*map(self._show, self._kinds))
        self._synced = True
        # Those of one model look at the same objects, so one comes after another.
        for who in sorted(self._unseen, key=lambda who: (who[1], who[3])):
            self._queue.wake(who, later=True)

    async def _show(self, kind: str) -> None:
        await self._settle(kind)
        for pause in Backoffs():
            if not await self._sweep([kind]):
                return
            await asyncio.sleep(pause)

    async def _settle(self, kind: str) -> None:
        """Until the watch seems to have shown all of a kind: a second list would only hold up the first."""
        begun = last = time.monotonic()
        shown = 0
        while time.monotonic() - last < max(SYNC, STILL * (last - begun)):
            await asyncio.sleep(SYNC)
            if (now := self._store.count(kind)) != shown:
                shown, last = now, time.monotonic()

    async def _work(self, who: Who) -> float | None:
        """One pass; whoever has nothing to remember is made anew for the next."""
        if who[1] in self._hidden:  # What is seen of it may be half of what there is.
            self._unseen.discard(who)
            return HIDDEN
        reconciler = self._reconcilers.get(who) or Reconciler(self._world, *who)
        self._reconcilers[who] = reconciler
        pause = await reconciler.attempt()
        self._unseen.discard(who)
        if reconciler.at_rest:
            self._reconcilers.pop(who, None)
        return pause

    async def _keep_sweeping(self, stop: asyncio.Event) -> None:
        rest = SWEEP
        while not await _told(stop, pause := min(rest, HIDDEN) if self._hidden else rest):
            rest -= pause
            if rest > 0:
                await self._sweep(namespaces=self._hidden)
                continue
            await self._sweep(await self._sweep())
            rest = SWEEP * random.uniform(0.8, 1.2)  # noqa: S311  spreads load; no secret

    async def _sweep(self, kinds: Collection[str] | None = None, namespaces: Collection[str] = ()) -> frozenset[str]:
        """Looks past the watches: one that has to start over is told what exists, never what has gone meanwhile.

        Args:
            kinds: Of what; all kinds by default.
            namespaces: Where; all that are watched by default.

        Returns:
            The kinds of which they have yet to show something.
        """
        where, hidden = namespaces or self._settings.namespaces or ("",), set[str]()
        missing = await _answer(partial(self._cluster.missing, dict(self._kinds)))
        looked = [kind for kind in (self._kinds if kinds is None else kinds) if kind not in missing]
        left = frozenset([kind for kind in looked if not await self._compare(kind, where, hidden)])
        seen = set(where) if kinds is None and not left else set()
        self._hidden = (self._hidden - seen) | hidden
        return left

    async def _compare(self, kind: str, where: Collection[str], hidden: set[str]) -> bool:
        before = self._store.uids(kind)
        try:
            there = await self._list(kind, where, hidden)
        except NotFound:  # The kind itself has gone, since it was last seen.
            return True
        for key, uid in before.items():
            looked = key[0] not in hidden and ("" in where or key[0] in where)
            if looked and there.get(key) != uid and self._lose(kind, key, uid):
                log.info("%s %s/%s is gone; the watch had missed it", kind, *key)
        lacking, waited = set(there), 0
        while waited < LOOKS:
            lacks = there.keys() - self._store.uids(kind).keys()
            if not lacks:
                return True
            lacking, waited = (lacks, waited + 1) if lacks == lacking else (lacks, 0)
            await asyncio.sleep(SYNC)
        for key in lacking & self._lacked.pop(kind, set()):
            await self._read(kind, key)
        self._lacked[kind] = lacking
        return False

    async def _read(self, kind: str, key: Key) -> None:
        """Looks at what two lists had and the watch has not shown.

        One that breaks off within its first list goes on from the last object of it, and the rest never comes (kopf 1.45).
        """
        found = await _answer(partial(self._cluster.get, Ref(self._kinds[kind], kind, *key)), Forbidden)
        if found is not None:
            log.info("%s %s/%s was read; the watch had missed it", kind, *key)
            self.see(kind, None, found)

    async def _list(self, kind: str, where: Collection[str], hidden: set[str]) -> dict[Key, str]:
        """The uid of everything of a kind that belongs to a model; a namespace where nothing may be seen joins the hidden."""
        found: dict[Key, str] = {}
        for namespace in set(where) - hidden:
            try:
                found |= await self._list_in(namespace, kind)
            except Forbidden as error:
                hidden.add(namespace)
                if namespace not in self._hidden:
                    self._hidden |= {namespace}
                    log.warning("namespace %s is left alone: %s", namespace, error)
        return found

    async def _list_in(self, namespace: str, kind: str) -> dict[Key, str]:
        selector, of = contract.LABEL_MODEL if labelled(kind) else "", Ref(self._kinds[kind], kind, namespace, "")
        final = (NotFound, Forbidden) if namespace else (NotFound,)  # One namespace may be left alone; all may not.
        if await self.streams():
            return await _answer(partial(self._streamed, of, selector), *final)
        found: dict[Key, str] = {}
        rest, more = "", True
        while more:  # Page by page, so that nobody who wants to end waits for the last.
            anew = (Expired, Rejected) if rest else ()
            try:
                items, rest = await _answer(partial(self._cluster.page, of, selector, rest), *final, *anew)
            except anew:
                found, rest = {}, ""
                continue
            found |= _uids(kind, items)
            more = bool(rest)
        return found

    def _streamed(self, of: Ref, selector: str) -> dict[Key, str]:
        """The same at once, in a thread; nobody who wants to end waits for its end."""
        return _uids(
            of.kind, itertools.takewhile(lambda _: not self._stop.is_set(), self._cluster.stream(of, selector))
        )


def _uids(kind: str, items: Iterable[Object]) -> dict[Key, str]:
    """The uid of what belongs to a model."""
    whole = kind in {"ModelVersion", "Ingress"}
    return {(namespace_of(item), name_of(item)): uid_of(item) for item in items if whole or model_of(kind, item)}


async def _answer(question: Callable[[], T], *final: type[ClusterError]) -> T:
    """What the API server says, once it does.

    Args:
        question: Asks it, in a thread.
        final: Errors that are an answer.
    """
    pauses = iter(Backoffs())
    while True:
        try:
            return await asyncio.to_thread(question)
        except final:
            raise
        except ClusterError as error:
            pause = next(pauses)
            log.warning("what there is cannot be listed, trying again in %.1f s: %s", pause, error)
        await asyncio.sleep(pause)


async def _told(stop: asyncio.Event, seconds: float) -> bool:
    """Waits that long, or until told to stop: then True."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()
