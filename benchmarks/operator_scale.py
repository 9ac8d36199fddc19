"""What many quiet models cost the operator; `make bench-operator-scale` runs it on a real API server without a kubelet.

Every model has three versions, of which one serves; the objects are those that the unit tests' world ends with. Measured
is a start: memory once all is quiet, how soon a changed model has its next version, and 200 that change at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from apiserver_fixture import CRD_FOLDER, REPOSITORY, ApiServer, started
from contract import modules
from kubernetes import client, config
from ports import free_port
from unit.operator_world import RUNTIME, Fake, mlmodel, play

from benchmarks.table import markdown, publish
from mlplatform.contract import API_VERSION
from mlplatform.resources import KINDS

Object = dict[str, Any]
PLACEHOLDER: Final = "placeholder"
TEAMS: Final = 20
"""Namespaces."""
CLIENTS: Final = 12
CHANGES: Final = 50
BURST: Final = 200
PATIENCE: Final = 300.0
"""Seconds for one change."""
REST: Final = 5.0
"""Seconds without a pass, after which all is quiet."""
ORDER: Final = ("MLModel", "ModelVersion", "ServingRuntime", "InferenceService", "Pod", "Service", "VirtualService")
"""Owners before what they own."""
MERGE: Final = "application/merge-patch+json"


def family() -> str:
    """The objects of one model, as JSON: three versions, the last of which serves."""

    def trained(epochs: int) -> Callable[[Fake], None]:
        def deed(fake: Fake) -> None:
            model = fake.one("MLModel", PLACEHOLDER)
            model["spec"]["training"]["epochs"] = epochs
            fake.apply(model)

        return deed

    fake = Fake()
    applied, nothing = (lambda f: f.apply(mlmodel(PLACEHOLDER))), (lambda _: None)
    play([(0, applied), (400, trained(7)), (1200, trained(9)), (2400, nothing)], fake)
    found = [fake.one(kind, name) for kind in ORDER for name in fake.names(kind)]
    return json.dumps(found)


@dataclass(frozen=True)
class Api:
    """Plain requests, by many threads."""

    client: client.ApiClient

    def request(self, method: str, path: str, body: Object | None = None, media: str = "application/json") -> Object:
        """Sends one; raises what the client raises for a refusal."""
        answer = self.client.call_api(
            path, method, body=body, header_params={"Accept": "application/json", "Content-Type": media},
            auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
        )  # fmt: skip
        found: Object = json.loads(answer.data)
        return found

    def create(self, obj: Object) -> Object:
        """Creates an object, its status too."""
        kind, status = KINDS[obj["kind"]], obj.get("status")
        version = obj.setdefault("apiVersion", kind.api_version)
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        path = f"{root}/namespaces/{obj['metadata']['namespace']}/{kind.plural}"
        made = self.request("POST", path, obj)
        if status and obj["kind"] not in {"Service", "VirtualService", "ServingRuntime"}:
            self.request("PATCH", f"{path}/{obj['metadata']['name']}/status", {"status": status}, MERGE)
        return made

    def family(self, text: str, name: str, namespace: str) -> None:
        """One model and all that belongs to it."""
        uids: dict[str, str] = {}
        for obj in json.loads(text.replace(PLACEHOLDER, name)):
            meta = obj["metadata"]
            meta["namespace"], old = namespace, meta.pop("uid", "")
            for field in ("resourceVersion", "generation", "creationTimestamp", "managedFields"):
                meta.pop(field, None)
            for owner in meta.get("ownerReferences") or ():
                owner.update(uid=uids[owner["uid"]], apiVersion=KINDS[owner["kind"]].api_version)
            if obj["kind"] == "Pod":
                obj["spec"] = {"containers": [{"name": "kserve-container", "image": "serving"}]}
            if obj["kind"] == "Service":
                obj["spec"]["clusterIP"] = "None"  # The server would look through all addresses for each.
            uids[old] = self.create(obj)["metadata"]["uid"]


@dataclass
class Operator:
    """The operator's process."""

    process: subprocess.Popen[bytes]
    health: int
    metrics: int
    log: Path

    def is_ready(self, seconds: float) -> float:
        """Waits until it says that it has looked at everything; returns the seconds that took."""
        since = time.monotonic()
        while time.monotonic() - since < seconds:
            if self.process.poll() is not None:
                raise RuntimeError(f"the operator has ended: {self.log.read_text()[-2000:]}")
            time.sleep(0.2)
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.health}/readyz"):
                return time.monotonic() - since
        raise TimeoutError(f"not ready after {seconds:.0f} s: {self.log.read_text()[-2000:]}")

    def metric(self, name: str) -> float:
        """All its samples added up."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE))

    def memory(self, field: str) -> int:
        """MiB of ``VmRSS`` (now) or ``VmHWM`` (at most)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0]) // 1024

    def is_quiet(self, models: int, seconds: float) -> None:
        """Waits until every model and version had a pass, and then none for a few seconds."""
        deadline, last, since = time.monotonic() + seconds, 0.0, time.monotonic()
        while last < 4 * models or time.monotonic() - since < REST:
            if self.process.poll() is not None:
                raise RuntimeError(f"the operator has ended: {self.log.read_text()[-2000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{last:.0f} passes after {seconds:.0f} s: {self.log.read_text()[-2000:]}")
            time.sleep(1)
            try:
                passes = self.metric("mlplatform_reconcile_seconds_count")
            except OSError:  # it has only begun
                continue
            if passes != last:
                last, since = passes, time.monotonic()


@contextmanager
def operating(server: ApiServer, log: Path) -> Iterator[Operator]:
    """An operator of this checkout."""
    health, metrics = free_port(), free_port()
    env = {
        **os.environ,
        "KUBECONFIG": str(server.kubeconfig),
        "PYTHONPATH": str(REPOSITORY / "operator"),
        "MALLOC_ARENA_MAX": "2",  # As its image has it.
        "MLPLATFORM_HEALTH_PORT": str(health),
        "MLPLATFORM_METRICS_PORT": str(metrics),
        "MLPLATFORM_LEASE": "",
        "MLPLATFORM_SERVING_RUNTIME": json.dumps(RUNTIME),
    }
    with log.open("wb") as out:
        command = [sys.executable, "-m", "mlplatform.main"]
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Operator(process, health, metrics, log)
    finally:
        process.terminate()
        process.wait(timeout=30)


def place(number: int) -> str:
    """Where the model of that number lies."""
    return f"/apis/{API_VERSION}/namespaces/team-{number % TEAMS}"


def change(api: Api, number: int, epochs: int) -> None:
    """Asks a model for another version."""
    body = {"spec": {"training": {"epochs": epochs}}}
    api.request("PATCH", f"{place(number)}/mlmodels/model-{number:05d}", body, MERGE)


def versions(api: Api, number: int) -> int:
    """How many a model has."""
    found = api.request("GET", f"{place(number)}/modelversions?labelSelector=mlplatform.dev/model=model-{number:05d}")
    return len(found["items"])


def until(happens: Callable[[], bool]) -> float:
    """Seconds until something is so; nobody tells, so it is asked for."""
    since = time.monotonic()
    while not happens():
        if time.monotonic() - since > PATIENCE:
            raise TimeoutError(f"not within {PATIENCE:.0f} s")
        time.sleep(0.01)
    return time.monotonic() - since


def reaction(api: Api, number: int) -> float:
    """Seconds from a change to the next version."""
    before = versions(api, number)
    change(api, number, 20)
    return until(partial(_has_more, api, number, before))


def _has_more(api: Api, number: int, than: int) -> bool:
    return versions(api, number) > than


def burst(api: Api, numbers: range) -> float:
    """Seconds until each of many models that change at once has its next version."""
    before = {number: versions(api, number) for number in numbers}
    since = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as threads:
        list(threads.map(lambda number: change(api, number, 30), numbers))
    for number in numbers:
        until(partial(_has_more, api, number, before[number]))
    return time.monotonic() - since


def measured(api: Api, server: ApiServer, models: int, folder: Path) -> list[str]:
    """A row of the table."""
    log = folder / "operator.log"
    with operating(server, log) as operator:  # It finds objects that another release has made, so to speak.
        operator.is_quiet(models, 3600)
    with operating(server, log) as operator:
        ready = operator.is_ready(3600)
        operator.is_quiet(models, 3600)
        writes, memory = operator.metric("mlplatform_api_writes_total"), operator.memory("VmRSS")
        took = sorted(reaction(api, number) for number in range(min(CHANGES, models)))
        together = burst(api, range(models - BURST, models)) if models >= 2 * BURST else None
        peak = operator.memory("VmHWM")
    return [
        f"{models:,}", f"{memory} MiB", f"{peak} MiB", f"{ready:.0f} s", f"{writes:.0f}",
        f"{statistics.median(took) * 1000:.0f} ms", f"{took[int(len(took) * 0.99)] * 1000:.0f} ms",
        f"{together:.1f} s" if together else "-",
    ]  # fmt: skip


def populated(server: ApiServer, models: int) -> Api:
    """Makes the models; returns what asks the server."""
    server.install_crds(*modules.crds(), *sorted(CRD_FOLDER.glob("mlplatform.dev_*.yaml")))
    settings = client.Configuration()
    config.load_kube_config(str(server.kubeconfig), client_configuration=settings)
    settings.connection_pool_maxsize = CLIENTS
    api, text = Api(client.ApiClient(settings)), family()
    for team in range(TEAMS):
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": f"team-{team}"}})
    with ThreadPoolExecutor(CLIENTS) as threads:
        made = threads.map(lambda n: api.family(text, f"model-{n:05d}", f"team-{n % TEAMS}"), range(models))
        for done, _ in enumerate(made, 1):
            if done % 100 == 0:
                print(f"{done:,} of {models:,} models made", file=sys.stderr)
    return api


def main() -> int:
    """Measures and writes the block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[100, 1000, 10000], help="how many, rising")
    sizes = sorted(parser.parse_args().models)
    rows = []
    for size in sizes:  # A server each: models that were changed go on asking for their pods.
        with tempfile.TemporaryDirectory(prefix="scale-") as name, started(Path(name)) as server:
            rows.append(measured(populated(server, size), server, size, Path(name)))
        print(" | ".join(rows[-1]), file=sys.stderr)
    header = (
        "models", "memory, quiet", "at most", "start until ready", "writes until then",
        "change → version, p50", "p99", f"{BURST} changes at once",
    )  # fmt: skip
    body = markdown(header, rows)
    print(body)
    publish("operator-scale", f"python -m benchmarks.operator_scale --models {' '.join(map(str, sizes))}", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
