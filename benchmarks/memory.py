"""What the idle local cluster holds in memory, by program; `make bench-memory` runs it after `make up`.

Proportional set size (PSS, proc(5)): a page that n processes share counts 1/n to each, so that the rows add up.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.table import markdown, publish
from local import node, processes, teardown
from local.layout import default_layout

LEAST_MIB = 1.0
"""Smaller programs (pauses, shims' helpers) are one row together."""
PROC = Path("/proc")


def program(pid: int) -> str:
    """The program's file name; of Python, the module or script that it runs."""
    words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    name = Path(words[0]).name
    if not re.fullmatch(r"python[\d.]*", name):
        return name
    return next((f"python {Path(word).name}" for word in words[1:] if word and not word.startswith("-")), name)


def proportional(pid: int) -> float:
    """MiB of one process.

    Raises:
        OSError: It has ended.
    """
    found = re.search(r"^Pss:\s+(\d+) kB", (PROC / str(pid) / "smaps_rollup").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def measured() -> dict[str, float]:
    """MiB by program, of the node's daemons and of every container."""
    init = node.supervisor_pid(default_layout())
    if init is None:
        raise SystemExit("no local cluster runs; start it: make up")
    found: dict[str, float] = defaultdict(float)
    for pid in {*processes.members(init), *teardown.cgroup_processes()}:
        try:
            found[program(pid)] += proportional(pid)
        except OSError:  # it has ended meanwhile
            continue
    return found


def main() -> int:
    """Measures and writes the block."""
    found = measured()
    ranked = sorted(found.items(), key=lambda item: -item[1])
    rows = [[name, f"{size:.0f}"] for name, size in ranked if size >= LEAST_MIB]
    small = sum(size for size in found.values() if size < LEAST_MIB)
    body = markdown(
        ["program", "MiB (PSS)"],
        [*rows, ["others", f"{small:.0f}"], ["**together**", f"**{sum(found.values()):.0f}**"]],
    )
    print(body)
    publish("memory", "make bench-memory", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
