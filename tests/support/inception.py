"""An Inception with random weights in the published file's layout."""

from pathlib import Path

import pytest
import torch


def save_random_inception(path: Path) -> Path:
    """Build torch-fidelity's network with its download replaced by nothing, and write its weights.

    The convolutions are Kaiming-normal: with PyTorch's own the features of all images are the same but for rounding.
    """
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
    # the published file has no counters, which came with later versions of torch
    torch.save({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return path
