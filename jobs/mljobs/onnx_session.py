"""Running a model's ONNX form.

Called by optimize, of the files that onnx_files has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnxruntime
import torch
from torch import Tensor

INPUT: Final = "input_{}"
OUTPUT: Final = "logits"


class Session:
    """A file loaded by ONNX Runtime, on the CPU.

    Args:
        content: The file's bytes.
        threads: No more than the container has CPUs.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The logits, ``(rows,)``. Inputs that the graph does not use are not fed."""
        feed = {INPUT.format(i): part.numpy() for i, part in enumerate(inputs)}
        used = {item.name for item in self._session.get_inputs()}
        (logits,) = self._session.run([OUTPUT], {name: value for name, value in feed.items() if name in used})
        return torch.from_numpy(logits)
