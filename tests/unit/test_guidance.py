"""Classifier-free guidance with a model small enough to do by hand."""

import math

import pytest
import torch
from torch import Tensor

from dis_cli.diffusion.guidance import Guidance, GuidanceSchedule, GuidedChannels, guide, guided_output
from dis_cli.diffusion.samplers.loop import make_sampler, sample_loop
from dis_cli.diffusion.schedule import make_schedule
from dis_cli.models import DiS

NULL = 10


class Recorder:
    """Output channel k of an image is (k + 1) * (10 * label + t + x's first pixel); keeps the arguments it got."""

    def __init__(self, out_channels: int) -> None:
        self.weights = torch.arange(1.0, out_channels + 1)[None, :, None, None]
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.calls.append((x, t, labels))
        score = t + x[:, 0, 0, 0] + (0 if labels is None else 10 * labels)
        return self.weights * score[:, None, None, None].expand(-1, 1, *x.shape[2:])


def inputs(count: int, channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.arange(float(count * channels * 4)).reshape(count, channels, 2, 2) / 64
    return x, torch.arange(count) * 7, torch.arange(count) % 3


@pytest.mark.parametrize(("cfg_channels", "num_guided"), [("all", 4), ("first3", 3)])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5, 4.0])
def test_extrapolates_from_the_unconditional_output(
    cfg_channels: GuidedChannels, num_guided: int, cfg_scale: float
) -> None:
    x, t, labels = inputs(3)
    model = Recorder(out_channels=8)

    output = guided_output(
        model, x, t, labels, null_class=NULL, cfg_scale=cfg_scale, num_channels=4, cfg_channels=cfg_channels
    )

    for image in range(3):
        shared = t[image] + x[image, 0, 0, 0]
        conditional, unconditional = shared + 10 * labels[image], shared + 10 * NULL
        guided = (1 - cfg_scale) * unconditional + cfg_scale * conditional
        for channel in range(8):
            expected = (channel + 1) * (guided if channel < num_guided else conditional)
            torch.testing.assert_close(output[image, channel], expected.expand(2, 2))


def test_asks_the_model_once_for_both_halves() -> None:
    x, t, labels = inputs(3)
    model = Recorder(out_channels=4)

    guided_output(model, x, t, labels, null_class=NULL, cfg_scale=2.0, num_channels=4)

    [(seen_x, seen_t, seen_labels)] = model.calls
    assert torch.equal(seen_x, torch.cat([x, x]))
    assert torch.equal(seen_t, torch.cat([t, t]))
    assert seen_labels is not None
    assert seen_labels.tolist() == [0, 1, 2, NULL, NULL, NULL]


@pytest.mark.parametrize(("labelled", "cfg_scale"), [(True, 1.0), (False, 4.0)])
def test_calls_the_model_plainly_when_there_is_nothing_to_guide(labelled: bool, cfg_scale: float) -> None:
    x, t, labels = inputs(3)
    given = labels if labelled else None
    model = Recorder(out_channels=8)

    output = guided_output(model, x, t, given, null_class=NULL, cfg_scale=cfg_scale, num_channels=4)

    [(seen_x, seen_t, seen_labels)] = model.calls
    assert seen_x is x
    assert seen_t is t
    assert seen_labels is given
    expected = t + x[:, 0, 0, 0] + (10 * labels if labelled else 0)
    assert torch.equal(output[:, 7, 0, 0], 8 * expected)


def test_first3_guides_all_channels_of_a_grey_image_and_not_its_variance() -> None:
    x, t, labels = inputs(2, channels=1)

    output = guided_output(
        Recorder(out_channels=2), x, t, labels, null_class=NULL, cfg_scale=3.0, num_channels=1, cfg_channels="first3"
    )

    shared = t + x[:, 0, 0, 0]
    assert torch.equal(output[:, 0, 0, 0], shared + 10 * (3.0 * labels - 2.0 * NULL))
    assert torch.equal(output[:, 1, 0, 0], 2 * (shared + 10 * labels))


def test_an_output_without_the_predicted_channels_is_refused() -> None:
    x, t, labels = inputs(2)

    with pytest.raises(ValueError, match="predict 4 channels, got an output of 3"):
        guided_output(Recorder(out_channels=3), x, t, labels, null_class=NULL, cfg_scale=2.0, num_channels=4)


def counted_model() -> tuple[DiS, list[tuple[int, int]]]:
    """A real model, and the (timestep, batch size) of every call to it."""
    torch.manual_seed(0)
    model = DiS(image_size=8, patch_size=4, in_channels=4, embed_dim=16, depth=3, num_classes=NULL).eval()
    calls: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, arguments: calls.append((int(arguments[1][0]), len(arguments[0]))))
    return model, calls


def sampled(model: DiS, guidance: Guidance, count: int = 3, steps: int = 20) -> Tensor:
    schedule = make_schedule("cosine", guidance.num_timesteps)
    sampler = make_sampler(schedule, name="dpm++", steps=steps, prediction="v", variance="learned_range")
    labels = torch.arange(count) % NULL
    denoise = guide(model, labels, guidance, null_class=model.null_class, num_channels=4)
    x_T = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    *_, x_0 = sample_loop(denoise, x_T, sampler, [torch.Generator()] * count)
    return x_0


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({"cfg_scale": 1.0}, 2, 2),
        ({"cfg_scale": 0.0}, 0, 1),
        ({"cfg_scale": 2.0}, 0, 1),
        ({"cfg_scale": 2.0, "cfg_interval": (0.0, 0.5)}, 0, 0.5),
        ({"cfg_scale": 2.0, "cfg_interval": (0.25, 0.75)}, 0.25, 0.75),
        # All noise is where they begin, at a scale of 1.
        ({"cfg_scale": 2.0, "cfg_schedule": "linear"}, 0, 0.999),
        ({"cfg_scale": 2.0, "cfg_schedule": "power-cosine"}, 0, 0.999),
        ({"cfg_scale": 2.0, "cfg_schedule": "linear", "cfg_interval": (0.9, 1.0)}, 0.9, 0.999),
    ],
)
def test_the_second_half_is_computed_only_where_it_is_needed(settings, low: float, high: float) -> None:
    model, calls = counted_model()
    guidance = Guidance(1000, **settings)

    sampled(model, guidance)

    assert [batch for _, batch in calls] == [6 if low <= t / 999 <= high else 3 for t, _ in calls]
    assert len(calls) == 20
    assert guidance.count_guided([t for t, _ in calls]) == sum(batch == 6 for _, batch in calls)


def test_images_outside_the_interval_go_as_if_unguided_and_inside_as_if_always() -> None:
    model, _ = counted_model()
    x, labels = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 2, 3])
    part, always, never = (
        guide(model, labels, guidance, null_class=NULL, num_channels=4)
        for guidance in (Guidance(1000, 3.0, cfg_interval=(0.0, 0.4)), Guidance(1000, 3.0), Guidance(1000))
    )
    with torch.no_grad():
        low, high = torch.full((3,), 300), torch.full((3,), 700)
        assert torch.equal(part(x, low), always(x, low))
        assert torch.equal(part(x, high), never(x, high))
        assert not torch.allclose(always(x, high), never(x, high))


@pytest.mark.parametrize(
    ("schedule", "power", "expected"),
    [
        ("constant", 4.0, [5.0, 5.0, 5.0, 5.0]),
        ("linear", 4.0, [1.0, 2.0, 3.0, 5.0]),
        ("power-cosine", 1.0, [1.0, 3 - 2 * math.sqrt(0.5), 3.0, 5.0]),
        ("power-cosine", 2.0, [1.0, 3 - 2 * math.cos(math.pi / 16), 3 - 2 * math.sqrt(0.5), 5.0]),
    ],
)
def test_scales_grow_from_noise_to_image(schedule: GuidanceSchedule, power: float, expected: list[float]) -> None:
    guidance = Guidance(1001, 5.0, cfg_schedule=schedule, cfg_power=power)

    assert [guidance.scale_at(t) for t in (1000, 750, 500, 0)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("guidance", [Guidance(1000, 2.0), Guidance(1000, 3.0, "first3", (0.1, 0.8), "power-cosine")])
def test_a_guided_image_does_not_depend_on_its_batch(guidance: Guidance) -> None:
    model, _ = counted_model()

    together, alone = sampled(model, guidance, count=5, steps=6), sampled(model, guidance, count=1, steps=6)

    # The sums of a matrix product may be ordered by the batch's size.
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg_interval": (0.6, 0.2)}, "cfg_interval must be two ascending shares within 0 to 1, got 0.6 and 0.2"),
        ({"cfg_interval": (0.0, 1.5)}, "got 0.0 and 1.5"),
        ({"cfg_power": 0.0}, "cfg_power must be above 0, got 0.0"),
    ],
)
def test_impossible_guidance_is_refused(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(1000, 2.0, **settings)
