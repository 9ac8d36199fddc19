"""Runs TorchServe as a container's main process: `python -m mlhandlers.server`.

Called by images/serving/Dockerfile, and with ``--address`` by `mlplatform.standalone.serve`, which serves on loopback
without a cluster. The `torchserve` command forks the JVM away and ends, or waits but passes no signal on; a container
needs four things of its first process that neither way gives. It ends when the JVM ends, with its exit code. It turns
a SIGTERM into a drain, because TorchServe itself resets connections at once: it keeps answering until no request has
come for a while, which is when the mesh has heard that the pod is going. It tells the kubelet whether the pod does its
work, which overload is no reason to doubt. And it puts the platform's settings (those in the folder ``serving`` beside
this file) above those that came with the model.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import importlib.util
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mlhandlers import java

SERVING: Final = Path(__file__).parent / "serving"
"""The platform's own settings."""

LOOPBACK: Final = "127.0.0.1"

EXIT_USAGE: Final = 2

MAIN_CLASS: Final = "org.pytorch.serve.ModelServer"

JVM_OPTIONS: Final = (
    # The front end moves bytes; most of the pod's memory is for the worker's torch.
    "-XX:MaxRAMPercentage=25",
    # A JVM without memory answers slowly for a long time; a new one answers soon.
    "-XX:+ExitOnOutOfMemoryError",
    # netty and log4j look for a terminal or a JMX server otherwise.
    "-Djava.awt.headless=true",
    "-Dlog4j2.disableJmx=true",
)

HEALTH_PORT: Final = 8083
"""Where `Health` answers; images/serving/servingruntime.yaml names it in the probes."""

READY: Final = "/ready"

PREDICTION_SECONDS: Final = 4.0
"""How long the canned prediction may take; with the look at the counter it must fit the probe's `timeoutSeconds`."""

LOOK_SECONDS: Final = 1.0
"""An answer about readiness counts that long: whoever asks more often asks for no more predictions."""

ANSWERED: Final = re.compile(rb"^ts_inference_latency_microseconds\{[^}]*\} (\S+)$", re.MULTILINE)
"""It rises with every prediction that is answered."""

OOM_KILLS: Final = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Where the kernel counts what it has killed for want of memory: version 2 of control groups, and version 1."""

STARVED_SECONDS: Final = 0.5
"""Between two looks at it."""

REQUESTS: Final = re.compile(rb"^ts_inference_requests_total\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How a SIGTERM turns into an end.

    Attributes:
        quiet: Seconds without a new request after which the server may stop.
        limit: Seconds after which it stops although requests still come.
        stop: Seconds that the JVM gets for its own shutdown before it is killed.
        poll: Seconds between two looks at the request counter.
    """

    quiet: float = 3.0
    limit: float = 20.0
    stop: float = 3.0
    poll: float = 0.25


LOCAL_DRAIN: Final = Drain(quiet=1.0)
"""On a laptop, where no mesh has to hear of the end first and a person waits for it."""


def merge_config(model: str, platform: str) -> str:
    """Settings of both files; where they differ the platform's count.

    The model's say what to load, the platform's where to listen and how to log: an archive
    cannot open the management API to the network. Java keeps the last of equal keys.
    """
    return f"# Settings that came with the model:\n{model.rstrip()}\n# The platform's own:\n{platform}"


def properties(settings: Mapping[str, str]) -> str:
    """`settings` as Java reads them: backslashes doubled and all but ASCII escaped, as JSON does."""
    return "".join(f"{key}={json.dumps(value)[1:-1]}\n" for key, value in settings.items())


def located(model_dir: Path) -> dict[str, str]:
    """The settings that are paths on this machine."""
    store = model_dir.resolve() / "model-store"
    return {
        "model_store": str(store),
        # Only archives that came with the model.
        "allowed_urls": f"{store.as_uri()}/.*",
        "metrics_config": str(SERVING / "metrics.yaml"),
    }


def on_loopback(host: str, port: int) -> dict[str, str]:
    """The settings of a server that nobody but this machine reaches.

    Predictions are at the address asked for; the other four ports are whichever are free. TorchServe binds them a
    moment later, so another program may be faster: it then ends at once and says which it could not have.

    Raises:
        OSError: The address cannot be listened on.
    """
    with ExitStack() as held:
        held.enter_context(socket.create_server((host, port)))
        free = [held.enter_context(socket.create_server((LOOPBACK, 0))).getsockname()[1] for _ in range(4)]
    return {
        "inference_address": f"http://{host}:{port}",
        "management_address": f"http://{LOOPBACK}:{free[0]}",
        "metrics_address": f"http://{LOOPBACK}:{free[1]}",
        "grpc_inference_port": str(free[2]),
        "grpc_management_port": str(free[3]),
    }


def loopback_address(text: str) -> tuple[str, int]:
    """Host and port of ``--address``.

    Raises:
        argparse.ArgumentTypeError: It is something else than a port on loopback. Anything more would open a server
            without access control to the network; TorchServe reads no IPv6 address.
    """
    host, _, port = text.rpartition(":")
    try:
        known = ipaddress.IPv4Address(host).is_loopback and 0 < int(port) < 1 << 16
    except ValueError:
        known = False
    if not known:
        msg = f"{text!r} is no port on loopback; write {LOOPBACK}:PORT"
        raise argparse.ArgumentTypeError(msg)
    return host, int(port)


def command(java_path: str, config: Path, logging: Path, temporary: Path) -> list[str]:
    """The JVM's command line.

    Args:
        java_path: What starts a JVM.
        config: The merged config.properties.
        logging: log4j2.xml.
        temporary: A writable folder: unpacked archives and the worker's socket.

    Raises:
        ModuleNotFoundError: TorchServe is not installed.
    """
    found = importlib.util.find_spec("ts")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("torchserve is not installed; install mlplatform[handlers]", name="ts")
    home = Path(found.origin).parent
    return [
        java_path,
        *JVM_OPTIONS,
        f"-Dmodel_server_home={home.parent}",
        f"-Dlog4j.configurationFile={logging.resolve().as_uri()}",
        f"-Djava.io.tmpdir={temporary}",
        "-cp",
        f"{home}/frontend/*",
        MAIN_CLASS,
        "--python",
        sys.executable,
        "--ts-config-file",
        str(config),
        # Nothing is registered at run time, so there is no state to write down.
        "--no-config-snapshot",
    ]


def fetch(url: str, seconds: float) -> tuple[int, bytes]:
    """Status and body of a GET. A proxy of the environment is not asked.

    Raises:
        OSError: Nobody answers, or not within that time.
        http.client.HTTPException: The answer is no HTTP, or was cut off.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=seconds)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def requests_seen(metrics_url: str, counter: re.Pattern[bytes] = REQUESTS) -> float:
    """How many prediction requests the server has taken so far, or what another counter says.

    Raises:
        OSError: The metrics endpoint does not answer, or not within a second.
        http.client.HTTPException: Its answer is no HTTP, was cut off, or is an error.
    """
    status, body = fetch(metrics_url, 1.0)
    if status != HTTPStatus.OK:
        msg = f"status {status}"
        raise http.client.HTTPException(msg)
    return sum(float(value) for value in counter.findall(body))


class Readiness:
    """Whether the server does its work, as the kubelet's startup and readiness probes ask.

    A prediction on the canned sample tells. It waits in the queue of all others, so under overload none may be had: a
    server that goes on answering others is ready all the same, or overload would take every pod out of the traffic.

    Attributes:
        begun: Set from the first time on that it was ready.
    """

    def __init__(self, prediction_url: str, metrics_url: str) -> None:
        self.begun = threading.Event()
        self._prediction_url, self._metrics_url = prediction_url, metrics_url
        self._lock = threading.Lock()
        self._answered = 0.0
        self._looked_at, self._ready = -LOOK_SECONDS, False

    def look(self) -> bool:
        """The last answer if it is fresh, else a new one."""
        with self._lock:
            if time.monotonic() - self._looked_at >= LOOK_SECONDS:
                self._ready = self._look()
                self._looked_at = time.monotonic()
            if self._ready:
                self.begun.set()
            return self._ready

    def _look(self) -> bool:
        try:
            status, _ = fetch(self._prediction_url, PREDICTION_SECONDS)
        except TimeoutError:
            status = (
                HTTPStatus.SERVICE_UNAVAILABLE
            )  # The queue is longer than that; when it is full, this is said at once.
        except (OSError, http.client.HTTPException):
            return False
        before = self._answered
        try:
            self._answered = requests_seen(self._metrics_url, ANSWERED)
        except (OSError, http.client.HTTPException):
            return status == HTTPStatus.OK
        return status == HTTPStatus.OK or (status == HTTPStatus.SERVICE_UNAVAILABLE and self._answered > before)


def health_server(port: int, readiness: Readiness) -> http.server.ThreadingHTTPServer:
    """Answers ``/ready`` on every address of the pod, where the kubelet asks; whoever calls this runs and closes it.

    Raises:
        OSError: The port is taken.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            known = self.path == READY
            ready = known and readiness.look()
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE if known else HTTPStatus.NOT_FOUND
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """The kubelet's questions are no news."""

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    return Server(("", port), Handler)  # The kubelet asks from outside the pod, by its IPv4 or IPv6 address.


def wait_until_quiet(metrics_url: str, drain: Drain, server: subprocess.Popen[bytes]) -> None:
    """Returns when no request has come for `drain.quiet` or can come, at `drain.limit`, or when the server has ended."""
    begin = last_change = time.monotonic()
    seen: float | None = None
    while server.poll() is None and time.monotonic() - begin < drain.limit:
        try:
            now = requests_seen(metrics_url)
        except ConnectionRefusedError:
            # It listens nowhere: it was asked to end while it was starting.
            return
        except (OSError, http.client.HTTPException):
            # A server that is too busy to answer is not quiet; one that has ended is seen above.
            last_change = time.monotonic()
        else:
            if now != seen:
                seen, last_change = now, time.monotonic()
            elif time.monotonic() - last_change >= drain.quiet:
                return
        time.sleep(drain.poll)


def oom_kills() -> int:
    """How many processes of this container the kernel has killed for want of memory; 0 where it does not say."""
    for path in OOM_KILLS:
        try:
            counted = dict(line.split() for line in path.read_text().splitlines())
        except (OSError, ValueError):
            continue
        return int(counted.get("oom_kill", 0))
    return 0


def end_if_starved(server: subprocess.Popen[bytes], begun: threading.Event) -> None:
    """Ends a server of which something is killed for want of memory before it has begun.

    TorchServe would start a worker that was killed again and again, and the pod would say nothing but that it is not
    ready; a container that ends is told as OOMKilled. One that has served goes on: a new worker answers sooner than a new pod.
    """
    before = oom_kills()
    while server.poll() is None and not begun.wait(STARVED_SECONDS):
        if oom_kills() > before:
            print("the container has too little memory: the kernel killed a process of it", file=sys.stderr)  # noqa: T201  its log
            server.kill()
            return


def run(arguments: list[str], metrics_url: str, drain: Drain, begun: threading.Event | None = None) -> int:
    """Runs the server until it ends or a SIGTERM or SIGINT has drained it.

    Args:
        arguments: Its command line.
        metrics_url: Where it counts requests.
        drain: How it ends.
        begun: Is set when it is ready; until then, want of memory ends it. None: nobody looks.

    Returns:
        The server's exit code; 0 if it ended because it was asked to.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    # Its own session: a SIGINT of the terminal reaches this process alone, which then drains.
    server = subprocess.Popen(arguments, start_new_session=True)

    def watch() -> None:
        server.wait()
        stopping.set()

    ended = threading.Thread(target=watch, daemon=True)
    ended.start()
    if begun is not None:
        threading.Thread(target=end_if_starved, args=(server, begun), daemon=True).start()
    stopping.wait()
    if (code := server.poll()) is not None:
        print(f"TorchServe ended by itself with code {code}", file=sys.stderr)  # noqa: T201  the container's log
        return code if code > 0 else 1
    wait_until_quiet(metrics_url, drain, server)
    server.terminate()
    ended.join(drain.stop)
    if ended.is_alive():
        server.kill()
        ended.join()
    return 0


def property_of(config: str, key: str) -> str:
    """The last value of `key` in a properties file.

    Raises:
        KeyError: It has none.
    """
    values = re.findall(rf"^{re.escape(key)}=(.*)$", config, re.MULTILINE)
    if not values:
        raise KeyError(key)
    return str(values[-1]).strip()


def local_url(config: str, key: str) -> str:
    """An address of the settings as this machine reaches it."""
    return property_of(config, key).replace("0.0.0.0", LOOPBACK)  # noqa: S104  replaced, not bound


def main(argv: Sequence[str] | None = None) -> int:
    """Merges the settings, then runs the server."""
    parser = argparse.ArgumentParser(prog="mlhandlers.server", description="TorchServe as a container's main process.")
    parser.add_argument(
        "--model-dir", type=Path, default=Path("/mnt/models"), help="config/ and model-store/ of one model"
    )
    parser.add_argument("--config", type=Path, default=SERVING / "config.properties", help="the platform's settings")
    parser.add_argument("--log-config", type=Path, default=SERVING / "log4j2.xml")
    parser.add_argument(
        "--address",
        type=loopback_address,
        metavar=f"{LOOPBACK}:PORT",
        help="where to answer predictions, with all else on free ports of loopback (default: as --config says)",
    )
    parser.add_argument(
        "--health-port",
        type=int,
        default=HEALTH_PORT,
        help="where to tell the kubelet of readiness; not with --address",
    )
    options = parser.parse_args(argv)
    supplied = options.model_dir / "config" / "config.properties"
    if not supplied.is_file():
        parser.error(f"{supplied} is missing: {options.model_dir} is no model that the packaging job wrote")
    merged = merge_config(supplied.read_text(), options.config.read_text())
    merged += "\n" + properties(located(options.model_dir))
    drain = Drain()
    if options.address:
        host, port = options.address
        try:
            merged += properties(on_loopback(host, port))
        except OSError as error:
            parser.exit(
                EXIT_USAGE, f"{parser.prog}: {host}:{port} cannot be listened on: {os.strerror(error.errno or 0)}\n"
            )
        drain = LOCAL_DRAIN
    try:
        runtime = java.find()
    except java.JavaNotFoundError as error:
        parser.exit(EXIT_USAGE, f"{parser.prog}: {error}; {java.INSTALL}\n")
    with tempfile.TemporaryDirectory(prefix="torchserve-") as folder:
        config = Path(folder) / "config.properties"
        config.write_text(merged)
        # A thread too many stalls the others at the CPU limit; the handler sets torch's own count.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # TorchServe prefers it to its argument.
        os.environ.pop("TS_CONFIG_FILE", None)
        metrics = f"{local_url(merged, 'metrics_address')}/metrics"
        begun = None
        with ExitStack() as told:
            if not options.address:
                model = property_of(merged, "load_models").partition("=")[0]
                prediction = f"{local_url(merged, 'inference_address')}/predictions/{model}"
                readiness = Readiness(prediction, metrics)
                begun = readiness.begun
                health = told.enter_context(health_server(options.health_port, readiness))
                threading.Thread(target=health.serve_forever, daemon=True).start()
            return run(command(runtime, config, options.log_config, Path(folder)), metrics, drain, begun)


if __name__ == "__main__":
    sys.exit(main())
