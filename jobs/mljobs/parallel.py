"""How a model is spread over processes: FSDP2, DDP or one process.

Called by train for the sharding, and by the trainer around each micro-batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mljobs.automatic import Settled
from mljobs.processes import Topology

SMALL_BYTES: Final = 64 * 2**20
"""Weights of a model up to here stay whole within a step: gathering them again costs more than their memory."""


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

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], training: Settled, topology: Topology) -> None:
        model.to(topology.device)
        if training.activation_checkpointing:
            for block in blocks:
                recompute(block)
        self._autocast = training.precision == "bf16" and training.strategy != "fsdp"
        self._large = sum(weight.nbytes for weight in model.parameters()) > SMALL_BYTES
        self.topology = topology
        self.module = self._wrap(model, blocks, training, topology)

    def _wrap(self, model: nn.Module, blocks: Sequence[nn.Module], training: Settled, topology: Topology) -> nn.Module:
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
