"""How long a stage has worked and how often it was started again: from its pods, and from what is on record of them.

Called by `plan.version`, which holds the first against the stage's deadline and the second against its restarts. Pods
forget: a container knows of its last run only, and a pod that was replaced of none. So what has ended is added up in
the stage's record, which is all that is remembered. The record changes when a container starts or ends, not in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from mlplatform import api, failures
from mlplatform.snapshot import Object, condition, moment, name_of, stamp, status_of, uid_of

DISRUPTIONS_KEPT: Final = 50
"""The newest: what was before the oldest pod counts for nothing."""

RESTARTS_COUNTED: Final = 101
"""One more than spec.training.maxRestarts may allow."""

NEVER: Final = datetime.min.replace(tzinfo=UTC)

Run = tuple[datetime, datetime | None]
"""When a container began and ended; no end while it runs."""


def spent(record: api.StageStatus, now: datetime) -> timedelta:
    """How long the stage's main containers have run."""
    since = moment(record.working_since)
    return timedelta(seconds=record.worked_seconds) + (max(now - since, timedelta()) if since else timedelta())


def begun(record: api.StageStatus | None) -> bool:
    """Whether a main container of the stage has ever run."""
    return record is not None and bool(record.working_since or record.worked_until or record.worked_seconds)


def timed(record: api.StageStatus, pods: Sequence[Object], gang: int, latest: datetime) -> api.StageStatus:
    """The record with what the containers of these pods have run since it was written.

    Of a training of several pods that is the time in which all of them do: who waits for a pod without a node or an
    image does no work.

    Args:
        record: The stage's.
        pods: Of its workload.
        gang: How many pods there should be.
        latest: When a container has ended at the latest whose pod is gone.
    """
    since = moment(record.working_since)
    counted = since or moment(record.worked_until) or NEVER
    runs = [run for run in _together(pods, gang) if run[1] is None or run[1] > counted]
    if since is not None and not any(begin <= since for begin, _ in runs):
        # What ran then is gone: it had ended when another took its place.
        later = [begin for begin, _ in runs] + [made for pod in pods if (made := _created(pod)) > since]
        runs.append((since, max(min([*later, latest]), since)))
    worked, begun, until = timedelta(seconds=record.worked_seconds), None, counted
    for begin, end in sorted(runs, key=lambda run: run[0]):
        if begun is not None and begin > until:
            worked, begun = worked + (until - begun), None
        begun = begun or max(begin, counted)
        if end is None:
            return replace(record, worked_seconds=_whole(worked), working_since=stamp(begun), worked_until="")
        until = max(until, end)
    worked += until - begun if begun else timedelta()
    return replace(
        record, worked_seconds=_whole(worked), working_since="", worked_until="" if until == NEVER else stamp(until)
    )


def closed(record: api.StageStatus, when: str) -> api.StageStatus:
    """The record of a stage that ended then: what of it still ran, or runs, does no more of its work."""
    end = moment(when)
    since, until = moment(record.working_since), moment(record.worked_until)
    if end is None or (since is None and (until is None or until <= end)):
        return record
    if since is not None:
        return replace(
            record, worked_seconds=_whole(spent(record, end)), working_since="", worked_until=stamp(max(since, end))
        )
    longer = (until or end) - end
    worked = max(timedelta(seconds=record.worked_seconds) - longer, timedelta())
    return replace(record, worked_seconds=_whole(worked), worked_until=stamp(end))


def counted(record: api.StageStatus, pods: Sequence[Object], gang: int, now: datetime) -> api.StageStatus:
    """The record with the restarts of a training that its own failures have caused.

    One pod's death restarts the training in every pod: it is one restart, and a pod's count is that of the whole since
    it was created. A pod that was taken away uses up none, and the echo of that in another pod is taken off its count;
    nor does one that has waited in vain for a pod that does not run yet.
    """
    known = {taken.uid for taken in record.disruptions}
    gone = [pod for pod in pods if _is_taken(pod)]
    new = [
        api.Disruption(pod=name_of(pod), uid=uid_of(pod), time=_taken_at(pod, now))
        for pod in gone
        if uid_of(pod) not in known
    ]
    disruptions = (*record.disruptions, *new)[-DISRUPTIONS_KEPT:]
    restarts = record.restarts
    staying = [pod for pod in pods if not _is_taken(pod)]
    found = max((_restarts_at(pod, restarts, disruptions) for pod in staying), default=0) - len(restarts)
    if found <= 0:
        return replace(record, disruptions=disruptions)
    when = max((end for pod in staying for end in _failed_at(pod)), default=stamp(now))
    begun = [pod for pod in staying if _has_begun(pod)]
    if len(begun) < gang:
        missing = next((name_of(pod) for pod in pods if pod not in begun), "")
        before = sum(taken.count for taken in disruptions if not taken.uid)
        vain = api.Disruption(pod=missing, uid="", time=when, count=before + found)
        return replace(record, disruptions=(*(taken for taken in disruptions if taken.uid), vain))
    return replace(record, restarts=(restarts + (when,) * found)[:RESTARTS_COUNTED], disruptions=disruptions)


def _restarts_at(pod: Object, restarts: Sequence[str], disruptions: Sequence[api.Disruption]) -> int:
    """How often the training was restarted, as far as this pod knows."""
    created = _created(pod)
    before = sum((moment(when) or created) < created for when in restarts)
    echoes = sum(taken.count for taken in disruptions if (moment(taken.time) or created) > created)
    failed = max((_failures(container) for container in failures.main_containers(pod)), default=0)
    return before + max(failed - echoes, 0)


def _has_begun(pod: Object) -> bool:
    """Whether its container has been started, however that went."""
    states = [c.get(key) or {} for c in failures.main_containers(pod) for key in ("state", "lastState")]
    return any("running" in state or "terminated" in state for state in states)


def _failures(container: Object) -> int:
    state = container.get("state") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    # Between two runs the last one's failure is in no count yet.
    return int(container.get("restartCount", 0)) + ("running" not in state and ended.get("exitCode", 0) != 0)


def _failed_at(pod: Object) -> Iterator[str]:
    for container in failures.main_containers(pod):
        for key in ("state", "lastState"):
            ended = (container.get(key) or {}).get("terminated") or {}
            if ended.get("exitCode", 0) != 0 and ended.get("finishedAt"):
                yield ended["finishedAt"]


def _is_taken(pod: Object) -> bool:
    """Whether the pod goes as a whole: its container alone is started again where it is."""
    return bool(
        failures.disruption(pod) or "deletionTimestamp" in pod["metadata"] or status_of(pod).get("phase") == "Failed"
    )


def _taken_at(pod: Object, now: datetime) -> str:
    told = condition(pod, "DisruptionTarget").get("lastTransitionTime")
    asked = failures.deletion_asked(pod)
    ends = max(_failed_at(pod), default="")
    return str(told or (stamp(asked) if asked else ends) or stamp(now))


def _together(pods: Sequence[Object], gang: int) -> Iterator[Run]:
    """When that many of the pods ran at once; who has ended well is no longer waited for."""
    runs = [run for pod in pods for run in _runs(pod)]
    marks = [(begin, 1) for begin, _ in runs] + [(end, -1) for _, end in runs if end is not None]
    running, since = 0, None
    for when, change in sorted(marks):
        running += change
        if since is None and running >= gang:
            since = when
        elif since is not None and running < gang:
            yield since, when
            since = None
    if since is not None:
        yield since, None


def _runs(pod: Object) -> Iterator[Run]:
    for container in failures.main_containers(pod):
        state, last = container.get("state") or {}, container.get("lastState") or {}
        for seen in (state.get("running"), state.get("terminated"), last.get("terminated")):
            begin, end = moment((seen or {}).get("startedAt")), moment((seen or {}).get("finishedAt"))
            # What could not even start began in 1970.
            if begin is not None and begin >= _created(pod) - timedelta(hours=1):
                yield begin, None if (seen or {}).get("exitCode") == 0 else end


def _created(pod: Object) -> datetime:
    return moment(pod["metadata"].get("creationTimestamp")) or NEVER


def _whole(duration: timedelta) -> int:
    return int(duration.total_seconds())
