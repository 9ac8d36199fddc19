"""The stage `package`: puts the chosen candidate into a TorchServe archive that a pod can serve as it is.

Run as ``python -m mljobs.package``. The archive holds the model, the very code and configuration
that training read records with, and the handler. Before it is uploaded it is loaded here as a
TorchServe worker loads it and predicts rows of the test split, which the candidate's own file
predicts, too: an archive that would answer otherwise never reaches a pod. Beside it lies a made-up
record to ask it with. Equal inputs give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import ts
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.utils.util import get_yaml_config, list_classes_from_module

from mljobs import data, export, served, trained
from mljobs.export import PARITY_TOLERANCE
from mljobs.failure import JobFailure
from mljobs.report import Job, run, say
from mljobs.served import PREDICTION, import_file, source
from mljobs.tasks import Objective
from mljobs.trained import Trained
from mlplatform.contract import Artifacts, FailureClass, Stage, Summary

SERIALIZED: Final = "model.pt"
MANIFEST: Final = "MAR-INF/MANIFEST.json"
EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a ZIP file can hold."""

MODEL_CONFIG: Final = """\
# One worker: the pod has about one CPU, and replicas are Kubernetes' concern.
minWorkers: 1
maxWorkers: 1
# Whatever waits in the queue goes into one run of the model, and the first request waits 1 ms for company:
# three times the throughput of single requests at 16 clients. (0 ms is read as unset, which means 100 ms.)
batchSize: 32
maxBatchDelay: 1
# Seconds. A batch takes milliseconds; a worker that has not answered by then hangs and is replaced.
responseTimeout: 10
# Seconds. Importing torch and compiling take about 3 on a whole CPU, ten times that on a throttled one.
startupTimeout: 120
"""

TASK: Final = "task"
"""Under what name the handler finds the task's half that travels; as in `mlhandlers.records`."""

SMOKE_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class Parts:
    """What is particular to an archive.

    Attributes:
        serialized: The TorchScript file.
        config: The parsed ``preprocessor.json``.
        example: The task's made-up record.
        modules: The task's: the handler's, then those beside it.
    """

    serialized: bytes
    config: Mapping[str, Any]
    example: Any
    modules: Sequence[str]


def main(job: Job) -> Summary:
    """Builds, tries and uploads the archive."""
    optimised = job.read_json(Artifacts.report(Stage.OPTIMIZE))
    name, uri = selected(optimised)
    known = trained.load(job)
    with tempfile.TemporaryDirectory(prefix="package-") as folder:
        work = Path(folder)
        serialized = job.store.read(uri)
        example = known.task.example(known.config)
        archive = build(work, job.model, job.version, Parts(serialized, known.config, example, known.task.modules))
        content = archive.read_bytes()
        sha = hashlib.sha256(content).hexdigest()
        say(f"archive={archive.name} candidate={name} bytes={len(content)} sha256={sha}")
        rows, expected = rows_to_try(known, job.spec.data.predicted, serialized, example)
        difference = smoke_test(archive, work / "loaded", rows, expected, known.objective)
        tried = len(rows) - 1
        say(f"loaded the archive: {tried} test rows, {known.objective.unit} within {difference:.2e} of the candidate's")
    serving = job.store.uri(Artifacts.SERVING)
    job.write(Artifacts.EXAMPLE, f"{json.dumps(example, indent=2)}\n".encode())
    # The configuration last: a folder that has it is complete.
    archive_uri = job.write(f"{Artifacts.SERVING}/model-store/{job.model}.mar", content)
    job.write(f"{Artifacts.SERVING}/config/config.properties", serving_config(job.model).encode())
    details = {"storageUri": serving, "archive": archive_uri, "sizeBytes": len(content)}
    report = {
        **details,
        "sample": known.sample,
        "candidate": name,
        "archiveDigest": f"sha256:{sha}",
        "smokeTest": {"rows": tried, measured(known.objective): difference, "tolerance": PARITY_TOLERANCE},
        "example": job.store.uri(Artifacts.EXAMPLE),
        "torchserve": ts.__version__,
    }
    return job.finish(report, {}, details)


def selected(report: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the chosen candidate and of its TorchScript file in the store.

    Raises:
        JobFailure: The report of `mljobs.optimize` names none.
    """
    name = report.get("selected")
    file = report.get("files", {}).get(name, {}).get("torchscript")
    if not file:
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"the candidate {name!r} that was chosen has no TorchScript file, which TorchServe needs",
            "Let the operator and the job image be of one release, then retrain the model",
        )
    return str(name), str(file)


def measured(objective: Objective) -> str:
    """Under what name the report has the difference."""
    return f"max{''.join(word.capitalize() for word in objective.unit.split())}Difference"


def build(folder: Path, model: str, version: str, parts: Parts) -> Path:
    """Writes the archive with torch-model-archiver and makes it reproducible.

    Args:
        folder: An empty folder to work in.
        model: The name that the archive is served under.
        version: Name of the ModelVersion; the handler answers with it.
        parts: What goes into it.

    Returns:
        ``<folder>/<model>.mar``.
    """
    handler, *beside = map(source, parts.modules)
    (folder / SERIALIZED).write_bytes(parts.serialized)
    (folder / "preprocessor.json").write_text(json.dumps(parts.config, sort_keys=True, separators=(",", ":")))
    (folder / "example.json").write_text(json.dumps(parts.example))
    (folder / "model-config.yaml").write_text(f"{MODEL_CONFIG}{TASK}: {beside[0].name}\n")
    archive(folder, model, version, handler, [folder / "preprocessor.json", folder / "example.json", *beside])
    path = folder / f"{model}.mar"
    normalise(path)
    return path


def archive(folder: Path, model: str, version: str, handler: Path, extra: Sequence[Path]) -> None:
    """Runs torch-model-archiver on the files in `folder`."""
    arguments = {
        "--model-name": model,
        "--version": version,
        # "python" is the interpreter that TorchServe was started with; "python3" would be the first on PATH.
        "--runtime": "python",
        "--serialized-file": folder / SERIALIZED,
        "--handler": handler,
        "--extra-files": ",".join(map(str, extra)),
        "--config-file": folder / "model-config.yaml",
        "--export-path": folder,
        "--archive-format": "zip-store",
    }
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += [str(part) for pair in arguments.items() for part in pair]
    # It empties and fills <temporary folder>/<model name>, which may not be a folder of somebody else.
    temporary = folder / "archiver"
    temporary.mkdir()
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(temporary)}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise JobFailure(
            FailureClass.CRASHED,
            f"torch-model-archiver ended with code {done.returncode}: {done.stderr.strip()[-500:]}",
            "Correct what it names: the task's handler, or the archive's other files",
        )


def normalise(path: Path) -> None:
    """Rewrites a ZIP file without what differs from run to run: times, order, permissions, the date in the manifest.

    Entries are stored, not compressed: weights hardly shrink, and bytes do not depend on zlib's version then.
    """
    with zipfile.ZipFile(path) as original:
        entries = {name: original.read(name) for name in sorted(original.namelist())}
    manifest = json.loads(entries[MANIFEST])
    del manifest["createdOn"]
    entries[MANIFEST] = json.dumps(manifest, indent=2, sort_keys=True).encode()
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as rewritten:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever this runs
            rewritten.writestr(entry, content)
    path.write_bytes(buffer.getvalue())


def serving_config(model: str) -> str:
    """What the model says of itself in KServe's layout; mlhandlers.server adds how the platform serves."""
    return f"model_store=/mnt/models/model-store\nload_models={model}={model}.mar\n"


def rows_to_try(
    known: Trained, labels: Sequence[str], serialized: bytes, example: Any
) -> tuple[list[Any], npt.NDArray[np.float64]]:
    """Rows of the test split, evenly spread, then the example, and what the candidate says of their tensors.

    The stage before judged how good the candidate is; what can go wrong here is the way of a raw record to it.

    Args:
        known: The test split.
        labels: The columns that no record has, unless the task reads one.
        serialized: The candidate's TorchScript file.
        example: The task's.

    Returns:
        Up to `SMOKE_ROWS` records as a client sends them and the example, and their scores.
    """
    count = known.test.num_rows
    chosen = np.arange(0, count, max(1, count // SMOKE_ROWS))[:SMOKE_ROWS]
    half = served.load(known.task, known.config)
    unsent = {*labels, *known.config.get("ignored", ())}.difference(half.names)
    sent = [name for name in known.test.column_names if name not in unsent]
    records: list[Any] = json.loads(json.dumps(data.take(known.test.select(sent), chosen).to_pylist(), default=str))
    last = half.read([example])
    inputs = tuple(torch.cat([part[chosen], more]) for part, more in zip(known.inputs, last, strict=True))
    return [*records, example], trained.scores(known.objective, export.load_torchscript(serialized), inputs)


def smoke_test(
    path: Path, folder: Path, rows: Sequence[Any], expected: npt.NDArray[np.float64], objective: Objective
) -> float:
    """Loads the archive as a TorchServe worker does and predicts `rows`.

    Args:
        path: The archive.
        folder: Where to unpack it.
        rows: Raw records: of the test split, and the example as the last one.
        expected: Their scores.
        objective: What was learned.

    Returns:
        The largest difference found.

    Raises:
        JobFailure: An answer is an error, or differs by more than `PARITY_TOLERANCE`.
    """
    handler, context = load(path, folder)
    difference = 0.0
    for i, ((status, answer), wanted) in enumerate(zip(predict(handler, context, rows), expected, strict=True)):
        if status != HTTPStatus.OK or PREDICTION not in answer:
            which = f"row {i} of the test split" if i < len(rows) - 1 else "the example record"
            raise disagreement(f"it refused {which} with status {status}: {answer.get('message')}")
        difference = max(difference, objective.off(answer, wanted))
    if difference > PARITY_TOLERANCE:
        raise disagreement(
            f"a {objective.unit} differs by {difference:.2g} from the candidate's, over {PARITY_TOLERANCE}"
        )
    return difference


def predict(handler: Any, context: Context, rows: Sequence[Any]) -> list[tuple[int, dict[str, Any]]]:
    """What the handler answers to one batch of records, each with its HTTP status."""
    context.request_ids = {i: str(i) for i in range(len(rows))}
    context.request_processor = [RequestProcessor({}) for _ in rows]
    requests = [{"body": {"features": row}} for row in rows]
    answers = [json.loads(body) for body in handler.handle(requests, context)]
    return [(context.get_response_status(i)[0], answer) for i, answer in enumerate(answers)]


def load(path: Path, folder: Path) -> tuple[Any, Context]:
    """The archive's handler, initialised, and its context."""
    with zipfile.ZipFile(path) as file:
        file.extractall(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    description = manifest["model"]
    metrics = MetricsCacheYamlImpl(str(Path(ts.__file__).parent / "configs" / "metrics.yaml"))
    metrics.initialize_cache()
    metrics.model_name = description["modelName"]
    settings = get_yaml_config(str(folder / description["configFile"]))
    context = Context(
        description["modelName"],
        str(folder),
        manifest,
        settings["batchSize"],
        None,
        ts.__version__,
        True,
        metrics,
        settings,
    )
    module = import_file(folder / description["handler"])
    (handler_class,) = list_classes_from_module(module)
    handler = handler_class()
    handler.initialize(context)
    # Metrics are log lines that a server would read.
    logging.getLogger("ts.metrics").setLevel(logging.WARNING)
    logging.getLogger("ts.metrics.caching_metric").setLevel(logging.NOTSET)
    return handler, context


def disagreement(what: str) -> JobFailure:
    """The archive does not do what the candidate does, and another try would build the same one."""
    return JobFailure(
        FailureClass.GATE_FAILED,
        f"the archive was built, but {what}",
        "Run the operator, the jobs and the handlers of one release; if they are, report this as a bug",
    )


if __name__ == "__main__":
    sys.exit(run(Stage.PACKAGE, main))
