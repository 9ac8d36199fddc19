"""What the tests of a run without a cluster share: waiting, processes by a mark, MLModels and their files."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml
from jobs_kit import REPO, people_spec

from mlplatform import contract
from mlplatform.snapshot import Object

PATIENCE_SECONDS = 60.0
"""Longer than anything here takes on a busy machine."""
POLL_SECONDS = 0.01
PACKAGES = os.pathsep.join(str(REPO / folder) for folder in ("operator", "jobs", "handlers"))
"""PYTHONPATH of what imports the project in a process of its own."""

REFUSES_TO_END = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
WAITS = "while True: signal.pause()"


def eventually(holds: Callable[[], object], what: str) -> None:
    """Waits until `holds`.

    Raises:
        AssertionError: It never did.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(POLL_SECONDS)


def alive(variable: str, value: str) -> list[int]:
    """Every process that has this variable in its environment: its children have it, too, whatever session they are in."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value and process.pid != os.getpid():
                found.append(process.pid)
        except psutil.Error:  # it has just ended, or is only waited for
            continue
    return found


def people_model(data: Path | str, **sections: Any) -> Object:
    """An MLModel that trains on `write_people`'s rows in a second; `sections` replace those of its spec."""
    spec = people_spec(data)
    sections = {key: spec[key] for key in ("data", "training", "gates", "fairness")} | sections
    return copy.deepcopy(
        {
            "apiVersion": contract.API_VERSION,
            "kind": "MLModel",
            "metadata": {"name": "people"},
            "spec": sections,
        }
    )


def written(model: Object, folder: Path) -> Path:
    """The file that a person would give to a run."""
    path = folder / "mlmodel.yaml"
    path.write_text(yaml.safe_dump(model), encoding="utf-8")
    return path
