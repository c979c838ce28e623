"""The input of one training forward: images and every random number, drawn before the model is called."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


class TrainingBatch(NamedTuple):
    """A batch of samples with their draws; row i of every field belongs to sample i.

    Attributes:
        x_0: Clean grids.
        labels: Class of each sample; ignored by unconditional models.
        t: Index of the noise level, 0 to num_timesteps - 1; of a rectified flow also one between two (float64).
        noise: Standard normal.
        label_drop_uniform: Uniform in [0, 1); decides whether the label is dropped.
        drop_path_uniform: Uniform in [0, 1), one row a drop-path decision of the model.
    """

    x_0: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    t: Int[Tensor, " b"] | Float64[Tensor, " b"]
    noise: Float[Tensor, "b c h w"]
    label_drop_uniform: Float[Tensor, " b"]
    drop_path_uniform: Float[Tensor, "drops b"]

    def to(self, device: torch.device) -> "TrainingBatch":
        """The batch on ``device``."""
        return TrainingBatch(*(tensor.to(device, non_blocking=True) for tensor in self))
