"""Why pods do not do their work, in words a person can act on.

Called by `mlplatform.plan` for the pods of stages and for serving pods. Reads
pod status, which says it seconds after the kubelet knows, and of pods that do
not come the words of whoever cannot make them (`mlplatform.inquiry`); nothing
here needs logs or the artifact store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

from mlplatform import api, nodes
from mlplatform.contract import DETAIL_LOG, PERMANENT, FailureClass, Stage, Summary
from mlplatform.refusals import gist
from mlplatform.snapshot import Object, condition, moment, name_of, namespace_of, status_of

SERVING: Final = "serving"
"""In place of a stage's name, for the pods that serve."""

LAST_LOG_LIMIT: Final = 600
"""Characters of a crashed container's last output that go into status."""

WORDS_LIMIT: Final = 300
"""Characters of its last line that go into the message."""

INIT_PYTORCH: Final = "init-pytorch"
"""The Training Operator's container that waits 200 s for the master pod's address, and is started again after that."""

_ECHO: Final = re.compile(r"[Cc]onnection (closed|reset) by peer")
"""What the others of a training say (gloo, NCCL) when one of its processes has died of something else."""

_IMAGE: Final = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG: Final = {"CreateContainerConfigError", "CreateContainerError"}

_START: Final = {"StartError", "ContainerCannotRun"}
_NO_PROGRAM: Final = re.compile(
    r"exec:? .*(no such file or directory|exec format error|not found).*|executable file .*not found.*", re.IGNORECASE
)
"""What runtimes say of an image that lacks the command; other start errors may pass."""
_NOT_FOUND: Final = 127
"""A shell's exit code for that."""

_OFF_NODE: Final = {
    "Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated", "NodeLost", "NodeAffinity", "UnexpectedAdmissionError",
}  # fmt: skip
"""Reasons of a pod that the kubelet or a controller took off its node, or that a node would not have."""

_CAPACITY: Final = "if it happens often, give the nodes more room or the pods a priority."
_LOG: Final = "The end of its log is in status.failure.lastLog"
_NEXT: Final = {
    FailureClass.UNSCHEDULABLE: "Free or add capacity, lower the resources asked for, or correct what scheduling asks of a node.",
    FailureClass.OOM_KILLED: "Raise spec.training.resources.memory, or lower spec.training.batchSize.",
    FailureClass.IMAGE_PULL: "Correct the image's name, or give the ServiceAccount the registry's pull secret.",
    FailureClass.CANNOT_START: "Correct spec.training.image: an image built on the platform's jobs image has the command.",
    FailureClass.PREEMPTED: f"Nothing: it goes on by itself, and uses up no restart; {_CAPACITY}",
    FailureClass.DEADLINE_EXCEEDED: "Raise spec.training.deadline, or give the training more resources.",
    FailureClass.REPORT_LOST: "Nothing is wrong with what it did, only with what is known of it.",
    FailureClass.CRASHED: f"{_LOG}; correct the spec or the task, which starts a new version.",
}
_NEXT_OF_JOBS: Final = {
    **_NEXT,
    FailureClass.OOM_KILLED: "Raise spec.training.resources.memory, which the pods of every stage get.",
    FailureClass.CANNOT_START: "Correct the operator's image of the jobs (the chart's images.jobs).",
    FailureClass.DEADLINE_EXCEEDED: "Raise spec.training.resources.cpu, which the pods of every stage get.",
}
_NEXT_OF_SERVING: Final = {
    **_NEXT,
    FailureClass.OOM_KILLED: "Raise spec.serving.resources.memory.",
    FailureClass.CANNOT_START: "Correct the image of the serving runtime.",
    FailureClass.PREEMPTED: f"Nothing: another pod takes its place; {_CAPACITY}",
    FailureClass.CRASHED: (
        "kubectl mlmodel rollback goes back to an earlier version, kubectl mlmodel retrain makes another one; "
        "the end of the log is in status.failure.lastLog."
    ),
}


_REFUSED_POD: Final = re.compile(r'^(Error creating: )?(pods "[^"]*" is forbidden: )?')
"""Before the cause: the controller's words, and a pod's name, another one at every try."""
_NO_ACCOUNT: Final = re.compile(r'serviceaccount "([^"]+)" not found')
_MEND: Final = "Mend what the message names; the pods come by themselves after that."
_REFUSALS: Final = {
    "exceeded quota": "Raise the namespace's quota, or free some of it; the pods come by themselves after that.",
    f'"{INIT_PYTORCH}"': (
        "Give the Training Operator the template for that container (docs/deployment.md, "
        '"Namespaces that enforce restricted Pod Security"); the pods come by themselves after that.'
    ),
}
"""What to do, by what the words contain."""

_SAME_INPUTS: Final = {FailureClass.OOM_KILLED, FailureClass.NON_FINITE_LOSS, FailureClass.SPEC_INVALID}
"""What only another spec mends; of a gate its own action says so. What is missing here may have been outside the spec."""


def _next(reason: FailureClass, stage: str) -> str:
    """What a person does about it, where it happened."""
    table = _NEXT if stage in {Stage.TRAIN, ""} else _NEXT_OF_SERVING if stage == SERVING else _NEXT_OF_JOBS
    return table.get(reason, "")


class Gravity(IntEnum):
    """How much a sighting says about the stage; higher wins."""

    WAITING = 0
    """It waits for another pod of its training; no cause of anything while that one does not run."""
    PENDING = 1
    """It waits for a node."""
    CRASHED = 2
    """A container ended in failure; the workload retries it."""
    DISRUPTED = 3
    """Its pod was taken off its node: no fault of its own, and what ends in other pods for that is an echo."""
    BLOCKED = 4
    """A person must mend something outside; it goes on by itself after that."""
    FINAL = 5
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
    pods = tuple(pods)
    works = any("running" in (container.get("state") or {}) for pod in pods for container in main_containers(pod))
    found = [s for pod in pods for s in sightings(pod, stage) if works or s.gravity is not Gravity.WAITING]
    return max(found, key=lambda s: (s.gravity, not _ECHO.search(s.failure.message)), default=None)


def graver(first: Sighting | None, second: Sighting | None) -> Sighting | None:
    """The graver of two; the first of equals."""
    return max((s for s in (first, second) if s), key=lambda s: s.gravity, default=None)


def absent(words: str, owner: Object, stage: str) -> Sighting | None:
    """Pods that cannot be made, from the words of whoever cannot make them; None when there are none.

    Args:
        words: E.g. ``Error creating: pods "x" is forbidden: exceeded quota: …``.
        owner: What should have the pods.
        stage: Of the pipeline, or `SERVING`.
    """
    if not words:
        return None
    missing = _NO_ACCOUNT.search(words)
    if missing:
        return Sighting(Gravity.BLOCKED, _not_set_up("ServiceAccount", missing[1], namespace_of(owner), stage))
    said = _REFUSED_POD.sub("", words)
    action = next((action for pattern, action in _REFUSALS.items() if pattern in said), _MEND)
    message = f"its pods are refused: {said}"
    return Sighting(Gravity.BLOCKED, failure(FailureClass.PODS_REFUSED, message, stage, action))


def _not_set_up(kind: str, name: str, namespace: str, stage: str) -> api.FailureStatus:
    """What every namespace with models needs, and the chart makes where it is told to."""
    message = f"namespace {namespace!r} is not set up for models: it has no {kind} {name!r}"
    action = f"List {namespace} in the chart's modelNamespaces, or create {kind} {name} in it; it goes on by itself."
    return failure(FailureClass.NAMESPACE_NOT_SET_UP, message, stage, action)


def steady(found: Sighting | None, recorded: Object | None) -> Sighting | None:
    """The same sighting in the words that status has for it, if those say all of it and more.

    The kubelet's words alternate between a cause and "back-off", an API server's between two ways in which the same
    webhook is down; what is told must not.
    """
    if found is None or not recorded:
        return found
    now = found.failure
    same = (recorded.get("class"), recorded.get("pod", "")) == (now.class_, now.pod)
    before = str(recorded.get("message", ""))
    if same and (before.startswith(now.message) or gist(before) == gist(now.message)):
        return Sighting(found.gravity, replace(now, message=before))
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
        yield from _waiting(container, pod, stage)
    off_node = disruption(pod)
    for container, terminated in _ended(pod):
        if terminated.get("exitCode") != 0:
            crash = _crash(container, terminated, pod, stage)
            # What takes a pod away ends its containers as well.
            if crash.gravity is Gravity.FINAL or not (off_node or _stopped(pod, terminated)):
                yield crash
    if off_node:
        message = f"pod was taken off its node ({off_node})"
        yield _sight(Gravity.DISRUPTED, FailureClass.PREEMPTED, message, pod, stage)
    for item in status.get("conditions") or ():
        if item["type"] == "PodScheduled" and item["status"] == "False" and item.get("reason") == "Unschedulable":
            words = item.get("message", "")
            message, action = nodes.explain(words, pod, serving=stage == SERVING) or (f"no node has room: {words}", "")
            yield _sight(Gravity.PENDING, FailureClass.UNSCHEDULABLE, message, pod, stage, next_action=action)


def _waiting(container: Object, pod: Object, stage: str) -> Iterator[Sighting]:
    """What keeps a container from being started."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in _IMAGE:
        # Between two tries the kubelet says "Back-off pulling image", which tells nothing that is new.
        said = "" if waiting["reason"] == "ImagePullBackOff" else waiting.get("message", "")
        message = f"image {container.get('image', '')!r} cannot be pulled{f': {said}' if said else ''}"
        yield _sight(Gravity.BLOCKED, FailureClass.IMAGE_PULL, message, pod, stage)
    elif _NO_PROGRAM.search(waiting.get("message") or ""):
        yield _no_start(container, waiting["message"], pod, stage)
    elif waiting.get("reason") in _CONFIG:
        yield _config(waiting, pod, stage)


def disruption(pod: Object) -> str:
    """Why the pod was taken off its node, in the words of who did it; empty when it was not."""
    status, target = status_of(pod), condition(pod, "DisruptionTarget")
    reason = str(status.get("reason", ""))
    if target.get("status") != "True" and reason not in _OFF_NODE and not reason.startswith("OutOf"):
        return ""
    words = (reason or target.get("reason"), target.get("message"), status.get("message"))
    return ": ".join(dict.fromkeys(str(word) for word in words if word)) or "disrupted"


def deletion_asked(pod: Object) -> datetime | None:
    """When somebody asked for the pod's deletion; its deletionTimestamp is when its grace period ends."""
    gone = moment(pod["metadata"].get("deletionTimestamp"))
    return gone and gone - timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)


def ready(pod: Object) -> bool:
    """Whether the pod takes traffic: Ready, and not on its way out."""
    return _is_true(status_of(pod), "Ready") and "deletionTimestamp" not in pod["metadata"]


def living(pod: Object) -> bool:
    """Whether the pod may yet take traffic: not on its way out, and not one that has ended and stays as a record."""
    return "deletionTimestamp" not in pod["metadata"] and status_of(pod).get("phase") not in {"Failed", "Succeeded"}


def sentence(failure: api.FailureStatus) -> str:
    """Cause and next action in one line, for a condition's message."""
    where = f"{failure.pod}: " if failure.pod else ""
    return f"{where}{failure.message.rstrip('. ')}. {failure.next_action}".strip()


def final(failure: api.FailureStatus, again: str) -> api.FailureStatus:
    """The failure of a stage that has ended: its action says whether another attempt or another spec helps.

    Args:
        failure: What was wrong.
        again: The command that runs the stage again.
    """
    action = failure.next_action
    if failure.class_ == FailureClass.PREEMPTED:
        action = "Give the nodes more room, or the pods a priority."
    if failure.class_ in _SAME_INPUTS:
        action = f"{action.rstrip('. ')}. The same inputs would end the same way: change the spec."
    elif failure.class_ != FailureClass.GATE_FAILED:
        action = f"{action.rstrip('. ')}. When what was wrong outside the spec is mended, run the stage again: {again}"
    return replace(failure, next_action=action)


def failure(reason: FailureClass, message: str, stage: str = "", next_action: str = "") -> api.FailureStatus:
    """A failure that no pod tells about, e.g. a deadline."""
    return api.FailureStatus(
        class_=reason.value, message=message, next_action=next_action or _next(reason, stage), stage=stage
    )


def _crash(container: Object, terminated: Object, pod: Object, stage: str) -> Sighting:
    code, said = terminated.get("exitCode"), terminated.get("message") or ""
    summary, name = _summary(terminated), container["name"]
    if summary and summary.failure:
        told = summary.failure
        gravity = Gravity.FINAL if told.reason in PERMANENT else Gravity.CRASHED
        log, action = _tail(str(summary.details.get(DETAIL_LOG, ""))), told.next_action
        return _sight(gravity, told.reason, told.message, pod, stage, exit_code=code, last_log=log, next_action=action)
    if terminated.get("reason") == "OOMKilled" or "OOM-killed" in said:
        message = f"container {name} used more memory than its limit and was killed"
        return _sight(Gravity.CRASHED, FailureClass.OOM_KILLED, message, pod, stage, exit_code=code)
    if _NO_PROGRAM.search(said) if terminated.get("reason") in _START else code == _NOT_FOUND:
        return _no_start(container, said, pod, stage, code)
    log = "" if summary else _tail(said)
    words = _last_line(log)
    message = f"container {name} ended with exit code {code} ({terminated.get('reason') or 'Error'})"
    gravity = Gravity.WAITING if name == INIT_PYTORCH else Gravity.CRASHED
    action = (
        ""
        if log
        else f"It left no words behind; watch the next try: kubectl logs -f {name_of(pod)} -n {namespace_of(pod)}"
    )
    return _sight(
        gravity,
        FailureClass.CRASHED,
        f"{message}: {words}" if words else message,
        pod,
        stage,
        exit_code=code,
        last_log=log,
        next_action=action,
    )


def _no_start(container: Object, said: str, pod: Object, stage: str, code: int | None = None) -> Sighting:
    """An image that lacks the program: every try would end the same way."""
    found = _NO_PROGRAM.search(said)
    words = (found[0] if found else _last_line(said)) or "its command is not there"
    message = f"image {container.get('image', '')!r} cannot start: {words}"
    log = "" if found else _tail(said)
    return _sight(Gravity.FINAL, FailureClass.CANNOT_START, message, pod, stage, exit_code=code, last_log=log)


def _stopped(pod: Object, terminated: Object) -> bool:
    """Whether the container ended because its pod was deleted, e.g. by a suspension."""
    asked, ended = deletion_asked(pod), moment(terminated.get("finishedAt"))
    return asked is not None and (ended is None or ended >= asked)


def _config(waiting: Object, pod: Object, stage: str) -> Sighting:
    message = waiting.get("message") or waiting["reason"]
    match = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    if match:
        kind = {"secret": "Secret", "configmap": "ConfigMap"}[match[1]]
        missing = _not_set_up(kind, match[2], namespace_of(pod), stage)
        return Sighting(Gravity.BLOCKED, replace(missing, pod=name_of(pod)))
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


def main_containers(pod: Object) -> tuple[Object, ...]:
    """The statuses of the containers that do the work, which no init container does."""
    return tuple(status_of(pod).get("containerStatuses") or ())


def _containers(pod: Object) -> Iterator[Object]:
    yield from status_of(pod).get("initContainerStatuses") or ()
    yield from main_containers(pod)


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


def _last_line(text: str) -> str:
    """The last line that says something (torchrun draws rules under its own); cut where it is long."""
    line = next((line.strip() for line in reversed(text.splitlines()) if re.search(r"\w", line)), "")
    return line if len(line) <= WORDS_LIMIT else f"{line[: WORDS_LIMIT - 1]}…"


def _is_true(status: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in status.get("conditions") or ())
