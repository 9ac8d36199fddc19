"""Answers prediction requests for tabular models, inside a TorchServe worker.

Called by TorchServe, which imports this file by its base name from the unpacked archive
that `mljobs.package` built, and by that job's smoke test. It therefore holds exactly one
class and imports nothing of this project: what it needs lies beside it in the archive,
`tabular_model.py` (the code that training read records with) and `preprocessor.json`.

One call carries a batch of independent requests. A mistake in one of them is answered to
that one alone, in the form of TorchServe's own errors: ``{"code", "type", "message"}``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor
from ts.metrics.metric_type_enum import MetricTypes
from ts.utils.util import PredictionException

HEADER_VERSION: Final = "x-mlplatform-version"
"""As in mlplatform.contract, which is not there when a stock TorchServe loads the archive."""

LATENCY_METRIC: Final = "mlplatform_handler_seconds"
"""Histogram of the wall time of one batch in the worker; serving/metrics.yaml declares it."""

LOG: Final = logging.getLogger(__name__)

CGROUP: Final = Path("/sys/fs/cgroup")

FORMAT: Final = 1
"""The version of ``preprocessor.json`` that is understood here."""

WARM_UP_ROWS: Final = (1, 1, 2, 2, 8, 8)
"""Batch sizes run before the model counts as loaded: TorchScript specialises itself on its first runs."""

BODY_EXAMPLE: Final = '{"features": {"<column>": <value>, …}}'

Record = Sequence[Any] | Mapping[str, Any]
Columns = Mapping[str, tuple[str, list[Any]]]
"""Of the answers: type in the Open Inference Protocol and a value a row, by name."""
Answer = Callable[[Columns, float], dict[str, Any]]
"""``(its rows of the answers, latency in ms) -> response body`` of one request."""


class TabularHandler:
    """A model of tables as TorchServe's worker drives it: `initialize` once, then `handle` a batch."""

    def initialize(self, context: Any) -> None:
        """Loads the model and runs it, so that the first request is as fast as the rest.

        Args:
            context: ts.context.Context of the worker.

        Raises:
            OSError: A file of the archive is missing.
            RuntimeError: The serialised model is damaged, or the preprocessing is of another format.
        """
        folder = Path(context.system_properties["model_dir"])
        description = context.manifest["model"]
        self._name: str = description["modelName"]
        self._version: str = description["modelVersion"]
        torch.set_num_threads(threads_of(cpu_limit()))
        config = json.loads((folder / "preprocessor.json").read_text())
        if config["format"] != FORMAT:
            msg = (
                f"preprocessor.json has format {config['format']}, this handler reads {FORMAT}; package the model again"
            )
            raise RuntimeError(msg)
        code = load_module(folder / "tabular_model.py")
        self._record_error: type[ValueError] = code.RecordError
        self._preprocessor = code.Preprocessor(config)
        self._predictions = code.predictions(config["label"])
        serialized = folder / description["serializedFile"]
        self._model = torch.jit.load(serialized, map_location="cpu").eval()
        self._sample = sample_record(config)
        self._latency = latency_metric(context.metrics)
        quiet_worker()
        for rows in WARM_UP_ROWS:
            self._score(self._preprocessor.transform([self._sample] * rows))

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answers a batch.

        Args:
            data: One item a request; its ``body`` is parsed JSON, or text or bytes if it was not declared as JSON.
            context: ts.context.Context; takes each request's HTTP status and content type.

        Returns:
            One JSON body a request, in order.
        """
        started = time.perf_counter()
        bodies: list[dict[str, Any]] = [{}] * len(data)
        sound: list[tuple[int, list[Record], Answer]] = []
        for i, item in enumerate(data):
            try:
                sound.append((i, *self._read(item)))
            except PredictionException as refusal:
                bodies[i] = refuse(context, i, refusal)
            except RecursionError:
                msg = f"the body is nested too deep; send {BODY_EXAMPLE}"
                bodies[i] = refuse(context, i, PredictionException(msg, HTTPStatus.BAD_REQUEST))
            except Exception as error:  # noqa: BLE001  TorchServe would answer 503 to every request of the batch
                bodies[i] = fail(context, i, error)
        tensors = self._transform(sound, bodies, context)
        columns = self._score(tensors)
        seconds = time.perf_counter() - started
        start = 0
        for i, records, answer in sound:
            rows = slice(start, start + len(records))
            mine = {name: (kind, values[rows]) for name, (kind, values) in columns.items()}
            bodies[i] = answer(mine, round(seconds * 1000, 3))
            start = rows.stop
        self._latency.add_or_update(seconds, [self._name, self._version])
        for i in range(len(data)):
            context.set_response_content_type(i, "application/json")
        # ASCII, because what clients send and answers quote may hold half a surrogate pair, which UTF-8 cannot.
        return [json.dumps(body, allow_nan=False, separators=(",", ":")).encode() for body in bodies]

    def _read(self, item: Mapping[str, Any]) -> tuple[list[Record], Answer]:
        body = parse_body(item)
        if body is None:
            return [self._sample], self._answer_probe
        asked = body.get("model_version")
        if asked is not None and asked != self._version:
            msg = (
                f"model_version {asked!r} was asked for, but {self._version} answers here; leave model_version out, "
                f"or send the header {HEADER_VERSION}: {asked} so that the gateway routes the request to it"
            )
            raise PredictionException(msg, HTTPStatus.CONFLICT)
        if "features" in body:
            return scalars([body["features"]]), self._answer_predict
        if "instances" in body:
            return scalars(expect_rows(body["instances"], "instances")), self._answer_v1
        if "inputs" in body:
            request = body.get("id")
            if not isinstance(request, str | None):
                msg = f"id must be a string, got a JSON {type(request).__name__}"
                raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
            rows = scalars(v2_rows(body["inputs"], self._preprocessor.names))
            return rows, lambda *answers: self._answer_v2(request, *answers)
        msg = (
            f"the body has none of features, instances and inputs; send {BODY_EXAMPLE} "
            f"with the columns {', '.join(self._preprocessor.names)}"
        )
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)

    def _transform(
        self, sound: list[tuple[int, list[Record], Answer]], bodies: list[dict[str, Any]], context: Any
    ) -> tuple[Tensor, Tensor]:
        """Tensors of all sound requests; one that does not fit the schema is answered and taken out of `sound`."""
        try:
            return self._transform_all(sound)
        except Exception:  # noqa: BLE001  whatever it is, it is one request's, and is answered below
            # Rare, so the batch is read once more, a request at a time, to find whose record it was.
            for entry in list(sound):
                try:
                    self._transform_all([entry])
                except (self._record_error, OverflowError) as error:
                    msg = f"{error}; send null for a value that is missing"
                    bodies[entry[0]] = refuse(context, entry[0], PredictionException(msg, HTTPStatus.BAD_REQUEST))
                    sound.remove(entry)
                except Exception as error:  # noqa: BLE001  as in `handle`
                    bodies[entry[0]] = fail(context, entry[0], error)
                    sound.remove(entry)
            return self._transform_all(sound)

    def _transform_all(self, sound: list[tuple[int, list[Record], Answer]]) -> tuple[Tensor, Tensor]:
        tensors: tuple[Tensor, Tensor] = self._preprocessor.transform([r for _, records, _ in sound for r in records])
        return tensors

    def _score(self, tensors: tuple[Tensor, Tensor]) -> Columns:
        """The answers to all rows."""
        with torch.inference_mode():
            scores = self._predictions.scores(self._model(*tensors).float()) if len(tensors[0]) else torch.empty(0)
        found: Columns = self._predictions.columns(scores)
        return found

    def _answer_predict(self, columns: Columns, latency: float) -> dict[str, Any]:
        return {
            **{name: values[0] for name, (_, values) in columns.items()},
            "latency_ms": latency,
            "model_version": self._version,
        }

    def _answer_v1(self, columns: Columns, latency: float) -> dict[str, Any]:
        rows = zip(*(values for _, values in columns.values()), strict=True)
        return {
            "predictions": [dict(zip(columns, row, strict=True)) for row in rows],
            "latency_ms": latency,
            "model_version": self._version,
        }

    def _answer_v2(self, request: str | None, columns: Columns, latency: float) -> dict[str, Any]:
        return {
            **({} if request is None else {"id": request}),
            "model_name": self._name,
            "model_version": self._version,
            "parameters": {"latency_ms": latency},
            "outputs": [
                {"name": name, "datatype": kind, "shape": [len(values)], "data": values}
                for name, (kind, values) in columns.items()
            ],
        }

    def _answer_probe(self, _columns: Columns, latency: float) -> dict[str, Any]:
        return {"status": "ok", "latency_ms": latency, "model_version": self._version}


def parse_body(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """The JSON object of one request; None if it came without a body, as a health probe does.

    Raises:
        PredictionException: There is a body that is no JSON object (400), or it came as a form (415).
        RecursionError: The body is nested too deep.
    """
    if "body" not in item:
        msg = "the body came as a form; send the header Content-Type: application/json"
        raise PredictionException(msg, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    body = item["body"]
    if isinstance(body, str | bytes | bytearray):
        if not body:
            return None
        try:
            body = json.loads(body)
        except ValueError as error:
            msg = f"the body is no JSON: {error}; send {BODY_EXAMPLE}"
            raise PredictionException(msg, HTTPStatus.BAD_REQUEST) from None
    if not isinstance(body, dict):
        msg = f"the body is a JSON {type(body).__name__}, not an object; send {BODY_EXAMPLE}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    return body


def expect_rows(value: Any, name: str) -> list[Any]:
    """`value` if it is a list with something in it.

    Raises:
        PredictionException: It is not (400).
    """
    if not isinstance(value, list) or not value:
        msg = f"{name} must be a list of one or more records, got {value!r:.80}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    return value


def scalars(records: list[Any]) -> list[Record]:
    """`records` if no value in them is a list or an object: those would pass for an unknown category.

    Raises:
        PredictionException: One is (400).
    """
    for i, record in enumerate(records):
        fields = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
        for field, value in fields:
            if isinstance(value, list | dict):
                msg = f"record {i}: column {field} must be a number, a string, a boolean or null, got {value!r:.80}"
                raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    return records


def v2_rows(inputs: Any, names: Sequence[str]) -> list[Record]:
    """Records of an Open Inference Protocol (v2) request.

    Args:
        inputs: Its tensors: one a column, of shape ``[n]`` or ``[n, 1]``, or a single one of shape ``[n, columns]``.
        names: The columns, in schema order.

    Raises:
        PredictionException: They are of neither form (400).
        RecursionError: Their data is nested too deep.
    """
    tensors = expect_rows(inputs, "inputs")
    try:
        shapes = {str(t["name"]): [int(size) for size in t["shape"]] for t in tensors}
        values = {str(t["name"]): flatten(t["data"]) for t in tensors}
    except (KeyError, TypeError, ValueError, OverflowError):
        msg = "each of inputs needs name, shape, datatype and data (Open Inference Protocol)"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST) from None
    for name, shape in shapes.items():
        if math.prod(shape) != len(values[name]):
            msg = f"input {name}: shape {shape} does not fit its data, which has {len(values[name])} values"
            raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    if len(tensors) == 1 and len(shape := next(iter(shapes.values()))) > 1 and shape[1] == len(names):
        data = next(iter(values.values()))
        return [data[i : i + len(names)] for i in range(0, len(data), len(names))]
    if len({len(column) for column in values.values()}) != 1:
        msg = f"inputs are columns of different lengths: { ({name: len(column) for name, column in values.items()}) }"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def flatten(data: Any) -> list[Any]:
    """The values of a nested list in row-major order."""
    if not isinstance(data, list):
        return [data]
    return [value for item in data for value in flatten(item)]


def refuse(context: Any, index: int, refusal: PredictionException) -> dict[str, Any]:
    """Sets the HTTP status of one request of the batch and gives its body."""
    status = HTTPStatus(refusal.error_code)
    context.set_response_status(code=status.value, phrase=status.phrase, idx=index)
    return {"code": status.value, "type": status.phrase.replace(" ", ""), "message": refusal.message}


def fail(context: Any, index: int, error: Exception) -> dict[str, Any]:
    """Like `refuse`, for a fault of this code: a 500, and the cause in the log."""
    LOG.error("a request could not be read", exc_info=error)
    msg = "the request could not be read; the log of the serving pod says why"
    return refuse(context, index, PredictionException(msg, HTTPStatus.INTERNAL_SERVER_ERROR))


def sample_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """A record that a health probe predicts: the middle of each numeric column, a category known from training.

    It is made of the schema, so that no person's row travels with the archive.
    """
    sample: dict[str, Any] = {}
    for feature in config["features"]:
        known = feature["edges"] if feature["kind"] == "numeric" else feature["categories"]
        sample[feature["name"]] = known[len(known) // 2] if known else None
    return sample


def latency_metric(metrics: Any) -> Any:
    """The worker's histogram; made here if the server's metrics.yaml lacks it (a stock TorchServe then drops it)."""
    if LATENCY_METRIC not in metrics.cache.get(MetricTypes.HISTOGRAM, {}):
        metrics.add_metric_to_cache(LATENCY_METRIC, "Seconds", ["model_name", "model_version"], MetricTypes.HISTOGRAM)
    return metrics.get_metric(LATENCY_METRIC, MetricTypes.HISTOGRAM)


def quiet_worker() -> None:
    """Drops the line that the worker logs for every request; metrics travel as log lines and stay."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("ts.metrics.caching_metric").setLevel(logging.INFO)


def cpu_limit(cgroup: Path = CGROUP) -> float:
    """CPUs that this process may use: the smaller of its affinity and its cgroup's quota.

    Args:
        cgroup: Where the cgroup file system is mounted; version 1 and 2 are understood.
    """
    available = float(len(os.sched_getaffinity(0)))
    unified, legacy = cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us"
    if unified.is_file():
        quota, period = unified.read_text().split()
    elif legacy.is_file():
        quota, period = legacy.read_text().strip(), legacy.with_name("cpu.cfs_period_us").read_text()
    else:
        return available
    return available if quota in {"max", "-1"} else min(available, int(quota) / int(period))


def threads_of(cpus: float) -> int:
    """Threads for `cpus` CPUs: whole ones only, as a thread beyond the quota stalls all the others."""
    return max(1, math.floor(cpus))


def load_module(path: Path) -> ModuleType:
    """Imports a file under its base name without keeping it in `sys.modules`, where another archive's has that name.

    Raises:
        OSError: There is no such file.
    """
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    SourceFileLoader(path.stem, str(path)).exec_module(module)
    return module
