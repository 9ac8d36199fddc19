"""What the tests of the jobs share: a small data set, specifications and environments."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from ports import free_port

from mlplatform import contract
from mlplatform.contract import ENV_TERMINATION_LOG, Stage, Summary

REPO = Path(__file__).resolve().parent.parent
ROWS = 900
VERSION = "people-0123abcd"


def write_people(folder: Path, rows: int = ROWS) -> Path:
    """A CSV of made-up people: two informative numbers, categories, missing values, a group, a label."""
    generator = np.random.default_rng(3)
    age = generator.integers(18, 80, rows)
    gain = np.where(generator.random(rows) < 0.8, 0, generator.integers(1, 5000, rows))
    job = generator.choice(["clerk", "nurse", "pilot", ""], rows, p=[0.4, 0.3, 0.2, 0.1])
    group = generator.choice(["a", "b", "c"], rows, p=[0.6, 0.38, 0.02])
    logit = (age - 50) / 8 + (gain > 2000) * 2 + (job == "pilot") * 1.5 - (group == "b") * 0.5
    rich = generator.random(rows) < 1 / (1 + np.exp(-logit))
    hours = np.where(generator.random(rows) < 0.95, generator.integers(10, 60, rows).astype(str), "?")
    lines = ["age,gain,hours,job,group,rich"]
    lines += [f"{age[i]},{gain[i]},{hours[i]},{job[i]},{group[i]},{'yes' if rich[i] else 'no'}" for i in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "people.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def people_spec(data: Path | str, **training: Any) -> dict[str, Any]:
    """A specification that trains on `write_people`'s rows in a second."""
    return {
        "model": "people",
        "sequence": 1,
        "data": {"uri": str(data), "label": "rich", "sensitiveAttributes": ["group"]},
        "training": {
            "strategy": "fsdp",
            "precision": "bf16",
            "gradientAccumulationSteps": 2,
            "epochs": 4,
            "batchSize": 32,
            "optimizer": {"learningRate": 0.01},
            "earlyStopping": {"metric": "val_roc_auc", "mode": "max", "patience": 4},
            "checkpoint": {"everySteps": 5, "keep": 2},
            "hyperparameters": {"hidden": [16, 8], "bins": 8, "embedding": 4},
            **training,
        },
        "gates": [{"metric": "roc_auc", "min": 0.6}],
        "fairness": {"metrics": {"demographic_parity_difference": 0.9}, "minGroupSize": 20},
    }


def job_environment(spec: Mapping[str, Any], artifacts: Path | str, stage: Stage, message: Path) -> dict[str, str]:
    """The variables that the operator sets, with the termination message in the file `message`."""
    return {
        contract.ENV_SPEC: json.dumps(spec),
        contract.ENV_ARTIFACTS: str(artifacts),
        contract.ENV_NAMESPACE: "default",
        contract.ENV_MODEL: "people",
        contract.ENV_VERSION: VERSION,
        contract.ENV_STAGE: stage.value,
        ENV_TERMINATION_LOG: str(message),
    }


def read_summary(message: Path) -> Summary:
    return Summary.from_json(message.read_text())


def subprocess_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` over this process's, with what it takes to import the jobs."""
    path = os.pathsep.join(str(REPO / folder) for folder in ("jobs", "operator", "handlers"))
    return {**os.environ, **environment, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class Torchrun:
    """`torchrun -m mljobs.train` with processes of its own.

    Args:
        environment: Of the job.
        processes: How many.
        more: Further options of torchrun.
    """

    def __init__(self, environment: Mapping[str, str], processes: int = 2, more: Sequence[str] = ()) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", *(more or ["--master-port", str(free_port())])]
        self._process = subprocess.Popen(
            [*launcher, "--nproc-per-node", str(processes), "-m", "mljobs.train"],
            env=subprocess_environment(environment),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.output = ""

    def wait_for(self, text: str) -> None:
        """Reads the output up to a line that contains `text`."""
        assert self._process.stdout
        for line in self._process.stdout:
            self.output += line
            if text in line:
                return
        self._process.wait()
        raise AssertionError(f"no line with {text!r} in:\n{self.output}")

    def kill(self) -> None:
        """SIGKILL for the launcher and all its processes at once, as when a node dies."""
        launcher = psutil.Process(self._process.pid)
        for process in [launcher, *launcher.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.finish()

    def terminate(self) -> None:
        """SIGTERM for the launcher, as the kubelet sends it to a container."""
        self._process.terminate()

    def finish(self) -> int:
        """Reads the rest of the output and returns the exit code."""
        rest, _ = self._process.communicate()
        self.output += rest
        return self._process.returncode


def two_pods(master: Mapping[str, str], worker: Mapping[str, str]) -> tuple[Torchrun, Torchrun]:
    """A PyTorchJob's Master and Worker: a torchrun each, of one process, that know each other by address only."""
    address = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return (
        Torchrun(master, 1, [*address, "--node-rank", "0"]),
        Torchrun(worker, 1, [*address, "--node-rank", "1"]),
    )
