"""`up`, `down`, `status`: the order of things.

Called by `__main__.py`, `local/demo.py` and the end-to-end tests. `plan` lists the steps
and what each needs; `steps.py` runs them side by side. Every step first looks whether its
work is already done, so that the same `up` builds, starts, heals or does nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from local import (
    addons,
    api,
    binaries,
    cache,
    control_plane,
    images,
    node,
    packages,
    pki,
    processes,
    teardown,
    upstream,
    wheelhouse,
)
from local.console import Console, seconds
from local.layout import VARIANT, Layout
from local.steps import RunError, Shell, Step, StepError, Timing, run_steps, timing_table

START_TIMEOUT: Final = 60.0
"""Seconds for a daemon to answer; the slowest needs about 10 on two busy cores."""


@dataclass(slots=True)
class Cluster:
    """The cluster that `up` brings about; one instance a run.

    Attributes:
        layout: Its folders.
        refs: Name → reference of every image.
        tools: Debian packages that the run's steps need.
        is_new: This run made the cluster, so nothing in it can name an older image.
    """

    layout: Layout
    refs: dict[str, str] = field(default_factory=images.references)
    tools: tuple[str, ...] = (*packages.RUNTIME, *packages.IMAGE_TOOLS, *packages.WHEEL_TOOLS)
    is_new: bool = False

    @property
    def programs(self) -> Path:
        """Where `binaries.link` puts them."""
        return self.layout.cache / "bin"

    # Steps, in the order of `plan`.

    def install_packages(self, shell: Shell) -> str:
        """Debian packages for what is not cached yet."""
        return packages.install(shell, self.tools)

    def unpack_daemons(self, shell: Shell) -> str:
        """containerd, runc and the CNI plugins."""
        folder, new = packages.unpack(shell, self.layout.cache)
        binaries.link(self.layout.cache, binaries.debian_programs(folder))
        return "unpacked" if new else "cached"

    def fetch_sources(self, shell: Shell, modules: Sequence[upstream.Upstream]) -> str:
        """Those whose programs are not cached, held against their locks before anything is built or started."""
        wanted = [module for module in modules if module.module and not self._is_built(module)]
        if not wanted:
            return "cached"
        program = upstream.go(shell, self.layout.cache, wheelhouse.pip(shell, self.layout.cache))
        for module in wanted:
            upstream.sources(shell, self.layout.cache, program, module)
        return f"{len(wanted)} modules fetched"

    def _is_built(self, module: upstream.Upstream) -> bool:
        root = self.layout.cache
        return upstream.entry(root, module).is_dir() and not upstream.damaged(root, module)

    def build_upstream(self, shell: Shell, module: upstream.Upstream) -> str:
        """A module's programs."""
        python = wheelhouse.pip(shell, self.layout.cache)
        _, new = upstream.build(shell, self.layout.cache, python, module)
        if module.name in binaries.ON_PATH:
            binaries.link(self.layout.cache, binaries.upstream_programs(self.layout.cache, [module.name]))
        return f"{module.version} built" if new else f"{module.version} cached"

    def fetch_helm(self, shell: Shell) -> str:
        """Helm."""
        python = wheelhouse.pip(shell, self.layout.cache)
        folder, new = binaries.helm(shell, self.layout.cache, python)
        binaries.link(self.layout.cache, {"helm": folder / "helm"})
        return "fetched" if new else "cached"

    def forecast(self, shell: Shell) -> str:
        """How much will be downloaded, said before anybody waits for it."""
        packages_of_python = wheelhouse.forecast(shell, self.layout.cache)
        built = all(self._is_built(module) for module in upstream.UPSTREAMS)
        return packages_of_python if built else f"about {upstream.GIGABYTES} GB of Go modules, {packages_of_python}"

    def fill_wheelhouse(self, shell: Shell) -> str:
        """The images' Python packages."""
        _, new = wheelhouse.build(shell, self.layout.cache)
        return "filled" if new else "cached"

    def make_rootfs(self, shell: Shell) -> str:
        """The base image's root file system."""
        _, new = images.rootfs(shell, self.layout.cache)
        return "made" if new else "cached"

    def start_runtime(self, shell: Shell) -> str:
        """The node's namespaces and containerd; certificates and configuration before them."""
        self._write_configuration(shell)
        note = "running"
        pid = node.supervisor_pid(self.layout)
        if pid is not None and self._running_inputs() != self._inputs():
            note, pid = "started anew, because its configuration changed", None
        if pid is None:
            note = self._start_node(shell) if note == "running" else f"{note}; {self._start_node(shell)}"
        store = images.Store(self.layout, self.programs)
        if not api.wait_until(lambda: self._answers(store, shell), START_TIMEOUT):
            raise self._daemon_error(shell, "containerd")
        return note

    def make_image(self, shell: Shell, image: images.Image, *, load: bool) -> str:
        """Builds an image and, where a node runs, imports it."""
        builder, store = images.Builder(self.layout), images.Store(self.layout, self.programs)
        reference = self.refs[image.name]
        if load and reference in store.names(shell):
            return "loaded before"
        note = "built" if builder.build(shell, image, self.refs) else "cached"
        if load:
            store.load(shell, builder, reference)
        return f"{note}, loaded" if load else note

    def start_control_plane(self, shell: Shell) -> str:
        """etcd, the API server, the controller manager, the scheduler, the kubelet and kube-proxy."""
        self._write_spec(self._daemons())
        node.reload_supervisor(self.layout)
        access = api.Api(self.layout.kubeconfig)
        if not api.wait_until(access.ready, START_TIMEOUT):
            raise self._daemon_error(shell, "kube-apiserver")
        return "ready"

    def wait_for_node(self, shell: Shell) -> str:
        """The kubelet's node."""
        access = api.Api(self.layout.kubeconfig)
        if not api.wait_until(lambda: access.node_ready(self._since()), START_TIMEOUT):
            raise self._daemon_error(shell, "kubelet")
        return "Ready"

    def install_addon(self, shell: Shell, addon: addons.AddOn) -> str:
        """An add-on, as its own project installs it."""
        return addons.Installer(self.layout, self.programs, self.refs, self._since()).install(shell, addon)

    def prune(self, shell: Shell) -> str:
        """Images that the checkout no longer makes, and what only builds need."""
        compiled = upstream.forget_compiled(self.layout.cache)
        removed = images.Builder(self.layout).prune(shell, self.refs)
        if self.is_new:  # else pods to come may still name an older image
            removed += images.Store(self.layout, self.programs).prune(shell, set(self.refs.values()))
        gone = [f"{removed} images"] * bool(removed) + ["Go's build cache"] * compiled
        return f"removed {' and '.join(gone)}" if gone else "nothing stale"

    # Inside the steps.

    def _write_configuration(self, shell: Shell) -> None:
        self.layout.state.mkdir(parents=True, exist_ok=True)
        self.layout.state.chmod(0o711)
        pki.issue(shell, self.layout)
        (self.layout.state / "variant").write_text(VARIANT)
        node.write_files(self._files())

    def _files(self) -> dict[Path, str]:
        cni = packages.unpacked(self.layout.cache) / "usr/lib/cni"
        return control_plane.files(self.layout) | node.files(self.layout, self.programs, cni, self.refs["pause"])

    def _daemons(self) -> list[control_plane.Daemon]:
        path = node.daemon_path(self.programs)
        return [
            node.containerd(self.layout, self.programs, path),
            *control_plane.daemons(self.layout, self.programs, path),
            *node.daemons(self.layout, self.programs, path),
        ]

    def _setup(self) -> list[list[str]]:
        existing = [name for name in node.PROTECTED_TUNABLES if (Path("/proc/sys") / name).exists()]
        return node.setup_commands(self.layout, existing)

    def _inputs(self) -> str:
        """What the running node was made of; another value means it must start anew."""
        contents = {str(path): text for path, text in self._files().items()}
        daemons = [daemon.to_dict() for daemon in self._daemons()]
        programs = [upstream.named(name).key for name in binaries.NODE]
        return cache.key(self._setup(), daemons, contents, programs, packages.unpacked_key())

    def _since(self) -> float:
        """When the node was started, Unix seconds."""
        return (self.layout.etc / "inputs").stat().st_mtime

    def _running_inputs(self) -> str:
        path = self.layout.etc / "inputs"
        return path.read_text() if path.exists() else ""

    def _write_spec(self, wanted: list[control_plane.Daemon]) -> None:
        node.write_files({self.layout.supervisor_spec: node.spec_text(self._setup(), wanted)})

    def _start_node(self, shell: Shell) -> str:
        cleared = teardown.stop(self.layout)
        for line in cleared:
            shell.note(line)
        note = "started"
        self.is_new = not (self.layout.state / "etcd").exists()
        if not self.is_new:
            note = "started; the cluster's data was kept"
            if not self._etcd_is_sound(shell):
                teardown.forget_cluster(self.layout)
                self.is_new = True
                note = "started; etcd's data was damaged, so the cluster is new"
        path = node.daemon_path(self.programs)
        self._write_spec([node.containerd(self.layout, self.programs, path)])
        node.start_supervisor(shell, self.layout)
        (self.layout.etc / "inputs").write_text(self._inputs())
        return note

    def _etcd_is_sound(self, shell: Shell) -> bool:
        """Whether etcd starts from what a crash left; tried alone, in a network of its own."""
        etcd = next(daemon for daemon in self._daemons() if daemon.name == "etcd")
        script = (
            'ip link set lo up; "$@" & etcd=$!; '
            "until python3 -c \"import urllib.request as r; r.urlopen('http://127.0.0.1:2379/health', timeout=2)\"; "
            'do kill -0 "$etcd" || exit 1; sleep 0.2; done; kill "$etcd" && wait "$etcd"; exit 0'
        )
        argv = ["timeout", "30", "unshare", "--net", "bash", "-c", script, "bash", *etcd.argv]
        try:
            shell.run(argv, env=etcd.env, contained=True)
        except StepError:
            return False
        return True

    def _answers(self, store: images.Store, shell: Shell) -> bool:
        if not self.layout.containerd_socket.exists():
            return False
        try:
            store.names(shell)
        except StepError:
            return False
        return True

    def _daemon_error(self, shell: Shell, name: str) -> StepError:
        log = self.layout.logs / f"{name}.log"
        if log.exists():
            shell.note("\n".join(log.read_text(errors="replace").splitlines()[-20:]))
        return StepError(
            f"{name} did not answer within {START_TIMEOUT:.0f} s",
            f"Read {log}; `make down` and `make up` start from scratch.",
        )


def plan(cluster: Cluster) -> list[Step]:
    """The steps of `up`."""
    loads = tuple(f"image {image.name}" for image in images.IMAGES)
    return [
        *_programs(cluster, upstream.UPSTREAMS),
        Step("helm", "fetch Helm", cluster.fetch_helm, ("packages",)),
        Step("node", "certificates, namespaces, containerd", cluster.start_runtime, ("daemons", "sources")),
        *_images(cluster, load=True, after=("node",)),
        Step(
            "control plane",
            "etcd, API server, controllers, scheduler",
            cluster.start_control_plane,
            ("node", *(f"build {name}" for name in binaries.NODE)),
        ),
        Step("kubelet", "wait for the node to be Ready", cluster.wait_for_node, ("control plane",)),
        *(_addon(cluster, addon) for addon in addons.ADDONS),
        Step(
            "prune",
            "remove what nothing names any more",
            cluster.prune,
            (*(f"add-on {addon.name}" for addon in addons.ADDONS), *loads),
        ),
    ]


def _addon(cluster: Cluster, addon: addons.AddOn) -> Step:
    needed = ("pause", *addon.images)
    return Step(
        f"add-on {addon.name}",
        f"install {addon.name} and wait until it is ready",
        lambda shell: cluster.install_addon(shell, addon),
        (
            *("kubelet", "helm"),
            *(f"image {name}" for name in needed),
            *(f"add-on {name}" for name in addon.after),
            *((f"build {addon.module}",) if addon.module else ()),
        ),
    )


def _programs(cluster: Cluster, modules: Sequence[upstream.Upstream]) -> list[Step]:
    apt_hint = packages.NETWORK_HINT
    return [
        Step("packages", "install the Debian packages that are missing", cluster.install_packages, hint=apt_hint),
        Step(
            "daemons",
            "unpack Debian's containerd, runc and CNI plugins",
            cluster.unpack_daemons,
            ("packages",),
            apt_hint,
        ),
        Step("sources", "fetch and check them", lambda shell: cluster.fetch_sources(shell, modules), ("packages",)),
        *(_build(cluster, module) for module in modules),
    ]


def _build(cluster: Cluster, module: upstream.Upstream) -> Step:
    cached = upstream.entry(cluster.layout.cache, module).is_dir()
    why = "find" if cached else "build"
    what = f"{module.module} {module.version}" if module.module else "the sandbox's process 1"
    return Step(
        f"build {module.name}",
        f"{why} {what}",
        lambda shell: cluster.build_upstream(shell, module),
        ("sources",),
        "Run it again: what was compiled is kept.",
    )


def _images(cluster: Cluster, *, load: bool, after: tuple[str, ...] = ()) -> list[Step]:
    return [
        Step(
            "root file system",
            "make Debian's minimal system for the base image",
            cluster.make_rootfs,
            ("packages",),
            packages.NETWORK_HINT,
        ),
        Step("downloads", "ask how much must be fetched", cluster.forecast, ("packages",)),
        Step("wheelhouse", "fetch the images' Python packages", cluster.fill_wheelhouse, ("downloads",)),
        *(_image(cluster, image, load=load, after=after) for image in images.IMAGES),
    ]


def _image(cluster: Cluster, image: images.Image, *, load: bool, after: tuple[str, ...]) -> Step:
    needs = [f"image {image.base}"] if image.base else []
    needs += [f"build {image.program}"] if image.program else []
    needs += ["wheelhouse"] if image.wheels else []
    if image.name == "base":
        needs = ["root file system"]
    load = load and image.loaded
    return Step(
        f"image {image.name}",
        f"build {image.dockerfile}" + (" and load it" if load else ""),
        lambda shell: cluster.make_image(shell, image, load=load),
        (*needs, *after),
        f"The log has the failing line of {image.dockerfile}; finished layers are kept.",
    )


@contextmanager
def locked(layout: Layout, console: Console) -> Iterator[None]:
    """One run at a time."""
    with cache.lock(layout.cache, lambda: console.line("another run holds the cluster's lock; waiting for it")):
        yield


def up(layout: Layout, console: Console) -> None:
    """Brings the cluster up, or what is missing of it.

    Raises:
        RunError: A step failed; it has been reported.
    """
    _run(plan(Cluster(layout)), layout, console)


def build_images(layout: Layout, console: Console) -> dict[str, str]:
    """Builds all images, and loads them when the node runs; returns name → reference.

    Raises:
        RunError: A step failed; it has been reported.
    """
    cluster = Cluster(layout)
    running = node.supervisor_pid(layout) is not None
    built = {image.program for image in images.IMAGES}
    modules = [module for module in upstream.UPSTREAMS if module.name in built]
    _run([*_programs(cluster, modules), *_images(cluster, load=running)], layout, console)
    return images.loaded_references()


def build_binaries(layout: Layout, console: Console) -> Path:
    """Finds or builds every program that runs outside of pods; returns their folder.

    Raises:
        RunError: A step failed; it has been reported.
    """
    cluster = Cluster(layout, tools=packages.WHEEL_TOOLS)
    helm = Step("helm", "fetch Helm", cluster.fetch_helm, ("packages",))
    modules = [upstream.named(name) for name in binaries.ON_PATH]
    _run([*_programs(cluster, modules), helm], layout, console)
    return cluster.programs


def _run(steps: list[Step], layout: Layout, console: Console) -> list[Timing]:
    with locked(layout, console):
        last = _durations(layout)
        start = time.monotonic()
        timings = run_steps([_with_last(step, last.get(step.name, {})) for step in steps], console, layout.step_logs)
        worked = {t.name: {"took": round(t.duration, 1), "cpu": round(t.cpu, 1)} for t in timings if t.worked}
        cache.write(layout.cache / "durations.json", json.dumps({**last, **worked}, indent=1))
    console.line()
    for line in timing_table(timings, time.monotonic() - start):
        console.line(f"  {line}")
    return timings


def _durations(layout: Layout) -> dict[str, dict[str, float]]:
    """Step → seconds that it ``took``, and of the processors, the last time it had something to do on this machine."""
    try:
        found: dict[str, dict[str, float]] = json.loads((layout.cache / "durations.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def _with_last(step: Step, last: dict[str, float]) -> Step:
    return replace(step, why=f"{step.why} (took {seconds(last['took'])} the last time)") if last else step


def down(layout: Layout, console: Console) -> None:
    """Removes the cluster; the cache stays.

    Raises:
        RunError: Something of it would not go; it has been reported.
    """
    with locked(layout, console):
        try:
            done = [*teardown.stop(layout), *teardown.remove_state(layout)]
        except (StepError, TimeoutError) as error:
            console.problem(str(error))
            if isinstance(error, StepError) and error.hint:
                console.line(f"  try: {error.hint}")
            raise RunError from error
    for line in done:
        console.line(line)
    console.line("the cluster is down" if done else "no cluster was up")


def status(layout: Layout) -> dict[str, Any]:
    """What runs, for `status`: ``{running, api, node, processes, kubeconfig}``."""
    pid = node.supervisor_pid(layout)
    access = api.admin(layout) if pid is not None else None
    return {
        "running": pid is not None,
        "api": access is not None and access.ready(),
        "node": access is not None and access.node_ready(),
        "processes": processes.members(pid) if pid is not None else {},
        "kubeconfig": str(layout.kubeconfig),
    }
