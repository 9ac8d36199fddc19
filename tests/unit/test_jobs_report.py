"""How a job ends, what it leaves behind, and how many CPUs it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs_kit import job_environment, people_spec, read_summary

from mljobs.cpu import cpu_limit
from mljobs.failure import JobFailure
from mljobs.report import ENV_TERMINATION_LOG, Job, fail, run
from mlplatform import contract
from mlplatform.contract import TERMINATION_LIMIT, Failure, FailureClass, Stage, Summary


@pytest.fixture
def message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "message"
    for name, value in job_environment(people_spec("x"), tmp_path / "artifacts", Stage.AUDIT, path).items():
        monkeypatch.setenv(name, value)
    return path


def test_success_writes_the_summary(message: Path) -> None:
    assert run(Stage.AUDIT, lambda job: job.finish({"a": 1}, {"roc_auc": 0.912345678}, {"notAssessed": []})) == 0
    summary = read_summary(message)
    assert summary.metrics == {"roc_auc": 0.912346}
    assert summary.version == "people-0123abcd"


def test_a_rank_that_does_not_report_writes_nothing(message: Path) -> None:
    assert run(Stage.TRAIN, lambda _job: None) == 0
    assert not message.exists()


def test_an_understood_failure_is_told_without_a_traceback(message: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(_job: Job) -> Summary:
        raise JobFailure(FailureClass.DATA_MISSING, "nothing at s3://x", "Write the data")

    assert run(Stage.AUDIT, work) == 1
    assert read_summary(message).failure == Failure(FailureClass.DATA_MISSING, "nothing at s3://x", "Write the data")
    error = capsys.readouterr().err
    assert "audit failed (DataMissing): nothing at s3://x\nnext: Write the data" in error
    assert "Traceback" not in error


def test_an_unexpected_exception_is_crashed_with_its_traceback_and_no_secret(
    message: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")

    def work(_job: Job) -> Summary:
        raise ZeroDivisionError("with hunter2hunter2")

    assert run(Stage.AUDIT, work) == 1
    failure = read_summary(message).failure
    assert failure is not None
    assert failure.reason is FailureClass.CRASHED
    assert failure.message == "ZeroDivisionError: with ***"
    assert "in work" in capsys.readouterr().err


def test_a_missing_variable_is_named(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(contract.ENV_ARTIFACTS)
    assert run(Stage.AUDIT, lambda _job: None) == 1
    failure = read_summary(message).failure
    assert failure is not None
    assert (failure.reason, failure.message) == (
        FailureClass.SPEC_INVALID,
        f"environment lacks {contract.ENV_ARTIFACTS}",
    )


def test_a_long_failure_still_fits_the_termination_message(message: Path) -> None:
    assert fail(Stage.AUDIT, Failure(FailureClass.CRASHED, "ü" * 9000, "y" * 9000), 0.0) == 1
    assert len(message.read_bytes()) <= TERMINATION_LIMIT
    assert read_summary(message).failure is not None


def test_without_a_pod_the_summary_goes_to_standard_output(
    message: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv(ENV_TERMINATION_LOG)
    monkeypatch.setattr(contract, "TERMINATION_LOG", str(tmp_path / "absent"))
    assert run(Stage.AUDIT, lambda job: job.finish({}, {}, {})) == 0
    assert Summary.from_json(capsys.readouterr().out).stage is Stage.AUDIT
    assert not message.exists()


def test_reports_hold_no_nan(message: Path) -> None:
    assert run(Stage.AUDIT, lambda job: job.finish({"x": float("nan")}, {}, {})) == 1
    failure = read_summary(message).failure
    assert failure is not None
    assert failure.reason is FailureClass.CRASHED


@pytest.mark.parametrize(
    ("files", "available", "wanted", "reason"),
    [
        ({"cpu.max": "100000 100000"}, 16, 1, "one CPU of sixteen"),
        ({"cpu.max": "250000 100000"}, 16, 3, "two and a half CPUs are three threads"),
        ({"cpu.max": "50000 100000"}, 16, 1, "half a CPU is one thread"),
        ({"cpu.max": "3200000 100000"}, 4, 4, "a limit above what there is"),
        ({"cpu.max": "max 100000"}, 4, 4, "no limit"),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 8, 2, "cgroup version 1"),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 8, "version 1 without a limit"),
        ({}, 8, 8, "no cgroup file system"),
    ],
)
def test_cpu_limit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    available: int,
    wanted: int,
    reason: str,
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(available)))
    assert cpu_limit(tmp_path) == wanted, reason
