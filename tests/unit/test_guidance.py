"""Classifier-free guidance with a model small enough to do by hand."""

import pytest
import torch
from torch import Tensor

from dis_cli.diffusion.guidance import GuidedChannels, guided_output

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
