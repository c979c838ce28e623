"""The families of backbones: one row each, the only place outside a family's folder that names what it holds. No torch.

A second family is a folder beside ``dis/``, a row here, and its section of the settings in ``config/backbones.py``.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dis_cli.models.cost import Flops, Memory, ModelShape
from dis_cli.models.dis import flops, memory, recognize, sizes
from dis_cli.models.recognize import Shapes, compare

if TYPE_CHECKING:
    from dis_cli.models.backbone import Backbone

# What settings of before there was a choice mean, and `dis flops` without a model.
DEFAULT: Final = "dis"


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        title: Its name as people write it; also the class in a folder in diffusers' layout.
        summary: What it is and where it comes from, in Markdown, after "It is a ...:".
        network: Where its `Backbone` is, as "module:class".
        shape: The settings that decide what a model computes: a `ModelShape`.
        sizes: Named sizes; their fields are fields of ``shape``.
        recognize: From names and shapes of weights to a model's ``shape``, as keyword arguments; `ValueError` says why
            they are of no such model. Other weights of the model need not be looked at.
        count: Parameters and MACs in closed form, for another number of patches than the grid's unless that is None;
            without it the network is counted on the meta device.
        memory: Bytes in closed form (shape, batch, precision, guided).
        peak_width: Numbers that a forward holds for a token at its peak, in closed form.
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

    def build(self, **settings: Any) -> "Backbone":
        """A model with random weights; the settings are its network's arguments."""
        module, _, name = self.network.partition(":")
        return getattr(importlib.import_module(module), name)(**settings)

    def parameter_shapes(self, **settings: Any) -> Shapes:
        """Name and shape of every parameter, in the network's order; nothing is computed."""
        from dis_cli.models.meta import parameter_shapes

        return parameter_shapes(self.build, settings)

    def settings_of(self, found: Shapes) -> dict[str, Any]:
        """The ``shape`` of the model that has parameters of these names and shapes, as keyword arguments.

        Raises:
            ValueError: They are not, or not all, or not only, the parameters of such a model: says what is wrong.
        """
        settings = self.recognize(found)
        compare(found, self.parameter_shapes(**settings))
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
        shape=sizes.Shape,
        sizes=sizes.SIZES,
        recognize=recognize.recognize,
        count=flops.count,
        memory=memory.estimate_memory,
        peak_width=memory.peak_width,
    ),
}
