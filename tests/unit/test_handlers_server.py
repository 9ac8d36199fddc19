"""mlhandlers.server: a real TorchServe on loopback, from the start of the process to its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from ports import free_port
from unit import serving_model as small

from mlhandlers import server

pytestmark = [
    # The archive's model is TorchScript.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    # TorchServe leaves these files open.
    pytest.mark.filterwarnings("ignore:.*(version.txt|metrics.yaml):pytest.PytestUnraisableExceptionWarning"),
]

START_SECONDS = 60.0
PREDICT = f"/predictions/{small.MODEL}"
RUNTIME = Path(__file__).parents[2] / "images/serving/servingruntime.yaml"
PROBES: dict[str, Any] = {
    key.removesuffix("Probe"): value
    for key, value in yaml.safe_load(RUNTIME.read_text())["spec"]["containers"][0].items()
    if key.endswith("Probe")
}


@dataclass(frozen=True)
class Running:
    """A server process and its ports."""

    process: subprocess.Popen[bytes]
    inference: int
    management: int
    metrics: int
    health: int
    log: Path

    def ask(
        self, method: str, path: str, body: Any = None, *, host: str = "127.0.0.1", port: int = 0, timeout: float = 10
    ) -> tuple[int, Any]:
        """Status and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection(host, port or self.inference, timeout=timeout)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            content = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(content) if is_json else content.decode()
        finally:
            connection.close()

    def healthy(self, timeout: float = 10) -> bool:
        """Whether a prediction is answered."""
        try:
            return self.ask("GET", PREDICT, timeout=timeout)[0] == http.HTTPStatus.OK
        except OSError:
            return False

    def probe(self, name: str) -> bool:
        """What the kubelet sees."""
        probe = PROBES[name]
        port = {8083: self.health, 8080: self.inference}[probe["httpGet"]["port"]]
        try:
            return self.ask("GET", probe["httpGet"]["path"], port=port, timeout=probe["timeoutSeconds"])[0] == 200
        except OSError:
            return False

    def worker(self) -> int:
        """Process id of the Python worker."""
        (jvm,) = children(self.process.pid)
        (worker,) = children(jvm)
        return worker


def children(pid: int) -> list[int]:
    """Process ids of the children of `pid`, of all its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Polls until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    small.archive(folder)
    return folder


@pytest.fixture
def running(model_dir: Path, tmp_path: Path) -> Iterator[Running]:
    """The platform's own settings with other ports."""
    ports = [free_port() for _ in range(6)]
    config = (server.SERVING / "config.properties").read_text()
    for address, port in zip(("0.0.0.0:8080", "127.0.0.1:8081", "0.0.0.0:8082"), ports[:3], strict=True):
        assert f"http://{address}" in config
        config = config.replace(f"http://{address}", f"http://{address.partition(':')[0]}:{port}")
    config += f"\ngrpc_inference_port={ports[3]}\ngrpc_management_port={ports[4]}\n"
    (tmp_path / "config.properties").write_text(config)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "mlhandlers.server", "--model-dir", str(model_dir)]
    command += ["--config", str(tmp_path / "config.properties"), "--health-port", str(ports[5])]
    environment = {**os.environ, "PYTHONPATH": str(Path("handlers").resolve())}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    found = Running(process, *ports[:3], ports[5], log)
    try:
        wait_for(lambda: process.poll() is not None or found.probe("startup"), START_SECONDS, "the server is ready")
        assert process.poll() is None, log.read_text()
        yield found
    finally:
        if process.poll() is None:
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def test_it_answers_each_protocol_and_its_end_drops_no_request(running: Running) -> None:
    features = {"features": small.RECORD}
    status, answer = running.ask("POST", PREDICT, features)
    positive = small.probability(small.RECORD)
    assert status == 200
    assert answer["model_version"] == small.VERSION
    assert answer["confidence"] == pytest.approx(max(positive, 1 - positive), abs=1e-5)
    assert running.ask("POST", f"{PREDICT}/{small.VERSION}", features)[0] == 200
    status, answer = running.ask("POST", f"/v1/models/{small.MODEL}:predict", {"instances": [small.RECORD]})
    assert (status, len(answer["predictions"])) == (200, 1)
    inputs = [{"name": "age", "shape": [1], "datatype": "FP32", "data": [39]}]
    assert running.ask("POST", f"/v2/models/{small.MODEL}/infer", {"inputs": inputs})[0] == 200
    assert running.ask("GET", "/ping") == (200, {"status": "Healthy"})

    status, answer = running.ask("POST", PREDICT, {"features": {"age": "old"}})
    assert (status, answer["code"]) == (400, 400)
    assert "age" in answer["message"]
    assert running.ask("POST", PREDICT, {**features, "model_version": "v0"})[0] == 409
    refuses_what_is_too_large(running)

    metrics = running.ask("GET", "/metrics", port=running.metrics)[1]
    bucket = f'mlplatform_handler_seconds_bucket{{model_name="{small.MODEL}",model_version="{small.VERSION}"'
    assert bucket in metrics, "p99 needs a histogram"
    assert server.requests_seen(f"http://127.0.0.1:{running.metrics}/metrics") >= 7
    assert not (running.log.parent / "logs").exists(), "logs go to standard output: the root is read-only"

    for port, path in ((running.inference, "/ping"), (running.metrics, "/metrics"), (running.health, server.READY)):
        assert running.ask("GET", path, host="::1", port=port)[0] == 200, f"a pod without IPv4 is asked for {path}, too"
    with pytest.raises(ConnectionRefusedError):
        running.ask("GET", "/models", host="::1", port=running.management)

    drains_under_load(running)


def refuses_what_is_too_large(running: Running) -> None:
    """By the handler, which says how large it may be; the front end has a bound of its own, for what nobody should read."""
    status, answer = running.ask("POST", PREDICT, {"features": {"job": "x" * (1 << 20)}})
    assert status == 413
    assert "at most 1,048,576 are answered at once; send it in parts" in answer["message"]
    status, answer = running.ask("POST", f"/v1/models/{small.MODEL}:predict", {"instances": [small.RECORD] * 1001})
    assert status == 413
    assert "1,001 records" in answer["message"]
    assert running.ask("POST", PREDICT, {"features": {"job": "x" * (5 << 20)}})[0] == 413
    assert running.healthy()
    assert "json decoding" not in running.log.read_text(), "nobody parses a body before its size is looked at"


def drains_under_load(running: Running) -> None:
    """Clients that stop a second after the SIGTERM, as the mesh's do, see no error."""
    ended = threading.Event()
    statuses: list[int] = []
    errors: list[Exception] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.inference, timeout=10)
        body = json.dumps({"features": small.RECORD})
        while not ended.is_set():
            try:
                connection.request("POST", PREDICT, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)
                return
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    wait_for(lambda: len(statuses) > 50, 10, "requests flow")
    before = len(statuses)
    running.process.terminate()
    wait_for(lambda: len(statuses) > before + 50, 10, "requests flow after the SIGTERM")
    ended.set()
    for thread in clients:
        thread.join()
    assert errors == []
    assert set(statuses) == {200}
    assert running.process.wait(15) == 0, "an end that was asked for is no failure"


def test_a_hung_worker_is_replaced_within_a_minute_and_the_pod_is_not_restarted(running: Running) -> None:
    hung, begin = running.worker(), time.monotonic()
    os.kill(hung, signal.SIGSTOP)
    assert running.probe("liveness"), "the front end is alive"
    wait_for(lambda: not running.probe("readiness"), 15, "nobody is answered")
    lively = []
    while not running.probe("readiness"):  # Nobody else asks: these are what makes the front end notice.
        lively.append(running.probe("liveness"))
        assert time.monotonic() - begin < 60, "another worker answers within a minute"
        time.sleep(0.5)
    assert running.worker() != hung
    assert all(lively)


def test_overload_neither_restarts_a_pod_nor_takes_it_out(running: Running) -> None:
    """A queue that is always full: a third of the requests are refused, whoever sends them."""
    queue, ended = 1024, threading.Event()
    statuses: Counter[int] = Counter()

    async def client(session: aiohttp.ClientSession) -> None:
        url = f"http://127.0.0.1:{running.inference}{PREDICT}"
        while not ended.is_set():
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(url, json={"features": small.RECORD}) as response:
                    await response.read()
                    statuses[response.status] += 1

    async def clients() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(client(session) for _ in range(queue + 400)))

    def slowed() -> None:
        """The model takes three times as long: else the clients may be slower than it, and no queue is full."""
        worker = running.worker()
        while not ended.is_set():
            os.kill(worker, signal.SIGSTOP)
            ended.wait(0.2)
            os.kill(worker, signal.SIGCONT)
            ended.wait(0.1)

    # The clients as threads would wait for each other, and not for the server.
    threads = [threading.Thread(target=asyncio.run, args=(clients(),)), threading.Thread(target=slowed)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: statuses[503] > 1000, 60, "the queue is full")
        probes, refused = Counter[tuple[str, bool]](), statuses[503]
        until = time.monotonic() + 15
        while time.monotonic() < until:
            probes.update((name, running.probe(name)) for name in ("liveness", "readiness"))
        refused = statuses[503] - refused
    finally:  # or the worker would stay stopped, and the threads go on
        ended.set()
        for thread in threads:
            thread.join()
    assert refused > 0, "a probe that is a mere prediction would have been among these"
    assert {name for name, passed in probes if not passed} == set(), probes


def test_the_process_ends_when_the_server_does(running: Running) -> None:
    os.kill(running.worker(), signal.SIGKILL)
    wait_for(running.healthy, 30, "a worker that died is replaced")
    (jvm,) = children(running.process.pid)
    os.kill(jvm, signal.SIGKILL)
    assert running.process.wait(5) == 1
    assert "TorchServe ended by itself" in running.log.read_text()


@dataclass(frozen=True)
class Look:
    """A look at a server.

    Attributes:
        reason: Why it must end as it does.
        prediction: Status of the canned prediction, or what happened instead.
        answered: What the counter says, or what happened instead; it was at 5 before.
        ready: What the kubelet is told.
    """

    reason: str
    prediction: int | Exception
    answered: float | Exception
    ready: bool


LOOKS = [
    Look("it predicts", 200, 6.0, ready=True),
    Look("it predicts, though its metrics are late", 200, TimeoutError(), ready=True),
    Look("its queue is full, and it answers others", 503, 6.0, ready=True),
    Look("its queue is long, and it answers others", TimeoutError(), 6.0, ready=True),
    Look("its queue is full, and nobody is answered", 503, 5.0, ready=False),
    Look("it hangs", TimeoutError(), 5.0, ready=False),
    Look("nothing can be seen of it", TimeoutError(), TimeoutError(), ready=False),
    Look("it errs, however busy it is", 500, 6.0, ready=False),
    Look("it starts, and listens nowhere", ConnectionRefusedError(), 5.0, ready=False),
    Look("it was cut off", http.client.IncompleteRead(b""), 6.0, ready=False),
]


@pytest.mark.parametrize("case", LOOKS, ids=lambda case: case.reason)
def test_a_pod_is_ready_while_it_does_its_work(case: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(found: Any) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(server, "fetch", lambda _url, _seconds: (told(case.prediction), b""))
    monkeypatch.setattr(server, "requests_seen", lambda _url, _counter: told(case.answered))
    readiness = server.Readiness("", "")
    readiness._answered = 5.0  # noqa: SLF001  the look before
    assert readiness.look() is case.ready, case.reason
    monkeypatch.setattr(server, "fetch", lambda *_: pytest.fail("another prediction"))
    assert readiness.look() is case.ready, "whoever asks at once hears the same"


def test_the_probes_give_a_look_its_time() -> None:
    for name in ("startup", "readiness"):
        assert PROBES[name]["timeoutSeconds"] > server.PREDICTION_SECONDS + 1.0
        assert (PROBES[name]["httpGet"]["path"], PROBES[name]["httpGet"]["port"]) == (server.READY, server.HEALTH_PORT)


class FakeServer:
    """A server process that ends after so many looks at it."""

    def __init__(self, looks: float = float("inf")) -> None:
        self.looks = looks

    def poll(self) -> int | None:
        self.looks -= 1
        return None if self.looks >= 0 else 0


@dataclass(frozen=True)
class Draining:
    reason: str
    counts: list[float | Exception]
    """What the looks at the request counter find; the last goes on for ever."""
    least: int
    """How many looks there are at least."""
    limit: float = 30.0


DRAINS = [
    Draining("no new request for a while is the end", [5.0], least=2),
    Draining("a late answer is a busy server, not a quiet one", [5.0, TimeoutError("1 s"), 6.0, 7.0], least=4),
    Draining("nor is one that was cut off", [5.0, http.client.IncompleteRead(b""), 6.0, 7.0], least=4),
    Draining("a server that never says is waited for until the limit", [TimeoutError("1 s")], least=2, limit=0.3),
    Draining("a server that listens nowhere takes nothing", [ConnectionRefusedError()], least=1),
]


@pytest.mark.parametrize("case", DRAINS, ids=lambda case: case.reason)
def test_a_drain_ends_when_it_is_quiet(case: Draining, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def requests_seen(_url: str) -> float:
        nonlocal looks
        found = case.counts[min(looks, len(case.counts) - 1)]
        looks += 1
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(server, "requests_seen", requests_seen)
    drain = server.Drain(quiet=0.05, limit=case.limit, poll=0.01)
    begin = time.monotonic()
    server.wait_until_quiet("", drain, FakeServer())
    assert looks >= case.least, case.reason
    assert time.monotonic() - begin < 10, case.reason


def test_a_drain_ends_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def requests_seen(_url: str) -> float:
        raise TimeoutError

    monkeypatch.setattr(server, "requests_seen", requests_seen)
    ended = FakeServer(looks=3)
    server.wait_until_quiet("", server.Drain(limit=30, poll=0.01), ended)
    assert ended.looks == -1, "it is not looked at again"


def test_the_platforms_settings_win_over_the_models() -> None:
    merged = server.merge_config(
        "load_models=m=m.mar\nmanagement_address=http://0.0.0.0:8081",
        (server.SERVING / "config.properties").read_text(),
    )
    assert server.property_of(merged, "management_address") == "http://127.0.0.1:8081"
    assert server.property_of(merged, "load_models") == "m=m.mar"


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        server.main(["--model-dir", str(tmp_path)])
    assert "config.properties is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "value", "written"),
    [
        ("a path as it is", "/mnt/models/model-store", "/mnt/models/model-store"),
        ("Java reads properties as Latin-1", "/home/jörg/模", r"/home/j\u00f6rg/\u6a21"),
        ("and a backslash as an escape", "a\\b", r"a\\b"),
        ("a second line would be another setting", "a\nenable_model_api=true", r"a\nenable_model_api=true"),
    ],
)
def test_settings_as_java_reads_them(reason: str, value: str, written: str) -> None:
    assert server.properties({"model_store": value}) == f"model_store={written}\n", reason


def test_only_archives_of_the_model_are_loaded() -> None:
    assert server.located(Path("/mnt/models"))["allowed_urls"] == "file:///mnt/models/model-store/.*"
    assert Path(server.located(Path("served"))["metrics_config"]).is_absolute(), "TorchServe has a folder of its own"


@pytest.mark.parametrize(
    ("reason", "address"),
    [
        ("the network", "0.0.0.0:8080"),
        ("an address of the network", "192.0.2.1:8080"),
        ("a name may be any address", "localhost:8080"),
        ("TorchServe reads no IPv6", "[::1]:8080"),
        ("no port", "127.0.0.1"),
        ("whoever asks for a free port would not hear which", "127.0.0.1:0"),
        ("no such port", "127.0.0.1:65536"),
        ("a word", "127.0.0.1:http"),
    ],
)
def test_a_server_without_access_control_listens_on_loopback_only(
    reason: str, address: str, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        server.main(["--model-dir", str(model_dir), "--address", address])
    assert raised.value.code == 2, reason
    assert "write 127.0.0.1:PORT" in capsys.readouterr().err, reason


def test_a_port_that_is_taken_is_told_before_java_starts(
    model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "run", lambda *_: pytest.fail("it was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SystemExit) as raised:
            server.main(["--model-dir", str(model_dir), "--address", address])
    assert raised.value.code == 2
    assert capsys.readouterr().err == f"mlhandlers.server: {address} cannot be listened on: Address already in use\n"


COUNTERS = [
    ({"events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n"}, 2, "version 2 of control groups"),
    ({"control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"}, 1, "version 1"),
    ({"events": "low 0\n"}, 0, "a kernel that does not count"),
    ({"events": "what is this", "control": "oom_kill 4\n"}, 4, "a file that says something else"),
    ({}, 0, "no control groups"),
]


@pytest.mark.parametrize(("written", "wanted", "reason"), COUNTERS, ids=[case[-1] for case in COUNTERS])
def test_what_the_kernel_killed_is_counted(
    written: dict[str, str], wanted: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(server, "OOM_KILLS", (tmp_path / "events", tmp_path / "control"))
    assert server.oom_kills() == wanted, reason


@pytest.mark.parametrize("begun", [False, True])
def test_a_server_without_memory_ends_before_it_has_begun_and_not_later(
    *, begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counter, ready = tmp_path / "events", threading.Event()
    counter.write_text("oom_kill 7\n")
    monkeypatch.setattr(server, "OOM_KILLS", (counter,))
    monkeypatch.setattr(server, "STARVED_SECONDS", 0.05)
    with subprocess.Popen(["sleep", "60"]) as process:
        looking = threading.Thread(target=server.end_if_starved, args=(process, ready))
        looking.start()
        time.sleep(0.2)
        assert process.poll() is None, "what was killed before it began is none of its own"
        if begun:
            ready.set()
            looking.join(5)
        counter.write_text("oom_kill 8\n")
        looking.join(5)
        assert not looking.is_alive()
        if begun:
            assert process.poll() is None
            process.kill()
        process.wait(5)
    assert ("too little memory" in capsys.readouterr().err) is not begun
