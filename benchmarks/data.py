"""What any data costs, in parts; `make bench-data` prints them.

A part owns the block ``data-<its name>`` of docs/benchmarks.md. It gets the revision to be compared with, or none, and
measures both side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from benchmarks import defaults, feed, files, handler, labels, larger, lm, texts
from benchmarks.table import publish

PARTS: Final[dict[str, Callable[[str | None], str]]] = {
    "defaults": defaults.table,
    "feed": feed.table,
    "files": files.table,
    "handler": handler.table,
    "labels": labels.table,
    "larger": larger.table,
    "lm": lm.table,
    "texts": texts.table,
}


def main() -> None:
    """Measures and prints the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--before", metavar="REVISION", help="of git, measured beside this checkout")
    asked = parser.parse_args()
    if strange := set(asked.part) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(strange))}")
    for name in asked.part or PARTS:
        body = PARTS[name](asked.before)
        print(body, flush=True)
        words = ["python -m benchmarks.data", name, *(["--before", asked.before] if asked.before else [])]
        publish(f"data-{name}", " ".join(words), body)


if __name__ == "__main__":
    main()
