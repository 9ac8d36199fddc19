"""Whatever is sent to mlhandlers.records: an answer, soon, of little memory, and none of it is the neighbours' concern."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ts.context import Context, RequestProcessor
from unit import serving_model as small

from mljobs import package

pytestmark = [
    # TorchServe loads TorchScript, and leaves files open.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    # A body that fails is shown, however long it is.
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

CPU_SECONDS = 5.0
"""Of the thread, not of the clock. A mebibyte of the worst JSON takes 0.6, and 2.3 where another thread has half of the core."""
MEMORY_FACTOR = 64
"""Bytes of objects a byte of a body: two brackets around something become a list of 88."""
MEMORY = 4 << 20
REFUSALS = {400, 409, 413}

names = st.sampled_from(["age", "job", "hours", "", "x", "features", "\\ud800", "y" * 3000])
words = st.sampled_from(
    ['"pilot"', '"39"', '""', '"\\ud800"', '"\\u0000"', f'"{"long " * 5000}"', f'"{"9" * 3000}"', '"1,2"']
)
numbers = st.one_of(
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.sampled_from(
        ["1e400", "-1e400", "1e-400", "9" * 400, "9" * 4300, "9" * 5000, f"0.{'1' * 5000}", "NaN", "-Infinity"]
    ),
)
leaves = st.one_of(words, numbers, st.sampled_from(["null", "true", "false", "[]", "{}"]))


def listed(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def keyed(items: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in items) + "}"


def containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, max_size=4).map(listed),
        st.lists(st.tuples(names, inner), max_size=4).map(keyed),
        st.tuples(inner, st.sampled_from([2, 30, 1001, 20_000])).map(lambda pair: listed([pair[0]] * min(pair[1], 10**6 // len(pair[0])))),
        st.tuples(inner, st.sampled_from([2, 30, 900, 5000])).map(lambda pair: "[" * pair[1] + pair[0] + "]" * pair[1]),
    )  # fmt: skip


values = st.recursive(leaves, containers, max_leaves=6)
records = st.one_of(
    values,
    st.lists(leaves, min_size=3, max_size=3).map(listed),
    st.lists(st.tuples(st.sampled_from(["age", "job", "hours"]), leaves), max_size=3).map(keyed),
)
sizes = st.one_of(
    st.integers(-2, 4).map(str), st.sampled_from(["1000000000", "1e300", "9" * 4000, "1.5", '"1"', "true"])
)
shapes = st.one_of(st.lists(sizes, max_size=3).map(listed), sizes.map(lambda size: listed([size] * 200)), values)
tensors = st.builds(
    lambda name, shape, kind, data: f'{{"name":"{name}","shape":{shape},"datatype":"{kind}","data":{data}}}',
    names, shapes, st.sampled_from(["FP32", "BYTES", "BOOL", "INT64", "FLOAT", ""]), st.one_of(st.lists(leaves, max_size=4).map(listed), values),
)  # fmt: skip
requests = st.one_of(
    records.map('{{"features":{}}}'.format),
    st.lists(records, max_size=4).map(lambda items: f'{{"instances":{listed(items)}}}'),
    values.map('{{"instances":{}}}'.format),
    st.lists(tensors, max_size=3).map(lambda items: f'{{"inputs":{listed(items)}}}'),
    st.tuples(tensors, values).map(lambda pair: f'{{"id":{pair[1]},"inputs":[{pair[0]}]}}'),
    values.map(lambda value: f'{{"model_version":{value},"features":{{}}}}'),
    values,
)
bodies = st.one_of(
    requests.map(str.encode),
    st.tuples(requests.map(str.encode), st.integers(0, 200), st.binary(max_size=3)).map(
        lambda cut: cut[0][: cut[1]] + cut[2]
    ),
    st.binary(max_size=200),
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Context]:
    folder: Path = tmp_path_factory.mktemp("archive")
    return package.load(small.archive(folder), folder / "unpacked")


def answers(loaded: tuple[Any, Context], *batch: bytes) -> list[tuple[int, bytes]]:
    handler, context = loaded
    context.request_processor = [RequestProcessor({}) for _ in batch]
    found = handler.handle([{"body": body} for body in batch], context)
    return [(context.get_response_status(i)[0], answer) for i, answer in enumerate(found)]


SOUND = json.dumps({"features": small.RECORD}).encode()
MEBIBYTE = 1 << 20


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=bodies)
@example(body=b"[" * (MEBIBYTE - 1))
@example(body=b'{"instances":[' + b"{}," * (MEBIBYTE // 3 - 10) + b"{}]}")
@example(body=b'{"inputs":[{"name":"age","datatype":"FP32","shape":[' + b"9" * 4000 + b'],"data":[]}]}')
@example(body=b'{"id":[' + (b"[" * 900 + b"]" * 900 + b",") * 580 + b"0]}")
@example(body=b'{"features":[' + b"[]," * (MEBIBYTE // 3 - 10) + b"[]]}")
@example(body=b'{"features":{"job":"' + b"x" * (MEBIBYTE - 30) + b'"}}')
@example(body=b'{"features":{"age":"' + b"1," * (MEBIBYTE // 2 - 20) + b'"}}')
@example(body=b'{"features":{"age":"' + b" " * (MEBIBYTE - 30) + b'x"}}')
@example(
    body=b'{"inputs":[{"name":"age","datatype":"FP32","shape":[1],"data":'
    + b"[" * 400
    + b"0," * 400_000
    + b"0"
    + b"]" * 400
    + b"}]}"
)
def test_whatever_is_sent_is_answered_soon_and_alone(loaded: tuple[Any, Context], body: bytes) -> None:
    begin = time.thread_time()
    answers(loaded, SOUND, body, SOUND)
    took = time.thread_time() - begin
    tracemalloc.start()  # Ten times as slow.
    before, (status, answer), after = answers(loaded, SOUND, body, SOUND)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (before[0], after[0]) == (200, 200)
    assert json.loads(before[1])["confidence"] == json.loads(after[1])["confidence"]
    said = json.loads(answer)
    if status != 200:
        assert status in REFUSALS, said
        assert said["message"], "every refusal says why"
        assert len(answer) < 4000, "what was sent does not come back"
    assert took < CPU_SECONDS
    assert peak < MEMORY + MEMORY_FACTOR * len(body)
