"""`kubectl mlmodel`: see, follow and steer models from the terminal.

Called by kubectl, which finds the console script `kubectl-mlmodel` on the PATH,
and by `make demo` and `make run`. It parses arguments, hands them to `commands` (a
cluster's) or `run` (this machine), and turns the outcome into an exit code. It
exists because a pipeline of hours wants a picture, and a script wants an exit
code, where `kubectl get` has a row.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NoReturn

from rich.console import Console

from mlplatform import __version__, api, contract
from mlplatform.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, console
from mlplatform.errors import EXIT_USAGE, CliError

STAGES_UNTIL: Final = {"trained": "train", "audited": "audit", "optimized": "optimize", "packaged": "package"}
UNTIL: Final = ("ready", "failed", "accepted", *STAGES_UNTIL, "rollout", "deleted", "never")


_EXAMPLES: Final = """\
examples:
  kubectl mlmodel watch adult-income                    follow the latest version until it serves all traffic
  kubectl mlmodel watch adult-income --until packaged   stop when the pipeline has ended
  kubectl mlmodel watch adult-income -o json | jq .stage
  kubectl mlmodel status                                one line a model
  kubectl mlmodel status adult-income -o yaml
  kubectl mlmodel history adult-income                  what was promoted or rolled back, when and why
  kubectl mlmodel data adult-income                     what became of every column of the data
  kubectl mlmodel data --report train/report.json       of a run, or of a file from the store
  kubectl mlmodel retrain adult-income                  a new version of an unchanged spec
  kubectl mlmodel retry adult-income                    the failed stage once more, of the latest version
  kubectl mlmodel retry adult-income --version v3       of the third one
  kubectl mlmodel rollback adult-income                 back to the version that served before
  kubectl mlmodel rollback adult-income --to v3 --wait  back to that one; end when it takes all the traffic
  kubectl mlmodel predict adult-income --features '{"age": 39, "education": "Bachelors"}'
  kubectl mlmodel predict adult-income --gateway https://bastion:8443 --ca-file ca.crt --features '{"age": 39}'

  kubectl mlmodel predict --url http://127.0.0.1:8080/predictions/adult-income --features '{"age": 39}'
  kubectl mlmodel run -f mlmodel.yaml                   the whole pipeline on this machine
  kubectl mlmodel run -f mlmodel.yaml --data ./adult --rows 2000 --set training.epochs=1 --until audit
  kubectl mlmodel run -f mlmodel.yaml --serve           then serve the model until Ctrl-C

  kubectl mlmodel doctor                                what is missing for models, and what to do about it
  kubectl mlmodel doctor -n team-a --no-probe           of one namespace, without a pod that tries the store
  kubectl mlmodel doctor -o json | jq '.[] | select(.level == "failure")'

exit codes:
  0    done; what `--until` names was reached; every gate was passed; the doctor has found no failure
  1    the model failed or missed a gate, the doctor has found a failure, or the cluster refused or could not be reached
  2    wrong usage: arguments, files, kubeconfig or context
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
        return _dispatch(args, out, err)
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


def _dispatch(args: argparse.Namespace, out: Console, err: Console) -> int:
    """Runs the command, importing what it needs and no more: the API's client alone takes a second."""
    if args.command == "run":
        from mlplatform.cli import run  # noqa: PLC0415

        return run.run(args, out, err)
    if args.command == "predict" and args.url:
        if args.name or args.model_version:
            raise CliError(
                "--url is the address of one model: neither NAME nor --model-version goes with it",
                "leave them out; one version is asked at …/predictions/NAME/VERSION",
                code=EXIT_USAGE,
            )
        from mlplatform.cli import predict  # noqa: PLC0415
        from mlplatform.cli.terminal import dump  # noqa: PLC0415

        dump(predict.ask_url(args.url, args.features, args.ca_file), "json", out)
        return EXIT_OK
    if args.command == "data" and args.report:
        from mlplatform.cli import columns  # noqa: PLC0415

        return columns.of_report(args, out)
    try:
        from mlplatform.cli import commands  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise CliError(
            f"the Python package {error.name} is not installed, which every command that asks a cluster needs",
            "pip install -c constraints.txt '.[cli]' in a checkout, or pip install 'mlplatform[cli]'",
        ) from None
    return commands.run(args, out)


def _complain(err: Console, cause: str, next_action: str) -> None:
    """Two lines on the standard error; that nobody reads them does not change the exit code."""
    with suppress(BrokenPipeError):
        err.print(f"error: {cause}", style="red", markup=False, highlight=False, soft_wrap=True)
        err.print(f"next:  {next_action}", markup=False, highlight=False, soft_wrap=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A SIGTERM ends the program the way Ctrl-C does, so that the terminal is restored."""
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """The command line."""
    common, here = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    _add_cluster_flags(common, again=True)
    _add_own_flags(here, again=True)
    top = argparse.ArgumentParser(
        prog="kubectl mlmodel",
        description="See, follow and steer the models of the cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_cluster_flags(top, again=False)
    top.add_argument("--version", action="version", version=f"kubectl-mlmodel {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str, flags: argparse.ArgumentParser = common) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[flags],
            epilog="\n".join(["examples:", *(e for e in _EXAMPLES.splitlines() if f"mlmodel {name}" in e), "", _CODES]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=name)
        return sub

    sub = command("watch", "follow the latest version of a model, live")
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

    sub = command("status", "show a model, or one line for each")
    sub.add_argument("name", type=_model_name, metavar="NAME", nargs="?")
    sub.add_argument("-A", "--all-namespaces", action="store_true", help="models of every namespace")
    sub.add_argument("-o", "--output", choices=("json", "yaml", "wide"))

    sub = command("history", "list the decisions about a model's versions, newest first")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument("-o", "--output", choices=("json", "yaml"))

    _add_data(
        command("data", "show what became of every column: its kind, what is missing, whether it is used and why not")
    )
    sub = command("retrain", "ask for a new version of an unchanged model")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument(
        "--key", type=_key, help="name of the request: the same key twice is one version (default: the time)"
    )

    sub = command("retry", "run the stage of a version that has failed once more; what passed is not run again")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument(
        "--version", default="", metavar="VERSION", help="its name, or v3 for the third (default: the latest)"
    )

    sub = command("rollback", "go back to an earlier version; what is wanted now is not tried again by itself")
    sub.add_argument("name", type=_model_name, metavar="NAME")
    sub.add_argument(
        "--to",
        default="",
        metavar="VERSION",
        help="its name, or v3 for the third (default: the one that served before)",
    )
    sub.add_argument("--wait", action="store_true", help="end when it takes all the traffic")
    sub.add_argument(
        "--timeout", type=_timeout, metavar="DURATION", help="of --wait: give up after, e.g. 90s or 10m; exit code 124"
    )
    sub.add_argument("-o", "--output", choices=("json",))

    sub = command("predict", "ask a model for one prediction, through the gateway or at a URL")
    sub.add_argument("name", type=_model_name, metavar="NAME", nargs="?")
    sub.add_argument("--url", default="", help="ask there and no cluster: what `run --serve` prints")
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
        help="address of the gateway (default: GATEWAY_URL; else in a pod its Service, elsewhere a port-forward)",
    )
    sub.add_argument(
        "--ca-file",
        default="",
        metavar="FILE",
        help="PEM of the authorities to trust (default: SSL_CERT_FILE, else this machine's); "
        "the certificate must name the model's host, whatever the address",
    )
    sub = command("doctor", "check that everything is there that models need, and say what to do where it is not")
    sub.add_argument("-o", "--output", choices=("json",))
    sub.add_argument(
        "--no-probe", action="store_true", help="make no pod that writes, reads and deletes a file in the store"
    )
    sub.add_argument(
        "--timeout",
        type=_timeout,
        default=180.0,
        metavar="DURATION",
        help="of each such pod, e.g. 90s or 10m (default: 3m)",
    )
    sub.add_argument("--url", default="", help="ask the gateway for a page there, too, e.g. http://203.0.113.7")
    _add_run(command("run", "run the pipeline of an MLModel on this machine, without a cluster", here))
    return top


def _add_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", type=_model_name, metavar="NAME", nargs="?")
    sub.add_argument(
        "--version", default="", metavar="VERSION", help="its name, or v3 for the third (default: the latest)"
    )
    sub.add_argument("--report", default="", metavar="FILE", help="ask no cluster: a training's report.json")
    sub.add_argument("-o", "--output", choices=("json",))


def _add_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("name", nargs="?", metavar="NAME", help="which of several MLModels in the file")
    sub.add_argument("-f", "--filename", required=True, metavar="FILE", help="the MLModel's YAML; - for standard input")
    sub.add_argument("-o", "--output", choices=("json",), help="one JSON object a line for every change")
    what = sub.add_argument_group("what to run")
    what.add_argument("--data", metavar="PATH", help="where the rows are, instead of spec.data.uri: a path or any URI")
    what.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change the spec, e.g. training.epochs=1"
    )
    what.add_argument("--rows", type=_count, metavar="N", help="take a stable sample of N rows; every report says so")
    what.add_argument(
        "--until", choices=[stage.value for stage in contract.Stage], metavar="STAGE", help="stop after this stage"
    )
    what.add_argument(
        "--keep-going", action="store_true", help="run on after a missed gate, to see all of them; serves nothing"
    )
    what.add_argument("--store", default=".mlplatform", metavar="DIR", help="where results lie (default: %(default)s)")
    served = sub.add_argument_group("serving")
    served.add_argument("--serve", action="store_true", help="serve the model on loopback until Ctrl-C")
    served.add_argument(
        "--ask",
        nargs="?",
        const={},
        type=_features,
        metavar="JSON",
        help="serve it, ask this (or an example) and end; implies --serve",
    )
    served.add_argument("--port", type=_port, default=0, help="of the server (default: a free one)")


def _add_cluster_flags(to: argparse.ArgumentParser, *, again: bool) -> None:
    """Flags that may stand before and after the command.

    Args:
        to: The parser that gets them.
        again: Another parser has looked for them before it; no default may replace what that one found.
    """
    _add_own_flags(to, again=again)
    group = to.add_argument_group("cluster", argument_default=argparse.SUPPRESS if again else None)
    group.add_argument("--context", help="kubeconfig context to use")
    group.add_argument(
        "--kubeconfig",
        help="path of the kubeconfig (default: KUBECONFIG, then ~/.kube/config, then what a pod has of its ServiceAccount)",
    )


def _add_own_flags(to: argparse.ArgumentParser, *, again: bool) -> None:
    """Flags of every command, `run` among them; as `_add_cluster_flags`."""
    group = to.add_argument_group("model", argument_default=argparse.SUPPRESS if again else None)
    group.add_argument(
        "-n", "--namespace", help="namespace of the model (default: the context's; of `run`: the file's)"
    )
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


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:  # noqa: PLR2004  TCP
        raise argparse.ArgumentTypeError(f"{text!r} is no port number; 0 takes a free one")
    return int(text)


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


if __name__ == "__main__":
    sys.exit(main())
