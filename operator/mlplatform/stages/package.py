"""Package: put the selected candidate into the archive that serves it.

Listed in `stages.PIPELINE`; called by `mlplatform.plan`.
"""

from __future__ import annotations

from mlplatform import api
from mlplatform.contract import Stage, Summary
from mlplatform.resources import job
from mlplatform.settings import Settings
from mlplatform.snapshot import Object
from mlplatform.stages.verdict import Miss, Verdict, blocked


def render(version: Object, spec: api.ModelVersionSpec, settings: Settings, scheduling: api.Scheduling) -> Object:
    """The Job."""
    return job.render(version, spec, Stage.PACKAGE, settings, scheduling)


def judge(summary: Summary, _spec: api.ModelVersionSpec) -> Verdict:
    """An archive that says where it lies can be served."""
    uri = summary.details.get("storageUri")
    if not uri:
        miss = Miss(
            "the package stage did not say where the archive lies (details.storageUri)", "Report this as a bug."
        )
        return blocked([miss], "ReportLost")
    return Verdict(passed=True, reason="Succeeded", message=f"archive at {uri}")
