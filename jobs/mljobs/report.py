"""How a job starts and ends: reads its environment, runs, reports, exits.

Called by the `__main__` of every stage. The full evidence goes to the artifact store
as `report.json`; a summary goes to the termination message, where the operator
reads it without credentials for the store.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from mljobs.failure import JobFailure
from mljobs.store import Store, redact
from mlplatform import api, contract
from mlplatform.contract import Artifacts, Failure, FailureClass, Stage, Summary

ENV_TERMINATION_LOG: Final = "MLPLATFORM_TERMINATION_LOG"
"""Where the summary goes instead of `contract.TERMINATION_LOG`; for runs outside a pod."""

MESSAGE_LIMIT: Final = 1500
"""Bytes of a failure's sentence as JSON: both its sentences fit the termination message."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a stage is given.

    Attributes:
        stage: Which one.
        model: Name of the MLModel.
        version: Name of the ModelVersion.
        spec: The version's specification.
        store: The version's artifacts.
        started: `time.monotonic()` of the start.
    """

    stage: Stage
    model: str
    version: str
    spec: api.ModelVersionSpec
    store: Store
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def from_environment(cls, stage: Stage, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads the variables that the operator sets.

        Raises:
            JobFailure: One is missing or malformed.
        """
        wanted = (contract.ENV_SPEC, contract.ENV_ARTIFACTS, contract.ENV_MODEL, contract.ENV_VERSION)
        if missing := [name for name in wanted if not environment.get(name)]:
            raise JobFailure(
                FailureClass.SPEC_INVALID,
                f"environment lacks {', '.join(missing)}",
                "Let the operator start the job, or set these variables as docs/architecture.md describes",
            )
        return cls(
            stage,
            environment[contract.ENV_MODEL],
            environment[contract.ENV_VERSION],
            read_spec(environment[contract.ENV_SPEC]),
            Store(environment[contract.ENV_ARTIFACTS]),
        )

    def finish(self, report: Mapping[str, Any], metrics: Mapping[str, float], details: Mapping[str, Any]) -> Summary:
        """Writes `report` to the store and returns the summary that points to it.

        Args:
            report: The full evidence; JSON values.
            metrics: Headline numbers.
            details: As `contract.Summary` lists for the stage.
        """
        duration = round(time.monotonic() - self.started, 3)
        full = {"stage": self.stage, "model": self.model, "version": self.version, "durationSeconds": duration}
        content = json.dumps({**full, "metrics": metrics, **report}, indent=2, allow_nan=False).encode()
        return Summary(
            stage=self.stage,
            version=self.version,
            metrics={name: round(value, 6) for name, value in metrics.items()},
            details=dict(details),
            report=self.store.write(Artifacts.report(self.stage), content),
            digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
            duration_seconds=duration,
        )

    def read_json(self, name: str) -> Any:
        """The parsed JSON file `name` of this version's artifacts, written by an earlier stage.

        Raises:
            JobFailure: It is not there or is no JSON.
        """
        try:
            return json.loads(self.store.read(name))
        except ValueError as error:
            raise JobFailure(
                FailureClass.DATA_INVALID, f"{self.store.uri(name)} is no JSON: {error}", "Retrain the model"
            ) from error


def read_spec(text: str) -> api.ModelVersionSpec:
    """Reads the JSON of ``ModelVersion.spec``.

    The operator leaves defaults out, so a field that this release lacks is one that somebody has set: to pass over it
    would report a model that is not the one asked for.

    Raises:
        JobFailure: It is no JSON, or a field is unknown, missing or of the wrong type.
    """
    try:
        return api.decode(api.ModelVersionSpec, json.loads(text))
    except ValueError as error:
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"{contract.ENV_SPEC} cannot be read: {error}",
            "Use a training image built from the operator's release",
        ) from error


def run(stage: Stage, work: Callable[[Job], Summary | None]) -> int:
    """Runs a stage and reports how it ended.

    Args:
        stage: Which one.
        work: Does it and returns the summary; None when another process reports (a rank other than 0).

    Returns:
        The exit code: 0, or 1 after a failure, whose summary is written then.
    """
    started = time.monotonic()
    try:
        summary = work(Job.from_environment(stage))
    except JobFailure as error:
        return fail(stage, error.failure, started)
    except Exception as error:  # noqa: BLE001  the process ends here: whatever it was must reach the operator
        traceback.print_exc()
        cause = redact(f"{type(error).__name__}: {error}")
        return fail(stage, Failure(FailureClass.CRASHED, cause, "Read the job's log for the traceback"), started)
    if summary is not None:
        write_termination_message(summary)
    return 0


def fail(stage: Stage, failure: Failure, started: float) -> int:
    """Reports a failure on standard error and in the termination message; returns the exit code 1."""
    short = Failure(failure.reason, shorten(failure.message), shorten(failure.next_action))
    sys.stderr.write(f"{stage} failed ({failure.reason}): {failure.message}\nnext: {failure.next_action}\n")
    sys.stderr.flush()
    duration = round(time.monotonic() - started, 3)
    version = os.environ.get(contract.ENV_VERSION, "")
    write_termination_message(Summary(stage=stage, version=version, failure=short, duration_seconds=duration))
    return 1


def shorten(text: str) -> str:
    """The start of `text` whose JSON is at most `MESSAGE_LIMIT` bytes."""
    while len(json.dumps(text)) > MESSAGE_LIMIT:
        text = text[: len(text) * 9 // 10]
    return text


def write_termination_message(summary: Summary) -> None:
    """Writes the summary where the kubelet reads it.

    Outside a pod, where that file does not exist and `ENV_TERMINATION_LOG` names no other, it goes to standard output.
    """
    override = os.environ.get(ENV_TERMINATION_LOG)
    path = Path(override or contract.TERMINATION_LOG)
    if override or path.exists():
        path.write_text(summary.to_json())
    else:
        sys.stdout.write(summary.to_json() + "\n")


def say(line: str) -> None:
    """One line of progress on standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
