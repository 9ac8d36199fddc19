"""Why pods do not come, asked of the API server where fewer are there than should be.

Called by `mlplatform.reconciler` before each plan. What refuses a pod (a quota,
Pod Security, a webhook, a namespace without the ServiceAccount) tells whoever
wanted to make it: of a training or a Job only an event says so, of what serves
the Deployment. Neither is worth a watch, so both are read on demand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from mlplatform.actions import Ref
from mlplatform.cluster import Cluster, ClusterError
from mlplatform.resources import KINDS, inferenceservice, job, pytorchjob
from mlplatform.snapshot import Object, condition, moment, name_of, namespace_of, status_of, uid_of, written

log = logging.getLogger(__name__)

PATIENCE: Final = timedelta(seconds=15)
"""From an object's creation on: its pods are made within a second or two."""

AGAIN: Final = timedelta(seconds=20)
"""How often it is asked while pods are missing."""

ROLL: Final = timedelta(seconds=180)
"""For how long a changed InferenceService is asked about, though its old pods are all there: longer than an operator takes to begin."""

SKEW: Final = timedelta(seconds=5)
"""By which an event's time and a pod's may differ."""

REASONS: Final = {"FailedCreatePod", "FailedCreate"}
"""Of the events: the Training Operator's, and the Job controller's."""

_WANTED: Final[dict[str, Callable[[Object], int]]] = {"PyTorchJob": pytorchjob.wanted, "Job": job.wanted}


class Inquiry:
    """What one reconciler has asked, and when it wants to ask again.

    Attributes:
        due: When the present pass wants to be followed by another one; None when all pods are there.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._answers: dict[str, tuple[datetime, str]] = {}
        self.due: datetime | None = None

    def __bool__(self) -> bool:
        """Whether there is an answer to remember."""
        return bool(self._answers)

    async def workload(self, child: Object, pods: Sequence[Object], now: datetime) -> str:
        """Why a training or a Job has fewer pods than it should; empty when it has all, or nobody knows."""
        if _there(pods) >= _WANTED[child["kind"]](child):
            self._answers.pop(uid_of(child), None)
            return ""
        self._look(now + AGAIN)
        return await self._ask(child, now, lambda: refusal(self._cluster.warnings(child), child, pods))

    async def predictor(self, service: Object, pods: Sequence[Object], now: datetime, *, well: bool) -> str:
        """Why the Deployment of an InferenceService cannot make its pods; empty when it can, or nobody knows.

        Args:
            service: The InferenceService.
            pods: Its pods.
            now: The time.
            well: Whether the model's status, which outlives this process, has told of nothing wrong.
        """
        changed = written(service)
        rolling = changed is not None and abs(now - changed) < ROLL
        settled = _there(pods) >= inferenceservice.wanted(service) and not rolling
        _, known = self._answers.get(uid_of(service), (None, ""))
        if settled and well and not known:  # The many that are at rest.
            self._answers.pop(uid_of(service), None)
            return ""
        answer = await self._ask(service, now, lambda: self._failure(service))
        if answer or not settled:
            self._look(now + AGAIN)
        return answer

    def _failure(self, service: Object) -> str:
        name = inferenceservice.deployment(name_of(service))
        found = self._cluster.get(Ref(KINDS["Deployment"].api_version, "Deployment", namespace_of(service), name))
        failure = condition(found, "ReplicaFailure")
        return str(failure.get("message", "")) if failure.get("status") == "True" else ""

    async def _ask(self, obj: Object, now: datetime, question: Callable[[], str]) -> str:
        """The answer, no older than `AGAIN`; it is asked for in a thread."""
        first = (moment(obj["metadata"].get("creationTimestamp")) or now) + PATIENCE
        asked, answer = self._answers.get(uid_of(obj), (None, ""))
        if now < first <= now + PATIENCE:  # Further ahead is a clock that jumped.
            self._look(first)
            return ""
        if asked is None or not asked <= now < asked + AGAIN:
            try:
                answer = await asyncio.to_thread(question)
            except ClusterError as error:
                log.warning("why pods of %s %s do not come cannot be asked: %s", obj["kind"], name_of(obj), error)
            self._answers[uid_of(obj)] = now, answer
        return answer

    def _look(self, when: datetime) -> None:
        self.due = min(self.due or when, when)


def refusal(events: Iterable[Object], workload: Object, pods: Iterable[Object]) -> str:
    """What the newest event about a refused pod says, unless pods were made, or the work began anew, after it."""
    said = [(when, event) for event in events if _refuses(event) and (when := _last(event))]
    when, event = max(said, key=lambda pair: pair[0], default=(None, {}))
    times = [status_of(workload).get("startTime"), *(pod["metadata"].get("creationTimestamp") for pod in pods)]
    known = [time for time in map(moment, times) if time]
    if when is None or any(when + SKEW < time for time in known):
        return ""
    return str(event.get("message", ""))


def _refuses(event: Object) -> bool:
    """Whether it is about a pod that may not be; one whose predecessor has yet to go is only early."""
    return event.get("reason") in REASONS and not str(event.get("message", "")).endswith("already exists")


def _last(event: Object) -> datetime | None:
    series = event.get("series") or {}
    return moment(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime"))


def _there(pods: Iterable[Object]) -> int:
    """Pods that count: one that has failed, or is on its way out, is to be replaced."""
    return sum(status_of(pod).get("phase") != "Failed" and "deletionTimestamp" not in pod["metadata"] for pod in pods)
