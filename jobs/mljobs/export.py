"""The file that a candidate ships in, and the INT8 form of a model.

Called by optimize, and by package for reading. Each function returns the file's bytes; whether they still compute what the
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
from typing import Any, Final

import torch
from torch import Tensor, nn

from mljobs.failure import JobFailure
from mlplatform.contract import FailureClass

REFERENCE: Final = "fp32"
INT8: Final = "int8-dynamic"
"""Candidates: the forms in which a model may ship."""

DEPRECATIONS: Final = (
    (DeprecationWarning, r"torch\.ao\.quantization is deprecated"),
    (UserWarning, r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other"),
    (DeprecationWarning, r"`torch\.jit\.\w+` is deprecated"),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"# The axis name: rows will not be used"),
)
LIBRARIES: Final = r"transformers\."
"""Modules whose warnings nobody here can act on."""
CHATTY: Final = ("torch.onnx", "root")
"""Loggers that report packages which are not needed here, and steps which do not apply."""
PARITY_TOLERANCE: Final = 1e-4
"""Largest difference of a probability between a file and the module it was made from: float32's rounding."""
TRACED_ROWS: Final = 2
"""Rows of the example input: with one row a tracer may take the batch for a constant."""
SMALLEST_RANGE: Final = 1e-30
"""A row whose values lie closer together counts as one of equal values."""
LEVELS: Final = 64
"""Of an 8-bit weight, either side of 0."""


class RowScaled(nn.Module):
    """A linear layer for dynamic quantisation, which gives a row the same outputs whatever rows are beside it.

    What quantises activations as they come takes one scale from all rows of a run. Here every row is stretched to [0, 1]
    before and back after, so that this scale is always the same, and each row has all levels for itself.

    Args:
        layer: Computes the same, but for rounding.
    """

    total: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        self.linear.weight = layer.weight
        weight = layer.weight.detach()
        step = weight.abs().max().clamp_min(SMALLEST_RANGE) / LEVELS
        self.register_buffer("total", ((weight / step).round() * step).sum(dim=1))  # of the weights as they will be
        self.register_buffer("bias", weight.new_zeros(self.out_features) if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(…, inputs)`` to ``(…, outputs)``."""
        low, high = torch.aminmax(x, dim=-1, keepdim=True)
        spread = (high - low).clamp_min(SMALLEST_RANGE)
        return torch.addcmul(torch.addcmul(self.bias, low, self.total), self.linear((x - low) / spread), spread)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the deprecations that this module knows of, and the exporters' chatter."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category, message in DEPRECATIONS:
            warnings.filterwarnings("ignore", message=message, category=category)
        # What a tracer takes for fixed in their code is: texts have one length. The files are held against the model.
        warnings.filterwarnings("ignore", module=LIBRARIES)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def row_scaled(model: nn.Module) -> nn.Module:
    """A copy whose linear layers are fit for dynamic quantisation.

    Raises:
        JobFailure: The model has no linear layer.
    """
    scaled, found = copy.deepcopy(model), 0
    for module in list(scaled.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:  # as quantisation has it: a subclass may be read by its weights
                setattr(module, name, RowScaled(child))
                found += 1
    if not found:
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            "candidate int8-dynamic needs linear layers, and the model has none",
            "Remove int8-dynamic from spec.optimization.candidates",
        )
    return scaled


def int8(model: nn.Module) -> nn.Module:
    """A copy whose linear layers hold 8-bit weights and quantise their inputs as they come, each row by itself.

    Raises:
        JobFailure: The model has no linear layer.
    """
    from torch.ao.quantization import quantize_dynamic  # noqa: PLC0415  its import warns too

    with quiet():
        quantized: nn.Module = quantize_dynamic(row_scaled(model), {nn.Linear}, dtype=torch.qint8)
    for module in quantized.modules():
        if isinstance(module, RowScaled):
            layer: Any = module.linear
            module.total.copy_(layer.weight().dequantize().sum(dim=1))
    return quantized


def torchscript(model: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """The traced and frozen graph, as `torch.jit.load` reads it: the same bytes wherever the code lies.

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
            traced = torch.jit.trace(model, example, check_trace=False)  # the caller checks more rows
            torch.jit.save(torch.jit.freeze(traced.eval()), buffer)
    except RuntimeError as error:
        raise refused("TorchScript", error) from error
    return without_sources(buffer.getvalue())


def without_sources(content: bytes) -> bytes:
    """A TorchScript file less what only error messages use: the paths and lines of the Python code it was traced from."""
    reader, buffer = torch._C.PyTorchFileReader(io.BytesIO(content)), io.BytesIO()  # noqa: SLF001  what torch.package uses
    writer = torch._C.PyTorchFileWriter(buffer)  # noqa: SLF001  likewise: it aligns tensors, which zipfile does not
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and not name.startswith(".data/") and name != "version":
            record = reader.get_record(name)
            writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return buffer.getvalue()


def load_torchscript(content: bytes) -> nn.Module:
    """The module of `torchscript`'s bytes, as the serving pod loads it."""
    with quiet():
        module: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    return module.eval()


def refused(form: str, error: Exception) -> JobFailure:
    """The model cannot be written in this form."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return JobFailure(
        FailureClass.SPEC_INVALID,
        f"the model cannot be exported to {form}: {lines[0]}",
        f"Change the model so that {form} can express it, or remove the format from spec.optimization.export",
    )
