"""The archive behind TorchServe on this machine, served as in a pod of the platform, but on loopback only.

Called by `mlplatform.cli.run`: `check` before the pipeline starts, `start` when it has made an archive. The settings,
the merge with the model's own and the drain are those of `mlhandlers.server`, which it runs.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mlhandlers import java
from mlplatform import api
from mlplatform.errors import EXIT_USAGE, CliError
from mlplatform.resources import inferenceservice
from mlplatform.standalone.process import Process

LOOPBACK: Final = "127.0.0.1"

PROBE_SECONDS: Final = 4.0
"""In a cluster `mlhandlers.server` waits as long for the prediction by which the pod is ready."""

_AS_ALWAYS: Final = api.Serving()
_POLL_SECONDS: Final = 0.1
_LAST_LINES: Final = 10
"""Of the log, in an error."""

_CANNOT_LOAD: Final = "Failed to load model "
"""What a worker says of an archive that it cannot serve; another worker tries then, and says it again."""


def check(port: int = 0) -> None:
    """Whether a model could be served here; asked before minutes of training.

    Args:
        port: As of `start`.

    Raises:
        CliError: There is no Java, or the port is not free.
    """
    try:
        java.find()
    except java.JavaNotFoundError as error:
        raise CliError(str(error), java.INSTALL) from None
    _free(port)


def start(model_dir: Path, model: str, log: Path, port: int = 0, serving: api.Serving = _AS_ALWAYS) -> Server:
    """Starts TorchServe; `Server.wait_ready` waits until it answers.

    Args:
        model_dir: What the stage `package` wrote: ``config/`` and ``model-store/``.
        model: The model's name.
        log: The file that its output is added to.
        port: Where to answer; 0 for whichever is free.
        serving: What the model says of it.

    Raises:
        CliError: As of `check`.
    """
    check(port)
    return Server(model_dir, model, log, _free(port), inferenceservice.per_request(serving))


def _free(port: int) -> int:
    """`port`, or one that is free.

    Raises:
        CliError: It cannot be listened on.
    """
    try:
        with socket.create_server((LOOPBACK, port)) as found:
            return int(found.getsockname()[1])
    except OSError as error:
        raise CliError(
            f"port {port} on {LOOPBACK} cannot be listened on: {os.strerror(error.errno or 0)}",
            "choose another with --port; --port 0 takes one that is free",
            code=EXIT_USAGE,
        ) from None


def path_of(model: str) -> str:
    """Where TorchServe answers for a model: a POST is asked for a prediction, a GET for one on a canned sample."""
    return f"/predictions/{model}"


class Server:
    """A TorchServe that answers for one model on loopback. It ends with this program, whatever ends that.

    Attributes:
        url: Where predictions are asked for, with a POST.
    """

    def __init__(self, model_dir: Path, model: str, log: Path, port: int, settings: Mapping[str, str]) -> None:
        self.url = f"http://{LOOPBACK}:{port}{path_of(model)}"
        self._log = log
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._code: int | None = None
        self._unfit = ""
        # -P: a file of the user's, in the current folder, is no module of ours.
        command = [sys.executable, "-P", "-m", "mlhandlers.server"]
        command += ["--model-dir", str(model_dir), "--address", f"{LOOPBACK}:{port}"]
        self._process = Process(command, {**os.environ, **settings}, log, self._heard, self._ended)

    def _heard(self, line: str) -> None:
        self._last.append(line)
        self._unfit = line.partition(_CANNOT_LOAD)[2] or self._unfit

    def _ended(self, code: int) -> None:
        self._code = code

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Waits until it would be ready in the cluster, where the probe asks for the same prediction.

        Raises:
            CliError: It has ended, cannot load the archive, or does not answer in time; the cause quotes its log.
        """
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self._process.wait(_POLL_SECONDS):
                raise self._failure(f"TorchServe ended with code {self._code} before it answered")
            if self._unfit:
                why = self._unfit.replace(", exception ", ": ", 1)
                raise CliError(f"TorchServe cannot load {why:.500}", self._read_log())
            if time.monotonic() >= deadline:
                raise self._failure(f"TorchServe has not answered within {seconds:g} s")

    def _answers(self) -> bool:
        """Whether a prediction on the canned sample succeeds."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=PROBE_SECONDS)
        try:
            connection.request("GET", parts.path)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait(self) -> None:
        """Blocks until it has ended, which it does by itself only if something is wrong."""
        self._process.wait()

    def stop(self) -> None:
        """Lets it answer what it has been asked and end; waits for that, `process.GRACE_SECONDS` at most."""
        self._process.terminate()
        self._process.wait()

    def _failure(self, what: str) -> CliError:
        said = "".join(f"\n  {line}" for line in self._last)
        return CliError(f"{what}; its last lines are:{said}" if said else what, self._read_log())

    def _read_log(self) -> str:
        return f"read all of its log: {self._log}"
