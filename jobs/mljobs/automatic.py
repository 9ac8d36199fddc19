"""What the specification leaves to the training, settled by the data and the machine.

Called by lesson. docs/adr/0032 has the measurements behind the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import torch

from mljobs import processes
from mljobs.processes import Topology
from mlplatform.api import Training, json_name

STEPS: Final = 600
"""Optimiser steps that a training takes at least: fewer leave a small table unlearned."""
PASSES: Final = 10
"""Over the rows, at least."""
MOST_PASSES: Final = 10_000
SMALLEST_BATCH: Final = 32
BATCH: Final = 512
LARGEST_BATCH: Final = 4096
BATCHES_A_PASS: Final = 10
"""Of few rows: a batch is at most this share of them."""
BATCHES_OF_MANY: Final = 200
"""Of more rows than fill as many batches of `BATCH`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled(Training):
    """A specification with nothing left open."""

    strategy: Literal["fsdp", "ddp", "single"] = "single"
    precision: Literal["bf16", "fp32"] = "fp32"
    epochs: int = PASSES
    batch_size: int = BATCH


def settle(training: Training, rows: int, topology: Topology) -> Settled:
    """What the specification says, and the rest by the data and the machine. All ranks must call it.

    Args:
        training: As specified.
        rows: Of the training part.
        topology: This process's place.
    """
    batch = training.batch_size or batch_size(rows)
    found: dict[str, Any] = {
        "strategy": training.strategy or ("single" if topology.world_size == 1 else "fsdp"),
        "precision": training.precision or ("bf16" if fast_in_bf16(topology) and batch >= BATCH else "fp32"),
        "batch_size": batch,
        "epochs": training.epochs or epochs(rows, batch),
    }
    return Settled(**{f.name: found.get(f.name, getattr(training, f.name)) for f in fields(Training)})


def batch_size(rows: int) -> int:
    """A power of two: small enough for many steps a pass, large enough for a gradient without much noise."""
    most = min(LARGEST_BATCH, max(BATCH, rows // BATCHES_OF_MANY))
    return 1 << int(math.log2(min(most, max(SMALLEST_BATCH, rows // BATCHES_A_PASS))))


def epochs(rows: int, batch: int) -> int:
    """Passes over the rows that make steps enough."""
    return min(MOST_PASSES, max(PASSES, math.ceil(STEPS / max(1, rows // batch))))


def fast_in_bf16(topology: Topology) -> bool:
    """Whether every process's device multiplies in bfloat16 faster than in float32. All ranks must call it."""
    if topology.device.type == "cuda":
        mine = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch has no public names for these. In smaller batches the conversions cost more than they gain, on GPUs, too.
        mine = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    return sum(processes.total([float(mine)], topology.device)) == topology.world_size


def said(training: Training, settled: Settled) -> dict[str, Any]:
    """For the report: each value by its name in the specification, and which of them it left open."""
    names = ("strategy", "precision", "batch_size", "epochs")
    return {
        **{json_name(name): getattr(settled, name) for name in names},
        "automatic": [json_name(name) for name in names if getattr(training, name) is None],
    }
