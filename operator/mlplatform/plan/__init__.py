"""Snapshot → Plan: every decision of the operator, pure.

Called by `mlplatform.reconciler`. No input or output, no clock of its own;
`now` is an argument, and the same snapshot gives the same plan.
"""

from __future__ import annotations

from mlplatform.plan.model import plan_model
from mlplatform.plan.plan import Plan
from mlplatform.plan.version import plan_version

__all__ = ["Plan", "plan_model", "plan_version"]
