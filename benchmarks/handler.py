"""How long the tabular handler takes for wide records, and how long a large request lets others wait.

Called by `benchmarks.data`. An earlier revision is measured by its handler and its reading of records in the same archive,
in turns with this checkout's.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from ts.context import RequestProcessor

from benchmarks import serving
from benchmarks.serving import Target
from benchmarks.table import markdown
from mlhandlers.records import MAX_BYTES, MAX_RECORDS
from mljobs import export, package
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import FORMAT, Preprocessor, TabularModel

REPOSITORY: Final = Path(__file__).parents[1]
SOURCES: Final = {
    "records.py": ("handlers/mlhandlers/records.py", "handlers/mlhandlers/tabular.py"),
    "tabular_model.py": ("jobs/mljobs/tasks/tabular_model.py",),
}
"""Of the archive's files, those that are code, and where a revision may have them."""

COLUMNS: Final = 2000
RUNS: Final = 60
MOST_BEFORE: Final = 4 << 20
"""Bytes that a request could have when its records were not counted."""
ROUNDS: Final = 4
SECONDS: Final = 4.0
PAUSE: Final = 0.02
"""Between two small requests."""
PORT: Final = 19180


def wide() -> dict[str, Any]:
    """``preprocessor.json`` of half numbers, half categories."""
    half = COLUMNS // 2
    numeric = [
        {"name": f"measured_{i}", "kind": "numeric", "edges": [float(edge) for edge in range(20)]} for i in range(half)
    ]
    categorical = [
        {
            "name": f"named_{i}",
            "kind": "categorical",
            "categories": [f"value {j}" for j in range(20)],
            "common": "value 0",
        }
        for i in range(half)
    ]
    return {
        "format": FORMAT,
        "features": numeric + categorical,
        "label": {"name": "label", "classes": ["no", "yes"]},
        "model": {"hidden": [64, 32], "dropout": 0.0, "embedding": 4},
    }


def archive(folder: Path, name: str, config: Mapping[str, Any], before: str | None) -> Target:
    """KServe's layout of a model below `folder`, with the code of a revision or of this checkout."""
    place = serving.layout(folder / name, name)
    torch.manual_seed(7)
    record = TabularTask({}).example(config)
    inputs = Preprocessor(config).transform([record, record])
    content = export.torchscript(TabularModel(config).eval(), inputs)
    parts = package.Parts(content, config, record, TabularTask.modules)
    built = package.build(serving.work(place), name, f"{name}-1", parts)
    path = place / "model-store" / f"{name}.mar"
    with zipfile.ZipFile(built) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, of_revision(before, SOURCES[entry]) if before and entry in SOURCES else old.read(entry))
    return Target(name, name, place, json.dumps({"features": record}), "", "")


def of_revision(revision: str, paths: Sequence[str]) -> bytes:
    """A file as it was, at the first of `paths` that the revision has."""
    command = ["git", "-C", str(REPOSITORY), "show"]
    for path in paths[:-1]:
        done = subprocess.run([*command, f"{revision}:{path}"], check=False, capture_output=True)
        if not done.returncode:
            return done.stdout
    return subprocess.run([*command, f"{revision}:{paths[-1]}"], check=True, capture_output=True).stdout


def runner(target: Target, folder: Path) -> Callable[[bytes], float]:
    """Milliseconds of a CPU that the handler of an archive takes for one body, from its bytes to the answer's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchServe leaves files open, and its TorchScript is deprecated
        handler, context = package.load(target.folder / "model-store" / f"{target.name}.mar", folder / target.name)
    torch.set_num_threads(1)

    def run(body: bytes) -> float:
        context.request_ids, context.request_processor = {0: "0"}, [RequestProcessor({})]
        begin = time.thread_time()
        handler.handle([{"body": body}], context)
        took = time.thread_time() - begin
        status = context.get_response_status(0)[0]
        if status != http.client.OK:
            raise RuntimeError(f"the handler answered {status}")
        return took * 1000

    return run


def wide_records(folder: Path, versions: Mapping[str, str | None]) -> list[list[object]]:
    """Rows of the table: a record of many columns as an object and as a list."""
    config = wide()
    rng = random.Random(7)  # noqa: S311  no secret
    values = [rng.random() * 20 for _ in range(COLUMNS // 2)] + [
        f"value {rng.randrange(22)}" for _ in range(COLUMNS // 2)
    ]
    record = dict(zip((feature["name"] for feature in config["features"]), values, strict=True))
    bodies = {
        "an object": json.dumps({"features": record}).encode(),
        "a list": json.dumps({"features": values}).encode(),
    }
    runs = {
        title: runner(archive(folder, f"wide-{i}", config, revision), folder / "loaded")
        for i, (title, revision) in enumerate(versions.items())
    }
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(RUNS + 5):
        for kind, body in bodies.items():
            for title, run in runs.items():
                took = run(body)
                if turn >= 5:  # noqa: PLR2004  the first are no measure
                    times.setdefault((kind, title), []).append(took)
    return [
        [f"a record of {COLUMNS:,} columns as {kind}", *(shown(times[kind, title]) for title in versions)]
        for kind in bodies
    ]


def shown(times: list[float]) -> str:
    """Median and 99th percentile."""
    return f"{statistics.median(times):.1f} / {statistics.quantiles(times, n=100)[98]:.1f}"


class Client(threading.Thread):
    """Asks again and again until it is told to stop.

    Attributes:
        times: Milliseconds of each answer.
    """

    def __init__(self, port: int, path: str, body: str, pause: float) -> None:
        super().__init__()
        self.times: list[float] = []
        self.stopping = threading.Event()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._path, self._body, self._pause = path, body, pause

    def run(self) -> None:
        """Until `stopping`."""
        while not self.stopping.wait(self._pause):
            begin = time.perf_counter()
            self._connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            answer = response.read()
            if response.status != http.client.OK:
                raise RuntimeError(f"{response.status}: {answer[:200]!r}")
            self.times.append((time.perf_counter() - begin) * 1000)


def together(*clients: Client) -> None:
    """Lets clients ask at the same time."""
    for client in clients:
        client.start()
    time.sleep(SECONDS)
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join()


def largest(record: str, limit_bytes: int, limit_records: int) -> str:
    """The body of as many records as a request may have."""
    count = min(limit_records, (limit_bytes - 20) // (len(record) + 1))
    return f'{{"instances":[{",".join([record] * count)}]}}'


def beside(folder: Path, versions: Mapping[str, str | None]) -> list[list[object]]:
    """Rows of the table: what small requests wait beside the largest ones, through TorchServe on one CPU.

    The versions take turns, so that a busy moment of the machine hits all alike.
    """
    alone, disturbed, large = ([list[float]() for _ in versions] for _ in range(3))
    counts, doors = [], []
    with ExitStack() as running:
        for i, revision in enumerate(versions.values()):
            config = serving.schema()
            target = archive(folder, f"narrow-{i}", config, revision)
            record = json.dumps(TabularTask({}).example(config), separators=(",", ":"))
            body = largest(record, MOST_BEFORE, 1 << 30) if revision else largest(record, MAX_BYTES, MAX_RECORDS)
            path = f"/predictions/{target.name}"
            server = serving.start(target, PORT + i)
            running.callback(server.wait)
            running.callback(server.send_signal, signal.SIGTERM)
            address = f"127.0.0.1:{PORT + i}"
            serving.wait_for_answer(f"http://{address}{path}", address, target.body, server, target.folder / "log")
            counts.append(body.count("{") - 1)
            doors.append((PORT + i, path, target.body, body))
        for _ in range(ROUNDS):
            for i, (port, path, small, body) in enumerate(doors):
                quiet, busy = (Client(port, path, small, PAUSE) for _ in range(2))
                huge = Client(port, path, body, 0)
                together(quiet)
                together(busy, huge)
                for times, client in ((alone, quiet), (disturbed, busy), (large, huge)):
                    times[i] += client.times
    return [
        ["a small request alone", *map(shown, alone)],
        ["… beside the largest, one after the other", *map(shown, disturbed)],
        [
            "the largest request",
            *(f"{shown(times)} ({count:,} records)" for times, count in zip(large, counts, strict=True)),
        ],
    ]


def table(before: str | None) -> str:
    """Median / 99th percentile in milliseconds."""
    versions: dict[str, str | None] = {**({f"{before}, ms": before} if before else {}), "now, ms": None}
    with tempfile.TemporaryDirectory(prefix="bench-handler-") as name:
        folder = Path(name)
        rows = [*wide_records(folder, versions), *beside(folder, versions)]
    return markdown(["median / p99", *versions], rows)
