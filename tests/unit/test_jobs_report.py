"""How a job ends, what it leaves behind, and how many CPUs it takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs_kit import job_environment, people_spec, read_summary, subprocess_environment
from ports import free_port

from mljobs.cpu import cpu_limit
from mljobs.failure import JobFailure
from mljobs.report import LOG_LIMIT, Job, fail, run
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
    assert summary.metrics == {"roc_auc": 0.912345678}, "0.9123456 is below a gate of 0.912346"
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
    log = read_summary(message).details[contract.DETAIL_LOG]
    assert log.endswith("ZeroDivisionError: with ***\n"), "it must outlive the pod"
    assert len(log) <= LOG_LIMIT
    error = capsys.readouterr().err
    assert "in work" in error
    assert "hunter2" not in error


def test_an_understood_failure_shows_no_secret(
    message: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    failure = Failure(FailureClass.TASK_IMPORT, "at s3://me:word@host with hunter2hunter2", "Drop hunter2hunter2")
    assert fail(Stage.AUDIT, failure, 0.0) == 1
    assert read_summary(message).failure == Failure(FailureClass.TASK_IMPORT, "at s3://***@host with ***", "Drop ***")
    assert "hunter2" not in capsys.readouterr().err


RANK = """
import os, sys
import torch.distributed as dist
from mljobs.failure import JobFailure
from mljobs.report import run
from mlplatform.contract import FailureClass, Stage

def work(_job):
    dist.init_process_group("gloo")
    if os.environ["RANK"] == "0":
        raise JobFailure(FailureClass.STORE_ACCESS, "the root cause", "Mend it")
    dist.barrier()

sys.exit(run(Stage.TRAIN, work))
"""


def test_what_follows_from_a_failure_does_not_hide_it(message: Path) -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=subprocess_environment({**address, "RANK": str(rank)}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], errors
    assert "Crashed" in errors[1], "the other rank lost its peer"
    failure = read_summary(message).failure
    assert failure is not None
    assert failure.message == "the root cause", errors[1]


def test_a_success_follows_an_earlier_failure(message: Path) -> None:
    assert fail(Stage.AUDIT, Failure(FailureClass.PREEMPTED, "stopped", "Nothing"), 0.0) == 1
    assert run(Stage.AUDIT, lambda job: job.finish({}, {}, {})) == 0
    assert read_summary(message).failure is None


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


def differences(attributes: int, length: int) -> dict[str, Any]:
    """What an audit of that many attributes with names of that length has in its summary."""
    names = [f"{i:0{length}d}" for i in range(attributes)]
    interval = {"value": 0.1234, "low": 0.1234, "high": 0.1234}
    return {metric: dict.fromkeys(names, interval) for metric in contract.TARGET_FAIRNESS["binary"]}


METRICS = dict.fromkeys(contract.TARGET_METRICS["binary"], 1 / 3)


def test_a_long_list_in_a_summary_is_cut(message: Path) -> None:
    groups = [f"attribute={'ü' * 100}{i}" for i in range(20)]
    details = {"fairness": differences(8, 64), "notAssessed": groups}
    assert run(Stage.AUDIT, lambda job: job.finish({"notAssessed": groups}, METRICS, details)) == 0
    assert len(message.read_bytes()) <= TERMINATION_LIMIT
    summary = read_summary(message)
    assert summary.metrics == METRICS
    assert summary.details["fairness"] == details["fairness"], "the operator judges these"
    left = summary.details["notAssessed"]
    assert left == groups[: len(left)]
    assert len(details["notAssessed"]) == 20, "what the caller has stays as it is"


def test_a_summary_that_cannot_be_cut_is_an_understood_failure(message: Path) -> None:
    details = {"fairness": differences(16, 128), "notAssessed": ["a=b"]}  # the most that the CRD admits
    assert run(Stage.AUDIT, lambda job: job.finish({}, METRICS, details)) == 1
    failure = read_summary(message).failure
    assert failure is not None
    assert failure.reason is FailureClass.SPEC_INVALID
    assert f"over {TERMINATION_LIMIT}" in failure.message
    assert "spec.data.sensitiveAttributes" in failure.next_action


def test_a_summary_of_ones_own_that_is_too_long_is_a_crash(message: Path) -> None:
    assert run(Stage.AUDIT, lambda _job: Summary(Stage.AUDIT, "v", details={"x": "y" * 5000})) == 1
    failure = read_summary(message).failure
    assert failure is not None
    assert failure.reason is FailureClass.CRASHED


def test_without_a_pod_the_summary_goes_to_standard_output(
    message: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv(contract.ENV_TERMINATION_LOG)
    monkeypatch.setattr(contract, "TERMINATION_LOG", str(tmp_path / "absent"))
    assert run(Stage.AUDIT, lambda job: job.finish({}, {}, {})) == 0
    assert Summary.from_json(capsys.readouterr().out).stage is Stage.AUDIT
    assert not message.exists()


@pytest.mark.parametrize("part", [0, 1, 2], ids=["report", "metrics", "details"])
def test_reports_hold_no_nan(message: Path, part: int) -> None:
    parts: list[dict[str, Any]] = [{}, {}, {}]
    parts[part] = {"x": float("nan")}
    assert run(Stage.AUDIT, lambda job: job.finish(*parts)) == 1
    failure = read_summary(message).failure
    assert failure is not None
    assert failure.reason is FailureClass.CRASHED


@pytest.mark.parametrize(
    ("files", "available", "wanted", "reason"),
    [
        ({"cpu.max": "100000 100000"}, 16, 1, "one CPU of sixteen"),
        ({"cpu.max": "250000 100000"}, 16, 2, "two and a half CPUs are two threads: a third would stall both"),
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
    assert cpu_limit(tmp_path, {}) == wanted, reason


@pytest.mark.parametrize(
    ("stated", "available", "wanted", "reason"),
    [
        ("1", 16, 1, "one CPU of sixteen, whatever the cgroup says"),
        ("500m", 16, 1, "half a CPU is one thread"),
        ("2500m", 16, 2, "two and a half CPUs are two threads"),
        ("1.5", 16, 1, "the other way to write it"),
        ("16", 4, 4, "more than there is"),
        ("", 16, 3, "stated as nothing: the cgroup's"),
    ],
)
def test_a_stated_cpu_limit_stands_for_the_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stated: str, available: int, wanted: int, reason: str
) -> None:
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(available)))
    assert cpu_limit(tmp_path, {contract.ENV_CPUS: stated}) == wanted, reason


@pytest.mark.parametrize("stated", ["two", "-1", "0", "1Gi", "1 ", "m"])
def test_what_is_no_cpu_quantity_is_named(tmp_path: Path, stated: str) -> None:
    with pytest.raises(JobFailure, match=re.escape(f"{contract.ENV_CPUS} {stated!r}")) as caught:
        cpu_limit(tmp_path, {contract.ENV_CPUS: stated})
    assert caught.value.failure.reason is FailureClass.SPEC_INVALID
