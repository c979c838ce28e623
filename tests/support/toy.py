"""A second family of backbones, as small as one can be: its network, its settings, its row; costs are not counted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import Field
from torch import Tensor, nn

from dis_cli.config.backbones import BACKBONES, BackboneConfig
from dis_cli.config.section import PositiveInt
from dis_cli.config.settings import settings
from dis_cli.models.backbone import Backbone
from dis_cli.models.cost import ModelShape
from dis_cli.models.families import FAMILIES, Family
from dis_cli.models.recognize import Shapes, dims


class ToyConfig(BackboneConfig):
    hidden: PositiveInt = Field(default=8, description="channels between the convolutions")


@dataclass(frozen=True)
class ToySize:
    hidden: int


@dataclass(frozen=True)
class ToyShape(ModelShape):
    image_size: int
    patch_size: int
    in_channels: int
    hidden: int
    num_classes: int = 0
    learn_sigma: bool = True

    @property
    def width(self) -> int:
        return self.hidden

    @property
    def label(self) -> str:
        return str(self.hidden)

    @property
    def layers(self) -> str:
        return f"2 convolutions of width {self.hidden}"


class Toy(Backbone):
    def __init__(
        self,
        image_size: int,
        patch_size: int,
        in_channels: int,
        hidden: int,
        num_classes: int = 0,
        learn_sigma: bool = True,
        label_drop: float = 0.1,
        engine: str = "auto",  # noqa: ARG002 - it has no scan
    ) -> None:
        super().__init__(image_size, in_channels, num_classes, learn_sigma=learn_sigma, label_drop=label_drop)
        self.patches = nn.Conv2d(in_channels, hidden, patch_size, stride=patch_size)
        self.time = nn.Linear(1, hidden)
        self.classes = nn.Embedding(num_classes + 1, hidden) if num_classes else None
        self.layers = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(2))
        self.pixels = nn.ConvTranspose2d(hidden, self.out_channels, patch_size, stride=patch_size)

    @property
    def num_tokens(self) -> int:
        return (self.image_size // self.patches.kernel_size[0]) ** 2

    def blocks(self) -> Iterable[nn.Module]:
        return self.layers

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        label_drop_uniform: Tensor | None = None,
        drop_path_uniform: Tensor | None = None,  # noqa: ARG002 - it drops none
    ) -> Tensor:
        self.require_fitting(x, labels)
        condition = self.time(t[:, None].float() / 1000)
        if self.classes is not None and labels is not None:
            condition = condition + self.classes(self.drop_labels(labels, label_drop_uniform))
        hidden = self.patches(x) + condition[:, :, None, None]
        for block in self.layers:
            hidden = hidden + self.run(block, hidden).relu()
        return self.pixels(hidden)


def recognize(found: Shapes) -> dict[str, Any]:
    hidden, in_channels, patch_size, _ = dims(found, "patches.weight", 4)
    classes = "classes.weight" in found
    return {
        # No weight knows it.
        "image_size": 8,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "hidden": hidden,
        "num_classes": dims(found, "classes.weight", 2)[0] - 1 if classes else 0,
        "learn_sigma": dims(found, "pixels.bias", 1)[0] == 2 * in_channels,
    }


def add_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two rows, for the time of a test."""
    row = Family(
        title="Toy",
        summary="two convolutions",
        network="support.toy:Toy",
        shape=ToyShape,
        sizes={"s": ToySize(8), "m": ToySize(16)},
        recognize=recognize,
    )
    monkeypatch.setitem(FAMILIES, "toy", row)
    monkeypatch.setitem(BACKBONES, "toy", ToyConfig)
    # What it says of `model.backbone` was kept.
    settings.cache_clear()


def remove_toy() -> None:
    settings.cache_clear()
