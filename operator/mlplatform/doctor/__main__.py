"""``python -m mlplatform.doctor``: the test of a release, in a pod of the operator's image.

Run by `helm test`, as a ServiceAccount that exists for as long as the test runs.
"""

from __future__ import annotations

import argparse
import sys
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime

from mlplatform import doctor
from mlplatform.cluster import connect
from mlplatform.doctor import Finding, Level, checks, probe
from mlplatform.doctor.ask import Asker
from mlplatform.doctor.gather import gather


def main() -> int:
    """Looks, says what it has found, a line each, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mlplatform.doctor", description=__doc__)
    parser.add_argument("--namespace", action="append", default=[], help="of models")
    parser.add_argument("--metrics", help="the operator's, by its Service")
    args = parser.parse_args()
    ask = Asker(connect())
    facts = gather(ask, datetime.now(UTC), tuple(args.namespace))
    if facts.settings is not None:
        probes = probe.run(ask, facts.settings, args.namespace, _say)
        facts = replace(facts, stays={name: replace(stay, probe=probes[name]) for name, stay in facts.stays.items()})
    found = (*checks.findings(facts), *([_answers(args.metrics)] if args.metrics else ()))
    for finding in found:
        _say(f"{finding.level.upper():8} {finding.check}: {finding.message}")
        if finding.next_action:
            _say(f"         next: {finding.next_action}")
    _say(doctor.sentence(found))
    return int(doctor.failed(found))


def _answers(url: str) -> Finding:
    """Whether the operator answers over its Service."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310  the chart's own
            return Finding("operator", Level.OK, f"{url} answers {response.status}")
    except OSError as error:
        action = "Look at the Service, its EndpointSlices and network policies between"
        return Finding("operator", Level.FAILURE, f"{url} does not answer: {error}", action)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
