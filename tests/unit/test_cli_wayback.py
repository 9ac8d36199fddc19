"""Which version `kubectl mlmodel rollback` goes back to, and what it says where there is no way."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from unit import cli_objects as objects

from mlplatform import api, contract
from mlplatform.cli import wayback
from mlplatform.errors import CliError

V1, V2, V3 = objects.V1, objects.V2, "adult-income-9c0d1e2f"
BUILT = [objects.version(V1, 1, objects.ALL_STAGES), objects.version(V2, 2, objects.ALL_STAGES)]
TRAINS = objects.version(V3, 3)
FORGOTTEN = copy.deepcopy(objects.version(V3, 3, objects.ALL_STAGES))
FORGOTTEN["metadata"]["annotations"] = {contract.ANNOTATION_FORGET: "true"}
THIRD = objects.version(V3, 3, objects.ALL_STAGES)
UNBUILT = replace(objects.REPLACED_V1, latest_version=V3, latest_sequence=3)
ROLLING_V3 = replace(objects.ROLLING_V2, latest_version=V3, stable=api.StableStatus(version=V2, sequence=2))

WAYS: list[tuple[str, Any, list[Any], str, str, str]] = [
    (
        "to the version that the stable one replaced",
        objects.model(objects.REPLACED_V1, generation=2),
        BUILT,
        "",
        f"{V2}->{V1}",
        f"all the traffic goes to v1 ({V1}) once its pods are ready; until then v2 ({V2}) serves",
    ),
    (
        "out of a rollout, at once",
        objects.model(objects.ROLLING_V2, generation=2),
        BUILT,
        "",
        f"{V2}->{V1}",
        f"the rollout of v2 ({V2}) ends at 25 %; all the traffic goes to v1 ({V1}) at once",
    ),
    (
        "from a version that is not built yet: it will not be rolled out",
        objects.model(UNBUILT, generation=2),
        [*BUILT, TRAINS],
        "",
        f"{V3}->{V2}",
        f"v3 ({V3}) is not rolled out; v2 ({V2}) goes on serving",
    ),
    (
        "further back, by number",
        objects.model(UNBUILT, generation=2),
        [*BUILT, THIRD],
        "v1",
        f"{V3}->{V1}",
        f"until then v2 ({V2}) serves",
    ),
    (
        "to the newest, where no history tells which one served before",
        objects.model(replace(objects.REPLACED_V1, history=()), generation=2),
        [*BUILT, THIRD],
        "",
        f"{V2}->{V3}",
        f"all the traffic goes to v3 ({V3})",
    ),
]


@pytest.mark.parametrize(("reason", "model", "versions", "wish", "asked", "told"), WAYS, ids=[row[0] for row in WAYS])
def test_way(reason: str, model: Any, versions: list[Any], wish: str, asked: str, told: str) -> None:
    way = wayback.find(model, versions, wish)
    assert str(way.asked) == asked, reason
    assert told in way.message, reason
    assert api.WayBack.parse(str(way.asked)) == way.asked, reason


CAN = f"adult-income can go back to: v1 ({V1})"
DEAD_ENDS: list[tuple[str, Any, list[Any], str, str, str]] = [
    ("no such version", objects.model(objects.REPLACED_V1, generation=2), BUILT, "v7", "no version v7", CAN),
    (
        "wanted now",
        objects.model(objects.REPLACED_V1, generation=2),
        BUILT,
        V2,
        "is the version that is wanted now",
        CAN,
    ),
    (
        "not built",
        objects.model(objects.REPLACED_V1, generation=2),
        [*BUILT, TRAINS],
        "v3",
        "v3 has not passed its pipeline",
        CAN,
    ),
    (
        "on its way out",
        objects.model(objects.REPLACED_V1, generation=2),
        [*BUILT, FORGOTTEN],
        "v3",
        "v3 cannot serve any more: its artifacts are being deleted (spec.artifactRetention)",
        CAN,
    ),
    (
        "past the stable version of a rollout",
        objects.model(ROLLING_V3, generation=2),
        [*BUILT, THIRD],
        "v1",
        f"leads to v2 ({V2}) alone",
        f"kubectl mlmodel rollback adult-income, and once that is done: kubectl mlmodel rollback adult-income --to {V1}",
    ),
    ("the only version", objects.model(objects.SERVING_V1), BUILT[:1], "", "is the only version", "apply another spec"),
    (
        "nothing serves",
        objects.model(objects.TRAINING_V1),
        BUILT[1:],
        "",
        "no version of adult-income serves yet",
        "watch",
    ),
    ("suspended", objects.model(objects.SERVING_V1, suspend=True), BUILT, "", "is suspended", "kubectl patch mlmodel"),
    ("refused", objects.model(objects.REJECTED), BUILT, "", "cannot be used", "correct the spec"),
    ("not seen yet", objects.model(objects.SERVING_V1, generation=2), BUILT, "", "has not seen", "try again"),
]


@pytest.mark.parametrize(
    ("reason", "model", "versions", "wish", "cause", "next_action"), DEAD_ENDS, ids=[row[0] for row in DEAD_ENDS]
)
def test_dead_end(reason: str, model: Any, versions: list[Any], wish: str, cause: str, next_action: str) -> None:
    with pytest.raises(CliError) as refused:
        wayback.find(model, versions, wish)
    assert cause in refused.value.cause, reason
    assert next_action in refused.value.next_action, reason
