"""mlhandlers.records, loaded from a real archive and driven with TorchServe's own context."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ts.context import Context, RequestProcessor
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.metrics.metric_type_enum import MetricTypes
from unit import serving_model as small

from mlhandlers import records as handling
from mljobs import cpu, package
from mlplatform import contract

pytestmark = [
    # TorchServe loads TorchScript.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    # TorchServe leaves these files open.
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

Loaded = tuple[Any, Context]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("archive")
    return package.load(small.archive(folder), folder / "unpacked")


def ask(loaded: Loaded, *bodies: Any) -> list[tuple[int, dict[str, Any]]]:
    """Status and body of each of a batch of requests."""
    handler, context = loaded
    context.request_processor = [RequestProcessor({}) for _ in bodies]
    answers = handler.handle([{"body": body} for body in bodies], context)
    assert all(context.get_response_content_type(i) == "application/json" for i in range(len(bodies)))
    return [(context.get_response_status(i)[0], json.loads(answer)) for i, answer in enumerate(answers)]


@dataclass(frozen=True, kw_only=True)
class Predicts:
    reason: str
    body: Any
    record: dict[str, Any] | list[Any]


PREDICTIONS = [
    Predicts(reason="an object of columns is the plain case", body={"features": small.RECORD}, record=small.RECORD),
    Predicts(reason="a list is read in schema order", body={"features": [39, "pilot", 40]}, record=small.RECORD),
    Predicts(
        reason="a column that the object lacks is missing, not an error",
        body={"features": {"age": 39}},
        record=[39, None, None],
    ),
    Predicts(
        reason="a category that training never saw is answered",
        body={"features": [39, "astronaut", 40]},
        record=[39, "astronaut", 40],
    ),
    Predicts(
        reason="numbers in quotes are numbers, as CSV clients send them",
        body={"features": ["39", "pilot", "40.0"]},
        record=small.RECORD,
    ),
    Predicts(
        reason="the version that answers may be named",
        body={"features": small.RECORD, "model_version": small.VERSION},
        record=small.RECORD,
    ),
    Predicts(reason="null for the version asks for none", body={"features": small.RECORD, "model_version": None},
             record=small.RECORD),
    Predicts(
        reason="bytes are parsed, because TorchServe parses application/json only",
        body=json.dumps({"features": small.RECORD}).encode(),
        record=small.RECORD,
    ),
    Predicts(reason="text is parsed likewise", body=json.dumps({"features": small.RECORD}), record=small.RECORD),
]  # fmt: skip


@pytest.mark.parametrize("case", PREDICTIONS, ids=lambda case: case.reason)
def test_a_record_is_predicted_as_the_model_does(loaded: Loaded, case: Predicts) -> None:
    ((status, answer),) = ask(loaded, case.body)
    positive = small.probability(case.record)
    assert status == 200, case.reason
    assert answer["prediction"] == (">50K" if positive >= 0.5 else "<=50K"), case.reason
    assert answer["confidence"] == pytest.approx(max(positive, 1 - positive), abs=1e-5), case.reason
    assert answer["latency_ms"] > 0, case.reason
    assert answer["model_version"] == small.VERSION, case.reason
    assert set(answer) == {"prediction", "confidence", "latency_ms", "model_version"}, case.reason


@dataclass(frozen=True, kw_only=True)
class Refused:
    reason: str
    body: Any
    status: int
    names: list[str] = field(default_factory=list)


REFUSALS = [
    Refused(reason="no text where a number is needed: field and value are named",
            body={"features": {"age": "old"}}, status=400, names=["age", "'old'", "null"]),
    Refused(reason="a column that the schema lacks, with the ones it has",
            body={"features": {"aeg": 39}}, status=400, names=["aeg", "age, job, hours"]),
    Refused(reason="too few values, with their names in order",
            body={"features": [39]}, status=400, names=["1 values", "expected 3", "age, job, hours"]),
    Refused(reason="a nested value would pass for an unknown category",
            body={"features": {"job": ["pilot"]}}, status=400, names=["job", "['pilot']"]),
    Refused(reason="a record that is neither list nor object",
            body={"features": 39}, status=400, names=["record 0", "list of values or an object"]),
    Refused(reason="an empty object says what to send",
            body={}, status=400, names=["features", "instances", "inputs", "age, job, hours"]),
    Refused(reason="a JSON list is no request", body=[1], status=400, names=["list", "not an object"]),
    Refused(reason="JSON that ends early", body=b'{"features": ', status=400, names=["no JSON", "column 14"]),
    Refused(reason="bytes that are no text", body=b"\xff\xfe", status=400, names=["no JSON"]),
    Refused(reason="another version: say which answers and how to reach the other",
            body={"features": small.RECORD, "model_version": "adult-income-00000000"}, status=409,
            names=[small.VERSION, f"{contract.HEADER_VERSION}: adult-income-00000000"]),
    Refused(reason="no instances", body={"instances": []}, status=400, names=["instances", "one or more"]),
    Refused(reason="one bad instance fails its own request, by its number",
            body={"instances": [small.RECORD, {"age": "old"}]}, status=400, names=["record 1", "age"]),
    Refused(reason="v2 tensors need a shape", body={"inputs": [{"name": "age", "data": [39]}]}, status=400,
            names=["shape"]),
    Refused(reason="v2 shape and data disagree",
            body={"inputs": [{"name": "age", "shape": [2], "datatype": "FP32", "data": [39]}]}, status=400,
            names=["age", "[2]", "has 1 values"]),
    Refused(reason="v2 columns of different lengths",
            body={"inputs": [{"name": "age", "shape": [2], "datatype": "FP32", "data": [39, 40]},
                             {"name": "hours", "shape": [1], "datatype": "FP32", "data": [39]}]},
            status=400, names=["different lengths", "'age': 2", "'hours': 1"]),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.reason)
def test_a_mistake_is_refused_with_its_cause(loaded: Loaded, case: Refused) -> None:
    ((status, answer),) = ask(loaded, case.body)
    assert status == case.status, case.reason
    assert answer["code"] == case.status, case.reason
    assert [name for name in case.names if name not in answer["message"]] == [], case.reason


def test_each_request_of_a_batch_gets_its_own_answer(loaded: Loaded) -> None:
    other = {"age": 71, "job": "cook", "hours": 12}
    alone = [ask(loaded, {"features": record})[0][1] for record in (small.RECORD, other)]
    bad = [{"features": {"age": "old"}}, {"features": [1]}, b"{", {"features": other, "model_version": "v0"}]
    batch = [bad[0], {"features": small.RECORD}, bad[1], bad[2], {"instances": [other, small.RECORD]}, bad[3], b"",
             {"features": other}]  # fmt: skip
    answers = ask(loaded, *batch)
    assert [status for status, _ in answers] == [400, 200, 400, 400, 200, 409, 200, 200]
    for answer, lone in ((answers[1][1], alone[0]), (answers[7][1], alone[1])):
        assert answer["prediction"] == lone["prediction"]
        assert answer["confidence"] == pytest.approx(lone["confidence"], abs=1e-5)
    confidences = [entry["confidence"] for entry in answers[4][1]["predictions"]]
    assert confidences == pytest.approx([alone[1]["confidence"], alone[0]["confidence"]], abs=1e-5)


def v2(name: str = "age", shape: str = "[1]", data: str = "[39]", more: str = "") -> str:
    """The JSON text of a v2 request with one tensor."""
    return f'{{"inputs": [{{"name": "{name}", "shape": {shape}, "datatype": "FP32", "data": {data}}}]{more}}}'


def nested(depth: int) -> list[Any]:
    value: list[Any] = [39]
    for _ in range(depth - 1):
        value = [value]
    return value


@dataclass(frozen=True, kw_only=True)
class Hostile:
    reason: str
    body: Any
    says: str
    status: int = 400


HOSTILE = [
    Hostile(reason="an integer that no float can hold", body=f'{{"features": {{"age": 1{"0" * 400}}}}}',
            says="null for a value that is missing"),
    Hostile(reason="half a surrogate pair as a column", body=r'{"features": {"\ud800": 1}}', says="unknown column"),
    Hostile(reason="half a surrogate pair as the version", body=r'{"features": {}, "model_version": "\ud800"}',
            says="was asked for", status=409),
    Hostile(reason="NaN as v2's id", body=v2(more=', "id": NaN'), says="id must be a string"),
    Hostile(reason="an object as v2's id", body=v2(more=', "id": {}'), says="id must be a string"),
    Hostile(reason="an infinite v2 shape", body=v2(shape="[1e999]"), says="one or two whole numbers above 0, got [inf]"),
    Hostile(reason="a v2 shape whose product takes seconds", body=v2(shape=f"[{'9' * 300}{f', {9:0<4000}' * 200}]"),
            says="one or two whole numbers above 0"),
    Hostile(reason="a v2 shape that is true for its product", body=v2(shape="[-2, -1]", data="[39, 40]"),
            says="one or two whole numbers above 0, got [-2, -1]"),
    Hostile(reason="a v2 shape without rows", body=v2(shape="[0]", data="[]"), says="whole numbers above 0, got [0]"),
    Hostile(reason="a v2 shape of fractions", body=v2(shape="[1.5]"), says="whole numbers above 0, got [1.5]"),
    Hostile(reason="a v2 shape in words", body=v2(shape='"1"'), says="whole numbers above 0, got '1'"),
    Hostile(reason="a v2 shape of a thousand million rows", body=v2(shape="[1000000000]"), status=413,
            says="1,000,000,000 records, and at most 1,000"),
    Hostile(reason="a v2 shape with a number that is too long to be written", body=v2(shape=f"[1, {'9' * 4300}]"),
            says="whole numbers above 0"),
    Hostile(reason="a v2 column of pairs", body=v2(shape="[1, 2]", data="[39, 40]"), says="neither [n] or [n, 1]"),
    Hostile(reason="a v2 input without a name", body=v2().replace('"age"', "[]"), says="name of an input"),
    Hostile(reason="a v2 datatype that there is not", body=v2().replace("FP32", "FLOAT"), says="datatype must be one of"),
    Hostile(reason="v2 data that is no list", body=v2(data='"39"'), says="data must be a list"),
    Hostile(reason="a v2 column that comes twice", body=v2(more="").replace("}]", "}, " + v2()[12:-2] + "]"),
            says="inputs has age twice"),
    Hostile(reason="v2 data nested 600 deep", body=v2(data=json.dumps(nested(600))), says="column age must be a number"),
    Hostile(reason="a value nested too deep to be quoted", body={"features": {"age": nested(5000)}},
            says="column age must be a number"),
    Hostile(reason="a number of more digits than Python reads", body=f'{{"features": {{"age": {"9" * 5000}}}}}',
            says="4300 digits"),
    Hostile(reason="a v2 id that would fill the answer", body=v2(more=f', "id": "{"i" * 1000}"'), says="1,000 characters"),
    Hostile(reason="more records than are answered at once", body={"instances": [small.RECORD] * 1001}, status=413,
            says="1,001 records, and at most 1,000 are answered at once; send it in parts, or raise spec.serving.perRequest.maxRecords"),
    Hostile(reason="more bytes than are parsed", body=b"[" * (1 << 20 | 1), status=413,
            says="1,048,577 bytes, and at most 1,048,576 are answered at once; send it in parts, or raise spec.serving.perRequest.maxBytes"),
    Hostile(reason="a body of brackets", body="[" * 100_000, says="nested too deep"),
]  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.reason)
def test_one_bad_record_fails_none_of_its_neighbours(loaded: Loaded, case: Hostile) -> None:
    sound = {"features": small.RECORD}
    answers = ask(loaded, sound, case.body, sound)
    assert [status for status, _ in answers] == [200, case.status, 200], case.reason
    assert answers[1][1]["code"] == case.status, case.reason
    assert case.says in answers[1][1]["message"], case.reason
    assert len(answers[1][1]["message"]) < 500, case.reason


LONG = [
    ("text where a number is needed", {"features": {"age": "x" * 500_000}}),
    ("an unknown column", {"features": {"x" * 500_000: 1}}),
    ("many unknown columns", {"features": dict.fromkeys(map(str, range(50_000)))}),
    ("a version", {"features": {}, "model_version": "x" * 500_000}),
    ("a record", {"instances": "x" * 500_000}),
    ("columns of different lengths", {"inputs": [
        {"name": "x" * 50_000 + str(i), "datatype": "FP32", "shape": [i], "data": [0] * i} for i in range(1, 9)
    ]}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "body"), LONG, ids=[reason for reason, _ in LONG])
def test_a_message_does_not_grow_with_what_was_sent(loaded: Loaded, reason: str, body: Any) -> None:
    ((status, answer),) = ask(loaded, json.dumps(body).encode())
    assert status in {400, 409}, reason
    assert len(json.dumps(answer)) < 2500, reason


def test_a_request_of_several_stretches_is_answered_as_its_records_are(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, _ = loaded
    monkeypatch.setattr(handler, "_stretch", 3)
    runs: list[int] = []
    model = vars(handler)["_model"]

    def counted(*tensors: Any) -> Any:
        runs.append(len(tensors[0]))
        return model(*tensors)

    monkeypatch.setattr(handler, "_model", counted)
    records = [{**small.RECORD, "age": age} for age in range(20, 28)]
    sound = {"features": small.RECORD}
    answers = ask(loaded, sound, sound, {"instances": records}, sound, {"instances": [*records, {"age": "old"}]})
    assert runs == [2, 3, 3, 2, 1], "what is small is run together, and what is large in parts"
    assert [status for status, _ in answers] == [200, 200, 200, 200, 400]
    assert "record 8: column age" in answers[4][1]["message"]
    for record, answer in zip(records, answers[2][1]["predictions"], strict=True):
        positive = small.probability(record)
        assert answer["confidence"] == pytest.approx(max(positive, 1 - positive), abs=1e-5)


def test_v2s_id_comes_back_as_it_was_sent(loaded: Loaded) -> None:
    sound = {"features": small.RECORD}
    answers = ask(loaded, sound, v2(more=r', "id": "\ud800"'))
    assert [status for status, _ in answers] == [200, 200]
    assert answers[1][1]["id"] == "\ud800", "half a surrogate pair is a JSON string, too"


@pytest.mark.parametrize("step", ["_read", "_transform"])
def test_an_unforeseen_error_is_answered_to_the_request_that_met_it(
    loaded: Loaded, step: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handler, _ = loaded
    inner = getattr(handler, step)

    def fails_at_99(*arguments: Any) -> Any:
        if "'age': 99" in repr(arguments):
            raise ZeroDivisionError("nobody thought of 99")
        return inner(*arguments)

    monkeypatch.setattr(handler, step, fails_at_99)
    answers = ask(loaded, {"features": small.RECORD}, {"features": {"age": 99}}, {"features": small.RECORD})
    assert [status for status, _ in answers] == [200, 500, 200]
    assert "log of the serving pod" in answers[1][1]["message"]
    assert "nobody thought of 99" in caplog.text


def test_a_batch_of_nothing_but_mistakes_is_answered(loaded: Loaded) -> None:
    assert [status for status, _ in ask(loaded, {}, {"features": {"age": "old"}})] == [400, 400]


def test_an_empty_body_is_a_health_probe_that_runs_the_model(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    ((status, answer),) = ask(loaded, b"")
    assert (status, answer["status"], answer["model_version"]) == (200, "ok", small.VERSION)
    handler, _ = loaded

    def broken(*_tensors: Any) -> None:
        raise RuntimeError("weights are gone")

    monkeypatch.setattr(handler, "_model", broken)
    with pytest.raises(RuntimeError, match="weights are gone"):
        ask(loaded, b"")


def test_a_form_is_refused_with_the_header_to_send(loaded: Loaded) -> None:
    handler, context = loaded
    context.request_processor = [RequestProcessor({})]
    (answer,) = handler.handle([{"features": "39"}], context)
    assert context.get_response_status(0)[0] == 415
    assert "Content-Type: application/json" in json.loads(answer)["message"]


V2 = [
    ("columns by name", [{"name": "age", "shape": [2], "datatype": "FP32", "data": [39, 71]},
                         {"name": "job", "shape": [2, 1], "datatype": "BYTES", "data": [["pilot"], ["cook"]]},
                         {"name": "hours", "shape": [2], "datatype": "FP32", "data": [40, 12]}]),
    ("one tensor of rows", [{"name": "input-0", "shape": [2, 3], "datatype": "BYTES",
                             "data": [39, "pilot", 40, 71, "cook", 12]}]),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "inputs"), V2, ids=[reason for reason, _ in V2])
def test_the_open_inference_protocol_answers_in_tensors(loaded: Loaded, reason: str, inputs: list[Any]) -> None:
    ((status, answer),) = ask(loaded, {"id": "q7", "inputs": inputs})
    expected = [small.probability(small.RECORD), small.probability([71, "cook", 12])]
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert (status, answer["id"], answer["model_name"], answer["model_version"]) == (
        200, "q7", small.MODEL, small.VERSION,
    ), reason  # fmt: skip
    assert outputs["confidence"]["shape"] == [2], reason
    assert outputs["confidence"]["data"] == pytest.approx([max(p, 1 - p) for p in expected], abs=1e-5), reason
    assert outputs["prediction"]["data"] == [">50K" if p >= 0.5 else "<=50K" for p in expected], reason


def test_each_batch_is_one_observation_of_the_histogram(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="ts.metrics.caching_metric"):
        ask(loaded, {"features": small.RECORD}, {"features": small.RECORD})
    (line,) = [record.message for record in caplog.records if handling.LATENCY_METRIC in record.message]
    assert f"model_name:{small.MODEL},model_version:{small.VERSION}" in line
    assert "type:HISTOGRAM" in line


def test_the_metric_is_the_one_that_the_server_declares() -> None:
    cache = MetricsCacheYamlImpl("handlers/mlhandlers/serving/metrics.yaml")
    cache.initialize_cache()
    assert list(cache.cache) == [MetricTypes.HISTOGRAM]
    declared = cache.get_metric(handling.LATENCY_METRIC, MetricTypes.HISTOGRAM)
    assert handling.latency_metric(cache) is declared
    assert declared.dimension_names[:2] == ["model_name", "model_version"]


def test_what_the_handler_shares_is_the_contracts() -> None:
    assert handling.HEADER_VERSION == contract.HEADER_VERSION
    assert (handling.ENV_MAX_RECORDS, handling.ENV_MAX_BYTES) == (contract.ENV_MAX_RECORDS, contract.ENV_MAX_BYTES)


def test_the_user_may_bound_requests_otherwise(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    _, context = loaded
    monkeypatch.setenv(contract.ENV_MAX_RECORDS, "2")
    monkeypatch.setenv(contract.ENV_MAX_BYTES, "2000")
    handler = handling.RecordsHandler()
    handler.initialize(context)
    bodies = [{"instances": [small.RECORD] * 2}, {"instances": [small.RECORD] * 3}, {"features": {"job": "x" * 2000}}]
    answers = ask((handler, context), *(json.dumps(body).encode() for body in bodies))
    assert [status for status, _ in answers] == [200, 413, 413]
    assert "3 records, and at most 2" in answers[1][1]["message"]
    assert "bytes, and at most 2,000" in answers[2][1]["message"]


def test_an_archive_of_another_format_is_not_loaded(loaded: Loaded, tmp_path: Path) -> None:
    _, context = loaded
    source = Path(context.system_properties["model_dir"])
    for file in source.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor.json").write_text(json.dumps({**small.CONFIG, "format": 2}))
    other = Context(
        small.MODEL, str(tmp_path), context.manifest, 1, None, "", True, context.metrics, context.model_yaml_config
    )
    with pytest.raises(RuntimeError, match=r"format 2.*package the model again"):
        handling.RecordsHandler().initialize(other)


THREADS = [
    ("half a CPU still needs a thread", 0.5, 1),
    ("a thread beyond the quota would stall the rest", 1.9, 1),
    ("whole CPUs are used", 4.0, 4),
]


@pytest.mark.parametrize(("reason", "cpus", "threads"), THREADS, ids=[reason for reason, *_ in THREADS])
def test_threads_follow_the_cpu_limit(reason: str, cpus: float, threads: int) -> None:
    assert handling.threads_of(cpus) == threads, reason


QUOTAS = [
    ("version 2 without a limit", {"cpu.max": "max 100000\n"}, None),
    ("version 2 with one CPU", {"cpu.max": "100000 100000\n"}, 1.0),
    ("version 2 with half a CPU", {"cpu.max": "50000 100000\n"}, 0.5),
    ("version 1 without a limit", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ("version 1 with half a CPU", {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
    ("no cgroup to be seen", {}, None),
]


@pytest.mark.parametrize(("reason", "files", "cpus"), QUOTAS, ids=[reason for reason, *_ in QUOTAS])
def test_the_cpu_limit_is_the_cgroups(reason: str, files: dict[str, str], cpus: float | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    available = float(len(os.sched_getaffinity(0)))
    assert handling.cpu_limit(tmp_path) == (available if cpus is None else min(cpus, available)), reason


FRACTIONS = [
    ("version 2 with one and a half CPUs", {"cpu.max": "150000 100000\n"}, 1),
    ("version 2 with nearly four CPUs", {"cpu.max": "399999 100000\n"}, 3),
    ("version 1 with two and a half CPUs", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    ("more CPUs than the process may run on", {"cpu.max": "6400000 100000\n"}, 16),
    *((reason, files, 16 if cpus is None else 1) for reason, files, cpus in QUOTAS),
]


@pytest.mark.parametrize(("reason", "files", "threads"), FRACTIONS, ids=[reason for reason, *_ in FRACTIONS])
def test_handlers_and_jobs_agree_on_threads(
    reason: str, files: dict[str, str], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two travel separately, so each has its own code for it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert handling.threads_of(handling.cpu_limit(tmp_path)) == threads, reason
    assert cpu.cpu_limit(tmp_path) == threads, reason


def test_an_answer_that_json_has_no_word_for_is_a_fault_of_that_request_alone(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, _ = loaded
    served = vars(handler)["_served"]
    inner = served.answers

    def of_39(outputs: Any) -> Any:
        found = inner(outputs)
        kind, values = found["confidence"]
        return {**found, "confidence": (kind, [float("nan"), *values[1:]])}

    monkeypatch.setattr(served, "answers", of_39)
    sound = {"features": small.RECORD}
    assert [status for status, _ in ask(loaded, sound, sound)] == [500, 200]
