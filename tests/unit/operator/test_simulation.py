"""A model's life in a cluster in memory: what happens, and that a restart at any write changes nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from unit.operator_world import SPEC, Fake, Simulation, failing, mlmodel, outcome

from mlplatform import contract
from mlplatform.contract import Failure, FailureClass, Stage


def life(sim: Simulation) -> None:
    """First version, second version, promotion, and the first one's pods retired."""
    sim.fake.apply(mlmodel())
    sim.run(400)
    sim.fake.apply(mlmodel(spec={**SPEC, "gates": [{"metric": "roc_auc", "min": 0.9}]}))
    sim.run(400)


def test_first_version_serves_everything() -> None:
    sim = Simulation()
    sim.fake.apply(mlmodel())
    sim.run(400)
    status = sim.fake.one("MLModel", "adult")["status"]
    assert status["stage"] == "Serving"
    assert sim.fake.weights() == {status["latestVersion"]: 100}
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Accepted", "VersionReady", "Serving", "RolloutPassed", "Ready"), "True"
    )
    assert [d["reason"] for d in status["history"]] == ["FirstVersion"]
