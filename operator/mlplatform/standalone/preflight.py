"""What can be known to go wrong before anything is trained.

Called by `mlplatform.standalone.engine`. Every check ends in a `CliError` with the cause and the next action.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mlplatform import api
from mlplatform.errors import EXIT_USAGE, CliError
from mlplatform.standalone.state import find, sources, unwritable

PACKAGES: Final = (
    *("torch", "fairlearn", "onnxruntime", "onnxscript", "pyarrow", "s3fs", "ts", "model_archiver"),
    *("transformers", "tokenizers", "safetensors"),
)
"""What the stages import; by the names that Python knows."""
EXTRA: Final = "pip install 'mlplatform[run]'"
FREE_BYTES: Final = 256 * 2**20
"""A store with less room than this fails in the middle."""
GPU_DEVICES: Final = Path("/dev")


def check(spec: api.MLModelSpec, store: Path) -> None:
    """Everything that the spec and this machine tell.

    Raises:
        CliError: Something is missing.
    """
    if not sys.platform.startswith("linux"):
        raise CliError(
            f"a run needs Linux, this is {sys.platform}",
            "use a container or a virtual machine with Linux, or a cluster: kubectl apply",
        )
    packages()
    writable(store)
    gpus(spec.training)
    task(spec.training)


def packages() -> None:
    """The extra `run` is installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise CliError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, which the stages need",
            f"{EXTRA} (README, “Without a GPU”, tells how to keep CUDA out of it)",
        )


def writable(store: Path) -> None:
    """The folder of the results can be written, and its disk has room."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        probe = store / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(store, error) from None
    free = shutil.disk_usage(store).free
    if free < FREE_BYTES:
        raise CliError(
            f"the disk of {store} has {free // 2**20} MiB left, below {FREE_BYTES // 2**20}",
            "free some space, or name a folder on another disk with --store DIR",
        )


def gpu_count() -> int:
    """NVIDIA GPUs of this machine, by their device files."""
    return sum(1 for path in GPU_DEVICES.glob("nvidia[0-9]*"))


def gpus(training: api.Training) -> None:
    """There are as many as the workers ask for."""
    wanted, there = training.resources.gpu * training.workers, gpu_count()
    if wanted > there:
        each = f" ({training.workers} workers with {training.resources.gpu} each)" if training.workers > 1 else ""
        raise CliError(
            f"spec.training.resources.gpu: {wanted} {'GPUs are' if wanted > 1 else 'GPU is'} asked for{each}, "
            f"this machine has {there or 'none'}",
            "add --set training.resources.gpu=0 to train on the CPU: a version of its own, for its name tells that apart",
        )


def task(training: api.Training) -> None:
    """A task of the user's own can be imported here, as it can in the image that the spec names."""
    module = training.task.partition(":")[0]
    if ":" not in training.task:
        return
    image = f"spec.training.image {training.image} is not used here, so its packages must be importable: "
    whose = image if training.image else ""
    package = module.partition(".")[0]
    files = sources(package)
    if not files:
        raise CliError(
            f"{whose}spec.training.task {training.task!r}: there is no module {package}{_nearest(package)}",
            f"run this in the folder that has {package}, or install it: pip install {package}",
            code=EXIT_USAGE,
        )
    # The task's module and the packages around it; other files of the package may be for other purposes.
    names = module.split(".")
    ends = {f"{'/'.join(names)}.py", *(f"{'/'.join(names[:i])}/__init__.py" for i in range(1, len(names) + 1))}
    reached = [path for path in files if any(path.as_posix().endswith(f"/{end}") for end in ends)]
    missing = sorted({name for path in reached for name in imports(path) if find(name) is None})
    if missing:
        raise CliError(
            f"{whose}{package} imports {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            f"pip install {' '.join(missing)} (if they are called that on the package index)",
        )


def imports(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports when it is imported itself; those it only may are left out.

    Raises:
        CliError: It is no Python.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise CliError(f"{path}, line {error.lineno}: {error.msg}", "correct it") from None
    found: set[str] = set()
    for node in tree.body:  # not within functions or `try`
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _nearest(package: str) -> str:
    here: Iterable[str] = (path.stem for path in Path().iterdir() if path.suffix == ".py" or path.is_dir())
    close = difflib.get_close_matches(package, [name for name in here if name != package], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
