"""Python packages for the images, fetched once: a wheelhouse and the pip that fills it.

Called by `cluster.py`. Images install from it with ``--no-index``, so building them again
needs no network and always gives the versions of constraints.txt.

Wheels arrive in a folder that outlives a run that was ended, PyTorch and what CUDA consists of
one after the other; so the next run fetches what is missing, and a run after a change what
changed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import threading
import tomllib
import zipfile
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from local import cache
from local.layout import REPO
from local.steps import Shell, StepError

PYTHON: Final = "/usr/bin/python3"
"""Debian's own: the images' Python is the same, so the wheels fit."""
PIP: Final = "pip>=25.2"
"""The first that goes on with a file where the connection broke."""
EXTRAS: Final = ("operator", "jobs", "handlers", "local")
ALWAYS: Final = ("pip", "setuptools", "wheel")
RECIPE: Final = 1
GIGABYTES: Final = 0.5
CUDA_GIGABYTES: Final = 2.5
"""What PyTorch with CUDA adds to them."""
WITHOUT_CUDA: Final = (
    "without a GPU, MLPLATFORM_TORCH_INDEX=https://download.pytorch.org/whl/cpu avoids that, "
    "as does a folder with PyTorch's CPU wheel in PIP_FIND_LINKS"
)
QUIET: Final = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
MAKING_PIP: Final = threading.Lock()
"""Several steps want pip at once."""


def requirements(pyproject: str, extras: tuple[str, ...] = EXTRAS) -> list[str]:
    """The requirements of those extras, sorted, each once."""
    optional = tomllib.loads(pyproject)["project"]["optional-dependencies"]
    return sorted({requirement for extra in extras for requirement in optional[extra]})


def torch_options(index: str) -> list[str]:
    """Options of pip for PyTorch's index, e.g. https://download.pytorch.org/whl/cpu; none when it is empty."""
    return ["--extra-index-url", index] if index else []


def name(repo: Path = REPO) -> str:
    """The cache key."""
    wanted = requirements((repo / "pyproject.toml").read_text())
    constraints = (repo / "constraints.txt").read_text()
    return cache.key(wanted, ALWAYS, constraints, _torch_index(), platform.machine(), RECIPE)


def is_cached(root: Path) -> bool:
    """Whether nothing needs to be fetched."""
    return (root / "wheels" / name()).is_dir()


def _torch_index() -> str:
    return os.environ.get("MLPLATFORM_TORCH_INDEX", "")


def pip(shell: Shell, root: Path) -> str:
    """A Python that has pip and nothing else; made once."""

    def build(folder: Path) -> None:
        shell.run([PYTHON, "-m", "venv", folder])
        # Debian's does, too; where it cannot be replaced, whatever is fetched next says why.
        shell.run([folder / "bin" / "python3", "-m", "pip", "install", "--upgrade", PIP], env=QUIET, check=False)

    with MAKING_PIP:
        folder, _ = cache.entry(root, "pip", cache.key(PYTHON, PIP, RECIPE), build)
    return str(folder / "bin" / "python3")


def torch_version(said: str, constraints: str) -> str:
    """The PyTorch that pip would take.

    Args:
        said: What ``pip index versions torch`` printed, the newest version first.
        constraints: The text of constraints.txt.

    Returns:
        E.g. ``2.13.0``, which brings CUDA along, or ``2.13.0+cpu``; the pinned version where pip does not know it.
    """
    pinned = constraints.partition("\ntorch==")[2].partition("\n")[0]
    versions = re.findall(r"[\w.+!]+", said)
    return next((version for version in versions if version.partition("+")[0] == pinned), pinned)


def forecast(shell: Shell, root: Path) -> str:
    """What `build` will fetch and how large that is, for a person who has not yet waited for it."""
    if is_cached(root):
        return "cached"
    arriving = _arriving(root)
    options = ["--find-links", str(arriving), *torch_options(_torch_index())]
    argv = [pip(shell, root), "-m", "pip", "index", "versions", "torch", *options]
    said = shell.run(argv, env=QUIET, capture=True, check=False)
    there = sum(wheel.stat().st_size for wheel in arriving.glob("*.whl")) / 1e9
    return announcement(torch_version(said, (REPO / "constraints.txt").read_text()), there)


def announcement(torch: str, there: float) -> str:
    """`forecast`, in words.

    Args:
        torch: The version of PyTorch.
        there: Gigabytes that an earlier run has fetched.
    """
    kept = f"; {there:.1f} GB of it is there already" if there >= 0.1 else ""  # noqa: PLR2004 - less is shown as 0.0
    if torch.endswith("+cpu"):
        return f"about {GIGABYTES} GB of Python packages, PyTorch {torch} among them{kept}"
    total = f"about {GIGABYTES + CUDA_GIGABYTES} GB of Python packages, {CUDA_GIGABYTES} GB of it PyTorch's CUDA{kept}"
    return f"{total}; {WITHOUT_CUDA}"


def _arriving(root: Path) -> Path:
    """The folder in which wheels arrive; what earlier wheelhouses hold is there already, half a wheel is not."""
    folder = root / "wheels-arriving"
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):
        if not zipfile.is_zipfile(wheel):
            wheel.unlink()
    for wheel in root.glob("wheels/*/*.whl"):
        if not (folder / wheel.name).exists():
            (folder / wheel.name).hardlink_to(wheel)
    return folder


def cuda(wheel: Path) -> list[str]:
    """The requirements of a PyTorch wheel that make up CUDA; none of a CPU wheel.

    Those are the ones for Linux alone: elsewhere PyTorch comes without CUDA.
    """
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    return re.findall(r'^Requires-Dist: (.*\bplatform_system == "Linux".*)$', text, re.MULTILINE)


def build(shell: Shell, root: Path) -> tuple[Path, bool]:
    """Finds or fills the wheelhouse; returns it and whether it had to be filled.

    Raises:
        StepError: pip could not fetch or build a package.
    """
    python = pip(shell, root)

    def fill(folder: Path) -> None:
        arriving = _arriving(root)
        wanted = [*requirements((REPO / "pyproject.toml").read_text()), *ALWAYS]
        _fetch(shell, python, arriving, ["--no-deps", "torch"])
        [torch] = _chosen(shell, python, arriving, ["--no-deps", "torch"])
        for part in cuda(torch):
            # What a part needs itself is for the whole to say, but for a part that is only a list of others.
            _fetch(shell, python, arriving, [part] if "[" in part else ["--no-deps", part])
        _fetch(shell, python, arriving, wanted)
        for wheel in _chosen(shell, python, arriving, wanted):
            (folder / wheel.name).hardlink_to(wheel)
        shutil.rmtree(arriving)

    return cache.entry(root, "wheels", name(), fill)


def _fetch(shell: Shell, python: str, folder: Path, wanted: list[str]) -> None:
    """Adds wheels to a folder; one that is there, and whole, is not fetched again."""
    options = ["--wheel-dir", str(folder), "--find-links", str(folder), *_constraint(), *torch_options(_torch_index())]
    argv = ["nice", "-n", "5", python, "-m", "pip", "wheel", *options, *wanted]
    temporary = folder / "tmp"  # goes with the folder, whatever ends pip
    temporary.mkdir(exist_ok=True)
    try:
        shell.run(argv, env={**QUIET, "TMPDIR": str(temporary)}, contained=True)
    except StepError as error:
        raise StepError(
            f"pip could not fetch the packages: {error.cause}",
            "Check that pip reaches its index, then run it again: what has arrived is kept.",
        ) from error


def _chosen(shell: Shell, python: str, folder: Path, wanted: list[str]) -> list[Path]:
    """Those wheels of a folder that an image would install."""
    options = ["--quiet", "--dry-run", "--ignore-installed", "--report=-", "--no-index", "--find-links", str(folder)]
    said = shell.run([python, "-m", "pip", "install", *options, *_constraint(), *wanted], env=QUIET, capture=True)
    return [folder / unquote(row["download_info"]["url"].rpartition("/")[2]) for row in json.loads(said)["install"]]


def _constraint() -> list[str]:
    return ["--constraint", str(REPO / "constraints.txt")]
