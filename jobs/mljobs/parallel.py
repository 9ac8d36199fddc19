"""How a model is spread over processes: FSDP2, DDP or one process.

Called by train for the process group and the sharding, and by the trainer around each
micro-batch. Ranks come from torchrun's environment and from nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not in torch's stubs
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mljobs.cpu import cpu_limit
from mlplatform.api import Training

TIMEOUT: Final = timedelta(minutes=10)
"""Longest that a collective waits: longer than loading the data takes one rank more than another."""
SMALL_BYTES: Final = 64 * 2**20
"""Weights of a model up to here stay whole within a step: gathering them again costs more than their memory."""


@dataclass(frozen=True, slots=True)
class Topology:
    """This process's place among all.

    Attributes:
        rank: Of all processes; 0 reports.
        world_size: All processes.
        device: Where its tensors live.
    """

    rank: int
    world_size: int
    device: torch.device


def start(environment: Mapping[str, str] = os.environ) -> Topology:
    """Joins the process group that torchrun describes, or makes one of this process alone.

    Threads are the container's CPUs shared among its processes.
    """
    local_processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, cpu_limit() // local_processes))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(environment.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    if "RANK" in environment:
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    return Topology(dist.get_rank(), dist.get_world_size(), device)


class Parallel:
    """A model prepared for its strategy.

    Every process must build the same weights before (same seed): FSDP keeps its own shard of them.

    Args:
        model: The whole model; it is changed in place.
        blocks: Its submodules to shard and recompute one by one.
        training: Strategy, precision, activation checkpointing, accumulation.
        topology: This process's place.

    Attributes:
        module: The model as the optimiser and checkpoints see it.
        topology: As given.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], training: Training, topology: Topology) -> None:
        model.to(topology.device)
        if training.activation_checkpointing:
            for block in blocks:
                recompute(block)
        self._autocast = training.precision == "bf16" and training.strategy != "fsdp"
        self._large = sum(weight.nbytes for weight in model.parameters()) > SMALL_BYTES
        self.topology = topology
        self.module = self._wrap(model, blocks, training, topology)

    def _wrap(self, model: nn.Module, blocks: Sequence[nn.Module], training: Training, topology: Topology) -> nn.Module:
        if training.strategy == "ddp":
            return DistributedDataParallel(model)
        if training.strategy == "single":
            return model
        mesh = init_device_mesh(topology.device.type, (topology.world_size,))
        low = torch.bfloat16 if training.precision == "bf16" else None
        # Gradients are summed in float32: bfloat16 would lose the small ones of many ranks.
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
        # The root's inputs are raw data, which bfloat16's 8 bits of precision would round: only blocks cast theirs.
        root = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=self._large)
        fully_shard(model, mesh=mesh, mp_policy=root)
        return model

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """The logits, ``(rows,)`` float32."""
        with torch.autocast(self.topology.device.type, torch.bfloat16, enabled=self._autocast):
            logits: Tensor = self.module(*inputs)
        return logits.float()

    @contextlib.contextmanager
    def microbatch(self, *, last: bool) -> Iterator[None]:
        """Around one forward and backward: gradients are reduced over processes only in the last of a step."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
            self.module.set_reshard_after_backward(last or self._large)
            yield
        elif isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
        else:
            yield

    def weights(self) -> dict[str, Tensor]:
        """This rank's weights by name, detached; with FSDP its shards, as DTensors.

        FSDP leaves the root's weights whole after a forward pass without a backward; this shards them again.
        """
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return {name: weight.detach() for name, weight in self.module.named_parameters()}

    def full_state(self) -> dict[str, Any]:
        """The whole model's weights on the CPU, on rank 0; empty on the others. All ranks must call it."""
        return get_model_state_dict(self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def recompute(block: nn.Module) -> None:
    """Makes `block` recompute its activations in the backward pass instead of keeping them.

    It replaces the method rather than wrapping the module, so that the names of the weights stay.
    """
    block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums over all ranks, element by element. All ranks must call it."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def gather(part: Tensor) -> Tensor:
    """The ranks' tensors of one shape, one after the other. All ranks must call it."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)
