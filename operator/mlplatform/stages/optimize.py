"""Optimize: measure smaller and faster forms of the model, and choose what ships.

Listed in `stages.PIPELINE`; called by `mlplatform.plan`. The job selects; the
verdict makes sure that what it selected still passes every gate.
"""

from __future__ import annotations

from mlplatform import api
from mlplatform.contract import Stage, Summary
from mlplatform.resources import job
from mlplatform.settings import Settings
from mlplatform.snapshot import Object
from mlplatform.stages.verdict import Miss, Verdict, blocked, gate_misses, number


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings, scheduling: api.Scheduling) -> Object:
    """The Job."""
    return job.render(version, spec, Stage.OPTIMIZE, settings, scheduling)


def judge(summary: Summary, spec: api.ModelVersionSpec) -> Verdict:
    """The selected candidate must be one that was measured, and pass the gates on the test split."""
    candidates = {c["name"]: c for c in summary.details.get("candidates", ())}
    selected = candidates.get(summary.details.get("selected"))
    if selected is None:
        reasons = "; ".join(f"{name}: {c['reason']}" for name, c in candidates.items() if c.get("reason"))
        miss = Miss(
            f"no candidate could be selected{f' ({reasons})' if reasons else ''}",
            "Raise spec.optimization.maxMetricDrop, or name other candidates in spec.optimization.candidates.",
        )
        return blocked([miss], "GateFailed")
    misses = gate_misses(
        spec.gates, {**summary.metrics, **selected.get("metrics", {})}, f"candidate {selected['name']}"
    )
    if misses:
        return blocked(misses, "GateFailed")
    return Verdict(
        passed=True, reason="Succeeded", message=f"selected {_describe(selected)} of {', '.join(candidates)}"
    )


def _describe(candidate: Object) -> str:
    facts = []
    if "sizeBytes" in candidate:
        facts.append(f"{candidate['sizeBytes']} bytes")
    if "latencyP99Ms" in candidate:
        facts.append(f"p99 {number(candidate['latencyP99Ms'])} ms")
    return f"{candidate['name']} ({', '.join(facts)})" if facts else str(candidate["name"])
