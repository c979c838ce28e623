"""The model that a user asks about: a named size, a preset or a checkpoint, changed by other options.

No torch, but for a ``.pt`` file, whose settings only torch reads.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dis_cli.errors import UsageError, did_you_mean
from dis_cli.models.cost import ModelShape
from dis_cli.models.families import DEFAULT, FAMILIES, Family

if TYPE_CHECKING:
    from dis_cli.config.schema import RunConfig

LATENT_CHANNELS, PIXEL_CHANNELS = 4, 3
PIXELS_PER_LATENT = 8
LATENT_IMAGE_SIZE, PIXEL_IMAGE_SIZE = 256, 32
PATCH_SIZE = 2
NUM_CLASSES = 1000


@dataclass(frozen=True)
class AskedModel:
    """A model and the images it is for.

    Args:
        shape: The model; its grid is ``pixel_size / pixels_per_latent`` wide.
        pixel_size: Side of an image, in pixels.
        pixels_per_latent: Pixels for one of the grid's, along one side; 1 when the model sees pixels.
    """

    family: Family
    shape: ModelShape
    pixel_size: int
    pixels_per_latent: int

    @property
    def is_latent(self) -> bool:
        """True if the model sees the latents of a VAE."""
        return self.pixels_per_latent > 1

    @property
    def name(self) -> str:
        """Such as DiS-XL/2; width and blocks where the size has no name."""
        return f"{self.family.title}-{self.shape.label}/{self.shape.patch_size}"

    def resized(self, size: Any) -> "AskedModel":
        """The same for a model of another size, which is one of ``family.sizes``."""
        return self.changed(**dataclasses.asdict(size))

    def changed(self, **settings: Any) -> "AskedModel":
        """The same with other settings of its shape.

        Raises:
            UsageError: They do not go together.
        """
        try:
            return dataclasses.replace(self, shape=dataclasses.replace(self.shape, **settings))
        except ValueError as error:
            raise UsageError(
                f"No {self.family.title} has these settings: {error}", "Change or leave out one"
            ) from error

    def patched(self, patch_size: int, pixel_size: int | None = None) -> "AskedModel":
        """The same with another patch, and for images of another size unless that is None.

        Raises:
            UsageError: The image does not divide into patches: says which sizes do.
        """
        pixels = self.pixel_size if pixel_size is None else pixel_size
        grid = grid_size(pixels, self.pixels_per_latent, patch_size)
        return dataclasses.replace(self.changed(image_size=grid, patch_size=patch_size), pixel_size=pixels)


def named_size(name: str, family: Family) -> Any:
    """The family's size of this name, in capitals or not.

    Raises:
        UsageError: There is none: says which there are.
    """
    sizes = family.sizes
    if name.lower() in sizes:
        return sizes[name.lower()]
    closest = did_you_mean(name.lower(), sizes)
    raise UsageError(
        f"Unknown size: got `{name}`, allowed: {', '.join(sizes)}",
        f"Did you mean `{closest}`?" if closest else "Try `dis flops --size xl --patch 2`",
    )


def grid_size(pixel_size: int, pixels_per_latent: int, patch_size: int) -> int:
    """Side of the grid for images of this side.

    Raises:
        UsageError: The image does not divide into latents, or the grid not into patches: says what does.
    """
    multiple = pixels_per_latent * patch_size
    if pixel_size % multiple == 0:
        return pixel_size // pixels_per_latent
    reason = f"{pixels_per_latent} per latent x patch {patch_size}" if pixels_per_latent > 1 else "the patch"
    nearest = max(1, round(pixel_size / multiple)) * multiple
    raise UsageError(
        f"The image does not divide into patches: got an image size of `{pixel_size}`, allowed: a multiple "
        f"of {multiple} pixels ({reason})",
        f"Try `--image-size {nearest}`, or another `--patch`",
    )


def ask_model(
    *,
    size: str | None = None,
    backbone: str | None = None,
    preset: str | None = None,
    ckpt: Path | None = None,
    patch_size: int | None = None,
    pixel_size: int | None = None,
    pixel: bool | None = None,
    num_classes: int | None = None,
) -> AskedModel:
    """The model that is asked about.

    Args:
        size: Name of its size; None takes that of the preset or checkpoint, or the family's "xl" or largest.
        backbone: Its family; None takes that of the preset or checkpoint, or DiS.
        preset: Name of a preset; None takes no preset.
        ckpt: Run folder, checkpoint folder or published file, instead of a preset.
        patch_size: Side of a patch; None is the preset's or the checkpoint's, or 2.
        pixel_size: Side of an image, in pixels; None likewise, or 256 (32 in pixels).
        pixel: Whether the model sees pixels, not latents; None likewise, or latents.
        num_classes: Number of classes, 0 is unconditional; None likewise, or 1000.

    Raises:
        UsageError: An option is wrong, or two exclude each other.
        CheckpointError: The checkpoint is damaged, or not one.
    """
    if backbone is not None and (preset is not None or ckpt is not None):
        raise UsageError(
            "--backbone and a model of --preset or --ckpt exclude each other, since that is of one family already",
            "Try `dis flops --size xl --backbone dit`, or `dis flops --match PRESET --backbone dit`",
        )
    if preset is not None and ckpt is not None:
        raise UsageError("--preset and --ckpt exclude each other", "Give one of them")
    if preset is not None:
        model = _from_preset(preset)
    elif ckpt is not None:
        model = _from_checkpoint(ckpt)
    else:
        model = _default(FAMILIES[known_family(backbone)], pixel=bool(pixel))
    if pixel is not None and pixel == model.is_latent:
        model = _other_codec(model)
    if size is not None:
        model = model.resized(named_size(size, model.family))
    if num_classes is not None:
        model = model.changed(num_classes=num_classes)
    return model.patched(model.shape.patch_size if patch_size is None else patch_size, pixel_size)


def known_family(backbone: str | None) -> str:
    """The key of a family; of DiS for None.

    Raises:
        UsageError: There is none of this name: says which there are.
    """
    name = DEFAULT if backbone is None else backbone
    if name in FAMILIES:
        return name
    closest = did_you_mean(name, FAMILIES)
    raise UsageError(
        f"Unknown family: got `{name}`, allowed: {', '.join(FAMILIES)}",
        f"Did you mean `{closest}`?" if closest else "Try `dis flops --size xl --backbone dit`",
    )


def _default(family: Family, *, pixel: bool) -> AskedModel:
    pixels_per_latent = 1 if pixel else PIXELS_PER_LATENT
    pixel_size = PIXEL_IMAGE_SIZE if pixel else LATENT_IMAGE_SIZE
    sizes = family.sizes
    shape = family.shape(
        image_size=pixel_size // pixels_per_latent,
        patch_size=PATCH_SIZE if family.has_patches else 1,
        in_channels=PIXEL_CHANNELS if pixel else LATENT_CHANNELS,
        num_classes=NUM_CLASSES,
        **dataclasses.asdict(sizes["xl"] if "xl" in sizes else list(sizes.values())[-1]),
    )
    return AskedModel(family, shape, pixel_size, pixels_per_latent)


def _from_preset(name: str) -> AskedModel:
    # Imported late, here and below: reading settings takes longer than everything else here.
    from dis_cli.config.presets import load_preset

    return _of_config(load_preset(name))


def _from_checkpoint(path: Path) -> AskedModel:
    from dis_cli.workflows.load.opened import open_checkpoint

    opened = open_checkpoint(path)
    if opened.config is not None:
        return _of_config(opened.config)
    from dis_cli.workflows.load.saved import read_saved

    return _of_config(read_saved(opened).config)


def _of_config(config: "RunConfig") -> AskedModel:
    from dis_cli.workflows.cost import model_family, model_shape

    pixels_per_latent = config.codec.downsample if config.codec.kind == "vae" else 1
    return AskedModel(model_family(config), model_shape(config), config.pixel_size, pixels_per_latent)


def _other_codec(model: AskedModel) -> AskedModel:
    """The same model for the same images, in pixels instead of latents or the other way round."""
    pixels_per_latent, channels = (1, PIXEL_CHANNELS) if model.is_latent else (PIXELS_PER_LATENT, LATENT_CHANNELS)
    # The grid follows once patch and image size are settled; until then it only has to be a possible one.
    other = model.changed(image_size=model.shape.patch_size, in_channels=channels)
    return dataclasses.replace(other, pixels_per_latent=pixels_per_latent)
