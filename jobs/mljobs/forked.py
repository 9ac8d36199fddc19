"""A function that runs in a process of its own beside this one.

Called by optimize, for what takes as long as everything else and shares nothing with it but its arguments.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final, TypeVar

import torch

from mljobs.failure import JobFailure
from mlplatform.contract import Failure, FailureClass

T = TypeVar("T")
_FORK: Final = multiprocessing.get_context("fork")


@contextmanager
def beside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Starts `work` at once, and ends it with the block.

    It is a fork: `work` finds every object as it is now, none of which must be picklable, and has one thread of PyTorch
    for itself, since those of this process are not in the other one. What it loads this process never holds.

    Args:
        work: Its result must be picklable, and hold no tensor: its memory ends with the other process.

    Yields:
        What waits for the result.

    Raises:
        JobFailure: From what waits: as `work` raised it, or because its process was killed.
        RuntimeError: Likewise, with what else `work` raised, and its traceback as the cause.
    """
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_send, args=(work, sender), daemon=True)
    process.start()
    sender.close()  # this process's copy: the end of the other one is the end of the pipe

    def result() -> T:
        try:
            found: T | Failure | _Raised = receiver.recv()
        except EOFError:
            process.join()
            raise _ended(process.exitcode) from None
        if isinstance(found, Failure):
            raise JobFailure(found.reason, found.message, found.next_action)
        if isinstance(found, _Raised):
            raise found.error()
        return found

    try:
        yield result
    finally:
        process.kill()
        process.join()
        receiver.close()


@dataclass(frozen=True, slots=True)
class _Raised:
    """An exception in words: not every one can be pickled."""

    message: str
    traceback: str

    def error(self) -> RuntimeError:
        """It, as far as words can tell."""
        error = RuntimeError(self.message)
        error.__cause__ = RuntimeError(self.traceback)
        return error


def _send(work: Callable[[], T], sender: Connection) -> None:
    """In the other process."""
    torch.set_num_threads(1)
    found: T | Failure | _Raised
    try:
        found = work()
    except JobFailure as error:
        found = error.failure
    except Exception as error:  # noqa: BLE001  it is raised again where somebody waits
        found = _Raised(f"{type(error).__name__}: {error}", traceback.format_exc())
    sender.send(found)


def _ended(code: int | None) -> JobFailure:
    if code == -signal.SIGKILL:
        return JobFailure(
            FailureClass.OOM_KILLED,
            "a process of the stage was killed, as happens where memory is short",
            "Raise spec.training.resources.memory, which the pods of every stage get",
        )
    return JobFailure(
        FailureClass.CRASHED,
        f"a process of the stage ended with {code}, without a word",
        "Look for its last lines in status.failure.lastLog, and report them",
    )
