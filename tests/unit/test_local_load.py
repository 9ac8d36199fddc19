"""The load generator counts every answer and hides no failure: the demo's and the scenarios' verdicts rest on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.load import Load, Outcome, Target, predict

Reply = Callable[[int], tuple[int, bytes] | None]
"""From the number of the request to status and body; None cuts the connection."""

GOOD = json.dumps({"prediction": ">50K", "confidence": 0.9, "model_version": "m-1"}).encode()


class Gateway:
    """A server that answers as told and keeps what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.asked: list[dict[str, Any]] = []
        self.connections = 0
        self._lock = threading.Lock()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                gateway.connections += 1

            def log_message(self, *_args: object) -> None:
                """Keeps the test's output clean."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with gateway._lock:
                    number = len(gateway.asked)
                    gateway.asked.append({"host": self.headers["Host"], "path": self.path, "body": body})
                answer = reply(number)
                if answer is None:
                    self.close_connection = True
                    return
                status, data = answer
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def target(self) -> Target:
        return Target(f"http://127.0.0.1:{self.server.server_address[1]}", "m.default.models.local")


@contextmanager
def serving(reply: Reply) -> Iterator[Gateway]:
    gateway = Gateway(reply)
    thread = threading.Thread(target=gateway.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield gateway
    finally:
        gateway.server.shutdown()
        gateway.server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("reason", "bad", "words"),
    [
        ("an error of the gateway is a failure", (503, b"no healthy upstream"), "503: no healthy upstream"),
        ("a cut connection is a failure and is not retried", None, "no answer: RemoteDisconnected"),
        ("an answer without a prediction is a failure", (200, b"{}"), "200: {}"),
        ("an answer that is no JSON is a failure", (200, b"<html>"), "200: <html>"),
    ],
)
def test_a_failure_is_counted_once_and_kept_with_its_words(
    reason: str, bad: tuple[int, bytes] | None, words: str
) -> None:
    def reply(number: int) -> tuple[int, bytes] | None:
        return bad if number == 3 else (200, GOOD)

    with serving(reply) as gateway:
        with Load(gateway.target, [{"age": 39}], per_second=200, threads=2) as load:
            assert load.wait_for(10, 10), reason
        assert load.outcome.failed == 1, reason
        assert load.outcome.failures[0].startswith(words), reason
        assert load.outcome.by_version["m-1"] == load.outcome.total - 1 == len(gateway.asked) - 1, reason


def test_requests_take_the_records_in_turn_over_few_connections() -> None:
    with serving(lambda _: (200, GOOD)) as gateway:
        with Load(gateway.target, ["a", "b", "c"], per_second=300, threads=2) as load:
            assert load.wait_for(12, 10)
        assert {asked["body"]["features"] for asked in gateway.asked} == {"a", "b", "c"}
        assert {(asked["host"], asked["path"]) for asked in gateway.asked} == {("m.default.models.local", "/predict")}
        assert gateway.connections == 2, "one a thread, kept alive"


def test_waiting_for_answers_that_do_not_come_ends() -> None:
    with serving(lambda _: (200, GOOD)) as gateway, Load(gateway.target, [1], per_second=20, threads=1) as load:
        assert not load.wait_for(1000, 0.2)


def test_a_single_answer_has_status_body_and_time() -> None:
    with serving(lambda _: (400, b'{"code": 400}')) as gateway:
        connection = gateway.target.connect()
        answer = predict(connection, gateway.target, [1, 2], {"x-mlplatform-version": "m-1"})
        connection.close()
        assert (answer.status, answer.body) == (400, {"code": 400})
        assert answer.seconds > 0


def test_quantiles_are_of_good_answers() -> None:
    outcome = Outcome(seconds=[0.001 * n for n in range(1, 101)], failed=5)
    assert outcome.total == 105
    assert outcome.quantile(0.5) == pytest.approx(0.051)
    assert outcome.quantile(0.99) == pytest.approx(0.1)
    assert Outcome().quantile(0.99) == 0.0
