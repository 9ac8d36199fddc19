"""The rows of a training, in the order in which they are learned from.

Called by lesson, which encodes them, by the trainer, which asks for those of each step, and by trained. What is not for memory
lies on disk as tensors, and an epoch then goes through it window by window: its chunks in random order, the rows of so many
chunks as fit into memory in random order among themselves. Which rows a step has is a function of the seed and the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from mljobs import data, spool
from mljobs.failure import JobFailure
from mljobs.tasks import Task
from mlplatform.api import Training
from mlplatform.contract import FailureClass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mljobs.trainer import Plan

Indices = npt.NDArray[np.int64]

SHARE: Final = 8
"""Of a process's memory one part in so many holds rows: beside them there are the libraries, the model and what it computes."""
CHUNKS: Final = 32
"""Of a window: each is read in one go, and two rows that are neighbours on disk are mostly in different windows of an epoch."""
WINDOW_STREAM: Final = 2
"""Beside the seed and the epoch, so that chunks and rows are drawn by numbers of their own."""
_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def held_bytes(training: Training) -> int:
    """Up to which size the training part is for memory: of the specification alone, so that every process says the same."""
    text = training.resources.memory
    digits = text.rstrip("kKMGTi")
    return int(float(digits) * _UNITS[text[len(digits) :]]) // training.processes_per_worker // SHARE


@dataclass(frozen=True, slots=True)
class Examples:
    """One part of the data as tensors.

    Attributes:
        inputs: The task's tensors; the first dimension of each is the row.
        targets: The task's (`tasks.Targets.values`); likewise.
        weights: How much each row counts, ``(rows,)`` float32; None if all count alike.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def row_bytes(self) -> int:
        """Of one row's inputs."""
        return sum(part.element_size() * math.prod(part.shape[1:]) for part in self.inputs)

    def take(self, rows: Tensor) -> Examples:
        """The examples of these row numbers."""
        weights = None if self.weights is None else self.weights[rows]
        return Examples(tuple(part[rows] for part in self.inputs), self.targets[rows], weights)

    def to(self, device: torch.device) -> Examples:
        """A copy on a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Examples(tuple(part.to(device) for part in self.inputs), self.targets.to(device), weights)


def encode(
    task: Task, config: Mapping[str, Any], table: pa.Table, rows: Indices, held: int = spool.HELD_BYTES
) -> tuple[Tensor, ...]:
    """The model's input tensors of some rows, which rise.

    Args:
        task: Which makes them: of a large table stretch by stretch.
        config: Its own.
        table: All rows.
        rows: Row numbers.
        held: Tensors up to this size are in memory.

    Raises:
        JobFailure: The tensors of one stretch do not go with those of another.
    """
    if not spool.is_large(table):
        return task.inputs(config, data.take(table, rows))
    found: tuple[Tensor, ...] = ()
    done = 0
    for piece in data.taken(table, rows):
        parts = task.inputs(config, piece)
        if not found:
            large = sum(part.element_size() * math.prod(part.shape[1:]) for part in parts) * len(rows) > held
            found = tuple(spool.tensor((len(rows), *part.shape[1:]), part.dtype, large=large) for part in parts)
        for whole, part in zip(found, parts, strict=True):
            if (whole.shape[1:], whole.dtype) != (part.shape[1:], part.dtype):
                raise JobFailure(
                    FailureClass.TASK_IMPORT,
                    f"the task's inputs are {tuple(part.shape[1:])} of {part.dtype} for some rows and "
                    f"{tuple(whole.shape[1:])} of {whole.dtype} for others",
                    "Let the shape of a row's inputs follow from the configuration alone: large data is encoded in stretches",
                )
            whole[done : done + len(part)] = part
        done += piece.num_rows
    return found


class Window(NamedTuple):
    """Rows that one stretch of steps learns from.

    Attributes:
        examples: Where they are.
        places: Which ones each step of the stretch takes there, ``(steps, accumulation, micro)``.
    """

    examples: Examples
    places: Indices


class Feed:
    """This process's rows of each step.

    Args:
        examples: The training part.
        plan: How many rows and steps there are.
        training: The seed, and how much memory there is.
        rank: Of this process.
        device: Where the model is.
    """

    def __init__(self, examples: Examples, plan: Plan, training: Training, rank: int, device: torch.device) -> None:
        self._plan, self._seed, self._rank, self._device = plan, training.seed, rank, device
        held = held_bytes(training)
        self._windowed = examples.row_bytes * len(examples) > held
        self._examples = examples if self._windowed else examples.to(device)
        within = held // 2 // max(1, examples.row_bytes)  # one window is learned from while the next one is read
        self.window_steps = max(1, within // plan.batch) if self._windowed else plan.steps_per_epoch
        self._reader = ThreadPoolExecutor(1)
        self._at, self._window = (-1, -1), Window(self._examples, np.empty((0, 0, 0), dtype=np.int64))
        self._next: tuple[tuple[int, int], Future[Window]] | None = None

    def micro_batches(self, step: int) -> Iterator[Examples]:
        """Those of one step, on the device."""
        epoch, position = divmod(step, self._plan.steps_per_epoch)
        number, within = divmod(position, self.window_steps)
        if self._at != (epoch, number):
            self._window, self._at = self._get(epoch, number), (epoch, number)
        for rows in torch.from_numpy(self._window.places[within]).to(self._window.examples.targets.device):
            yield self._window.examples.take(rows).to(self._device)

    def _get(self, epoch: int, number: int) -> Window:
        if not self._windowed:
            return Window(self._examples, self._plan.share(self._plan.order(self._seed, epoch), self._rank))
        awaited = self._next[1] if self._next and self._next[0] == (epoch, number) else None
        found = awaited.result() if awaited else self._read(epoch, number)
        last = (number + 1) * self.window_steps >= self._plan.steps_per_epoch
        following = (epoch + 1, 0) if last else (epoch, number + 1)
        is_end = following[0] * self._plan.steps_per_epoch >= self._plan.steps
        self._next = None if is_end else (following, self._reader.submit(self._read, *following))
        return found

    def _read(self, epoch: int, number: int) -> Window:
        """A window from disk: its rows in their order there, which is fast."""
        rows = self._plan.share(self.order(epoch, number), self._rank)
        near = np.sort(rows, axis=None)
        return Window(self._examples.take(torch.from_numpy(near)), np.searchsorted(near, rows))

    def order(self, epoch: int, number: int) -> Indices:
        """Row numbers of a window, ``(steps, batch)``, the same on every process."""
        plan = self._plan
        steps = min(self.window_steps, plan.steps_per_epoch - number * self.window_steps)
        start = number * self.window_steps * plan.batch
        end = start + steps * plan.batch
        chunk = max(1, self.window_steps * plan.batch // CHUNKS)
        firsts = np.random.default_rng((self._seed, epoch)).permutation(math.ceil(plan.rows / chunk)) * chunk
        ends = np.cumsum(np.minimum(chunk, plan.rows - firsts))
        near = slice(np.searchsorted(ends, start, side="right"), np.searchsorted(ends, end) + 1)
        rows = np.concatenate([np.arange(first, min(first + chunk, plan.rows)) for first in firsts[near]])
        skipped = start - int(ends[near.start - 1]) if near.start else start
        rows = rows[skipped : skipped + end - start]
        mixed = np.random.default_rng((self._seed, epoch, WINDOW_STREAM, number)).permutation(rows)
        return mixed.reshape(steps, plan.batch)
