"""The number of images generated at a time, when the settings leave it to the machine."""

import torch

from dis_cli.config.schema import RunConfig
from dis_cli.models.backbone import Backbone
from dis_cli.runtime.distributed import local_world_size
from dis_cli.runtime.machine import memory
from dis_cli.workflows.cost import model_family, model_shape

# More tokens at a time are no faster: a processor's caches are full, or a GPU has enough to do.
_MOST_TOKENS = {"cpu": 2048, "cuda": 65536}
_MOST_IMAGES = 1024
# The share of the free memory that a batch may take; weights and the VAE are there already.
_SHARE = 0.5


def pick_batch_size(model: Backbone, config: RunConfig, device: torch.device) -> int:
    """``config.sample.batch_size``; of "auto" the largest power of two that is of use and fits half the free memory.

    It decides nothing about the images.
    """
    if config.sample.batch_size != "auto":
        return config.sample.batch_size
    tokens = model.num_tokens
    # Fewer than a network computes at a time take as long.
    useful = max(model.fixed_batch, _MOST_TOKENS.get(device.type, _MOST_TOKENS["cpu"]) // tokens)
    free, needed = _free_bytes(device), image_bytes(config, tokens)
    fitting = useful if free is None or needed is None else int(_SHARE * free / needed)
    return 1 << (max(1, min(useful, fitting, _MOST_IMAGES)).bit_length() - 1)


def image_bytes(config: RunConfig, tokens: int) -> int | None:
    """The peak memory of one image's forward pass, in bytes; None when there is no closed form.

    Args:
        config: Its ``model`` section gives the sizes.
    """
    width = model_family(config).peak_width
    guided = 2 if config.model.num_classes and config.sample.cfg_scale != 1 else 1
    return None if width is None else 4 * guided * tokens * width(model_shape(config))


def _free_bytes(device: torch.device) -> int | None:
    free = memory(device).free_bytes
    # All processes of this machine share its main memory.
    return free if free is None or device.type == "cuda" else free // local_world_size()
