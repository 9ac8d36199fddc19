"""`kubectl mlmodel`: see, follow and steer models from the terminal.

Called by kubectl, which finds the console script `kubectl-mlmodel` on the PATH,
and by `make demo`. It parses arguments, connects `cluster` (what is) to `view`
(what it means) and `render` (how it looks), and turns the outcome into an exit
code. It exists because a pipeline of hours wants a picture, and a script wants
an exit code, where `kubectl get` has a row.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final, NoReturn

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mlplatform import __version__, api, contract
from mlplatform.cli import predict, render
from mlplatform.cli.cluster import EXIT_USAGE, MODELS, VERSIONS, CliError, Cluster, Event, Synced
from mlplatform.cli.view import ModelView, Object, Outcome, model_view

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_TIMEOUT: Final = 124
EXIT_INTERRUPTED: Final = 130

_STAGES_UNTIL: Final = {"trained": "train", "audited": "audit", "optimized": "optimize", "packaged": "package"}
UNTIL: Final = ("ready", "failed", "accepted", *_STAGES_UNTIL, "rollout", "deleted", "never")
_TICK_SECONDS: Final = 1.0
"""How often the live view redraws the running durations; the cluster is watched, not polled."""

_PIPE_WIDTH: Final = 1000
"""Columns of a table that goes into a pipe: more than any row has."""

_EXAMPLES: Final = """\
examples:
  kubectl mlmodel watch adult-income                    follow the latest version until it serves all traffic
  kubectl mlmodel watch adult-income --until packaged   stop when the pipeline has ended
  kubectl mlmodel watch adult-income -o json | jq .stage
  kubectl mlmodel status                                one line a model
  kubectl mlmodel status adult-income -o yaml
  kubectl mlmodel history adult-income                  what was promoted or rolled back, when and why
  kubectl mlmodel retrain adult-income                  a new version of an unchanged spec
  kubectl mlmodel predict adult-income --features '{"age": 39, "education": "Bachelors"}'

exit codes:
  0    done; what `--until` names was reached
  1    the model failed, or the cluster refused or could not be reached
  2    wrong usage: arguments, kubeconfig or context
  124  `--timeout` passed first
  130  interrupted (Ctrl-C)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments after the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    args = parser().parse_args(argv)
    out, err = console(sys.stdout, color=args.color), console(sys.stderr, color=args.color)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        cluster = Cluster(args.kubeconfig, args.context, args.namespace)
        try:
            code: int = args.run(args, cluster, out)
        finally:
            cluster.close()
    except CliError as error:
        _complain(err, error.cause, error.next_action)
        return error.code
    except api.SpecError as error:
        newer = "the operator is newer than this plugin; upgrade it: pip install -U 'mlplatform[cli]'"
        _complain(err, f"cannot read the model's status: {error}", newer)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; nothing is left to say, not even by the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    return code


def _complain(err: Console, cause: str, next_action: str) -> None:
    """Two lines on the standard error; that nobody reads them does not change the exit code."""
    with suppress(BrokenPipeError):
        err.print(f"error: {cause}", style="red", markup=False, highlight=False, soft_wrap=True)
        err.print(f"next:  {next_action}", markup=False, highlight=False, soft_wrap=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A SIGTERM ends the program the way Ctrl-C does, so that the terminal is restored."""
    raise KeyboardInterrupt


class _Console(Console):
    """A console that leaves it to `main` what a reader that has gone means; rich itself would exit with 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Passes the error on.

        Raises:
            BrokenPipeError: Always.
        """
        raise BrokenPipeError


def console(stream: Any, *, color: bool) -> Console:
    """A console on `stream`; without colour when asked, when NO_COLOR is set or without a terminal."""
    plain = not color or bool(os.environ.get("NO_COLOR"))
    return _Console(file=stream, no_color=plain, highlight=False, emoji=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    _add_cluster_flags(common, again=True)
    top = argparse.ArgumentParser(
        prog="kubectl mlmodel",
        description="See, follow and steer the models of the cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_cluster_flags(top, again=False)
    top.add_argument("--version", action="version", version=f"kubectl-mlmodel {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace, Cluster, Console], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[common],
            epilog="\n".join(["examples:", *(e for e in _EXAMPLES.splitlines() if f"mlmodel {name}" in e), "", _CODES]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command("watch", watch, "follow the latest version of a model, live")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument(
        "--until",
        choices=UNTIL,
        default="ready",
        help="when to stop (default: ready); a failure stops too, what is only held up does not",
    )
    sub.add_argument(
        "--timeout", type=_timeout, metavar="DURATION", help="give up after, e.g. 90s, 10m or 1h30m; exit code 124"
    )
    sub.add_argument("-o", "--output", choices=("json",), help="one JSON object a line for every change")

    sub = command("status", status, "show a model, or one line for each")
    sub.add_argument("name", type=_model_name, metavar="NAME", nargs="?")
    sub.add_argument("-A", "--all-namespaces", action="store_true", help="models of every namespace")
    sub.add_argument("-o", "--output", choices=("json", "yaml", "wide"))

    sub = command("history", history, "list the decisions about a model's versions, newest first")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument("-o", "--output", choices=("json", "yaml"))

    sub = command("retrain", retrain, "ask for a new version of an unchanged model")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument(
        "--key", type=_key, help="name of the request: the same key twice is one version (default: the time)"
    )

    sub = command("predict", predict_command, "ask a model for one prediction through the gateway")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument(
        "--features",
        required=True,
        type=_features,
        metavar="JSON",
        help="an object {column: value}, or a list in the schema's order",
    )
    sub.add_argument("--model-version", default="", metavar="VERSION", help="ask this version, past the weights")
    sub.add_argument(
        "--gateway",
        default=os.environ.get("GATEWAY_URL", ""),
        metavar="URL",
        help="address of the gateway (default: GATEWAY_URL, else a port-forward)",
    )
    return top


def _add_cluster_flags(to: argparse.ArgumentParser, *, again: bool) -> None:
    """Flags that may stand before and after the command.

    Args:
        to: The parser that gets them.
        again: Another parser has looked for them before it; no default may replace what that one found.
    """
    group = to.add_argument_group("cluster", argument_default=argparse.SUPPRESS if again else None)
    group.add_argument("-n", "--namespace", help="namespace of the model (default: the context's)")
    group.add_argument("--context", help="kubeconfig context to use")
    group.add_argument("--kubeconfig", help="path of the kubeconfig (default: KUBECONFIG, then ~/.kube/config)")
    group.add_argument("--no-color", dest="color", action="store_false", help="no colour (also: NO_COLOR=1)")


_CODES: Final = _EXAMPLES[_EXAMPLES.index("exit codes:") :]


def _model_name(text: str) -> str:
    """Accepts `mlmodel/NAME` and `mlm/NAME` as kubectl prints them."""
    kind, _, name = text.rpartition("/")
    if not name or kind not in {"", "mlm", "mlmodel", "mlmodels", f"mlmodel.{contract.GROUP}"}:
        raise argparse.ArgumentTypeError(f"{text!r} is no model; write NAME or mlmodel/NAME")
    return name


def _timeout(text: str) -> float:
    try:
        return api.parse_duration(text).total_seconds()
    except api.SpecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _key(text: str) -> str:
    if len(text) > contract.TRIGGER_LIMIT:
        raise argparse.ArgumentTypeError(
            f"{len(text)} characters, at most {contract.TRIGGER_LIMIT} are kept; choose a shorter key"
        )
    return text


def _features(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, (dict, list)):
        raise argparse.ArgumentTypeError('write {"column": value, ...} or [value, ...]')
    return value


def now() -> datetime:
    """The wall clock; nothing below this module reads it."""
    return datetime.now(UTC)


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
            _dump(api.encode(view), args.output, out)
        elif args.output == "wide":
            _print_table(render.models_table([view], wide=True, namespaces=False), out)
        else:
            out.print(render.frame(view, render.signs_for(out)))
        return EXIT_OK
    models = cluster.models(everywhere=args.all_namespaces)
    versions = cluster.versions(everywhere=args.all_namespaces)
    views = [model_view(model, _versions_of(model, versions), now()) for model in models]
    views.sort(key=lambda view: (view.namespace, view.name))
    if args.output in {"json", "yaml"}:
        _dump([api.encode(view) for view in views], args.output, out)
    elif views:
        _print_table(render.models_table(views, wide=args.output == "wide", namespaces=args.all_namespaces), out)
    else:
        where = "the cluster" if args.all_namespaces else f"namespace {cluster.namespace!r}"
        _say(out, f"no models in {where}; create one: kubectl apply -f examples/adult-income/mlmodel.yaml")
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
        _dump([api.encode(entry) for entry in view.history], args.output, out)
    elif view.history:
        _print_table(render.history_table(view), out)
    else:
        _say(out, f"no version of {args.name} was promoted or rolled back yet")
    return EXIT_OK


def retrain(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`retrain NAME`."""
    cluster.model(args.name)
    key = args.key or now().strftime("%Y-%m-%dT%H:%M:%SZ")
    cluster.annotate(args.name, contract.ANNOTATION_RETRAIN, key)
    _say(out, f"mlmodel/{args.name}: a new version is asked for ({key})")
    _say(out, f"follow it: kubectl mlmodel watch {args.name} -n {cluster.namespace}")
    return EXIT_OK


def predict_command(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`predict NAME --features JSON`."""
    view = model_view(cluster.model(args.name), [], now())
    if not view.url:
        raise CliError(
            f"{args.name} serves nothing yet", f"wait for it: kubectl mlmodel watch {args.name} -n {cluster.namespace}"
        )
    answer = predict.ask(cluster, predict.Question(view.url, args.features, args.model_version), args.gateway)
    _dump(answer, "json", out)
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
        if args.output == "json":
            return _watch_lines(follower, events, deadline, _json_lines(out))
        if out.is_terminal and args.color and not os.environ.get("NO_COLOR"):
            return _watch_live(follower, events, deadline, out)
        return _watch_lines(follower, events, deadline, _text_lines(out))
    finally:
        stop()


class Follower:
    """Folds watch events into views and says when to stop."""

    def __init__(self, name: str, namespace: str, until: str) -> None:
        self.name = name
        self.namespace = namespace
        self._until = until
        self._model: Object | None = None
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
            self._model = None if event.gone else event.obj
        elif event.gone:
            self._versions.pop(event.obj["metadata"]["name"], None)
        else:
            self._versions[event.obj["metadata"]["name"]] = event.obj

    def view(self) -> ModelView | None:
        """The model now; None before both kinds are listed and after its deletion."""
        if self._unsynced or self._model is None:
            return None
        return model_view(self._model, list(self._versions.values()), now())

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
    return states[_STAGES_UNTIL[until]] == "succeeded"


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


def _watch_lines(
    follower: Follower, events: queue.Queue[Event], deadline: float | None, tell: Callable[[ModelView | None], None]
) -> int:
    """Tells every change, until the end."""
    while (batch := _next(events, deadline, None)) is not None:
        for event in batch:
            follower.take(event)
            tell(follower.view())
        if (code := follower.exit_code()) is not None:
            return code
    return _timed_out(follower)


def _text_lines(out: Console) -> Callable[[ModelView | None], None]:
    """One line a change, each with the time."""
    before: dict[str, str] = {}

    def tell(view: ModelView | None) -> None:
        nonlocal before
        if view is None:
            if before:
                _line(out, "deleted")
            before = {}
            return
        after = render.facts(view)
        for line in render.changes(before, after):
            _line(out, line)
        before = after

    return tell


def _line(out: Console, text: str) -> None:
    out.print(f"{now():%H:%M:%S}  {' '.join(text.split())}", markup=False, soft_wrap=True)


def _json_lines(out: Console) -> Callable[[ModelView | None], None]:
    """One JSON object a change; only what really changed counts, not running durations."""
    before: dict[str, str] = {}

    def tell(view: ModelView | None) -> None:
        nonlocal before
        if view is None:
            return
        after = render.facts(view)
        if after != before:
            line = json.dumps({"time": now().isoformat(timespec="seconds"), **api.encode(view)}, separators=(",", ":"))
            out.file.write(line + "\n")
            out.file.flush()
        before = after

    return tell


def _watch_live(follower: Follower, events: queue.Queue[Event], deadline: float | None, out: Console) -> int:
    """Redraws one frame in place; the last one stays on the screen."""
    signs = render.signs_for(out)
    with Live(console=out, auto_refresh=False, vertical_overflow="visible") as live:
        while (batch := _next(events, deadline, _TICK_SECONDS)) is not None:
            for event in batch:
                follower.take(event)
            view = follower.view()
            if view is not None:
                live.update(render.frame(view, signs), refresh=True)
            if (code := follower.exit_code()) is not None:
                return code
    return _timed_out(follower)


def _timed_out(follower: Follower) -> NoReturn:
    view = follower.view()
    where = f"{view.outcome.value}: {view.message or view.stage}" if view else "no such model"
    raise CliError(
        f"--timeout passed; {follower.name} in namespace {follower.namespace!r} is {where}",
        f"go on: kubectl mlmodel watch {follower.name} -n {follower.namespace}",
        code=EXIT_TIMEOUT,
    )


def _dump(value: Any, form: str, out: Console) -> None:
    text = json.dumps(value, indent=2)
    # YAML has no enumerations; JSON has made them strings.
    out.file.write(text + "\n" if form == "json" else yaml.safe_dump(json.loads(text), sort_keys=False))
    out.file.flush()  # Here, where a reader that has gone is noticed, and not when the interpreter ends.


def _say(out: Console, text: str) -> None:
    """One line, never wrapped: it may be cut and pasted."""
    out.print(text, markup=False, soft_wrap=True)


def _print_table(table: Table, out: Console) -> None:
    """Prints a table; whole where nobody looks at its edge: into pipes and files."""
    whole = out if out.is_terminal else _Console(file=out.file, width=_PIPE_WIDTH, no_color=True)
    whole.print(table)


if __name__ == "__main__":
    sys.exit(main())
