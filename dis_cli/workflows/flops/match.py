"""The model of a family that comes nearest to a preset's, by parameters, operations, or seconds on this machine."""

import dataclasses
from typing import Any, Final, Literal

from dis_cli.config.settings import as_text
from dis_cli.errors import UsageError
from dis_cli.models.families import FAMILIES
from dis_cli.models.match import FIGURES, nearest
from dis_cli.workflows.flops.model import AskedModel, ask_model

By = Literal["parameters", "macs", "time"]
BY: Final[tuple[By, ...]] = ("parameters", "macs", "time")

# Measurements at most, and how near in time ends the search.
_MOST_TRIALS, _NEAR = 5, 0.03


def match_report(preset: str, backbone: str, by: By, *, batch: int = 1, device: str = "auto") -> dict[str, Any]:
    """The settings of the nearest model, and what both cost.

    Args:
        preset: Whose images and classes the other has too.
        backbone: The family of the other.
        by: What is compared; "time" is that of a training step of ``batch`` images, measured here.

    Raises:
        UsageError: There is no such preset, or the family has no closed form to search in.
    """
    model = ask_model(preset=preset)
    family = FAMILIES[backbone]
    shape = model.shape
    grid = {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size if family.has_patches else 1,
        "in_channels": shape.in_channels,
        "num_classes": shape.num_classes,
        "learn_sigma": shape.learn_sigma,
    }
    figure = "macs" if by == "time" else by
    target = float(FIGURES[figure](model.family.cost(shape)))

    def found(target: float) -> tuple[dict[str, Any], AskedModel]:
        size = nearest(family, grid, figure, target)
        if not size:
            raise UsageError(f"A {family.title} cannot be matched: nothing counts it in closed form")
        return size, dataclasses.replace(model, family=family, shape=family.shape(**grid, **size))

    size, other = found(target)
    seconds: tuple[float, float] | None = None
    if by == "time":
        wanted = _step_seconds(model, batch, device)
        seconds = (wanted, _step_seconds(other, batch, device))
        last = seconds[1]
        for _ in range(_MOST_TRIALS - 1):
            if abs(last / wanted - 1) <= _NEAR:
                break
            target *= wanted / last
            tried_size, tried = found(target)
            last = _step_seconds(tried, batch, device)
            if abs(last - wanted) < abs(seconds[1] - wanted):
                size, other, seconds = tried_size, tried, (wanted, last)
    costs = [one.family.cost(one.shape) for one in (model, other)]
    return {
        "preset": preset,
        "backbone": backbone,
        "by": by,
        "settings": [f"model.backbone={backbone}", *(f"model.{key}={as_text(value)}" for key, value in size.items())],
        "models": [
            {
                "name": one.name,
                "num_parameters": cost.parameters,
                "macs": cost.macs,
                "training_step_seconds": None if seconds is None else seconds[index],
            }
            for index, (one, cost) in enumerate(zip((model, other), costs, strict=True))
        ],
    }


def _step_seconds(model: AskedModel, batch: int, device: str) -> float:
    # Imported late: only this needs torch.
    from dis_cli.events import Finished
    from dis_cli.workflows.flops.timing import time_model

    done = [event for event in time_model(model, batch=batch, device=device) if isinstance(event, Finished)]
    timings: Any = done[-1].result["timings"]
    return timings["training_step"]["seconds"]
