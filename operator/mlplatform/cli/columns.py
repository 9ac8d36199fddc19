"""`kubectl mlmodel data`: what became of every column of a model's data.

Called by `mlplatform.cli.commands`, and by `mlplatform.cli.main` for a report that lies in a file. The training writes each
column into its log; where the pod is gone, the version's status has what is unusual.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mlplatform import contract
from mlplatform.cli import render
from mlplatform.cli.terminal import EXIT_OK, dump, print_table, say
from mlplatform.cli.view import Object
from mlplatform.contract import Stage
from mlplatform.errors import EXIT_USAGE, CliError

if TYPE_CHECKING:  # A report is shown where there is no client of the API server.
    from mlplatform.cli.cluster import Cluster

Columns = list[dict[str, Any]]


def of_report(args: argparse.Namespace, out: Console) -> int:
    """`data --report FILE`."""
    if args.name:
        raise CliError(
            f"--report has its model, so NAME ({args.name}) does not go with it", "leave one out", EXIT_USAGE
        )
    path = Path(args.report)
    try:
        report = json.loads(path.read_text())
        columns = [{"name": name, **column} for name, column in report["data"]["columns"].items()]
        show({"model": report["model"], "version": report["version"], "columns": columns}, args.output, out)
    except OSError as error:
        raise CliError(
            f"{path} cannot be read: {error.strerror}", "name a training's report.json", EXIT_USAGE
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CliError(
            f"{path} is no report of a training that describes its columns",
            "it is train/report.json in the folder of a version, of this release or a later one",
            EXIT_USAGE,
        ) from None
    return EXIT_OK


def run(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`data NAME`."""
    if not args.name:
        raise CliError("of which model?", "kubectl mlmodel data NAME, or --report FILE", EXIT_USAGE)
    version = cluster.version(args.name, args.version)
    name = version["metadata"]["name"]
    told = {"model": args.name, "version": name}
    logs = cluster.logs(name, Stage.TRAIN)  # of the master, which describes them, before those of the workers
    if columns := next(filter(None, (read(log.splitlines()) for log in logs)), []):
        show({**told, "columns": columns}, args.output, out)
        return EXIT_OK
    train: Object = next((s for s in version.get("status", {}).get("stages", ()) if s["name"] == Stage.TRAIN), {})
    if train.get("outcome") != "Succeeded":
        raise CliError(
            f"the training of {name} has not described its columns yet, or its pod is gone",
            f"see how it stands: kubectl mlmodel status {args.name} -n {cluster.namespace}",
        )
    unusual = train.get("details", {}).get("columns", [])
    if args.output == "json":
        dump({**told, "unusual": unusual, "report": train.get("report", "")}, "json", out)
        return EXIT_OK
    say(out, f"the pod that trained {name} is gone; every column is in {train.get('report', 'its report')}")
    say(out, "unusual:" if unusual else "nothing was unusual about the columns, or an earlier release trained it")
    for sentence in unusual:
        say(out, f"  {sentence}")
    return EXIT_OK


def read(lines: Iterable[str]) -> Columns:
    """The columns among the lines of a log; those of the last start, if there were several."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.startswith(contract.COLUMN):
            try:
                column = json.loads(line.removeprefix(contract.COLUMN))
                found[column["name"]] = column
            except (ValueError, KeyError, TypeError):
                continue  # somebody else's line that begins so
    return list(found.values())


def show(told: dict[str, Any], output: str | None, out: Console) -> None:
    """As JSON, or as a table."""
    if output == "json":
        dump(told, "json", out)
    else:
        print_table(table(told["columns"]), out)


def table(columns: Columns) -> Table:
    """One row a column of the data."""
    found = render.plain_table("COLUMN", "KIND", "MISSING", "DISTINCT", "USE")
    found.add_column("WHY", overflow="fold")
    for column in columns:
        missing, distinct = column.get("missing"), column.get("distinct")
        found.add_row(
            column["name"],
            column["kind"] or "-",
            "-" if missing is None else f"{missing:.1%}",
            "-" if distinct is None else f"{distinct:,}",
            column["use"],
            "; ".join(filter(None, [column.get("why"), column.get("note")])),
        )
    return found
