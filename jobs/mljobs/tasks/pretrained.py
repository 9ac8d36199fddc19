"""Models of `transformers`: made of a configuration, or of a checkpoint in the store, nothing of which is unpickled.

Called by the tasks `text` and `causal-lm`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from torch import nn

from mljobs.failure import JobFailure
from mljobs.store import Store
from mlplatform.contract import FailureClass

FILES: Final = ("config.json", "tokenizer.json", "model.safetensors")
OTHERS: Final = frozenset(
    {
        "architectures",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "id2label",
        "label2id",
        "num_labels",
        "auto_map",
    }
)
"""What a configuration says of another use of the model."""


def alone(hyper: Mapping[str, Any]) -> None:
    """Makes sure that a checkpoint is asked for without what it brings.

    Raises:
        ValueError: It is not.
    """
    if hyper.get("checkpoint") and {"model", "vocabulary"} & hyper.keys():
        raise ValueError("checkpoint brings its own model and vocabulary; take these out")


@contextmanager
def made(what: str) -> Iterator[None]:
    """Around what makes a model of `spec.training.hyperparameters.model`.

    Raises:
        JobFailure: The library makes none of it; it has no exception of its own for that.
    """
    try:
        yield
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        StrictDataclassError,
    ) as error:
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"transformers makes no {what} of hyperparameters.model: {type(error).__name__}: {' '.join(str(error).split())}",
            "Correct spec.training.hyperparameters.model: model_type, and what that type's configuration has",
        ) from error


def layers(network: Any) -> list[nn.Module]:
    """A model's parts that FSDP shards one by one."""
    named = set(network._no_split_modules or ())  # noqa: SLF001  the library's own name for them
    return [module for module in network.modules() if type(module).__name__ in named]


class Checkpoint(NamedTuple):
    """What a folder of the store holds, less the weights.

    Attributes:
        tokenizer: Of its ``tokenizer.json``.
        model: Its ``config.json``.
        origin: ``checkpoint`` of the task's configuration: where all of it came from, with a digest.
    """

    tokenizer: Tokenizer
    model: dict[str, Any]
    origin: dict[str, Any]


def read(uri: str) -> Checkpoint:
    """Reads the folder.

    Raises:
        JobFailure: It is incomplete or damaged.
    """
    store = Store(uri)
    files = {name: store.read(name) for name in FILES}
    try:
        model: dict[str, Any] = json.loads(files["config.json"])
        text = files["tokenizer.json"].decode()
    except ValueError as error:
        raise _unreadable(uri, error) from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library has no narrower one
        raise _unreadable(uri, error) from error
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()
    origin = {"checkpoint": {"uri": uri, "digest": f"sha256:{digest}"}}
    return Checkpoint(tokenizer, {key: value for key, value in model.items() if key not in OTHERS}, origin)


def load(network: nn.Module, uri: str, arrange: Callable[[nn.Module], object] = lambda _: None) -> list[str]:
    """Takes the checkpoint's weights.

    Args:
        network: A model of `transformers`; what the checkpoint has no weights of stays as it is.
        uri: Of the folder.
        arrange: What was done to the network since the library made it.

    Returns:
        Names of the weights that stay as they are, or are of a head.

    Raises:
        JobFailure: They are of another network.
    """
    from safetensors.torch import load as tensors  # noqa: PLC0415  not every refusal needs it

    model: Any = network
    loaded, found = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=tensors(Store(uri).read(FILES[-1])),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    body = f"{model.base_model_prefix}."
    lacking = [name for name in found["missing_keys"] if name.startswith(body) and "pooler" not in name]
    strange = [str(key[0] if isinstance(key, tuple) else key) for key in found["mismatched_keys"]]
    if lacking or any(name.startswith(body) for name in strange):
        raise JobFailure(
            FailureClass.DATA_INVALID,
            f"the weights of {uri} are not of its configuration: {', '.join(lacking[:3]) or 'other shapes'}",
            f"Write {FILES[0]} and {FILES[-1]} of one model there (save_pretrained)",
        )
    arrange(loaded)
    model.load_state_dict(loaded.state_dict())
    missing = set(found["missing_keys"])
    return [name for name, _ in model.named_parameters() if name in missing or not name.startswith(body)]


def _unreadable(uri: str, error: Exception) -> JobFailure:
    return JobFailure(
        FailureClass.DATA_INVALID,
        f"tokenizer.json or config.json of {uri} cannot be read: {error}",
        "Write them with save_pretrained of a fast tokenizer and of the model",
    )
