"""The command line: `python3 -m local <verb>`.

Called by people, the Makefile and the tests. Progress goes to standard error; standard
output carries only what a script would read (a path, JSON).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Final

from local import cluster, machine, upstream, wheelhouse
from local.console import Console, table
from local.layout import Layout, default_layout
from local.steps import RunError, Shell, StepError

EXIT_FAILED: Final = 1
EXIT_MACHINE: Final = 2
"""The machine cannot carry the cluster (or the command line was wrong)."""

EXAMPLES: Final = """examples:
  python3 -m local up                          bring the cluster up; again: heal it or do nothing
  export KUBECONFIG=$(python3 -m local kubeconfig)
  export PATH=$(python3 -m local binaries):$PATH
  kubectl get pods --all-namespaces
  python3 -m local images --json               rebuild what changed, load it, print {name: reference}
  python3 -m local upstream                    what runs, at which version, from where
  python3 -m local upstream move kserve v0.20.1
  python3 -m local down                        remove the cluster; builds stay in the cache

environment:
  VARIANT=ipv6             another cluster: pods and Services with IPv6 addresses alone, its domain corp.internal
  MLPLATFORM_CACHE         where builds are kept (default ~/.cache/mlplatform)
  MLPLATFORM_TORCH_INDEX   pip index for PyTorch, e.g. https://download.pytorch.org/whl/cpu
  NO_COLOR                 no colours
"""


def _refuse(layout: Layout, console: Console) -> bool:
    line = machine.refusal(machine.examine(layout.cache))
    if line:
        console.problem(line)
    return bool(line)


def up(_: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Brings the cluster up."""
    if _refuse(layout, console):
        return EXIT_MACHINE
    cluster.up(layout, console)
    console.line()
    console.line(f"the cluster is up; export KUBECONFIG={layout.kubeconfig}")
    return 0


def down(_: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Removes the cluster."""
    cluster.down(layout, console)
    return 0


def status(arguments: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Tells what runs; exit status 1 when the cluster is not whole."""
    found = cluster.status(layout)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        words = {True: console.paint("yes", "green"), False: console.paint("no", "red")}
        rows = [
            ("running", words[found["running"]]),
            ("API ready", words[found["api"]]),
            ("node Ready", words[found["node"]]),
        ]
        print(
            "\n".join(table([*rows, ("processes", str(len(found["processes"]))), ("kubeconfig", found["kubeconfig"])]))
        )
    return 0 if found["api"] and found["node"] else EXIT_FAILED


def show_binaries(_: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Prints the folder with the programs, which are built when they are missing."""
    line = machine.refusal(
        machine.examine_for_binaries(layout.cache / "bin"), "build the Kubernetes programs", machine.ASSETS
    )
    if line:
        console.problem(line)
        return EXIT_MACHINE
    print(cluster.build_binaries(layout, console))
    return 0


def show_images(arguments: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Builds the images and prints their references."""
    if _refuse(layout, console):
        return EXIT_MACHINE
    refs = cluster.build_images(layout, console)
    print(json.dumps(refs, indent=2) if arguments.json else "\n".join(refs.values()))
    return 0


def show_upstream(arguments: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Prints what the cluster is made of, fetches a module's source, or moves a version."""
    shell = Shell(layout.step_logs / "upstream.log")
    if arguments.action is None:
        rows = [
            {
                "name": module.name,
                "release": module.release,
                "module": module.module,
                "version": module.version,
                "programs": " ".join(module.programs),
            }
            for module in upstream.ALL
            if module.module
        ]
        print(json.dumps(rows, indent=2) if arguments.json else "\n".join(table([tuple(row.values()) for row in rows])))
        return 0
    module = upstream.named(arguments.name)
    python = wheelhouse.pip(shell, layout.cache)
    if arguments.action == "move":
        upstream.move(shell, layout.cache, python, module, arguments.version)
        console.line(
            f"{module.name} is at {module.version}; `make up` builds it, `make test` says whether all of it still holds"
        )
    elif arguments.action == "sources":
        print(upstream.sources(shell, layout.cache, upstream.go(shell, layout.cache, python), module))
    else:
        with cluster.locked(layout, console):
            print(upstream.build(shell, layout.cache, python, module)[0])
    return 0


def kubeconfig(_: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Prints the kubeconfig's path."""
    print(layout.kubeconfig)
    if not layout.kubeconfig.exists():
        console.problem("there is no cluster; start it with `python3 -m local up`")
        return EXIT_FAILED
    return 0


def doctor(arguments: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Says whether this machine can carry the cluster, and why not."""
    if arguments.brief:
        return EXIT_MACHINE if _refuse(layout, console) else 0
    checks = machine.examine(layout.cache)
    for check in checks:
        mark = console.paint("✗", "red") if check.problem else console.paint("✓", "green")
        print(f"{mark} {check.name}: {check.problem or check.found}")
    return EXIT_MACHINE if any(check.problem for check in checks) else 0


Verb = Callable[[argparse.Namespace, Layout, Console], int]


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="python3 -m local",
        description="A real Kubernetes cluster on this machine, without Docker or a registry.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="verb")

    def verb(name: str, run: Verb) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=(run.__doc__ or "").partition("\n")[0], description=run.__doc__)
        added.set_defaults(run=run)
        return added

    verb("up", up)
    verb("down", down)
    verb("status", status).add_argument("--json", action="store_true", help="print JSON")
    verb("binaries", show_binaries)
    show = verb("images", show_images)
    show.add_argument("--json", action="store_true", help="print {name: reference}")
    shown = verb("upstream", show_upstream)
    shown.add_argument("--json", action="store_true", help="print JSON")
    shown.set_defaults(action=None)
    actions = shown.add_subparsers(dest="action", metavar="action")
    for name, words in (
        ("move", "pin another version: rewrites go.mod and go.sum"),
        ("sources", "fetch a module's source and print its folder"),
        ("build", "build a module's programs and print their folder"),
    ):
        action = actions.add_parser(name, help=words, description=words)
        action.add_argument("name", choices=[module.name for module in upstream.ALL])
        if name == "move":
            action.add_argument("version", help="e.g. v1.36.4")
    verb("kubeconfig", kubeconfig)
    verb("doctor", doctor).add_argument("--brief", action="store_true", help="say nothing when it can, else one line")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    arguments = parser().parse_args(argv)
    console = Console()
    try:
        return int(arguments.run(arguments, default_layout(), console))
    except RunError:
        return EXIT_FAILED
    except StepError as error:
        console.problem(f"{error.cause}; {error.hint}" if error.hint else error.cause)
        return EXIT_FAILED
    except KeyboardInterrupt:
        console.problem("interrupted; run it again to go on")
        return 130
    except PermissionError as error:
        console.problem(f"{error.strerror}: {error.filename}; run it as root")
        return EXIT_MACHINE


if __name__ == "__main__":
    sys.exit(main())
