"""The ONNX form of a model.

Called by optimize, in a process of its own, if `spec.optimization.export` asks for it: the exporter is slow to load. Whether a
file still computes what the model did is for the caller to check on real rows.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import onnx
import onnx_ir
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from mljobs.export import INT8, REFERENCE, TRACED_ROWS, quiet, refused, row_scaled
from mljobs.onnx_session import INPUT, OUTPUT


class Together(nn.Module):
    """Several modules that have the same inputs; each one's output is one of a tuple.

    Args:
        modules: In evaluation mode.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.each = nn.ModuleList(modules)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in their order."""
        return tuple(module(*inputs) for module in self.each)


def files(model: nn.Module, inputs: Sequence[Tensor], candidates: Sequence[str]) -> dict[str, bytes]:
    """The candidates' ONNX files: inputs ``input_0``, ``input_1``, … with any number of rows, output ``logits``.

    The exporter runs once for all: it takes longer to begin than to go through a model. A file has what its own output
    needs.

    Args:
        model: In evaluation mode.
        inputs: Example rows, two or more.
        candidates: Of `MAKE`.

    Raises:
        JobFailure: The model cannot be exported, or int8 is asked for and it has no linear layer.
    """
    program = _export(Together([MAKE[name][0](model) for name in candidates]), inputs, candidates)
    found = {}
    for name in candidates:
        graph = onnx_ir.convenience.extract(program.model.graph, program.model.graph.inputs, [name])
        graph.outputs[0].name = OUTPUT
        alone = onnx_ir.Model(graph, ir_version=program.model.ir_version, functions=[*program.model.functions.values()])
        found[name] = MAKE[name][1](onnx_ir.to_proto(alone))
    return found


def _export(model: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[str]) -> torch.onnx.ONNXProgram:
    rows = torch.export.Dim("rows")
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                tuple(part[:TRACED_ROWS] for part in inputs),
                dynamo=True,
                input_names=[INPUT.format(i) for i in range(len(inputs))],
                output_names=outputs,
                dynamic_shapes=(tuple({0: rows} for _ in inputs),),  # of the one parameter *inputs
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise refused("ONNX", error) from error
    if program is None:
        raise refused("ONNX", RuntimeError("the exporter returned nothing"))
    return program


def quantized(graph: onnx.ModelProto) -> bytes:
    """The file of a graph with 8-bit weights in its matrix products, which quantise their inputs as they come.

    The weights use 7 of their bits: without them the products of two values overflow the 16 bits in which a CPU that has
    AVX2 and no VNNI adds them (ONNX Runtime, "Quantize ONNX Models", section on saturation).
    """
    del graph.graph.value_info[:]  # intermediate shapes: the weights' are those before they were transposed
    buffer = io.BytesIO()
    with quiet():
        quantize_dynamic(graph, buffer, weight_type=QuantType.QInt8, reduce_range=True)
    return buffer.getvalue()


MAKE: Final[Mapping[str, tuple[Callable[[nn.Module], nn.Module], Callable[[onnx.ModelProto], bytes]]]] = {
    REFERENCE: (lambda model: model, onnx.ModelProto.SerializeToString),
    INT8: (row_scaled, quantized),
}
"""What a candidate's graph is made of, and its file of the graph."""
