"""The cluster's images: built without Docker, named by what they are made of.

Called by `cluster.py`, `local/demo.py` and the end-to-end tests. An image's tag is a hash
over its Dockerfile, the files that this copies, the Python constraints and its base, so an
unchanged image is neither built nor imported again and a changed one is never mistaken.

The chain: ``base`` (Debian and Python, by mmdebstrap) → ``torch`` (PyTorch in /opt/venv, one
layer that ``jobs`` and ``serving`` share) → the platform's images.
"""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from local import cache, kubernetes_build, packages, wheelhouse
from local.layout import REPO, Layout
from local.machine import CODENAME
from local.steps import Shell, StepError

PREFIX: Final = "localhost/mlplatform"
RECIPE: Final = 1
"""Part of every tag: raise it when the way of building changes the result."""
ROOTFS_PACKAGES: Final = ("ca-certificates", "python3", "python3-venv")
LEFT_OUT: Final = ("/usr/share/doc/*", "/usr/share/man/*/*.gz", "/usr/share/locale/*")
"""Documentation; the manual's folders stay, because Java's package insists on them."""
IGNORED: Final = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
PIP_ARGS: Final = "--no-index --find-links /wheels"
CONCURRENT_BUILDS: Final = threading.Semaphore(2)


@dataclass(frozen=True, slots=True)
class Image:
    """One image.

    Attributes:
        name: Last part of its reference.
        dockerfile: Path in the repository.
        base: Image that takes the place of ``BASE_IMAGE``; empty when it starts from scratch.
        loaded: Whether the cluster runs it (else it is a base only).
    """

    name: str
    dockerfile: str
    base: str = ""
    loaded: bool = True


IMAGES: Final = (
    Image("base", "images/base/Dockerfile", loaded=False),
    Image("torch", "images/torch/Dockerfile", base="base", loaded=False),
    Image("pause", "images/pause/Dockerfile"),
    Image("addons", "local/addons/Dockerfile", base="base"),
    Image("operator", "images/operator/Dockerfile", base="base"),
    Image("seaweedfs", "images/seaweedfs/Dockerfile", base="base"),
    Image("jobs", "images/jobs/Dockerfile", base="torch"),
    Image("serving", "images/serving/Dockerfile", base="torch"),
)
"""A base stands before what is built on it."""


def present(repo: Path = REPO) -> tuple[Image, ...]:
    """The images whose Dockerfile is in the checkout."""
    return tuple(image for image in IMAGES if (repo / image.dockerfile).exists())


def copied_sources(dockerfile: str) -> list[str]:
    """The paths of the build context that a Dockerfile copies, in order.

    ``COPY --from`` copies from another stage, so it does not count.
    """
    joined = re.sub(r"\\\s*\n", " ", dockerfile)
    sources: list[str] = []
    for line in joined.splitlines():
        words = line.strip().split(maxsplit=1)
        if len(words) != 2 or words[0].upper() not in {"COPY", "ADD"}:  # noqa: PLR2004 - instruction and arguments
            continue
        rest = words[1]
        arguments = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
        if any(word.startswith("--from=") for word in arguments):
            continue
        sources += [word for word in arguments if not word.startswith("--")][:-1]
    return sources


def source_digests(repo: Path, sources: list[str]) -> dict[str, str]:
    """Path → digest of every file below ``sources`` (globs allowed).

    Raises:
        StepError: A source matches nothing; the build would fail, too.
    """
    digests: dict[str, str] = {}
    for source in sources:
        pattern = source.strip("/").removeprefix("./") or "."
        roots = [repo] if pattern == "." else sorted(repo.glob(pattern))
        if not roots:
            raise StepError(
                f"a Dockerfile copies {source}, which is not in {repo}", "Restore it, or change the Dockerfile."
            )
        for root in roots:
            files = sorted(root.rglob("*")) if root.is_dir() else [root]
            digests |= {
                str(file.relative_to(repo)): cache.file_digest(file)
                for file in files
                if file.is_file() and not set(file.parts) & set(IGNORED) and file.suffix != ".pyc"
            }
    return digests


def rootfs_key() -> str:
    """The cache key of the base's root file system."""
    return cache.key(CODENAME, ROOTFS_PACKAGES, LEFT_OUT, RECIPE)


def references(repo: Path = REPO) -> dict[str, str]:
    """Name → reference of every image, computed from the checkout alone.

    Returns:
        E.g. ``{"jobs": "localhost/mlplatform/jobs:0123456789ab"}``; bases included.
    """
    found: dict[str, str] = {}
    for image in present(repo):
        text = (repo / image.dockerfile).read_text()
        if image.name == "base":
            parts: list[object] = [rootfs_key()]
        elif image.name == "pause":
            parts = [kubernetes_build.name()]
        else:
            parts = [found[image.base], source_digests(repo, copied_sources(text)), wheelhouse.name(repo)]
        found[image.name] = f"{PREFIX}/{image.name}:{cache.key(text, RECIPE, *parts)}"
    return found


def loaded_references(repo: Path = REPO) -> dict[str, str]:
    """``references`` of the images that the cluster runs: what ``images --json`` prints."""
    refs = references(repo)
    return {image.name: refs[image.name] for image in present(repo) if image.loaded}


def rootfs(shell: Shell, root: Path) -> tuple[Path, bool]:
    """Finds or makes the base's root file system; returns its folder (``rootfs.tar``) and whether it was made."""

    def build(folder: Path) -> None:
        mirrors = [f"deb {options} {uri} {suite} main" for uri, suite, options in packages.machine_sources()]
        options = ["--variant=minbase", f"--include={','.join(ROOTFS_PACKAGES)}"]
        options += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        options += ["--customize-hook=rm -rf $1/var/lib/apt/lists/*"]
        shell.run(["mmdebstrap", *options, CODENAME, folder / "rootfs.tar", *mirrors], contained=True)

    return cache.entry(root, "rootfs", rootfs_key(), build)


class Builder:
    """Builds with buildah, in a storage of its own in the cache."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._storage = ["--root", str(layout.cache / "buildah"), "--runroot", str(layout.cache / "buildah-run")]

    def has(self, shell: Shell, reference: str) -> bool:
        """Whether the image is in the storage."""
        return reference in self._tags(shell)

    def _tags(self, shell: Shell) -> list[str]:
        listing = ["buildah", *self._storage, "images", "--format", "{{.Name}}:{{.Tag}}"]
        return shell.run(listing, capture=True, contained=True).split()

    def build(self, shell: Shell, image: Image, refs: Mapping[str, str]) -> bool:
        """Builds an image unless it is there; returns whether it was built."""
        with CONCURRENT_BUILDS:
            if self.has(shell, refs[image.name]):
                return False
            context, options = self._context(image, refs)
            options += ["--isolation=chroot", "--layers", "--pull-never", f"--tag={refs[image.name]}"]
            dockerfile = f"--file={REPO / image.dockerfile}"
            shell.run(["buildah", *self._storage, "bud", *options, dockerfile, context], contained=True)
        return True

    def _context(self, image: Image, refs: Mapping[str, str]) -> tuple[Path, list[str]]:
        root = self._layout.cache
        if image.name == "base":
            return root / "rootfs" / rootfs_key(), []
        if image.name == "pause":
            return root / "kubernetes" / kubernetes_build.name(), []
        wheels = root / "wheels" / wheelhouse.name()
        arguments = [f"--build-arg=BASE_IMAGE={refs[image.base]}", f"--build-arg=PIP_ARGS={PIP_ARGS}"]
        ignore = root / "ignore"
        ignored = "".join(f"**/{name}\n" for name in (*IGNORED, "*.pyc"))
        # Another build may be reading it.
        if not ignore.exists() or ignore.read_text() != ignored:
            new = root / f"ignore.{image.name}"
            new.write_text(ignored)
            new.replace(ignore)
        return REPO, [*arguments, f"--volume={wheels}:/wheels:ro", f"--ignorefile={ignore}"]

    def prune(self, shell: Shell, refs: Mapping[str, str]) -> int:
        """Removes images of ours that are no longer named, and remains of killed builds; returns how many images."""
        shell.run(["buildah", *self._storage, "rm", "--all"], contained=True, check=False)
        stale = [tag for tag in self._tags(shell) if tag.startswith(f"{PREFIX}/") and tag not in refs.values()]
        if stale:
            shell.run(["buildah", *self._storage, "rmi", *stale], contained=True, check=False)
        return len(stale)

    def export(self, shell: Shell, reference: str, archive: Path) -> None:
        """Writes the image to a file, layers uncompressed."""
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.unlink(missing_ok=True)
        shell.run(
            ["buildah", *self._storage, "push", "--quiet", reference, f"docker-archive:{archive}:{reference}"],
            contained=True,
        )


class Store:
    """containerd's images of the running node."""

    def __init__(self, layout: Layout, binaries: Path) -> None:
        self._layout = layout
        self._ctr = [str(binaries / "ctr"), "--address", str(layout.containerd_socket), "--namespace", "k8s.io"]

    def names(self, shell: Shell) -> set[str]:
        """References of all images."""
        return set(shell.run([*self._ctr, "images", "list", "--quiet"], capture=True).split())

    def load(self, shell: Shell, builder: Builder, reference: str) -> None:
        """Imports an image from buildah's storage and unpacks it."""
        archive = self._layout.cache / "tmp" / f"{reference.rpartition('/')[2].replace(':', '-')}.tar"
        try:
            builder.export(shell, reference, archive)
            shell.run([*self._ctr, "images", "import", "--snapshotter", "overlayfs", archive])
        finally:
            archive.unlink(missing_ok=True)

    def prune(self, shell: Shell, wanted: set[str]) -> int:
        """Removes images of ours that nothing names; returns how many."""
        used = shell.run([*self._ctr, "containers", "list"], capture=True)
        stale = [
            name
            for name in self.names(shell)
            if name.startswith(f"{PREFIX}/") and name not in wanted and name not in used
        ]
        if stale:
            shell.run([*self._ctr, "images", "remove", "--sync", *stale])
        return len(stale)
