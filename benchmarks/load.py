"""A bounded stream of requests through the gateway, and what became of each.

Called by `local/demo.py` and by tests/e2e, which ask whether a promotion loses
a request: so every answer is counted, a failure is kept with its words, and
nothing is retried. Connections are kept alive, as real clients keep them; one
that the gateway cuts is a failure too.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

_TIMEOUT_SECONDS: Final = 10.0
_KEPT_FAILURES: Final = 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go.

    Attributes:
        gateway: Base URL of the gateway.
        host: Host name of the model, by which the gateway routes.
        authority: File with the authority that has signed its certificate, for a gateway by HTTPS.
    """

    gateway: str
    host: str
    authority: str = ""

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the gateway."""
        parts = urlsplit(self.gateway)
        if parts.scheme == "https":
            return _Secured(parts.hostname or "", parts.port or 443, self.host, self.authority)
        return http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_SECONDS)


class _Secured(http.client.HTTPConnection):
    """By TLS, with a certificate of the model's host, whatever the gateway's address."""

    def __init__(self, address: str, port: int, name: str, authority: str) -> None:
        super().__init__(address, port, timeout=_TIMEOUT_SECONDS)
        self._name, self._trust = name, ssl.create_default_context(cafile=authority or None)

    def connect(self) -> None:
        super().connect()
        self.sock = self._trust.wrap_socket(self.sock, server_hostname=self._name)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its status, its JSON (or text) and how long it took."""

    status: int
    body: Any
    seconds: float


def predict(
    connection: http.client.HTTPConnection, target: Target, record: Any, headers: dict[str, str] | None = None
) -> Answer:
    """Sends one `POST /predict` on a connection.

    Raises:
        OSError, http.client.HTTPException: There was no answer.
    """
    body = json.dumps({"features": record})
    start = time.perf_counter()
    connection.request(
        "POST", "/predict", body, {"Host": target.host, "Content-Type": "application/json", **(headers or {})}
    )
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    took = time.perf_counter() - start
    try:
        return Answer(response.status, json.loads(text), took)
    except ValueError:
        return Answer(response.status, text, took)


@dataclass
class Outcome:
    """What became of all requests.

    Attributes:
        by_version: Good answers by the version that gave them.
        seconds: Latency of every good answer.
        failures: The first failures, in words.
        failed: How many there were.
    """

    by_version: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    @property
    def total(self) -> int:
        """All requests."""
        return len(self.seconds) + self.failed

    def quantile(self, q: float) -> float:
        """Latency in seconds that the share `q` of the good answers did not exceed; 0 without any."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(q * len(ranked)))] if ranked else 0.0


class Load:
    """Threads that send records in turn, together at a steady rate, until stopped.

    Use it as a context manager; read `outcome` at any time.
    """

    def __init__(self, target: Target, records: Sequence[Any], *, per_second: float = 30.0, threads: int = 3) -> None:
        self._target = target
        self._records = records
        self._interval = threads / per_second
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self.outcome = Outcome()
        self._threads = [threading.Thread(target=self._work, args=(i, threads), daemon=True) for i in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int, seconds: float = 60.0) -> bool:
        """Waits until that many requests ended; False when they did not in time."""
        with self._answered:
            return self._answered.wait_for(lambda: self.outcome.total >= answers, seconds)

    def _work(self, first: int, stride: int) -> None:
        connection = self._target.connect()
        index = first
        # Threads start evenly spread over one interval, so that the rate has no bursts.
        due = time.monotonic() + self._interval * first / stride
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            record = self._records[index % len(self._records)]
            try:
                answer = predict(connection, self._target, record)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                answer = Answer(0, f"{type(error).__name__}: {error}", 0.0)
            self._note(answer)
            index += stride
            due = max(due + self._interval, time.monotonic() - self._interval)
        connection.close()

    def _note(self, answer: Answer) -> None:
        good = answer.status == http.client.OK and isinstance(answer.body, dict) and "prediction" in answer.body
        with self._answered:
            if good:
                self.outcome.by_version[str(answer.body.get("model_version", ""))] += 1
                self.outcome.seconds.append(answer.seconds)
            else:
                self.outcome.failed += 1
                if len(self.outcome.failures) < _KEPT_FAILURES:
                    self.outcome.failures.append(f"{answer.status or 'no answer'}: {str(answer.body)[:300]}")
            self._answered.notify_all()
