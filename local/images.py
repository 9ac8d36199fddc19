"""The cluster's images: built without Docker, named by what they are made of.

Called by `cluster.py`, `local/demo.py` and the end-to-end tests. An image's tag is a hash
over its Dockerfile, the files that this copies, the Python constraints and its base, so an
unchanged image is neither built nor imported again and a changed one is never mistaken.

The chain: ``base`` (Debian and Python, by mmdebstrap) → ``torch`` (PyTorch in /opt/venv, one
layer that ``jobs`` and ``serving`` share) → the platform's images → that of the example with a
task of its own. Beside them other projects' programs, which `upstream.py` builds, and Debian's
Alertmanager.

The node is given the layers that it lacks, nothing else: the image tool writes an image into a
folder where the node's layers seem to lie already, and what it has added is imported.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from local import cache, packages, upstream, wheelhouse
from local.api import wait_until
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
ONE_LOAD: Final = threading.Lock()
"""Two images that share a large layer, loaded side by side, would both bring it."""
MANAGED: Final = "io.cri-containerd.image=managed"
"""The label of an image that the kubelet knows of."""
NUMBER: Final = "sha256:"
"""Begins the name that the kubelet's side of containerd gives every image beside the one it came with; it holds the layers, too."""
BLOBS: Final = "blobs/sha256"
IMPORT: Final = ("bash", "-o", "pipefail", "-c", 'tar --create --directory "$1" . | "${@:2}"', "bash")
"""Feeds a folder to a command as an archive that is never written to the disk."""


@dataclass(frozen=True, slots=True)
class Image:
    """One image.

    Attributes:
        name: Last part of its reference.
        dockerfile: Path in the repository.
        base: Image that takes the place of ``BASE_IMAGE``; empty when it starts from scratch.
        context: Folder in the repository that it copies from; empty for the repository itself.
        wheels: Whether it installs Python packages from the wheelhouse.
        program: Name in `upstream.UPSTREAMS` of the module whose programs it copies.
        debs: Debian packages whose files it copies; nothing of them is installed.
        arguments: Build arguments of its own.
        loaded: Whether the cluster runs it (else it is a base only).
    """

    name: str
    dockerfile: str
    base: str = ""
    context: str = ""
    wheels: bool = False
    program: str = ""
    debs: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    loaded: bool = True


def _static(name: str, module: str, program: str, path: str) -> Image:
    """An image of one static program, which has it at ``path`` as the project's own image does."""
    arguments = {"PROGRAM": program, "TARGET": path}
    return Image(name, "images/upstream/Dockerfile", base="base", program=module, arguments=arguments)


IMAGES: Final = (
    Image("base", "images/base/Dockerfile", loaded=False),
    Image("torch", "images/torch/Dockerfile", base="base", wheels=True, loaded=False),
    Image("pause", "images/pause/Dockerfile", program="pause"),
    _static("coredns", "coredns", "coredns", "/coredns"),
    _static("metrics-server", "metrics-server", "metrics-server", "/metrics-server"),
    _static("training-operator", "training-operator", "training-operator", "/manager"),
    _static("kserve", "kserve", "manager", "/manager"),
    _static("istiod", "istio", "pilot-discovery", "/usr/local/bin/pilot-discovery"),
    Image("proxyv2", "images/proxyv2/Dockerfile", base="base", wheels=True, program="istio"),
    Image("storage-initializer", "images/storage-initializer/Dockerfile", base="base", wheels=True),
    _static("prometheus", "prometheus", "prometheus", "/bin/prometheus"),
    Image("alertmanager", "images/alertmanager/Dockerfile", base="base", debs=("prometheus-alertmanager",)),
    Image("operator", "images/operator/Dockerfile", base="base", wheels=True),
    Image("seaweedfs", "images/seaweedfs/Dockerfile", base="base", wheels=True),
    Image("jobs", "images/jobs/Dockerfile", base="torch", wheels=True),
    Image("serving", "images/serving/Dockerfile", base="torch", wheels=True),
    Image("own-task", "examples/own-task/Dockerfile", base="jobs", context="examples/own-task"),
)
"""A base stands before what is built on it."""


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
    for image in IMAGES:
        text = (repo / image.dockerfile).read_text()
        wheels = wheelhouse.name(repo) if image.wheels else ""
        parts = [text, RECIPE, found.get(image.base), wheels, dict(image.arguments), _copied(image, repo, text)]
        found[image.name] = f"{PREFIX}/{image.name}:{cache.key(*parts)}"
    return found


def _copied(image: Image, repo: Path, text: str) -> object:
    """What stands for the files that its Dockerfile copies."""
    if image.name == "base":
        return rootfs_key()
    if image.program:
        return upstream.named(image.program).key
    if image.debs:
        return unpacked_key(image)
    return source_digests(repo / image.context, copied_sources(text))


def loaded_references(repo: Path = REPO) -> dict[str, str]:
    """``references`` of the images that the cluster runs: what ``images --json`` prints."""
    refs = references(repo)
    return {image.name: refs[image.name] for image in IMAGES if image.loaded}


def rootfs(shell: Shell, root: Path) -> tuple[Path, bool]:
    """Finds or makes the base's root file system; returns its folder (``rootfs.tar``) and whether it was made."""

    def build(folder: Path) -> None:
        mirrors = packages.mirrors(shell)
        options = ["--variant=minbase", f"--include={','.join(ROOTFS_PACKAGES)}"]
        options += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        options += ["--customize-hook=rm -rf $1/var/lib/apt/lists/*"]
        shell.run(["mmdebstrap", *options, CODENAME, folder / "rootfs.tar", *mirrors], contained=True)

    return cache.entry(root, "rootfs", rootfs_key(), build)


def unpacked_key(image: Image) -> str:
    """The cache key of the packages that `unpacked` unpacks."""
    return cache.key(CODENAME, image.debs, RECIPE)


def unpacked(shell: Shell, root: Path, image: Image) -> Path:
    """Finds or fetches the Debian packages whose files an image copies; returns the folder that stands for ``/``."""
    folder, _ = cache.entry(root, f"debs-{image.name}", unpacked_key(image), lambda new: _unpack(shell, image, new))
    return folder


def _unpack(shell: Shell, image: Image, folder: Path) -> None:
    names = packages.extract(shell, image.debs, folder)
    (folder / "packages.txt").write_text("".join(f"{name}\n" for name in names))


def seem_there(folder: Path, layers: Mapping[str, int]) -> None:
    """Makes an OCI layout that seems to hold these layers, digest → size; they take no disk."""
    (folder / BLOBS).mkdir(parents=True)
    for digest, size in layers.items():
        with _blob(folder, digest).open("wb") as blob:
            blob.truncate(size)


def keep_new(folder: Path, layers: Mapping[str, int], reference: str) -> None:
    """Takes those layers out of an OCI layout again, and names its image in the words that containerd reads."""
    for digest in layers:
        _blob(folder, digest).unlink()
    path = folder / "index.json"
    index = json.loads(path.read_text())
    for manifest in index["manifests"]:
        manifest["annotations"] = {"io.containerd.image.name": reference}
    path.write_text(json.dumps(index))


def _blob(folder: Path, digest: str) -> Path:
    return folder / BLOBS / digest.removeprefix("sha256:")


def unnamed(names: Mapping[str, str], kept: Collection[str]) -> list[str]:
    """Images that may go: ours that are not kept, and those of which only the number is left that the kubelet knows them by.

    Args:
        names: Of all images, with the digest that each stands for.
        kept: Names that stay.
    """
    ours = [name for name in names if name.startswith(f"{PREFIX}/") and name not in kept]
    left = {digest for name, digest in names.items() if name not in ours and not name.startswith(NUMBER)}
    numbers = [name for name, digest in names.items() if name.startswith(NUMBER) and digest not in left]
    return ours + numbers


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
        with shell.turn(CONCURRENT_BUILDS):
            if self.has(shell, refs[image.name]):
                return False
            options = [*self._options(image, refs), f"--tag={refs[image.name]}"]
            dockerfile = f"--file={REPO / image.dockerfile}"
            context = self._context(shell, image)
            shell.run(["buildah", *self._storage, "bud", *options, dockerfile, context], contained=True)
        return True

    def _context(self, shell: Shell, image: Image) -> Path:
        root = self._layout.cache
        if image.name == "base":
            return root / "rootfs" / rootfs_key()
        if image.program:
            return upstream.entry(root, upstream.named(image.program))
        if image.debs:
            return unpacked(shell, root, image)
        return REPO / image.context

    def _options(self, image: Image, refs: Mapping[str, str]) -> list[str]:
        root = self._layout.cache
        ignore = root / "tmp" / f"{image.name}.ignore"
        cache.write(ignore, "".join(f"**/{name}\n" for name in (*IGNORED, "*.pyc")))
        arguments = dict(image.arguments)
        if image.base:
            arguments["BASE_IMAGE"] = refs[image.base]
        if image.wheels:
            arguments["PIP_ARGS"] = PIP_ARGS
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--volume={root / 'wheels' / wheelhouse.name()}:/wheels:ro"] if image.wheels else []
        # Layers that only another build would use are kept where making them again takes long.
        layers = "false" if image.program or image.debs else "true"
        return [*options, f"--ignorefile={ignore}", f"--layers={layers}", "--isolation=chroot", "--pull-never"]

    def prune(self, shell: Shell, refs: Mapping[str, str]) -> int:
        """Removes images of ours that are no longer named, and remains of killed builds; returns how many images."""
        shell.run(["buildah", *self._storage, "rm", "--all"], contained=True, check=False)
        stale = [tag for tag in self._tags(shell) if tag.startswith(f"{PREFIX}/") and tag not in refs.values()]
        if stale:
            shell.run(["buildah", *self._storage, "rmi", *stale], contained=True, check=False)
        return len(stale)

    def layers(self, shell: Shell, reference: str) -> dict[str, int]:
        """The image's layers, uncompressed: digest → size."""
        said = shell.run(["skopeo", "inspect", "--raw", self._stored(reference)], capture=True, contained=True)
        return {layer["digest"]: layer["size"] for layer in json.loads(said)["layers"]}

    def push(self, shell: Shell, reference: str, folder: Path) -> None:
        """Writes the image into an OCI layout; layers that are there stay as they are."""
        # skopeo, because buildah compresses what it writes into a layout.
        copy = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-oci-accept-uncompressed-layers"]
        shell.run([*copy, self._stored(reference), f"oci:{folder}:{reference}"], contained=True)

    def _stored(self, reference: str) -> str:
        root = self._layout.cache
        return f"containers-storage:[{root / 'buildah'}+{root / 'buildah-run'}]{reference}"


class Store:
    """containerd's images of the running node."""

    def __init__(self, layout: Layout, binaries: Path) -> None:
        self._layout = layout
        self._ctr = [str(binaries / "ctr"), "--address", str(layout.containerd_socket), "--namespace", "k8s.io"]

    def names(self, shell: Shell) -> set[str]:
        """References of all images."""
        return set(shell.run([*self._ctr, "images", "list", "--quiet"], capture=True).split())

    def load(self, shell: Shell, builder: Builder, reference: str) -> None:
        """Imports an image from buildah's storage, of its layers those that the node lacks, and unpacks it."""
        folder = self._layout.cache / "tmp" / "image"
        with ONE_LOAD:
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            known = set(shell.run([*self._ctr, "content", "list", "--quiet"], capture=True).split())
            layers = builder.layers(shell, reference)
            there = {digest: size for digest, size in layers.items() if digest in known}
            try:
                seem_there(folder, there)
                builder.push(shell, reference, folder)
                keep_new(folder, there, reference)
                shell.run([*IMPORT, folder, *self._ctr, "images", "import", "--snapshotter", "overlayfs", "-"])
                # The kubelet's side of containerd takes an image in a moment later; a pod that comes before would pull it.
                wait_until(
                    lambda: MANAGED in shell.run([*self._ctr, "images", "list", f"name=={reference}"], capture=True), 30
                )
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def prune(self, shell: Shell, wanted: set[str]) -> int:
        """Removes images of ours that nothing names; returns how many."""
        used = shell.run([*self._ctr, "containers", "list"], capture=True)
        rows = [line.split() for line in shell.run([*self._ctr, "images", "list"], capture=True).splitlines()[1:]]
        names = {name: digest for name, _, digest, *_ in rows}
        stale = unnamed(names, {name for name in names if name in wanted or name in used})
        if stale:
            shell.run([*self._ctr, "images", "remove", "--sync", *stale])
        return len(stale)
