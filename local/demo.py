"""`make demo`: from a cluster to a served model and on to its replacement, under load and without a lost request.

Called by `make demo` and `make install` after `local/up` has brought the cluster
up. Each step does what a user would do by hand (helm, kubectl, `kubectl mlmodel
watch`, a POST to the gateway) and the end compares what was seen with what the
README promises. It needs no terminal and no input, may be run again on a used
cluster, and exits 1 with the cause when anything is not as promised; logs are
then in .demo/.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import fsspec
from rich.console import Console
from rich.table import Table

from benchmarks.load import Answer, Load, Outcome, Target, predict
from local.access import OPERATOR, SYSTEM, AccessError, Cluster
from local.layout import REPO

MODEL: Final = "adult-income"
NAMESPACE: Final = "default"
EXAMPLE: Final = REPO / "examples" / "adult-income"
RESULTS: Final = REPO / ".demo"
ARTIFACTS: Final = f"mlplatform/{NAMESPACE}/{MODEL}"
"""Bucket and prefix of the model's artifacts, as chart and operator lay them out."""

STARTED: Final = "DEMO_STARTED"
"""Variable with the time (Unix seconds) at which make began: what it did before this program counts, too."""

LEAST_ROC_AUC: Final = 0.905
DATA_SECONDS: Final = 600.0
"""Download and upload of 4 MB, over whatever line there is."""
READY_WITHIN: Final = "15m"
REQUESTS_PER_SECOND: Final = 30.0
LOG_WIDTH: Final = 160
"""Columns where the output is no terminal."""
ROUTE_SECONDS: Final = 30.0
REQUESTS_AFTER: Final = 60
"""Requests that still follow the promotion: all of them must be the new version's."""

PEOPLE: Final[tuple[dict[str, Any], ...]] = (
    {
        "age": 39, "workclass": "State-gov", "fnlwgt": 77516, "education": "Bachelors", "education-num": 13,
        "marital-status": "Never-married", "occupation": "Adm-clerical", "relationship": "Not-in-family",
        "race": "White", "sex": "Male", "capital-gain": 2174, "capital-loss": 0, "hours-per-week": 40,
        "native-country": "United-States",
    },
    {
        "age": 31, "workclass": "Private", "fnlwgt": 45781, "education": "Masters", "education-num": 14,
        "marital-status": "Never-married", "occupation": "Prof-specialty", "relationship": "Not-in-family",
        "race": "White", "sex": "Female", "capital-gain": 14084, "capital-loss": 0, "hours-per-week": 50,
        "native-country": "United-States",
    },
    {
        "age": 53, "workclass": "Private", "fnlwgt": 234721, "education": "11th", "education-num": 7,
        "marital-status": "Married-civ-spouse", "occupation": "Handlers-cleaners", "relationship": "Husband",
        "race": "Black", "sex": "Male", "capital-gain": 0, "capital-loss": 0, "hours-per-week": 40,
        "native-country": "United-States",
    },
)  # fmt: skip
"""Three rows of the data; the second one earns over $50,000."""


class DemoError(RuntimeError):
    """A step did not do what it promises; `hint` says where to look."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass
class Demo:
    """What the steps share.

    Attributes:
        views: `kubectl mlmodel status -o json` of each version once it served all traffic.
        answers: The predictions shown, by version.
        weights: Weights of the second version as the status told them, in order.
        outcome: What became of the requests during the replacement.
        times: Seconds of each step.
        results: Promises and what was seen.
    """

    cluster: Cluster
    out: Console
    views: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    weights: list[int] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    times: dict[str, float] = field(default_factory=dict)
    results: list[Check] = field(default_factory=list)

    def say(self, text: str) -> None:
        """One line to the reader."""
        self.out.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """A table to the reader; without the blanks that fill its rows where no terminal shows it."""
        if self.out.is_terminal:
            self.out.print(table)
            return
        with self.out.capture() as printed:
            self.out.print(table)
        self.say("\n".join(line.rstrip() for line in printed.get().splitlines()))

    def status(self) -> dict[str, Any]:
        """The model as `kubectl mlmodel status -o json` tells it."""
        text = self.cluster.kubectl("mlmodel", "status", MODEL, "-n", NAMESPACE, "-o", "json")
        found: dict[str, Any] = json.loads(text)
        return found

    def target(self) -> Target:
        """The model's address at the gateway."""
        url = self.status().get("url", "")
        if not url:
            raise DemoError(f"{MODEL} has no URL", f"kubectl mlmodel status {MODEL} -n {NAMESPACE}")
        return Target(self.cluster.gateway(), urlsplit(url).netloc)


def install(demo: Demo) -> None:
    """Installs the chart with its store."""
    demo.say(demo.cluster.install())


def data(demo: Demo) -> None:
    """Puts the 48,842 rows into the store."""
    environment = demo.cluster.store_environment(NAMESPACE)
    command = [sys.executable, str(EXAMPLE / "data.py")]
    try:
        done = subprocess.run(command, env=environment, check=False, timeout=DATA_SECONDS)
    except subprocess.TimeoutExpired:
        raise DemoError(
            f"the data step did not end within {DATA_SECONDS:.0f} s", f"kubectl -n {SYSTEM} get pods"
        ) from None
    if done.returncode:
        raise DemoError("the data step failed (its error stands above)", f"kubectl -n {SYSTEM} get pods")


def first_version(demo: Demo) -> None:
    """Applies the example and follows it until it serves all traffic."""
    _forget_earlier_runs(demo)
    demo.say(demo.cluster.kubectl("apply", "-n", NAMESPACE, "-f", str(EXAMPLE / "mlmodel.yaml")).strip())
    _watch_until_ready(demo)
    demo.views.append(demo.status())


def _forget_earlier_runs(demo: Demo) -> None:
    """A model and artifacts of an earlier run would be reused; the demo shows the whole way."""
    demo.cluster.kubectl(
        "delete", "mlmodel", MODEL, "-n", NAMESPACE, "--ignore-not-found", "--wait", "--timeout=120s", seconds=150
    )
    artifacts = store(demo.cluster)
    if artifacts.exists(ARTIFACTS):
        artifacts.rm(ARTIFACTS, recursive=True)


def store(cluster: Cluster) -> fsspec.AbstractFileSystem:
    """The artifact store, from the host."""
    environment = cluster.store_environment(NAMESPACE)
    return fsspec.filesystem(
        "s3",
        key=environment.get("AWS_ACCESS_KEY_ID"),
        secret=environment.get("AWS_SECRET_ACCESS_KEY"),
        client_kwargs={
            "endpoint_url": environment.get("AWS_ENDPOINT_URL"),
            "region_name": environment.get("AWS_REGION", "us-east-1"),
        },
    )


def _watch_until_ready(demo: Demo) -> None:
    """Shows `kubectl mlmodel watch`, live in a terminal, else a line for each change."""
    command = ["mlmodel", "watch", MODEL, "-n", NAMESPACE, "--until", "ready", "--timeout", READY_WITHIN]
    done = subprocess.run([demo.cluster.tool("kubectl"), *command], env=demo.cluster.env, check=False)
    if done.returncode:
        raise DemoError(
            f"{MODEL} did not become ready (exit code {done.returncode} of `kubectl {' '.join(command)}`)",
            f"kubectl -n {SYSTEM} logs deploy/{OPERATOR}; kubectl -n {NAMESPACE} get pods",
        )


def ask(demo: Demo) -> None:
    """Predicts through the gateway."""
    target = demo.target()
    _wait_for_route(target)
    connection = target.connect()
    for person in PEOPLE:
        answer = predict(connection, target, person)
        demo.say(f"POST {target.host}/predict  {_words(person)}  ->  {answer.status} {json.dumps(answer.body)}")
        missing = {"prediction", "confidence", "latency_ms", "model_version"} - set(answer.body or ())
        if answer.status != 200 or missing:  # noqa: PLR2004  HTTP
            raise DemoError(f"the gateway answered {answer.status} {answer.body}", f"kubectl -n {NAMESPACE} get pods")
        demo.answers.append(answer)
    connection.close()


def _wait_for_route(target: Target) -> None:
    """A mesh hands a new route to its proxies a moment after it was applied, and nothing tells when."""
    deadline = time.monotonic() + ROUTE_SECONDS
    while (answer := _one(target)).status in {0, 404, 503}:
        if time.monotonic() > deadline:
            raise DemoError(
                f"{target.gateway} has no route for {target.host}: {answer.status} {answer.body}",
                f"kubectl -n {NAMESPACE} get virtualservices,services,endpoints",
            )
        time.sleep(0.2)


def _words(person: dict[str, Any]) -> str:
    return f"{person['age']}, {person['education']}, {person['occupation']}, {person['hours-per-week']} h/week"


def replacement(demo: Demo) -> None:
    """Applies a second version and keeps asking while it takes over."""
    target = demo.target()
    with Load(target, PEOPLE, per_second=REQUESTS_PER_SECOND) as load:
        patch = ("--type", "merge", "--patch-file", str(EXAMPLE / "v2.patch.yaml"))
        demo.say(demo.cluster.kubectl("patch", "mlmodel", MODEL, "-n", NAMESPACE, *patch).strip())
        with _Weights(demo) as weights:
            _watch_until_ready(demo)
        demo.weights = weights.seen
        demo.views.append(demo.status())
        load.wait_for(load.outcome.total + REQUESTS_AFTER)
    demo.outcome = load.outcome
    demo.answers += [_one(target)]


def _one(target: Target) -> Answer:
    """One prediction; status 0 where there was no answer."""
    connection = target.connect()
    try:
        return predict(connection, target, PEOPLE[0])
    except (OSError, HTTPException) as error:
        return Answer(0, f"{type(error).__name__}: {error}", 0.0)
    finally:
        connection.close()


class _Weights:
    """Collects the second version's weights from `kubectl mlmodel watch -o json`."""

    def __init__(self, demo: Demo) -> None:
        self.seen: list[int] = []
        self._command = [
            demo.cluster.tool("kubectl"), "mlmodel", "watch", MODEL, "-n", NAMESPACE, "-o", "json", "--timeout", READY_WITHIN,
        ]  # fmt: skip
        self._env = demo.cluster.env
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.terminate()
        self._thread.join()
        self._process.wait()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            view = json.loads(line)
            traffic = view.get("traffic") or {}
            weight = traffic.get("weight", 0) if traffic.get("candidate") else 0
            if view["outcome"] == "Ready":
                weight = 100
            if weight and (not self.seen or self.seen[-1] != weight):
                self.seen.append(weight)


@dataclass(frozen=True, slots=True)
class Check:
    """A promise and what was seen."""

    promise: str
    kept: bool
    seen: str


def checks(demo: Demo) -> list[Check]:
    """Compares what was seen with what the README promises."""
    first, second = (view["version"] for view in demo.views)
    names = {first["name"]: "v1", second["name"]: "v2"}
    outcome = demo.outcome
    served = {label: outcome.by_version.get(name, 0) for name, label in names.items()}
    unknown = set(outcome.by_version) - set(names)
    steps = _rollout_steps(demo)
    found = [_metric_check(label, version) for label, version in (("v1", first), ("v2", second))]
    found += [_fairness_check(label, version) for label, version in (("v1", first), ("v2", second))]
    found += [
        Check("both versions passed every stage", *_stages_seen(demo.views)),
        Check(
            f"the weights moved {' → '.join(map(str, steps))} → 100 %",
            demo.weights == [*steps, 100],
            " → ".join(f"{weight} %" for weight in demo.weights) or "nothing",
        ),
        Check("all traffic now goes to v2", _traffic_of(demo) == {second["name"]: 100}, str(_traffic_of(demo))),
        Check(
            "a request after the promotion is answered by v2",
            demo.answers[-1].status == 200 and demo.answers[-1].body.get("model_version") == second["name"],  # noqa: PLR2004  HTTP 200
            str(demo.answers[-1].body),
        ),
        Check(
            "both versions answered during the promotion, and nobody else",
            all(served.values()) and not unknown,
            ", ".join(f"{label} {count:,}" for label, count in served.items()) + (f", {unknown}" if unknown else ""),
        ),
        Check(
            "no request failed during the promotion",
            outcome.failed == 0 and outcome.total > 0,
            f"{outcome.failed} of {outcome.total:,}" + "".join(f"; {f}" for f in outcome.failures[:3]),
        ),
    ]
    return found


def _rollout_steps(demo: Demo) -> list[int]:
    spec = demo.cluster.get("mlmodel", MODEL, "-n", NAMESPACE)["spec"]
    return list(spec["rollout"]["steps"])


def _metric_check(label: str, version: dict[str, Any]) -> Check:
    found = version["metrics"].get("roc_auc", 0.0)
    return Check(f"{label}: test ROC-AUC of at least {LEAST_ROC_AUC}", found >= LEAST_ROC_AUC, f"{found:.4f}")


def _fairness_check(label: str, version: dict[str, Any]) -> Check:
    rows = version["fairness"]
    seen = ", ".join(f"{r['metric'].split('_')[0]} {r['attribute']} {r['value']:.3f} ≤ {r['bound']:g}" for r in rows)
    return Check(
        f"{label}: fairness within its bounds", bool(rows) and all(r["passed"] for r in rows), seen or "nothing"
    )


def _stages_seen(views: Sequence[dict[str, Any]]) -> tuple[bool, str]:
    states = {
        f"v{view['version']['sequence']} {stage['name']}": stage["state"]
        for view in views
        for stage in view["version"]["stages"]
    }
    late = [f"{name} {state}" for name, state in states.items() if state != "succeeded"]
    ready = all(view["outcome"] == "Ready" for view in views)
    return ready and not late, ", ".join(late) or f"{len(states)} of {len(states)}"


def _traffic_of(demo: Demo) -> dict[str, int]:
    """Weights as the mesh has them."""
    return weights(demo.cluster.get("virtualservice", MODEL, "-n", NAMESPACE))


def weights(route: dict[str, Any]) -> dict[str, int]:
    """The weighted split of a VirtualService, its last route, by version."""
    return {
        destination["destination"]["host"].split(".")[0].removesuffix("-predictor"): destination.get("weight", 100)
        for destination in route["spec"]["http"][-1]["route"]
        if destination.get("weight", 100)
    }


def summary(demo: Demo) -> None:
    """Shows what was reached and compares it with what is promised.

    Raises:
        DemoError: A promise was not kept.
    """
    outcome = demo.outcome
    demo.say(
        f"requests while v2 took over: {outcome.total:,}, failed: {outcome.failed}, "
        f"p50 {outcome.quantile(0.5) * 1000:.1f} ms, p99 {outcome.quantile(0.99) * 1000:.1f} ms"
    )
    results = demo.results = checks(demo)
    table = Table(box=None, pad_edge=False)
    for column in ("", "promise", "seen"):
        table.add_column(column, overflow="fold")
    for check in results:
        mark = ("ok", "green") if check.kept else ("NO", "bold red")
        table.add_row(f"[{mark[1]}]{mark[0]}[/]", check.promise, check.seen)
    demo.show(table)
    _keep(demo)
    broken = [check.promise for check in results if not check.kept]
    if broken:
        raise DemoError(f"not as promised: {'; '.join(broken)}", f"the whole story is in {RESULTS / 'summary.json'}")


def _keep(demo: Demo) -> None:
    RESULTS.mkdir(exist_ok=True)
    outcome = demo.outcome
    story = {
        "versions": demo.views,
        "weights": demo.weights,
        "requests": {
            "total": outcome.total,
            "failed": outcome.failed,
            "byVersion": dict(outcome.by_version),
            "failures": outcome.failures,
            "p50Seconds": outcome.quantile(0.5),
            "p99Seconds": outcome.quantile(0.99),
        },
        "checks": [{"promise": c.promise, "kept": c.kept, "seen": c.seen} for c in demo.results],
        "seconds": demo.times,
    }
    (RESULTS / "summary.json").write_text(json.dumps(story, indent=2), encoding="utf-8")


STEPS: Final[dict[str, Callable[[Demo], None]]] = {
    "install": install,
    "data": data,
    "first version": first_version,
    "prediction": ask,
    "replacement": replacement,
    "summary": summary,
}


def collect(demo: Demo) -> None:
    """Writes what an engineer would ask for first into .demo/."""
    RESULTS.mkdir(exist_ok=True)
    selector = ("-n", NAMESPACE, "-l", f"mlplatform.dev/model={MODEL}")
    questions = {
        "objects.yaml": ("get", "mlmodels,modelversions,pytorchjobs,inferenceservices,virtualservices", "-n", NAMESPACE, "-o", "yaml"),
        "pods.txt": ("get", "pods", "--all-namespaces", "-o", "wide"),
        "describe.txt": ("describe", "pods", *selector),
        "logs.txt": ("logs", *selector, "--all-containers", "--prefix", "--tail=300"),
        "events.txt": ("get", "events", "-n", NAMESPACE, "--sort-by=.lastTimestamp"),
        "operator.log": ("logs", "-n", SYSTEM, f"deployment/{OPERATOR}", "--tail=2000"),
        "gateway.log": ("logs", "-n", "istio-system", "-l", "istio=ingressgateway", "--all-containers", "--tail=300"),
    }  # fmt: skip
    for name, question in questions.items():
        try:
            text = demo.cluster.kubectl(*question)
        except AccessError as error:
            text = f"{error}\n"
        (RESULTS / name).write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps; returns 1 when one of them fails."""
    parser = argparse.ArgumentParser(prog="python -m local.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("install", "data"), help="do this one step and stop")
    options = parser.parse_args(argv)
    out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    try:
        cluster = Cluster.connect()
    except AccessError as error:
        out.print(f"error: {error}\nnext:  {error.hint}", style="red", markup=False, soft_wrap=True)
        return 1
    demo = Demo(cluster, out)
    if STARTED in os.environ and not options.only:
        demo.times["packages and cluster"] = time.time() - float(os.environ[STARTED])
    steps = {options.only: STEPS[options.only]} if options.only else STEPS
    try:
        for name, step in steps.items():
            out.print(f"\n==> {name}: {_first_line(step)}", style="bold", markup=False, soft_wrap=True)
            start = time.monotonic()
            step(demo)
            demo.times[name] = time.monotonic() - start
            out.print(f"    {name}: {demo.times[name]:.1f} s", style="dim")
    except (AccessError, DemoError) as error:
        _report(demo, str(error), error.hint or "read the logs")
        return 1
    except Exception as error:  # noqa: BLE001  whatever it is, its reader gets what is promised: cause, logs and status 1
        _report(demo, f"{type(error).__name__}: {error}", "read traceback.txt and the logs")
        (RESULTS / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return 1
    finally:
        cluster.close()
    out.print("\n" + _times(demo.times), markup=False)
    if not options.only:
        _keep(demo)
    return 0


def _report(demo: Demo, cause: str, action: str) -> None:
    collect(demo)
    demo.out.print(f"\nerror: {cause}", style="bold red", markup=False, soft_wrap=True)
    demo.out.print(f"next:  {action}; logs are in {_shown(RESULTS)}/", markup=False, soft_wrap=True)


def _first_line(step: Callable[[Demo], None]) -> str:
    return (step.__doc__ or "").partition("\n")[0]


def _shown(path: Path) -> str:
    return str(path.relative_to(REPO) if path.is_relative_to(REPO) else path)


def _times(times: dict[str, float]) -> str:
    width = max(map(len, times))
    rows = [f"  {name:<{width}}  {seconds:7.1f} s" for name, seconds in times.items()]
    return "\n".join([*rows, f"  {'together':<{width}}  {sum(times.values()):7.1f} s"])


if __name__ == "__main__":
    sys.exit(main())
