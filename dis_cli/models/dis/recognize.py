"""The settings of a DiS, told from the names and shapes of its weights. No torch."""

import math
import re
from typing import Any

from dis_cli.models.recognize import Shapes, dims, impossible

# A file can claim any number of blocks, and the model is built, if without numbers, to compare the rest.
_MOST_BLOCKS = 1000


def recognize(found: Shapes) -> dict[str, Any]:
    """The settings of the DiS that these would be the weights of; not all of them are looked at.

    Returns:
        Arguments of the network, those that decide its weights.

    Raises:
        ValueError: They are of no DiS: says what is missing or impossible.
    """
    embed_dim, in_channels, patch_size, _ = dims(found, "patch_embed.proj.weight", 4)
    has_labels = "label_emb.embedding_table.weight" in found
    num_classes = dims(found, "label_emb.embedding_table.weight", 2)[0] - 1 if has_labels else 0
    extras = 2 if has_labels else 1
    side = math.isqrt(max(dims(found, "pos_embed", 3)[1] - extras, 0))
    if side == 0 or side**2 + extras != found["pos_embed"][1]:
        raise impossible(found, "pos_embed", 1, f"a square number of patches + {extras}")
    if has_labels and num_classes == 0:
        raise impossible(found, "label_emb.embedding_table.weight", 0, "at least one class + 1")
    fixed = patch_size**2 * in_channels
    rows = dims(found, "final_layer.linear.weight", 2)[0]
    if rows not in (fixed, 2 * fixed):
        allowed = f"{2 * fixed} (learned variance) or {fixed} (fixed variance)"
        raise impossible(found, "final_layer.linear.weight", 0, allowed)
    inner, d_state = dims(found, "mid_block.mixer.A_log", 2)
    if inner % embed_dim:
        raise impossible(found, "mid_block.mixer.A_log", 0, f"a multiple of embed_dim, which is {embed_dim}")
    blocks = {match[0] for name in found if (match := re.match(r"(in|out)_blocks\.\d+\.", name))}
    half = max(sum(block.startswith(group) for block in blocks) for group in ("in", "out"))
    if half > _MOST_BLOCKS // 2:
        raise ValueError(f"it has {len(blocks)} blocks, expected at most {_MOST_BLOCKS}")
    return {
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "embed_dim": embed_dim,
        "depth": 2 * half + 1,
        "num_classes": num_classes,
        "learn_sigma": rows == 2 * fixed,
        "d_state": d_state,
        "d_conv": dims(found, "mid_block.mixer.conv1d.weight", 3)[2],
        "expand": inner // embed_dim,
    }
