"""Why pods do not do their work, in words a person can act on.

Called by `mlplatform.plan` for the pods of stages and for serving pods. Reads
pod status only, which says it seconds after the kubelet knows; nothing here
needs logs, events or the artifact store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from mlplatform import api
from mlplatform.contract import PERMANENT, FailureClass, Stage, Summary
from mlplatform.snapshot import Object, name_of, namespace_of, status_of

SERVING: Final = "serving"
"""In place of a stage's name, for the pods that serve."""

LAST_LOG_LIMIT: Final = 600
"""Characters of a crashed container's last output that go into status."""

_ECHO: Final = re.compile(r"[Cc]onnection (closed|reset) by peer")
"""What the others of a training say (gloo, NCCL) when one of its processes has died of something else."""

_IMAGE: Final = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG: Final = {"CreateContainerConfigError", "CreateContainerError"}

_NEXT: Final = {
    FailureClass.UNSCHEDULABLE: "Free or add capacity, or lower the resources asked for.",
    FailureClass.OOM_KILLED: "Raise spec.training.resources.memory, or lower spec.training.batchSize.",
    FailureClass.IMAGE_PULL: "Correct the image's name, or give the ServiceAccount the registry's pull secret.",
    FailureClass.PREEMPTED: "Nothing if it happened once: it is retried. Else give the nodes more room or the pods a priority.",
    FailureClass.DEADLINE_EXCEEDED: "Raise spec.training.deadline, or give the training more resources.",
    FailureClass.CRASHED: "Read the container's log; correct the spec or the task, which starts a new version.",
}
_NEXT_OF_JOBS: Final = {
    **_NEXT,
    FailureClass.OOM_KILLED: "Raise spec.training.resources.memory, which the pods of every stage get.",
    FailureClass.DEADLINE_EXCEEDED: "Raise spec.training.resources.cpu, which the pods of every stage get; else read the pod's log.",
}
_NEXT_OF_SERVING: Final = {
    **_NEXT,
    FailureClass.OOM_KILLED: "Raise spec.serving.resources.memory.",
    FailureClass.CRASHED: "Read the container's log; a version that cannot run is replaced by applying another spec.",
}


def _next(reason: FailureClass, stage: str) -> str:
    """What a person does about it, where it happened."""
    table = _NEXT if stage in {Stage.TRAIN, ""} else _NEXT_OF_SERVING if stage == SERVING else _NEXT_OF_JOBS
    return table.get(reason, "")


class Gravity(IntEnum):
    """How much a sighting says about the stage; higher wins."""

    PENDING = 1
    """It waits for a node."""
    CRASHED = 2
    """A container ended in failure; the workload retries it."""
    BLOCKED = 3
    """A person must mend something outside; it goes on by itself after that."""
    FINAL = 4
    """The stage itself says that another try ends the same way."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing wrong with one pod."""

    gravity: Gravity
    failure: api.FailureStatus


@dataclass(frozen=True, slots=True)
class Finished:
    """The summary that a container wrote, and when it ended (RFC 3339)."""

    summary: Summary
    finished_at: str


def worst(pods: Iterable[Object], stage: str = "") -> Sighting | None:
    """The gravest thing wrong with these pods; among equals a cause before its echoes, then the first of them."""
    found = [sighting for pod in pods for sighting in sightings(pod, stage)]
    return max(found, key=lambda s: (s.gravity, not _ECHO.search(s.failure.message)), default=None)


def steady(found: Sighting | None, recorded: Object | None) -> Sighting | None:
    """The same sighting in the words that status has for it, if those say all of it and more.

    The kubelet's words alternate between a cause and "back-off"; what is told must not.
    """
    if found is None or not recorded:
        return found
    now = found.failure
    same = (recorded.get("class"), recorded.get("pod", "")) == (now.class_, now.pod)
    if same and str(recorded.get("message", "")).startswith(now.message):
        return Sighting(found.gravity, replace(now, message=str(recorded["message"])))
    return found


def succeeded(pods: Iterable[Object]) -> Finished | None:
    """The summary of the container that did the stage's work, if one did."""
    for pod in pods:
        for _, terminated in _ended(pod):
            summary = _summary(terminated)
            if summary and not summary.failure and terminated.get("exitCode") == 0:
                return Finished(summary, terminated.get("finishedAt", ""))
    return None


def sightings(pod: Object, stage: str = "") -> Iterator[Sighting]:
    """Everything wrong with one pod."""
    status = status_of(pod)
    for container in _containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _IMAGE:
            # Between two tries the kubelet says "Back-off pulling image", which tells nothing that is new.
            said = "" if waiting["reason"] == "ImagePullBackOff" else waiting.get("message", "")
            message = f"image {container.get('image', '')!r} cannot be pulled{f': {said}' if said else ''}"
            yield _sight(Gravity.BLOCKED, FailureClass.IMAGE_PULL, message, pod, stage)
        elif waiting.get("reason") in _CONFIG:
            yield _config(waiting, pod, stage)
    for container, terminated in _ended(pod):
        if terminated.get("exitCode") != 0:
            yield _crash(container, terminated, pod, stage)
    reason = status.get("reason", "")
    if reason in {"Evicted", "Preempting", "Shutdown", "NodeLost"} or _is_true(status, "DisruptionTarget"):
        message = f"pod was taken off its node ({reason or 'disrupted'}): {status.get('message') or 'no message'}"
        yield _sight(Gravity.CRASHED, FailureClass.PREEMPTED, message, pod, stage)
    for item in status.get("conditions") or ():
        if item["type"] == "PodScheduled" and item["status"] == "False" and item.get("reason") == "Unschedulable":
            message = f"no node has room: {item.get('message', '')}"
            yield _sight(Gravity.PENDING, FailureClass.UNSCHEDULABLE, message, pod, stage)


def ready(pod: Object) -> bool:
    """Whether the pod takes traffic: Ready, and not on its way out."""
    return _is_true(status_of(pod), "Ready") and "deletionTimestamp" not in pod["metadata"]


def sentence(failure: api.FailureStatus) -> str:
    """Cause and next action in one line, for a condition's message."""
    where = f"{failure.pod}: " if failure.pod else ""
    return f"{where}{failure.message.rstrip('. ')}. {failure.next_action}".strip()


def failure(reason: FailureClass, message: str, stage: str = "", next_action: str = "") -> api.FailureStatus:
    """A failure that no pod tells about, e.g. a deadline."""
    return api.FailureStatus(
        class_=reason.value, message=message, next_action=next_action or _next(reason, stage), stage=stage
    )


def _crash(container: Object, terminated: Object, pod: Object, stage: str) -> Sighting:
    code = terminated.get("exitCode")
    summary = _summary(terminated)
    if summary and summary.failure:
        said = summary.failure
        gravity = Gravity.FINAL if said.reason in PERMANENT else Gravity.CRASHED
        return _sight(gravity, said.reason, said.message, pod, stage, exit_code=code, next_action=said.next_action)
    if terminated.get("reason") == "OOMKilled":
        message = f"container {container['name']} used more memory than its limit and was killed"
        return _sight(Gravity.CRASHED, FailureClass.OOM_KILLED, message, pod, stage, exit_code=code)
    message = f"container {container['name']} ended with exit code {code} ({terminated.get('reason') or 'Error'})"
    log = "" if summary else _tail(terminated.get("message") or "")
    return _sight(Gravity.CRASHED, FailureClass.CRASHED, message, pod, stage, exit_code=code, last_log=log)


def _config(waiting: Object, pod: Object, stage: str) -> Sighting:
    message = waiting.get("message") or waiting["reason"]
    namespace = namespace_of(pod)
    match = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    if match:
        kind, name = {"secret": "Secret", "configmap": "ConfigMap"}[match[1]], match[2]
        message = f"{kind} {name!r} is missing in namespace {namespace!r}"
        action = f"Create {kind} {name} in namespace {namespace}, or list the namespace in the chart's modelNamespaces."
    else:
        action = "Correct what the message names; the pod starts by itself after that."
    return _sight(Gravity.BLOCKED, FailureClass.CONTAINER_CONFIG, message, pod, stage, next_action=action)


def _sight(  # noqa: PLR0913  the fields of one record
    gravity: Gravity,
    reason: FailureClass,
    message: str,
    pod: Object,
    stage: str,
    *,
    next_action: str = "",
    exit_code: int | None = None,
    last_log: str = "",
) -> Sighting:
    return Sighting(
        gravity,
        api.FailureStatus(
            class_=reason.value,
            message=message,
            next_action=next_action or _next(reason, stage),
            stage=stage,
            pod=name_of(pod),
            exit_code=exit_code,
            last_log=last_log,
        ),
    )


def _containers(pod: Object) -> Iterator[Object]:
    status = status_of(pod)
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _ended(pod: Object) -> Iterator[tuple[Object, Object]]:
    """Each container with how it ended: now, or, if it has been restarted, the time before."""
    for container in _containers(pod):
        for key in ("state", "lastState"):
            terminated = (container.get(key) or {}).get("terminated")
            if terminated:
                yield container, terminated
                break


def _summary(terminated: Object) -> Summary | None:
    try:
        return Summary.from_json(terminated.get("message") or "")
    except (ValueError, TypeError):  # a log tail, or JSON of another shape
        return None


def _tail(text: str) -> str:
    return text.strip()[-LAST_LOG_LIMIT:]


def _is_true(status: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in status.get("conditions") or ())
