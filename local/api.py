"""The few things `up` and `status` ask the API server and containerd directly.

Called by `cluster.py`. `kubectl` does the rest; this part exists because readiness is asked
several times a second, and a process each time would be slow.
"""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from local.layout import NODE_NAME, Layout

INTERVAL: Final = 0.2
"""Seconds between two questions about something that announces itself nowhere."""


def wait_until(question: Callable[[], bool], timeout: float) -> bool:
    """Asks until the answer is yes; False after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(INTERVAL)
    return True


class Api:
    """Reads from the API server with a kubeconfig's certificate."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._context = ssl.create_default_context(cadata=_decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(_decode(user["client-certificate-data"]) + b"\n" + _decode(user["client-key-data"]))
            pair.flush()
            self._context.load_cert_chain(pair.name)
        handler = urllib.request.HTTPSHandler(context=self._context)
        # No proxy: the address exists on this machine only.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)

    def get(self, path: str, timeout: float = 5.0) -> bytes | None:
        """The answer's body; None when there is no good answer."""
        try:
            with self._opener.open(f"{self._server}{path}", timeout=timeout) as answer:
                return bytes(answer.read())
        except OSError:
            return None

    def ready(self) -> bool:
        """Whether the API server says so of itself and of etcd."""
        return self.get("/readyz", timeout=2.0) == b"ok"

    def json(self, path: str) -> dict[str, Any]:
        """The answer as an object; empty when there is none."""
        body = self.get(path)
        return dict(json.loads(body)) if body else {}

    def node_ready(self, since: float = 0.0) -> bool:
        """Whether the kubelet reports its node as Ready, and has said so after ``since`` (Unix seconds)."""
        lease = self.json(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE_NAME}")
        # A new node's first lease comes 10 s late, so only an old one speaks against it.
        renewed = lease.get("spec", {}).get("renewTime", "")
        if renewed and unix_time(renewed) < since:
            return False
        return condition(self.json(f"/api/v1/nodes/{NODE_NAME}"), "Ready") == "True"

    def pods_started(self, namespace: str, deployments: tuple[str, ...], since: float) -> bool:
        """Whether every pod of these Deployments runs containers started after ``since`` (Unix seconds).

        After a crash the API server still shows the pods as they were before it.
        """
        found = self.json(f"/api/v1/namespaces/{namespace}/pods").get("items", [])
        prefixes = tuple(f"{name}-" for name in deployments)
        pods = [pod for pod in found if pod["metadata"]["name"].startswith(prefixes)]
        return bool(pods) and all(started_after(pod, since) for pod in pods)


def unix_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time; 0 when there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def started_after(pod: dict[str, Any], since: float) -> bool:
    """Whether all containers of a pod run and began after ``since``, or it has ended; the API's times have whole seconds."""
    if pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}:
        return True
    states = [status["state"] for status in pod.get("status", {}).get("containerStatuses", [])]
    return bool(states) and all(
        unix_time(state.get("running", {}).get("startedAt", "")) >= int(since) for state in states
    )


def condition(thing: dict[str, Any], kind: str) -> str:
    """Status of one condition; empty when it is not there."""
    found = [c["status"] for c in thing.get("status", {}).get("conditions", []) if c["type"] == kind]
    return str(found[0]) if found else ""


def _decode(text: str) -> bytes:
    return base64.b64decode(text)


def admin(layout: Layout) -> Api | None:
    """The administrator's access; None when there is no cluster."""
    return Api(layout.kubeconfig) if layout.kubeconfig.exists() else None
