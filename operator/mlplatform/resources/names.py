"""How long a model's name may be in its namespace: every name that a controller makes of it must fit.

Called by `mlplatform.plan.model`, before anything is trained: a name that is too long shows late otherwise, as a version
that was trained and that KServe makes no pods for.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from mlplatform.contract import Stage
from mlplatform.resources import inferenceservice

LABEL: Final = 63
"""Characters of a label's value, of a Service's name, and between two dots of a host name."""

HOST: Final = 253
"""Characters of a host name."""


class Room(NamedTuple):
    """How many characters a model's name may have, and what it is that allows no more."""

    characters: int
    limit: int
    what: str


def room(namespace: str, domain: str) -> Room:
    """What is left for a model's name in that namespace; less than 1 when no name fits."""
    version = "-12345678"
    derived = (
        (f"{version}-{Stage.TRAIN}-worker-99", LABEL, "the pods of a training, <name>-<hash>-train-worker-<number>"),
        (inferenceservice.pod_label(version), LABEL, "KServe's label app, isvc.<name>-<hash>-predictor"),
        # Unless KServe's domainTemplate is the cluster's own.
        (f"{version}-predictor-{namespace}", LABEL, "KServe's host name <name>-<hash>-predictor-<namespace>"),
        (f".{namespace}.{domain}", HOST, "the model's address <name>.<namespace>.<domain>"),
    )
    return min(Room(limit - len(rest), limit, what) for rest, limit, what in derived)
