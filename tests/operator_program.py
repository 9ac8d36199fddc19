"""The operator's process, for tests with a real API server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apiserver_fixture import REPOSITORY, ApiServer
from ports import free_port

PATIENCE = 30.0
"""Seconds for the operator to do its part; it needs one, under load more."""
MLMODEL = (REPOSITORY / "examples/adult-income/mlmodel.yaml").read_text()


@dataclass
class Program:
    """A running operator."""

    server: ApiServer
    log: Path
    kubeconfig: Path | None = None
    lease: str = ""
    identity: str = "one"
    namespaces: str = ""
    health: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig or self.server.kubeconfig),
            "PYTHONPATH": str(REPOSITORY / "operator"),
            "MLPLATFORM_HEALTH_PORT": str(self.health),
            "MLPLATFORM_METRICS_PORT": str(self.metrics),
            # Of its own, if it need not share one: an operator of another test may still hold that.
            "MLPLATFORM_LEASE": self.lease or f"default/operator-{self.health}",
            "MLPLATFORM_IDENTITY": self.identity,
            "MLPLATFORM_WATCH_NAMESPACES": self.namespaces,
        }
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", "mlplatform.main"]
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        eventually(self.healthy, lambda: self.log.read_text()[-3000:])

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.health}/healthz") as answer:
            return bool(answer.status == 200)
        return False

    def leads(self) -> bool:
        """Whether it says so; one that is gone does not."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as answer:
            return b"\nmlplatform_leader 1.0\n" in answer.read()
        return False

    def stop(self, *, kill: bool = False) -> int:
        """Ends it; returns its exit status."""
        assert self.process
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        return self.process.wait(timeout=20)

    def memory(self) -> int:
        """Resident memory in MiB."""
        assert self.process
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert found
        return int(found[1]) // 1024


def eventually(check: Callable[[], Any], explain: Callable[[], Any] = lambda: "") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.1)  # what is waited for is the effect of another process
    return found


def get(server: ApiServer, namespace: str, what: str) -> Any:
    return json.loads(server.kubectl("-n", namespace, "get", what, "-o", "json"))


def apply(server: ApiServer, namespace: str, text: str = MLMODEL) -> None:
    server.kubectl("-n", namespace, "apply", "--server-side", "-f", "-", given=text)
