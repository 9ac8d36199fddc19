"""Python packages for the images, fetched once: a wheelhouse and the pip that fills it.

Called by `cluster.py`. Images install from it with ``--no-index``, so building them again
needs no network and always gives the versions of constraints.txt.
"""

from __future__ import annotations

import os
import platform
import tomllib
from pathlib import Path
from typing import Final

from local import cache
from local.layout import REPO
from local.steps import Shell, StepError

PYTHON: Final = "/usr/bin/python3"
"""Debian's own: the images' Python is the same, so the wheels fit."""
EXTRAS: Final = ("operator", "jobs", "handlers", "local")
ALWAYS: Final = ("pip", "setuptools", "wheel")
RECIPE: Final = 1


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

    folder, _ = cache.entry(root, "pip", cache.key(PYTHON, RECIPE), build)
    return str(folder / "bin" / "python3")


def build(shell: Shell, root: Path) -> tuple[Path, bool]:
    """Finds or fills the wheelhouse; returns it and whether it had to be filled.

    Raises:
        StepError: pip could not fetch or build a package.
    """
    python = pip(shell, root)

    def fill(folder: Path) -> None:
        wanted = requirements((REPO / "pyproject.toml").read_text())
        options = ["--wheel-dir", str(folder), "--constraint", str(REPO / "constraints.txt")]
        options += torch_options(_torch_index())
        try:
            shell.run(
                ["nice", "-n", "5", python, "-m", "pip", "wheel", *options, *wanted, *ALWAYS],
                env={"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
                contained=True,
            )
        except StepError as error:
            raise StepError(
                f"pip could not fetch the packages: {error.cause}",
                "Check that pip reaches its index; for torch without CUDA set "
                "MLPLATFORM_TORCH_INDEX=https://download.pytorch.org/whl/cpu.",
            ) from error
        if not any(folder.glob("torch-*.whl")):
            raise StepError("the wheelhouse holds no torch")

    return cache.entry(root, "wheels", name(), fill)
