"""The formats that a candidate ships in, and the INT8 form of a model.

Called by optimize. Each function returns the file's bytes; whether they still compute what the
model did is for the caller to check on real rows.

`torch.ao` quantisation and TorchScript are what TorchServe runs today, and PyTorch has
deprecated both in favour of torchao and torch.export; the warnings that say so are silenced
here by their text, and nothing else is.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from mljobs.failure import JobFailure
from mlplatform.contract import FailureClass

DEPRECATIONS: Final = (
    (DeprecationWarning, r"torch\.ao\.quantization is deprecated"),
    (UserWarning, r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other"),
    (DeprecationWarning, r"`torch\.jit\.\w+` is deprecated"),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"# The axis name: rows will not be used"),
)
CHATTY: Final = ("torch.onnx", "root")
"""Loggers that report packages which are not needed here, and steps which do not apply."""
INPUT: Final = "input_{}"
OUTPUT: Final = "logits"
PARITY_TOLERANCE: Final = 1e-4
"""Largest difference of a probability between a file and the module it was made from: float32's rounding."""
TRACED_ROWS: Final = 2
"""Rows of the example input: with one row a tracer may take the batch for a constant."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the deprecations that this module knows of, and the exporters' chatter."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category, message in DEPRECATIONS:
            warnings.filterwarnings("ignore", message=message, category=category)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def int8(model: nn.Module) -> nn.Module:
    """A copy whose linear layers hold 8-bit weights and quantise their inputs as they come.

    Raises:
        JobFailure: The model has no linear layer.
    """
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            "candidate int8-dynamic needs linear layers, and the model has none",
            "Remove int8-dynamic from spec.optimization.candidates",
        )
    from torch.ao.quantization import quantize_dynamic as quantize  # noqa: PLC0415  its import warns too

    with quiet():
        quantized: nn.Module = quantize(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    return quantized


def torchscript(model: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """The traced and frozen graph, as `torch.jit.load` reads it.

    Args:
        model: In evaluation mode.
        inputs: Example rows, two or more.

    Raises:
        JobFailure: The model cannot be traced.
    """
    example = tuple(part[:TRACED_ROWS] for part in inputs)
    buffer = io.BytesIO()
    try:
        with quiet(), torch.inference_mode():
            traced = torch.jit.trace(model, example)
            torch.jit.save(torch.jit.freeze(traced.eval()), buffer)
    except RuntimeError as error:
        raise _refused("TorchScript", error) from error
    return buffer.getvalue()


def load_torchscript(content: bytes) -> nn.Module:
    """The module of `torchscript`'s bytes, as the serving pod loads it."""
    with quiet():
        module: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    return module.eval()


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
        raise _refused("ONNX", error) from error
    if program is None:
        raise _refused("ONNX", RuntimeError("the exporter returned nothing"))
    content: bytes = program.model_proto.SerializeToString()
    return content


def onnx_int8(content: bytes) -> bytes:
    """The ONNX graph with 8-bit weights in its matrix products.

    Args:
        content: `to_onnx`'s bytes.
    """
    model = onnx.load_model_from_string(content)
    del model.graph.value_info[:]  # intermediate shapes: the weights' are those before they were transposed
    buffer = io.BytesIO()
    with quiet():
        quantize_dynamic(model, buffer, weight_type=QuantType.QInt8)
    return buffer.getvalue()


def onnx_session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU that starts no more threads than the container has CPUs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_onnx(session: onnxruntime.InferenceSession, inputs: Sequence[Tensor]) -> Tensor:
    """The logits, ``(rows,)``. Inputs that the graph does not use are not fed."""
    feed = {INPUT.format(i): part.numpy() for i, part in enumerate(inputs)}
    used = {item.name for item in session.get_inputs()}
    (logits,) = session.run([OUTPUT], {name: value for name, value in feed.items() if name in used})
    return torch.from_numpy(logits)


def _refused(form: str, error: Exception) -> JobFailure:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return JobFailure(
        FailureClass.SPEC_INVALID,
        f"the model cannot be exported to {form}: {lines[0]}",
        f"Change the model so that {form} can express it, or remove the format from spec.optimization.export",
    )
