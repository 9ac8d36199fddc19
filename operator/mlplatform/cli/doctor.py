"""`kubectl mlmodel doctor`: is everything there that models need, and what to do where it is not.

Called by `mlplatform.cli.commands`. What is looked at, and what it means, is `mlplatform.doctor`'s; here it becomes a table.
"""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlplatform import api, doctor
from mlplatform.cli import terminal
from mlplatform.cli.cluster import Cluster
from mlplatform.doctor import Finding, Level, checks, probe
from mlplatform.doctor.ask import Asker
from mlplatform.doctor.facts import Facts, Probed
from mlplatform.doctor.gather import gather

STYLES: Final = {
    Level.OK: "green",
    Level.SKIPPED: "dim",
    Level.WARNING: "yellow",
    Level.FAILURE: "bold red",
}
_URL_SECONDS: Final = 10


def run(args: argparse.Namespace, cluster: Cluster, out: Console) -> int:
    """`doctor`."""
    ask = Asker(cluster.core.api_client)
    with cluster.explained("look at the cluster"):
        facts = gather(ask, terminal.now(), (args.namespace,) if args.namespace else (), cluster.namespace)
        facts = _probed(args, ask, facts, terminal.console(sys.stderr, color=args.color))
    if args.url:
        facts = replace(facts, url=answered(args.url))
    found = checks.findings(facts)
    if args.output == "json":
        terminal.dump([api.encode(finding) for finding in found], "json", out)
    else:
        terminal.print_table(table(found), out)
        terminal.say(out, doctor.sentence(found))
    return terminal.EXIT_FAILED if doctor.failed(found) else terminal.EXIT_OK


def table(found: tuple[Finding, ...]) -> Table:
    """One row a finding; what to do about it stands below what it says."""
    rows = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    rows.add_column("LEVEL", no_wrap=True)
    rows.add_column("CHECK", no_wrap=True)
    rows.add_column("MESSAGE", overflow="fold")
    for finding in found:
        style = STYLES[finding.level]
        rows.add_row(Text(finding.level, style=style), finding.check, Text(finding.message))
        if finding.next_action:
            rows.add_row("", "", Text(f"next: {finding.next_action}", style="bold" if style != "dim" else style))
    return rows


def _probed(args: argparse.Namespace, ask: Asker, facts: Facts, err: Console) -> Facts:
    """The facts, with how pods have used the store."""
    if facts.settings is None:
        return facts
    there = [name for name, stay in facts.stays.items() if isinstance(stay.namespace, dict)]
    if args.no_probe:
        probes = dict.fromkeys(there, Probed(skipped="--no-probe was said", next_action="Leave --no-probe out"))
    else:
        probes = probe.run(ask, facts.settings, there, lambda line: terminal.say(err, line), args.timeout)
    return replace(facts, stays={name: replace(stay, probe=probes.get(name)) for name, stay in facts.stays.items()})


def answered(url: str) -> tuple[str, str]:
    """What asking the gateway for a page has come to, and what to do about it: any answer will do, for it knows no page."""
    try:
        with urllib.request.urlopen(url, timeout=_URL_SECONDS) as response:  # noqa: S310  what the user has typed
            return f"{url} answers {response.status}", ""
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}", ""
    except (OSError, ValueError) as error:
        return f"{url} does not answer: {error}", "Look at the gateway's Service, its address, and firewalls on the way"
