"""Who is asked before the API server stores what the platform writes: the webhooks that upstream ships, and no others.

A webhook that fails closed is a part that must run before the platform can write; a release of upstream that asks about
more shows here. What the webhooks say is tested where they run, in tests/e2e.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contract.modules import CHARTS, KUSTOMIZATIONS, webhooks
from contract.webhooks import WRITES, Write, asked

pytestmark = pytest.mark.parametrize("write", WRITES, ids=lambda write: write.reason)


@pytest.fixture(scope="module")
def shipped() -> list[dict[str, Any]]:
    """The webhook configurations of all add-ons."""
    return [configuration for name in (*CHARTS, *KUSTOMIZATIONS) for configuration in webhooks(name)]


def test_who_is_asked_when_it_is_made(write: Write, shipped: list[dict[str, Any]]) -> None:
    found = asked(shipped, write)
    assert {name: webhook["failurePolicy"] for name, webhook in found.items()} == write.policies, write.reason
    assert {webhook["sideEffects"] for webhook in found.values()} <= {"None"}, "a dry run asks them, too"


def test_who_is_asked_when_it_is_changed(write: Write, shipped: list[dict[str, Any]]) -> None:
    """The same, but for pods, which are looked at once."""
    found = asked(shipped, replace(write, operation="UPDATE"))
    assert found.keys() == (set() if write.resource == "pods" else write.policies.keys()), write.reason


def test_nobody_is_asked_when_it_is_deleted(write: Write, shipped: list[dict[str, Any]]) -> None:
    """A model can be deleted while an add-on is down."""
    assert asked(shipped, replace(write, operation="DELETE")) == {}, write.reason


def test_nobody_is_asked_about_its_status(write: Write, shipped: list[dict[str, Any]]) -> None:
    """A controller says what it sees while its own webhook is down."""
    status = replace(write, resource=f"{write.resource}/status", operation="UPDATE")
    assert asked(shipped, status) == {}, write.reason
