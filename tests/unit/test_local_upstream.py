"""Other projects' programs and manifests: pins, what is said when a build cannot go on, how manifests are put together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from local import addons, upstream
from local.layout import REPO, Layout
from local.steps import StepError

ISTIO = upstream.named("istio")
THEIRS = """module k8s.io/kubernetes

go 1.26.0

godebug default=go1.26

require (
\tgithub.com/spf13/cobra v1.10.0
\tk8s.io/api v0.0.0
\tk8s.io/apimachinery v0.0.0
\tk8s.io/sample-controller v0.0.0
)

replace github.com/old => github.com/new v1.0.0

replace (
\tk8s.io/api => ./staging/src/k8s.io/api
\tk8s.io/apimachinery => ./staging/src/k8s.io/apimachinery
\tk8s.io/sample-controller => ./staging/src/k8s.io/sample-controller
)
"""


@pytest.mark.parametrize("module", upstream.UPSTREAMS, ids=lambda module: module.name)
def test_every_version_is_written_once_and_locked(module: upstream.Upstream) -> None:
    if not module.module:
        return
    locked = (module.folder / "go.sum").read_text()
    assert f"{module.module} {module.version} h1:" in locked, "go.sum holds the digest of the version that go.mod pins"
    assert module.programs, "a module that nothing is built of has no place in the table"


def test_a_changed_lock_is_another_build(tmp_path: Path) -> None:
    module = replace(ISTIO, above=tmp_path)
    (tmp_path / "istio").mkdir()
    (tmp_path / "istio/go.mod").write_text("module x\n\nrequire istio.io/istio v1.2.3\n")
    (tmp_path / "istio/go.sum").write_text("istio.io/istio v1.2.3 h1:a=\n")
    before = module.key
    (tmp_path / "istio/go.sum").write_text("istio.io/istio v1.2.3 h1:b=\n")
    assert module.key != before
    (tmp_path / "istio/README.md").write_text("words\n")
    assert module.key != before
    assert module.version == "v1.2.3"


def test_another_version_of_kubernetes_takes_its_siblings_along() -> None:
    text = upstream.moved(upstream.named("kubernetes"), "v1.37.2", THEIRS)
    assert text.endswith(
        "go 1.26.0\n\nrequire (\n\tk8s.io/kubernetes v1.37.2\n\tk8s.io/api v0.37.2\n\tk8s.io/apimachinery v0.37.2\n)\n"
    )


def test_siblings_with_versions_of_their_own_keep_them() -> None:
    theirs = "module m\n\ngo 1.26.0\n\nrequire (\n\texample.com/api v3.6.17\n)\n\nreplace example.com/api => ../api\n"
    assert "\texample.com/api v3.6.17\n" in upstream.moved(upstream.named("etcd"), "v3.6.17", theirs)


def test_a_module_without_siblings_needs_one_line() -> None:
    text = upstream.moved(upstream.named("kserve"), "v0.21.0", "module m\n\ngo 1.26.0\n\nreplace a => b v1\n")
    assert text.endswith("go 1.26.0\n\nrequire github.com/kserve/kserve v0.21.0\n"), "its own replacements count there"


def test_releases_take_the_place_of_siblings() -> None:
    text = upstream.released(THEIRS, {"k8s.io/kubernetes": "v1.36.3", "k8s.io/api": "v0.36.3"})
    assert "\tk8s.io/api v0.36.3\n" in text
    assert "k8s.io/apimachinery" not in text, "one that we do not pin is not needed"
    assert "./staging" not in text
    assert "github.com/spf13/cobra v1.10.0" in text, "everything else is as they have it"
    assert "github.com/old => github.com/new v1.0.0" in text, "their other replacements too"


@pytest.mark.parametrize(
    ("words", "cause", "hint", "reason"),
    [
        (
            "verifying istio.io/istio@v1: checksum mismatch\n\tdownloaded: h1:a=\n\tgo.sum: h1:b=\n\nSECURITY ERROR",
            "is not what local/upstream/istio/go.sum locks",
            "git checkout local/upstream/istio",
            "a byte that changed upstream, or a lock that was edited",
        ),
        (
            'Get "https://proxy.example/x.zip": dial tcp: lookup proxy.example: no such host',
            "the Go module proxy cannot be reached",
            "CLUSTER=kind",
            "a machine without a way out",
        ),
        ("reading https://proxy.example/x.info: 403 Forbidden", "cannot be reached", "CLUSTER=current", "it says no"),
        ("write /tmp/b001/x.a: no space left on device", "no disk is left", "df -h", "a full disk"),
        ("pilot/x.go:3:1: syntax error", "istio could not be built: pilot/x.go", "", "anything else, in its own words"),
    ],
)
def test_why_there_is_no_program(words: str, cause: str, hint: str, reason: str) -> None:
    error = upstream.refused(words, ISTIO)
    assert cause in error.cause, reason
    assert hint in error.hint, reason
    assert "\n" not in error.cause, "one line"


@pytest.mark.parametrize(
    ("said", "version", "reason"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8), "a release"),
        ("go version go1.27 linux/amd64", (1, 27, 0), "the first of a line"),
        ("go version devel go1.28-abcdef linux/amd64", (1, 28, 0), "built from source"),
        ("bash: go: command not found", (), "no Go at all is older than any"),
    ],
)
def test_go_version(said: str, version: tuple[int, ...], reason: str) -> None:
    assert upstream.go_version(said) == version, reason


@pytest.mark.parametrize(
    ("sizes", "content", "wrong", "reason"),
    [
        ({"pause": 4}, b"1234", "", "whole"),
        ({"pause": 5}, b"1234", "has 4 bytes of 5", "half-written"),
        ({"pause": 4}, None, "has 0 bytes of 4", "gone"),
    ],
)
def test_a_program_that_is_not_whole_is_noticed(
    tmp_path: Path, sizes: dict[str, int], content: bytes | None, wrong: str, reason: str
) -> None:
    module = upstream.named("pause")
    assert upstream.damaged(tmp_path, module) == "", "what is not there yet is not damaged"
    folder = upstream.entry(tmp_path, module)
    folder.mkdir(parents=True)
    (folder / "sizes.json").write_text(json.dumps(sizes))
    if content is not None:
        (folder / "pause").write_bytes(content)
    found = upstream.damaged(tmp_path, module)
    assert found.endswith(wrong), reason
    assert bool(found) is bool(wrong), reason


def test_manifests_ask_only_for_what_is_made() -> None:
    """Every ``${…}`` of our files has a value: an image of the table, a certificate, an address."""
    known = {"ca_crt", "ca_key", "kserve_crt", "kserve_key", "training_operator_crt", "training_operator_key", "domain"}
    for addon in addons.ADDONS:
        images = {f"{name.replace('-', '_')}{part}" for name in addon.images for part in ("", "_name", "_tag")}
        others = {"operator", "proxyv2", "istiod", "storage_initializer_name", "storage_initializer_tag"}
        for path in addon.ours.glob("*.yaml"):
            addons.substitute(path.read_text(), dict.fromkeys(known | images | others, "x"))


def test_a_name_that_nothing_makes_is_refused() -> None:
    with pytest.raises(StepError, match=r"\$\{typo\}"):
        addons.substitute("image: ${typo}", {})


def test_images_stand_for_their_references(tmp_path: Path) -> None:
    layout = Layout(state=tmp_path / "state", cache=tmp_path / "cache")
    layout.pki.mkdir(parents=True)
    (layout.pki / "addons-ca.crt").write_text("certificate")
    (layout.pki / "ca.key").write_text("the cluster's own")
    known = addons.values(layout, {"training-operator": "localhost/mlplatform/training-operator:0123"})
    assert known["training_operator"] == "localhost/mlplatform/training-operator:0123"
    assert (known["training_operator_name"], known["training_operator_tag"]) == (
        "localhost/mlplatform/training-operator", "0123",
    )  # fmt: skip
    assert known["ca_crt"] == "Y2VydGlmaWNhdGU="
    assert "ca_key" not in known, "add-ons are given their own authority, never the cluster's"


def test_what_is_ours_of_upstream_lies_in_the_checkout() -> None:
    for addon in addons.ADDONS:
        assert (addon.ours / "kustomization.yaml").exists()
        assert all((REPO / name).exists() for name in addon.copied if not name.startswith("./"))
