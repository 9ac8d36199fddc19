"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) beside a checkpoint's linear layers, by `peft`.

Called by the tasks `text` and `causal-lm` where `hyperparameters.lora` asks for them. The trained adapters are added to the
weights that they adapt before these are saved, so that no later stage knows of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mljobs.failure import JobFailure
from mljobs.tasks import hyperparameters
from mlplatform.contract import FailureClass

if TYPE_CHECKING:
    from peft import LoraModel


@dataclass(frozen=True, slots=True)
class Lora(hyperparameters.Hyperparameters):
    """What `hyperparameters.lora` may hold.

    Attributes:
        rank: Of the matrices that are learned.
        alpha: Over the rank, how much they count.
        targets: Names, or ends of names, of the layers that get some; none: those that `peft` names for this kind of model.
    """

    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ()

    @property
    def checks(self) -> dict[str, bool]:
        """By name, whether a value makes sense."""
        return {
            "rank": type(self.rank) is int and self.rank > 0,
            "alpha": type(self.alpha) is int and self.alpha > 0,
            "targets": isinstance(self.targets, tuple) and all(isinstance(name, str) for name in self.targets),
        }


def asked(hyper: Mapping[str, Any]) -> Lora | None:
    """What `spec.training.hyperparameters` asks for.

    Raises:
        ValueError: It makes no sense.
    """
    if "lora" not in hyper:
        return None
    if not hyper.get("checkpoint"):
        raise ValueError("lora adapts the weights of a checkpoint; name one in checkpoint, or take lora out")
    try:
        return Lora.read(hyper["lora"])
    except ValueError as error:
        raise ValueError(f"lora: {error}") from None


def adapt(network: nn.Module, settings: Lora, trained: Collection[str] = ()) -> LoraModel:
    """Puts adapters into a model of `transformers`, and freezes all else.

    Args:
        network: Is changed in place.
        settings: What is asked for.
        trained: Names of weights that learn beside the adapters.

    Raises:
        JobFailure: It has no such layers.
    """
    from peft import LoraConfig, LoraModel  # noqa: PLC0415  seconds

    learning = [weight for name, weight in network.named_parameters() if name in trained]
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets) or None)
    try:
        adapted = LoraModel(network, config, "default")
    except ValueError as error:
        layers = dict.fromkeys(
            name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)
        )
        raise JobFailure(
            FailureClass.SPEC_INVALID,
            f"peft adapts nothing of this model: {' '.join(str(error).split())}",
            f"Set spec.training.hyperparameters.lora.targets to some of its layers: {', '.join(layers)}",
        ) from error
    for weight in learning:
        weight.requires_grad = True
    return adapted


def merged(model: nn.Module, network: nn.Module, settings: Lora, state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of the model without adapters that computes the same.

    Args:
        model: As the task builds it; is changed.
        network: The part of it that was adapted.
        settings: By which.
        state: All trained weights.
    """
    adapted: Any = adapt(network, settings)
    model.load_state_dict(state)
    adapted.merge_and_unload()
    return model.state_dict()
