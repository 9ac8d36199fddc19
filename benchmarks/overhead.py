"""What a cluster adds to a version: the same YAML by `run` and by `kubectl apply`, until its archive is packaged.

Called by `make bench-overhead` on an idle cluster. The two take turns on the same machine; a retrain key makes each
time's version a new one. Times within a version are the API's, in whole seconds, and mean over all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml
from kubernetes import client, config
from rich.console import Console

from benchmarks.follow import followed
from benchmarks.table import markdown, publish
from local import demo
from local.access import Cluster
from mlplatform import contract

MODEL = "overhead"
DATA = Path(".mlplatform/data/adult/adult.csv")
WITHIN = "10m"
STAGES = tuple(stage.value for stage in contract.Stage)
ADDED = ("the operator makes the workload", "its controller makes the pod", "scheduled", "container started")
Parts = dict[str, float]


def manifest(key: str, epochs: int) -> dict[str, Any]:
    """The example under a name of its own, with a retrain key; trained for `epochs`, or as it says itself (0)."""
    model: dict[str, Any] = yaml.safe_load((demo.EXAMPLE / "mlmodel.yaml").read_text())
    if epochs:
        model["spec"]["training"]["epochs"] = epochs
        del model["spec"]["training"]["earlyStopping"]
    model["metadata"] = {"name": MODEL, "annotations": {contract.ANNOTATION_RETRAIN: key}}
    return model


def by_run(model: dict[str, Any], parts: Parts) -> float:
    """Seconds of `kubectl mlmodel run`, from its start to its end.

    Args:
        model: What to run.
        parts: Each container's seconds are added to its stage.
    """
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as folder:
        file = Path(folder) / "mlmodel.yaml"
        file.write_text(yaml.safe_dump(model))
        command = [str(Path(sys.executable).with_name("kubectl-mlmodel")), "run", "-f", str(file)]
        started = time.monotonic()
        subprocess.run([*command, "--data", str(DATA), "--store", folder], check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - started
        (record,) = Path(folder).glob("*/*/*/run.json")
        for stage, ended in json.loads(record.read_text())["ended"].items():
            state = ended["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]
            parts[stage] += between(state["startedAt"], state["finishedAt"])
    return took


def by_apply(cluster: Cluster, model: dict[str, Any], parts: Parts, added: Parts) -> float:
    """Seconds from `kubectl apply` to the ModelVersion's Ready; the model is deleted afterwards.

    Args:
        cluster: The cluster.
        model: What to apply.
        parts: Each container's seconds are added to its stage.
        added: What comes between two containers is added by what it waits for.
    """
    selector = f"{contract.LABEL_MODEL}={MODEL}"
    api = config.new_client_from_config(cluster.env.get("KUBECONFIG"))
    core, batch, custom = client.CoreV1Api(api), client.BatchV1Api(api), client.CustomObjectsApi(api)
    trainings = ("kubeflow.org", "v1", demo.NAMESPACE, "pytorchjobs")
    with (
        followed(core.list_namespaced_pod, demo.NAMESPACE, selector=selector) as seen,
        followed(batch.list_namespaced_job, demo.NAMESPACE, selector=selector) as jobs,
        followed(custom.list_namespaced_custom_object, *trainings, selector=selector) as training,
    ):
        started = time.monotonic()
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(model))
        cluster.kubectl("wait", "mlv", "-l", selector, "--for=create", "--timeout=60s")
        cluster.kubectl("wait", "mlv", "-l", selector, "--for=condition=Ready", f"--timeout={WITHIN}", seconds=700)
        took = time.monotonic() - started
    workloads = [*jobs.values(), *training.values()]
    begin = cluster.get("mlmodel", MODEL)["metadata"]["creationTimestamp"]
    for stage in STAGES:
        workload = next(w for w in workloads if w["metadata"]["labels"].get(contract.LABEL_STAGE) == stage)
        pod = next(
            p for p in seen.values()
            if p["metadata"]["labels"].get(contract.LABEL_STAGE) == stage and not p["metadata"]["name"].endswith("worker-0")
        )  # fmt: skip
        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        scheduled = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")["lastTransitionTime"]
        marks = [
            begin, workload["metadata"]["creationTimestamp"], pod["metadata"]["creationTimestamp"], scheduled,
            state["startedAt"],
        ]  # fmt: skip
        for what, start, end in zip(ADDED, marks, marks[1:], strict=False):
            added[what] += between(start, end)
        parts[stage] += between(state["startedAt"], state["finishedAt"])
        begin = state["finishedAt"]
    ready = next(
        c for c in cluster.get("mlv", "-l", selector)["items"][0]["status"]["conditions"] if c["type"] == "Ready"
    )
    added["the operator says Ready"] += between(begin, ready["lastTransitionTime"])
    cluster.kubectl("delete", "mlmodel", MODEL, "--cascade=foreground", "--wait=true", seconds=180)
    return took


def between(start: str, end: str) -> float:
    """Seconds from one RFC 3339 time to another."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def main() -> int:
    """Writes the block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="train that long instead; the table is only printed then")
    args = parser.parse_args()
    subprocess.run([sys.executable, str(demo.EXAMPLE / "data.py"), "--to", str(DATA)], check=True)
    runs: list[float] = []
    applies: list[float] = []
    local: Parts = defaultdict(float)
    pods: Parts = defaultdict(float)
    added: Parts = defaultdict(float)
    with closing(Cluster.connect()) as cluster:
        shared = demo.Demo(cluster, Console())
        demo.install(shared)
        demo.data(shared)
        cluster.kubectl("delete", "mlmodel", "--all", "--cascade=foreground", "--wait=true", seconds=180)
        for i in range(args.times):
            model = manifest(f"{time.time():.0f}-{i}", args.epochs)
            runs.append(by_run(model, local))
            applies.append(by_apply(cluster, model, pods, added))
            print(f"{i + 1} of {args.times}: run {runs[-1]:.1f} s, apply {applies[-1]:.1f} s", flush=True)

    def each(parts: Parts) -> Callable[[str], str]:
        return lambda name: f"{parts[name] / args.times:.1f} s" if name in parts else ""

    in_run, in_pods, in_between = each(local), each(pods), each(added)
    rows = [[f"{stage}'s container", in_run(stage), in_pods(stage)] for stage in STAGES]
    rows += [[what, "", in_between(what)] for what in added]
    rows += [
        ["**together, median**", f"**{median(runs):.1f} s**", f"**{median(applies):.1f} s**"],
        ["fastest to slowest", *(f"{min(took):.1f} to {max(took):.1f} s" for took in (runs, applies))],
        ["the cluster adds, mean", "", f"{mean(applies) - mean(runs):.1f} s"],
    ]
    body = markdown(["part", "`run`", "`kubectl apply`"], rows)
    print(body)
    if not args.epochs:
        publish("overhead", "make bench-overhead", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
