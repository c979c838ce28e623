"""The closed form against the published model's measured parameters and operations."""

from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shapes import shapes
from torch.utils.flop_counter import FlopCounterMode

from dis_cli.models.dis.backbone import DiS
from dis_cli.models.dis.flops import CONVENTIONS, Flops, LayerCost, count
from dis_cli.models.dis.sizes import SIZES, Shape

# (image_size, in_channels, num_classes) of the columns of PARAMETERS
SETTINGS = [(32, 3, 0), (32, 4, 1000), (32, 3, 10), (64, 4, 1000), (32, 4, 0)]

# Counted on the published model. Rows: size, patch, then one number for each of SETTINGS.
PARAMETERS = """
s 2  28_488_008  29_132_752  28_764_008  29_415_376  28_492_432
s 4  28_457_168  29_115_184  28_733_168  29_185_840  28_474_864
b 2  119_203_608  121_163_552  120_394_008  121_753_376  119_212_832
b 4  119_139_168  121_126_784  120_329_568  121_274_240  119_176_064
m 2  229_454_616  231_414_560  230_645_016  232_004_384  229_463_840
m 4  229_390_176  231_377_792  230_580_576  231_525_248  229_427_072
l 2  404_112_408  407_249_952  406_223_896  408_036_384  404_124_704
l 4  404_026_464  407_200_896  406_137_952  407_397_504  404_075_648
h 2  900_687_384  906_966_560  905_427_480  908_146_208  900_705_824
h 4  900_558_432  906_892_928  905_298_528  907_187_840  900_632_192
"""

# Measured with the published script's profiler and with an operation counter. Rows: size, patch, image_size,
# in_channels, num_classes; tokens, published GMAC, published "FLOPs" (G), true GMAC, the same +ew, true / published.
OPERATIONS = """
s 2 32 3 0  257  0.8400  1.6799  7.1480  7.4696  8.51
s 4 32 3 0  65  0.2158  0.4316  1.8112  1.8926  8.39
s 2 32 4 0  257  0.8411  1.6822  7.1491  7.4707  8.50
s 2 32 4 1000  258  0.8446  1.6893  7.1772  7.5000  8.50
s 4 32 4 1000  66  0.2205  0.4411  1.8405  1.9231  8.35
s 2 64 4 1000  1026  3.3549  6.7098  28.5379  29.8217  8.51
s 2 64 3 0  1025  3.3468  6.6937  28.5053  29.7878  8.52
s 4 64 3 0  257  0.8502  1.7003  7.1582  7.4798  8.42
b 2 32 3 0  257  3.6502  7.3005  29.6443  30.3153  8.12
b 4 32 3 0  65  0.9321  1.8642  7.5065  7.6762  8.05
b 2 32 4 0  257  3.6526  7.3052  29.6466  30.3177  8.12
b 2 32 4 1000  258  3.6680  7.3359  29.7631  30.4368  8.11
b 4 32 4 1000  66  0.9499  1.8998  7.6254  7.7978  8.03
b 2 64 4 1000  1026  14.5691  29.1382  118.3429  121.0220  8.12
b 2 64 3 0  1025  14.5443  29.0886  118.2170  120.8934  8.13
b 4 64 3 0  257  3.6715  7.3431  29.6656  30.3366  8.08
m 2 32 3 0  257  7.2883  14.5766  58.2369  59.5523  7.99
m 4 32 3 0  65  1.8522  3.7044  14.7381  15.0707  7.96
m 2 32 4 0  257  7.2906  14.5813  58.2393  59.5546  7.99
m 2 32 4 1000  258  7.3202  14.6403  58.4671  59.7875  7.99
m 4 32 4 1000  66  1.8842  3.7684  14.9683  15.3061  7.94
m 2 64 4 1000  1026  29.0929  58.1858  232.4911  237.7421  7.99
m 2 64 3 0  1025  29.0540  58.1079  232.2539  237.4998  7.99
m 4 64 3 0  257  7.3096  14.6191  58.2582  59.5735  7.97
l 2 32 3 0  257  12.9536  25.9072  102.3428  104.0966  7.90
l 4 32 3 0  65  3.2896  6.5792  25.8978  26.3413  7.87
l 2 32 4 0  257  12.9568  25.9135  102.3460  104.0997  7.90
l 2 32 4 1000  258  13.0092  26.0185  102.7463  104.5068  7.90
l 4 32 4 1000  66  3.3454  6.6907  26.3013  26.7517  7.86
l 2 64 4 1000  1026  51.7033  103.4065  408.5645  415.5659  7.90
l 2 64 3 0  1025  51.6382  103.2764  408.1516  415.1462  7.90
l 4 64 3 0  257  12.9820  25.9640  102.3712  104.1250  7.89
h 2 32 3 0  257  29.1381  58.2763  227.5950  230.2256  7.81
h 4 32 3 0  65  7.3944  14.7888  57.5877  58.2531  7.79
h 2 32 4 0  257  29.1429  58.2857  227.5997  230.2303  7.81
h 2 32 4 1000  258  29.2609  58.5218  228.4899  231.1308  7.81
h 4 32 4 1000  66  7.5173  15.0346  58.4829  59.1585  7.78
h 2 64 4 1000  1026  116.2930  232.5859  908.5759  919.0779  7.81
h 2 64 3 0  1025  116.1560  232.3121  907.6668  918.1586  7.81
h 4 64 3 0  257  29.1807  58.3614  227.6375  230.2682  7.80
"""


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def count_size(size: str, patch: int, image_size: int, channels: int, classes: int) -> Flops:
    return count(Shape(image_size, patch, channels, SIZES[size].embed_dim, SIZES[size].depth, classes))


@pytest.mark.parametrize("row", rows(PARAMETERS), ids=lambda row: f"{row[0]}-{row[1]}")
def test_parameters_equal_the_published_model_s(row: list[str]) -> None:
    size, patch, *expected = row
    got = [count_size(size, int(patch), side, channels, classes).parameters for side, channels, classes in SETTINGS]
    assert got == [int(number) for number in expected]


@pytest.mark.parametrize("row", rows(OPERATIONS), ids=lambda row: "-".join(row[:5]))
def test_operations_equal_the_measured_ones(row: list[str]) -> None:
    size, patch, image_size, channels, classes, *expected = row
    cost = count_size(size, int(patch), int(image_size), int(channels), int(classes))
    got = [cost.published_macs, cost.published_flops, cost.macs, cost.macs_with_elementwise]
    assert [str(cost.tokens), *(f"{n / 1e9:.4f}" for n in got), f"{cost.true_over_published:.2f}"] == expected


def test_tables_are_complete() -> None:
    assert (len(rows(PARAMETERS)), len(rows(OPERATIONS))) == (10, 40)


def test_parameters_of_a_small_published_model() -> None:
    # Image 8, patch 2, width 48, 7 blocks, 4 channels, 10 classes: 138 tensors.
    assert count(Shape(8, 2, 4, 48, 7, 10)).parameters == 220_256


def test_read_out_half_of_the_scan_equals_the_measured_one() -> None:
    cost = count_size("s", 2, 32, 3, 0)
    tokens, inner = 257, 2 * 368
    skip_products = 2 * 25 * tokens * inner
    assert f"{(cost.parts['scan'].macs - skip_products) / 2 / 1e9:.5f}" == "0.15132"


def test_rank_of_the_time_step_is_rounded_up() -> None:
    # R = ceil(40 / 16) = 3, E = 80, 16 patches and the time token, one block of two directions.
    assert count(Shape(8, 2, 1, 40, 1)).parts["dt_proj"].macs == 2 * 17 * 3 * 80


def test_fixed_variance_halves_the_output_layer() -> None:
    learned, fixed = (count(Shape(32, 2, 4, 368, 25, 0, learn_sigma)) for learn_sigma in (True, False))
    assert learned.parameters - fixed.parameters == 2 * 2 * 4 * (368 + 1)
    assert learned.parts["head"].macs == 2 * fixed.parts["head"].macs


@pytest.mark.parametrize(
    "changes", [{"depth": 24}, {"patch_size": 3}, {"num_classes": -1}, {"embed_dim": 0}], ids=lambda d: next(iter(d))
)
def test_impossible_models_are_refused(changes: dict[str, int]) -> None:
    model = {"image_size": 32, "patch_size": 2, "in_channels": 3, "embed_dim": 368, "depth": 25} | changes
    with pytest.raises(ValueError, match=next(iter(changes)) if "embed_dim" not in changes else "at least 1"):
        Shape(**model)


def test_xl_has_677_million_parameters() -> None:
    assert f"{count_size('xl', 2, 32, 4, 1000).parameters / 1e6:.1f}" == "677.0"


# Tokens that are no patches pass the head in the closed form, as in the published code; here they leave before it.
def head_of_extras(shape: Shape) -> int:
    return shape.num_extras * shape.embed_dim * shape.output_values


@settings(max_examples=25, deadline=None)
@given(shapes(), st.integers(1, 5), st.booleans())
def test_every_count_equals_what_a_built_model_does(shape: Shape, batch: int, checkpointing: bool) -> None:
    cost = count(shape)
    model = DiS(**asdict(shape))
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters
    assert model.pos_embed.shape[1] == cost.tokens
    model.gradient_checkpointing = checkpointing
    x = torch.randn(batch, shape.in_channels, shape.image_size, shape.image_size)
    labels = torch.arange(batch) % shape.num_classes if shape.num_classes else None
    with FlopCounterMode(display=False) as forward:
        out = model(x, torch.arange(batch), labels)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    extras = head_of_extras(shape)
    again = cost.recomputed_macs if checkpointing else 0
    assert forward.get_total_flops() == 2 * batch * (cost.macs - extras)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == 2 * batch * (cost.training_macs - 3 * extras + again)


@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_part_equals_its_modules(num_classes: int) -> None:
    shape = Shape(8, 2, 3, 40, 5, num_classes, d_state=5, d_conv=3)
    model = DiS(**asdict(shape))
    words = {
        "embeddings": ("pos_embed", "patch_embed", "time_embed", "label_emb"),
        "norms": ("norm.weight", "norm_f"),
        "in_proj": ("in_proj",),
        "conv": ("conv1d", "conv1d_b"),
        "x_proj": ("x_proj", "x_proj_b"),
        "dt_proj": ("dt_proj", "dt_proj_b"),
        "scan": ("A_log", "A_b_log", "D", "D_b"),
        "gate": (),
        "out_proj": ("out_proj",),
        "skip": ("skip_linear",),
        "head": ("final_layer",),
    }
    found = {
        part: sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if any(f".{word}." in f".{name}." for word in names)
        )
        for part, names in words.items()
    }
    assert {name: part.parameters for name, part in count(shape).parts.items()} == found


def test_elementwise_multiplies_are_the_scan_s_and_the_gate_s() -> None:
    # One block of two directions, E = 80, N = 16, 17 tokens: delta A and (delta u) B; delta u, and the gate.
    parts = count(Shape(8, 2, 1, 40, 1)).parts
    found = {name: part.elementwise_macs for name, part in parts.items() if part.elementwise_macs}
    assert found == {"scan": 2 * 17 * (2 * 80 * 16 + 80), "gate": 2 * 17 * 80}
    assert parts["gate"] == LayerCost(0, elementwise_macs=found["gate"])


def test_guidance_doubles_an_image_and_steps_multiply_it() -> None:
    cost = count_size("s", 2, 32, 4, 1000)
    assert cost.sampling_macs(250, guided=False) == 250 * cost.macs
    assert cost.sampling_macs(20, guided=True) == 40 * cost.macs


def test_another_number_of_patches_is_that_of_another_grid() -> None:
    small, large = Shape(32, 2, 4, 368, 25, 1000), Shape(64, 2, 4, 368, 25, 1000)
    assert count(small, num_patches=1024) == count(large)


def test_conventions_are_explained_in_a_line_each() -> None:
    assert list(CONVENTIONS) == ["MACs", "FLOPs", "+ elementwise", "as published", "as printed"]
    assert all("\n" not in meaning and len(meaning) < 100 for meaning in CONVENTIONS.values())
