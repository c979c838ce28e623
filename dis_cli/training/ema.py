"""The exponential moving average of the weights: the weights that images are sampled from."""

from collections.abc import Mapping

from torch import Tensor, nn


class Ema:
    """``average <- d average + (1 - d) weights`` after every step.

    Args:
        model: The model whose weights are averaged; the average starts as a copy of them.
        decay: The decay d, per step.
        warmup: Use ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the start is forgotten sooner.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool) -> None:
        self.decay = decay
        self.warmup = warmup
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def update(self, model: nn.Module, num_updates: int) -> None:
        """Take the model's current weights in; ``num_updates`` counts the updates before this one."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay
        for average, parameter in zip(self.average.values(), model.parameters(), strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Continue from a saved average."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
