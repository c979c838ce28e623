"""The settings of a U-ViT, told from the names and shapes of its weights. No torch."""

from collections.abc import Mapping
from typing import Any

from dis_cli.models.recognize import Shapes, blocks_in, classes_in, dims, grid_side, output_variance


def recognize(found: Shapes) -> dict[str, Any]:
    """The settings of the U-ViT that these would be the weights of; not all of them are looked at.

    Returns:
        Arguments of the network, those that decide its weights; its heads are not among them.

    Raises:
        ValueError: They are of no U-ViT: says what is missing or impossible.
    """
    dims(found, "mid_block.attn.qkv.weight", 2)
    embed_dim, in_channels, patch_size, _ = dims(found, "patch_embed.proj.weight", 4)
    num_classes = classes_in(found, "label_emb.weight")
    half = blocks_in(found, "in_blocks") if any(name.startswith("in_blocks.") for name in found) else 0
    return {
        "image_size": grid_side(found, extras=2 if num_classes else 1) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": 2 * half + 1,
        "num_classes": num_classes,
        "learn_sigma": output_variance(found, "decoder_pred.weight", patch_size**2 * in_channels),
        "final_conv": "final_layer.weight" in found,
        "time_mlp": "time_embed.0.weight" in found,
    }


def published(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What published weights were trained with: latents on timesteps 1 to 1000, pixels in continuous time."""
    if settings["final_conv"]:
        return {"diffusion": {"timesteps": "continuous"}}
    return {"diffusion": {"schedule": "scaled_linear", "timestep_offset": 1}}
