"""Observe → plan → apply, for one object at a time.

Called by `mlplatform.fleet`: one `Reconciler` for each MLModel and each
ModelVersion that something happens to. What it knows it reads from what the
watches have shown; what it keeps between passes only bridges the moments in
which those lag behind.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol

from mlplatform import contract, metrics
from mlplatform.actions import Apply, Create, Event, Ref, Write
from mlplatform.cluster import Cluster, ClusterError, Conflict, NotLeading
from mlplatform.conditions import Book
from mlplatform.contract import Stage
from mlplatform.inquiry import Inquiry
from mlplatform.plan import Plan, plan_model, plan_version
from mlplatform.plan.plan import LEFTOVERS, conditions_json, leftovers
from mlplatform.refusals import gist
from mlplatform.resources import KINDS, adoption, forgetting, host, inferenceservice
from mlplatform.resources.metadata import belongs
from mlplatform.settings import Settings
from mlplatform.snapshot import (
    Errand,
    ModelSnapshot,
    Object,
    Refusal,
    VersionSnapshot,
    condition,
    controlled_by,
    labels_of,
    name_of,
    status_of,
)

log = logging.getLogger(__name__)

LAG: Final = 10.0
"""Seconds after which a write that the watch has not shown is looked for."""

BACKOFF: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds to wait after the first, second, … error in a row, give or take a half."""


FOLLOW: Final = 1.0
"""Seconds between two looks whether this operator may write."""

ERRANDS: Final = (adoption.NAME, forgetting.NAME)
"""Jobs of a version beside those of its stages."""


def _utc() -> datetime:
    return datetime.now(UTC)


class Store(Protocol):
    """What the watches have shown."""

    def objects(self, kind: str, namespace: str, model: str) -> Iterable[Object]:
        """Objects of that kind that belong to the model, in no order; of kind MLModel, the model itself."""

    def claims(self, host: str, namespace: str, model: str) -> Iterable[Object]:
        """Objects that name the host, but for those of that model."""


@dataclass(frozen=True, slots=True)
class World:
    """What every reconciler works with.

    Attributes:
        cluster: Writes.
        store: What the watches have shown.
        settings: The operator's settings.
        clock: The time.
    """

    cluster: Cluster
    store: Store
    settings: Settings
    clock: Callable[[], datetime] = _utc


class Recent:
    """Bridges the moment between a write and its echo in the watch.

    Without it the pass after a write would see the old world and decide again,
    and a rollout's step would start twice.
    """

    def __init__(self) -> None:
        self._written: dict[tuple[str, str], tuple[float, Object]] = {}

    def __bool__(self) -> bool:
        """Whether the watch has yet to show something."""
        return bool(self._written)

    def remember(self, obj: Object | None) -> None:
        """Takes note of an object as the API server returned it from a write."""
        if obj is not None and "resourceVersion" in obj.get("metadata", {}):
            self._written[obj["kind"], name_of(obj)] = (time.monotonic(), obj)

    def forget(self, obj: Object) -> None:
        """Takes note that an object that was written is gone again."""
        self._written.pop((obj["kind"], name_of(obj)), None)

    @property
    def overdue(self) -> list[Object]:
        """What was written `LAG` ago, and the watch has not shown."""
        return [obj for when, obj in self._written.values() if time.monotonic() - when >= LAG]

    @property
    def lag(self) -> float | None:
        """Seconds until something is overdue; None when the watch has shown everything."""
        oldest = min((when for when, _ in self._written.values()), default=None)
        return None if oldest is None else max(oldest + LAG - time.monotonic(), 0)

    def view(self, kind: str, seen: Iterable[Object]) -> dict[str, Object]:
        """Objects of a kind by name: as watched, or as written if that is newer."""
        found = {name_of(obj): obj for obj in seen}
        for (written_kind, name), (_, obj) in list(self._written.items()):
            if written_kind != kind:
                continue
            if _revision(found.get(name)) >= _revision(obj):
                del self._written[written_kind, name]
            else:
                found[name] = obj
        return found


class Reconciler:
    """Keeps one MLModel or one ModelVersion."""

    def __init__(self, world: World, kind: str, namespace: str, name: str, model: str) -> None:
        self._world, self._kind, self._namespace, self._name, self._model = world, kind, namespace, name, model
        self._recent = Recent()
        self._inquiry = Inquiry(world.cluster)
        self._failing: dict[str, dict[tuple[str, str], tuple[int, str]]] = {}
        self._errors = 0
        self._due: datetime | None = None

    def __str__(self) -> str:
        return f"{self._kind} {self._namespace}/{self._name}"

    @property
    def at_rest(self) -> bool:
        """Whether there is nothing to remember until the next pass."""
        return not (self._errors or any(self._failing.values()) or self._recent or self._inquiry)

    async def attempt(self) -> float | None:
        """One pass, whatever comes of it.

        Returns:
            Seconds until the next one, if nothing happens before; None when only something that happens can change anything.
        """
        if not self._world.cluster.may_write():
            return FOLLOW
        try:
            await self._confirm()
            with metrics.RECONCILE_SECONDS.labels(self._kind).time():
                look_again = await self.once()
        except Exception as error:  # noqa: BLE001  one object's mistake must not end the others' work, nor go unseen
            pause = BACKOFF[min(self._errors, len(BACKOFF) - 1)] * random.uniform(0.5, 1.5)  # noqa: S311  no secret
            self._errors += 1
            if self._due and self._due > (now := self._world.clock()):  # What else is due does not wait for that.
                pause = min(pause, (self._due - now).total_seconds())
            self._report(error, pause, self._errors)
            return pause
        self._errors = 0
        pauses = [self._recent.lag] if self._recent.lag is not None else []
        if look_again:
            pauses.append(max((look_again - self._world.clock()).total_seconds(), 0.0))
        return min(pauses, default=None)

    def _report(self, error: Exception, pause: float, errors: int) -> None:
        """Counts and logs what ended a pass; what the API server cannot have said is a mistake of ours, with its trace."""
        if isinstance(error, NotLeading):
            log.info("%s: %s", self, error)
            return
        metrics.RECONCILE_ERRORS.labels(self._kind, type(error).__name__).inc()
        if not isinstance(error, ClusterError):
            log.error("%s: trying again in %.1f s after an internal error", self, pause, exc_info=error)
            return
        level = logging.DEBUG if isinstance(error, Conflict) and errors == 1 else logging.WARNING
        log.log(level, "%s: trying again in %.1f s: %s", self, pause, error)

    async def once(self) -> datetime | None:
        """One pass.

        Returns:
            When to look again if nothing happens.

        Raises:
            ClusterError: A write failed; the status says so where a person can help.
        """
        me = self._all(self._kind).get(self._name)
        if me is None or "deletionTimestamp" in me["metadata"]:
            if self._kind == "MLModel":
                metrics.forget_model(self._namespace, self._name)
            return None
        now, self._inquiry.due = self._world.clock(), None
        try:
            snapshot = await self._observe(me, now)
            plan = self._plan(snapshot, now)
        except ClusterError:
            raise
        except Exception as error:
            await self._apologise(me, error)
            raise
        plan.look(self._inquiry.due)
        self._due = look_again = plan.look_again
        if self._kind == "MLModel":
            self._show(me, plan.status)  # What is seen is so, whatever becomes of the writes.
        done, refused = await self._carry_out(plan.traffic, *([write] for write in plan.writes))
        refusals = self._refusals(me, refused, "Ready")
        if refusals:
            plan = self._plan(replace(snapshot, refusals=refusals), now)
        try:
            await self._write_status(me, plan.status)
        finally:
            await self._post(me, done)
        await self._post(me, plan.events)
        if not refused:
            done, refused = await self._carry_out(*([write] for write in plan.cleanup))
            await self._post(me, done)
            await self._tell_leftovers({**me, "status": plan.status}, refused)
        if refused:
            raise refused[0][1]
        return look_again

    async def _carry_out(self, *chains: Sequence[Write]) -> tuple[list[Event], list[tuple[Write, ClusterError]]]:
        """Tries all chains of writes; one that is refused stops the rest of its own chain.

        Returns:
            What has happened, and what was refused with why: what lasts comes first.
        """
        done: list[Event] = []
        refused: list[tuple[Write, ClusterError]] = []
        for chain in chains:
            for write in chain:
                try:
                    await self._write(write)
                except NotLeading:
                    raise
                except ClusterError as error:
                    refused.append((write, error))
                    break
                done += [write.event] if write.event else []
        refused.sort(key=lambda pair: pair[1].patience)
        for _, quieter in refused[1:]:  # The first is raised, and logged by whoever catches it.
            log.warning("%s: %s", self, quieter)
        return done, refused

    async def _tell_leftovers(self, me: Object, refused: Iterable[tuple[Write, ClusterError]]) -> None:
        """What was not cleaned up goes into a status that has been written before: cleanup comes after that."""
        refusals = self._refusals(me, refused, LEFTOVERS)
        status, events = leftovers(me, refusals, self._world.clock())
        await self._write_status(me, status)
        await self._post(me, events)

    def _refusals(self, me: Object, refused: Iterable[tuple[Write, ClusterError]], told_by: str) -> tuple[Refusal, ...]:
        """What was refused, as a status may tell of it: once patience is over, in words that stay while their gist does.

        Args:
            me: With the status last written.
            refused: What it was, and why.
            told_by: The condition that tells of it.
        """
        failing: dict[tuple[str, str], tuple[int, str]] = {}
        before, found = self._failing.get(told_by, {}), []
        for write, error in refused:
            ref = _ref(write)
            times, words = before.get((ref.kind, ref.name), (0, ""))
            words = words if gist(words) == gist(str(error)) else str(error)
            failing[ref.kind, ref.name] = (times + 1, words)
            # What a process before this one has told stays told.
            told = times >= error.patience or condition(me, told_by).get("reason") == error.reason
            lasting = error.patience == 0
            found.append(Refusal(kind=ref.kind, reason=error.reason, message=words, told=told, lasting=lasting))
        self._failing[told_by] = failing
        return tuple(found)

    def _show(self, me: Object, status: Object) -> None:
        """Shows Prometheus what an MLModel's status says."""
        stable = (status.get("stable") or {}).get("version", "")
        metrics.record_model({**me, "status": status}, self._all("ModelVersion").get(stable))

    def _plan(self, snapshot: VersionSnapshot | ModelSnapshot, now: datetime) -> Plan:
        settings = self._world.settings
        if isinstance(snapshot, VersionSnapshot):
            return plan_version(snapshot, settings, now)
        return plan_model(snapshot, settings, now)

    async def _observe(self, me: Object, now: datetime) -> VersionSnapshot | ModelSnapshot:
        if self._kind == "ModelVersion":
            missing = await self._missing({"PyTorchJob": KINDS["PyTorchJob"].api_version})
            seen = self._version_snapshot(me, missing)
            stages = {
                stage: await self._inquiry.workload(
                    child, [p for p in seen.pods[stage] if controlled_by(p, child)], now
                )
                for stage, child in seen.children.items()
            }
            errands = {
                name: replace(errand, absent=await self._inquiry.workload(errand.job, errand.pods, now))
                for name, errand in seen.errands.items()
            }
            return replace(seen, errands=errands, absent={stage: words for stage, words in stages.items() if words})
        kinds = {
            "InferenceService": KINDS["InferenceService"].api_version,
            "VirtualService": self._world.settings.istio_api_version,
        }
        served = self._model_snapshot(me, await self._missing(kinds))
        well = condition(me, "Ready").get("status") == "True" and "failure" not in status_of(me)
        versions = {
            version: await self._inquiry.predictor(service, served.pods.get(version, ()), now, well=well)
            for version, service in served.services.items()
            if "deletionTimestamp" not in service["metadata"]
        }
        return replace(served, absent={version: words for version, words in versions.items() if words})

    def _version_snapshot(self, me: Object, missing: frozenset[str]) -> VersionSnapshot:
        jobs = {**self._own("Job", me), **self._own("PyTorchJob", me)}
        children = {stage: jobs[f"{self._name}-{stage}"] for stage in Stage if f"{self._name}-{stage}" in jobs}
        pods: dict[str, list[Object]] = {name: [] for name in (*Stage, *ERRANDS)}
        for pod in self._all("Pod").values():
            labels = labels_of(pod)
            if labels.get(contract.LABEL_VERSION) == self._name and labels.get(contract.LABEL_STAGE) in pods:
                pods[labels[contract.LABEL_STAGE]].append(pod)
        errands = {name: jobs[f"{self._name}-{name}"] for name in ERRANDS if f"{self._name}-{name}" in jobs}
        model = self._all("MLModel").get(self._model)
        return VersionSnapshot(
            version=me,
            model=model,
            siblings=self._own("ModelVersion", model) if model else {},
            children=children,
            pods={stage: tuple(sorted(pods[stage], key=name_of)) for stage in Stage},
            errands={
                name: Errand(job=job, pods=tuple(pod for pod in pods[name] if controlled_by(pod, job)))
                for name, job in errands.items()
            },
            missing=missing,
        )

    def _model_snapshot(self, me: Object, missing: frozenset[str]) -> ModelSnapshot:
        pods: dict[str, list[Object]] = {}
        for pod in self._all("Pod").values():
            version = inferenceservice.version_of(labels_of(pod).get("app", ""))
            if version:
                pods.setdefault(version, []).append(pod)
        services = self._own("InferenceService", me)
        published = {name: self._own("Ingress", served).get(name) for name, served in services.items()}
        return ModelSnapshot(
            model=me,
            versions=self._own("ModelVersion", me),
            services=services,
            pods={version: tuple(sorted(found, key=name_of)) for version, found in pods.items()},
            runtimes=self._own("ServingRuntime", me),
            ingresses={name: ingress for name, ingress in published.items() if ingress},
            apex=self._own("Service", me).get(self._name),
            route=self._own("VirtualService", me).get(self._name),
            claims=tuple(self._world.store.claims(host.asked(me), self._namespace, self._name)),
            missing=missing,
        )

    def _own(self, kind: str, me: Object) -> dict[str, Object]:
        """Of a kind by name: those that this very object controls, not a deleted namesake, or that nobody does (any more)."""
        return {name: obj for name, obj in self._all(kind).items() if belongs(obj, me)}

    def _all(self, kind: str) -> dict[str, Object]:
        return self._recent.view(kind, self._world.store.objects(kind, self._namespace, self._model))

    async def _missing(self, kinds: dict[str, str]) -> frozenset[str]:
        seen = self._world.cluster.seen_missing(kinds)  # No thread for what is known.
        return await asyncio.to_thread(self._world.cluster.missing, kinds) if seen is None else seen

    async def _write(self, write: Write) -> None:
        metrics.WRITES.labels(_ref(write).kind, type(write).__name__.lower()).inc()
        written = await asyncio.to_thread(self._world.cluster.do, write)
        self._recent.remember(written)

    async def _write_status(self, me: Object, status: Object) -> None:
        if status == status_of(me):
            return
        metrics.WRITES.labels(self._kind, "status").inc()
        self._recent.remember(await asyncio.to_thread(self._world.cluster.write_status, me, status))
        if self._kind == "ModelVersion":
            metrics.record_version(status_of(me), status)
        else:
            self._show(me, status)

    async def _post(self, me: Object, events: Iterable[Event]) -> None:
        for event in events:
            log.info("%s: %s: %s", self, event.reason, event.message)
            metrics.WRITES.labels("Event", "create").inc()
            await asyncio.to_thread(self._world.cluster.post, me, event, self._world.clock())

    async def _apologise(self, me: Object, error: Exception) -> None:
        """Tells of a mistake of ours, but for a version that is ready: it serves, or may, and must go on being so."""
        if self._kind == "ModelVersion" and condition(me, "Ready").get("status") == "True":
            return
        try:
            await self._write_status(me, self._confession(me, "InternalError", _apology(error)))
        except ClusterError as untold:
            log.warning("%s: its status could not say so: %s", self, untold)

    def _confession(self, me: Object, reason: str, message: str) -> Object:
        """A status that puts a mistake of ours where a person looks: into `Ready`. The rest of it stays as it was."""
        before, generation = status_of(me), me["metadata"].get("generation", 0)
        book = Book(before.get("conditions") or (), generation, self._world.clock())
        for c in before.get("conditions") or ():
            book.keep(c["type"])
        book.set("Ready", "False", reason, message)
        book.stall()
        return {**before, "observedGeneration": generation, "conditions": conditions_json(book.conditions())}

    async def _confirm(self) -> None:
        """Looks for what was written and the watch has not shown: it may be slow, or somebody was quick to delete it."""
        for obj in self._recent.overdue:
            live = await asyncio.to_thread(self._world.cluster.get, Ref.to(obj))
            if live is None:
                self._recent.forget(obj)
            else:
                self._recent.remember(live)


def _apology(error: Exception) -> str:
    return (
        f"the operator cannot work out what to do ({type(error).__name__}: {error}); what runs goes on running. "
        "It tries again by itself; the operator's log has the trace to report"
    )


def _ref(write: Write) -> Ref:
    return Ref.to(write.manifest) if isinstance(write, (Create, Apply)) else write.ref


def _revision(obj: Object | None) -> int:
    """How new a state of an object is; -1 for none."""
    return int(obj["metadata"]["resourceVersion"]) if obj else -1
