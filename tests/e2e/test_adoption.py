"""A model and its versions come back from a backup, without owners and without status, over what goes on serving."""

from __future__ import annotations

import json

from e2e.scenario import STAGE_SECONDS, Model, Object, condition, stages

from mlplatform import contract
from mlplatform.contract import Stage

OWNED = ("modelversions", "inferenceservices", "virtualservices")


def kept(obj: Object) -> Object:
    """What a backup keeps of an object (docs/disaster-recovery.md)."""
    metadata = {key: obj["metadata"].get(key) or {} for key in ("name", "namespace", "labels", "annotations")}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata, "spec": obj["spec"]}


def test_a_restored_model_adopts_its_versions_and_trains_nothing(model: Model) -> None:
    # Given a model that serves under load, of whose stages nothing but the reports is left
    platform, selector = model.platform, f"{contract.LABEL_MODEL}={model.name}"
    before = model.becomes_ready()
    name = before["status"]["stable"]["version"]
    versions = platform.list("modelversions", selector)
    story = next(stages(version) for version in versions if version["metadata"]["name"] == name)
    with model.under_load() as load:
        # When the model and its versions are deleted, and what they own is not
        platform.kubectl("delete", "mlmodel", model.name, "-n", model.namespace, "--cascade=orphan", "--timeout=60s")
        for kind in ("modelversions", "pytorchjobs", "jobs"):
            platform.kubectl(
                "delete", kind, "-n", model.namespace, "-l", selector, "--cascade=orphan", "--timeout=60s",
                "--ignore-not-found",
            )  # fmt: skip
        # And they are made again from a backup
        for obj in (*versions, before):
            platform.kubectl("create", "-n", model.namespace, "-f", "-", stdin=json.dumps(kept(obj)))

        # Then the same version serves, and its stages say what they had said
        after = model.becomes_ready(3 * STAGE_SECONDS)
        adopted = model.version_reaches(name, "is ready", lambda v: condition(v, "Ready") == "True", 10)
        assert after["status"]["stable"]["version"] == name
        assert list(stages(adopted)) == [str(stage) for stage in Stage]
        for stage in Stage:
            for key in ("outcome", "digest", "metrics"):
                assert stages(adopted)[stage].get(key) == story[stage].get(key), f"{stage}: {key}"

        # And nothing was trained, everything has its owner again, and nobody noticed
        assert platform.list("pytorchjobs", selector) == []
        for kind in OWNED:
            for obj in platform.list(kind, selector):
                owners = obj["metadata"].get("ownerReferences") or ()
                assert after["metadata"]["uid"] in {r["uid"] for r in owners}, f"{kind} {obj['metadata']['name']}"
        assert load.wait_for(load.outcome.total + 40)
    assert (load.outcome.failed, load.outcome.failures) == (0, [])
    assert set(load.outcome.by_version) == {name}
