"""`kubectl mlmodel doctor` as a program: its table, its JSON, its exit codes, and when a pod is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from kubernetes import client
from unit.test_doctor import HEALTHY, SETTINGS, STAY

from mlplatform.cli import doctor
from mlplatform.cli.main import main
from mlplatform.doctor import probe
from mlplatform.doctor.ask import Asker
from mlplatform.doctor.facts import Facts, Probed, Unseen

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command over facts that were gathered beforehand."""
    config = {
        "clusters": [{"name": "t", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "t", "user": {}}],
        "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t", "namespace": "team-a"}}],
        "current-context": "t",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    def of(facts: Facts, *arguments: str, probed: Probed | None = None) -> int:
        def made(_ask: Any, _settings: Any, namespaces: list[str], tell: probe.Tell, _deadline: float) -> Any:
            assert probed is not None, "no pod was to be made"
            tell("store: a pod is made")
            return dict.fromkeys(namespaces, probed)

        monkeypatch.setattr(doctor, "gather", lambda *_: facts)
        monkeypatch.setattr(probe, "run", made)
        return main(["doctor", *arguments])

    return of


def test_a_table_for_people_and_progress_beside_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    facts = replace(HEALTHY, kserve=(), crds={**HEALTHY.crds, "mlmodels.mlplatform.dev": None})
    assert run(facts, probed=Probed()) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].split() == ["LEVEL", "CHECK", "MESSAGE"]
    at = next(i for i, line in enumerate(lines) if "there is no CRD mlmodels" in line)
    assert lines[at].startswith("failure")
    assert lines[at + 1].strip().startswith("next: helm upgrade --install")
    assert lines[-1].startswith("2 failure, ")
    assert "\x1b" not in told.out, "no colour into a pipe"
    assert told.err == "store: a pod is made\n"


def test_json_for_programs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(HEALTHY, "-o", "json", probed=Probed()) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found[0]) == {"check", "level", "message", "nextAction"}
    assert {f["level"] for f in found} == {"ok"}


def test_a_warning_is_no_failure(run: Run) -> None:
    assert run(replace(HEALTHY, istio=()), probed=Probed()) == 0


def test_no_pod_is_made_where_none_is_wanted(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(HEALTHY, "--no-probe") == 0
    assert "was not used from team-a: --no-probe was said" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (replace(HEALTHY, operators=(), settings=None), "nobody knows with what"),
        (replace(HEALTHY, stays={"team-a": replace(STAY, namespace=None)}), "there is no such namespace"),
    ],
)
def test_no_pod_is_made_where_none_can_be(run: Run, facts: Facts, reason: str) -> None:
    assert run(facts, probed=Probed("the store was asked")) == 1, reason


def test_the_store_in_the_jobs_words(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(HEALTHY, probed=Probed("the store refused to write s3://mlplatform/x", "Check the keys")) == 1
    assert "the store refused to write s3://mlplatform/x" in capsys.readouterr().out


def test_a_cluster_that_cannot_be_reached(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> Facts:
        raise urllib3.exceptions.HTTPError("refused")

    run(HEALTHY, "--no-probe")
    monkeypatch.setattr(doctor, "gather", away)
    assert main(["doctor"]) == 1
    assert "cannot reach the cluster at http://127.0.0.1:1" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "kubectl mlmodel doctor -n team-a --no-probe" in capsys.readouterr().out


class Store(Asker):
    """An API server that knows one pod, which goes from one status to the next at each look.

    Attributes:
        made: What was created.
        deleted: Paths.
    """

    def __init__(self, *statuses: dict[str, Any] | None, refused: str = "") -> None:
        self.made: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self._statuses, self._refused = list(statuses), refused

    def create(self, _path: str, manifest: dict[str, Any]) -> dict[str, Any] | Unseen:
        if self._refused:
            return Unseen(self._refused)
        self.made.append(manifest)
        return manifest

    def get(self, _path: str) -> dict[str, Any] | None:
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if status == {"interrupt": True}:
            raise KeyboardInterrupt
        return None if status is None else {**self.made[0], "status": status}

    def delete(self, path: str) -> None:
        self.deleted.append(path)
        if len(self.deleted) > len(self.made):
            raise client.ApiException(500)


def ended(code: int, message: str) -> dict[str, Any]:
    return {
        "phase": "Failed" if code else "Succeeded",
        "containerStatuses": [{"name": "doctor", "state": {"terminated": {"exitCode": code, "message": message}}}],
    }


PENDING = {"phase": "Pending"}
FULL = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
        }
    ],
}
NO_SECRET = {
    "phase": "Pending",
    "containerStatuses": [
        {
            "name": "doctor",
            "state": {
                "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "mlplatform-store" not found'}
            },
        }
    ],
}
WELL = ended(0, '{"stage": "package", "version": "v"}')
REFUSED = ended(
    1,
    '{"stage": "package", "version": "v", "failure": {"class": "StoreAccess", "message": "could not write s3://b/x: '
    'certificate verify failed", "nextAction": "Let the chart\'s trust.configMap name it"}}',
)


@pytest.mark.parametrize(
    ("reason", "statuses", "trouble", "action"),
    [
        ("it does its work", (PENDING, WELL), "", ""),
        ("it says what the store says", (PENDING, REFUSED), "certificate verify failed", "trust.configMap"),
        (
            "a program that is not there",
            (ended(1, "No module named mljobs.probe"),),
            "No module named mljobs.probe",
            "images.jobs",
        ),
        ("nobody has room for it", (FULL,), "Insufficient cpu", "resources"),
        ("a namespace that is not set up", (NO_SECRET,), "has no Secret 'mlplatform-store'", "modelNamespaces"),
        ("nothing happens", (PENDING,), "has not done its work (Pending)", "--timeout"),
        ("somebody else deletes it", (None,), "somebody has deleted pod", "again"),
    ],
)
def test_a_pod_is_waited_for_and_deleted(
    monkeypatch: pytest.MonkeyPatch, reason: str, statuses: tuple[Any, ...], trouble: str, action: str
) -> None:
    monkeypatch.setattr(probe, "PAUSE", 0.01)
    store = Store(*statuses)
    told: list[str] = []
    found = probe.run(store, SETTINGS, ["team-a"], told.append, 0.2)["team-a"]
    assert (trouble in found.trouble) if trouble else not found.trouble, (reason, found)
    assert action in found.next_action, (reason, found)
    assert len(store.deleted) == 1, reason
    assert told, "it says that it waits, and for what"


def test_a_pod_goes_with_whoever_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PAUSE", 0.01)
    store = Store(PENDING, {"interrupt": True})
    with pytest.raises(KeyboardInterrupt):
        probe.run(store, SETTINGS, ["team-a"], lambda _: None)
    assert len(store.deleted) == 1


@pytest.mark.parametrize(
    ("words", "skipped", "said"),
    [
        ('pods is forbidden: User "ann" cannot create resource "pods"', True, "you may not make a pod there"),
        ('pods "x" is forbidden: exceeded quota: q', False, "its pods are refused: exceeded quota: q"),
        ('pods "x" is forbidden: error looking up service account team-a/mlplatform-jobs: serviceaccount "mlplatform-jobs" not found', False, "has no ServiceAccount 'mlplatform-jobs'"),
    ],
)  # fmt: skip
def test_who_may_not_make_a_pod_is_no_failure_of_the_store(words: str, said: str, *, skipped: bool) -> None:
    found = probe.run(Store(refused=words), SETTINGS, ["team-a"], lambda _: None)["team-a"]
    assert said in (found.skipped if skipped else found.trouble)
    assert found.next_action


def test_the_pod_is_a_stages_pod() -> None:
    """With all that makes a difference on the way to the store, and of no model's: the operator does not count it."""
    settings = replace(
        SETTINGS,
        https_proxy="http://proxy:3128",
        jobs_scheduling='{"nodeSelector": {"pool": "gpu"}, "labels": {"team": "a"}}',
    )
    found = probe.render("team-a", settings)
    (container,) = found["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert container["envFrom"] == [{"secretRef": {"name": "mlplatform-store"}}]
    assert found["spec"]["serviceAccountName"] == "mlplatform-jobs"
    assert env["AWS_CA_BUNDLE"] == "/etc/mlplatform/trust/ca.crt"
    assert env["HTTPS_PROXY"] == "http://proxy:3128"
    assert found["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert env["MLPLATFORM_ARTIFACTS"] == f"s3://mlplatform/team-a/_doctor/{found['metadata']['name']}"
    assert found["metadata"]["labels"]["team"] == "a"
    assert not any(key.startswith("mlplatform.dev/") for key in found["metadata"]["labels"])
    assert found["spec"]["activeDeadlineSeconds"] > probe.DEADLINE
