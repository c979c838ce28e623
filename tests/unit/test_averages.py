"""Which weights ``sample.ema`` means."""

import pytest

from dis_cli.config.schema import RunConfig, TrainConfig
from dis_cli.errors import ConfigError
from dis_cli.workflows.load.averages import Average, choose_average, choose_published


def run(decay: float = 0.9999, *more: float) -> RunConfig:
    return RunConfig(train=TrainConfig(ema_decay=decay, ema_more=more))


@pytest.mark.parametrize(
    ("saved", "asked", "decay", "group"),
    [
        (run(), None, 0.9999, "ema"),
        (run(), 0.9999, 0.9999, "ema"),
        (run(), 0, 0, "model"),
        (run(0.999, 0.9, 0.99), None, 0.999, "ema"),
        (run(0.999, 0.9, 0.99), 0.9, 0.9, "ema_more_0"),
        (run(0.999, 0.9, 0.99), 0.99, 0.99, "ema_more_1"),
        # Of equal averages the first.
        (run(0.9, 0.9, 0.5, 0.5), 0.9, 0.9, "ema"),
        (run(0.9, 0.9, 0.5, 0.5), 0.5, 0.5, "ema_more_1"),
        # An average that forgets everything is the weights.
        (run(0.0), None, 0, "ema"),
        (run(0.0), 0, 0, "ema"),
    ],
)
def test_an_average_is_found_by_its_decay(saved: RunConfig, asked: float | None, decay: float, group: str) -> None:
    assert choose_average(saved, asked) == Average(decay, group, is_default=group == "ema")


@pytest.mark.parametrize(
    ("saved", "allowed"),
    [
        (run(), "0.9999, 0 (the weights themselves)"),
        (run(0.99, 0.9, 0.00001), "0.99, 0.9, 1e-05, 0 (the weights themselves)"),
        (run(0.0), "allowed: 0 (the weights themselves)"),
    ],
)
def test_one_that_was_not_kept_is_refused_with_those_that_were(saved: RunConfig, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_average(saved, 0.999)
    assert "`sample.ema`: got `0.999`" in caught.value.message
    assert allowed in caught.value.message


def test_names_tell_the_averages_apart() -> None:
    decays = (0.9, 0.99999, 0.999999, 0.9999999, 0.0)
    names = [choose_average(run(0.999, *decays), decay).name_parts for decay in (None, *decays)]
    assert names == [(), ("ema-0.9",), ("ema-0.99999",), ("ema-0.999999",), ("ema-0.9999999",), ("ema-0",)]


def test_a_published_file_has_one_average() -> None:
    assert choose_published(["sample.steps=3", "model.depth=4"]) is None
    assert choose_published(["sample.ema=0", "sample.ema=none"]) is None
    average, weights = choose_published([" sample.ema =0.9999"]), choose_published(["sample.ema=0"])
    assert average is not None
    assert weights is not None
    assert (average.group, weights.group) == ("ema", "model")
    for wrong in ("sample.ema=0.999", "sample.ema=1", "sample.ema=x"):
        with pytest.raises(ConfigError):
            choose_published([wrong])
