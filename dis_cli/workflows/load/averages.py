"""The choice among a checkpoint's weights: a moving average by its decay, or the weights as trained.

Looked up without torch, so that an average that was not kept is refused before anything is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dis_cli.config.overrides import apply_overrides
from dis_cli.config.schema import RunConfig
from dis_cli.config.settings import as_text
from dis_cli.errors import ConfigError

_KEY = "sample.ema"


@dataclass(frozen=True)
class Average:
    """Weights that a checkpoint holds.

    Attributes:
        decay: Decay of the moving average, per step; 0 for the weights as they were trained.
        group: The group of tensors that they are in.
        is_default: Whether they are what is taken when none are asked for.
    """

    decay: float
    group: str
    is_default: bool

    @property
    def name_parts(self) -> tuple[str, ...]:
        """The mark of these weights' results in names of files; none by default."""
        return () if self.is_default else (f"ema-{as_text(self.decay or 0)}",)


def choose_average(saved: RunConfig, decay: float | None) -> Average:
    """The weights that ``sample.ema`` asks for.

    Args:
        saved: The settings of the run, which say what was kept.
        decay: The decay of the average; None takes that of ``train.ema_decay``, 0 the weights as they were trained.

    Raises:
        ConfigError: The run kept no such average: lists those there are.
    """
    kept = averages_kept(saved)
    decay = saved.train.ema_decay if decay is None else decay
    if decay not in kept:
        allowed = ", ".join([*(as_text(known) for known in kept if known), "0 (the weights themselves)"])
        raise ConfigError(
            f"`{_KEY}`: got `{as_text(decay)}`, allowed: {allowed}",
            "A run keeps only the averages of train.ema_decay and train.ema_more",
        )
    return Average(decay, kept[decay], is_default=kept[decay] == "ema")


def averages_kept(saved: RunConfig) -> dict[float, str]:
    """The decay of each average that a run keeps, 0 for the weights themselves, and the group that it is in."""
    kept = {saved.train.ema_decay: "ema"}
    for index, further in enumerate(saved.train.ema_more):
        kept.setdefault(further, f"ema_more_{index}")
    kept.setdefault(0.0, "model")
    return kept


def choose_held(held: float, decay: float | None) -> Average:
    """The weights that ``sample.ema`` asks for, of a file that holds one set.

    Args:
        held: The decay of the average that they are; 0 for the weights as they were trained.
        decay: As in `choose_average`; None takes what there is.

    Raises:
        ConfigError: They are others.
    """
    if decay not in (None, held):
        raise ConfigError(
            f"`{_KEY}`: got `{as_text(decay)}`, allowed: {as_text(held)}, the only weights that were exported",
            "Export the others from the run: `dis checkpoint export RUN --out FILE sample.ema=DECAY`",
        )
    return Average(held, "ema" if held else "model", is_default=True)


def choose_published(overrides: Sequence[str]) -> Average | None:
    """The weights of a published file that the ``sample.ema`` among ``overrides`` asks for; None when it asks for none.

    The published code keeps one average, of the decay that is also the schema's default.

    Raises:
        ConfigError: It keeps no such average.
    """
    # The other overrides are read on top of the file's own settings, which are not known yet.
    asked = [override for override in overrides if override.partition("=")[0].strip() == _KEY]
    decay = apply_overrides(RunConfig(), asked).sample.ema
    return None if decay is None else choose_average(RunConfig(), decay)
