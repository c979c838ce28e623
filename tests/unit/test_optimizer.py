"""The optimizer's groups, by name; and that without decay they change no bit of an update."""

import copy

import torch

from dis_cli.models import DiS
from dis_cli.training.optimizer import make_optimizer

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99)}

BLOCK_MATRICES = [
    "mixer.in_proj.weight",
    "mixer.conv1d.weight",
    "mixer.conv1d_b.weight",
    "mixer.x_proj.weight",
    "mixer.x_proj_b.weight",
    "mixer.dt_proj.weight",
    "mixer.dt_proj_b.weight",
    "mixer.out_proj.weight",
]
BLOCK_REST = [
    "mixer.A_log",
    "mixer.A_b_log",
    "mixer.D",
    "mixer.D_b",
    "mixer.conv1d.bias",
    "mixer.conv1d_b.bias",
    "mixer.dt_proj.bias",
    "mixer.dt_proj_b.bias",
    "norm.weight",
]
BLOCKS = ["in_blocks.0", "mid_block", "out_blocks.0"]
DECAYED = {
    "patch_embed.proj.weight",
    "time_embed.0.weight",
    "time_embed.2.weight",
    "label_emb.embedding_table.weight",
    *(f"{block}.{name}" for block in BLOCKS for name in BLOCK_MATRICES),
    "out_blocks.0.skip_linear.weight",
    "final_layer.linear.weight",
    "final_layer.adaLN_modulation.1.weight",
}
NOT_DECAYED = {
    "pos_embed",
    "patch_embed.proj.bias",
    "time_embed.0.bias",
    "time_embed.2.bias",
    *(f"{block}.{name}" for block in BLOCKS for name in BLOCK_REST),
    "out_blocks.0.skip_linear.bias",
    "norm_f.weight",
    "final_layer.linear.bias",
    "final_layer.adaLN_modulation.1.bias",
}


def model() -> DiS:
    torch.manual_seed(0)
    return DiS(8, 2, 1, embed_dim=16, depth=3, num_classes=4)


def test_which_parameters_are_decayed() -> None:
    network = model()
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed, rest = make_optimizer(network, **SETTINGS, weight_decay=0.1).param_groups
    found = [names[parameter] for parameter in decayed["params"]], [names[parameter] for parameter in rest["params"]]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert set(found[0]) == DECAYED
    assert set(found[1]) == NOT_DECAYED
    # Each once.
    assert sorted(found[0] + found[1]) == sorted(names.values())


def test_decay_shrinks_the_decayed_alone() -> None:
    network = model()
    before = copy.deepcopy(network.state_dict())
    optimizer = make_optimizer(network, **SETTINGS, weight_decay=0.5)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in network.named_parameters():
        factor = 1 - SETTINGS["lr"] * 0.5 if name in DECAYED else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor, rtol=1e-6, atol=0)


def test_without_decay_an_update_is_that_of_one_group() -> None:
    network = model()
    single = copy.deepcopy(network)
    optimizers = (
        make_optimizer(network, **SETTINGS, weight_decay=0.0),
        torch.optim.AdamW(single.parameters(), **SETTINGS, weight_decay=0.0, fused=True),
    )
    for step in range(4):
        for changed, optimizer in zip((network, single), optimizers, strict=True):
            torch.manual_seed(step)
            for parameter in changed.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    initial = model().state_dict()
    for (name, parameter), other in zip(network.named_parameters(), single.parameters(), strict=True):
        assert torch.equal(parameter, other), name
        assert not torch.equal(parameter, initial[name]), name


def test_the_update_is_fused_where_torch_can() -> None:
    assert make_optimizer(model(), **SETTINGS, weight_decay=0.0).defaults["fused"]
    assert not make_optimizer(model().to("meta"), **SETTINGS, weight_decay=0.0).defaults["fused"]
