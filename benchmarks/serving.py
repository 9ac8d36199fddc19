"""Measures the gateway path of the tabular handler against TorchServe's BaseHandler; `make bench-serving` runs it.

The same model, image, server settings and CPU limit for all; they differ in the handler and its batching only:

* ours: raw records in, preprocessing in the archive, answers as the prediction API has them
* BaseHandler: numbers already encoded by the client in, numbers out; TorchServe's defaults
* BaseHandler, batched: the same with the archive settings that ours has

It needs a cluster with KServe and Istio, and nothing of the chart: the archives travel in
ConfigMaps. ``--local`` needs no cluster: it runs the servers on loopback, each pinned to one CPU.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from kubernetes import client, dynamic
from kubernetes.client.exceptions import ApiException
from torch import Tensor, nn

from benchmarks.cluster import connect
from benchmarks.table import markdown, publish
from mljobs import export, package
from mljobs.tasks.tabular import TabularTask
from mljobs.tasks.tabular_model import FORMAT, Preprocessor, TabularModel
from mlplatform import api
from mlplatform.resources import inferenceservice, virtualservice
from mlplatform.settings import Settings

REPOSITORY: Final = Path(__file__).parents[1]
RUNTIME: Final = REPOSITORY / "images/serving/servingruntime.yaml"
NAMESPACE: Final = "mlplatform-bench"
READY_SECONDS: Final = 300
CONNECTIONS: Final = (1, 16)
ROUNDS: Final = 3
SECONDS: Final = 5
WARM_UP_SECONDS: Final = 3

NUMERIC: Final = {"age": 60, "fnlwgt": 64, "education-num": 16, "capital-gain": 90, "capital-loss": 60, "hours": 50}
"""Columns of adult-income and how many edges each one's encoding has; values do not matter for the time."""
CATEGORICAL: Final = {"workclass": 8, "education": 16, "marital": 7, "occupation": 14, "relationship": 6, "race": 5,
                      "sex": 2, "country": 41}  # fmt: skip

WRK_SCRIPT: Final = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Host"] = "{host}"
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('RESULT {{"requests": %d, "micros": %d, "errors": %d, "p50": %f, "p99": %f}}\\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.timeout + e.status,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One server under test.

    Attributes:
        name: DNS label; the model's name.
        title: Its row in the table.
        folder: KServe's layout: config/ and model-store/.
        body: The request.
        path: Where it goes, at the gateway.
        probe: A path that answers 200 once the model is loaded.
    """

    name: str
    title: str
    folder: Path
    body: str
    path: str
    probe: str


@dataclass(frozen=True, slots=True)
class Result:
    """One run of the load generator; times in milliseconds."""

    rate: float
    p50: float
    p99: float
    errors: int


class OneTensor(nn.Module):
    """The model as BaseHandler can run it: one float tensor of all columns in, probabilities out."""

    def __init__(self, model: nn.Module, numeric: int) -> None:
        super().__init__()
        self.model = model
        self.numeric = numeric

    def forward(self, encoded: Tensor) -> Tensor:
        """``(n, columns)``, categories as indices, to ``(n,)``."""
        return torch.sigmoid(self.model(encoded[:, : self.numeric], encoded[:, self.numeric :].long()))


def schema() -> dict[str, Any]:
    """``preprocessor.json`` of a model of adult-income's size: time depends on shapes, not on weights."""
    numeric = [{"name": name, "kind": "numeric", "edges": [float(i) for i in range(n)]} for name, n in NUMERIC.items()]
    categorical = [
        {"name": name, "kind": "categorical", "categories": [f"{name}-{i}" for i in range(n)], "common": f"{name}-0"}
        for name, n in CATEGORICAL.items()
    ]
    return {
        "format": FORMAT,
        "features": numeric + categorical,
        "label": {"name": "income", "classes": ["<=50K", ">50K"]},
        "model": {"hidden": [256, 128], "dropout": 0.1, "embedding": 8},
    }


def targets(folder: Path) -> list[Target]:
    """Builds the three archives below `folder`."""
    described = schema()
    torch.manual_seed(7)
    model = TabularModel(described).eval()
    record = TabularTask({}).example(described)
    inputs = Preprocessor(described).transform([record, record])
    encoded = torch.cat([inputs[0], inputs[1].float()], dim=1)
    one_tensor = export.torchscript(OneTensor(model, inputs[0].shape[1]).eval(), [encoded])
    numbers = json.dumps(encoded[0].tolist())
    ours = layout(folder / "ours", "bench-ours")
    parts = package.Parts(export.torchscript(model, inputs), described, record, TabularTask.modules)
    built = package.build(work(ours), "bench-ours", "bench-ours-1", parts)
    built.rename(ours / "model-store/bench-ours.mar")
    found = [
        Target("bench-ours", "this platform's handler, raw records", ours, json.dumps({"features": record}),
               "/predict", "/predictions/bench-ours")
    ]  # fmt: skip
    for name, title, settings in (
        ("bench-stock", "BaseHandler, encoded numbers", "minWorkers: 1\nmaxWorkers: 1\n"),
        ("bench-batched", "BaseHandler, encoded numbers, batched", package.MODEL_CONFIG),
    ):
        place = layout(folder / name, name, "service_envelope=body\n")
        stage = work(place)
        (stage / package.SERIALIZED).write_bytes(one_tensor)
        (stage / "model-config.yaml").write_text(settings)
        package.archive(stage, name, f"{name}-1", Path("base_handler"), [])
        (stage / f"{name}.mar").rename(place / "model-store" / f"{name}.mar")
        found.append(Target(name, title, place, numbers, "/predict", "/ping"))
    return found


def layout(folder: Path, model: str, more: str = "") -> Path:
    """Makes KServe's folders and the model's settings."""
    (folder / "model-store").mkdir(parents=True)
    (folder / "config").mkdir()
    (folder / "config/config.properties").write_text(package.serving_config(model) + more)
    return folder


def work(folder: Path) -> Path:
    """An empty folder beside the layout's."""
    path = folder.with_name(f"{folder.name}-work")
    path.mkdir()
    return path


def load(url: str, host: str, body: str, connections: int, seconds: int) -> Result:
    """Runs wrk, on one thread.

    Raises:
        RuntimeError: wrk failed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK_SCRIPT.format(body=body, host=host))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "-s", script.name, url]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode or line is None:
        raise RuntimeError(f"wrk ended with code {done.returncode}: {done.stderr or done.stdout}")
    raw = json.loads(line.removeprefix("RESULT "))
    return Result(raw["requests"] / raw["micros"] * 1e6, raw["p50"] / 1000, raw["p99"] / 1000, raw["errors"])


def measure(places: Mapping[str, tuple[Target, str, str]]) -> list[list[object]]:
    """Loads the targets in turns, so that a busy moment of the machine hits all alike.

    Args:
        places: ``{name: (target, URL, Host header)}``.

    Returns:
        The table's rows.
    """
    for target, url, host in places.values():
        load(url, host, target.body, CONNECTIONS[-1], WARM_UP_SECONDS)
    results: dict[tuple[str, int], list[Result]] = {}
    for turn in range(ROUNDS):
        for connections in CONNECTIONS:
            for name, (target, url, host) in places.items():
                result = load(url, host, target.body, connections, SECONDS)
                results.setdefault((name, connections), []).append(result)
                say(f"round {turn + 1} {name} clients={connections} {result.rate:.0f}/s p99={result.p99:.1f} ms")
    rows: list[list[object]] = []
    for connections in CONNECTIONS:
        for name, (target, _, _) in places.items():
            runs = results[name, connections]
            rate, p50, p99 = (
                statistics.median(getattr(run, field) for run in runs) for field in ("rate", "p50", "p99")
            )
            rows.append(
                [target.title, connections, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}", sum(r.errors for r in runs)]
            )
    return rows


@contextmanager
def on_loopback(built: Sequence[Target]) -> Iterator[dict[str, tuple[Target, str, str]]]:
    """Servers of this checkout, all pinned to the last CPU; the load generator runs wherever the kernel puts it."""
    processes: list[subprocess.Popen[bytes]] = []
    places: dict[str, tuple[Target, str, str]] = {}
    try:
        for i, target in enumerate(built):
            port = 19080 + i
            processes.append(start(target, port))
            path = f"/predictions/{target.name}"
            places[target.name] = (target, f"http://127.0.0.1:{port}{path}", f"127.0.0.1:{port}")
        for process, (target, url, host) in zip(processes, places.values(), strict=True):
            wait_for_answer(url, host, target.body, process, target.folder / "log")
        yield places
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def start(target: Target, port: int) -> subprocess.Popen[bytes]:
    """Starts one server that answers on `port`, as in a pod but for its ports."""
    command = [sys.executable, "-m", "mlhandlers.server", "--model-dir", str(target.folder)]
    command += ["--address", f"127.0.0.1:{port}"]
    cpu = max(os.sched_getaffinity(0))
    with (target.folder / "log").open("wb") as log:
        return subprocess.Popen(["taskset", "-c", str(cpu), *command], stdout=log, stderr=log)


@contextmanager
def on_cluster(built: Sequence[Target], image: str, address: str) -> Iterator[dict[str, tuple[Target, str, str]]]:
    """InferenceServices and routes as the operator renders them, in a namespace of their own that goes afterwards."""
    connect()
    cluster = dynamic.DynamicClient(client.ApiClient())
    core = client.CoreV1Api()
    settings = Settings(gateway=f"{NAMESPACE}/bench")
    delete_namespace(core)
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    try:
        # The ServiceAccount that the operator names; the archives need no credentials.
        core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": settings.serving_service_account}})
        create(cluster, gateway(settings))
        places = {}
        for target in built:
            core.create_namespaced_config_map(NAMESPACE, config_map(target))
            for manifest in manifests(target, settings, image):
                create(cluster, manifest)
            host = f"{target.name}.{NAMESPACE}.{settings.domain}"
            places[target.name] = (target, f"http://{address or gateway_address(core)}{target.path}", host)
        for target, url, host in places.values():
            wait_for_answer(url, host, target.body)
        yield places
    finally:
        delete_namespace(core)


def container(model: dict[str, Any], image: str) -> dict[str, Any]:
    """What KServe makes of the platform's runtime and a model, with the archive mounted.

    Written out, because a model without ``storageUri`` is given KServe's agent, whose mount takes the archive's place.
    """
    runtime: dict[str, Any] = yaml.safe_load(RUNTIME.read_text())["spec"]["containers"][0]
    own = {key: model[key] for key in ("env", "resources")}
    mounts = [*runtime["volumeMounts"], {"name": "model", "mountPath": "/mnt/models", "readOnly": True}]
    return {**runtime, **own, "image": image, "volumeMounts": mounts}


def gateway(settings: Settings) -> dict[str, Any]:
    """A gateway of its own, so that the chart need not be installed."""
    server = {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": [f"*.{NAMESPACE}.{settings.domain}"]}
    return {
        "apiVersion": settings.istio_api_version,
        "kind": "Gateway",
        "metadata": {"name": "bench", "namespace": NAMESPACE},
        "spec": {"selector": {"istio": "ingressgateway"}, "servers": [server]},
    }


def config_map(target: Target) -> client.V1ConfigMap:
    """The model's folder."""
    archive = base64.b64encode((target.folder / f"model-store/{target.name}.mar").read_bytes()).decode()
    return client.V1ConfigMap(
        metadata=client.V1ObjectMeta(name=target.name),
        data={"config.properties": (target.folder / "config/config.properties").read_text()},
        binary_data={"model.mar": archive},
    )


def manifests(target: Target, settings: Settings, image: str) -> list[dict[str, Any]]:
    """What the operator makes for a version, with the archive from a ConfigMap instead of the store."""
    model = {
        "apiVersion": "mlplatform.dev/v1alpha1",
        "kind": "MLModel",
        "metadata": {"name": target.name, "namespace": NAMESPACE, "uid": "none"},
        "spec": {},
    }
    spec = api.MLModelSpec(data=api.Data(uri="none", label="income"))
    version = f"{target.name}-1"
    service = inferenceservice.render(model, spec, version, "", settings)
    route = virtualservice.render(model, {version: 100}, [], "", settings)
    predictor = service["spec"]["predictor"]
    served = predictor.pop("model")
    # All servers fit a node of two CPUs; the limit, which is what counts, stays.
    served["resources"]["requests"] = {"cpu": "100m", "memory": "1Gi"}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        served[name]["httpGet"]["path"] = target.probe
    items = [
        {"key": "config.properties", "path": "config/config.properties"},
        {"key": "model.mar", "path": f"model-store/{target.name}.mar"},
    ]
    archive = {"name": "model", "configMap": {"name": target.name, "items": items}}
    predictor |= {"containers": [container(served, image)], "volumes": [archive, {"name": "tmp", "emptyDir": {}}]}
    for manifest in (service, route):
        # Nobody owns them; the namespace's end is theirs.
        del manifest["metadata"]["ownerReferences"]
    return [service, route]


def create(cluster: dynamic.DynamicClient, manifest: dict[str, Any]) -> None:
    """Creates one object."""
    kind = cluster.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])
    kind.create(body=manifest, namespace=manifest["metadata"].get("namespace"))


def delete_namespace(core: client.CoreV1Api) -> None:
    """Deletes the benchmark's namespace, if it is there, and waits until it is gone.

    Raises:
        TimeoutError: It was still there after `READY_SECONDS`.
    """
    deadline = time.monotonic() + READY_SECONDS
    try:
        core.delete_namespace(NAMESPACE)
        while time.monotonic() < deadline:
            core.read_namespace(NAMESPACE)
            time.sleep(0.5)
    except ApiException as error:
        if error.status != 404:  # noqa: PLR2004  not found: gone
            raise
    else:
        msg = f"namespace {NAMESPACE} is still there {READY_SECONDS} s after its deletion; its status says why"
        raise TimeoutError(msg)


def gateway_address(core: client.CoreV1Api) -> str:
    """Address of Istio's ingress gateway as this machine reaches it on the local cluster."""
    return str(core.read_namespaced_service("istio-ingressgateway", "istio-system").spec.cluster_ip)


def wait_for_answer(
    url: str, host: str, body: str, server: subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    """Returns once a prediction succeeds.

    Raises:
        TimeoutError: None did.
        RuntimeError: `server` ended.
    """
    deadline = time.monotonic() + READY_SECONDS
    cause = ""
    while time.monotonic() < deadline:
        if server is not None and log is not None and server.poll() is not None:
            raise RuntimeError(f"the server of {host} ended with code {server.returncode}: {log.read_text()[-2000:]}")
        headers = {"Host": host, "Content-Type": "application/json"}
        request = urllib.request.Request(url, body.encode(), headers)  # noqa: S310  our own http URL
        try:
            with urllib.request.urlopen(request, timeout=10):  # noqa: S310  the gateway's http:// address
                return
        except (OSError, urllib.error.URLError) as error:
            cause = str(error)
            time.sleep(0.5)
    raise TimeoutError(f"{host} did not answer at {url} within {READY_SECONDS} s: {cause}")


def built_image() -> str:
    """The local cluster's serving image."""
    done = subprocess.run(
        ["python3", "-m", "local", "images", "--json"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    return str(json.loads(done.stdout)["serving"])


def say(line: str) -> None:
    """One line on standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Builds, runs, measures, writes the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("--local", action="store_true", help="run the servers on loopback instead of on the cluster")
    parser.add_argument("--image", default="", help="the serving image; default: the local cluster's")
    parser.add_argument("--address", default="", help="the gateway's address; default: its Service's cluster IP")
    options = parser.parse_args()
    # A SIGTERM, too, takes down what was put up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if shutil.which("wrk") is None:
        parser.exit(1, "the load generator wrk is missing; install it: apt-get install wrk\n")
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
        built = targets(Path(folder))
        place = (
            on_loopback(built) if options.local else on_cluster(built, options.image or built_image(), options.address)
        )
        with place as places:
            rows = measure(places)
    table = markdown(["server", "clients", "requests/s", "p50 ms", "p99 ms", "errors"], rows)
    say(f"\n{table}")
    if not options.local:
        publish("serving", "make bench-serving", table)
    return 1 if any(row[-1] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
