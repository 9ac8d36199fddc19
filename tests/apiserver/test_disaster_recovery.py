"""docs/disaster-recovery.md as it stands there: its commands back up one API server and restore another.

No controller runs here but the operator: what they would do (pods that get ready, a Job that ends) is written by the test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver.test_operator import Program, apply, eventually, get
from apiserver_fixture import CRD_FOLDER, REPOSITORY, ApiServer, binary, started
from contract import modules

from mlplatform.contract import Stage, Summary
from mlplatform.resources import inferenceservice
from mlplatform.snapshot import Object, condition, controlled_by, name_of, uid_of

pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.skipif(shutil.which("jq") is None, reason="the page's commands need jq"),
]

PAGE = (REPOSITORY / "docs/disaster-recovery.md").read_text()
NAMESPACE, MODEL = "models", "adult-income"
OURS = ("modelversion", "servingruntime", "inferenceservice", "service", "virtualservice")


def commands(section: str) -> list[str]:
    """The shell blocks of a section of the page."""
    body = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"```sh\n(.*?)```", body, re.DOTALL)
    assert found, section
    return found


def shell(server: ApiServer, script: str, folder: Path) -> None:
    """As an operator of the cluster types it."""
    environment = {
        **os.environ,
        "KUBECONFIG": str(server.kubeconfig),
        "PATH": f"{binary('kubectl').parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiServer, ApiServer]]:
    with started(tmp_path_factory.mktemp("lost")) as lost, started(tmp_path_factory.mktemp("new")) as new:
        for server in (lost, new):
            server.install_crds(*sorted(CRD_FOLDER.glob("mlplatform.dev_*.yaml")), *modules.crds())
            server.kubectl("create", "namespace", NAMESPACE)
        yield lost, new


def reported(version: str) -> dict[Stage, Summary]:
    details: dict[Stage, dict[str, Any]] = {
        Stage.OPTIMIZE: {"selected": "fp32", "candidates": [{"name": "fp32", "metrics": {"roc_auc": 0.95}}]},
        Stage.PACKAGE: {"storageUri": f"s3://mlplatform/{NAMESPACE}/{MODEL}/{version}/package/serving"},
        Stage.AUDIT: {
            "fairness": {
                metric: {attribute: {"value": 0.01, "low": 0.0, "high": 0.02} for attribute in ("sex", "race")}
                for metric in ("demographic_parity_difference", "equalized_odds_difference")
            }
        },
    }
    metrics = {"roc_auc": 0.95}
    return {
        stage: Summary(stage, version, metrics=metrics, details=details.get(stage, {}), digest=f"sha256:{stage}")
        for stage in Stage
    }


def with_status(server: ApiServer, what: str, status: Object) -> None:
    server.kubectl(
        "-n", NAMESPACE, "patch", what, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status})
    )


def pod(server: ApiServer, owner: Object, name: str, labels: dict[str, str], status: Object) -> None:
    """What a controller makes, and the kubelet says of it."""
    reference = {
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name_of(owner), "uid": uid_of(owner),
        "controller": True,
    }  # fmt: skip
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "ownerReferences": [reference]},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }
    server.kubectl("-n", NAMESPACE, "create", "-f", "-", given=json.dumps(manifest))
    with_status(server, f"pod/{name}", status)


def serves(server: ApiServer, version: str) -> None:
    service = eventually(lambda: found(server, f"inferenceservice/{version}"))
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    labels = {**service["metadata"]["labels"], "app": inferenceservice.pod_label(version)}
    pod(server, service, f"{version}-predictor-0", labels, ready)


def found(server: ApiServer, what: str) -> Any:
    done = server.run("-n", NAMESPACE, "get", what, "-o", "json")
    return json.loads(done.stdout) if done.returncode == 0 else None


def is_ready(server: ApiServer) -> bool:
    return bool(condition(get(server, NAMESPACE, f"mlmodel/{MODEL}"), "Ready").get("status") == "True")


def a_model_that_serves(server: ApiServer, folder: Path) -> str:
    """Returns the name of its version."""
    operator = Program(server, folder / "lost.log")
    operator.start()
    try:
        apply(server, NAMESPACE)
        [version] = eventually(lambda: get(server, NAMESPACE, "modelversions")["items"])
        eventually(lambda: found(server, f"pytorchjob/{name_of(version)}-train"))
        stages = [
            {"name": s.stage, "outcome": "Succeeded", "metrics": s.metrics, "details": s.details, "digest": s.digest}
            for s in reported(name_of(version)).values()
        ]
        with_status(server, f"modelversion/{name_of(version)}", {"stages": stages})
        serves(server, name_of(version))
        eventually(lambda: is_ready(server), lambda: operator.log.read_text()[-3000:])
    finally:
        operator.stop()
    return name_of(version)


def test_a_lost_cluster_comes_back_without_a_training(servers: tuple[ApiServer, ApiServer], tmp_path: Path) -> None:
    lost, new = servers
    # Given a model that serves, and the backup that the page tells to make
    version = a_model_that_serves(lost, tmp_path)
    before = found(lost, f"modelversion/{version}")
    (backup,) = commands("Back up")
    shell(lost, backup, tmp_path)

    # When it is restored as the page tells, while the operator runs
    operator = Program(new, tmp_path / "new.log")
    operator.start()
    try:
        restore, wait = commands("Restore")
        shell(new, restore, tmp_path)

        # Then its reports are looked for by a Job, which says what they say
        job = eventually(lambda: found(new, f"job/{version}-adopt"), lambda: operator.log.read_text()[-3000:])
        said = reported(version)
        ended = [
            {"name": stage, "image": "none", "imageID": "", "ready": False, "restartCount": 0,
             "state": {"terminated": {"exitCode": 0, "message": said[stage].to_json()}}}
            for stage in Stage
        ]  # fmt: skip
        names = [c["name"] for c in job["spec"]["template"]["spec"]["initContainers"]]
        assert names == [Stage.TRAIN, Stage.AUDIT, Stage.OPTIMIZE]
        status = {"phase": "Succeeded", "initContainerStatuses": ended[:3], "containerStatuses": ended[3:]}
        pod(new, job, f"{version}-adopt-0", job["spec"]["template"]["metadata"]["labels"], status)
        serves(new, version)
        shell(new, wait.replace("15m", "60s"), tmp_path)

        # And the same version serves, from the same artifacts, with owners that hold, and nothing was made again
        model = found(new, f"mlmodel/{MODEL}")
        assert model["status"]["stable"]["version"] == version
        for kind in OURS:
            items = get(new, NAMESPACE, kind)["items"]
            assert items, kind
            assert all(controlled_by(obj, model) for obj in items), (kind, operator.log.read_text()[-3000:])
        [after] = get(new, NAMESPACE, "modelversions")["items"]
        assert after["spec"] == before["spec"]
        assert [(s["name"], s["outcome"], s["digest"]) for s in after["status"]["stages"]] == [
            (s["name"], s["outcome"], s["digest"]) for s in before["status"]["stages"]
        ]
        assert after["status"]["storageUri"] == before["status"]["storageUri"]
        assert get(new, NAMESPACE, "pytorchjobs")["items"] == []
        eventually(lambda: found(new, f"job/{version}-adopt") is None)
    finally:
        operator.stop()
