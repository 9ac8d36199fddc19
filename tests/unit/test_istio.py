"""The files in istio/ are documentation; they say what the operator and the chart make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from unit.operator_world import mlmodel
from unit.test_chart import objects, rendered

from mlplatform.resources import virtualservice
from mlplatform.settings import Settings

FOLDER = Path(__file__).parents[2] / "istio"


def documented(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return loaded


def test_the_routes_are_the_operators() -> None:
    stable, candidate = "adult-income-0123abcd", "adult-income-89abcdef"
    model = mlmodel("adult-income")
    wanted = virtualservice.render(model, {stable: 75, candidate: 25}, [stable, candidate], "", Settings())
    shown = documented("virtualservice.yaml")
    assert (shown["apiVersion"], shown["kind"]) == (wanted["apiVersion"], wanted["kind"])
    assert shown["spec"] == wanted["spec"]


def test_the_gateway_is_the_charts() -> None:
    (wanted,) = objects("Gateway", rendered("gateway.tlsSecret=mlplatform-tls")).values()
    shown = documented("gateway.yaml")
    assert (shown["apiVersion"], shown["spec"]) == (wanted["apiVersion"], wanted["spec"])
