"""The reports of `dis flops`: the cost of one model, of all sizes, and of DiS beside transformers. No torch."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dis_cli.errors import UsageError
from dis_cli.models.cost import Flops, ModelShape
from dis_cli.models.crossing import cheaper_from
from dis_cli.models.families import DEFAULT, FAMILIES, Family
from dis_cli.workflows.flops.model import AskedModel

if TYPE_CHECKING:
    from dis_cli.pictures.plot import Series

PATCH_SIZES = (2, 4, 8)
# The families that a DiS is set beside.
TRANSFORMERS = ("dit", "uvit")
LATENT_RESOLUTIONS, PIXEL_RESOLUTIONS = (256, 512, 1024, 2048), (32, 64, 128, 256)
PRECISIONS = ("fp32", "bf16")

# What the lines of a plot span, at least.
_PLOTTED_PATCHES = (64, 65_536)
_POINTS = 97

Record = dict[str, object]


def model_report(model: AskedModel, *, batch: int, steps: int, guided: bool) -> Record:
    """All that is known of one model.

    Args:
        batch: Images per training step, and generated at a time.
        guided: Whether each evaluation is done with the class and without it.

    Raises:
        UsageError: An unconditional model cannot be guided.
    """
    if guided and not model.shape.num_classes:
        raise UsageError(
            "Guidance needs classes, and this model has none: got `--cfg` with 0 classes",
            "Leave out `--cfg`, or give `--classes 1000`",
        )
    cost = model.family.cost(model.shape)
    step_macs = batch * cost.training_macs
    checkpointed_macs = step_macs + batch * cost.recomputed_macs
    image_macs = cost.sampling_macs(steps, guided=guided)
    return {
        **_identity(model),
        **_totals(cost),
        "conventions": dict(cost.conventions),
        "parts": {
            name: {
                "num_parameters": part.parameters,
                "macs": part.macs,
                "macs_share": part.macs / cost.macs,
                "macs_with_elementwise": part.macs + part.elementwise_macs,
                "published_macs": part.published_macs,
            }
            for name, part in cost.parts.items()
        },
        "batch_size": batch,
        "training_step": {
            "macs": step_macs,
            "flops": 2 * step_macs,
            "checkpointed_macs": checkpointed_macs,
            "checkpointed_flops": 2 * checkpointed_macs,
        },
        "image_sampled": {"steps": steps, "guided": guided, "macs": image_macs, "flops": 2 * image_macs},
        "memory": {precision: _memory(model, batch, precision, guided=guided) for precision in PRECISIONS},
    }


def sizes_report(model: AskedModel, patch_size: int | None) -> Record:
    """Every size with every patch that divides the grid.

    Args:
        model: Whose images, grid and classes the models have.
        patch_size: Only this patch; None takes 2, 4 and 8.
    """
    own = model.shape.patch_size
    dividing = [patch for patch in PATCH_SIZES if model.shape.image_size % patch == 0 and model.family.has_patches]
    patches = [patch_size] if patch_size else dividing or [own]
    models = [model.resized(size).patched(patch) for size in model.family.sizes.values() for patch in patches]
    return {"models": [{**_identity(one), **_totals(one.family.cost(one.shape))} for one in models]}


@dataclass(frozen=True)
class Contender:
    """A model in a comparison.

    Args:
        name: Such as DiT-XL/2.
        family: 0 is DiS, 1 DiT and 2 U-ViT.
        cost: Parameters, tokens and MACs on a grid, or for a number of patches instead.
    """

    name: str
    family: int
    cost: Callable[[ModelShape, int | None], Flops]


def contenders(model: AskedModel) -> list[Contender]:
    """A DiS and the transformers that bear the name of its size, itself first.

    Raises:
        UsageError: There are none: says which sizes have some.
    """
    size, patch = model.shape.size, model.shape.patch_size
    peers = [
        Contender(f"{FAMILIES[name].title}-{size.upper()}/{patch}", number, partial(_peer_cost, FAMILIES[name], size))
        for number, name in enumerate(TRANSFORMERS, 1)
        if model.family is FAMILIES[DEFAULT] and size is not None and size in FAMILIES[name].sizes
    ]
    if not peers:
        raise UsageError(
            f"No transformer has the name of this size of a DiS: got {model.name}, allowed: "
            f"{', '.join(compared_sizes())}",
            "Try `dis flops --compare --size xl`",
        )
    return [Contender(model.name, 0, model.family.cost), *peers]


def compared_sizes() -> list[str]:
    """The sizes whose names a transformer bears too."""
    return [size for size in FAMILIES[DEFAULT].sizes if any(size in FAMILIES[name].sizes for name in TRANSFORMERS)]


def comparison_report(models: Sequence[AskedModel], pixel_sizes: Sequence[int]) -> Record:
    """MACs of each model and of the transformers of its name, for images of several sizes.

    Args:
        models: Each is compared with its own peers.
        pixel_sizes: Sides of the images, in pixels, rising.

    Raises:
        UsageError: A model has no peers, or an image does not divide into patches.
    """
    comparisons: list[Record] = []
    for model in models:
        grids = [model.patched(model.shape.patch_size, pixels).shape for pixels in pixel_sizes]
        rivals = contenders(model)
        own = rivals[0]
        comparisons.append(
            {
                "size": model.shape.size,
                "patch_size": model.shape.patch_size,
                "models": [
                    {
                        "name": one.name,
                        "num_parameters": one.cost(grids[0], None).parameters,
                        "costs": [
                            {"image_size_pixels": pixels, **_peer_costs(one.cost(grid, None))}
                            for pixels, grid in zip(pixel_sizes, grids, strict=True)
                        ],
                        "dis_cheaper_from": None if one is own else _cheaper_from(model, own, one),
                    }
                    for one in rivals
                ],
            }
        )
    return {
        "latent": models[0].is_latent,
        "num_classes": models[0].shape.num_classes,
        "image_sizes_pixels": list(pixel_sizes),
        "comparisons": comparisons,
    }


def plotted(models: Sequence[AskedModel], pixel_sizes: Sequence[int]) -> "Iterator[Series]":
    """GFLOPs against tokens for all models of a comparison, with a mark at each size of image."""
    from dis_cli.pictures.plot import Series

    for group, model in enumerate(models):
        for one in contenders(model):
            grids = [model.patched(model.shape.patch_size, pixels).shape for pixels in pixel_sizes]
            first = min(_PLOTTED_PATCHES[0], grids[0].num_patches)
            ratio = max(_PLOTTED_PATCHES[1], grids[-1].num_patches) / first
            marks = [one.cost(grid, None) for grid in grids]
            line = [one.cost(model.shape, round(first * ratio ** (point / (_POINTS - 1)))) for point in range(_POINTS)]
            yield Series(
                name=one.name,
                line=tuple((cost.tokens, 2 * cost.macs / 1e9) for cost in line),
                marks=tuple((cost.tokens, 2 * cost.macs / 1e9) for cost in marks),
                # Of one model the families differ by colour; of many, sizes by colour and families by the line.
                color=group if len(models) > 1 else one.family,
                dash=one.family,
            )


def _identity(model: AskedModel) -> Record:
    shape = dataclasses.asdict(model.shape)
    grid = shape.pop("image_size")
    return {
        "name": model.name,
        "size": model.shape.size,
        "image_size_pixels": model.pixel_size,
        "grid_size": grid,
        "latent": model.is_latent,
        **shape,
    }


def _totals(cost: Flops) -> Record:
    return {
        "num_tokens": cost.tokens,
        "num_parameters": cost.parameters,
        "macs": cost.macs,
        "flops": cost.flops,
        "macs_with_elementwise": cost.macs_with_elementwise,
        "published_macs": cost.published_macs,
        "published_flops": cost.published_flops,
        "true_over_published_ratio": cost.true_over_published,
    }


def _memory(model: AskedModel, batch: int, precision: str, *, guided: bool) -> Record:
    """Nothing for a family without a closed form."""
    if model.family.memory is None:
        return {}
    memory = model.family.memory(model.shape, batch=batch, precision=precision, guided=guided)
    names = [field.name for field in dataclasses.fields(memory)]
    names += ["training", "checkpointed_training", "sampling"]
    return {f"{name}_bytes": getattr(memory, name) for name in names}


def _peer_cost(family: Family, size: str, grid: ModelShape, num_patches: int | None) -> Flops:
    """What a named size of another family costs on a model's grid; a U-ViT predicts no variance, as published."""
    shape = family.shape(
        image_size=grid.image_size,
        patch_size=grid.patch_size,
        in_channels=grid.in_channels,
        num_classes=grid.num_classes,
        learn_sigma=grid.learn_sigma and family is not FAMILIES["uvit"],
        **dataclasses.asdict(family.sizes[size]),
    )
    return family.cost(shape, num_patches)


def _peer_costs(cost: Flops) -> Record:
    attention = cost.parts.get("attention")
    return {
        "num_tokens": cost.tokens,
        "macs": cost.macs,
        "flops": 2 * cost.macs,
        "attention_macs": 0 if attention is None else attention.macs,
    }


def _cheaper_from(model: AskedModel, own: Contender, peer: Contender) -> Record | None:
    patches = cheaper_from(
        lambda patches: own.cost(model.shape, patches).macs, lambda patches: peer.cost(model.shape, patches).macs
    )
    if patches is None:
        return None
    side = math.isqrt(patches - 1) + 1
    return {
        "num_patches": patches,
        "num_tokens": own.cost(model.shape, patches).tokens,
        # Of the first square grid that has so many.
        "image_size_pixels": side * model.shape.patch_size * model.pixels_per_latent,
    }
