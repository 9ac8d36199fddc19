"""The ONNX form of a model, and running it.

Called by optimize if `spec.optimization.export` asks for it: the exporter and ONNX Runtime are slow to load. Whether a
file still computes what the model did is for the caller to check on real rows.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from mljobs.export import TRACED_ROWS, quiet, refused, row_scaled

INPUT: Final = "input_{}"
OUTPUT: Final = "logits"


def to_onnx(model: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """The ONNX graph: inputs ``input_0``, ``input_1``, … with any number of rows, output ``logits``.

    Args:
        model: In evaluation mode.
        inputs: Example rows, two or more.

    Raises:
        JobFailure: The model cannot be exported.
    """
    rows = torch.export.Dim("rows")
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                tuple(part[:TRACED_ROWS] for part in inputs),
                dynamo=True,
                input_names=[INPUT.format(i) for i in range(len(inputs))],
                output_names=[OUTPUT],
                dynamic_shapes=tuple({0: rows} for _ in inputs),
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise refused("ONNX", error) from error
    if program is None:
        raise refused("ONNX", RuntimeError("the exporter returned nothing"))
    content: bytes = program.model_proto.SerializeToString()
    return content


def int8(model: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """The ONNX graph with 8-bit weights in its matrix products, which quantise their inputs a row at a time.

    The weights use 7 of their bits: without them the products of two values overflow the 16 bits in which a CPU that has
    AVX2 and no VNNI adds them (ONNX Runtime, "Quantize ONNX Models", section on saturation).

    Args:
        model: In evaluation mode.
        inputs: As of `to_onnx`.

    Raises:
        JobFailure: The model cannot be exported, or has no linear layer.
    """
    graph = onnx.load_model_from_string(to_onnx(row_scaled(model), inputs))
    del graph.graph.value_info[:]  # intermediate shapes: the weights' are those before they were transposed
    buffer = io.BytesIO()
    with quiet():
        quantize_dynamic(graph, buffer, weight_type=QuantType.QInt8, reduce_range=True)
    return buffer.getvalue()


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
