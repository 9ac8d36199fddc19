"""The processes of a training: who they are, and sums and rows of all of them.

Called by train, which joins them before anything else, and by the trainer. Ranks come from torchrun's environment and
from nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore  # type: ignore[attr-defined]  # not in torch's stubs

from mljobs.cpu import cpu_limit

TIMEOUT: Final = timedelta(minutes=10)
"""Longest that a collective waits: longer than loading the data takes one rank more than another."""


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
