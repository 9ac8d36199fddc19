"""What becomes of a stage's workload on this machine: the words and the objects of the real controllers.

The workloads are the stages' own, with another command in their containers: a few lines of Python, which really run.
What is expected of the real controllers is what tests/e2e/test_controllers.py sees of them.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standalone_kit import PATIENCE_SECONDS, REFUSES_TO_END, WAITS, people_model

from mlplatform import api, contract
from mlplatform.contract import Failure, FailureClass, Stage, Summary
from mlplatform.plan import plan_version
from mlplatform.resources import modelversion, workload
from mlplatform.resources.workload import Phase
from mlplatform.settings import Settings
from mlplatform.snapshot import (
    Object,
    VersionSnapshot,
    condition,
    controlled_by,
    labels_of,
    name_of,
    namespace_of,
    stamp,
)
from mlplatform.stages import PIPELINE, Definition
from mlplatform.standalone import controllers, process
from mlplatform.standalone.controllers import Place, Workload, merged, quantity, stage_of, tail

SETTINGS = Settings(artifact_root="/artifacts")
MODEL = people_model("/data", training={"workers": 1, "maxRestarts": 2})
MODEL["metadata"]["namespace"] = "team-a"


@dataclass
class Made:
    """A version and what a stage of it is."""

    model: Object
    version: Object
    stage: Definition

    @property
    def spec(self) -> api.ModelVersionSpec:
        return api.decode(api.ModelVersionSpec, self.version["spec"])

    def manifest(self, program: str) -> Object:
        """The workload, with a program of a few lines in its containers."""
        manifest = copy.deepcopy(self.stage.render(self.version, self.spec, SETTINGS, api.Scheduling()))
        for template in templates(manifest):
            (container,) = template["spec"]["containers"]
            container["command"] = ["python", "-c", program]
        return manifest


def templates(manifest: Object) -> list[Object]:
    """Pod templates of a workload; each a dict of its own."""
    if manifest["kind"] == "Job":
        return [manifest["spec"]["template"]]
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    for spec in replicas.values():
        spec["template"] = copy.deepcopy(spec["template"])
    return [spec["template"] for spec in replicas.values()]


def made(stage: Stage = Stage.TRAIN, **training: Any) -> Made:
    """The version that `MODEL` asks for, with changes of its training."""
    model = copy.deepcopy(MODEL)
    model["spec"]["training"] |= training
    spec = api.decode(api.MLModelSpec, model["spec"])
    version = modelversion.render(model, spec, api.version_name(name_of(model), spec), 1, "")
    version["metadata"] |= {"generation": 1, "creationTimestamp": stamp(datetime.now(UTC))}
    return Made(model, version, next(definition for definition in PIPELINE if definition.name == stage))


class Bench:
    """Runs a workload as an engine would, with a clock that jumps to the next try.

    Attributes:
        workload: What runs.
        lines: Pod and line of all that its containers have said.
        now: The clock.
    """

    def __init__(self, manifest: Object, folder: Path, **place: Any) -> None:
        self.lines: list[tuple[str, str]] = []
        self._woken = threading.Event()
        self.logs = folder / "logs"
        self.workload = Workload(
            manifest, Place(logs=self.logs, scratch=folder / "scratch", **place), self._woken.set, self._heard
        )
        self.now = datetime.now(UTC)

    def _heard(self, pod: str, line: str) -> None:
        self.lines.append((pod, line))
        self._woken.set()

    @property
    def status(self) -> Object:
        found: Object = self.workload.manifest["status"]
        return found

    def look(self, *, halted: bool = False) -> None:
        """Waits a moment for news, and lets the controllers act."""
        self._woken.wait(0.02)
        self._woken.clear()
        self.now = max([self.now, *(pod.again_at for pod in self.workload.pods if pod.again_at)])
        self.workload.look(self.now, halted=halted)

    def until(self, holds: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{what}; {self.status}, {[line[:80] for _, line in self.lines]}"
            self.look()

    def ends(self) -> None:
        """Waits until nothing runs and nothing will."""
        self.until(lambda: self.workload.finished and not self.workload.running, "it has ended")

    def first_end(self) -> Object:
        """How the first pod's container ended, once it has."""
        self.until(lambda: self.workload.pods[0].ended, "it has ended")
        return dict(self.workload.pods[0].ended or {})

    def says(self, line: str, times: int = 1) -> None:
        self.until(lambda: [said for _, said in self.lines].count(line) >= times, f"{times} times {line!r}")

    def pods(self) -> dict[str, Object]:
        return {name_of(pod): pod for pod in self.workload.pod_objects()}

    def container(self, pod: str) -> Object:
        (found,) = self.pods()[pod]["status"]["containerStatuses"]
        return dict(found)


Begin = Callable[..., Bench]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Starts workloads; their programs find the test's folder in FOLDER. What runs at its end is killed."""
    monkeypatch.setenv("FOLDER", str(tmp_path))
    counter = tmp_path / "vmstat"
    counter.write_text("pgfault 7\noom_kill 0\n")
    monkeypatch.setattr(controllers, "OOM_COUNTER", counter)
    begun: list[Bench] = []

    def start(what: Made, program: str, **place: Any) -> Bench:
        begun.append(Bench(what.manifest(program), tmp_path, **place))
        return begun[-1]

    yield start
    for bench in begun:
        while bench.workload.running:
            bench.workload.kill()
            bench.look(halted=True)


SAYS = "import os\nfrom pathlib import Path\nsay = lambda text: os.write(1, f'{text}\\n'.encode())\n"
"""Begins most programs: `say` writes a line at once, whoever else speaks."""
FOLDER = "folder = Path(os.environ['FOLDER'])\n"
TRY = f"""{SAYS}{FOLDER}
mine = folder / f"tries-{{os.environ.get('RANK', '')}}"
with mine.open("a") as file:
    file.write("x")
nth = len(mine.read_text())
say(f"try {{nth}}")
"""
"""`nth` is which try of its pod this is (for a Job: of all)."""
WAIT_FOR = "import time\ndef wait_for(name):\n    while not (folder / name).exists(): time.sleep(0.01)\n"


# The controllers


@dataclass(frozen=True)
class Case:
    """A workload and how it must end.

    Attributes:
        reason: What it shows.
        program: Of each container.
        phase: How it ends.
        why: The reason that its controller gives.
        message: What it says beside that.
        tries: Pod, its restarts and the exit code of its last container.
        stage: Whose workload.
        training: Changes of the training.
    """

    reason: str
    program: str
    phase: Phase
    why: str
    message: str
    tries: tuple[tuple[str, int, int], ...]
    stage: Stage = Stage.TRAIN
    training: dict[str, Any] = field(default_factory=dict)


DONE = "PyTorchJob {name} is successfully completed."
TOGETHER = f"""{TRY}{WAIT_FOR}
(folder / f"{{nth}}-{{os.environ['RANK']}}").touch()
for rank in range(int(os.environ["WORLD_SIZE"])):
    wait_for(f"{{nth}}-{{rank}}")
raise SystemExit(1)
"""
"""One pod's death is that of the training: no pod fails before the others are there."""

CASES = [
    Case("a training of one worker", "", Phase.SUCCEEDED, "PyTorchJobSucceeded", DONE, (("master-0", 0, 0),)),
    Case(
        "what failed is started again in its pod, and no more said of it when it goes well",
        f"{TRY}raise SystemExit(nth < 3)",
        Phase.SUCCEEDED,
        "PyTorchJobSucceeded",
        DONE,
        (("master-0", 2, 0),),
    ),
    Case(
        "when the master has succeeded, workers that still run are ended",
        f"{TRY}{WAIT_FOR}import signal\n"
        "if os.environ['RANK'] == '1':\n    (folder / 'worker').touch()\n    signal.pause()\nwait_for('worker')",
        Phase.SUCCEEDED,
        "PyTorchJobSucceeded",
        DONE,
        (("master-0", 0, 0), ("worker-0", 0, 143)),
        training={"workers": 2},
    ),
    Case(
        "a worker that has failed is started again while the master runs",
        f"{TRY}{WAIT_FOR}import signal\n"
        "if os.environ['RANK'] == '1' and nth == 1:\n    raise SystemExit(1)\n"
        # The master's end sends it a SIGTERM, and it may not have ended by then.
        "if os.environ['RANK'] == '1':\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    (folder / 'again').touch()\n"
        "wait_for('again')",
        Phase.SUCCEEDED,
        "PyTorchJobSucceeded",
        DONE,
        (("master-0", 0, 0), ("worker-0", 1, 0)),
        training={"workers": 2},
    ),
    Case(
        "a job that ends well",
        "",
        Phase.SUCCEEDED,
        "CompletionsReached",
        "Reached expected number of succeeded pods",
        (("0", 0, 0),),
        stage=Stage.AUDIT,
    ),
    Case(
        "a job tries again in a pod of its own",
        f"{TRY}raise SystemExit(nth < 3)",
        Phase.SUCCEEDED,
        "CompletionsReached",
        "Reached expected number of succeeded pods",
        (("0", 0, 1), ("1", 0, 1), ("2", 0, 0)),
        stage=Stage.AUDIT,
    ),
    Case(
        "a job tries again twice",
        f"{TRY}raise SystemExit(10 + nth)",
        Phase.FAILED,
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit",
        (("0", 0, 11), ("1", 0, 12), ("2", 0, 13)),
        stage=Stage.OPTIMIZE,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_a_workload_to_its_end(begin: Begin, case: Case) -> None:
    what = made(case.stage, **case.training)
    bench = begin(what, case.program)
    bench.ends()
    name = name_of(bench.workload.manifest)
    found = what.stage.read(bench.workload.manifest)
    assert (found.phase, found.reason) == (case.phase, case.why)
    assert found.message == case.message.format(name=name)
    assert found.started_at == bench.status["startTime"]
    assert found.finished_at == bench.status["completionTime"]
    (said,) = bench.status["conditions"]
    assert (said["status"], said["lastTransitionTime"]) == ("True", found.finished_at)
    tries = [
        (pod.removeprefix(f"{name}-"), one["restartCount"], one["state"]["terminated"]["exitCode"])
        for pod in bench.pods()
        for one in [bench.container(pod)]
    ]
    assert tries == list(case.tries)
    for pod, restarts, _ in case.tries:
        told = [line for who, line in bench.lines if who == f"{name}-{pod}" and line.startswith("try ")]
        if case.stage is Stage.TRAIN and told:
            assert told == [f"try {i + 1}" for i in range(restarts + 1)], "so often it really ran"
    before = len(bench.workload.pods), list(bench.lines)
    bench.now += timedelta(hours=2)
    bench.look()
    assert (len(bench.workload.pods), bench.lines) == before, "what has ended stays ended"
    assert not bench.workload.running


def test_workers_do_not_end_a_training(begin: Begin, tmp_path: Path) -> None:
    what = made(workers=2)
    bench = begin(what, f"{SAYS}{FOLDER}{WAIT_FOR}\nif os.environ['RANK'] == '0': wait_for('go')")
    worker = f"{name_of(bench.workload.manifest)}-worker-0"
    bench.until(lambda: "terminated" in bench.container(worker)["state"], "the worker has ended")
    assert bench.container(worker)["state"]["terminated"]["exitCode"] == 0
    assert what.stage.read(bench.workload.manifest).phase is Phase.ACTIVE
    (tmp_path / "go").touch()
    bench.ends()
    assert what.stage.read(bench.workload.manifest).phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("stage", "workers", "phase"),
    [(Stage.TRAIN, 1, Phase.SUSPENDED), (Stage.TRAIN, 3, Phase.SUSPENDED), (Stage.AUDIT, 1, Phase.SUSPENDED)],
)
def test_a_halted_workload_ends_and_tries_no_more(begin: Begin, stage: Stage, workers: int, phase: Phase) -> None:
    what = made(stage, workers=workers)
    bench = begin(what, f"import signal\n{SAYS}say('ready')\n{WAITS}")
    bench.says("ready", workers)
    assert not workload.halted(bench.workload.manifest)
    bench.workload.patch(what.stage.halt("Failed"))
    assert workload.halted(bench.workload.manifest)
    bench.until(lambda: not bench.workload.running, "its pods are gone")
    bench.now += timedelta(minutes=10)
    bench.look()
    assert not bench.workload.running
    assert [line for _, line in bench.lines] == ["ready"] * workers, "none was started again"
    assert what.stage.read(bench.workload.manifest).phase is phase
    assert not bench.workload.finished


def test_a_halt_comes_before_a_try_that_was_due(begin: Begin) -> None:
    what = made()
    bench = begin(what, f"{TRY}raise SystemExit(1)")
    bench.says("try 1")
    bench.until(lambda: bench.workload.pods[0].again_at, "it will be tried again")
    bench.workload.patch(what.stage.halt("Failed"))
    bench.now += timedelta(minutes=10)
    bench.look()
    assert not bench.workload.running
    assert [line for _, line in bench.lines] == ["try 1"]


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.AUDIT])
def test_the_next_try_waits_for_its_time(begin: Begin, stage: Stage) -> None:
    bench = begin(made(stage), f"{TRY}raise SystemExit(nth == 1)")
    bench.until(lambda: bench.workload.pods[0].again_at, "it will be tried again")
    again = bench.workload.pods[0].again_at
    assert again == bench.now + controllers.PAUSE
    bench.workload.look(again - timedelta(milliseconds=1))
    assert not bench.workload.running
    bench.workload.look(again)
    assert bench.workload.running
    bench.ends()


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.AUDIT])
def test_while_a_run_stops_nothing_is_started(begin: Begin, stage: Stage) -> None:
    bench = begin(made(stage), f"import signal\n{SAYS}say('ready')\n{WAITS}")
    bench.says("ready")
    bench.workload.end()
    while bench.workload.running:
        bench.look(halted=True)
    bench.now += timedelta(minutes=10)
    bench.look(halted=True)
    assert [line for _, line in bench.lines] == ["ready"]
    assert not bench.workload.finished, "the controller has said nothing about it"


def test_a_second_interrupt_waits_for_nobody(begin: Begin) -> None:
    bench = begin(made(workers=2), f"import signal\n{REFUSES_TO_END}\n{SAYS}say('ready')\n{WAITS}")
    bench.says("ready", 2)
    bench.workload.end()
    bench.look(halted=True)
    assert bench.workload.running
    bench.workload.kill()
    while bench.workload.running:
        bench.look(halted=True)
    codes = [bench.container(pod)["state"]["terminated"]["exitCode"] for pod in bench.pods()]
    assert codes == [137, 137]


def test_what_does_not_end_is_killed_after_the_grace(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.1)
    bench = begin(made(), f"import signal\n{REFUSES_TO_END}\n{SAYS}say('ready')\n{WAITS}")
    bench.says("ready")
    bench.workload.end()
    bench.until(lambda: not bench.workload.running, "it is gone")


# The kubelet


def test_a_pod_in_each_of_its_states(begin: Begin) -> None:
    what = made()
    bench = begin(what, f"import signal\n{TRY}if nth == 1: raise SystemExit('no good')\nsignal.pause()")
    name = f"{name_of(what.version)}-train-master-0"
    (template,) = templates(copy.deepcopy(what.manifest("")))
    image = template["spec"]["containers"][0]["image"]

    def pod(phase: str, restarts: int, **states: Object) -> Object:
        container = {"name": "pytorch", "image": image, "restartCount": restarts, **states}
        owner = {
            "kind": "PyTorchJob",
            "name": f"{name_of(what.version)}-train",
            "uid": f"{name_of(what.version)}-train",
        }
        return {
            "metadata": {
                "name": name,
                "namespace": "team-a",
                "uid": name,
                "creationTimestamp": bench.workload.pods[0].created_at,
                "labels": template["metadata"]["labels"],
                "ownerReferences": [{**owner, "controller": True}],
            },
            "status": {"phase": phase, "containerStatuses": [container]},
        }

    def ended(code: int, reason: str, message: str) -> Object:
        return {"terminated": {"exitCode": code, "reason": reason, "message": message}}

    def seen() -> Object:
        """The pod, less the times, which are there and in order."""
        (found,) = copy.deepcopy(bench.workload.pod_objects())
        for container in found["status"]["containerStatuses"]:
            for state in [container["state"], container.get("lastState", {})]:
                for told in state.values():
                    times = [told.pop(key) for key in ("startedAt", "finishedAt") if key in told]
                    assert times == sorted(times)
                    assert len(times) == {"running": 1, "terminated": 2, "waiting": 0}[next(iter(state))]
        return found

    assert seen() == pod("Running", 0, state={"running": {}})
    assert controlled_by(seen(), bench.workload.manifest)
    first = ended(1, "Error", "try 1\nno good")
    bench.until(lambda: bench.workload.pods[0].again_at, "it will be tried again")
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    assert seen() == pod("Running", 0, state=waiting, lastState=first)
    bench.says("try 2")
    assert seen() == pod("Running", 1, state={"running": {}}, lastState=first)
    bench.workload.pods[0].process.terminate()
    bench.until(lambda: bench.workload.pods[0].again_at, "it will be tried again")
    second = ended(143, "Error", "try 2")
    assert seen() == pod("Running", 1, state=waiting, lastState=second)
    bench.workload.patch(what.stage.halt("Failed"))
    assert seen() == pod("Failed", 1, state=second, lastState=first)


@dataclass(frozen=True)
class Ending:
    """How a container ends, and what the kubelet makes of it."""

    reason: str
    program: str
    why: str
    message: str
    code: int = 1


MESSAGE = f"{SAYS}message = Path(os.environ['{contract.ENV_TERMINATION_LOG}'])\n"
ENDINGS = [
    Ending("what it says of itself", f"{MESSAGE}message.write_text('all is well')", "Completed", "all is well", 0),
    Ending("nothing, and it ended well: its log is its own affair", f"{SAYS}say('a line')", "Completed", "", 0),
    Ending(
        "what it says of itself comes before its log",
        f"{MESSAGE}say('a line')\nmessage.write_text('so it was')\nraise SystemExit(3)",
        "Error",
        "so it was",
        3,
    ),
    Ending(
        "a failure in silence leaves the log", f"{SAYS}say('a line')\nraise SystemExit('why')", "Error", "a line\nwhy"
    ),
    Ending("a failure without a word", "raise SystemExit(1)", "Error", ""),
    Ending("killed by whomever", f"{SAYS}say('a line')\nos.kill(os.getpid(), 9)", "Error", "a line", 137),
    Ending(
        "the last 80 lines of the log",
        f"{SAYS}for i in range(200): say(i)\nraise SystemExit(1)",
        "Error",
        "\n".join(str(i) for i in range(120, 200)),
    ),
    Ending(
        "the last 2048 bytes of the log", f"{SAYS}say('ab' * 2000)\nraise SystemExit(1)", "Error", "b" + "ab" * 1023
    ),
    Ending(
        "a message ends after 4096 bytes",
        f"{MESSAGE}message.write_text('ab' * 3000)\nraise SystemExit(1)",
        "Error",
        "ab" * 2048,
    ),
    Ending(
        "the kernel had no memory for it",
        f"{SAYS}{FOLDER}(folder / 'vmstat').write_text('oom_kill 1\\n')\nraise SystemExit('worker was killed')",
        "OOMKilled",
        "worker was killed",
    ),
    Ending(
        "the kernel had no memory for somebody else",
        f"{SAYS}{FOLDER}(folder / 'vmstat').write_text('oom_kill 1\\n')",
        "Completed",
        "",
        0,
    ),
    Ending(
        "a kernel that does not count",
        f"{SAYS}{FOLDER}(folder / 'vmstat').unlink()\nraise SystemExit('why')",
        "Error",
        "why",
    ),
    Ending(
        "more memory than its limit",
        "held = bytearray(b'x') * (256 << 20)\nimport signal\nsignal.pause()",
        "OOMKilled",
        "",
        137,
    ),
    Ending(
        "more memory than its limit, by a process below it",
        "import subprocess, sys\n"
        "code = 'held = bytearray(1) * (256 << 20); held[:] = b\"x\" * len(held); import signal; signal.pause()'\n"
        "sys.exit(subprocess.run([sys.executable, '-c', code], start_new_session=True).returncode)",
        "OOMKilled",
        "",
        137,
    ),
]


@pytest.mark.parametrize("case", ENDINGS, ids=lambda case: case.reason)
def test_how_a_container_ended(begin: Begin, case: Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    bench = begin(made(resources={"cpu": "1", "memory": "64Mi"}), case.program)
    found = bench.first_end()
    assert (found["exitCode"], found["reason"]) == (case.code, case.why)
    assert found["message"] == case.message


def test_a_log_is_kept_and_a_try_tells_of_itself_only(begin: Begin) -> None:
    what = made()
    program = f"{TRY}if nth == 1: raise SystemExit('a long story')\nos.kill(os.getpid(), 9)"
    bench = begin(what, program)
    (pod,) = bench.workload.pods
    assert bench.first_end()["message"] == "try 1\na long story"
    bench.until(lambda: pod.restarts == 1 and pod.ended, "it has ended again")
    assert pod.ended["message"] == "try 2"
    assert (bench.logs / f"{pod.name}.log").read_text() == "try 1\na long story\ntry 2\n"

    # And of a run that came before this one
    again = begin(what, "import os; os.kill(os.getpid(), 9)")
    assert again.first_end()["message"] == ""


# The environment


TOLD = f"{SAYS}import json, signal, sys\nsay(json.dumps([dict(os.environ), sys.executable, os.getcwd()]))\n{WAITS}"
STALE = {
    "MLPLATFORM_SPEC": "of another version", "MLPLATFORM_ROWS": "7", "MLPLATFORM_JOBS_IMAGE": "x",
    "PET_NNODES": "9", "PET_RDZV_ID": "x", "TORCHELASTIC_RUN_ID": "x", "RANK": "7", "LOCAL_RANK": "7",
    "WORLD_SIZE": "9", "LOCAL_WORLD_SIZE": "9", "GROUP_RANK": "7", "MASTER_ADDR": "elsewhere", "MASTER_PORT": "1",
    "CUDA_VISIBLE_DEVICES": "5", "TMPDIR": "/nowhere",
}  # fmt: skip
KEPT = {"AWS_ACCESS_KEY_ID": "key", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000", "HOME": "/home/ann", "LANG": "C.UTF-8"}


def environments(bench: Bench) -> dict[str, dict[str, str]]:
    """By the end of a pod's name: its variables."""
    prefix = f"{name_of(bench.workload.manifest)}-"
    bench.until(lambda: len(bench.lines) == len(bench.workload.pods), "all have said theirs")
    found = {}
    for pod, line in bench.lines:
        variables, program, folder = json.loads(line)
        assert program == sys.executable, "an image's python is not on this machine's PATH"
        assert folder == str(Path.cwd())
        found[pod.removeprefix(prefix)] = variables
    return found


@pytest.mark.parametrize(
    ("stage", "training", "ranks"),
    [
        (Stage.TRAIN, {}, {"master-0": "0"}),
        (Stage.TRAIN, {"workers": 2, "processesPerWorker": 3}, {"master-0": "0", "worker-0": "1"}),
        (Stage.TRAIN, {"workers": 3}, {"master-0": "0", "worker-0": "1", "worker-1": "2"}),
        (Stage.AUDIT, {"workers": 2}, {"0": None}),
    ],
)
def test_what_a_container_is_told(
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stage: Stage,
    training: dict[str, Any],
    ranks: dict[str, str | None],
) -> None:
    for name, value in (STALE | KEPT).items():
        monkeypatch.setenv(name, value)
    what = made(stage, **training)
    ours = {item["name"]: item["value"] for item in templates(what.manifest(""))[0]["spec"]["containers"][0]["env"]}
    bench = begin(what, TOLD, environment={contract.ENV_ROWS: "50"})
    found = environments(bench)
    assert found.keys() == ranks.keys()
    ports = set()
    for pod, rank in ranks.items():
        told = found[pod]
        folder = tmp_path / "scratch" / f"{name_of(bench.workload.manifest)}-{pod}"
        wanted = {
            **ours,
            **KEPT,
            contract.ENV_TERMINATION_LOG: str(folder / "termination-log"),
            contract.ENV_CPUS: "1",
            contract.ENV_ROWS: "50",
            "TMPDIR": str(folder / "tmp"),
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        if rank is not None:
            size = str(training.get("workers", 1))
            port = told["MASTER_PORT"]
            master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            processes = str(training.get("processesPerWorker", 1))
            wanted |= master | {f"PET_{key}": value for key, value in master.items()}
            wanted |= {"WORLD_SIZE": size, "RANK": rank, "PET_NNODES": size, "PET_NODE_RANK": rank}
            wanted |= {"PET_NPROC_PER_NODE": processes, "GLOO_SOCKET_IFNAME": "lo"}
            ports.add(port)
        mine = ("MLPLATFORM_", "PET_", "TORCHELASTIC_", "MASTER_", "RANK", "LOCAL_", "GROUP_", "WORLD_", "CUDA_")
        assert {key: value for key, value in told.items() if key in wanted or key.startswith(mine)} == wanted
        assert told["PATH"] == os.environ["PATH"]
    assert len(ports) == int(stage is Stage.TRAIN), "one rendezvous for all"


@pytest.mark.parametrize(
    ("stage", "gpu", "devices"),
    [(Stage.TRAIN, 1, ["0", "1"]), (Stage.TRAIN, 2, ["0,1", "2,3"]), (Stage.AUDIT, 2, [""])],
)
def test_each_worker_has_gpus_of_its_own(begin: Begin, stage: Stage, gpu: int, devices: list[str]) -> None:
    bench = begin(made(stage, workers=2, resources={"gpu": gpu}), TOLD)
    found = environments(bench)
    assert [found[pod]["CUDA_VISIBLE_DEVICES"] for pod in sorted(found)] == devices


def test_a_container_starts_with_an_empty_folder_that_goes_with_it(begin: Begin, tmp_path: Path) -> None:
    program = f"""{TRY}import tempfile
say(f"finds {{sorted(os.listdir(tempfile.gettempdir()))}}")
(Path(tempfile.gettempdir()) / "left").touch()
raise SystemExit(nth == 1)
"""
    bench = begin(made(), program)
    bench.ends()
    assert [line for _, line in bench.lines if line.startswith("finds")] == ["finds []", "finds []"]
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("stage", list(Stage))
def test_a_workload_is_of_its_stage(stage: Stage) -> None:
    assert stage_of(made(stage).manifest("")) is stage


# What the operator says about it


SAID = Failure(FailureClass.NON_FINITE_LOSS, "the training loss is nan at step 3", "Lower the learning rate")
LATER = Failure(FailureClass.PREEMPTED, "stopped by SIGTERM at step 3 of 9", "Nothing: it goes on")


def reports(failure: Failure) -> str:
    """A program that ends as a job does that knows why."""
    text = Summary(Stage.TRAIN, "v", failure=failure).to_json()
    return f"{MESSAGE}message.write_text({text!r})\nraise SystemExit(1)"


@dataclass(frozen=True)
class Fold:
    """A stage's program, and what the operator says in a cluster of a pod that ends like that.

    Attributes:
        reason: What it shows.
        program: Of each container.
        terminated: What the kubelet would say of the last one; None where the operator asks no pod.
        class_: Of the failure.
        contains: In the sentence about it.
        stage: Whose.
        training: Changes of the training.
        why: What the workload's controller says when it gives up; empty where it need not.
        after: How far the clock is moved once it runs.
    """

    reason: str
    program: str
    terminated: Object | None
    class_: FailureClass
    contains: tuple[str, ...]
    stage: Stage = Stage.TRAIN
    training: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    after: timedelta | None = None


def terminated(code: int, reason: str = "Error", message: str = "") -> Object:
    return {"exitCode": code, "reason": reason, "message": message}


ONCE: dict[str, Any] = {"maxRestarts": 0}
FOLDS = [
    Fold(
        "a training that takes more memory than it may",
        "held = bytearray(b'x') * (256 << 20)\nimport signal\nsignal.pause()",
        terminated(137, "OOMKilled"),
        FailureClass.OOM_KILLED,
        ("container pytorch used more memory than its limit and was killed", "lower spec.training.batchSize"),
        training={**ONCE, "resources": {"memory": "64Mi"}},
    ),
    Fold(
        "a crash, with the end of its log",
        f"{SAYS}say('epoch=1/4')\nraise SystemExit('ZeroDivisionError: division by zero')",
        terminated(1, message="epoch=1/4\nZeroDivisionError: division by zero"),
        FailureClass.CRASHED,
        ("container pytorch ended with exit code 1 (Error)", "status.failure.lastLog"),
        training=ONCE,
    ),
    Fold(
        "a job that dies in silence, each time",
        "import os; os.kill(os.getpid(), 11)",
        terminated(139),
        FailureClass.CRASHED,
        ("container optimize ended with exit code 139 (Error)",),
        stage=Stage.OPTIMIZE,
        why="BackoffLimitExceeded",
    ),
    Fold(
        "what a job says of its own failure, which no retry mends: nothing is tried again",
        reports(SAID),
        terminated(1, message=Summary(Stage.TRAIN, "v", failure=SAID).to_json()),
        FailureClass.NON_FINITE_LOSS,
        ("the training loss is nan at step 3. Lower the learning rate",),
    ),
    Fold(
        "what a job says of its own failure, which a retry did not mend",
        reports(LATER),
        terminated(1, message=Summary(Stage.TRAIN, "v", failure=LATER).to_json()),
        FailureClass.PREEMPTED,
        (
            "stopped by SIGTERM at step 3 of 9; the restarts that spec.training.maxRestarts allows (1) are used up. Give",
        ),
        training={"maxRestarts": 1},
    ),
    Fold(
        "a training that hangs until its deadline",
        f"import signal\n{SAYS}say('ready')\n{WAITS}",
        None,
        FailureClass.DEADLINE_EXCEEDED,
        ("train ran longer than its deadline of 20m", "Raise spec.training.deadline"),
        training={"deadline": "20m"},
        after=timedelta(minutes=20),
    ),
    Fold(
        "a job that hangs until its deadline",
        f"import signal\n{SAYS}say('ready')\n{WAITS}",
        None,
        FailureClass.DEADLINE_EXCEEDED,
        ("audit ran longer than its deadline of 1h", "Raise spec.training.resources.cpu"),
        stage=Stage.AUDIT,
        after=timedelta(hours=1),
    ),
]


def passed_before(stage: Stage) -> Object:
    """A status in which the stages before this one have passed."""
    before = [d for d in PIPELINE if list(Stage).index(d.name) < list(Stage).index(stage)]
    return {
        "stages": [{"name": d.name.value, "outcome": "Succeeded"} for d in before],
        "conditions": [
            {"type": d.condition, "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": ""}
            for d in before
        ],
    }


def judged(what: Made, workload: Object, pods: tuple[Object, ...], now: datetime, status: Object) -> Any:
    """What the operator plans for a version whose stage looks like that."""
    snapshot = VersionSnapshot(
        version={**what.version, "status": status},
        model=what.model,
        children={what.stage.name: workload},
        pods={what.stage.name: pods},
    )
    return plan_version(snapshot, SETTINGS, now)


def failed(what: Made, bench: Bench) -> Object:
    """The status once the version has failed and holds nothing; it is planned pass by pass."""
    status = passed_before(what.stage.name)

    def has_failed() -> bool:
        nonlocal status
        plan = judged(what, bench.workload.manifest, bench.workload.pod_objects(), bench.now, status)
        status = plan.status
        for patch in plan.cleanup:
            bench.workload.patch(patch.body)
        return status.get("stage") == "Failed" and not bench.workload.running

    bench.until(has_failed, "it has failed")
    return status


@pytest.mark.parametrize(("workers", "restarts"), [(1, 2), (1, 0), (2, 2)])
def test_a_training_is_started_again_as_often_as_it_may(begin: Begin, workers: int, restarts: int) -> None:
    # Given a training that fails each time, in every pod at once
    what = made(workers=workers, maxRestarts=restarts)
    bench = begin(what, TOGETHER)
    status = failed(what, bench)

    # Then each of its pods has tried so often, and the record has the restarts and the failure that was one too many
    for pod in bench.workload.pods:
        assert [line for who, line in bench.lines if who == pod.name] == [f"try {i + 1}" for i in range(restarts + 1)]
    assert len(status["stages"][0]["restarts"]) == restarts + 1
    assert status["failure"]["class"] == FailureClass.CRASHED


@pytest.mark.parametrize("case", FOLDS, ids=lambda case: case.reason)
def test_a_failure_has_the_class_and_the_words_that_it_has_in_a_cluster(begin: Begin, case: Fold) -> None:
    # Given a stage that fails here, when it is planned pass by pass until the version has failed and holds nothing
    what = made(case.stage, **case.training)
    bench = begin(what, case.program)
    runs = copy.deepcopy(bench.workload.manifest)
    if case.after is not None:
        bench.says("ready")
        bench.now += case.after + timedelta(seconds=1)
    status = failed(what, bench)

    # Then the class and the words are these
    found = condition({"status": status}, what.stage.condition)
    assert (found["status"], found["reason"]) == ("False", case.class_)
    assert all(part in found["message"] for part in case.contains), found["message"]
    assert status["failure"]["class"] == case.class_
    assert what.stage.read(bench.workload.manifest).reason == case.why

    # And those that the operator has for the same end of a pod in a cluster
    if case.terminated is not None:
        pod = copy.deepcopy(bench.workload.pod_objects()[-1])
        pod["metadata"]["name"] = status["failure"]["pod"]
        pod["status"]["phase"] = "Running"
        (container,) = pod["status"]["containerStatuses"]
        container["state"] = {"terminated": {**case.terminated, "finishedAt": stamp(bench.now)}}
        workload = runs if case.stage is Stage.TRAIN else bench.workload.manifest
        there = judged(what, workload, (pod,), bench.now, passed_before(case.stage)).status
        assert there["failure"] == status["failure"]
        assert condition({"status": there}, what.stage.condition)["message"] == found["message"]


def test_a_stage_that_passes_is_judged_by_its_summary(begin: Begin) -> None:
    what = made(Stage.AUDIT)
    differences = {"demographic_parity_difference": {"group": {"value": 0.1, "low": 0.05, "high": 0.2}}}
    text = Summary(Stage.AUDIT, name_of(what.version), {"roc_auc": 0.91}, {"fairness": differences}).to_json()
    bench = begin(what, f"{MESSAGE}message.write_text({text!r})")
    bench.ends()
    plan = judged(what, bench.workload.manifest, bench.workload.pod_objects(), bench.now, passed_before(Stage.AUDIT))
    found = condition({"status": plan.status}, "Audited")
    assert (found["status"], found["reason"]) == ("True", "Succeeded")
    assert found["message"] == "roc_auc 0.91; demographic_parity_difference 0.1 by group (bound 0.9)"
    (create,) = plan.writes
    assert name_of(create.manifest) == f"{name_of(what.version)}-optimize"


# Small parts


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("128974848", 128974848),
        ("64Mi", 64 * 2**20),
        ("2Gi", 2 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("1Ki", 1024),
        ("1Ti", 2**40),
        ("1Pi", 2**50),
        ("1Ei", 2**60),
        ("129M", 129_000_000),
        ("2G", 2_000_000_000),
        ("12k", 12_000),
        ("3E", 3 * 10**18),
        ("129e6", 129_000_000),
        ("1E3", 1000),
        ("128974848000m", 128974848),
    ],
)
def test_a_quantity_of_bytes(text: str, value: int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize(
    ("reason", "value", "patch", "result"),
    [
        ("a value is replaced", {"a": "b"}, {"a": "c"}, {"a": "c"}),
        ("a value is added", {"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ("null takes it out", {"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ("null takes out what is not there", {}, {"a": None}, {}),
        ("a list is replaced as a whole", {"a": ["b"]}, {"a": ["c", "d"]}, {"a": ["c", "d"]}),
        ("objects are merged", {"a": {"b": "c", "d": 1}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d", "d": 1}}),
        ("an object takes the place of a value", {"a": "foo"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ("an object takes the place of a list", {"a": [1, 2]}, {"a": {"b": "c", "d": None}}, {"a": {"b": "c"}}),
        ("an object takes the place of nothing", {}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ("0 and false are values", {"a": 1, "b": True}, {"a": 0, "b": False}, {"a": 0, "b": False}),
    ],
)
def test_a_merge_patch(reason: str, value: Object, patch: Object, result: Object) -> None:
    before = copy.deepcopy(value)
    assert merged(value, patch) == result, reason
    assert value == before, "what is patched is left as it was"


@pytest.mark.parametrize(
    ("reason", "content", "start", "end"),
    [
        ("nothing was said", b"", 0, ""),
        ("a short log is shown whole", b"a\nb\n", 0, "a\nb"),
        ("a last line without an end", b"a\nb", 0, "a\nb"),
        ("80 lines", b"".join(b"%d\n" % i for i in range(100)), 0, "\n".join(str(i) for i in range(20, 100))),
        ("2048 bytes", b"x" * 3000 + b"end", 0, "x" * 2045 + "end"),
        ("what was there before is left out", b"before\nafter\n", 7, "after"),
        ("all of it was there before", b"before\n", 7, ""),
        ("bytes that are no text", b"a\xff\n", 0, "a\ufffd"),
    ],
)
def test_the_end_of_a_log(tmp_path: Path, reason: str, content: bytes, start: int, end: str) -> None:
    (tmp_path / "log").write_bytes(content)
    assert tail(tmp_path / "log", start) == end, reason


@pytest.mark.parametrize(
    ("reason", "content", "kills"),
    [
        ("the kernel's count", "nr_free_pages 1\noom_kill 3\nx 2\n", 3),
        ("an old kernel has none", "nr_free_pages 1\n", 0),
        ("no such file", None, 0),
    ],
)
def test_the_machines_count_of_out_of_memory_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, content: str | None, kills: int
) -> None:
    counter = tmp_path / "vmstat"
    if content is not None:
        counter.write_text(content)
    monkeypatch.setattr(controllers, "OOM_COUNTER", counter)
    assert controllers.out_of_memory_kills() == kills, reason


def test_objects_carry_what_the_stages_gave_them() -> None:
    manifest = made().manifest("")
    assert namespace_of(manifest) == "team-a"
    assert labels_of(manifest)[contract.LABEL_STAGE] == "train"
