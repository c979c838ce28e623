"""The settings of a U-Net, told from the names and shapes of its weights. No torch."""

from typing import Any

from dis_cli.models.recognize import Shapes, blocks_in, classes_in, dims, impossible, output_variance


def recognize(found: Shapes) -> dict[str, Any]:
    """The settings of the U-Net that these would be the weights of; not all of them are looked at.

    Returns:
        Arguments of the network, those that decide its weights; side of the grid, groups and heads are not among them.

    Raises:
        ValueError: They are of no U-Net: says what is missing or impossible.
    """
    channels, in_channels, _, _ = dims(found, "conv_in.weight", 4)
    levels = blocks_in(found, "down_blocks")
    multipliers: list[int] = []
    for level in range(levels):
        name = f"down_blocks.{level}.resnets.0.conv1.weight"
        width = dims(found, name, 4)[0]
        if width % channels:
            raise impossible(found, name, 0, f"a multiple of the first level's {channels} channels")
        multipliers.append(width // channels)
    attention = tuple(level for level in range(levels) if f"down_blocks.{level}.attentions.0.to_q.weight" in found)
    num_classes = classes_in(found, "class_embedding.weight")
    return {
        "in_channels": in_channels,
        "channels": channels,
        "multipliers": tuple(multipliers),
        "num_blocks": blocks_in(found, "down_blocks.0.resnets"),
        "attention_levels": attention,
        "num_classes": num_classes,
        "learn_sigma": output_variance(found, "conv_out.weight", in_channels),
        "patch_size": 1,
    }
