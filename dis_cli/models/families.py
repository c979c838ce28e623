"""The families of backbones: one row each, the only place outside a family's folder that names what it holds. No torch.

A second family is a folder beside ``dis/``, a row here, and its section of the settings in ``config/backbones.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dis_cli.dotted import later, load
from dis_cli.models.cost import Flops, Memory, ModelShape
from dis_cli.models.dis import sizes as dis_sizes
from dis_cli.models.dit import sizes as dit_sizes
from dis_cli.models.recognize import Shapes, compare
from dis_cli.models.unet import sizes as unet_sizes
from dis_cli.models.uvit import sizes as uvit_sizes

if TYPE_CHECKING:
    from dis_cli.models.backbone import Backbone

# What settings of before there was a choice mean, and `dis flops` without a model.
DEFAULT: Final = "dis"


def _as_the_schema(_: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {}


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        title: Its name as people write it.
        summary: What it is and where it comes from, in Markdown, after "It is a ...:".
        network: Where its `Backbone` is, as "module:class".
        shape: The settings that decide what a model computes: a `ModelShape`.
        sizes: Named sizes; their fields are fields of ``shape``.
        recognize: From names and shapes of weights to a model's ``shape``, as keyword arguments, but for settings that
            weights do not tell; `ValueError` says why they are of no such model. Other weights of the model need not be
            looked at.
        count: Parameters and MACs in closed form, for another number of patches than the grid's unless that is None;
            without it the network is counted on the meta device.
        memory: Bytes in closed form (shape, batch, precision, guided).
        peak_width: Numbers that a forward holds for a token at its peak, in closed form.
        has_patches: Whether the grid is cut into patches; else ``patch_size`` is 1.
        untold: Settings of ``shape`` that no weight tells, with values that a model of any weights can be built with.
        published: Settings other than the schema's that published weights were trained or are sampled with, by section,
            from what `recognize` found.
    """

    title: str
    summary: str
    network: str
    shape: type[Any]
    sizes: Mapping[str, Any]
    recognize: Callable[[Shapes], dict[str, Any]]
    count: Callable[[Any, int | None], Flops] | None = None
    memory: Callable[..., Memory] | None = None
    peak_width: Callable[[Any], int] | None = None
    has_patches: bool = True
    untold: Mapping[str, Any] = field(default_factory=dict)
    published: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]]] = _as_the_schema

    @property
    def class_name(self) -> str:
        """The network's class, as a folder in diffusers' layout has it."""
        return self.network.partition(":")[2]

    def build(self, **settings: Any) -> "Backbone":
        """A model with random weights; the settings are its network's arguments."""
        return load(self.network)(**settings)

    def parameter_shapes(self, **settings: Any) -> Shapes:
        """Name and shape of every parameter, in the network's order; nothing is computed."""
        from dis_cli.models.meta import parameter_shapes

        return parameter_shapes(self.build, settings)

    def settings_of(self, found: Shapes, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The ``shape`` of the model that has parameters of these names and shapes, as keyword arguments.

        Settings that no weight tells are not among them, unless they are in ``saved``.

        Args:
            found: Parameter name -> shape.
            saved: The settings that came with the weights, for what these do not tell; None takes the published ones.

        Raises:
            ValueError: They are not, or not all, or not only, the parameters of such a model: says what is wrong.
        """
        settings = {**(saved or {}), **self.recognize(found)}
        compare(found, self.parameter_shapes(**{**self.untold, **settings}))
        return settings

    def cost(self, shape: ModelShape, num_patches: int | None = None) -> Flops:
        """Parameters and MACs of a model.

        Args:
            num_patches: Another number of patches than that of its grid, for a closed form; None is the grid's.
        """
        if self.count is not None:
            return self.count(shape, num_patches)
        from dis_cli.models.meta import count

        return count(self.build, shape)


FAMILIES: Final[dict[str, Family]] = {
    "dis": Family(
        title="DiS",
        summary="diffusion with a state space backbone ([arXiv 2402.05608](https://arxiv.org/abs/2402.05608))",
        network="dis_cli.models.dis.backbone:DiS",
        shape=dis_sizes.Shape,
        sizes=dis_sizes.SIZES,
        recognize=later("dis_cli.models.dis.recognize:recognize"),
        count=later("dis_cli.models.dis.flops:count"),
        memory=later("dis_cli.models.dis.memory:estimate_memory"),
        peak_width=later("dis_cli.models.dis.memory:peak_width"),
    ),
    "dit": Family(
        title="DiT",
        summary="diffusion transformer with adaLN-Zero ([arXiv 2212.09748](https://arxiv.org/abs/2212.09748))",
        network="dis_cli.models.dit.backbone:DiT",
        shape=dit_sizes.Shape,
        sizes=dit_sizes.SIZES,
        recognize=later("dis_cli.models.dit.recognize:recognize"),
        count=later("dis_cli.models.dit.cost:count"),
        untold={"num_heads": 1},
        published=later("dis_cli.models.dit.recognize:published"),
    ),
    "uvit": Family(
        title="U-ViT",
        summary="transformer with long skip connections ([arXiv 2209.12152](https://arxiv.org/abs/2209.12152))",
        network="dis_cli.models.uvit.backbone:UViT",
        shape=uvit_sizes.Shape,
        sizes=uvit_sizes.SIZES,
        recognize=later("dis_cli.models.uvit.recognize:recognize"),
        count=later("dis_cli.models.uvit.cost:count"),
        untold={"num_heads": 1},
        published=later("dis_cli.models.uvit.recognize:published"),
    ),
    "unet": Family(
        title="U-Net",
        summary="convolutions and self-attention, as in DDPM ([arXiv 2006.11239](https://arxiv.org/abs/2006.11239))",
        network="dis_cli.models.unet.backbone:UNet",
        shape=unet_sizes.Shape,
        sizes=unet_sizes.SIZES,
        recognize=later("dis_cli.models.unet.recognize:recognize"),
        count=later("dis_cli.models.unet.cost:count"),
        has_patches=False,
        # A grid that is large enough for any number of levels, and one group, which divides all.
        untold={"image_size": 1 << 12, "head_channels": None, "norm_groups": 1},
    ),
}
