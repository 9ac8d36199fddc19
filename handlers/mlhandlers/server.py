"""Runs TorchServe as a container's main process: `python -m mlhandlers.server`.

Called by images/serving/Dockerfile. The `torchserve` command forks the JVM away and ends,
or waits but passes no signal on; a container needs three things of its first process that
neither way gives. It ends when the JVM ends, with its exit code. It turns a SIGTERM into a
drain, because TorchServe itself resets connections at once: it keeps answering until no
request has come for a while, which is when the mesh has heard that the pod is going. And
it puts the platform's settings above those that came with the model.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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


def merge_config(model: str, platform: str) -> str:
    """Settings of both files; where they differ the platform's count.

    The model's say what to load, the platform's where to listen and how to log: an archive
    cannot open the management API to the network. Java keeps the last of equal keys.
    """
    return f"# Settings that came with the model:\n{model.rstrip()}\n# The platform's own:\n{platform}"


def command(config: Path, logging: Path, temporary: Path) -> list[str]:
    """The JVM's command line.

    Args:
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
        "java",
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


def requests_seen(metrics_url: str) -> float:
    """How many prediction requests the server has taken so far.

    Raises:
        OSError: The metrics endpoint does not answer, or not within a second.
        http.client.HTTPException: Its answer is no HTTP, or was cut off.
    """
    with urllib.request.urlopen(metrics_url, timeout=1.0) as response:  # noqa: S310  a loopback address of our config
        return sum(float(value) for value in REQUESTS.findall(response.read()))


def wait_until_quiet(metrics_url: str, drain: Drain, server: subprocess.Popen[bytes]) -> None:
    """Returns when no request has come for `drain.quiet`, at `drain.limit`, or when the server has ended."""
    begin = last_change = time.monotonic()
    seen: float | None = None
    while server.poll() is None and time.monotonic() - begin < drain.limit:
        try:
            now = requests_seen(metrics_url)
        except (OSError, http.client.HTTPException):
            # A server that is too busy to answer is not quiet; one that has ended is seen above.
            last_change = time.monotonic()
        else:
            if now != seen:
                seen, last_change = now, time.monotonic()
            elif time.monotonic() - last_change >= drain.quiet:
                return
        time.sleep(drain.poll)


def run(arguments: list[str], metrics_url: str, drain: Drain) -> int:
    """Runs the server until it ends or a SIGTERM or SIGINT has drained it.

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


def main(argv: Sequence[str] | None = None) -> int:
    """Merges the settings, then runs the server."""
    parser = argparse.ArgumentParser(prog="mlhandlers.server", description="TorchServe as a container's main process.")
    parser.add_argument(
        "--model-dir", type=Path, default=Path("/mnt/models"), help="config/ and model-store/ of one model"
    )
    parser.add_argument(
        "--config", type=Path, default=Path("/opt/serving/config.properties"), help="the platform's settings"
    )
    parser.add_argument("--log-config", type=Path, default=Path("/opt/serving/log4j2.xml"))
    options = parser.parse_args(argv)
    supplied = options.model_dir / "config" / "config.properties"
    if not supplied.is_file():
        parser.error(f"{supplied} is missing: {options.model_dir} is no model that the packaging job wrote")
    merged = merge_config(supplied.read_text(), options.config.read_text())
    merged += f"\nmodel_store={options.model_dir.resolve() / 'model-store'}\n"
    with tempfile.TemporaryDirectory(prefix="torchserve-") as folder:
        config = Path(folder) / "config.properties"
        config.write_text(merged)
        # A thread too many stalls the others at the CPU limit; the handler sets torch's own count.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        metrics = f"{property_of(merged, 'metrics_address').replace('0.0.0.0', '127.0.0.1')}/metrics"  # noqa: S104  replaced, not bound
        return run(command(config, options.log_config, Path(folder)), metrics, Drain())


if __name__ == "__main__":
    sys.exit(main())
