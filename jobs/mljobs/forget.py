"""Deletes the artifacts of a version that is gone: everything in its folder of the store, and nothing else.

Run as ``python -m mljobs.forget``, where an MLModel says `artifactRetention: Delete`. What is gone already counts as
deleted, so a try that was cut short is made again; it succeeds when the store shows nothing there any more.
"""

from __future__ import annotations

import sys

from mljobs.failure import JobFailure
from mljobs.report import Job, run, say
from mlplatform import contract
from mlplatform.contract import FailureClass, Stage, Summary


def main(job: Job) -> Summary:
    """Deletes; returns a summary that tells how many files there were.

    Raises:
        JobFailure: The store refuses or does not answer, something goes on writing there, or the folder is not the
            version's.
    """
    *_, model, folder = job.store.root.split("/")
    if model != job.model or not (folder == job.version or folder.startswith(f"{job.version}-")):
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"{job.store.root} is not the folder of {job.version} of {job.model}: nothing was deleted",
            f"Let the operator start the job, or correct {contract.ENV_ARTIFACTS}",
        )
    names = job.store.names()
    job.store.delete(names)
    job.store.remove()
    if left := job.store.names():
        raise JobFailure(
            FailureClass.CRASHED,
            f"{len(left)} files are left in {job.store.root} after {len(names)} were deleted, {left[0]} the first of them",
            "Nothing: it is tried again",
        )
    say(f"{len(names)} files were deleted from {job.store.root}")
    return Summary(job.stage, job.version, details={"files": len(names)})


if __name__ == "__main__":
    # A summary is some stage's; of this one only its failure is read.
    sys.exit(run(Stage.PACKAGE, main))
