"""Answers prediction requests for any task's models, inside a TorchServe worker.

Called by TorchServe, which imports this file by its base name from the unpacked archive
that `mljobs.package` built, and by that job's smoke test. It therefore holds exactly one
class and imports nothing of this project: what it needs lies beside it in the archive, the
task's half that travels (the code that training read records with; model-config.yaml names
it), `preprocessor.json`, and `example.json`, a made-up record to try the model with.

One call carries a batch of independent requests. A mistake in one of them is answered to
that one alone, in the form of TorchServe's own errors: ``{"code", "type", "message"}``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import reprlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

TASK: Final = "task"
"""Key of model-config.yaml: the file with the task's half that travels, a class ``Served`` as `mljobs.tasks.Served` describes."""

ENV_MAX_RECORDS: Final = "MLPLATFORM_MAX_RECORDS"
"""Of a request, and the next one of its bytes; as in mlplatform.contract."""
ENV_MAX_BYTES: Final = "MLPLATFORM_MAX_BYTES"

MAX_RECORDS: Final = 1000
"""Of a request, and the next one of its values: all others wait while one is answered, so that takes a CPU some hundredths of a second."""
MAX_VALUES: Final = 100_000
MAX_BYTES: Final = 1 << 20

STRETCH: Final = 16_384
"""Values that are run through the model at a time, in whole rows: what a row takes of memory on its way is many times its own."""

LARGEST_SIZE: Final = 1 << 63
"""Of a v2 tensor's shape, in its own protocol an int64."""

LONGEST_ID: Final = 256
"""Characters of a v2 request's id."""

DATATYPES: Final = frozenset(
    {
        "BOOL",
        "BYTES",
        "BF16",
        "FP16",
        "FP32",
        "FP64",
        *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)),
    }
)
"""Of the Open Inference Protocol."""

WARM_UP_ROWS: Final = (1, 1, 2, 2, 8, 8)
"""Batch sizes run before the model counts as loaded: TorchScript specialises itself on its first runs."""

BODY_EXAMPLE: Final = '{"features": {"<column>": <value>, …}}'

SHOWN: Final = 20
"""Columns that a message names at most."""

QUOTE: Final = reprlib.Repr()
QUOTE.maxstring = QUOTE.maxother = 80

Record = Sequence[Any] | Mapping[str, Any]
Columns = Mapping[str, tuple[str, list[Any]]]
"""Of the answers: type in the Open Inference Protocol and a value a row, by name."""
Answer = Callable[[Columns, float], dict[str, Any]]
"""``(its rows of the answers, latency in ms) -> response body`` of one request."""
Sound = tuple[int, list[Record], Answer]
"""A request that could be read: its place in the batch, its records and how it is answered."""


class RecordsHandler:
    """A model as TorchServe's worker drives it: `initialize` once, then `handle` a batch."""

    def initialize(self, context: Any) -> None:
        """Loads the model and runs it, so that the first request is as fast as the rest.

        Args:
            context: ts.context.Context of the worker.

        Raises:
            OSError: A file of the archive is missing.
            RuntimeError: The serialised model is damaged, or the task cannot read its own preprocessing.
        """
        folder = Path(context.system_properties["model_dir"])
        description = context.manifest["model"]
        self._name: str = description["modelName"]
        self._version: str = description["modelVersion"]
        torch.set_num_threads(threads_of(cpu_limit()))
        task = load_module(folder / context.model_yaml_config[TASK])
        self._served = task.Served(json.loads((folder / "preprocessor.json").read_text()))
        self._run = getattr(self._served, "run", once)
        self._columns: str = listed(self._served.names)
        serialized = folder / description["serializedFile"]
        self._model = torch.jit.load(serialized, map_location="cpu").eval()
        width = max(1, self._served.width)
        self._max_records = int(os.environ.get(ENV_MAX_RECORDS) or max(1, min(MAX_RECORDS, MAX_VALUES // width)))
        self._max_bytes = int(os.environ.get(ENV_MAX_BYTES) or MAX_BYTES)
        self._stretch = max(1, STRETCH // width)
        self._sample: Record = json.loads((folder / "example.json").read_text())
        self._latency = latency_metric(context.metrics)
        quiet_worker()
        for rows in WARM_UP_ROWS:
            self._score([self._served.read([self._sample] * rows)])

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
        for requests in self._stretches(data, bodies, context):
            self._answer(requests, started, bodies, context)
        self._latency.add_or_update(time.perf_counter() - started, [self._name, self._version])
        for i in range(len(data)):
            context.set_response_content_type(i, "application/json")
        return [self._written(i, body, context) for i, body in enumerate(bodies)]

    def _written(self, i: int, body: dict[str, Any], context: Any) -> bytes:
        """The JSON of one answer; an error in place of one that JSON has no words for, as of a number that is not finite."""
        try:
            # ASCII, because what clients send and answers quote may hold half a surrogate pair, which UTF-8 cannot.
            return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            return json.dumps(fail(context, i, error)).encode()

    def _stretches(
        self, data: list[dict[str, Any]], bodies: list[dict[str, Any]], context: Any
    ) -> Iterator[list[Sound]]:
        """Requests that are run together, or one that is more than a stretch; what cannot be read is answered.

        Each is read when its turn comes, so that no more than a stretch's is in memory as objects.
        """
        together: list[Sound] = []
        rows = 0
        for i, item in enumerate(data):
            try:
                records, answer = self._read(item)
            except PredictionException as refusal:
                bodies[i] = refuse(context, i, refusal)
            except RecursionError:
                msg = f"the body is nested too deep; send {BODY_EXAMPLE}"
                bodies[i] = refuse(context, i, PredictionException(msg, HTTPStatus.BAD_REQUEST))
            except Exception as error:  # noqa: BLE001  TorchServe would answer 503 to every request of the batch
                bodies[i] = fail(context, i, error)
            else:
                if together and rows + len(records) > self._stretch:
                    yield together
                    together, rows = [], 0
                together.append((i, records, answer))
                rows += len(records)
        if together:
            yield together

    def _answer(self, requests: list[Sound], started: float, bodies: list[dict[str, Any]], context: Any) -> None:
        """Answers requests by one run of the model or, if they are more than a stretch, several."""
        records = [record for _, part, _ in requests for record in part]
        try:
            tensors = [self._transform(records, start) for start in range(0, len(records), self._stretch)]
        except Exception as error:  # noqa: BLE001  whatever it is, it is one request's
            if len(requests) > 1:  # Rare, so they are read again, in halves, until it is found whose record it was.
                half = len(requests) // 2
                self._answer(requests[:half], started, bodies, context)
                self._answer(requests[half:], started, bodies, context)
                return
            i = requests[0][0]
            refused = isinstance(error, PredictionException)
            bodies[i] = refuse(context, i, error) if refused else fail(context, i, error)
            return
        columns = self._score(tensors)
        latency = round((time.perf_counter() - started) * 1000, 3)
        start = 0
        for i, part, answer in requests:
            rows = slice(start, start + len(part))
            mine = {name: (kind, values[rows]) for name, (kind, values) in columns.items()}
            bodies[i] = answer(mine, latency)
            start = rows.stop

    def _read(self, item: Mapping[str, Any]) -> tuple[list[Record], Answer]:
        body = parse_body(item, self._max_bytes)
        if body is None:
            return [self._sample], self._answer_probe
        asked = body.get("model_version")
        if asked is not None and asked != self._version:
            msg = (
                f"model_version {quoted(asked)} was asked for, but {self._version} answers here; leave model_version out, "
                f"or send the header {HEADER_VERSION}: {asked!s:.253} so that the gateway routes the request to it"
            )
            raise PredictionException(msg, HTTPStatus.CONFLICT)
        if "features" in body:
            return [body["features"]], self._answer_predict
        if "instances" in body:
            records = expect_list(body["instances"], "instances")
            check_size(len(records), self._max_records, "records", "maxRecords")
            return records, self._answer_v1
        if "inputs" in body:
            request = body.get("id")
            if not isinstance(request, str | None):
                msg = f"id must be a string, got a JSON {type(request).__name__}"
                raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
            if len(request or "") > LONGEST_ID:
                msg = f"id has {len(request or ''):,} characters, at most {LONGEST_ID}"
                raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
            rows = v2_records(body["inputs"], self._served.names, self._max_records)
            return rows, lambda *answers: self._answer_v2(request, *answers)
        msg = (
            f"the body has none of features, instances and inputs; send {BODY_EXAMPLE} with the columns {self._columns}"
        )
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)

    def _transform(self, records: list[Record], start: int) -> tuple[Tensor, ...]:
        """Tensors of the stretch that begins at a record.

        Raises:
            PredictionException: The task cannot read one (400).
        """
        try:
            tensors: tuple[Tensor, ...] = self._served.read(records[start : start + self._stretch], start)
        except ValueError as error:
            raise PredictionException(str(error), HTTPStatus.BAD_REQUEST) from None
        return tensors

    def _score(self, stretches: list[tuple[Tensor, ...]]) -> Columns:
        """The answers to all rows."""
        with torch.inference_mode():
            outputs = torch.cat([self._run(self._model, tensors) for tensors in stretches])
            # In float64 as in the audit: float32's functions have another last digit where vector code ends, so by the row's place.
            found: Columns = self._served.answers(outputs.double())
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


def once(model: Callable[..., Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    """The outputs of a task that has no way of its own to run its model."""
    return model(*tensors)


def parse_body(item: Mapping[str, Any], limit: int) -> dict[str, Any] | None:
    """The JSON object of one request; None if it came without a body, as a health probe does.

    Args:
        item: The request as TorchServe gives it.
        limit: Bytes of a body that are parsed.

    Raises:
        PredictionException: There is a body that is no JSON object (400), or too long a one (413), or it came as a form (415).
        RecursionError: The body is nested too deep.
    """
    if "body" not in item:
        msg = "the body came as a form; send the header Content-Type: application/json"
        raise PredictionException(msg, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    body = item["body"]
    if isinstance(body, str | bytes | bytearray):
        if not body:
            return None
        check_size(len(body), limit, "bytes", "maxBytes")
        try:
            body = json.loads(body)
        except ValueError as error:
            msg = f"the body is no JSON: {error}; send {BODY_EXAMPLE}"
            raise PredictionException(msg, HTTPStatus.BAD_REQUEST) from None
    if not isinstance(body, dict):
        msg = f"the body is a JSON {type(body).__name__}, not an object; send {BODY_EXAMPLE}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    return body


def check_size(sent: int, limit: int, unit: str, setting: str) -> None:
    """Bounds what is worked on.

    Raises:
        PredictionException: It is too much (413).
    """
    if sent > limit:
        msg = (
            f"the request has {sent:,} {unit}, and at most {limit:,} are answered at once; send it in parts, or raise "
            f"spec.serving.perRequest.{setting} of the MLModel (others then wait longer while such a request is answered)"
        )
        raise PredictionException(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def expect_list(value: Any, name: str) -> list[Any]:
    """`value` if it is a list with something in it.

    Raises:
        PredictionException: It is not (400).
    """
    if not isinstance(value, list) or not value:
        msg = f"{name} must be a list of one or more records, got {quoted(value)}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    return value


def v2_records(inputs: Any, names: Sequence[str], limit: int) -> list[Record]:
    """Records of an Open Inference Protocol (v2) request.

    Args:
        inputs: Its tensors: one a column, of shape ``[n]`` or ``[n, 1]``, or a single one of shape ``[n, columns]``.
        names: The columns, in schema order.
        limit: Records at most.

    Raises:
        PredictionException: They are of neither form (400), or too many (413).
    """
    columns: dict[str, list[Any]] = {}
    for tensor in expect_list(inputs, "inputs"):
        name, rows, width, data = v2_tensor(tensor)
        check_size(rows, limit, "records", "maxRecords")
        if len(data) != rows * width:
            msg = f"input {name:.80}: shape {quoted(tensor['shape'])} does not fit its data, which has {len(data):,} values"
            raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
        if width == len(names) and len(inputs) == 1 and len(tensor["shape"]) > 1:
            return [data[i : i + width] for i in range(0, len(data), width)]
        if width != 1:
            msg = (
                f"input {name:.80}: shape {quoted(tensor['shape'])} is neither [n] or [n, 1], of one of several columns, "
                f"nor [n, {len(names)}] of a single input with all of them"
            )
            raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
        if name in columns:
            msg = f"inputs has {name:.80} twice"
            raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
        columns[name] = data
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        msg = f"inputs are columns of different lengths: {quoted(lengths)}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def v2_tensor(tensor: Any) -> tuple[str, int, int, list[Any]]:
    """Name, rows, values a row, and values in row-major order of one tensor of a v2 request.

    Sizes are as large as the client says; whoever multiplies them bounds them first.

    Raises:
        PredictionException: It is none (400).
    """
    if not isinstance(tensor, dict) or not tensor.keys() >= {"name", "shape", "datatype", "data"}:
        msg = "each of inputs needs name, shape, datatype and data (Open Inference Protocol)"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    name, shape, datatype, data = (tensor[field] for field in ("name", "shape", "datatype", "data"))
    if not isinstance(name, str):
        msg = f"name of an input must be a string, got {quoted(name)}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    if (
        not isinstance(shape, list)
        or len(shape) not in {1, 2}
        or not all(type(size) is int and 0 < size < LARGEST_SIZE for size in shape)
    ):
        msg = f"input {name:.80}: shape must be one or two whole numbers above 0, got {quoted(shape)}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        msg = f"input {name:.80}: datatype must be one of {', '.join(sorted(DATATYPES))}, got {quoted(datatype)}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    if not isinstance(data, list):
        msg = f"input {name:.80}: data must be a list, got {quoted(data)}"
        raise PredictionException(msg, HTTPStatus.BAD_REQUEST)
    if all(type(row) is list for row in data):
        data = [value for row in data for value in row]
    return name, shape[0], shape[1] if len(shape) > 1 else 1, data


def quoted(value: Any) -> str:
    """A value for a message, which stays short whatever was sent."""
    return QUOTE.repr(value)


def listed(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


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
