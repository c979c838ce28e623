"""Exponential moving averages of the weights: the weights that images are sampled from."""

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
        self.average: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    def update(self, parameters: tuple[nn.Parameter, ...], num_updates: int) -> None:
        """Take the current weights in.

        Args:
            parameters: All of the model's, in its order. (To list them takes as long as the update of a small model.)
            num_updates: Updates before this one.
        """
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates)) if self.warmup else self.decay
        get_ema_multi_avg_fn(decay)(list(self.average.values()), parameters, num_updates)
