"""Everything that training carries from one step to the next, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dis_cli.training.ema import Ema


@dataclass
class TrainingState:
    """Weights, their average, the optimizer, and how many steps were taken.

    Attributes:
        model: The model in training.
        ema: The average of its weights.
        optimizer: AdamW over all parameters.
        step: Optimizer steps taken so far.
    """

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.AdamW
    step: int = 0

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All state as named tensors: groups "model", "ema" and "optimizer", for a checkpoint."""
        optimizer: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                optimizer[f"{key}/{name}"] = value
        return {
            "model": {name: parameter.detach() for name, parameter in self.model.named_parameters()},
            "ema": dict(self.ema.average),
            "optimizer": optimizer,
        }

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Continue from what ``tensors`` returned after ``step`` steps.

        Raises:
            ValueError: A tensor is missing, or has another shape.
        """
        self.step = step
        self.ema.load(tensors["ema"])
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            kind, name = key.split("/", 1)
            moments.setdefault(name, {})[kind] = value
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors["model"][name])
                if name in moments:
                    self.optimizer.state[parameter] = {
                        kind: value.to(parameter.device, copy=True) for kind, value in moments[name].items()
                    }


def make_optimizer(
    model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over all parameters, its update fused into one pass."""
    return torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
