"""What the Job controller, the Training Operator and the kubelet do with a stage's workload, on one machine.

Called by `mlplatform.standalone.engine`, which hands the objects to the operator's own `plan` and carries out what
that asks for. The objects say what the real controllers would say: retries, messages and reasons are theirs
(tests/e2e/test_controllers.py holds the project to them), only the pauses between two tries are shorter.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mlplatform import contract
from mlplatform.contract import Stage
from mlplatform.resources import job, pytorchjob
from mlplatform.snapshot import Object, labels_of, name_of, namespace_of, stamp
from mlplatform.standalone.process import Process

PAUSE: Final = timedelta(seconds=1)
"""Between two tries of a container; in a cluster 10 s and more."""
LOG_TAIL_BYTES: Final = 2048
LOG_TAIL_LINES: Final = 80
"""What `FallbackToLogsOnError` takes of a log (core/v1 Container)."""
OOM_COUNTER: Final = Path("/proc/vmstat")
DROPPED: Final = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""Of the caller's environment: what would tell a container of another training."""

Wake = Callable[[], None]


@dataclass(slots=True, eq=False)
class Pod:
    """One pod with its one container.

    Attributes:
        name: As the real controller would name it.
        index: Its place among the pods of its workload: the node rank.
        created_at: When it was made.
        restarts: How often the container was started again.
        started_at: When it was started last.
        process: While it runs.
        ended: How it ended (a ContainerStateTerminated), until it is started again.
        before: How it ended the time before.
        again_at: When it is started again.
        killed_for_memory: Whether its end is this module's doing.
        oom_kills: The machine's count of out-of-memory kills when it was started.
        log_start: Where its output begins in its log, which has that of the starts before it, too.
    """

    name: str
    index: int
    created_at: str = ""
    restarts: int = 0
    started_at: str = ""
    process: Process | None = None
    ended: Object | None = None
    before: Object | None = None
    again_at: datetime | None = None
    killed_for_memory: bool = False
    oom_kills: int = 0
    log_start: int = 0

    @property
    def succeeded(self) -> bool:
        """Whether its work is done."""
        return self.ended is not None and self.ended["exitCode"] == 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the containers of a version run.

    Attributes:
        logs: Folder of their logs, one a pod.
        scratch: Folder of what they need only while they run.
        environment: Variables that every container gets beside those of its manifest.
    """

    logs: Path
    scratch: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Workload:
    """A PyTorchJob or a Job, its pods, and what its controller does with them.

    Args:
        manifest: As the stage rendered it.
        place: Where its containers run.
        wake: Called, from any thread, when something has happened.
        line: Called, from any thread, with the name of a pod and a line of its output.
    """

    def __init__(self, manifest: Object, place: Place, wake: Wake, line: Callable[[str, str], None]) -> None:
        now = stamp(_now())
        self.manifest: Object = {
            **manifest,
            "metadata": {**manifest["metadata"], "uid": name_of(manifest), "creationTimestamp": now},
            "status": {"startTime": now, "conditions": []},
        }
        self.pods: list[Pod] = []
        self._place, self._wake, self._line = place, wake, line
        self._exits: list[tuple[Pod, int]] = []
        if self._in_place:
            for index, name in enumerate(self._replicas):
                self._start(Pod(name, index))
        else:
            self._start(Pod(f"{name_of(manifest)}-0", 0))

    # --- what the plan reads --------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether its controller has said the last word."""
        return bool(self.manifest["status"]["conditions"])

    @property
    def running(self) -> bool:
        """Whether any of its processes is there."""
        return any(pod.process is not None for pod in self.pods)

    def pod_objects(self) -> tuple[Object, ...]:
        """Its pods as the API server would show them."""
        return tuple(self._object(pod) for pod in self.pods)

    # --- what the caller does ---------------------------------------------------------------------------------------

    def patch(self, body: Object) -> None:
        """Merge-patches it, and ends its pods where that halts it."""
        self.manifest = merged(self.manifest, body)
        if self._halted:
            self.end()

    def end(self) -> None:
        """Asks every process to end; `look` then sees them go."""
        for pod in self.pods:
            pod.again_at = None
            if pod.process is not None:
                pod.process.terminate()

    def kill(self) -> None:
        """Ends every process at once."""
        for pod in self.pods:
            if pod.process is not None:
                pod.process.kill()

    def look(self, now: datetime, *, halted: bool = False) -> None:
        """Takes in what has happened since the last look, and does what the controller would do about it.

        Args:
            now: The clock.
            halted: Whether nothing may be started any more.
        """
        halted = halted or self._halted
        while self._exits:
            pod, code = self._exits.pop(0)
            pod.process = None
            pod.ended = self._terminated(pod, code, now)
            if not self.finished and not halted:
                self._decide(pod, now)
        for pod in list(self.pods):
            if pod.process is not None and pod.process.memory_above(self._memory_limit):
                pod.killed_for_memory = True
                pod.process.kill()
            if pod.again_at is not None and now >= pod.again_at and not halted:
                self._again(pod)

    # --- the controllers --------------------------------------------------------------------------------------------

    @property
    def _in_place(self) -> bool:
        """Whether a container that failed is started again in its pod (PyTorchJob), or in a new one (Job)."""
        return bool(self.manifest["kind"] == "PyTorchJob")

    @property
    def _halted(self) -> bool:
        """Whether its spec allows it no pods."""
        return pytorchjob.suspended(self.manifest) if self._in_place else job.stopped(self.manifest)

    @cached_property
    def _replicas(self) -> list[str]:
        replicas: dict[str, Any] = self.manifest["spec"]["pytorchReplicaSpecs"]
        name = name_of(self.manifest)
        return [f"{name}-{kind.lower()}-{i}" for kind, spec in replicas.items() for i in range(spec["replicas"])]

    @cached_property
    def _template(self) -> Object:
        spec = self.manifest["spec"]
        found: Object = spec["pytorchReplicaSpecs"]["Master"]["template"] if self._in_place else spec["template"]
        return found

    @cached_property
    def _container(self) -> Object:
        (only,) = self._template["spec"]["containers"]
        found: Object = only
        return found

    @cached_property
    def _memory_limit(self) -> int:
        return quantity(self._container["resources"]["limits"]["memory"])

    def _decide(self, pod: Pod, now: datetime) -> None:
        name, spec = name_of(self.manifest), self.manifest["spec"]
        if pod.succeeded:
            if pod.index == 0 or not self._in_place:
                if self._in_place:
                    self._finish(
                        "Succeeded", now, "PyTorchJobSucceeded", f"PyTorchJob {name} is successfully completed."
                    )
                else:
                    self._finish("Complete", now, "CompletionsReached", "Reached expected number of succeeded pods")
                self.end()  # cleanPodPolicy: Running
            return
        # Without a backoffLimit the Training Operator restarts without end; the plan counts.
        if not self._in_place and sum(p.ended is not None for p in self.pods) > spec["backoffLimit"]:
            self._finish("Failed", now, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            return
        pod.again_at = now + PAUSE

    def _again(self, pod: Pod) -> None:
        pod.again_at = None
        if self._in_place:
            pod.restarts += 1
            pod.before, pod.ended, pod.killed_for_memory = pod.ended, None, False
            self._start(pod)
        else:
            self._start(Pod(f"{name_of(self.manifest)}-{len(self.pods)}", len(self.pods)))

    def _finish(self, kind: str, now: datetime, reason: str, message: str) -> None:
        status = self.manifest["status"]
        status["conditions"].append(
            {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": stamp(now)}
        )
        status["completionTime"] = stamp(now)

    # --- the kubelet ------------------------------------------------------------------------------------------------

    def _start(self, pod: Pod) -> None:
        if pod not in self.pods:
            self.pods.append(pod)
        folder = self._place.scratch / pod.name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        self._message(pod).touch()
        pod.started_at, pod.oom_kills = stamp(_now()), out_of_memory_kills()
        pod.created_at = pod.created_at or pod.started_at
        log = self._log(pod)
        pod.log_start = log.stat().st_size if log.exists() else 0

        def ended(code: int) -> None:
            self._exits.append((pod, code))
            self._wake()

        pod.process = Process(
            self._command(),
            self._environment(pod, folder),
            log,
            lambda line: self._line(pod.name, line),
            ended,
        )

    def _command(self) -> list[str]:
        """The container's command, with this interpreter's programs: an image's PATH would lead to its own."""
        program, *arguments = self._container["command"]
        start = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
        return [*start.get(program, [program]), *arguments]

    def _environment(self, pod: Pod, folder: Path) -> dict[str, str]:
        """The caller's variables (with the store's credentials: the Secret's place), then those of the pod."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in DROPPED and not key.startswith(("MLPLATFORM_", "PET_", "TORCHELASTIC_"))
        }
        # The home folder stays the caller's: keys of a store may lie there.
        own = {item["name"]: item["value"] for item in self._container["env"] if item["name"] != "HOME"}
        limits = self._container["resources"]["limits"]
        wanted = int(limits.get("nvidia.com/gpu", 0))
        devices = ",".join(str(pod.index * wanted + i) for i in range(wanted))
        return {
            **kept,
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": devices,
            "TMPDIR": str(folder / "tmp"),
            contract.ENV_TERMINATION_LOG: str(self._message(pod)),
            contract.ENV_CPUS: str(limits["cpu"]),
            **self._place.environment,
            **own,
            **(self._rendezvous(pod) if self._in_place else {}),
        }

    def _rendezvous(self, pod: Pod) -> dict[str, str]:
        """What the Training Operator tells each replica."""
        size, rank = str(len(self._replicas)), str(pod.index)
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port)}
        return {
            **master,
            **{f"PET_{key}": value for key, value in master.items()},
            "WORLD_SIZE": size,
            "RANK": rank,
            "PET_NNODES": size,
            "PET_NODE_RANK": rank,
            "PET_NPROC_PER_NODE": str(self.manifest["spec"]["nprocPerNode"]),
            # All of them are here; the machine's other addresses may be behind a firewall.
            "GLOO_SOCKET_IFNAME": "lo",
        }

    @cached_property
    def _port(self) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            found: int = free.getsockname()[1]
            return found

    def _log(self, pod: Pod) -> Path:
        return self._place.logs / f"{pod.name}.log"

    def _message(self, pod: Pod) -> Path:
        return self._place.scratch / pod.name / "termination-log"

    def _terminated(self, pod: Pod, code: int, now: datetime) -> Object:
        """A ContainerStateTerminated."""
        message = self._message(pod).read_text(errors="replace")[: contract.TERMINATION_LIMIT]
        if code and not message:
            message = tail(self._log(pod), pod.log_start)
        lost = code and (pod.killed_for_memory or out_of_memory_kills() > pod.oom_kills)
        reason = "OOMKilled" if lost else "Error" if code else "Completed"
        shutil.rmtree(self._place.scratch / pod.name, ignore_errors=True)
        return {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "startedAt": pod.started_at,
            "finishedAt": stamp(now),
        }

    def _object(self, pod: Pod) -> Object:
        state: Object = {"running": {"startedAt": pod.started_at}}
        if pod.ended is not None:
            state = {"waiting": {"reason": "CrashLoopBackOff"}} if pod.again_at and self._in_place else {}
            state = state or {"terminated": pod.ended}
        last = pod.ended if "waiting" in state else pod.before
        phase = "Running" if pod.ended is None or "waiting" in state else "Succeeded" if pod.succeeded else "Failed"
        owner = {"kind": self.manifest["kind"], "name": name_of(self.manifest), "uid": self.manifest["metadata"]["uid"]}
        return {
            "metadata": {
                "name": pod.name,
                "namespace": namespace_of(self.manifest),
                "uid": pod.name,
                "creationTimestamp": pod.created_at,
                "labels": labels_of(self._template),
                "ownerReferences": [{**owner, "controller": True}],
            },
            "status": {
                "phase": phase,
                "containerStatuses": [
                    {
                        "name": self._container["name"],
                        "image": self._container["image"],
                        "restartCount": pod.restarts,
                        "state": state,
                        **({"lastState": {"terminated": last}} if last else {}),
                    }
                ],
            },
        }


def stage_of(manifest: Object) -> Stage:
    """Which stage a workload is of."""
    return Stage(labels_of(manifest)[contract.LABEL_STAGE])


def merged(value: Object, patch: Object) -> Object:
    """A JSON merge patch (RFC 7386) of an object."""
    result = dict(value)
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            old = result.get(key)
            result[key] = merged(old if isinstance(old, dict) else {}, item) if isinstance(item, dict) else item
    return result


_UNITS: Final = {
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
    "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
}  # fmt: skip


def quantity(text: str) -> int:
    """A Kubernetes quantity of bytes: ``2Gi`` is 2,147,483,648."""
    for suffix, factor in _UNITS.items():
        if text.endswith(suffix):
            return int(float(text.removesuffix(suffix)) * factor)
    return int(float(text))


def tail(log: Path, start: int = 0) -> str:
    """The end of a log, as much as a termination message takes of what comes after its first `start` bytes."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = OOM_COUNTER.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _now() -> datetime:
    return datetime.now(UTC)
