"""Models with the recorded weights."""

from typing import Any

import torch
from support.oracle import group, load, metadata

from dis_cli.models import DiS


def recorded_model(name: str, dtype: torch.dtype, **changes: Any) -> DiS:
    """The model of a recorded file. The published ``depth`` counts one block fewer than it builds."""
    config = metadata(name)
    model = DiS(
        config["img_size"],
        config["patch_size"],
        config["channels"],
        config["embed_dim"],
        config["depth"] + 1,
        max(0, config["num_classes"]),
        config["learn_sigma"],
        **changes,
    )
    model.load_state_dict(group(load(name), "param"))
    return model.to(dtype).eval()
