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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from mljobs.failure import JobFailure
from mljobs.store import Store, redact
from mlplatform import api, contract
from mlplatform.contract import Artifacts, Failure, FailureClass, Stage, Summary

MESSAGE_LIMIT: Final = 1500
"""Bytes of a failure's sentence as JSON: both its sentences fit the termination message."""
LOG_LIMIT: Final = 700
"""Bytes of a traceback's end as JSON, beside them."""
REASON_LIMIT: Final = 500
"""Bytes of a sentence within `details`, as JSON: that of every candidate fits."""


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
        written: Digest by name of the artifacts that this stage has made.
    """

    stage: Stage
    model: str
    version: str
    spec: api.ModelVersionSpec
    store: Store
    started: float = field(default_factory=time.monotonic)
    written: dict[str, str] = field(default_factory=dict)

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

    def write(self, name: str, content: bytes) -> str:
        """Writes an artifact, which the report will name by its digest; returns its URI.

        Raises:
            JobFailure: The store refuses or does not answer.
        """
        self.written[name] = digest(content)
        return self.store.write(name, content)

    def finish(self, report: Mapping[str, Any], metrics: Mapping[str, float], details: Mapping[str, Any]) -> Summary:
        """Writes `report` to the store and returns the summary that points to it.

        The file says by itself what it is worth, where no status is left to say so (`mljobs.adopt`): the specification that
        it is of, the digests of the artifacts and of the reports before it, and the details of the summary.

        Args:
            report: The full evidence; JSON values.
            metrics: Headline numbers; not rounded, for the operator holds them against the gates.
            details: As `contract.Summary` lists for the stage. Lists of words lose their last ones if need be: the
                report has them.

        Raises:
            JobFailure: The summary is too long for a termination message all the same, or the store refuses or does
                not answer.
        """
        duration = round(time.monotonic() - self.started, 3)
        full = {
            "stage": self.stage,
            "model": self.model,
            "version": self.version,
            "durationSeconds": duration,
            "spec": json.loads(api.content(self.spec)),
            "before": self._before(),
            "artifacts": self.written,
            "details": details,
        }
        content = json.dumps({**full, "metrics": metrics, **report}, indent=2, allow_nan=False).encode()
        return fitting(
            Summary(
                stage=self.stage,
                version=self.version,
                metrics=dict(metrics),
                details=dict(details),
                report=self.store.write(Artifacts.report(self.stage), content),
                digest=digest(content),
                duration_seconds=duration,
            )
        )

    def _before(self) -> dict[str, str]:
        """Digests of the reports of the stages before this one; none of a stage that was not run."""
        found = {}
        for stage in list(Stage)[: list(Stage).index(self.stage)]:
            try:
                found[stage.value] = digest(self.store.read(Artifacts.report(stage)))
            except JobFailure as error:
                if error.failure.reason is not FailureClass.DATA_MISSING:
                    raise
        return found

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


def digest(content: bytes) -> str:
    """``sha256:<hex>``, as reports and summaries name a file's content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


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
        if summary is not None:
            write_termination_message(summary)
    except JobFailure as error:
        return fail(stage, error.failure, started)
    except Exception as error:  # noqa: BLE001  the process ends here: whatever it was must reach the operator
        log = redact(traceback.format_exc())
        sys.stderr.write(log)
        failure = Failure(
            FailureClass.CRASHED,
            f"{type(error).__name__}: {error}",
            "The end of the traceback is in status.failure.lastLog; correct the spec or the task",
        )
        return fail(stage, failure, started, secondary=failure_is_told(), log=log)
    return 0


def fail(stage: Stage, failure: Failure, started: float, *, secondary: bool = False, log: str = "") -> int:
    """Reports a failure on standard error and in the termination message; returns the exit code 1.

    Args:
        stage: Which one failed.
        failure: Why; credentials in it are left out.
        started: `time.monotonic()` of the start.
        secondary: Whether it may follow from one that the termination message has already, which stays then.
        log: What is worth keeping of the output; its end goes into the termination message.
    """
    message, next_action = redact(failure.message), redact(failure.next_action)
    sys.stderr.write(f"{stage} failed ({failure.reason}): {message}\nnext: {next_action}\n")
    sys.stderr.flush()
    if not secondary:
        short = Failure(failure.reason, shorten(message), shorten(next_action))
        duration = round(time.monotonic() - started, 3)
        version = os.environ.get(contract.ENV_VERSION, "")
        while len(json.dumps(log)) > LOG_LIMIT:
            log = log[len(log) // 10 :]
        details = {contract.DETAIL_LOG: log} if log else {}
        write_termination_message(
            Summary(stage=stage, version=version, details=details, failure=short, duration_seconds=duration)
        )
    return 1


def shorten(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """The start of `text` whose JSON is at most `limit` bytes."""
    while len(json.dumps(text)) > limit:
        text = text[: len(text) * 9 // 10]
    return text


def fitting(summary: Summary) -> Summary:
    """`summary`, less the last words of the lists in its details that are too many for a termination message.

    Raises:
        JobFailure: It is too long without these lists, too.
        ValueError: The details hold a number that JSON has no word for.
    """
    json.dumps(summary.details, allow_nan=False)  # what `to_json` refuses from here on is the length
    details = {key: list(value) if _is_words(value) else value for key, value in summary.details.items()}
    summary = replace(summary, details=details)
    lists = [value for value in details.values() if _is_words(value)]
    while True:
        try:
            summary.to_json()
        except ValueError as error:
            longest = max(lists, key=lambda words: len(json.dumps(words)), default=[])
            if not longest:
                raise JobFailure(
                    FailureClass.SPEC_INVALID,
                    f"{error}: the names in it are too many or too long",
                    "Name fewer columns in spec.data.sensitiveAttributes, or give them shorter names; a task of your "
                    "own may also report fewer metrics",
                ) from error
            longest.pop()
        else:
            return summary


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def failure_is_told() -> bool:
    """Whether a process of this pod has already written a failure to the termination message."""
    try:
        return Summary.from_json(_message_path().read_text()).failure is not None
    except (OSError, ValueError):
        return False


def write_termination_message(summary: Summary) -> None:
    """Writes the summary where the kubelet reads it.

    Outside a pod, where that file does not exist and `contract.ENV_TERMINATION_LOG` names no other, it goes to standard output.
    """
    path = _message_path()
    if os.environ.get(contract.ENV_TERMINATION_LOG) or path.exists():
        path.write_text(summary.to_json())
    else:
        sys.stdout.write(summary.to_json() + "\n")


def _message_path() -> Path:
    return Path(os.environ.get(contract.ENV_TERMINATION_LOG) or contract.TERMINATION_LOG)


def say(line: str) -> None:
    """One line of progress on standard output, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
