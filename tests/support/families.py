"""Small models of every family beside DiS, and settings of runs of them on the digits."""

from typing import Any

from dis_cli.config.schema import RunConfig
from dis_cli.models.backbone import Backbone
from dis_cli.models.families import FAMILIES

OTHERS = ("dit", "uvit", "unet")

# Small, and yet with what a larger one has: heads, a skip, levels, attention, classes.
SMALL: dict[str, dict[str, Any]] = {
    "dis": {"patch_size": 4, "embed_dim": 16, "depth": 3},
    "dit": {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "uvit": {"patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "unet": {"channels": 8, "multipliers": (1, 2), "num_blocks": 1, "attention_levels": (1,), "norm_groups": 4},
}


def small(family: str, **changes: Any) -> Backbone:
    """A model of 8x8 grids of one channel in ten classes, all of whose trained weights are random."""
    import torch

    settings = {"image_size": 8, "in_channels": 1, "num_classes": 10, "learn_sigma": False, **SMALL[family], **changes}
    torch.manual_seed(0)
    model = FAMILIES[family].build(**settings)
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def digits_config(family: str, **changes: object) -> RunConfig:
    """A run on the digits with ``section__key=value`` changed."""
    data: dict[str, Any] = {
        "name": "tiny",
        "model": {"backbone": family, "image_size": 8, "in_channels": 1, "num_classes": 10, **SMALL[family]},
        "diffusion": {"schedule": "cosine", "prediction": "v", "variance": "fixed_small"},
        "data": {"source": "digits", "hflip": False},
        "train": {"steps": 40, "batch_size": 4, "lr": 1e-3, "save_every": 40, "precision": "fp32"},
        "sample": {"sampler": "ddim", "steps": 2, "precision": "fp32"},
    }
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        data[section] = data[section] | {leaf: value}
    return RunConfig.model_validate(data)
