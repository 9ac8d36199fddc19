"""A release with another default, on a real API server: what it has stored keeps the old one, so no model asks for another version.

The server is this module's own: it gets another CRD.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from apiserver_fixture import CRD_FOLDER, REPOSITORY, ApiServer, started

from mlplatform import api
from mlplatform.resources import modelversion
from mlplatform.snapshot import Object, name_of

pytestmark = pytest.mark.apiserver

MODEL = yaml.safe_load((REPOSITORY / "examples/adult-income/mlmodel.yaml").read_text())
MODEL["spec"].pop("optimization", None)
"""As a user writes it who leaves to the platform what is measured and shipped."""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with started(tmp_path_factory.mktemp("names-apiserver")) as found:
        found.install_crds(*sorted(CRD_FOLDER.glob("mlplatform.dev_*.yaml")))
        yield found


def found(server: ApiServer, what: str) -> Object:
    obj: Object = json.loads(server.kubectl("get", what, "-o", "json"))
    return obj


def wanted(server: ApiServer, name: str) -> str:
    """The version that the model asks for now."""
    model, versions = found(server, f"mlmodel/{name}"), found(server, "modelversions")["items"]
    spec = api.decode(api.MLModelSpec, model["spec"])
    mine = {name_of(version): version for version in versions if version["spec"]["model"] == name}
    return modelversion.wanted(model, spec, mine)


def with_another_default(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next release: `maxMetricDrop` is 0.01 where nobody says otherwise."""
    for path in sorted(CRD_FOLDER.glob("mlplatform.dev_*.yaml")):
        crd: dict[str, Any] = yaml.safe_load(path.read_text())
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        schema["optimization"]["properties"]["maxMetricDrop"]["default"] = 0.01
        server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=yaml.safe_dump(crd))
    monkeypatch.setattr(api.Optimization.__dataclass_fields__["max_metric_drop"], "default", 0.01)
    monkeypatch.setitem(api.Optimization.__init__.__kwdefaults__, "max_metric_drop", 0.01)


APPLIED = {"client": ("apply",), "server": ("apply", "--server-side")}
"""By where the merge is made: a model of that name."""


def test_another_default_asks_for_no_other_version(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {name: yaml.safe_dump({**MODEL, "metadata": {"name": name}}) for name in APPLIED}
    versions = {}
    for name, way in APPLIED.items():
        server.kubectl(*way, "-f", "-", given=texts[name])
        model, versions[name] = found(server, f"mlmodel/{name}"), wanted(server, name)
        rendered = modelversion.render(model, api.decode(api.MLModelSpec, model["spec"]), versions[name], 1, "")
        server.kubectl("create", "-f", "-", given=json.dumps(rendered))
        assert wanted(server, name) == versions[name]

    with_another_default(server, monkeypatch)
    for name, way in APPLIED.items():
        assert wanted(server, name) == versions[name], "both objects hold the old default"
        server.kubectl(*way, "-f", "-", given=texts[name])
        assert wanted(server, name) == versions[name], "what an apply leaves out, it does not take away"

    # What takes the value away asks for the default of today: a replace, and the first server-side apply after
    # client-side ones, by which kubectl takes over the defaults that it had sent for nobody.
    server.kubectl("replace", "-f", "-", given=texts["server"])
    server.kubectl(*APPLIED["server"], "-f", "-", given=texts["client"])
    for name in APPLIED:
        assert wanted(server, name) != versions[name]
