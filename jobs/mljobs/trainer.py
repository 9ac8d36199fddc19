"""The training loop.

Called by train. Everything that could differ between an undisturbed run and one that was
killed and resumed is a function of the seed and the step: the order of rows, the
learning rate, the dropout. So both end with the same weights.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mljobs import processes
from mljobs.automatic import Settled
from mljobs.checkpoint import Checkpoints
from mljobs.failure import JobFailure
from mljobs.feed import Examples, Feed
from mljobs.parallel import Parallel
from mljobs.report import say
from mljobs.tasks import LOSSES, Objective, evaluation_rows, in_stretches
from mlplatform.api import EarlyStopping
from mlplatform.contract import VALIDATION, FailureClass

WARM_UP: Final = 0.05
"""Share of all steps over which the learning rate rises; from there it falls along half a cosine."""
DIVERGED: Final = (
    "Lower spec.training.optimizer.learningRate, or use precision fp32; look for extreme values in the data"
)
"""What to do when a number is not finite."""
MOMENTUM: Final = 0.9
TELL_SECONDS: Final = 10.0
"""Longest silence between two lines of progress within an epoch."""

_FLAT: Final = StateDictOptions(flatten_optimizer_state_dict=True)


@dataclass(slots=True)
class Progress:
    """Where a training stands; JSON values, saved with each checkpoint.

    Attributes:
        step: Optimiser steps done.
        best: Best value so far of the watched metric; None before the first epoch.
        best_epoch: Epochs done when it was reached; without early stopping its weights are not kept.
        stopped: Whether early stopping has ended the training.
        loss_sum: Sum over this epoch's steps of the mean training loss.
        history: One ``{epoch, loss, rows_per_second, val_…}`` an epoch.
    """

    step: int = 0
    best: float | None = None
    best_epoch: int = 0
    stopped: bool = False
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Plan:
    """How many rows, micro-batches and steps make an epoch.

    Args:
        rows: Of the training part.
        training: Batch size, accumulation, epochs.
        world_size: All processes.

    Attributes:
        micro: Rows of a micro-batch of one process.
        batch: Rows of a step over all processes.
        steps_per_epoch: At least 1; rows that fill no whole step wait for another epoch's order.
        steps: Of the whole training.

    Raises:
        JobFailure: There are fewer rows than processes times micro-batches.
    """

    def __init__(self, rows: int, training: Settled, world_size: int) -> None:
        shares = world_size * training.gradient_accumulation_steps
        if rows < shares:
            raise JobFailure(
                FailureClass.DATA_INVALID,
                f"{rows} training rows are fewer than {shares}, the processes times the accumulation steps",
                "Add rows, or lower spec.training.workers or gradientAccumulationSteps",
            )
        self.accumulation = training.gradient_accumulation_steps
        self.micro = max(1, min(training.batch_size, rows) // shares)
        self.batch = self.micro * shares
        self.steps_per_epoch = rows // self.batch
        self.steps = self.steps_per_epoch * training.epochs
        self.rows = rows

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The epoch's row numbers in order, ``(steps_per_epoch, batch)``."""
        order = np.random.default_rng((seed, epoch)).permutation(self.rows)
        return order[: self.steps_per_epoch * self.batch].reshape(self.steps_per_epoch, self.batch)

    def share(self, order: npt.NDArray[np.int64], rank: int) -> npt.NDArray[np.int64]:
        """This rank's rows of each step, ``(…, accumulation, micro)``."""
        each = self.accumulation * self.micro
        mine = order[..., rank * each : (rank + 1) * each]
        return mine.reshape(*order.shape[:-1], self.accumulation, self.micro)

    def learning_rate(self, peak: float, step: int) -> float:
        """Rises linearly, then falls along half a cosine to 0 at the last step.

        Sources: Goyal et al. 2017 (arXiv:1706.02677) for the warm-up, Loshchilov & Hutter 2017 (arXiv:1608.03983) for
        the cosine.
        """
        warm = max(1, round(WARM_UP * self.steps))
        if step < warm:
            return peak * (step + 1) / warm
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


class StopSignal:
    """Remembers SIGTERM, so that the step under way ends and a checkpoint can be written."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True


class Trainer:
    """Fits a model.

    Args:
        objective: Loss and metrics.
        model: Prepared for its strategy; it knows this process's place.
        training: The specification.
        examples: The training part and the validation part.
        checkpoints: Where state is saved.

    Attributes:
        progress: Where it stands.
        resumed_from: Step of the checkpoint it went on from; 0 for a fresh start.
    """

    def __init__(
        self,
        objective: Objective,
        model: Parallel,
        training: Settled,
        examples: tuple[Examples, Examples],
        checkpoints: Checkpoints,
    ) -> None:
        self._objective = objective
        self._model = model
        self._training = training
        self._topology = model.topology
        train, self._validation = examples
        self._checkpoints = checkpoints
        self._watch = watched_metric(training.early_stopping, objective.metrics)
        self._less_is_better = less_is_better(training.early_stopping, self._watch, objective.less_is_better)
        self.plan = Plan(len(train), training, self._topology.world_size)
        self._feed = Feed(train, self.plan, training, self._topology.rank, self._topology.device)
        self._optimizer = make_optimizer(training, model)
        self._best = {name: weight.clone() for name, weight in model.weights().items()}
        self.progress = Progress()
        self.resumed_from = 0
        self._started = self._told = time.monotonic()
        self._mark()

    def fit(self) -> None:
        """Trains to the end, from the newest checkpoint if there is one.

        With early stopping the best epoch's weights are in the model then, else the last epoch's.

        Raises:
            JobFailure: The loss or a score is not finite (NonFiniteLoss), the data changed after the checkpoint
                (DataInvalid), or SIGTERM came (Preempted; a checkpoint was saved).
        """
        self._resume()
        with StopSignal() as stop:
            while self.progress.step < self.plan.steps and not self.progress.stopped:
                self._step(stop)
        if self._training.early_stopping:
            for name, weight in self._model.weights().items():
                weight.copy_(self._best[name])

    def _step(self, stop: StopSignal) -> None:
        """One optimiser step, with what is due after it: evaluation, a checkpoint, an end."""
        progress, plan = self.progress, self.plan
        loss = self._optimize(progress.step)
        # One small reduction tells every rank the mean loss and whether any rank was told to stop.
        loss_sum, stops = processes.total([loss, float(stop.received)], self._topology.device)
        mean = loss_sum / self._topology.world_size
        progress.step += 1
        if not math.isfinite(mean):
            raise JobFailure(
                FailureClass.NON_FINITE_LOSS,
                f"the training loss is {mean} at step {progress.step} "
                f"(epoch {(progress.step - 1) // plan.steps_per_epoch + 1})",
                DIVERGED,
            )
        progress.loss_sum += mean
        if progress.step % plan.steps_per_epoch == 0:
            self._end_epoch()
        elif time.monotonic() - self._told > TELL_SECONDS:
            self._tell(f"loss={mean:.4f} rows_per_s={self._rows_per_second():.0f}")
        if stops or progress.step % self._training.checkpoint.every_steps == 0:
            self._save()
        if stops:
            raise JobFailure(
                FailureClass.PREEMPTED,
                f"stopped by SIGTERM at step {progress.step} of {plan.steps}; a checkpoint was saved",
                "Nothing: the training resumes from the checkpoint when its pods start again",
            )

    def _optimize(self, step: int) -> float:
        """Forward, backward and update; returns this rank's mean loss."""
        plan, training = self.plan, self._training
        self._model.module.train()
        _seed(_mix(training.seed, step, self._topology.rank), self._topology.device)
        self._optimizer.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self._topology.device)
        for i, part in enumerate(self._feed.micro_batches(step)):
            with self._model.microbatch(last=i == plan.accumulation - 1):
                loss = self._loss(self._model.forward(part.inputs), part)
                torch.autograd.backward(loss / plan.accumulation)
            loss_sum += loss.detach()
        for group in self._optimizer.param_groups:
            group["lr"] = plan.learning_rate(training.optimizer.learning_rate, step)
        self._optimizer.step()
        return float(loss_sum) / plan.accumulation

    def _loss(self, outputs: Tensor, part: Examples) -> Tensor:
        if part.weights is None:
            return self._objective.loss(outputs, part.targets)
        losses: Callable[[Tensor, Tensor], Tensor] = getattr(self._objective, LOSSES)
        return (losses(outputs, part.targets) * part.weights).mean()

    def _end_epoch(self) -> None:
        progress, plan = self.progress, self.plan
        epoch = progress.step // plan.steps_per_epoch
        rows_per_second = self._rows_per_second()
        found = {f"{VALIDATION}{name}": value for name, value in self.evaluate().items()}
        record = {
            "epoch": epoch,
            "loss": progress.loss_sum / plan.steps_per_epoch,
            "rows_per_second": round(rows_per_second, 1),
            **found,
        }
        progress.history.append(record)
        progress.loss_sum = 0.0
        value, stopping = found[self._watch], self._training.early_stopping
        better = progress.best is None or (value < progress.best if self._less_is_better else value > progress.best)
        if better:
            progress.best, progress.best_epoch = value, epoch
            for name, weight in self._model.weights().items():
                self._best[name].copy_(weight)
        progress.stopped = stopping is not None and epoch - progress.best_epoch >= stopping.patience
        self._tell(f"loss={record['loss']:.4f} {self._watch}={value:.4f} rows_per_s={rows_per_second:.0f}")
        self._mark()

    def _mark(self) -> None:
        """Starts measuring speed anew from here."""
        self._marked = time.monotonic()
        self._marked_step = self.progress.step

    def _rows_per_second(self) -> float:
        steps = self.progress.step - self._marked_step
        return steps * self.plan.batch / (time.monotonic() - self._marked)

    def _tell(self, news: str) -> None:
        """One line of progress, from rank 0, with the time that the rest will take."""
        self._told = time.monotonic()
        if self._topology.rank:
            return
        progress, plan = self.progress, self.plan
        epoch = math.ceil(progress.step / plan.steps_per_epoch)
        seconds = (self._told - self._started) / (progress.step - self.resumed_from) * (plan.steps - progress.step)
        rest = "stopped early" if progress.stopped else f"eta_s={seconds:.0f}"
        say(f"epoch={epoch}/{self._training.epochs} step={progress.step}/{plan.steps} {news} {rest}")

    def evaluate(self) -> dict[str, float]:
        """The task's metrics on the validation part, the same on every rank. All ranks must call it.

        Raises:
            JobFailure: As `outputs`.
        """
        scores = self._objective.scores(self.outputs()).numpy()
        return self._objective.evaluate(self._validation.targets.cpu().numpy(), scores)

    def outputs(self) -> Tensor:
        """The model's outputs for the validation part in float64, the same on every rank. All ranks must call it.

        Raises:
            JobFailure: One is not finite, as after a last step that was too large.
        """
        outputs = self._outputs(self._validation)
        if bad := int((~torch.isfinite(outputs.reshape(len(outputs), -1))).any(dim=1).sum()):
            raise JobFailure(
                FailureClass.NON_FINITE_LOSS,
                f"the scores of {bad} of {len(outputs)} validation rows are not finite after step {self.progress.step}",
                DIVERGED,
            )
        return outputs

    @torch.no_grad()
    def _outputs(self, examples: Examples) -> Tensor:
        """The model's outputs in float64, on the CPU; the first dimension is the row.

        Each rank scores a stretch of the rows; the last stretches repeat a row until all are as long.
        """
        self._model.module.eval()
        each = math.ceil(len(examples) / self._topology.world_size)
        mine = torch.arange(self._topology.rank * each, (self._topology.rank + 1) * each).clamp(max=len(examples) - 1)
        found = in_stretches(
            lambda rows: self._model.forward(examples.take(mine[rows]).to(self._topology.device).inputs),
            len(mine),
            evaluation_rows(examples.inputs),
        )
        return processes.gather(found)[: len(examples)].double().cpu()

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Every tensor that a checkpoint holds, and the optimiser's whole state to merge loaded tensors into."""
        # First the weights, which shards them: the evaluation of an epoch leaves them whole, and then the optimiser's
        # state, which belongs to the shards, would find no names.
        weights = self._model.weights()
        optimizer: dict[str, Any] = {}
        optimizer.update(get_optimizer_state_dict(self._model.module, self._optimizer, options=_FLAT))
        tensors = {f"optimizer.{name}": value for name, value in optimizer.items() if isinstance(value, Tensor)}
        tensors |= {f"model.{name}": weight for name, weight in weights.items()}
        tensors |= {f"best.{name}": weight for name, weight in self._best.items()}
        return tensors, optimizer

    def _save(self) -> None:
        tensors, _ = self._state()
        self._checkpoints.save(self.progress.step, tensors, dataclasses.asdict(self.progress))
        if self._topology.rank == 0:
            say(f"checkpoint step={self.progress.step}/{self.plan.steps}")

    def _resume(self) -> None:
        manifest = self._checkpoints.latest()
        if manifest is None:
            return
        tensors, optimizer = self._state()
        self._checkpoints.restore(manifest, tensors)
        set_optimizer_state_dict(self._model.module, self._optimizer, optimizer, options=_FLAT)
        self.progress = Progress(**manifest.progress)
        self.resumed_from = self.progress.step
        self._started = self._told = time.monotonic()
        self._mark()
        if self._topology.rank == 0:
            say(f"resumed from step {self.progress.step}/{self.plan.steps}")


def watched_metric(stopping: EarlyStopping | None, metrics: Sequence[str]) -> str:
    """The validation metric by which epochs are compared, with its prefix.

    Args:
        stopping: As the specification says; `lesson.defined` has looked whether what it names is reported.
        metrics: Of the objective, the one to watch by default first.
    """
    return (stopping and stopping.metric) or f"{VALIDATION}{metrics[0]}"


def less_is_better(stopping: EarlyStopping | None, metric: str, lower: Collection[str]) -> bool:
    """Whether a lower value of the watched metric is better: as the specification says, or else by its nature."""
    if stopping and stopping.mode:
        return stopping.mode == "min"
    return metric.removeprefix(VALIDATION) in lower


def make_optimizer(training: Settled, model: Parallel) -> torch.optim.Optimizer:
    """The optimiser of the specification, over this rank's weights that are to learn."""
    chosen, weights = training.optimizer, [weight for weight in model.module.parameters() if weight.requires_grad]
    if chosen.name == "sgd":
        return torch.optim.SGD(
            weights, lr=chosen.learning_rate, momentum=MOMENTUM, weight_decay=chosen.weight_decay, nesterov=True
        )
    return torch.optim.AdamW(weights, lr=chosen.learning_rate, weight_decay=chosen.weight_decay)


def _mix(*numbers: int) -> int:
    """A seed from several numbers, different for each combination of them."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _seed(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, of the generators that are drawn from.

    That one keeps a stack trace for each GPU it might find later, which takes as long as a step of a small net.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
