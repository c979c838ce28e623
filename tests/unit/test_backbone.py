"""The backbone's contracts: sizes, initial weights, errors, randomness passed in."""

import math

import pytest
import torch

from dis_cli.models import DiS
from dis_cli.models.dis.backbone import drop_path_rates


def small(**changes) -> DiS:
    torch.manual_seed(0)
    settings = {"image_size": 8, "patch_size": 2, "in_channels": 3, "embed_dim": 32, "depth": 5, "num_classes": 10}
    return DiS(**(settings | changes))


def forward(model: DiS, **draws) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, model.in_channels, 8, 8, generator=generator)
    labels = torch.arange(6) if model.num_classes else None
    return model(x, torch.arange(6) * 100, labels, **draws)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "depth must be odd and at least 1, got 4"),
        ({"patch_size": 3}, "patch_size 3 does not divide image_size 8"),
        ({"init": "xavier"}, "init must be 'corrected' or 'published', got 'xavier'"),
        ({"final_init": "one"}, "final_init must be 'published' or 'zero', got 'one'"),
    ],
)
def test_impossible_models_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 3, 8, 8\), got \(6, 3, 4, 4\)"):
        small()(torch.zeros(6, 3, 4, 4), torch.zeros(6), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="this model has 10 classes and needs labels; 10 is none"):
        small()(torch.zeros(6, 3, 8, 8), torch.zeros(6))
    with pytest.raises(ValueError, match="this model is unconditional and takes no labels"):
        small(num_classes=0)(torch.zeros(6, 3, 8, 8), torch.zeros(6), torch.zeros(6, dtype=torch.int64))


def test_depth_counts_blocks() -> None:
    for depth in (1, 3, 7):
        model = small(depth=depth)
        assert len(list(model.blocks())) == depth
        assert sum(block.skip_linear is not None for block in model.blocks()) == depth // 2


def test_parameter_names_are_the_published_ones() -> None:
    names = set(small(depth=7, embed_dim=48).state_dict())
    assert len(names) == 138
    for name in (
        "pos_embed",
        "patch_embed.proj.weight",
        "time_embed.2.bias",
        "label_emb.embedding_table.weight",
        "in_blocks.0.mixer.A_b_log",
        "mid_block.mixer.conv1d_b.weight",
        "out_blocks.2.skip_linear.bias",
        "out_blocks.2.mixer.dt_proj_b.bias",
        "norm_f.weight",
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
    ):
        assert name in names


def test_initial_weights_are_the_published_ones() -> None:
    model = small(embed_dim=96, depth=9)
    mixer = model.mid_block.mixer
    # Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(fan_in).
    for weight, bound in (
        (mixer.in_proj.weight, 96**-0.5),
        (mixer.x_proj_b.weight, 192**-0.5),
        (mixer.dt_proj_b.weight, 6**-0.5),
        # Rescaled by one block fewer than there are.
        (mixer.out_proj.weight, 192**-0.5 / math.sqrt(8)),
        (model.final_layer.linear.weight, 96**-0.5),
        (model.final_layer.adaLN_modulation[1].weight, 96**-0.5),
    ):
        assert weight.abs().max() <= bound
        assert weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert model.label_emb.embedding_table.weight.detach().std() == pytest.approx(0.02, rel=0.1)
    assert not model.pos_embed.any()
    for log in (mixer.A_log, mixer.A_b_log):
        torch.testing.assert_close(log.exp(), torch.arange(1.0, 17.0).expand(192, 16))
    assert (mixer.D == 1).all()
    assert (mixer.D_b == 1).all()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "dt_proj" not in name and "conv1d" not in name and "patch_embed" not in name:
            assert not parameter.any(), name


@pytest.mark.parametrize("init", ["corrected", "published"])
def test_the_time_steps_start_small_in_both_directions(init) -> None:
    mixer = small(embed_dim=96, init=init).mid_block.mixer
    forward_dt = torch.nn.functional.softplus(mixer.dt_proj.bias.detach())
    backward_dt = torch.nn.functional.softplus(mixer.dt_proj_b.bias.detach())
    for dt in [forward_dt] + ([backward_dt] if init == "corrected" else []):
        assert dt.min() >= 1e-3 * (1 - 1e-5)
        assert dt.max() <= 1e-1 * (1 + 1e-5)
        # log-uniform: half of them below the geometric mean of the bounds
        assert (dt < 1e-2).float().mean() == pytest.approx(0.5, abs=0.12)
    if init == "published":
        torch.testing.assert_close(backward_dt, torch.full_like(backward_dt, math.log(2)))


def test_a_zero_final_layer_starts_from_zero() -> None:
    assert forward(small()).std() > 0.1
    assert not forward(small(final_init="zero").eval()).any()


def test_labels_are_dropped_where_the_draw_is_below_the_rate() -> None:
    model = small(label_drop=0.25).train()
    uniform = torch.tensor([0.0, 0.2, 0.2499, 0.25, 0.5, 0.999])
    kept = forward(model, label_drop_uniform=torch.ones(6))
    out = forward(model, label_drop_uniform=uniform)
    changed = (out - kept).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert changed.tolist() == [True, True, True, False, False, False]
    # Evaluation drops nothing.
    torch.testing.assert_close(forward(model.eval(), label_drop_uniform=uniform), kept)


def test_drop_path_rates_grow_to_the_given_one() -> None:
    assert drop_path_rates(0.3, 5) == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.3])
    assert drop_path_rates(0.1, 1) == [0, 0.1]
    assert small(drop_path=0.0).num_drop_path == 0
    assert small(drop_path=0.3).num_drop_path == 4


def test_drop_path_draws_must_fit() -> None:
    with pytest.raises(ValueError, match=r"drop_path_uniform must have shape \(4, 6\), got \(3, 6\)"):
        forward(small(drop_path=0.3).train(), drop_path_uniform=torch.zeros(3, 6))


def test_randomness_that_is_not_passed_in_comes_from_the_global_generator() -> None:
    model = small(drop_path=0.5, label_drop=0.5).train()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(forward(model))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_every_parameter_gets_a_gradient() -> None:
    model = small().train()
    out = forward(model, label_drop_uniform=torch.tensor([0.0, 1, 1, 1, 1, 1]))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
