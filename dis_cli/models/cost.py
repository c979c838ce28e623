"""The cost of a model of any family: the settings that decide it, parameters, operations, bytes. No torch."""

import abc
from collections.abc import Callable, Set
from dataclasses import Field, dataclass, field
from typing import Any, ClassVar, Final

# What the counts of a model mean whose family says nothing else.
CONVENTIONS: Final[dict[str, str]] = {
    "MACs": "multiply-accumulates of every matrix product and convolution",
    "FLOPs": "product and sum each count: 2 x MACs",
}


def require_patches(image_size: int, patch_size: int) -> None:
    """Refuse patches that do not fill the grid.

    Raises:
        ValueError: ``patch_size`` does not divide ``image_size``.
    """
    if image_size % patch_size:
        raise ValueError(f"patch_size {patch_size} does not divide image_size {image_size}")


class ModelShape(abc.ABC):
    """The settings of a model that decide what it computes: its weights, operations and memory.

    A family adds its own: a frozen dataclass whose fields are named as the arguments of its network.

    Attributes:
        image_size: Side of the square grid the model sees, in its own pixels (latent pixels with a VAE).
        patch_size: Side of a patch, in grid pixels; divides ``image_size``.
        in_channels: Channels of the grid.
        num_classes: Number of classes; 0 is an unconditional model.
        learn_sigma: Whether the model also predicts the variance, with as many output channels again.
    """

    image_size: int
    patch_size: int
    in_channels: int
    num_classes: int
    learn_sigma: bool
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def num_patches(self) -> int:
        """Patches P of the grid."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers in a patch, and so in one input of the patch embedding."""
        return self.patch_size**2 * self.in_channels

    @property
    def output_values(self) -> int:
        """Numbers that the head predicts for a patch."""
        return self.patch_values * (2 if self.learn_sigma else 1)

    @property
    def size(self) -> str | None:
        """The name of its size; None when it has none."""
        return None

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Channels of the layers that do most of the work, which a machine's speed is measured with."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The size in short, such as XL."""

    @property
    @abc.abstractmethod
    def layers(self) -> str:
        """Depth and width in words, such as "7 blocks of width 96"."""


class StackShape(ModelShape):
    """The settings of a model whose blocks all work on tokens of one width.

    Attributes:
        embed_dim: Width of a token, in channels.
        depth: Number of blocks.
    """

    embed_dim: int
    depth: int

    @property
    def width(self) -> int:
        """Of a token, in channels."""
        return self.embed_dim

    @property
    def label(self) -> str:
        """Such as XL; width and blocks where the size has no name."""
        return self.size.upper() if self.size else f"{self.embed_dim}x{self.depth}"

    @property
    def layers(self) -> str:
        """Depth and width in words."""
        return f"{self.depth} blocks of width {self.embed_dim}"


@dataclass(frozen=True)
class LayerCost:
    """What one kind of layer costs, summed over the blocks.

    Args:
        parameters: Its parameters.
        macs: MACs of a forward for one image.
        elementwise_macs: Multiplications that a fused scan hides; not in ``macs``.
        published_macs: What the published convention counts here.
    """

    parameters: int
    macs: int = 0
    elementwise_macs: int = 0
    published_macs: int = 0


@dataclass(frozen=True)
class Flops:
    """What one model costs: parameters, and MACs of one forward pass on one image.

    Exponentials, softplus, SiLU, norms, sums, the optimizer and the weight average are not counted anywhere.

    Args:
        tokens: Length of the sequence.
        parts: The kinds of layers, in the order of the data flow.
        data_gradient_macs: Products that a backward leaves out: gradients of the image and of the timestep's sinusoids.
        run_once: Parts that gradient checkpointing does not compute again.
        conventions: What each way of counting means.
    """

    tokens: int
    parts: dict[str, LayerCost]
    data_gradient_macs: int = 0
    run_once: Set[str] = frozenset()
    conventions: dict[str, str] = field(default_factory=lambda: CONVENTIONS)

    @property
    def parameters(self) -> int:
        """Parameters: a backbone has no other state, and all but a table of fixed positions are trained."""
        return self._sum(lambda part: part.parameters)

    @property
    def macs(self) -> int:
        """True MACs."""
        return self._sum(lambda part: part.macs)

    @property
    def macs_with_elementwise(self) -> int:
        """True MACs and the scan's elementwise multiplications."""
        return self.macs + self._sum(lambda part: part.elementwise_macs)

    @property
    def flops(self) -> int:
        """True FLOPs, 2 per MAC."""
        return 2 * self.macs

    @property
    def published_macs(self) -> int:
        """MACs by the published convention."""
        return self._sum(lambda part: part.published_macs)

    @property
    def published_flops(self) -> int:
        """The number that the published profiler script prints, 2 per MAC that it sees."""
        return 2 * self.published_macs

    @property
    def true_over_published(self) -> float:
        """How many times the published convention's count the true one is."""
        return self.macs / self.published_macs

    @property
    def training_macs(self) -> int:
        """MACs of a forward and its backward, which takes two products for each: gradients of weight and of input."""
        return 3 * self.macs - self.data_gradient_macs

    @property
    def recomputed_macs(self) -> int:
        """MACs that gradient checkpointing adds: each block again, up to the input of its last product."""
        return sum(part.macs for name, part in self.parts.items() if name not in self.run_once)

    def sampling_macs(self, steps: int, *, guided: bool) -> int:
        """MACs of one generated image.

        Args:
            steps: Evaluations of the model for the image.
            guided: Whether each is done twice, with the class and without it (classifier-free guidance).
        """
        return steps * (2 if guided else 1) * self.macs

    def _sum(self, number: Callable[[LayerCost], int]) -> int:
        return sum(map(number, self.parts.values()))


@dataclass(frozen=True)
class Memory:
    """Bytes that a model takes.

    Args:
        gradients: Of the parameters, at the end of a backward.
        optimizer: AdamW's two moments.
        ema: One average of the weights.
        activations: What a training forward keeps for its backward; in bf16 with the weights' rounded copies.
        checkpointed_activations: The same with gradient checkpointing, and the larger of what one block keeps when it
            is computed again and the rounded weights, which stay until the forward is over.
        sampling_work: What a forward for sampling holds at its highest, beyond the weights; less for small models and
            large batches, whose mixers the kernel computes whole.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    checkpointed_activations: int
    sampling_work: int

    @property
    def training_state(self) -> int:
        """What does not depend on the batch: weights, gradients, moments and average."""
        return self.weights + self.gradients + self.optimizer + self.ema

    @property
    def training(self) -> int:
        """All that a training step holds: a little more than at any moment, since gradients come as activations go."""
        return self.training_state + self.activations

    @property
    def checkpointed_training(self) -> int:
        """The same with gradient checkpointing."""
        return self.training_state + self.checkpointed_activations

    @property
    def sampling(self) -> int:
        """Weights, and the work of one forward."""
        return self.weights + self.sampling_work
