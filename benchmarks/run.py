"""How long the first answer takes without a cluster, from a clone on; `make bench-run` prints it.

Called with the system's Python: everything that `make run` installs is part of what is measured. It works in a folder
of its own with an empty pip cache; PyTorch's CPU wheel comes from where pip is told to look (PIP_FIND_LINKS).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import markdown, publish

REPO = Path(__file__).parents[1]
EXAMPLE = ["-f", "examples/adult-income/mlmodel.yaml", "--data", ".mlplatform/data/adult"]
STARTS = {
    "virtual environment and packages": r"==> Python packages",
    "the example's data": r"fetching Adult",
    "train": r"\S+  v1 train runs$",
    "audit": r"\S+  v1 audit runs",
    "optimize": r"\S+  v1 optimize runs",
    "package": r"\S+  v1 package runs",
    "TorchServe, and its first answer": r"\S+  ready",
}
"""A part begins with the first line that its pattern matches."""


def timed_lines(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[tuple[float, str]]:
    """The output of a command, each line with the time at which it came.

    Raises:
        CalledProcessError: It failed.
    """
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            yield time.monotonic(), line.rstrip()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def main() -> int:
    """Writes the block."""
    with tempfile.TemporaryDirectory(prefix="bench-run-") as scratch:
        home, clone = Path(scratch) / "home", Path(scratch) / "main"
        home.mkdir()
        environment = {**os.environ, "HOME": str(home), "MLPLATFORM_CACHE": str(home / "cache"), "NO_COLOR": "1"}
        begin = time.monotonic()
        subprocess.run(["git", "clone", "--quiet", str(REPO), str(clone)], check=True)
        marks = [("git clone", begin)]
        waiting, answer, end = dict(STARTS), "", begin
        for at, line in timed_lines(["make", "run"], clone, environment):
            print(line, flush=True)
            for part, pattern in list(waiting.items()):
                if re.match(pattern, line):
                    marks.append((part, at))
                    del waiting[part]
            if line.startswith("answer"):
                answer, end = line, at
        if not answer or waiting:
            sys.exit(f"error: no answer, or nothing said of {', '.join(waiting)}")
        ends = [at for _, at in marks[1:]] + [end]
        rows = [[part, f"{stop - start:.1f} s"] for (part, start), stop in zip(marks, ends, strict=True)]
        rows.append(["**from the clone to the answer**", f"**{end - begin:.1f} s**"])
        command = [str(clone / ".venv/bin/kubectl-mlmodel"), "run", *EXAMPLE]
        for what, more in {
            "again, nothing changed": [],
            "again, only `serving` changed": ["--set", "serving.replicas.max=3"],
        }.items():
            start = time.monotonic()
            lines = [line for _, line in timed_lines([*command, *more], clone, environment)]
            rows.append([what, f"{time.monotonic() - start:.1f} s"])
            if any(" runs" in line for line in lines):
                sys.exit(f"error: {what}, and yet a stage ran:\n" + "\n".join(lines))
    body = markdown(["part", "time"], rows)
    print(body)
    publish("run", "make bench-run", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
