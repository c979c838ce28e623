"""The settings of a DiT, told from the names and shapes of its weights. No torch."""

from collections.abc import Mapping
from typing import Any

from dis_cli.models.recognize import Shapes, blocks_in, classes_in, dims, grid_side, impossible, output_variance


def recognize(found: Shapes) -> dict[str, Any]:
    """The settings of the DiT that these would be the weights of; not all of them are looked at.

    Returns:
        Arguments of the network, those that decide its weights; its heads are not among them.

    Raises:
        ValueError: They are of no DiT: says what is missing or impossible.
    """
    embed_dim, in_channels, patch_size, _ = dims(found, "x_embedder.proj.weight", 4)
    if embed_dim % 4:
        raise impossible(found, "x_embedder.proj.weight", 0, "a multiple of 4")
    num_classes = classes_in(found, "y_embedder.embedding_table.weight")
    return {
        "image_size": grid_side(found) * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": blocks_in(found, "blocks"),
        "num_classes": num_classes,
        "learn_sigma": output_variance(found, "final_layer.linear.weight", patch_size**2 * in_channels),
    }


def published(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What published weights are sampled with: guidance of the first three channels, whatever the settings."""
    del settings
    return {"sample": {"cfg_channels": "first3"}}
