"""Uses the artifact store once as every stage does: writes a small file, reads it, deletes it.

Run as ``python -m mljobs.probe`` in a pod that `kubectl mlmodel doctor` makes and takes away again; its summary says
nothing but that it went well, or what did not.
"""

from __future__ import annotations

import secrets
import sys
from contextlib import suppress
from typing import Final

from mljobs.failure import JobFailure
from mljobs.report import Job, run, say
from mlplatform.contract import FailureClass, Stage, Summary

NAME: Final = "probe"


def main(job: Job) -> Summary:
    """Does it.

    Raises:
        JobFailure: The store refuses or does not answer, or has kept something else.
    """
    content = secrets.token_bytes(64)
    uri = job.store.write(NAME, content)
    try:
        found = job.store.read(NAME)
    except JobFailure:
        with suppress(JobFailure):
            job.store.delete([NAME])
        raise
    job.store.delete([NAME])
    job.store.remove()
    if found != content:
        raise JobFailure(
            FailureClass.CRASHED,
            f"{uri} was written, and something else was read ({len(found)} bytes)",
            "Look for a cache or a proxy between the pods and the store",
        )
    say(f"{uri} was written, read and deleted")
    return Summary(job.stage, job.version)


if __name__ == "__main__":
    # A summary is some stage's; of this one it counts that there is one.
    sys.exit(run(Stage.PACKAGE, main))
