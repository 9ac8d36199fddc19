"""How long the parts of the local cluster took the last time that they had something to do; `make bench-build` prints it.

`python3 -m local up` writes the figures to its cache. A table of everything comes from an `up` with an empty cache.
"""

from __future__ import annotations

import json
import sys

from benchmarks.table import markdown, publish
from local.console import seconds
from local.layout import default_layout

LEAST_SECONDS = 2.0
"""What takes less is left out."""
CORES = 2


def main() -> int:
    """Writes the block."""
    path = default_layout().cache / "durations.json"
    if not path.exists():
        sys.exit(f"{path} is not there; `make up` writes it")
    parts = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [name, seconds(part["took"]), seconds(part["cpu"]), seconds(part["cpu"] / CORES)]
        for name, part in sorted(parts.items(), key=lambda item: -item[1]["cpu"])
        if part["took"] >= LEAST_SECONDS
    ]
    total = sum(part["cpu"] for part in parts.values())
    body = markdown(
        ["part", "beside the others", "processor time", f"alone, {CORES} cores, at least"],
        [*rows, ["**together**", "", f"**{seconds(total)}**", f"**{seconds(total / CORES)}**"]],
    )
    print(body)
    publish("build", "make bench-build", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
