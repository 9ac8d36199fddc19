"""The list of images for a mirror has the add-ons' as their own releases name them."""

from __future__ import annotations

import json
import re

from contract.modules import applied, source
from unit.test_chart import named, script

WORKLOADS = "(Deployment|ClusterStorageContainer)"


def test_the_addons_images_are_those_that_they_ship() -> None:
    pulled = {*named(applied("kserve", WORKLOADS)), *named(applied("training-operator", WORKLOADS))}
    (settings,) = (
        c["data"] for c in applied("kserve", "ConfigMap") if c["metadata"]["name"] == "inferenceservice-config"
    )
    pulled.add(json.loads(settings["storageInitializer"])["image"])
    defaults = (source("training-operator") / "pkg/config/config.go").read_text()
    pulled.update(re.findall(r'PyTorchInitContainerImageDefault = "(.+)"', defaults))
    assert set(script("images").ADDONS) == pulled
