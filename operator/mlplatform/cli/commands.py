"""The commands that ask a cluster: watch, status, history, data, retrain, retry, rollback, predict, doctor.

Called by `mlplatform.cli.main`, which imports this only for one of them: the API's client takes a while to import.
Connects `cluster` (what is) to `view` (what it means) and `render` (how it looks).
"""

from __future__ import annotations

import argparse
import queue
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from rich.console import Console

from mlplatform import api, contract
from mlplatform.cli import columns, doctor, predict, render, wayback
from mlplatform.cli.cluster import MODELS, VERSIONS, Cluster, Event, Synced
from mlplatform.cli.main import STAGES_UNTIL
from mlplatform.cli.terminal import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TIMEOUT,
    dump,
    now,
    print_table,
    say,
    teller,
)
from mlplatform.cli.view import ModelView, Object, Outcome, model_view
from mlplatform.errors import EXIT_USAGE, CliError

_TICK_SECONDS: Final = 1.0
"""How often the live view redraws the running durations; the cluster is watched, not polled."""


def run(args: argparse.Namespace, out: Console) -> int:
    """Runs the command that `args` names, against the cluster that they name.

    Returns:
        The exit code.
    """
    work: dict[str, Callable[[argparse.Namespace, Cluster, Console], int]] = {
        "watch": watch,
        "status": status,
        "history": history,
        "data": columns.run,
        "retrain": retrain,
        "retry": retry,
        "rollback": rollback,
        "predict": predict_command,
        "doctor": doctor.run,
    }
    cluster = Cluster(args.kubeconfig, args.context, args.namespace)
    try:
        return work[args.command](args, cluster, out)
    finally:
        cluster.close()


def status(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`status [NAME]`."""
    if args.name and args.all_namespaces:
        raise CliError(
            f"{args.name} is the name of one model and -A asks for all models: only one of them can be",
            f"kubectl mlmodel status {args.name} -n NAMESPACE, or kubectl mlmodel status -A",
            code=EXIT_USAGE,
        )
    if args.name:
        view = model_view(cluster.model(args.name), cluster.versions(args.name), now())
        if args.output in {"json", "yaml"}:
            dump(api.encode(view), args.output, out)
        elif args.output == "wide":
            print_table(render.models_table([view], wide=True, namespaces=False), out)
        else:
            out.print(render.frame(view, render.signs_for(out)))
        return EXIT_OK
    models = cluster.models(everywhere=args.all_namespaces)
    versions = cluster.versions(everywhere=args.all_namespaces)
    views = [model_view(model, _versions_of(model, versions), now()) for model in models]
    views.sort(key=lambda view: (view.namespace, view.name))
    if args.output in {"json", "yaml"}:
        dump([api.encode(view) for view in views], args.output, out)
    elif views:
        print_table(render.models_table(views, wide=args.output == "wide", namespaces=args.all_namespaces), out)
    else:
        where = "the cluster" if args.all_namespaces else f"namespace {cluster.namespace!r}"
        say(out, f"no models in {where}; create one: kubectl apply -f examples/adult-income/mlmodel.yaml")
    return EXIT_OK


def _versions_of(model: Object, versions: list[Object]) -> list[Object]:
    meta = model["metadata"]
    return [
        v
        for v in versions
        if v["metadata"].get("labels", {}).get(contract.LABEL_MODEL) == meta["name"]
        and v["metadata"].get("namespace") == meta.get("namespace")
    ]


def history(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`history NAME`."""
    view = model_view(cluster.model(args.name), [], now())
    if args.output:
        dump([api.encode(entry) for entry in view.history], args.output, out)
    elif view.history:
        print_table(render.history_table(view), out)
    else:
        say(out, f"no version of {args.name} was promoted or rolled back yet")
    return EXIT_OK


def retrain(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`retrain NAME`."""
    cluster.model(args.name)
    key = args.key or now().strftime("%Y-%m-%dT%H:%M:%SZ")
    cluster.annotate(args.name, contract.ANNOTATION_RETRAIN, key)
    say(out, f"mlmodel/{args.name}: a new version is asked for ({key})")
    say(out, f"follow it: kubectl mlmodel watch {args.name} -n {cluster.namespace}")
    return EXIT_OK


def retry(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`retry NAME`."""
    version = cluster.version(args.name, args.version)
    name = version["metadata"]["name"]
    failed = next((s for s in version.get("status", {}).get("stages", ()) if s["outcome"] == "Failed"), None)
    if failed is None:
        raise CliError(
            f"no stage of {name} has failed, so there is nothing to run again",
            f"a new version of the same spec: kubectl mlmodel retrain {args.name}",
        )
    attempt = failed.get("attempt", 1) + 1
    cluster.annotate(name, contract.ANNOTATION_RETRY, f"{failed['name']}/{attempt}", VERSIONS)
    say(out, f"modelversion/{name}: attempt {attempt} at {failed['name']} is asked for")
    say(out, f"follow it: kubectl mlmodel watch {args.name} -n {cluster.namespace}")
    return EXIT_OK


def rollback(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`rollback NAME`."""
    way = wayback.find(cluster.model(args.name), cluster.versions(args.name), args.to)
    quiet = args.output == "json"
    if not quiet:
        say(out, way.message)
        say(
            out,
            f"{way.asked.from_} is not tried again until another version is asked for: by a change of what shapes it, "
            f"or by kubectl mlmodel retrain {args.name}",
        )
    cluster.annotate(args.name, contract.ANNOTATION_ROLLBACK, str(way.asked))
    if args.wait:
        _until_over(args, cluster, way.asked)
    if quiet:
        told = {"model": args.name, "namespace": cluster.namespace, "from": way.asked.from_, "to": way.asked.to}
        dump({**told, "message": way.message, "done": args.wait}, "json", out)
    elif args.wait:
        say(out, f"mlmodel/{args.name}: {way.asked.to} takes all the traffic")
    else:
        say(out, f"see how far it is: kubectl mlmodel status {args.name} -n {cluster.namespace}")
    return EXIT_OK


def _until_over(args: argparse.Namespace, cluster: Cluster, asked: api.WayBack) -> None:
    """Waits until the operator has carried a rollback out."""
    events: queue.Queue[Event] = queue.Queue()
    stop = cluster.follow(args.name, events)
    follower = Follower(args.name, cluster.namespace, "never")
    deadline = time.monotonic() + args.timeout if args.timeout is not None else None
    try:
        while (batch := _next(events, deadline, None)) is not None:
            for event in batch:
                follower.take(event)
                if follower.model is not None and wayback.over(follower.model, asked):
                    return
            follower.exit_code()  # Complains of a model that is gone.
        _timed_out(follower)
    finally:
        stop()


def predict_command(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`predict NAME --features JSON`."""
    if not args.name:
        raise CliError(
            "which model?",
            "kubectl mlmodel predict NAME --features …, or --url URL for one without a cluster",
            EXIT_USAGE,
        )
    view = model_view(cluster.model(args.name), [], now())
    if not view.url:
        raise CliError(
            f"{args.name} serves nothing yet", f"wait for it: kubectl mlmodel watch {args.name} -n {cluster.namespace}"
        )
    answer = predict.ask(
        cluster, predict.Question(view.url, args.features, args.model_version, args.ca_file), args.gateway
    )
    dump(answer, "json", out)
    return EXIT_OK


def watch(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`watch NAME`."""
    if args.until != "deleted":
        cluster.model(args.name)
    events: queue.Queue[Event] = queue.Queue()
    stop = cluster.follow(args.name, events)
    follower = Follower(args.name, cluster.namespace, args.until)
    deadline = time.monotonic() + args.timeout if args.timeout is not None else None
    try:
        with teller(out, args.output, color=args.color) as (tell, picture):
            while (batch := _next(events, deadline, _TICK_SECONDS if picture else None)) is not None:
                for event in batch:
                    follower.take(event)
                    if not picture:
                        tell(follower.view())  # every change, also of those that came together
                if picture:
                    tell(follower.view())
                if (code := follower.exit_code()) is not None:
                    return code
        return _timed_out(follower)
    finally:
        stop()


class Follower:
    """Folds watch events into views and says when to stop.

    Attributes:
        model: The MLModel as last told; None before, and after its deletion.
    """

    def __init__(self, name: str, namespace: str, until: str) -> None:
        self.name = name
        self.namespace = namespace
        self._until = until
        self.model: Object | None = None
        self._versions: dict[str, Object] = {}
        self._unsynced = {MODELS, VERSIONS}

    def take(self, event: Event) -> None:
        """Takes one event in.

        Raises:
            CliError: The event says that a watch has given up.
        """
        if isinstance(event, CliError):
            raise event
        if isinstance(event, Synced):
            self._unsynced.discard(event.plural)
        elif event.plural == MODELS:
            self.model = None if event.gone else event.obj
        elif event.gone:
            self._versions.pop(event.obj["metadata"]["name"], None)
        else:
            self._versions[event.obj["metadata"]["name"]] = event.obj

    def view(self) -> ModelView | None:
        """The model now; None before both kinds are listed and after its deletion."""
        if self._unsynced or self.model is None:
            return None
        return model_view(self.model, list(self._versions.values()), now())

    def exit_code(self) -> int | None:
        """The exit code once the end is reached, else None.

        Raises:
            CliError: The model was deleted, which nobody waited for.
        """
        if self._unsynced:
            return None
        view = self.view()
        if view is not None:
            return reached(view, self._until)
        if self._until == "deleted":
            return EXIT_OK
        raise CliError(f"mlmodel/{self.name} was deleted", "apply it again to bring it back")


def reached(view: ModelView, until: str) -> int | None:
    """Whether `view` is where `--until` ends: 0 for the wish, 1 for a failure, None for neither."""
    if until in {"never", "deleted"}:
        return None
    if until == "failed":
        return {Outcome.FAILED: EXIT_OK, Outcome.READY: EXIT_FAILED}.get(view.outcome)
    if view.current and _arrived(view, until):
        return EXIT_OK
    return EXIT_FAILED if view.outcome is Outcome.FAILED else None


def _arrived(view: ModelView, until: str) -> bool:
    if until == "accepted":
        return view.accepted is True
    if view.outcome is Outcome.READY:
        return True
    if view.version is None or until == "ready":
        return False
    states = {stage.name: stage.state for stage in view.version.stages}
    if until == "rollout":
        return states["rollout"] in {"running", "succeeded"}
    return states[STAGES_UNTIL[until]] == "succeeded"


def _next(events: queue.Queue[Event], deadline: float | None, tick: float | None) -> list[Event] | None:
    """Everything that has come, waiting for the first at most `tick` seconds; None past the deadline."""
    left = None if deadline is None else deadline - time.monotonic()
    if left is not None and left <= 0:
        return None
    wait = min((w for w in (left, tick) if w is not None), default=None)
    found: list[Event] = []
    with suppress(queue.Empty):
        found.append(events.get(timeout=wait))
        while True:
            found.append(events.get_nowait())
    return found


def _timed_out(follower: Follower) -> NoReturn:
    view = follower.view()
    where = f"{view.outcome.value}: {view.message or view.stage}" if view else "no such model"
    raise CliError(
        f"--timeout passed; {follower.name} in namespace {follower.namespace!r} is {where}",
        f"go on: kubectl mlmodel watch {follower.name} -n {follower.namespace}",
        code=EXIT_TIMEOUT,
    )
