"""How programs on the host reach what runs in a cluster: kubectl, the gateway, the store.

Called by `local/demo.py` and by tests/e2e. CLUSTER chooses: `local` (default)
is this repository's own cluster, whose Service addresses the host can route
to; `kind` is the kind cluster that `make up CLUSTER=kind` made, `current`
whatever the kubectl context names, both reached by port-forwards. Only
`current` looks at the caller's KUBECONFIG: the others install and delete, and
must never do so in another cluster.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from local.layout import REPO, default_layout

RELEASE: Final = "mlplatform"
SYSTEM: Final = "mlplatform-system"
OPERATOR: Final = f"{RELEASE}-operator"
STORE: Final = f"{RELEASE}-store"
GATEWAY_NAMESPACE: Final = "istio-system"
GATEWAY: Final = "istio-ingressgateway"
KIND: Final = "mlplatform"
"""Name of the kind cluster."""
KIND_IMAGES: Final = REPO / "build" / "kind-images.json"
"""References of the images in the kind cluster; `local/kind-up` writes it."""
CHART: Final = ("operator", "jobs", "serving", "seaweedfs")
"""Images that the chart has values for."""

_FORWARD_SECONDS: Final = 30.0
_COMMAND_SECONDS: Final = 120.0
_CHATTER: Final = re.compile(r"[WI]\d{4} ")
"""Warnings that client libraries log before the error that matters."""


class AccessError(RuntimeError):
    """A command or an address failed; the message names the cause, `hint` the next action."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def run(command: list[str], env: dict[str, str], *, seconds: float = _COMMAND_SECONDS, stdin: str = "") -> str:
    """Runs a command to its end and returns what it printed.

    Raises:
        AccessError: It is not there, failed or took longer than `seconds`.
    """
    shown = shlex.join([Path(command[0]).name, *command[1:]])
    try:
        done = subprocess.run(
            command, env=env, input=stdin, capture_output=True, text=True, timeout=seconds, check=False, cwd=REPO
        )
    except FileNotFoundError:
        raise AccessError(f"{command[0]} is not on PATH", "make up installs it for CLUSTER=local") from None
    except subprocess.TimeoutExpired:
        raise AccessError(f"`{shown}` did not end within {seconds:.0f} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        told = [line for line in lines if not _CHATTER.match(line)] or lines or ["it printed nothing"]
        raise AccessError(f"`{shown}` failed ({done.returncode}): " + "\n".join(told[-12:]))
    return done.stdout


@dataclass
class Cluster:
    """One cluster, seen from the host; close it when done.

    Attributes:
        kind: `local`, `kind` or `current`.
        env: Environment of every command: KUBECONFIG, and a PATH with kubectl, helm and the plugin.
    """

    kind: str
    env: dict[str, str]
    _opened: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def connect(cls, kind: str | None = None) -> Self:
        """The cluster that CLUSTER names.

        Raises:
            AccessError: It does not answer.
        """
        kind = kind or os.environ.get("CLUSTER") or "local"
        env = dict(os.environ)
        # The plugin lies beside this interpreter, kubectl and helm beside the local cluster's binaries.
        folders = [str(Path(sys.executable).parent)]
        if kind == "local":
            folders.append(str(default_layout().cache / "bin"))
            env["KUBECONFIG"] = str(default_layout().kubeconfig)
        env["PATH"] = os.pathsep.join([*folders, env.get("PATH", os.defpath)])
        cluster = cls(kind, env)
        try:
            if kind == "kind":
                env["KUBECONFIG"] = cluster._file(run(["kind", "get", "kubeconfig", "--name", KIND], env))
            cluster.kubectl("get", "--raw", "/readyz")
        except AccessError as error:
            cluster.close()
            raise AccessError(f"the cluster does not answer: {error}", "start it: make up") from None
        return cluster

    def close(self) -> None:
        """Ends the port-forwards and removes the copy of kind's kubeconfig."""
        self._opened.close()

    def tool(self, name: str) -> str:
        """The path of a program on this cluster's PATH; the name itself where there is none."""
        for folder in self.env["PATH"].split(os.pathsep):
            path = Path(folder) / name
            if os.access(path, os.X_OK) and path.is_file():
                return str(path)
        return name

    def kubectl(self, *arguments: str, seconds: float = _COMMAND_SECONDS, stdin: str = "") -> str:
        """Runs kubectl and returns what it printed."""
        return run([self.tool("kubectl"), *arguments], self.env, seconds=seconds, stdin=stdin)

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, read."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def helm(self, *arguments: str, seconds: float = 300.0) -> str:
        """Runs helm and returns what it printed."""
        return run([self.tool("helm"), *arguments], self.env, seconds=seconds)

    def images(self) -> dict[str, str]:
        """Name → reference of the images that were built for this cluster; none where the chart's own are pulled."""
        refs: dict[str, str] = {}
        if self.kind == "local":
            refs = json.loads(run([sys.executable, "-m", "local", "images", "--json"], self.env, seconds=2400))
        elif self.kind == "kind":
            if not KIND_IMAGES.exists():
                raise AccessError(f"{KIND_IMAGES} is not there", "make up CLUSTER=kind builds the images and writes it")
            refs = json.loads(KIND_IMAGES.read_text(encoding="utf-8"))
        return refs

    def install(self, *values: str, seconds: int = 300) -> str:
        """Installs or upgrades the chart and waits until it is ready; returns helm's status line."""
        if self.kind == "local":
            # The local cluster provisions no volumes, and its few cores must do for training beside a rollout.
            values = ("--set", "store.embedded.persistence.enabled=false", "--set", "maxCpuRequest=100m", *values)
        built = self.images()
        images = (word for name in CHART if built for word in ("--set-string", f"images.{name}={built[name]}"))
        self.helm(
            "upgrade", "--install", RELEASE, "charts/mlplatform", "--namespace", SYSTEM, "--create-namespace",
            "--wait", "--timeout", f"{seconds}s", *images, *values, seconds=seconds + 30,
        )  # fmt: skip
        return self.helm("list", "--namespace", SYSTEM, "--filter", RELEASE, "--no-headers").strip()

    def gateway(self, scheme: str = "http") -> str:
        """Base URL of the gateway: GATEWAY_URL, the Service's address, or a port-forward."""
        given = os.environ.get("GATEWAY_URL", "")
        port = {"http": 80, "https": 443}[scheme]
        return given.rstrip("/") if given else self._service(GATEWAY_NAMESPACE, GATEWAY, port, scheme)

    def store_environment(self, namespace: str = "default") -> dict[str, str]:
        """Environment by which a program on the host reads and writes the artifact store."""
        secret = self.get("secret", STORE, "--namespace", namespace)["data"]
        found = {key: base64.b64decode(value).decode() for key, value in secret.items()}
        endpoint = found.get("AWS_ENDPOINT_URL", "")
        if ".svc" in endpoint or endpoint.endswith(":8333"):
            found["AWS_ENDPOINT_URL"] = self._service(SYSTEM, STORE, 8333)
        return {**self.env, **found}

    def _service(self, namespace: str, name: str, port: int, scheme: str = "http") -> str:
        if self.kind == "local":
            address = self.get("service", name, "--namespace", namespace)["spec"]["clusterIP"]
            return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"
        return f"{scheme}://127.0.0.1:{self._forward(namespace, name, port)}"

    def _file(self, text: str) -> str:
        """A file that only this user may read, for as long as this is open."""
        descriptor, path = tempfile.mkstemp(prefix="mlplatform-", suffix=".kubeconfig")
        self._opened.callback(os.unlink, path)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def _forward(self, namespace: str, name: str, port: int) -> int:
        command = [self.tool("kubectl"), "--namespace", namespace, "port-forward", f"service/{name}", f":{port}"]
        process = self._opened.enter_context(
            subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        self._opened.callback(process.terminate)
        lines = iter(process.stdout or ())
        told = next(lines, "")
        found = re.search(r"127\.0\.0\.1:(\d+)", told)
        if not found:
            raise AccessError(f"`{shlex.join(command)}` said: {told.strip()}", f"kubectl -n {namespace} get pods")
        # It prints a line for each connection, and would stop at a full pipe.
        drain = threading.Thread(target=deque, args=(lines, 0), daemon=True)
        drain.start()
        self._opened.callback(drain.join)
        self._opened.callback(process.terminate)
        wait_for_port(int(found[1]))
        return int(found[1])


def wait_for_port(port: int) -> None:
    """Returns once something listens on the loopback's `port`.

    Raises:
        AccessError: Nothing did within half a minute.
    """
    deadline = time.monotonic() + _FORWARD_SECONDS
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise AccessError(f"nothing listens on 127.0.0.1:{port}")
