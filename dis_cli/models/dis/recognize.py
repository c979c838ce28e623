"""The settings of a DiS, told from the names and shapes of its weights. No torch."""

import re
from typing import Any

from dis_cli.models.recognize import MOST_BLOCKS, Shapes, classes_in, dims, grid_side, impossible, output_variance


def recognize(found: Shapes) -> dict[str, Any]:
    """The settings of the DiS that these would be the weights of; not all of them are looked at.

    The order of the scans cannot be seen in weights, and without ``skip_linear`` neither can what is done with a skip.

    Returns:
        Arguments of the network that the weights tell.

    Raises:
        ValueError: They are of no DiS: says what is missing or impossible.
    """
    embed_dim, in_channels, patch_size, _ = dims(found, "patch_embed.proj.weight", 4)
    num_classes = classes_in(found, "label_emb.embedding_table.weight")
    modulated = "mid_block.adaLN_modulation.1.weight" in found
    side = grid_side(found, extras=0 if modulated else 2 if num_classes else 1)
    learn_sigma = output_variance(found, "final_layer.linear.weight", patch_size**2 * in_channels)
    inner, d_state = dims(found, "mid_block.mixer.A_log", 2)
    if inner % embed_dim:
        raise impossible(found, "mid_block.mixer.A_log", 0, f"a multiple of embed_dim, which is {embed_dim}")
    blocks = {match[0] for name in found if (match := re.match(r"(in|out)_blocks\.\d+\.", name))}
    half = max(sum(block.startswith(group) for block in blocks) for group in ("in", "out"))
    if half > MOST_BLOCKS // 2:
        raise ValueError(f"it has {len(blocks)} blocks, expected at most {MOST_BLOCKS}")
    joined = any(name.startswith("out_blocks.") and name.endswith(".skip_linear.weight") for name in found)
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": 2 * half + 1,
        "num_classes": num_classes,
        "learn_sigma": learn_sigma,
        "d_state": d_state,
        "d_conv": dims(found, "mid_block.mixer.conv1d.weight", 3)[2],
        "expand": inner // embed_dim,
        "directions": "both" if "mid_block.mixer.A_b_log" in found else "forward",
        "conditioning": "adaln_zero" if modulated else "tokens",
    } | ({"skip": "concat"} if joined else {})
