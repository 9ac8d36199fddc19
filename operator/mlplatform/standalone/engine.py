"""Runs a model's pipeline here: the operator's plan, carried out with processes in place of pods.

Called by `mlplatform.cli.run` and `mlplatform.standalone.run`. One pass is the operator's: observe (the workloads of
`controllers`), plan (`plan.version`, unchanged), carry out. So stages, retries, deadlines, gates and the words about
them are the cluster's by construction.
"""

from __future__ import annotations

import hashlib
import queue
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from mlplatform import api, contract
from mlplatform.actions import Create, Patch
from mlplatform.contract import Failure, FailureClass, Stage, Summary
from mlplatform.errors import EXIT_USAGE, CliError
from mlplatform.plan.version import plan_version
from mlplatform.resources import modelversion
from mlplatform.resources.workload import Phase
from mlplatform.settings import Settings
from mlplatform.snapshot import Object, VersionSnapshot, condition, name_of, namespace_of, stamp, status_of
from mlplatform.stages import PIPELINE, Definition, Verdict
from mlplatform.standalone import preflight
from mlplatform.standalone import request as requests
from mlplatform.standalone.controllers import Place, Workload, stage_of
from mlplatform.standalone.request import Request
from mlplatform.standalone.state import Folder, Record, code_digest, stage_keys

TICK_SECONDS: Final = 0.5
"""How often deadlines, memory and the display are looked at; everything else wakes the run by itself."""

AGAIN: Final = "the same command; what has passed is kept"
"""What runs a failed stage again."""

PROGRESS: Final = re.compile(r"(\w+)=(\S+)")
"""What `mljobs.trainer` says of itself: ``epoch=3/12 step=114/456 loss=0.3123 rows_per_s=251000 eta_s=7``."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What there is to show.

    Attributes:
        model: The MLModel.
        version: Its one ModelVersion, with its status.
        progress: Of the stage that runs, in its own terms; empty while it says nothing.
        until: The stage after which the run ends although the pipeline goes on; empty where it does not.
    """

    model: Object
    version: Object
    progress: dict[str, str] = field(default_factory=dict)
    until: str = ""

    @property
    def missed(self) -> dict[str, str]:
        """By stage: the gates that were missed and, with `Request.keep_going`, did not end the run; with what to do."""
        found = {stage.name.value: condition(self.version, stage.condition) for stage in PIPELINE}
        return {
            name: c["message"]
            for name, c in found.items()
            if c.get("status") == "True" and c["reason"] == FailureClass.GATE_FAILED
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        moment: The last there was to show.
        folder: Of the version's artifacts.
        missed: Sentences about the gates that were missed, each with what to do; with `Request.keep_going` more than one.
        complete: Whether every stage of the pipeline passed: there is an archive, and it may be served.
    """

    moment: Moment
    folder: Path
    missed: tuple[str, ...]
    complete: bool

    @property
    def failed(self) -> bool:
        """Whether a stage failed or a gate was missed."""
        return bool(self.missed) or condition(self.moment.version, "Ready").get("status") == "False"


class Run:
    """One run of one request.

    Args:
        request: What to run.
        tell: Called with every moment that there is to show, from the thread that called `go`.
        note: Called with sentences for the reader that belong to no stage.
        text: The manifest; None reads it from `Request.file`.

    Raises:
        CliError: It cannot be run.
    """

    def __init__(
        self,
        request: Request,
        tell: Callable[[Moment], None],
        note: Callable[[str], None],
        text: str | None = None,
    ) -> None:
        self._request, self._tell, self._note = request, tell, note
        self._asked = requests.read(request, _text(request.file) if text is None else text)
        preflight.check(self._asked.spec, request.store)
        name, namespace = name_of(self._asked.model), namespace_of(self._asked.model)
        self.folder = Folder(request.store, namespace, name, self._asked.version)
        self._settings = Settings(artifact_root=str(request.store.absolute()))
        self._workloads: dict[Stage, Workload] = {}
        self._kept: dict[Stage, Object] = {}
        self._progress: dict[str, str] = {}
        self._scratch = self.folder.path
        self._events: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()

    def go(self) -> Outcome:
        """Runs the stages that have not been run on the same inputs.

        Raises:
            CliError: Something that is no stage's own failure stands in the way.
            KeyboardInterrupt: The user asked to stop; everything has ended, and the next run goes on from there.
        """
        asked = self._asked
        spec = replace(asked.spec, data=located(self._request, asked.spec.data))
        # The version is the model's own by its content, so the model reads the same rows.
        raw = asked.model["spec"]
        place = {"uri": spec.data.uri, **({"dvc": asdict(spec.data.dvc)} if spec.data.dvc else {})}
        rest = {name: value for name, value in raw["data"].items() if name not in {"uri", "dvc"}}
        model = {**asked.model, "spec": {**raw, "data": {**place, **rest}}}
        inputs = _inputs(self._request, spec)
        with self.folder.locked():
            record = self.folder.load()
            version = self._version(record, model, spec)
            decoded = api.decode(api.ModelVersionSpec, version["spec"])
            for sentence in self.folder.settle(record, stage_keys(decoded, asked.version, inputs)):
                self._note(sentence)
            self._kept = {Stage(name): kept for name, kept in record.ended.items()}
            record.version = version
            self.folder.save(record)
            with self.folder.scratch() as self._scratch, self._ended():
                return self._loop(record, model, version)

    def _version(self, record: Record, model: Object, spec: api.MLModelSpec) -> Object:
        """The ModelVersion, without a status: what has ended says again how."""
        sequence = (record.version.get("spec") or {}).get("sequence") or 1 + max(
            (r.version["spec"]["sequence"] for other in self.folder.siblings() if (r := other.load()).version),
            default=0,
        )
        version = modelversion.render(model, spec, self._asked.version, sequence, self._asked.trigger)
        created = (record.version.get("metadata") or {}).get("creationTimestamp") or stamp(_now())
        return {**version, "metadata": {**version["metadata"], "generation": 1, "creationTimestamp": created}}

    def _loop(self, record: Record, model: Object, version: Object) -> Outcome:
        last = self._request.until
        wanted = PIPELINE[: next(i for i, stage in enumerate(PIPELINE, 1) if stage.name == last)] if last else PIPELINE
        until = "" if wanted[-1] is PIPELINE[-1] else last
        pipeline = lenient(wanted) if self._request.keep_going else wanted
        while True:
            now = _now()
            for workload in self._workloads.values():
                workload.look(now)
            plan = plan_version(self._observe(model, version), self._settings, now, pipeline, again=AGAIN)
            version["status"] = plan.status
            self._keep(record, version)
            self._tell(Moment(model, version, dict(self._progress), until))
            if self._over(version):
                break
            for write in plan.writes:
                if isinstance(write, Create):
                    self._create(write.manifest)
            for write in plan.cleanup:
                # What is deleted in a cluster is a folder's content here, and stays.
                if isinstance(write, Patch):
                    self._workloads[Stage(write.ref.name.rpartition("-")[2])].patch(write.body)
            if not plan.writes:
                self._wait()
        end = Moment(model, version, until=until)
        ready = condition(version, "Ready")
        failed = status_of(version).get("failure") or {}
        missed = [*end.missed.values()]
        missed += (
            [f"{failed['message']}. {failed['nextAction']}"] if failed.get("class") == FailureClass.GATE_FAILED else []
        )
        complete = ready.get("status") == "True" and not missed and not until
        return Outcome(end, self.folder.path, tuple(missed), complete)

    def _observe(self, model: Object, version: Object) -> VersionSnapshot:
        children = {stage: kept["workload"] for stage, kept in self._kept.items()}
        pods = {stage: tuple(kept["pods"]) for stage, kept in self._kept.items()}
        for stage, workload in self._workloads.items():
            children[stage], pods[stage] = workload.manifest, workload.pod_objects()
        return VersionSnapshot(version=version, model=model, children=children, pods=pods)

    def _create(self, manifest: Object) -> None:
        stage = stage_of(manifest)
        self._progress = {}
        environment = {} if self._request.rows is None else {contract.ENV_ROWS: str(self._request.rows)}
        place = Place(logs=self.folder.path / "logs", scratch=self._scratch, environment=environment)
        self._workloads[stage] = Workload(
            manifest, place, lambda: self._events.put(None), lambda pod, line: self._events.put((pod, line))
        )

    def _keep(self, record: Record, version: Object) -> None:
        """Writes down what has come about, once."""
        changed = version["status"] != status_of(record.version)
        for stage in PIPELINE:
            workload = self._workloads.get(stage.name)
            if workload is None or workload.running or stage.name in record.ended:
                continue
            if stage.read(workload.manifest).phase is Phase.SUCCEEDED:
                record.ended[stage.name] = {"workload": workload.manifest, "pods": list(workload.pod_objects())}
                changed = True
        if changed:
            record.version = {**version}
            self.folder.save(record)

    def _over(self, version: Object) -> bool:
        """Whether nothing more will or may happen."""
        if any(workload.running for workload in self._workloads.values()):
            return False
        return condition(version, "Ready").get("status") == "True" or version["status"].get("stage") == "Failed"

    def _wait(self) -> None:
        """Until something happens, or for a tick; takes in what the containers have said."""
        try:
            event = self._events.get(timeout=TICK_SECONDS)
            while True:
                if event is not None and (told := PROGRESS.findall(event[1])) and told[0][0] == "epoch":
                    self._progress = dict(told)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """No process is left after this block: asked to end, they save a checkpoint; a second Ctrl-C does not wait."""
        try:
            yield
        except KeyboardInterrupt:
            if any(workload.running for workload in self._workloads.values()):
                self._note("stopping: the training saves a checkpoint; Ctrl-C again does not wait for it")
            raise
        finally:
            try:
                for workload in self._workloads.values():
                    workload.end()
                while any(workload.running for workload in self._workloads.values()):
                    for workload in self._workloads.values():
                        workload.look(_now(), halted=True)
                    self._wait()
            finally:
                for workload in self._workloads.values():
                    workload.kill()


def lenient(pipeline: Sequence[Definition]) -> tuple[Definition, ...]:
    """The same stages, whose verdicts tell of a missed gate and let the version go on."""

    def soften(stage: Definition) -> Definition:
        def judge(summary: Summary, spec: api.ModelVersionSpec) -> Verdict:
            found = stage.judge(summary, spec)
            if found.passed or found.reason != FailureClass.GATE_FAILED:
                return found
            return Verdict(True, found.reason, f"{found.message}. {found.next_action}")

        return replace(stage, judge=judge)

    return tuple(soften(stage) for stage in pipeline)


def located(request: Request, data: api.Data) -> api.Data:
    """Where the rows are, in full where it is a path of this machine."""
    if data.dvc and not request.data:
        here = Path(data.dvc.repo).expanduser()
        return replace(data, dvc=replace(data.dvc, repo=str(here.absolute()))) if here.is_dir() else data
    uri = request.data or data.uri
    return replace(data, uri=uri if "://" in uri else str(Path(uri).expanduser().absolute()), dvc=None)


def _inputs(request: Request, spec: api.MLModelSpec) -> str:
    """The digest of what the spec only names: the rows, and the code that reads them.

    Raises:
        CliError: There are no rows, or they cannot be read.
    """
    from mljobs.failure import JobFailure  # noqa: PLC0415  the jobs are an extra: `preflight` has looked for it
    from mljobs.files import fingerprint  # noqa: PLC0415

    try:
        rows_digest = fingerprint(spec.data)
    except JobFailure as error:
        mend = error.failure.next_action if spec.data.dvc else _mend(error.failure, elsewhere=request.data)
        raise CliError(error.failure.message, mend) from None
    parts = [rows_digest, code_digest(spec.training.task), str(request.rows)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _mend(failure: Failure, *, elsewhere: str) -> str:
    """What to do about rows that cannot be read, in the terms of a run."""
    if elsewhere:
        return "correct --data, or write the rows there"
    if failure.reason is FailureClass.STORE_ACCESS:
        return (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL where the store is not Amazon's), "
            "or say where else the rows are with --data PATH"
        )
    return f"{failure.next_action}; or say where else the rows are with --data PATH"


def _text(file: str) -> str:
    """The content of the manifest's file.

    Raises:
        CliError: It cannot be read.
    """
    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CliError(f"{file} cannot be read: {cause}", "name the MLModel's file with -f", code=EXIT_USAGE) from None


def reports(outcome: Outcome) -> dict[str, str]:
    """Where the evidence lies, by what it is: paths of files that are there."""
    files = {
        "audit": "audit/report.html",
        "archive": f"{contract.Artifacts.SERVING}/model-store/{name_of(outcome.moment.model)}.mar",
        **{f"{stage.name} report": contract.Artifacts.report(stage.name) for stage in PIPELINE},
    }
    return {what: str(path) for what, file in files.items() if (path := outcome.folder / file).is_file()}


def _now() -> datetime:
    return datetime.now(UTC)
