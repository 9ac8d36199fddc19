"""Writes the table of the last `make demo`; `make bench-demo` runs both."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.table import markdown, publish

SUMMARY = Path(__file__).parents[1] / ".demo/summary.json"


def main() -> int:
    """Reads what the demo kept and writes the block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", default="demo", help="demo (caches warm) or demo-cold (a fresh machine)")
    parser.add_argument("--summary", type=Path, default=SUMMARY)
    parser.add_argument("--command", default="make bench-demo")
    args = parser.parse_args()
    story = json.loads(args.summary.read_text(encoding="utf-8"))
    seconds = story["seconds"]
    times = [[step, f"{value:.0f} s"] for step, value in seconds.items()]
    total = [["**together**", f"**{sum(seconds.values()):.0f} s**"]]
    seen = [["kept" if check["kept"] else "**not kept**", check["promise"], check["seen"]] for check in story["checks"]]
    body = "\n\n".join(
        [markdown(["step", "time"], [*times, *total]), markdown(["", "promise", "seen"], seen)],
    )
    print(body)
    publish(args.block, args.command, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
