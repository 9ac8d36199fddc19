"""Says of a finished stage what its report says, if the report is this version's and everything that it names is there.

Run as ``python -m mljobs.adopt <stage>``, a container a stage, for a version that was restored without its status
(docs/disaster-recovery.md). Each report names the specification that it is of, and by digest its artifacts and the
reports before it: so a stage that was run again since, a file that was lost and a report of something else show. Such a
stage is told with the class ReportLost, and is run again; a store that does not answer fails the container, and is asked
again.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mljobs.failure import JobFailure
from mljobs.report import Job, digest, fitting, run, say
from mlplatform import api
from mlplatform.contract import Artifacts, Failure, FailureClass, Stage, Summary


class Unusable(Exception):  # noqa: N818  what it says of a report
    """The report says nothing about this version; the message names the cause."""


def main(job: Job) -> Summary:
    """Reads; returns the stage's summary, or one that says why there is none."""
    try:
        found = adopted(job)
    except Unusable as error:
        say(f"{job.stage} is run again: {error}")
        failure = Failure(FailureClass.REPORT_LOST, str(error), "Nothing: the stage is run again")
        return Summary(job.stage, job.version, failure=failure)
    say(f"{job.stage} is adopted from {found.report} ({found.digest})")
    return found


def adopted(job: Job) -> Summary:
    """The summary that the stage reported.

    Raises:
        Unusable: There is no report, or it, one before it or an artifact is not what it should be.
        JobFailure: The store refuses or does not answer.
    """
    digests: dict[str, str] = {}
    report: dict[str, Any] = {}
    for stage in list(Stage)[: list(Stage).index(job.stage) + 1]:
        content = read(job, Artifacts.report(stage))
        report = checked(job, stage, content, digests)
        digests[stage.value] = digest(content)
    for name, wanted in report["artifacts"].items():
        if digest(read(job, name)) != wanted:
            raise Unusable(f"{job.store.uri(name)} is not the file that the report names")
    serving = report["details"].get("storageUri", "")
    if job.stage is Stage.PACKAGE and serving != job.store.uri(Artifacts.SERVING):
        raise Unusable(f"the archive of the report is at {serving}, not in this store")
    return fitting(
        Summary(
            stage=job.stage,
            version=job.version,
            metrics=report["metrics"],
            details=report["details"],
            report=job.store.uri(Artifacts.report(job.stage)),
            digest=digests[job.stage.value],
            duration_seconds=report["durationSeconds"],
        )
    )


def read(job: Job, name: str) -> bytes:
    """The content of a file.

    Raises:
        Unusable: It is not there.
        JobFailure: The store refuses or does not answer.
    """
    try:
        return job.store.read(name)
    except JobFailure as error:
        if error.failure.reason is not FailureClass.DATA_MISSING:
            raise
        raise Unusable(error.failure.message) from error


def checked(job: Job, stage: Stage, content: bytes, before: dict[str, str]) -> dict[str, Any]:
    """A report, parsed.

    Args:
        job: Whose version it must be of.
        stage: Whose it must be.
        content: Of the file.
        before: Digests of the reports before it, by stage.

    Raises:
        Unusable: It is of something else, or of a release whose reports say too little.
    """
    uri = job.store.uri(Artifacts.report(stage))
    try:
        report = json.loads(content)
        missing = {"stage", "version", "spec", "before", "artifacts", "details", "metrics", "durationSeconds"} - set(
            report
        )
        if missing:
            raise Unusable(f"{uri} does not say {', '.join(sorted(missing))}: a release before this one wrote it")
        of = {"model": job.model, "sequence": job.spec.sequence, **report["spec"]}
        same = api.content(api.decode(api.ModelVersionSpec, of)) == api.content(job.spec)
    except (ValueError, TypeError) as error:
        raise Unusable(f"{uri} cannot be read: {error}") from error
    if (report["stage"], report["version"]) != (stage.value, job.version) or not same:
        raise Unusable(f"{uri} is of {report['stage']} of {report['version']}, or of another specification")
    if report["before"] != before:
        raise Unusable(f"{uri} was made of other reports than those that are there")
    return dict(report)


if __name__ == "__main__":
    chosen = Stage(sys.argv[1])
    sys.exit(run(chosen, main))
