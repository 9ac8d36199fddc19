"""A function in a process of its own: its result, its failures, its end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mljobs.failure import JobFailure
from mljobs.forked import beside
from mlplatform.contract import FailureClass


def test_it_works_on_what_cannot_be_pickled() -> None:
    lock = threading.Lock()
    with beside(lambda: (os.getpid(), lock.locked())) as result:
        pid, locked = result()
    assert pid != os.getpid()
    assert not locked


def test_it_computes_where_this_process_has_used_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        large = torch.rand(500, 500)
        wanted = large @ large  # by all threads, which the other process does not have
        with beside(lambda: ((large @ large).numpy(), torch.get_num_threads())) as result:
            found, threads = result()
        assert np.allclose(found, wanted)
        assert threads == 1
        assert torch.get_num_threads() == 2, "of this process"
    finally:
        torch.set_num_threads(before)


def refuse() -> None:
    raise JobFailure(FailureClass.SPEC_INVALID, "no graph can express it", "Change the model")


def err() -> None:
    raise LookupError("nothing there")


@dataclass(frozen=True, kw_only=True)
class Case:
    reason: str
    work: Callable[[], None]
    failure: FailureClass
    message: str
    next_action: str


CASES = [
    Case(work=refuse, failure=FailureClass.SPEC_INVALID, message="no graph can express it",
         next_action="Change the model", reason="a failure that it can name stays what it is"),
    Case(work=lambda: os.kill(os.getpid(), signal.SIGKILL), failure=FailureClass.OOM_KILLED, message="was killed, as happens where memory is short",
         next_action="Raise spec.training.resources.memory", reason="whom the kernel takes cannot speak"),
    Case(work=lambda: os._exit(3), failure=FailureClass.CRASHED, message="ended with 3, without a word",
         next_action="status.failure.lastLog", reason="a crash is no lack of memory"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.reason)
def test_its_failure_is_raised_where_somebody_waits(case: Case) -> None:
    with pytest.raises(JobFailure, match=case.message) as caught, beside(case.work) as result:
        result()
    assert caught.value.failure.reason is case.failure
    assert case.next_action in caught.value.failure.next_action


def test_what_it_did_not_expect_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="LookupError: nothing there") as caught, beside(err) as result:
        result()
    assert "in err\n" in str(caught.value.__cause__)


def test_it_ends_with_the_block() -> None:
    receiver, sender = os.pipe()
    with beside(lambda: time.sleep(600)):
        os.close(sender)  # the other process has the last copy
    assert os.read(receiver, 1) == b"", "nobody is left to write"
    os.close(receiver)
