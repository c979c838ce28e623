"""The contract of a backbone: the network between a noisy grid and its prediction."""

import abc
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Backbone(nn.Module, abc.ABC):
    """A noise predictor. Its weights are its parameters, all of them: it has no buffers that would have to be saved.

    A family's network takes as keyword arguments the settings of its section, ``learn_sigma`` (whether the output has a
    second half of channels for the variance) and ``engine`` (what computes a scan, where it has one).

    Attributes:
        gradient_checkpointing: Whether a training forward keeps only what enters each block, and the backward computes
            the block again (arXiv 1604.06174). The gradients are the same in every bit. At first it is off.

    Args:
        image_size: Side of the square grid, in its own pixels (image pixels or latent pixels).
        in_channels: Channels of the grid.
        num_classes: Number of classes; 0 is unconditional.
        learn_sigma: Whether the output has a second half of channels for the variance.
        label_drop: Probability that a training label becomes the null class.
    """

    def __init__(
        self, image_size: int, in_channels: int, num_classes: int, *, learn_sigma: bool, label_drop: float
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.in_channels = in_channels
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.num_classes = num_classes
        self.null_class = num_classes
        self.label_drop = label_drop
        self.gradient_checkpointing = False

    @property
    @abc.abstractmethod
    def num_tokens(self) -> int:
        """Length of the sequence that blocks work on."""

    @property
    def num_drop_path(self) -> int:
        """How many drop-path decisions a training forward takes per sample."""
        return 0

    @property
    def fixed_batch(self) -> int:
        """Images that a forward outside training computes at a time, whatever it is given: fewer cost as much."""
        return 1

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @abc.abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The blocks in the order in which they run: what is dealt out to ranks, and computed again, one by one."""

    @abc.abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Shaped[Tensor, " b"],
        labels: Int[Tensor, " b"] | None = None,
        *,
        label_drop_uniform: Float[Tensor, " b"] | None = None,
        drop_path_uniform: Float[Tensor, "drops b"] | None = None,
    ) -> Float[Tensor, "b out h w"]:
        """Predict from a noisy grid.

        Args:
            x: Noisy grid.
            t: Original timestep, 0 to num_timesteps - 1, of each sample.
            labels: Class of each sample, ``num_classes`` for the null class; None for unconditional models.
            label_drop_uniform: Uniform draws in [0, 1); a label is dropped where the draw is below ``label_drop``. None
                draws them from torch's global generator in training. Used in training mode only.
            drop_path_uniform: Uniform draws, one row a decision (``num_drop_path`` rows); a path is dropped where the
                draw is below its rate. None draws them likewise. Used in training mode only.

        Returns:
            The prediction; with ``learn_sigma`` the variance channels come after the others.

        Raises:
            ValueError: The grid's shape, or the presence of labels, does not fit the model.
        """

    def require_fitting(self, x: Tensor, labels: Tensor | None) -> None:
        """Refuse what is no input of this model.

        Raises:
            ValueError: The grid's shape, or the presence of labels, does not fit the model.
        """
        wanted = (self.in_channels, self.image_size, self.image_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != wanted:
            raise ValueError(f"x must have shape (batch, {', '.join(map(str, wanted))}), got {tuple(x.shape)}")
        if self.num_classes and labels is None:
            raise ValueError(f"this model has {self.num_classes} classes and needs labels; {self.null_class} is none")
        if not self.num_classes and labels is not None:
            raise ValueError("this model is unconditional and takes no labels")

    def drop_labels(self, labels: Tensor, uniform: Tensor | None) -> Tensor:
        """In training, the null class in place of some labels; the draws are those of ``forward``."""
        if not self.training or self.label_drop == 0:
            return labels
        if uniform is None:
            uniform = torch.rand(labels.shape, device=labels.device)
        return torch.where(uniform < self.label_drop, self.null_class, labels)

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """What a block makes of its inputs; with ``gradient_checkpointing`` the backward computes it again."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            # A block draws no random numbers, so that torch's generators need not be put back for it.
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)
